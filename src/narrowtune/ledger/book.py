"""A ledger's folder: read, appended to, gone back in.

Every change is one move of ledger.json, made after all files that it names are there: a process
that is killed leaves the ledger as it was, or as it is to be. One process changes it at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError
from torch import nn

from narrowtune.core.errors import LedgerError
from narrowtune.core.ledger import SCHEMA_VERSION, Entry, Ledger, view
from narrowtune.core.provenance import sha256_file
from narrowtune.core.run_folder import RunFolder, check_output, write_json
from narrowtune.delta.apply import apply, undo
from narrowtune.delta.store import Delta, Metadata, read_metadata, sync
from narrowtune.models.fingerprint import combine_hashes

LEDGER = "ledger.json"
_LOCK = ".ledger.lock"
_VIEW = "view"  # of ledger.json: computed from the rest, for machines that read it


class Book:
    """A ledger in its folder.

    Attributes:
        folder: with ledger.json, deltas/ and scores/.
        ledger: what was read last.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        """Take a ledger that was read, or one that is not written yet."""
        self.folder, self.ledger = folder, ledger

    @classmethod
    def open(cls, folder: Path) -> Book:
        """Read the ledger in `folder`.

        Raises:
            LedgerError: there is none, it is damaged, or it was written by a newer narrowtune.
        """
        return cls(folder, _read(folder))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether `folder` has a ledger."""
        return (folder / LEDGER).exists()

    def put_on(self, model: nn.Module) -> None:
        """Turn the base into the latest state, in place, bit for bit.

        Raises:
            LedgerError: a delta's file is missing or is not the one that was written.
            DeltaError: the model is not the ledger's base.
        """
        for entry in self.ledger.skills:
            apply(model, Delta.load(self.delta_path(entry)))

    @contextmanager
    def first_base(self, model: nn.Module) -> Iterator[None]:
        """Give a model in the latest state the base's bits inside the block.

        Tensors that the deltas leave alone are not looked at again; one delta is in memory at once.

        Raises:
            LedgerError: a delta's file is missing or is not the one that was written.
            DeltaError: the model has another state.
        """
        undone: list[Entry] = []
        try:
            for entry in reversed(self.ledger.skills):
                undo(model, Delta.load(self.delta_path(entry)), strict=False)
                undone.append(entry)
            yield
        finally:
            for entry in reversed(undone):
                apply(model, Delta.load(self.delta_path(entry)), strict=False)

    def delta_path(self, entry: Entry) -> Path:
        """Return an entry's delta, once it has been seen to be the one that was written."""
        path = self.folder / entry.delta
        found = sha256_file(path) if path.exists() else "no such file"
        if found != entry.sha256:
            raise LedgerError(
                asked=f"the delta of {entry.name} in {self.folder}",
                found=f"{path}: {found}, where {entry.sha256} was written",
                do="put the file back from a copy; without it neither this state nor a later one "
                "can be made",
            )
        return path

    def start(self) -> None:
        """Write a ledger that holds nothing yet, so that a run that is killed can be added to it.

        One that is there already is read, unless it has never held a skill: then the base may be
        another one. Either way the folder has been seen to be writable.

        Raises:
            UsageError: the folder can't be written.
            LedgerError: what is there can't be read or locked.
        """
        for place in ("", "deltas", "scores"):
            check_output(self.folder / place, (), overwrite=True)
        new = self.ledger
        with self._changing():
            if not self.ledger.skills and not self.ledger.undone:
                self.ledger = new
                self._write()

    def add(self, entry: Entry, run: Path) -> None:
        """Append a skill, with copies of its run's delta and answers.

        Args:
            entry: its `number` and `delta` are set here.
            run: the run's folder.

        Raises:
            LedgerError: the skill was taught to another state than the latest, or is there; the
                folder can't be written.
        """
        with self._changing(f"enter the run: narrowtune ledger add {self.folder} {run}"):
            self.check_new(entry.name)
            if entry.base_fingerprint != self.ledger.fingerprint:
                raise LedgerError(
                    asked=f"{entry.name} as the latest skill of {self.folder}",
                    found=f"it was taught to the state {entry.base_fingerprint[:12]}, the latest "
                    f"is {self.ledger.fingerprint[:12]} ({_holding(self.ledger)})",
                    do="teach it again with --ledger, or roll back to the state that it was "
                    "taught to",
                )
            self._check_delta(RunFolder(run).delta, entry, entry.base_fingerprint)
            number = self.ledger.next_number
            name = f"deltas/{number:02}-{entry.name}.safetensors"
            _copy(RunFolder(run).delta, self.folder / name)
            scores = self.folder / "scores" / f"{number:02}-{entry.name}"
            if scores.exists():  # answers of another run, from a process that was killed
                shutil.rmtree(scores)
            for when in ("before", "after"):
                for file in sorted((run / when).glob("*.jsonl")):
                    _copy(file, scores / when / file.name)
            added = entry.model_copy(update={"number": number, "delta": name})
            self._write(skills=[*self.ledger.skills, added])

    def check_new(self, name: str) -> None:
        """See that a skill of this name can be taught.

        Raises:
            LedgerError: there is one, or other rows of this name were kept.
        """
        known = [entry.name for entry in self.ledger.skills]
        # Scores of a skill that another one was taken out from below are of no state any more.
        states = [entry for entry in self.ledger.skills if not entry.without]
        kept = {task for entry in states for task in entry.before} - set(known)
        if name in known or name in kept:
            raise LedgerError(
                asked=f"{name} as a further skill of {self.folder}",
                found=f"one of that name among {', '.join(known)}"
                if name in known
                else "rows of that name, which an earlier skill's run kept",
                do="give the new one another name (skill.name)"
                + ", or roll back first" * (name in known),
            )

    def rollback(self, number: int) -> list[Entry]:
        """Go back to the state after the first `number` skills; return what was undone.

        Raises:
            LedgerError: there is no such state, or the deltas that lead to it are not all there;
                the folder can't be written.
        """
        with self._changing():
            skills = self.ledger.skills
            if not 0 <= number <= len(skills):
                raise LedgerError(
                    asked=f"the state of {self.folder} after {number} skills",
                    found=f"a ledger with {_holding(self.ledger)}",
                    do=f"give a number from 0, the base, to {len(skills)}",
                )
            state = self.ledger.base_fingerprint
            for entry in skills[:number]:
                self._check(entry, state)
                state = entry.tuned_fingerprint
            undone = skills[number:]
            self._write(skills=skills[:number], undone=[*self.ledger.undone, *reversed(undone)])
            return undone

    def remove(self, name: str) -> list[str]:
        """Take one skill out and leave the later ones in; return the names of those.

        Bits of the later skills stay as they are: only what the removed one changed goes back.

        Raises:
            LedgerError: there is no such skill, or a later one trained tensors of this one; the
                folder can't be written.
        """
        with self._changing():
            return self._remove(name)

    def _remove(self, name: str) -> list[str]:
        place, gone = self.find(name)
        later = self.ledger.skills[place + 1 :]
        taken = self._check(gone, gone.base_fingerprint)
        metas = [self._check(entry, entry.base_fingerprint) for entry in later]
        for entry, meta in zip(later, metas, strict=True):
            shared = sorted(taken.tensors.keys() & meta.tensors.keys())
            if shared:
                raise LedgerError(
                    asked=f"to take {name} out of {self.folder} and keep what came after it",
                    found=f"{entry.name} was trained on top of it: {len(shared)} tensors are in "
                    f"both deltas, such as {shared[0]}",
                    do=f"roll back to {place} skills and teach the later ones again",
                )
        first = self.ledger.next_number
        moved = [
            self._rebase(entry, meta, taken, name, number)
            for number, (entry, meta) in enumerate(zip(later, metas, strict=True), first)
        ]
        self._write(
            skills=[*self.ledger.skills[:place], *moved],
            undone=[*self.ledger.undone, *later, gone],
        )
        return [entry.name for entry in moved]

    def find(self, name: str) -> tuple[int, Entry]:
        """Return a skill and its place.

        Raises:
            LedgerError: there is none of that name.
        """
        for place, entry in enumerate(self.ledger.skills):
            if entry.name == name:
                return place, entry
        raise LedgerError(
            asked=f"the skill {name!r} of {self.folder}",
            found=f"a ledger with {_holding(self.ledger)}",
            do="name one of these",
        )

    def _rebase(
        self, entry: Entry, meta: Metadata, taken: Metadata, name: str, number: int
    ) -> Entry:
        """Write a later skill's delta as one of a base without the tensors of `taken`."""
        back = {tensor: record.base_sha256 for tensor, record in taken.tensors.items()}
        frozen = {tensor: back.get(tensor, digest) for tensor, digest in meta.frozen.items()}
        base, tuned = _fingerprints(meta, frozen)
        bits = Delta.load(self.delta_path(entry)).bits
        changes = {"frozen": frozen, "base_fingerprint": base, "tuned_fingerprint": tuned}
        path = f"deltas/{number:02}-{entry.name}-without-{name}.safetensors"
        packed = meta.encoding == "packed"
        Delta(meta.model_copy(update=changes), bits).save(self.folder / path, packed=packed)
        return entry.model_copy(
            update={
                "number": number,
                "delta": path,
                "sha256": sha256_file(self.folder / path),
                "base_fingerprint": base,
                "tuned_fingerprint": tuned,
                "without": [*entry.without, name],
            }
        )

    def _check(self, entry: Entry, state: str) -> Metadata:
        """Return a delta's description once its hashes lead from `state` to the next."""
        return self._check_delta(self.delta_path(entry), entry, state)

    def _check_delta(self, path: Path, entry: Entry, state: str) -> Metadata:
        meta = read_metadata(path)
        if _fingerprints(meta, meta.frozen) != (state, entry.tuned_fingerprint):
            entered = entry.number > 0
            raise LedgerError(
                asked=f"the states before and after {entry.name} in {self.folder}",
                found=f"hashes in {path} that lead to other states than those recorded",
                do="put ledger.json and deltas/ back from one copy"
                if entered
                else "put the delta back that the run wrote",
            )
        return meta

    @contextmanager
    def _changing(self, again: str = "do this again") -> Iterator[None]:
        """Let no other process change the ledger meanwhile, and begin with what it is now.

        Args:
            again: what is left to do once a folder that could not be written can be.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / _LOCK):
                if self.is_in(self.folder):
                    self.ledger = _read(self.folder)
                yield
        except OSError as problem:
            raise LedgerError(
                asked=f"to change the ledger in {self.folder}",
                found=f"{problem}; the ledger is as it was",
                do=f"see that the folder can be written and its disk has room, then {again}",
            ) from problem

    def _write(self, **changes: list[Entry]) -> None:
        ledger = self.ledger.model_copy(update=changes)
        write_json(self.folder / LEDGER, as_json(ledger))
        self.ledger = ledger


def as_json(ledger: Ledger) -> dict[str, Any]:
    """Return what ledger.json has: the ledger, and what its scores come to."""
    return {**ledger.model_dump(mode="json"), _VIEW: view(ledger).model_dump(mode="json")}


def _copy(source: Path, target: Path) -> None:
    """Copy a file of any size, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, partial)
    sync(partial)
    partial.replace(target)


