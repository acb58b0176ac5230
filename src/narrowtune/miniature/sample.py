"""One sample: a question and its picture, made when it is asked for.

Owns: how task, split, seed and number become chance, and the scene with its patch labels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Literal, get_args

from PIL import Image

from narrowtune.core.errors import UsageError
from narrowtune.data import examples
from narrowtune.miniature.ground import develop
from narrowtune.miniature.item import Item
from narrowtune.miniature.patches import PatchLabels, label_patches

Split = Literal["train", "validation", "test", "pretrain"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Scene:
    """A picture, and what stands where in it.

    Attributes:
        image: RGB, `canvas.SIZE` pixels wide and high.
        marks: for each pixel the number that `marks.mark` gives.
        words: for each pixel the place in `marks.WRITTEN` of the word that stands there.
    """

    image: Image.Image
    marks: Image.Image
    words: Image.Image

    def patch_labels(self, patch: int) -> PatchLabels:
        """Return what each patch of `patch` by `patch` pixels shows."""
        return label_patches(self.marks, self.words, patch)

    def png(self) -> bytes:
        """Return the picture as a PNG file's bytes."""
        buffer = io.BytesIO()
        # Noise hardly compresses; the first level is three times as fast as the sixth.
        self.image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@dataclass(frozen=True)
class Sample:
    """A question about a scene; the scene is drawn on first use.

    Attributes:
        id: task, split, seed and number.
        item: question, answers and how to draw.
    """

    id: str
    item: Item

    @cached_property
    def scene(self) -> Scene:
        """The drawn scene."""
        draw = Random(f"picture {self.id}")
        canvas = self.item.paint(draw)
        return Scene(develop(canvas, draw), canvas.marks, canvas.words)

    def questions(self, most: int) -> list[Item]:
        """Return its own question, then up to `most` − 1 others about the same picture."""
        found = {self.item.question: self.item}
        draw = Random(f"further questions {self.id}")
        for _ in range(most - 1 if self.item.again else 0):
            assert self.item.again is not None
            item = self.item.again(draw)
            found.setdefault(item.question, item)
        return list(found.values())

    def example(self) -> examples.Example:
        """Return the sample as a row that has been read; its picture is bytes, not a file."""
        image = examples.Image(data=self.scene.png())
        user = examples.Message("user", (image, examples.Text(self.item.question)))
        answer = examples.Message("assistant", (examples.Text(self.item.answers[0]),))
        return examples.Example(
            id=self.id,
            messages=(user, answer),
            answers=self.item.answers,
            options=self.item.options,
            group=self.id,
        )


def make_sample(
    name: str, make: Callable[[Random], Item], split: str, seed: int, number: int
) -> Sample:
    """Return one sample; the four last arguments and the name decide all of it.

    Splits have chance of their own: the split's name is part of what every draw is seeded with.

    Raises:
        UsageError: there is no such split, or the number is negative.
    """
    if split not in SPLITS or number < 0:
        raise UsageError(
            asked=f"sample {number} of {name}, split {split!r}",
            found="no such split or number",
            do=f"choose a split of {', '.join(SPLITS)}, and a number from 0",
        )
    id = f"{name}-{split}-{seed}-{number}"
    return Sample(id, make(Random(f"question {id}")))
