"""The README.md of a merged folder: what it is, from what, and how to get the base back."""

from __future__ import annotations

from pathlib import Path

from narrowtune.delta.copying import BASE_CARD, CARD
from narrowtune.delta.marker import MARKER, Applied
from narrowtune.delta.store import Metadata


def write_card(folder: Path, title: str, stack: list[Applied], metadata: Metadata) -> None:
    """Write README.md into `folder`, which holds the deltas in `stack`, the latest last."""
    latest = stack[-1]
    rows = [
        ("recipe", latest.recipe),
        ("family", metadata.family),
        ("tensors changed", str(len(metadata.tensors))),
        ("tensors left alone", str(len(metadata.frozen))),
        ("base fingerprint", latest.base_fingerprint),
        ("tuned fingerprint", latest.tuned_fingerprint),
        ("delta file, SHA-256", latest.sha256),
        ("narrowtune", latest.narrowtune),
    ]
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- narrowtune",
        "---",
        "",
        f"# {_plain(title)}",
        "",
        "A base model with a narrowtune delta applied: the recipe's tensors hold tuned values,",
        "every other tensor is the base's, bit for bit.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {_code(value)} |" for label, value in rows),
        "",
    ]
    if len(stack) > 1:
        lines += [f"{len(stack)} deltas are applied in all; `{MARKER}` lists them in order.", ""]
    if metadata.notes:
        lines += ["Notes:", "", *(f"- {_code(note)}" for note in metadata.notes), ""]
    if (folder / BASE_CARD).exists():
        lines += [f"The base's own card, with its licence and limits, is `{BASE_CARD}`.", ""]
    lines += [
        "To get the base's weights back, bit for bit, with the delta file at hand:",
        "",
        "```",
        "narrowtune delta undo FOLDER DELTA --output BASE",
        "```",
        "",
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _plain(text: str) -> str:
    return " ".join("".join(c for c in text if c not in "<>[]`|#*").split())


def _code(text: str) -> str:
    """Return text from a delta file as a code span that can't end its cell or its line."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "/").split()) + "`"
