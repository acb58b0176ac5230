"""Settings of sets of rows: where they are, how they are split, asked and scored."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from narrowtune.core.mistakes import did_you_mean

MetricName = Literal[
    "exact_match",
    "contains",
    "number",
    "relaxed_number",
    "option_letter",
    "anls",
    "edit_distance",
    "json",
]

METRIC_NAMES: tuple[str, ...] = get_args(MetricName)
OWN_METRIC = re.compile(r".+\.py:[A-Za-z_]\w*")
"""`FILE.py:FUNCTION`, a metric of the user's own (evaluate/own_metrics.py)."""


def _check_metric(metric: str) -> str:
    if metric not in METRIC_NAMES and not OWN_METRIC.fullmatch(metric):
        raise ValueError(
            f"{metric!r} is given{did_you_mean(metric, METRIC_NAMES)}; it takes "
            f"{' / '.join(METRIC_NAMES)}, or FILE.py:FUNCTION of your own"
        )
    return expanded(metric)


def expanded(path: str) -> str:
    """Return a path with the home folder in place of `~`: no shell sees those in settings."""
    return os.path.expanduser(path)  # noqa: PTH111  (pathlib's may raise)


Place = Annotated[str, AfterValidator(expanded)]

PAIRS = {
    "prompt": "completion",
    "question": "answer",
    "instruction": "output",
    "query": "response",
}
"""The column with the user's text, and the column with the answer."""

COLUMNS = frozenset(
    {"messages", "conversations", *PAIRS, *PAIRS.values(), "input", "system", "image", "images"}
    | {"answers", "options", "group", "id"}
)
"""What a row is read from."""


def _check_columns(columns: dict[str, str | None]) -> dict[str, str | None]:
    given = [column for column in columns.values() if column is not None]
    unknown = [
        f"{name} (did you mean {column}: {name}?)"
        if column in COLUMNS
        else f"{name}{did_you_mean(name, COLUMNS)}"
        for name, column in columns.items()
        if column is not None and name not in COLUMNS
    ]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is no name of ours, which come first: one of "
            f"{', '.join(sorted(COLUMNS))}"
        )
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise ValueError(f"the rows' column {', '.join(twice)} can't be two of them")
    return columns


Columns = Annotated[dict[str, str | None], AfterValidator(_check_columns)]

SHARED = frozenset({"system", *PAIRS, "input", "options"})
"""What all rows of a source may have alike, and so needs no column."""


def _as_texts(defaults: Any) -> Any:
    """Read whole numbers as texts, as rows' answers are; yes and no are none in YAML."""
    if not isinstance(defaults, dict):
        return defaults
    found = {}
    for name, value in defaults.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) for one in values):
            raise ValueError(
                f"{name} has true or false, as which YAML reads yes, no, on and off: put quotes "
                "round texts"
            )
        texts = [str(one) if isinstance(one, int) else one for one in values]
        found[name] = texts if isinstance(value, list) else texts[0]
    return found


def _check_defaults(defaults: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    unknown = [f"{name}{did_you_mean(name, SHARED)}" for name in defaults if name not in SHARED]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is nothing that all rows can share; {', '.join(sorted(SHARED))} "
            "can be"
        )
    asked = [name for name in defaults if name in PAIRS]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} both say what is asked: give one")
    for name, value in defaults.items():
        if name == "options":
            continue
        if isinstance(value, list):
            raise ValueError(f"{name} is a list, and only options are one")
        if not value.strip():
            raise ValueError(f"{name} is empty")
    return (
        defaults | {"options": _options(defaults["options"])} if "options" in defaults else defaults
    )


def _options(given: str | list[str]) -> list[str]:
    """Return a list of options; on the command line it is written as JSON."""
    found: Any = given
    if isinstance(given, str):
        try:
            found = _as_texts({"options": json.loads(given)})["options"]
        except json.JSONDecodeError:
            found = None
    texts: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'options is {given!r}: give a list of texts, such as ["yes", "no"]')
    if len(texts) < 2:
        raise ValueError(f"options has {len(texts)} of two at least")
    return texts


Defaults = Annotated[
    dict[str, str | list[str]],
    BeforeValidator(_as_texts),
    AfterValidator(_check_defaults),
]

EVAL_BATCH_SIZE = 256
"""Items answered together at most, unless given. A step of a few tokens costs little more with many
rows than with few; where prompts are long, fewer are taken (`engine.batches.length_batches`)."""


