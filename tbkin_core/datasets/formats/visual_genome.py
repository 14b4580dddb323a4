"""Visual Genome (Krishna et al. 2017): regions, objects, scene graphs, and a list of the images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
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
    malformed,
    texts_in,
    type_name,
)
from tbkin_core.datasets.records import BoxRow, CaptionRow, Content, GoldRelation, ImageId, SceneGraphRow


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


def read_objects(source: Source, list_key: str = "objects") -> Content:
    """Objects of `objects.json`, or of `attributes.json`, which lists them under "attributes"."""
    boxes = [row for image_id, entry in _entries(source) for row in _boxes(source, image_id, entry, list_key)]
    return Content(boxes=boxes)


def read_scene_graphs(source: Source) -> Content:
    """Objects and relations of each image of `scene_graphs.json`, each image once.

    A relation with an object that is unknown or was left out is left out, and counted.
    """
    rows: dict[ImageId, SceneGraphRow] = {}
    for image_id, entry in _entries(source):
        if image_id in rows:
            source.problem(f"image {image_id}", "has a second scene graph (skipped)")
            continue
        boxes = _boxes(source, image_id, entry, "objects")
        place = {box.box_id: position for position, box in enumerate(boxes)}
        relations: list[GoldRelation] = []
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
            relation_id, subject_id, predicate, object_id = item
            subject = f"image {image_id}: relationship {position if relation_id is None else relation_id}"
            if relation_id in seen:
                source.problem(subject, "has an id used before (skipped)")
            elif not predicate:
                source.problem(subject, "has no predicate (skipped)")
            elif subject_id not in place or object_id not in place:
                source.problem(subject, "relates an object that is not among the image's (skipped)")
            else:
                if relation_id is not None:
                    seen.add(relation_id)
                relations.append(GoldRelation(place[subject_id], predicate, place[object_id]))
        rows[image_id] = SceneGraphRow(image_id, boxes, relations)
    return Content(graphs=list(rows.values()))


class _Relationship(NamedTuple):
    relation_id: ImageId | None
    subject_id: ImageId
    predicate: str
    object_id: ImageId


def _boxes(source: Source, image_id: ImageId, entry: dict[str, Any], list_key: str) -> list[BoxRow]:
    rows: list[BoxRow] = []
    image = source.listed().get(image_id)
    width = as_pixels(entry.get("width")) or (image.width if image else None)
    height = as_pixels(entry.get("height")) or (image.height if image else None)
    seen: set[ImageId] = set()
    objects = source.objects(entry.get(list_key), f"image {image_id}: object", "object_id", "id")
    for position, object_id, subject, item in objects:
        if not source.admits(seen, object_id, subject):
            continue
        object_id = f"at {position}" if object_id is None else object_id
        xywh, what = as_box([item.get(key) for key in "xywh"], width, height)
        if what:
            source.problem(subject, what)
        if xywh is None:
            continue
        names = item.get("names", item.get("object_names", [item.get("name")]))
        label = next((name for name in texts_in(names)), "")
        if not label:
            source.problem(subject, "has no name (kept without a label)")
        rows.append(BoxRow(object_id, image_id, label, xywh, tuple(texts_in(item.get("attributes")))))
    return rows


def _entries(source: Source) -> Iterator[tuple[ImageId, dict[str, Any]]]:
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
        raise malformed(source.file.path, f"expected a list of images, got {type_name(content)}")
    for position, image_id, _, entry in source.objects(content, "image", "image_id", "id"):
        regions = entry.get("regions")
        if image_id is None and isinstance(regions, list) and regions and isinstance(regions[0], dict):
            # Version 1 puts the image's id into its regions only.
            image_id = as_id(regions[0].get("image_id", regions[0].get("image")))
        if image_id is None:
            source.problem(f"image at position {position}", "has no image_id (skipped)")
        else:
            yield image_id, entry


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
    read=partial(read_objects, list_key="attributes"),
    names=re.compile("attributes" + _OF_VERSION_OR_SPLIT),
    listed_by=_image_data,
    noun="object",
    yields=True,
)
OTHERS = Format(
    name="vg-others",
    holds=Holds.NOTHING,
    names=re.compile(r"(question_answers|qa_to_region_mapping|relationships?)(_.*|\.json.*)?\.json"),
)
