"""A metric of the user's own: a function in a Python file, `metric: scoring.py:close_enough`.

It gets an answer and the accepted answers and returns a share from 0 to 1, or true or false. It is
run as it stands, so a settings file that names one is as trusted as the program itself.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from narrowtune.core.data_settings import OWN_METRIC
from narrowtune.core.errors import EvaluationError


class OwnMetric(NamedTuple):
    """What a user's metric computes, and the hash of the file that it is in."""

    function: Callable[[str, list[str]], Any]
    sha256: str


def is_own(metric: str) -> bool:
    """Whether a metric is a file's function and not one by name."""
    return OWN_METRIC.fullmatch(metric) is not None


def identity(metric: str) -> str:
    """Return what tells a metric from others: its name, or its function and the file's content.

    Raises:
        EvaluationError: as `load_own`.
    """
    if not is_own(metric):
        return metric
    return f"{metric.rpartition(':')[2]} {load_own(metric).sha256}"


@functools.cache
def load_own(metric: str) -> OwnMetric:
    """Return the function that `FILE.py:FUNCTION` names.

    Loaded once in a process: what is scored before and after training is scored alike, whatever
    becomes of the file meanwhile.

    Raises:
        EvaluationError: there is no such file, it can't be run, or it has no such function.
    """
    path, _, name = metric.rpartition(":")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _unusable(metric, error.strerror or str(error), "correct its path") from None
    sha256 = hashlib.sha256(content).hexdigest()
    spec = importlib.util.spec_from_file_location(f"narrowtune_metric_{sha256[:16]}", path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).parent.absolute())
    # What stands beside it can be imported, as where Python runs the file.
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise _unusable(metric, problem, f"correct it until `python {path}` runs") from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise _unusable(metric, f"no function {name} in it", "correct its name")
    return OwnMetric(function, sha256)


def score_own(metric: str, answer: str, references: Sequence[str]) -> float:
    """Return what the user's function gives `answer`, 0 to 1.

    Raises:
        EvaluationError: it fails, or returns something else; or as `load_own`.
    """
    function = load_own(metric).function
    do = "correct the function; it has to take any answer that a model may give"
    asked = f"a score by {metric} for the answer {answer[:80]!r}"
    try:
        value = function(answer, list(references))
    # It is somebody else's code, and may raise what it likes.
    except Exception as error:
        raise EvaluationError(asked, f"{type(error).__name__}: {error}", do) from error
    share = float(value) if isinstance(value, Real) else math.nan
    if not 0 <= share <= 1:
        raise EvaluationError(asked, f"{value!r}, not a share from 0 to 1", do)
    return share


def _unusable(metric: str, found: str, do: str) -> EvaluationError:
    return EvaluationError(f"the metric {metric}", found, do)
