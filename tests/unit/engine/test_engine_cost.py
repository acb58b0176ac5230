from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from narrowtune.core.config import CostSettings
from narrowtune.engine.cost import CountFlops, estimate_cost
from narrowtune.engine.forward import labelled_cross_entropy
from narrowtune.engine.memory import (
    HEAP_LOSS,
    Activations,
    Kept,
    SavedTensors,
    estimate_memory,
    optimizer_bytes,
    sum_bytes,
)
from narrowtune.engine.packing import packing

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 3, 32, 48, 4, 2, 8, 96
TOKENS, LABELS = 20, 6
QKV = HIDDEN * HEAD_SIZE * (HEADS + 2 * KV_HEADS)
ATTENTION = QKV + HEADS * HEAD_SIZE * HIDDEN
GATE_UP, DOWN = 2 * HIDDEN * INNER, HIDDEN * INNER
ALL = LAYERS * (ATTENTION + GATE_UP + DOWN)
HEAD = VOCABULARY * HIDDEN
SCORES = LAYERS * 2 * HEADS * HEAD_SIZE * TOKENS**2  # causal: half of the square, twice
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def build(attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        attn_implementation=attention,
    )
    return transformers.LlamaForCausalLM(config)


def batch(num_rows=1):
    ids = torch.arange(TOKENS).repeat(num_rows, 1) + 3
    labels = torch.full_like(ids, -100)
    labels[:, -LABELS:] = ids[:, -LABELS:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(model, *parts):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not parts or any(f".{part}." in name for part in parts))
    return model


# Linear layers' input gradients that no trained tensor lies before, and attention's likewise.
@pytest.mark.parametrize(
    ("parts", "trained", "no_dx", "attention_layers", "head_dw"),
    [
        (("q_proj", "k_proj", "v_proj", "o_proj"), LAYERS * ATTENTION, QKV, LAYERS, 0),
        (("gate_proj", "up_proj"), LAYERS * GATE_UP, ATTENTION + GATE_UP, LAYERS - 1, 0),
        (("down_proj",), LAYERS * DOWN, ATTENTION + GATE_UP + DOWN, LAYERS - 1, 0),
        ((), ALL, 0, LAYERS, HEAD),
    ],
)
def test_flops_are_those_of_the_formula(parts, trained, no_dx, attention_layers, head_dw):
    model = train(build(), *parts)
    with packing("never"), CountFlops() as flops:
        labelled_cross_entropy(model, batch())
    assert flops.forward == pytest.approx(2 * ALL * TOKENS + 2 * HEAD * LABELS + SCORES, rel=1e-3)
    backward = (
        2 * (ALL - no_dx) * TOKENS
        + 2 * trained * TOKENS
        + 2 * (HEAD + head_dw) * LABELS
        + 2 * SCORES * attention_layers / LAYERS
    )
    assert flops.backward == pytest.approx(backward, rel=1e-3)
    assert flops.total == flops.forward + flops.backward


def test_the_last_layer_is_counted_where_it_is_read():
    model = train(build(), "q_proj", "k_proj", "v_proj", "o_proj")
    counted = {}
    for when in ("never", "cheaper"):
        with packing(when), CountFlops() as flops:
            labelled_cross_entropy(model, batch())
        counted[when] = flops
    query = HIDDEN * HEAD_SIZE * HEADS
    unread = TOKENS - LABELS
    read = 2 * query + GATE_UP + DOWN
    forward, backward = 2 * read * unread, 2 * (2 * query + read) * unread
    assert counted["never"].forward - counted["cheaper"].forward == pytest.approx(forward)
    assert counted["never"].backward - counted["cheaper"].backward == pytest.approx(backward)


@pytest.mark.parametrize("parts", [("q_proj", "o_proj"), ("gate_proj", "up_proj"), ()])
def test_flops_are_those_that_torch_executes(parts):
    model = train(build("eager"), *parts)
    with CountFlops() as counted:
        labelled_cross_entropy(model, batch(2))
    with FlopCounterMode(display=False) as executed:
        labelled_cross_entropy(model, batch(2))[0].backward()
    assert counted.total == pytest.approx(executed.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("trained", ["q_proj", "experts"])
def test_of_experts_those_count_that_a_token_goes_through(trained):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        num_local_experts=5,
        num_experts_per_tok=2,
    )
    model = train(transformers.MixtralForCausalLM(config), trained)
    with packing("never"), CountFlops() as flops:
        labelled_cross_entropy(model, batch())
    chosen, router = 2 * (GATE_UP + DOWN), 5 * HIDDEN
    forward = 2 * (ATTENTION + router + chosen) * TOKENS + 2 * HEAD * LABELS + SCORES / LAYERS
    assert flops.forward == pytest.approx(forward, rel=1e-3)
    # Before the experts nothing needs a gradient; their own inputs' of gate and up neither.
    if trained == "experts":
        backward = 2 * (chosen + 2 * DOWN) * TOKENS + 2 * HEAD * LABELS
        assert flops.backward == pytest.approx(backward, rel=1e-3)
    else:
        assert flops.backward > 2 * chosen * TOKENS


def test_convolutions_and_biased_products():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(32, 5))
    x = torch.randn(2, 3, 8, 8)
    with CountFlops() as counted:
        torch.addmm(torch.zeros(5), model(x).T @ model(x), torch.ones(5, 5))
    with FlopCounterMode(display=False) as executed:
        torch.addmm(torch.zeros(5), model(x).T @ model(x), torch.ones(5, 5))
    assert counted.forward == executed.get_total_flops()


