"""What of the anchor matters: its prompts, how many, how often, how long; and what else would do.

    python benchmarks/anchor_ablations.py [--workers 2] [--skill birds]
    python benchmarks/anchor_ablations.py --table

`mlp_gate_up` on the reference model, 1,600 rows of a skill in 200 steps of 8, at two rates: one at
which it loses a little without an anchor and one at which it loses much. One thing at a time
differs from the anchor as it is by default but for two rows a step: 256 prompts of four kinds, the
first 12 tokens of the base's answers, weight 1, KL over all 1,544 words of the vocabulary. The
prompts that ship with the package are tried too: the texts alone, and half of them with pictures,
as a model with eyes gets them. Beside it what else holds a model: labelled replay of as many rows
(a quarter more, so 250 steps), LwF on the skill's own rows, WiSE-FT, a lower rate.

Arms called "beside" take ten rows a step, eight of the skill and two others on average, in the same
200 steps: labelled general rows; the anchor's own prompts with the base's whole greedy answers as
labels; samples of the base at temperature 1 without picture or question, all tokens of which are
labels (arXiv 2505.13811). Rows can't be without a question, so that one is a full stop. All of a
step's labels count alike there, where an anchor's term is a mean of its own. "Task tokens" are
held by KL(base‖tuned) at the skill's labels, temperature 1: the anchor of ASFT (arXiv 2509.23753)
without its weighing of the cross-entropy. "Pull" pulls the weights to the base's, by so many
e-folds over the training ("L2" in stored results did so by rate times its number). Twice and four
times the steps are more passes over the same 1,600 rows. "Attention, then gate and up" trains each
for 100 steps on a half of the rows, with a schedule of its own. A half of the layers trains alone
in two arms.

Two seeds. Rows are those of the split `validation`, drawn with a seed of their own, so that no row
that a study reports decides anything here. Results are lines of results.jsonl, so a stopped run
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from narrowtune.core.config import DriftSettings, TrainingSettings
from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message, Text
from narrowtune.data.room import Room
from narrowtune.data.spilled import pick
from narrowtune.data.stored import StoredRows
from narrowtune.engine.generate import generate_greedy
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import Selection, resolve
from narrowtune.pipeline.inputs import load, make_encoder
from narrowtune.pipeline.prompts import SHIPPED_TEXTS, shipped_prompts
from narrowtune.pipeline.sources import Source
from narrowtune.study.chains import Chain, all_chains, open_chains
from narrowtune.study.correlations import correlate, points_in
from narrowtune.study.identity import hold_to
from narrowtune.study.mixture import Mixed
from narrowtune.study.results import StageResult, append_result, read_results
from narrowtune.study.run import Study, known_arithmetic
from narrowtune.study.tables import Point
from narrowtune.study.workers import results_path, run_study
from narrowtune.study.world import GENERAL, write_general
from narrowtune.train.fit import FitResult

SKILLS = ("clock", "birds")
SEED, ANCHOR_SEED, DRIFT_SEED, REPLAY_SEED = 5, 105, 106, 107
NUM_TRAIN, NUM_SKILL, NUM_KEPT, NUM_PROMPTS, NUM_REPLAYED = 3200, 200, 48, 256, 400
RATES = (3e-3, 5.5e-3)
SEEDS = (0, 1)

PROMPTS = {
    "general": GENERAL,
    "captions": GENERAL[:1],
    "letters": (*GENERAL, "choices", "tallies"),
    "pages": ("pages",),
}
"""Tasks that prompts are drawn from: the four of the study; one of them; those and two that ask for
an option's letter and for a number; one that is like nothing that is kept."""

HOW = {"rows_per_step": 2, "earlier_skills": 0}
"""Of every anchor; no skill is taught before another."""

BESIDE = {"global_batch_size": 10, "per_device_train_batch_size": 10}
"""Steps of eight rows of the skill and two others: 200 of them, as with an anchor."""

ANSWERED, SAMPLED = "answered.jsonl", "sampled.jsonl"
NO_CONTEXT, ANSWER_TOKENS = ".", 64

