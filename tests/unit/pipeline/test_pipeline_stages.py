"""The fast path is compared with the plain one before a run relies on it."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch

from narrowtune.core.config import parse_config
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.pipeline import stages
from narrowtune.pipeline.inputs import Inputs, make_encoder
from narrowtune.pipeline.layouts import check_packing, choose_arithmetic, packable_batches
from narrowtune.pipeline.stages import (
    looked_at_once,
    plan_run,
)

FP32 = Arithmetic(compute_dtype="float32", threads=1, note="as given")


@pytest.fixture
def llama(tiny) -> LoadedModel:
    return load_model(str(tiny("llama", torch.bfloat16)), device="cpu")


def rows(count: int = 4, length: int = 12) -> list[Encoded]:
    made = []
    for number in range(count):
        ids = [5 + (7 * number + place) % 50 for place in range(length + number)]
        made.append(Encoded(ids, [-100] * (len(ids) - 2) + ids[-2:]))
    return made


def ignore_lines(loaded: LoadedModel, monkeypatch) -> None:
    """Make the model deaf to a line's mask and positions, as an unknown architecture may be."""
    forward = loaded.model.forward

    def deaf(*args, **kwargs):
        if kwargs["attention_mask"].ndim == 4:
            kwargs["attention_mask"] = kwargs["position_ids"] = None
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", deaf)


