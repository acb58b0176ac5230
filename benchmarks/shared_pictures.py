"""Several questions about one picture: how much faster than row by row, and than the plain Trainer.

    python benchmarks/shared_pictures.py      # 20 minutes on two cores with nothing else running
    python benchmarks/shared_pictures.py --unlike        # 10 minutes: a picture of its own each row

Two models, `sa_proj`: the reference model `qwen2_5_vl` as it ships (7 x 7 visual tokens a picture),
and a wider one of the same architecture with random weights (about 100 million parameters, 27 x 27
visual tokens). Rows have 4 or 8 questions a picture, 8 rows a step; the reference model also has
steps of 32, since in its steps of 8 what an operation costs by itself is much of the time. Arms:
narrowtune with the rows of a picture drawn together, narrowtune row by row, and
`transformers.Trainer` with the same matrices trainable and the model's own loss. No features are
kept, so that the tower is in every step. Rounds are interleaved, every arm in a process of its own;
the first step is not counted.

The factor that `narrowtune plan` predicts stands beside what was measured, and the token ratio
q (P + S) / (P + q S) without tower and head. Results: benchmarks/results/shared_pictures.json.

`--unlike`: every row has a picture of its own, of 8 to 27 visual tokens on each side, on the wider
model. Row by row they are padded to the longest; the plain Trainer also has them sorted by length
over all steps, which is the best that grouping by length can give. Results: …/unlike_pictures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from alone import run_alone
from rich.console import Console
from rich.table import Table

from narrowtune.core import provenance

RESULTS = Path(__file__).parent / "results" / "shared_pictures.json"
ROUNDS = 3
CASES = tuple(
    (model, rows, questions)
    for model, rows in (("reference", 8), ("reference", 32), ("wide", 8))
    for questions in (4, 8)
)
"""Model, rows of a step, questions about a picture."""
STEPS, UNLIKE_STEPS = {"reference": 12, "wide": 4}, 7
ARMS = ("shared", "row by row", "transformers.Trainer")
UNLIKE_CASES = (("wide", 8, 1),)
SORTED = "transformers.Trainer, rows by length"
UNLIKE_ARMS = (*ARMS, SORTED)
_TOKEN = 28  # pixels of a visual token's side
_LEAST_SIDE, _WIDE_SIDE = 8 * _TOKEN, 27 * _TOKEN


def make_model(name: str, folder: Path, side: int = _WIDE_SIDE) -> Path:
    """Return the folder of a model; the wide one, for pictures of a side, is written there."""
    from narrowtune.miniature.reference.shipped import reference_folder

    shipped = reference_folder("qwen2_5_vl")
    if name == "reference":
        return shipped
    import torch
    from transformers import AutoModelForImageTextToText

    from narrowtune.miniature.reference.architectures import get_blueprint

    blueprint = get_blueprint("qwen2_5_vl")
    tokenizer = blueprint.tokenizer()
    config = blueprint.make_config(tokenizer)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 640, 2560, 12
    text.num_attention_heads, text.num_key_value_heads = 10, 2
    text.layer_types = ["full_attention"] * 12
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [12, 10, 10]}
    vision.hidden_size, vision.intermediate_size, vision.depth, vision.num_heads = 512, 1536, 8, 8
    vision.patch_size, vision.window_size, vision.fullatt_block_indexes = 14, 112, [3, 7]
    vision.out_hidden_size = text.hidden_size
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    pixels = {"min_pixels": _LEAST_SIDE**2, "max_pixels": side**2, "patch_size": 14}
    blueprint.processor_files["preprocessor_config.json"].update(pixels)
    blueprint.write(model, tokenizer, folder)
    return folder


def make_rows(loaded: Any, model: str, questions: int, num: int) -> list[Any]:
    """Return encoded rows, those about one picture one after the other."""
    from narrowtune.data.chat import ChatEncoder

    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    return [encoder.encode(example) for example in make_examples(model, questions, num)]


def make_examples(model: str, questions: int, num: int, side: int = _WIDE_SIDE) -> list[Any]:
    """Return questions of drawn words, those about one picture one after the other."""
    from narrowtune.data.examples import Example, Image, Message, Text
    from narrowtune.miniature.registry import TASKS

    draw = random.Random(f"{model} {questions}")
    words = ["red", "blue", "house", "boat", "left", "right", "above", "below", "tree", "car"]
    rows = []
    for sample in TASKS["captions"].samples("train", num // questions):
        sides = [side, side]
        if questions == 1 and model == "wide":  # unlike ones
            sides = [draw.randrange(_LEAST_SIDE, side + 1, _TOKEN) for _ in sides]
        picture = Image(data=_sized(sample.scene.png(), model, sides))
        for place in range(questions):
            asked = " ".join(draw.choices(words, k=draw.randint(8, 16)))
            answer = " ".join(draw.choices(words, k=draw.randint(1, 5)))
            turns = (
                Message("user", (picture, Text(asked))),
                Message("assistant", (Text(answer),)),
            )
            rows.append(Example(f"{sample.id} {place}", turns, (answer,)))
    return rows


def _sized(png: bytes, model: str, sides: list[int]) -> bytes:
    import io

    import PIL.Image

    if model == "reference":
        return png
    file = io.BytesIO()
    picture = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    picture.resize((sides[0], sides[1])).save(file, "PNG")
    return file.getvalue()


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train one arm for some steps; the arm "plan" predicts."""
    import torch
    from training.arms import StepClock

    from narrowtune.core.config import parse_config
    from narrowtune.data.collate import collate, padding_id
    from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
    from narrowtune.engine.heap import keep_freed_blocks
    from narrowtune.models.load import load_model
    from narrowtune.models.select import resolve
    from narrowtune.train.fit import fit
    from narrowtune.train.masters import computing_in
    from narrowtune.train.plan import make_plan
    from narrowtune.train.workload import Workload

    keep_freed_blocks()
    loaded = load_model(given.folder)
    steps = UNLIKE_STEPS if given.questions == 1 else STEPS[given.model]
    rows = make_rows(loaded, given.model, given.questions, given.rows * steps)
    arithmetic = Arithmetic.from_json(given.arithmetic)
    if given.arm == "row by row":
        arithmetic = arithmetic.model_copy(update={"packing": False})
    training = {
        "global_batch_size": given.rows,
        "per_device_train_batch_size": given.rows,
        "max_steps": steps,
        "group_by_picture": True,
    }
    clock = StepClock()
    with tempfile.TemporaryDirectory() as output:
        values = {"model": given.folder, "skill": "rows.jsonl", "output_dir": output}
        config = parse_config({**values, "recipe": "sa_proj", "training": training}, "this")
        with apply_arithmetic(arithmetic), computing_in(loaded.model, torch.float32):
            if given.arm == "plan":
                workload = Workload(rows=rows, num_samples=len(rows))
                plan = make_plan(
                    loaded, config, workload, arithmetic=arithmetic, measure_time=False
                )
                picture = rows[0].input_ids.count(loaded.model.config.image_token_id)
                length = statistics.fmean(len(row.input_ids) for row in rows)
                alone, q = length - picture, given.questions
                return {
                    "factor": plan.sharing.factor if plan.sharing else None,
                    "tokens": q * length / (picture + q * alone),
                    "picture": picture,
                    "parameters": plan.num_parameters,
                }
            if given.arm in ("transformers.Trainer", SORTED):
                if given.arm == SORTED:
                    rows.sort(key=lambda row: len(row.input_ids))
                _plain(loaded, rows, given.rows, output, clock, padding_id, collate)
            else:
                selection = resolve(loaded.model, "sa_proj")
                fit(loaded, selection, rows, config, arithmetic=arithmetic, callbacks=[clock])
    return {"seconds": clock.seconds, "losses": clock.losses}