PHASES = {"attention, then gate and up": ("sa_proj", "mlp_gate_up")}
"""Arms of which each half of the rows trains something else."""

LAYERS = {"lower half of the layers": (0.0, 0.5), "upper half of the layers": (0.5, 1.0)}
"""Arms of which some layers train: from which share of all to which."""


def arms(world: Path) -> Iterator[ArmSettings]:
    """Yield the anchor as it is by default, and everything that differs from it in one thing."""

    def anchor(name: str, prompts: str = "general", **changes: Any) -> ArmSettings:
        path = str(world / f"prompts-{prompts}.jsonl")
        return arm(name, anchor={"prompts": path, **HOW, **changes})

    yield arm("nothing")
    yield anchor("anchor")
    for number in (16, 64):
        yield anchor(f"{number} prompts", max_prompts=number)
    for rows in (1, 4):
        yield anchor(f"{rows} rows a step", rows_per_step=rows)
    for tokens in (1, 3, 32):
        yield anchor(f"{tokens} tokens", max_new_tokens=tokens)
    for weight in (0.3, 4.0):
        yield anchor(f"weight {weight:g}", weight=weight)
    for words in (1, 16, 256):
        yield anchor(f"top {words}", top_k=words)
    for prompts in ("captions", "letters", "pages"):
        yield anchor(f"prompts: {prompts}", prompts)
    texts = str(shipped_prompts(SHIPPED_TEXTS))
    yield arm("prompts: texts that ship", anchor={"prompts": texts, **HOW})
    yield arm("prompts: those that ship", anchor=dict(HOW))
    yield from controls(world)
    general = {"prompts": str(world / "prompts-general.jsonl"), **HOW}
    for times in (2, 4):
        longer = {"num_train_epochs": times}
        yield arm(f"nothing, {times} x the steps", training=longer)
        yield arm(f"anchor, {times} x the steps", anchor=general, training=longer)
    yield arm("attention, and gate and up", recipe="sa_proj+mlp_gate_up", anchor=general)


def controls(world: Path) -> Iterator[ArmSettings]:
    """Yield what else holds a model."""

    def beside(name: str, file: str) -> ArmSettings:
        return arm(name, mix=[{"path": str(world / file), "share": 0.25}], training=BESIDE)

    yield arm("replay", mix=[{"path": str(world / "replay.jsonl"), "share": 0.25}])
    for weight in (0.1, 1.0):
        yield arm(f"LwF {weight:g}", distillation={"weight": weight})
    yield arm("WiSE-FT 0.5", wise_ft=0.5)
    yield arm("a third of the rate", rates=[rate / 3 for rate in RATES])
    yield beside("replay, beside", "replay.jsonl")
    yield beside("base's answers as labels, beside", ANSWERED)
    yield beside("context-free samples, beside", SAMPLED)
    for weight in (0.1, 1.0):
        yield arm(f"task tokens {weight:g}", distillation={"weight": weight, "temperature": 1.0})
    for pull in (1.0, 2.0, 4.0):
        yield arm(f"pull {pull:g}", pull=pull)


def part_arms(world: Path) -> Iterator[ArmSettings]:
    """Yield the anchor's arms that `Parts` runs."""
    general = {"prompts": str(world / "prompts-general.jsonl"), **HOW}
    for name in PHASES:
        yield arm(name, recipe="sa_proj+mlp_gate_up", anchor=general)
    for name in LAYERS:
        yield arm(name, anchor=general)


def arm(name: str, *, rates: list[float] | None = None, **changes: Any) -> ArmSettings:
    """Return `mlp_gate_up` with something added or changed."""
    values = {"recipe": "mlp_gate_up", "name": name, "learning_rates": rates or list(RATES)}
    return ArmSettings.model_validate({**values, **changes})


