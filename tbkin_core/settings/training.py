"""The settings of pretraining and fine-tuning.

A text below a field says what `--help` has no room for. Fields without a `Group` are for YAML and Python.
"""

# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tbkin_core.selection import SCOPES, TRANSFORMS, check_threshold
from tbkin_core.settings import options
from tbkin_core.settings.base import Group, StageConfig, option


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """Settings that pretraining and fine-tuning share; None lets tbkin choose from the data."""

    size: str = options.model(
        "auto", "Size of the model; auto chooses from the data.", choices=("auto", "tiny", "small", "base")
    )
    init: str = options.model(
        "auto",
        "Weights to start from: a checkpoint, a BERT directory or its hub id; words: word vectors alone.",
        choices=("auto", "words", "none"),
        others="MODEL",
    )
    """For fine-tuning, auto is the latest model of the same features: for VQA a REC model, else a pretrained
    one, else that which comes with tbkin for the task."""
    epochs: int | None = options.training(
        None, "Passes over the training data.", low=0, unset="chosen from the data"
    )
    batch_size: int | None = options.training(
        None, "Samples per optimizer step (all devices).", low=1, unset="chosen from the data"
    )
    micro_batch_size: int | None = option(
        None, "Samples that a device takes at once.", low=1, unset="batch_size / devices"
    )
    learning_rate: float | None = options.training(
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
    dropout: float | None = options.chance(
        None, "Dropout everywhere.", unset="0 for the size tiny, 0.3 for few open questions, else 0.1"
    )
    precision: str = options.training(
        "auto",
        "Numbers to compute in; auto is bf16 where the device multiplies it itself.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    max_minutes: float | None = options.training(
        None,
        "Stop cleanly after this much training time.",
        low=0,
        unset="none; 10 for finetune on a CPU without --epochs",
    )
    compile: bool = options.training(
        False, "Compile the model's layers (torch.compile): slow to begin, faster steps on a GPU."
    )
    kernels: bool = option(
        True, "On CUDA, compute attention under a threshold, and optimal transport, in one kernel each."
    )
    """They are compared with PyTorch's own operations when a run begins, and not used where they differ."""
    keep_features: bool = option(True, "On CUDA, keep region features on the device where they fit.")
    max_text_tokens: int = options.training(32, "Longer texts are cut; [CLS] and [SEP] count.", low=3)
    max_regions: int | None = option(
        None, "Regions per image at most.", low=1, unset="as many as the feature store has"
    )
    tensorboard: bool = options.output(False, "Also log each epoch to OUT/tensorboard.")
    wandb: bool = options.output(False, "Also log to Weights & Biases, where its own settings say.")
    mlflow: bool = options.output(False, "Also log to MLflow, where its own settings say.")
    save_minutes: float = option(
        2.0, "A state to resume from is written this often, and after each epoch.", low=0
    )
    resume: bool = option(True, "Go on from an interrupted run in `out`.")
    format: list[str] = options.figure_format(["png"], help="Format of the training curves.")
    """Also of a run that has finished."""
    column: bool = options.column(False, help="Training curves as wide as one column of a paper, 3.4 inches.")


@dataclass(frozen=True, slots=True)
class MaskingConfig:
    """Probabilities of structural knowledge masking; the defaults are ROSITA's public configuration."""

    text_side: float = options.chance(0.5, "Chance that a sample masks its text and not its regions.")
    base: float = options.chance(0.15, "Chance of any word piece or region.")
    mask: float = options.chance(0.8, "Of the masked, the share hidden.")
    replace: float = options.chance(0.1, "Of the masked, the share replaced; the rest is kept as it is.")
    anchor: float = options.chance(0.5, "Chance that a text object is an anchor and masked whole.")
    attribute_factor: float = option(
        5.0,
        "An anchor's attribute word is masked with min(attribute_factor · P(attribute | object),"
        " attribute_cap) + extra.",
    )
    attribute_cap: float = options.chance(0.5, "See attribute_factor.")
    relation_factor: float = option(
        20.0, "Likewise for an anchor's relation words, with P(relation, object | subject)."
    )
    relation_cap: float = options.chance(0.5, "See relation_factor.")
    extra: float = options.chance(0.2, "See attribute_factor.")
    cross_modal: float = options.chance(0.9, "Factor on a region's mean cross-modal weight.")
    neighbour: float = options.chance(0.3, "Chance that a masked region hides the regions it overlaps.")
    neighbour_iou: float = options.chance(0.2, "IoU above which regions overlap.")
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

    data: list[Path] = options.data(
        [], "Dataset directories with features and graphs.", argument=True, metavar="DATA..."
    )
    features: list[Path] = options.data([], "Feature store per DATA.", unset="DATA/features")
    graphs: list[Path] = options.data([], "Graph store per DATA.", unset="DATA/graphs")
    weights: list[float] = options.data(
        [],
        "Per DATA, how often an epoch shows its captions: 2 is twice, 0.5 another half in every epoch.",
        low=0,
        unset="1",
    )
    evaluated_on: list[Path] = options.data(
        [], "Other dataset whose val and test images are not pretrained on.", metavar="DIR", unset="none"
    )
    """Those of DATA never are. Images of two datasets are the same where COCO's id is, also through Visual
    Genome's."""
    mismatch: float = options.chance(
        0.5, "Chance that a caption gets another image, for image-text matching."
    )
    match_hidden: bool = option(
        False, "Ask all captions whether they match, of hidden words and regions, too."
    )
    """Else half of the captions are asked, of which nothing is hidden; words or regions of the others are."""
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

    threshold: float = options.threshold(0.0)
    """1 for sparsemax and entmax15, which are on as soon as they are named."""
    selection: str = options.rule("relative")
    threshold_layers: list[int] | None = options.selection(
        None, "Layer that selects, from 0.", low=0, unset="all"
    )
    threshold_scope: str = options.selection(
        "all", "Which pairs of query and key a selection may drop.", choices=SCOPES
    )
    straight_through: bool = options.selection(False, "Dropped keys get the gradient of the dense softmax.")

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

    task: str = options.task("")
    data: Path | None = options.data(None, "Dataset directory.", unset="found from earlier stages")
    features: Path | None = options.features(None)
    dataset: str | None = options.sample_set(None)
    train_split: str | None = options.data(None, "Split to train on, or several: train+val.", unset="train")
    """Of val, what is in minival is left out where minival is there to validate on."""
    blind: bool = options.vqa(False, "Hide the image: the question-only baseline.", Group.MODEL)
    kl_epochs: int | None = options.vqa(
        None, "Epochs with the KL loss before the BCE loss.", low=0,
        unset="all; a third from 100,000 questions with several answers up",
    )  # fmt: skip
    min_answer_count: int | None = options.vqa(
        None, "Learn answers given at least this often.", Group.DATA, low=1, unset="chosen from the data"
    )
    answers: Path | None = options.vqa(
        None, "JSON list of the answers to learn.", Group.DATA, metavar="FILE", unset="those of the data"
    )
    patience: int = options.training(
        0, "Stop after this many epochs without improvement; 0 never does.", low=0
    )
    threshold_epochs: float | None = options.selection(
        None,
        "Epochs over which τ grows, 0 for all of it from the first step.",
        low=0,
        unset="dense for seven tenths of the training, all of τ in its last twentieth",
    )
    """Validation and the checkpoint have all of it. As published it is there from the first step."""
    image_dropout: float | None = options.chance(
        None, "Share of questions learnt without any region.", unset="0.2 below 10,000 questions, else 0.1"
    )
    """For VQA; other questions each epoch. The model can then do without regions, and is kept as one that
    does where that is better on validation."""
    blind_epochs: int | None = option(
        None, "Epochs that learn from the questions alone before any sees an image.", low=0,
        unset="an eighth of all where the weights begin at random and 100 answers or more are learnt",
    )  # fmt: skip
    """For VQA."""
    feature_dropout: float | None = options.chance(
        None,
        "Share of the numbers of region vectors that a sample is learnt without.",
        unset=f"0.3 {_SCARCE}, else 0",
    )
    direct_width: int | None = options.vqa(
        None, "Width of a way from words and regions to the answers, past the encoder.",
        low=0, high=16_384, unset="128 to 256 where 100 answers or more are learnt, else 0",
    )  # fmt: skip
    """0 is the published head."""
    encoder_dropout: float | None = options.vqa(
        None,
        "Share of questions that learn on that way alone.",
        low=0,
        high=1,
        unset=f"0.5 {_SCARCE}, else 0",
    )
    encoder_rate: float | None = options.training(
        None, "Share of the learning rate that the encoder has; 0 freezes it.", low=0, high=1,
        unset=f"0.1 with pretrained weights {_SCARCE}, else 1",
    )  # fmt: skip
    predict: list[str] = options.output(
        [], "Also write OUT/predictions-SPLIT.json, for an evaluation server.", metavar="SPLIT"
    )
    """Also of a run that has finished."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.threshold_epochs and self.selection in TRANSFORMS:
            yield f"threshold_epochs: selection {self.selection!r} has no threshold that could grow"
