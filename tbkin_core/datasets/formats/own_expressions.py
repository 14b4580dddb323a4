"""Referring expressions as people write them down: JSON lines, a JSON list, or a table with a header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tbkin_core.datasets.formats.base import Candidate, Format, Holds, set_named
from tbkin_core.datasets.formats.own_questions import TABLES
from tbkin_core.datasets.formats.vqa import first_of
from tbkin_core.datasets.reading import (
    Source,
    are_shares,
    as_box,
    as_id,
    as_pixels,
    as_text,
    is_small,
    malformed,
    type_name,
)
from tbkin_core.datasets.records import CaptionRow, Content, ImageId, NamedImage, RefRow, Target
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.errors import DataError

SHAPE = '{"image": "dog.jpg", "text": "the dog on the left", "x1": 10, "y1": 20, "x2": 110, "y2": 90}'
"""A line that is read; x, y, w, h may stand in the place of the corners, "split" is train, val or test."""

_IMAGE = ("image", "img_path", "file_name")
_TEXT = ("text", "expression", "phrase", "sentence", "sent")
# Names of a box's four numbers, and what they are.
_SIDES = {
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "width", "height"): "xywh",
}
# Names of a box in one piece; COCO has a corner and a size in its `bbox`, others have two corners there.
_BOX = {"xyxy": "xyxy", "xywh": "xywh", "box": "", "bbox": ""}
# Of fewer boxes that rule a reading out, each may be a slip.
_LEAST_SHARE = 0.05
_MOST_PICTURES = 1000  # that are opened for their size, to tell the two readings apart


class _Box(NamedTuple):
    numbers: tuple[float, ...]  # four, or none where the row has no four numbers
    form: str  # "xyxy", "xywh", or "" where no name says which


class _Line(NamedTuple):
    """A row with one box; `size` is the image's in pixels, as the row gives it."""

    subject: str
    row_id: ImageId
    ref_id: ImageId
    image: ImageId
    text: str
    split: str
    box: _Box
    size: tuple[int | None, int | None]


def read_expressions(source: Source) -> Content:
    """Expressions of rows with an image, a text and a box in pixels; a row without a box is a caption.

    Whether four numbers without names are two corners or a corner and a size is told from all rows together.

    Raises:
        DataError: Both readings of the boxes fit, or neither does; they are shares of the image.
    """
    lines: list[_Line] = []
    captions: list[CaptionRow] = []
    named: dict[str, NamedImage] = {}
    seen: set[ImageId] = set()
    counts = {"several": 0, "none": 0}
    for number, item in _rows(source):
        subject = f"{'entry' if source.file.path.suffix.lower() == '.json' else 'line'} {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        image, text = as_id(first_of(item, _IMAGE)), source.sentence(subject, first_of(item, _TEXT))
        if image is None or image == "" or not text:
            source.problem(subject, f"has no {'image' if text else 'text'} (skipped)")
            continue
        if as_text(item.get("question")):
            source.problem(subject, "has a question too (not read: give questions a file of their own)")
        split = normalise_split(as_text(item.get("split")) or "") or source.file.split
        boxes = _boxes(item)
        if boxes is None:
            by = {"image_name": image} if isinstance(image, str) else {"image_id": image}
            captions.append(CaptionRow(number, text, split=split, **by))
        elif len(boxes) != 1:
            counts["several" if boxes else "none"] += 1
        else:
            row_id = as_id(first_of(item, ("id", "sent_id")))
            row_id = f"{source.file.name}:{number}" if row_id is None else row_id
            if not source.admits(seen, row_id, subject):
                continue
            ref_id = as_id(item.get("ref_id"))
            ref_id = row_id if ref_id is None else ref_id
            lines.append(_Line(subject, row_id, ref_id, image, text, split or "all", boxes[0], _size(item)))
        if isinstance(image, str):
            named.setdefault(image, NamedImage(image, source.file.directory, split))
    note_left_out(source, **counts)
    return Content(named=list(named.values()), captions=captions, refs=list(_refs(source, lines)))


def note_left_out(source: Source, several: int, none: int) -> None:
    """Say how many expressions mean several objects, or none (as gRefCOCO's, He et al. 2023)."""
    if several or none:
        what = (
            f"{several} expressions with several targets and {none} with none are left out: a model chooses"
            " one region, and its accuracy is that on expressions with one target"
        )
        source.problem("", what)


def _rows(source: Source) -> Iterable[tuple[int, Any]]:
    suffix = source.file.path.suffix.lower()
    if suffix in TABLES:
        return source.table_rows()
    if suffix != ".json":
        return source.json_lines()
    content = source.json()
    if not isinstance(content, list):
        raise malformed(source.file.path, f"expected a list of expressions, got {type_name(content)}")
    return enumerate(content, start=1)


def _boxes(item: dict[str, Any]) -> list[_Box] | None:
    """Boxes of a row; None where nothing in it is called so."""
    for key, form in _BOX.items():
        if key in item:
            value = item[key]
            several = isinstance(value, list) and all(isinstance(each, list | dict) for each in value)
            given = value if several else [value]
            return [_of_sides(each) or _Box(_numbers(each), form) for each in given]
    found = _of_sides(item)
    return None if found is None else [found]


def _of_sides(item: Any) -> _Box | None:
    for names, form in _SIDES.items():
        if isinstance(item, dict) and all(name in item for name in names):
            return _Box(_numbers([item[name] for name in names]), form)
    return None


