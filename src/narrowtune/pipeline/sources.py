"""Sources of rows: each is read and encoded against one limit on the rows that can't be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from narrowtune.core.config import DataSettings
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message, RefusedRow, RowError, RowsRefusedError
from narrowtune.data.rows import read_rows
from narrowtune.evaluate.tasks import Task, make_task

Made = TypeVar("Made")


class Source:
    """One set of rows, with one limit on those that can't be used, in reading and in encoding.

    Args:
        settings: where the rows are, and the limit.
        refused: gets every row that can't be used.
        prompts_only: as for `read_rows`.
        seed: of the draw where there is a limit.

    Attributes:
        settings: as given.
        examples: what reading left.
    """

    def __init__(
        self,
        settings: DataSettings,
        refused: list[RefusedRow],
        *,
        prompts_only: bool = False,
        seed: int = 42,
    ) -> None:
        self.settings = settings
        try:
            rows = read_rows(settings, prompts_only=prompts_only, seed=seed)
        except RowsRefusedError as error:
            refused.extend(error.refused)
            raise
        refused.extend(rows.refused)
        self.examples = rows.examples
        self._rows, self._all_refused = rows, refused
        self._unencoded: list[RefusedRow] = []

    def encode(
        self, examples: Sequence[Example], encode: Callable[[Example], Made]
    ) -> list[tuple[Example, Made]]:
        """Return the examples that can be encoded, each with what it became; refuse the others."""
        made = []
        for example in examples:
            try:
                made.append((example, encode(example)))
            except RowError as error:
                row = error.refused(self.settings.path, example.row)
                self._unencoded.append(row)
                self._all_refused.append(row)
        return made

    def encode_items(self, examples: Sequence[Example], encoder: ChatEncoder) -> list[Example]:
        """Return the examples that can be asked, as the source's mode asks; refuse the others."""

        # What it makes is not kept: the pixels of a whole set would not fit.
        def check(example: Example) -> None:
            encoder.encode_prompt(example.prompt)
            if self.settings.mode == "options":
                for option in example.options:
                    encoder.encode_answer(example.prompt, option)

        return [example for example, _ in self.encode(examples, check)]

    def encode_prompts(
        self, examples: Sequence[Example], encoder: ChatEncoder, key: str
    ) -> list[tuple[Message, ...]]:
        """Return the prompts' messages.

        Raises:
            RowsRefusedError: one of them can't be encoded.
        """
        self.encode(examples, lambda example: encoder.encode_prompt(example.messages))
        self.check(do=f"correct these prompts, or give {key} another file, or raise max_length")
        return [example.messages for example in examples]

    def check(self, do: str | None = None) -> None:
        """Hold what was refused to the limit.

        Raises:
            RowsRefusedError: more rows were refused; it names them all.
        """
        refused = [*self._rows.refused, *self._unencoded]
        if len(refused) > self.settings.max_refused:
            raise RowsRefusedError(refused, self.settings.max_refused, self._rows.num_rows, do)

    def summary(
        self,
        role: str,
        num_used: int,
        *,
        splits: dict[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> DataSummary:
        """Return what the record says of these rows, once they have been checked."""
        lost = len(self._unencoded)
        if lost:
            notes = [*notes, f"{lost} more could not be encoded (rows_refused.jsonl)."]
        return DataSummary(
            name=self.settings.label,
            role=role,
            path=self.settings.path,
            sha256=self._rows.sha256,
            num_rows=self._rows.num_rows,
            num_used=num_used,
            num_refused=len(self._rows.refused) + lost,
            splits=splits or {},
            notes=[*self._rows.notes, *notes],
        )


def read_task(settings: DataSettings, encoder: ChatEncoder) -> Task:
    """Read the rows of one task to be scored, and see that each can be turned into tokens.

    Raises:
        DataError: more rows than `max_refused` can't be used.
        EvaluationError: rows that make no task.
    """
    source = Source(settings, [])
    examples = source.encode_items(source.examples, encoder)
    source.check()
    return make_task(settings, examples, "target")


def read_prompts(
    path: str, encoder: ChatEncoder, max_prompts: int, key: str
) -> list[tuple[Message, ...]]:
    """Read the first `max_prompts` of a file, and see that each can be turned into tokens.

    Args:
        path: of the file.
        encoder: the chat template.
        max_prompts: how many are wanted.
        key: the setting that names the file, for errors.

    Raises:
        DataError: the file can't be read, or one of these prompts can't be used.
    """
    source = Source(DataSettings(path=path), [], prompts_only=True)
    return source.encode_prompts(source.examples[:max_prompts], encoder, key)
