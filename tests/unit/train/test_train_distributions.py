"""What is kept of the base's distributions: all words, or the likeliest and all others as one."""

from __future__ import annotations

import pytest
import torch

from narrowtune.train.distributions import Distributions, kl_base_tuned, position_bytes

VOCABULARY = 50


@pytest.fixture
def pair():
    """Logits of a base and of a tuned model, [6, V]."""
    generator = torch.Generator().manual_seed(0)
    base = 3 * torch.randn(6, VOCABULARY, generator=generator)
    return base, base + torch.randn(6, VOCABULARY, generator=generator)


def _loss(held, logits):
    """KL and its gradient."""
    logits = logits.clone().requires_grad_()
    loss = kl_base_tuned(held, logits)
    loss.backward()
    return loss.detach(), logits.grad


def _by_hand(base, tuned, top_k):
    """The same in fp64, from probabilities, with the gradient of a softmax over merged words."""
    p, q = (logits.double().softmax(-1) for logits in (base, tuned))
    kept = torch.zeros_like(p, dtype=torch.bool)
    kept.scatter_(-1, base.topk(top_k, dim=-1).indices, True)
    rest_p, rest_q = ((x * ~kept).sum(-1, keepdim=True) for x in (p, q))
    terms = torch.where(kept, p * (p / q).log(), 0.0).sum(-1, keepdim=True)
    loss = (terms + rest_p * (rest_p / rest_q).log()).sum()
    return loss, q - torch.where(kept, p, q * rest_p / rest_q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 7, VOCABULARY - 1])
def test_kl_and_its_gradient_are_those_of_the_words_kept_and_all_others(pair, top_k, dtype):
    base, tuned = (logits.to(dtype) for logits in pair)
    loss, gradient = _loss(Distributions.of(base, top_k), tuned)
    expected, slope = _by_hand(base, tuned, top_k)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    rounding = 1e-6 if dtype == torch.float32 else 4e-3
    assert torch.allclose(gradient.double(), slope, atol=rounding, rtol=rounding)


def test_one_word_left_over_is_as_good_as_all_words(pair):
    base, tuned = pair
    loss, gradient = _loss(Distributions.of(base, None), tuned)
    for top_k in (VOCABULARY - 1, VOCABULARY, VOCABULARY + 1):
        held = Distributions.of(base, top_k)
        assert (held.tokens is None) == (top_k >= VOCABULARY)
        found, slope = _loss(held, tuned)
        assert torch.allclose(found, loss, rtol=1e-6)
        assert torch.allclose(slope, gradient, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 7, VOCABULARY - 1, None])
def test_what_is_kept_is_the_whole_mass(pair, top_k):
    held = Distributions.of(pair[0], top_k)
    assert torch.allclose(held.log_probs.exp().sum(-1), torch.ones(6))
    size = held.log_probs.nbytes + (0 if held.tokens is None else held.tokens.nbytes)
    assert size == len(held) * position_bytes(VOCABULARY, top_k)


def test_kl_grows_with_the_words_that_are_told_apart_up_to_that_of_all(pair):
    base, tuned = pair
    found = [
        float(kl_base_tuned(Distributions.of(base, top_k), tuned)) for top_k in (1, 4, 16, 49, None)
    ]
    assert 0 < found[0] < found[1] < found[2] < found[3] <= found[4] * (1 + 1e-6)
    for top_k in (1, 16, None):
        assert float(kl_base_tuned(Distributions.of(base, top_k), base)) == 0


@pytest.mark.parametrize("gap", [20.0, 90.0, 1000.0])
def test_where_nothing_is_left_over_the_gradient_is_finite_and_right(gap):
    base = torch.zeros(2, VOCABULARY)
    base[:, :3] += gap  # beyond 16 the others are nothing beside 1 in fp32, beyond 104 nothing
    tuned = base.clone()
    tuned[0, 1] += 1
    tuned[1, 10] += gap  # what the base gives no mass at all
    loss, gradient = _loss(Distributions.of(base, 3), tuned)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    p, q = base.double().softmax(-1), tuned.double().softmax(-1)
    assert torch.allclose(gradient.double(), q - p, atol=1e-6)


def test_what_is_left_over_counts_where_the_tuned_model_is_sure():
    """As 1 minus the others the rest would be 0 in fp32 here, and have no gradient."""
    base, tuned = torch.zeros(1, VOCABULARY), torch.zeros(1, VOCABULARY)
    base[:, 0], tuned[:, 0] = 1e-3, 60
    loss, gradient = _loss(Distributions.of(base, 1), tuned)
    expected, slope = _by_hand(base, tuned, 1)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(expected) > 50
    assert torch.allclose(gradient.double(), slope, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 5])
def test_positions_are_taken_apart_and_put_together(pair, top_k):
    held = Distributions.of(pair[0], top_k)
    parts = list(held.split([1, 3, 2]))
    assert [len(part) for part in parts] == [1, 3, 2]
    assert len({part.log_probs.untyped_storage().data_ptr() for part in parts}) == 3
    again = Distributions.join(parts)
    assert torch.equal(again.log_probs, held.log_probs)
    assert again.tokens is held.tokens is None or torch.equal(again.tokens, held.tokens)
