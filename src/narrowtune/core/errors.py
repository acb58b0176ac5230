"""Every error that narrowtune raises on purpose.

NarrowtuneError
├── UsageError            the command line or a configuration file is wrong      exit code 2
├── ModelError            a model folder can't be loaded safely
│   └── UnknownFamilyError  no table says where this model's parts are
├── SelectionError        a recipe matches nothing, too much, or the wrong part
├── DataError             rows, pictures or splits that can't be used
├── DeltaError            a delta that does not fit the model it is meant for
├── LedgerError           a ledger that can't be read, appended to or gone back in
├── EvaluationError       a task that can't be scored
├── TrainingError         a step that must not be taken, a checkpoint that can't be resumed
│   └── ProofError        a frozen tensor moved, or a selected one got no gradient
└── ReportError           a run folder from which no report can be built
"""

from __future__ import annotations


class NarrowtuneError(Exception):
    """Base of all errors raised on purpose: what was asked, what was found, what to do.

    Args:
        asked: what the user asked for, as a clause ("load the model at './m'").
        found: what was there instead.
        do: the next step that is likely to help.
    """

    exit_code = 1

    def __init__(self, asked: str, found: str, do: str) -> None:
        super().__init__(asked, found, do)
        self.asked, self.found, self.do = asked, found, do

    def __str__(self) -> str:
        """Return the three parts, a line each."""
        return f"Asked: {self.asked}\nFound: {self.found}\nDo: {self.do}"


class UsageError(NarrowtuneError):
    """The command line or a configuration file is wrong."""

    exit_code = 2


class ModelError(NarrowtuneError):
    """A model folder can't be loaded safely."""


class UnknownFamilyError(ModelError):
    """No table says where this model's parts are."""


class SelectionError(NarrowtuneError):
    """A recipe matches nothing, too much, or the wrong part."""


class DataError(NarrowtuneError):
    """Rows, pictures or splits that can't be used."""


class DeltaError(NarrowtuneError):
    """A delta that does not fit the model it is meant for."""


class LedgerError(NarrowtuneError):
    """A ledger that can't be read, appended to or gone back in."""


class EvaluationError(NarrowtuneError):
    """A task that can't be scored."""


class TrainingError(NarrowtuneError):
    """A step that must not be taken, or a checkpoint that can't be resumed."""


class ProofError(TrainingError):
    """A frozen tensor moved, or a selected one got no gradient."""


class ReportError(NarrowtuneError):
    """A run folder from which no report can be built."""
