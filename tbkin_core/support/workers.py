"""Worker processes and threads on one machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Generic, TypeVar

from tbkin_core.errors import DataError, TbkinError
from tbkin_core.support.interruption import held_back
from tbkin_core.support.ranks import environment_number

GRACE = 5.0  # seconds for what other processes are at when the main one is interrupted

Tool = TypeVar("Tool")
Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """Processors for this process to use: its affinity, shared with the other ranks of this machine."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # SLURM has divided them among its tasks already.
    return max(count // max(environment_number("LOCAL_WORLD_SIZE", 1), 1), 1)


def made_ahead(
    make: Callable[[Item], Result], items: Iterable[Item], threads: int = 1
) -> Generator[Result, None, None]:
    """`make` of each item in order, made by threads before it is asked for: each thread is one item ahead.

    With 0 threads each is made when it is asked for.
    """
    if threads == 0:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        left = iter(items)
        pending = deque(pool.submit(make, item) for item in islice(left, threads))
        try:
            while pending:
                result = pending.popleft().result()
                pending += (pool.submit(make, item) for item in islice(left, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


class WorkerPool(Generic[Tool]):
    """Processes that each make a tool once and work with it on many jobs; use as a context manager.

    Each computes with one thread. Ctrl-C is left to this process, whose end, however it comes, ends them;
    an interruption leaves them `GRACE` for the jobs that they are at.

    Args:
        make: Makes the tool; called once in each process, so it must survive pickling where there are more.
        count: Processes; with 0 or 1 the work is done in this one.
        command: The subcommand that they work for, named in the message where one of them dies.
    """

    def __init__(self, make: Callable[[], Tool], count: int, command: str) -> None:
        self._make = make
        self._count = count
        self._command = command
        self._stack = contextlib.ExitStack()
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool[Tool]:
        self._others = multiprocessing.active_children()
        if self._count > 1:
            self._stack.enter_context(_one_thread_per_process())
            self._executor = ProcessPoolExecutor(
                self._count, multiprocessing.get_context("spawn"), _start_worker, (pickle.dumps(self._make),)
            )
        else:
            self._tool = self._make()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._stack:
            if self._executor is not None:
                hurried = kind is not None and issubclass(kind, KeyboardInterrupt | GeneratorExit)
                self._executor.shutdown(wait=not hurried, cancel_futures=True)
                if hurried:
                    own = (child for child in multiprocessing.active_children() if child not in self._others)
                    end_processes(list(own), GRACE)

    def ask(self, question: Callable[[Tool], Result]) -> Result:
        """What one tool, the first that is ready, says of itself; all processes start with this.

        Raises:
            TbkinError: The tool cannot be made.
            DataError: A process has died.
        """
        if self._executor is None:
            return question(self._tool)
        with self._deaths_as_errors():
            first, *_ = [self._submit(question) for _ in range(self._count)]
            return first.result()

    def map(
        self, work: Callable[[Tool, Job], Result], jobs: Iterable[Job], ahead: int
    ) -> Iterator[tuple[Job, Result]]:
        """Every job with its result, in the order of the jobs, so that no result depends on who is faster.

        Args:
            work: A function of a module, or a method of the tool's class.
            jobs: Read as they are needed.
            ahead: Jobs per process that may be under way or done and waiting; bounds the memory.

        Raises:
            TbkinError: As for `ask`, or what `work` raises.
        """
        if self._executor is None:
            yield from ((job, work(self._tool, job)) for job in jobs)
            return
        waiting: deque[tuple[Job, Future[Result]]] = deque()
        with self._deaths_as_errors():
            for job in jobs:
                waiting.append((job, self._submit(work, job)))
                if len(waiting) >= ahead * self._count:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()

    def _submit(self, work: Callable[..., Result], *jobs: Any) -> Future[Result]:
        assert self._executor is not None
        with deaf_at_first():  # it starts a process where none is idle
            return self._executor.submit(_with_tool, work, *jobs)

    @contextlib.contextmanager
    def _deaths_as_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            time.sleep(0.2)  # whoever ended the process may be about to end this one too
            raise DataError(
                f"{self._command}: a worker process has ended unexpectedly, perhaps because memory ran out",
                hint="run the same command again: it goes on; --workers 0 needs no other processes",
            ) from error


@contextlib.contextmanager
def deaf_at_first() -> Iterator[None]:
    """Processes that are started in the block take no Ctrl-C until they `listen`.

    They load Python and torch first, where it would end them in a traceback.
    """
    multiprocessing.resource_tracker.ensure_running()  # its own start would undo the mask
    with held_back():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen() -> None:
    """In such a process: take Ctrl-C from now on, also one that has come meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def end_with_parent() -> None:
    """Have this process end when the one that started it has, however that came."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def end_processes(processes: Sequence[Any], grace: float) -> None:
    """Wait for processes to end; kill those that need more than `grace` seconds, at a second Ctrl-C all."""
    until = time.monotonic() + grace
    with held_back():
        try:
            for process in processes:
                process.join(max(until - time.monotonic(), 0))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()


@contextlib.contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Processes started meanwhile compute with one thread each; there is one per processor already."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


# ---- in a worker --------------------------------------------------------------------------------

_tool: Any = None


def _start_worker(make: bytes) -> None:
    global _tool
    # Ctrl-C reaches every process of the terminal; the main one decides what is kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen()
    end_with_parent()
    try:
        _tool = pickle.loads(make)()  # loads what it needs, now that the above is settled
    except TbkinError as error:
        # Raised here it would only break the pool; the first job hands it over.
        _tool = error


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _with_tool(work: Callable[..., Result], *jobs: Any) -> Result:
    if isinstance(_tool, TbkinError):
        raise _tool
    return work(_tool, *jobs)
