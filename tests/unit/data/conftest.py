"""Shared by the tests of the data room: loaded tiny models, pictures, files of rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from narrowtune.core.config import DataSettings
from narrowtune.data.rows import Rows, read_rows
from narrowtune.models.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def loaded(tiny: Callable[..., Path]) -> Callable[[str], LoadedModel]:
    """`loaded(family)` gives a tiny model with its tokenizer and processor, to be read only."""
    models: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in models:
            models[family] = load_model(str(tiny(family)), device="cpu")
            models[family].model.eval()
        return models[family]

    return get


@pytest.fixture
def png() -> Callable[..., bytes]:
    def make(width: int = 20, height: int = 12, colour: Any = "red", mode: str = "RGB") -> bytes:
        file = io.BytesIO()
        PIL.Image.new(mode, (width, height), colour).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Rows]:
    """Write rows (dictionaries, or a line as it is) to rows.jsonl and read them."""

    def run(*rows: Any, prompts_only: bool = False, seed: int = 42, **settings: Any) -> Rows:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
        return read_rows(
            DataSettings(path=str(file), **settings), prompts_only=prompts_only, seed=seed
        )

    return run
