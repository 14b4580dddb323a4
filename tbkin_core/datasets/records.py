"""Records of a dataset, whatever the publisher's layout, and the rows of annotation files behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ImageId = int | str
Xywh = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a dataset."""

    image_id: ImageId  # key of the image everywhere in tbkin (feature store, graphs, questions)
    path: Path | None  # the file, or None where the annotations name an image that is not on disk
    split: str  # "train", "val", "test", ... or "all" where the dataset has no splits.
    # width, height: pixels, as the annotations say; None where they do not
    width: int | None = None
    height: int | None = None
    coco_id: int | None = None  # of the same picture in COCO, where a file or the picture's name says so


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

    sent_id: int | str
    ref_id: int | str
    image_id: ImageId
    text: str
    split: str
    target_xywh: Xywh
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class BoxAnnotation:
    """A labelled box of an image (COCO instances, Visual Genome objects), xywh in pixels.

    A crowd's box is around several things that are not told apart.
    """

    image_id: ImageId
    label: str
    xywh: Xywh
    attributes: tuple[str, ...] = ()
    is_crowd: bool = False


class GoldObject(NamedTuple):
    """An object of a `GoldGraph`: xywh in pixels; the name is "" where the publisher gives none."""

    name: str
    xywh: Xywh
    attributes: tuple[str, ...]


class GoldRelation(NamedTuple):
    """A relation of a `GoldGraph`; subject and object are positions in its `objects`."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, slots=True)
class GoldGraph:
    """The scene graph that people annotated for an image (Visual Genome).

    Names, attributes and predicates are as the annotators wrote them ("ON", "parked on"), without surrounding
    white space.
    """

    objects: tuple[GoldObject, ...]
    relations: tuple[GoldRelation, ...]


# ---- rows of one annotation file, with the publisher's own image ids --------------------------------


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that the annotation file `listed_in` lists with an id; None is what the file does not say."""

    image_id: ImageId
    file_name: str | None  # perhaps with directories
    split: str | None
    width: int | None  # pixels
    height: int | None
    listed_in: str
    coco_id: int | None = None  # of the same picture in COCO


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that an annotation file knows by its name alone, which may be relative to `directory`."""

    name: str
    directory: str
    split: str | None
    width: int | None = None
    height: int | None = None


class CaptionRow(NamedTuple):
    """A caption or phrase; of its image at most one of `image_id` and `image_name` is given."""

    number: int | str  # of the line or row; "FILE:NUMBER" stands for a `text_id` that the file does not give
    text: str  # not empty, without surrounding white space
    text_id: int | str | None = None
    image_id: ImageId | None = None
    image_name: str | None = None
    split: str | None = None  # where it is not the file's


@dataclass(frozen=True, slots=True)
class BoxRow:
    """A labelled box; `box_id` is unique within its image, `xywh` in pixels, the label "" if unknown."""

    box_id: int | str
    image_id: ImageId
    label: str
    xywh: Xywh
    attributes: tuple[str, ...] = ()
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class SceneGraphRow:
    """Annotated scene graph of an image; its `relations` are between positions in `boxes`."""

    image_id: ImageId
    boxes: list[BoxRow]
    relations: list[GoldRelation]


@dataclass(frozen=True, slots=True)
class AnswerRow:
    answers: tuple[str, ...]
    question_type: str = ""
    answer_type: str = ""
    image_id: ImageId | None = None


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question; `answers` is None where another file gives them."""

    question_id: int | str
    image_id: ImageId
    question: str
    answers: AnswerRow | None
    split: str | None = None  # where the row says so; else the file's


class Target(NamedTuple):
    """The box of a referred object, and its image's size in pixels, 0 where unknown."""

    xywh: Xywh
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class RefRow:
    """One referred object; `sentences` are (sent_id, text)."""

    ref_id: int | str
    target: Target | None  # None where it is the `BoxRow` of `box_id` in another file
    image_id: ImageId
    split: str
    sentences: tuple[tuple[int | str, str], ...]
    box_id: int | str = ""


@dataclass(slots=True)
class Content:
    """What one annotation file holds."""

    images: dict[ImageId, ListedImage] = field(default_factory=dict)  # by id
    named: list[NamedImage] = field(default_factory=list)  # each once
    captions: Iterable[CaptionRow] = ()  # an iterator where a file holds millions: then it is read once
    boxes: list[BoxRow] = field(default_factory=list)
    graphs: list[SceneGraphRow] = field(default_factory=list)
    questions: list[QuestionRow] = field(default_factory=list)
    answers: dict[int | str, AnswerRow] = field(default_factory=dict)  # by question id
    refs: list[RefRow] = field(default_factory=list)
    split: str | None = None  # that the content states
