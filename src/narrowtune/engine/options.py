"""The likelihood of given answers, in batches: what multiple choice is decided by.

Owns: summed log-probabilities of options, and the same promise as `generate`: a choice does not
depend on its batch, or it is marked as a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.engine.forward import evaluating, label_positions, logits_at, to_device
from narrowtune.engine.generate import NOISE_ROWS, TIE_FACTOR, length_batches, rounding, spread
from narrowtune.models.load import LoadedModel


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
        batch_size: options computed together.
        progress: called with the number of options done since the last call.
    """
    flat = [encoded for item in options for encoded in item]
    if not flat:
        return []
    with evaluating(loaded.model):
        sums = [0.0] * len(flat)
        for indices in length_batches([len(e.input_ids) for e in flat], batch_size):
            for index, total in zip(
                indices, _answer_logprobs(loaded, [flat[i] for i in indices]), strict=True
            ):
                sums[index] = total
            if progress is not None:
                progress(len(indices))
        # Options of many items, and those of one, which are laid out otherwise where they share
        # a picture.
        sets = [[flat[i] for i in spread(len(flat), NOISE_ROWS)], list(options[0])]
        pairs = [
            (_answer_logprobs(loaded, [encoded])[0], together)
            for chosen in sets
            for encoded, together in zip(chosen, _answer_logprobs(loaded, chosen), strict=True)
        ]
        alone = [one for one, _ in pairs]
        noise = max(abs(one - together) for one, together in pairs)
        tolerance = TIE_FACTOR * max(noise, rounding(max(map(abs, alone))))
        results, start = [], 0
        for item in options:
            scores = sums[start : start + len(item)]
            start += len(item)
            tie = _gap(scores) <= tolerance
            if tie and batch_size > 1:
                scores = [_answer_logprobs(loaded, [encoded])[0] for encoded in item]
                tie = _gap(scores) <= tolerance
            lengths = tuple(_num_labels(encoded) for encoded in item)
            results.append(OptionScores(tuple(scores), lengths, tie))
    return results


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
