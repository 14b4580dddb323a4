"""The loop of pretraining and fine-tuning: steps, one after the other; it knows no files, no log and no head.

A run is a function of its settings and its data: the order of samples depends on (seed, epoch), masks on
(seed, epoch, sample), dropout on (seed, step, rank). So a run that was killed and started again ends with the
weights of one that was not, and no random state has to be saved. A run that goes on takes the number of
threads that it began with: on a CPU PyTorch divides the gradients' sums of layer norms among them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tbkin_core.support.randomness import mix
from tbkin_core.support.workers import made_ahead
from tbkin_core.training.plan import TrainingPlan
from tbkin_core.training.state import Progress
from tbkin_core.training.step import Learner, Window


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was taken: its number in the run, its samples, and the mean of each loss."""

    number: int
    samples: int
    losses: dict[str, float]


def batches_left(learner: Learner, where: Progress) -> list[NDArray[np.int64]]:
    """The samples of each step that is left of the epoch."""
    samples = learner.objective.samples(where.epoch)
    order = epoch_order(learner.lengths[samples], learner.plan.batch_size, learner.plan.seed, where.epoch)
    return [samples[rows] for rows in order[where.batch :]]


def take_steps(
    learner: Learner, batches: Sequence[NDArray], where: Progress, rate: Callable[[], float]
) -> Generator[Step, None, None]:
    """Take steps, one per `next`; when one is handed out, `where` has moved on.

    Args:
        batches: As `batches_left` gives them.
        rate: The learning rate of the step that is about to be taken.
    """
    learner.train()
    with contextlib.closing(prefetched(learner, batches, where.epoch)) as windows:
        for window in windows:
            sums, targets = learner.step(window, where.step, where.epoch, rate())
            means = {name: value / max(targets[name], 1) for name, value in sums.items()}
            step = Step(where.step, len(window.rows), means)
            where.add_step(sums, targets, step.samples)
            yield step


def prefetched(learner: Learner, batches: Sequence[NDArray], epoch: int) -> Generator[Window, None, None]:
    """This rank's share of each step on its device, the next ones made while the model runs."""
    return made_ahead(lambda rows: learner.fetched(learner.window(rows, epoch)), batches, learner.loaders)


def learning_rate(step: int, steps_per_epoch: int, plan: TrainingPlan, time_spent: float = 0.0) -> float:
    """Learning rate of a step, from 0; a function of the plan alone where no time is spent.

    `time_spent` is a share of the time at hand; a linear schedule is as far as the further of time and steps.
    """
    total = steps_per_epoch * plan.epochs
    warmup = plan.warmup * (total if plan.warmup < 1 else steps_per_epoch)
    place: float = step
    if plan.schedule == "linear":
        place = max(place, total * min(time_spent, 1.0))
    if place < warmup:
        return plan.learning_rate * (place + 1) / max(warmup, 1)
    if plan.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in plan.decay_epochs)
        return plan.learning_rate * 0.1**passed
    if plan.schedule == "linear":
        return plan.learning_rate * max(total - place, 0) / max(total - warmup, 1)
    return plan.learning_rate


def epoch_order(
    lengths: NDArray, batch_size: int, seed: int, epoch: int, bucket: int = 32
) -> list[NDArray[np.int64]]:
    """Shuffled batches of similar length; a function of (seed, epoch) alone.

    Rows are shuffled, sorted by length within windows of `bucket` batches so that little is padded,
    and the batches shuffled again. The last batch may be smaller; a bucket of 1 leaves the order to chance.

    Args:
        lengths: (N,) length of each row.
    """
    generator = np.random.default_rng(mix(seed, epoch, 1))
    order = generator.permutation(len(lengths))
    window = batch_size * max(bucket, 1)
    batches: list[NDArray[np.int64]] = []
    for begin in range(0, len(order), window):
        rows = order[begin : begin + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]
