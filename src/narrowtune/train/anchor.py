"""The anchor: a pull towards the base's own answers to general prompts.

Beside the task's rows, every optimiser step has some rows on which the tuned model is held to the
base's distribution: KL(base‖tuned) at each token of the base's greedy answer, over the whole
vocabulary or over the likeliest words and all others together. Answers and distributions are
computed once, before training, so no teacher runs.
The idea follows Learning without Forgetting (arXiv 1606.09282) and the self-generated rehearsal
of arXiv 2403.01244 and arXiv 2505.13811; the prompts here need no labels and are not the task's:
they are general, or of skills that were taught before.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.errors import TrainingError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import (
    IGNORE_INDEX,
    PER_TOKEN_FEATURES,
    Encoded,
    check_pictures,
    collate,
    join_pictures,
    padding_id,
)
from narrowtune.data.examples import Message
from narrowtune.data.spilled import Joined, Spilled
from narrowtune.engine.batches import length_batches, rows_at_once
from narrowtune.engine.forward import label_positions, logits_at, to_device
from narrowtune.engine.generate import generate_greedy, with_steps
from narrowtune.models.load import LoadedModel
from narrowtune.train.anchor_cache import AnchorCache
from narrowtune.train.distributions import Distributions, position_bytes

HELD_BYTES = 2 * 2**30
"""Of base distributions in memory; more lie in the folder for temporary files, all of them."""

MAX_BYTES = 64 * 2**30
"""Of base distributions, of each process; more is refused with what to change."""


class Anchor:
    """Anchor rows and the order in which steps use them.

    Args:
        encoded: prompts and the base's answers; labels on an answer and its end of turn.
        distributions: of each row the base's along its answer, on the CPU; none where `weight` is
            0.
        rows_per_step: how many of them every optimiser step sees.
        weight: of the KL term in the loss; 0 takes no rows into steps.
        projection: strength by which steps are kept off what the base is given on the rows.
        pad_token_id: to merge the rows with a task batch.
        seed: of the order. Which rows a step sees depends on the step's number alone, so that a
            resumed run and a run on more devices see the same ones.
        seconds: what computing the rows took.
        top_k: as in the settings, for the record.
        num_general: the first of the rows, about anything; all unless given. What follows them is
            asked of skills that were taught before, and gets every other place of an anchor's.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        distributions: Sequence[Distributions],
        *,
        rows_per_step: int,
        weight: float,
        pad_token_id: int,
        seed: int,
        seconds: float,
        projection: float = 0.0,
        top_k: int | None = None,
        num_general: int | None = None,
    ) -> None:
        self.encoded, self.distributions = list(encoded), distributions
        self.num_general = len(self.encoded) if num_general is None else num_general
        self._asked_rows = rows_per_step
        self.rows_per_step = min(rows_per_step, len(self.encoded))
        self.weight = weight
        self.projection = projection
        self.top_k = top_k
        self.pad_token_id = pad_token_id
        self.seed = seed
        self.seconds = seconds

    def answers(self, tokenizer: PreTrainedTokenizerBase, stop: Collection[int]) -> list[str]:
        """Return what the base answered, as text; of long answers the beginning, and an ellipsis.

        Args:
            tokenizer: of the model.
            stop: tokens that end an answer.
        """
        texts = []
        for row in self.encoded:
            steps = [label for label in row.labels if label != IGNORE_INDEX]
            ended = bool(steps) and steps[-1] in stop
            text = str(tokenizer.decode(steps[:-1] if ended else steps, skip_special_tokens=True))
            texts.append(text if ended else f"{text.rstrip()}…")
        return texts

    def indices(self, step: int) -> list[int]:
        """Return the rows of optimiser step `step` (from 0).

        Each row comes once per pass over its part, which is shuffled anew for every pass.
        """
        first = step * self.rows_per_step
        return [self._at(first + offset) for offset in range(self.rows_per_step)]

    def _at(self, position: int) -> int:
        start, number = 0, self.num_general
        if number < len(self.encoded):
            position, taught = divmod(position, 2)
            if taught:
                start, number = number, len(self.encoded) - number
        epoch, offset = divmod(position, number)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return start + int(torch.randperm(number, generator=generator)[offset])

    def beside(self, other: Anchor, *, in_turn: bool = True) -> Anchor:
        """Return an anchor of these rows and of `other`'s; the rest is as here.

        Args:
            other: more rows.
            in_turn: whether the two take turns; else all are drawn alike.

        Raises:
            DataError: pictures of the two have sizes that can't be in one batch.
        """
        encoded = [*self.encoded, *other.encoded]
        check_pictures(encoded)
        return Anchor(
            encoded,
            Joined([self.distributions, other.distributions]),
            rows_per_step=self._asked_rows,
            weight=self.weight,
            pad_token_id=self.pad_token_id,
            seed=self.seed,
            seconds=self.seconds + other.seconds,
            projection=self.projection,
            top_k=self.top_k,
            num_general=len(self.encoded) if in_turn else None,
        )

    def num_labels(self, indices: Sequence[int]) -> int:
        """Return how many token positions the rows `indices` hold to the base."""
        labels = (label for index in indices for label in self.encoded[index].labels)
        return sum(label != IGNORE_INDEX for label in labels)

    def merge(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, Any]:
        """Return `batch` with anchor rows below it and their positions in `anchor_mask` [B, T].

        `labels` of the anchor rows are ignored by cross-entropy; one forward serves both terms.
        Either may have pictures or none.

        Raises:
            DataError: pictures have sizes that can't be joined.
        """
        device = batch["input_ids"].device
        extra = collate([self.encoded[index] for index in indices], self.pad_token_id)
        extra = to_device(extra, device)
        length = max(batch["input_ids"].shape[1], extra["input_ids"].shape[1])
        num_task, num_anchor = batch["input_ids"].shape[0], extra["input_ids"].shape[0]
        fill = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        merged = dict(batch)
        for key in dict.fromkeys((*batch, *extra)):
            pair = [part.get(key) for part in (batch, extra)]
            if key == "labels" or not any(isinstance(value, Tensor) for value in pair):
                continue
            if key in PER_TOKEN_FEATURES or _per_token(batch.get(key), batch["input_ids"]):
                parts = [
                    part["input_ids"].new_zeros(part["input_ids"].shape) if value is None else value
                    for part, value in zip((batch, extra), pair, strict=True)
                ]
                padded = [_pad_right(part, length, fill.get(key, 0)) for part in parts]
                merged[key] = torch.cat(padded)
            elif extra.get(key) is not None:
                merged[key] = join_pictures(key, [value for value in pair if value is not None])
        labels = _pad_right(batch["labels"], length, IGNORE_INDEX)
        nothing = labels.new_full((num_anchor, length), IGNORE_INDEX)
        merged["labels"] = torch.cat([labels, nothing])
        mask, _ = label_positions(_pad_right(extra["labels"], length, IGNORE_INDEX))
        merged["anchor_mask"] = torch.cat([mask.new_zeros(num_task, length), mask])
        held = Distributions.join([self.distributions[index] for index in indices])
        merged["anchor_distributions"] = held.to(device)
        return merged


