"""How fast a whole step of training is, the real loader and optimizer included, and what limits it.

Dense and thresholded attention are measured over questions (VQA), pretraining with masking and optimal
transport; 20 tokens and 36 regions a sample, half precision. The peak is that of large matrix products in the
same process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from model_speed import (
    REGIONS,
    TOKENS,
    matrix_peak,
    operations,
    pretraining_heads,
    synchronise,
    visualbert,
    visualbert_loss,
)
from torch import Tensor

from checking.outcome import MEASURED, MISSED, REACHED, SKIPPED, Check, free_memory, peak_memory
from checking.world import OBJECTIVES, Shape, World, make_model, make_plan, make_world, plan_fields
from tbkin_core.modeling import Selection, kernels, selective_attention
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.training.loop import batches_left, prefetched, take_steps
from tbkin_core.training.state import Progress
from tbkin_core.training.step import Learner

FULL, TINY = Shape(2048, 6, 2048, 30522, 3129), Shape(64, 2, 64, 300, 20)
BATCHES, TINY_BATCHES = (64, 128, 256, 512, 1024, 2048), (4, 8)
RATE = 1e-5
KINDS = {"dense": ("vqa", 0.0), "τ = 0.3": ("vqa", 0.3), "pretraining": ("pretraining", 0.0)}
# Fields of the plan that are tried, each against its default.
VARIANTS = {"kernels": False, "keep_features": False, "compile": True}
SHARE, SAMPLES, THRESHOLD, LOADER = 0.4, 10_000, 1.05, 1.05  # the aims


@dataclass(slots=True)
class Best:
    """The fastest way found to train the dense model, for the sections after this one."""

    batch: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    samples: float = 0.0
    share: float = 0.0


BEST = Best()
_OPENED: list[Speed] = []


def opened(check: Check) -> Speed:
    """The measurements of this process, whose data takes some seconds to make."""
    if not _OPENED:
        _OPENED.append(Speed(check))
    _OPENED[0].check = check
    return _OPENED[0]


def run(check: Check) -> None:
    """All measurements, those that matter most first."""
    speed = opened(check)
    middle = TINY_BATCHES[-1] if check.tiny else 256
    check.attempt("dense and τ = 0.3", speed.side_by_side, middle)
    check.attempt("pretraining", speed.measure, "pretraining", middle)
    check.attempt("VisualBERT", speed.measure_peer, middle)
    for batch in TINY_BATCHES if check.tiny else BATCHES:
        if batch != middle:
            check.attempt(f"dense, batch {batch}", speed.measure, "dense", batch)
    best = BEST.batch or middle
    if best != middle:
        check.attempt("dense and τ = 0.3", speed.side_by_side, best)
        check.attempt("pretraining", speed.measure, "pretraining", best)
        check.attempt("VisualBERT", speed.measure_peer, best)
    for name in ("vqa", "pretraining"):
        check.attempt(f"loader alone, {name}", speed.loader_alone, name, best)
    check.attempt("without a loader", speed.one_batch, best)
    check.attempt("attention alone", attention_alone, check, best)
    for name in plan_fields(*VARIANTS):
        told = f"{name} {'on' if VARIANTS[name] else 'off'}"
        if name == "compile" and check.device.type == "cpu":
            for kind in KINDS:
                check.row(f"{kind}, {told}", SKIPPED, "takes a minute on a CPU")
            continue
        plan: dict[str, Any] = {name: VARIANTS[name]}
        check.attempt(f"dense and τ = 0.3, {told}", partial(speed.side_by_side, **plan), best)
        check.attempt(f"pretraining, {told}", partial(speed.measure, **plan), "pretraining", best)
    speed.aims()


# ---- what is measured ---------------------------------------------------------------------------


class Trainer:
    """A run that goes on for as long as somebody wants steps; a context that ends it."""

    def __init__(
        self, check: Check, world: World, kind: str, batch: int, objective: Any, **plan: Any
    ) -> None:
        name, threshold = KINDS[kind]
        size = "tiny" if check.tiny else "base"
        model = make_model(world, name, size, spread=2.0)
        model.tbkin.selection = Selection("relative", threshold)
        values = {"size": size, "batch_size": batch, "precision": "bf16", **plan}
        self.learner = Learner(objective, model, make_plan(**values), check.device)
        self.batches = endless(self.learner, batch)
        self._steps = take_steps(self.learner, self.batches, Progress(), lambda: RATE)

    def step(self) -> None:
        """Take a step."""
        next(self._steps)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.close()


class SameBatch:
    """The steps of a trainer over one batch that was loaded before."""

    def __init__(self, trainer: Trainer) -> None:
        self.learner = trainer.learner
        self.window = self.learner.fetched(self.learner.window(trainer.batches[0], 0))

    def step(self) -> None:
        """Take a step."""
        self.learner.step(self.window, 0, 0, RATE)


class PeerTrainer:
    """VisualBERT of the same size, its batch on the device already."""

    def __init__(self, check: Check, world: World, batch: int) -> None:
        self.device, shape = check.device, world.shape
        size: dict[str, Any] = dict(SIZES["tiny" if check.tiny else "base"])
        self.model = visualbert(size, shape.feature_size, shape.vocabulary).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=True)
        labels = torch.randint(5, shape.vocabulary, (batch, TOKENS + REGIONS))
        chosen = (torch.rand(labels.shape) < 0.15) & (torch.arange(TOKENS + REGIONS) < TOKENS)
        made = {
            "input_ids": torch.randint(5, shape.vocabulary, (batch, TOKENS)),
            "attention_mask": torch.ones(batch, TOKENS, dtype=torch.bool),
            "region_features": torch.rand(batch, REGIONS, shape.feature_size),
            "region_mask": torch.ones(batch, REGIONS, dtype=torch.bool),
            "all_labels": labels.masked_fill(~chosen, -100),
            "matched": torch.randint(0, 2, (batch,)),
        }
        self.inputs = {name: value.to(self.device) for name, value in made.items()}

    def step(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = visualbert_loss(self.model, self.inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def endless(learner: Learner, batch: int) -> Sequence[Any]:
    """The whole batches of an epoch, again and again, so that no measurement meets its end."""
    return [rows for rows in batches_left(learner, Progress()) if len(rows) == batch] * 2000


def seconds_a_step(trainers: Sequence[Any], device: torch.device, seconds: float) -> list[float]:
    """Mean seconds of a step of each trainer over all its steps; blocks of them take turns.

    A mean, not a median: a loader that is too slow makes some steps slow and others not. And while one
    trainer waits for its turn its loaders fill up, so each block begins with steps that use that up.
    """
    for trainer in trainers:
        for _ in range(3):  # to warm up
            trainer.step()
    plans = []
    for trainer in trainers:
        ahead = 1 + getattr(getattr(trainer, "learner", None), "loaders", 0)
        synchronise(device)
        start = time.perf_counter()
        for _ in range(2):
            trainer.step()
        synchronise(device)
        count = max(round(min(0.3, seconds) * 2 / (time.perf_counter() - start)), 1)
        plans.append((ahead, max(count, 3 * ahead)))
    spent, steps = [0.0] * len(trainers), [0] * len(trainers)
    until = time.monotonic() + seconds
    while not steps[0] or time.monotonic() < until:
        for number, (trainer, (ahead, count)) in enumerate(zip(trainers, plans, strict=True)):
            for _ in range(ahead):
                trainer.step()
            synchronise(device)
            start = time.perf_counter()
            for _ in range(count):
                trainer.step()
            synchronise(device)
            spent[number] += time.perf_counter() - start
            steps[number] += count
    return [time_spent / count for time_spent, count in zip(spent, steps, strict=True)]


def attention_alone(check: Check, batch: int) -> None:
    """Rows: forward and backward of one layer's attention at size base, in each way that there is."""
    heads, length, width = (2, 12, 8) if check.tiny else (12, TOKENS + REGIONS, 64)
    device, selection = check.device, Selection("relative", 0.3)
    joined = [torch.randn(batch, length, heads * width, device=device) for _ in range(3)]
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16
    made = [part.to(kind).view(batch, length, heads, width).transpose(1, 2) for part in joined]
    query, key, value = (part.detach().requires_grad_() for part in made)
    mask = torch.arange(length, device=device) < torch.randint(
        length // 2, length + 1, (batch, 1), device=device
    )
    upstream = torch.randn_like(value)

    def plainly(chosen: Selection, kernel: torch.dtype | None = None) -> Tensor:
        given = query, key, value, mask[:, None, None, :], chosen
        return selective_attention(*given, dropout=0.1, kernel=kernel)[0]

    def dense_kernel() -> Tensor:
        return kernels.fused_attention(query, key, value, mask, "dense", 0.0, dropout=0.1)

    ways: dict[str, Any] = {"dense, PyTorch's": partial(plainly, Selection())}
    ways["τ = 0.3, plain"] = partial(plainly, selection)
    if kernels.available(device):
        ways |= {"dense, kernel": dense_kernel, "τ = 0.3, kernel": partial(plainly, selection, kind)}
    if device.type == "cuda":
        ways["τ = 0.3, compiled"] = torch.compile(partial(plainly, selection))
    for name, way in ways.items():

        class Once:
            def step(self, way: Any = way) -> None:
                torch.autograd.grad(way(), (query, key, value), upstream)

        (seconds,) = seconds_a_step([Once()], device, 0.03 if check.tiny else 0.5)
        columns = {"ms a step": 1000 * seconds}
        check.row(
            f"attention of a layer: {name}", MEASURED, f"batch {batch}, forward and backward", **columns
        )


