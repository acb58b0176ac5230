"""A run's rows: read, split, checked against each other, and turned into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from narrowtune.core.config import DataSettings, RunConfig
from narrowtune.core.errors import DataError
from narrowtune.core.results import DataSummary
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Example, Message, RefusedRow, RowError, RowsRefusedError
from narrowtune.data.rows import read_rows, write_refused
from narrowtune.data.splits import find_overlap, mix_examples, split_examples
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.models.load import LoadedModel

SHIPPED_ANCHOR_PROMPTS = "general.jsonl"
SHIPPED_FREE_PROMPTS = "free.jsonl"


@dataclass
class Inputs:
    """Everything that a run reads, as rows.

    Attributes:
        train: the skill's rows to learn from, general rows mixed in.
        validation: for choosing a checkpoint.
        tasks: what is evaluated before and after; the skill's test split first.
        anchor_prompts: general prompts, without those that stand in a keep set.
        drift_prompts: (source, prompt) pairs.
        summaries: for the record.
        refused: rows that were not used.
        notes: for the record.
    """

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    anchor_prompts: list[tuple[Message, ...]] = field(default_factory=list)
    drift_prompts: list[tuple[str, tuple[Message, ...]]] = field(default_factory=list)
    summaries: list[DataSummary] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def shipped_prompts(name: str) -> Path:
    """Return the path of a prompt file that ships with the package."""
    return Path(str(resources.files("narrowtune.data") / "prompts" / name))


def read_inputs(config: RunConfig, refused_path: Path | None = None) -> Inputs:
    """Read and split all rows of a run.

    Raises:
        DataError: rows that can't be used beyond `max_refused` (they are in `refused_path`), a
            split without rows, or rows that are both taught and kept.
    """
    inputs = Inputs()
    try:
        skill = _read(config.skill, "target", inputs, config.seed)
        _split_skill(config, skill, inputs)
        keep = {
            settings.label: _read(settings, "held_out", inputs, config.seed)
            for settings in config.keep
        }
        for settings in config.keep:
            inputs.tasks.append(make_task(settings, keep[settings.label], "held_out"))
        num_skill = len(inputs.train)
        for mix in config.mix:
            general = _read(DataSettings(path=mix.path), "mix", inputs, config.seed)
            share = mix.share * num_skill / len(inputs.train)
            inputs.train = mix_examples(inputs.train, general, share, config.seed)
    finally:
        if refused_path is not None and inputs.refused:
            write_refused(refused_path, inputs.refused)
    _check_overlap(config, skill, keep, inputs)
    measured = {"tested": list(inputs.tasks[0].examples), **keep}
    _check_overlap(config, inputs.train[num_skill:], measured, inputs, what="mixed in")
    kept = [example for examples in keep.values() for example in examples]
    _read_prompts(config, kept, inputs)
    return inputs


def _read(settings: DataSettings, role: str, inputs: Inputs, seed: int) -> list[Example]:
    try:
        rows = read_rows(settings, seed=seed)
    except RowsRefusedError as error:
        inputs.refused.extend(error.refused)
        raise
    inputs.refused.extend(rows.refused)
    inputs.summaries.append(
        DataSummary(
            name=settings.label,
            role=role,
            path=settings.path,
            sha256=rows.sha256,
            num_rows=rows.num_rows,
            num_used=len(rows.examples),
            num_refused=len(rows.refused),
            splits={},
            notes=list(rows.notes),
        )
    )
    return rows.examples


def _split_skill(config: RunConfig, examples: list[Example], inputs: Inputs) -> None:
    settings = config.skill
    summary = inputs.summaries.pop()
    share = 0.0 if settings.test_path else settings.test
    splits = split_examples(examples, settings.validation, share, config.seed)
    test = splits["test"]
    if settings.test_path:
        own = settings.model_copy(update={"path": settings.test_path, "name": settings.label})
        test = _read(own, "target", inputs, config.seed)
        overlap = find_overlap(examples, test)
        if overlap and not config.allow_overlap:
            raise _overlap_error("taught", "tested", overlap)
    inputs.train, inputs.validation = splits["train"], splits["validation"]
    for name, rows in (("train", inputs.train), ("test", test)):
        if not rows:
            raise DataError(
                asked=f"a {name} split of {settings.path}",
                found=f"{len(examples)} rows, none of them left for it",
                do="give more rows, or change skill.validation and skill.test",
            )
    inputs.tasks.append(make_task(settings, test, "target"))
    sizes = {"train": len(inputs.train), "validation": len(inputs.validation), "test": len(test)}
    inputs.summaries.insert(0, summary.model_copy(update={"splits": sizes}))


def _check_overlap(
    config: RunConfig,
    trained: list[Example],
    measured: dict[str, list[Example]],
    inputs: Inputs,
    what: str = "taught",
) -> None:
    for label, examples in measured.items():
        overlap = find_overlap(trained, examples)
        if overlap and not config.allow_overlap:
            raise _overlap_error(what, f"kept ({label})", overlap)
        if overlap:
            inputs.notes.append(f"{len(overlap)} rows are both {what} and kept ({label}).")


def _overlap_error(left: str, right: str, overlap: Sequence[object]) -> DataError:
    shown = "; ".join(str(item) for item in overlap[:3])
    return DataError(
        asked=f"rows to be {left} and rows to be {right}",
        found=f"{len(overlap)} that are the same, such as {shown}",
        do="take them out of one of the files, or set allow_overlap: true (the record will say so)",
    )


def _read_prompts(config: RunConfig, kept: list[Example], inputs: Inputs) -> None:
    """Anchor prompts must not be what is measured; drift prompts are."""
    if config.anchor is not None:
        path = config.anchor.prompts or str(shipped_prompts(SHIPPED_ANCHOR_PROMPTS))
        prompts = read_rows(DataSettings(path=path), prompts_only=True).examples
        same = {item.left.id for item in find_overlap(prompts, kept)}
        if same:
            inputs.notes.append(
                f"{len(same)} anchor prompts stand in a keep set and were left out."
            )
        allowed = [p.messages for p in prompts if p.id not in same]
        inputs.anchor_prompts = allowed[: config.anchor.max_prompts]
    free_path = config.drift.prompts or str(shipped_prompts(SHIPPED_FREE_PROMPTS))
    free = read_rows(DataSettings(path=free_path), prompts_only=True).examples
    sources: dict[str, list[tuple[Message, ...]]] = {"free prompts": [p.messages for p in free]}
    if config.drift.prompts is None:
        for task in inputs.tasks:
            if task.role == "held_out":
                sources[task.name] = [example.prompt for example in task.examples]
    share, extra = divmod(config.drift.max_prompts, len(sources))
    for number, (name, messages) in enumerate(sources.items()):
        taken = messages[: share + (number < extra)]
        inputs.drift_prompts += [(name, prompt) for prompt in taken]


def encode_rows(
    encoder: ChatEncoder, examples: Sequence[Example], config: RunConfig, refused: list[RefusedRow]
) -> list[Encoded]:
    """Turn rows into tokens; a row that does not fit is refused, and counted like any other.

    Raises:
        RowsRefusedError: more rows are refused than `skill.max_refused` allows.
    """
    encoded: list[Encoded] = []
    new: list[RefusedRow] = []
    for example in examples:
        try:
            encoded.append(encoder.encode(example))
        except RowError as error:
            new.append(error.refused(config.skill.path, example.row))
    refused.extend(new)
    if len(new) > config.skill.max_refused:
        raise RowsRefusedError(new, config.skill.max_refused, len(examples))
    return encoded


def make_encoder(loaded: LoadedModel, config: RunConfig) -> ChatEncoder:
    """Return the run's chat template as an encoder."""
    return ChatEncoder(
        loaded.tokenizer,
        loaded.processor,
        max_length=config.max_length,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def read_encoded(
    config: RunConfig, encoder: ChatEncoder, refused_path: Path | None = None
) -> tuple[Inputs, list[Encoded], list[Encoded]]:
    """Read a run's rows and turn those that are trained on into tokens.

    Returns:
        All inputs, the encoded training rows and the encoded validation rows.

    Raises:
        DataError: as `read_inputs` and `encode_rows`; refused rows are in `refused_path` then too.
    """
    inputs = read_inputs(config, refused_path)
    try:
        rows = encode_rows(encoder, inputs.train, config, inputs.refused)
        validation = encode_rows(encoder, inputs.validation, config, inputs.refused)
    finally:
        if refused_path is not None and inputs.refused:
            write_refused(refused_path, inputs.refused)
    return inputs, rows, validation
