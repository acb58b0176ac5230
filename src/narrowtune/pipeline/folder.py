"""Opening a run's folder: a new one, or the one that a stopped run left."""

from __future__ import annotations

import json

import yaml

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder, write_json, write_text


def open_folder(folder: RunFolder, config: RunConfig, given: str | None, resume: bool) -> None:
    """Write the settings into the run's folder.

    Raises:
        UsageError: the folder can't be written, or holds a run and none is to be resumed, or that
            run is finished or has other settings, or there is none to resume.
    """
    try:
        _open(folder, config, given, resume)
    except OSError as error:
        raise UsageError(
            asked=f"a run in {folder.root}",
            found=f"{error.strerror or error}: {error.filename or folder.root}",
            do="choose another --output-dir: a folder that can be written, or a new one",
        ) from None


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
    write_text(folder.given, given if given is not None else resolved)
    write_text(folder.resolved, resolved)


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
