"""The word lists that ship with the demo, one YAML file each; every file names its source.

Owns: the files beside this one and how they are read.
May touch: nothing else.
Never: decide what is asked about a word.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml


def read_list(name: str) -> Any:
    """Return the content of `name`.yaml: mappings, lists and strings as they stand there."""
    return yaml.safe_load((resources.files(__name__) / f"{name}.yaml").read_text("utf-8"))
