"""A run's rows: read, split, turned into tokens, and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from narrowtune.core.config import ModelSettings, RunConfig, parse_data_settings
from narrowtune.core.data_settings import DataSettings
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, Message, RefusedRow, RowsRefusedError
from narrowtune.data.room import Room
from narrowtune.data.rows import write_refused
from narrowtune.data.spilled import Joined
from narrowtune.data.splits import draw_general, find_overlap, find_overlaps, split_examples
from narrowtune.data.stored import StoredRows
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.models.load import LoadedModel, RowReader, load_model
from narrowtune.pipeline.crossed import ask_of_skill_pictures
from narrowtune.pipeline.earlier import Taught, read_held, read_tested, test_settings
from narrowtune.pipeline.probes import read_drift_prompts
from narrowtune.pipeline.prompts import read_anchor_prompts
from narrowtune.pipeline.sources import Source

_Read = TypeVar("_Read")

PIXEL_BYTES = 2**30
"""Of the pictures of training rows that are held; those of others are prepared in every epoch."""


@dataclass
class Inputs:
    """Everything that a run reads.

    Attributes:
        rows: what is learned from: the skill's training rows, then general rows mixed in. They are
            beside memory, and made when they are asked for.
        validation: for choosing a checkpoint.
        learned, kept_back: what `rows` and `validation` were made of.
        skill: of `learned` the skill's own.
        skill_answers: what the skill's own training rows answer.
        tasks: what is evaluated before and after; the skill's test split first.
        anchor_prompts: general prompts, without those that are measured.
        taught_prompts: the anchor's of earlier skills.
        drift_prompts: (source, prompt) pairs.
        about_skill: general questions about the skill's own pictures, for the drift probe.
        summaries: for the record.
        refused: rows that were not used.
        notes: for the record.
    """

    rows: Sequence[Encoded] = ()
    validation: Sequence[Encoded] = ()
    learned: Sequence[Example] = ()
    kept_back: Sequence[Example] = ()
    skill: Sequence[Example] = ()
    skill_answers: set[str] = field(default_factory=set)
    tasks: list[Task] = field(default_factory=list)
    anchor_prompts: list[tuple[Message, ...]] = field(default_factory=list)
    taught_prompts: list[tuple[Message, ...]] = field(default_factory=list)
    drift_prompts: list[tuple[str, tuple[Message, ...]]] = field(default_factory=list)
    about_skill: list[tuple[Message, ...]] = field(default_factory=list)
    summaries: list[DataSummary] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tested(self) -> Sequence[Example]:
        """What the skill is tested on."""
        return next((task.examples for task in self.tasks if task.role == "target"), ())

    @property
    def asked(self) -> Sequence[Example]:
        """All rows of the skill: what is taught, kept back and tested."""
        return Joined([self.skill, self.kept_back, self.tested])


def load(settings: ModelSettings) -> LoadedModel:
    """Load the model that a run or a command is about."""
    return load_model(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        revision=settings.revision,
        processor_kwargs=settings.processor_kwargs,
    )


def make_encoder(
    loaded: LoadedModel | RowReader, settings: ModelSettings, *, remembered_bytes: int = 0
) -> ChatEncoder:
    """Return the model's chat template as an encoder; `remembered_bytes` as there."""
    return ChatEncoder(
        loaded.tokenizer,
        loaded.processor,
        max_length=settings.max_length,
        chat_template_kwargs=settings.chat_template_kwargs,
        remembered_bytes=remembered_bytes,
    )


def read_inputs(
    config: RunConfig,
    encoder: ChatEncoder,
    refused_path: Path | None = None,
    *,
    with_skill: bool = True,
    taught: Sequence[Taught] = (),
) -> Inputs:
    """Read all rows of a run, and see that each can be turned into tokens before anything runs.

    Args:
        config: the run.
        encoder: the chat template, with the run's `max_length`.
        refused_path: gets the rows that can't be used, also where they stop the run.
        with_skill: False leaves the skill out, and with it what would be trained on.
        taught: earlier skills, whose test rows are kept beside what the run keeps.

    Raises:
        DataError: rows that can't be used beyond `max_refused`, a prompt that can't be used, a
            split without rows, or rows that are both taught and kept.
    """
    inputs = Inputs()
    earlier, unlearned = encoder.num_prefix_mismatches, encoder.num_unlearned_turns
    try:
        _Reader(config, encoder, inputs, taught).read(with_skill)
        add_anchor_prompts(config, encoder, inputs, taught)
    finally:
        write_refused_rows(inputs, refused_path)
    differing = encoder.num_prefix_mismatches - earlier
    if differing:
        inputs.notes.append(
            f"{differing} rows to train on begin otherwise than what is asked: the chat template's "
            "generation prompt is not what it writes before an answer (chat_template_kwargs may "
            "have a switch), so that they are learned in one form and answered in another."
        )
    if silent := encoder.num_unlearned_turns - unlearned:
        inputs.notes.append(
            f"{silent} answers in rows to train on are not learned: marked so, or in a prompt."
        )
    return inputs


