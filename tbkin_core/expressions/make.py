"""From annotated or named regions to referring expressions, in the layout of RefCOCO (Yu et al. 2016).

An object of which there are several in the image is referred to rather than the only one of its kind, as in
RefCOCO; each of its expressions means it and nothing else that is annotated, see `referring`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.boxes import xywh_to_xyxy
from tbkin_core.datasets import Dataset
from tbkin_core.datasets.formats.own_expressions import picture_size
from tbkin_core.datasets.formats.refcoco import MADE_EXPRESSIONS
from tbkin_core.datasets.records import GoldGraph, ImageRecord
from tbkin_core.expressions.referring import ImageObjects, Item, text_of
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore
from tbkin_core.names.lexicon import lemmatize_verb
from tbkin_core.questions import wordlists
from tbkin_core.support.console import progress
from tbkin_core.support.files import check_file_place, write_text
from tbkin_core.support.randomness import mix

REFS, INSTANCES = "refs(made).json", "instances.json"
MOST_TEXTS = 3  # expressions of an object
LEAST_SCORE = 0.5  # of a region's name that a model gave, to be believed


@dataclass(frozen=True)
class ReferredImage:
    """An image with its objects.

    Attributes:
        record: It.
        objects: Those annotated in it.
    """

    record: ImageRecord
    objects: ImageObjects


@dataclass(frozen=True)
class Referred:
    """An object and what refers to it: (kind, text) each."""

    image: ReferredImage
    place: int
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ExpressionFiles:
    """What was written.

    Attributes:
        paths: The refs and the instances.
        counts: Expressions of each split and kind.
        images: Images of each split that are spoken of.
    """

    paths: list[Path]
    counts: dict[str, dict[str, int]]
    images: dict[str, int]


# ---- the objects of images ----------------------------------------------------------------------


def annotated_images(dataset: Dataset) -> Iterator[ReferredImage]:
    """The images of a dataset with the boxes that people drew: scene graphs, COCO instances or objects."""
    boxes, graphs = dataset.boxes(), dataset.gold_graphs() if dataset.has_gold_graphs else {}
    for record in dataset.images():
        graph, drawn = graphs.get(record.image_id), boxes.get(record.image_id, [])
        size = (record.width, record.height)
        if None in size or not all(size):
            size = picture_size(record.path) or (0, 0)
        if not all(size):
            continue
        whole = (float(size[0] or 0), float(size[1] or 0))
        if graph is not None and len(graph.objects) >= len(drawn):
            items = [_item(it.name, it.xywh, it.attributes) for it in graph.objects]
            yield ReferredImage(record, ImageObjects(items, whole, _predicates(graph)))
        elif drawn:
            items = [_item(it.label, it.xywh, it.attributes, it.is_crowd) for it in drawn]
            yield ReferredImage(record, ImageObjects(items, whole))


def named_images(dataset: Dataset, store: FeatureStore) -> Iterator[ReferredImage]:
    """The images of a dataset with the regions that a model named with some confidence."""
    for record in dataset.images():
        if record.image_id not in store:
            continue
        regions = store[record.image_id]
        names = regions.labels(store.object_names)
        scores = regions.object_scores if len(regions.object_scores) else np.ones(len(regions), np.float32)
        items = [
            # A region without a sure name may be anything: it is in nobody's way, as what no box is around.
            Item(name.lower(), (box[0], box[1], box[2], box[3]))
            for name, box, score in zip(names, regions.boxes.tolist(), scores, strict=True)
            if name and score >= LEAST_SCORE
        ]
        size = (float(regions.image_width), float(regions.image_height))
        if items and all(size):
            yield ReferredImage(record, ImageObjects(items, size))


def _item(name: str, xywh: Any, attributes: Sequence[str], is_crowd: bool = False) -> Item:
    x1, y1, x2, y2 = xywh_to_xyxy([xywh], np.float64)[0].tolist()
    return Item(name.lower(), (x1, y1, x2, y2), frozenset(it.lower() for it in attributes), is_crowd)


def _predicates(graph: GoldGraph) -> Iterator[tuple[int, str, int]]:
    """Annotated relations in words that fit between two names: "riding", "next to"; of "is ON" it is "on"."""
    for relation in graph.relations:
        words = relation.predicate.lower().split()
        while words and words[0] in ("is", "are"):
            words = words[1:]
        predicate = " ".join(words)
        happens = bool(words) and words[0].endswith("ing") and lemmatize_verb(words[0]) != words[0]
        if predicate in wordlists.WHEREABOUTS or (happens and wordlists.PREPOSITIONS.issuperset(words[1:])):
            yield relation.subject, predicate, relation.object


# ---- expressions --------------------------------------------------------------------------------


def make_expressions(images: Sequence[ReferredImage], per_image: int, seed: int = 0) -> list[Referred]:
    """What refers to at most so many objects of each image; random choices follow from seed and place."""
    referred: list[Referred] = []
    for number, image in enumerate(progress(images, "expressions", unit="image")):
        random = np.random.default_rng(mix(seed, number))
        objects = image.objects
        places = [place for place in objects.own if objects.may_be_named(place)]
        order = [places[place] for place in random.permutation(len(places))]
        order.sort(key=lambda place: objects.count(objects.items[place].name) == 1)
        found = 0
        for place in order:
            texts = _texts(objects, place, random) if found < per_image and len(objects.own) > 1 else ()
            if texts:
                found += 1
                referred.append(Referred(image, place, texts))
    return referred


def _texts(objects: ImageObjects, place: int, random: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """Some expressions of an object, of different kinds."""
    several = objects.count(objects.items[place].name)
    by_kind: dict[str, list[str]] = {}
    for kind, phrase in objects.phrases_of(place):
        by_kind.setdefault(kind, []).append(text_of(phrase, several))
    kinds = [list(by_kind)[number] for number in random.permutation(len(by_kind))][:MOST_TEXTS]
    return tuple((kind, by_kind[kind][random.integers(len(by_kind[kind]))]) for kind in kinds)


# ---- files --------------------------------------------------------------------------------------


def check_expression_places(directory: Path) -> None:
    """Refuse to write where something else would be lost.

    Raises:
        ConfigError: A file there that this did not write.
        DataError: The directory cannot be made or written to.
    """
    instances = directory / INSTANCES
    check_file_place(instances, "expressions", lambda start: MADE_EXPRESSIONS.encode() in start)
    # A list of refs cannot say who made it: the instances beside it do.
    check_file_place(directory / REFS, "expressions", lambda _: instances.exists())


def write_expressions(directory: Path, referred: Sequence[Referred], seed: int) -> ExpressionFiles:
    """Write refs and instances; the boxes are the objects' own, numbered anew."""
    images: dict[ImageId, ReferredImage] = {it.image.record.image_id: it.image for it in referred}
    names = sorted({item.name for image in images.values() for item in image.objects.items})
    categories = {name: number for number, name in enumerate(names, 1)}
    numbers: dict[tuple[ImageId, int], int] = {}
    annotations = []
    for image_id, image in images.items():
        for place, item in enumerate(image.objects.items):
            numbers[image_id, place] = len(numbers) + 1
            annotations.append(_annotation(numbers[image_id, place], image_id, item, categories[item.name]))
    refs, sentences = [], 0
    for number, it in enumerate(referred, 1):
        image_id, name = it.image.record.image_id, it.image.objects.items[it.place].name
        listed = []
        for _, text in it.texts:
            sentences += 1
            listed.append({"tokens": text.split(), "raw": text, "sent_id": sentences, "sent": text})
        refs.append(
            {
                "ref_id": number,
                "ann_id": numbers[image_id, it.place],
                "image_id": image_id,
                "category_id": categories[name],
                "file_name": _file_name(it.image.record),
                "split": it.image.record.split,
                "sent_ids": [sentence["sent_id"] for sentence in listed],
                "sentences": listed,
            }
        )
    instances = {
        "info": {"made_by": MADE_EXPRESSIONS, "seed": seed},
        "images": [_listed(image) for image in images.values()],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_text(directory / INSTANCES, json.dumps(instances))
    write_text(directory / REFS, json.dumps(refs))
    counts: dict[str, Counter[str]] = {}
    for it in referred:
        counts.setdefault(it.image.record.split, Counter()).update(kind for kind, _ in it.texts)
    spoken = Counter(image.record.split for image in images.values())
    paths = [directory / REFS, directory / INSTANCES]
    return ExpressionFiles(paths, {split: dict(kinds) for split, kinds in counts.items()}, dict(spoken))


def _annotation(number: int, image_id: ImageId, item: Item, category: int) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(side, 2) for side in item.box)
    return {
        "id": number,
        "image_id": image_id,
        "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
        "area": round(item.area, 2),
        "iscrowd": int(item.is_crowd),
        "category_id": category,
    }


def _listed(image: ReferredImage) -> dict[str, Any]:
    width, height = map(round, image.objects.size)
    record = image.record
    return {"id": record.image_id, "file_name": _file_name(record), "width": width, "height": height}


def _file_name(record: ImageRecord) -> str | None:
    return record.path.name if record.path is not None else None
