"""The model that a run trains, built from its plan and its initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from tbkin_core.errors import CheckpointError, ConfigError
from tbkin_core.features.store import FeatureStore, feature_statistics, vector_source
from tbkin_core.modeling import TbkinConfig
from tbkin_core.modeling.checkpoint import apply_init
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.texts.word_vectors import WordVectors
from tbkin_core.training.plan import TrainingPlan
from tbkin_core.training.start import Start

_SAME_FEATURES = "use features of the same extractor, or --init none"
_PROJECTION = "tbkin.region_embeddings.feature_projection.weight"
_ALIGNMENT = "alignment.weight.weight"


def build_model(
    kind: Any, plan: TrainingPlan, start: Start, parts: Sequence[tuple[FeatureStore, NDArray]], **values: Any
) -> Any:
    """A model with its initial weights; region features are standardised by those of the training images.

    Args:
        kind: Class of the model.
        parts: Feature stores, each with the rows (N,) of its training images.
        values: Of the configuration that its head and its attention are built with.

    Raises:
        ConfigError: Texts are to be longer than the weights allow, or a layer is to select that is not there.
        CheckpointError: The weights know region features of another size or kind.
    """
    torch.manual_seed(plan.seed)
    store = parts[0][0]
    extractor = {**store.settings, "store": str(store.path.resolve())}
    if len(parts) > 1:
        # Regions of new images are made like the most that were trained on, whatever the order of the stores.
        counts = [it.settings["max_regions"] for it, _ in parts if "max_regions" in it.settings]
        extractor |= {"max_regions": max(counts)} if counts else {}
    model = kind(_model_config(plan, start, store, {**values, "extractor": extractor}))
    if _PROJECTION not in start.weights:
        # Weights that know region features bring the statistics they were trained with.
        mean, scale = feature_statistics(parts)
        model.tbkin.region_embeddings.feature_mean.copy_(torch.from_numpy(mean))
        model.tbkin.region_embeddings.feature_scale.copy_(torch.from_numpy(scale))
    elif start.weights[_PROJECTION].shape[1] != store.feature_size:
        raise CheckpointError(
            f"init {start.source}: was trained on region features of size"
            f" {start.weights[_PROJECTION].shape[1]}, these have {store.feature_size}",
            hint=_SAME_FEATURES,
        )
    elif model.config.use_regions:
        trained_on = (start.values or {}).get("extractor") or store.settings
        # Of one size, other numbers would be taken for those that the weights know.
        if (known := vector_source(trained_on)) != (found := vector_source(store.settings)):
            raise CheckpointError(
                f"init {start.source}: was trained on region vectors of another kind ({known}), these in"
                f" {store.path} are of {found}",
                hint=_SAME_FEATURES,
            )
    if start.weights:
        apply_init(model, start.weights, start.source, start.answers)
    if start.words is not None:
        _apply_words(model, start.words)
    return model


@torch.no_grad()
def _apply_words(model: Any, words: WordVectors) -> None:
    """Give the tokens that have word vectors these, as large as the random ones that others begin with."""
    table = model.get_input_embeddings().weight  # (V, D)
    rows = words.fitted(table.shape[1], model.config.initializer_range)
    table[torch.from_numpy(words.ids)] = torch.from_numpy(rows)


def _model_config(
    plan: TrainingPlan, start: Start, store: FeatureStore, values: dict[str, Any]
) -> TbkinConfig:
    shape: dict[str, Any] = dict(SIZES[plan.size])
    longest = 128 if plan.max_text_tokens <= 128 else 512
    if start.values is not None:
        shape = {name: start.values[name] for name in shape}
        longest = start.values.get("max_position_embeddings", 512)
    if plan.max_text_tokens > longest:
        got = plan.max_text_tokens
        raise ConfigError(
            f"max_text_tokens: expected at most {longest}, got {got}", hint="the initial weights know no more"
        )
    config = TbkinConfig(
        vocab_size=start.tokenizer.get_vocab_size(),
        **shape,
        hidden_dropout_prob=plan.dropout,
        attention_probs_dropout_prob=plan.dropout,
        max_position_embeddings=longest,
        # 0.02 suits a width of 768; narrower layers need larger weights for the same signal.
        initializer_range=0.02 * math.sqrt(768 / shape["hidden_size"]),
        region_feature_size=store.feature_size,
        num_object_classes=len(store.object_names) or 1600,
        num_attribute_classes=len(store.attribute_names) or 400,
        max_regions=plan.max_regions,
        max_text_tokens=plan.max_text_tokens,
        data_vocabulary=start.values is None or bool(start.values.get("data_vocabulary")),
        even_words=_ALIGNMENT not in start.weights or bool((start.values or {}).get("even_words")),
    )
    for name, value in values.items():
        setattr(config, name, value)
    layers = config.num_hidden_layers
    outside = [layer for layer in config.threshold_layers or [] if not 0 <= layer < layers]
    if outside:
        raise ConfigError(
            f"threshold_layers: expected numbers from 0 to {layers - 1} ({layers} layers), got {outside[0]}",
            hint="name fewer, or choose another --size",
        )
    return config
