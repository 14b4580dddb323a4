"""`python -m tbkin_cli`, and the console script."""

from __future__ import annotations

import os
import pkgutil
import threading

from tbkin_core.support.interruption import INTERRUPTED, leave_at_once

_LONGEST_END = 5.0  # seconds from the last word of an interrupted command to its end


def main() -> None:
    """Run the command line; from its first moment on, a signal ends it without a traceback."""
    leave_at_once()
    try:
        pkgutil.resolve_name("tbkin_cli.main:main")()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            # A worker that was killed in the middle of a message leaves Python waiting for the rest of it.
            end = threading.Timer(_LONGEST_END, os._exit, (INTERRUPTED,))
            end.daemon = True
            end.start()
        raise


if __name__ == "__main__":
    main()