# ---- rows ---------------------------------------------------------------------------------------


class Speed:
    """Measurements over one world."""

    def __init__(self, check: Check) -> None:
        self.check, self.device = check, check.device
        self.world = make_world(check.place / "large", TINY if check.tiny else FULL)
        self.objectives = {name: OBJECTIVES[name](self.world) for name in ("vqa", "pretraining")}
        self.seconds = 0.03 if check.tiny else 2.0
        self.peak = matrix_peak(self.device, torch.bfloat16, 256 if check.tiny else 0)
        self.ratios: dict[str, float] = {}
        self.loaders: dict[str, float] = {}
        self.found: dict[tuple[str, int], float] = {}
        told = f"{self.peak / 1e12:.3g} TFLOP/s, the peak below"
        check.row("matrix products, bf16", MEASURED, told)

    def trainer(self, kind: str, batch: int, **plan: Any) -> Trainer:
        return Trainer(self.check, self.world, kind, batch, self.objectives[KINDS[kind][0]], **plan)

    def measure(self, kind: str, batch: int, **plan: Any) -> None:
        """A row: one way to train."""
        with peak_memory(self.device) as memory, self.trainer(kind, batch, **plan) as trainer:
            (seconds,) = seconds_a_step([trainer], self.device, self.seconds)
            self._row(kind, batch, seconds, trainer, memory(), plan)
        del trainer
        free_memory()

    def side_by_side(self, batch: int, **plan: Any) -> None:
        """Two rows: dense and thresholded attention, whose steps take turns."""
        with peak_memory(self.device) as memory, contextlib.ExitStack() as stack:
            trainers = [
                stack.enter_context(self.trainer(kind, batch, **plan)) for kind in ("dense", "τ = 0.3")
            ]
            dense, thresholded = seconds_a_step(trainers, self.device, 2 * self.seconds)
            title = ", ".join([f"batch {batch}", *(f"{key} {value}" for key, value in plan.items())])
            self.ratios[title] = thresholded / dense
            self._row("dense", batch, dense, trainers[0], memory(), plan, "memory is of both")
            note = f"{thresholded / dense:.3f} of the dense step, in turns"
            self._row("τ = 0.3", batch, thresholded, trainers[1], "", plan, note)
            del trainers
        free_memory()

    def measure_peer(self, batch: int) -> None:
        """A row: VisualBERT's steps."""
        self.world.store.vectors.release()  # not the peer's
        with peak_memory(self.device) as memory:
            trainer = PeerTrainer(self.check, self.world, batch)
            (seconds,) = seconds_a_step([trainer], self.device, self.seconds)
            used = memory()
        own = self.found.get(("pretraining", batch))
        note = f"ours is {seconds / own:.2f} times as fast" if own else ""
        self.check.row(
            f"VisualBERT, batch {batch}", MEASURED, note,
            **_columns(batch, seconds, None, used),
        )  # fmt: skip
        del trainer
        free_memory()

    def loader_alone(self, name: str, batch: int) -> None:
        """A row: batches as fast as they can be made."""
        kind = "dense" if name == "vqa" else name
        values = {"batch_size": batch, "precision": "bf16"}
        model = make_model(self.world, name, "tiny")
        learner = Learner(self.objectives[name], model, make_plan(**values), self.device)
        count, start = 0, 0.0
        with contextlib.closing(prefetched(learner, endless(learner, batch), 0)) as windows:
            for number, _ in enumerate(windows):
                if number == 1:
                    start = time.perf_counter()
                elif number > 1:
                    count += 1
                    if time.perf_counter() - start > self.seconds and count >= 3:
                        break
        seconds = (time.perf_counter() - start) / count
        trained = self.found.get((kind, batch))
        if trained:
            self.loaders[name] = trained / seconds
        note = f"{trained / seconds:.1f} times as fast as the steps" if trained else ""
        self.check.row(
            f"loader alone, {name}, batch {batch}", MEASURED, note, **_columns(batch, seconds, None, "")
        )

    def one_batch(self, batch: int) -> None:
        """A row: steps over one batch that was loaded before."""
        with self.trainer("dense", batch) as trainer:
            again = SameBatch(trainer)
            seconds, loaded = seconds_a_step([again, trainer], self.device, 2 * self.seconds)
        self.loaders["real steps"] = seconds / loaded
        note = f"with the loader {loaded / seconds:.3f} times as long, in turns"
        columns = _columns(batch, seconds, None, "")
        self.check.row(f"dense, batch {batch}, always the same", MEASURED, note, **columns)
        del trainer, again
        free_memory()

    def _row(
        self,
        kind: str,
        batch: int,
        seconds: float,
        trainer: Trainer,
        memory: Any,
        plan: dict[str, Any],
        note: str = "",
    ) -> None:
        share = self._operations(kind, batch, trainer) / seconds / self.peak
        taken = trainer.learner.micro_batch_size
        notes = [note, f"{taken} samples at once, for want of memory" if taken < batch else ""]
        told = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in plan.items())
        title = ", ".join(filter(None, [kind, f"batch {batch}", told]))
        self.check.row(
            title, MEASURED, "; ".join(filter(None, notes)), **_columns(batch, seconds, share, memory)
        )
        if not plan:
            self.found[kind, batch] = seconds
        if kind == "dense" and batch / seconds > BEST.samples:
            BEST.batch, BEST.plan = batch, plan
            BEST.samples, BEST.share = batch / seconds, share

    def _operations(self, kind: str, batch: int, trainer: Trainer) -> float:
        """Multiplications and additions of a step, of which there are as many on any device."""
        config: Any = trainer.learner.model.config
        objective = trainer.learner.objective
        width = config.hidden_size
        heads = batch * width * width  # the pooler
        if kind == "pretraining":
            rows = trainer.batches[0][:64]
            counts = objective.targets(objective.collate(rows, 0), 0)
            words, regions = (batch / len(rows) * counts[name] for name in ("mlm", "mrfr"))
            heads += pretraining_heads(config, words, regions)
        else:
            heads += batch * 2 * width * (width + config.num_answers)
        return operations(config, [TOKENS + REGIONS] * batch, batch * REGIONS, heads)

    def aims(self) -> None:
        """Rows: what was to be reached."""
        if BEST.batch:
            told = ", ".join(
                [f"batch {BEST.batch}", *(f"{name} {value}" for name, value in BEST.plan.items())]
            )
            self._aim(f"aim: {SHARE:.0%} of the peak", BEST.share >= SHARE, f"{BEST.share:.1%} ({told})")
            fast = f"{BEST.samples:,.0f} ({told})"
            self._aim(f"aim: {SAMPLES:,} samples a second", BEST.samples >= SAMPLES, fast)
        if self.ratios:
            told = "; ".join(f"{ratio:.3f} ({title})" for title, ratio in self.ratios.items())
            usual = [ratio for title, ratio in self.ratios.items() if "," not in title]
            self._aim(f"aim: τ at most {THRESHOLD} of dense", max(usual) <= THRESHOLD, told)
        if "real steps" in self.loaders:
            slower = 1 / self.loaders["real steps"]
            self._aim(
                f"aim: loading at most {LOADER}",
                slower <= LOADER,
                f"{slower:.3f} of a step that loads nothing",
            )

    def _aim(self, name: str, reached: bool, note: str) -> None:
        status = MEASURED if self.check.tiny else REACHED if reached else MISSED
        self.check.row(name, status, note)


def _columns(batch: int, seconds: float, share: float | None, memory: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {"samples/s": round(batch / seconds), "ms a step": 1000 * seconds}
    columns["of peak"] = "" if share is None else f"{share:.1%}"
    columns["GB"] = memory
    return columns