def _per_token(value: Any, input_ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == input_ids.shape


def _pad_right(tensor: Tensor, length: int, value: int) -> Tensor:
    return nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value)


def build_anchor(
    loaded: LoadedModel,
    encoder: ChatEncoder,
    prompts: Sequence[Sequence[Message]],
    settings: AnchorSettings,
    *,
    batch_size: int,
    seed: int,
    num_general: int | None = None,
    share: float = 1.0,
    cache: AnchorCache | None = None,
) -> Anchor:
    """Let the base answer `prompts` greedily and keep its distributions along the answers.

    The model must still be the base. It is left as it was. `num_general` as for `Anchor`.
    `share` is what these prompts are of all that the anchor will have: the limits are for all.
    What is in `cache` is not computed again; only the top of distributions is kept there.

    Raises:
        TrainingError: there are no prompts, or their distributions would take more than
            their share of `MAX_BYTES`, or than there is room for.
        DataError: the prompts' pictures have sizes that can't be in one batch, or there is no room
            for distributions beside memory.
    """
    started = time.perf_counter()
    if not prompts:
        raise TrainingError(
            asked="an anchor",
            found="no prompts to anchor on",
            do="give anchor.prompts a file with at least one prompt, or leave it out",
        )
    encoded = [encoder.encode_prompt(messages) for messages in prompts]
    # Which of them meet in a step is decided later: all are checked before anything is computed.
    check_pictures(encoded)
    known = None if cache is None else cache.load(encoded, settings)
    # Without a weight, steps are held by the rows' inputs alone.
    found: Sequence[Distributions] = []
    if known is None:
        answers = _answers(loaded, encoder, encoded, settings, batch_size)
    else:
        answers, found = known
    answered = [with_steps(prompt, steps) for prompt, steps in zip(encoded, answers, strict=True)]
    if known is None and settings.weight:
        num_labels = [len(steps) for steps in answers]
        found = _distributions(loaded, answered, num_labels, settings.top_k, batch_size, share)
        if cache is not None and isinstance(found, list):
            cache.save(encoded, settings, answers, found)
    return Anchor(
        answered,
        found,
        rows_per_step=settings.rows_per_step,
        weight=settings.weight,
        projection=settings.projection,
        top_k=settings.top_k,
        pad_token_id=padding_id(loaded.tokenizer),
        seed=seed,
        seconds=time.perf_counter() - started,
        num_general=num_general,
    )


