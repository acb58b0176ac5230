"""The rows that every tool trains on, as messages.

Owns: `alike`, the demo's counting questions under the chat template's own system turn, half of
whose tokens are the same in every row; and `distinct`, the same kind of questions, each under a
system turn of its own, so that rows have nothing in common but the mark that opens a turn.
"""

from __future__ import annotations

import random

from narrowtune.demo.counting import generate
from narrowtune.demo.lists import read_list

Messages = list[dict[str, str]]
KINDS = ("alike", "distinct")
_FEWEST, _MOST = 4, 40  # words of a row's own system turn


def make_rows(kind: str, num: int) -> list[Messages]:
    """Return `num` rows of a kind in `KINDS`; the last turn is the answer."""
    draw = random.Random(f"rows:{kind}")
    words = read_list("common")["words"].split()
    rows = []
    for row in generate(num, seed=1):
        turns = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        if kind == "distinct":
            own = " ".join(draw.sample(words, draw.randint(_FEWEST, _MOST)))
            turns = [{"role": "system", "content": own}, *turns]
        rows.append(turns)
    return rows
