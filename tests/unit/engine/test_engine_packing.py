"""The line gives the numbers of the rows it is made of, and says no where it could not."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fp64 import InFp64, difference, gradients, in_dtype
from narrowtune.data.collate import Encoded, collate
from narrowtune.engine import forward
from narrowtune.engine.forward import (
    label_positions,
    labelled_cross_entropy,
    logits_at,
    packing_error,
)
from narrowtune.engine.memory import SavedTensors
from narrowtune.engine.packing import layout_size, pack, packing
from narrowtune.models.load import load_model
from tiny_models import FAMILIES, WITH_STATE

SHARED = [5, 9, 6, 7, 11]


def rows(lengths=(4, 9, 6), shared=SHARED):
    made = []
    for number, length in enumerate(lengths):
        own = [20 + (7 * number + place) % 30 for place in range(length)]
        ids = [*shared, *own]
        made.append(Encoded(ids, [-100] * (len(ids) - 2) + ids[-2:]))
    return made


def batch(made=None):
    return collate(made or rows(), pad_token_id=0)


@pytest.fixture
def llama(tiny):
    return load_model(str(tiny("llama", torch.float32)), device="cpu").model.double()


def inputs_and_mask(given):
    mask, _ = label_positions(given["labels"])
    return {key: value for key, value in given.items() if key != "labels"}, mask


def assert_as_plain(model, given, when, limit=1e-12):
    """Compare loss, labels and gradients with those of the plain path."""
    found = []
    model.requires_grad_(True)
    with InFp64() if model.dtype == torch.float64 else nullcontext():
        for way in ("never", when):
            with packing(way):
                total, count = labelled_cross_entropy(model, given)
                found.append((total.item(), count, gradients(model, total)))
    plain, packed = found
    assert packed[:2] == (pytest.approx(plain[0], rel=limit), plain[1])
    assert difference(packed[2], plain[2]) <= limit


def test_the_line_has_the_shared_beginning_once_and_no_padding(llama):
    inputs, mask = inputs_and_mask(batch())
    line = pack(llama, inputs, mask)
    assert line is not None
    own = [row.input_ids[len(SHARED) :] for row in rows()]
    assert line.inputs["input_ids"].tolist() == [[*SHARED, *own[0], *own[1], *own[2]]]
    positions = [*range(9), *range(5, 14), *range(5, 11)]
    assert line.inputs["position_ids"].tolist() == [positions]
    assert layout_size(llama, inputs, mask).positions == 5 + 4 + 9 + 6
    assert int(line.mask.sum()) == int(mask.sum()) == 6


def test_every_token_sees_the_beginning_and_its_own_row_only(llama):
    inputs, mask = inputs_and_mask(batch())
    line = pack(llama, inputs, mask)
    assert line is not None
    seen = line.inputs["attention_mask"][0, 0]
    start = len(SHARED)
    spans = [(start, 9), (9, 18), (18, 24)]
    for index in range(start):
        assert seen[index].nonzero()[:, 0].tolist() == list(range(index + 1))
    for first, end in spans:
        for index in range(first, end):
            expected = [*range(start), *range(first, index + 1)]
            assert seen[index].nonzero()[:, 0].tolist() == expected


UNEVEN = (200, 20, 180, 40, 190, 30)


def test_rows_of_unlike_length_make_lines_of_like_length(llama):
    made = rows(UNEVEN)
    inputs, mask = inputs_and_mask(batch(made))
    lines = pack(llama, inputs, mask)
    assert lines is not None
    assert lines.inputs["input_ids"].shape == (3, len(SHARED) + 220)
    assert layout_size(llama, inputs, mask).positions == 3 * (5 + 220)
    for ids, positions, seen in zip(
        lines.inputs["input_ids"],
        lines.inputs["position_ids"],
        lines.inputs["attention_mask"][:, 0],
        strict=True,
    ):
        # By its position a token of the line is the first, second … of what it sees.
        for index, position in enumerate(positions.tolist()):
            own = seen[index].nonzero()[:, 0]
            if ids[index] == 0:  # fills the line up, and no other token sees it
                assert seen[:, index].nonzero()[:, 0].tolist() == [index]
                continue
            assert positions[own].tolist() == list(range(position + 1))
            row = ids[own].tolist()
            assert any(other.input_ids[: position + 1] == row for other in made)


def test_lines_give_the_loss_and_gradients_of_the_plain_path(llama):
    assert_as_plain(llama, batch(rows(UNEVEN)), "cheaper")


def test_the_mask_is_kept_once_for_all_layers(llama):
    given = batch(rows(UNEVEN))
    inputs, mask = inputs_and_mask(given)
    layout = pack(llama, inputs, mask)
    assert layout is not None
    num_lines, _, length, _ = layout.inputs["attention_mask"].shape
    in_every_layer = 8 * num_lines * length * length
    once = 8 * num_lines * length * -(-length // 8) * 8  # rows begin at multiples of eight
    llama.requires_grad_(True)
    kept = []
    for dtype in (torch.float64, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forward, "_attention_dtype", lambda _, dtype=dtype: dtype)
            with SavedTensors(llama) as saved:
                _loss = labelled_cross_entropy(llama, given)
        kept.append(saved.num_bytes)
    num_layers = llama.config.num_hidden_layers
    assert num_layers > 1
    assert kept[1] - kept[0] == num_layers * in_every_layer - once


def test_a_position_that_several_rows_ask_for_is_there_once(llama):
    # The rows are the same up to the last token, which alone is labelled and alone differs.
    made = [Encoded([*SHARED, 30, last], [-100] * 6 + [last]) for last in (40, 41)]
    inputs, mask = inputs_and_mask(batch(made))
    assert layout_size(llama, inputs, mask).positions == 5 + 1 + 2
    line = pack(llama, inputs, mask)
    assert line is not None
    assert int(line.mask.sum()) == 1
    assert line.order.tolist() == [0, 0]
    with packing("never"):
        plain = logits_at(llama, inputs, mask)
    assert torch.allclose(logits_at(llama, inputs, mask), plain, rtol=1e-12, atol=1e-14)


def tree():
    """Rows of four questions with three answers each, out of order: what they share is twofold."""
    made = []
    for answer in range(3):
        for question in (2, 0, 3, 1):
            asked = [20 + (5 * question + place) % 30 for place in range(6 + question)]
            own = [60 + answer, 70 + answer, 80][: 1 + answer]
            ids = [*SHARED, *asked, *own, 3]
            made.append(Encoded(ids, [-100] * (len(ids) - len(own) - 1) + [*own, 3]))
    return made


def test_what_only_some_rows_share_is_computed_once(llama):
    made = tree()
    inputs, mask = inputs_and_mask(batch(made))
    lines = pack(llama, inputs, mask)
    assert lines is not None
    own = (6 + 7 + 8 + 9) + 4 * (2 + 3 + 4)
    assert layout_size(llama, inputs, mask).positions == 5 * len(lines.mask) + own
    # Every row is what its last token sees.
    found = set()
    for ids, positions, seen in zip(
        lines.inputs["input_ids"],
        lines.inputs["position_ids"],
        lines.inputs["attention_mask"][:, 0],
        strict=True,
    ):
        rows = [tuple(ids[own.nonzero()[:, 0]].tolist()) for own in seen]
        assert [len(row) for row in rows] == (positions + 1).tolist()
        found |= set(rows)
    assert {tuple(row.input_ids) for row in made} <= found
    # The first token of an answer is predicted in one place for all answers of a question.
    assert int(lines.mask.sum()) == int(mask.sum()) - 4 * 2


@pytest.mark.parametrize("repeated", [1, 2])
def test_a_tree_gives_the_loss_and_gradients_of_the_plain_path(llama, repeated):
    assert_as_plain(llama, batch(tree() * repeated), "always")


def test_rows_that_share_a_turn_that_only_some_learn_give_the_numbers_of_the_plain_path(llama):
    made = []
    for answer in range(4):
        ids = [*SHARED, 30, 31, 3, 12, 13, 40 + answer, 3]
        labels = [-100] * 10 + [40 + answer, 3]
        if answer % 2:
            labels[5:8] = ids[5:8]  # the turn before, which all four have
        made.append(Encoded(ids, labels))
    given = batch(made)
    inputs, mask = inputs_and_mask(given)
    line = pack(llama, inputs, mask)
    assert line is not None
    assert int(mask.sum()) == 4 * 2 + 2 * 3
    assert int(line.mask.sum()) == 3 + 1 + 4  # shared, the first of an answer, the ends of four
    assert_as_plain(llama, given, "always")


def test_rows_that_share_a_question_stay_in_one_line(llama):
    questions = [[20 + (7 * number + place) % 60 for place in range(150)] for number in range(6)]
    made = [
        Encoded([*asked, 90 + answer, 3], [-100] * 150 + [90 + answer, 3])
        for answer in range(2)
        for asked in questions
    ]
    inputs, mask = inputs_and_mask(batch(made))
    lines = pack(llama, inputs, mask)
    assert lines is not None
    assert len(lines.mask) > 1
    assert lines.inputs["input_ids"].numel() == 6 * (150 + 2 * 2)


@pytest.mark.parametrize("family", WITH_STATE)
def test_rows_of_models_that_keep_a_state_are_left_as_they_are(family, tiny):
    model = load_model(str(tiny(family, torch.float32)), device="cpu").model
    inputs, mask = inputs_and_mask(batch())
    with packing("always"):
        assert pack(model, inputs, mask) is None
        together = logits_at(model, inputs, mask)
    alone = []
    for row, asked, valid in zip(
        inputs["input_ids"], mask, inputs["attention_mask"].bool(), strict=True
    ):
        own = {"input_ids": row[valid][None], "attention_mask": valid[valid][None].long()}
        alone.append(logits_at(model, own, asked[valid][None]))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WITH_STATE])
def test_loss_and_gradients_are_those_of_the_plain_path(family, tiny, dtype, limit):
    model = in_dtype(load_model(str(tiny(family, torch.float32)), device="cpu").model, dtype)
    inputs, mask = inputs_and_mask(batch())
    assert layout_size(model, inputs, mask).positions == 24, "the fast path was not taken"
    assert_as_plain(model, batch(), "cheaper", limit)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_mixture_whose_settings_ask_for_a_loss_of_its_own_is_packed(family, tiny):
    model = load_model(str(tiny(family, torch.float32)), device="cpu").model
    model.config.output_router_logits = True
    assert_as_plain(model, batch(), "cheaper", 1e-5)
    assert model.config.output_router_logits


def test_packing_error_sees_a_model_that_ignores_the_mask(llama, monkeypatch):
    assert packing_error(llama, batch()) < 1e-12
    forward = llama.forward

    def deaf(*args, **kwargs):
        if kwargs["attention_mask"].ndim == 4:
            kwargs["attention_mask"] = None
            kwargs["position_ids"] = None
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama, "forward", deaf)
    assert packing_error(llama, batch()) > 0.01


@pytest.mark.parametrize(
    "change",
    [
        lambda b, m: (b, m, {"pixel_values": torch.zeros(1)}),
        lambda b, m: ({k: v[:1] for k, v in b.items()}, m[:1], {}),
        lambda b, m: ({**b, "attention_mask": b["attention_mask"].flip(1)}, m, {}),
        lambda b, m: (b, torch.zeros_like(m), {}),
        lambda b, m: (b, torch.ones_like(m), {}),
    ],
    ids=["features", "one row", "left padding", "nothing asked for", "padding asked for"],
)
def test_what_is_not_packed(llama, change):
    inputs, mask = inputs_and_mask(batch())
    changed, chosen, features = change(inputs, mask)
    assert pack(llama, {**changed, **features}, chosen) is None


def test_rows_that_are_long_and_unlike_are_not_packed(llama):
    made = [
        Encoded([30 + (n + place) % 20 for place in range(900)], [-100] * 899 + [5])
        for n in range(6)
    ]
    inputs, mask = inputs_and_mask(batch(made))
    assert pack(llama, inputs, mask) is None
    assert layout_size(llama, inputs, mask).positions == 6 * 900


def test_a_window_shorter_than_a_row_is_not_packed(llama):
    inputs, mask = inputs_and_mask(batch())
    llama.config.sliding_window = 8
    assert pack(llama, inputs, mask) is None
    llama.config.sliding_window = 14
    assert pack(llama, inputs, mask) is not None


def test_the_plain_path_can_be_asked_for(llama):
    inputs, mask = inputs_and_mask(batch())
    with packing("never"):
        assert pack(llama, inputs, mask) is None
    assert pack(llama, inputs, mask) is not None


@pytest.mark.parametrize(
    ("autocast", "odd_one", "wrapped", "expected"),
    [
        (False, False, False, torch.float32),
        (True, False, False, torch.bfloat16),
        (True, True, False, torch.bfloat16),
        (False, True, False, torch.bool),
        (False, False, True, torch.bool),
    ],
)
def test_the_mask_has_the_dtype_of_attention(tiny, autocast, odd_one, wrapped, expected):
    model = load_model(str(tiny("llama", torch.float32)), device="cpu").model
    if odd_one:
        model.lm_head.bfloat16()
        model.lm_head.register_forward_pre_hook(lambda module, args: args[0].to(torch.bfloat16))
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    outer = Wrapped(model) if wrapped else model
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        if wrapped:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(forward, "extract_model_from_parallel", lambda m, **_: m.module)
                labelled_cross_entropy(outer, batch())
        else:
            labelled_cross_entropy(outer, batch())
    (mask,) = seen
    assert mask.ndim == 4
    assert mask.dtype == expected


class Wrapped(torch.nn.Module):
    """As what distributes a model over devices."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def test_what_is_only_a_little_cheaper_is_left_as_it_is(llama):
    # Rows without padding and mask skip half of attention's square, which a layout does not.
    made = [Encoded(SHARED * 20 + [20 + n] * 100, [-100] * 199 + [20 + n]) for n in range(2)]
    inputs, mask = inputs_and_mask(batch(made))
    assert pack(llama, inputs, mask) is None
    with packing("always"):
        layout = pack(llama, inputs, mask)
    assert layout is not None
    assert layout.inputs["input_ids"].shape == (1, 300)


def test_the_size_is_that_of_the_layout_that_is_built(llama):
    for lengths in ((4, 9, 6), UNEVEN, (30, 30, 30, 31)):
        inputs, mask = inputs_and_mask(batch(rows(lengths)))
        with packing("always"):
            layout = pack(llama, inputs, mask)
            size = layout_size(llama, inputs, mask)
        assert layout is not None
        assert (size.rows, size.length) == layout.inputs["input_ids"].shape
        assert size.masked
        with packing("never"):
            plain = layout_size(llama, inputs, mask)
        assert (plain.rows, plain.length) == inputs["input_ids"].shape
        assert plain.masked
