"""Greedy answers in batches.

Owns: decoding settings, stopping, and the promise that an answer does not depend on its batch, or
is marked. Arithmetic in a batch differs in the last bits from arithmetic alone, so a decision
between two almost equally likely tokens may fall either way. The size of that difference is
measured, every answer with a closer decision is decided again alone and unpadded, and one that is
still as close is marked as a tie. In bf16 most are that close: where more than a few of a batch
are, they stand and are marked, since alone they would take so many times as long.

Whoever wants another compute dtype than the weights' calls these functions under
`torch.autocast`. Shapes: B batch, T tokens, S steps, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from narrowtune.core.errors import EvaluationError
from narrowtune.data.collate import IGNORE_INDEX, Encoded, collate, padding_id
from narrowtune.engine.batches import length_batches, spread_kin
from narrowtune.engine.forward import evaluating, to_device
from narrowtune.engine.modes import rounds_coarsely
from narrowtune.engine.pictures import picture_shift, picture_tokens, set_picture_shift
from narrowtune.engine.prefix import Prefix, picture_kin, share_pictures, share_prefix
from narrowtune.engine.trie import TokenTrie
from narrowtune.models.load import LoadedModel

NOISE_ROWS, NOISE_STEPS, NOISE_TOKENS = 4, 3, 16
"""Prompts, steps of each, and most likely tokens of each step that noise is measured on."""

CHUNK_STEPS = 4
"""Steps after which rows that have ended leave the batch."""

MOST_AGAIN, SHARE_AGAIN = 4, 1 / 16
"""Answers of a batch that in bf16 are decided again alone: so many, or that share of it."""
TIE_FACTOR = 2.0
"""How much larger than the measured noise a gap must be: the measurement is a small sample."""

Collect = Callable[[Tensor], Tensor]
"""Given a step's raw logits [B, V] in fp32, what to keep of them: [B, K]."""


@dataclass(frozen=True)
class Generation:
    """One greedy answer.

    Attributes:
        token_ids: what was generated, without the token that stopped it.
        text: the same as text, without special tokens and outer white space.
        stop_ids: the token that ended the answer; empty if the limit of tokens did.
        min_margin: smallest gap between the two largest logits over all steps.
        tie: whether a gap was within the noise of batched arithmetic, also when decoded alone.
        collected: [S, K], what `collect` kept of each step, the stop token's step included.
    """

    token_ids: tuple[int, ...]
    text: str
    stop_ids: tuple[int, ...]
    min_margin: float
    tie: bool = False
    collected: Tensor | None = None

    @property
    def step_ids(self) -> tuple[int, ...]:
        """The token chosen at each step, the stop token included."""
        return self.token_ids + self.stop_ids

    @property
    def stopped(self) -> bool:
        """Whether the answer ended by itself."""
        return bool(self.stop_ids)


def stop_tokens(loaded: LoadedModel, extra: Collection[int] = ()) -> tuple[int, ...]:
    """Return every token that ends an answer: the model's and tokenizer's ends, and `extra`."""
    ends = loaded.model.generation_config.eos_token_id
    found = set(extra) | set(ends if isinstance(ends, (list, tuple)) else [ends])
    found |= {loaded.tokenizer.eos_token_id}
    found.discard(None)
    if not found:
        raise EvaluationError(
            asked=f"answers of {loaded.source}",
            found="neither its tokenizer nor its generation settings name a token that ends one",
            do="set `eos_token` in the model's tokenizer_config.json",
        )
    return tuple(sorted(found))