class Settings(BaseModel):
    """Base of all settings: an unknown key is an error, and so is a number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(Settings):
    """One set of rows.

    Attributes:
        path: a .json, .jsonl, .csv or .parquet file, a folder saved by `datasets`, or a hub id.
        name: what reports call it; the file's stem unless given.
        columns: which column of the rows is which of docs/data.md's, where they have other names,
            such as `{question: frage, answer: antwort}`; a column that is not to be read is null:
            `{prompt: null}`.
        defaults: what a row has where it has no such column, such as
            `{question: "What is the diagnosis?"}`: `system`, `options`, `input`, or what is asked.
        split: which split of a `datasets` folder or hub id; all rows of a file.
        metric: how answers are scored: `exact_match`, `contains`, `number`, `relaxed_number`,
            `option_letter`, `anls`, `edit_distance` or `json`; or a function of your own,
            `FILE.py:FUNCTION`, of an answer and the list of those accepted, to a share from 0 to 1.
        mode: `generate` decodes greedily; `options` compares the log-likelihood of each option.
        max_new_tokens: decode limit of `generate`.
        image_root: folder that picture paths must stay under; the file's own folder unless given.
        limit: use only this many rows, drawn with `seed`; all rows unless given.
        max_refused: how many unusable rows are tolerated, in reading and in encoding together.
    """

    path: Place = Field(min_length=1)
    name: str = ""
    columns: Columns = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=dict)
    split: str | None = None
    metric: Annotated[str, AfterValidator(_check_metric)] = "exact_match"
    mode: Literal["generate", "options"] = "generate"
    max_new_tokens: int = Field(32, ge=1)
    image_root: Place | None = None
    limit: int | None = Field(None, ge=1)
    max_refused: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _can_be_kept_and_scored(self) -> DataSettings:
        # Answers are kept in before/LABEL.jsonl, so a label must stay inside that folder.
        if self.label in {"", ".", ".."} or set(self.label) & set("/\\\0"):
            raise ValueError(f"{self.label!r} can't be part of a file name: give `name`")
        if self.mode == "options" and self.metric not in METRIC_NAMES:
            raise ValueError(
                f"mode options takes the likeliest option, which is right or wrong: {self.metric} "
                "scores answers that are written, by mode generate"
            )
        return self

    @property
    def label(self) -> str:
        """The name that reports use, and the name of the files with the answers."""
        return self.name or Path(self.path).stem


class SkillSettings(DataSettings):
    """The skill's rows and how they are split.

    Attributes:
        split: which split of `path`, a `datasets` folder or hub id; all rows of a file.
        limit: use only this many rows of `path`, drawn with `seed`; all rows unless given. Those
            of `test_path` are all used.
        max_refused: how many unusable rows are tolerated in `path`, and as many in `test_path`, in
            reading and in encoding together.
        validation: share of the rows kept for choosing checkpoints, 0 to 1; a study chooses its
            rates on them. None are kept where a run has no `training.eval_steps`, unless given.
        test: share kept for the final score. Ignored where `test_path` is given.
        test_path: rows of their own for the final score.
        test_split: which split of `test_path`, where that has several.
    """

    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    test_path: Place | None = None
    test_split: str | None = None

    @model_validator(mode="after")
    def _rows_left_to_train_on(self) -> SkillSettings:
        if self.validation + (0 if self.test_path else self.test) >= 1:
            raise ValueError("validation and test together leave no rows to train on")
        if self.test_split is not None and self.test_path is None:
            raise ValueError("test_split is a split of test_path: give that too")
        return self

    def tested(self) -> DataSettings:
        """Return the rows of `test_path`, which is given: all of them, by a split of their own."""
        changes = {"path": self.test_path, "split": self.test_split, "limit": None}
        return self.model_copy(update=changes)


class PromptSettings(Settings):
    """Prompts without answers.

    Attributes:
        prompts: file of prompts.
        columns: which column of `prompts` is which of docs/data.md's, where they have other names.
        defaults: what a prompt has where it has no such column: `system`, `options`, `input`, or
            what is asked.
        image_root: folder that the pictures' paths in `prompts` must stay under; the file's own
            folder unless given.
    """

    prompts: Place | None = Field(None, min_length=1)
    columns: Columns = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=dict)
    image_root: Place | None = None

    @model_validator(mode="after")
    def _of_prompts(self) -> PromptSettings:
        if self.image_root is not None and self.prompts is None:
            raise ValueError("image_root is of the pictures in prompts: give these too")
        for name in ("columns", "defaults"):
            if getattr(self, name) and self.prompts is None:
                raise ValueError(f"{name} are those of prompts: give these too")
        return self

    def rows(self, shipped: Path, name: str) -> DataSettings:
        """Return where the prompts are.

        Args:
            shipped: taken where no prompts are given.
            name: what records call them.
        """
        path = self.prompts or str(shipped)
        given = {"columns": self.columns, "defaults": self.defaults, "image_root": self.image_root}
        return DataSettings.model_validate({"path": path, "name": name, **given})


class MixSettings(Settings):
    """General rows mixed into training: `path:share`.

    Attributes:
        path: of the rows.
        columns: which column of the rows is which of docs/data.md's, where they have other names.
        defaults: what a row has where it has no such column: `system`, `input`, or what is asked.
        share: of the number of the skill's rows.
        image_root: folder that picture paths must stay under; the file's own folder unless given.
        max_refused: how many unusable rows are tolerated, in reading and in encoding together.
    """

    path: Place = Field(min_length=1)
    columns: Columns = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=dict)
    share: float = Field(gt=0)
    image_root: Place | None = None
    max_refused: int = Field(0, ge=0)

    def rows(self) -> DataSettings:
        """Return where the rows are."""
        return DataSettings.model_validate(self.model_dump(exclude={"share"}))

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        given = {"path": value} if isinstance(value, str) else value
        said = given.get("path") if isinstance(given, dict) and "share" not in given else None
        if not isinstance(said, str):
            return given
        found = with_share(said)
        if isinstance(value, str) and "share" not in found:
            raise ValueError(
                f"{said!r} without a share of the skill's rows: write PATH:SHARE, such as "
                "general.jsonl:0.1"
            )
        return {**given, **found}


def with_share(said: str) -> dict[str, str]:
    """Return what `path:share` says of rows to mix in; a path alone says no share."""
    path, _, share = said.rpartition(":")
    return {"path": path, "share": share} if path else {"path": said}
