"""Blended deltas are what the papers' rules say, rounded, and fit the base like any other."""

from __future__ import annotations

import pytest
import torch

from delta_cases import disturb, same_bits, weights
from narrowtune.core.errors import DeltaError, UsageError
from narrowtune.delta.apply import apply, undo
from narrowtune.delta.blend import RULES, Blending, blend, parse_rule
from narrowtune.delta.extract import extract
from narrowtune.delta.folder import apply_to_folder
from narrowtune.models.blended import set_between
from narrowtune.models.select import select


@pytest.fixture
def taught(make_case):
    """A base, and the deltas of two skills taught to it by different recipes."""
    case = make_case("llama", torch.float32, "sa_proj")
    model = case.load()
    selection = select(model, "sa_proj+mlp_gate_up")
    disturb(model, selection.names, seed=1)
    second = extract(model, selection, {n: case.base[n] for n in selection.names})
    return case, [case.delta, second]


def differences(case, deltas, name):
    found = []
    for delta in deltas:
        model = case.load()
        apply(model, delta)
        found.append(weights(model)[name].float() - case.base[name].float())
    return found


def blended(case, deltas, how):
    delta = blend(case.folder, deltas, how)
    model = case.load()
    apply(model, delta)
    after = weights(model)
    undo(model, delta)
    assert same_bits(weights(model), case.base)
    return delta, after


def shared(deltas):
    return [n for n in deltas[0].metadata.tensors if n in deltas[1].metadata.tensors]


def test_a_weaker_delta_takes_no_further_library(taught, monkeypatch):
    case, deltas = taught
    monkeypatch.setattr("narrowtune.core.extras.find_spec", lambda name: None)
    blend(case.folder, deltas[:1], Blending(weights=(0.5,)))
    for these, how in ((deltas, Blending()), (deltas[:1], Blending("ties", density=0.5))):
        with pytest.raises(UsageError, match="peft is not installed"):
            blend(case.folder, these, how)


def test_linear_is_the_weighted_sum(taught):
    case, deltas = taught
    delta, after = blended(case, deltas, Blending(weights=(0.5, 2.0)))
    assert set(delta.metadata.tensors) == {n for d in deltas for n in d.metadata.tensors}
    for name in shared(deltas):
        first, second = differences(case, deltas, name)
        assert torch.allclose(after[name], case.base[name] + 0.5 * first + 2 * second, atol=1e-6)
    alone = next(n for n in delta.metadata.tensors if n not in deltas[0].metadata.tensors)
    _, second = differences(case, deltas, alone)
    assert torch.allclose(after[alone], case.base[alone] + 2 * second, atol=1e-6)


def test_one_delta_at_a_weight_is_what_a_dial_makes(make_case):
    case = make_case("llama", torch.float32)
    tuned = {n: torch.randn_like(case.base[n]) for n in case.selection.names}
    model = case.load()
    for name, parameter in model.named_parameters():
        if name in tuned:
            parameter.data = tuned[name].clone()
    base = {n: case.base[n] for n in case.selection.names}
    delta = extract(model, case.selection, base)
    assert blend(case.folder, [delta], Blending()).metadata == delta.metadata.model_copy(
        update={
            "notes": [f"blended by linear: 1 × sa_proj ({delta.metadata.tuned_fingerprint[:12]})"]
        }
    )
    _, after = blended(case, [delta], Blending(weights=(0.7,)))
    dialled = case.load()
    set_between(dialled, base, tuned, 0.7)
    assert same_bits(after, weights(dialled))


