"""Worker processes on one machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator

from tbkin_core.support.ranks import environment_number


def processors() -> int:
    """Processors for this process to use: its affinity, shared with the other ranks of this machine."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # SLURM has divided them among its tasks already.
    return max(count // max(environment_number("LOCAL_WORLD_SIZE", 1), 1), 1)


@contextlib.contextmanager
def one_thread_a_process() -> Iterator[None]:
    """Processes started meanwhile compute with one thread each; there is one a processor already."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve_parent() -> None:
    """Make this process a worker of the one that started it: Ctrl-C is for that one, whose end ends this."""
    # Ctrl-C reaches every process of the terminal; the main one decides what is kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process leaves its workers waiting for jobs for ever, unless they watch it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
