"""Where training starts: initial weights, their tokenizer, and the features they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.errors import CheckpointError, DataError
from tbkin_core.features.store import FeatureStore, feature_kind
from tbkin_core.modeling.checkpoint import load_init, load_model_config
from tbkin_core.runs import finished_runs
from tbkin_core.settings import FinetuneConfig, TrainingConfig
from tbkin_core.support.files import file_content
from tbkin_core.support.shards import MANIFEST
from tbkin_core.tasks.base import finetune_task
from tbkin_core.texts.tokenizer import build_tokenizer, extend_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger("tbkin")


@dataclass(frozen=True, slots=True)
class Start:
    """What a run begins from."""

    source: str  # path or hub id of the weights, or "none"
    tokenizer: Tokenizer  # of the weights, or built from the training texts
    weights: dict[str, Any] = field(default_factory=dict)  # by name; empty where they begin at random
    values: dict[str, Any] | None = None  # configuration of the weights; None where they begin at random

    @property
    def weights_are_random(self) -> bool:
        return self.values is None


def starting_point(source: str, texts: Sequence[str], new_texts: Sequence[str] = ()) -> Start:
    """Weights and tokenizer of a source, as `initial_source` gives it.

    A new tokenizer is built from `texts`; one that was built from other data gets the words of `new_texts`.

    Raises:
        CheckpointError: They cannot be loaded.
    """
    if source == "none":
        return Start("none", build_tokenizer(texts))
    weights, values = load_init(source)
    tokenizer = load_tokenizer(source)
    if values.get("data_vocabulary"):
        tokenizer, added = extend_tokenizer(tokenizer, new_texts)
        if added:
            logger.info("%d words of the training texts were added to the vocabulary", added)
    return Start(source, tokenizer, weights, values)


def initial_source(config: TrainingConfig, store: FeatureStore) -> str:
    """What a run begins from: a path or hub id, or "none"; "auto" is resolved."""
    if config.init != "auto":
        return config.init
    if isinstance(config, FinetuneConfig) and not config.blind:
        return _matching_checkpoint(store, config.task, config.size) or "none"
    return "none"


def weights_content(source: str) -> int | None:
    """A number that changes with the weights of a path; None of a hub's, of none, and where they are gone."""
    place = Path(source)
    files = (place, place / "model.safetensors", place / "pytorch_model.bin")
    return next((content for file in files if (content := file_content(file)) is not None), None)


def _matching_checkpoint(store: FeatureStore, task: str, size: str) -> str | None:
    """The latest model of this size made from features of this kind, those that the task prefers first."""
    better = finetune_task(task).starts_from
    runs = [path for path, run in finished_runs("finetune") if run["settings"].get("task") in better]
    for path in (*runs, *(path for path, _ in finished_runs("pretrain"))):
        try:
            found = load_model_config(path)
        except CheckpointError:
            continue
        fits = size == "auto" or size_of(found.to_dict()) == size
        if fits and feature_kind(found.extractor or {}) == feature_kind(store.settings):
            return str(path)
    return None


def size_of(values: Mapping[str, Any]) -> str:
    """The size whose training settings suit a model of this width."""
    width = int(values["hidden_size"])
    return "tiny" if width <= 128 else "small" if width <= 384 else "base"


# ---- features -----------------------------------------------------------------------------------


def feature_place(features: Path | None, data: Path) -> Path:
    """The feature store of a dataset; DataError where there is none."""
    place = features or data / "features"
    if not (place / MANIFEST).exists():
        raise DataError(f"{place}: holds no features", hint=f"make them with `tbkin extract-features {data}`")
    return place


def check_feature_kind(trained_on: Mapping[str, Any] | None, store: FeatureStore, checkpoint: object) -> None:
    """DataError where features are of another kind than those that the named checkpoint was trained on.

    `trained_on` is its note of its features, `extractor` in its configuration.
    """
    expected, found = feature_kind(trained_on or {}), feature_kind(store.settings)
    if expected and expected != found:
        changed = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise DataError(
            f"{store.path}: features of kind {found['extractor']!r}, size {found['feature_size']};"
            f" {checkpoint} was trained on {expected.get('extractor')!r}, size"
            f" {expected.get('feature_size')} (other: {', '.join(changed)})",
            hint="use the features the checkpoint was trained on, or fine-tune on these",
        )
