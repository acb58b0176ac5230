"""A reference model that begins as a part of another one that ships.

Owns: which weights are taken over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from narrowtune.miniature.reference.shipped import reference_folder

_LAYER = re.compile(r"(.*language_model\.layers\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Origin:
    """What a smaller reference model begins as.

    Attributes:
        name: of the one that it is a part of.
        layers: which of that one's language model are its own, in order.
    """

    name: str
    layers: tuple[int, ...]


def take_over(model: PreTrainedModel, origin: Origin) -> None:
    """Give a model the weights of its origin: everything but the layers that it does not have.

    Deeper layers of a trained model change little of what passes through them, so that what is
    left still answers (ShortGPT, arXiv 2403.03853).

    Raises:
        UsageError: the origin does not ship with this installation.
    """
    whole = AutoModelForImageTextToText.from_pretrained(
        reference_folder(origin.name), dtype=torch.float32
    )
    places = {layer: place for place, layer in enumerate(origin.layers)}
    state = {}
    for name, tensor in whole.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            state[name] = tensor
        elif (layer := int(found[2])) in places:
            state[f"{found[1]}{places[layer]}{found[3]}"] = tensor
    model.load_state_dict(state)
