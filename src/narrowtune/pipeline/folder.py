"""Opening a run's folder: a new one, or the one that a stopped run left; one run at a time."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import yaml
from filelock import FileLock, Timeout
from torch import nn

from narrowtune.core.config import RunConfig, parse_config
from narrowtune.core.errors import UsageError
from narrowtune.core.results import DataSummary
from narrowtune.core.run_folder import RunFolder, write_json, write_text
from narrowtune.core.yaml_files import dump_yaml, parse_yaml
from narrowtune.models.structure import recomputed_buffers

logger = logging.getLogger(__name__)

_LOCK = ".run.lock"
_BATCH = "eval_batch_size"

_ALWAYS = {"model", "recipe", "skill", "training", "output_dir"}
"""Keys that every run's resolved settings have."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What file systems answer that know no locks."""


@contextmanager
def opened(folder: RunFolder, config: RunConfig, given: str | None, resume: bool) -> Iterator[None]:
    """Write a new run's settings into its folder, and keep other runs out of it inside the block.

    After a kill it is free again. A refusal leaves the folder as it was; settings of a run that
    goes on are written by `write_settings`, once nothing refuses them.

    Args:
        folder: the run's.
        config: its settings.
        given: them as the user wrote them; the resolved ones unless given.
        resume: whether the run goes on.

    Raises:
        UsageError: the folder can't be written, or holds files of the user's or a run and none is
            to be resumed, or that run goes on, is finished or has other settings, or there is none
            to resume.
    """
    lock = FileLock(folder.root / _LOCK)
    try:
        _check(folder, config, given, resume)
        folder.root.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder)
        _check(folder, config, given, resume)  # another process may have been quicker
        folder.refused.unlink(missing_ok=True)  # of a start before this one
        if not resume:
            write_settings(folder, config, given)
    except OSError as error:
        raise UsageError(
            asked=f"a run in {folder.root}",
            found=f"{error.strerror or error}: {error.filename or folder.root}",
            do="choose another --output-dir: a folder that can be written, or a new one",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: RunFolder) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            asked=f"a run in {folder.root}",
            found="another process whose run goes on there",
            do="wait for it or stop it, or choose another --output-dir",
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s can't be locked: start no second run there.", folder.root)


def _resolved(config: RunConfig) -> str:
    return dump_yaml(config.model_dump(mode="json"))


def _check(folder: RunFolder, config: RunConfig, given: str | None, resume: bool) -> None:
    # A run that failed before its plan was written has done nothing yet: it may be corrected.
    begun = _is_a_run(folder)
    there = begun and folder.plan.exists()
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
    if not begun:
        _check_free(folder, given)
    if there:
        before = as_known_now(folder.resolved.read_text(encoding="utf-8"))
        if not is_held_to(before, config):
            raise UsageError(
                asked=f"to resume the run in {folder.root}",
                found="other settings than it was started with:\n"
                + _difference(before, _resolved(config)),
                do="resume with the settings in its resolved.yaml, or start a new run",
            )
        if folder.record.exists():
            raise UsageError(
                asked=f"to resume the run in {folder.root}",
                found="a finished run: its record.json is there",
                do="look at its report.html; to train again choose another --output-dir"
                + "; narrowtune ledger add enters it" * (config.ledger is not None),
            )


def as_known_now(resolved: str) -> str:
    """Return a run's settings with the defaults of those that came later than it; or as they are.

    Args:
        resolved: text of its resolved.yaml.
    """
    try:
        return _resolved(parse_config(parse_yaml(resolved), "an earlier run"))
    except (yaml.YAMLError, UsageError):
        return resolved


def is_held_to(resolved: str, config: RunConfig) -> bool:
    """Whether settings are those that a run was begun with, but for its batches of answers.

    Answers don't depend on these; of models whose answers do, `check_batches` knows.

    Args:
        resolved: what the run was begun with, from `as_known_now`.
        config: the settings.
    """
    before, now = parse_yaml(resolved), config.model_dump(mode="json")
    if isinstance(before, dict):
        before[_BATCH] = now[_BATCH]
    return bool(before == now)


def _is_a_run(folder: RunFolder) -> bool:
    """Whether the settings there are those of a run, and no file of the user's by that name."""
    if not folder.resolved.exists():
        return False
    try:
        values = parse_yaml(folder.resolved.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(values, dict) and values.keys() >= _ALWAYS


def _check_free(folder: RunFolder, given: str | None) -> None:
    """See that a first run would overwrite nothing: a file of the user's may have a run's name.

    Settings that stand where a run keeps a copy of them are that copy.
    """
    there = folder.found()
    if folder.given in there and given is not None:
        with suppress(UnicodeDecodeError):
            if folder.given.read_text(encoding="utf-8") == given:
                there.remove(folder.given)
    if there:
        raise UsageError(
            asked=f"a run in {folder.root}",
            found=f"{', '.join(path.name for path in there)}, which no run wrote there and this "
            "one would overwrite",
            do="choose another --output-dir, or move that away"
            + "; what is there is a comparison" * (folder.root / "comparison.json").exists(),
        )


def row_hashes(summaries: Sequence[DataSummary]) -> dict[str, str]:
    """Return the SHA-256 of every set of rows that was read, by name and path.

    And what tells a metric of the user's own from others, for those that have one.
    """
    rows = {f"rows of {part.name} ({part.path})": part.sha256 for part in summaries}
    return rows | {f"metric of {part.name}": part.metric for part in summaries if part.metric}


def check_batches(folder: RunFolder, model: nn.Module, config: RunConfig) -> None:
    """Hold a run to its batches of answers, if those of its model depend on them.

    Raises:
        UsageError: they do, and `eval_batch_size` is another than it was begun with.
    """
    values = parse_yaml(folder.resolved.read_text(encoding="utf-8"))
    before = values.get(_BATCH, config.eval_batch_size)
    if before != config.eval_batch_size and recomputed_buffers(model):
        raise UsageError(
            asked=f"eval_batch_size {config.eval_batch_size} for the run in {folder.root}",
            found=f"that it was begun with {before}, and a model whose answers depend on it: its "
            "rotary embedding changes with the longest row of a batch",
            do=f"go on with {before}, or start a new run",
        )


def write_settings(folder: RunFolder, config: RunConfig, given: str | None) -> None:
    """Write a run's settings, as the user wrote them, else resolved, and as they are resolved."""
    write_text(folder.given, given if given is not None else _resolved(config))
    write_text(folder.resolved, _resolved(config))


def check_started(folder: RunFolder, base: str, data: dict[str, str], resume: bool) -> None:
    """Remember what a run started from, and hold a resumed one to it.

    Args:
        folder: the run's.
        base: fingerprint of the model as it was loaded.
        data: from `row_hashes`.
        resume: whether the run goes on.

    Raises:
        UsageError: the model or rows are not those that the run was started with.
    """
    path = folder.root / "started.json"
    now = {"base": base, **data}
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
