"""Readers of the publishers' formats: one annotation file -> rows, with the publisher's own image ids.

What cannot be used is left out and counted as a problem of the file; a file that is not what it should be as
a whole is a DataError.
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np

from tbkin_core.datasets.layout import normalise_split
from tbkin_core.datasets.reading import Source, Xywh, as_box, as_id, as_pixels, as_text, type_name
from tbkin_core.datasets.records import ImageId
from tbkin_core.datasets.unpickle import load_plain_pickle
from tbkin_core.errors import DataError


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image as an annotation file lists it; `split` is the file's, None where it has none."""

    image_id: ImageId
    file_name: str | None
    split: str | None
    width: int | None
    height: int | None
    listed_in: str


@dataclass(frozen=True, slots=True)
class CaptionRow:
    text_id: int | str | None
    image_id: ImageId | None
    text: str


@dataclass(frozen=True, slots=True)
class BoxRow:
    """`box_id` is the COCO annotation id or the Visual Genome object id; `xywh` in pixels."""

    box_id: int | str
    image_id: ImageId
    label: str
    xywh: Xywh
    attributes: tuple[str, ...] = ()


# Number of a line or row in its file, name of its image (None for a text alone), text
NamedText = tuple[int, str | None, str]


@dataclass(frozen=True, slots=True)
class SplitImage:
    """An image of Karpathy's files; `image_id` is COCO's, None in the Flickr files, which give names only."""

    image_id: ImageId | None
    file_name: str
    split: str
    captions: tuple[CaptionRow, ...]


@dataclass(frozen=True, slots=True)
class SceneGraphRow:
    """Annotated scene graph of an image; `relations` are (subject's box_id, predicate, object's box_id)."""

    image_id: ImageId
    boxes: list[BoxRow]
    relations: list[tuple[int | str, str, int | str]]