def _fingerprints(meta: Metadata, frozen: Mapping[str, str]) -> tuple[str, str]:
    """Return those of the models without and with the delta."""
    base = {name: record.base_sha256 for name, record in meta.tensors.items()}
    tuned = {name: record.tuned_sha256 for name, record in meta.tensors.items()}
    return combine_hashes({**frozen, **base}), combine_hashes({**frozen, **tuned})


def _holding(ledger: Ledger) -> str:
    return ", ".join(entry.name for entry in ledger.skills) or "no skill yet"


def _read(folder: Path) -> Ledger:
    asked, path = f"the ledger in {folder}", folder / LEDGER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("schema_version", SCHEMA_VERSION)
        values.pop(_VIEW, None)
    except FileNotFoundError:
        do = "give the folder of a ledger; narrowtune teach --ledger FOLDER starts one"
        raise LedgerError(asked=asked, found="none there", do=do) from None
    except (OSError, ValueError, AttributeError) as error:
        do = "put ledger.json back from a copy"
        raise LedgerError(asked=asked, found=f"{path}: {error}", do=do) from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise LedgerError(
            asked=asked,
            found=f"schema version {version!r}; this narrowtune knows {SCHEMA_VERSION}",
            do="install a newer narrowtune",
        )
    try:
        return Ledger.model_validate({"schema_version": version, **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise LedgerError(
            asked=asked,
            found=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}",
            do="put ledger.json back from a copy, or use the narrowtune that wrote it",
        ) from None
