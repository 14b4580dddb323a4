"""Visual Genome (Krishna et al. 2017): regions, objects, scene graphs, and a list of the images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlparse

from tbkin_core.datasets.formats.base import Format, Holds
from tbkin_core.datasets.formats.coco import listed_image
from tbkin_core.datasets.reading import (
    AnnotationFile,
    Source,
    as_box,
    as_id,
    as_pixels,
    as_text,
    texts_in,
)
from tbkin_core.datasets.records import (
    BoxRow,
    CaptionRow,
    Content,
    GoldRelation,
    ImageId,
    SceneGraphRow,
    Xywh,
)


def read_images(source: Source) -> Content:
    """Images of `image_data.json`, versions 1 to 1.4."""
    content = Content()
    for image_id, item in _entries(source):
        if image_id in content.images:
            source.problem(f"image {image_id}", "is listed twice (first kept)")
            continue
        url = as_text(item.get("url"))
        # The last two parts: VG_100K/2.jpg and VG_100K_2/1.jpg, as the archives unpack.
        try:
            name = "/".join(urlparse(url).path.strip("/").split("/")[-2:]) if url else None
        except ValueError:
            name = None
        listed = listed_image(source, image_id, item.get("file_name", name), item)
        coco_id = as_id(item.get("coco_id"))
        content.images[image_id] = replace(listed, coco_id=coco_id if isinstance(coco_id, int) else None)
    return content


def read_regions(source: Source) -> Content:
    """Phrases of `region_descriptions.json` as captions."""
    rows: list[CaptionRow] = []
    seen: set[ImageId] = set()
    for image_id, entry in _entries(source):
        listed = source.objects(entry.get("regions"), f"image {image_id}: region", "region_id", "id")
        for _, region_id, subject, item in listed:
            text = source.sentence(subject, item.get("phrase"))
            if not text:
                source.problem(subject, "has no phrase (skipped)")
            elif source.admits(seen, region_id, subject):
                rows.append(CaptionRow(len(rows), text, region_id, image_id))
    return Content(captions=rows)


def read_objects(source: Source) -> Content:
    """Objects of `objects.json` with the attributes that an `attributes.json` beside it gives them."""
    images = _put_together([(source, "objects"), *_companions(source, ATTRIBUTES)])
    return Content(boxes=[box for things in images.values() for box in things.boxes])


def read_attributes(source: Source) -> Content:
    """Objects of `attributes.json`, which lists them all, also those without attributes."""
    images = _put_together([(source, "attributes")])
    return Content(boxes=[box for things in images.values() for box in things.boxes])


def read_relationships(source: Source) -> Content:
    """Scene graph of each image, from `relationships.json` and the objects and attributes beside it."""
    images = _put_together([*_companions(source, OBJECTS), *_companions(source, ATTRIBUTES)])
    relations: dict[ImageId, list[GoldRelation]] = {image_id: [] for image_id in images}
    for image_id, entry in _entries(source):
        things = images.setdefault(image_id, _Things())
        relations.setdefault(image_id, []).extend(_relations(source, image_id, entry, things))
    rows = [SceneGraphRow(image_id, things.boxes, relations[image_id]) for image_id, things in images.items()]
    return Content(graphs=rows)


def read_scene_graphs(source: Source) -> Content:
    """Objects and relations of each image of `scene_graphs.json`, each image once.

    A relation with an object that is unknown or was left out is left out, and counted.
    """
    rows: dict[ImageId, SceneGraphRow] = {}
    for image_id, entry in _entries(source):
        if image_id in rows:
            source.problem(f"image {image_id}", "has a second scene graph (skipped)")
            continue
        things = _Things()
        things.add(source, image_id, entry, "objects")
        relations = list(_relations(source, image_id, entry, things))
        rows[image_id] = SceneGraphRow(image_id, things.boxes, relations)
    return Content(graphs=list(rows.values()))


# ---- objects of an image, and what is said of them ----------------------------------------------


class _Things:
    """The objects of one image, from one file or several, which mean the same object by its id.

    In version 1.4 `objects.json` has many objects merged into one, which it names in `merged_object_ids`, or
    does not name at all: then that of the same name and place is meant. What another file alone has is added.
    """

    __slots__ = ("_by_label", "_first", "boxes", "place")

    def __init__(self) -> None:
        self.boxes: list[BoxRow] = []
        self._first = 0  # how many of the boxes are of the file that was read first
        self._by_label: dict[str, list[int]] = {}  # places of these
        self.place: dict[ImageId, int] = {}  # in `boxes`, of each id

    def add(self, source: Source, image_id: ImageId, entry: dict[str, Any], list_key: str) -> None:
        """Take the objects of a file's entry about the image; known ones get their attributes."""
        known = bool(self.boxes)
        seen: set[ImageId] = set()
        size = _size(source, image_id, entry)
        listed = source.objects(entry.get(list_key), f"image {image_id}: object", "object_id", "id")
        for position, object_id, subject, item in listed:
            if not source.admits(seen, object_id, subject):
                continue
            # Without an id an object is no other file's.
            object_id = f"{list_key} at {position}" if object_id is None else object_id
            box = _box(source, image_id, object_id, subject, item, size)
            if box is not None:
                self.place_of(box, item)
        if not known:
            self._first = len(self.boxes)
            for number, box in enumerate(self.boxes):
                self._by_label.setdefault(box.label, []).append(number)

    def place_of(self, box: BoxRow, item: dict[str, Any]) -> int:
        """Place of an object, which is added where it is new."""
        merged = item.get("merged_object_ids")
        ids = [box.box_id, *map(as_id, merged if isinstance(merged, list) else ())]
        found = None
        if self._first:  # what the first file lists apart stays apart
            found = next((self.place[each] for each in ids if each in self.place), None)
            found = self._alike(box) if found is None else found
        if found is None:
            found = len(self.boxes)
            self.boxes.append(box)
        elif box.attributes:
            attributes = tuple(dict.fromkeys([*self.boxes[found].attributes, *box.attributes]))
            self.boxes[found] = replace(self.boxes[found], attributes=attributes)
        for each in ids:
            if each is not None:
                self.place.setdefault(each, found)
        return found

    def _alike(self, box: BoxRow) -> int | None:
        """Place of the object of the first file that has the same name and lies in nearly the same place."""
        best, overlap = None, _SAME_OBJECT
        for number in self._by_label.get(box.label, ())[:_MOST_ALIKE] if box.label else ():
            if (both := _overlap(self.boxes[number].xywh, box.xywh)) >= overlap:
                best, overlap = number, both
        return best


