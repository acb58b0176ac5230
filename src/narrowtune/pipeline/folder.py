"""Opening a run's folder: a new one, or the one that a stopped run left."""

from __future__ import annotations

import yaml

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import RunFolder, write_text


def open_folder(folder: RunFolder, config: RunConfig, given: str | None, resume: bool) -> None:
    """Write the settings into the run's folder.

    Raises:
        UsageError: the folder holds a run and none is to be resumed, or that run has other
            settings, or there is none to resume.
    """
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    there = folder.resolved.exists()
    if there and not resume:
        raise UsageError(
            asked=f"a new run in {folder.root}",
            found="a run that is already there",
            do="choose another --output-dir, or go on with it: --resume",
        )
    if resume and not there:
        raise UsageError(
            asked=f"to resume the run in {folder.root}",
            found="no resolved.yaml there",
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
    write_text(folder.given, given if given is not None else resolved)
    write_text(folder.resolved, resolved)


def _difference(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    lines = [f"  was {line.strip()}" for line in old if line not in set(new)]
    lines += [f"  now {line.strip()}" for line in new if line not in set(old)]
    return "\n".join(lines)
