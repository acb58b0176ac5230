"""KL between base and tuned on the base's own answers, and what each model's answers lean to.

Owns: drift in nats per token. Both models live in one (a `WeightSwap` exchanges the tensors that
training moved) and take the same forward on the same batches, so weights that are equal bit for
bit give a drift of exactly 0.

Shapes: N positions at which a token of an answer is predicted, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowtune.core.errors import EvaluationError, UsageError
from narrowtune.core.results import DriftResult, DriftTask, TokenGroupMass
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.data.examples import Message, Text
from narrowtune.engine.batches import rows_at_once
from narrowtune.engine.forward import (
    LOGITS_AT_ONCE,
    evaluating,
    label_positions,
    logits_at,
    to_device,
)
from narrowtune.engine.generate import (
    Collect,
    Generation,
    generate_greedy,
    stop_tokens,
    with_answer,
)
from narrowtune.models.load import LoadedModel
from narrowtune.models.swap import WeightSwap
from narrowtune.probe.token_groups import GroupMass, TokenGroup, answer_group, standard_groups

ROWS_AT_ONCE = 128
"""Positions whose distributions are compared at a time; bounds the copies that this makes."""

Prompt = tuple[str, Sequence[Message]]
"""The name of the task that a prompt comes from, and its messages."""

ABOUT_SKILL = "questions about the skill's pictures"
"""What such drift is called where others stand by the name of their source."""

Seen = Callable[[int, Tensor], None]
"""Given a prompt's place and the tuned model's logits [S, V] along the base's answer to it."""


@dataclass(frozen=True)
class BaseAnswers:
    """The base's greedy answers, in the batches in which they are compared.

    Attributes:
        tasks: where each prompt comes from.
        generations: the base's answer to each prompt.
        rows: each prompt with its answer, labels on the answer and the token that stopped it.
        batches: indices of `rows`, compared in one forward.
        logits: the base's logits [N, V] of each batch on the CPU, where they were kept.
    """

    tasks: tuple[str, ...]
    generations: tuple[Generation, ...]
    rows: tuple[Encoded, ...]
    batches: tuple[tuple[int, ...], ...]
    logits: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Drift:
    """Drift, and the answers that it was measured on.

    Attributes:
        result: the figures.
        base: the base's answers.
        tuned: the tuned model's own answers.
    """

    result: DriftResult
    base: BaseAnswers
    tuned: tuple[Generation, ...]


def kl_per_position(base_NV: Tensor, tuned_NV: Tensor) -> Tensor:
    """Return KL(base‖tuned) in nats at each of N positions, from raw logits.

    In fp32 (fp64 if both are), and exact where it matters: equal logits give exactly 0, and small
    differences are not lost in the difference of large numbers. With d = log q − log p the sum of
    p·(−d) equals that of p·(eᵈ − 1 − d), because p and q both sum to 1; no term of it is negative.
    """
    dtype = torch.promote_types(torch.promote_types(base_NV.dtype, tuned_NV.dtype), torch.float32)
    log_p = torch.log_softmax(base_NV.to(dtype), dim=-1)
    log_q = torch.log_softmax(tuned_NV.to(dtype), dim=-1)
    d, p = log_q - log_p, log_p.exp()
    # Where p underflows, eᵈ may overflow: q is then the term's value, without the product.
    terms = torch.where(d < 1, p * (torch.expm1(d) - d), log_q.exp() - p - p * d)
    return terms.sum(dim=-1)


