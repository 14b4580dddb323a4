"""One optimizer step: micro-batches, precision, several processes, and what if memory does not suffice."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tbkin_core.errors import DataError
from tbkin_core.modeling.acceleration import accelerate
from tbkin_core.support.randomness import mix
from tbkin_core.support.ranks import rank, world_size
from tbkin_core.support.workers import processors
from tbkin_core.tasks.base import Objective
from tbkin_core.tasks.inputs import Batch, to_device
from tbkin_core.training.plan import TrainingPlan

logger = logging.getLogger("tbkin")

Sums = dict[str, float]

MOST_LOADERS = 4
"""Threads that make batches ahead for a CUDA device; one makes some 10,000 samples per second."""


@dataclass(frozen=True, slots=True)
class Window:
    """A step's samples, and this rank's share in micro-batches; `counts` is False where that is empty."""

    rows: NDArray
    batches: list[Batch]
    targets: Sums  # how many targets each objective has in this rank's share
    counts: bool = True
    ready: torch.cuda.Event | None = None  # once it has happened the batches are on the device


class Learner:
    """A model with its optimizer, which takes one step after the other on the device of this process."""

    def __init__(
        self, objective: Objective, model: PreTrainedModel, plan: TrainingPlan, device: torch.device
    ) -> None:
        self.objective, self.model, self.plan, self.device = objective, model, plan, device
        self.precision = _precision(plan.precision, device)
        kernel = (self.precision or torch.float32) if plan.kernels else None
        accelerate(model, device, kernel=kernel, compiled=plan.compile)
        self.compiled: bool = model.tbkin.encoder.compiled  # type: ignore[union-attr, assignment]
        self.lengths = objective.lengths()  # the same in every epoch
        self.world = world_size()
        if not plan.encoder_rate:
            # What does not move needs no gradient, nor is it to count where gradients are clipped.
            model.base_model.requires_grad_(False)
        self.optimizer = _optimizer(model, plan)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.micro_batch_size = plan.micro_batch_size
        self._wrapped: Any = model
        on_cuda = device.type == "cuda"
        # On a CPU more of them would take from what the model computes with.
        self.loaders = min(processors(), MOST_LOADERS) if on_cuda else 1
        self._copies = torch.cuda.Stream(device) if on_cuda else None
        if not plan.keep_features:
            objective.vectors.release()
        elif on_cuda and (kept := objective.vectors.keep_on(device)):
            logger.info("region features are kept on the device (%.1f GB)", kept / 1e9)
        self._short_of_memory = False

    def computed_on(self) -> dict[str, Any]:
        """What the last digits of a result depend on, beside settings and data."""
        precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.precision]
        device, threads = "cpu", {"threads": torch.get_num_threads()}
        if self.device.type != "cpu":
            device, threads = torch.cuda.get_device_name(self.device), {}
        return {
            "device": device,
            "precision": precision,
            **({"compiled": True} if self.compiled else {}),
            **threads,
            "processes": self.world,
            "torch": torch.__version__,
        }

    def distribute(self) -> None:
        """Share gradients with the other ranks, which have joined."""
        if self.world == 1:
            return
        from torch.nn.parallel import DistributedDataParallel

        self._wrapped = DistributedDataParallel(
            self.model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=not self.objective.uses_all_weights,
        )

    def train(self, mode: bool = True) -> None:
        """Training mode, or evaluation mode."""
        self._wrapped.train(mode)

    def window(self, rows: NDArray, epoch: int) -> Window:
        """This rank's share of a step; one row that does not count if it has none, as all must take part."""
        own = rows[rank() :: self.world]
        size = self.micro_batch_size
        parts = [own[begin : begin + size] for begin in range(0, len(own), size)] or [rows[:1]]
        batches = [self.objective.collate(part, epoch) for part in parts]
        targets: Sums = defaultdict(float)
        for batch in batches:
            for name, count in self.objective.targets(batch, epoch).items():
                targets[name] += count if len(own) else 0.0
        return Window(rows, batches, dict(targets), counts=bool(len(own)))

    def fetched(self, window: Window) -> Window:
        """The same on the device; to CUDA beside what is computed there, on a stream of its own."""
        if self._short_of_memory:
            return window  # each micro-batch goes there on its own
        if self._copies is None:
            return replace(window, batches=[to_device(batch, self.device) for batch in window.batches])
        try:
            with torch.cuda.stream(self._copies):
                batches = [to_device(batch, self.device) for batch in window.batches]
                return replace(window, batches=batches, ready=self._copies.record_event())
        except torch.OutOfMemoryError:
            return window  # the step finds out whether the memory suffices

    def step(self, window: Window, number: int, epoch: int, rate: float) -> tuple[Sums, Sums]:
        """Take a step, with fewer samples at once for as long as the memory does not suffice.

        Args:
            window: Samples of the epoch.
            number: Of the step in this run, from 0; dropout follows from it.
            rate: Learning rate.

        Returns:
            Over all ranks, the sum of each loss, and the number of targets that it is a mean over.

        Raises:
            DataError: The loss is not finite, or the memory does not suffice for one sample.
        """
        while True:
            try:
                return self._step(window, number, epoch, rate)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Out of the clause above, which holds on to the memory.
            self._short_of_memory = True
            if self.world == 1 and self.objective.vectors.release():
                logger.warning("out of memory: region features are no longer kept on the device")
            else:
                self._take_fewer(max(len(batch["region_mask"]) for batch in window.batches))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            window = self.window(window.rows, epoch)

    def _step(self, window: Window, number: int, epoch: int, rate: float) -> tuple[Sums, Sums]:
        torch.manual_seed(mix(self.plan.seed, number, rank(), 2))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        targets = self._sum_over_ranks(window.targets)
        self._await(window)
        self.optimizer.zero_grad(set_to_none=True)
        names: list[str] = []
        sums = torch.zeros((), dtype=torch.float64, device=self.device)
        for place, batch in enumerate(window.batches):
            last = place == len(window.batches) - 1
            with contextlib.nullcontext() if last or self.world == 1 else self._wrapped.no_sync():
                with torch.autocast(
                    self.device.type, dtype=self.precision, enabled=self.precision is not None
                ):
                    losses = self.objective.losses(self._wrapped, to_device(batch, self.device), epoch)
                # DDP averages over ranks; the loss is a mean over the targets of all of them.
                total = torch.stack([loss / max(targets[name], 1) for name, loss in losses.items()]).sum()
                self.scaler.scale(total * (self.world * float(window.counts))).backward()
            names = list(losses)
            sums = sums + torch.stack([loss.detach().double() for loss in losses.values()])
        if not window.counts:
            sums = torch.zeros_like(sums)
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        try:
            self._update(sums)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            # Some weights may have moved; the step cannot be taken again.
            raise DataError(
                f"training: out of memory in the optimizer's step {number}",
                hint="what was saved before is kept; take a smaller --size, or in the --config file"
                " keep_features: false and a smaller micro_batch_size",
            ) from error
        # Here alone a device is waited for: all of the step is on its way by now.
        means = dict(zip(names, sums.tolist(), strict=True))
        if not all(np.isfinite(value) for value in means.values()):
            broken = ", ".join(f"{name} {value}" for name, value in means.items())
            raise DataError(
                f"training: the loss is not finite at step {number} ({broken}), over"
                f" {self.objective.named(window.rows)}",
                hint="what was saved before is kept; try a lower --learning-rate or --precision fp32",
            )
        return means, targets

    def _await(self, window: Window) -> None:
        """Let the device begin once the batches are there."""
        if window.ready is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(window.ready)
        for batch in window.batches:
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    # Else its memory would be given to the next batch while this one is computed with.
                    value.record_stream(current)

    def _update(self, sums: torch.Tensor) -> None:
        """Clip the gradients and move the weights, unless a loss is not finite: then nothing moves."""
        if not self.scaler.is_enabled():
            # The fused optimizer looks at this on the device; the scaler brings the same from the gradients.
            self.optimizer.found_inf = (~torch.isfinite(sums).all()).float()  # type: ignore[attr-defined]
        self.scaler.unscale_(self.optimizer)
        if self.plan.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._wrapped.parameters(), self.plan.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _take_fewer(self, tried: int) -> None:
        """Take at most half as many samples at once from now on as were tried.

        Raises:
            DataError: It was one already, or other ranks are waiting for this one.
        """
        if tried == 1 or self.world > 1:
            kept = " or keep_features: false" if self.objective.vectors.release() else ""
            raise DataError(
                f"training: out of memory with {tried} samples at once",
                hint=f"set a smaller micro_batch_size{kept} in the --config file (the batch stays as it is),"
                " or take a smaller --size",
            )
        if self.micro_batch_size < tried:
            return  # the window was made before the last time
        self.micro_batch_size = -(-tried // 2)
        text = "out of memory with %d samples at once: going on with %d; the batch stays as large"
        if self.objective.compares_samples:
            text += ", but its samples are told from fewer others"
        logger.warning(text, tried, self.micro_batch_size)

    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is set on some rank; all ranks must ask."""
        return flag if self.world == 1 else self._sum_over_ranks({"flag": float(flag)})["flag"] > 0

    def mean_over_ranks(self, value: float) -> float:
        """The mean of a number, the same on every rank; all must ask."""
        return value if self.world == 1 else self._sum_over_ranks({"value": value})["value"] / self.world

    def _sum_over_ranks(self, values: Sums) -> Sums:
        if self.world == 1:
            return values
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return dict(zip(names, tensor.tolist(), strict=True))


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _optimizer(model: PreTrainedModel, plan: TrainingPlan) -> torch.optim.Optimizer:
    # What is new first: the first group's rate is the one that is noted.
    shares = (1.0, plan.encoder_rate) if plan.encoder_rate != 1 else (1.0,)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": decay, "share": share}
        for share in shares
        for decay in (plan.weight_decay, 0.0)
    ]
    for name, parameter in model.named_parameters():
        place = len(groups) - 2 if name.startswith(f"{model.base_model_prefix}.") else 0
        groups[place + int(parameter.ndim < 2 or "norm" in name)]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _precision(name: str, device: torch.device) -> torch.dtype | None:
    if name == "auto":
        return torch.bfloat16 if _has_fast_bf16(device) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 numbers itself; elsewhere they are slower than single ones."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(False)
    # PyTorch has no public name for this in all the versions that we allow.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)
