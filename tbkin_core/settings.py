"""One dataclass a stage: defaults, then a YAML file, then flags; checked as a whole."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union

from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors import EXTRACTOR_NAMES, takes_backbone
from tbkin_core.selection import TRANSFORMS, check_threshold, usual_threshold
from tbkin_core.tasks.masking import MaskingConfig

_DEVICES = re.compile(r"auto|cpu(:[1-9]\d{0,2})?|cuda(:\d+(,\d+)*)?")

Config = TypeVar("Config", bound="StageConfig")


@dataclass(kw_only=True)
class StageConfig:
    """Settings that every stage has.

    Attributes:
        out: Where results go; a default beside the data or under runs/ when None.
        seed: All randomness follows from it.
        devices: auto, cpu, cpu:N, cuda, cuda:0,1.
        overwrite: Remove what stands at `out` first.
    """

    out: Path | None = None
    seed: int = 0
    devices: str = "auto"
    overwrite: bool = False

    def problems(self) -> list[str]:
        """What is wrong with the settings, one line each."""
        found = _within(self, 0, 2**63 - 1, "seed")
        if not _DEVICES.fullmatch(self.devices.strip().lower()):
            found.append(f"devices: expected auto, cpu, cpu:N, cuda or cuda:0,1, got {self.devices!r}")
        return found


@dataclass(kw_only=True)
class ExtractFeaturesConfig(StageConfig):
    """`tbkin extract-features`.

    Attributes:
        data: Dataset directory, or a directory of images.
        extractor: auto (import where the directory holds bottom-up features, else builtin), builtin,
            annotations (the dataset's boxes), import, detector (a good one from the hub), or the hub id or
            directory of a detection model.
        backbone: Hub id or directory of a vision model that gives the vectors, over the extractor's boxes.
        backbone_side: Pixels along a side of the square that the backbone sees; None takes its own.
        max_regions: Regions an image at most.
        workers: Processes; None takes the number of processors.
        batch_size: Images that a model sees together.
    """

    data: Path = Path()
    extractor: str = "auto"
    backbone: str | None = None
    backbone_side: int | None = None
    max_regions: int = 36
    workers: int | None = None
    batch_size: int = 8

    def problems(self) -> list[str]:
        model = "/" in self.extractor or Path(self.extractor).is_dir()
        return [
            *super().problems(),
            *([] if model else _one_of(self, extractor=EXTRACTOR_NAMES)),
            *_at_least(self, max_regions=1, workers=0, batch_size=1, backbone_side=32),
            *(
                ["backbone: imported features come with vectors; name another --extractor"]
                if self.backbone is not None and not takes_backbone(self.extractor)
                else []
            ),
            *(
                [f"backbone_side: expected at most 4096, got {self.backbone_side}"]
                if (self.backbone_side or 0) > 4096
                else []
            ),
            *(
                ["backbone_side: only with a backbone"]
                if self.backbone_side is not None and self.backbone is None
                else []
            ),
        ]


@dataclass(kw_only=True)
class BuildGraphsConfig(StageConfig):
    """`tbkin build-graphs`.

    Attributes:
        data: Dataset directory.
        parser: builtin, or the name or path of a spaCy pipeline for English.
        features: Feature store; DATA/features when None, if there is one.
        min_similarity: Cross-modal edges are kept from this weight up.
        label_iou: A region without a label of its own takes that of the annotated box it overlaps this much.
        export: Also write every graph to this JSONL file.
        networkx: Also write every graph for networkx: a .graphml or .json file, or a directory for one file
            a caption.
        similarity: What weighs cross-modal edges: lexical, vectors or encoder.
        similarity_model: Pipeline or encoder by name or path, for vectors and encoder.
        workers: Processes; None takes the number of processors where there are captions enough, 0 works in
            this process.
    """

    data: Path = Path()
    parser: str = "builtin"
    features: Path | None = None
    min_similarity: float = 0.5
    label_iou: float = 0.5
    export: Path | None = None
    networkx: Path | None = None
    similarity: str = "lexical"
    similarity_model: str | None = None
    workers: int | None = None

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *_within(self, 0, 1, "min_similarity", "label_iou"),
            *_at_least(self, workers=0),
            *_one_of(self, similarity=("lexical", "vectors", "encoder")),
            *(
                [f"networkx: expected a .graphml or .json file, or a directory, got {str(self.networkx)!r}"]
                if self.networkx is not None and self.networkx.suffix.lower() not in ("", ".graphml", ".json")
                else []
            ),
        ]


@dataclass(kw_only=True)
class TrainingConfig(StageConfig):
    """Settings that pretraining and fine-tuning share; None lets tbkin choose from the data.

    Attributes:
        size: tiny, small or base; auto chooses by the amount of data.
        init: Weights to begin from: a tbkin checkpoint, a BERT directory or hub id; none; auto takes for
            fine-tuning the latest model of the same features: for VQA a REC model, else a pretrained one.
        epochs: Passes over the training data.
        batch_size: Samples an optimizer step, over all devices together.
        micro_batch_size: Samples a device takes at once; None takes batch_size / devices.
        learning_rate: Peak.
        warmup: Share of all steps (below 1), or epochs (1 and above), over which the rate rises from 0.
        schedule: linear (falls to 0), step (× 0.1 at each of decay_epochs) or constant.
        decay_epochs: For `step`.
        weight_decay: AdamW.
        grad_clip: Largest gradient norm; 0 turns clipping off.
        dropout: Dropout everywhere; 0 for the size tiny and 0.1 for the others when None.
        precision: auto (bf16 on devices that multiply it themselves, CPUs included), fp32, bf16, fp16.
        max_minutes: Stop cleanly after so much training time.
        max_text_tokens: Longer texts are cut, [CLS] and [SEP] included.
        max_regions: Regions an image at most; as many as the feature store has when None.
        tensorboard: Also write the values of each epoch for TensorBoard (`pip install 'tbkin[tensorboard]'`).
        save_minutes: A state to resume from is written this often and after each epoch.
        resume: Go on from an interrupted run in `out`.
    """

    size: str = "auto"
    init: str = "auto"
    epochs: int | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.1
    schedule: str = "linear"
    decay_epochs: list[int] = field(default_factory=list)
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    dropout: float | None = None
    precision: str = "auto"
    max_minutes: float | None = None
    max_text_tokens: int = 32
    max_regions: int | None = None
    tensorboard: bool = False
    save_minutes: float = 2.0
    resume: bool = True

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *_one_of(
                self,
                size=("auto", "tiny", "small", "base"),
                schedule=("linear", "step", "constant"),
                precision=("auto", "fp32", "bf16", "fp16"),
            ),
            *_at_least(
                self,
                epochs=0,
                batch_size=1,
                micro_batch_size=1,
                warmup=0,
                weight_decay=0,
                grad_clip=0,
                max_text_tokens=3,
                max_regions=1,
                max_minutes=0,
                save_minutes=0,
            ),
            *_within(self, 0, 1, "dropout"),
            *(
                [f"learning_rate: expected a positive number, got {self.learning_rate:g}"]
                if self.learning_rate is not None and not self.learning_rate > 0
                else []
            ),
        ]


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """`tbkin pretrain`.

    Attributes:
        data: Dataset directories with features and graphs.
        features, graphs: Their stores, one for each of `data`; DATA/features and DATA/graphs when empty.
        weights: How often an epoch shows the captions of each of `data`: 2 twice, 0.5 another half in every
            epoch; once each when empty.
        mismatch: Chance that a caption gets another image, for image-text matching.
        ot_weight: Weight of the optimal-transport term; 0 turns it off.
        masking: Probabilities of structural knowledge masking.
    """

    data: list[Path] = field(default_factory=list)
    features: list[Path] = field(default_factory=list)
    graphs: list[Path] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    mismatch: float = 0.5
    ot_weight: float = 0.1
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    def problems(self) -> list[str]:
        chances = {
            f"masking.{entry.name}": getattr(self.masking, entry.name)
            for entry in dataclasses.fields(MaskingConfig)
            if not entry.name.endswith(("_factor", "structure"))
        }
        return [
            *super().problems(),
            *(
                f"{name}: expected one for each of {len(self.data)} datasets, got {len(getattr(self, name))}"
                for name in ("features", "graphs", "weights")
                if getattr(self, name) and len(getattr(self, name)) != len(self.data)
            ),
            *(
                f"weights: expected numbers from 0 up, got {weight:g}"
                for weight in self.weights
                if not 0 <= weight < math.inf
            ),
            *_within(self, 0, 1, "mismatch"),
            *_at_least(self, ot_weight=0),
            *(
                f"{name}: expected a number from 0 to 1, got {value:g}"
                for name, value in chances.items()
                if not 0 <= value <= 1
            ),
            *(
                [
                    "masking.mask + masking.replace: expected at most 1,"
                    f" got {self.masking.mask + self.masking.replace:g}"
                ]
                if self.masking.mask + self.masking.replace > 1 + 1e-9
                else []
            ),
        ]


@dataclass(kw_only=True)
class SelectionConfig(StageConfig):
    """Threshold-based explicit selection.

    Attributes:
        threshold: τ; 0 is the dense model; for topk the number of keys; 1 for sparsemax and entmax15.
        selection: relative, probability, score or topk; or sparsemax or entmax15, which have no threshold.
        threshold_layers: Layers that select; all when None.
        threshold_scope: all, cross-modal, text-to-image or image-to-text.
        straight_through: Dropped keys get the dense softmax's gradient.
    """

    threshold: float = 0.0
    selection: str = "relative"
    threshold_layers: list[int] | None = None
    threshold_scope: str = "all"
    straight_through: bool = False

    def __post_init__(self) -> None:
        # What has no threshold is on as soon as it is named.
        if self.selection in TRANSFORMS and self.threshold == 0:
            self.threshold = 1.0

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *_threshold_problems(self.selection, self.threshold),
            *_one_of(self, threshold_scope=("all", "cross-modal", "text-to-image", "image-to-text")),
        ]


@dataclass(kw_only=True)
class FinetuneConfig(SelectionConfig, TrainingConfig):
    """`tbkin finetune`.

    Attributes:
        task: vqa or rec.
        data: Dataset directory; found from what earlier stages made when None.
        features: Feature store; DATA/features when None.
        dataset: For rec with several: refcoco, refcoco+ or refcocog; refcocog-google and the like where a
            directory holds several refs files.
        train_split: Split to train on, or several, as "train+val"; None takes train. Of val, what is in
            minival is left out, where minival is there to validate on.
        blind: Hide the image: the question-only model to compare with.
        kl_epochs: VQA: epochs with the KL loss before the BCE loss; None takes all where every question
            has one answer, else a third.
        min_answer_count: VQA: answers given at least so often in training are learnt; None chooses.
        answers: VQA: a JSON list of answers instead of those of the data.
        patience: Stop after so many epochs without a better validation metric; 0 never.
        threshold_epochs: τ grows from 0 over so many epochs; validation and the checkpoint have all of it.
        image_dropout: VQA: share of the questions, other ones each epoch, that are learnt without any region;
            the model can then do without, and is kept as one that does where that is better on validation.
            None takes 0.2 below 10,000 questions, else 0.1.
        blind_epochs: VQA: so many epochs learn from the questions alone before any sees an image; None takes
            an eighth of them where the weights begin at random and 100 answers or more are learnt.
        predict: Splits whose answers or boxes are written to OUT/predictions-SPLIT.json, also of a run that
            has finished.
    """

    task: str = ""
    data: Path | None = None
    features: Path | None = None
    dataset: str | None = None
    train_split: str | None = None
    blind: bool = False
    kl_epochs: int | None = None
    min_answer_count: int | None = None
    answers: Path | None = None
    patience: int = 0
    threshold_epochs: float = 0.0
    image_dropout: float | None = None
    blind_epochs: int | None = None
    predict: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *_task_problems(self.task),
            *(["dataset: only for --task rec"] if self.dataset and self.task == "vqa" else []),
            *_at_least(self, kl_epochs=0, min_answer_count=1, patience=0, threshold_epochs=0, blind_epochs=0),
            *_within(self, 0, 1, "image_dropout"),
            *(
                ["threshold_epochs: k of topk is a number of keys, it cannot grow from 0"]
                if self.threshold_epochs and self.selection == "topk"
                else []
            ),
            *(["blind: only VQA has a question-only model"] if self.blind and self.task == "rec" else []),
            *(
                [f"threshold_epochs: selection {self.selection!r} has no threshold that could grow"]
                if self.threshold_epochs and self.selection in TRANSFORMS
                else []
            ),
            *(
                f"{name}: only for --task vqa"
                for name in ("answers", "min_answer_count", "kl_epochs")
                if self.task == "rec" and getattr(self, name) is not None
            ),
        ]


@dataclass(kw_only=True)
class ThresholdSweepConfig(StageConfig):
    """`tbkin threshold-sweep`.

    Attributes:
        task: vqa or rec.
        checkpoint: Fine-tuned model; the latest of the task when None.
        data, features, dataset: As for fine-tuning; from the checkpoint when None.
        thresholds: start:stop:step (stop included) or a list with commas.
        selection: One or more rules; "topk=1,4,16" gives a rule thresholds of its own.
        split: Split to evaluate on; val when None, if there is one.
        batch_size: Samples at once in evaluation.
        refit: Fine-tune once for every threshold, with the settings of the checkpoint, in place of evaluating
            the checkpoint as it is.
        seeds: With refit: so many runs a threshold, under the seeds from `seed` up.
        epochs, max_minutes, init: With refit: of each run, in place of the checkpoint's.
    """

    task: str = ""
    checkpoint: Path | None = None
    data: Path | None = None
    features: Path | None = None
    dataset: str | None = None
    thresholds: str = "0:0.9:0.1"
    selection: list[str] = field(default_factory=lambda: ["relative"])
    split: str | None = None
    batch_size: int = 64
    refit: bool = False
    seeds: int = 1
    epochs: int | None = None
    max_minutes: float | None = None
    init: str | None = None

    def problems(self) -> list[str]:
        found = [
            *super().problems(),
            *_task_problems(self.task),
            *_at_least(self, batch_size=1, seeds=1, epochs=0, max_minutes=0),
        ]
        training = {
            "seeds": self.seeds > 1,
            "epochs": self.epochs is not None,
            "max_minutes": self.max_minutes is not None,
            "init": self.init is not None,
        }
        found += [
            f"{name}: only with --refit" for name, given in training.items() if given and not self.refit
        ]
        try:
            wanted = self.wanted()
        except ConfigError as error:
            return [*found, error.message]
        bad: dict[str, str] = {}
        for rule, value in wanted:
            problem = check_threshold(rule, value)
            if problem:
                bad.setdefault(rule, problem)
        named = [entry.partition("=")[0].strip() for entry in self.selection]
        found += [
            f"selection: {name!r} is named twice" for name in sorted(set(named)) if named.count(name) > 1
        ]
        return [*found, *bad.values()]

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


@dataclass(kw_only=True)
class VisualizeConfig(StageConfig):
    """`tbkin visualize`.

    Attributes:
        images: Image files; or traces (`.npz`) of an earlier call, which are drawn again without the model.
        question: Question, or expression for a REC checkpoint.
        image_id: Images by their id in the feature store, beside or in place of image files.
        checkpoint: Fine-tuned model; the latest when None.
        features: Feature store that holds the images; needed where they cannot be made anew.
        data: Dataset that the images are of; the checkpoint's when None.
        threshold, selection: Of the thresholded side; the checkpoint's, or 0.3 and relative.
        aggregate: rollout (over layers) or last (layer); None takes the last layer for answers and rollout
            for referring expressions.
        layer, head: Show this one alone, numbered from 0.
        top: Answers shown.
        format: Formats of the figure: png, svg, pdf.
        column: Draw for one column of a paper, 3.4 inches wide, in place of the whole width.
        graph: Also draw the unified scene graph of text and image.
        html: Also write a page to explore: words, regions, thresholds, layers, heads, the graph.
        results: Results of a fine-tuned model (`results-SPLIT.json` of its run): draw a sheet of them.
        wrong: Of these, the wrong ones.
        limit: How many of these.
    """

    images: list[Path] = field(default_factory=list)
    question: str = ""
    image_id: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    features: Path | None = None
    data: Path | None = None
    threshold: float | None = None
    selection: str | None = None
    aggregate: str | None = None
    layer: int | None = None
    head: int | None = None
    top: int = 5
    format: list[str] = field(default_factory=lambda: ["png"])
    column: bool = False
    graph: bool = False
    html: bool = False
    results: Path | None = None
    wrong: bool = False
    limit: int = 20

    @property
    def wants_graph(self) -> bool:
        """Whether the trace is to hold the scene graph, for which spaCy is loaded."""
        return self.graph or self.html

    @property
    def redraws(self) -> bool:
        """Whether the images are traces."""
        return bool(self.images) and all(path.suffix.lower() == ".npz" for path in self.images)

    def problems(self) -> list[str]:
        found = [*super().problems(), *_at_least(self, top=1, limit=1, layer=0, head=0)]
        if not self.format:
            found.append("format: is empty; give png, svg or pdf")
        found += [
            f"format: expected one of png, svg, pdf, got {name!r}"
            for name in self.format
            if name not in ("png", "svg", "pdf")
        ]
        if self.aggregate is not None:
            found += _one_of(self, aggregate=("rollout", "last"))
            if self.layer is not None or self.head is not None:
                found.append("aggregate: sums layers and heads up; leave it away beside --layer or --head")
        if self.limit > 200:
            found.append(f"limit: expected at most 200, got {self.limit}")
        if self.results is not None:
            if self.images or self.image_id or self.question:
                found.append("results: --from draws what stands in its file; give no image and no question")
            if self.wants_graph:
                found.append("results: --from has answers alone; --graph and --html are of one image")
        elif self.wrong:
            found.append("wrong: chooses among the results of --from results-val.json")
        elif self.redraws:
            found += self._redraw_problems()
        else:
            found += self._question_problems()
        if self.threshold is not None or self.selection is not None:
            rule = self.selection or "relative"
            found += _threshold_problems(
                rule, usual_threshold(rule) if self.threshold is None else self.threshold
            )
        return found

    def _redraw_problems(self) -> list[str]:
        fixed = ("question", "image_id", "checkpoint", "features", "threshold", "selection")
        given = [name for name in fixed if getattr(self, name) not in (None, "", [])]
        return [f"{given[0]}: a trace has its own; for another one give the image again"] if given else []

    def _question_problems(self) -> list[str]:
        found = []
        if any(path.suffix.lower() == ".npz" for path in self.images):
            found.append("images: traces (.npz) are drawn again by themselves, without images or a question")
        if not self.images and not self.image_id:
            found.append("images: none is given; name a file, or --image-id with an id of the feature store")
        if not self.question.strip() and len(self.images) == 1 and " " in self.images[0].name.strip():
            found.append(f"images: {str(self.images[0])!r} is alone; give an image and then the question")
        elif not self.question.strip():
            found.append('question: is empty; give one, for example "what color is the dog?"')
        return found


# ---- resolving ----------------------------------------------------------------------------------


def load_config(kind: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Settings of a stage: defaults, overridden by a YAML file, overridden by flags.

    Args:
        kind: Dataclass of the stage.
        file: YAML mapping of settings, or None.
        flags: Settings by name; those that are None were not given.

    Raises:
        ConfigError: All problems in one message: unknown keys (with the nearest name), wrong types,
            values out of range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_read_yaml(file))
    values.update({name: value for name, value in flags.items() if value is not None})
    problems: list[str] = []
    config = _build(kind, values, "", problems)
    # A setting that could not be read keeps its default: what its range says of that is no news.
    reported = {problem.partition(":")[0] for problem in problems}
    problems += [problem for problem in config.problems() if problem.partition(":")[0] not in reported]
    if problems:
        source = f" ({file})" if file is not None else ""
        raise ConfigError(
            f"settings{source}: " + "; ".join(problems),
            hint="see the command's --help for what each one takes",
        )
    return config


def dump_config(config: StageConfig) -> str:
    """The resolved settings as YAML, readable by `load_config`."""
    import yaml

    # ASCII alone: with allow_unicode, PyYAML writes U+0085 so that it reads back as a space.
    return yaml.safe_dump(config_values(config), sort_keys=False)


def config_values(config: StageConfig) -> dict[str, Any]:
    """The settings as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return value

    return plain(dataclasses.asdict(config))


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


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """` (did you mean x?)` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected a mapping of settings, got {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _build(kind: type[Any], values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            problems.append(f"{prefix}{name}: unknown setting{nearest(name, names)}")
            continue
        try:
            arguments[name] = _coerce(value, hints[name], f"{prefix}{name}", problems)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{prefix}{name}: expected {_describe(hints[name])}, got {value!r}")
    return kind(**arguments)


def _coerce(value: Any, hint: Any, name: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _coerce(value, next(option for option in options if option is not type(None)), name, problems)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise TypeError
        return _build(hint, value, f"{name}.", problems)
    if origin is list:
        items = value if isinstance(value, list | tuple) else [value]
        return [_coerce(item, typing.get_args(hint)[0], name, problems) for item in items]
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool):
        raise TypeError
    if hint is Path:
        if not isinstance(value, str | Path):
            raise TypeError
        return Path(value)
    if hint is str:
        if not isinstance(value, str | int | float):
            raise TypeError
        return str(value)
    if hint is int and isinstance(value, float) and value != int(value):
        raise TypeError
    return hint(value)


def _describe(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    return text.replace("pathlib.", "").replace(" | None", "")


def _task_problems(task: str) -> list[str]:
    if not task:
        return ["task: is missing, for example --task vqa"]
    if task not in ("vqa", "rec"):
        return [f"task: expected vqa or rec, got {task!r}{nearest(task, ('vqa', 'rec'))}"]
    return []


def _threshold_problems(rule: str, threshold: float) -> list[str]:
    problem = check_threshold(rule, threshold)
    return [problem] if problem else []


def _at_least(config: StageConfig, **bounds: float) -> list[str]:
    return [
        f"{name}: expected at least {bound:g}, got {getattr(config, name):g}"
        for name, bound in bounds.items()
        if getattr(config, name) is not None and not getattr(config, name) >= bound
    ]


def _within(config: StageConfig, low: float, high: float, *names: str) -> list[str]:
    return [
        f"{name}: expected a number from {low:g} to {high:g}, got {getattr(config, name):g}"
        for name in names
        if getattr(config, name) is not None and not low <= getattr(config, name) <= high
    ]


def _one_of(config: StageConfig, **choices: tuple[str, ...]) -> list[str]:
    return [
        f"{name}: expected one of {', '.join(options)}, got {getattr(config, name)!r}"
        f"{nearest(str(getattr(config, name)), options)}"
        for name, options in choices.items()
        if getattr(config, name) not in options
    ]
