"""Learning without Forgetting: the teacher is the earlier model, and the term is T² · KL."""

import pytest
import torch

from narrowtune.models.swap import WeightSwap
from narrowtune.train.distillation import Distillation


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 6, bias=False)


def test_the_teacher_is_what_the_model_was(model):
    x = torch.randn(3, 4)
    earlier = model(x).detach()
    distillation = Distillation(
        WeightSwap(model, {"weight": model.weight}), weight=1.0, temperature=2.0
    )
    with torch.no_grad():
        model.weight.add_(1)
    live = model.weight.data_ptr()
    taught = distillation.teach(lambda: model(x))
    assert torch.equal(taught, earlier)
    assert not taught.requires_grad
    assert model.weight.data_ptr() == live
    assert not torch.equal(model(x), earlier)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_term_is_the_divergence_of_softened_distributions(model, temperature):
    distillation = Distillation(
        WeightSwap(model, {"weight": model.weight}), weight=3.0, temperature=temperature
    )
    teacher, student = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    p, q = (torch.softmax(logits / temperature, -1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum()
    assert float(distillation.loss(teacher, student)) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation.loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)