def make_settings(output_dir: Path, skill: str) -> StudySettings:
    """Write a skill's rows, the same each time, and return its study."""
    world = output_dir / "world"
    train = write_rows(world, skill, "train", NUM_TRAIN, SEED)
    test = write_rows(world, skill, "validation", NUM_SKILL, SEED)
    keep: list[DataSettings] = [
        write_rows(world, task.name, "validation", NUM_KEPT, SEED) for task in tasks_of("held_out")
    ]
    for name, tasks in PROMPTS.items():
        write_general(world / f"prompts-{name}.jsonl", tasks, NUM_PROMPTS, ANCHOR_SEED)
    write_general(world / "drift.jsonl", GENERAL[:1], 32, DRIFT_SEED)
    write_general(world / "replay.jsonl", GENERAL, NUM_REPLAYED, REPLAY_SEED, labelled=True)
    return StudySettings(
        model=str(reference_folder("qwen2_5_vl")),
        skills=[SkillSettings(**train.model_dump(), validation=0, test_path=test.path)],
        keep=keep,
        arms=list(arms(world)),
        seeds=list(SEEDS),
        num_samples=NUM_TRAIN // 2,
        training=TrainingSettings(global_batch_size=8, per_device_train_batch_size=8),
        drift=DriftSettings(prompts=str(world / "drift.jsonl"), max_prompts=32),
        output_dir=str(output_dir),
    )


def write_answers(settings: StudySettings, world: Path) -> None:
    """Write what the base says as rows, as many as are replayed: once, while it is the base."""
    if (world / SAMPLED).exists():
        return
    loaded = load(settings)
    encoder = make_encoder(loaded, settings)
    prompts = world / "prompts-general.jsonl"
    source = Source(DataSettings(path=str(prompts)), [], key="prompts", prompts_only=True)
    answers = generate_greedy(
        loaded,
        [encoder.encode_prompt(example.prompt) for example in source.examples],
        max_new_tokens=ANSWER_TOKENS,
        batch_size=64,
        extra_stop_tokens=encoder.stop_tokens,
    )
    rows = [
        json.loads(line) | {"answer": answer.text}
        for line, answer in zip(prompts.read_text("utf-8").splitlines(), answers, strict=True)
        if answer.text and answer.stopped
    ]
    # Two a step in 200 steps: as from the anchor, some come twice.
    drawn = islice(cycle(rows), NUM_REPLAYED)
    _write(world / ANSWERED, [row | {"id": f"{n}-{row['id']}"} for n, row in enumerate(drawn)])
    sampled = [
        {"id": f"sampled-{n}", "question": NO_CONTEXT, "answer": text}
        for n, text in enumerate(_sample(loaded, encoder))
    ]
    _write(world / SAMPLED, sampled)
    print(f"{len(rows)} of {len(answers)} prompts have a whole answer of the base's")


@torch.no_grad()
def _sample(loaded: LoadedModel, encoder: ChatEncoder) -> list[str]:
    """Return samples of the base at temperature 1, asked nothing; those that say something."""
    prompt = encoder.encode_prompt((Message("user", (Text(NO_CONTEXT),)),)).input_ids
    asked = torch.tensor([prompt] * 2 * NUM_REPLAYED, device=loaded.model.device)
    torch.manual_seed(REPLAY_SEED)
    model: Any = loaded.model
    found = model.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=list(encoder.stop_tokens),
    )
    texts = loaded.tokenizer.batch_decode(found[:, len(prompt) :], skip_special_tokens=True)
    return [text.strip() for text in texts if text.strip()][:NUM_REPLAYED]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


