from __future__ import annotations

from contextlib import closing

import pytest
import torch
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM

from delta_cases import load
from narrowtune.core.errors import ProofError
from narrowtune.models.load import load_model
from narrowtune.models.select import select
from narrowtune.train.proof import GradientWitness, prove, snapshot_frozen

TOKENS = torch.arange(10, 34).reshape(2, 12)


class Run:
    """A model of `family` with fp32 masters, everything noted that a proof needs."""

    def __init__(self, folder, recipe: str = "sa_proj") -> None:
        self.model = load(folder).train()
        self.selection = select(self.model, recipe)
        self.before = snapshot_frozen(self.model, self.selection.names)
        self.parameters = dict(self.model.named_parameters())
        self.base = {n: self.parameters[n].detach().clone() for n in self.selection.names}
        for name in self.selection.names:
            self.parameters[name].data = self.parameters[name].data.float()
        self.witness = GradientWitness(self.model, self.selection.names)

    def step(self, model: nn.Module | None = None, learning_rate: float = 1e-2) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            (model or self.model)(input_ids=TOKENS, labels=TOKENS).loss.backward()
        with torch.no_grad():
            for name in self.selection.names:
                parameter = self.parameters[name]
                if parameter.grad is not None:
                    parameter -= learning_rate * parameter.grad
                parameter.grad = None

    def prove(self, num_steps: int = 1, model: nn.Module | None = None):
        return prove(
            model or self.model,
            self.selection,
            self.before,
            self.base,
            self.witness,
            num_steps=num_steps,
        )


@pytest.fixture
def run(tiny) -> Run:
    return Run(tiny("llama", torch.bfloat16))


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_step_is_proved(tiny, family):
    run = Run(tiny(family, torch.bfloat16))
    run.step()
    proof = run.prove()
    assert proof.frozen_identical
    assert proof.moved == []
    buffers = dict(run.model.named_buffers())
    assert proof.num_frozen_buffers == len(buffers) > 0
    assert proof.num_frozen_tensors == len(run.parameters) - len(run.selection.names)
    assert [line.name for line in proof.selected] == list(run.selection.names)
    for line in proof.selected:
        base, tuned = run.base[line.name], run.parameters[line.name].detach().to(torch.bfloat16)
        assert line.received_gradient
        assert line.changed
        assert line.num_elements == base.numel()
        assert line.num_changed == int((base != tuned).sum()) > 0
        expected = (tuned.double() - base.double()).norm() / base.double().norm()
        assert line.relative_update == pytest.approx(float(expected), rel=1e-6)


def test_an_update_that_rounding_swallows_is_recorded_as_no_change(run):
    run.step(learning_rate=1e-9)
    assert any(
        not run.base[name].float().equal(run.parameters[name].detach())
        for name in run.selection.names
    )
    for line in run.prove().selected:
        assert line.received_gradient
        assert not line.changed
        assert (line.num_changed, line.relative_update) == (0, 0.0)


def test_no_steps_expect_no_gradients(run):
    proof = run.prove(num_steps=0)
    assert not any(line.received_gradient or line.changed for line in proof.selected)
    with pytest.raises(ProofError, match=r"no gradient reached 8 of 8 .*q_proj"):
        run.prove(num_steps=1)


def test_one_bit_of_a_frozen_tensor_fails_the_run(run):
    run.step()
    name = "model.layers.1.mlp.down_proj.weight"
    run.parameters[name].data.view(torch.int16)[0, 0] ^= 1
    with pytest.raises(ProofError, match=rf"1 frozen tensors moved: {name}"):
        run.prove()


def test_a_buffer_that_is_not_saved_counts_too(run):
    run.step()
    run.model.model.rotary_emb.inv_freq[0] += 1e-6
    with pytest.raises(ProofError, match=r"moved: model\.rotary_emb\.inv_freq"):
        run.prove()


def test_a_frozen_tensor_that_appears_or_disappears_fails_the_run(run):
    run.step()
    run.model.register_buffer("extra", torch.zeros(1))
    with pytest.raises(ProofError, match="moved: extra"):
        run.prove()
    del run.model.extra
    run.model.model.norm.weight = None
    with pytest.raises(ProofError, match=r"moved: model\.norm\.weight"):
        run.prove()


