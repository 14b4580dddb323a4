"""Where the time of a training step goes: the dearest kernels, and how long the device waits between them.

On a CPU the operators stand in place of the kernels.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from model_speed import synchronise
from torch.profiler import ProfilerActivity, profile

from checking.outcome import MEASURED, Check
from checking.speed import BEST, Speed

STEPS, DEAREST, GAPS = 5, 10, 3
LEAST_GAP = 10e-6  # seconds


def run(check: Check) -> None:
    """The rows of the fastest dense training, then of thresholded and pretraining steps."""
    speed = Speed(check, tell=False)
    batch = BEST.batch or (8 if check.tiny else 256)
    for kind, plan in (("dense", BEST.plan), ("τ = 0.3", BEST.plan), ("pretraining", BEST.plan)):
        check.attempt(f"{kind}, batch {batch}", dearest, check, speed, kind, batch, plan)


def dearest(check: Check, speed: Speed, kind: str, batch: int, plan: dict[str, Any]) -> None:
    """Rows: the kernels of some steps, the gaps between them, and the largest gaps."""
    cuda = check.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with speed.trainer(kind, batch, **plan) as trainer:
        for _ in range(4):
            trainer.step()
        synchronise(check.device)
        with profile(activities=activities) as found:
            start = time.perf_counter()
            for _ in range(STEPS):
                trainer.step()
            synchronise(check.device)
            wall = time.perf_counter() - start
    spans = _spans(found, cuda)
    if not spans:
        raise RuntimeError("the profiler saw no kernels")
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in found.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if own > 0 and (not cuda or event.device_type == torch.autograd.DeviceType.CUDA):
            total[event.key] += own / 1e6
            calls[event.key] += event.count
    for place, name in enumerate(sorted(total, key=total.__getitem__, reverse=True)[:DEAREST]):
        check.row(
            f"{kind}, {place + 1}", MEASURED, _short(name), **{
                "ms a step": 1000 * total[name] / STEPS,
                "of the step": f"{total[name] / wall:.1%}",
                "calls a step": calls[name] / STEPS,
            }
        )  # fmt: skip
    busy, gaps = _gaps(spans)
    kernels = sum(end - begin for begin, end, _ in spans) if cuda else sum(total.values())
    for name, seconds, note in (
        ("the step", wall, f"batch {batch}, under the profiler"),
        ("all kernels", kernels, f"{len(spans) / STEPS:.0f} a step"),
        (
            "gaps",
            max(wall - busy, 0.0),
            f"{sum(gap > LEAST_GAP for gap, _ in gaps) / STEPS:.0f} of over 10 µs a step",
        ),
    ):
        columns = {"ms a step": 1000 * seconds / STEPS, "of the step": f"{seconds / wall:.1%}"}
        check.row(f"{kind}, {name}", MEASURED, note, **columns)
    for place, (gap, after) in enumerate(sorted(gaps, reverse=True)[:GAPS]):
        columns = {"ms a step": 1000 * gap, "of the step": f"{gap * STEPS / wall:.1%}"}
        check.row(f"{kind}, gap {place + 1}", MEASURED, f"once, after {_short(after)}", **columns)


def _spans(found: Any, cuda: bool) -> list[tuple[float, float, str]]:
    """Begin and end in seconds, and name, of each kernel, in order."""
    wanted = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    spans = [
        (event.time_range.start / 1e6, event.time_range.end / 1e6, event.name)
        for event in found.events()
        if event.device_type == wanted and (cuda or event.name.startswith("aten::"))
    ]
    return sorted(spans)


def _gaps(spans: list[tuple[float, float, str]]) -> tuple[float, list[tuple[float, str]]]:
    """How long any kernel ran, and each stretch in which none did, with the kernel before it."""
    busy, gaps = 0.0, []
    begin, end, last = spans[0]
    for start, stop, name in spans[1:]:
        if start > end:
            busy += end - begin
            gaps.append((start - end, last))
            begin = start
        if stop > end:
            end, last = stop, name
    return busy + end - begin, gaps


def _short(name: str, length: int = 72) -> str:
    """A kernel's name without its template's noise."""
    plain = name.removeprefix("void ").replace("at::native::", "").replace("(anonymous namespace)::", "")
    return plain if len(plain) <= length else plain[: length - 1] + "…"