def _plain(
    loaded: Any,
    rows: list[Any],
    batch_size: int,
    output: str,
    clock: Any,
    padding_id: Any,
    collate: Any,
) -> None:
    """Train as people do without us: the same rows and matrices, the model's own loss."""
    from training.arms import common_arguments
    from transformers import Trainer, TrainingArguments

    from narrowtune.models.select import resolve

    names = set(resolve(loaded.model, "sa_proj").names)
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name in names)
    steps = len(rows) // batch_size
    values = {**common_arguments(True, False, steps, output), "remove_unused_columns": False}
    values["per_device_train_batch_size"] = batch_size
    # No dictionaries, by whose lengths the Trainer could group them.
    values["train_sampling_strategy"] = "sequential"
    Trainer(
        loaded.model,
        args=TrainingArguments(**values),
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, padding_id(loaded.tokenizer)),
        callbacks=[clock],
    ).train()


def run(**values: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    return run_alone(__file__, "--one", **values)


def show(values: dict[str, Any], unlike: bool) -> Table:
    """Return what was measured as a table."""
    title = "A picture of its own each row" if unlike else "Questions that share a picture"
    table = Table(title=f"{title}, sa_proj")
    # Steps of unlike pictures differ by intent, most where rows are sorted by length.
    typical = statistics.fmean if unlike else statistics.median
    columns = ("model", "rows a step", "questions", "arm", "samples/s", "shared is × as fast")
    for name in (*columns, "predicted", "token ratio"):
        table.add_column(name, justify="left" if name in ("model", "arm") else "right")
    for model, rows, questions in UNLIKE_CASES if unlike else CASES:
        case = f"{model}|{rows}|{questions}"
        plan = values["plans"][case]
        for arm in UNLIKE_ARMS if unlike else ARMS:
            shared = [done[f"{case}|shared"] for done in values["rounds"]]
            mine = [done[f"{case}|{arm}"] for done in values["rounds"]]
            middle = [typical(one["seconds"]) for one in mine]
            ratios = [
                typical(one["seconds"]) / typical(base["seconds"])
                for one, base in zip(mine, shared, strict=True)
            ]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            told = ["", ""]
            if arm == "row by row":
                told = [f"{plan['factor']:.2f}", f"{plan['tokens']:.2f}"]
            rate = f"{rows / statistics.median(middle):.2f}"
            table.add_row(model, str(rows), str(questions), arm, rate, spread, *told)
    return table


def main() -> None:
    """Measure round after round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument("--unlike", action="store_true", help="a picture of its own each row")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    for hidden in ("rows", "questions"):
        parser.add_argument(f"--{hidden}", type=int, help=argparse.SUPPRESS)
    for hidden in ("arm", "model", "folder", "arithmetic"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.output = given.output or (
        RESULTS.with_stem("unlike_pictures") if given.unlike else RESULTS
    )
    cases, arms = (UNLIKE_CASES, UNLIKE_ARMS) if given.unlike else (CASES, ARMS)
    if given.one:
        print(json.dumps(measure(given)))
        return
    if given.table:
        Console(width=120).print(show(json.loads(given.output.read_text("utf-8")), given.unlike))
        return
    from narrowtune.engine.arithmetic import measure_arithmetic
    from narrowtune.models.load import load_model

    with tempfile.TemporaryDirectory() as made:
        folders = {name: make_model(name, Path(made) / name) for name in STEPS}
        wide = load_model(str(folders["wide"])).model
        # Both models in fp32: bf16 in so small a one is slower on a CPU.
        arithmetic = measure_arithmetic(wide, requested="float32").to_json()
        del wide
        values: dict[str, Any] = {
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "git": provenance.git_state(Path(__file__).parent),
            "arithmetic": arithmetic,
            "plans": {},
            "rounds": [],
        }

        def case(model: str, rows: int, questions: int) -> dict[str, Any]:
            chosen = {"model": model, "rows": rows, "questions": questions}
            return {**chosen, "folder": folders[model], "arithmetic": arithmetic}

        for key in cases:
            values["plans"]["|".join(map(str, key))] = run(arm="plan", **case(*key))
        for number in range(given.rounds):
            done: dict[str, Any] = {"load": os.getloadavg()[0]}
            for key in cases:
                for arm in arms if number % 2 == 0 else arms[::-1]:
                    found = run(arm=arm, **case(*key))
                    done["|".join(map(str, (*key, arm)))] = found
                    Console(stderr=True).print(number + 1, *key, arm, found["seconds"])
            values["rounds"].append(done)
            given.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    Console(width=120).print(show(values, given.unlike))


if __name__ == "__main__":
    main()
