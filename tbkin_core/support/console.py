"""The log and the progress bars, on stderr."""

from __future__ import annotations

import logging
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tbkin_core.support.ranks import rank

Item = TypeVar("Item")

logger = logging.getLogger("tbkin")

# What a terminal obeys in place of showing it: control characters, what turns the direction of text, line
# breaks of other names. Lone surrogates, of file names that are no UTF-8, cannot be shown at all.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text on one line in which a terminal finds nothing to obey: what it would is written as `\\x1b`."""
    return OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def setup_logging(quiet: bool = False) -> None:
    """Send the log of tbkin to stderr: one line per message, warnings marked."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from tqdm import tqdm

            mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            # Through tqdm, so that a line does not run into an open progress bar.
            tqdm.write(printable(f"tbkin: {mark}{record.getMessage()}"), file=sys.stderr)

    logger.handlers[:] = [Handler()]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet or rank() > 0 else logging.INFO)


def quiet_transformers() -> None:
    """No progress bars and no advice of other packages between tbkin's own lines."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def progress(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    unit: str = "it",
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """`items` behind a tqdm bar on stderr; silent when quiet, on other ranks, or without a terminal.

    `size` gives the units of an item, where it is not one; `total` are those of all, where that is known.
    """
    from tqdm import tqdm

    silent = logger.level >= logging.WARNING or rank() > 0 or not sys.stderr.isatty()
    with tqdm(
        desc=printable(label), total=total, unit=unit, disable=silent, leave=False, dynamic_ncols=True
    ) as bar:
        for item in items:
            yield item
            bar.update(1 if size is None else size(item))


def shown(value: Any) -> str:
    """A value as messages name it, however large it is."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = form.maxlong = 80
    try:
        return form.repr(value)
    except ValueError:  # of whole numbers Python writes 4,300 digits
        return "a number of thousands of digits"


def shortened(text: str, length: int = 80) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def percent(fraction: float) -> str:
    """Never "0.0 %" or "100.0 %" for what is only nearly so."""
    if 0 < fraction < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= fraction < 1 else f"{100 * fraction:.1f} %"
