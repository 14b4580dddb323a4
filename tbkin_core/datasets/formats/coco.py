"""COCO: captions (Chen et al. 2015) and instances (Lin et al. 2014), each a file with its list of images."""

from __future__ import annotations

import re
from typing import Any

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.reading import Source, are_shares, as_box, as_id, as_pixels, as_text
from tbkin_core.datasets.records import BoxRow, CaptionRow, Content, ImageId, ListedImage
from tbkin_core.errors import DataError
from tbkin_core.support.console import shown


def read_captions(source: Source) -> Content:
    """Images and captions of a COCO captions file (Chen et al. 2015)."""
    content = source.json()
    images = _images(source, content)
    captions: list[CaptionRow] = []
    seen: set[ImageId] = set()
    annotations = source.items(content, "annotations", required=not images)
    for _, text_id, subject, item in source.objects(annotations, "annotation", "id"):
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
        elif source.admits(seen, text_id, subject):
            captions.append(CaptionRow(len(captions), text, text_id, image_id))
    return Content(images=images, captions=captions)


def read_instances(source: Source) -> Content:
    """Images and boxes of a COCO instances file (Lin et al. 2014), or a RefCOCO `instances.json`."""

    def without_segmentation(item: dict[str, Any]) -> dict[str, Any]:
        # Nine tenths of the official files are polygons: dropped while parsing, they never pile up in memory.
        item.pop("segmentation", None)
        return item

    content = source.json(without_segmentation)
    images = _images(source, content)
    categories: dict[ImageId, str] = {}
    listed = source.items(content, "categories", required=False)
    for _, category_id, _, item in source.objects(listed, "category", "id"):
        if category_id is not None and (name := as_text(item.get("name"))):
            categories[category_id] = name
    boxes: dict[int | str, BoxRow] = {}
    given: list[tuple[Any, int | None, int | None]] = []
    annotations = source.items(content, "annotations", required=not images)
    for position, box_id, subject, item in source.objects(annotations, "annotation", "id"):
        image_id = as_id(item.get("image_id"))
        if image_id is None:
            source.problem(subject, "has no image_id (skipped)")
            continue
        image = images.get(image_id)
        size = (image.width, image.height) if image else (None, None)
        given.append((item.get("bbox"), *size))
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
        if box_id in boxes:
            source.problem(subject, "has an id used before (skipped)")
            continue
        is_crowd = item.get("iscrowd") == 1
        boxes[box_id] = BoxRow(box_id, image_id, label, xywh, is_crowd=is_crowd)
    _refuse_other_forms(source, given)
    return Content(images=images, boxes=list(boxes.values()))


def _refuse_other_forms(source: Source, given: list[tuple[Any, int | None, int | None]]) -> None:
    """DataError where the boxes of a file, each with its image's size, are not x, y, width, height in pixels.

    That they are shares of the image, or two corners, no single box shows, but all together do.
    """
    shares = corners = beyond = sized = 0
    for box, width, height in given:
        try:
            x, y, w, h = map(float, box)
        except (TypeError, ValueError, OverflowError):
            continue
        shares += are_shares((x, y, w, h))
        if width and height:
            sized += 1
            beyond += x + w > width + 1 or y + h > height + 1
            corners += x < w <= width + 1 and y < h <= height + 1
    what = ""
    if shares > 0.5 * len(given):
        what = "shares of the image"
    elif beyond >= max(10, 0.05 * sized) and corners >= 0.99 * sized:
        what = "two corners, x1, y1, x2, y2"
    if what:
        raise DataError(
            f"{source.file.path}: its boxes are {what}, such as {shown(given[0][0])}",
            hint="COCO's bbox is x, y, width, height in pixels: write it so",
        )


def _images(source: Source, content: Any) -> dict[ImageId, ListedImage]:
    images: dict[ImageId, ListedImage] = {}
    listed = source.items(content, "images", required=False)
    for position, image_id, subject, item in source.objects(listed, "image", "id"):
        if image_id is None:
            source.problem(f"image at position {position}", "has no id (skipped)")
        elif image_id in images:
            source.problem(subject, "is listed twice (first kept)")
        else:
            images[image_id] = listed_image(source, image_id, item.get("file_name"), item)
    return images


def listed_image(source: Source, image_id: ImageId, file_name: Any, item: dict[str, Any]) -> ListedImage:
    """Image of an entry with "width" and "height"; a file name that is no text counts as a problem."""
    name = as_text(file_name) or None
    if name is None and file_name is not None:
        source.problem(f"image {image_id}", "has a file name that is no text (ignored)")
    width, height = as_pixels(item.get("width")), as_pixels(item.get("height"))
    return ListedImage(image_id, name, source.file.split, width, height, source.file.name)


def _lists_images(file: Candidate) -> bool:
    return any(key in file.ends for key in ('"file_name"', '"images"', '"annotations"'))


def _has_boxes(file: Candidate) -> bool:
    return _lists_images(file) and ('"bbox"' in file.ends or '"supercategory"' in file.ends)


def _has_captions(file: Candidate) -> bool:
    if '"caption"' in file.ends:
        return _lists_images(file)
    # A list of images alone, such as image_info_test2015.json.
    return file.ends.lstrip().startswith("{") and '"file_name"' in file.ends and not _has_boxes(file)


CAPTIONS = Format(
    name="coco-captions",
    holds=Holds.IMAGES | Holds.CAPTIONS,
    read=read_captions,
    looked_for="COCO captions_*.json",
    names=re.compile(r"captions([_.-].*)?\.json"),
    content=_has_captions,
    content_last=True,
    noun="annotation",
    yields=True,
)
INSTANCES = Format(
    name="coco-instances",
    holds=Holds.IMAGES | Holds.BOXES,
    read=read_instances,
    looked_for="COCO instances_*.json",
    names=re.compile(r"instances([_.-].*)?\.json"),
    content=_has_boxes,
    content_last=True,
    noun="annotation",
)
OTHERS = Format(
    name="coco-others",
    holds=Holds.NOTHING,
    names=re.compile(r"(person_keypoints|stuff|panoptic)(_.*|\.json.*)?\.json"),
)
