"""A SigLIP tower's first weights look at neighbours, and its projector keeps patches apart."""

import pytest
import torch
from torch.nn import functional

from narrowtune.miniature.reference.architectures import get_blueprint

BESIDE = ((0, -1), (0, 1), (-1, 0), (1, 0))  # rows down, columns to the right


@pytest.fixture(scope="module")
def inner():
    blueprint = get_blueprint("llava_onevision")
    return blueprint.build(blueprint.tokenizer(), seed=2).model


@pytest.fixture(scope="module")
def states(inner):
    pixels = torch.rand(6, 3, 56, 56, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return inner.vision_tower.embeddings(pixels)


def test_every_head_begins_with_one_neighbour(inner, states):
    layer = inner.vision_tower.encoder.layers[0]
    attention = layer.self_attn
    with torch.no_grad():
        normed = layer.layer_norm1(states)
        query, key = (
            part(normed).view(6, 64, 4, 36).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj)
        )
        found = (query @ key.transpose(2, 3) / 6).softmax(-1)
    for head, (down, right) in enumerate(BESIDE):
        places = [(row, column) for row in range(1, 7) for column in range(1, 7)]
        own = torch.tensor([8 * row + column for row, column in places])
        wanted = own + 8 * down + right
        assert float(found[:, head, own, wanted].mean()) > 0.4
        assert bool((found[:, head, own].argmax(-1) == wanted).float().mean() > 0.95)


def test_four_patches_go_through_units_of_their_own(inner, states):
    with torch.no_grad():
        units = functional.gelu(inner.multi_modal_projector.linear_1(states))
    grid = units.abs().view(6, 4, 2, 4, 2, 4, -1).mean(dim=(0, 1, 3, 6))  # by parity, and group
    for row in range(2):
        for column in range(2):
            own = 2 * row + column
            others = [group for group in range(4) if group != own]
            assert float(grid[row, column, own]) > 8 * float(grid[row, column, others].max())


def test_averages_tell_four_patches_apart(inner):
    """Patches swapped within their four give another token, not the same average."""
    side, width = 8, inner.vision_tower.config.hidden_size
    places = inner.vision_tower.embeddings.position_embedding.weight
    content = torch.randn(side * side, width, generator=torch.Generator().manual_seed(4))
    content[:, :32] = 0
    swapped = torch.arange(64).view(8, 4, 2).flip(-1).flatten()

    def token(shown):
        with torch.no_grad():
            seen = inner.multi_modal_projector(shown + places)
        return seen.view(4, 2, 4, 2, -1).mean(dim=(1, 3))

    change = (token(content) - token(content[swapped])).norm(dim=-1).mean()
    assert float(change) > 0.5 * float(token(content).norm(dim=-1).mean())
