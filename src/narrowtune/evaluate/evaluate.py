"""One way to evaluate, used before and after.

Owns: from a task's items to answers to scores, and the files that keep the items.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache as remember
from pathlib import Path
from typing import Any

import torch
import transformers

from narrowtune.core.results import ItemResult, TaskResult
from narrowtune.core.run_folder import write_text
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import PER_TOKEN_FEATURES, Encoded
from narrowtune.data.examples import Example
from narrowtune.engine.generate import generate_greedy, measure_noise, stop_tokens
from narrowtune.engine.modes import rounds_coarsely
from narrowtune.engine.options import OptionScores, option_logprobs
from narrowtune.engine.trie import TokenTrie
from narrowtune.evaluate.cache import ScoreCache
from narrowtune.evaluate.metrics import right_options, score
from narrowtune.evaluate.statistics import mean_score
from narrowtune.evaluate.tasks import Task, picture_of, question_of
from narrowtune.models.load import LoadedModel
from narrowtune.models.processors import picture_settings
from narrowtune.models.structure import recomputed_buffers
from narrowtune.version import __version__

_SCORING = ("data", "engine", "evaluate", "models")  # rooms whose code decides a score

PICTURES_AT_ONCE = 256
"""Most items whose pictures are held as pixels at a time."""

PIXEL_BYTES = 2**30
"""Pixels after which no further item's are held beside them."""


def evaluate(
    loaded: LoadedModel,
    task: Task,
    encoder: ChatEncoder,
    *,
    batch_size: int,
    tolerance: float | None = None,
    allowed: Mapping[str, TokenTrie] | None = None,
    progress: Callable[[int], None] | None = None,
) -> TaskResult:
    """Ask the model every item of `task` and score its answers.

    Mode `generate` scores the greedy answer. Mode `options` scores the option that is the most
    likely answer in total (strict), and the better of that and the most likely one per token
    (lenient), since a total favours short options.

    Args:
        loaded: the model, left as it is.
        task: what to ask.
        encoder: the chat template; the same before and after.
        batch_size: most items answered together; the answers do not depend on it, but of a model
            that has `recomputed_buffers`, and ties in bf16.
        tolerance: as for `generate_greedy`; measured on the task's own prompts unless given.
        allowed: in mode `generate`, what each item may be answered with, by its id.
        progress: called with the number of items (of options in mode `options`) done since the
            last call.

    Raises:
        EvaluationError: an item can't be scored with the task's metric.
    """
    started = time.perf_counter()
    if task.mode == "options":
        items = _choose(loaded, task, encoder, batch_size, progress)
    else:
        items = _answer(loaded, task, encoder, batch_size, tolerance, allowed, progress)
    return summarise(task, items, time.perf_counter() - started)


def summarise(task: Task, items: Sequence[ItemResult], seconds: float) -> TaskResult:
    """Return the result of a task from its items'."""
    groups = [item.group for item in items]
    return TaskResult(
        name=task.name,
        role=task.role,
        metric=task.metric,
        num_items=len(items),
        num_groups=len({(g is None, i if g is None else g) for i, g in enumerate(groups)}),
        num_ties=sum(item.tie for item in items),
        strict=mean_score([item.strict for item in items], groups),
        lenient=mean_score([item.lenient for item in items], groups),
        valid_format=sum(item.valid_format for item in items) / len(items),
        seconds=seconds,
        items=list(items),
    )


