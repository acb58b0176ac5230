"""`python -m narrowtune`, and the console script of the same name."""

from __future__ import annotations

import sys

from narrowtune.core.errors import NarrowtuneError


def main() -> None:
    """Run the command line; an error made on purpose becomes three lines and an exit code."""
    from narrowtune.cli.app import app
    from narrowtune.cli.printing import report_error
    from narrowtune.engine.heap import keep_freed_blocks

    keep_freed_blocks()
    try:
        app()
    except NarrowtuneError as error:
        report_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
