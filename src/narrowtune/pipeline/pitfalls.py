"""What makes a run's numbers say less than they seem to, told before anything is trained.

Owns: answers that are longer than what is decoded, pictures that nobody gave, an anchor that never
sees one or is never answered as a kept task is, kept tasks at which the base fails already, and a
recipe for eyes that see nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import DataError
from narrowtune.core.numbers import rounded_up
from narrowtune.core.recipes import get_recipe
from narrowtune.core.results import TaskResult
from narrowtune.data.chat import ChatEncoder
from narrowtune.evaluate.answer_forms import Form, form_of, usual_form
from narrowtune.evaluate.answers import bare
from narrowtune.evaluate.tasks import Task
from narrowtune.evaluate.verdict import BLIND
from narrowtune.models.families import Family
from narrowtune.pipeline.inputs import Inputs

_SAID_WHOLE = ("exact_match",)
"""Metrics by which an answer that is cut short can't be right."""

_FEW = 0.02
"""Share of an anchor's prompts up to which a form of answers is hardly among them."""


def pitfalls(family: Family, inputs: Inputs, encoder: ChatEncoder) -> list[str]:
    """Return what a user should know about a run's rows, a sentence each.

    Raises:
        DataError: no answer of a task can be given in its `max_new_tokens`.
    """
    found = limits_too_short(inputs.tasks, encoder)
    if encoder.writes_the_date:
        found.append(
            "The chat template writes today's date into every prompt, so that a run over midnight, "
            "or one that is resumed tomorrow, asks other prompts. If the template takes a date "
            "(chat_template_kwargs.date_string), give one."
        )
    if not family.is_multimodal:
        return found
    pictured = any(example.images for task in inputs.tasks for example in task.examples)
    if inputs.rows and not any(row.picture_digest for row in inputs.rows):
        found.append(
            "No row to learn from has a picture, and this model reads them; their columns are "
            "image and images (docs/data.md)."
        )
    shown = any(message.images for prompt in inputs.anchor_prompts for message in prompt)
    if inputs.anchor_prompts and pictured and not shown:
        found.append(
            f"The anchor's {len(inputs.anchor_prompts)} prompts have no picture, and what is "
            "measured has: give anchor.prompts some with pictures (docs/anchor.md)."
        )
    return found


def check_eyes(family: Family, config: RunConfig, inputs: Inputs) -> None:
    """See that what a run trains of the eyes will be shown a picture.

    Prompts of the anchor count only where the language model trains too: as long as nothing else
    moves, what they are held to is what the base answers already.

    Raises:
        DataError: the recipe trains a tower or a projector, and nothing it learns from is pictured.
    """
    trained = [part for part in get_recipe(config.recipe).components if part in family.components]
    eyes = [part for part in trained if part != "language_model"]
    if not eyes or not inputs.rows or any(row.picture_digest for row in inputs.rows):
        return
    if eyes != trained and config.anchor is not None and config.anchor.weight:
        prompts = (*inputs.anchor_prompts, *inputs.taught_prompts)
        if any(message.images for prompt in prompts for message in prompt):
            return
    raise DataError(
        asked=f"{config.recipe}, which trains the {' and the '.join(eyes).replace('_', ' ')}",
        found=f"{len(inputs.rows)} rows to learn from, none of which has a picture: no gradient "
        "would reach them",
        do="give rows with pictures (columns image and images, docs/data.md), or choose a recipe "
        "of the language model alone",
    )


def cannot_ship(config: RunConfig, provable: float | None) -> list[str]:
    """Say why no training can end with a run that may ship, a sentence each.

    Args:
        config: the run.
        provable: the smallest budget that its keep items can prove, points; None where there are
            none, an earlier skill's of a ledger among them.
    """
    if provable is None:
        said = "There are no keep sets: nothing can be shown to be kept, so that nothing may ship."
        return [] if config.keep else [said]
    if provable <= config.budget:
        return []
    return [
        f"These keep items can't prove a loss within {config.budget:g} points, even if nothing is "
        f"lost: {rounded_up(provable):g} at best. Add keep items, or raise the budget."
    ]


def unused_rows(config: RunConfig) -> list[str]:
    """Say that rows were kept back for nothing, where they were asked for."""
    asked = "validation" in config.skill.model_fields_set and config.skill.validation > 0
    if not asked or config.training.eval_steps:
        return []
    return [
        f"A share of {config.skill.validation:g} of the skill's rows is kept back for validation, "
        "and nothing uses it: set training.eval_steps, or skill.validation to 0."
    ]


def limits_too_short(tasks: Sequence[Task], encoder: ChatEncoder) -> list[str]:
    """Name tasks of which answers are longer than what is decoded of them.

    Raises:
        DataError: all of one are, by a metric that takes whole answers.
    """
    found = []
    for task in tasks:
        if task.mode != "generate":
            continue
        lengths = [
            # Outer punctuation is forgiven by every metric.
            min(encoder.num_tokens(bare(answer)) for answer in example.answers)
            for example in task.examples
        ]
        over = [length for length in lengths if length > task.max_new_tokens]
        if not over:
            continue
        said = (
            f"{len(over)} of {len(lengths)} accepted answers of {task.name} are longer than its "
            f"max_new_tokens, {task.max_new_tokens}: up to {max(over)} tokens"
        )
        if len(over) == len(lengths) and task.metric in _SAID_WHOLE:
            raise DataError(
                asked=f"{task.name} scored by {task.metric}",
                found=said,
                do=f"raise its max_new_tokens to {max(over) + 1}, or choose a metric that needs no "
                "whole answer",
            )
        found.append(f"{said}. Answers are cut there, and scored as they are.")
    return found


def nothing_to_lose(results: Sequence[TaskResult]) -> list[str]:
    """Name kept tasks at which the base fails: forgetting would not show there."""
    return [
        f"{result.name}: the base is right on {100 * result.strict.mean:.1f} % of "
        f"{result.num_items} items, so that hardly a loss can show. See what it answers "
        f"(before/{result.name}.jsonl), then correct its metric, max_new_tokens or answers, or "
        "leave it out."
        for result in results
        if result.role == "held_out" and 100 * result.strict.mean <= BLIND
    ]


def forms_not_held(
    tasks: Sequence[Task],
    results: Sequence[TaskResult],
    answers: Sequence[str],
    num_general: int | None = None,
) -> list[str]:
    """Name kept tasks whose form of answers hardly a prompt of the anchor has.

    Args:
        tasks: of a run.
        results: of the base on them.
        answers: of the base to the anchor's prompts.
        num_general: the first of them, about anything; all unless given. Those after them, of
            skills that were taught before, have every other place, however few they are.
    """
    generated = {task.name for task in tasks if task.mode == "generate"}
    kept: dict[Form, list[str]] = {}
    for result in results:
        if result.role == "held_out" and result.name in generated:
            form = usual_form([item.answer for item in result.items])
            if form is not None:
                kept.setdefault(form, []).append(result.name)
    forms = [form_of(answer) for answer in answers]
    counts = Counter(forms)
    general = len(forms) if num_general is None else num_general
    parts = forms[:general], forms[general:]
    return [
        f"{', '.join(names)}: answered in the form of {form}, as {counts[form]} of the anchor's "
        f"{len(answers)} prompts are. An anchor holds least what no prompt is answered in: give "
        "anchor.prompts some of that form (docs/anchor.md)."
        for form, names in kept.items()
        if all(part.count(form) <= _FEW * len(part) for part in parts)
    ]
