"""`python -m tbkin_cli`, and the console script."""

from __future__ import annotations

import pkgutil

from tbkin_core.support.interruption import leave_at_once


def main() -> None:
    """Run the command line; from its first moment on, a signal ends it without a traceback."""
    leave_at_once()
    pkgutil.resolve_name("tbkin_cli.main:main")()


if __name__ == "__main__":
    main()
