"""What a plan says that rows share is what the layout saves, counted on the pass itself."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch

from narrowtune.core.config import parse_config
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.report.plan_view import render_plan
from narrowtune.train.plan import make_plan
from narrowtune.train.trial import count_flops, count_row_flops
from narrowtune.train.workload import Workload
from tiny_models import VISION_FAMILIES, WITH_STATE

FP32 = Arithmetic(compute_dtype="float32", threads=1)
QUESTIONS = 4


def planned(loaded, rows, tmp_path, recipe="sa_proj", **changes):
    training = {
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "group_by_picture": True,
    }
    values = {"model": "m", "skill": "s.json", "output_dir": str(tmp_path), "training": training}
    config = parse_config({**values, "recipe": recipe}, "test")
    workload = Workload(rows=rows, num_samples=len(rows), **changes)
    return make_plan(loaded, config, workload, arithmetic=FP32, measure_time=False)


def picture_rows(loaded, num_pictures=4):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = []
    for number in range(num_pictures):
        file = io.BytesIO()
        PIL.Image.effect_noise((60, 60), 20 + number).convert("RGB").save(file, "PNG")
        picture = Image(data=file.getvalue())
        for place in range(QUESTIONS):
            messages = (
                Message("user", (picture, Text(f"what is in place {place}?"))),
                Message("assistant", (Text("red"),)),
            )
            example = Example(f"{number} {place}", messages, ("red",), group=str(number))
            rows.append(encoder.encode(example))
    return rows


@pytest.mark.parametrize("family", [name for name in VISION_FAMILIES if name not in WITH_STATE])
@pytest.mark.parametrize("recipe", ["sa_proj", "vision_tower"])
def test_the_factor_is_that_of_the_pass_itself(family, recipe, tiny, tmp_path):
    loaded = load_model(str(tiny(family, torch.float32)), device="cpu")
    rows = picture_rows(loaded)
    found = planned(loaded, rows, tmp_path, recipe)
    sharing = found.sharing
    assert sharing is not None
    assert sharing.pictures_plain == 8
    assert sharing.pictures == 2
    names = resolve(loaded.model, recipe).names
    # Alone they share nothing, and their last layer is computed at labels as it is together.
    alone = sum(count_flops(loaded.model, names, collate([row], 0)) for row in rows[:8])
    together = count_flops(loaded.model, names, collate(rows[:8], 0))
    assert sharing.factor == pytest.approx(alone / together, rel=0.05)
    # One of two layers is for its larger part computed at labels alone, which nothing shares.
    assert sharing.factor > 1.25


def text_rows(lengths):
    rows = []
    for number, length in enumerate(lengths):
        ids = [5 + (7 * number + place) % 50 for place in range(length)]
        rows.append(Encoded(ids, [-100] * (length - 2 - number % 3) + ids[-2 - number % 3 :]))
    return rows


@pytest.mark.parametrize("kind", ["padded", "alike", "anchored", "pictures and text"])
def test_the_runs_flops_are_those_of_its_passes(kind, tiny, tmp_path):
    family = "qwen2_5_vl" if kind == "pictures and text" else "llama"
    loaded = load_model(str(tiny(family, torch.float32)), device="cpu")
    rows = text_rows([30] * 8 if kind == "alike" else [12, 44, 20, 31, 25, 60, 18, 40])
    anchor, prompts = None, ()
    if kind == "pictures and text":
        rows = [*picture_rows(loaded)[:4], *rows[:4]]
    if kind == "anchored":
        anchor = {"rows_per_step": 2, "max_new_tokens": 12}
        prompts = [Encoded([9 + n, 8, 7, 6, 5], [-100] * 5) for n in range(2)]
    training = {"global_batch_size": 8, "per_device_train_batch_size": 8}
    values = {"model": "m", "skill": "s.json", "output_dir": str(tmp_path), "training": training}
    config = parse_config({**values, "recipe": "sa_proj", "anchor": anchor}, "test")
    workload = Workload(rows=rows, num_samples=8, anchor_prompts=prompts)
    plan = make_plan(loaded, config, workload, arithmetic=FP32, measure_time=False)
    held = [Encoded([*prompt.input_ids, *[5] * 12], [-100] * 5 + [5] * 12) for prompt in prompts]
    names = resolve(loaded.model, "sa_proj").names
    counted = count_flops(loaded.model, names, collate([*rows, *held], 0))
    assert plan.num_steps == 1
    # A straight line from one row of mean length; pictures' rows and text differ in what they are.
    assert plan.flops_total == pytest.approx(counted, rel=0.03)


def test_what_is_kept_is_looked_at_once(tiny, tmp_path):
    loaded = load_model(str(tiny("qwen2_5_vl", torch.float32)), device="cpu")
    rows = picture_rows(loaded)
    names = resolve(loaded.model, "sa_proj").names
    tower = count_row_flops(loaded.model, names, collate(rows[:1], 0)).tower
    every_pass = planned(loaded, rows, tmp_path)
    once = planned(loaded, rows, tmp_path, looked_at_once=4)
    assert every_pass.sharing is not None
    assert once.sharing is not None
    assert (once.sharing.pictures, once.sharing.pictures_plain) == (0, 0)
    # Two steps look at two pictures each: as many as there are.
    assert once.flops_total == pytest.approx(every_pass.flops_total)
    again = planned(loaded, rows, tmp_path, looked_at_once=1)
    assert again.flops_total == pytest.approx(every_pass.flops_total - 3 * tower)
    assert once.sharing.factor < every_pass.sharing.factor
    assert "pictures in place of" in _text(every_pass)
    assert "pictures in place of" not in _text(once)


def test_the_tower_is_a_part_of_the_whole(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl", torch.float32)), device="cpu")
    batch = collate(picture_rows(loaded)[:1], 0)
    names = resolve(loaded.model, "sa_proj").names
    parts = count_row_flops(loaded.model, names, batch)
    whole = count_flops(loaded.model, names, batch)
    # Without a mask half of attention's square is skipped.
    assert parts.linear + parts.labelled + parts.tower < whole < sum(parts)
    # A tower that trains costs its backward pass as well.
    everything = resolve(loaded.model, "full").names
    assert count_row_flops(loaded.model, everything, batch).tower > 2 * parts.tower
    text = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    assert count_row_flops(loaded.model, names, text).tower == 0


def test_nothing_shared_is_not_spoken_of(tiny, tmp_path):
    loaded = load_model(str(tiny("qwen2_5_vl", torch.float32)), device="cpu")
    found = planned(loaded, picture_rows(loaded, num_pictures=8)[::QUESTIONS], tmp_path)
    assert found.sharing is None
    assert "shared by rows" not in _text(found)


def test_it_is_said(tiny, tmp_path):
    loaded = load_model(str(tiny("qwen2_5_vl", torch.float32)), device="cpu")
    said = _text(planned(loaded, picture_rows(loaded), tmp_path))
    assert "× fewer FLOPs than row by row" in said
    assert "pictures in place of 8.0" in said
    llama = load_model(str(tiny("llama", torch.float32)), device="cpu")
    rows = [Encoded([5, 6, 7, 8, 9, 10 + n, 11], [-100] * 6 + [11]) for n in range(8)]
    said = _text(planned(llama, rows, tmp_path))
    assert "× fewer FLOPs than row by row" in said
    assert "pictures" not in said


def _text(plan):
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=400)
    console.print(render_plan(plan))
    return console.file.getvalue()