def test_a_folder_with_another_delta_in_it_is_no_base(make_case, tmp_path):
    case, other = make_case("llama", torch.bfloat16), make_case("llama", torch.bfloat16, "mlp")
    apply_to_folder(case.folder, other.path, tmp_path / "tuned")
    with pytest.raises(DeltaError, match="mlp"):
        blend(tmp_path / "tuned", [case.delta], Blending(weights=(0.5,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_delta_at_full_weight_is_itself_and_at_none_the_base(make_case, dtype):
    case = make_case("llama", dtype)
    whole = blend(case.folder, [case.delta], Blending())
    assert all(whole.bits[name].equal(bits) for name, bits in case.delta.bits.items())
    assert whole.metadata.tuned_fingerprint == case.delta.metadata.tuned_fingerprint
    none = blend(case.folder, [case.delta], Blending(weights=(0.0,)))
    assert not any(bits.any() for bits in none.bits.values())
    assert none.metadata.tuned_fingerprint == none.metadata.base_fingerprint


def by_the_paper(parts, factors, density):
    """TIES (arXiv 2306.01708, algorithm 1), element by element."""
    kept = []
    for part in parts:
        flat = part.flatten()
        num = int(density * flat.numel())
        order = sorted(range(flat.numel()), key=lambda k: -abs(float(flat[k])))[:num]
        kept.append([float(flat[k]) if k in set(order) else 0.0 for k in range(flat.numel())])
    merged = []
    for values in zip(*kept, strict=True):
        sign = 1 if sum(values) >= 0 else -1
        agree = [(v, f) for v, f in zip(values, factors, strict=True) if v * sign > 0]
        merged.append(sum(v * f for v, f in agree) / max(1, len(agree)))
    return torch.tensor(merged).view(parts[0].shape)


def test_ties_trims_elects_and_averages(taught):
    case, deltas = taught
    _, after = blended(case, deltas, Blending("ties", weights=(1.0, 0.5), density=0.3))
    name = next(n for n in shared(deltas) if "k_proj" in n)
    expected = by_the_paper(differences(case, deltas, name), (1.0, 0.5), 0.3)
    assert torch.allclose(after[name] - case.base[name], expected, atol=1e-6)
    assert 0 < (expected != 0).float().mean() < 0.6


def test_dare_keeps_a_share_and_rescales_it_and_repeats_by_seed(taught):
    case, deltas = taught
    how = Blending("dare_linear", weights=(1.0, 0.0), density=0.5, seed=3)
    delta, after = blended(case, deltas, how)
    name = shared(deltas)[0]
    first, _ = differences(case, deltas, name)
    moved = after[name] - case.base[name]
    kept = moved != 0
    assert torch.allclose(moved[kept], 2 * first[kept], atol=1e-6)
    assert 0.35 < kept.sum() / (first != 0).sum() < 0.65
    again = blend(case.folder, deltas, how)
    assert all(again.bits[n].equal(bits) for n, bits in delta.bits.items())
    other = blend(case.folder, deltas, Blending("dare_linear", (1.0, 0.0), 0.5, seed=4))
    assert not other.bits[name].equal(delta.bits[name])


def test_chance_outside_is_not_disturbed(taught):
    case, deltas = taught
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    blend(case.folder, deltas, Blending("dare_ties", density=0.5))
    assert torch.rand(3).equal(expected)


def test_a_note_says_what_was_blended(taught):
    case, deltas = taught
    delta = blend(case.folder, deltas, Blending("dare_ties", (1.0, 0.5), 0.5, 7))
    assert delta.metadata.recipe == "sa_proj & sa_proj+mlp_gate_up"
    assert delta.metadata.notes[0].startswith("blended by dare_ties, density 0.5, seed 7: 1 × sa_")
    assert delta.metadata.base_fingerprint == deltas[0].metadata.base_fingerprint


def test_mistakes_are_named(taught, make_case):
    case, deltas = taught
    with pytest.raises(UsageError, match="3 weights for 2 deltas"):
        blend(case.folder, deltas, Blending(weights=(1, 2, 3)))
    with pytest.raises(UsageError, match=r"density of 1\.5"):
        blend(case.folder, deltas, Blending("ties", density=1.5))
    for rule in ("ties", "dare_linear", "dare_ties"):
        with pytest.raises(UsageError, match="no density"):
            blend(case.folder, deltas, Blending(rule))
    with pytest.raises(UsageError, match="keeps everything"):
        blend(case.folder, deltas, Blending("linear", density=0.5))
    with pytest.raises(UsageError, match="no delta"):
        blend(case.folder, [], Blending())
    with pytest.raises(DeltaError, match="2 different bases"):
        blend(case.folder, [deltas[0], make_case("llama", torch.bfloat16).delta], Blending())
    with pytest.raises(DeltaError, match="infinity"):
        blend(case.folder, deltas, Blending(weights=(1e39, 1.0)))
    with pytest.raises(UsageError, match="choose one of linear, ties"):
        parse_rule("slerp")
    assert [parse_rule(rule) for rule in RULES] == list(RULES)