def add_anchor_prompts(
    config: RunConfig, encoder: ChatEncoder, inputs: Inputs, taught: Sequence[Taught] = ()
) -> None:
    """Read an anchor's prompts, if there is one, once all else was read.

    What the model is held to must not be what is measured: prompts that stand in a keep set, or
    among what the skill is tested or validated on, are left out. Of skills that were taught before,
    prompts stand beside the general ones.

    Raises:
        DataError: a prompt can't be used, or none is left.
    """
    if config.anchor is None:
        return
    measured = Joined([*(task.examples for task in inputs.tasks), inputs.kept_back])
    found = read_anchor_prompts(config.anchor, encoder, inputs.refused, measured, inputs.rows)
    inputs.anchor_prompts = found.messages
    inputs.summaries.extend(found.summaries)
    inputs.notes.extend(found.notes)
    if config.anchor.skill_pictures and len(inputs.skill):
        crossed = ask_of_skill_pictures(
            found.messages,
            inputs.skill,
            config.anchor.skill_pictures,
            encoder,
            asked=inputs.asked,
            measured=measured,
            seed=config.seed,
        )
        inputs.anchor_prompts = [*found.messages, *crossed.messages]
        inputs.notes.extend(crossed.notes)
    if number := config.anchor.earlier_skills:
        held = read_held(
            taught,
            number,
            encoder,
            inputs.refused,
            measured=measured,
            learned=inputs.learned,
            beside=lambda: chain(
                inputs.rows, (encoder.encode_prompt(each) for each in inputs.anchor_prompts)
            ),
        )
        inputs.taught_prompts = held.messages
        inputs.summaries.extend(held.summaries)
        inputs.notes.extend(held.notes)


def write_refused_rows(inputs: Inputs, path: Path | None) -> None:
    """Write the rows that can't be used, if there are any and a place for them."""
    if path is not None and inputs.refused:
        write_refused(path, inputs.refused)


