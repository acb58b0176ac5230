"""Draw docs/miniature.jpg: four scenes of every task of the small world.

    python scripts/draw_miniature.py [--task NAME] [--output FILE]

With `--task`, 40 scenes of that task alone, in a PNG at twice their size, with the questions and
answers in a text file beside it: for judging by eye what a change of the drawing did.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.registry import TASKS, get_task

PATH = Path(__file__).parents[1] / "docs" / "miniature.jpg"

GAP, TITLE = 4, 18


def overview() -> Image.Image:
    """Return four scenes of each task that is scored, and of the captions, two tasks a row."""
    tasks = [task for task in TASKS.values() if task.role != "pretrain"]
    block = (4 * (SIZE + GAP) + 8, SIZE + GAP + TITLE)
    sheet = Image.new("RGB", (2 * block[0], (len(tasks) + 1) // 2 * block[1]), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, task in enumerate(tasks):
        left, top = place % 2 * block[0] + GAP, place // 2 * block[1]
        title = f"{task.name} ({task.mirrors})" if task.mirrors else task.name
        pen.text((left, top + 2), title, fill="black", font=font)
        for number, sample in enumerate(task.samples("train", 4, seed=1)):
            sheet.paste(sample.scene.image, (left + number * (SIZE + GAP), top + TITLE))
    return sheet


def close_up(name: str, output: Path) -> None:
    """Write 40 scenes of a task, and what is asked about each of them."""
    side, lines = 2 * SIZE + GAP, []
    sheet = Image.new("RGB", (8 * side, 5 * side), "white")
    for number, sample in enumerate(get_task(name).samples("train", 40)):
        picture = sample.scene.image.resize((2 * SIZE, 2 * SIZE))
        sheet.paste(picture, (number % 8 * side, number // 8 * side))
        item = sample.item
        lines.append(f"{number} {item.kind}: {item.question!r} {item.answers}\n")
    sheet.save(output)
    output.with_suffix(".txt").write_text("".join(lines), "utf-8")


def main() -> None:
    """Write the overview, or the close-up of one task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.task:
        close_up(given.task, given.output or Path(f"{given.task}.png"))
    else:
        overview().save(given.output or PATH, quality=70, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
