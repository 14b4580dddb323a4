"""What a task is made of: samples, splits, and what fine-tuning, sweeps and figures ask it for.

A `Task` knows all that differs between one task and another; the code around it names none. What a run learns
is an `Objective`. Letters: B batch, N samples, T text tokens, K regions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.errors import ConfigError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.vectors import VectorTable
from tbkin_core.tasks.inputs import Batch, Inputs, InputSource, accuracy_and_kept
from tbkin_core.tasks.table import TASKS, Presentation

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from tbkin_core.datasets import Dataset
    from tbkin_core.settings import FinetuneConfig


def listed(what: str, items: Sequence[Any], shown: int = 4) -> str:
    """ "image ids 3, 7, 12, 40 and 28 more": for messages."""
    rest = f" and {len(items) - shown} more" if len(items) > shown else ""
    return f"{what} {', '.join(map(str, items[:shown]))}{rest}"


# ---- samples ------------------------------------------------------------------------------------

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class SampleSet(Generic[Sample]):
    """All samples that a dataset has for a task."""

    splits: dict[str, list[Sample]]  # none of them empty
    unlabelled: list[str] = field(default_factory=list)  # no test splits, and nothing to learn from
    name: str = ""  # of the set, where a dataset has several ("refcoco+")
    split_by_object: bool = False  # an image may be in several splits, with other objects
    notes: list[str] = field(default_factory=list)  # what is worth knowing, one line each

    @property
    def tests(self) -> list[str]:
        """Names of the test splits, which are never trained on."""
        return [name for name in self.splits if name.startswith("test")]

    @property
    def trainable(self) -> list[str]:
        """Names of the splits that may be trained on or validated on."""
        return [name for name in self.splits if name not in (*self.tests, *self.unlabelled)]


def chosen_set(wanted: str | None, known: Sequence[str]) -> str:
    """The set of samples of a name in any case, the first for None; ConfigError where there is none."""
    chosen = known[0] if wanted is None else wanted.lower()
    if chosen not in known:
        raise ConfigError(f"dataset: expected one of {', '.join(known)}, got {wanted!r}")
    return chosen


def other_sets(wanted: str | None, chosen: str, known: Sequence[str]) -> list[str]:
    """A note where a dataset has several sets of samples and nobody chose."""
    others = ", ".join(name for name in known if name != chosen)
    if wanted is not None or not others:
        return []
    return [f"{chosen} is used; choose another with --dataset ({others})"]


@dataclass(slots=True)
class Split(Generic[Sample]):
    """N samples of one split whose images have features, with their model inputs."""

    samples: list[Sample]
    inputs: Inputs
    targets: Any  # what each is scored against, as `FinetuneTask.targets` gives it

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_ids(self) -> list[ImageId]:
        """N image keys."""
        return [sample.image_id for sample in self.samples]  # type: ignore[attr-defined]


# ---- what a run learns --------------------------------------------------------------------------


class Objective(Protocol):
    """What a training run needs to know of its data and its loss."""

    name: str
    metric: str  # name of the validation value that decides which checkpoint is best; higher is better
    uses_all_weights: bool  # whether every weight of the model takes part in the loss
    compares_samples: bool  # whether samples that are taken at once are told from each other
    vectors: VectorTable  # that the training samples' regions are among

    def lengths(self) -> NDArray:
        """(M,) length of each training sample."""

    def samples(self, epoch: int) -> NDArray[np.int64]:
        """(N,) numbers of the samples of an epoch, below M; N is the same in every epoch."""

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        """Arrays of some training samples."""

    def named(self, rows: NDArray) -> str:
        """What a person would look up to find some training samples."""

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        """How many targets each objective has in a batch; known before the model runs."""

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The summed, weighted loss of each objective."""

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        """Validation values; empty without validation data."""

    def in_words(self, values: Mapping[str, float]) -> str:
        """What a person wants to know of validation values after each epoch."""

    def fingerprint(self) -> str:
        """Changes with the samples and what is learnt from them."""


