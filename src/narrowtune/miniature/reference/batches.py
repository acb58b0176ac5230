"""Batches of the small world for pre-training: pictures as pixels, questions as tokens.

Owns: which samples a step draws, and their form. Everything follows from seed, stage and step, so
that a run that was stopped goes on with the samples that it would have had.

Shapes: B samples, S the picture's side, P tokens before the picture, T tokens of all its questions
(padded), N patches that are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import Qwen2Tokenizer

from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.miniature.item import Item
from narrowtune.miniature.registry import TASKS
from narrowtune.miniature.sample import Sample

_ROOM = 64  # T is a multiple of it, so that few shapes are compiled


_MOST = 128  # tokens of a picture's questions together

TRUNK = -1
"""The number of what all questions see, among the numbers of questions."""


class Text(NamedTuple):
    """A question and its answer around the place of the picture.

    Attributes:
        before: tokens in front of the picture, the same for every sample.
        after: the question, the answer and the end of turn.
        labels: as `after`, with `IGNORE_INDEX` where no answer is.
        hint: the answer's first token as it stands in a sentence, with a space before it: what is
            looked for in the options and in what is told.
    """

    before: list[int]
    after: list[int]
    labels: list[int]
    hint: int


class Writer:
    """Turns samples into the tokens that a chat template makes of them.

    A test holds it to `data.chat.ChatEncoder`; it is quicker since it leaves the picture alone.
    """

    def __init__(self, tokenizer: Qwen2Tokenizer, picture: str, placeholder: str) -> None:
        """Take a blueprint's picture, and the token in it that visual tokens replace."""
        self.tokenizer = tokenizer
        front, _, self._back = picture.partition(placeholder)
        self._before = self._encode(f"<|im_start|>user\n{front}")

    def write(self, item: Item) -> Text:
        """Return a question's tokens, the picture's own left out."""
        question = f"{self._back}\n{item.question}<|im_end|>\n<|im_start|>assistant\n"
        asked = self._encode(question)
        answer = self._encode(f"{item.answers[0]}<|im_end|>")
        labels = [IGNORE_INDEX] * len(asked) + answer
        return Text(self._before, asked + answer, labels, self._hint(item))

    def _hint(self, item: Item) -> int:
        """Words are hinted at as they stand in a sentence; digits have no space of their own."""
        space = self._encode(" ")
        return next(token for token in self._encode(f" {item.answers[0]}") if [token] != space)

    def tell(self, sample: Sample) -> list[int]:
        """Return what a sample's picture shows, in words, in place of the picture."""
        assert sample.item.tell is not None
        return self._encode(sample.item.tell(Random(f"told {sample.id}")))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        pixels: [B, 3, S, S], uint8.
        before: [P], tokens in front of every picture.
        after: [B, T], each picture's questions and answers, padded on the right.
        labels: [B, T].
        hints: [B, T], an answer's hint where its first label is.
        question: [B, T], which of the picture's questions a token is of; `TRUNK` for words that
            stand for a picture.
        offset: [B, T], the token's place in that, behind the trunk's own.
        what, hue, word: [B, N], what each patch shows, as in `marks`; None unless asked for.
    """

    pixels: Tensor
    before: Tensor
    after: Tensor
    labels: Tensor
    hints: Tensor
    question: Tensor
    offset: Tensor
    what: Tensor | None = None
    hue: Tensor | None = None
    word: Tensor | None = None


def draw_samples(
    shares: Mapping[str, float], count: int, seed: int, step: int, split: str = "pretrain"
) -> list[Sample]:
    """Return the samples of a step: tasks by their shares, no sample twice in a run."""
    draw = Random(f"tasks {seed} {step}")
    names = draw.choices(list(shares), weights=list(shares.values()), k=count)
    return [
        TASKS[name].sample(split, seed, step * count + place) for place, name in enumerate(names)
    ]


def collate_samples(
    samples: Sequence[Sample],
    writer: Writer,
    padding: int,
    *,
    questions: int = 1,
    labelled_patch: int | None = None,
) -> Batch:
    """Return samples as one batch.

    Args:
        questions: how many at most are asked about each picture, as far as there is room.
        labelled_patch: side in pixels of patches whose labels are wanted, too.
    """
    rows = [_fitting([writer.write(item) for item in s.questions(questions)]) for s in samples]
    what = hue = word = None
    if labelled_patch is not None:
        marked = [sample.scene.patch_labels(labelled_patch) for sample in samples]
        what = torch.tensor([marks.what for marks in marked])
        hue = torch.tensor([marks.hue for marks in marked])
        word = torch.tensor([marks.word for marks in marked])
    pixels = np.stack([np.asarray(sample.scene.image) for sample in samples])
    return Batch(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        before=torch.tensor(rows[0][0].before),
        **_laid_out(rows, [[]] * len(rows), padding, questions),
        what=what,
        hue=hue,
        word=word,
    )


def collate_told(
    samples: Sequence[Sample], writer: Writer, padding: int, *, questions: int
) -> Batch:
    """Return samples as one batch in which words stand for the pictures: no pixels, no patches.

    What a picture shows is the trunk, question −1, of which all its questions go on.
    """
    rows = [_fitting([writer.write(item) for item in s.questions(questions)]) for s in samples]
    trunks = [writer.tell(sample) for sample in samples]
    return Batch(
        pixels=torch.empty(len(samples), 3, 0, 0, dtype=torch.uint8),
        before=torch.tensor(rows[0][0].before),
        **_laid_out(rows, trunks, padding, questions),
    )


def _laid_out(
    rows: Sequence[Sequence[Text]], trunks: Sequence[list[int]], padding: int, questions: int
) -> dict[str, Tensor]:
    """Return `after`, `labels`, `question` and `offset` of a batch."""
    lengths = [
        len(trunk) + sum(len(text.after) for text in texts)
        for trunk, texts in zip(trunks, rows, strict=True)
    ]
    width = -(-max(lengths) // _ROOM) * _ROOM
    after = torch.full((len(rows), width), padding)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    hints = labels.clone()
    question = torch.full((len(rows), width), questions)
    offset = torch.zeros((len(rows), width), dtype=torch.long)
    for row, (trunk, texts) in enumerate(zip(trunks, rows, strict=True)):
        start = len(trunk)
        after[row, :start] = torch.tensor(trunk, dtype=torch.long)
        question[row, :start] = TRUNK
        offset[row, :start] = torch.arange(start)
        for number, text in enumerate(texts):
            here = slice(start, start + len(text.after))
            after[row, here] = torch.tensor(text.after)
            labels[row, here] = torch.tensor(text.labels)
            hints[row, start + text.labels.count(IGNORE_INDEX)] = text.hint
            question[row, here] = number
            offset[row, here] = len(trunk) + torch.arange(len(text.after))
            start = here.stop
    return {
        "after": after,
        "labels": labels,
        "hints": hints,
        "question": question,
        "offset": offset,
    }


def _fitting(texts: list[Text]) -> list[Text]:
    """Return the first of a picture's questions, and as many more as `_MOST` tokens hold.

    Attention grows with the square of all of them together.
    """
    ends = list(accumulate(len(text.after) for text in texts))
    return texts[: max(1, sum(end <= _MOST for end in ends))]


class Steps(IterableDataset[list[Batch]]):
    """The batches of steps `first` to `last`, each cut into micro-batches, short questions first.

    Sorting by length keeps padding, and the number of shapes to compile, small.
    """

    def __init__(
        self,
        writer: Writer,
        padding: int,
        shares_of: Sequence[tuple[int, Mapping[str, float]]],
        *,
        batch_size: int,
        micro_batches: int,
        questions: int,
        told: bool,
        labelled_patch: int,
        seed: int,
        first: int,
        last: int,
    ) -> None:
        """Take the steps of a stage.

        Args:
            questions: how many at most are asked about each picture.
            told: whether words stand for the pictures.
            labelled_patch: side in pixels of the patches that are named.
            shares_of: from which step on which tasks are drawn, in order, starting at step 0.
        """
        self._writer, self._padding, self._shares_of = writer, padding, shares_of
        self._batch_size, self._micro_batches = batch_size, micro_batches
        self._questions, self._seed, self._first, self._last = questions, seed, first, last
        self._told, self._labelled_patch = told, labelled_patch

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield each step's micro-batches."""
        for step in range(self._first, self._last):
            shares = [shares for start, shares in self._shares_of if start <= step][-1]
            samples = draw_samples(shares, self._batch_size, self._seed, step)
            samples.sort(key=self._length)
            size = self._batch_size // self._micro_batches
            cut = [samples[start : start + size] for start in range(0, self._batch_size, size)]
            yield [self._collate(part) for part in cut]

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        most = self._questions
        if self._told:
            return collate_told(samples, self._writer, self._padding, questions=most)
        return collate_samples(
            samples,
            self._writer,
            self._padding,
            questions=most,
            labelled_patch=self._labelled_patch,
        )

    def _length(self, sample: Sample) -> int:
        return sum(len(item.question) for item in sample.questions(self._questions))


def load_steps(steps: Steps, *, in_background: bool) -> DataLoader[list[Batch]]:
    """Return the batches of `steps` in order, drawn ahead by another process if asked for."""
    return DataLoader(
        steps,
        batch_size=None,
        num_workers=1 if in_background else 0,
        prefetch_factor=8 if in_background else None,
    )
