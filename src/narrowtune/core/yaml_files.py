"""YAML as people write it: a key once, and 1e-6 is a number.

Owns: how settings are read from YAML, whether in a file or behind `--set`, and written back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from narrowtune.core.errors import UsageError

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
"""A power of ten as YAML 1.2 and JSON have it. PyYAML reads YAML 1.1, which has a number there only
with a point and a sign (1.0e-6): else text, which free-form settings would hand on."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key is given once: of two lists to keep, the first must not vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            ConstructorError: a key is given twice.
        """
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key.value} is given twice, in lines {seen[key.value]} and {line}",
                    key.start_mark,
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes round texts that `_Loader` would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Return the value of a text; errors are `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(value: Any) -> str:
    """Return the text of a value that `parse_yaml` gives back, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path, asked: str) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Args:
        path: of the file.
        asked: what it is wanted for, for errors.

    Raises:
        UsageError: the file is missing, is not YAML, or holds something else.
    """
    do = "give a YAML file; examples/ has some to start from"
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        if isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError)):
            do = "put quotes round texts that have one of ? : # , [ ] { } in them; " + do
        raise UsageError(asked=asked, found=found, do=do) from None
    if not isinstance(values, dict):
        found = f"{type(values).__name__} instead of keys and values"
        raise UsageError(asked=asked, found=found, do=do)
    return values