class LearningPlan(Protocol):
    """What a fine-tuning objective needs of the plan, `tbkin_core.training.plan.FinetunePlan`."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def image_dropout(self) -> float: ...
    @property
    def blind_epochs(self) -> int: ...


class FinetuneObjective(Objective):
    """The objective over the samples of a split that have something to learn.

    Args:
        train, validation: Splits; None where there is nothing to validate on.
        rows: (M,) which samples of `train` are learnt.
        batch_size: Samples at once in evaluation.
    """

    metric = "accuracy"
    uses_all_weights = True
    compares_samples = False

    def __init__(
        self, task: FinetuneTask, train: Any, validation: Any, rows: NDArray, batch_size: int
    ) -> None:
        self.task, self.name = task, task.name
        self.train, self.validation = train, validation
        self.unit = task.unit  # what a training sample is, in the singular
        self.rows, self.batch_size = rows, batch_size
        self.vectors = train.inputs.store.vectors
        self.notes: list[str] = []  # what was left out of the training samples, one line each
        self.values: dict[str, Any] = {}  # what else a run's results should hold

    @abstractmethod
    def targets_checksum(self) -> int:
        """A number that changes with what is to be learnt."""

    def fingerprint(self) -> str:
        return f"{self.train.inputs.fingerprint()}-{self.targets_checksum()}"

    def lengths(self) -> NDArray:
        return self.train.inputs.lengths()[self.rows]

    def samples(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(len(self.rows))

    def accuracy(self, model: Any, inputs: Inputs, device: torch.device) -> float:
        """Accuracy in percent on the validation samples, given these inputs."""
        predicted = self.task.predict(model, inputs, device, self.batch_size)
        return 100 * float(self.task.scores(self.validation, predicted).mean())

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        """Accuracy in percent, and what attention kept; empty without validation samples."""
        if self.validation is None:
            return {}
        inputs = self.validation.inputs
        return accuracy_and_kept(model, lambda it: self.accuracy(it, inputs, device), inputs)

    def in_words(self, values: Mapping[str, float]) -> str:
        blind = values.get("accuracy_without_image")
        without = "" if blind is None else f" ({blind:.1f} % without image)"
        return f"{self.task.metric} {values['accuracy']:.1f} %{without}"

    def kept_values(self) -> dict[str, Any]:
        """What the last evaluation found of a model's configuration; the checkpoint is kept with it."""
        return {}


@dataclass(frozen=True, slots=True)
class Head:
    """What a head is built with."""

    values: dict[str, Any] = field(default_factory=dict)  # of the model's configuration
    outcomes: int = 0  # how many answers the head chooses among; 0 where that depends on the image
    note: str = ""  # what was chosen, for the log


# ---- what a figure shows ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What a model answered about one image."""

    answers: list[tuple[str, float]]  # (answer, probability), best first
    chosen: int | None = None  # number of the region that was chosen, None where answers are no regions
    runner_up: int | None = None  # the region with the second highest score
    box: tuple[float, float, float, float] | None = None  # (x1, y1, x2, y2) pixels after box regression


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A row of a report: a model's score in percent of each of N samples."""

    model: str
    scores: NDArray[np.float64]
    order: int
    part: str = ""  # what of the task it is of, where that has several: "text to image"
    image_ids: Sequence[ImageId] | None = None  # (N,) where the samples are not those of the split
    also: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # further scores, by name
    values: Mapping[str, float] = field(default_factory=dict)  # further numbers, by name


OWN_ROW = 3
"""`order` of the row of the model itself."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a model is worth on a split of N samples."""

    results: list[dict[str, Any]]
    """For each sample "image_id", "text", "type", "probability" and "score", for results-SPLIT.json."""
    rows: list[ReportRow]
    by_type: dict[str, Any] = field(default_factory=dict)
    """Accuracies by type of sample, as values of a run's results."""


class Baselines(Protocol):
    """Simpler models of the same training samples, which a model ought to be no worse than."""

    @property
    def values(self) -> dict[str, Any]:
        """What a run's results should hold."""

    @property
    def notes(self) -> list[str]:
        """What is worth knowing, one line each."""

    def rows(self, split: Split) -> list[ReportRow]:
        """Their scores on a split."""


# ---- tasks --------------------------------------------------------------------------------------


class Task(ABC):
    """What a checkpoint was trained for."""

    name: ClassVar[str]  # as `--task` and files have it
    asks: ClassVar[bool] = False  # whether its texts are questions, rather than name something

    @property
    def presentation(self) -> Presentation:
        """How its answers are shown."""
        return TASKS[self.name].presentation

    @abstractmethod
    def shown(self, model: Any, output: Any, boxes: NDArray, size: tuple[int, int], top: int) -> Shown:
        """The best answers, `top` at most, in the model's output for a batch of one.

        Args:
            boxes: (K, 4) xyxy pixels of the regions.
            size: Width and height of the image in pixels.
        """

    def target_boxes(
        self, dataset: Dataset, image_id: ImageId, text: str, subset: str | None, size: tuple[int, int]
    ) -> list[tuple[float, float, float, float]]:
        """The true boxes (x1, y1, x2, y2) that the dataset has for a text about an image of a size."""
        return []


