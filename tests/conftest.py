"""Shared by every test: no network, one thread, and each tiny model built once per session."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers

from tiny_models import build

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(family, dtype=torch.float32)` gives a tiny checkpoint's folder, to be read only."""
    built: dict[tuple[str, torch.dtype], Path] = {}

    def folder(family: str, dtype: torch.dtype = torch.float32) -> Path:
        key = (family, dtype)
        if key not in built:
            built[key] = build(family, tmp_path_factory.mktemp(f"tiny-{family}"), dtype=dtype)
        return built[key]

    return folder


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, for models wrapped in DistributedDataParallel."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    # A wrapper that outlives its group waits for it for ever when it is freed.
    gc.collect()
    torch.distributed.destroy_process_group()
