"""How numbers and foreign text are written: one place for both.

Text from data stays text: what could act on a terminal, a browser or a Markdown reader is made
visible or escaped here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime

from narrowtune.core.numbers import MINUS, number
from narrowtune.core.results import TaskChange, TrainingSummary

_MARKDOWN = re.compile(r"([\\`*{}\[\]#|~$])|(?<![^\W_])(_)|(_)(?![^\W_])")
_LINE_START = re.compile(r"^(\s*\d*)([-+.)])(?=\s)")


def visible(text: str) -> str:
    r"""Return `text` with control, direction and unpaired characters spelled out.

    Newlines and tabs stay. C0 controls become their control pictures (`\x1b` → `␛`), all
    others (C1, bidirectional overrides, zero width, unpaired surrogates) `\u202e` and the like.
    """
    if text.isprintable():  # nearly all of a report, and a hundred times as fast
        return text
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    joins = character in "\u200c\u200d"  # they shape words and emoji, and hide nothing
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and not joins:
        return f"\\u{code:04x}"
    return character


def markdown(text: str) -> str:
    """Return `text` as one line that Markdown shows as written, in a table cell too."""
    line = visible(text).replace("\r", " ").replace("\t", " ").replace("\n", " ⏎ ")
    line = _MARKDOWN.sub(lambda found: "\\" + found.group(), line.replace("&", "&amp;"))
    line = _LINE_START.sub(r"\1\\\2", line)
    return line.replace("<", "&lt;").replace(">", "&gt;")


def percent(share: float, digits: int = 1) -> str:
    """A share between 0 and 1 in percent."""
    return f"{number(100 * share, digits)}\u00a0%"


def small(value: float) -> str:
    """A number of any size with three significant digits."""
    if value == 0 or not math.isfinite(value):
        return number(value, 0)
    if 1e-3 <= abs(value) < 1e4:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return number(value, digits)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.replace('-', MINUS)}e{int(exponent)}".replace("e-", f"e{MINUS}")


def p_value(task: TaskChange) -> str:
    """The p-value of a task's sign test with two digits or three: "<0.001", "0.031", "0.45"."""
    if task.sign_test is None:
        return "–"
    p = task.sign_test.p_value
    return "<0.001" if p < 0.001 else number(p, 3 if p < 0.1 else 2)


def tested(tasks: Sequence[TaskChange]) -> str:
    """Say what the p-values of a table are."""
    groups = [task.name for task in tasks if task.sign_test and task.sign_test.clustered]
    over = f"; of groups of items by their net change for {', '.join(groups)}" if groups else ""
    return (
        "p: the exact two-sided sign test of what got worse against what got better (McNemar's, "
        f"where answers are right or wrong{over}), each task by itself. It decides nothing: the "
        "bounds do."
    )


def tick(value: float) -> str:
    """A round number with no more digits than it has."""
    mantissa, _, exponent = f"{value:.6g}".replace("-", MINUS).partition("e")
    return (
        f"{mantissa}e{int(exponent.replace(MINUS, '-'))}".replace("-", MINUS)
        if exponent
        else (mantissa)
    )


def signed_tick(value: float) -> str:
    """A round number that shows its direction; zero has none."""
    return f"+{tick(value)}" if value > 0 else tick(value)


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as people say them: "41 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count(value: int) -> str:
    """A count with thousands separated."""
    return f"{value:,}"


def plural(value: int, word: str) -> str:
    """ "1 item", "1,200 items"."""
    return f"{count(value)} {word}" + ("" if value == 1 else "s")


def anchor(training: TrainingSummary) -> str | None:
    """Return how hard a run was held; None without an anchor."""
    weight, projection = training.anchor_weight, training.anchor_projection
    if weight is None:
        return None
    top_k = f", top {count(training.anchor_top_k)}" if training.anchor_top_k else ""
    parts = [f"weight {tick(weight)}{top_k}"] if weight else []
    parts += [f"projection {tick(projection)}"] if projection else []
    return ", ".join(parts)


def pulled(training: TrainingSummary) -> str | None:
    """Return how far a run's weights were pulled back to the base's; None where they were not."""
    asked, got = training.pull_to_base, training.pulled
    if asked is None:
        return None
    told = f"{tick(asked)} e-folds"
    if got is None or small(got) == small(asked):
        return told
    return f"{told} asked for, {small(got)} by the step that was kept"


def moment(created: str) -> str:
    """An ISO time as "2025-11-23 15:40 UTC"; what is no ISO time is shown as it is."""
    try:
        when = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    zone = when.strftime("%z")
    return f"{when:%Y-%m-%d %H:%M}" + ("" if not zone else " UTC" + zone.replace("+0000", ""))
