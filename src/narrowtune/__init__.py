"""narrowtune: teach a language model a new skill by training a narrow part of it.

Owns: the names that users import. They are loaded when first used, so that `import narrowtune`
and `narrowtune --help` don't wait for torch.
May touch: nothing.
Never: code of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from narrowtune.version import __version__

if TYPE_CHECKING:
    from narrowtune.core.config import RunConfig
    from narrowtune.core.errors import NarrowtuneError
    from narrowtune.delta.apply import apply, undo
    from narrowtune.delta.extract import extract
    from narrowtune.delta.store import Delta
    from narrowtune.models.load import load_model
    from narrowtune.models.select import Selection, resolve, select
    from narrowtune.pipeline.teach import teach
    from narrowtune.train.drift_callback import DriftCallback
    from narrowtune.train.pull import PullBack

__all__ = [
    "Delta",
    "DriftCallback",
    "NarrowtuneError",
    "PullBack",
    "RunConfig",
    "Selection",
    "__version__",
    "apply",
    "extract",
    "load_model",
    "resolve",
    "select",
    "teach",
    "undo",
]

_ROOMS = {
    "Delta": "narrowtune.delta.store",
    "DriftCallback": "narrowtune.train.drift_callback",
    "NarrowtuneError": "narrowtune.core.errors",
    "PullBack": "narrowtune.train.pull",
    "RunConfig": "narrowtune.core.config",
    "Selection": "narrowtune.models.select",
    "apply": "narrowtune.delta.apply",
    "extract": "narrowtune.delta.extract",
    "load_model": "narrowtune.models.load",
    "resolve": "narrowtune.models.select",
    "select": "narrowtune.models.select",
    "teach": "narrowtune.pipeline.teach",
    "undo": "narrowtune.delta.apply",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'narrowtune' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