class FinetuneTask(Task, Generic[Sample]):
    """A task that a model is fine-tuned for."""

    head: ClassVar[type[PreTrainedModel]]  # class of the model
    metric: ClassVar[str]  # name of the accuracy, for tables
    unit: ClassVar[str]  # one of them: "question"
    label: ClassVar[str]  # what a sample must have to be evaluated: "answers"
    starts_from: ClassVar[tuple[str, ...]] = ()  # tasks whose models are a better start than a pretrained one
    of_captions: ClassVar[bool] = False  # whether its samples are what models are pretrained on
    question_only: ClassVar[bool] = False  # whether a model without image is a baseline of it

    # ---- samples ----

    @abstractmethod
    def found_in(self, dataset: Dataset) -> bool:
        """Whether a dataset has samples of this task."""

    @abstractmethod
    def split_names(self, dataset: Dataset, subset: str | None) -> list[str]:
        """Splits of a dataset; of a set of samples where it has several, None takes the first.

        Raises:
            ConfigError: No such set.
            DataError: No samples of this task.
        """

    @abstractmethod
    def split_samples(self, dataset: Dataset, split: str, subset: str | None) -> list[Sample]:
        """All samples of a split."""

    @abstractmethod
    def samples(self, dataset: Dataset, subset: str | None) -> SampleSet[Sample]:
        """The samples that can be trained on or evaluated, by split; errors as `split_names`."""

    @abstractmethod
    def text(self, sample: Sample) -> str:
        """What the model reads."""

    def labelled(self, sample: Sample) -> bool:
        """Whether a sample can be scored."""
        return True

    def kind(self, sample: Sample) -> str:
        """What sweeps tell samples apart by; "" where unknown."""
        return ""

    def misfit(self, sample: Sample, store: FeatureStore) -> str:
        """Why the regions that a store has of a sample's image do not fit it, "" if they do."""
        return ""

    def usable(self, samples: Sequence[Any], store: FeatureStore) -> list[Any]:
        """The samples that the regions of a store can be used for."""
        return [item for item in samples if item.image_id in store and not self.misfit(item, store)]

    def evaluated(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples of a split that an evaluation is of: all but where the usual protocol has fewer."""
        return list(samples)

    # ---- model ----

    @abstractmethod
    def build_head(self, training: Sequence[Sample], config: FinetuneConfig) -> Head:
        """What the model's head is built with."""

    @abstractmethod
    def targets(self, samples: Sequence[Sample], store: FeatureStore) -> Any:
        """What N samples are learnt from and scored against."""

    def build_split(self, samples: Sequence[Any], source: InputSource, blind: bool = False) -> Split[Any]:
        """The samples whose images have features, with their inputs and targets."""
        kept = self.usable(samples, source.store)
        inputs = source.inputs([self.text(item) for item in kept], [item.image_id for item in kept], blind)
        return Split(kept, inputs, self.targets(kept, source.store))

    def begin(self, model: Any, training: Split, tokenizer: Tokenizer, known: Mapping[str, Tensor]) -> str:
        """Give a head that no `known` weights are of what can be known untrained; what was, for the log."""
        return ""

    @abstractmethod
    def objective(
        self, splits: Mapping[str, Split], head: Head, config: FinetuneConfig, plan: LearningPlan
    ) -> FinetuneObjective:
        """What is learnt from the "train" split and validated on "val".

        Raises:
            DataError: There is nothing to learn.
        """

    @abstractmethod
    def predict(self, model: Any, inputs: Inputs, device: torch.device, batch_size: int) -> Any:
        """What a model, in evaluation mode, answers to N inputs."""

    @abstractmethod
    def scores(self, split: Split, predictions: Any) -> NDArray[np.float64]:
        """(N,) what each prediction earns, in [0, 1]."""

    # ---- results ----

    def scored(self, split: Split) -> bool:
        """Whether any sample can be scored."""
        return bool(len(split))

    @abstractmethod
    def report(
        self, split: Split, predictions: Any, training: Sequence[Sample], blind: bool, hidden: Any
    ) -> SplitReport:
        """The model's scores beside those of its baselines, which may learn from the training samples.

        Args:
            blind: Whether the model never saw an image.
            hidden: Its answers with the image hidden, where it has learnt to do without; else None.
        """

    def baselines(self, training: Split, model: Any, blind: bool) -> Baselines | None:
        """Baselines that take a while to fit, so once for all splits; None where there are none.

        Args:
            blind: Whether the model never saw an image.
        """
        return None

    @abstractmethod
    def prediction_rows(
        self, model: Any, samples: Sequence[Sample], split: Split, predictions: Any
    ) -> tuple[list[dict[str, Any]], str]:
        """Rows of a file for an evaluation server, and what becomes of samples without features.

        Args:
            samples: All samples of the split.
            split: Those with features, one at least; the predictions are of these.
        """


def task_named(name: str) -> Task:
    """The task of a name among `TASKS`; loads its module, and with it torch."""
    module, _, kind = TASKS[name].kind.partition(":")
    return getattr(import_module(f"tbkin_core.tasks.{module}"), kind)()


def finetune_task(name: str) -> FinetuneTask:
    """The task of a name among `FINETUNE_TASKS`."""
    return task_named(name)  # type: ignore[return-value]
