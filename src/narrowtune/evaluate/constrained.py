"""Tasks scored with decoding held to the form that was asked for.

Owns: which answers a task allows, and its score among them. What a model loses in free answers and
keeps here, it has not forgotten: it says something else where it is free to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import takewhile

from narrowtune.core.results import TaskResult
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.data.examples import Example, Message, Text
from narrowtune.engine.generate import stop_tokens
from narrowtune.engine.trie import TokenTrie
from narrowtune.evaluate.evaluate import evaluate, summarise
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import LoadedModel


def evaluate_constrained(
    loaded: LoadedModel,
    task: Task,
    encoder: ChatEncoder,
    *,
    batch_size: int,
    tolerance: float | None = None,
    free: TaskResult | None = None,
    progress: Callable[[int], None] | None = None,
) -> TaskResult:
    """Ask the model every item of `task`, with the same prompts, and let it choose among answers.

    Greedy decoding takes the most likely token that leads to an allowed answer
    (`allowed_answers`), so that a free answer that is among them stays. In mode `options` answers
    are chosen among the item's options anyway.

    Args and errors are those of `evaluate`, and:
        free: what `evaluate` found of the same model on the very same items. Those whose answer,
            as text, is allowed keep it, in whatever tokens it was spelt; only the others are asked
            again, which saves nearly all of the time where little is forgotten. `progress` is told
            of those alone.
    """
    started = time.perf_counter()
    if task.mode == "options":
        if free is not None:
            return free
        return evaluate(loaded, task, encoder, batch_size=batch_size, progress=progress)
    known = {}
    if free is not None:
        allowed = allowed_answers(task)
        known = {item.id: item for item in free.items if item.answer in allowed[item.id]}
    open_items = tuple(example for example in task.examples if example.id not in known)
    if open_items:
        found = evaluate(
            loaded,
            replace(task, examples=open_items),
            encoder,
            batch_size=batch_size,
            tolerance=tolerance,
            # Of the whole task: what an item may be answered with is what any is answered with.
            allowed=answer_tries(loaded, task, encoder),
            progress=progress,
        )
        known |= {item.id: item for item in found.items}
    items = [known[example.id] for example in task.examples]
    return summarise(task, items, time.perf_counter() - started)


def allowed_answers(task: Task) -> dict[str, tuple[str, ...]]:
    """Return what each item may be answered with, by its id.

    Where option letters are scored, the letters of the item's options, with the options' texts if
    the accepted answer has one; else every answer that is accepted for any item of the task.
    """
    every = tuple(dict.fromkeys(answer for item in task.examples for answer in item.answers))
    return {item.id: _letters(task, item) or every for item in task.examples}


def answer_tries(loaded: LoadedModel, task: Task, encoder: ChatEncoder) -> dict[str, TokenTrie]:
    """Return `allowed_answers` as tokens; items that are allowed the same share one trie."""
    stop = stop_tokens(loaded, encoder.stop_tokens)
    allowed = allowed_answers(task)
    tries = {
        answers: TokenTrie(_tokens(answers, encoder, stop), stop)
        for answers in dict.fromkeys(allowed.values())
    }
    return {id: tries[answers] for id, answers in allowed.items()}


def _letters(task: Task, item: Example) -> tuple[str, ...]:
    if task.metric != "option_letter":
        return ()
    letters = [chr(ord("A") + place) for place in range(len(item.options))]
    both = [f"{text} ({letter})" for text, letter in zip(item.options, letters, strict=True)]
    # In the form of the answer to learn: an option with its letter, or the letter alone.
    return tuple(both if item.answers[0] in both else letters)


def _tokens(
    answers: Iterable[str], encoder: ChatEncoder, stop: tuple[int, ...]
) -> Iterable[list[int]]:
    """Yield the answers' tokens as they stand after a prompt, without what ends them."""
    question = [Message("user", (Text("?"),))]
    for answer in answers:
        labels = encoder.encode_answer(question, answer).labels
        given = (token for token in labels if token != IGNORE_INDEX)
        yield list(takewhile(lambda token: token not in stop, given))