def generate_greedy(
    loaded: LoadedModel,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    batch_size: int,
    extra_stop_tokens: Collection[int] = (),
    collect: Collect | None = None,
    tolerance: float | None = None,
    allowed: Sequence[TokenTrie] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Answer `prompts` greedily; in the prompts' order, and independent of batches but for ties.

    Penalties, sampling and length limits of the checkpoint's own generation settings are not used.

    Args:
        loaded: the model; its training mode is restored afterwards.
        prompts: with the generation prompt, unpadded.
        max_new_tokens: limit on the steps, the stop token's included.
        batch_size: most prompts decoded together (`length_batches`).
        extra_stop_tokens: tokens that end an answer beside the model's own.
        collect: see `Collect`.
        tolerance: gap up to which a decision counts as close; `measure_noise` unless given.
        allowed: for each prompt, the answers among which decoding chooses; all unless given.
        progress: called with the number of prompts answered since the last call.

    Raises:
        EvaluationError: no token is known that ends an answer.
    """
    if not prompts:
        return []
    decoder = _Decoder(loaded, stop_tokens(loaded, extra_stop_tokens), collect)
    is_exact = not rounds_coarsely(loaded.model)
    with evaluating(loaded.model):
        prefix = share_prefix(loaded.model, prompts, max_new_tokens)
        if tolerance is None:
            tolerance = _measure(decoder, prompts, prefix)
        answers: dict[int, Generation] = {}
        lengths = [len(p.input_ids) + max_new_tokens for p in prompts]
        kin = picture_kin(loaded.model, prompts)
        for indices in length_batches(lengths, batch_size, kin=kin):
            batch, among = [prompts[i] for i in indices], allowed and [allowed[i] for i in indices]
            found = decoder.decode(batch, max_new_tokens, prefix, allowed=among)
            close = sum(answer.min_margin <= tolerance for answer in found)
            again = close <= max(MOST_AGAIN, SHARE_AGAIN * len(found)) or is_exact
            for index, answer in zip(indices, found, strict=True):
                if answer.min_margin <= tolerance:
                    if again and (len(indices) > 1 or prefix is not None):
                        own = allowed and [allowed[index]]
                        [answer] = decoder.decode([prompts[index]], max_new_tokens, allowed=own)
                    answer = replace(answer, tie=answer.min_margin <= tolerance)
                answers[index] = answer
            if progress is not None:
                progress(len(indices))
    return [answers[i] for i in range(len(prompts))]


def measure_noise(
    loaded: LoadedModel,
    prompts: Sequence[Encoded],
    *,
    num_rows: int = NOISE_ROWS,
    extra_stop_tokens: Collection[int] = (),
) -> float:
    """Return the gap between logits up to which a batched decision can't be trusted.

    `TIE_FACTOR` times the largest difference between one padded batch and each row alone, in the
    gap between the most likely token and one of the next, over a few steps of `num_rows` of the
    prompts. Pass it on as `tolerance` where the same model answers repeatedly.
    """
    decoder = _Decoder(loaded, stop_tokens(loaded, extra_stop_tokens), None)
    with evaluating(loaded.model):
        prefix = share_prefix(loaded.model, prompts, NOISE_STEPS)
        return _measure(decoder, prompts, prefix, num_rows)


def with_answer(prompt: Encoded, answer: Generation) -> Encoded:
    """Return the prompt with its answer for teacher forcing: labels on every step's token."""
    return with_steps(prompt, answer.step_ids)


def with_steps(prompt: Encoded, step_ids: Sequence[int]) -> Encoded:
    """Return the same of the tokens of an answer's steps."""
    steps = list(step_ids)
    return Encoded(
        input_ids=[*prompt.input_ids, *steps],
        labels=[IGNORE_INDEX] * len(prompt.input_ids) + steps,
        features=prompt.features,
    )


@dataclass
class _Started:
    """A row's answer so far; `step_ids` and `margins` include the stop token's step."""

    allowed: TokenTrie | None = None
    step_ids: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    collected: list[Tensor] = field(default_factory=list)
    ended: bool = False


class _Recorder(LogitsProcessor):
    """Sees each step's raw logits [B, V]; keeps the gap of the best two and what is asked for.

    The gap is between tokens that are allowed: of a step without a choice it is infinite.

    Args:
        collect: see `Collect`.
        rows: of the batch, as they were before these steps.
        length: tokens of each before these steps.
        pictures: tokens that stand for pictures, which are never chosen.
    """

    def __init__(
        self,
        collect: Collect | None,
        rows: Sequence[_Started],
        length: int,
        pictures: Sequence[int],
    ) -> None:
        self.collect, self.rows, self.length, self.pictures = collect, rows, length, pictures
        self.margins: list[Tensor] = []
        self.collected: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.collect is not None:
            self.collected.append(self.collect(scores))
        if any(row.allowed is not None for row in self.rows):
            new_BS = input_ids[:, self.length :].tolist()
            scores = torch.stack(
                [
                    row.allowed.allow(own, [*row.step_ids, *new]) if row.allowed else own
                    for row, own, new in zip(self.rows, scores, new_BS, strict=True)
                ]
            )
        if self.pictures:  # what stands for a picture is no answer: reading it asks for one
            known = [token for token in self.pictures if token < scores.shape[1]]
            never = torch.tensor(known, dtype=torch.long, device=scores.device)
            scores = scores.index_fill(1, never, -math.inf)
        best = scores.topk(2, dim=-1).values
        self.margins.append(best[:, 0] - best[:, 1])
        return scores


@dataclass(frozen=True)
class _Decoder:
    """Decodes one batch with fixed settings."""

    loaded: LoadedModel
    stop: tuple[int, ...]
    collect: Collect | None

    def decode(
        self,
        prompts: Sequence[Encoded],
        max_new_tokens: int,
        prefix: Prefix | None = None,
        *,
        allowed: Sequence[TokenTrie] | None = None,
    ) -> list[Generation]:
        """Answer one left-padded batch; `prefix` is not computed again, nor pictures it shares.

        Rows that have ended leave the batch every few steps, so that a long answer is not paid
        for by all of them.
        """
        model = self.loaded.model
        pad = padding_id(self.loaded.tokenizer)
        batch, shift = self._begin(prompts, max_new_tokens, prefix)
        tries: Sequence[TokenTrie | None] = allowed or [None] * len(prompts)
        started = [_Started(trie) for trie in tries]
        active = list(range(len(prompts)))
        for done in range(0, max_new_tokens, CHUNK_STEPS):
            steps = min(CHUNK_STEPS, max_new_tokens - done)
            set_picture_shift(model, shift)
            # Pictures are in the cache from here on: no row needs their features any more.
            batch = self._go_on(batch, steps, pad, [started[i] for i in active])
            shift = picture_shift(model)
            going = [row for row, i in enumerate(active) if not started[i].ended]
            if not going:
                break
            if len(going) < len(active):
                rows = torch.tensor(going, device=model.device)
                # Every kind of layer can be put in another order, and so in a smaller batch.
                batch["past_key_values"].reorder_cache(rows)
                for name in ("input_ids", "attention_mask"):
                    batch[name] = batch[name][rows]
                shift = None if shift is None else shift[rows]
                active = [active[row] for row in going]
        return [self._answer(row) for row in started]

    def _begin(
        self, prompts: Sequence[Encoded], max_new_tokens: int, prefix: Prefix | None
    ) -> tuple[dict[str, Any], Tensor | None]:
        """Return the batch from which to decode, and how far its pictures moved positions."""
        model, pad = self.loaded.model, padding_id(self.loaded.tokenizer)
        if prefix is None:
            shared = share_pictures(model, prompts, max_new_tokens, pad)
            if shared is not None:
                return shared
            left: dict[str, Any] = collate(list(prompts), pad, padding_side="left")
            del left["labels"]
        else:
            left = prefix.batch(prompts, pad)
        return to_device(left, model.device), None

    def _go_on(
        self, batch: dict[str, Any], steps: int, pad: int, rows: Sequence[_Started]
    ) -> dict[str, Any]:
        """Decode `steps` more tokens of every row; return the batch from which to go on."""
        model: Any = self.loaded.model
        settings = GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(self.stop),
            pad_token_id=pad,
            return_dict_in_generate=True,
        )
        length = batch["input_ids"].shape[1]
        recorder = _Recorder(self.collect, rows, length, picture_tokens(model))
        with _no_own_settings(model):
            found = model.generate(
                **batch,
                generation_config=settings,
                logits_processor=LogitsProcessorList([recorder]),
            )
        sequences: Tensor = found.sequences
        new_BS = sequences[:, length:].tolist()
        margins_BS = torch.stack(recorder.margins, dim=1).tolist()
        kept = torch.stack(recorder.collected, dim=1).cpu() if self.collect else None
        for index, row in enumerate(rows):
            ids = new_BS[index]
            end = next((i for i, token in enumerate(ids) if token in self.stop), None)
            taken = len(ids) if end is None else end + 1
            row.ended = end is not None
            row.step_ids += ids[:taken]
            row.margins += margins_BS[index][:taken]
            if kept is not None:
                row.collected.append(kept[index, :taken].clone())
        mask: Tensor = batch["attention_mask"]
        ahead = mask.new_ones(mask.shape[0], sequences.shape[1] - length)
        return {
            "input_ids": sequences,
            "attention_mask": torch.cat([mask, ahead], dim=1),
            "past_key_values": found.past_key_values,
        }

    def _answer(self, row: _Started) -> Generation:
        ids = tuple(row.step_ids[:-1] if row.ended else row.step_ids)
        text = self.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str), "a single answer was decoded"
        return Generation(
            token_ids=ids,
            text=text.strip(),
            stop_ids=tuple(row.step_ids[-1:]) if row.ended else (),
            min_margin=min(row.margins),
            collected=torch.cat(row.collected) if row.collected else None,
        )