def test_a_model_that_honours_the_line_is_packed(llama):
    found = check_packing(FP32, llama, [rows()], allowed=True)
    assert found.packing
    assert "packed and plain logits differ by" in found.note
    assert {p.dtype for p in llama.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("length", [12, 600])
def test_a_model_that_does_not_takes_the_plain_path_and_it_is_said(llama, monkeypatch, length):
    # Rows of 600 tokens would not be packed for cost; shorter batches of the run might be.
    ignore_lines(llama, monkeypatch)
    found = check_packing(FP32, llama, [rows(length=length)], allowed=True)
    assert not found.packing
    assert "rows are not packed" in found.note


def test_what_cannot_be_compared_is_as_it_was_asked_for(llama):
    assert check_packing(FP32, llama, [rows(1), []], allowed=True).packing
    assert not check_packing(FP32, llama, [rows()], allowed=False).packing


def test_arithmetic_is_measured_again_for_another_model_or_other_settings(
    llama, tmp_path, monkeypatch
):
    measured = []

    def measure(*_, requested):
        measured.append(requested)
        return FP32

    monkeypatch.setattr("narrowtune.pipeline.layouts.measure_arithmetic", measure)
    folder = RunFolder(tmp_path)

    def chosen(base="abc", **training):
        values = {"model": "m", "skill": "s.jsonl", "training": training}
        config = parse_config(values, "test")
        encoder = make_encoder(llama, config)
        return choose_arithmetic(config, llama, Inputs(rows=rows()), encoder, folder, base=base)

    first = chosen()
    assert (chosen(), len(measured)) == (first, 1)
    assert not chosen(packing=False).packing
    chosen(packing=False, compute_dtype="float32")
    assert measured == ["auto", "auto", "float32"]
    chosen("another", packing=False, compute_dtype="float32")
    assert len(measured) == 4


@pytest.fixture
def llava(tiny) -> LoadedModel:
    return load_model(str(tiny("llava")), device="cpu")


def prompt(*parts):
    return "free", (Message("user", parts),)


def picture() -> Image:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((40, 30), 60).convert("RGB").save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def test_where_no_row_of_text_is_learned_from_prompts_are_compared(llava):
    encoder = make_encoder(llava, parse_config({"model": "m", "skill": "s.jsonl"}, "test"))
    pictured = [Encoded(r.input_ids, r.labels, {"pixel_values": torch.zeros(1)}) for r in rows()]
    asked = [prompt(picture(), Text("what is this")), prompt(Text("one")), prompt(Text("two"))]
    asked.append(prompt(Text("three")))
    text, about_one = packable_batches(Inputs(rows=pictured, drift_prompts=asked), encoder)
    assert [encoder.encode_answer(messages, "Yes") for _, messages in asked[1:3]] == text
    assert len(about_one) == 2
    assert torch.equal(*(row.features["pixel_values"] for row in about_one))
    turned = [*rows()[1:], rows()[0]]
    learned = [*pictured, *turned]
    shortest = sorted(turned, key=lambda row: len(row.input_ids))[:2]
    assert packable_batches(Inputs(rows=learned, drift_prompts=asked), encoder)[0] == shortest


@pytest.mark.parametrize("before", [(), (Text("Look: "),)], ids=["picture first", "text first"])
def test_a_model_that_does_not_honour_branches_takes_the_plain_path(llava, monkeypatch, before):
    encoder = make_encoder(llava, parse_config({"model": "m", "skill": "s.jsonl"}, "test"))
    asked = [prompt(*before, picture(), Text("what is this that we see here"))]
    batches = packable_batches(Inputs(drift_prompts=asked), encoder)
    found = check_packing(FP32, llava, batches, allowed=True)
    assert found.packing
    assert "packed and plain logits differ by" in found.note
    ignore_lines(llava, monkeypatch)
    assert not check_packing(FP32, llava, batches, allowed=True).packing


def test_noise_and_plan_are_measured_on_questions_that_share_their_pictures(llava, monkeypatch):
    encoder = make_encoder(llava, parse_config({"model": "m", "skill": "s.jsonl"}, "test"))
    pictures = [picture() for _ in range(6)]
    answer = Message("assistant", (Text("yes"),))

    def task(name, contents):
        examples = [
            Example(f"{name}{n}", (Message("user", content), answer), ("yes",))
            for n, content in enumerate(contents)
        ]
        return Task(name, "held_out", "exact", "generate", 4, examples)

    text = task("text", [(Text(f"{n}?"),) for n in range(5)])
    pictured = task("pictured", [(pictures[n % 6], Text(f"{n}?")) for n in range(24)])
    seen = []
    monkeypatch.setattr(
        stages, "measure_noise", lambda _, prompts, **values: seen.append((prompts, values)) or 1.0
    )
    stages.measure_tolerance(llava, [text, *[pictured] * 3], encoder)
    [(prompts, values)] = seen
    digests = [each.picture_digest for each in prompts]
    assert digests[0] == ""
    assert digests[1] == digests[2] != ""
    assert len(prompts) == values["num_rows"] == 7
    load = stages._task_load(pictured, encoder, batch_size=8, num_groups=6)
    assert len(load.prompts) == 8
    assert len({each.picture_digest for each in load.prompts}) == 2
    assert load.num_items == 24


def settings(tmp_path, **changes):
    values = {"model": "m", "skill": "s.json", "output_dir": str(tmp_path), "recipe": "sa_proj"}
    return parse_config({**values, **changes}, "test")


def test_a_model_with_eyes_is_planned_without_rows(llava, tmp_path):
    config = settings(tmp_path)
    encoder = make_encoder(llava, config)
    plan = plan_run(llava, config, Inputs(), encoder, FP32, measure_time=False)
    assert plan.num_trainable > 0
    assert plan.num_steps is None


@pytest.mark.parametrize(
    ("epochs", "changes", "processes", "expected"),
    [
        (2.0, {}, 1, 3),
        (1.0, {}, 1, None),  # each picture comes once
        (2.0, {"recipe": "vision_tower"}, 1, None),
        (2.0, {"remember_pictures": False}, 1, None),
        (2.0, {}, 2, None),
    ],
)
def test_training_keeps_what_it_saw_where_it_looks_again(
    llava, tmp_path, epochs, changes, processes, expected
):
    pictures = [
        Encoded([1, 2], [-100, 2], {"pixel_values": torch.full((1, 3, 2, 2), float(number))})
        for number in range(3)
    ]
    config = settings(tmp_path, training={"num_train_epochs": epochs}, **changes)
    found = looked_at_once(llava, config, [*pictures, *rows()], processes)
    assert found == expected


@pytest.mark.parametrize(
    ("recipe", "dtype", "compute", "refused"),
    [
        ("projector", torch.float16, "auto", True),
        ("full", torch.float16, "bfloat16", True),
        ("projector", torch.float16, "float32", False),
        ("projector", torch.bfloat16, "auto", False),
        ("sa_proj", torch.float16, "auto", False),
    ],
)
def test_eyes_do_not_learn_through_fp16_on_a_gpu(
    tiny, tmp_path, monkeypatch, recipe, dtype, compute, refused
):
    loaded = load_model(str(tiny("llava", dtype)), device="cpu")
    monkeypatch.setattr(type(loaded.model), "device", torch.device("cuda"))
    values = {"model": "m", "skill": "s.json", "recipe": recipe}
    config = parse_config({**values, "training": {"compute_dtype": compute}}, "test")
    folder, reached = RunFolder(tmp_path), pytest.raises(ZeroDivisionError)
    monkeypatch.setattr("narrowtune.pipeline.layouts.measure_arithmetic", lambda *_, **__: 1 / 0)
    said = pytest.raises(UsageError, match="dtype: bfloat16") if refused else reached
    with said:
        choose_arithmetic(config, loaded, Inputs(), None, folder, base="x")
    # Nor where another way of a comparison has measured before.
    asked = f"x on cuda, compute_dtype {compute}, packing True"
    known = FP32.model_copy(update={"measured_for": asked})
    folder.arithmetic.write_text(known.to_json())
    if refused:
        with pytest.raises(UsageError, match="dtype: bfloat16"):
            choose_arithmetic(config, loaded, Inputs(), None, folder, base="x")
    else:
        assert choose_arithmetic(config, loaded, Inputs(), None, folder, base="x") == known


def test_devices_of_one_kind_share_what_one_of_them_measured(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("narrowtune.pipeline.layouts.measure_arithmetic", lambda *_, **__: FP32)
    config = parse_config({"model": "m", "skill": "s.jsonl"}, "test")
    found = []
    for number in range(2):
        monkeypatch.setattr(type(llama.model), "device", torch.device("cuda", number))
        encoder = make_encoder(llama, config)
        monkeypatch.setattr(
            "narrowtune.pipeline.layouts.check_packing", lambda made, *_, **__: made
        )
        folder = RunFolder(tmp_path)
        found.append(choose_arithmetic(config, llama, Inputs(), encoder, folder, base="x"))
        monkeypatch.setattr(
            "narrowtune.pipeline.layouts.measure_arithmetic", lambda *_, **__: 1 / 0
        )
    assert found[0] == found[1]
