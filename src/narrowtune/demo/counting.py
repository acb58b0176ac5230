"""The demo's skill: how many words of a kind are in a list.

Generated from short word lists, so that any number of questions can be had, none of them twice.
Every answer from 1 to 8 is right equally often; always saying the same number scores 12.5 %.
"""

from __future__ import annotations

import random
from itertools import cycle

from narrowtune.core.errors import UsageError
from narrowtune.demo.lists import read_list

WORDINGS = (
    "How many {kind} are in this list: {words}?",
    "Count the {kind} in this list: {words}.",
    "Here is a list: {words}. How many {kind} does it contain?",
)

ANSWERS = range(1, 9)
OTHERS = (0, 0, 0, 1, 2)
"""How many words of other kinds are in a list: drawn from these, so in two lists of five some are.

With as many others as there are things to count, 640 questions teach the model the form of an
answer and nothing else (docs/LOG.md).
"""

PHRASES = {
    "instruments": "musical instruments",
    "clothes": "pieces of clothing",
    "furniture": "pieces of furniture",
}
"""How a kind is called in a question, where its own name can't be counted."""


def generate(num: int, seed: int) -> list[dict[str, str]]:
    """Return `num` questions with their answers in digits.

    Rows have `id`, `question`, `answer` and `group`. The group names the kind and the set of
    words, in no order, and no group comes twice, so that no list is both taught and tested.

    Raises:
        UsageError: `num` is not positive.
    """
    if num < 1:
        raise UsageError(
            asked=f"{num} counting questions",
            found="a number of questions that is not positive",
            do="ask for at least 1",
        )
    kinds = {kind: words.split() for kind, words in read_list("kinds").items()}
    draw = random.Random(f"counting:{seed}")
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    # Answers take turns and are shuffled within a turn: any run of rows is balanced as well.
    for answer in cycle(ANSWERS):
        if len(rows) == num:
            break
        row = _question(draw, kinds, answer)
        while row["group"] in seen:
            row = _question(draw, kinds, answer)
        seen.add(row["group"])
        rows.append(row)
    turns = [rows[start : start + len(ANSWERS)] for start in range(0, num, len(ANSWERS))]
    for turn in turns:
        draw.shuffle(turn)
    rows = [row for turn in turns for row in turn]
    return [{"id": f"counting-{seed}-{number}", **row} for number, row in enumerate(rows)]


def _question(draw: random.Random, kinds: dict[str, list[str]], answer: int) -> dict[str, str]:
    kind = draw.choice(list(kinds))
    others = [word for name, words in kinds.items() if name != kind for word in words]
    words = draw.sample(kinds[kind], answer) + draw.sample(others, draw.choice(OTHERS))
    draw.shuffle(words)
    question = draw.choice(WORDINGS).format(kind=PHRASES.get(kind, kind), words=", ".join(words))
    return {
        "question": question,
        "answer": str(answer),
        "group": f"{kind}:{' '.join(sorted(words))}",
    }
