"""Sources of rows: each is read and encoded against one limit on the rows that can't be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from narrowtune.core.config import DataSettings
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Message, RefusedRow, RowError, RowsRefusedError
from narrowtune.data.rows import read_rows
from narrowtune.data.spilled import pick
from narrowtune.evaluate.metrics import why_unscorable
from narrowtune.evaluate.own_metrics import identity, is_own, try_own
from narrowtune.evaluate.tasks import Task, make_task

logger = logging.getLogger(__name__)


class Source:
    """One set of rows, with one limit on those that can't be used, in reading and in encoding.

    Args:
        settings: where the rows are, and the limit.
        refused: gets every row that can't be used.
        key: where these settings stand, for errors that say what to change: "keep.0" in those of
            a run, "" where they are flags of a command. For prompts, what names their file.
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
        key: str,
        prompts_only: bool = False,
        seed: int = 42,
    ) -> None:
        self.settings = settings
        self._key, self._prompts_only, self._seen = key, prompts_only, refused
        self._unencoded: list[RefusedRow] = []
        self._has_misfits = self._has_large_pictures = False
        self._metric, self._worthless = "", 0
        try:
            rows = read_rows(settings, prompts_only=prompts_only, seed=seed)
        except RowsRefusedError as error:
            refused.extend(error.refused)
            raise self._too_many(error.refused, error.num_rows) from None
        refused.extend(rows.refused)
        self.examples = rows.examples
        self._rows = rows

    @property
    def doubt(self) -> str | None:
        """What a metric of the user's own makes one doubt, once items were encoded."""
        if not self._worthless:
            return None
        told = f"{self.settings.metric} gives nothing to what {self._worthless} rows accept"
        return f"{told}: it is called with the answer, then the accepted ones."

    def check_pictures(self, encoder: ChatEncoder) -> None:
        """See that a model with eyes is not given rows whose pictures nobody read.

        Raises:
            DataError: there are columns that may hold them.
        """
        columns = self._rows.picture_columns
        if columns and encoder.reads_pictures:
            raise DataError(
                asked=f"rows from {self.settings.path}",
                found=f"rows without pictures that have {', '.join(columns)}, which nobody reads",
                do="if these are paths or pictures, say so (columns: {image: NAME}) or call the "
                "column image or images; else leave it out (columns: {NAME: null})",
            )

    def refuse(self, example: Example, error: RowError) -> None:
        """Note a row that can't be encoded."""
        row = error.refused(self.settings.path, example.row)
        if example.images and "max_length" in row.reason:
            self._has_large_pictures = True
        self._unencoded.append(row)
        self._seen.append(row)

    def encodable(
        self, examples: Sequence[Example], encode: Callable[[Example], object]
    ) -> Sequence[Example]:
        """Return the examples that can be encoded; refuse the others."""
        used = []
        for number, example in enumerate(examples):
            try:
                encode(example)
            except RowError as error:
                self.refuse(example, error)
            else:
                used.append(number)
        return pick(examples, used)

    def encode_items(self, examples: Sequence[Example], encoder: ChatEncoder) -> Sequence[Example]:
        """Return the examples that can be asked and scored as the settings say; refuse others."""
        self.check_pictures(encoder)
        own = is_own(self.settings.metric)
        self._metric = identity(self.settings.metric) if own else ""

        # What it makes is not kept: the pixels of a whole set would not fit.
        def check(example: Example) -> None:
            if own:  # what goes wrong in it is no fault of a row
                self._worthless += not try_own(self.settings.metric, example.answers)
            elif misfit := why_unscorable(self.settings.metric, example.answers, example.options):
                self._has_misfits = True
                raise RowError(misfit)
            encoder.encode_prompt(example.prompt)
            if self.settings.mode == "options":
                for option in example.options:
                    encoder.encode_answer(example.prompt, option)

        return self.encodable(examples, check)

    def encode_prompts(
        self, examples: Sequence[Example], encoder: ChatEncoder
    ) -> list[tuple[Message, ...]]:
        """Return the prompts' messages.

        Raises:
            RowsRefusedError: one of them can't be encoded.
        """
        self.check_pictures(encoder)
        self.encodable(examples, lambda example: encoder.encode_prompt(example.messages))
        self.check()
        return [example.messages for example in examples]

    def check(self) -> None:
        """Hold what was refused to the limit.

        Raises:
            RowsRefusedError: more rows were refused; it names them all.
        """
        refused = [*self._rows.refused, *self._unencoded]
        if len(refused) > self.settings.max_refused:
            raise self._too_many(refused, self._rows.num_rows)

    def _too_many(self, refused: list[RefusedRow], num_rows: int) -> RowsRefusedError:
        return RowsRefusedError(
            refused, self.settings.max_refused, num_rows, self._remedy(refused, num_rows)
        )

    def _remedy(self, refused: list[RefusedRow], num_rows: int) -> str:
        """Say what can be done, in what the command at hand accepts."""
        reasons = [row.reason for row in refused]
        if self._prompts_only:
            ways = [f"correct these prompts, or give {self._key} another file", "raise max_length"]
        else:
            ways = ["correct these rows"]
            if any("UTF-8" in reason for reason in reasons):
                ways.append("save the file as UTF-8")
            if any("max_length" in reason for reason in reasons):
                ways.append("raise max_length")
        if self._has_large_pictures:
            ways.append("lower the pictures' pixels (processor_kwargs)")
        if any("image_root" in reason for reason in reasons):
            ways.append("correct image_root, below which pictures have to lie")
        if self._prompts_only:
            return ", or ".join(ways)
        if self._has_misfits:
            ways.append(f"choose a metric that fits ({self._option('metric', 'NAME')})")
        if any("mode 'options'" in reason for reason in reasons):
            ways.append(f"ask without options ({self._option('mode', 'generate')})")
        if len(refused) < num_rows:
            ways.append(f"go on without them ({self._option('max_refused', len(refused))})")
        return ", or ".join(ways)

    def _option(self, name: str, value: object) -> str:
        if self._key:
            return f"--set {self._key}.{name}={value}"
        return f"--{name.replace('_', '-')} {value}"

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
        if self.doubt is not None:
            notes = [*notes, self.doubt]
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
            metric=self._metric,
        )


def read_task(settings: DataSettings, encoder: ChatEncoder, refused: list[RefusedRow]) -> Task:
    """Read the rows of one task to be scored, and see that each can be turned into tokens.

    Args:
        settings: where the rows are, and how they are scored.
        encoder: the chat template.
        refused: gets the rows that can't be used, also where they are too many.

    Raises:
        DataError: more rows than `max_refused` can't be used.
        EvaluationError: rows that make no task.
    """
    source = Source(settings, refused, key="")
    examples = source.encode_items(source.examples, encoder)
    source.check()
    if source.doubt is not None:
        logger.warning(source.doubt)
    return make_task(settings, examples, "target")
