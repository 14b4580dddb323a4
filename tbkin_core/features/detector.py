"""Regions and region vectors of any object-detection model that transformers loads.

DETR and what came of it (Carion et al., ECCV 2020: RT-DETR, D-FINE, Deformable DETR, YOLOS, ...) carry one
state a query through the decoder and read class and box off it; that state is the region's vector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tbkin_core.errors import ConfigError, MissingDependencyError
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.runtime import quiet_transformers

SMALLEST_SIDE = 1.0  # pixels; smaller boxes are made this large


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the detector wants it.

    Attributes:
        image_id: Key of the image.
        inputs: The model's inputs without the batch dimension: `pixel_values` (3, h, w), maybe `pixel_mask`.
        width, height: Of the image itself, in pixels.
    """

    image_id: ImageId
    inputs: dict[str, torch.Tensor]
    width: int
    height: int


class DetectorExtractor:
    """Extracts regions with a detection model.

    Args:
        model: Hub id or directory of a model for `AutoModelForObjectDetection`.
        max_regions: Keep this many queries an image, those of the highest class scores.
        device: Where the model runs.

    Attributes:
        feature_size: D, the width of the decoder.
        object_names: Names of the model's classes, as it numbers them.

    Raises:
        MissingDependencyError: The model cannot be loaded or reached.
        ConfigError: It gives no boxes and states a query.
    """

    def __init__(
        self,
        model: str,
        max_regions: int = 36,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model_name = model
        self.max_regions = max_regions
        self._device = torch.device(device)
        self._processor, self._model = _load(model)
        self._model.to(self._device).eval()
        labels = {int(number): name for number, name in self._model.config.id2label.items()}
        self.object_names = tuple(
            " ".join(labels.get(number, "").lower().replace("_", " ").split())
            for number in range(max(labels) + 1)
        )
        self.feature_size = self._measure()

    def settings(self) -> dict[str, Any]:
        """What the store records, so that a new image can be treated alike."""
        return {
            "extractor": "detector",
            "model": self.model_name,
            "weights": weights_digest(self._model),
            "feature_size": self.feature_size,
            "object_names": list(self.object_names),
            "attribute_names": [],
            "max_regions": self.max_regions,
        }

    def prepare(self, image_id: ImageId, image: NDArray[np.uint8], width: int, height: int) -> Picture:
        """An RGB image (H, W, 3) of a file of `width` x `height` pixels, ready for the model; thread-safe."""
        inputs = self._processor(images=Image.fromarray(image), return_tensors="pt")
        return Picture(
            image_id,
            {name: inputs[name][0] for name in ("pixel_values", "pixel_mask") if name in inputs},
            width,
            height,
        )

    def extract(self, pictures: Sequence[Picture]) -> list[RegionFeatures]:
        """Regions of some images, best first. Images of one shape go through the model together."""
        results: list[RegionFeatures | None] = [None] * len(pictures)
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            # Padding to a common shape would let an image's regions depend on its neighbours.
            groups.setdefault(tuple(picture.inputs["pixel_values"].shape), []).append(place)
        for places in groups.values():
            for place, regions in zip(places, self._together([pictures[at] for at in places]), strict=True):
                results[place] = regions
        return [regions for regions in results if regions is not None]

    @torch.inference_mode()
    def _together(self, pictures: Sequence[Picture]) -> Iterator[RegionFeatures]:
        inputs = {
            name: torch.stack([picture.inputs[name] for picture in pictures]).to(self._device)
            for name in pictures[0].inputs
        }
        scores, boxes, states = self._forward(inputs)
        count = min(self.max_regions, scores.shape[1])
        best, classes = scores.max(dim=-1)  # (B, Q)
        chosen = best.topk(count, dim=1)
        rows = chosen.indices[..., None]
        places = boxes.gather(1, rows.expand(-1, -1, 4)).cpu().numpy()
        vectors = states.gather(1, rows.expand(-1, -1, states.shape[-1])).cpu().numpy()
        labels = classes.gather(1, chosen.indices).cpu().numpy()
        values = chosen.values.cpu().numpy()
        for place, picture in enumerate(pictures):
            yield RegionFeatures(
                picture.image_id,
                vectors[place],
                corners(places[place], picture.width, picture.height),
                picture.width,
                picture.height,
                object_ids=labels[place].astype(np.int32),
                object_scores=np.clip(values[place], 0, 1).astype(np.float32),
            )

    def _forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Class probabilities (B, Q, C), boxes (B, Q, 4) as fractions cxcywh, and states (B, Q, D)."""
        output = self._model(**inputs)
        logits, boxes = output.logits.float(), output.pred_boxes.float()
        queries = logits.shape[1]
        states = output.get("last_hidden_state")
        if states is None:
            layers = output.get("intermediate_hidden_states")
            states = None if layers is None else layers[:, -1]
        if states is None or states.shape[1] < queries:
            raise ConfigError(
                f"{self.model_name}: the model gives no state a query to take as region vectors"
            )
        # YOLOS keeps its queries behind the image's patches.
        states = states[:, -queries:].float()
        # One class more than there are names is "no object", of a softmax; else each class stands alone.
        if logits.shape[-1] == len(self.object_names) + 1:
            return logits.softmax(-1)[..., :-1], boxes, states
        return logits.sigmoid()[..., : len(self.object_names)], boxes, states

    def _measure(self) -> int:
        """D, by a look at a grey image; also finds out whether the model is of the right kind."""
        picture = self.prepare("", np.full((64, 64, 3), 127, np.uint8), 64, 64)
        try:
            with torch.inference_mode():
                inputs = {name: value[None].to(self._device) for name, value in picture.inputs.items()}
                return int(self._forward(inputs)[2].shape[-1])
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{self.model_name}: is no detector that gives a box and a state a query ({error})",
                hint="RT-DETR, D-FINE, DETR, Deformable DETR and YOLOS do",
            ) from error


def corners(boxes: NDArray, width: int, height: int) -> NDArray[np.float32]:
    """Boxes (K, 4) given as fractions (cx, cy, w, h), as xyxy pixels within the image, never without area."""
    size = np.array([width, height], np.float32)
    centre, half = boxes[:, :2] * size, boxes[:, 2:] * size / 2
    least = np.minimum(SMALLEST_SIDE, size)
    low = np.clip(np.nan_to_num(centre - half), 0, size - least)
    high = np.clip(np.nan_to_num(centre + half), low + least, size)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def weights_digest(model: torch.nn.Module) -> str:
    """Tells two models apart: of the names, shapes and sums of all weights."""
    found = [
        (name, tuple(value.shape), round(float(value.double().sum()), 3))
        for name, value in sorted(model.state_dict().items())
    ]
    return hashlib.blake2b(json.dumps(found).encode(), digest_size=8).hexdigest()


def _load(model: str) -> tuple[Any, Any]:
    quiet_transformers()
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    try:
        return (
            AutoImageProcessor.from_pretrained(model),
            AutoModelForObjectDetection.from_pretrained(model, dtype=torch.float32),
        )
    # Damaged files make the libraries below raise anything: SafetensorError, UnpicklingError, AssertionError.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        place = "directory" if Path(model).exists() else "hub id or directory"
        raise MissingDependencyError(
            f"detector {model!r} cannot be loaded from this {place}: {reason}",
            hint="--extractor builtin needs no model; a directory with config.json,"
            " preprocessor_config.json and model.safetensors works without a network",
        ) from error