def prepare_base_answers(
    loaded: LoadedModel,
    swap: WeightSwap | None,
    prompts: Sequence[Prompt],
    encoder: ChatEncoder,
    *,
    max_new_tokens: int,
    batch_size: int,
    keep_logits: bool = False,
    collect: Collect | None = None,
) -> BaseAnswers:
    """Let the base answer the prompts, for comparison with it now or as often as wanted.

    Args:
        loaded: the model.
        swap: brings the base back; None if the model still is the base.
        prompts: what to answer.
        encoder: the chat template.
        max_new_tokens: of each answer.
        batch_size: prompts answered together, and most rows compared together.
        keep_logits: also compute the base's logits now and keep them on the CPU (tokens × V, in
            the dtype of the forward pass), so that `drift_against` never runs the base again.
        collect: as for `generate_greedy`.

    Raises:
        EvaluationError: there are no prompts.
    """
    if not prompts:
        raise EvaluationError(
            asked="drift on prompts",
            found="an empty list of prompts",
            do="give at least one prompt, or a keep set whose prompts can be used",
        )
    encoded = [encoder.encode_prompt(messages) for _, messages in prompts]
    with _base(swap):
        generations = generate_greedy(
            loaded,
            encoded,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            extra_stop_tokens=encoder.stop_tokens,
            collect=collect,
        )
    rows = [with_answer(p, g) for p, g in zip(encoded, generations, strict=True)]
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    batches = tuple(_batches(rows, batch_size, max(1, LOGITS_AT_ONCE // vocabulary)))
    answers = BaseAnswers(
        tasks=tuple(name for name, _ in prompts),
        generations=tuple(generations),
        rows=tuple(rows),
        batches=batches,
    )
    if not keep_logits:
        return answers
    with _base(swap):
        kept = tuple(_logits(loaded, answers, batch).cpu() for batch in batches)
    return BaseAnswers(answers.tasks, answers.generations, answers.rows, batches, kept)


def drift_against(
    loaded: LoadedModel,
    answers: BaseAnswers,
    swap: WeightSwap | None = None,
    seen: Seen | None = None,
) -> DriftResult:
    """Compare the model as it is now with the base, teacher-forced on the base's answers.

    Args:
        loaded: the model, tuned.
        answers: from `prepare_base_answers`.
        swap: brings the base back; not needed where `answers` kept the base's logits.
        seen: called for every answer, so that more can be taken from the same forward.

    Returns:
        Drift without token groups.

    Raises:
        UsageError: neither kept logits nor a swap were given.
    """
    if swap is None and answers.logits is None:
        raise UsageError(
            asked="drift against the base",
            found="neither the base's logits nor a way back to the base",
            do="prepare the answers with keep_logits=True, or give a WeightSwap",
        )
    started = time.perf_counter()
    kl = [0.0] * len(answers.rows)
    agree = [0] * len(answers.rows)
    for number, batch in enumerate(answers.batches):
        tuned_NV = _logits(loaded, answers, batch)
        if answers.logits is not None:
            base_NV = answers.logits[number]
        else:
            with _base(swap):
                base_NV = _logits(loaded, answers, batch)
        lengths = [len(answers.generations[i].step_ids) for i in batch]
        if seen is not None:
            for i, logits_SV in zip(batch, tuned_NV.split(lengths), strict=True):
                seen(i, logits_SV)
        kl_N, agree_N = _compare(base_NV, tuned_NV)
        for i, kls, same in zip(batch, kl_N.split(lengths), agree_N.split(lengths), strict=True):
            kl[i], agree[i] = float(kls.sum()), int(same.sum())
    return _summarise(answers, kl, agree, time.perf_counter() - started)


def measure_drift(
    loaded: LoadedModel,
    swap: WeightSwap,
    prompts: Sequence[Prompt],
    encoder: ChatEncoder,
    *,
    max_new_tokens: int,
    batch_size: int,
    skill_answers: Collection[str] = (),
    about_skill: Sequence[Sequence[Message]] = (),
) -> Drift:
    """Measure drift and the mass on token groups; the model is tuned before and after.

    Token groups are measured on each model's own greedy answers, as in the paper's number-token
    bias; KL on the base's answers.

    Args:
        loaded: the tuned model.
        swap: brings the base back.
        prompts: what to answer.
        encoder: the chat template.
        max_new_tokens: of each answer.
        batch_size: prompts answered together, and most rows compared together.
        skill_answers: answers that were trained on; their tokens form the group `skill_answers`.
        about_skill: general questions about the skill's own pictures, measured apart.

    Raises:
        EvaluationError: there are no prompts.
    """
    started = time.perf_counter()
    apart = None
    if about_skill:
        near = [(ABOUT_SKILL, messages) for messages in about_skill]
        asked = prepare_base_answers(
            loaded, swap, near, encoder, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        [apart] = drift_against(loaded, asked, swap).tasks
    groups = standard_groups(loaded.tokenizer)
    if skill_answers:
        groups.append(_skill_group(loaded, encoder, skill_answers))
    collect = GroupMass(groups)
    answers = prepare_base_answers(
        loaded,
        swap,
        prompts,
        encoder,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        collect=collect,
    )
    tuned = generate_greedy(
        loaded,
        [encoder.encode_prompt(messages) for _, messages in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        extra_stop_tokens=encoder.stop_tokens,
        collect=collect,
    )
    update = {
        "token_groups": _masses(groups, answers.generations, tuned),
        "about_skill": apart,
        "seconds": time.perf_counter() - started,
    }
    result = drift_against(loaded, answers, swap).model_copy(update=update)
    return Drift(result, answers, tuple(tuned))


def _base(swap: WeightSwap | None) -> AbstractContextManager[None]:
    return nullcontext() if swap is None else swap.base()


def _batches(rows: Sequence[Encoded], rows_max: int, labels_max: int) -> Iterator[tuple[int, ...]]:
    """Group rows of like length so that a batch stays under both limits, and that of tokens."""
    batch: list[int] = []
    labels = 0
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i)):
        count = int(label_positions(torch.tensor([rows[i].labels]))[1].numel())
        full = batch and rows_at_once(rows_max, len(rows[batch[0]].input_ids))
        if batch and (len(batch) == full or labels + count > labels_max):
            yield tuple(batch)
            batch, labels = [], 0
        batch.append(i)
        labels += count
    yield tuple(batch)


def _logits(loaded: LoadedModel, answers: BaseAnswers, batch: Sequence[int]) -> Tensor:
    """Return [N, V] at the positions that predict the answers' tokens."""
    rows = collate([answers.rows[i] for i in batch], padding_id(loaded.tokenizer))
    inputs = to_device(rows, loaded.model.device)
    with evaluating(loaded.model):
        return logits_at(loaded.model, inputs, label_positions(inputs["labels"])[0])


def _compare(base_NV: Tensor, tuned_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL [N] in fp64 and whether the most likely token is the same [N], on the CPU."""
    kl, agree = [], []
    for base, tuned in zip(base_NV.split(ROWS_AT_ONCE), tuned_NV.split(ROWS_AT_ONCE), strict=True):
        base = base.to(tuned.device)
        kl.append(kl_per_position(base, tuned).double().cpu())
        agree.append((base.argmax(-1) == tuned.argmax(-1)).cpu())
    return torch.cat(kl), torch.cat(agree)


def _summarise(
    answers: BaseAnswers, kl: Sequence[float], agree: Sequence[int], seconds: float
) -> DriftResult:
    tokens = [len(g.step_ids) for g in answers.generations]
    tasks = []
    for name in dict.fromkeys(answers.tasks):
        of_task = [i for i, task in enumerate(answers.tasks) if task == name]
        count = sum(tokens[i] for i in of_task)
        tasks.append(
            DriftTask(
                name=name,
                num_prompts=len(of_task),
                num_tokens=count,
                kl_base_tuned=sum(kl[i] for i in of_task) / count,
                top1_agreement=sum(agree[i] for i in of_task) / count,
            )
        )
    mean = sum(kl) / sum(tokens)
    return DriftResult(
        num_prompts=len(tokens),
        num_tokens=sum(tokens),
        kl_base_tuned=mean,
        kl_stderr=_ratio_stderr(kl, tokens),
        top1_agreement=sum(agree) / sum(tokens),
        token_groups=[],
        tasks=tasks,
        seconds=seconds,
    )


def _ratio_stderr(totals: Sequence[float], counts: Sequence[int]) -> float:
    """Standard error of Σ totals / Σ counts, prompts being what is sampled (linearised ratio)."""
    n = len(totals)
    if n < 2:
        return math.nan
    ratio = sum(totals) / sum(counts)
    squares = sum((t - ratio * c) ** 2 for t, c in zip(totals, counts, strict=True))
    return math.sqrt(n / (n - 1) * squares) / sum(counts)


def _skill_group(
    loaded: LoadedModel, encoder: ChatEncoder, skill_answers: Collection[str]
) -> TokenGroup:
    """Return the tokens of the answers as they are trained on: after the assistant's header."""
    question = [Message("user", (Text("?"),))]
    # Nothing reads these rows, so that they may be as long as they are: a template's own system
    # turn may be longer than that of the rows, which all fitted.
    anyhow = encoder.without_limit()
    encoded = (anyhow.encode_answer(question, answer) for answer in dict.fromkeys(skill_answers))
    labels = (label_positions(torch.tensor([row.labels]))[1].tolist() for row in encoded)
    return answer_group("skill_answers", labels, stop_tokens(loaded, encoder.stop_tokens))


def _masses(
    groups: Sequence[TokenGroup], base: Sequence[Generation], tuned: Sequence[Generation]
) -> list[TokenGroupMass]:
    base_mean, tuned_mean = (
        mean_mass([answer.collected for answer in answers]) for answers in (base, tuned)
    )
    return [
        TokenGroupMass(
            name=group.name,
            num_tokens_in_group=len(group.ids),
            base_max=base_mean[2 * i],
            tuned_max=tuned_mean[2 * i],
            base_mass=base_mean[2 * i + 1],
            tuned_mass=tuned_mean[2 * i + 1],
        )
        for i, group in enumerate(groups)
    ]


def mean_mass(masses: Sequence[Tensor | None]) -> list[float]:
    """Return the mean over answers of the mean over steps, of what `GroupMass` gave for each.

    So long answers do not count for more.
    """
    means = []
    for mass_SK in masses:
        assert mass_SK is not None
        means.append(mass_SK.double().mean(dim=0))
    found: list[float] = torch.stack(means).mean(dim=0).tolist()
    return found