def _overlap(first: Xywh, second: Xywh) -> float:
    """Intersection over union."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = first, second
    width, height = min(x1 + w1, x2 + w2) - max(x1, x2), min(y1 + h1, y2 + h2) - max(y1, y2)
    both = max(0.0, width) * max(0.0, height)
    return both / (w1 * h1 + w2 * h2 - both)


def _put_together(parts: Sequence[tuple[Source, str]]) -> dict[ImageId, _Things]:
    """Objects by image, from files that each list them under a key; the first says which there are."""
    images: dict[ImageId, _Things] = {}
    for source, list_key in parts:
        for image_id, entry in _entries(source):
            images.setdefault(image_id, _Things()).add(source, image_id, entry, list_key)
    return images


def _companions(source: Source, form: Format) -> list[tuple[Source, str]]:
    return [(each, form.name.removeprefix("vg-")) for each in source.companions(form.name)]


def _relations(
    source: Source, image_id: ImageId, entry: dict[str, Any], things: _Things
) -> Iterator[GoldRelation]:
    """Relations of an entry, whose objects are ids or, in `relationships.json`, objects, which are added."""
    listed = entry.get("relationships")
    if listed is not None and not isinstance(listed, list):
        source.problem(f"image {image_id}", "has relationships that are no list (left out)")
        listed = None
    size = _size(source, image_id, entry)
    seen: set[ImageId] = set()

    def end(item: dict[str, Any], name: str) -> tuple[ImageId | None, int | None]:
        """Id of a relation's subject or object, and its place among the image's objects, if it is there."""
        whole = item.get(name)
        if not isinstance(whole, dict):
            object_id = as_id(item.get(f"{name}_id"))
            return object_id, None if object_id is None else things.place.get(object_id)
        object_id = as_id(whole.get("object_id", whole.get("id")))
        if object_id is None or object_id in things.place:
            return object_id, None if object_id is None else things.place[object_id]
        box = _box(source, image_id, object_id, f"image {image_id}: object {object_id}", whole, size)
        return object_id, None if box is None else things.place_of(box, whole)

    for position, item in enumerate(listed or ()):
        ends = [end(item, name) for name in ("subject", "object")] if isinstance(item, dict) else []
        if not ends or any(object_id is None for object_id, _ in ends):
            subject = f"image {image_id}: relationship at position {position}"
            source.problem(subject, "lacks subject_id, predicate or object_id (skipped)")
            continue
        relation_id = as_id(item.get("relationship_id", item.get("id")))
        subject = f"image {image_id}: relationship {position if relation_id is None else relation_id}"
        predicate = as_text(item.get("predicate"))
        first, second = (number for _, number in ends)
        if relation_id in seen:
            source.problem(subject, "has an id used before (skipped)")
        elif not predicate:
            source.problem(subject, "has no predicate (skipped)")
        elif first is None or second is None:
            source.problem(subject, "relates an object that is not among the image's (skipped)")
        else:
            if relation_id is not None:
                seen.add(relation_id)
            yield GoldRelation(first, sys.intern(predicate), second)


def _size(source: Source, image_id: ImageId, entry: dict[str, Any]) -> tuple[int | None, int | None]:
    image = source.listed().get(image_id)
    width = as_pixels(entry.get("width")) or (image.width if image else None)
    return width, as_pixels(entry.get("height")) or (image.height if image else None)


def _box(
    source: Source,
    image_id: ImageId,
    object_id: ImageId,
    subject: str,
    item: dict[str, Any],
    size: tuple[int | None, int | None],
) -> BoxRow | None:
    xywh, what = as_box([item.get(key) for key in "xywh"], *size)
    if what:
        source.problem(subject, what)
    if xywh is None:
        return None
    names = item.get("names", item.get("object_names", [item.get("name")]))
    label = next((name for name in texts_in(names)), "")
    if not label:
        source.problem(subject, "has no name (kept without a label)")
    attributes = tuple(map(sys.intern, texts_in(item.get("attributes"))))
    return BoxRow(object_id, image_id, sys.intern(label), xywh, attributes)


def _entries(source: Source) -> Iterator[tuple[ImageId, dict[str, Any]]]:
    """Image id and entry, one image at a time: the files are of hundreds of megabytes."""
    for position, item in enumerate(source.json_items()):
        if not isinstance(item, dict):
            source.problem(f"image at position {position}", "is no JSON object (skipped)")
            continue
        image_id = as_id(item.get("image_id", item.get("id")))
        regions = item.get("regions")
        if image_id is None and isinstance(regions, list) and regions and isinstance(regions[0], dict):
            # Version 1 puts the image's id into its regions only.
            image_id = as_id(regions[0].get("image_id", regions[0].get("image")))
        if image_id is None:
            source.problem(f"image at position {position}", "has no image_id (skipped)")
        else:
            yield image_id, item


def _newest(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """Of the versions 1, 1.2 and 1.4 of each split's file one; the name without a version is the newest."""

    def rank(file: AnnotationFile) -> tuple[bool, tuple[int, ...], str]:
        version = re.search(r"_v(\d+(?:_\d+)*)", file.name)
        newest_first = tuple(-int(part) for part in version.group(1).split("_")) if version else ()
        return version is not None, newest_first, file.name

    best = {file.split: file for file in sorted(files, key=rank, reverse=True)}
    return sorted(best.values(), key=lambda file: file.name)


