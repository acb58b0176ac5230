"""What of the last layer is left out is read by nothing, in any family."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from narrowtune.core.errors import ModelError
from narrowtune.data.collate import Encoded, collate
from narrowtune.engine.forward import label_positions, labelled_cross_entropy
from narrowtune.engine.last_layer import last_layer_at, read_at_labels
from narrowtune.engine.memory import SavedTensors
from narrowtune.models.load import load_model
from tiny_models import FAMILIES, VISION_FAMILIES


def batch(lengths=(14, 9)):
    rows = []
    for number, length in enumerate(lengths):
        ids = [5 + (7 * number + 3 * place) % 50 for place in range(length)]
        rows.append(Encoded(ids, [-100] * (length - 3) + ids[-3:]))
    return collate(rows, pad_token_id=0)


def whole_and_trimmed(model, given, monkeypatch):
    """Return loss and gradients with the whole last layer, and with what is read of it."""
    found = []
    for trimmed in (False, True):
        with monkeypatch.context() as patched:
            if not trimmed:
                patched.setattr("narrowtune.engine.last_layer.read_at_labels", lambda _: [])
            model.requires_grad_(True).zero_grad()
            loss, _ = labelled_cross_entropy(model, given)
            loss.backward()
        parameters = (p for p in model.parameters() if p.grad is not None)
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in parameters])))
    return found


@pytest.mark.parametrize("family", sorted({*FAMILIES, *VISION_FAMILIES}))
def test_loss_and_gradients_are_those_of_the_whole_layer(family, tiny, monkeypatch):
    model = load_model(str(tiny(family, torch.float32)), device="cpu").model
    assert read_at_labels(model)
    whole, trimmed = whole_and_trimmed(model, batch(), monkeypatch)
    assert trimmed[0] == pytest.approx(whole[0], rel=1e-6)
    difference = (trimmed[1] - whole[1]).norm() / whole[1].norm()
    assert difference < 1e-5


@pytest.fixture
def llama(tiny):
    return load_model(str(tiny("llama", torch.float32)), device="cpu").model


def widths(model, given):
    """Return how many tokens the last layer's MLP and query projection compute."""
    seen = []
    layer = model.get_decoder().layers[-1]
    for module in (layer.mlp.gate_proj, layer.self_attn.q_proj, layer.self_attn.k_proj):
        handle = module.register_forward_hook(lambda _, __, out: seen.append(out[..., 0].numel()))
        labelled_cross_entropy(model, given)
        handle.remove()
    return seen


def test_queries_and_mlp_are_computed_at_labels_and_keys_everywhere(llama):
    mlp, query, key = widths(llama, batch((14,)))
    assert (mlp, query, key) == (3, 3, 14)


def test_less_is_kept_for_the_backward_pass(llama):
    kept = []
    for replaced in (lambda _: [], read_at_labels):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("narrowtune.engine.last_layer.read_at_labels", replaced)
            with SavedTensors(llama) as saved:
                loss = labelled_cross_entropy(llama, batch())
            kept.append(saved.num_bytes)
            del loss
    assert kept[1] < 0.95 * kept[0]


def test_where_most_positions_are_asked_for_the_whole_layer_is_computed(llama):
    given = batch((14,))
    given["labels"] = given["input_ids"].clone()
    assert widths(llama, given)[0] == 14


def test_what_is_computed_again_backward_is_left_whole(llama):
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    llama.train()
    assert read_at_labels(llama) == []
    llama.requires_grad_(True)
    labelled_cross_entropy(llama, batch())[0].backward()
    llama.eval()
    assert read_at_labels(llama)


def test_compiled_layers_are_left_whole(llama):
    layer = llama.get_decoder().layers[-1]
    layer.forward = layer.forward
    assert read_at_labels(llama) == []


def test_hooks_are_gone_after_an_error(llama):
    mask, _ = label_positions(batch()["labels"])
    layer = llama.get_decoder().layers[-1]
    held = []

    def fail():
        with last_layer_at(llama, mask):
            held.extend(layer.mlp._forward_pre_hooks)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert held
    assert not layer.mlp._forward_pre_hooks
    assert not layer.mlp._forward_hooks


def test_a_part_that_returns_more_than_states_is_refused(llama):
    layer = llama.get_decoder().layers[-1]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda x: (plain(x), None)
    with pytest.raises(ModelError, match="returns more than states"):
        labelled_cross_entropy(llama, batch())


def test_layers_in_a_wrapper_that_computes_them_again_are_left_whole(llama):
    layers = llama.get_decoder().layers
    layers[-1] = checkpoint_wrapper(layers[-1])
    assert read_at_labels(llama) == []
    llama.requires_grad_(True)
    labelled_cross_entropy(llama, batch())[0].backward()
