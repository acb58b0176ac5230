"""What tests of the pipeline share."""

import pytest

from narrowtune.models.load import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded(tiny) -> LoadedModel:
    """A tiny language model; tests leave it as it is."""
    return load_model(str(tiny("llama")), device="cpu")
