"""Where a run computes, and one process for each device."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tbkin_core.errors import ConfigError, TbkinError
from tbkin_core.support.console import setup_logging
from tbkin_core.support.interruption import INTERRUPTED, interruptible, leave_at_once
from tbkin_core.support.ranks import environment_number, world_size
from tbkin_core.support.workers import deaf_at_first, end_processes, end_with_parent, listen

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("tbkin")

_SAVING = 60.0  # seconds for the rank that saves the state when a run is interrupted
# Where ranks that `launch` has started wait for each other: torch does not hear a signal while it waits.
_meeting: Any = None


@dataclass(frozen=True, slots=True)
class Devices:
    """`kind` "cpu" or "cuda"; `indices` the CUDA devices, or one entry a CPU process."""

    kind: str
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.indices)


def resolve_devices(spec: str) -> Devices:
    """Read `auto`, `cpu`, `cpu:N`, `cuda` or `cuda:0,1`.

    Raises:
        ConfigError: The spec cannot be read, or names more devices than exist.
    """
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, rest = spec.strip().lower().partition(":")
    usage = ConfigError(
        f"devices: expected auto, cpu, cpu:N, cuda or cuda:0,1, got {spec!r}",
        hint="for example --devices cpu",
    )
    if kind == "auto" and not rest:
        return Devices("cuda", tuple(range(available))) if available else Devices("cpu", (0,))
    if kind == "cpu":
        if rest and not (rest.isdigit() and 1 <= int(rest) <= 256):
            raise usage
        return Devices("cpu", tuple(range(int(rest or 1))))
    if kind != "cuda":
        raise usage
    try:
        indices = tuple(int(part) for part in rest.split(",")) if rest else tuple(range(max(available, 1)))
    except ValueError as error:
        raise usage from error
    missing = [index for index in indices if index not in range(available)]
    if missing or len(set(indices)) != len(indices):
        raise ConfigError(
            f"devices: {spec!r} asks for CUDA device {missing[0] if missing else indices[0]},"
            f" found {available}",
            hint="use --devices auto (all CUDA devices, or the CPU where there is none)",
        )
    return Devices("cuda", indices)


def torch_device(devices: Devices) -> torch.device:
    """The device of this process."""
    import torch

    if devices.kind == "cpu":
        return torch.device("cpu")
    local = environment_number("LOCAL_RANK", 0)
    return torch.device("cuda", devices.indices[local % devices.count])


def launch(function: Callable[..., None], devices: Devices, *arguments: Any) -> None:
    """Call `function(*arguments)` once a device, each in a process of its own where there are several.

    Under torchrun the processes exist already and the function is called once in each. The processes
    find each other through the usual RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. They end with
    this process, whatever ends it.
    """
    if devices.count == 1 or "WORLD_SIZE" in os.environ:
        function(*arguments)
        return
    import socket

    import torch.multiprocessing

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when a worker loads torch
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    # As bytes: what they load is loaded when a rank knows what to do about signals and the end of its parent.
    work = pickle.dumps((function, arguments))
    common = (context.Barrier(devices.count), port, logger.level, failures, work)
    workers = [
        context.Process(target=_ranked, args=(local_rank, *common), name=f"rank {local_rank}")
        for local_rank in range(devices.count)
    ]
    try:
        with deaf_at_first():
            for worker in workers:
                worker.start()
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(timeout=0.1)
            codes = {worker.name: worker.exitcode for worker in workers if worker.exitcode}
            if INTERRUPTED in codes.values():
                raise KeyboardInterrupt
            if codes:
                break
    except KeyboardInterrupt:
        # Each rank finishes its step, and the first one saves.
        started = [worker for worker in workers if worker.pid is not None]
        for worker in started:
            worker.terminate()
        end_processes(started[:1], _SAVING)
        raise
    finally:
        # One dead rank would leave the others waiting for it for ever.
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()
    if not failures.empty():
        raise failures.get()
    if codes := {worker.name: worker.exitcode for worker in workers if worker.exitcode}:
        raise RuntimeError(f"worker processes ended early: {codes}")


def join_ranks(devices: Devices) -> None:
    """Make this process one of its distributed run, if it is in one and has not joined yet."""
    if world_size() == 1:
        return
    import datetime

    import torch

    if devices.kind == "cuda":
        torch.cuda.set_device(torch_device(devices))
    if not torch.distributed.is_initialized():
        if _meeting is not None:
            _meeting.wait()
        # The other ranks wait while rank 0 evaluates, which may take long.
        limit = datetime.timedelta(hours=12)
        torch.distributed.init_process_group("nccl" if devices.kind == "cuda" else "gloo", timeout=limit)


def _ranked(
    rank: int,
    meeting: Any,
    port: int,
    level: int,
    failures: Any,
    work: bytes,
) -> None:
    global _meeting
    _meeting = meeting
    os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)))
    os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(meeting.parties)))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    setup_logging(quiet=level >= logging.WARNING)
    end_with_parent()
    leave_at_once()
    listen()
    code = 0
    try:
        function, arguments = pickle.loads(work)
        with interruptible():
            function(*arguments)
    except TbkinError as error:
        failures.put(error)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    # The threads of gloo may abort a process that takes itself apart while other ranks are still at work.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
