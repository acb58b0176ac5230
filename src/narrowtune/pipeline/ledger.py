"""Skill after skill on one base: what a run with a ledger starts from, keeps and leaves behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from narrowtune.core.config import RunConfig, load_config
from narrowtune.core.data_settings import DataSettings, expanded
from narrowtune.core.errors import LedgerError
from narrowtune.core.ledger import Entry, Ledger, TaskScore
from narrowtune.core.provenance import sha256_file
from narrowtune.core.results import EXIT_CODES, DataSummary, RunRecord
from narrowtune.core.run_folder import RunFolder, check_output
from narrowtune.delta.copying import check_new_folder
from narrowtune.delta.folder import FolderResult, apply_to_folder
from narrowtune.delta.store import beside
from narrowtune.evaluate.own_metrics import is_own
from narrowtune.ledger.book import Book
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel
from narrowtune.pipeline.earlier import Taught
from narrowtune.report.folder import read_record


def open_book(config: RunConfig, loaded: LoadedModel) -> Book:
    """Return the run's ledger, with the model in its latest state; one is started if none is there.

    Args:
        config: of a run with a ledger.
        loaded: the ledger's base; the skills' deltas are put on it.

    Raises:
        LedgerError: the ledger is of another base, or holds a skill of this name.
        UsageError: the ledger's folder can't be written.
        DeltaError: a delta does not fit.
    """
    assert config.ledger is not None
    folder, base = Path(config.ledger), fingerprint(loaded.model)
    new = Ledger(
        model=_lasting(expanded(config.model)),
        loading={"revision": config.revision, "dtype": config.dtype},
        family=loaded.family.name,
        base_fingerprint=base,
    )
    book = Book(folder, new)
    book.start()
    if book.ledger.base_fingerprint != base:
        raise LedgerError(
            asked=f"to teach {config.skill.label} to {config.model} with the ledger {folder}",
            found=f"another base than the ledger's, {book.ledger.model}",
            do="name the ledger's own base, in the same dtype, or start another ledger",
        )
    book.check_new(config.skill.label)
    names = {entry.name for entry in book.ledger.skills}
    kept = {settings.label for settings in config.keep} & names
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
    return [Taught(entry.skill, entry.seed, entry.taught_sha256) for entry in entries]


def check_state(book: Book, state: str, summaries: Sequence[DataSummary]) -> None:
    """See that a model has the latest state, and that earlier skills are tested on the same rows.

    Args:
        book: the ledger.
        state: fingerprint of the model with the ledger's deltas on it.
        summaries: of the rows that were read.

    Raises:
        LedgerError: it has not, or rows changed.
    """
    if state != book.ledger.fingerprint:
        raise LedgerError(
            asked=f"the latest state of {book.folder}",
            found="deltas that lead to another state than the one recorded",
            do="put ledger.json and deltas/ back from one copy",
        )
    now = {part.name: part.sha256 for part in summaries if part.role == "held_out"}
    for entry in book.ledger.skills:
        if now[entry.name] != entry.rows_sha256:
            raise LedgerError(
                asked=f"what {entry.name} of {book.folder} is tested on",
                found=f"rows in {entry.skill.test_path or entry.skill.path} that changed since",
                do="put the rows back: scores on others can't stand in one table",
            )


def enter(book: Book, config: RunConfig, record: RunRecord) -> None:
    """Append a finished run's skill to its ledger.

    Raises:
        LedgerError: it can't be. The run is finished all the same: the error says its verdict, and
            has the exit code of one that does not ship.
    """
    run = Path(config.output_dir)
    try:
        book.add(_entry(config, book, record, run), run)
    except LedgerError as error:
        if record.verdict is None:
            raise
        outcome = record.verdict.outcome
        told = LedgerError(
            asked=error.asked,
            found=f"{error.found}; the run is finished, its verdict is {outcome} ({run})",
            do=error.do,
        )
        # Over budget stays over budget; a run that ships has failed to be entered.
        told.exit_code = EXIT_CODES[outcome] or error.exit_code
        raise told from error


def add_run(folder: Path, run: Path) -> Entry:
    """Append the skill of a run that was finished and is not in its ledger.

    Raises:
        LedgerError: it was taught to another state than the latest.
        ReportError: the folder holds no finished run.
    """
    record, book = read_record(run), Book.open(folder)
    config = load_config(RunFolder(run).resolved)
    skill = config.skill
    # Seen from elsewhere, a folder of rows can't be told from a hub id.
    elsewhere = Path(config.output_dir).resolve() != run.resolve()
    on_disk = [
        path for path in (skill.path, skill.test_path) if elsewhere or Path(path or "").suffix
    ]
    file = skill.metric.rpartition(":")[0] if is_own(skill.metric) else None
    for path in filter(None, (*on_disk, skill.image_root, file)):
        if not Path(path).exists():
            raise LedgerError(
                asked=f"the skill of {run} in {folder}",
                found=f"its rows, pictures or metric are not at {path}, seen from {Path.cwd()}",
                do="call this where the run was started",
            )
    book.add(_entry(config, book, record, run), run)
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
        UsageError: the output's folder can't be written.
    """
    book = Book.open(folder)
    ledger, asked = book.ledger, f"the model of {folder}"
    most = len(ledger.skills)
    if not most or (number is not None and not 0 < number <= most):
        raise LedgerError(
            asked=asked if number is None else f"{asked} after {number} skills",
            found=f"{most} skills; without any it is the base itself, {ledger.model}",
            do=f"give a number from 1 to {most}" if most else "use the base, or teach a skill",
        )
    source = base or Path(expanded(ledger.model))  # older ledgers have it as it was given
    if not source.is_dir():
        raise LedgerError(
            asked=asked,
            found=f"a base that is no folder on this disk: {ledger.model}",
            do="give --base the folder that it was downloaded to"
            + f" (revision {ledger.loading['revision']})" * bool(ledger.loading.get("revision")),
        )
    real = check_new_folder(source, output, asked)
    check_output(real.parent, (), overwrite=True)
    real.parent.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    with beside(real) as between:
        for place, entry in enumerate(ledger.skills[:number]):
            last = place == (number or most) - 1
            target = output if last else between / str(place)
            result = apply_to_folder(source, book.delta_path(entry), target)
            # What the first step left out, the later ones do not see.
            left_out |= result.left_out
            if place:
                shutil.rmtree(source)
            source = target
    return replace(result, left_out=left_out)


