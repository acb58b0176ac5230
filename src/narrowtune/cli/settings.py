"""What is typed becomes settings: a file first, then flags, then `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from narrowtune.core.config import (
    ModelSettings,
    RunConfig,
    load_config,
    parse_config,
    parse_model_settings,
)
from narrowtune.core.errors import UsageError
from narrowtune.core.overrides import override
from narrowtune.core.study_settings import StudySettings, load_study
from narrowtune.core.yaml_files import parse_yaml

_FLAGS = "the command line"


def run_settings(config: Path | None, flags: dict[str, Any], more: list[str] | None) -> RunConfig:
    """Merge a file, the flags that were given, and `--set` pairs, in this order."""
    overrides = _overrides(flags, more)
    if config is None:
        return parse_config(override({}, overrides), _FLAGS)
    return load_config(config, overrides)


def study_settings(config: Path, flags: dict[str, Any], more: list[str] | None) -> StudySettings:
    """Merge a study's file, the flags that were given, and `--set` pairs, in this order."""
    return load_study(config, _overrides(flags, more))


def model_settings(flags: dict[str, Any], more: list[str] | None) -> ModelSettings:
    """Merge the flags that were given, and `--set` pairs."""
    return parse_model_settings(override({}, _overrides(flags, more)), _FLAGS)


def column_names(pairs: list[str] | None) -> dict[str, str | None]:
    """Return which column of the rows is which, of pairs such as `question=frage`.

    As in settings, null stands for no column: `prompt=null` leaves that one out.
    """
    do = "write our name and the rows' own, for example --columns question=frage"
    found = _pairs("--columns", pairs, do)
    return {name: None if column == "null" else column for name, column in found.items()}


def row_defaults(pairs: list[str] | None) -> dict[str, str]:
    """Return what all rows have alike, of pairs such as `question=What is this?`."""
    do = 'write a name and a text, for example --defaults question="What is this?"'
    return _pairs("--defaults", pairs, do)


def _pairs(flag: str, pairs: list[str] | None, do: str) -> dict[str, str]:
    values = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or name in values:
            found = f"{name} given before" if equals else "no '='"
            raise UsageError(asked=f"{flag} {pair}", found=found, do=do)
        values[name] = value
    return values


def _overrides(flags: dict[str, Any], more: list[str] | None) -> dict[str, Any]:
    """Return the flags that were given and the `--set` pairs, which win, by dotted key."""
    overrides = {key: value for key, value in flags.items() if value is not None}
    for pair in more or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(
                asked=f"--set {pair}",
                found="no '='",
                do="write --set key=value, for example --set training.optim=adamw_torch",
            )
        try:
            overrides[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise UsageError(
                asked=f"--set {pair}", found=str(error), do="write the value as YAML"
            ) from None
    return overrides
