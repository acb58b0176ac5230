"""`python -m narrowtune`, and the console script of the same name."""

from __future__ import annotations

import signal
import sys
from typing import Any

from narrowtune.core.errors import NarrowtuneError


def leave(number: int, _: Any) -> None:
    """End as at any other end, so that what is held beside memory is removed.

    Python itself would stop on the spot where a launcher ends all processes for one that failed.
    """
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; an error made on purpose becomes three lines and an exit code."""
    from narrowtune.cli.app import app
    from narrowtune.cli.printing import report_error
    from narrowtune.engine.heap import keep_freed_blocks

    keep_freed_blocks()
    signal.signal(signal.SIGTERM, leave)
    try:
        app()
    except NarrowtuneError as error:
        report_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
