"""Guessing without the picture: how far a question alone, and its options, lead."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from narrowtune.evaluate.metrics import score
from narrowtune.miniature.item import Item, letter
from narrowtune.miniature.registry import MiniatureTask
from narrowtune.miniature.vocabulary import split_words

Guess = Callable[[Item], str]


def blind_scores(task: MiniatureTask, count: int) -> dict[str, tuple[float, int]]:
    """Return, per form of question, the best blind score and the number of items it is from.

    Guessers are fitted on one half of the items and scored on the other.
    """
    kinds: dict[str, list[Item]] = defaultdict(list)
    for sample in task.samples("train", count):
        kinds[sample.item.kind].append(sample.item)
    results = {}
    for kind, items in kinds.items():
        seen, unseen = items[: len(items) // 2], items[len(items) // 2 :]
        guessers = [_constant(task, seen), _by_word(seen), _echo(0), _echo(-1)]
        if seen[0].options:
            guessers += [_by_option(seen), _by_rank(seen), _by_overlap(0), _by_overlap(-1)]
        results[kind] = (max(_mean(task, unseen, guess) for guess in guessers), len(items))
    return results


def _mean(task: MiniatureTask, items: Sequence[Item], guess: Guess) -> float:
    known: dict[tuple[str, tuple[str, ...]], float] = {}
    total = 0.0
    for item in items:
        said = guess(item) or "?"
        key = (said, item.answers)
        if key not in known:
            known[key] = score(task.metric, said, item.answers, item.options).strict
        total += known[key]
    return total / len(items)


def _constant(task: MiniatureTask, items: Sequence[Item]) -> Guess:
    """The answer that is right most often, whatever is asked."""
    counts = Counter(answer for item in items for answer in item.answers)
    likely = [answer for answer, _ in counts.most_common(12)]
    best = max(likely, key=lambda answer: _mean(task, items, lambda _: answer))
    return lambda _: best


def _by_word(items: Sequence[Item], support: int = 40) -> Guess:
    """The likeliest answer given the word of the question that says most about it."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        for word in set(split_words(item.question)):
            table[word][item.answers[-1]] += 1
    rules = {}
    for word, counts in table.items():
        if counts.total() >= support:
            answer, hits = counts.most_common(1)[0]
            rules[word] = (hits / counts.total(), answer)
    fallback = Counter(item.answers[-1] for item in items).most_common(1)[0][0]

    def guess(item: Item) -> str:
        known = [rules[word] for word in split_words(item.question) if word in rules]
        return max(known)[1] if known else fallback

    return guess


def _echo(place: int) -> Guess:
    """A word of the question that could be an answer: a noun, not what all questions share."""
    common = set(split_words("What which is the or and nearer to us left right of on side picture"))

    def guess(item: Item) -> str:
        words = [word for word in split_words(item.question) if word not in common]
        return words[place] if words else ""

    return guess


def _by_option(items: Sequence[Item]) -> Guess:
    """The option whose text was right most often when it was offered."""
    offered, right = Counter(), Counter()
    for item in items:
        offered.update(item.options)
        right[item.options[ord(item.answers[-1]) - ord("A")]] += 1

    def guess(item: Item) -> str:
        rates = [(right[text] + 0.5) / (offered[text] + 2) for text in item.options]
        return letter(rates.index(max(rates)))

    return guess


def _by_rank(items: Sequence[Item]) -> Guess:
    """The option that is at the likeliest place in the order of all: the middle number, say."""

    def order(item: Item) -> list[int]:
        return sorted(range(len(item.options)), key=lambda place: item.options[place])

    ranks = Counter(order(item).index(ord(item.answers[-1]) - ord("A")) for item in items)
    best = ranks.most_common(1)[0][0]
    return lambda item: letter(order(item)[min(best, len(item.options) - 1)])


def _by_overlap(place: int) -> Guess:
    """The option that shares the fewest, or the most, words with the others."""

    def guess(item: Item) -> str:
        words = [set(split_words(text)) for text in item.options]
        shared = [sum(len(own & other) for other in words) for own in words]
        return letter(sorted(range(len(shared)), key=lambda i: shared[i])[place])

    return guess
