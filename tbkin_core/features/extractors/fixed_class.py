"""Detection models with a fixed set of classes, and what all detectors share.

DETR and its successors (Carion et al., ECCV 2020: RT-DETR, D-FINE, Deformable DETR, YOLOS, ...) carry one
state per query through the decoder and read class and box off it; that state is the region's vector. Models
that are prompted with the names to look for are in `detector`.

Letters: B images, Q queries, C classes, D width, K regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tbkin_core.boxes import non_maximum_suppression
from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors.models import (
    compute_dtype,
    computing,
    loading,
    preparation_digest,
    pretrained,
    weights_digest,
)
from tbkin_core.features.regions import Floats, ImageId, Pixels, RegionFeatures
from tbkin_core.names.vocabulary import visual_genome_names

SMALLEST_SIDE = 1.0  # pixels; smaller boxes are made this large


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the detector wants it."""

    image_id: ImageId  # key of the image
    # The model's inputs without the batch dimension: `pixel_values` (3, h, w), maybe `pixel_mask`.
    inputs: dict[str, torch.Tensor]
    # width, height: of the image itself, in pixels
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector predicts for B images: the best class of each query."""

    scores: torch.Tensor  # (B, Q) probability of that class
    classes: torch.Tensor  # (B, Q) its number
    boxes: torch.Tensor  # (B, Q, 4) fractions (cx, cy, w, h) of the picture
    states: torch.Tensor  # (B, Q, D) the region vectors
    # attribute_scores, attributes: (B, Q) the best attribute, where the model predicts attributes
    attribute_scores: torch.Tensor | None = None
    attributes: torch.Tensor | None = None

    def given(self) -> dict[str, torch.Tensor]:
        """The fields that are there, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(Found)}
        return {name: value for name, value in values.items() if value is not None}

    def best(self, count: int) -> Found:
        """The `count` queries of the highest scores, best first."""
        chosen = self.scores.topk(min(count, self.scores.shape[1]), dim=1).indices  # (B, count)
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        return Found(**{name: values[rows, chosen] for name, values in self.given().items()})


