"""Readers of the publishers' formats: one annotation file -> rows, with the publisher's own image ids.

What cannot be used is left out and counted as a problem of the file; a file that is not what it should be as
a whole is a DataError.
"""

from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
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
        text = as_text(item.get("caption"))
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
    content = source.json()
    key = "questions" if not isinstance(content, dict) or "questions" in content else "annotations"
    rows: list[QuestionRow] = []
    seen: set[ImageId] = set()
    for position, item in source.objects(source.listed(content, key), "question"):
        question_id, image_id = as_id(item.get("question_id")), as_id(item.get("image_id"))
        subject = f"question {position if question_id is None else question_id}"
        text = as_text(item.get("question"))
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
            inline = (
                _answers(source, subject, item) if "answers" in item or _MULTIPLE_CHOICE in item else None
            )
            rows.append(QuestionRow(question_id, image_id, text, inline))
    return _stated_split(content), rows


def read_answers(source: Source) -> tuple[str | None, dict[int | str, AnswerRow]]:
    """Split that the file states (or None) and answers by question id of a VQA annotations file."""

    def answer_text(item: dict[str, Any]) -> Any:
        # Ten of {"answer": ..., "answer_confidence": ..., "answer_id": ...} a question: millions in VQA v2.
        return item["answer"] if "answer" in item and "question_id" not in item else item

    content = source.json(answer_text)
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


_MULTIPLE_CHOICE = "multiple_choice_answer"


def _answers(source: Source, subject: str, item: dict[str, Any]) -> AnswerRow:
    listed = item.get("answers")
    if not isinstance(listed, list) or not listed:
        listed = [item.get(_MULTIPLE_CHOICE)]
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
    return AnswerRow(tuple(answers), question_type or "", answer_type or "")


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
            text = as_text(sentence.get("sent")) or as_text(sentence.get("raw"))
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


def read_image_texts(source: Source) -> list[tuple[int, str | None, str]]:
    """Line number, image name (or None) and text of each line of `{"image": ..., "text": ...}`."""
    rows: list[tuple[int, str | None, str]] = []
    for number, item in source.json_lines():
        subject = f"line {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        value = item.get("text", item.get("caption"))
        text = as_text(value)
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
            rows.append((number, name, text))
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
            text = as_text(item.get("phrase"))
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
    """Objects of `scene_graphs.json`, `objects.json` or `attributes.json`.

    Args:
        list_key: "objects", or "attributes" in attributes.json.
        sizes: Images of image_data.json, to clip the boxes with.
    """
    rows: list[BoxRow] = []
    for image_id, entry in _genome_entries(source):
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
    def without_synsets(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("synsets", None)
        item.pop("relationships", None)
        return item

    content = source.json(without_synsets)
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
