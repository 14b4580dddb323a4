"""The settings of the subcommands that do not train; see `tbkin_core.settings.training`."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tbkin_core.datasets.single_files import QUESTION_SUFFIXES
from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors import EXTRACTOR_NAMES, extractor_help, takes_backbone
from tbkin_core.questions.kinds import KINDS
from tbkin_core.selection import SELECTIONS, TRANSFORMS, check_threshold, usual_threshold
from tbkin_core.settings import options
from tbkin_core.settings.base import Group, StageConfig, fields_of, option, wrong_choice


@dataclass(frozen=True, kw_only=True)
class ExtractFeaturesConfig(StageConfig):
    """`tbkin extract-features`."""

    data: Path = options.data(
        Path(), "Dataset directory, or a directory of images.", argument=True, metavar="DATA"
    )
    extractor: str = options.regions("auto", extractor_help(), choices=EXTRACTOR_NAMES, others="MODEL")
    backbone: str | None = options.regions(
        None, "Model (hub id or directory) that makes the region vectors.", metavar="MODEL"
    )
    backbone_side: int | None = options.regions(
        None,
        "Pixels along a side of the square that the backbone sees.",
        low=32,
        high=4096,
        only_with="backbone",
        unset="the backbone's own",
    )
    max_regions: int = options.regions(36, "Regions per image at most.", low=1)
    workers: int | None = options.run(None, "Processes.", low=0, unset="one per processor")
    batch_size: int = options.run(8, "Images that a model sees at once.", low=1)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        wrong = wrong_choice(self.extractor, EXTRACTOR_NAMES)
        if wrong and "/" not in self.extractor and not Path(self.extractor).is_dir():
            yield f"extractor: {wrong}"
        if self.backbone is not None and not takes_backbone(self.extractor):
            yield "backbone: imported features come with vectors; name another --extractor"


@dataclass(frozen=True, kw_only=True)
class BuildGraphsConfig(StageConfig):
    """`tbkin build-graphs`."""

    data: Path | None = options.data(
        None,
        "Dataset directory with captions; or a file of captions alone: .txt with one a line, .jsonl, .csv.",
        argument=True,
        metavar="DATA",
    )
    """Graphs of a file go to `export`, or beside it."""
    parser: str = options.graphs(
        "builtin",
        "What parses the captions: tbkin's own parser, or a spaCy pipeline for English by name or path.",
        choices=("builtin",),
        others="PIPELINE",
    )
    features: Path | None = options.features(None)
    """Without one, graphs have no regions."""
    min_similarity: float = options.chance(0.5, "Least weight of a cross-modal edge.", Group.GRAPHS)
    label_iou: float = options.chance(
        0.5, "A region without a label of its own takes that of the annotated box it overlaps this much."
    )
    export: Path | None = options.output(
        None, "Also write every graph to this file as JSON lines.", metavar="FILE"
    )
    networkx: Path | None = options.output(
        None,
        "Also write every graph for networkx: FILE.graphml, FILE.json, or a directory for one file"
        " per caption.",
    )
    similarity: str = options.graphs(
        "lexical",
        "What weighs cross-modal edges; lexical needs no model.",
        choices=("lexical", "vectors", "encoder"),
    )
    similarity_model: str | None = options.graphs(
        None, "spaCy pipeline for vectors, or sentence encoder for encoder, by name or path.", metavar="MODEL"
    )
    questions: bool = options.questions(
        False, "Also make questions of the captions, as VQA v2 files in DATA/questions."
    )
    """`finetune --task vqa --data DATA` finds them there."""
    questions_per_image: int = options.made(10, "Questions about an image at most.", low=1)
    question_kinds: list[str] = options.made([], "Kinds of questions.", choices=KINDS, unset="all")
    unbalanced: bool = options.made(False, "Keep questions that tell their answer without the image, too.")
    expressions: bool = options.questions(
        False,
        "Also make referring expressions of annotated or named regions, as RefCOCO's files in"
        " DATA/expressions.",
    )
    """`finetune --task rec --data DATA` finds them there."""
    expressions_per_image: int = options.questions(
        5, "Objects of an image that are referred to at most.", low=1, only_with="expressions"
    )
    workers: int | None = options.run(
        None, "Processes.", low=0, unset="one per processor above 2,000 captions, else 0"
    )
    """0 works in this process."""
    text: list[str] = options.data(
        [],
        "Print the graph of this caption, in the place of DATA; - reads captions from stdin.",
        metavar="TEXT",
    )

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.data is None and not self.text:
            yield "data: is missing; name a dataset directory or a file of captions, or give --text"
        if self.data is not None and self.text:
            yield "text: its graphs are none of a dataset's; leave out DATA or --text"
        if self.networkx is not None and self.networkx.suffix.lower() not in ("", ".graphml", ".json"):
            yield f"networkx: expected a .graphml or .json file, or a directory, got {str(self.networkx)!r}"


@dataclass(frozen=True, kw_only=True)
class ThresholdSweepConfig(StageConfig):
    """`tbkin threshold-sweep`; what is None comes from the checkpoint."""

    task: str = options.task("")
    checkpoint: Path | None = options.checkpoint(None)
    data: Path | None = options.data(None, "Dataset directory.", unset="the checkpoint's")
    features: Path | None = options.features(None)
    dataset: str | None = options.sample_set(None)
    thresholds: str = options.sweep(
        "0:0.9:0.1", "Thresholds, STOP included.", metavar="[START:STOP:STEP|T,T,...]"
    )
    selection: list[str] = options.sweep(
        ["relative"],
        "Selection rule; topk=1,4,16 has thresholds of its own.",
        choices=SELECTIONS,
        others="RULE=T,...",
    )
    regions: str | None = options.sweep(
        None,
        "Regions per image in turn, such as 36,72,144.",
        metavar="N,N,...",
        unset="as many as trained on",
    )
    split: str | None = options.data(None, "Split to evaluate.", unset="val")
    batch_size: int = options.run(64, "Samples evaluated at once.", low=1)
    refit: bool = options.sweep(False, "Fine-tune once per threshold, with the settings of the checkpoint.")
    seeds: int = options.refit(1, "Runs per threshold, with the seeds from --seed up.", low=1, unset="")
    epochs: int | None = options.refit(None, "Epochs of each run.", low=0)
    max_minutes: float | None = options.refit(None, "Minutes per run at most.", low=0)
    init: str | None = options.refit(None, "Weights that each run starts from.", metavar="MODEL")
    format: list[str] = options.figure_format(["png"])
    column: bool = options.column(False)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        try:
            wanted = self.wanted()
        except ConfigError as error:
            yield error.message
            return
        try:
            self.region_counts()
        except ConfigError as error:
            yield error.message
        named = [entry.partition("=")[0].strip() for entry in self.selection]
        for name in sorted({name for name in named if named.count(name) > 1}):
            yield f"selection: {name!r} is named twice"
        faults = {rule: fault for rule, value in reversed(wanted) if (fault := check_threshold(rule, value))}
        yield from reversed(faults.values())

    def region_counts(self) -> list[int]:
        """How many regions an image has in turn; 0, alone, is as many as the model was trained on.

        Raises:
            ConfigError: They cannot be read, or are no increasing numbers.
        """
        if self.regions is None:
            return [0]
        parts = [part.strip() for part in self.regions.split(",")]
        counts = [int(part) for part in parts if re.fullmatch("[0-9]{1,6}", part)]
        if len(counts) < len(parts) or counts != sorted(set(counts)) or counts[0] < 1:
            raise ConfigError(
                f"regions: expected increasing whole numbers from 1, such as 36,72,144, got {self.regions!r}"
            )
        return counts

    def wanted(self) -> list[tuple[str, float]]:
        """The (rule, threshold) pairs to measure beside the dense model; a rule without a threshold once.

        Raises:
            ConfigError: The thresholds cannot be read.
        """
        pairs: list[tuple[str, float]] = []
        for entry in self.selection:
            rule, given, own = (part.strip() for part in entry.partition("="))
            if rule in TRANSFORMS:
                if given:
                    raise ConfigError(f"selection: {rule!r} has no thresholds, got {entry!r}")
                pairs.append((rule, 1.0))
            else:
                values = parse_thresholds(own if given else self.thresholds)
                pairs += [(rule, value) for value in values if value != 0] or [(rule, 0.0)]
        return pairs


@dataclass(frozen=True, kw_only=True)
class VisualizeConfig(StageConfig):
    """`tbkin visualize`."""

    overwrite: bool = option(False, "Has no effect: figures replace those of the same name.")
    images: list[Path] = options.data(
        [],
        "Image files, then the question, or the expression for a REC checkpoint; or a directory of images,"
        " then what to look for in them with a retrieval checkpoint. Or a file of questions alone (.csv,"
        " .jsonl), to answer them without figures. Or traces (.npz) alone, to draw them again.",
        argument=True,
        metavar="IMAGE... QUESTION",
    )
    question: str = option("", "Question, or expression for a REC checkpoint.")
    image_id: list[str] = options.data(
        [], "Image by its id in the feature store, in place of a file.", metavar="ID"
    )
    checkpoint: Path | None = options.checkpoint(None)
    features: Path | None = options.data(
        None, "Feature store that holds the images, where they cannot be made anew."
    )
    data: Path | None = options.data(None, "Dataset of the images.", unset="the checkpoint's")
    threshold: float | None = options.threshold(None, unset="the checkpoint's")
    selection: str | None = options.rule(None, unset="the checkpoint's")
    """For the thresholded side. Beside a dense checkpoint: relative with τ = 0.3."""
    aggregate: str | None = options.figure(
        None,
        "Attention shown: over all layers (rollout), or of the last one.",
        choices=("rollout", "last"),
        unset="last for answers, rollout for expressions",
    )
    layer: int | None = options.figure(None, "Show this layer alone, numbered from 0.", low=0)
    head: int | None = options.figure(
        None, "Show this head alone, numbered from 0, of --layer or the last layer.", low=0
    )
    top: int | None = options.figure(
        None, "Answers shown, or pictures of a directory.", low=1, high=200, unset="5; of a directory 12"
    )
    format: list[str] = options.figure_format(["png"])
    column: bool = options.column(False)
    graph: bool = options.figure(False, "Also draw the scene graph of text and image.")
    html: bool = options.figure(False, "Also write a page to explore words, regions, layers and heads.")
    results: Path | None = options.figure(
        None, "Draw a sheet of a run's results-SPLIT.json.", flag="--from", metavar="FILE"
    )
    wrong: bool = options.figure(False, "With --from: wrong answers alone.")
    limit: int = options.figure(20, "Answers drawn at most.", low=1, high=200, only_with="results")
    serve: bool = options.server(
        False,
        "Serve a page on this machine, to drop an image on and ask about it; no IMAGE and no QUESTION are"
        " given. Needs `pip install 'tbkin[serve]'`.",
    )
    port: int = options.server(
        8420, "Port of the page; 0 is any free one.", low=0, high=65535, only_with="serve"
    )
    host: str = options.server(
        "127.0.0.1",
        "Address that the page is served at. Any but this machine's own, such as 0.0.0.0, is open to others,"
        " who need the token in the address that is printed.",
        metavar="ADDR",
        only_with="serve",
    )

    @property
    def wants_graph(self) -> bool:
        """Whether the trace is to hold the scene graph, for which spaCy is loaded."""
        return self.graph or self.html or self.serve

    @property
    def redraws(self) -> bool:
        """Whether the images are traces."""
        return bool(self.images) and all(path.suffix.lower() == ".npz" for path in self.images)

    @property
    def question_file(self) -> Path | None:
        """A file of questions about images, where that is given in the place of images and a question."""
        is_file = len(self.images) == 1 and self.images[0].suffix.lower() in QUESTION_SUFFIXES
        return self.images[0] if is_file and not self.question and not self.image_id else None

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.aggregate is not None and (self.layer is not None or self.head is not None):
            yield "aggregate: sums layers and heads up; omit it beside --layer or --head"
        if self.serve:
            yield from self._serving_conflicts()
        elif self.results is not None:
            if self.images or self.image_id or self.question:
                yield "results: --from draws what stands in its file; give no image and no question"
            if self.wants_graph:
                yield "results: --from has answers alone; --graph and --html are of one image"
        elif self.wrong:
            yield "wrong: chooses among the results of --from results-val.json"
        elif self.redraws:
            fixed = ("question", "image_id", "checkpoint", "features", "threshold", "selection")
            if given := [name for name in fixed if getattr(self, name) not in (None, "", [])]:
                yield f"{given[0]}: a trace has its own; for another one give the image again"
        elif self.question_file is not None:
            for name in ("graph", "html", "column", "aggregate", "layer", "head", "top"):
                if getattr(self, name) not in (None, False):
                    yield f"{name}: is of figures; a file of questions is answered without any"
        else:
            yield from self._question_conflicts()
        if self.threshold is not None or self.selection is not None:
            rule = self.selection or "relative"
            threshold = usual_threshold(rule) if self.threshold is None else self.threshold
            if fault := check_threshold(rule, threshold):
                yield fault

    def _serving_conflicts(self) -> Iterator[str]:
        if self.images or self.image_id or self.question:
            yield "serve: the page takes images and questions; give none beside --serve"
        fields = fields_of(type(self))
        for name in ("features", "data", "aggregate", "layer", "head", "format", "column", "graph", "html"):
            if getattr(self, name) != fields[name].default:
                yield f"{name}: has no part in the page of --serve; leave it out"
        for name in ("results", "wrong", "out"):
            if getattr(self, name) != fields[name].default:
                yield f"{name}: is of files, and --serve writes none; leave it out"
        if not self.host.strip():
            yield "host: is empty; give an address such as 127.0.0.1, or leave it out"

    def _question_conflicts(self) -> Iterator[str]:
        if any(path.suffix.lower() == ".npz" for path in self.images):
            yield "images: traces (.npz) are drawn again by themselves, without images or a question"
        if any(path.suffix.lower() in QUESTION_SUFFIXES for path in self.images):
            yield "images: a file of questions is given by itself, without images or a question"
        if not self.images and not self.image_id:
            yield "images: none is given; name a file, or --image-id with an id of the feature store"
        if not self.question.strip() and len(self.images) == 1 and " " in self.images[0].name.strip():
            yield f"images: {str(self.images[0])!r} is alone; give an image and then the question"
        elif not self.question.strip():
            yield 'question: is empty; give one, for example "what color is the dog?"'


def parse_thresholds(text: str) -> list[float]:
    """`0:0.9:0.1` (stop included) or `0,0.1,0.3` to increasing, distinct numbers.

    Raises:
        ConfigError: It cannot be read, is empty, or is out of order.
    """
    usage = f"thresholds: expected start:stop:step or a list such as 0,0.1,0.3, got {text!r}"
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            if not step > 0 or stop < start or (stop - start) / step > 1000:
                raise ConfigError(usage, hint="the step must be positive and the stop not below the start")
            count = int((stop - start) / step + 1e-9) + 1
            values = [round(start + index * step, 10) for index in range(count)]
        else:
            values = [float(part) for part in text.split(",")]
        if not all(math.isfinite(value) for value in values):
            raise ConfigError(usage, hint="thresholds must be finite")
    except (ValueError, OverflowError) as error:
        raise ConfigError(usage, hint="for example --thresholds 0:0.9:0.1") from error
    if values != sorted(set(values)):
        raise ConfigError(f"thresholds: expected increasing, distinct numbers, got {text!r}")
    return values
