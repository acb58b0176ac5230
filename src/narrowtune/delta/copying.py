"""Copying model folders: weights byte for byte, or repacked into shards, and all other files.

A new folder is prepared beside its final place and renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from narrowtune.core.errors import DeltaError
from narrowtune.delta.header import ITEMSIZES
from narrowtune.delta.layout import Layout
from narrowtune.delta.marker import MARKER
from narrowtune.delta.store import beside, sync
from narrowtune.models.disk import INDEX, WEIGHTS

CARD = "README.md"
BASE_CARD = "README.base.md"

WEIGHT_SUFFIXES = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth"),
    *(".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ggml", ".npz", ".pkl", ".ot", ".tflite"),
    *(".mlmodel", ".mlmodelc", ".mlpackage", ".task", ".litertlm", ".pte"),
)
"""Of files and folders; other copies of the weights would go on holding the values from before."""

# ONNX keeps large tensors in one file beside the graph, or in several, which it numbers.
_ONNX_DATA = re.compile(r"\.onnx[._]data([._]\d+)?$")
_STALE = "another copy of the weights, without the delta"

CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Companions:
    """The files of a model folder that are not its weights.

    Attributes:
        files: path in the new folder by path in the old one, both relative.
        left_out: what is not taken over, with the reason.
        num_bytes: size of `files`.
    """

    files: dict[Path, Path]
    left_out: dict[str, str]
    num_bytes: int


def check_new_folder(source: Path, out: Path, asked: str) -> Path:
    """See that `out` can become a new folder made from `source`; return it with links followed.

    Raises:
        DeltaError: it is a file, not empty, inside `source`, or a folder that has to stay where
            it is; or it can't be looked at.
    """
    try:
        return _check_new_folder(source, out, asked)
    except (OSError, RuntimeError) as problem:  # RuntimeError: links that lead in a circle
        raise DeltaError(asked=asked, found=str(problem), do="name another folder") from None


def _check_new_folder(source: Path, out: Path, asked: str) -> Path:
    real = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DeltaError(
            asked=asked, found=f"{out} exists and is not empty", do="name a new folder"
        )
    if real.is_relative_to(source.resolve()):
        raise DeltaError(
            asked=asked, found=f"{out} lies inside {source}", do="name a folder outside of it"
        )
    # The complete folder is moved there, and these can't be moved away for it.
    if real == Path.cwd() or real.is_mount():
        raise DeltaError(
            asked=asked,
            found=f"{out} is " + ("the current directory" if real == Path.cwd() else "a mount"),
            do="name a new folder in it",
        )
    return real


@contextmanager
def staged(source: Path, out: Path, asked: str) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` on success and vanishes on failure.

    Raises:
        DeltaError: `out` is a file, not empty, or inside `source`; or can't be written.
    """
    out = check_new_folder(source, out, asked)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with beside(out) as own:
            staging = own / "staged"
            staging.mkdir()
            yield staging
            for path in staging.rglob("*"):
                sync(path)
            sync(staging)
            staging.replace(out)
            sync(out.parent)
    except OSError as problem:
        raise DeltaError(
            asked=asked, found=str(problem), do="choose a folder that can be written, with room"
        ) from problem


def find_companions(layout: Layout, *, is_release: bool) -> Companions:
    """List what goes along with the weights of `layout`; a release gets a card of its own."""
    files: dict[Path, Path] = {}
    left_out: dict[str, str] = {}
    weights = {path.name for path in (*layout.shards, layout.index) if path is not None}
    for parent, folders, names in os.walk(layout.folder, onerror=_unreadable, followlinks=True):
        here = Path(parent).relative_to(layout.folder)
        for folder in list(folders):
            reason = _why_not_walked(layout.folder, here / folder)
            if reason is not None:
                folders.remove(folder)
                left_out[str(here / folder)] = reason
        for name in sorted(names):
            path = here / name
            if str(path) in weights or str(path) == MARKER:
                continue
            if _is_weights(name):
                left_out[str(path)] = _STALE
            elif name.startswith("."):
                left_out[str(path)] = "hidden file"
            elif not (layout.folder / path).is_file():
                left_out[str(path)] = "not a file"
            else:
                files[path] = path
    if is_release and Path(CARD) in files:
        if Path(BASE_CARD) in files:
            del files[Path(CARD)]
            left_out[CARD] = f"replaced by the new card; {BASE_CARD} is kept"
        else:
            files[Path(CARD)] = Path(BASE_CARD)
    num_bytes = sum((layout.folder / path).stat().st_size for path in files)
    return Companions(files, left_out, num_bytes)


def _unreadable(problem: OSError) -> None:
    raise DeltaError(
        asked="to take a model's other files along",
        found=f"{problem.filename}: {problem.strerror}",
        do="see that this user may read it, or move it out of the model's folder",
    )


def _is_weights(name: str) -> bool:
    name = name.lower()
    return name.endswith(WEIGHT_SUFFIXES) or _ONNX_DATA.search(name) is not None


def _why_not_walked(root: Path, folder: Path) -> str | None:
    """Return why a sub-folder is left out; None where its files go along."""
    if folder.name.startswith("."):
        return "hidden folder"
    if _is_weights(folder.name):
        return _STALE
    if (root / folder).is_symlink():
        target = (root / folder).resolve()
        holders = [(root / parent).resolve() for parent in folder.parents]
        if any(holder.is_relative_to(target) for holder in holders):
            return "a link to a folder that holds it"
    return None


def copy_companions(companions: Companions, source: Path, out: Path) -> None:
    """Copy them, links followed, byte for byte."""
    for path, target in companions.files.items():
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / path, out / target)
        except PermissionError as problem:
            _unreadable(problem)


def copy_weights(layout: Layout, out: Path) -> None:
    """Copy the shards and their index as they are."""
    for path in (*layout.shards, layout.index):
        if path is not None:
            shutil.copyfile(path, out / path.name)


def repack_weights(layout: Layout, out: Path, max_shard_size: int) -> None:
    """Write the tensors of `layout` into shards of at most `max_shard_size` bytes, with an index.

    Tensors keep their order; one that is larger than a shard gets a shard of its own.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, place in layout.places.items():
        num_bytes = place.entry.end - place.entry.start
        if shards[-1] and filled + num_bytes > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes
    if len(shards) == 1:
        _write_shard(layout, shards[0], out / WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(layout, names, out / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    total = sum(place.entry.end - place.entry.start for place in layout.places.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(layout: Layout, names: list[str], path: Path) -> None:
    """Write a safetensors file with these tensors, streaming their bytes from `layout`."""
    # Widest elements first, which keeps every tensor aligned to its element size.
    entries = {name: layout.places[name].entry for name in names}
    names = sorted(names, key=lambda name: (-ITEMSIZES.get(entries[name].dtype, 8), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        entry = entries[name]
        end = position + entry.end - entry.start
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            with layout.places[name].shard.open("rb") as source:
                _copy_range(source, entries[name].start, entries[name].end, file)


def _copy_range(source: BinaryIO, start: int, end: int, target: BinaryIO) -> None:
    source.seek(start)
    while start < end:
        chunk = source.read(min(CHUNK_BYTES, end - start))
        if not chunk:
            raise OSError(f"{source.name} ended early")
        target.write(chunk)
        start += len(chunk)
