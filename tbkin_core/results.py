"""What a stage hands back. `values` are what --json prints; tables are laid out by the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(slots=True, kw_only=True)
class StageResult:
    """What a stage made.

    Attributes:
        out: Directory or file of the results.
        problems: What was skipped or is worth knowing, one line each.
        files: Files to open.
        hints: Commands worth running next.
    """

    out: Path
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """Plain values, as --json prints them."""
        return {"out": str(self.out), "problems": self.problems}


@dataclass(slots=True, kw_only=True)
class ExtractFeaturesResult(StageResult):
    """A feature store, or a rank's share of one.

    Attributes:
        made, present, skipped: Images whose features were made now, were there, could not be made.
        missing: Shards that other ranks have still to make; 0 where the store is complete.
        extractor: What made the features, once the store is complete.
        images: Images of the store.
        feature_size: Numbers per region.
    """

    made: int
    present: int
    skipped: int
    missing: int = 0
    extractor: str = ""
    images: int = 0
    feature_size: int = 0

    @property
    def values(self) -> dict[str, Any]:
        if self.missing:
            names = ["made", "present", "skipped", "missing"]
        else:
            names = ["extractor", "images", "made", "present", "skipped", "feature_size"]
        values = {name: getattr(self, name) for name in names}
        return {"out": str(self.out), **values, "problems": self.problems}


@dataclass(slots=True, kw_only=True)
class BuildGraphsResult(StageResult):
    """A graph store, or a rank's share of one.

    Attributes:
        made, present: Captions whose graphs were built now, or were there.
        missing: Shards that other ranks have still to make; 0 where the store is complete.
        summary: Counts over the whole store, once it is complete.
    """

    made: int
    present: int
    missing: int = 0
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        rest = {"missing": self.missing} if self.missing else self.summary
        values = {"out": str(self.out), "made": self.made, "present": self.present}
        return {**values, **rest, "problems": self.problems}


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """The accuracy in percent of a model or a baseline on a split of n samples, with its 95 % interval.

    `order` is its place in the table. Runs of an earlier version have no interval.
    """

    split: str
    model: str
    accuracy: float
    n: int
    order: int
    accuracy_low: float | None = None
    accuracy_high: float | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ReportEntry:
        """From its values in run.json."""
        return cls(**{entry.name: values[entry.name] for entry in fields(cls) if entry.name in values})

    def values(self) -> dict[str, Any]:
        """As run.json has it."""
        entry = asdict(self)
        names = ("split", "model", "accuracy", "accuracy_low", "accuracy_high", "n", "order")
        return {name: entry[name] for name in names if entry[name] is not None}


@dataclass(slots=True, kw_only=True)
class TrainingRunResult(StageResult):
    """What a run of training left in its run.json.

    Attributes:
        results: All of it, as --json prints it.
    """

    results: dict[str, Any]

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept, from 1; -1 without any."""
        return self.results["best_epoch"]

    @property
    def values(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.results, "problems": self.problems}


@dataclass(slots=True, kw_only=True)
class PretrainResult(TrainingRunResult):
    """A pretrained model."""

    @property
    def validation(self) -> dict[str, float]:
        """Losses and accuracies in percent ("val_mlm_accuracy") of the best epoch."""
        return self.results["validation"]


@dataclass(slots=True, kw_only=True)
class FinetuneResult(TrainingRunResult):
    """A fine-tuned model.

    Attributes:
        metric: Name of the accuracy.
        report: Accuracies of the model and its baselines.
        predictions: Files for an evaluation server.
        answered: Files of what was answered to each sample, validation first.
    """

    metric: str
    report: list[ReportEntry]
    predictions: list[Path] = field(default_factory=list)
    answered: list[Path] = field(default_factory=list)

    @property
    def accuracy(self) -> dict[str, float]:
        """The model's accuracy in percent by split."""
        return self.results["accuracy"]

    @property
    def by_type(self) -> dict[str, float]:
        """Accuracy in percent by question type, on the split `type_split`; empty where types are unknown."""
        return self.results.get("per_question_type") or {}

    @property
    def type_split(self) -> str:
        """The split of `by_type`."""
        return str(self.results.get("type_split", ""))

    @property
    def values(self) -> dict[str, Any]:
        values = {"out": str(self.out), **self.results, "problems": self.problems}
        values["report"] = [entry.values() for entry in self.report]
        if self.predictions:
            values["predictions"] = [str(file) for file in self.predictions]
        values["results"] = [str(file) for file in self.answered]
        return values


@dataclass(frozen=True, slots=True)
class SweepConclusion:
    """What a sweep says in one sentence, and whether its best differs from dense beyond noise."""

    best: dict[str, Any]
    differs: bool
    all_alike: bool
    text: str


