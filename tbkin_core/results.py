"""What a stage hands back. `values` are what --json prints; tables are laid out by the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(slots=True, kw_only=True)
class StageResult:
    """What a stage made."""

    out: Path  # directory or file of the results
    problems: list[str] = field(default_factory=list)  # what was skipped or is worth knowing, one line each
    files: list[Path] = field(default_factory=list)  # files to open
    hints: list[str] = field(default_factory=list)  # commands worth running next

    @property
    def values(self) -> dict[str, Any]:
        """Plain values, as --json prints them."""
        return {"out": str(self.out), "problems": self.problems}

    def finish(self) -> None:
        """What is left to do once the result is shown: a server serves."""


@dataclass(slots=True, kw_only=True)
class ExtractFeaturesResult(StageResult):
    """A feature store, or a rank's share of one; the last three fields once the store is complete."""

    made: int  # images whose features were made now
    present: int  # that were there
    skipped: int  # that could not be made
    missing: int = 0  # shards that other ranks have still to make; 0 where the store is complete
    extractor: str = ""  # what made the features
    images: int = 0  # of the store
    feature_size: int = 0  # numbers per region

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
    """A graph store, or a rank's share of one."""

    made: int  # captions whose graphs were built now
    present: int  # that were there
    missing: int = 0  # shards that other ranks have still to make; 0 where the store is complete
    summary: dict[str, Any] = field(default_factory=dict)  # counts over the store, once it is complete

    @property
    def values(self) -> dict[str, Any]:
        rest = {"missing": self.missing} if self.missing else self.summary
        values = {"out": str(self.out), "made": self.made, "present": self.present}
        return {**values, **rest, "problems": self.problems}


@dataclass(slots=True, kw_only=True)
class CaptionGraphsResult(StageResult):
    """Text scene graphs of captions without images; of a file the first few, all are in `files`."""

    count: int  # captions
    graphs: list[dict[str, Any]]  # see `UnifiedGraph.to_dict`

    @property
    def values(self) -> dict[str, Any]:
        kept = ("text", "tokens", "objects", "attributes", "relations")
        graphs = [{name: graph[name] for name in kept} for graph in self.graphs]
        files = [str(file) for file in self.files]
        return {"captions": self.count, "graphs": graphs, "files": files, "problems": self.problems}


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """The accuracy in percent of a model or a baseline on a split, with its 95 % interval."""

    split: str
    model: str
    accuracy: float
    accuracy_low: float | None  # runs of an earlier version have no interval
    accuracy_high: float | None
    n: int  # samples
    order: int  # place in the table
    part: str | None = None  # what of the task it is of: "text to image"
    also: dict[str, dict[str, float]] | None = None  # by name: "value", and "low" and "high" of an interval

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ReportEntry:
        """From its values in run.json."""
        return cls(*(values.get(entry.name) for entry in fields(cls)))  # type: ignore[arg-type]

    def values(self) -> dict[str, Any]:
        """As run.json has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(slots=True, kw_only=True)
class TrainingRunResult(StageResult):
    """What a run of training left in its run.json."""

    results: dict[str, Any]  # all of it, as --json prints it

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
    """A fine-tuned model."""

    metric: str  # name of the accuracy
    report: list[ReportEntry]  # of the model and its baselines
    predictions: list[Path] = field(default_factory=list)  # files for an evaluation server
    answered: list[Path] = field(default_factory=list)  # what was answered to each sample, validation first

    @property
    def accuracy(self) -> dict[str, float]:
        """The model's accuracy in percent by split."""
        return self.results["accuracy"]

    @property
    def by_type(self) -> dict[str, float]:
        """Accuracy in percent by question type, on the split `type_split`; empty where types are unknown."""
        return self.results.get("per_question_type") or {}

    @property
    def type_counts(self) -> dict[str, int]:
        """How many questions each of `by_type` is the mean of; empty in runs of earlier versions."""
        return self.results.get("questions_per_type") or {}

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

    `rows` are as `tbkin_core.evaluation.sweep.summarise` makes them; on other ranks than 0 there are none.
    """

    identity: dict[str, Any]  # what tells it from another sweep
    split: str
    metric: str  # name of the accuracy, with its unit
    title: str  # what was evaluated
    samples: int  # of the split; of the first seed, where each holds other ones out
    samples_by_seed: list[int]
    images: int  # that these are of, over all seeds
    recorded: int  # samples whose attention was recorded, for "kept" and "entropy"
    rows: list[dict[str, Any]] = field(default_factory=list)
    conclusion: SweepConclusion = field(default_factory=lambda: SweepConclusion({}, False, False, ""))

    @property
    def values(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            **self.identity,
            "samples": self.samples,
            **({"samples_by_seed": self.samples_by_seed} if len(self.samples_by_seed) > 1 else {}),
            "recorded": self.recorded,
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
    """What a model answers about one image; boxes are (x1, y1, x2, y2) pixels."""

    image: str  # file, id, or trace
    question: str  # or expression
    checkpoint: str
    task: str  # what the model was trained for
    answers: list[Answer]  # best first, of the pass under the threshold that the model was trained with
    dense: list[Answer]  # of the dense pass
    thresholded: list[Answer]  # of the thresholded pass
    threshold: float  # of the thresholded pass
    selection: str  # its rule
    kept_fraction: float  # share of the attention that the threshold kept, in [0, 1]
    figures: list[Path]  # files, the first one shows the attention
    trace: Path  # file from which it can be drawn again
    box: tuple[float, float, float, float] | None = None  # where the answer is a region
    target_box: tuple[float, float, float, float] | None = None  # the true box, where known
    iou: float | None = None  # of both

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
class QuestionFileResult(StageResult):
    """What a model answers to the questions of a file; the lines are in the file `out`."""

    model: str  # the checkpoint
    about: str  # which that is, with its data and accuracy
    task: str
    threshold: float  # of its answers
    questions: int
    images: int
    kept: int  # answers of an earlier result
    failed: int  # questions without an answer
    seconds: float  # for all answers
    shown: list[tuple[str, str, str, float | None]]  # the first: image, question, answer, probability

    @property
    def values(self) -> dict[str, Any]:
        names = ("model", "about", "task", "threshold", "questions", "images", "kept", "failed", "seconds")
        return {
            "out": str(self.out),
            **{name: getattr(self, name) for name in names},
            "problems": self.problems,
        }


@dataclass(slots=True, kw_only=True)
class AnswersResult(StageResult):
    """What a model answers to one question."""

    title: str  # question and model
    about: str  # which model that is, with its data and accuracy
    heading: str  # what answers are
    selection: str  # name of the thresholded side
    shows_box: bool  # whether answers have boxes
    several: bool  # whether several images were asked about
    images: list[ImageAnswer] = field(default_factory=list)  # one for each that could be shown

    @property
    def values(self) -> dict[str, Any]:
        entries = [image.values() for image in self.images]
        found = {"images": entries} if self.several else entries[0]
        return {**found, "about": self.about, "problems": self.problems}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A picture that a sentence was found to fit."""

    image: Path
    image_id: int | str  # in the feature store
    score: float  # that the pictures are ranked by
    probability: float  # that the two belong together, by the encoder over both
    size: tuple[int, int]  # width and height in pixels
    # region, attention: box (x1, y1, x2, y2) in pixels of the region that was attended to most, and its share
    region: tuple[float, float, float, float]
    attention: float
    stands_out: bool  # whether that is much more than an even share


