"""What a run does, with every number resolved: those that were asked for, and those chosen from the data."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from tbkin_core.errors import ConfigError
from tbkin_core.features.store import FeatureStore
from tbkin_core.settings import FinetuneConfig, PretrainConfig, TrainingConfig
from tbkin_core.support.ranks import rank
from tbkin_core.tasks.base import FinetuneTask, Head
from tbkin_core.training.start import Start, size_of

logger = logging.getLogger("tbkin")

OPEN_ANSWERS = 100
"""From so many answers up, the questions alone are worth some epochs of their own; of few, the model would
learn habits from them that it is slow to lose (on pictures of one shape, 75 % where 99 % are to be had)."""

SCARCE_SAMPLES = 100_000
"""With open answers, fewer samples than these are learnt by heart before much of the image is understood."""

SCARCE_SEEN, SCARCE_EPOCHS = 140_000, 16
"""So many samples seen, and so many epochs at most, teach what there is to learn of scarce ones.
Questions about 2,000 photos were answered best after 5 to 8 epochs whose rate had fallen by then."""

ENCODER_RATE = 0.1
"""Of scarce samples: what pretraining has taught, few would unlearn (questions about 540 photos: 48.5 % in
place of 47.1)."""

SCARCE_STEPS, SCARCE_MOST = 600, 60
"""Of very few samples so many steps are taken in so many epochs at most, in batches of a 24th of them: in
the 96 steps that 386 questions about 54 photos have otherwise, nothing but the commonest answer is learnt."""

CAPTIONS_SEEN = 450_000
"""On CUDA retrieval sees so many: each says little, as its image is to be told from a few others alone."""

DIRECT_WIDTHS = {"tiny": 128, "small": 256, "base": 256}

CPU_MINUTES = 10.0
"""How long fine-tuning on a CPU takes at most where neither epochs nor minutes are asked for."""

Config = TypeVar("Config", bound=TrainingConfig)


class Choice(NamedTuple):
    """A number that was chosen, and why."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.name.replace('_', ' ')} {value} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The settings that the loop reads; attributes as those of `TrainingConfig`, none of them None.

    With `falls_with_time` a linear rate has fallen when `max_minutes` are over, if they are over before the
    epochs; else it keeps to the epochs, and more minutes go on where fewer stopped.
    """

    size: str
    epochs: int
    batch_size: int
    micro_batch_size: int  # samples that a device takes at once
    learning_rate: float
    warmup: float
    schedule: str
    decay_epochs: Sequence[int]
    weight_decay: float
    grad_clip: float
    dropout: float
    precision: str
    max_minutes: float  # infinite without a limit
    max_text_tokens: int
    max_regions: int
    save_minutes: float
    seed: int
    resume: bool
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    compile: bool = False  # the encoder's layers by torch.compile
    kernels: bool = True  # tbkin's own, on CUDA
    keep_features: bool = True  # on a CUDA device, if they fit
    encoder_rate: float = 1.0  # share of the learning rate that the encoder has
    patience: int = 0  # epochs without improvement before stopping; 0 never
    falls_with_time: bool = False
    choices: tuple[Choice, ...] = ()  # what was not asked for

    def chosen(self, name: str) -> bool:
        """Whether a setting was left to tbkin."""
        return any(choice.name == name for choice in self.choices)

    def settings(self, config: Config, source: str) -> Config:
        """The settings with all that was chosen filled in, as config.yaml keeps them."""
        return replace(config, **{choice.name: choice.value for choice in self.choices}, init=source)

    def announce(self, what: str, samples: str, parameters: int) -> None:
        """Log what is about to happen, and what was chosen why."""
        if rank() > 0:
            return
        limit = f", at most {self.max_minutes:g} minutes" if math.isfinite(self.max_minutes) else ""
        size = f"size {self.size} ({parameters / 1e6:.1f} M parameters)"
        steps = f"epochs {self.epochs}, batch {self.batch_size}, learning rate {self.learning_rate:g}{limit}"
        logger.info("%s: %s; %s, %s", what, samples, size, steps)
        if chosen := [str(choice) for choice in self.choices if choice.value]:
            logger.info("chosen: %s", ", ".join(chosen))


@dataclass(frozen=True, kw_only=True)
class PretrainPlan(TrainingPlan):
    """The same for pretraining."""

    direct_width: int = 0


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(TrainingPlan):
    """The same for fine-tuning."""

    image_dropout: float = 0.0  # share of the samples of an epoch that are learnt without any region
    blind_epochs: int = 0  # epochs, the first ones, that learn from the texts alone
    feature_dropout: float = 0.0
    direct_width: int = 0
    direct_words: bool = False  # whether the initial weights know which words are said of images
    direct_attends: bool = False  # whether that way sees the image where attention looks, too
    encoder_dropout: float = 0.0

    def head_values(self) -> dict[str, Any]:
        """What the model's configuration gets beside its size and its answers."""
        return {
            "feature_dropout_prob": self.feature_dropout,
            "direct_width": self.direct_width,
            "direct_words": self.direct_words,
            "direct_attends": self.direct_attends,
            "encoder_dropout_prob": self.encoder_dropout,
        }


