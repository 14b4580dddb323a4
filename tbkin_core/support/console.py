"""The log and the progress bars, on stderr."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import reprlib
import sys
import time
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


def _is_silent() -> bool:
    """Whether nobody would see a bar: quiet, another rank, or neither a terminal nor a notebook."""
    seen = sys.stderr.isatty() or _in_notebook()
    return logger.level >= logging.WARNING or rank() > 0 or not seen


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _bar(label: str, **settings: Any) -> Any:
    """A bar of tqdm's; in a notebook, too, one of text, which needs no widgets."""
    from tqdm import tqdm

    # A notebook has no width of its own, and tqdm would take that of the terminal it was started from.
    width = {"ncols": 80} if _in_notebook() else {"dynamic_ncols": True}
    return tqdm(desc=printable(label), disable=_is_silent(), leave=False, **width, **settings)


def progress(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    unit: str = "it",
    size: Callable[[Item], int] | None = None,
    delay: float = 0.0,
) -> Iterator[Item]:
    """`items` behind a tqdm bar on stderr; silent when quiet, on other ranks, or where nobody sees it.

    `size` gives the units of an item, where it is not one; `total` are those of all, where that is known.
    What takes less than `delay` seconds gets no bar.
    """
    with _bar(label, total=total, unit=unit, delay=delay) as bar:
        for item in items:
            yield item
            bar.update(1 if size is None else size(item))


class RunBar:
    """One bar for a whole run of training, with the time that it has left.

    Args:
        label: What is done first.
        total: Samples of all epochs.
        done: Samples that were learnt before, by a run that was interrupted.
        most_seconds: That the run has from now on.
    """

    def __init__(self, label: str, total: int, done: int, most_seconds: float = math.inf) -> None:
        self._total, self._done, self._begun = total, done, done
        self._started, self._most = time.monotonic(), most_seconds
        # tqdm's own guess knows of no minutes that end a run.
        form = "{desc} {percentage:3.0f} %|{bar}|"
        self._label = printable(label)
        self._bar = _bar(label, total=total, initial=done, bar_format=form)

    def add(self, samples: int) -> None:
        """So many samples were learnt."""
        self._done += samples
        self._tell(refresh=False)
        self._bar.update(samples)

    def at(self, label: str) -> None:
        """What is done now."""
        self._label = printable(label)
        self._tell(refresh=True)

    def _tell(self, refresh: bool) -> None:
        left = self.seconds_left()
        told = self._label if left is None else f"{self._label}, {duration(left, rounded=True)} left"
        self._bar.set_description_str(told, refresh=refresh)

    def seconds_left(self) -> float | None:
        """Until the samples are learnt or the time is over, validation included; None before the first."""
        passed, learnt = time.monotonic() - self._started, self._done - self._begun
        if not learnt:
            return None
        return max(min(passed / learnt * (self._total - self._done), self._most - passed), 0.0)

    def close(self) -> None:
        """Remove it."""
        self._bar.close()


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Of several runs that say the same of what they begin with, the first is heard; of epochs, all are."""
    said = set[str]()

    def heard(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno >= logging.WARNING or text.startswith("epoch "):
            return True
        is_new = text not in said
        said.add(text)
        return is_new

    logger.addFilter(heard)
    try:
        yield
    finally:
        logger.removeFilter(heard)


def duration(seconds: float, rounded: bool = False) -> str:
    """ "45 s", "3 min 20 s", "2 h 5 min"; of a guess that is `rounded` "50 s", "4 min"."""
    if rounded:
        if seconds >= 90:
            return f"{round(seconds / 60)} min"
        seconds = 10 * max(round(seconds / 10), 1)
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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
