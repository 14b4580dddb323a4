"""Where a run is, and the state on disk from which it goes on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tbkin_core.errors import CheckpointError, TbkinError
from tbkin_core.support.files import atomic_directory, read_json, write_json
from tbkin_core.training.step import Learner

# What reading a state raises where a file of it is missing, cut short or no such thing.
_BROKEN = (
    TbkinError,
    OSError,
    RuntimeError,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    pickle.UnpicklingError,
)


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
    threads: int = 0  # that a CPU computes with, see `tbkin_core.training.loop`
    processes: int = 0  # that share each step
    epoch_sums: dict[str, float] = field(default_factory=dict)
    epoch_targets: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def add_step(self, losses: Mapping[str, float], targets: Mapping[str, float], samples: int) -> None:
        """Count a step: the sum of each loss, what it is a mean over, and its samples."""
        for name, value in losses.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value
            self.epoch_targets[name] = self.epoch_targets.get(name, 0.0) + targets[name]
        self.step += 1
        self.batch += 1
        self.samples += samples

    def losses(self) -> dict[str, float]:
        """Mean of each loss over the epoch so far."""
        return {
            name: self.epoch_sums[name] / max(self.epoch_targets[name], 1)
            for name in sorted(self.epoch_sums)
            if self.epoch_targets[name]
        }

    def add_score(self, score: float | None) -> bool:
        """Note the validation score of this epoch; whether it is the best. Without validation the last is."""
        better = score is None or self.best is None or score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch + 1
        return better

    def next_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.epoch_sums, self.epoch_targets = {}, {}


def save_state(path: Path, learner: Learner, where: Progress, fingerprint: str) -> None:
    """Write all that a run needs to go on, whole or not at all."""
    with atomic_directory(path) as temporary:
        # Through open files: with a path, torch hides a full disk behind an error of its own.
        moments = {"optimizer": learner.optimizer.state_dict(), "scaler": learner.scaler.state_dict()}
        for name, content in (("model.pt", learner.model.state_dict()), ("optimizer.pt", moments)):
            with (temporary / name).open("wb") as file:
                torch.save(content, file)
        write_json(temporary / "progress.json", {"fingerprint": fingerprint, **asdict(where)})


def load_state(path: Path, learner: Learner, fingerprint: str) -> Progress:
    """Give model and optimizer the state of a run, and return where that is.

    Raises:
        CheckpointError: It belongs to other data or settings, or cannot be read.
    """
    try:
        content = read_json(path / "progress.json")
        if content.pop("fingerprint") == fingerprint:
            weights, moments = (
                torch.load(path / name, map_location=learner.device, weights_only=True)
                for name in ("model.pt", "optimizer.pt")
            )
            where = Progress(**content)
            learner.model.load_state_dict(weights)
            learner.optimizer.load_state_dict(moments["optimizer"])
            learner.scaler.load_state_dict(moments["scaler"])
            return where
    except _BROKEN as error:
        raise CheckpointError(
            f"{path}: the state to resume from cannot be read ({error})", hint="use --overwrite to begin anew"
        ) from error
    raise CheckpointError(
        f"{path}: belongs to a run with other data or settings",
        hint="use --overwrite to begin anew, or --out DIR for another place",
    )