class Parts(Study):
    """A study of arms that recipes can't name: some layers alone, or one thing after another."""

    _half: int | None = None

    @contextmanager
    def _tuned(self, chain: Chain) -> Iterator[Mixed]:
        with super()._tuned(chain) as mixed:
            if chain.arm.label not in LAYERS:
                yield mixed
                return
            names = mixed.selection.names
            numbers = [int(re.findall(r"\.layers\.(\d+)\.", name)[-1]) for name in names]
            first, end = (share * (max(numbers) + 1) for share in LAYERS[chain.arm.label])
            own = tuple(n for n, at in zip(names, numbers, strict=True) if first <= at < end)
            yield Mixed(replace(mixed.selection, names=own), {name: name for name in own})

    def _fit(self, chain: Chain, stage: int, folder: str, selection: Selection) -> FitResult:
        phases = PHASES.get(chain.arm.label)
        if phases is None:
            return super()._fit(chain, stage, folder, selection)
        fitted = []
        for self._half, recipe in enumerate(phases):
            now = replace(chain, arm=chain.arm.model_copy(update={"recipe": recipe}))
            fitted.append(super()._fit(now, stage, folder, resolve(self.loaded.model, recipe)))
        self._half = None
        summaries = [each.summary for each in fitted]
        taken = {
            "num_steps": sum(summary.num_steps for summary in summaries),
            "seconds": sum(summary.seconds for summary in summaries),
        }
        return replace(fitted[-1], summary=summaries[-1].model_copy(update=taken))

    def _rows(self, skill: str, seed: int) -> StoredRows:
        if self._half is None:
            return super()._rows(skill, seed)
        drawn = self._drawn(skill, seed)
        half = pick(drawn, range(self._half, len(drawn), 2))
        return StoredRows(half, self.encoder, Room(2**30))


def missing(settings: StudySettings) -> list[Chain]:
    """Return what of a study is still to run."""
    return open_chains(list(all_chains(settings)), read_results(results_path(settings)))


def run_parts(settings: StudySettings, num_workers: int) -> None:
    """Run what is missing of `part_arms`, with a worker's share of the cores; the base is there."""
    chains, folder = missing(settings), Path(settings.output_dir)
    if not chains:
        return
    hold_to(settings, fingerprint(load(settings).model), begun=True)
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    arithmetic = known_arithmetic(folder)
    assert arithmetic is not None
    study = Parts(
        settings, arithmetic=arithmetic.model_copy(update={"threads": threads}), threads=threads
    )

    def report(result: StageResult) -> None:
        append_result(results_path(settings), result)
        print(result.chain, flush=True)

    for chain in chains:
        study.run(chain, 0, report)


def print_table(folder: Path) -> None:
    """Print what each arm learned and lost at each rate, mean of the seeds, and its seconds."""
    results = read_results(folder / "results.jsonl")
    seconds = {result.chain: result.seconds for result in results}
    points: dict[str, dict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points_in([results]):
        points[point.chain.arm][point.chain.learning_rate].append(point)
    print(f"{folder.name}: learned / lost in points (each seed's), × the seconds of nothing's")
    for name, rates in points.items():
        cells = []
        for place, (rate, found) in enumerate(sorted(rates.items())):
            each = ", ".join(f"{p.learning:.1f}/{p.forgetting:.1f}" for p in found)
            plain = sorted(points["nothing"].items())[place][1]
            ratio = fmean(seconds[p.chain] for p in found) / fmean(seconds[p.chain] for p in plain)
            learned = fmean(p.learning for p in found)
            lost = fmean(p.forgetting for p in found)
            cells.append(f"{rate:g}: {learned:.1f} / {lost:.1f} ({each}) × {ratio:.2f}")
        print(f"{name:34s}", "   ".join(cells))
    every = [p for rates in points.values() for found in rates.values() for p in found]
    print(correlate(every, "KL"))


def main() -> None:
    """Run what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/anchor-ablations"))
    parser.add_argument("--skill", choices=SKILLS, action="append", help="both unless given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--missing", action="store_true", help="count what is left, run nothing")
    given = parser.parse_args()
    for skill in given.skill or SKILLS:
        folder = given.output_dir / skill
        if not given.table:
            settings = make_settings(folder, skill)
            write_answers(settings, folder / "world")
            parts = settings.model_copy(update={"arms": list(part_arms(folder / "world"))})
            if given.missing:
                print(skill, Counter(c.arm.label for c in [*missing(settings), *missing(parts)]))
                continue
            run_study(
                settings,
                lambda result, left: print(f"{result.chain}; {left} left", flush=True),
                num_workers=given.workers,
            )
            run_parts(parts, given.workers)
        print_table(folder)


if __name__ == "__main__":
    main()