def _image_data(_: AnnotationFile, files: Sequence[AnnotationFile]) -> list[AnnotationFile]:
    return [file for file in files if file.format == IMAGES.name]


# Two boxes of one name in one image, of files that were cleaned differently, are one object from this IoU up.
_SAME_OBJECT = 0.5
_MOST_ALIKE = 200  # objects of one name in one image that are compared with another
_genome = partial(Format, layout="visual-genome", prefer=_newest)
_OF_VERSION_OR_SPLIT = r"([_.]v?\d.*|[_.](train|val|test).*)?(\.json.*)?\.json"

IMAGES = _genome(
    name="vg-images", holds=Holds.IMAGES, read=read_images, names=re.compile(r"image_data.*\.json")
)
REGIONS = _genome(
    name="vg-regions",
    holds=Holds.PHRASES,
    read=read_regions,
    looked_for="Visual Genome",
    names=re.compile(r"region_descriptions.*\.json"),
    content=lambda file: '"phrase"' in file.ends and '"regions"' in file.ends,
    listed_by=_image_data,
    noun="region",
)
SCENE_GRAPHS = _genome(
    name="vg-scene-graphs",
    holds=Holds.BOXES | Holds.SCENE_GRAPHS,
    read=read_scene_graphs,
    names=re.compile(r"scene_graphs.*\.json"),
    content=lambda file: '"subject_id"' in file.ends and '"objects"' in file.ends,
    supersedes=("vg-objects", "vg-attributes", "vg-relationships"),
    listed_by=_image_data,
    noun="scene graph of",
    yields=True,
)
RELATIONSHIPS = _genome(
    name="vg-relationships",
    holds=Holds.BOXES | Holds.SCENE_GRAPHS,
    read=read_relationships,
    names=re.compile("relationships" + _OF_VERSION_OR_SPLIT),
    supersedes=("vg-objects", "vg-attributes"),
    listed_by=_image_data,
    noun="scene graph of",
    yields=True,
)
OBJECTS = _genome(
    name="vg-objects",
    holds=Holds.BOXES,
    read=read_objects,
    names=re.compile("objects" + _OF_VERSION_OR_SPLIT),
    supersedes=("vg-attributes",),
    listed_by=_image_data,
    noun="object",
    yields=True,
)
ATTRIBUTES = _genome(
    name="vg-attributes",
    holds=Holds.BOXES,
    read=read_attributes,
    names=re.compile("attributes" + _OF_VERSION_OR_SPLIT),
    listed_by=_image_data,
    noun="object",
    yields=True,
)
OTHERS = Format(
    name="vg-others",
    holds=Holds.NOTHING,
    names=re.compile(r"(question_answers|qa_to_region_mapping|relationship)(_.*|\.json.*)?\.json"),
)
