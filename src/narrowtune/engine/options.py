"""The likelihood of given answers, in batches: what multiple choice is decided by.

Owns: summed log-probabilities of options, and the same promise as `generate`: a choice does not
depend on its batch, or it is marked as a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.engine.batches import length_batches, rows_at_once, spread
from narrowtune.engine.forward import evaluating, label_positions, logits_at, to_device
from narrowtune.engine.generate import TIE_FACTOR, rounding
from narrowtune.models.load import LoadedModel

_NOISE_ITEMS = 3
"""Items of which two options each are computed alone and together, to measure noise."""


@dataclass(frozen=True)
class OptionScores:
    """How likely each option of one item is as the whole answer, end of turn included.

    Attributes:
        logprobs: sum over the option's tokens, nats.
        num_tokens: tokens summed over.
        tie: whether the two best sums are within the noise of batched arithmetic.
    """

    logprobs: tuple[float, ...]
    num_tokens: tuple[int, ...]
    tie: bool = False

    @property
    def best(self) -> int:
        """Index of the most likely option; the first of equals."""
        return self.logprobs.index(max(self.logprobs))

    @property
    def best_per_token(self) -> int:
        """Index of the option with the highest mean log-probability per token."""
        means = [total / n for total, n in zip(self.logprobs, self.num_tokens, strict=True)]
        return means.index(max(means))


def option_logprobs(
    loaded: LoadedModel,
    options: Sequence[Sequence[Encoded]],
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[OptionScores]:
    """Return the log-likelihood of every option of every item; nothing is decoded.

    Args:
        loaded: the model; its training mode is restored afterwards.
        options: for each item its options, encoded as answers (labels on the option's tokens and
            the end of the turn).
        batch_size: most options computed together (`length_batches`).
        progress: called with the number of options done since the last call.
    """
    if not any(options):
        return []
    with evaluating(loaded.model):
        sums: list[list[float]] = [[] for _ in options]
        # Options of one item share its question, so they stay together.
        longest = [max((len(one.input_ids) for one in item), default=0) for item in options]
        for batch in length_batches(longest, batch_size, [len(item) for item in options]):
            rows = [encoded for index in batch for encoded in options[index]]
            totals = iter(_in_batches(loaded, rows, batch_size))
            for index in batch:
                sums[index] = [next(totals) for _ in options[index]]
            if progress is not None:
                progress(len(rows))
        # Options of several items and several of each, as above: both decide the layout.
        chosen = [options[i] for i in spread(len(options), _NOISE_ITEMS)]
        sample = [encoded for item in chosen for encoded in item[:2]]
        alone = [_answer_logprobs(loaded, [encoded])[0] for encoded in sample]
        together = _answer_logprobs(loaded, sample)
        noise = max(abs(one - other) for one, other in zip(alone, together, strict=True))
        tolerance = TIE_FACTOR * max(noise, rounding(max(map(abs, alone))))
        results = []
        for item, scores in zip(options, sums, strict=True):
            lengths = tuple(_num_labels(encoded) for encoded in item)
            tie = _gap(scores) <= tolerance
            # Means per token decide too, for the lenient score.
            means = [total / number for total, number in zip(scores, lengths, strict=True)]
            if (tie or _gap(means) <= tolerance / min(lengths, default=1)) and batch_size > 1:
                scores = [_answer_logprobs(loaded, [encoded])[0] for encoded in item]
                tie = _gap(scores) <= tolerance
            results.append(OptionScores(tuple(scores), lengths, tie))
    return results


def _in_batches(loaded: LoadedModel, rows: Sequence[Encoded], batch_size: int) -> list[float]:
    """Compute rows that are meant to be together in as few passes as memory allows."""
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    tokens = max((len(row.input_ids) for row in rows), default=0)
    logits = vocabulary * max(map(_num_labels, rows), default=0)
    size = rows_at_once(batch_size, tokens, logits)
    return [
        total
        for start in range(0, len(rows), size)
        for total in _answer_logprobs(loaded, rows[start : start + size])
    ]


def _gap(scores: Sequence[float]) -> float:
    best = sorted(scores, reverse=True)
    return best[0] - best[1] if len(best) > 1 else float("inf")


def _num_labels(encoded: Encoded) -> int:
    return int(label_positions(torch.tensor([encoded.labels]))[1].numel())


def _answer_logprobs(loaded: LoadedModel, rows: Sequence[Encoded]) -> list[float]:
    """Sum of log p over each row's labels, nats."""
    batch = to_device(collate(rows, padding_id(loaded.tokenizer)), loaded.model.device)
    mask, targets = label_positions(batch["labels"])
    logprobs_NV = torch.log_softmax(logits_at(loaded.model, batch, mask).float(), dim=-1)
    chosen = logprobs_NV.gather(1, targets[:, None])[:, 0].double().cpu()
    row_of = mask.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_of, chosen)
    return sums.tolist()