def _entry(config: RunConfig, book: Book, record: RunRecord, run: Path) -> Entry:
    skill = config.skill
    scored: dict[str, DataSettings] = {entry.name: entry.skill for entry in book.ledger.skills}
    scored |= {each.label: each for each in (*config.keep, skill)}
    if record.delta is None:
        raise LedgerError(
            asked=f"the skill of {run}", found="a run without a delta", do="name a run of teach"
        )
    # As they were when the run scored by them.
    own_metrics = {
        part.name.removesuffix(" (test)"): part.metric for part in record.data if part.metric
    }
    before: dict[str, TaskScore] = {}
    after: dict[str, TaskScore] = {}
    for task in record.tasks:
        items = _items_hash(RunFolder(run).items("after", task.name))
        for scores, score in ((before, task.before), (after, task.after)):
            scores[task.name] = TaskScore(
                role=task.role,
                mean=score.mean,
                stderr=score.stderr,
                num_items=task.num_items,
                items=items,
                scoring=_scoring(scored.get(task.name), own_metrics.get(task.name, "")),
            )
    own = skill.label if skill.test_path is None else f"{skill.label} (test)"
    rows = {part.name: part.sha256 for part in record.data if part.role == "target"}
    places = {
        name: _lasting(value)
        for name in ("path", "test_path", "image_root")
        if (value := getattr(skill, name)) is not None
    }
    if is_own(skill.metric):
        file, _, function = skill.metric.rpartition(":")
        places["metric"] = f"{_lasting(file)}:{function}"
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
        seed=config.seed,
        rows_sha256=rows[own],
        taught_sha256=rows[skill.label],
        before=before,
        after=after,
    )


def _scoring(settings: DataSettings | None, own_metric: str) -> str:
    """Return what a score depends on beside its items; nothing where that is not known."""
    if settings is None:
        return ""
    length = f" {settings.max_new_tokens}" if settings.mode == "generate" else ""
    return f"{own_metric or settings.metric} {settings.mode}{length}"


def _items_hash(path: Path) -> str:
    """Return a hash of what was asked and what is accepted, in a file of answers."""
    digest = hashlib.sha256()
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            item = json.loads(line)
            asked = [item["id"], item["question"], item["reference"]]
            digest.update(json.dumps(asked, ensure_ascii=False).encode() + b"\0")
    return digest.hexdigest()


def _lasting(path: str) -> str:
    """Return a path that stays right in another working directory; a hub id as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path
