"""`python -m narrowtune`, and the console script of the same name."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Any

from narrowtune.core.errors import NarrowtuneError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a disk answers, and not a mistake in the code."""


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
    except OSError as error:
        if error.errno not in _DISK:
            raise
        told = NarrowtuneError(
            asked=f"to use {error.filename}" if error.filename else "to write a file",
            found=error.strerror or str(error),
            do="see that this user may, and that the disk has room; a run goes on with --resume",
        )
        report_error(told)
        sys.exit(told.exit_code)


if __name__ == "__main__":
    main()