@dataclass(slots=True)
class CocoContent:
    """What one COCO file holds; `boxes` by annotation id."""

    images: dict[ImageId, ListedImage] = field(default_factory=dict)
    captions: list[CaptionRow] = field(default_factory=list)
    boxes: dict[int | str, BoxRow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuestionRow:
    question_id: int | str
    image_id: ImageId
    question: str
    answers: AnswerRow | None


@dataclass(frozen=True, slots=True)
class AnswerRow:
    answers: tuple[str, ...]
    question_type: str
    answer_type: str
    image_id: ImageId | None = None


@dataclass(frozen=True, slots=True)
class RefRow:
    """One referred object; `sentences` are (sent_id, text)."""

    ref_id: int
    ann_id: int | str
    image_id: ImageId
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class NpzRow:
    """A bottom-up-attention file: `image_name` is its name without ".npz"."""

    image_name: str
    width: int | None
    height: int | None
    texts: tuple[str, ...]


# --- COCO ------------------------------------------------------------------------------------------------


def read_coco_captions(source: Source) -> CocoContent:
    """Images and captions of a COCO captions file (Chen et al. 2015)."""
    content = source.json()
    coco = CocoContent(images=_coco_images(source, content))
    seen: set[ImageId] = set()
    for position, item in source.objects(
        source.listed(content, "annotations", not coco.images), "annotation"
    ):
        text_id = as_id(item.get("id"))
        subject = f"annotation {position if text_id is None else text_id}"
        text = source.sentence(subject, item.get("caption"))
        image_id = as_id(item.get("image_id"))
        if "caption" not in item:
            source.problem(subject, "has no caption (skipped)")
        elif text is None:
            source.problem(subject, "has a caption that is no text (skipped)")
        elif not text:
            source.problem(subject, "has an empty caption (skipped)")
        elif image_id is None:
            source.problem(subject, "has no image_id (skipped)")
        elif text_id is not None and text_id in seen:
            source.problem(subject, "has an id used before (skipped)")
        else:
            if text_id is not None:
                seen.add(text_id)
            coco.captions.append(CaptionRow(text_id, image_id, text))
    return coco


def read_coco_instances(source: Source) -> CocoContent:
    """Images and boxes of a COCO instances file (Lin et al. 2014), or a RefCOCO `instances.json`."""

    def without_segmentation(item: dict[str, Any]) -> dict[str, Any]:
        # Nine tenths of the official files are polygons: dropped while parsing, they never pile up in memory.
        item.pop("segmentation", None)
        return item

    content = source.json(without_segmentation)
    coco = CocoContent(images=_coco_images(source, content))
    categories: dict[ImageId, str] = {}
    for _, item in source.objects(source.listed(content, "categories", required=False), "category"):
        category_id, name = as_id(item.get("id")), as_text(item.get("name"))
        if category_id is not None and name:
            categories[category_id] = name
    for position, item in source.objects(
        source.listed(content, "annotations", not coco.images), "annotation"
    ):
        box_id = as_id(item.get("id"))
        subject = f"annotation {position if box_id is None else box_id}"
        image_id = as_id(item.get("image_id"))
        if image_id is None:
            source.problem(subject, "has no image_id (skipped)")
            continue
        image = coco.images.get(image_id)
        size = (image.width, image.height) if image else (None, None)
        xywh, what = as_box(item.get("bbox"), *size)
        if what:
            source.problem(subject, what)
        if xywh is None:
            continue
        category_id = as_id(item.get("category_id"))
        label = "" if category_id is None else categories.get(category_id, "")
        if not label:
            source.problem(subject, "has no known category (kept without a label)")
        box_id = f"at {position}" if box_id is None else box_id
        if box_id in coco.boxes:
            source.problem(subject, "has an id used before (skipped)")
            continue
        coco.boxes[box_id] = BoxRow(box_id, image_id, label, xywh)
    return coco


def _coco_images(source: Source, content: Any) -> dict[ImageId, ListedImage]:
    images: dict[ImageId, ListedImage] = {}
    for position, item in source.objects(source.listed(content, "images", required=False), "image"):
        image_id = as_id(item.get("id"))
        if image_id is None:
            source.problem(f"image at position {position}", "has no id (skipped)")
        elif image_id in images:
            source.problem(f"image {image_id}", "is listed twice (first kept)")
        else:
            images[image_id] = _listed_image(source, image_id, item.get("file_name"), item)
    return images


def _listed_image(source: Source, image_id: ImageId, file_name: Any, item: dict[str, Any]) -> ListedImage:
    name = as_text(file_name) or None
    if name is None and file_name is not None:
        source.problem(f"image {image_id}", "has a file name that is no text (ignored)")
    width, height = as_pixels(item.get("width")), as_pixels(item.get("height"))
    return ListedImage(image_id, name, source.file.split, width, height, source.file.name)


# --- VQA -------------------------------------------------------------------------------------------------


def read_questions(source: Source) -> tuple[str | None, list[QuestionRow]]:
    """Split that the file states (or None) and questions of a VQA questions file (Antol et al. 2015)."""
    content = _with_key(source.json(), "questions")
    key = "questions" if not isinstance(content, dict) or "questions" in content else "annotations"
    rows: list[QuestionRow] = []
    seen: set[ImageId] = set()
    for position, item in source.objects(source.listed(content, key), "question"):
        question_id, image_id = as_id(item.get("question_id")), as_id(item.get("image_id"))
        subject = f"question {position if question_id is None else question_id}"
        text = source.sentence(subject, item.get("question"))
        if question_id is None:
            source.problem(f"question at position {position}", "has no question_id (skipped)")
        elif image_id is None:
            source.problem(subject, "has no image_id (skipped)")
        elif not text:
            source.problem(subject, "has no text (skipped)")
        elif question_id in seen:
            source.problem(subject, "has a question_id used before (skipped)")
        else:
            seen.add(question_id)
            told = any(key in item for key in ("answers", _MULTIPLE_CHOICE, "answer"))
            inline = _answers(source, subject, item) if told else None
            rows.append(QuestionRow(question_id, image_id, text, inline))
    return _stated_split(content), rows


def read_answers(source: Source) -> tuple[str | None, dict[int | str, AnswerRow]]:
    """Split that the file states (or None) and answers by question id of a VQA annotations file."""

    def answer_text(item: dict[str, Any]) -> Any:
        # Ten of {"answer": ..., "answer_confidence": ..., "answer_id": ...} a question: millions in VQA v2.
        return item["answer"] if "answer" in item and "question_id" not in item else item

    content = _with_key(source.json(answer_text), "annotations")
    rows: dict[int | str, AnswerRow] = {}
    for position, item in source.objects(source.listed(content, "annotations"), "annotation"):
        question_id = as_id(item.get("question_id"))
        if question_id is None:
            source.problem(f"annotation at position {position}", "has no question_id (skipped)")
        elif question_id in rows:
            source.problem(f"question {question_id}", "is annotated twice (first kept)")
        else:
            rows[question_id] = _answers(source, f"question {question_id}", item)
    return _stated_split(content), rows


def _with_key(content: Any, key: str) -> Any:
    """The content of a VQA file; of a file that is the list alone, as if it were under its key."""
    return {key: content} if isinstance(content, list) else content


_MULTIPLE_CHOICE = "multiple_choice_answer"


def _answers(source: Source, subject: str, item: dict[str, Any]) -> AnswerRow:
    listed = item.get("answers")
    if not isinstance(listed, list) or not listed:
        listed = [item.get(_MULTIPLE_CHOICE, item.get("answer"))]
    answers = []
    for answer in listed:
        value = answer.get("answer") if isinstance(answer, dict) else answer
        if isinstance(value, int | float):
            value = str(value)
        text = as_text(value)
        if text:
            answers.append(sys.intern(text))
        else:
            source.problem(subject, "has an answer without text (left out)")
    question_type, answer_type = as_text(item.get("question_type")), as_text(item.get("answer_type"))
    return AnswerRow(tuple(answers), question_type or "", answer_type or "", as_id(item.get("image_id")))


def _stated_split(content: Any) -> str | None:
    stated = as_text(content.get("data_subtype")) if isinstance(content, dict) else None
    return normalise_split(stated) if stated else None


# --- RefCOCO, RefCOCO+, RefCOCOg -------------------------------------------------------------------------


def read_refs(source: Source) -> list[RefRow]:
    """Referred objects of a `refs(*).p` (Yu et al. 2016; Mao et al. 2016); the pickle cannot run code."""
    content = load_plain_pickle(source.file.path)
    if not isinstance(content, list):
        raise DataError(
            f"{source.file.path}: expected a list of refs, got {type_name(content)}",
            hint="the RefCOCO family's refs(unc).p, refs(umd).p and refs(google).p are lists of dicts",
        )
    rows: list[RefRow] = []
    seen: set[int] = set()
    seen_sentences: set[int] = set()
    for position, item in source.objects(content, "ref"):
        ref_id, ann_id, image_id = (as_id(item.get(key)) for key in ("ref_id", "ann_id", "image_id"))
        subject = f"ref {position if ref_id is None else ref_id}"
        if not isinstance(ref_id, int) or ann_id is None or image_id is None:
            source.problem(subject, "lacks ref_id, ann_id or image_id (skipped)")
            continue
        if ref_id in seen:
            source.problem(subject, "has a ref_id used before (skipped)")
            continue
        seen.add(ref_id)
        sentences = []
        for _, sentence in source.objects(item.get("sentences"), f"sentence of {subject}"):
            sent_id = as_id(sentence.get("sent_id"))
            sentence_subject = subject if sent_id is None else f"sentence {sent_id}"
            text = source.sentence(sentence_subject, as_text(sentence.get("sent")) or sentence.get("raw"))
            if not isinstance(sent_id, int) or not text:
                source.problem(subject, "has a sentence without sent_id or text (skipped)")
            elif sent_id in seen_sentences:
                source.problem(f"sentence {sent_id}", "has a sent_id used before (skipped)")
            else:
                seen_sentences.add(sent_id)
                sentences.append((sent_id, text))
        if not sentences:
            source.problem(subject, "has no sentences (skipped)")
            continue
        split = as_text(item.get("split"))
        rows.append(
            RefRow(ref_id, ann_id, image_id, normalise_split(split) if split else "all", tuple(sentences))
        )
    return rows


# --- JSON lines ------------------------------------------------------------------------------------------


def read_image_texts(source: Source) -> list[NamedText]:
    """Texts of the lines `{"image": ..., "text": ...}`, with the line's number."""
    rows: list[NamedText] = []
    for number, item in source.json_lines():
        subject = f"line {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        value = item.get("text", item.get("caption"))
        text = source.sentence(subject, value)
        if text is None:
            source.problem(
                subject, "has no text (skipped)" if value is None else "has a text that is none (skipped)"
            )
        elif not text:
            source.problem(subject, "has an empty text (skipped)")
        else:
            image = item.get("image")
            name = as_text(image) or None
            if image is not None and name is None:
                source.problem(subject, "has an image that is no file name (text kept)")
            rows.append((number, name if name is None else sys.intern(name), text))
    return rows


# --- Karpathy's splits -----------------------------------------------------------------------------------


def read_karpathy(source: Source) -> list[SplitImage]:
    """Images and sentences of `dataset_coco.json`, `dataset_flickr8k.json` or `dataset_flickr30k.json`.

    Karpathy and Fei-Fei 2015. "restval", the part of COCO's val2014 that everyone trains on, is "train".
    """

    def without_tokens(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("tokens", None)  # half of the file, and a tokenisation that no one uses today
        return item

    rows: list[SplitImage] = []
    content = source.json(without_tokens)
    seen: set[ImageId] = set()
    seen_names: set[str] = set()
    seen_sentences: set[ImageId] = set()
    for position, item in source.objects(source.listed(content, "images"), "image"):
        image_id, name = as_id(item.get("cocoid")), as_text(item.get("filename"))
        number = as_id(item.get("imgid")) if image_id is None else image_id
        subject = f"image {position if number is None else number}"
        if not name:
            source.problem(subject, "has no filename (skipped)")
            continue
        directory = as_text(item.get("filepath"))
        name = f"{directory}/{name}" if directory else name
        if name in seen_names or (number is not None and number in seen):
            source.problem(subject, "is listed twice (first kept)")
            continue
        seen_names.add(name)
        if number is not None:
            seen.add(number)
        split = as_text(item.get("split"))
        if not split:
            source.problem(subject, "has no split (counted as train)")
        captions: list[CaptionRow] = []
        for place, sentence in source.objects(item.get("sentences"), f"{subject}: sentence"):
            text_id = as_id(sentence.get("sentid"))
            sentence_subject = f"{subject}: sentence {place}" if text_id is None else f"sentence {text_id}"
            text = source.sentence(sentence_subject, sentence.get("raw"))
            if not text:
                source.problem(sentence_subject, "has no text (skipped)")
            elif text_id is not None and text_id in seen_sentences:
                source.problem(sentence_subject, "has a sentid used before (skipped)")
            else:
                if text_id is not None:
                    seen_sentences.add(text_id)
                captions.append(CaptionRow(text_id, image_id, text))
        if not captions:
            source.problem(subject, "has no sentences (kept without captions)")
        split = normalise_split(split) if split else "train"
        rows.append(SplitImage(image_id, name, "train" if split == "restval" else split, tuple(captions)))
    return rows


# --- Flickr8k, Flickr30k ---------------------------------------------------------------------------------

_TABLE_HEADER = re.compile(r'\s*"?image(?:_name)?"?\s*([,|]).*(?:caption|comment)"?\s*$', re.IGNORECASE)


def read_flickr(source: Source) -> list[NamedText]:
    """Captions of a token file or of Kaggle's table, with the line's number and the image's name.

    Token files (Hodosh et al. 2013; Young et al. 2014) have lines `1000092795.jpg#0<TAB>caption`; the tables
    `image,caption` or `image_name| comment_number| comment`, after a header that says so.

    Raises:
        DataError: Unreadable, or no line has the form.
    """
    rows: list[NamedText] = []
    seen: set[str] = set()
    separator: str | None = None
    fault = 0
    for number, line in source.lines():
        header = _TABLE_HEADER.match(line) if not rows and not fault and separator is None else None
        if header:
            separator = header.group(1)
            continue
        name, mark, text = _table_row(line, separator) if separator else _token_row(line)
        if not name or text is None:
            fault = fault or number
            source.problem(f"line {number}", "is no image name and caption (skipped)")
            continue
        if mark and f"{name}#{mark}" in seen:
            source.problem(f"line {number}", "numbers a caption as one before (skipped)")
            continue
        caption = source.sentence(f"line {number}", text)
        if not caption:
            source.problem(f"line {number}", "has an empty caption (skipped)")
            continue
        if mark:
            seen.add(f"{name}#{mark}")
        rows.append((number, sys.intern(name), caption))
    if fault and not rows:
        raise DataError(
            f"{source.file.path}: no line is an image name and a caption, from line {fault} on",
            hint="expected lines such as `1000092795.jpg#0<TAB>A caption` or a header `image,caption`",
        )
    return rows


def _token_row(line: str) -> tuple[str, str, str | None]:
    name, tab, text = line.partition("\t")
    name, _, mark = name.rpartition("#")
    return name.strip(), mark.strip(), text if tab else None


def _table_row(line: str, separator: str) -> tuple[str, str, str | None]:
    # One line at a time, not as the csv module reads: a quotation mark without its second would swallow the
    # rest of the file.
    name, comma, text = line.partition(separator)
    mark = ""
    if separator == "|":
        mark, comma, text = text.partition(separator)
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return name.strip().strip('"'), mark.strip(), text if comma else None


# --- Conceptual Captions, SBU ----------------------------------------------------------------------------

_URL = re.compile(r"\s*(?:https?|ftp)://\S+\s*$", re.IGNORECASE)


def read_conceptual(source: Source) -> Iterator[tuple[int, str]]:
    """Row number (from 0, blank lines and a header aside) and caption of each line `caption<TAB>url`.

    One at a time, for there are millions. Conceptual Captions 3M (Sharma et al. 2018), also with further
    columns (image labels), and 12M (Changpinyo et al. 2021), which puts the url first.

    Raises:
        DataError: Unreadable, or no line has the form.
    """
    fault, good, row = 0, False, -1
    for number, line in source.lines():
        columns = line.split("\t")
        if row < 0 and {column.strip().lower() for column in columns} >= {"caption", "url"}:
            continue
        row += 1
        subject = f"line {number}"
        if len(columns) < 2 or not (_URL.match(columns[0]) or _URL.match(columns[1])):
            fault = fault or number
            source.problem(subject, "is no caption, tab and url (skipped)")
            continue
        good = True
        text = source.sentence(subject, columns[0] if _URL.match(columns[1]) else columns[1])
        if text:
            yield row, text
        else:
            source.problem(subject, "has an empty caption (skipped)")
    if fault and not good:
        raise DataError(
            f"{source.file.path}: no line is a caption, a tab and a url, from line {fault} on",
            hint="expected Conceptual Captions as published, such as Train_GCC-training.tsv",
        )


def read_sbu(source: Source) -> list[tuple[int, str]]:
    """Row number (from 0) and caption of an SBU captions file (Ordonez et al. 2011)."""
    content = source.json()
    captions, urls = source.listed(content, "captions"), source.listed(content, "image_urls", required=False)
    if not isinstance(content.get("image_urls"), list):
        source.problem("", "has no image_urls (captions kept)")
    elif len(urls) != len(captions):
        first = min(len(urls), len(captions))
        source.problem(
            f"row {first}",
            f"has no {'url' if len(urls) < len(captions) else 'caption'}: {len(captions)} captions and "
            f"{len(urls)} urls (captions kept)",
        )
    content.clear()  # a million urls
    rows: list[tuple[int, str]] = []
    for row, value in enumerate(captions):
        text = source.sentence(f"row {row}", value)
        if text:
            rows.append((row, text))
        elif text is None:
            source.problem(f"row {row}", "has a caption that is no text (skipped)")
        else:
            source.problem(f"row {row}", "has an empty caption (skipped)")
    return rows


# --- Visual Genome ---------------------------------------------------------------------------------------


def read_genome_images(source: Source) -> list[ListedImage]:
    """Images of `image_data.json` (Krishna et al. 2017), versions 1 to 1.4."""
    rows: dict[ImageId, ListedImage] = {}
    for image_id, item in _genome_entries(source):
        if image_id in rows:
            source.problem(f"image {image_id}", "is listed twice (first kept)")
            continue
        url = as_text(item.get("url"))
        # The last two parts: VG_100K/2.jpg and VG_100K_2/1.jpg, as the archives unpack.
        try:
            name = "/".join(urlparse(url).path.strip("/").split("/")[-2:]) if url else None
        except ValueError:
            name = None
        rows[image_id] = _listed_image(source, image_id, item.get("file_name", name), item)
    return list(rows.values())


def read_regions(source: Source) -> list[CaptionRow]:
    """Phrases of `region_descriptions.json` as captions."""
    rows: list[CaptionRow] = []
    seen: set[ImageId] = set()
    for image_id, entry in _genome_entries(source):
        for position, item in source.objects(entry.get("regions"), f"image {image_id}: region"):
            region_id = as_id(item.get("region_id", item.get("id")))
            subject = f"image {image_id}: region {position if region_id is None else region_id}"
            text = source.sentence(subject, item.get("phrase"))
            if not text:
                source.problem(subject, "has no phrase (skipped)")
            elif region_id is not None and region_id in seen:
                source.problem(subject, "has an id used before (skipped)")
            else:
                if region_id is not None:
                    seen.add(region_id)
                rows.append(CaptionRow(region_id, image_id, text))
    return rows


def read_genome_objects(source: Source, list_key: str, sizes: dict[ImageId, ListedImage]) -> list[BoxRow]:
    """Objects of `objects.json` or `attributes.json`.

    Args:
        list_key: "objects", or "attributes" in attributes.json.
        sizes: Images of image_data.json, to clip the boxes with.
    """
    return [
        row
        for image_id, entry in _genome_entries(source)
        for row in _genome_boxes(source, image_id, entry, list_key, sizes)
    ]


def read_scene_graphs(source: Source, sizes: dict[ImageId, ListedImage]) -> list[SceneGraphRow]:
    """Objects and relations of each image of `scene_graphs.json`, each image once.

    A relation with an object that is unknown or was left out is left out, and counted.
    """
    rows: dict[ImageId, SceneGraphRow] = {}
    for image_id, entry in _genome_entries(source):
        if image_id in rows:
            source.problem(f"image {image_id}", "has a second scene graph (skipped)")
            continue
        boxes = _genome_boxes(source, image_id, entry, "objects", sizes)
        known = {box.box_id for box in boxes}
        relations: list[tuple[int | str, str, int | str]] = []
        listed = entry.get("relationships")
        if listed is not None and not isinstance(listed, list):
            source.problem(f"image {image_id}", "has relationships that are no list (left out)")
            listed = None
        seen: set[ImageId] = set()
        for position, item in enumerate(listed or ()):
            if not isinstance(item, _Relationship):
                subject = f"image {image_id}: relationship at position {position}"
                source.problem(subject, "lacks subject_id, predicate or object_id (skipped)")
                continue
            relation_id = item.relation_id
            subject = f"image {image_id}: relationship {position if relation_id is None else relation_id}"
            if relation_id is not None and relation_id in seen:
                source.problem(subject, "has an id used before (skipped)")
            elif not item.predicate:
                source.problem(subject, "has no predicate (skipped)")
            elif item.subject_id not in known or item.object_id not in known:
                source.problem(subject, "relates an object that is not among the image's (skipped)")
            else:
                if relation_id is not None:
                    seen.add(relation_id)
                relations.append((item.subject_id, item.predicate, item.object_id))
        rows[image_id] = SceneGraphRow(image_id, boxes, relations)
    return list(rows.values())


class _Relationship(NamedTuple):
    relation_id: ImageId | None
    subject_id: ImageId
    predicate: str
    object_id: ImageId


def _genome_boxes(
    source: Source,
    image_id: ImageId,
    entry: dict[str, Any],
    list_key: str,
    sizes: dict[ImageId, ListedImage],
) -> list[BoxRow]:
    rows: list[BoxRow] = []
    image = sizes.get(image_id)
    width = as_pixels(entry.get("width")) or (image.width if image else None)
    height = as_pixels(entry.get("height")) or (image.height if image else None)
    seen: set[ImageId] = set()
    for position, item in source.objects(entry.get(list_key), f"image {image_id}: object"):
        object_id = as_id(item.get("object_id", item.get("id")))
        subject = f"image {image_id}: object {position if object_id is None else object_id}"
        if object_id is not None and object_id in seen:
            source.problem(subject, "has an id used before (skipped)")
            continue
        object_id = f"at {position}" if object_id is None else object_id
        seen.add(object_id)
        xywh, what = as_box([item.get(key) for key in "xywh"], width, height)
        if what:
            source.problem(subject, what)
        if xywh is None:
            continue
        names = item.get("names", item.get("object_names", [item.get("name")]))
        label = next((name for name in _texts(names)), "")
        if not label:
            source.problem(subject, "has no name (kept without a label)")
        rows.append(BoxRow(object_id, image_id, label, xywh, tuple(_texts(item.get("attributes")))))
    return rows


def _genome_entries(source: Source) -> Iterator[tuple[ImageId, dict[str, Any]]]:
    def compact(item: dict[str, Any]) -> Any:
        item.pop("synsets", None)
        if "subject_id" in item and "object_id" in item:  # millions, so made small while parsing
            subject_id, object_id = as_id(item["subject_id"]), as_id(item["object_id"])
            if subject_id is not None and object_id is not None:
                predicate = sys.intern(as_text(item.get("predicate")) or "")
                return _Relationship(as_id(item.get("relationship_id")), subject_id, predicate, object_id)
        return item

    content = source.json(compact)
    if not isinstance(content, list):
        raise DataError(
            f"{source.file.path}: expected a list of images, got {type_name(content)}",
            hint="compare the file with the publisher's original",
        )
    for position, entry in source.objects(content, "image"):
        image_id = as_id(entry.get("image_id", entry.get("id")))
        if image_id is None:
            # Version 1 puts the image's id into its regions only.
            regions = entry.get("regions")
            first = (
                regions[0] if isinstance(regions, list) and regions and isinstance(regions[0], dict) else {}
            )
            image_id = as_id(first.get("image_id", first.get("image")))
        if image_id is None:
            source.problem(f"image at position {position}", "has no image_id (skipped)")
        else:
            yield image_id, entry


def _texts(values: Any) -> list[str]:
    return [text for value in (values if isinstance(values, list) else []) if (text := as_text(value))]


# --- Bottom-up attention ---------------------------------------------------------------------------------


_UNREADABLE_NPZ = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def read_npz(source: Source) -> NpzRow | None:
    """Size and captions of a bottom-up-attention file (Anderson et al. 2018); None, and a problem, if broken.

    Only the small arrays are read; the features are left to whoever imports them.
    """
    path, problems = source.file.path, source.problems
    where = str(PurePosixPath(source.file.name).parent)  # one line for the directory, not one for each file
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            if "x" not in names or not names & {"boxes", "bbox"}:
                problems.add(
                    where, path.name, "is no bottom-up-attention file: it lacks x or boxes (skipped)"
                )
                return None
            height, width = (
                _scalar(archive[key]) if key in names else None for key in ("image_h", "image_w")
            )
            texts: list[str] = []
            if "text" in names:
                try:
                    stored = np.atleast_1d(archive["text"])
                except ValueError:  # an array of objects, which only a pickle could restore
                    problems.add(where, path.name, "has pickled captions (not read)")
                else:
                    texts = _texts(stored.reshape(-1).tolist())
                    if len(texts) < stored.size:
                        problems.add(
                            where, path.name, "has an empty caption (skipped)", stored.size - len(texts)
                        )
    except _UNREADABLE_NPZ:
        problems.add(where, path.name, "cannot be read, perhaps cut short (skipped)")
        return None
    return NpzRow(path.name.removesuffix(".npz"), width, height, tuple(texts))


def _scalar(array: np.ndarray) -> int | None:
    return as_pixels(array.reshape(-1)[0].item()) if array.size else None