@dataclass(slots=True, kw_only=True)
class SweepResult(StageResult):
    """What a sweep measured.

    Attributes:
        identity: What tells it from another sweep.
        split: Split that was evaluated.
        metric: Name of the accuracy, with its unit.
        title: What was evaluated.
        samples: Samples of the split.
        images: Images that they are of, over all seeds.
        rows: As `tbkin_core.evaluation.sweep.summarise` makes them; none on other ranks than 0.
        conclusion: What they say.
    """

    identity: dict[str, Any]
    split: str
    metric: str
    title: str
    samples: int
    images: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    conclusion: SweepConclusion = field(default_factory=lambda: SweepConclusion({}, False, False, ""))

    @property
    def values(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            **self.identity,
            "samples": self.samples,
            "rows": self.rows,
            "conclusion": self.conclusion.text,
            "differs_from_dense": self.conclusion.differs,
            "all_alike": self.conclusion.all_alike,
            "problems": self.problems,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its probability; of a region also the label, where it has one."""

    name: str
    probability: float
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnswer:
    """What a model answers about one image.

    Attributes:
        image: File, id, or trace.
        question: Question or expression.
        checkpoint: Of the model.
        task: What the model was trained for.
        answers: Best first, of the pass that counts: that of the threshold the model was trained with.
        dense, thresholded: Those of either pass.
        threshold, selection: Of the thresholded pass.
        kept_fraction: Share of the attention that the threshold kept, in [0, 1].
        figures: Files, the first one shows the attention.
        trace: File from which it can be drawn again.
        box: (x1, y1, x2, y2) pixels, where the answer is a region.
        target_box: The true box likewise, where known; `iou` is that of both.
    """

    image: str
    question: str
    checkpoint: str
    task: str
    answers: list[Answer]
    dense: list[Answer]
    thresholded: list[Answer]
    threshold: float
    selection: str
    kept_fraction: float
    figures: list[Path]
    trace: Path
    box: tuple[float, float, float, float] | None = None
    target_box: tuple[float, float, float, float] | None = None
    iou: float | None = None

    def values(self) -> dict[str, Any]:
        """As --json prints them."""
        values: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "image": self.image,
            "question": self.question,
            "answers": _plain(self.answers),
            "answers_dense": _plain(self.dense),
            "answers_thresholded": _plain(self.thresholded),
            "box": None if self.box is None else [round(side, 1) for side in self.box],
            "threshold": self.threshold,
            "selection": self.selection,
            "kept_fraction": self.kept_fraction,
        }
        if self.target_box is not None and self.iou is not None:
            values["target_box"] = [round(side, 1) for side in self.target_box]
            values["iou"] = self.iou
        return values | {
            "figure": str(self.figures[0]),
            "trace": str(self.trace),
            "files": [str(file) for file in self.figures],
        }


@dataclass(slots=True, kw_only=True)
class AnswersResult(StageResult):
    """What a model answers to one question.

    Attributes:
        title: Question and model.
        heading: What answers are.
        selection: Name of the thresholded side.
        shows_box: Whether answers have boxes.
        several: Whether several images were asked about.
        images: One for each that could be shown.
    """

    title: str
    heading: str
    selection: str
    shows_box: bool
    several: bool
    images: list[ImageAnswer] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        entries = [image.values() for image in self.images]
        return {**({"images": entries} if self.several else entries[0]), "problems": self.problems}


@dataclass(slots=True, kw_only=True)
class RedrawnResult(StageResult):
    """Traces that were drawn again."""

    images: list[ImageAnswer]

    @property
    def values(self) -> dict[str, Any]:
        entries = [
            {
                "trace": image.image,
                "figure": str(image.figures[0]),
                "question": image.question,
                "answers_dense": _plain(image.dense),
                "answers_thresholded": _plain(image.thresholded),
            }
            for image in self.images
        ]
        return {"images": entries, "problems": self.problems}


@dataclass(slots=True, kw_only=True)
class ResultSheet(StageResult):
    """A sheet of what a model answered to a split.

    Attributes:
        title: What is shown.
        task: What the model was trained for.
        split: The split.
        wrong, answers: How many answers are wrong, and how many there are.
        shown: By type: the results on the sheet, as their file has them.
        counts: By type: how many are wrong, there are, and are shown.
    """

    title: str
    task: str
    split: str
    wrong: int
    answers: int
    shown: dict[str, list[dict[str, Any]]]
    counts: dict[str, tuple[int, int, int]]

    @property
    def values(self) -> dict[str, Any]:
        return {
            "figure": str(self.out),
            "task": self.task,
            "split": self.split,
            "wrong": self.wrong,
            "answers": self.answers,
            "shown": [{"type": kind, **row} for kind, members in self.shown.items() for row in members],
            "problems": self.problems,
        }


def _plain(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [{"answer": answer.name, "probability": answer.probability} for answer in answers]
