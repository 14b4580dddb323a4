"""A training run: the loop with all that stands around it, saving, validating, logging and stopping."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel

from tbkin_core.errors import DataError
from tbkin_core.features.verification import settle_stores
from tbkin_core.runs import CURVES
from tbkin_core.selection import grown
from tbkin_core.settings import TrainingConfig
from tbkin_core.support import schema
from tbkin_core.support.console import RunBar, duration
from tbkin_core.support.devices import Devices, join_ranks, torch_device
from tbkin_core.support.files import json_text, write_text
from tbkin_core.support.interruption import held_back, interrupted, let_through
from tbkin_core.support.ranks import rank, wait_for_ranks
from tbkin_core.tasks.base import Objective
from tbkin_core.training.loop import batches_left, learning_rate, take_steps
from tbkin_core.training.plan import TrainingPlan
from tbkin_core.training.state import Progress, load_state, save_state
from tbkin_core.training.step import Learner
from tbkin_core.training.trackers import Tracker, trackers

logger = logging.getLogger("tbkin")

LOG_SECONDS = 1.0
"""Epochs that take less share a line of the log."""

OnStep = Callable[[float, float], None]
"""Takes the epochs that have passed, and the share of training by epochs or minutes; inf and 1 in the end."""

GROWS = (0.7, 0.95)
"""Between these shares of training a threshold grows where nothing is asked for."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended: `reason` is "epochs", "patience", "minutes" or "no steps"."""

    where: Progress
    reason: str
    computed_on: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """As values of a run's results."""
        where = self.where
        return {
            "steps": where.step,
            "samples_seen": where.samples,
            "epochs": where.epoch,
            **{name: getattr(where, name) for name in ("best", "best_epoch", "seconds", "samples")},
            "reason": self.reason,
            "computed_on": self.computed_on,
            "samples_per_second": where.samples / where.seconds if where.seconds else None,
        }

    def validation(self) -> dict[str, float]:
        """Values that the best epoch had on validation data, those that are named so."""
        best = (record for record in self.where.history if record["epoch"] == self.where.best_epoch)
        return {name: value for name, value in next(best, {}).items() if name.startswith("val_")}

    def notes(self, plan: TrainingPlan) -> list[str]:
        """Why training ended before its epochs did."""
        if self.reason == "minutes":
            return [
                f"training was stopped after {plan.max_minutes:g} minutes in epoch {self.where.epoch} of"
                f" {plan.epochs}; --max-minutes gives it more or less time"
            ]
        if self.reason == "patience":
            return [f"training stopped at epoch {self.where.epoch} of {plan.epochs}: no improvement any more"]
        return []


def train(
    objective: Objective,
    model: PreTrainedModel,
    plan: TrainingPlan,
    out: Path,
    devices: Devices,
    save_best: Callable[[PreTrainedModel], None],
    on_step: OnStep = lambda epochs, share: None,
) -> TrainingResult:
    """Train until the epochs, the minutes or the patience are used up, going on from a saved state.

    Args:
        model: Initialised model; its weights are replaced when a state is resumed.
        out: Directory of the run; the state to resume from is kept in `out/state`.
        devices: Where to run; one process per device is running already.
        save_best: Called on rank 0 whenever validation improves (after each epoch without validation).
        on_step: Called before each step and before validation, see `OnStep`.

    Raises:
        DataError: The loss is not finite, features are damaged, or the disk refuses.
        CheckpointError: A state that belongs to other data or settings.
        KeyboardInterrupt: Interrupted; the state is on disk.
    """
    learner = Learner(objective, model, plan, torch_device(devices))
    state, fingerprint = out / "state", objective.fingerprint()
    where = Progress()
    if plan.resume and state.is_dir():
        where = load_state(state, learner, fingerprint)
        logger.info("going on at epoch %d, step %d", where.epoch + 1, where.step)
    join_ranks(devices)
    learner.distribute()
    if plan.epochs == 0:
        settle_stores()
        if rank() == 0:
            save_best(model)
        return TrainingResult(Progress(), "no steps", learner.computed_on())
    with _threads(where, learner), held_back(), _tracked(plan, out, where.step) as tracked:
        run = _Run(learner, where, out, fingerprint, tracked, save_best, on_step)
        reason = run.epochs()
        return TrainingResult(where, where.stopped or reason, learner.computed_on())


