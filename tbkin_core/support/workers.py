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
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from multiprocessing.connection import Connection
from queue import SimpleQueue
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
    an interruption or an error leaves them `GRACE` for the jobs that they are at.

    Each process has a pipe whose far end it holds alone, so one that dies in the middle of a message closes
    it. (Those of a `ProcessPoolExecutor` share one, and there the rest of the message is waited for.)

    Args:
        make: Makes the tool; called once in each process, so it must survive pickling where there are more.
        count: Processes; with 0 or 1 the work is done in this one.
        command: The subcommand that they work for, named in the message where one of them dies.
    """

    def __init__(self, make: Callable[[], Tool], count: int, command: str) -> None:
        self._make = make
        self._count = count
        self._command = command
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._threads: ThreadPoolExecutor | None = None  # one for each process
        self._of_thread = threading.local()
        self._asked: set[Future[Any]] = set()

    def __enter__(self) -> WorkerPool[Tool]:
        if self._count <= 1:
            self._tool = self._make()
            return self
        free: SimpleQueue[Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self._count, "worker", self._take_one, (free,))
        try:
            with _one_thread_per_process(), deaf_at_first():
                for _ in range(self._count):
                    free.put(self._start())
        except BaseException:
            self._end(hurried=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._end(hurried=kind is not None)

    def ask(self, question: Callable[[Tool], Result]) -> Result:
        """What one tool says of itself.

        Raises:
            TbkinError: The tool cannot be made.
            DataError: A process has died.
        """
        return question(self._tool) if self._threads is None else self._submit(question).result()

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
        if self._threads is None:
            yield from ((job, work(self._tool, job)) for job in jobs)
            return
        waiting: deque[tuple[Job, Future[Result]]] = deque()
        for job in jobs:
            waiting.append((job, self._submit(work, job)))
            if len(waiting) >= ahead * self._count:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()

    def _start(self) -> Connection:
        """Start a process; this end of its pipe."""
        context = multiprocessing.get_context("spawn")
        near, far = context.Pipe()
        self._pipes.append(near)
        with far:
            arguments = (far, pickle.dumps(self._make))
            process = context.Process(target=_work_to_the_end, args=arguments, daemon=True)
            process.start()
        self._processes.append(process)
        return near

    def _take_one(self, free: SimpleQueue[Connection]) -> None:
        self._of_thread.pipe = free.get()

    def _submit(self, work: Callable[..., Result], *jobs: Any) -> Future[Result]:
        assert self._threads is not None
        future = self._threads.submit(self._have_done, work, *jobs)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def _have_done(self, work: Callable[..., Result], *jobs: Any) -> Result:
        """What the process of this thread answers."""
        try:
            self._of_thread.pipe.send((work, jobs))
            good, answer = self._of_thread.pipe.recv()
        except (EOFError, OSError) as error:
            time.sleep(0.2)  # whoever ended the process may be about to end this one too
            raise DataError(
                f"{self._command}: a worker process has ended unexpectedly, perhaps because memory ran out",
                hint="run the same command again: it goes on; --workers 0 needs no other processes",
            ) from error
        if not good:
            raise answer
        return answer  # type: ignore[no-any-return]

    def _end(self, hurried: bool) -> None:
        """End the processes, after the jobs that they are at: in a hurry after `GRACE` at the latest."""
        if self._threads is None:
            return
        with held_back():
            try:
                self._threads.shutdown(wait=False, cancel_futures=True)
                wait(self._asked.copy(), GRACE if hurried else None)
            finally:
                if hurried:
                    for process in self._processes:
                        process.kill()
                self._threads.shutdown()
                for pipe in self._pipes:
                    pipe.close()
                end_processes(self._processes, GRACE)


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


def _work_to_the_end(pipe: Connection, make: bytes) -> None:
    # Ctrl-C reaches every process of the terminal; the main one decides what is kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen()
    end_with_parent()
    tool, failure = None, None
    try:
        tool = pickle.loads(make)()  # loads what it needs, now that the above is settled
    except Exception as error:
        failure = error
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        while True:
            work, jobs = pipe.recv()
            try:
                if failure is not None:
                    raise failure
                answer = True, work(tool, *jobs)
            except Exception as error:
                if not isinstance(error, TbkinError):
                    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = False, error
            pipe.send_bytes(_message(*answer))


def _message(good: bool, answer: Any) -> bytes:
    """A result, or an error, as the other end can take it."""
    try:
        message = pickle.dumps((good, answer))
        if not good:
            pickle.loads(message)  # not every exception survives it
    except Exception as error:
        told = RuntimeError(
            f"{type(error).__name__}: {error}" if good else f"{type(answer).__name__}: {answer}"
        )
        for note in getattr(answer, "__notes__", ()):
            told.add_note(note)
        message = pickle.dumps((False, told))
    return message


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