def _size(item: dict[str, Any]) -> tuple[int | None, int | None]:
    """Width and height of a row's image, unless these are its box's."""
    if {"x", "y"} <= item.keys() and "w" not in item and not item.keys() & _BOX.keys():
        return None, None
    width, height = (_numbers([item.get(name)] * 4)[:1] for name in ("width", "height"))
    return as_pixels(*width or [None]), as_pixels(*height or [None])


def _numbers(value: Any) -> tuple[float, ...]:
    """The four numbers of a list, or of a text such as "12, 30, 50, 40"; () where it has not four."""
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip(" ,;()[]"))
    if not isinstance(value, list) or len(value) != 4 or any(isinstance(each, bool) for each in value):
        return ()
    try:
        return tuple(map(float, value))
    except (TypeError, ValueError, OverflowError):
        return ()


# ---- two corners, or a corner and a size --------------------------------------------------------


def _refs(source: Source, lines: Sequence[_Line]) -> Iterator[RefRow]:
    boxes = [line for line in lines if line.box.numbers]
    shares = [line for line in boxes if are_shares(line.box.numbers)]
    if boxes and (len(shares) > 0.5 * len(boxes) or all(is_small(line.box.numbers) for line in boxes)):
        raise DataError(
            f"{source.file.path}: its boxes are shares of the image, as {_example(shares or boxes)}",
            hint="multiply them by the image's width and height: boxes are in pixels",
        )
    for line in shares:
        source.problem(line.subject, "has a box of shares of the image, where others are in pixels (skipped)")
    lines = [line for line in lines if not line.box.numbers or not are_shares(line.box.numbers)]
    nameless = [line for line in lines if line.box.numbers and not line.box.form]
    form = _form(source, nameless) if nameless else ""
    for line in lines:
        xywh, what = as_box(_as_xywh(line.box.numbers, line.box.form or form), *line.size)
        if what:
            source.problem(line.subject, what)
        if xywh is not None:
            width, height = line.size
            target = Target(xywh, width or 0, height or 0)
            yield RefRow(line.ref_id, target, line.image, line.split, ((line.row_id, line.text),))


def _as_xywh(numbers: Sequence[float], form: str) -> list[float]:
    if form != "xyxy" or not numbers:
        return list(numbers)
    x1, y1, x2, y2 = numbers
    return [x1, y1, x2 - x1, y2 - y1]


def _form(source: Source, lines: Sequence[_Line]) -> str:
    """What the numbers without names are: the reading that all images and boxes admit.

    A corner and a size rule the other reading out where the size is less than the corner; two corners do
    where they reach out of the image when added.
    """
    sizes: dict[ImageId, tuple[int, int] | None] = {}
    against = {"xyxy": 0, "xywh": 0}
    for line in lines:
        width, height = line.size
        if line.image not in sizes and len(sizes) < _MOST_PICTURES and (width is None or height is None):
            sizes[line.image] = picture_size(source.picture(line.image))
        size = (width, height) if width and height else sizes.get(line.image)
        for form in against:
            x, y, w, h = _as_xywh(line.box.numbers, form)
            inside = size is None or (x + w <= size[0] + 1 and y + h <= size[1] + 1)
            against[form] += not (w > 0 and h > 0 and inside)
    better, worse = sorted(against, key=lambda form: against[form])
    if against[worse] < max(1, _LEAST_SHARE * len(lines)) or 10 * against[better] > against[worse]:
        what = "may be two corners or a corner and a size"
        if against[better] * 2 > len(lines):
            what = "fit their images neither as two corners nor as a corner and a size"
        raise DataError(
            f"{source.file.path}: its boxes {what}, as {_example(lines)}",
            hint="name the numbers x1, y1, x2, y2 or x, y, w, h, or call the box xyxy or xywh",
        )
    return better


def _example(lines: Sequence[_Line]) -> str:
    line = next(line for line in lines if line.box.numbers)
    return f"that of {line.subject}: {', '.join(f'{number:g}' for number in line.box.numbers)}"


def picture_size(path: Path | None) -> tuple[int, int] | None:
    """Width and height of a picture as it is shown; None where there is none, or it cannot be read."""
    from PIL import Image  # most datasets need none of it

    if path is None or not path.is_file():  # to open a pipe would wait for ever
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # whatever is wrong with it, what reads its pixels tells
        return None
    return (height, width) if turned else (width, height)


def _has_expressions(file: Candidate) -> bool:
    if file.suffix in TABLES:
        keys = set(file.header)
    else:
        keys = set(re.findall(r'"(\w+)"\s*:', file.ends))
        if file.suffix == ".json" and (not file.ends.lstrip().startswith("[") or "regions" in keys):
            return False
    sides = any(keys.issuperset(names) for names in _SIDES)
    asks = "question" in keys and bool({"answer", "answers"} & keys)
    return bool(keys & {*_IMAGE} and keys & {*_TEXT} and (keys & {*_BOX} or sides)) and not asks


EXPRESSION_LINES = Format(
    name="own-expressions",
    layout="expressions",
    holds=Holds.IMAGES | Holds.CAPTIONS | Holds.EXPRESSIONS,
    read=read_expressions,
    looked_for="lines of image, text and box",
    suffixes=frozenset({".jsonl", ".ndjson", ".json"}) | TABLES,
    content=_has_expressions,
    version=lambda file: set_named(file, is_part=True),
)
