"""Does an adapter that peft loads score as its export said?

    python benchmarks/lora_export.py --output benchmarks/results/lora_export.json

The reference model learns to read clocks by `sa_proj` (100 steps of 8 rows). Its delta is exported
with `narrowtune delta export --tasks` at several ranks, which says what the cut keeps, and how much
the score changes from the delta to the adapter, merged and rounded to bf16. Then peft puts each
adapter, unmerged, on the base in fp32, and the very same items are scored with that. Ends with 1
where a change found so is outside of the interval that the export gave.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ledger_five import MODEL, call, write_settings
from peft import PeftModel

from narrowtune.core.config import RunConfig, load_config, parse_data_settings
from narrowtune.core.provenance import versions
from narrowtune.core.results import TaskResult
from narrowtune.core.run_folder import RunFolder, write_json
from narrowtune.data.examples import RefusedRow
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.verdict import compare_results
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.models.load import load_model
from narrowtune.pipeline.inputs import make_encoder
from narrowtune.pipeline.single import evaluate as evaluate_delta
from narrowtune.pipeline.sources import read_task

SKILL, RECIPE, NUM_STEPS, NUM_ITEMS, BATCH = "clock", "sa_proj", 100, 200, 32
RANKS = (8, 32, 64, 192)
"""The last is that of the largest matrix: nothing is cut."""


def with_peft(config: RunConfig, adapter: Path, task: dict[str, Any]) -> TaskResult:
    """Score the base in fp32 with an adapter that peft put on it."""
    loaded = load_model(config.model, dtype="float32", device="cpu")
    PeftModel.from_pretrained(loaded.model, str(adapter)).eval()  # changes the model in place
    encoder = make_encoder(loaded, config)
    refused: list[RefusedRow] = []
    read = read_task(parse_data_settings(task, "to score an adapter"), encoder, refused)
    return evaluate(loaded, read, encoder, batch_size=BATCH)


def measure(folder: Path) -> dict[str, Any]:
    """Teach, export at every rank, and return what was said and what was found."""
    settings = write_settings(folder, SKILL, RECIPE, num_steps=NUM_STEPS, num_items=NUM_ITEMS)
    call("teach", settings, codes=(0, 3, 4))
    config = load_config(settings)
    delta = RunFolder(Path(config.output_dir)).delta
    skill = config.skill
    task = {
        "path": skill.test_path,
        "metric": skill.metric,
        "mode": skill.mode,
        "max_new_tokens": skill.max_new_tokens,
    }
    exact = evaluate_delta(config, [task], delta, batch_size=BATCH, output=folder / "exact").tasks
    rows = []
    for rank in RANKS:
        adapter = folder / f"rank-{rank}"
        flags = ["--rank", str(rank), "--tasks", skill.test_path, "--metric", skill.metric]
        flags += ["--mode", skill.mode, "--max-new-tokens", str(skill.max_new_tokens), "--json"]
        base = reference_folder(MODEL)
        said = json.loads(call("delta", "export", base, delta, "--output", adapter, *flags))
        (change,) = said["changes"]
        (found,) = compare_results(exact, [with_peft(config, adapter, task)])
        reported = change["change"]
        rows.append(
            {
                "rank": rank,
                "energy": said["kept"]["energy"],
                "worst_matrix": min(said["kept"]["by_tensor"].values()),
                "needed": said["kept"]["needed"],
                "delta_score": change["before"]["mean"],
                "reported_score": change["after"]["mean"],
                "reported_change": reported,
                "peft_score": found.after.mean,
                "peft_change": found.change.value,
                "within": reported["low"] <= found.change.value <= reported["high"],
            }
        )
        print(row_of(rows[-1]), flush=True)
    return {"versions": versions(), "items": NUM_ITEMS, "steps": NUM_STEPS, "ranks": rows}


def row_of(row: dict[str, Any]) -> str:
    """Return a row of the table in docs/delta.md."""
    reported = row["reported_change"]
    interval = f"{reported['value']:+.1f} ({reported['low']:+.1f} to {reported['high']:+.1f})"
    shares = f"{100 * row['energy']:.1f} % | {100 * row['worst_matrix']:.1f} %"
    return f"| {row['rank']} | {shares} | {interval} | {row['peft_change']:+.1f} |"


def main() -> None:
    """Measure, print the table, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    print("| rank | squared values kept | in the worst matrix | change as exported | by peft |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name))
    needed = found["ranks"][0]["needed"]
    print(f"ranks that keep 90 % and 99 %: {needed}")
    print(f"with the delta: {100 * found['ranks'][0]['delta_score']:.1f} % of {found['items']}")
    if given.output:
        write_json(given.output, found)
    if not all(row["within"] for row in found["ranks"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
