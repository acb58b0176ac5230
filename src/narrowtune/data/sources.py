"""Where rows come from: files, folders saved by `datasets`, hub ids.

Owns: reading each kind row by row, within bounds, so that one bad row costs that row only.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from narrowtune.core.errors import DataError

MAX_LINE_BYTES = 64 * 2**20
"""Of one JSONL line or one CSV cell."""

MAX_JSON_BYTES = 2 * 2**30
"""Of a .json file, which is read as a whole."""

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_BATCH_ROWS = 256
_MAX_HEADER_BYTES = 2**16
_MAX_ERROR = 400  # characters of an error of the hub's client
_RENAME = "rename it to .jsonl"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


@dataclass(frozen=True)
class RawRow:
    """One row as the source has it: `values`, or the `reason` why there are none."""

    number: int
    values: dict[str, Any] | None = None
    reason: str = ""


def why_missing(path: str) -> str | None:
    """Return why nothing can be read from `path`, as far as a look at the disk tells, or None.

    What may be a hub id is not asked for here.
    """
    place = Path(path)
    reason = why_not_there(place)
    if reason is None:
        return None
    if place.suffix.lower() in SUFFIXES:
        return "no such file"
    return None if _HUB_ID.fullmatch(path) else reason


def why_not_there(place: Path) -> str | None:
    """Return why there is no such file or folder, or None."""
    try:
        return None if place.exists() else "no such file or folder"
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        return getattr(error, "strerror", None) or str(error)


def read_source(
    path: str, split: str | None, untaught: Container[str] = ("id", "group")
) -> Iterator[RawRow]:
    """Yield the rows of a file, a folder saved by `datasets`, or a hub id.

    Row numbers start at 1: lines of a JSONL file, data rows of the others.

    Args:
        path: of the source.
        split: of a folder or a hub id.
        untaught: columns whose labels stay numbers; others are read by the labels' names.

    Raises:
        DataError: there is no such source, or it can't be read at all.
    """
    file = Path(path)
    reason = why_missing(path)
    if reason is not None:
        raise _unreadable(path, reason, "check the path")
    if file.suffix.lower() in SUFFIXES and not file.is_dir():
        if split is not None:
            raise _unreadable(
                path, f"a split ({split}), which a file does not have", "leave it out"
            )
        readers: dict[str, Callable[[Path], Iterator[RawRow]]] = {
            ".json": _json,
            ".jsonl": _jsonl,
            ".csv": _csv,
            ".parquet": partial(_parquet, untaught=untaught),
        }
        yield from readers[file.suffix.lower()](file)
    elif file.is_dir():
        yield from _saved_folder(path, split, untaught)
    elif file.exists():
        raise _unreadable(path, "a file of another kind", f"use one of {', '.join(SUFFIXES)}")
    else:
        yield from _hub(path, split, untaught)


def _unreadable(path: str, found: str, do: str) -> DataError:
    return DataError(asked=f"rows from {path}", found=found, do=do)


def _jsonl(file: Path) -> Iterator[RawRow]:
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                _skip_line(stream)
                yield RawRow(number, reason=f"the line has more than {MAX_LINE_BYTES} bytes")
            elif line.strip():
                yield _json_row(number, line)


def _skip_line(stream: BinaryIO) -> None:
    while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
        pass


def _json_row(number: int, line: bytes) -> RawRow:
    try:
        values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return RawRow(number, reason="the line is not UTF-8")
    except RecursionError:
        return RawRow(number, reason="the line is nested too deeply")
    except ValueError as error:
        return RawRow(number, reason=f"the line is not JSON: {error}")
    return _raw_row(number, values)


def _raw_row(number: int, values: Any) -> RawRow:
    if not isinstance(values, dict):
        return RawRow(number, reason=f"the row is {type(values).__name__}, not keys and values")
    # A missing cell comes as NaN from tables that went through pandas.
    kept = {
        key: value
        for key, value in values.items()
        if not (isinstance(value, float) and math.isnan(value))
    }
    return RawRow(number, kept)


def _json(file: Path) -> Iterator[RawRow]:
    if file.stat().st_size > MAX_JSON_BYTES:
        raise _unreadable(str(file), f"more than {MAX_JSON_BYTES} bytes", "save it as .jsonl")
    try:
        rows = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if _has_row_per_line(file):
            raise _unreadable(str(file), f"a row per line: {detail}", _RENAME) from None
        raise _unreadable(str(file), detail, "give a JSON list of rows, or JSONL") from None
    if not isinstance(rows, list):
        found = f"{type(rows).__name__} instead of a list of rows"
        do = f"give a JSON list of rows; if the file has a row per line, {_RENAME}"
        raise _unreadable(str(file), found, do)
    for number, values in enumerate(rows, start=1):
        yield _raw_row(number, values)


def _has_row_per_line(file: Path) -> bool:
    with file.open("rb") as stream:
        return _json_row(1, stream.readline(MAX_LINE_BYTES)).values is not None


def _csv(file: Path) -> Iterator[RawRow]:
    _check_separator(file)
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        # Bytes that are not UTF-8 survive as surrogates, so that they cost their row only.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for number, row in enumerate(reader, start=1):
                yield _csv_row(number, row)
    except csv.Error as error:
        found = f"line {reader.line_num}: {error}"
        raise _unreadable(str(file), found, "correct the quoting, or save it as .jsonl") from None
    finally:
        csv.field_size_limit(before)


def _check_separator(file: Path) -> None:
    """Refuse a file that spreadsheets of other languages wrote: quoted, it is broken CSV besides.

    Raises:
        DataError: a header without a comma that has another mark between its columns.
    """
    with file.open("rb") as stream:
        header = stream.readline(_MAX_HEADER_BYTES)
    if b"," in header or header.count(b'"') % 2:
        return
    for mark, name in ((b";", ";"), (b"\t", "tabs")):
        if mark in header:
            raise _unreadable(
                str(file),
                f"a header without commas: is the file separated by {name}?",
                "save it separated by commas, or as .jsonl",
            )


def _csv_row(number: int, row: dict[Any, Any]) -> RawRow:
    if None in row or None in row.values():
        return RawRow(number, reason="the row has more or fewer cells than the header")
    # An empty cell is a missing value: CSV can't tell them apart.
    return RawRow(number, {key: value or None for key, value in row.items()})


def _parquet(file: Path, untaught: Container[str]) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = _label_names(_noted_features(table.schema_arrow.metadata or {}), untaught)
        yield from _arrow_rows(table.iter_batches(batch_size=_BATCH_ROWS), names)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(str(file), str(error), "check that the file is complete") from None


def _noted_features(metadata: Mapping[bytes, bytes]) -> Any:
    """Return the features that `datasets` noted in a Parquet file."""
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}  # a table that something else wrote


def _label_names(features: Any, untaught: Container[str]) -> dict[str, list[str]]:
    """Return the names of labels by column, of columns of labels or of lists of these.

    Args:
        features: by column, as `datasets.Features.to_dict` gives them.
        untaught: columns that have to stay what they were in runs before.
    """
    found = {}
    for key, kind in features.items() if isinstance(features, dict) else ():
        if key in untaught:
            continue
        inner = kind[0] if isinstance(kind, list) and kind else kind
        if isinstance(inner, dict) and "_type" in inner and "feature" in inner:
            inner = inner["feature"]
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            names = inner.get("names")
            if isinstance(names, list):
                found[key] = names
    return found


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return a label's name in place of its number, or those of a list; −1 stands for none."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return names[value] if 0 <= value < len(names) else None


def _arrow_rows(
    batches: Iterator[Any], names: Mapping[str, Sequence[str]] | None = None
) -> Iterator[RawRow]:
    """Yield the rows of a table.

    Args:
        batches: of it.
        names: of labels that are stored as numbers, by column: "billing" is an answer, 0 is none.
    """
    number = 0
    for batch in batches:
        for index in range(batch.num_rows):
            number += 1
            try:
                values = batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield RawRow(number, reason="the row is not UTF-8")
                continue
            for key, own in (names or {}).items():
                if key in values:
                    values[key] = _named(values[key], own)
            yield _raw_row(number, values)


def _saved_folder(path: str, split: str | None, untaught: Container[str]) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_from_disk(path)
    except (FileNotFoundError, ValueError, OSError) as error:
        do = f"give a folder written by `save_to_disk`, or one of {', '.join(SUFFIXES)}"
        raise _unreadable(path, _first_line(error), do) from None
    yield from _dataset_rows(path, loaded, split, untaught)


def _hub(path: str, split: str | None, untaught: Container[str]) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_dataset(path)
    # The hub's client answers a wrong name or a missing network with many kinds of exception.
    except Exception as error:
        words = " ".join(str(error).split())
        if "Config name is missing" in words:
            # All of the list: the one that is wanted may be its last.
            raise _unreadable(
                path,
                f"a hub id with several configurations: {words.partition(' Example of usage')[0]}",
                "load one of them with datasets (load_dataset(path, name)), save it with "
                "save_to_disk, and give that folder",
            ) from None
        raise _unreadable(
            path,
            "neither a file nor a folder here; as a hub id: "
            f"{type(error).__name__}: {words[:_MAX_ERROR]}",
            "check the path; for a hub id, check its name and the network, or load what you want "
            "of it with datasets (one configuration, one split) and give the folder of "
            "save_to_disk",
        ) from None
    yield from _dataset_rows(path, loaded, split, untaught)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _dataset_rows(
    path: str, loaded: Any, split: str | None, untaught: Container[str]
) -> Iterator[RawRow]:
    if isinstance(loaded, dict):
        names = ", ".join(loaded)
        if split is None and len(loaded) > 1:
            raise _unreadable(
                path,
                f"several splits: {names}",
                "say which with `split` (`test_split` for rows of `test_path`); for rows to mix in "
                "and prompts, which have no such setting, save that split alone with save_to_disk",
            )
        split = next(iter(loaded)) if split is None else split
        if split not in loaded:
            raise _unreadable(path, f"no split {split!r}; it has {names}", "choose one of these")
        loaded = loaded[split]
    elif split is not None:
        raise _unreadable(path, f"one set without splits, not {split!r}", "leave the split out")
    # The arrow format hands pictures over undecoded, so that our own limits see them first.
    tables = loaded.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    features = loaded.features.to_dict() if loaded.features else {}
    yield from _arrow_rows(tables, _label_names(features, untaught))
