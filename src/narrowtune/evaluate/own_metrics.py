"""A metric of the user's own: a function in a Python file, `metric: scoring.py:close_enough`.

It gets an answer and the accepted answers and returns a share from 0 to 1, or true or false. It is
run as it stands, so a settings file that names one is as trusted as the program itself.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from narrowtune.core.data_settings import OWN_METRIC
from narrowtune.core.errors import EvaluationError

_ROUNDING = 1e-9  # by which a mean of shares may be off


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
    module = ModuleType(f"narrowtune_metric_{sha256[:16]}")
    module.__file__ = path
    # What stands beside it can be imported, at once or while it scores; dataclasses look for their
    # module by name.
    if (folder := str(Path(path).parent.absolute())) not in sys.path:
        sys.path.append(folder)
    sys.modules[module.__name__] = module
    try:
        # What was hashed, and not what Python may have kept of an earlier version.
        exec(compile(content, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        do = f"correct it until `python -c 'import {Path(path).stem}'` runs beside it"
        raise _unusable(metric, _told(error), do) from error
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
    do = (
        "correct the function, which has to take any answer that a model may give, an empty one "
        "too, and start anew; a delta that was trained by then is in the run's folder, and can be "
        "scored by narrowtune evaluate --delta"
    )
    asked = f"a score by {metric} for the answer {answer[:80]!r}"
    try:
        value = function(answer, list(references))
        # Not of text, which float would read: numbers, truth values, and numpy's and torch's.
        share = math.nan if isinstance(value, (str, bytes)) else float(value)
    # It is somebody else's code, and may raise what it likes.
    except (Exception, SystemExit) as error:
        raise EvaluationError(asked, _told(error), do) from error
    if not -_ROUNDING <= share <= 1 + _ROUNDING:
        raise EvaluationError(asked, f"{value!r}, not a share from 0 to 1", do)
    return min(max(share, 0.0), 1.0)


def try_own(metric: str, references: Sequence[str]) -> bool:
    """Score an empty answer, and every accepted one; whether these get more than nothing.

    Raises:
        EvaluationError: as `score_own`.
    """
    score_own(metric, "", references)
    return max(score_own(metric, reference, references) for reference in references) > 0


def _told(error: BaseException) -> str:
    """Return what somebody else's code raised, and where, if it was running at all."""
    theirs = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{where}"


def _unusable(metric: str, found: str, do: str) -> EvaluationError:
    return EvaluationError(f"the metric {metric}", found, do)
