"""Processes of the check: runs that are killed, runs that go on, and runs of several ranks."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from checking.world import OBJECTIVES, Shape, make_model, make_plan, make_world
from tbkin_core.support.devices import Devices
from tbkin_core.tasks.inputs import to_device
from tbkin_core.training.run import train


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is to do."""

    out: Path  # directory of its results
    world: Path  # features of the world
    shape: Shape
    objective: str
    devices: Devices
    plan: Mapping[str, Any]  # values of the plan
    hold_at: int = -1  # stop before this step and wait to be killed
    deterministic: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()  # modules that must not have been loaded


def train_job(job: Job) -> None:
    """Train as a run does; the weights of the best epoch are left in `out/weights.pt`."""
    model = make_model(_world(job), job.objective, job.plan["size"], job.plan["dropout"])
    place = job.out / "weights.pt"
    steps = 0

    def hold(epochs: float, share: float) -> None:
        nonlocal steps
        if steps == job.hold_at:
            time.sleep(3600)
        steps += math.isfinite(epochs)

    def keep(best: Any) -> None:
        torch.save({name: value.cpu() for name, value in best.state_dict().items()}, place)

    objective = OBJECTIVES[job.objective](_world(job))
    train(objective, model, make_plan(**job.plan), job.out, job.devices, keep, hold)


def lone_rank_job(job: Job) -> None:
    """A group of one process: its sums and the gradients that it shares with itself, beside those without."""
    from torch.nn.parallel import DistributedDataParallel

    world = _world(job)
    objective, model = OBJECTIVES[job.objective](world), make_model(world, job.objective, "tiny", 0.0)
    cuda = job.devices.kind == "cuda"
    device = torch.device("cuda", job.devices.indices[0]) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    one = torch.ones(1000, device=device)
    torch.distributed.all_reduce(one)
    model.to(device)
    shared = DistributedDataParallel(
        model,
        device_ids=[device] if cuda else None,
        find_unused_parameters=not objective.uses_all_weights,
    )
    batch = objective.collate(np.arange(job.plan["batch_size"]), 0)
    found = []
    for wrapped in (model, shared):
        model.zero_grad(set_to_none=True)
        losses = objective.losses(wrapped, to_device(batch, device), 0)
        torch.stack(list(losses.values())).sum().backward()
        parts = [p.grad.double().cpu().ravel() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(parts))
    difference = float((found[0] - found[1]).norm() / found[0].norm())
    (job.out / "difference.json").write_text(json.dumps([difference, float((one - 1).abs().max())]))
    torch.distributed.destroy_process_group()


JOBS = {"train": train_job, "lone rank": lone_rank_job}


def work(kind: str, job: Job) -> None:
    """What a process runs; its standard error is `out/error.txt`."""
    with (job.out / "error.txt").open("w") as file, contextlib.redirect_stderr(file):
        try:
            os.environ.update(job.environment)
            tqdm.set_lock(threading.RLock())  # a process that is killed leaks one that several share
            if job.devices.kind == "cpu":
                torch.set_num_threads(1)  # several of them share the processors
            if job.deterministic:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
                torch.use_deterministic_algorithms(True)
            JOBS[kind](job)
            if loaded := [name for name in job.without if sys.modules.get(name)]:
                raise RuntimeError(f"{', '.join(loaded)} must not be loaded")
        except Exception:
            traceback.print_exc()
            file.flush()
            os._exit(1)


def _world(job: Job) -> Any:
    return make_world(job.world, job.shape)


# ---- from the outside ---------------------------------------------------------------------------


@contextmanager
def started(kind: str, jobs: Sequence[Job]) -> Iterator[list[Any]]:
    """Processes that do some jobs at once; those that still run at the end of the block are killed."""
    # A process that is forked cannot use CUDA where its parent has; on a CPU forking saves loading torch.
    how = "spawn" if any(job.devices.kind == "cuda" for job in jobs) else "forkserver"
    context: Any = multiprocessing.get_context(how)
    if how == "forkserver":
        context.set_forkserver_preload([__name__])
    for job in jobs:
        job.out.mkdir(parents=True, exist_ok=True)
    processes = [context.Process(target=work, args=(kind, job)) for job in jobs]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def finish(kind: str, jobs: Sequence[Job], seconds: float) -> None:
    """Do some jobs, all at once.

    Raises:
        RuntimeError: One of them failed, or they took too long.
    """
    until = time.monotonic() + seconds
    with started(kind, jobs) as processes:
        for process, job in zip(processes, jobs, strict=True):
            process.join(max(until - time.monotonic(), 0.1))
            if process.exitcode != 0:
                raise RuntimeError(_what_happened(process, job))


def kill_after(job: Job, step: int, seconds: float) -> None:
    """Start a run and kill it once it has saved a state after so many steps.

    Raises:
        RuntimeError: It ended before, or took too long.
    """
    until = time.monotonic() + seconds
    with started("train", [job]) as (process,):
        while saved_step(job.out) < step:
            if not process.is_alive() or time.monotonic() > until:
                raise RuntimeError(_what_happened(process, job))
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)


def saved_step(out: Path) -> int:
    """The step of the state of a run, 0 without one."""
    try:
        return int(json.loads((out / "state/progress.json").read_text())["step"])
    except FileNotFoundError:
        return 0


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each of several processes of one run on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(number), "LOCAL_RANK": str(number), **common} for number in range(count)]


def _what_happened(process: Any, job: Job) -> str:
    said = (job.out / "error.txt").read_text().strip() if (job.out / "error.txt").exists() else ""
    last = said.splitlines()[-1] if said else ""
    if process.is_alive():
        return f"a process of the check took too long {last}"
    return f"a process of the check ended with {process.exitcode}: {last or 'it said nothing'}"
