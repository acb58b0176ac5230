"""The README.md of a merged folder or an adapter: what it is, from what, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from narrowtune.core.delta_results import Kept
from narrowtune.delta.copying import BASE_CARD, CARD
from narrowtune.delta.marker import MARKER, Applied
from narrowtune.delta.store import Metadata

_SENTENCE = "A base model with a narrowtune delta applied"
"""By which `write_card`'s own work is known again."""


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
        f"{_SENTENCE}: the recipe's tensors hold tuned values,",
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


def restore_card(folder: Path) -> None:
    """Give a folder without deltas its base's README.md again, where `write_card` wrote another."""
    card, own = folder / CARD, folder / BASE_CARD
    if card.exists() and _SENTENCE in card.read_text(encoding="utf-8", errors="replace"):
        card.unlink()
        if own.exists():
            own.rename(card)


def adapter_card(
    kept: Kept, metadata: Metadata, scores: Sequence[str], base_name: str | None = None
) -> str:
    """Return the README.md of an adapter made from a delta.

    Args:
        base_name: id of the base on a hub, for the card's head; left out unless given.
        kept: what of the delta it holds.
        metadata: of the delta.
        scores: lines on what the cut costs in score; none where that was not measured.
    """
    rows = [
        ("rank", str(kept.rank)),
        ("share of the delta's squared values", f"{100 * kept.energy:.2f} %"),
        ("recipe", metadata.recipe),
        ("family", metadata.family),
        ("base fingerprint", metadata.base_fingerprint),
        ("fingerprint of the tuned model that it is near", metadata.tuned_fingerprint),
    ]
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {json.dumps(base_name)}"] if base_name else []),
        "tags:",
        "- narrowtune",
        "- lora",
        "---",
        "",
        "# A narrowtune delta, cut to a LoRA adapter",
        "",
        "This adapter is near the tuned model, not equal to it; the delta that it was made from is",
        "exact.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {_code(value)} |" for label, value in rows),
        "",
    ]
    if kept.left_out:
        share = 100 * sum(kept.left_out.values())
        lines += [
            f"{len(kept.left_out)} tensors of the delta are no matrix of a linear layer and stay "
            f"the base's ({share:.2g} % of the squared values):",
            "",
            *(f"- {_code(name)}" for name in kept.left_out),
            "",
        ]
    lines += ["What the cut costs in score, adapter against delta:", ""]
    lines += [f"- {line}" for line in scores] or ["- not measured"]
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    return " ".join("".join(c for c in text if c not in "<>[]`|#*").split())


def _code(text: str) -> str:
    """Return text from a delta file as a code span that can't end its cell or its line."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "/").split()) + "`"
