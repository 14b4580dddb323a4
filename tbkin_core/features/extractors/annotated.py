"""Regions are the boxes that people drew (COCO instances, Visual Genome objects)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import scale_between, turned, xywh_to_xyxy
from tbkin_core.datasets import Dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.extractors.base import PictureExtractor, Request
from tbkin_core.features.extractors.builtin import BuiltinExtractor
from tbkin_core.features.regions import Floats, ImageId, Pixels, RegionFeatures
from tbkin_core.names.vocabulary import visual_genome_names

MAX_OBJECT_NAMES = 1600  # the sizes of the classic vocabularies
MAX_ATTRIBUTE_NAMES = 400
BEYOND = 1.05  # of the image's sides; annotators' boxes end a pixel or two outside


def open_extractor(request: Request) -> PictureExtractor:
    """The boxes of the request's dataset; descriptors are left to the backbone where there is one."""
    return AnnotatedRegions(request.needed_dataset(), request.max_regions, describe=request.backbone is None)


class AnnotatedRegions(PictureExtractor):
    """The annotated boxes of a dataset's images, largest first.

    Names are those of the labels in Visual Genome's words, the commonest first and at most as many as the
    usual vocabularies have. Where no attributes are annotated, they are the built-in extractor's colours.

    Args:
        dataset: Opened dataset.
        max_regions: Of more boxes the largest are taken.
        describe: Whether the built-in descriptors are the vectors; else there are none.

    Raises:
        ConfigError: The dataset has no annotated boxes.
    """

    omitted_because = "have no annotated boxes"

    def __init__(self, dataset: Dataset, max_regions: int, describe: bool = True) -> None:
        self._builtin = BuiltinExtractor() if describe else None
        self._max_regions = max_regions
        annotated = dataset.boxes()
        if not annotated:
            raise ConfigError(
                f"{dataset.path}: no annotated boxes (COCO instances_*.json, Visual Genome objects)",
                hint="use --extractor builtin, or a detection model",
            )
        objects, attributes = visual_genome_names("objects"), visual_genome_names("attributes")
        labels = Counter(box.label for boxes in annotated.values() for box in boxes)
        traits = Counter(trait for boxes in annotated.values() for box in boxes for trait in box.attributes)
        self.object_names, object_of = _numbered(labels, objects.match(labels), MAX_OBJECT_NAMES)
        self.attribute_names, attribute_of = _numbered(traits, attributes.match(traits), MAX_ATTRIBUTE_NAMES)
        # All boxes of each image, of a size of 0 where nothing tells the size that they were drawn on.
        self._known: dict[ImageId, RegionFeatures] = {}
        for image_id, boxes in annotated.items():
            record = dataset.image(image_id)
            # Of an object's attributes the commonest: a region has room for one.
            attribute_ids = [
                min((attribute_of[name] for name in box.attributes if name in attribute_of), default=-1)
                for box in boxes
            ]
            width, height = (record.width, record.height) if record.width and record.height else (0, 0)
            self._known[image_id] = RegionFeatures(
                image_id,
                np.zeros((len(boxes), 0), np.float32),
                xywh_to_xyxy([box.xywh for box in boxes]),
                width,
                height,
                object_ids=np.array([object_of.get(box.label, -1) for box in boxes], np.int32),
                attribute_ids=np.array(attribute_ids, np.int32),
            )
        self.omitted = [
            record.image_id
            for record in dataset.images()
            if record.path is not None and record.image_id not in self._known
        ]

    def settings(self) -> dict[str, Any]:
        builtin = self._builtin
        return {
            "extractor": "annotations",
            "object_names": self.object_names,
            "max_regions": self._max_regions,
            **({"descriptors": builtin.parameters()} if builtin else {}),
            "feature_size": builtin.feature_size if builtin else 0,
            "attribute_names": self.attribute_names or (builtin.attribute_names if builtin else []),
        }

    def extract(self, image_id: ImageId, image: Pixels, width: int, height: int) -> RegionFeatures:
        known = self._known[image_id]
        boxes, rows = _within(known, width, height, self._max_regions)
        object_ids, attribute_ids = known.object_ids[rows], known.attribute_ids[rows]
        labels: dict[str, Any] = {
            "object_ids": object_ids,
            "object_scores": (object_ids >= 0).astype(np.float32),
        }
        if self.attribute_names:
            scores = (attribute_ids >= 0).astype(np.float32)
            labels |= {"attribute_ids": attribute_ids, "attribute_scores": scores}
        if self._builtin is None:
            return RegionFeatures(image_id, known.features[rows], boxes, width, height, **labels)
        return replace(self._builtin.extract(image_id, image, width, height, boxes), **labels)


def _within(known: RegionFeatures, width: int, height: int, most: int) -> tuple[Floats, NDArray[np.int64]]:
    """The largest boxes (K, 4) cut to the image, largest first, and their rows; scaled as the image was."""
    boxes, name = known.boxes, f"image {known.image_id!r}"
    drawn = known.image_width, known.image_height
    if drawn == (0, 0) and (boxes[:, 2:] > BEYOND * np.array([width, height])).any():
        raise DataError(
            f"{name}: boxes reach far beyond its {width} x {height} pixels, and nothing tells"
            " the size that they were drawn on (for Visual Genome image_data.json does)"
        )
    scale = scale_between(drawn, (width, height))
    if scale is None:
        raise DataError(
            f"{name}: its boxes were drawn on {drawn[0]} x {drawn[1]} pixels,"
            f" the file has {width} x {height}{turned(drawn, (width, height))}"
        )
    boxes = boxes * scale
    boxes = np.clip(np.nan_to_num(boxes), 0, np.array([width, height] * 2, np.float32))
    sides = boxes[:, 2:] - boxes[:, :2]
    rows = np.flatnonzero((sides > 0).all(axis=1))
    if not len(rows):
        raise DataError(f"{name}: no annotated box lies within the picture")
    rows = rows[np.argsort(-sides[rows].prod(axis=1), kind="stable")][:most]
    return boxes[rows], rows


def _numbered(
    counts: Mapping[str, int], matched: Sequence[str], limit: int
) -> tuple[list[str], dict[str, int]]:
    """The commonest names in their order, and the number of each label as it is written in the data."""
    together: Counter[str] = Counter()
    for label, name in zip(counts, matched, strict=True):
        if name:
            together[name] += counts[label]
    names = sorted(together, key=lambda name: (-together[name], name))[:limit]
    number = {name: place for place, name in enumerate(names)}
    return names, {label: number[name] for label, name in zip(counts, matched, strict=True) if name in number}
