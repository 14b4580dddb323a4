"""How many images a second become regions, with models of random weights: a detector and a backbone.

The models are RT-DETR v2 with a ResNet-50 and ViT-B/16, saved to disk as those of the hub are, and opened by
the project's own extractors. End to end are reading, decoding, resizing, the model and what follows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from model_speed import REGIONS, synchronise

from checking.machine import processors
from checking.outcome import MEASURED, Check, free_memory, peak_memory
from examples.scenes import generate
from tbkin_core.features.extractors.backbone import Backbone, BackboneExtractor
from tbkin_core.features.extractors.base import Job, PictureExtractor, run_batches
from tbkin_core.features.extractors.detector import open_detector
from tbkin_core.features.regions import ImageId, Pixels, RegionFeatures
from tbkin_core.names.vocabulary import visual_genome_names


def run(check: Check) -> None:
    """A row for each model and number of images at once."""
    pictures = check.attempt("pictures", draw, check)
    if pictures is None:
        return
    for name, make in (("RT-DETR v2 R50", detector), ("ViT-B/16", backbone)):
        extractor = check.attempt(name, make, check)
        if extractor is None:
            continue
        for batch in (2,) if check.tiny else (8, 32):
            title = f"{name}, batch {batch}"
            check.attempt(title, measure, check, title, *extractor, pictures, batch)
        del extractor
        free_memory()


def draw(check: Check) -> list[Path]:
    """Files of drawn pictures."""
    place = check.place / "pictures"
    count, size = (3, (128, 96)) if check.tiny else (48, (640, 480))
    generate(place, count, 0, 0, 0, size, workers=1 if check.tiny else processors())
    return sorted(place.rglob("*.jpg"))


class DrawnBoxes(PictureExtractor):
    """The same 36 boxes in every picture, so that nothing but the backbone is measured."""

    def settings(self) -> dict[str, Any]:
        names: dict[str, Any] = {"object_names": [], "attribute_names": [], "max_regions": REGIONS}
        return {"extractor": "drawn", "feature_size": 0, **names}

    def extract(self, image_id: ImageId, image: Pixels, width: int, height: int) -> RegionFeatures:
        chance = np.random.default_rng(0)
        low = chance.random((REGIONS, 2), np.float32) * 0.5
        high = low + 0.1 + chance.random((REGIONS, 2), np.float32) * 0.4
        boxes = np.concatenate([low, high], axis=1) * np.array([width, height] * 2, np.float32)
        return RegionFeatures(image_id, np.zeros((REGIONS, 0), np.float32), boxes, width, height)


def detector(check: Check) -> tuple[Any, Any]:
    """An extractor, and the model inside it."""
    from transformers import (
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        RTDetrV2Config,
        RTDetrV2ForObjectDetection,
    )

    place, names = check.place / "detector", visual_genome_names("objects").names
    levels: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
    if check.tiny:
        small: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
        config = RTDetrV2Config(
            backbone_config=RTDetrResNetConfig(**small, layer_type="basic", **levels),
            encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
            encoder_attention_heads=2, d_model=16, num_queries=40, decoder_in_channels=[16, 16, 16],
            decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2,
            id2label=dict(enumerate(names[:4])),
        )  # fmt: skip
    else:
        # The configurations' defaults are the published model's.
        config = RTDetrV2Config(
            backbone_config=RTDetrResNetConfig(**levels), id2label=dict(enumerate(names[:80]))
        )
    side = 64 if check.tiny else 640
    RTDetrV2ForObjectDetection(config).save_pretrained(place)
    RTDetrImageProcessor(size={"height": side, "width": side}).save_pretrained(place)
    opened = open_detector(str(place), REGIONS, check.device)
    return opened, opened._model


def backbone(check: Check) -> tuple[Any, Any]:
    """An extractor, and the model inside it."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    place, side = check.place / "backbone", 64 if check.tiny else 224
    narrow: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = ViTConfig(**(narrow if check.tiny else {}), **({"num_attention_heads": 2} if check.tiny else {}))
    config.image_size = side
    ViTModel(config).save_pretrained(place)
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(place)
    found = Backbone(str(place), check.device)
    return BackboneExtractor(DrawnBoxes(), found), found._model


def measure(check: Check, title: str, extractor: Any, model: Any, pictures: list[Path], batch: int) -> None:
    """A row: images a second, and the share of the time in the model's forward pass."""
    workers = max(processors() - 1, 1)
    inside = _timed(model, check)
    jobs = [Job(number, pictures[number % len(pictures)]) for number in range(2000 * batch)]
    warm, limit, count = 2 * batch, 0.2 if check.tiny else 4.0, 0
    start = forward = 0.0
    with peak_memory(check.device) as memory:
        results = run_batches([extractor], jobs, workers, batch)
        for _, found in results:
            if isinstance(found, str):
                raise RuntimeError(found)
            count += 1
            if count == warm:
                start, forward = time.perf_counter(), inside()
            if count > warm and not count % batch and time.perf_counter() - start > limit:
                break
        seconds, forward = time.perf_counter() - start, inside() - forward
        results.close()
        used = memory()
    note = f"{workers} threads that read"
    columns = {
        "images/s": (count - warm) / seconds,
        "in forward": f"{min(forward / seconds, 1):.0%}",
        "GB": used,
    }
    check.row(title, MEASURED, note, **columns)


def _timed(model: Any, check: Check) -> Callable[[], float]:
    """From now on, the seconds that a model's forward passes have taken."""
    total = begun = 0.0

    def before(*_: Any) -> None:
        nonlocal begun
        synchronise(check.device)
        begun = time.perf_counter()

    def after(*_: Any) -> None:
        nonlocal total
        synchronise(check.device)
        total += time.perf_counter() - begun

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    return lambda: total
