"""On a GPU what is quicker gives the numbers of what is plain, and bits come back."""

from __future__ import annotations

import pytest
import torch

from narrowtune.data.collate import Encoded, collate
from narrowtune.delta.apply import apply, undo
from narrowtune.delta.extract import extract
from narrowtune.engine.forward import labelled_cross_entropy, packing_error
from narrowtune.engine.generate import generate_greedy
from narrowtune.engine.packing import packing
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel, load_model
from narrowtune.models.select import resolve
from narrowtune.models.swap import WeightSwap
from tiny_models import FAMILIES, WITH_STATE

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(params=sorted(set(FAMILIES) - set(WITH_STATE)))
def loaded(request, tiny) -> LoadedModel:
    return load_model(str(tiny(request.param)), device=DEVICE)


def batch():
    shared, rows = [5, 9, 6, 7, 11], []
    for number, length in enumerate((4, 9, 6, 30)):
        ids = [*shared, *(20 + (7 * number + place) % 30 for place in range(length))]
        rows.append(Encoded(ids, [-100] * (len(ids) - 2) + ids[-2:]))
    return {name: value.to(DEVICE) for name, value in collate(rows, pad_token_id=0).items()}


def gradients(model, given, when):
    model.requires_grad_(True).zero_grad()
    with packing(when):
        total, _ = labelled_cross_entropy(model, given)
        total.backward()
    found = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    return total.item(), torch.cat(found)


def test_layouts_and_bare_rows_are_the_plain_path_in_fp32(loaded):
    given = batch()
    loss, expected = gradients(loaded.model, given, "never")
    for when in ("cheaper", "always"):
        found, gradient = gradients(loaded.model, given, when)
        assert found == pytest.approx(loss, rel=1e-5)
        assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen2_5_vl"])
def test_layouts_are_near_the_plain_path_in_bf16(family, tiny):
    loaded = load_model(str(tiny(family, torch.bfloat16)), device=DEVICE)
    error = packing_error(loaded.model, batch())
    assert error is not None
    assert error < 0.05


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_a_delta_goes_on_and_off_bit_for_bit(family, tiny):
    model = load_model(str(tiny(family, torch.bfloat16)), device=DEVICE).model
    selection = resolve(model, "sa_proj")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    swap = WeightSwap(model, {name: before[name] for name in selection.names})
    with torch.no_grad():
        for name in selection.names:
            model.get_parameter(name).add_(0.01)
    tuned = fingerprint(model, selection.names)
    with swap.base():
        assert fingerprint(model, selection.names) != tuned
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    delta = extract(model, selection, {name: before[name].cpu() for name in selection.names})
    undo(model, delta)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    apply(model, delta)
    assert fingerprint(model, selection.names) == tuned


def test_answers_do_not_depend_on_the_batch(loaded):
    prompts = [Encoded([5, 9, 20 + n, *range(30, 32 + n)], []) for n in range(5)]
    found = [
        [g.token_ids for g in generate_greedy(loaded, prompts, max_new_tokens=6, batch_size=n)]
        for n in (1, 5)
    ]
    assert found[0] == found[1]
