"""Draw the prompts about pictures that ship with the package: the anchor's and the drift probe's.

    python scripts/draw_prompts.py

Writes src/narrowtune/data/prompts/pictures.jsonl and free_pictures.jsonl, and a JPEG for each line.

The anchor's are questions of the small world whose answers have every form that a model is asked
for: a sentence, a word, a place, yes or no, numbers and words as they are read, an option with its
letter, a list. Nothing is counted, since that is a skill people teach. None is of a task that is
taught or kept. The probe's ask for a description of pictures of other kinds than the anchor's, so
that an anchor doesn't hold down what is to warn of it, and of none that is taught. All are of the
split `pretrain` and seeds of their own, kinds come in turn, and answers are not written.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from narrowtune.miniature.registry import TASKS
from narrowtune.miniature.sample import Sample

FOLDER = Path("src/narrowtune/data/prompts")
QUALITY = 90

ANCHOR = ("captions", "names", "binding", "relations", "rows", "words", "choices", "lists")
NUM_ANCHOR, ANCHOR_SEED = 80, 110

FREE = ("charts", "forms", "street", "arrows", "infographics", "science", "diagrams", "gauges")
NUM_FREE, FREE_SEED = 40, 111
PHRASES = (
    "Describe the picture.",
    "What does the picture show?",
    "Describe this image.",
    "Write a caption for this picture.",
    "What do you see in this image?",
    "Describe this picture in one sentence.",
    "Tell me what is in this picture.",
)


def main() -> None:
    """Draw and write both files."""
    shutil.rmtree(FOLDER / "pictures", ignore_errors=True)
    asked = ((sample, sample.item.question) for sample in in_turn(ANCHOR, NUM_ANCHOR, ANCHOR_SEED))
    write("pictures", "picture", asked)
    # Seven phrases and eight kinds: each kind is asked about in other words every time.
    described = (
        (sample, PHRASES[place % len(PHRASES)])
        for place, sample in enumerate(in_turn(FREE, NUM_FREE, FREE_SEED))
    )
    write("free_pictures", "free-picture", described)
    size = sum(path.stat().st_size for path in (FOLDER / "pictures").iterdir())
    print(f"{NUM_ANCHOR} and {NUM_FREE} prompts, {size / 2**10:.0f} KiB of pictures")


def in_turn(tasks: tuple[str, ...], count: int, seed: int) -> Iterable[Sample]:
    """Yield samples of several tasks in turn."""
    for place in range(count):
        turn, task = divmod(place, len(tasks))
        yield TASKS[tasks[task]].sample("pretrain", seed, turn)


def write(name: str, stem: str, prompts: Iterable[tuple[Sample, str]]) -> None:
    """Write a file of prompts, and its pictures under names that begin with `stem`."""
    lines = []
    for number, (sample, prompt) in enumerate(prompts, start=1):
        buffer = io.BytesIO()
        sample.scene.image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        image = Path("pictures") / f"{stem}-{number:03d}.jpg"
        (FOLDER / image).parent.mkdir(exist_ok=True)
        (FOLDER / image).write_bytes(buffer.getvalue())
        row = {"id": image.stem, "image": image.as_posix(), "prompt": prompt}
        lines.append(json.dumps(row) + "\n")
    (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
