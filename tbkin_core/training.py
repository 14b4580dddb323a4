"""One loop for pretraining and fine-tuning.

A run is a function of its settings and its data: the order of samples depends on (seed, epoch), masks on
(seed, epoch, sample), dropout on (seed, step, rank). So a run that was killed and started again ends with
the weights of one that was not, and no random state has to be saved.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tbkin_core.errors import CheckpointError, DataError, MissingDependencyError, TbkinError
from tbkin_core.modeling import TbkinForRec
from tbkin_core.settings import TrainingConfig
from tbkin_core.support.console import progress
from tbkin_core.support.devices import Devices, join_ranks, torch_device
from tbkin_core.support.files import atomic_directory, read_json, write_errors, write_json, write_text
from tbkin_core.support.randomness import mix
from tbkin_core.support.ranks import rank, wait_for_ranks, world_size
from tbkin_core.training_order import epoch_order

logger = logging.getLogger("tbkin")

Batch = dict[str, Any]


class Task(Protocol):
    """What a training run needs to know of its data and its loss."""

    name: str
    metric: str  # name of the validation value that decides which checkpoint is best; higher is better

    def lengths(self) -> NDArray:
        """(M,) text length of each training sample."""

    def samples(self, epoch: int) -> NDArray[np.int64]:
        """(N,) numbers of the samples of an epoch, below M; N is the same in every epoch."""

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        """Arrays of some training samples."""

    def named(self, rows: NDArray) -> str:
        """What a person would look up to find some training samples."""

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        """How many targets each objective has in a batch; known before the model runs."""

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The summed, weighted loss of each objective."""

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        """Validation values; empty without validation data."""


@dataclass(slots=True)
class Progress:
    """Where a run is; saved with every state."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0
    samples: int = 0
    stopped: str = ""  # "patience" once that has ended the run
    epoch_sums: dict[str, float] = field(default_factory=dict)
    epoch_targets: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended: `reason` is "epochs", "patience", "minutes" or "no steps"."""

    steps: int
    epochs: int
    best: float | None
    best_epoch: int
    seconds: float
    samples: int
    reason: str
    history: list[dict[str, Any]]


