"""How long a scene of the small world takes, by processor time of one core.

    python benchmarks/miniature_speed.py

Prints a Markdown table: milliseconds per sample for the question alone, the drawn scene with its
question, patch labels and PNG. A hundred samples per task come first, so that letters are cached as
they are in any longer run.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise

from narrowtune.core.provenance import hardware
from narrowtune.miniature.registry import TASKS

COUNT = 300
WARM = 100


def main() -> None:
    """Measure every task and print the table."""
    print("| task | question | scene | patch labels (8) | PNG |")
    print("|---|---|---|---|---|")
    sums = [0.0] * 4
    for task in TASKS.values():
        for sample in task.samples("validation", WARM):
            _ = sample.scene
        samples, marks = [], [time.process_time()]
        for sample in task.samples("train", COUNT):
            samples.append(sample)
        marks.append(time.process_time())
        for sample in samples:
            _ = sample.scene
        marks.append(time.process_time())
        for sample in samples:
            sample.scene.patch_labels(8)
        marks.append(time.process_time())
        for sample in samples:
            sample.scene.png()
        marks.append(time.process_time())
        steps = [(b - a) / COUNT * 1e3 for a, b in pairwise(marks)]
        row = [steps[0], steps[0] + steps[1], steps[2], steps[3]]
        sums = [total + value for total, value in zip(sums, row, strict=True)]
        print(f"| {task.name} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    means = [total / len(TASKS) for total in sums]
    print("| mean | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    print(f"\n{hardware()['cpu']}, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
