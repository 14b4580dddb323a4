"""The settings of the six subcommands.

A text below a field says what `--help` has no room for. Fields without a `Group` are for YAML and Python.
"""

# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors import EXTRACTOR_NAMES, extractor_help, takes_backbone
from tbkin_core.questions.kinds import KINDS
from tbkin_core.selection import (
    SCOPES,
    SELECTIONS,
    TRANSFORMS,
    check_threshold,
    usual_threshold,
)
from tbkin_core.settings.base import Group, StageConfig, option, wrong_choice
from tbkin_core.tasks.table import FINETUNE_TASKS, TASKS

# A setting under each heading of --help.
_data = partial(option, group=Group.DATA)
_regions = partial(option, group=Group.REGIONS)
_graphs = partial(option, group=Group.GRAPHS)
_questions = partial(option, group=Group.QUESTIONS)
_model = partial(option, group=Group.MODEL)
_selection = partial(option, group=Group.SELECTION)
_training = partial(option, group=Group.TRAINING)
_sweep = partial(option, group=Group.SWEEP)
_figure = partial(option, group=Group.FIGURE)
_run = partial(option, group=Group.RUN)
_output = partial(option, group=Group.OUTPUT)

# What several subcommands have.
_named = [f"{TASKS[name].samples} ({name})" for name in FINETUNE_TASKS]
_tasks = f"{', '.join(_named[:-1])} or {_named[-1]}"
_task = partial(_data, help=f"What to learn: {_tasks}.", choices=FINETUNE_TASKS, required=True)
_features = partial(_data, help="Feature store.", unset="DATA/features")
_sample_set = partial(
    _data,
    help="Which set, where there are several: refcoco, refcoco+, refcocog-google; vqa-v2, vqa, ...",
)
_own = "Fine-tuned model, or one that comes with tbkin: photo-answers, photo-search."
_checkpoint = partial(_model, help=_own, unset="the latest, else these")
_rule = partial(
    _selection,
    help="Rule by which attention keeps keys; sparsemax and entmax15 have no threshold.",
    choices=SELECTIONS,
)
_threshold = partial(_selection, help="τ of the selection rule, or k of topk; 0 is the dense model.")
_vqa = partial(option, only_for=("vqa",))
_made = partial(_questions, only_with="questions")
_refit = partial(_sweep, only_with="refit", unset="the checkpoint's")
_chance = partial(option, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class ExtractFeaturesConfig(StageConfig):
    """`tbkin extract-features`."""

    data: Path = _data(Path(), "Dataset directory, or a directory of images.", argument=True, metavar="DATA")
    extractor: str = _regions("auto", extractor_help(), choices=EXTRACTOR_NAMES, others="MODEL")
    backbone: str | None = _regions(
        None, "Model (hub id or directory) that makes the region vectors.", metavar="MODEL"
    )
    backbone_side: int | None = _regions(
        None,
        "Pixels along a side of the square that the backbone sees.",
        low=32,
        high=4096,
        only_with="backbone",
        unset="the backbone's own",
    )
    max_regions: int = _regions(36, "Regions per image at most.", low=1)
    workers: int | None = _run(None, "Processes.", low=0, unset="one per processor")
    batch_size: int = _run(8, "Images that a model sees at once.", low=1)

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

    data: Path = _data(Path(), "Dataset directory with captions.", argument=True, metavar="DATA")
    parser: str = _graphs(
        "builtin",
        "What parses the captions: tbkin's own parser, or a spaCy pipeline for English by name or path.",
        choices=("builtin",),
        others="PIPELINE",
    )
    features: Path | None = _features(None)
    """Without one, graphs have no regions."""
    min_similarity: float = _chance(0.5, "Least weight of a cross-modal edge.", Group.GRAPHS)
    label_iou: float = _chance(
        0.5, "A region without a label of its own takes that of the annotated box it overlaps this much."
    )
    export: Path | None = _output(None, "Also write every graph to this file as JSON lines.", metavar="FILE")
    networkx: Path | None = _output(
        None,
        "Also write every graph for networkx: FILE.graphml, FILE.json, or a directory for one file"
        " per caption.",
    )
    similarity: str = _graphs(
        "lexical",
        "What weighs cross-modal edges; lexical needs no model.",
        choices=("lexical", "vectors", "encoder"),
    )
    similarity_model: str | None = _graphs(
        None, "spaCy pipeline for vectors, or sentence encoder for encoder, by name or path.", metavar="MODEL"
    )
    questions: bool = _questions(
        False, "Also make questions of the captions, as VQA v2 files in DATA/questions."
    )
    """`finetune --task vqa --data DATA` finds them there."""
    questions_per_image: int = _made(10, "Questions about an image at most.", low=1)
    question_kinds: list[str] = _made([], "Kinds of questions.", choices=KINDS, unset="all")
    unbalanced: bool = _made(False, "Keep questions that tell their answer without the image, too.")
    expressions: bool = _questions(
        False,
        "Also make referring expressions of annotated or named regions, as RefCOCO's files in"
        " DATA/expressions.",
    )
    """`finetune --task rec --data DATA` finds them there."""
    expressions_per_image: int = _questions(
        5, "Objects of an image that are referred to at most.", low=1, only_with="expressions"
    )
    workers: int | None = _run(
        None, "Processes.", low=0, unset="one per processor above 2,000 captions, else 0"
    )
    """0 works in this process."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.networkx is not None and self.networkx.suffix.lower() not in ("", ".graphml", ".json"):
            yield f"networkx: expected a .graphml or .json file, or a directory, got {str(self.networkx)!r}"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """Settings that pretraining and fine-tuning share; None lets tbkin choose from the data."""

    size: str = _model(
        "auto", "Size of the model; auto chooses from the data.", choices=("auto", "tiny", "small", "base")
    )
    init: str = _model(
        "auto",
        "Weights to start from: a checkpoint, a BERT directory or its hub id; words: word vectors alone.",
        choices=("auto", "words", "none"),
        others="MODEL",
    )
    """For fine-tuning, auto is the latest model of the same features: for VQA a REC model, else a pretrained
    one, else that which comes with tbkin for the task."""
    epochs: int | None = _training(
        None, "Passes over the training data.", low=0, unset="chosen from the data"
    )
    batch_size: int | None = _training(
        None, "Samples per optimizer step (all devices).", low=1, unset="chosen from the data"
    )
    micro_batch_size: int | None = option(
        None, "Samples that a device takes at once.", low=1, unset="batch_size / devices"
    )
    learning_rate: float | None = _training(
        None, "Peak learning rate.", above=0, unset="chosen from the size"
    )
    warmup: float = option(
        0.1, "Share of all steps (below 1) or epochs (from 1) over which the rate rises from 0.", low=0
    )
    schedule: str = option(
        "linear",
        "After the warmup: linear falls to 0, step multiplies by 0.1 at each of decay_epochs.",
        choices=("linear", "step", "constant"),
    )
    decay_epochs: list[int] = option([], "Epochs at which the schedule step falls.")
    weight_decay: float = option(0.01, "AdamW's.", low=0)
    grad_clip: float = option(1.0, "Largest gradient norm; 0 turns clipping off.", low=0)
    dropout: float | None = _chance(
        None, "Dropout everywhere.", unset="0 for the size tiny, 0.3 for few open questions, else 0.1"
    )
    precision: str = _training(
        "auto",
        "Numbers to compute in; auto is bf16 where the device multiplies it itself.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    max_minutes: float | None = _training(
        None,
        "Stop cleanly after this much training time.",
        low=0,
        unset="none; 10 for finetune on a CPU without --epochs",
    )
    compile: bool = _training(
        False, "Compile the model's layers (torch.compile): slow to begin, faster steps on a GPU."
    )
    kernels: bool = option(
        True, "On CUDA, compute attention under a threshold, and optimal transport, in one kernel each."
    )
    """They are compared with PyTorch's own operations when a run begins, and not used where they differ."""
    keep_features: bool = option(True, "On CUDA, keep region features on the device where they fit.")
    max_text_tokens: int = _training(32, "Longer texts are cut; [CLS] and [SEP] count.", low=3)
    max_regions: int | None = option(
        None, "Regions per image at most.", low=1, unset="as many as the feature store has"
    )
    tensorboard: bool = _output(False, "Also log each epoch to OUT/tensorboard.")
    save_minutes: float = option(
        2.0, "A state to resume from is written this often, and after each epoch.", low=0
    )
    resume: bool = option(True, "Go on from an interrupted run in `out`.")


@dataclass(frozen=True, slots=True)
class MaskingConfig:
    """Probabilities of structural knowledge masking; the defaults are ROSITA's public configuration."""

    text_side: float = _chance(0.5, "Chance that a sample masks its text and not its regions.")
    base: float = _chance(0.15, "Chance of any word piece or region.")
    mask: float = _chance(0.8, "Of the masked, the share hidden.")
    replace: float = _chance(0.1, "Of the masked, the share replaced; the rest is kept as it is.")
    anchor: float = _chance(0.5, "Chance that a text object is an anchor and masked whole.")
    attribute_factor: float = option(
        5.0,
        "An anchor's attribute word is masked with min(attribute_factor · P(attribute | object),"
        " attribute_cap) + extra.",
    )
    attribute_cap: float = _chance(0.5, "See attribute_factor.")
    relation_factor: float = option(
        20.0, "Likewise for an anchor's relation words, with P(relation, object | subject)."
    )
    relation_cap: float = _chance(0.5, "See relation_factor.")
    extra: float = _chance(0.2, "See attribute_factor.")
    cross_modal: float = _chance(0.9, "Factor on a region's mean cross-modal weight.")
    neighbour: float = _chance(0.3, "Chance that a masked region hides the regions it overlaps.")
    neighbour_iou: float = _chance(0.2, "IoU above which regions overlap.")
    text_structure: bool = option(True, "False is an ablation: no masking of anchors.")
    image_structure: bool = option(True, "False is an ablation: no masking of neighbours.")
    cross_modal_structure: bool = option(True, "False is an ablation: no cross-modal weights.")
    interference: bool = option(
        False,
        "Hide from a masked anchor what gives it away within its modality and what has nothing to do"
        " with it in the other.",
    )
    """See `tbkin_core.tasks.masking.interference_mask`. ROSITA's code computes such masks and uses none."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """`tbkin pretrain`."""

    data: list[Path] = _data(
        [], "Dataset directories with features and graphs.", argument=True, metavar="DATA..."
    )
    features: list[Path] = _data([], "Feature store per DATA.", unset="DATA/features")
    graphs: list[Path] = _data([], "Graph store per DATA.", unset="DATA/graphs")
    weights: list[float] = _data(
        [],
        "Per DATA, how often an epoch shows its captions: 2 is twice, 0.5 another half in every epoch.",
        low=0,
        unset="1",
    )
    evaluated_on: list[Path] = _data(
        [], "Other dataset whose val and test images are not pretrained on.", metavar="DIR", unset="none"
    )
    """Those of DATA never are. Images of two datasets are the same where COCO's id is, also through Visual
    Genome's."""
    mismatch: float = _chance(0.5, "Chance that a caption gets another image, for image-text matching.")
    ot_weight: float = option(0.1, "Weight of the optimal-transport term; 0 turns it off.", low=0)
    direct_width: int | None = option(
        None, "Width of a way from images to the words said of them; 0 is none.", low=0, high=16_384
    )
    """Past the encoder: from the mean region, and masked words from where they attend to. By the size."""
    masking: MaskingConfig = option(MaskingConfig(), "Structural knowledge masking.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        for name in ("features", "graphs", "weights"):
            given = len(getattr(self, name))
            if given not in (0, len(self.data)):
                yield f"{name}: expected one per dataset, {len(self.data)} in all, got {given}"
        if math.inf in self.weights:
            yield "weights: expected finite numbers, got inf"
        hidden = self.masking.mask + self.masking.replace
        if hidden > 1 + 1e-9:
            yield f"masking.mask + masking.replace: expected at most 1, got {hidden:g}"


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(StageConfig):
    """Threshold-based explicit selection."""

    threshold: float = _threshold(0.0)
    """1 for sparsemax and entmax15, which are on as soon as they are named."""
    selection: str = _rule("relative")
    threshold_layers: list[int] | None = _selection(None, "Layer that selects, from 0.", low=0, unset="all")
    threshold_scope: str = _selection(
        "all", "Which pairs of query and key a selection may drop.", choices=SCOPES
    )
    straight_through: bool = _selection(False, "Dropped keys get the gradient of the dense softmax.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection in TRANSFORMS and self.threshold == 0:
            vars(self)["threshold"] = 1.0

    def selection_values(self) -> dict[str, Any]:
        """The settings that this class adds, as the model's configuration keeps them."""
        return {name: getattr(self, name) for name in SelectionConfig.__annotations__}

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if fault := check_threshold(self.selection, self.threshold):
            yield fault


_SCARCE = "where 100 answers or more are learnt from fewer than 100,000 questions"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SelectionConfig, TrainingConfig):
    """`tbkin finetune`."""

    task: str = _task("")
    data: Path | None = _data(None, "Dataset directory.", unset="found from earlier stages")
    features: Path | None = _features(None)
    dataset: str | None = _sample_set(None)
    train_split: str | None = _data(None, "Split to train on, or several: train+val.", unset="train")
    """Of val, what is in minival is left out where minival is there to validate on."""
    blind: bool = _vqa(False, "Hide the image: the question-only baseline.", Group.MODEL)
    kl_epochs: int | None = _vqa(
        None, "Epochs with the KL loss before the BCE loss.", low=0,
        unset="all; a third from 100,000 questions with several answers up",
    )  # fmt: skip
    min_answer_count: int | None = _vqa(
        None, "Learn answers given at least this often.", Group.DATA, low=1, unset="chosen from the data"
    )
    answers: Path | None = _vqa(
        None, "JSON list of the answers to learn.", Group.DATA, metavar="FILE", unset="those of the data"
    )
    patience: int = _training(0, "Stop after this many epochs without improvement; 0 never does.", low=0)
    threshold_epochs: float | None = _selection(
        None,
        "Epochs over which τ grows, 0 for all of it from the first step.",
        low=0,
        unset="dense for seven tenths of the training, all of τ in its last twentieth",
    )
    """Validation and the checkpoint have all of it. As published it is there from the first step."""
    image_dropout: float | None = _chance(
        None, "Share of questions learnt without any region.", unset="0.2 below 10,000 questions, else 0.1"
    )
    """For VQA; other questions each epoch. The model can then do without regions, and is kept as one that
    does where that is better on validation."""
    blind_epochs: int | None = option(
        None, "Epochs that learn from the questions alone before any sees an image.", low=0,
        unset="an eighth of all where the weights begin at random and 100 answers or more are learnt",
    )  # fmt: skip
    """For VQA."""
    feature_dropout: float | None = _chance(
        None,
        "Share of the numbers of region vectors that a sample is learnt without.",
        unset=f"0.3 {_SCARCE}, else 0",
    )
    direct_width: int | None = _vqa(
        None, "Width of a way from words and regions to the answers, past the encoder.",
        low=0, high=16_384, unset="128 to 256 where 100 answers or more are learnt, else 0",
    )  # fmt: skip
    """0 is the published head."""
    encoder_dropout: float | None = _vqa(
        None,
        "Share of questions that learn on that way alone.",
        low=0,
        high=1,
        unset=f"0.5 {_SCARCE}, else 0",
    )
    encoder_rate: float | None = _training(
        None, "Share of the learning rate that the encoder has; 0 freezes it.", low=0, high=1,
        unset=f"0.1 with pretrained weights {_SCARCE}, else 1",
    )  # fmt: skip
    predict: list[str] = _output(
        [], "Also write OUT/predictions-SPLIT.json, for an evaluation server.", metavar="SPLIT"
    )
    """Also of a run that has finished."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.threshold_epochs and self.selection in TRANSFORMS:
            yield f"threshold_epochs: selection {self.selection!r} has no threshold that could grow"


@dataclass(frozen=True, kw_only=True)
class ThresholdSweepConfig(StageConfig):
    """`tbkin threshold-sweep`; what is None comes from the checkpoint."""

    task: str = _task("")
    checkpoint: Path | None = _checkpoint(None)
    data: Path | None = _data(None, "Dataset directory.", unset="the checkpoint's")
    features: Path | None = _features(None)
    dataset: str | None = _sample_set(None)
    thresholds: str = _sweep("0:0.9:0.1", "Thresholds, STOP included.", metavar="[START:STOP:STEP|T,T,...]")
    selection: list[str] = _sweep(
        ["relative"],
        "Selection rule; topk=1,4,16 has thresholds of its own.",
        choices=SELECTIONS,
        others="RULE=T,...",
    )
    regions: str | None = _sweep(
        None,
        "Regions per image in turn, such as 36,72,144.",
        metavar="N,N,...",
        unset="as many as trained on",
    )
    split: str | None = _data(None, "Split to evaluate.", unset="val")
    batch_size: int = _run(64, "Samples evaluated at once.", low=1)
    refit: bool = _sweep(False, "Fine-tune once per threshold, with the settings of the checkpoint.")
    seeds: int = _refit(1, "Runs per threshold, with the seeds from --seed up.", low=1, unset="")
    epochs: int | None = _refit(None, "Epochs of each run.", low=0)
    max_minutes: float | None = _refit(None, "Minutes per run at most.", low=0)
    init: str | None = _refit(None, "Weights that each run starts from.", metavar="MODEL")

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
    images: list[Path] = _data(
        [],
        "Image files, then the question, or the expression for a REC checkpoint; or a directory of images,"
        " then what to look for in them with a retrieval checkpoint. Or traces (.npz) alone, to draw them"
        " again without the model.",
        argument=True,
        metavar="IMAGE... QUESTION",
    )
    question: str = option("", "Question, or expression for a REC checkpoint.")
    image_id: list[str] = _data([], "Image by its id in the feature store, in place of a file.", metavar="ID")
    checkpoint: Path | None = _checkpoint(None)
    features: Path | None = _data(
        None, "Feature store that holds the images, where they cannot be made anew."
    )
    data: Path | None = _data(None, "Dataset of the images.", unset="the checkpoint's")
    threshold: float | None = _threshold(None, unset="the checkpoint's")
    selection: str | None = _rule(None, unset="the checkpoint's")
    """For the thresholded side. Beside a dense checkpoint: relative with τ = 0.3."""
    aggregate: str | None = _figure(
        None,
        "Attention shown: over all layers (rollout), or of the last one.",
        choices=("rollout", "last"),
        unset="last for answers, rollout for expressions",
    )
    layer: int | None = _figure(None, "Show this layer alone, numbered from 0.", low=0)
    head: int | None = _figure(
        None, "Show this head alone, numbered from 0, of --layer or the last layer.", low=0
    )
    top: int | None = _figure(
        None, "Answers shown, or pictures of a directory.", low=1, high=200, unset="5; of a directory 12"
    )
    format: list[str] = _figure(["png"], "Format of the figure.", choices=("png", "svg", "pdf"))
    column: bool = _figure(False, "As wide as one column of a paper, 3.4 inches.")
    graph: bool = _figure(False, "Also draw the scene graph of text and image.")
    html: bool = _figure(False, "Also write a page to explore words, regions, layers and heads.")
    results: Path | None = _figure(
        None, "Draw a sheet of a run's results-SPLIT.json.", flag="--from", metavar="FILE"
    )
    wrong: bool = _figure(False, "With --from: wrong answers alone.")
    limit: int = _figure(20, "Answers drawn at most.", low=1, high=200, only_with="results")

    @property
    def wants_graph(self) -> bool:
        """Whether the trace is to hold the scene graph, for which spaCy is loaded."""
        return self.graph or self.html

    @property
    def redraws(self) -> bool:
        """Whether the images are traces."""
        return bool(self.images) and all(path.suffix.lower() == ".npz" for path in self.images)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.format:
            yield "format: is empty; give png, svg or pdf"
        if self.aggregate is not None and (self.layer is not None or self.head is not None):
            yield "aggregate: sums layers and heads up; omit it beside --layer or --head"
        if self.results is not None:
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
        else:
            yield from self._question_conflicts()
        if self.threshold is not None or self.selection is not None:
            rule = self.selection or "relative"
            threshold = usual_threshold(rule) if self.threshold is None else self.threshold
            if fault := check_threshold(rule, threshold):
                yield fault

    def _question_conflicts(self) -> Iterator[str]:
        if any(path.suffix.lower() == ".npz" for path in self.images):
            yield "images: traces (.npz) are drawn again by themselves, without images or a question"
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