def train(
    task: Task,
    model: PreTrainedModel,
    config: TrainingConfig,
    out: Path,
    devices: Devices,
    save_best: Callable[[PreTrainedModel], None],
    fingerprint: str,
    patience: int = 0,
    fit_minutes: bool = False,
    on_step: Callable[[float | None], None] = lambda epochs: None,
) -> TrainingResult:
    """Train until the epochs, the minutes or the patience are used up, going on from a saved state.

    Args:
        task: Data and losses.
        model: Initialised model; its weights are replaced when a state is resumed.
        config: Resolved settings; `epochs`, `batch_size` and `learning_rate` are set.
        out: Directory of the run; the state to resume from is kept in `out/state`.
        devices: Where to run; one process a device is running already.
        save_best: Called on rank 0 whenever validation improves (after each epoch without validation).
        fingerprint: Of data and settings; a state with another one is refused.
        patience: Epochs without improvement before stopping; 0 never.
        fit_minutes: The learning rate has fallen when `config.max_minutes` are over, if they are over before
            the epochs; else it keeps to the epochs, and more minutes go on where fewer stopped.
        on_step: Called before each step with the epochs that have passed, and with None before validation.

    Raises:
        DataError: The loss is not finite, or the disk refuses.
        CheckpointError: A state that belongs to other data or settings.
        KeyboardInterrupt: Interrupted; the state is on disk.
    """
    assert config.epochs is not None and config.batch_size is not None and config.learning_rate is not None
    device = torch_device(devices)
    world = world_size()
    lengths = task.lengths()
    steps_per_epoch = max(-(-len(task.samples(0)) // config.batch_size), 1)
    model.to(device)  # type: ignore[arg-type]
    optimizer = _optimizer(model, config)
    precision = _precision(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    where = Progress()
    state_path = out / "state"
    if config.resume and state_path.is_dir():
        where = _load_state(state_path, model, optimizer, scaler, fingerprint, device)
        logger.info("going on at epoch %d, step %d", where.epoch + 1, where.step)
    join_ranks(devices)
    wrapped = _distribute(model, device, world)
    reason = "epochs"
    started = time.monotonic() - where.seconds
    last_saved = time.monotonic()

    def save() -> None:
        nonlocal last_saved
        where.seconds = time.monotonic() - started
        if rank() == 0:
            _save_state(state_path, model, optimizer, scaler, where, fingerprint)
        last_saved = time.monotonic()

    def time_spent() -> float:
        """Share of the time at hand, 1 and above where it is over."""
        if config.max_minutes is None:
            return 0.0
        return (time.monotonic() - started) / max(60 * config.max_minutes, 1e-9)

    if config.epochs == 0:
        if rank() == 0:
            save_best(model)
        return TrainingResult(0, 0, None, -1, 0.0, 0, "no steps", [])
    micro = _MicroBatch(config.micro_batch_size)
    with _interruptible() as interrupted, _tensorboard(config, out, where.step) as board:
        while where.epoch < config.epochs and not where.stopped:
            samples = task.samples(where.epoch)
            order = epoch_order(lengths[samples], config.batch_size, config.seed, where.epoch)
            batches = [samples[rows] for rows in order[where.batch :]]
            wrapped.train()
            windows = _prefetch(task, batches, where.epoch, micro, world)
            label = f"epoch {where.epoch + 1}/{config.epochs}"
            with contextlib.closing(windows):
                left = sum(map(len, batches))
                for window, rows in progress(windows, label, left, "sample", lambda step: len(step[1])):
                    on_step(where.step / steps_per_epoch)
                    spent = time_spent() if fit_minutes else 0.0
                    rate = learning_rate(where.step, steps_per_epoch, config, spent)
                    losses, targets = _step_that_fits(
                        partial(
                            _step,
                            task,
                            wrapped,
                            optimizer,
                            scaler,
                            where=where,
                            config=config,
                            device=device,
                            precision=precision,
                            rate=rate,
                            world=world,
                            rows=rows,
                        ),
                        window,
                        partial(micro.window, task, rows, where.epoch, world),
                        micro,
                        device,
                        world,
                    )
                    for name, value in losses.items() if board else ():
                        board.add_scalar(f"step/{name}", value / max(targets[name], 1), where.step)
                    for name, value in losses.items():
                        where.epoch_sums[name] = where.epoch_sums.get(name, 0.0) + value
                        where.epoch_targets[name] = where.epoch_targets.get(name, 0.0) + targets[name]
                    where.step += 1
                    where.batch += 1
                    where.samples += len(rows)
                    if _any_rank(interrupted(), device, world):
                        save()
                        logger.info("state saved at step %d", where.step)
                        raise KeyboardInterrupt
                    if _any_rank(time_spent() > 1, device, world):
                        reason = "minutes"
                        break
                    if time.monotonic() - last_saved > 60 * config.save_minutes:
                        save()
            values: dict[str, float] = {}
            on_step(None)
            if rank() == 0:
                wrapped.eval()
                values = task.evaluate(model, device)
            wait_for_ranks()
            where.seconds = time.monotonic() - started
            record = {
                "epoch": where.epoch + 1,
                "step": where.step,
                "learning_rate": optimizer.param_groups[0]["lr"],
                **{
                    f"loss_{name}": where.epoch_sums[name] / max(where.epoch_targets[name], 1)
                    for name in sorted(where.epoch_sums)
                    if where.epoch_targets[name]
                },
                **values,
            }
            for name, value in record.items() if board else ():
                board.add_scalar(f"epoch/{name}", value, where.epoch + 1)
            score = values.get(task.metric)
            better = score is None or where.best is None or score > where.best
            if better:
                where.best, where.best_epoch = score, where.epoch + 1
                if rank() == 0:
                    save_best(model)
            if reason == "minutes":
                # In the middle of the epoch: with more time, the same command goes on here, and what is
                # better already stays.
                save()
            where.history.append(record)
            if rank() == 0:
                shown = ", ".join(
                    f"{name.replace('_', ' ')} {value:.4g}"
                    for name, value in record.items()
                    if name not in ("epoch", "step", "learning_rate", "score", "best_accuracy")
                    # Those of each objective are in metrics.jsonl.
                    and not re.fullmatch("val_.+_loss|kept_.+", name)
                )
                logger.info("%s: %s, %.0f s", label, shown, where.seconds)
                write_text(
                    out / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in where.history)
                )
            where.epoch, where.batch = where.epoch + 1, 0
            where.epoch_sums, where.epoch_targets = {}, {}
            stop = patience > 0 and where.epoch - where.best_epoch >= patience
            # Rank 0 alone knows the validation values.
            if _any_rank(stop and rank() == 0, device, world):
                where.stopped = "patience"
            if reason == "minutes":
                break
            save()
    reason = where.stopped or reason
    return TrainingResult(
        where.step,
        where.epoch,
        where.best,
        where.best_epoch,
        where.seconds,
        where.samples,
        reason,
        where.history,
    )


def learning_rate(step: int, steps_per_epoch: int, config: TrainingConfig, time_spent: float = 0.0) -> float:
    """Learning rate of a step; a function of the settings alone where no time is spent.

    Args:
        step: From 0.
        steps_per_epoch: Steps.
        config: Resolved settings.
        time_spent: Share of the time at hand; a linear schedule is as far as the further of time and steps.
    """
    assert config.learning_rate is not None and config.epochs is not None
    total = steps_per_epoch * config.epochs
    warmup = config.warmup * (total if config.warmup < 1 else steps_per_epoch)
    place: float = step
    if config.schedule == "linear":
        place = max(place, total * min(time_spent, 1.0))
    if place < warmup:
        return config.learning_rate * (place + 1) / max(warmup, 1)
    if config.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.decay_epochs)
        return config.learning_rate * 0.1**passed
    if config.schedule == "linear":
        return config.learning_rate * max(total - place, 0) / max(total - warmup, 1)
    return config.learning_rate


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """NumPy arrays to tensors on the device; other values as they are."""

    def moved(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {name: moved(value) for name, value in batch.items()}


# ---- one step -----------------------------------------------------------------------------------


def _step(
    task: Task,
    model: Any,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    window: Sequence[tuple[Batch, bool]],
    where: Progress,
    config: TrainingConfig,
    device: torch.device,
    precision: torch.dtype | None,
    rate: float,
    world: int,
    rows: NDArray,
) -> tuple[dict[str, float], dict[str, float]]:
    """One optimizer step over the micro-batches of an accumulation window; `rows` are its samples."""
    torch.manual_seed(mix(config.seed, where.step, rank(), 2))
    for group in optimizer.param_groups:
        group["lr"] = rate
    targets: dict[str, float] = {}
    for batch, real in window:
        for name, count in task.targets(batch, where.epoch).items():
            targets[name] = targets.get(name, 0.0) + (count if real else 0.0)
    targets = _sum_over_ranks(targets, device, world)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for number, (batch, real) in enumerate(window):
        last = number == len(window) - 1
        context = contextlib.nullcontext() if last or world == 1 else model.no_sync()
        with context:
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                losses = task.losses(model, to_device(batch, device), where.epoch)
            # DDP averages over ranks; the loss is a mean over the targets of all of them.
            total = torch.stack([loss / max(targets[name], 1) for name, loss in losses.items()]).sum()
            scaler.scale(total * (world if real else 0.0)).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + (float(loss.detach()) if real else 0.0)
    sums = _sum_over_ranks(sums, device, world)
    if not all(np.isfinite(value) for value in sums.values()):
        broken = ", ".join(f"{name} {value}" for name, value in sums.items())
        raise DataError(
            f"training: the loss is not finite at step {where.step} ({broken}), over {task.named(rows)}",
            hint="what was saved before is kept; try a lower --learning-rate or --precision fp32",
        )
    scaler.unscale_(optimizer)
    if config.grad_clip > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    scaler.step(optimizer)
    scaler.update()
    return sums, targets


class _MicroBatch:
    """How many samples a device takes at once; fewer once its memory has not sufficed.

    Args:
        size: At first; None takes all that the device has of a step.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size

    def window(self, task: Task, rows: NDArray, epoch: int, world: int) -> list[tuple[Batch, bool]]:
        """Micro-batches of this rank's share of a step, and whether each counts.

        A rank without a row of its own gets one that does not count, since all ranks must take part.
        """
        own = rows[rank() :: world]
        if not len(own):
            return [(task.collate(rows[:1], epoch), False)]
        size = self._size or len(own)
        return [(task.collate(own[begin : begin + size], epoch), True) for begin in range(0, len(own), size)]

    def shrink(self, tried: int, world: int) -> None:
        """Take at most half as many from now on as were tried.

        Raises:
            DataError: It was one already, or other ranks are waiting for this one.
        """
        if tried == 1 or world > 1:
            raise DataError(
                f"training: out of memory with {tried} samples at once",
                hint="set a smaller micro_batch_size in the --config file (the batch stays as it is), or take"
                " a smaller --size",
            )
        if self._size is not None and self._size < tried:
            return  # it was made before the last time
        self._size = -(-tried // 2)
        logger.warning(
            "out of memory with %d samples at once: going on with %d; the batch stays as large",
            tried,
            self._size,
        )


Window = list[tuple[Batch, bool]]
Sums = tuple[dict[str, float], dict[str, float]]


def _step_that_fits(
    step: Callable[[Window], Sums],
    window: Window,
    remake: Callable[[], Window],
    micro: _MicroBatch,
    device: torch.device,
    world: int,
) -> Sums:
    """Take a step, with fewer samples at once for as long as the memory does not suffice."""
    while True:
        try:
            return step(window)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        # Out of the clause above, which holds on to the memory.
        micro.shrink(max(len(batch["input_ids"]) for batch, _ in window), world)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        window = remake()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _prefetch(
    task: Task, batches: Sequence[NDArray], epoch: int, micro: _MicroBatch, world: int
) -> Generator[tuple[list[tuple[Batch, bool]], NDArray], None, None]:
    """Micro-batches of each step for this rank, the next step's made while the model runs."""
    with ThreadPoolExecutor(1, thread_name_prefix="collate") as pool:
        pending = pool.submit(micro.window, task, batches[0], epoch, world) if batches else None
        for number, rows in enumerate(batches):
            assert pending is not None
            window = pending.result()
            if number + 1 < len(batches):
                pending = pool.submit(micro.window, task, batches[number + 1], epoch, world)
            yield window, rows


@contextlib.contextmanager
def _tensorboard(config: TrainingConfig, out: Path, step: int) -> Iterator[Any]:
    """A writer of TensorBoard's on rank 0 where the settings ask for it, else None."""
    if not config.tensorboard or rank() > 0:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            f"tensorboard: cannot be loaded ({error})",
            hint="pip install 'tbkin[tensorboard]', or leave --tensorboard away",
        ) from error
    # What an interrupted run wrote beyond the state that it goes on from is hidden.
    with write_errors(out), SummaryWriter(str(out / "tensorboard"), purge_step=step) as writer:
        yield writer


def _optimizer(model: PreTrainedModel, config: TrainingConfig) -> torch.optim.Optimizer:
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim < 2 or "norm" in name else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate or 0.0, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _precision(name: str, device: torch.device) -> torch.dtype | None:
    if name == "auto":
        return torch.bfloat16 if _has_fast_bf16(device) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 numbers itself; elsewhere they are slower than single ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    # PyTorch has no public name for this in all the versions that we allow.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)


# ---- several processes --------------------------------------------------------------------------


def _distribute(model: PreTrainedModel, device: torch.device, world: int) -> Any:
    if world == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        # The pooler of a REC model takes no part in its loss.
        find_unused_parameters=isinstance(model, TbkinForRec),
    )