def _answers(
    loaded: LoadedModel,
    encoder: ChatEncoder,
    prompts: Sequence[Encoded],
    settings: AnchorSettings,
    batch_size: int,
) -> list[list[int]]:
    """Return the tokens of the base's greedy answers."""
    # A near tie may fall either way here: any answer of the base's will do.
    found = generate_greedy(
        loaded,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        batch_size=batch_size,
        extra_stop_tokens=encoder.stop_tokens,
        tolerance=-1.0,
    )
    return [list(generation.step_ids) for generation in found]


def _distributions(
    loaded: LoadedModel,
    answered: Sequence[Encoded],
    num_labels: Sequence[int],
    top_k: int | None,
    batch_size: int,
    share: float,
) -> Sequence[Distributions]:
    """Return the base's distributions along each row's answer."""
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    size = sum(num_labels) * position_bytes(vocabulary, top_k)
    held_bytes, max_bytes = share * HELD_BYTES, share * MAX_BYTES
    if size > max_bytes:
        raise TrainingError(
            asked=f"an anchor on {len(answered)} prompts",
            found=f"base distributions of {size / 2**30:.1f} GiB, more than {max_bytes / 2**30:g}",
            do="use fewer prompts (anchor.max_prompts; with a ledger, anchor.earlier_skills), keep "
            "less of each distribution (anchor.top_k) or set a smaller anchor.max_new_tokens",
        )
    folder = tempfile.gettempdir()
    if size > held_bytes and size > (free := shutil.disk_usage(folder).free):
        raise TrainingError(
            asked=f"room beside memory for an anchor on {len(answered)} prompts",
            found=f"{free / 2**30:.1f} GiB in {folder}, and it takes {size / 2**30:.1f}",
            do="make room there, set TMPDIR to a folder that has it, keep less of each "
            "distribution (anchor.top_k), or use fewer prompts",
        )
    at_once = rows_at_once(batch_size, 0, vocabulary * max(num_labels))
    batches = list(length_batches([len(row.input_ids) for row in answered], at_once))

    def compute() -> Iterator[Distributions]:
        for indices in batches:
            batch = collate([answered[i] for i in indices], padding_id(loaded.tokenizer))
            batch = to_device(batch, loaded.model.device)
            mask, _ = label_positions(batch["labels"])
            # Not inference mode: the distributions take part in a backward pass later.
            with torch.no_grad():
                found = Distributions.of(logits_at(loaded.model, batch, mask), top_k).to("cpu")
            yield from found.split([num_labels[i] for i in indices])

    order = [index for indices in batches for index in indices]
    places = sorted(range(len(order)), key=order.__getitem__)
    if size <= held_bytes:
        held = list(compute())
        return [held[place] for place in places]
    return Spilled(compute()).pick(places)