def test_nothing_goes_backward_without_gradients():
    model = train(build())
    with CountFlops() as flops, torch.no_grad():
        labelled_cross_entropy(model, batch())
    assert flops.backward == 0
    assert flops.forward > 0


def test_padding_costs_the_whole_square():
    padded = batch(2)
    padded["attention_mask"][1, -4:] = 0
    model = train(build(), "q_proj")
    with packing("never"), CountFlops() as whole:
        labelled_cross_entropy(model, batch(2))
    with packing("never"), CountFlops() as masked:
        labelled_cross_entropy(model, padded)
    assert masked.forward - whole.forward == pytest.approx(2 * SCORES)


def test_cost_of_an_hour():
    given = CostSettings(
        power_watts=500, co2_kg_per_kwh=0.4, price_per_hour=3, price_per_kwh=0.2, currency="USD"
    )
    found = estimate_cost(given, 7200)
    assert found is not None
    assert found.energy_kwh == pytest.approx(1.0)
    assert found.co2_kg == pytest.approx(0.4)
    assert found.money == pytest.approx(6.2)
    assert found.currency == "USD"


def test_cost_knows_only_what_was_given():
    assert estimate_cost(CostSettings(), 100) is None
    assert estimate_cost(CostSettings(price_per_kwh=1, co2_kg_per_kwh=1), 100) is None
    power = estimate_cost(CostSettings(power_watts=100), 3600)
    assert power is not None
    assert (power.energy_kwh, power.co2_kg, power.money, power.currency) == (0.1, None, None, None)
    price = estimate_cost(CostSettings(price_per_hour=2), 1800)
    assert price is not None
    assert (price.energy_kwh, price.money) == (None, 1.0)


def test_saved_tensors_count_each_storage_once_and_no_parameter():
    model = nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8)
    with SavedTensors(model) as kept:
        y = model(x).exp()  # keeps x for the weight, and its own result
        _both = y * y.view(2, 16).view(4, 8)  # keeps that result twice
    assert kept.num_bytes == 2 * 4 * 8 * 4


def test_activations_from_two_traces():
    # 50 log-probabilities of 4 bytes to a row of 10 positions are logits.
    found = Activations.from_traces(Kept(1000, 10, 50), Kept(1700, 20, 100))
    assert (found.per_step, found.per_position) == (300, 50)
    assert found.at(40) == 300 + 40 * 50


def test_saved_bytes_grow_in_a_straight_line():
    model = train(build(), "q_proj")
    kept = []
    for num_rows in (1, 2, 5):
        with packing("never"), SavedTensors(model) as saved:
            _loss = labelled_cross_entropy(model, batch(num_rows))
        kept.append(saved.num_bytes)
        del _loss
    assert kept[2] - kept[1] == pytest.approx(3 * (kept[1] - kept[0]), rel=0.01)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.AdamW(p), 8),
        (lambda p: torch.optim.SGD(p, lr=1), 0),
        (lambda p: torch.optim.SGD(p, lr=1, momentum=0.9), 4),
    ],
)
def test_what_an_optimizer_keeps(make, expected):
    assert optimizer_bytes(make) == pytest.approx(expected, abs=0.01)


def test_states_that_look_like_more_bytes_than_they_are_count_as_what_they_are():
    class InTwo(torch.optim.SGD):
        """Keeps a state that is made of two tensors, as those in 8 bits are of codes and scales."""

        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    codes = torch.zeros(parameter.shape)
                    self.state[parameter]["codes"] = TwoTensor(codes, codes.clone())

    assert optimizer_bytes(lambda p: InTwo(p, lr=1)) == 8


def test_states_in_8_bits_take_two_bytes_a_parameter():
    torchao = pytest.importorskip("torchao.optim")
    assert optimizer_bytes(lambda p: torchao.AdamW8bit(p)) == pytest.approx(2, abs=0.1)


def estimate(device=GPU, **changes):
    values = {
        "frozen_bytes": 1000,
        "num_trainable": 100,
        "base_bytes": 200,
        "optimizer_bytes_per_parameter": 8.0,
        "activations": Activations(per_step=50, per_position=50),
        "num_positions": 20,
        "logits": 10,
        "device": device,
    }
    return estimate_memory(**{**values, **changes})


def test_the_peak_is_at_the_beginning_of_the_backward_pass_or_at_its_end():
    beginning = estimate()
    assert beginning.gradients == beginning.masters == 400
    assert beginning.optimizer == 800
    assert (beginning.activations, beginning.logits) == (1050, 120)
    assert beginning.total == 1000 + 400 + 800 + 1050 + 120
    end = estimate(num_positions=0, logits=0)
    assert end.total == 1000 + 400 + 800 + 400
    assert estimate(accumulates=True).total == beginning.total + 400


def test_on_a_cpu_the_base_the_heap_and_the_process_count_too():
    found = estimate(CPU, workspace=3000, anchor_cache_bytes=70)
    losses = -(-int((1050 + 120) * HEAP_LOSS * 1000) // 1000)
    assert found.weights == 1200
    assert found.workspace == 3000 + losses
    assert found.total == estimate().total + 200 + 3000 + losses + 70


def test_a_device_has_a_base_of_its_own_to_pull_back_to():
    assert estimate(base_on_device=True).total == estimate().total + 200
    assert estimate(CPU, base_on_device=True) == estimate(CPU)


def test_tied_parameters_count_once():
    weight = nn.Parameter(torch.zeros(3, 4))
    assert sum_bytes([weight, weight, torch.zeros(2, dtype=torch.bfloat16)]) == 52
