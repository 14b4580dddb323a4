"""Where the time of a training step goes: the dearest kernels, and how long the device waits between them.

On a CPU the operators stand in place of the kernels.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from model_speed import synchronise
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from checking.outcome import MEASURED, Check, free_memory
from checking.speed import BEST, Speed, opened, seconds_a_step

STEPS, DEAREST, GAPS = 5, 10, 3


def run(check: Check) -> None:
    """The rows of dense training, of the fastest way found to do it, and of the other kinds of steps."""
    speed = opened(check)
    batch = BEST.batch or (8 if check.tiny else 256)
    check.attempt("dense", dearest, check, speed, "dense", batch, {})
    if BEST.plan:
        check.attempt("dense, fastest", dearest, check, speed, "dense", batch, BEST.plan)
    for kind in ("τ = 0.3", "pretraining"):
        check.attempt(kind, dearest, check, speed, kind, batch, {})


def dearest(check: Check, speed: Speed, kind: str, batch: int, plan: dict[str, Any]) -> None:
    """Rows: the kernels of some steps, the gaps between them, and the largest gaps."""
    title = ", ".join([kind, *(f"{name} {'on' if value else 'off'}" for name, value in plan.items())])
    cuda = check.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with speed.trainer(kind, batch, **plan) as trainer:
        (step,) = seconds_a_step([trainer], check.device, 0.03 if check.tiny else 1.0)
        with profile(activities=activities) as found:
            start = time.perf_counter()
            for _ in range(STEPS):
                trainer.step()
            synchronise(check.device)
            profiled = (time.perf_counter() - start) / STEPS
    del trainer
    free_memory()
    spans = _spans(found, cuda)
    if not spans:
        raise RuntimeError("the profiler saw no kernels")
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in found.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if own > 0 and (not cuda or event.device_type == DeviceType.CUDA) and not _is_note(event, event.key):
            total[event.key] += own / 1e6 / STEPS
            calls[event.key] += event.count
    busy, gaps = _gaps(spans)
    busy /= STEPS

    def row(name: str, seconds: float, note: str, **columns: Any) -> None:
        values = {"ms a step": 1000 * seconds, "of the step": f"{seconds / step:.1%}", **columns}
        check.row(f"{title}: {name}", MEASURED, note, **values)

    row("step", step, f"batch {batch}; {1000 * profiled:.3g} ms under the profiler")
    row("kernels", sum(total.values()), f"{sum(calls.values()) / STEPS:.0f} a step")
    row("gaps", max(step - busy, 0.0), "the step without the time in which a kernel runs")
    for place, name in enumerate(sorted(total, key=total.__getitem__, reverse=True)[:DEAREST]):
        row(f"{place + 1}", total[name], _short(name), calls=calls[name] / STEPS)
    for place, (gap, after) in enumerate(sorted(gaps, reverse=True)[:GAPS]):
        row(f"gap {place + 1}", gap, f"once, under the profiler, after {_short(after)}")


def _is_note(event: Any, name: str) -> bool:
    """Whether an event only marks a stretch of others, as optimizers do."""
    return getattr(event, "is_user_annotation", False) or name.startswith(("Optimizer.", "ProfilerStep"))


def _spans(found: Any, cuda: bool) -> list[tuple[float, float, str]]:
    """Begin and end in seconds, and name, of each kernel, in order; copies may run beside kernels."""
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    spans = [
        (event.time_range.start / 1e6, event.time_range.end / 1e6, event.name)
        for event in found.events()
        if event.device_type == wanted
        and not _is_note(event, event.name)
        and (not event.name.startswith(("Memcpy", "Memset")) if cuda else event.name.startswith("aten::"))
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