def evaluate_cached(
    loaded: LoadedModel,
    task: Task,
    encoder: ChatEncoder,
    *,
    batch_size: int,
    cache: ScoreCache,
    model_fingerprint: str,
    arithmetic: str,
    tolerance: Callable[[], float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return what `evaluate` returns, from `cache` if it is there (`from_cache` says so).

    Args:
        cache: where results are kept; a new one is stored.
        model_fingerprint: of all weights, from `models.fingerprint`.
        arithmetic: the compute dtype and kernels in use, in words: they may decide a close answer.
        tolerance: asked for the value that `evaluate` takes, if the task has to be evaluated.
    """
    key = score_key(
        loaded,
        task,
        encoder,
        batch_size=batch_size,
        model_fingerprint=model_fingerprint,
        arithmetic=arithmetic,
    )
    found = cache.load(key)
    if found is not None:
        # Name, role and the metric's path are the run's, not the score's.
        update = {"name": task.name, "role": task.role, "metric": task.metric}
        return found.model_copy(update=update)
    result = evaluate(
        loaded,
        task,
        encoder,
        batch_size=batch_size,
        tolerance=tolerance() if tolerance is not None and task.mode == "generate" else None,
        progress=progress,
    )
    cache.save(key, result)
    return result


def _depends_on_batches(loaded: LoadedModel) -> bool:
    """Whether the longest row of a batch decides what others are answered, or rounding may."""
    return rounds_coarsely(loaded.model) or bool(recomputed_buffers(loaded.model))


def score_key(
    loaded: LoadedModel,
    task: Task,
    encoder: ChatEncoder,
    *,
    batch_size: int,
    model_fingerprint: str,
    arithmetic: str,
) -> dict[str, Any]:
    """Return everything that decides the scores of `task`, for `ScoreCache`."""
    return {
        **({"batch_size": batch_size} if _depends_on_batches(loaded) else {}),
        **model_key(loaded, encoder, model_fingerprint=model_fingerprint, arithmetic=arithmetic),
        "task": task.sha256,
        "pictures": picture_settings(loaded.processor),
        "chat": _chat_hash(loaded, task, encoder),
    }


def _device_name(device: torch.device) -> str:
    """Return what answers may depend on: kernels of one GPU are not those of another."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def model_key(
    loaded: LoadedModel, encoder: ChatEncoder, *, model_fingerprint: str, arithmetic: str
) -> dict[str, Any]:
    """Return everything but its inputs that decides what a model answers."""
    return {
        "model": model_fingerprint,
        "config": _config_hash(loaded),
        "stop": list(stop_tokens(loaded, encoder.stop_tokens)),
        "arithmetic": arithmetic,
        "device": _device_name(loaded.model.device),
        "narrowtune": __version__,
        "code": _code_hash(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_items(items: Sequence[ItemResult], path: Path) -> None:
    """Write one item per line; a reader sees the whole file or the one before."""
    write_text(path, "".join(item.model_dump_json() + "\n" for item in items))


def _answer(
    loaded: LoadedModel,
    task: Task,
    encoder: ChatEncoder,
    batch_size: int,
    tolerance: float | None,
    allowed: Mapping[str, TokenTrie] | None,
    progress: Callable[[int], None] | None,
) -> list[ItemResult]:
    items = []
    steps = task.max_new_tokens
    if allowed is not None:
        steps = max(trie.num_steps for trie in allowed.values())
    for examples, encoded in _portions(task, lambda e: [encoder.encode_prompt(e.prompt)]):
        prompts = [prompt for (prompt,) in encoded]
        if tolerance is None:
            tolerance = measure_noise(loaded, prompts, extra_stop_tokens=encoder.stop_tokens)
        generations = generate_greedy(
            loaded,
            prompts,
            max_new_tokens=steps,
            batch_size=batch_size,
            extra_stop_tokens=encoder.stop_tokens,
            tolerance=tolerance,
            allowed=None if allowed is None else [allowed[each.id] for each in examples],
            progress=progress,
        )
        items += [
            _item(task, example, found.text, tie=found.tie)
            for example, found in zip(examples, generations, strict=True)
        ]
    return items


def _choose(
    loaded: LoadedModel,
    task: Task,
    encoder: ChatEncoder,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> list[ItemResult]:
    items = []

    def encode(example: Example) -> list[Encoded]:
        first, *others = (encoder.encode_answer(example.prompt, o) for o in example.options)
        return [first, *(_with_pictures_of(first, other) for other in others)]

    for examples, encoded in _portions(task, encode):
        found = option_logprobs(loaded, encoded, batch_size=batch_size, progress=progress)
        items += [_chosen(task, *pair) for pair in zip(examples, found, strict=True)]
    return items


def _portions(
    task: Task, encode: Callable[[Example], list[Encoded]]
) -> Iterator[tuple[list[Example], list[list[Encoded]]]]:
    """Yield items and their rows in portions: pixels of thousands would not fit."""
    examples: list[Example] = []
    encoded: list[list[Encoded]] = []
    held = pictured = 0
    for example in task.examples:
        rows = encode(example)
        examples.append(example)
        encoded.append(rows)
        tensors = {id(t): t for row in rows for t in row.features.values()}
        held += sum(t.nbytes for t in tensors.values())
        pictured += bool(example.images)
        if pictured == PICTURES_AT_ONCE or held >= PIXEL_BYTES:
            yield examples, encoded
            examples, encoded, held, pictured = [], [], 0, 0
    if examples:
        yield examples, encoded


def _with_pictures_of(first: Encoded, other: Encoded) -> Encoded:
    """Return `other` with the pictures of `first`, which are its own, so that one copy is held."""
    shared = {name: t for name, t in first.features.items() if name not in PER_TOKEN_FEATURES}
    return replace(other, features={**other.features, **shared})


def _chosen(task: Task, example: Example, found: OptionScores) -> ItemResult:
    item = _item(task, example, example.options[found.best], tie=found.tie)
    other = _item(task, example, example.options[found.best_per_token], tie=found.tie)
    strict, lenient = item.strict, max(item.lenient, other.lenient)
    right = right_options(task.metric, example.answers, example.options)
    if right:
        strict = float(found.best in right)
        lenient = max(strict, float(found.best_per_token in right))
    # An option is a valid answer by construction, right or wrong.
    update = {"strict": strict, "lenient": lenient, "valid_format": True}
    return item.model_copy(update=update)


def _item(task: Task, example: Example, answer: str, *, tie: bool) -> ItemResult:
    scored = score(task.metric, answer, example.answers, example.options)
    return ItemResult(
        id=example.id,
        question=question_of(example.prompt),
        answer=answer,
        reference=list(example.answers),
        strict=scored.strict,
        lenient=scored.lenient,
        valid_format=scored.valid_format,
        group=example.cluster,
        image=picture_of(example),
        tie=tie,
    )


@remember
def _code_hash() -> str:
    """Hash the code that asks and scores: a checkout changes more often than its version."""
    package = Path(__file__).parent.parent
    files = [path for room in _SCORING for path in sorted((package / room).glob("*.py"))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(package)} {len(path.read_bytes())}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _chat_hash(loaded: LoadedModel, task: Task, encoder: ChatEncoder) -> str:
    """Hash what turns messages into inputs: vocabulary, template, processor, and their switches."""
    tokenizer, processor = loaded.tokenizer, loaded.processor
    # The template's switches show in what it makes of an item.
    first = encoder.encode_prompt(task.examples[0].prompt)
    parts: Mapping[str, Any] = {
        "vocabulary": tokenizer.get_vocab(),
        "special": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template,
        "processor": None if processor is None else processor.to_dict(),
        "first": first.input_ids,
        "shapes": {name: list(value.shape) for name, value in first.features.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _config_hash(loaded: LoadedModel) -> str:
    """Hash the model's settings: the same weights compute something else with another rope base."""
    settings = loaded.model.config.to_dict()
    settings.pop("_name_or_path", None)
    settings["attention"] = loaded.model.config._attn_implementation
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
