"""Where a run is, and the state on disk from which it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from tbkin_core.errors import CheckpointError
from tbkin_core.modeling.checkpoint import load_tensors
from tbkin_core.support.files import atomic_directory, write_json
from tbkin_core.support.schema import list_of, mapping_of, maybe, number, read_checked, record, text
from tbkin_core.training.step import Learner


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


_COUNT = number(0, 1e15, whole=True)


def _epoch(value: Any, where: str) -> None:
    record({"epoch": _COUNT})(value, where)
    mapping_of(maybe(number()))(value, where)


_PROGRESS = record(
    {"fingerprint": text},
    {
        **dict.fromkeys(("step", "epoch", "batch", "samples", "processes"), _COUNT),
        "threads": number(0, 1024, whole=True),
        "best": maybe(number()),
        "best_epoch": number(-1, 1e15, whole=True),
        "seconds": number(0),
        "stopped": text,
        "epoch_sums": mapping_of(number()),
        "epoch_targets": mapping_of(number(0)),
        "history": list_of(_epoch),
    },
)


def load_state(path: Path, learner: Learner, fingerprint: str) -> Progress:
    """Give model and optimizer the state of a run, and return where that is.

    Raises:
        CheckpointError: It belongs to other data or settings, or cannot be read.
    """
    anew = "use --overwrite to begin anew"
    content = read_checked(path / "progress.json", _PROGRESS, anew, CheckpointError)
    if content["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path}: belongs to a run with other data or settings",
            hint=f"{anew}, or --out DIR for another place",
        )
    name = "model.pt"
    try:
        weights = load_tensors(path / name, learner.device)
        _check_alike(weights, learner.model.state_dict())
        learner.model.load_state_dict(weights)
        name = "optimizer.pt"
        moments = load_tensors(path / name, learner.device)
        _load_moments(learner.optimizer, moments["optimizer"])
        learner.scaler.load_state_dict(moments["scaler"])
        name = "progress.json"
        where = Progress(
            **{field.name: content[field.name] for field in fields(Progress) if field.name in content}
        )
        if {*where.epoch_sums} != {*where.epoch_targets}:
            raise ValueError("epoch_sums and epoch_targets are not of the same losses")
    except Exception as error:  # torch and pickle raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path / name}: the state to resume from cannot be read ({reason})", hint=anew
        ) from error
    return where


def _load_moments(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Load the state of an optimizer, whose settings are the plan's whatever the file says.

    Its learning rate is that of the last step: an epoch that lacks its evaluation alone has no other to note.
    """
    own = [{**group} for group in optimizer.param_groups]
    optimizer.load_state_dict(kept)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        rate, most = group["lr"], settings["lr"]
        group |= {name: value for name, value in settings.items() if name != "params"}
        # The last step of a short warm-up may be above the plan's rate.
        group["lr"] = rate if isinstance(rate, float) and 0 <= rate <= 2 * most else most
        for parameter in group["params"]:
            wanted = {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.zeros(())}
            _check_alike(optimizer.state.get(parameter, wanted), wanted)


def _check_alike(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """ValueError where tensors are missing, of another shape, or not finite."""
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape or not found[name].isfinite().all():
            raise ValueError(f"{name} is missing, of another shape or not finite")
