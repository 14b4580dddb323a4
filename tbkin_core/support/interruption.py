"""Ctrl-C and SIGTERM: both end a command by a KeyboardInterrupt, at once or when what must be whole is.

Signals reach the main thread alone; in another one these blocks leave them as they are.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = 130  # exit code

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came = 0  # signals since the outermost block began
_held = 0  # blocks that they wait for
_blocks = 0  # that are open


def leave_at_once(message: str = "") -> None:
    """From now on, outside of the blocks below, a signal ends this process without a traceback."""

    def leave(number: int, frame: object) -> None:
        os.write(2, message.encode())
        os._exit(INTERRUPTED)

    for number in SIGNALS:
        signal.signal(number, leave)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A signal ends the block by a KeyboardInterrupt, whatever other error that leads to."""
    global _came, _blocks
    _came, _blocks = _came if _blocks else 0, _blocks + 1
    previous: dict[signal.Signals, Any] = {}
    hook = sys.unraisablehook
    try:
        for number in SIGNALS:
            # Only the main thread may set handlers.
            with contextlib.suppress(ValueError):
                previous[number] = signal.signal(number, _note)
        sys.unraisablehook = _sent_again(hook)
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if _came:
            raise KeyboardInterrupt from error
        raise
    finally:
        _blocks -= 1
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """A signal waits for the end of the block and ends that; a second one does not wait.

    A rank waits in any case: it gets the terminal's signal and its parent's, which decides when to kill.
    """
    global _held
    with interruptible():
        _held += 1
        try:
            yield
        finally:
            _held -= 1
        if _came and not _held:
            raise KeyboardInterrupt


@contextlib.contextmanager
def let_through() -> Iterator[None]:
    """Within `held_back`: a block that a signal may end in its middle, also one that waits already."""
    global _held
    held, _held = _held, 0
    try:
        if _came:
            raise KeyboardInterrupt
        yield
    finally:
        _held = held


def interrupted() -> bool:
    """Whether a signal waits for the end of a block."""
    return _came > 0


def _note(number: int, frame: object) -> None:
    global _came
    _came += 1
    if not _held or (_came > 1 and "RANK" not in os.environ):
        raise KeyboardInterrupt


def _sent_again(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for errors that Python drops, as in destructors: an interruption among them comes again."""

    def hear(dropped: Any) -> None:
        global _came
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        _came -= 1
        again = threading.Timer(0.05, _thread.interrupt_main)
        again.daemon = True
        again.start()

    return hear
