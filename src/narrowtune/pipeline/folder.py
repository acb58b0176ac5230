"""Opening a run's folder: a new one, or the one that a stopped run left."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from filelock import FileLock, Timeout

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder, write_json, write_text

logger = logging.getLogger(__name__)

_LOCK = ".run.lock"


@contextmanager
def alone(folder: RunFolder) -> Iterator[None]:
    """Keep other runs out of this folder inside the block, and after a kill no longer.

    Raises:
        UsageError: a run goes on there, or the folder can't be written.
    """
    lock = FileLock(folder.root / _LOCK)
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            asked=f"a run in {folder.root}",
            found="another process whose run goes on there",
            do="wait for it or stop it, or choose another --output-dir",
        ) from None
    except NotImplementedError:  # a file system that knows no locks
        logger.warning("%s can't be locked: start no second run there.", folder.root)
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def open_folder(folder: RunFolder, config: RunConfig, given: str | None, resume: bool) -> None:
    """Write the settings into the run's folder.

    Raises:
        UsageError: the folder can't be written, or holds a run and none is to be resumed, or that
            run is finished or has other settings, or there is none to resume.
    """
    try:
        _open(folder, config, given, resume)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: RunFolder, error: OSError) -> UsageError:
    return UsageError(
        asked=f"a run in {folder.root}",
        found=f"{error.strerror or error}: {error.filename or folder.root}",
        do="choose another --output-dir: a folder that can be written, or a new one",
    )


def _open(folder: RunFolder, config: RunConfig, given: str | None, resume: bool) -> None:
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    # A run that failed before its plan was written has done nothing yet: it may be corrected.
    there = folder.resolved.exists() and folder.plan.exists()
    if there and not resume:
        raise UsageError(
            asked=f"a new run in {folder.root}",
            found="a run that is already there"
            + (" and finished" if folder.record.exists() else ""),
            do="choose another --output-dir"
            + ("" if folder.record.exists() else ", or go on with it: --resume"),
        )
    if resume and not there:
        raise UsageError(
            asked=f"to resume the run in {folder.root}",
            found="no run that had begun there",
            do="give the folder of a run that was started, or start one without --resume",
        )
    if not folder.resolved.exists():
        _check_free(folder, given)
    if there:
        before = folder.resolved.read_text(encoding="utf-8")
        if before != resolved:
            raise UsageError(
                asked=f"to resume the run in {folder.root}",
                found=f"other settings than it was started with:\n{_difference(before, resolved)}",
                do="resume with the settings in its resolved.yaml, or start a new run",
            )
        if folder.record.exists():
            raise UsageError(
                asked=f"to resume the run in {folder.root}",
                found="a finished run: its record.json is there",
                do="look at its report.html; to train again choose another --output-dir"
                + "; narrowtune ledger add enters it" * (config.ledger is not None),
            )
    folder.refused.unlink(missing_ok=True)  # of a start before this one
    write_text(folder.given, given if given is not None else resolved)
    write_text(folder.resolved, resolved)


def _check_free(folder: RunFolder, given: str | None) -> None:
    """See that a first run would overwrite nothing: a file of the user's may have a run's name.

    Settings that stand where a run keeps a copy of them are that copy.
    """
    there = folder.found()
    if folder.given in there and given is not None:
        try:
            if folder.given.read_text(encoding="utf-8") == given:
                there.remove(folder.given)
        except UnicodeDecodeError:
            pass
    if there:
        raise UsageError(
            asked=f"a run in {folder.root}",
            found=f"{', '.join(path.name for path in there)}, which no run wrote there and this "
            "one would overwrite",
            do="choose another --output-dir, or move that away",
        )


def check_started(folder: RunFolder, base: str, data: dict[str, str], resume: bool) -> None:
    """Remember what a run started from, and hold a resumed one to it.

    Args:
        folder: the run's.
        base: fingerprint of the model as it was loaded.
        data: SHA-256 of every set of rows, by name.
        resume: whether the run goes on.

    Raises:
        UsageError: the model or rows are not those that the run was started with.
    """
    path = folder.root / "started.json"
    now = {"base": base, **{f"rows of {name}": digest for name, digest in data.items()}}
    if resume and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            raise UsageError(
                asked=f"to resume the run in {folder.root}",
                found=f"{', '.join(changed)} changed since it was started",
                do="put back what it was started with, or start a new run",
            )
    write_json(path, now)


def _difference(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    lines = [f"  was {line.strip()}" for line in old if line not in set(new)]
    lines += [f"  now {line.strip()}" for line in new if line not in set(old)]
    return "\n".join(lines)
