"""Whether the device computes what a CPU does, in every precision, and whether runs survive.

A difference of numbers is relative: of outputs the largest one over the largest number, of losses over the
loss, of gradients the norm of the difference over the norm (of each weight's, the worst is told). Where the
device is a CPU it is compared with itself in double precision.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checking.children import Job, finish, kill_after, ranks
from checking.outcome import FAILED, MEASURED, MISSED, OK, REACHED, SKIPPED, Check, free_memory
from checking.world import (
    OBJECTIVES,
    Shape,
    World,
    make_model,
    make_plan,
    make_world,
    plan_fields,
    pretraining_objective,
)
from tbkin_core.errors import MissingDependencyError
from tbkin_core.modeling import Selection, kernels
from tbkin_core.modeling.attention import select_keys
from tbkin_core.modeling.kernel_checks import attention_problem, transport_problem
from tbkin_core.selection import RULE_TABLE, RULES, SELECTIONS
from tbkin_core.support.devices import Devices
from tbkin_core.tasks.inputs import model_inputs, to_device
from tbkin_core.tasks.vqa import VqaTask
from tbkin_core.training.step import Learner

# Attention of random weights prefers no key; these make its scores as wide as a trained model's.
SPREAD = 2.0
THRESHOLDS = {"relative": 0.3, "probability": 0.02, "score": 0.2, "topk": 8.0}
CLOSE = 1e-5  # a score so near to its threshold may fall on either side of it
# Largest differences of half precisions from single: of losses, of gradients.
HALF = {"bf16": (0.02, 0.15), "fp16": (0.005, 0.03)}
MOST_SCALES = 12  # that are tried
OUTPUTS = ("mlm_logits", "region_feature_pred", "object_logits", "itm_logits", "vqa_logits", "rec_scores")
FULL = Shape(96, 8, 2048, 4000, 400, fewest_regions=10, fewest_words=4)
TINY = Shape(16, 4, 32, 300, 20, fewest_regions=10, fewest_words=4)


def run(check: Check) -> None:
    """All rows of correctness, the cheap ones first."""
    world = make_world(check.place / "world", TINY if check.tiny else FULL)
    objectives = {name: make(world) for name, make in OBJECTIVES.items()}
    compare = Comparison(check, world)
    for name, objective in objectives.items():
        check.attempt(f"{name}, dense", compare.with_cpu, f"{name}, dense", name, objective, Selection())
        for rule in SELECTIONS:
            title = f"{name}, {rule}"
            try:
                selection = Selection(rule, THRESHOLDS.get(rule, 1.0))
            except MissingDependencyError:
                check.row(title, SKIPPED, f"{RULE_TABLE[rule].library} is not installed")
                continue
            title = f"{name}, {selection.name}"
            check.attempt(title, compare.with_cpu, title, name, objective, selection)
    title, interfered = "pretraining, interference", pretraining_objective(world, interference=True)
    check.attempt(title, compare.with_cpu, title, "pretraining", interfered, Selection())
    relative = Selection("relative", THRESHOLDS["relative"])
    for name, objective in objectives.items():
        larger = "small" if check.tiny else "base"
        title = f"{name}, dense, size {larger}"
        check.attempt(title, compare.with_cpu, title, name, objective, Selection(), larger)
    for name, objective in objectives.items():
        check.attempt(f"{name}, waits", compare.waits, name, objective, relative)
    check.attempt("vqa answers", compare.answers, objectives["vqa"])
    for name, objective in objectives.items():
        check.attempt(f"{name}, τ = 0", compare.zero_is_dense, name, objective)
    for precision in HALF:
        for name, objective in objectives.items():
            check.attempt(f"{name}, {precision}", compare.half, name, objective, Selection(), precision)
        title = f"vqa, relative, {precision}"
        check.attempt(title, compare.half, "vqa", objectives["vqa"], relative, precision)
    check.attempt("fp16 with loss scaling", compare.scaled_steps, objectives["vqa"])
    check.attempt("out of memory", out_of_memory, check, world, objectives["vqa"])
    check.attempt("resume after a kill", resume, check, world)
    check.attempt("kernels", kernels_agree, check)
    check.attempt("two ranks on the CPU", two_ranks, check, world, Devices("cpu", (0, 1)))
    count = torch.cuda.device_count() if check.device.type == "cuda" else 1
    if count > 1:
        check.attempt(f"{count} ranks, NCCL", two_ranks, check, world, Devices("cuda", tuple(range(count))))
    check.attempt("one rank", lone_rank, check, world)
    for name, value in [("kernels", False), ("keep_features", False), ("compile", True)]:
        for field in plan_fields(name):
            for selection in (Selection(), relative):
                title = f"vqa, {selection.name}, {field} {'on' if value else 'off'}"
                if field == "compile" and check.device.type == "cpu":
                    check.row(title, SKIPPED, "takes a minute on a CPU")
                    continue
                work: Any = partial(compare.with_cpu, **{field: value})
                check.attempt(title, work, title, "vqa", objectives["vqa"], selection)


def kernels_agree(check: Check) -> None:
    """Rows: each kernel beside plain PyTorch in double precision."""
    if not kernels.available(check.device):
        check.row("kernels", SKIPPED, "Triton is not installed, or on a CPU")
        return
    # Each compiles for some seconds; the rules were compared in single precision before.
    ways = [
        (torch.bfloat16, rule, scope) for rule in kernels.KERNEL_RULES for scope in ("all", "cross-modal")
    ]
    ways += [(torch.float16, "relative", "all"), (torch.float32, "probability", "cross-modal")]
    for dtype, rule, scope in ways:
        problem = attention_problem(check.device, dtype, rule, scope, rule == "score", 56, 64)
        name = f"kernel, {rule}, {scope}, {str(dtype).removeprefix('torch.')}"
        check.row(name, FAILED if problem else OK, problem or "")
    problem = transport_problem(check.device)
    check.row("kernel, optimal transport", FAILED if problem else OK, problem or "")


# ---- one step on two devices --------------------------------------------------------------------


@dataclass(slots=True)
class Passed:
    """What one step computed, on a CPU in double precision."""

    outputs: dict[str, Tensor]
    losses: dict[str, float]
    gradients: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares steps over one world."""

    check: Check
    world: World

    @property
    def batch(self) -> int:
        return 4 if self.check.tiny else 8

    def step(
        self,
        name: str,
        objective: Any,
        selection: Selection,
        rows: NDArray,
        device: torch.device,
        kind: torch.dtype = torch.float32,
        size: str = "tiny",
        **plan: Any,
    ) -> Passed:
        """A step of training at a rate of 0, without dropout, through all that a run's step goes through."""
        model = make_model(self.world, name, size, dropout=0.0, spread=SPREAD).to(kind)
        model.tbkin.selection = selection
        values = {"size": size, "batch_size": len(rows), "dropout": 0.0, "grad_clip": 0.0, **plan}
        learner = Learner(objective, model, make_plan(**values), device)
        learner.train()
        outputs: dict[str, Tensor] = {}

        def note(module: Any, inputs: Any, output: Any) -> None:
            found = {key: getattr(output, key, None) for key in OUTPUTS}
            outputs.update({key: value.detach() for key, value in found.items() if value is not None})

        if not plan.get("compile"):
            model.register_forward_hook(note)
        for number in range(MOST_SCALES):
            losses, _ = learner.step(learner.window(rows, 0), number, 0, 0.0)
            # A step whose scaled gradients overflow is none; the next one has a smaller scale.
            if all(bool(part.grad.isfinite().all()) for part in model.parameters() if part.grad is not None):
                break
        return Passed({key: _exact(value) for key, value in outputs.items()}, losses, _gradients(model))

    def reference(
        self, name: str, objective: Any, selection: Selection, rows: NDArray, size: str = "tiny"
    ) -> Passed:
        """The same on a CPU."""
        kind = torch.float64 if self.check.device.type == "cpu" else torch.float32
        return self.step(name, objective, selection, rows, torch.device("cpu"), kind, size)

    def waits(self, name: str, objective: Any, selection: Selection) -> None:
        """A row: how often a step waits for the device; once, at its end, is what it may."""
        title = f"{name}, {selection.name}: waits in a step"
        if self.check.device.type != "cuda":
            self.check.row(title, SKIPPED, "nothing waits on a CPU")
            return
        model = make_model(self.world, name, "tiny")
        model.tbkin.selection = selection
        learner = Learner(objective, model, make_plan(batch_size=self.batch), self.check.device)
        learner.train()
        window = learner.fetched(learner.window(np.arange(self.batch), 0))
        learner.step(window, 0, 0, 0.0)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                learner.step(window, 1, 0, 0.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        # Not the warning that this way to count is a prototype.
        real = "called a synchronizing CUDA operation"
        calls = [entry for entry in found if real in str(entry.message)]
        waits = [f"{Path(entry.filename).name}:{entry.lineno}" for entry in calls]
        self.check.row(title, REACHED if len(waits) <= 1 else MISSED, f"{len(waits)}: {', '.join(waits)}")

    def with_cpu(
        self, title: str, name: str, objective: Any, selection: Selection, size: str = "tiny", **plan: Any
    ) -> None:
        """A row: how far a step on the device is from one on a CPU."""
        rows, note = np.arange(self.batch), ""
        if selection.threshold:
            rows, kept, close = self.steady_rows(name, objective, selection)
            note = f"keeps {kept:.0%}"
            note += f", {close} scores within {CLOSE:g} of their threshold" if close else ""
        own = self.step(name, objective, selection, rows, self.check.device, size=size, **plan)
        reference = self.reference(name, objective, selection, rows, size)
        found = differences(own, reference)
        ok = max(found.values()) <= self.check.bar
        self.check.row(title, OK if ok else FAILED, note, **found)

    def steady_rows(
        self, name: str, objective: Any, selection: Selection
    ) -> tuple[NDArray[np.int64], float, int]:
        """Samples none of whose keys is so near to its threshold that rounding decides.

        Returns:
            The samples, the share of keys that they keep, and how many scores are near all the same.
        """
        model = make_model(self.world, name, "tiny", dropout=0.0, spread=SPREAD).eval()
        model.tbkin.selection = selection
        generator = torch.Generator().manual_seed(0)
        best: tuple[int, NDArray[np.int64], float] | None = None
        for begin in range(0, 6 * self.batch, self.batch):
            rows = np.arange(begin, begin + self.batch)
            batch = to_device(objective.collate(rows, 0), torch.device("cpu"))
            with torch.inference_mode():
                records = model(**model_inputs(batch), output_attentions=True).attentions
            close, kept, all_keys = 0, 0, 0
            for record in records:
                scores = record.scores
                some = scores > float("-inf")  # (B, H, L, L); a query that is padding is no key either
                some = some & (scores[:, :1, :1] > float("-inf")).transpose(-1, -2)
                kept, all_keys = kept + int((record.kept & some).sum()), all_keys + int(some.sum())
                if selection.rule not in RULES:
                    continue
                for _ in range(3):
                    moved = scores + CLOSE * (2 * torch.rand(scores.shape, generator=generator) - 1)
                    now = select_keys(moved, selection.rule, selection.threshold)
                    close += int(((now != record.kept) & some).sum())
            if best is None or close < best[0]:
                best = close, rows, kept / all_keys
            if not best[0]:
                break
        assert best is not None
        return best[1], best[2], best[0]

    def zero_is_dense(self, name: str, objective: Any) -> None:
        """Rows: a threshold of 0 computes what the dense model does, one that drops nothing nearly so."""
        rows = np.arange(self.batch)
        dense, again, *others = (
            self.step(name, objective, selection, rows, self.check.device)
            for selection in (Selection(), Selection(), *(Selection(rule, 0.0) for rule in RULES))
        )
        found = [differences(other, dense) for other in others]
        worst = {key: max(each[key] for each in found) for key in found[0]}
        # Both run through the same; sums on CUDA may come in another order each time.
        noise = differences(again, dense)
        ok = all(worst[key] <= 3 * noise[key] for key in ("forward", "loss"))
        ok &= worst["gradients"] <= max(3 * noise["gradients"], 1e-6)
        note = "to the last bit" if not any(worst.values()) else f"dense and itself {max(noise.values()):.1e}"
        self.check.row(f"{name}, τ = 0 as dense", OK if ok else FAILED, note, **worst)
        everything = self.step(name, objective, Selection("relative", 1e-30), rows, self.check.device)
        found_all = differences(everything, dense)
        ok = max(found_all.values()) <= self.check.bar
        title = f"{name}, τ = 1e-30 nearly so"
        self.check.row(title, OK if ok else FAILED, **found_all)

    def answers(self, objective: Any) -> None:
        """A row: the device gives the answers that a CPU gives."""
        inputs = objective.train.inputs
        found = []
        for device in (torch.device("cpu"), self.check.device):
            model = make_model(self.world, "vqa", "tiny", dropout=0.0, spread=SPREAD).eval().to(device)
            found.append(VqaTask().predict(model, inputs, device, 64))
        one, another = found
        same = float(np.mean([a == b for a, b in zip(one.answers, another.answers, strict=True)]))
        difference = float(np.abs(one.probability / another.probability - 1).max())
        ok = same > 0.99 and difference <= self.check.bar
        note = f"{same:.1%} of {len(one.answers)} answers are the CPU's; the difference is of probabilities"
        self.check.row("vqa answers", OK if ok else FAILED, note, forward=difference)

    def half(self, name: str, objective: Any, selection: Selection, precision: str) -> None:
        """A row: how far half precision is from single on the device."""
        rows = np.arange(self.batch)
        single, half = (
            self.step(name, objective, selection, rows, self.check.device, precision=kind)
            for kind in ("fp32", precision)
        )
        found = differences(half, single)
        losses, gradients = HALF[precision]
        ok = found["loss"] <= losses and (bool(selection.threshold) or found["gradients"] <= gradients)
        # Keys near the threshold change sides.
        note = f"bar {losses:g} for the loss" + (
            f", {gradients:g} for gradients" if not selection.threshold else ""
        )
        title = f"{name}, {selection.name}, {precision}"
        self.check.row(title, OK if ok else FAILED, note, **found)

    def scaled_steps(self, objective: Any) -> None:
        """A row: some steps in fp16 with loss scaling learn what those in fp32 learn."""
        losses: dict[str, list[float]] = {}
        scale = 1.0
        for precision in ("fp32", "fp16"):
            model = make_model(self.world, "vqa", "tiny", dropout=0.0)
            plan = make_plan(precision=precision, batch_size=self.batch, dropout=0.0)
            learner = Learner(objective, model, plan, self.check.device)
            learner.train()
            windows = [learner.window(np.arange(self.batch), 0)] * 10
            sums = [learner.step(it, number, 0, 1e-3)[0] for number, it in enumerate(windows)]
            losses[precision] = [step["vqa"] / self.batch for step in sums]
            scale = learner.scaler.get_scale()
        # The first steps may be skipped while the scale is found; so it is told how much was learnt.
        learnt = [values[0] - values[-1] for values in losses.values()]
        first = abs(losses["fp16"][0] / losses["fp32"][0] - 1)
        ok = (
            np.isfinite(losses["fp16"]).all() and first <= HALF["fp16"][0] and learnt[1] > 0.5 * learnt[0] > 0
        )
        told = [f"{values[0]:.4g} to {values[-1]:.4g} in {name}" for name, values in losses.items()]
        note = f"loss of 10 steps: {', '.join(told)}; scale {scale:g}"
        self.check.row("fp16 with loss scaling", OK if ok else FAILED, note, loss=first)


def differences(own: Passed, reference: Passed) -> dict[str, float]:
    """How far a step is from another, as the docstring above has it; infinite where one lacks something."""
    missing = own.gradients.keys() ^ reference.gradients.keys()
    # A compiled model's outputs are not looked at; its losses and gradients are.
    forward = [_apart(own.outputs[name], value) for name, value in reference.outputs.items() if own.outputs]
    largest = max(map(abs, reference.losses.values()))
    losses = [
        # A loss that is next to nothing beside the others (it may cancel out) is compared with those.
        abs(own.losses[name] - value) / max(abs(value), 0.01 * largest)
        for name, value in reference.losses.items()
    ]
    whole = torch.stack([value.norm() for value in reference.gradients.values()]).norm()
    gradients = [
        # Of keys' biases the gradient is rounding alone: small ones are compared with all of them.
        float((own.gradients[name] - value).norm() / (value.norm() + 0.01 * whole))
        for name, value in reference.gradients.items()
        if name not in missing
    ]
    found = {"forward": max(forward, default=0.0), "loss": max(losses), "gradients": max(gradients)}
    return {
        name: float("inf") if missing or not np.isfinite(value) else value for name, value in found.items()
    }


def _gradients(model: Any) -> dict[str, Tensor]:
    return {name: _exact(part.grad) for name, part in model.named_parameters() if part.grad is not None}


def _exact(value: Any) -> Tensor:
    exact: Tensor = value.detach().double().cpu()
    return exact


def _apart(one: Tensor, another: Tensor) -> float:
    finite = another.isfinite()
    if one.shape != another.shape or bool((one.isfinite() != finite).any()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((one[finite] - another[finite]).abs().max() / another[finite].abs().max())


# ---- memory -------------------------------------------------------------------------------------


def out_of_memory(check: Check, world: World, objective: Any) -> None:
    """A row: where memory does not suffice for a step, it is taken in parts and comes out the same."""
    size, batch = ("tiny", 16) if check.tiny else ("small", 512)
    rows = np.arange(batch)

    def step(micro_batch: int) -> tuple[int, dict[str, float], dict[str, Tensor]]:
        model = make_model(world, "vqa", size, dropout=0.0)
        values = {"size": size, "batch_size": batch, "dropout": 0.0, "grad_clip": 0.0}
        plan = make_plan(**values, micro_batch_size=micro_batch)
        learner = Learner(objective, model, plan, check.device)
        learner.train()
        with _limited(learner, limit):
            losses, _ = learner.step(learner.window(rows, 0), 0, 0, 0.0)
        parts = model.named_parameters()
        return (
            learner.micro_batch_size,
            losses,
            {key: _exact(part.grad) for key, part in parts if part.grad is not None},
        )

    limit: int | None = None
    note = ""
    if check.device.type == "cuda":
        taken = []
        for micro_batch in (batch, batch // 4):
            free_memory()
            torch.cuda.reset_peak_memory_stats(check.device)
            step(micro_batch)
            taken.append(torch.cuda.max_memory_reserved(check.device))
        free_memory()
        limit = round(taken[1] + 0.15 * (taken[0] - taken[1]))
        note = f"{taken[0] / 1e9:.2f} GB needed, {limit / 1e9:.2f} GB allowed; "
    whole_limit, limit = limit, None
    _, losses, gradients = step(batch)
    free_memory()
    limit = whole_limit if check.device.type == "cuda" else batch // 4
    taken_at_once, own_losses, own_gradients = step(batch)
    found = differences(Passed({}, own_losses, own_gradients), Passed({}, losses, gradients))
    found.pop("forward")
    halved = taken_at_once < batch
    ok = halved and max(found.values()) <= check.bar
    note += f"{batch} samples at once became {taken_at_once}"
    check.row("out of memory", OK if ok else FAILED, note, **found)


@contextlib.contextmanager
def _limited(learner: Learner, limit: int | None) -> Iterator[None]:
    """While in it a CUDA device has `limit` bytes; on a CPU the model refuses more than `limit` samples."""
    if limit is None:
        yield
        return
    if learner.device.type == "cuda":
        total = torch.cuda.get_device_properties(learner.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), learner.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, learner.device)
        return

    def refuse(module: Any, arguments: Any, options: Any) -> None:
        if len(options["input_ids"]) > limit:
            raise torch.OutOfMemoryError(f"more than {limit} samples")

    hook: Any = learner.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


# ---- runs ---------------------------------------------------------------------------------------

KILLED_AT = 7
EPOCHS = 2


def _job(check: Check, world: World, out: str, devices: Devices, **values: Any) -> Job:
    # Twelve steps an epoch, and the state is saved after each.
    batch = len(world.texts) // 12
    plan = {"size": "tiny", "epochs": EPOCHS, "batch_size": batch, "dropout": 0.1, "save_minutes": 0.0}
    return Job(
        out=check.place / out,
        world=check.place / "world",
        shape=world.shape,
        objective="pretraining",
        devices=devices,
        plan={**plan, **values},
        without=check.without,
    )


def _own(check: Check) -> Devices:
    return Devices(check.device.type, (check.device.index or 0,))


def resume(check: Check, world: World) -> None:
    """A row: a run that was killed and started again ends with the weights of one that was not.

    If it does not, another row tries it with PyTorch's deterministic algorithms.
    """
    for deterministic in (False, True):
        name = "deterministic-" * deterministic
        precision = "fp32" if check.device.type == "cpu" else "auto"
        whole, killed = (
            replace(
                _job(check, world, name + out, _own(check), precision=precision), deterministic=deterministic
            )
            for out in ("whole", "killed")
        )
        kill_after(replace(killed, hold_at=KILLED_AT), KILLED_AT, check.left())
        finish("train", [whole, killed], check.left())
        equal, difference = _weights_apart(killed.out, whole.out)
        title = "resume after a kill" + ", deterministic" * deterministic
        note = f"killed after step {KILLED_AT} of {12 * EPOCHS}; weights "
        note += "equal to the last bit" if equal else f"{difference:.1e} apart"
        if equal:
            check.row(title, OK, note)
            return
        if not deterministic:
            # How far a run without deterministic algorithms may be from itself is nowhere promised.
            check.row(title, MEASURED, note)
    check.row(title, FAILED, note)


def two_ranks(check: Check, world: World, devices: Devices) -> None:
    """A row: several ranks learn what one learns."""
    values = {"dropout": 0.0, "save_minutes": 1e9}
    kind = f"{devices.count} ranks, {'NCCL' if devices.kind == 'cuda' else 'gloo'}"
    alone = _job(check, world, f"alone-{devices.kind}", Devices(devices.kind, devices.indices[:1]), **values)
    micro_batch = -(-alone.plan["batch_size"] // devices.count)
    several = [
        replace(
            _job(check, world, f"together-{devices.kind}", devices, **values, micro_batch_size=micro_batch),
            environment=environment,
        )
        for environment in ranks(devices.count)
    ]
    finish("train", [alone, *several], check.left())
    one, another = (_losses(job.out) for job in (alone, several[0]))
    difference = max(abs(another[key] / value - 1) for key, value in one.items() if abs(value) > 1e-3)
    _, weights = _weights_apart(several[0].out, alone.out)
    # Steps of Adam divide small gradients by themselves, so that rounding grows with every step.
    ok = difference <= 10 * check.bar
    note = f"losses of {EPOCHS} epochs beside one rank's, bar {10 * check.bar:g}; weights {weights:.1e} apart"
    check.row(kind, OK if ok else FAILED, note, loss=difference)


def lone_rank(check: Check, world: World) -> None:
    """A row: a group of one process, of NCCL on CUDA, computes the gradients of none."""
    devices = _own(check)
    job = replace(_job(check, world, "lone", devices), environment=ranks(1)[0])
    finish("lone rank", [job], check.left())
    gradients, reduced = json.loads((job.out / "difference.json").read_text())
    ok = gradients <= min(1e-5, check.bar) and reduced == 0
    kind = "one rank, " + ("NCCL" if devices.kind == "cuda" else "gloo")
    check.row(kind, OK if ok else FAILED, "gradients with and without the group", gradients=gradients)


def _losses(out: Path) -> dict[str, float]:
    """Mean losses of each epoch of a run."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {f"{row['epoch']} {key}": value for row in rows for key, value in row.items() if "loss" in key}


def _weights_apart(one: Path, another: Path) -> tuple[bool, float]:
    """Whether the weights of two runs are equal, and the norm of the difference over the norm of all."""
    first, second = (torch.load(out / "weights.pt", weights_only=True) for out in (one, another))
    equal = all(torch.equal(first[name], second[name]) for name in second)
    flat = [torch.cat([values[name].double().ravel() for name in second]) for values in (first, second)]
    return equal, float((flat[0] - flat[1]).norm() / flat[1].norm())
