"""A reference model of each architecture with random weights, and what writes for it."""

import pytest

from narrowtune.miniature.reference.architectures import BLUEPRINTS
from narrowtune.miniature.reference.batches import (
    Writer,
)
from narrowtune.models.load import load_model

FAMILIES = sorted(name for name, blueprint in BLUEPRINTS.items() if blueprint.origin is None)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    blueprint = BLUEPRINTS[request.param]
    tokenizer = blueprint.tokenizer()
    blueprint.write(blueprint.build(tokenizer, seed=3), tokenizer, folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def writer(loaded):
    blueprint = BLUEPRINTS[loaded.family.name]
    return Writer(loaded.tokenizer, blueprint.picture, blueprint.placeholder)
