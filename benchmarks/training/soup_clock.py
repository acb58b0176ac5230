"""soup-cli with a clock: the seconds of every optimiser step but the first, as JSON in a file.

    ENV/bin/python soup_clock.py SECONDS.json train --config soup.yaml --yes

Runs in soup-cli's own environment, so it imports nothing of ours.
"""

import json
import sys
import time
from pathlib import Path

from soup_cli.cli import run
from transformers import Trainer, TrainerCallback


class Clock(TrainerCallback):
    """Seconds from the end of one optimiser step to the end of the next."""

    def __init__(self, path):
        self.path, self.marks = path, []

    def on_step_end(self, *_, **__):
        """Mark the time, and write what is known."""
        self.marks.append(time.perf_counter())
        seconds = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        self.path.write_text(json.dumps(seconds))


def main():
    """Give every trainer a clock, then do what was asked of soup."""
    path, begin = Path(sys.argv[1]).absolute(), Trainer.__init__

    def begin_with_clock(self, *values, **settings):
        begin(self, *values, **settings)
        self.add_callback(Clock(path))

    Trainer.__init__ = begin_with_clock
    sys.argv = ["soup", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
