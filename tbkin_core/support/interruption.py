"""Ctrl-C and SIGTERM: both end a command by a KeyboardInterrupt, at once or when what must be whole is.

Signals reach the main thread alone; in another one these blocks leave them as they are. What takes seconds to
clean up after a KeyboardInterrupt stands in `held_back`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = 130  # exit code
_REMINDER = 2.0  # seconds

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came = 0  # signals since the outermost block began
_held = 0  # blocks that they wait for
_blocks = 0  # that are open
_alarm: Any = None  # the handler that reminders have replaced


def leave_at_once(message: str = "") -> None:
    """From now on, outside of the blocks below, a signal ends this process without a traceback."""

    def leave(number: int, frame: object) -> None:
        os.write(2, message.encode())
        os._exit(INTERRUPTED)

    for number in _SIGNALS:
        signal.signal(number, leave)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A signal ends the block by a KeyboardInterrupt, whatever other error that leads to."""
    global _came, _blocks
    _came, _blocks = _came if _blocks else 0, _blocks + 1
    previous: dict[signal.Signals, Any] = {}
    hook = sys.unraisablehook
    try:
        for number in _SIGNALS:
            # Only the main thread may set handlers.
            with contextlib.suppress(ValueError):
                previous[number] = signal.signal(number, _note)
        sys.unraisablehook = _quiet(hook)
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
        if not _blocks and _came:
            _forget_reminders()
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
    global _came, _alarm
    _came += 1
    if _held and (_came == 1 or "RANK" in os.environ):
        return
    if _alarm is None:
        _alarm = signal.signal(signal.SIGALRM, _remind)
    # Destructors and some C code drop what is raised in them: until all blocks are left it comes again.
    signal.setitimer(signal.ITIMER_REAL, _REMINDER, _REMINDER)
    raise KeyboardInterrupt


def _remind(number: int, frame: object) -> None:
    if not _held:
        raise KeyboardInterrupt


def _forget_reminders() -> None:
    global _alarm
    if _alarm is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, _alarm)
        _alarm = None


def _quiet(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for errors that Python drops which says nothing of interruptions; these come again soon."""

    def hear(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
        elif _alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.05, _REMINDER)

    return hear
