"""Projected steps: the nearest to the optimiser's that move little of what the base is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.config import RunConfig
from narrowtune.core.errors import TrainingError
from narrowtune.core.study_settings import ArmSettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate, padding_id
from narrowtune.data.examples import Example, Message, Text
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.forward import label_positions
from narrowtune.engine.memory import Activations, estimate_memory
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.anchor import build_anchor
from narrowtune.train.distributions import kl_base_tuned
from narrowtune.train.fit import fit
from narrowtune.train.plan import make_plan
from narrowtune.train.plan_projected import projected_cost
from narrowtune.train.projected import (
    Layer,
    ProjectedSteps,
    input_sizes,
    project_steps,
    projected_layers,
)
from narrowtune.train.workload import Workload

FLOAT32 = Arithmetic(compute_dtype="float32", threads=1)
WORDS = ("dog", "sun", "tree", "bread", "rain", "milk")


def _turns(question: str, answer: str = "") -> tuple[Message, ...]:
    asked = Message("user", (Text(question),))
    return (asked, Message("assistant", (Text(answer),))) if answer else (asked,)


def _anchor(loaded, encoder, **settings):
    prompts = [_turns(f"Tell me about {i} stones.") for i in range(6)]
    chosen = AnchorSettings(rows_per_step=2, max_new_tokens=4, **settings)
    return build_anchor(loaded, encoder, prompts, chosen, batch_size=4, seed=1)


def _fit(folder: Path, model_folder: Path, recipe: str, *, resume: bool = False, **settings):
    training = {"learning_rate": 1e-3, "global_batch_size": 4, "per_device_train_batch_size": 4}
    training |= settings.pop("training", {})
    loaded = load_model(str(model_folder), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = [
        encoder.encode(Example(str(i), _turns(f"Say it {i}.", WORDS[i % 6]), (WORDS[i % 6],)))
        for i in range(16)
    ]
    config = RunConfig.model_validate(
        {
            "model": "tiny",
            "skill": "unused",
            "recipe": recipe,
            "output_dir": str(folder),
            "training": training,
        }
    )
    fitted = fit(
        loaded,
        resolve(loaded.model, recipe),
        rows,
        config,
        arithmetic=FLOAT32,
        anchor=_anchor(loaded, encoder, **settings) if settings else None,
        resume=resume,
    )
    return loaded, fitted


def _inputs(loaded, encoder, module: str) -> torch.Tensor:
    """What a layer is given on the anchor's answers, [N, I]."""
    found = []
    for row in _anchor(loaded, encoder).encoded:
        batch = collate([row], padding_id(loaded.tokenizer))
        mask, _ = label_positions(batch["labels"])
        seen: list[torch.Tensor] = []
        layer = loaded.model.get_submodule(module)
        handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            loaded.model(**{k: v for k, v in batch.items() if k != "labels"})
        handle.remove()
        found.append(seen[0].reshape(*mask.shape, -1)[mask])
    return torch.cat(found).double()


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        *[
            (family, recipe)
            for family in ("llama", "qwen2", "phi3")
            for recipe in ("sa_proj", "mlp")
        ],
        ("qwen3_5_text", "full"),
        ("qwen3_5_moe", "mlp"),  # beside its experts is an MLP
    ],
)
def test_matrices_are_the_inverse_of_what_layers_are_given(tiny, family, recipe):
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = _anchor(loaded, encoder).encoded
    layers = projected_layers(loaded.model, resolve(loaded.model, recipe).names)
    found = project_steps(
        loaded, layers, rows, strength=3.0, arithmetic=FLOAT32, batch_size=4
    ).matrices
    assert list(found) == layers
    for layer in layers:
        x = _inputs(loaded, encoder, layer.module)
        mean = x.square().mean()
        if layer.has_bias:
            x = nn.functional.pad(x, (0, 1), value=1.0)
        moment = x.T @ x / len(x)
        expected = torch.linalg.inv(torch.eye(len(moment)).double() + 3.0 * moment / mean)
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-3, atol=1e-4)
    distinct = {id(matrix): len(matrix) for matrix in found.values()}
    assert sorted(distinct.values()) == sorted(input_sizes(loaded.model, layers))


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_step_is_the_nearest_that_moves_outputs_little(has_bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3, bias=has_bias)).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(40, 5 + has_bias).double()
    moment = x.T @ x / len(x)
    matrix = torch.linalg.inv(torch.eye(len(moment)).double() + 7.0 * moment)
    projected = ProjectedSteps({Layer("0", has_bias): matrix}, strength=7.0, seconds=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    projected.attach(optimizer, dict(model.named_parameters()))
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    optimizer.step()

    def joined(values):
        return (
            torch.cat([values["0.weight"], values["0.bias"][:, None]], 1)
            if has_bias
            else (values["0.weight"])
        )

    after = dict(model.named_parameters())
    step = joined({name: after[name].detach() - before[name] for name in before})
    wanted = -0.1 * joined(gradients) @ matrix  # what the optimiser makes of the gradient it gets

    def cost(d):
        return (d - wanted).square().sum() + 7.0 * (d @ moment @ d.T).trace()

    for _ in range(20):
        assert cost(step) < cost(step + 1e-3 * torch.randn_like(step))


def test_what_the_base_computes_on_the_prompts_stays_and_the_skill_is_learned(tiny, tmp_path):
    runs = {
        strength: _fit(
            tmp_path / str(strength),
            tiny("llama"),
            "mlp",
            training={"learning_rate": 5e-3, "num_train_epochs": 4},
            **({"weight": 0, "projection": strength} if strength else {}),
        )
        for strength in (0, 1e4)
    }
    base = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(base.tokenizer)
    anchor = _anchor(base, encoder)
    moved = {}
    for strength, (loaded, _) in runs.items():
        moved[strength] = 0.0
        for row, held in zip(anchor.encoded, anchor.distributions, strict=True):
            batch = collate([row], padding_id(base.tokenizer))
            mask, _ = label_positions(batch["labels"])
            with torch.no_grad():
                inputs = {k: v for k, v in batch.items() if k != "labels"}
                new = loaded.model(**inputs).logits[mask]
            moved[strength] += float(kl_base_tuned(held, new))
    # Not zero: what an answer's tokens attend to, the question's, moves as well.
    assert moved[1e4] < moved[0] / 4
    logged = (tmp_path / "10000.0" / "train.jsonl").read_text().splitlines()
    assert len(logged) == 16
    begun = json.loads(logged[0])["cross_entropy"]
    assert json.loads(logged[-1])["cross_entropy"] < begun - 0.1
    assert "anchor_kl" not in json.loads(logged[0])
    assert runs[1e4][1].summary.anchor_projection == 1e4
    assert runs[0][1].summary.anchor_projection is None


@pytest.mark.parametrize("top_k", [None, 4])
def test_a_resumed_run_takes_the_same_projected_steps(tiny, tmp_path, top_k):
    options = {"weight": 1.0, "projection": 3.0, "top_k": top_k}
    whole, _ = _fit(tmp_path / "whole", tiny("llama"), "mlp_gate_up", **options)
    cut = {"save_steps": 2, "max_steps": 4}
    _fit(tmp_path / "cut", tiny("llama"), "mlp_gate_up", training=cut, **options)
    folders = sorted((tmp_path / "cut").glob("checkpoint-*"))
    assert folders
    for folder in folders:
        if folder.name != "checkpoint-2":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    again, fitted = _fit(
        tmp_path / "cut", tiny("llama"), "mlp_gate_up", resume=True, training=cut, **options
    )
    assert fitted.summary.resumed_from == "checkpoint-2"
    assert fitted.summary.anchor_projection == 3.0
    assert fitted.summary.anchor_top_k == top_k
    for (name, one), (_, two) in zip(
        whole.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), name


def test_nothing_that_can_be_projected_is_said(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    layers = projected_layers(loaded.model, resolve(loaded.model, "projector").names)
    rows = _anchor(loaded, encoder).encoded
    with pytest.raises(TrainingError, match=r"anchor\.projection"):
        project_steps(loaded, layers, rows, strength=1.0, arithmetic=FLOAT32, batch_size=2)


def test_heads_embeddings_norms_and_eyes_are_left_as_they_are(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    layers = projected_layers(loaded.model, resolve(loaded.model, "full").names)
    assert {layer.module.rsplit(".", 1)[1] for layer in layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert {layer.module.rsplit(".", 1)[1] for layer in layers if layer.has_bias} == {
        *("q_proj", "k_proj", "v_proj")
    }
    assert not any("visual" in layer.module for layer in layers)


def test_an_anchor_that_holds_nothing_is_refused():
    with pytest.raises(ValidationError, match="holds nothing"):
        AnchorSettings(weight=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drift": {"action": "raise_anchor"}}, "raise_anchor needs an anchor with a weight"),
        ({"training": {"fsdp": True}}, "projection can't be used with training.fsdp"),
        ({"training": {"deepspeed": "zero.json"}}, "projection can't be used with training.deep"),
        ({"training": {"optim": "adalomo"}}, "used with training.optim: adalomo"),
    ],
)
def test_what_can_not_be_combined_is_refused(changes, said):
    anchor = {"weight": 0, "projection": 1}
    with pytest.raises(ValidationError, match=said):
        RunConfig.model_validate({"model": "m", "skill": "s.jsonl", "anchor": anchor, **changes})


@pytest.mark.parametrize("added", [{"lora": True}, {"experts": True}])
def test_an_arm_of_other_matrices_is_refused(added):
    with pytest.raises(ValidationError, match="of whole matrices"):
        ArmSettings.model_validate(
            {"recipe": "mlp", "learning_rates": [1], "anchor": {"projection": 1}, **added}
        )


def test_a_plan_counts_matrices_copies_moments_and_products(tiny, tmp_path):
    loaded = load_model(str(tiny("qwen2")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    rows = [
        encoder.encode(Example(str(i), _turns(f"Say it {i}.", "sun"), ("sun",))) for i in range(8)
    ]
    prompts = [encoder.encode_prompt(_turns(f"Tell me about {i} stones.")) for i in range(4)]
    workload = Workload(rows=rows, num_samples=8, anchor_prompts=prompts)

    def plan(recipe="language_model", **anchor):
        config = RunConfig.model_validate(
            {
                "model": "tiny",
                "skill": "unused",
                "recipe": recipe,
                "anchor": {"weight": 0, **anchor} if anchor else None,
                "output_dir": str(tmp_path),
                "training": {"global_batch_size": 8, "per_device_train_batch_size": 8},
            }
        )
        return make_plan(loaded, config, workload, arithmetic=FLOAT32)

    without, projected = plan(), plan(projection=3.0)
    layers = projected_layers(loaded.model, resolve(loaded.model, "language_model").names)
    weights = [loaded.model.get_submodule(layer.module).weight for layer in layers]
    sizes = input_sizes(loaded.model, layers)
    assert projected.memory.anchor == 4 * sum(size**2 for size in sizes)
    copies = sum(4 * weight.numel() for weight in weights)
    copies += sum(
        4 * weight.shape[0] for weight, layer in zip(weights, layers, strict=True) if layer.has_bias
    )
    assert projected.memory.total - projected.memory.workspace <= (
        without.memory.total - without.memory.workspace + projected.memory.anchor + copies
    )
    assert projected.flops_total - without.flops_total == pytest.approx(
        sum(4 * weight.numel() * weight.shape[1] for weight in weights)
    )
    num_others = len(resolve(loaded.model, "language_model").names) - len(layers)
    num_others -= sum(layer.has_bias for layer in layers)
    assert any(f"{num_others} others are not" in note for note in projected.notes)
    assert projected.memory.logits == without.memory.logits  # no anchor rows in a step
    names = resolve(loaded.model, "language_model").names
    cost = projected_cost(loaded.model, names, 3.0, FLOAT32)
    assert cost.copy_bytes == copies
    assert cost.moment_bytes == 2 * projected.memory.anchor  # fp64 where matrices are fp32


@pytest.mark.parametrize(
    ("held", "total"),
    [
        ({}, 16),  # master, gradient, optimiser
        ({"step_copy_bytes": 40}, 56),
        ({"matrix_bytes": 40}, 56),
        ({"moment_bytes": 40}, 44),  # beside the master alone
    ],
)
def test_what_projecting_holds_is_in_the_peak(held, total):
    found = estimate_memory(
        frozen_bytes=0,
        num_trainable=1,
        base_bytes=0,
        optimizer_bytes_per_parameter=8,
        activations=Activations(0.0, 0.0),
        num_positions=1,
        logits=0,
        device=torch.device("cuda"),
        **held,
    )
    assert found.total == total


def test_a_plan_for_what_can_not_be_projected_says_so(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    names = resolve(loaded.model, "projector").names
    with pytest.raises(TrainingError, match="no linear layer of the language model"):
        projected_cost(loaded.model, names, 3.0, FLOAT32)


def test_no_training_makes_no_matrices(tiny, tmp_path):
    options = {"weight": 0.0, "projection": 3.0, "training": {"max_steps": 0}}
    _, fitted = _fit(tmp_path, tiny("llama"), "mlp", **options)
    assert fitted.summary.anchor_projection is None


def test_rows_that_only_hold_steps_keep_no_distributions(tiny):
    loaded = load_model(str(tiny("llama")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    anchor = _anchor(loaded, encoder, weight=0, projection=1)
    held = _anchor(loaded, encoder)
    assert not anchor.distributions
    assert [row.input_ids for row in anchor.encoded] == [row.input_ids for row in held.encoded]
    assert anchor.num_labels(range(6)) == held.num_labels(range(6))
