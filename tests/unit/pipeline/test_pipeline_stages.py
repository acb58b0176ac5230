"""The fast path is compared with the plain one before a run relies on it."""

from __future__ import annotations

import pytest
import torch

from narrowtune.data.collate import Encoded
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.pipeline.stages import check_packing

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
    found = check_packing(FP32, llama, rows(), allowed=True)
    assert found.packing
    assert "packed and plain logits differ by" in found.note
    assert {p.dtype for p in llama.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("length", [12, 600])
def test_a_model_that_does_not_takes_the_plain_path_and_it_is_said(llama, monkeypatch, length):
    # Rows of 600 tokens would not be packed for cost; shorter batches of the run might be.
    ignore_lines(llama, monkeypatch)
    found = check_packing(FP32, llama, rows(length=length), allowed=True)
    assert not found.packing
    assert "rows are not packed" in found.note


def test_what_cannot_be_compared_is_as_it_was_asked_for(llama):
    assert check_packing(FP32, llama, rows(1), allowed=True).packing
    assert not check_packing(FP32, llama, rows(), allowed=False).packing
    pictured = [Encoded(r.input_ids, r.labels, {"pixel_values": torch.zeros(1)}) for r in rows()]
    assert check_packing(FP32, llama, pictured, allowed=True).packing
