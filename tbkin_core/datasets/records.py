"""Plain records that every loader returns, whatever the publisher's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ImageId = int | str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a dataset.

    Attributes:
        image_id: Key of the image everywhere in tbkin (feature store, graphs, questions).
        path: The file, or None where the annotations name an image that is not on disk.
        split: "train", "val", "test", ... or "all" where the dataset has no splits.
        width: Pixels, as the annotations say; None where they do not.
        height: Pixels, likewise.
    """

    image_id: ImageId
    path: Path | None
    split: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption; `image_id` is None for a text without an image."""

    text_id: int | str
    image_id: ImageId | None
    text: str
    split: str


@dataclass(frozen=True, slots=True)
class Question:
    """One VQA question; `answers` is empty where the split has none."""

    question_id: int | str
    image_id: ImageId
    question: str
    split: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """One referring expression; `target_xywh` in absolute pixels (COCO order); unknown image sizes are 0."""

    sent_id: int
    ref_id: int
    image_id: ImageId
    text: str
    split: str
    target_xywh: tuple[float, float, float, float]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class BoxAnnotation:
    """A labelled box of an image (COCO instances, Visual Genome objects), xywh in pixels."""

    image_id: ImageId
    label: str
    xywh: tuple[float, float, float, float]
    attributes: tuple[str, ...] = ()


class GoldObject(NamedTuple):
    """An object of a `GoldGraph`: xywh in pixels; the name is "" where the publisher gives none."""

    name: str
    xywh: tuple[float, float, float, float]
    attributes: tuple[str, ...]


class GoldRelation(NamedTuple):
    """A relation of a `GoldGraph`; subject and object are positions in its `objects`."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, slots=True)
class GoldGraph:
    """The scene graph that people annotated for an image (Visual Genome's `scene_graphs.json`).

    Names, attributes and predicates are as the annotators wrote them ("ON", "parked on"), without surrounding
    white space.
    """

    objects: tuple[GoldObject, ...]
    relations: tuple[GoldRelation, ...]
