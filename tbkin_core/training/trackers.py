"""Where else a run's numbers go: TensorBoard, Weights & Biases, MLflow. tbkin itself reads metrics.jsonl.

Each is an extra of the same name, and is asked for by a setting of that name.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tbkin_core.errors import ConfigError, MissingDependencyError, TbkinError
from tbkin_core.runs import RUN_FILE, read_run
from tbkin_core.support.files import write_errors
from tbkin_core.support.places import place_of
from tbkin_core.training.plan import TrainingPlan

Values = Mapping[str, float]
PROJECT = "tbkin"
"""What W&B and MLflow file runs under, unless their own environment variables say otherwise."""


class Tracker(Protocol):
    """What takes the numbers of a run."""

    def step(self, values: Values, step: int) -> None:
        """The losses of a step, from 0."""

    def epoch(self, values: Values, epoch: int, step: int) -> None:
        """What an epoch, from 1, brought, and the step that it ended before."""


@contextlib.contextmanager
def trackers(plan: TrainingPlan, out: Path, step: int) -> Iterator[list[Tracker]]:
    """Those that the plan asks for, of a run in `out` that goes on at a step.

    Raises:
        MissingDependencyError: One is not installed.
        ConfigError: One cannot begin, as without an account.
    """
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(begin(plan, out, step))
            for name, begin in _TRACKERS.items()
            if getattr(plan, name)
        ]


def _missing(name: str, error: ImportError) -> NoReturn:
    raise MissingDependencyError(
        f"{name}: cannot be loaded ({error})", hint=f"pip install 'tbkin[{name}]', or omit --{name}"
    ) from error


@contextlib.contextmanager
def _beginning(name: str, hint: str) -> Iterator[None]:
    """What goes wrong at its start as one message; what these packages raise is their own affair."""
    try:
        yield
    except TbkinError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name}: cannot begin ({said})", hint=hint) from error


def _identity(out: Path) -> str:
    """A number of a run, the same when it goes on, another where it is trained again."""
    started = read_run(out)["started"] if (out / RUN_FILE).exists() else 0.0
    return f"{zlib.crc32(repr([str(out.resolve()), started]).encode()):08x}"


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def step(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, values: Values, epoch: int, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"epoch/{name}", value, epoch)


@contextlib.contextmanager
def _tensorboard(plan: TrainingPlan, out: Path, step: int) -> Iterator[Tracker]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        _missing("tensorboard", error)
    # What an interrupted run wrote beyond the state that it goes on from is hidden.
    with write_errors(out), SummaryWriter(str(out / "tensorboard"), purge_step=step) as writer:
        yield _TensorBoard(writer)


class _Steps:
    """A tracker that has one axis, the step, for all numbers; it takes those of every tenth step."""

    EVERY = 10

    def __init__(self, log: Callable[[dict[str, float], int], Any]) -> None:
        self._log = log

    def step(self, values: Values, step: int) -> None:
        if step % self.EVERY == 0:
            self._log({f"step/{name}": value for name, value in values.items()}, step)

    def epoch(self, values: Values, epoch: int, step: int) -> None:
        self._log({f"epoch/{name}": value for name, value in values.items()}, step)


@contextlib.contextmanager
def _wandb(plan: TrainingPlan, out: Path, step: int) -> Iterator[Tracker]:
    try:
        import wandb
    except ImportError as error:
        _missing("wandb", error)
    with _beginning(
        "wandb", "`wandb login` first; or set WANDB_MODE=offline, and `wandb sync` sends it later"
    ):
        run = wandb.init(
            project=PROJECT,
            name=str(place_of(out)),
            id=_identity(out),
            resume="allow",
            config=asdict(plan),
        )
    try:
        yield _Steps(lambda values, at: run.log(values, step=at))
    finally:
        run.finish()


@contextlib.contextmanager
def _mlflow(plan: TrainingPlan, out: Path, step: int) -> Iterator[Tracker]:
    try:
        import mlflow
    except ImportError as error:
        _missing("mlflow", error)
    tag, identity = "tbkin.run", _identity(out)
    with _beginning("mlflow", "see MLFLOW_TRACKING_URI in MLflow's documentation, or omit --mlflow"):
        mlflow.set_experiment(PROJECT)
        same = mlflow.search_runs(filter_string=f"tags.`{tag}` = '{identity}'", output_format="list")
        if same and step:
            run = mlflow.start_run(run_id=same[0].info.run_id)
        else:
            run = mlflow.start_run(run_name=str(place_of(out)), tags={tag: identity})
            mlflow.log_params({name: str(value) for name, value in asdict(plan).items()})
    status = "FAILED"
    try:
        yield _Steps(lambda values, at: mlflow.log_metrics(values, step=at, run_id=run.info.run_id))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


_TRACKERS: dict[str, Callable[[TrainingPlan, Path, int], contextlib.AbstractContextManager[Tracker]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
