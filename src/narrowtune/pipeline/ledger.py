"""Skill after skill on one base: what a run with a ledger starts from, keeps and leaves behind."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from narrowtune.core.config import RunConfig, load_config
from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.errors import LedgerError
from narrowtune.core.ledger import Entry, Ledger, scores_of
from narrowtune.core.provenance import sha256_file
from narrowtune.core.results import DataSummary, RunRecord
from narrowtune.core.run_folder import RunFolder
from narrowtune.delta.folder import FolderResult, apply_to_folder
from narrowtune.ledger.book import Book
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel
from narrowtune.pipeline.inputs import Taught
from narrowtune.report.folder import read_record


def open_book(config: RunConfig, loaded: LoadedModel) -> Book:
    """Return the run's ledger, with the model in its latest state; a new one is not written yet.

    Args:
        config: of a run with a ledger.
        loaded: the ledger's base; the skills' deltas are put on it.

    Raises:
        LedgerError: the ledger is of another base, or holds a skill of this name.
        DeltaError: a delta does not fit.
    """
    assert config.ledger is not None
    folder, base = Path(config.ledger), fingerprint(loaded.model)
    if not Book.is_in(folder):
        return Book(
            folder,
            Ledger(
                model=_lasting(config.model),
                loading={"revision": config.revision, "dtype": config.dtype},
                family=loaded.family.name,
                base_fingerprint=base,
            ),
        )
    book = Book.open(folder)
    if book.ledger.base_fingerprint != base:
        raise LedgerError(
            asked=f"to teach {config.skill.label} to {config.model} with the ledger {folder}",
            found=f"another base than the ledger's, {book.ledger.model}",
            do="name the ledger's own base, in the same dtype, or start another ledger",
        )
    names = [entry.name for entry in book.ledger.skills]
    if config.skill.label in names:
        raise LedgerError(
            asked=f"{config.skill.label} as a further skill of {folder}",
            found=f"one of that name among {', '.join(names)}",
            do="give the new one another name (skill.name), or roll back first",
        )
    kept = {settings.label for settings in config.keep} & set(names)
    if kept:
        raise LedgerError(
            asked=f"to keep {', '.join(sorted(kept))} while {config.skill.label} is taught",
            found="skills of the ledger, whose test rows are kept without being named",
            do="leave them out of keep",
        )
    book.put_on(loaded.model)
    return book


def taught_before(book: Book | None) -> list[Taught]:
    """Return the skills that a run starts from; none without a ledger."""
    entries = book.ledger.skills if book is not None else []
    return [Taught(entry.skill, entry.seed) for entry in entries]


def check_rows(book: Book, summaries: Sequence[DataSummary]) -> None:
    """See that earlier skills are tested on the rows that they were tested on.

    Raises:
        LedgerError: they changed.
    """
    now = {part.name: part.sha256 for part in summaries if part.role == "held_out"}
    for entry in book.ledger.skills:
        if now[entry.name] != entry.rows_sha256:
            raise LedgerError(
                asked=f"what {entry.name} of {book.folder} is tested on",
                found=f"rows in {entry.skill.test_path or entry.skill.path} that changed since",
                do="put the rows back: scores on others can't stand in one table",
            )


def enter(book: Book, config: RunConfig, record: RunRecord) -> None:
    """Append a finished run's skill to its ledger."""
    run = Path(config.output_dir)
    book.add(_entry(config.skill, config.seed, record, run), run)


def add_run(folder: Path, run: Path) -> Entry:
    """Append the skill of a run that was finished and is not in its ledger.

    Raises:
        LedgerError: it was taught to another state than the latest.
        ReportError: the folder holds no finished run.
    """
    record, book = read_record(run), Book.open(folder)
    config = load_config(RunFolder(run).resolved)
    book.add(_entry(config.skill, config.seed, record, run), run)
    return book.ledger.skills[-1]


def build(
    folder: Path, output: Path, *, number: int | None = None, base: Path | None = None
) -> FolderResult:
    """Write the model in the state after the first `number` skills; the latest unless given.

    Args:
        folder: of the ledger.
        output: the new model folder.
        number: of skills.
        base: folder of the ledger's base, where that is a hub id or has moved.

    Raises:
        LedgerError: there is no such state.
        DeltaError: the base is another one, or something is there already.
    """
    book = Book.open(folder)
    skills = book.ledger.skills if number is None else book.ledger.skills[:number]
    if number is not None and not 0 < number <= len(book.ledger.skills):
        raise LedgerError(
            asked=f"the model of {folder} after {number} skills",
            found=f"{len(book.ledger.skills)} skills; 0 is the base itself, {book.ledger.model}",
            do=f"give a number from 1 to {len(book.ledger.skills)}",
        )
    if not skills:
        raise LedgerError(
            asked=f"the latest model of {folder}",
            found=f"no skill in it: that is the base, {book.ledger.model}",
            do="use the base, or teach a skill",
        )
    source = base or Path(book.ledger.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".narrowtune-") as between:
        for place, entry in enumerate(skills):
            last = place == len(skills) - 1
            target = output if last else Path(between) / str(place)
            result = apply_to_folder(source, book.delta_path(entry), target)
            source = target
    return result


def _entry(skill: SkillSettings, seed: int, record: RunRecord, run: Path) -> Entry:
    assert record.delta is not None
    before, after = scores_of(record.tasks)
    own = skill.label if skill.test_path is None else f"{skill.label} (test)"
    rows = {part.name: part.sha256 for part in record.data if part.role == "target"}
    places = {
        name: _lasting(value)
        for name in ("path", "test_path", "image_root")
        if (value := getattr(skill, name)) is not None
    }
    return Entry(
        number=0,
        name=skill.label,
        recipe=record.recipe,
        created=record.created,
        run=record.name,
        delta="",
        sha256=sha256_file(RunFolder(run).delta),
        base_fingerprint=record.delta.base_fingerprint,
        tuned_fingerprint=record.delta.tuned_fingerprint,
        # Its name may have been that of a file.
        skill=skill.model_copy(update={"name": skill.label, **places}),
        seed=seed,
        rows_sha256=rows[own],
        before=before,
        after=after,
    )


def _lasting(path: str) -> str:
    """Return a path that stays right in another working directory; a hub id as it is."""
    expanded = Path(path).expanduser()
    return str(expanded.resolve()) if expanded.exists() else path