def _sum_over_ranks(values: dict[str, float], device: torch.device, world: int) -> dict[str, float]:
    if world == 1:
        return values
    names = sorted(values)
    kind = torch.float64 if device.type == "cpu" else torch.float32
    tensor = torch.tensor([values[name] for name in names], dtype=kind, device=device)
    torch.distributed.all_reduce(tensor)
    return dict(zip(names, tensor.tolist(), strict=True))


def _any_rank(flag: bool, device: torch.device, world: int) -> bool:
    return flag if world == 1 else _sum_over_ranks({"flag": float(flag)}, device, world)["flag"] > 0


# ---- state --------------------------------------------------------------------------------------


def _save_state(
    path: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    where: Progress,
    fingerprint: str,
) -> None:
    with atomic_directory(path) as temporary:
        # Through open files: with a path, torch hides a full disk behind an error of its own.
        moments = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        for name, content in (("model.pt", model.state_dict()), ("optimizer.pt", moments)):
            with (temporary / name).open("wb") as file:
                torch.save(content, file)
        write_json(temporary / "progress.json", {"fingerprint": fingerprint, **asdict(where)})


def _load_state(
    path: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    fingerprint: str,
    device: torch.device,
) -> Progress:
    try:
        content = read_json(path / "progress.json")
        found = content.pop("fingerprint")
        if found != fingerprint:
            raise CheckpointError(
                f"{path}: belongs to a run with other data or settings",
                hint="use --overwrite to begin anew, or --out DIR for another place",
            )
        weights = torch.load(path / "model.pt", map_location=device, weights_only=True)
        moments = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
        where = Progress(**content)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments["optimizer"])
        scaler.load_state_dict(moments["scaler"])
    except CheckpointError:
        raise
    except (
        TbkinError,
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"{path}: the state to resume from cannot be read ({error})", hint="use --overwrite to begin anew"
        ) from error
    return where


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the run after the current step; a second one ends it at once."""
    hits = 0

    def note(number: int, frame: object) -> None:
        nonlocal hits
        hits += 1
        # A launched rank gets the terminal's signal and its parent's; the parent decides when to kill.
        if hits > 1 and "RANK" not in os.environ:
            raise KeyboardInterrupt

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may set handlers; elsewhere Ctrl-C keeps its usual meaning.
        with contextlib.suppress(ValueError):
            previous[number] = signal.signal(number, note)
    try:
        yield lambda: hits > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
