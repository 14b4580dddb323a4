"""What benchmarks of training speed share: drawn features, the peer, work done, and what the device can do.

Letters: B batch, T text tokens, K regions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import write_feature_store
from tbkin_core.modeling import TbkinConfig

TOKENS, REGIONS, FEATURES, OBJECTS, ATTRIBUTES = 20, 36, 2048, 1600, 400
VOCABULARY = 30522


def drawn_features(
    path: Path, image_ids: Sequence[ImageId], feature_size: int = FEATURES, fewest: int = REGIONS
) -> FeatureStore:
    """A store of drawn regions with classes and attributes: `fewest` to 36 for each image."""
    chance = np.random.default_rng(0)

    def regions(image_id: ImageId) -> RegionFeatures:
        count = int(chance.integers(fewest, REGIONS + 1)) if fewest < REGIONS else REGIONS
        corners = chance.random((count, 2), np.float32) * 300
        return RegionFeatures(
            image_id,
            chance.random((count, feature_size), np.float32),
            np.concatenate([corners, corners + 20 + chance.random((count, 2), np.float32) * 200], axis=1),
            640,
            640,
            object_ids=chance.integers(0, OBJECTS, count).astype(np.int32),
            object_scores=chance.random(count, np.float32),
            attribute_ids=chance.integers(0, ATTRIBUTES, count).astype(np.int32),
            attribute_scores=chance.random(count, np.float32),
        )

    settings = {
        "extractor": "drawn",
        "feature_size": feature_size,
        "object_names": [f"object {number}" for number in range(OBJECTS)],
        "attribute_names": [f"attribute {number}" for number in range(ATTRIBUTES)],
    }
    return write_feature_store(path, settings, (regions(image_id) for image_id in image_ids))


def visualbert(size: dict[str, Any], feature_size: int = FEATURES, vocabulary: int = VOCABULARY) -> Any:
    """transformers' VisualBERT with random weights and its pretraining heads."""
    from transformers import VisualBertConfig, VisualBertForPreTraining

    config = VisualBertConfig(vocab_size=vocabulary, **size, visual_embedding_dim=feature_size)
    return VisualBertForPreTraining(config).train()


def visualbert_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """VisualBERT's loss: masked words, looked for at every position, and matching.

    Args:
        batch: `input_ids`, `attention_mask` (B, T), `region_features` (B, K, F), `region_mask` (B, K),
            `all_labels` (B, T + K), -100 where nothing is to be said, and `matched` (B,).
    """
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"].long(),
        visual_embeds=batch["region_features"],
        visual_attention_mask=batch["region_mask"].long(),
        labels=batch["all_labels"],
        sentence_image_labels=batch["matched"],
    )
    loss: Tensor = output.loss
    return loss


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_peak(device: torch.device, precision: torch.dtype | None, size: int = 0) -> float:
    """Floating-point operations a second of large matrix products on this device."""
    size = size or (8192 if device.type == "cuda" else 1024)
    one = torch.randn(size, size, device=device, dtype=precision or torch.float32)
    rounds = []
    for _ in range(12):
        synchronise(device)
        start = time.perf_counter()
        one @ one
        synchronise(device)
        rounds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(rounds[2:])


def pretraining_heads(config: TbkinConfig, words: float, regions: float) -> float:
    """Multiplications of the pretraining heads over so many masked words and regions."""
    width = config.hidden_size
    outputs = config.region_feature_size + config.num_object_classes + config.num_attribute_classes
    heads = words * (width * width + width * config.vocab_size)
    return heads + regions * (width * width + width * outputs)


def operations(config: TbkinConfig, lengths: Sequence[float], regions: float, heads: float) -> float:
    """Multiplications and additions of a forward and backward pass over a batch, real tokens alone.

    Args:
        lengths: (B,) words and regions of each sample together.
        regions: Of all samples.
        heads: Multiplications of the heads in a forward pass.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    a_token = layers * (4 * width * width + 2 * width * inner)
    attention = layers * 2 * float(sum(length**2 for length in lengths)) * width
    embedded = regions * config.region_feature_size * width
    return 3 * 2 * (float(sum(lengths)) * a_token + attention + heads + embedded)
