"""`python -m tbkin_cli`, and the console script."""

from __future__ import annotations

import pkgutil

from tbkin_core.support.interruption import INTERRUPTED, leave_at_once


def main() -> None:
    """Run the command line; from its first moment on, a signal ends it without a traceback."""
    leave_at_once()
    try:
        pkgutil.resolve_name("tbkin_cli.main:main")()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            # Python, run with -m, ends by SIGINT and not with this code where the last code that was
            # executed from a string (an import may do so) was interrupted.
            exec("")
        raise


if __name__ == "__main__":
    main()