class _Reader:
    """Fills the inputs of one run, source by source."""

    def __init__(
        self,
        config: RunConfig,
        encoder: ChatEncoder,
        inputs: Inputs,
        taught: Sequence[Taught],
    ) -> None:
        self.config, self.encoder, self.inputs, self.taught = config, encoder, inputs, taught
        self._room = Room(PIXEL_BYTES)
        self._failed: list[DataError] = []

    def read(self, with_skill: bool) -> None:
        """Read everything, and compare what is taught with what is measured.

        What can't be used of the skill and of what is kept is said at once.
        """
        inputs = self.inputs
        skill = self._tried(self._skill) if with_skill else None
        keep = self._keep()
        if self._failed:
            raise _together(self._failed)
        if skill is not None:
            self._check_overlap(Joined(skill.values()), keep, "taught")
            mixed = self._mix(len(skill["train"]))
            tested = inputs.tasks[0].examples
            self._check_overlap(mixed, {"tested": tested, **keep}, "mixed in")
        found = read_drift_prompts(
            self.config.drift,
            self.encoder,
            inputs.refused,
            keep=keep,
            skill=inputs.tested,
            asked=inputs.asked,
            seed=self.config.seed,
        )
        inputs.drift_prompts, inputs.about_skill = found.prompts, found.about_skill
        inputs.summaries.extend(found.summaries)
        inputs.notes.extend(found.notes)

    def _tried(self, read: Callable[[], _Read]) -> _Read | None:
        """Read a source; put aside why too many of its rows can't be used."""
        try:
            return read()
        except RowsRefusedError as error:
            self._failed.append(error)
            return None

    def _stored(self, examples: Sequence[Example], source: Source) -> StoredRows:
        source.check_pictures(self.encoder)
        return StoredRows(examples, self.encoder, self._room, source.refuse)

    def _source(self, settings: DataSettings, key: str) -> Source:
        return Source(settings, self.inputs.refused, key=key, seed=self.config.seed)

    def _skill(self) -> dict[str, Sequence[Example]]:
        """Read and split the skill's rows; returns those of `skill.path` by split."""
        settings, inputs = self.config.skill, self.inputs
        source = self._source(settings, "skill")
        source.check_pictures(self.encoder)
        share = 0.0 if settings.test_path else settings.test
        splits = split_examples(source.examples, settings.validation, share, self.config.seed)
        train = self._stored(splits["train"], source)
        validation = self._stored(splits["validation"], source)
        own = {
            "train": train.examples,
            "validation": validation.examples,
            "test": source.encode_items(splits["test"], self.encoder),
        }
        source.check()
        for name, examples in own.items():
            if splits[name] and not examples:
                raise _nothing_left(name, settings.path, len(splits[name]))
        inputs.rows, inputs.validation = train, validation
        inputs.learned, inputs.kept_back = own["train"], own["validation"]
        inputs.skill = own["train"]
        inputs.skill_answers = {example.answers[0] for example in own["train"]}
        sizes = {name: len(examples) for name, examples in own.items()}
        num_used = sum(sizes.values())
        test = own["test"]
        notes: list[str] = []
        if settings.test_path is not None:
            learned = Joined([own["train"], own["validation"]])
            test, notes = self._own_test(settings.test_path, learned)
            sizes["test"] = len(test)
        inputs.tasks.append(make_task(settings, test, "target"))
        inputs.summaries.insert(0, source.summary("target", num_used, splits=sizes, notes=notes))
        return own

    def _own_test(
        self, path: str, taught: Sequence[Example]
    ) -> tuple[Sequence[Example], list[str]]:
        """Read the rows that the skill is tested on, from a file of their own."""
        source = self._source(test_settings(self.config.skill), "skill")
        test = source.encode_items(source.examples, self.encoder)
        source.check()
        if not test:
            raise _nothing_left("test", path, len(source.examples))
        self.inputs.summaries.append(source.summary("target", len(test)))
        overlap = find_overlap(taught, test)
        if overlap and not self.config.allow_overlap:
            raise _overlap_error("taught", "tested", overlap)
        return test, [f"{len(overlap)} rows are both taught and tested."] if overlap else []

    def _keep(self) -> dict[str, Sequence[Example]]:
        wanted: list[tuple[str, Callable[[], Sequence[Example]]]] = [
            (settings.label, partial(self._kept, settings, f"keep.{number}"))
            for number, settings in enumerate(self.config.keep)
        ]
        wanted += [(e.settings.label, partial(self._earlier, e)) for e in self.taught]
        found = {label: self._tried(read) for label, read in wanted}
        return {label: examples for label, examples in found.items() if examples is not None}

    def _kept(self, settings: DataSettings, key: str) -> Sequence[Example]:
        """Read a set that is to be kept."""
        source = self._source(settings, key)
        examples = source.encode_items(source.examples, self.encoder)
        source.check()
        if not examples:
            raise _nothing_left("keep", settings.path, len(source.examples))
        self.inputs.tasks.append(make_task(settings, examples, "held_out"))
        self.inputs.summaries.append(source.summary("held_out", len(examples)))
        return examples

    def _earlier(self, taught: Taught) -> Sequence[Example]:
        """Read what an earlier skill is tested on; it is to be kept."""
        examples, rows, summary = read_tested(taught, self.encoder, self.inputs.refused)
        if not examples:
            raise _nothing_left("test", summary.path, len(rows))
        self.inputs.tasks.append(make_task(taught.settings, examples, "held_out"))
        self.inputs.summaries.append(summary)
        return examples

    def _mix(self, num_skill: int) -> Sequence[Example]:
        """Draw general rows and put them behind the skill's."""
        mixed: list[StoredRows] = []
        for number, mix in enumerate(self.config.mix):
            values = mix.model_dump(exclude={"share"})
            settings = parse_data_settings(values, f"the rows of mix.{number}")
            source = self._source(settings, f"mix.{number}")
            drawn = draw_general(source.examples, num_skill, mix.share, self.config.seed)
            encoded = self._stored(drawn, source)
            source.check()
            mixed.append(encoded)
            note = (
                f"{len(drawn)} of {len(source.examples)} rows, drawn with seed {self.config.seed}."
            )
            self.inputs.summaries.append(source.summary("mix", len(encoded), notes=[note]))
        if mixed:
            self.inputs.rows = Joined([self.inputs.rows, *mixed])
            general = (rows.examples for rows in mixed)
            self.inputs.learned = Joined([self.inputs.learned, *general])
        return Joined(rows.examples for rows in mixed)

    def _check_overlap(
        self, trained: Sequence[Example], measured: dict[str, Sequence[Example]], what: str
    ) -> None:
        for label, overlap in find_overlaps(trained, measured).items():
            if overlap and not self.config.allow_overlap:
                raise _overlap_error(what, f"kept ({label})", overlap)
            if overlap:
                self.inputs.notes.append(f"{len(overlap)} rows are both {what} and kept ({label}).")


def _nothing_left(split: str, path: str, number: int) -> DataError:
    return DataError(
        asked=f"{split} rows from {path}",
        found=f"{number} rows, none of which can be used (rows_refused.jsonl)",
        do="correct these rows, give more, or raise max_length",
    )


def _together(errors: Sequence[DataError]) -> DataError:
    """Return one error that says what several do; one alone as it is."""
    if len(errors) == 1:
        return errors[0]
    ways = dict.fromkeys(error.do for error in errors)
    return DataError(
        asked=f"{len(errors)} sets of rows",
        found="\n".join(f"of {error.asked}: {error.found}" for error in errors),
        do="\n".join(ways),
    )


def _overlap_error(left: str, right: str, overlap: Sequence[object]) -> DataError:
    shown = "; ".join(str(item) for item in overlap[:3])
    return DataError(
        asked=f"rows to be {left} and rows to be {right}",
        found=f"{len(overlap)} that are the same, such as {shown}",
        do="take them out of one of the files, or accept them: --set allow_overlap=true (the "
        "record will say so)",
    )