@contextmanager
def _no_own_settings(model: Any) -> Iterator[None]:
    """Hide the checkpoint's generation settings: `generate` fills in whatever is not given."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _measure(
    decoder: _Decoder,
    prompts: Sequence[Encoded],
    prefix: Prefix | None,
    num_rows: int = NOISE_ROWS,
) -> float:
    # Two of each picture, where there are: they share it, as in the batches that are answered.
    kin = picture_kin(decoder.loaded.model, prompts)
    chosen = [prompts[i] for i in spread_kin(kin, num_rows, of_each=2)]
    # Two rows at least: a batch of one is what it is compared with.
    chosen = chosen * 2 if len(chosen) == 1 else chosen
    keeper = replace(decoder, collect=lambda logits: logits)
    noise, largest = 0.0, 0.0
    for row, together in zip(chosen, keeper.decode(chosen, NOISE_STEPS, prefix), strict=True):
        alone = keeper.decode([row], NOISE_STEPS)[0]
        assert alone.collected is not None
        assert together.collected is not None
        for step, (a, b) in enumerate(zip(alone.collected, together.collected, strict=False)):
            leading = a.topk(min(NOISE_TOKENS, len(a))).indices
            change = (a - b)[leading]
            noise = max(noise, float((change - change[0]).abs().max()))
            largest = max(largest, float(a[leading].abs().max()))
            if alone.step_ids[step] != together.step_ids[step]:
                break
    return TIE_FACTOR * max(noise, rounding(largest))


def rounding(size: float) -> float:
    """Rounding of fp32 values of this size, with room: the few rows measured may all agree."""
    return 8 * torch.finfo(torch.float32).eps * size