@dataclass(slots=True, kw_only=True)
class ServeResult(StageResult):
    """A page whose address is open, and where nobody answers before `finish`."""

    url: str  # the page's address, with its token where it needs one
    checkpoint: Path
    task: str  # what the model was trained for
    run: Callable[[], None]  # answers until it is interrupted

    @property
    def values(self) -> dict[str, Any]:
        values = {"url": self.url, "checkpoint": str(self.checkpoint), "task": self.task}
        return {**values, "problems": self.problems}

    def finish(self) -> None:
        self.run()


@dataclass(slots=True, kw_only=True)
class SearchResult(StageResult):
    """The pictures of a directory that fit a sentence best."""

    sentence: str
    place: Path  # the directory
    checkpoint: Path
    about: str  # which that is, with its data and accuracy
    searched: int  # pictures
    seconds: float  # of the search alone, once model and vectors are there
    matches: list[Match]  # best first

    def name_of(self, match: Match) -> str:
        """A picture as people know it in the directory."""
        inside = match.image.is_relative_to(self.place)
        return str(match.image.relative_to(self.place) if inside else match.image)

    @property
    def values(self) -> dict[str, Any]:
        matches = [
            {**asdict(match), "image": str(match.image), "region": [round(side, 1) for side in match.region]}
            for match in self.matches
        ]
        return {
            "figure": str(self.out),
            "sentence": self.sentence,
            "checkpoint": str(self.checkpoint),
            "about": self.about,
            "searched": self.searched,
            "seconds": round(self.seconds, 3),
            "matches": matches,
            "problems": self.problems,
        }


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
    """A sheet of what a model answered to a split."""

    title: str  # what is shown
    task: str  # what the model was trained for
    split: str
    wrong: int  # answers that are wrong
    answers: int  # answers in all
    shown: dict[str, list[dict[str, Any]]]  # by type: the results on the sheet, as their file has them
    counts: dict[str, tuple[int, int, int]]  # by type: how many are wrong, there are, and are shown

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