@contextlib.contextmanager
def _threads(where: Progress, learner: Learner) -> Iterator[None]:
    """Compute with as many threads as the run began with, and say what its last digits depend on."""
    before = torch.get_num_threads()
    if learner.device.type == "cpu" and where.processes == learner.world and where.threads != before:
        logger.info("going on with threads: %d, as this run began", where.threads)
        torch.set_num_threads(where.threads)
    where.threads, where.processes = torch.get_num_threads(), learner.world
    if rank() == 0:
        # Where the minutes end a run or lower its rate, what else the machine does decides too.
        timed = math.isfinite(learner.plan.max_minutes)
        promise = "computing with" if timed else "the same command gives the same weights with"
        logger.info("%s %s", promise, ", ".join(f"{name} {x}" for name, x in learner.computed_on().items()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _tracked(plan: TrainingPlan, out: Path, step: int) -> Iterator[list[Tracker]]:
    """The trackers that are asked for, on rank 0; none on the others."""
    if rank() > 0:
        yield []
        return
    with trackers(plan, out, step) as found:
        yield found


@dataclass(slots=True)
class _Run:
    """What stands around the steps of a run; the attributes are those of `train`."""

    learner: Learner
    where: Progress
    out: Path
    fingerprint: str
    tracked: Sequence[Tracker]
    save_best: Callable[[PreTrainedModel], None]
    on_step: OnStep
    started: float = 0.0
    last_saved: float = 0.0
    last_logged: float = -math.inf
    steps_per_epoch: int = 1
    bar: RunBar = field(init=False)

    def epochs(self) -> str:
        """Train epoch after epoch; why it ended: "epochs" or "minutes"."""
        learner, where, plan = self.learner, self.where, self.learner.plan
        self.started = time.monotonic() - where.seconds
        self.last_saved = time.monotonic()
        samples = len(learner.objective.samples(0))
        self.steps_per_epoch = max(-(-samples // plan.batch_size), 1)
        done = where.epoch * samples + min(where.batch * plan.batch_size, samples)
        seconds_left = 60 * plan.max_minutes - where.seconds
        self.bar = RunBar(self._label(), samples * plan.epochs, done, seconds_left)
        with contextlib.closing(self.bar):
            return self._epochs()

    def _epochs(self) -> str:
        learner, where, plan = self.learner, self.where, self.learner.plan
        while where.epoch < plan.epochs and not where.stopped:
            minutes_over = self._steps_of_epoch()
            values = self._validate()
            record = {
                "epoch": where.epoch + 1,
                "step": where.step,
                "learning_rate": learner.optimizer.param_groups[0]["lr"],
                **{f"loss_{name}": value for name, value in where.losses().items()},
                **values,
            }
            if where.add_score(values.get(learner.objective.metric)) and rank() == 0:
                self.save_best(learner.model)
            if minutes_over:
                # In the middle of the epoch: with more time, the same command goes on here, and what is
                # better already stays.
                self._save()
            self._record(record, minutes_over or self._is_impatient(where.epoch + 1))
            where.next_epoch()
            # Rank 0 alone knows the validation values.
            if learner.any_rank(self._is_impatient(where.epoch) and rank() == 0):
                where.stopped = "patience"
            if minutes_over:
                return "minutes"
            self._save()
            if learner.any_rank(interrupted()):
                self._save_and_leave()
        return "epochs"

    def _steps_of_epoch(self) -> bool:
        """Take the steps that are left of an epoch; whether the minutes were over before."""
        learner, where, plan = self.learner, self.where, self.learner.plan
        batches = batches_left(learner, where)
        steps = take_steps(learner, batches, where, self._before_step)
        self.bar.at(self._label())
        with contextlib.closing(steps):
            for step in steps:
                self.bar.add(step.samples)
                for tracker in self.tracked:
                    tracker.step(step.losses, step.number)
                if learner.any_rank(interrupted()):
                    self._save_and_leave()
                if learner.any_rank(self._time_spent() > 1):
                    return True
                if time.monotonic() - self.last_saved > 60 * plan.save_minutes:
                    self._save()
        return False

    def _before_step(self) -> float:
        """Announce a step; its learning rate."""
        plan = self.learner.plan
        # Clocks of ranks differ, and what is trained must not.
        spent = self.learner.mean_over_ranks(self._time_spent()) if math.isfinite(plan.max_minutes) else 0.0
        passed = self.where.step / self.steps_per_epoch
        self.on_step(passed, max(passed / plan.epochs, spent))
        spent = spent if plan.falls_with_time else 0.0
        return learning_rate(self.where.step, self.steps_per_epoch, plan, spent)

    def _time_spent(self) -> float:
        """Share of the time at hand, 1 and above where it is over, 0 where it is endless."""
        return (time.monotonic() - self.started) / max(60 * self.learner.plan.max_minutes, 1e-9)

    def _validate(self) -> dict[str, float]:
        self.on_step(math.inf, 1.0)
        values: dict[str, float] = {}
        if rank() == 0:
            self.bar.at(f"{self._label()}, validation")
            self.learner.train(False)
            try:
                with let_through():
                    values = self.learner.objective.evaluate(self.learner.model, self.learner.device)
            except KeyboardInterrupt:
                self._save_and_leave()  # the steps of the epoch, of which none is left
        settle_stores()
        wait_for_ranks()
        self.where.seconds = time.monotonic() - self.started
        return values

    def _save(self) -> None:
        if not interrupted():  # whoever interrupts waits for seconds; the next run compares it all again
            settle_stores()
        self.where.seconds = time.monotonic() - self.started
        if rank() == 0:
            save_state(self.out / "state", self.learner, self.where, self.fingerprint)
        self.last_saved = time.monotonic()

    def _save_and_leave(self) -> NoReturn:
        self._save()
        logger.info("state saved at step %d", self.where.step)
        raise KeyboardInterrupt

    def _is_impatient(self, epochs: int) -> bool:
        """Whether after so many epochs there have been enough without improvement."""
        patience = self.learner.plan.patience
        return patience > 0 and epochs - self.where.best_epoch >= patience

    def _record(self, record: dict[str, Any], ends: bool) -> None:
        """Keep what an epoch brought, and show it; `ends` tells whether it is the last."""
        self.where.history.append(record)
        for tracker in self.tracked:
            tracker.epoch(record, record["epoch"], self.where.step)
        if rank() == 0:
            ends |= record["epoch"] == self.learner.plan.epochs
            if ends or time.monotonic() - self.last_logged >= LOG_SECONDS:
                logger.info("%s", self._in_words(record))
                self.last_logged = time.monotonic()
            lines = [json_text(entry) + "\n" for entry in self.where.history]
            write_text(self.out / "metrics.jsonl", "".join(lines))

    def _in_words(self, record: dict[str, Any]) -> str:
        """A line for a person; all numbers are in metrics.jsonl."""
        loss = sum(value for name, value in record.items() if name.startswith("loss_"))
        told = [f"{self._label()}: loss {loss:.4g}"]
        if self.learner.objective.metric in record:
            told.append(f"val {self.learner.objective.in_words(record)}")
            if record["epoch"] == self.where.best_epoch:
                told.append("best so far")
        left = self.bar.seconds_left() if record["epoch"] < self.learner.plan.epochs else None
        told.append(
            duration(self.where.seconds) + (f" ({duration(left, rounded=True)} left)" if left else "")
        )
        return ", ".join(told)

    def _label(self) -> str:
        return f"epoch {self.where.epoch + 1}/{self.learner.plan.epochs}"


def draw_training_curves(config: TrainingConfig, run: Path, title: str) -> list[Path]:
    """Draw the curves of `metrics.jsonl` beside it, "training.png" or as the settings say.

    Those that were drawn of fewer epochs, in other formats too, are drawn anew, and others left as they are;
    there are none where nothing was measured.
    """
    measured = run / "metrics.jsonl"
    if rank() != 0 or not measured.exists():
        return []
    drawn = {file for file in run.iterdir() if CURVES.fullmatch(file.name)}
    wanted = {run / f"training{'-column' * config.column}.{suffix}" for suffix in config.format}
    since = measured.stat().st_mtime
    figures = sorted((wanted - drawn) | {file for file in drawn if file.stat().st_mtime < since})
    if not figures:
        return []
    try:
        lines = measured.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        schema.list_of(schema.mapping_of(schema.maybe(schema.number(-1e30, 1e30))))(rows, "")
    except (ValueError, RecursionError) as error:
        hint = "remove it: only the training curves are drawn from it"
        raise DataError(f"{measured}: is damaged ({error})", hint=hint) from error
    if not rows:
        return []
    # matplotlib takes half a second to load, and most calls draw nothing.
    from tbkin_core.figures.curves import training_figure

    for figure in figures:
        training_figure(figure, rows, title=title, column=figure.stem.endswith("-column"))
    return figures


def growing_threshold(model: Any, epochs: float | None) -> OnStep:
    """Sets the τ of a model before each step.

    A key that is dropped gets no gradient. Cut from the first step on, a model keeps to what it looked at
    before it had learnt anything; dense at first, it finds out what there is to look at, of which the cut
    then leaves enough.

    Args:
        epochs: Over so many of the first τ grows, see `tbkin_core.selection.grown`; 0 has it from the first
            step, as published. None lets it grow between `GROWS`.
    """
    full = model.tbkin.selection

    def set_threshold(passed: float, share: float) -> None:
        if epochs is None:
            begin, end = GROWS
            grow = (share - begin) / (end - begin)
        else:
            grow = passed / epochs if epochs else 1.0
        model.tbkin.selection = grown(full, grow)

    return set_threshold