def test_a_selected_tensor_without_gradient_fails_the_run(run):
    name = run.selection.names[2]
    run.parameters[name].requires_grad_(False)
    run.step()
    with pytest.raises(ProofError, match=rf"no gradient reached 1 of 8 selected tensors: {name}"):
        run.prove()


def test_gradients_that_are_all_zero_fail_the_run(run):
    with torch.autocast("cpu", torch.bfloat16):
        (run.model(input_ids=TOKENS).logits.float().sum() * 0).backward()
    assert run.witness.received == set(run.selection.names)
    with pytest.raises(ProofError, match="every gradient was zero"):
        run.prove()
    run.step()
    run.prove()


def test_zeros_that_fill_a_loss_up_are_no_gradient(run):
    run.witness.passes_zeros = True
    with torch.autocast("cpu", torch.bfloat16):
        (run.model(input_ids=TOKENS).logits.float().sum() * 0).backward()
    assert not run.witness.received
    run.step()
    assert run.witness.received == run.witness.nonzero == set(run.selection.names)


def test_hooks_leave_after_the_first_gradient_that_is_not_zero(run):
    hooks = [run.parameters[name]._backward_hooks for name in run.selection.names]
    assert all(hooks)
    run.step()
    assert not any(hooks)
    assert run.witness.nonzero == set(run.selection.names)
    with closing(GradientWitness(run.model, run.selection.names[:1])):
        assert run.parameters[run.selection.names[0]]._backward_hooks
    assert not run.parameters[run.selection.names[0]]._backward_hooks


def test_a_resumed_run_remembers_what_it_saw(run):
    run.step()
    earlier, run.witness = run.witness, GradientWitness(run.model, run.selection.names)
    run.witness.received.update(earlier.received)
    run.witness.nonzero.update(earlier.received)
    assert all(line.received_gradient for line in run.prove().selected)
    run.step()
    assert not any(run.parameters[name]._backward_hooks for name in run.selection.names)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_hides_nothing(run, use_reentrant):
    run.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    run.model.enable_input_require_grads()
    run.step()
    assert all(line.received_gradient for line in run.prove().selected)


def test_a_wrapped_model_is_seen_through(run, one_process):
    wrapped = nn.parallel.DistributedDataParallel(run.model)
    run.step(wrapped)
    proof = run.prove(model=wrapped)
    assert all(line.received_gradient and line.changed for line in proof.selected)
    assert snapshot_frozen(wrapped, run.selection.names) == run.before


def test_rotary_tables_that_the_forward_pass_recomputes_may_move():
    half = 4
    config = Phi3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=8,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * half,
            "long_factor": [4.0] * half,
            "original_max_position_embeddings": 8,
            "partial_rotary_factor": 1.0,
        },
    )
    model = Phi3ForCausalLM(config)
    before, table = snapshot_frozen(model, []), model.model.rotary_emb.inv_freq.clone()
    model(input_ids=TOKENS)
    assert not model.model.rotary_emb.inv_freq.equal(table)
    assert snapshot_frozen(model, []) == before
    assert any("original_inv_freq" in name for name in before)


def test_a_base_of_zeros_that_moved_has_an_infinite_relative_update(run):
    run.step()
    name = run.selection.names[0]
    run.base[name] = torch.zeros_like(run.base[name])
    assert run.prove().selected[0].relative_update == float("inf")
    run.parameters[name].data.zero_()
    assert run.prove().selected[0].relative_update == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proving_only_looks(tiny, dtype):
    loaded = load_model(str(tiny("llama", dtype)), device="cpu")
    selection = select(loaded.model, "sa_proj")
    parameters = dict(loaded.model.named_parameters())
    base = {name: parameters[name].detach().clone() for name in selection.names}
    before = snapshot_frozen(loaded.model, selection.names)
    with torch.no_grad():
        for name in selection.names:
            parameters[name].add_(0.5)
    tuned = {name: parameters[name].detach().clone() for name in selection.names}
    prove(
        loaded.model,
        selection,
        before,
        base,
        GradientWitness(loaded.model, selection.names),
        num_steps=0,
    )
    assert all(torch.equal(parameters[name], tuned[name]) for name in selection.names)
