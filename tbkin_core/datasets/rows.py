"""What the formats' readers return: rows of one annotation file, with the publisher's own image ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tbkin_core.datasets.records import ImageId

Xywh = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that an annotation file lists with an id.

    Attributes:
        image_id: The publisher's.
        file_name: Its file, perhaps with directories; None where the file gives none.
        split: Of the image; None where the file has none.
        width: Pixels; None where the file does not say.
        height: Pixels, likewise.
        listed_in: Name of the annotation file.
    """

    image_id: ImageId
    file_name: str | None
    split: str | None
    width: int | None
    height: int | None
    listed_in: str


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that an annotation file knows by its name alone, which may be relative to `directory`."""

    name: str
    directory: str
    split: str | None
    width: int | None = None
    height: int | None = None


class CaptionRow(NamedTuple):
    """A caption or phrase; of its image at most one of `image_id` and `image_name` is given.

    Attributes:
        number: Of the line or row; "FILE:NUMBER" stands for a `text_id` that the file does not give.
        text: Not empty, without surrounding white space.
        text_id: The publisher's.
        image_id: The publisher's.
        image_name: Of the image's file.
        split: Where it is not the file's.
    """

    number: int | str
    text: str
    text_id: int | str | None = None
    image_id: ImageId | None = None
    image_name: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class BoxRow:
    """A labelled box; `box_id` is unique within its image, `xywh` in pixels, the label "" if unknown."""

    box_id: int | str
    image_id: ImageId
    label: str
    xywh: Xywh
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SceneGraphRow:
    """Annotated scene graph of an image; `relations` are (subject's box_id, predicate, object's box_id)."""

    image_id: ImageId
    boxes: list[BoxRow]
    relations: list[tuple[int | str, str, int | str]]


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


@dataclass(frozen=True, slots=True)
class RefRow:
    """One referred object: the `BoxRow` of `box_id`; `sentences` are (sent_id, text)."""

    ref_id: int
    box_id: int | str
    image_id: ImageId
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(slots=True)
class Content:
    """What one annotation file holds.

    Attributes:
        images: Images that the file lists, by id.
        named: Images that it knows by name, each once.
        captions: May be an iterator, where a file holds millions: then it is read once.
        boxes: Labelled boxes.
        graphs: Annotated scene graphs.
        questions: With their answers, where the same file gives them.
        answers: By question id.
        refs: Referred objects.
        split: That the file's content states.
    """

    images: Mapping[ImageId, ListedImage] = field(default_factory=dict)
    named: list[NamedImage] = field(default_factory=list)
    captions: Iterable[CaptionRow] = ()
    boxes: list[BoxRow] = field(default_factory=list)
    graphs: list[SceneGraphRow] = field(default_factory=list)
    questions: list[QuestionRow] = field(default_factory=list)
    answers: dict[int | str, AnswerRow] = field(default_factory=dict)
    refs: list[RefRow] = field(default_factory=list)
    split: str | None = None
