"""An exported adapter is the nearest of its rank, peft loads it, and what it loses is said."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from peft import PeftConfig, PeftModel

from delta_cases import weights
from narrowtune.core.errors import DeltaError, UsageError
from narrowtune.delta import low_rank
from narrowtune.delta.apply import apply
from narrowtune.delta.extract import extract
from narrowtune.delta.low_rank import LowRank
from narrowtune.delta.store import Delta
from narrowtune.models.select import select


def adapted(case, folder):
    """What peft makes of the base and an adapter."""
    merged = PeftModel.from_pretrained(case.load(), folder).merge_and_unload()
    return weights(merged)


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_at_full_rank_peft_gives_the_tuned_model(make_case, tmp_path, family):
    case = make_case(family, torch.float32)
    cut = LowRank(case.folder, case.delta, rank=64)
    cut.save(tmp_path / "adapter", "# card")
    assert (tmp_path / "adapter" / "README.md").read_text() == "# card"
    found, kept = adapted(case, tmp_path / "adapter"), cut.kept()
    assert PeftConfig.from_pretrained(tmp_path / "adapter").task_type == "CAUSAL_LM"
    for name in kept.by_tensor:
        assert torch.allclose(found[name], case.tuned[name], atol=1e-6)
        assert kept.by_tensor[name] == pytest.approx(1, abs=1e-5)
    for name in case.base:
        if name not in kept.by_tensor:
            assert found[name].equal(case.base[name])


def test_a_cut_keeps_what_the_singular_values_say(make_case, tmp_path):
    case = make_case("llama", torch.float32)
    cut = LowRank(case.folder, case.delta, rank=3)
    kept = cut.kept()
    total = rest = 0.0
    for name in case.selection.names:
        values = torch.linalg.svdvals(case.tuned[name].double() - case.base[name].double())
        squares = values.square()
        assert kept.by_tensor[name] == pytest.approx(float(squares[:3].sum() / squares.sum()), 1e-4)
        total, rest = total + float(squares.sum()), rest + float(squares[3:].sum())
    assert kept.energy == pytest.approx(1 - rest / total, 1e-4)
    assert 0.1 < kept.energy < 0.9
    assert 3 < kept.needed["90 %"] <= kept.needed["99 %"]
    cut.save(tmp_path / "adapter", "")
    near = case.load()
    apply(near, cut.as_delta())
    found, merged = adapted(case, tmp_path / "adapter"), weights(near)
    assert all(torch.allclose(found[n], merged[n], atol=1e-6) for n in case.base)


def test_what_is_no_matrix_is_named_and_stays_the_bases(make_case, tmp_path):
    """Qwen's attention has biases, which a recipe trains with it."""
    case = make_case("qwen2_5_vl", torch.float32)
    biases = [name for name in case.selection.names if name.endswith(".bias")]
    assert biases
    cut = LowRank(case.folder, case.delta, rank=64)
    kept = cut.kept()
    assert list(kept.left_out) == biases
    assert kept.energy == pytest.approx(1 - sum(kept.left_out.values()), abs=1e-5)
    near = case.load()
    apply(near, cut.as_delta())
    assert all(weights(near)[name].equal(case.base[name]) for name in biases)


def test_large_matrices_are_cut_nearly_as_well(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scales = 0.9 ** torch.arange(120)
    matrix = torch.randn(200, 120, generator=generator) @ torch.diag(scales)
    matrix = matrix @ torch.randn(120, 150, generator=generator)
    exact = low_rank._factor(matrix, 8)
    monkeypatch.setattr(low_rank, "_EXACT", 0)
    projected = low_rank._factor(matrix, 8)
    assert len(projected.squares) == 40 < len(exact.squares)
    assert exact.kept * 0.9999 <= projected.kept <= exact.kept * 1.0000001
    assert low_rank._factor(matrix, 8).up.equal(projected.up)


def test_the_rank_that_would_keep_more_is_told_only_as_far_as_it_is_known(make_case, monkeypatch):
    case = make_case("llama", torch.float32)
    exact = LowRank(case.folder, case.delta, rank=2).kept()
    assert exact.needed["90 %"] > 4
    monkeypatch.setattr(low_rank, "_SURPLUS", 2)
    # Matrices with more than 16 on their smaller side are projected: four values each are known.
    monkeypatch.setattr(low_rank, "_EXACT", 16)
    mixed = LowRank(case.folder, case.delta, rank=2)
    known = {len(factors.squares) for factors in mixed._factors.values()}
    assert len(known) == 2, "some are known whole, others not"
    assert mixed.kept().needed == {"90 %": None, "99 %": None}


def test_peft_is_asked_for_before_anything_is_computed(make_case, monkeypatch):
    from narrowtune.core import extras

    case = make_case("llama", torch.float32)
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    monkeypatch.setattr(low_rank, "_factor", None)
    with pytest.raises(UsageError, match=r"narrowtune\[lora\]"):
        LowRank(case.folder, case.delta, rank=2)


def test_nothing_changed_is_all_kept(make_case):
    case = make_case("llama", torch.float32)
    model = case.load()
    selection = select(model, "sa_proj")
    same = extract(model, selection, {n: case.base[n] for n in selection.names})
    kept = LowRank(case.folder, same, rank=2).kept()
    assert kept.energy == 1
    assert set(kept.by_tensor.values()) == {1.0}
    assert kept.needed == {"90 %": 1, "99 %": 1}


def test_mistakes_are_named(make_case, tmp_path, monkeypatch):
    case = make_case("llama", torch.float32)
    with pytest.raises(UsageError, match="rank 0"):
        LowRank(case.folder, case.delta, rank=0)
    cut = LowRank(case.folder, case.delta, rank=1)
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(DeltaError, match="bytes free"):
            cut.save(tmp_path / "full", "")
    assert not any(tmp_path.iterdir())
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(DeltaError, match="not empty"):
        cut.save(tmp_path / "used", "")
    case = make_case("qwen2_5_vl", torch.float32)
    biases = {n: r for n, r in case.delta.metadata.tensors.items() if n.endswith(".bias")}
    rest = Delta(case.delta.metadata.model_copy(update={"tensors": biases}), case.delta.bits)
    with pytest.raises(DeltaError, match="no matrix of a linear layer"):
        LowRank(case.folder, rest, rank=1)
