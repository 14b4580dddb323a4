"""Opens a detection model, of fixed classes or prompted, as the extractor of its family."""

from __future__ import annotations

import torch

from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors.base import Request
from tbkin_core.features.extractors.fixed_class import DetectorExtractor
from tbkin_core.features.extractors.models import loading
from tbkin_core.features.extractors.zero_shot import GroundingExtractor, OwlExtractor

PROMPTED = {
    "owlvit": OwlExtractor,
    "owlv2": OwlExtractor,
    "grounding-dino": GroundingExtractor,
    "mm-grounding-dino": GroundingExtractor,
}
"""Extractors of the zero-shot detectors, by their `model_type`."""


def open_extractor(request: Request) -> list[DetectorExtractor]:
    """A copy of the model per device."""
    return [
        open_detector(str(request.model), request.max_regions, place, request.revision)
        for place in request.places
    ]


def open_detector(
    model: str,
    max_regions: int = 36,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    precision: str = "auto",
) -> DetectorExtractor:
    """The extractor for a detection model.

    Args:
        model, max_regions, device, revision, precision: As for `DetectorExtractor`.

    Raises:
        MissingDependencyError: The model cannot be loaded or reached.
        ConfigError: It is a detector of another kind, or none.
    """
    with loading("detector", model):
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING

        config = AutoConfig.from_pretrained(model, revision=revision or "main")
        prompted = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
    if not prompted:
        return DetectorExtractor(model, max_regions, device, revision, precision)
    if config.model_type not in PROMPTED:
        raise ConfigError(
            f"{model}: is a zero-shot detector of the kind {config.model_type}, which is not supported",
            hint="OWL-ViT, OWLv2 and Grounding DINO are",
        )
    return PROMPTED[config.model_type](model, max_regions, device, revision, precision)