class _Choices:
    """Settings as asked for, or chosen and noted."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.made: list[Choice] = []

    def take(self, name: str, value: Any, reason: str) -> Any:
        asked = getattr(self.config, name)
        if asked is not None and asked != "auto":
            return asked
        self.made.append(Choice(name, value, reason))
        return value


def plan_pretraining(
    config: PretrainConfig, samples: int, start: Start, stores: Sequence[FeatureStore]
) -> PretrainPlan:
    """What pretraining on so many captions does, their images being in some feature stores.

    Raises:
        ConfigError: The initial weights have another size than was asked for.
    """
    choices = _Choices(config)
    size = _size(choices, start)
    if size is None:
        size = choices.take("size", _usual_size(samples, _on_cuda(config)), f"for {samples:,} captions")
    rate = {"tiny": 1e-3, "small": 4e-4, "base": 1e-4}[size]
    batch = 64 if samples < 30_000 else 128 if samples < 300_000 else 256
    common = _common(choices, size, samples, stores, epochs=(60_000, 40), batch=batch, rate=rate)
    return PretrainPlan(
        **common,
        direct_width=choices.take("direct_width", _direct_width(start, size), f"size {size}"),
        max_minutes=math.inf if config.max_minutes is None else config.max_minutes,
        choices=tuple(choices.made),
    )


def plan_finetuning(
    config: FinetuneConfig, samples: int, start: Start, store: FeatureStore, task: FinetuneTask, head: Head
) -> FinetunePlan:
    """What fine-tuning on so many samples does.

    Raises:
        ConfigError: The initial weights have another size than was asked for, or are random and to stay so.
    """
    choices = _Choices(config)
    cuda = _on_cuda(config)
    size = _size(choices, start)
    if size is None:
        # In the minutes that people wait for a CPU, more passes teach a small model more than a larger one.
        short = not cuda and (config.max_minutes or 0) < 60
        name = "tiny" if short else _usual_size(samples, cuda)
        size = choices.take("size", name, f"for {samples:,} samples{'' if cuda else ' on a CPU'}")
    rate = {"tiny": 1e-3, "small": 4e-4, "base": 5e-5}[size]
    batch = 64 if samples < (30_000 if cuda else 100_000) else 128 if samples < 300_000 else 256
    # On a processor the time ends most runs: what a small model learns late (that "no" turns an answer round)
    # needs it.
    seen = (CAPTIONS_SEEN if task.of_captions else 120_000) if cuda else 1_000_000
    is_open = task.question_only and head.outcomes >= OPEN_ANSWERS
    scarce = is_open and samples < SCARCE_SAMPLES and size != "base"
    epochs = (min(seen, SCARCE_SEEN), SCARCE_EPOCHS) if scarce else (seen, 60)
    common = _common(choices, size, samples, [store], epochs=epochs, batch=batch, rate=rate, scarce=scarce)
    if (minutes := most_minutes(config)) is not None:
        choices.take("max_minutes", minutes, "on a CPU without --epochs")
    hidden, early = 0.0, 0
    if config.blind or not task.question_only:
        choices.made.append(Choice("image_dropout", 0.0, "no image to hide"))
        choices.made.append(Choice("blind_epochs", 0, "likewise"))
    else:
        # Learning without the image delays learning with it; of many questions fewer suffice for the first.
        share = 0.2 if samples < 10_000 else 0.1
        hidden = choices.take("image_dropout", share, f"for {samples:,} samples")
        begins = start.weights_are_random and hidden and head.outcomes >= OPEN_ANSWERS
        count = common["epochs"] // 8 if begins else 0
        early = choices.take("blind_epochs", count, f"{head.outcomes} answers, init {start.source}")
    few = 0.3 if scarce and not config.blind else 0.0
    feature_dropout = choices.take("feature_dropout", few, f"{head.outcomes} answers, {samples:,} samples")
    width, alone = 0, 0.0
    if task.question_only:
        # A model that answers by it already keeps it for few answers, too.
        chosen = _direct_width(start, size) if is_open or "direct.answers.weight" in start.weights else 0
        width = choices.take("direct_width", chosen, f"{head.outcomes} answers")
        half = 0.5 if scarce and width else 0.0
        alone = choices.take("encoder_dropout", half, f"{head.outcomes} answers, {samples:,} samples")
    encoder_rate = 1.0 if config.encoder_rate is None else config.encoder_rate
    if scarce and start.knows_words(width):
        reason = f"{head.outcomes} answers, init {start.source}"
        encoder_rate = choices.take("encoder_rate", ENCODER_RATE, reason)
    if encoder_rate == 0 and start.weights_are_random:
        raise ConfigError(
            f"encoder_rate: 0 would leave the encoder's random weights as they are (init {start.source})",
            hint="name pretrained weights with --init",
        )
    return FinetunePlan(
        **common,
        encoder_rate=encoder_rate,
        max_minutes=math.inf if minutes is None else minutes,
        patience=config.patience,
        falls_with_time=config.epochs is None,
        image_dropout=hidden,
        blind_epochs=early,
        feature_dropout=feature_dropout,
        direct_width=width,
        direct_words=bool(width) and not config.blind and start.knows_words(width),
        direct_attends=bool(width) and not config.blind,
        encoder_dropout=alone,
        choices=tuple(choices.made),
    )


def _direct_width(start: Start, size: str) -> int:
    """The width that the initial weights have, or the usual one."""
    return (start.values or {}).get("direct_width") or DIRECT_WIDTHS[size]


def most_minutes(config: FinetuneConfig) -> float | None:
    """How long fine-tuning takes at most: as asked for, else what a CPU gets where no epochs are; or None."""
    if config.max_minutes is None and config.epochs is None and not _on_cuda(config):
        return CPU_MINUTES
    return config.max_minutes


def _on_cuda(config: TrainingConfig) -> bool:
    return torch.cuda.is_available() and not config.devices.startswith("cpu")


def _usual_size(samples: int, cuda: bool) -> str:
    return "tiny" if samples < 30_000 else "small" if samples < 300_000 or not cuda else "base"


def _size(choices: _Choices, start: Start) -> str | None:
    """The size of the initial weights, or the one asked for; None where it is left to tbkin."""
    asked = choices.config.size
    if start.values is None:
        return None if asked == "auto" else asked
    size = size_of(start.values)
    if asked not in ("auto", size):
        raise ConfigError(
            f"size: {asked!r} was asked for, the initial weights are {start.values['hidden_size']} wide",
            hint="omit --size, or use --init none",
        )
    choices.take("size", size, "of the initial weights")
    return size


def _common(
    choices: _Choices,
    size: str,
    samples: int,
    stores: Sequence[FeatureStore],
    epochs: tuple[int, int],
    batch: int,
    rate: float,
    scarce: bool = False,
) -> dict[str, Any]:
    """What both kinds of training need.

    `epochs` are the samples seen in all, and the most epochs; `scarce` samples are soon learnt by heart.
    """
    config = choices.config
    # Small data is passed over more often: about as many samples are seen in all.
    seen, most = epochs
    count = min(max(round(seen / max(samples, 1)), 4), most)
    batch, why = min(batch, max(samples // 4, 1)), f"some {seen:,} samples, 4 to {most} epochs"
    if scarce:
        batch = min(batch, max(samples // 24, 8))
        taken = config.batch_size or batch
        if (enough := min(round(SCARCE_STEPS * taken / max(samples, 1)), SCARCE_MOST)) > count:
            count, why = enough, f"some {SCARCE_STEPS} steps, at most {SCARCE_MOST} epochs"
    regions = max(int(store.settings.get("max_regions", 36)) for store in stores)
    chosen = (
        Choice("epochs", count, why),
        Choice("batch_size", batch, f"for {samples:,} samples"),
        Choice("learning_rate", rate, f"size {size}"),
        Choice("max_regions", regions, "of the features"),
        Choice("dropout", 0.3, f"for {samples:,} samples")
        if scarce
        else Choice("dropout", 0.0 if size == "tiny" else 0.1, f"size {size}"),
    )
    values = {"size": size, **{choice.name: choices.take(*choice) for choice in chosen}}
    given = (
        "warmup", "schedule", "decay_epochs", "weight_decay", "grad_clip", "precision", "max_text_tokens",
        "save_minutes", "seed", "resume", "tensorboard", "wandb", "mlflow", "compile", "kernels",
        "keep_features",
    )  # fmt: skip
    return {
        **values,
        "micro_batch_size": config.micro_batch_size or values["batch_size"],
        **{name: getattr(config, name) for name in given},
    }