class DetectorExtractor:
    """Extracts regions with a detection model of a fixed set of classes.

    Args:
        model: Hub id or directory of a model for `AutoModelForObjectDetection`.
        max_regions: Keep this many queries per image, those of the highest class scores.
        device: Where the model runs.
        revision: Of the hub's model; the newest when None.
        precision: As for `compute_dtype`.

    Attributes:
        feature_size: D, the width of the decoder.
        object_names: Names of the model's classes, in the order of their numbers, in Visual Genome's words.
        attribute_names: Attributes that the model predicts; most predict none.

    Raises:
        MissingDependencyError: The model cannot be loaded or reached.
        ConfigError: It gives no box and state per query.
    """

    # Above this intersection over union the lesser of two regions is dropped; None: the model was trained to
    # find a thing once.
    overlap: float | None = None

    def __init__(
        self,
        model: str,
        max_regions: int = 36,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        precision: str = "auto",
    ) -> None:
        self.model_name = model
        self.max_regions = max_regions
        self._device = torch.device(device)
        self._dtype = compute_dtype(self._device, precision)
        self.attribute_names: tuple[str, ...] = ()
        with loading("detector", model):
            self._processor, self._model = self._load(revision)
        self._weights = weights_digest(self._model)
        self._model.to(self._device).eval()
        self.object_names = self._names()
        self.feature_size = self._measure()

    def settings(self) -> dict[str, Any]:
        """What the store records, so that a new image can be treated alike."""
        return {
            "extractor": "detector",
            "model": self.model_name,
            "revision": getattr(self._model.config, "_commit_hash", None),
            "weights": self._weights,
            "preparation": preparation_digest(self._processor),
            "feature_size": self.feature_size,
            "object_names": list(self.object_names),
            "attribute_names": list(self.attribute_names),
            "max_regions": self.max_regions,
        }

    def prepare(self, image_id: ImageId, image: Pixels, width: int, height: int) -> Picture:
        """An RGB image (H, W, 3) of a file of `width` x `height` pixels, ready for the model; thread-safe."""
        inputs = self._processor(images=Image.fromarray(image), return_tensors="pt")
        given = {name: inputs[name][0] for name in ("pixel_values", "pixel_mask") if name in inputs}
        return Picture(image_id, given, width, height)

    def extract(self, pictures: Sequence[Picture]) -> list[RegionFeatures]:
        """Regions of some images, best first. Images of one shape go through the model together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            # Padding to a common shape would let an image's regions depend on its neighbours.
            groups.setdefault(tuple(picture.inputs["pixel_values"].shape), []).append(place)
        found: dict[int, RegionFeatures] = {}
        for places in groups.values():
            found.update(zip(places, self._together([pictures[place] for place in places]), strict=True))
        return [found[place] for place in range(len(pictures))]

    @torch.inference_mode()
    def _together(self, pictures: Sequence[Picture]) -> Iterator[RegionFeatures]:
        inputs = {
            name: torch.stack([picture.inputs[name] for picture in pictures]).to(self._device)
            for name in pictures[0].inputs
        }
        with computing(self._device, self._dtype):
            found = self._forward(inputs)
        found = found.best(self.max_regions * (1 if self.overlap is None else 4))
        arrays = {name: value.float().cpu().numpy() for name, value in found.given().items()}
        for place, picture in enumerate(pictures):
            own = {name: values[place] for name, values in arrays.items()}
            boxes = corners(own["boxes"], *self._frame(picture), (picture.width, picture.height))
            kept = list(range(len(boxes)))
            if self.overlap is not None:
                kept = non_maximum_suppression(boxes, self.overlap, self.max_regions)
            labels: dict[str, Any] = {
                "object_ids": own["classes"][kept].astype(np.int32),
                "object_scores": np.clip(own["scores"][kept], 0, 1).astype(np.float32),
            }
            if "attributes" in own:
                labels["attribute_ids"] = own["attributes"][kept].astype(np.int32)
                labels["attribute_scores"] = np.clip(own["attribute_scores"][kept], 0, 1).astype(np.float32)
            yield RegionFeatures(
                picture.image_id, own["states"][kept], boxes[kept], picture.width, picture.height, **labels
            )

    # ---- what differs between kinds of detectors -----------------------------------------------

    def _load(self, revision: str | None) -> tuple[Any, Any]:
        """The image processor and the model."""
        from transformers import AutoModelForObjectDetection

        return pretrained(AutoModelForObjectDetection, self.model_name, revision)

    def _names(self) -> tuple[str, ...]:
        labels = {int(number): name for number, name in self._model.config.id2label.items()}
        ordered = [labels.get(number, "") for number in range(max(labels) + 1)]
        return visual_genome_names("objects").match(ordered)

    def _frame(self, picture: Picture) -> tuple[int, int]:
        """Width and height in pixels that the fractions of boxes are of; begins where the picture does."""
        return picture.width, picture.height

    def _forward(self, inputs: dict[str, torch.Tensor]) -> Found:
        output = self._model(**inputs)
        logits, boxes = output.logits.float(), output.pred_boxes.float()
        queries = logits.shape[1]
        states = output.get("last_hidden_state")
        if states is None:
            layers = output.get("intermediate_hidden_states")
            states = None if layers is None else layers[:, -1]
        if states is None or states.shape[1] < queries:
            raise ConfigError(
                f"{self.model_name}: the model gives no state per query to take as region vectors"
            )
        # One class more than there are names is "no object", of a softmax; else each class stands alone.
        if logits.shape[-1] == len(self.object_names) + 1:
            chances = logits.softmax(-1)[..., :-1]
        else:
            chances = logits.sigmoid()[..., : len(self.object_names)]
        best, classes = chances.max(dim=-1)
        # YOLOS keeps its queries behind the image's patches.
        return Found(best, classes, boxes, states[:, -queries:].float())

    def _measure(self) -> int:
        """D, measured on a grey image; also finds out whether the model is of the right kind."""
        picture = self.prepare("", np.full((64, 64, 3), 127, np.uint8), 64, 64)
        try:
            with torch.inference_mode():
                inputs = {name: value[None].to(self._device) for name, value in picture.inputs.items()}
                return int(self._forward(inputs).states.shape[-1])
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{self.model_name}: is no detector that gives a box and a state per query ({error})",
                hint="RT-DETR, D-FINE, DETR, Deformable DETR and YOLOS do",
            ) from error


# ---- boxes --------------------------------------------------------------------------------------


def corners(boxes: NDArray, width: int, height: int, image: tuple[int, int] | None = None) -> Floats:
    """Boxes (K, 4) given as fractions (cx, cy, w, h), as xyxy pixels within the image, never without area.

    Args:
        boxes: The fractions.
        width, height: What they are fractions of, in pixels.
        image: Width and height of the image where it is smaller than that.
    """
    scale = np.array([width, height], np.float32)
    size = scale if image is None else np.array(image, np.float32)
    centre, half = boxes[:, :2] * scale, boxes[:, 2:] * scale / 2
    least = np.minimum(SMALLEST_SIDE, size)
    low = np.clip(np.nan_to_num(centre - half), 0, size - least)
    high = np.clip(np.nan_to_num(centre + half), low + least, size)
    return np.concatenate([low, high], axis=1).astype(np.float32)
