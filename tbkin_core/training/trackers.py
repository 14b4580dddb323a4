"""Where else a run's numbers go: TensorBoard, Weights & Biases, MLflow. tbkin itself reads metrics.jsonl.

Each is an extra of the same name, and is asked for by a setting of that name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tbkin_core.errors import ConfigError, MissingDependencyError, TbkinError
from tbkin_core.runs import RUN_FILE, read_run
from tbkin_core.support.console import shortened
from tbkin_core.support.files import write_errors
from tbkin_core.support.places import place_of
from tbkin_core.training.plan import TrainingPlan

logger = logging.getLogger("tbkin")

Values = Mapping[str, float]
PROJECT = "tbkin"
"""What W&B and MLflow file runs under, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise."""


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
        wanted = [name for name in _TRACKERS if getattr(plan, name)]
        yield [_Kept(name, stack.enter_context(_TRACKERS[name](plan, out, step))) for name in wanted]


def _missing(name: str, error: ImportError) -> NoReturn:
    raise MissingDependencyError(
        f"{name}: cannot be loaded ({error})", hint=f"pip install 'tbkin[{name}]', or omit --{name}"
    ) from error


@contextlib.contextmanager
def _beginning(name: str, hint: str) -> Iterator[None]:
    """What goes wrong at its start as one message; what these packages raise is their own affair."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except TbkinError:
        raise
    except Exception as error:
        raise ConfigError(f"{name}: cannot begin ({_said(error)})", hint=hint) from error


def _identity(out: Path) -> str:
    """A number of a run, the same when it goes on, another where it is trained again."""
    started = read_run(out)["started"] if (out / RUN_FILE).exists() else 0.0
    return f"{zlib.crc32(repr([str(out.resolve()), started]).encode()):08x}"


class _Kept:
    """A tracker that training goes on without where it fails: a server that is away costs nothing else."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._failed = False

    def step(self, values: Values, step: int) -> None:
        self._tell(lambda: self._tracker.step(values, step))

    def epoch(self, values: Values, epoch: int, step: int) -> None:
        self._tell(lambda: self._tracker.epoch(values, epoch, step))

    def _tell(self, tell: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            tell()
        except TbkinError:
            raise
        except Exception as error:
            self._failed = True
            logger.warning(
                "%s: takes nothing more (%s); training goes on without it", self._name, _said(error)
            )


@contextlib.contextmanager
def _aside(name: str) -> Iterator[None]:
    """What these packages print goes to stderr: stdout is for results. What fails at their end is told of."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except TbkinError:
            raise
        except Exception as error:
            logger.warning("%s: did not end well (%s)", name, _said(error))


def _said(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, 300)


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
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=str(place_of(out)),
            id=_identity(out),
            resume="allow",
            config=asdict(plan),
            settings=wandb.Settings(silent=logger.level >= logging.WARNING),
        )
    code = 1
    try:
        yield _Steps(lambda values, at: run.log(values, step=at))
        code = 0
    finally:
        with _aside("wandb"):
            run.finish(exit_code=code)


@contextlib.contextmanager
def _mlflow(plan: TrainingPlan, out: Path, step: int) -> Iterator[Tracker]:
    try:
        import mlflow
    except ImportError as error:
        _missing("mlflow", error)
    status, run = "FAILED", None
    try:
        with _beginning("mlflow", "see MLFLOW_TRACKING_URI in MLflow's documentation, or omit --mlflow"):
            run, is_new = _begun_run(mlflow, out, step)
            if is_new:
                values = {name: shortened(str(value), 250) for name, value in asdict(plan).items()}
                mlflow.log_params(values)
        yield _Steps(lambda values, at: mlflow.log_metrics(values, step=at, run_id=run.info.run_id))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if run is not None:  # what somebody else has begun goes on
            with _aside("mlflow"):
                mlflow.end_run(status)


def _begun_run(mlflow: Any, out: Path, step: int) -> tuple[Any, bool]:
    """The run of MLflow's that this one is, the same as before where it goes on; and whether it is new."""
    if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
        mlflow.set_experiment(PROJECT)
    tag, identity = "tbkin.run", _identity(out)
    same = mlflow.search_runs(filter_string=f"tags.`{tag}` = '{identity}'", output_format="list")
    if same and step:
        return mlflow.start_run(run_id=same[0].info.run_id), False
    return mlflow.start_run(run_name=str(place_of(out)), tags={tag: identity}), True


_TRACKERS: dict[str, Callable[[TrainingPlan, Path, int], contextlib.AbstractContextManager[Tracker]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
