"""From annotated or named regions to referring expressions, in the layout of RefCOCO (Yu et al. 2016).

An object of which there are several in the image is referred to rather than the only one of its kind, as in
RefCOCO; each of its expressions means it and nothing else that is annotated, see `referring`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tbkin_core.boxes import xywh_to_xyxy
from tbkin_core.datasets import Dataset
from tbkin_core.datasets.formats.made import EXPRESSIONS_MADE_BY
from tbkin_core.datasets.formats.own_expressions import picture_size
from tbkin_core.datasets.records import GoldGraph, ImageRecord
from tbkin_core.expressions.referring import ImageObjects, Item, text_of
from tbkin_core.features.store import FeatureStore
from tbkin_core.names.lexicon import lemmatize_verb
from tbkin_core.questions import wordlists
from tbkin_core.support.console import progress
from tbkin_core.support.files import check_file_place, write_text
from tbkin_core.support.randomness import generator

REFS, INSTANCES = "refs(made).json", "instances.json"
MOST_TEXTS = 3  # expressions of an object
LEAST_SCORE = 0.5  # of a region's name that a model gave, to be believed


@dataclass(frozen=True)
class ReferredImage:
    """An image's record and its objects."""

    record: ImageRecord
    objects: ImageObjects


class Referred(NamedTuple):
    """An object of an image of `size` pixels, and what refers to it: (kind, text) each."""

    record: ImageRecord
    item: Item
    size: tuple[int, int]
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ExpressionFiles:
    """What was written: the files, the expressions of each split and kind, and the images of each split."""

    paths: list[Path]
    counts: dict[str, dict[str, int]]
    images: dict[str, int]


# ---- the objects of images ----------------------------------------------------------------------


def annotated_images(dataset: Dataset) -> Iterator[ReferredImage]:
    """The images of a dataset with the boxes that people drew: scene graphs, COCO instances or objects."""
    boxes, graphs = dataset.boxes(), dataset.gold_graphs() if dataset.has_gold_graphs else {}
    for record in dataset.images():
        graph, drawn = graphs.get(record.image_id), boxes.get(record.image_id, [])
        if graph is None and not drawn:
            continue
        size = _size_of(record)
        if size is None:
            continue
        if graph is not None and len(graph.objects) >= len(drawn):
            items = [_item(it.name, it.xywh, it.attributes) for it in graph.objects]
            yield ReferredImage(record, ImageObjects(items, size, _predicates(graph)))
        else:
            items = [_item(it.label, it.xywh, it.attributes, it.is_crowd) for it in drawn]
            yield ReferredImage(record, ImageObjects(items, size))


def _size_of(record: ImageRecord) -> tuple[float, float] | None:
    """Width and height as annotated, else of the picture; None where neither tells."""
    if record.width and record.height:
        return float(record.width), float(record.height)
    found = picture_size(record.path)
    return None if found is None or not all(found) else (float(found[0]), float(found[1]))


def named_images(dataset: Dataset, store: FeatureStore) -> Iterator[ReferredImage]:
    """The images of a dataset with the regions that a model named with some confidence."""
    for record in dataset.images():
        if record.image_id not in store:
            continue
        regions = store[record.image_id]
        names = regions.labels(store.object_names)
        # Imported names have no scores.
        scores = regions.object_scores if regions.object_scores.any() else np.ones(len(regions), np.float32)
        # A region that is hardly recognised may be another of the same; what has no name is passed over.
        items = [
            Item(_tidied(name), (box[0], box[1], box[2], box[3]), in_doubt=bool(score < LEAST_SCORE))
            for name, box, score in zip(names, regions.boxes.tolist(), scores, strict=True)
            if name
        ]
        size = (float(regions.image_width), float(regions.image_height))
        if items and all(size):
            yield ReferredImage(record, ImageObjects(items, size))


def _item(name: str, xywh: Any, attributes: Sequence[str], is_crowd: bool = False) -> Item:
    x1, y1, x2, y2 = xywh_to_xyxy([xywh], np.float64)[0].tolist()
    return Item(_tidied(name), (x1, y1, x2, y2), frozenset(it.lower() for it in attributes), is_crowd)


def _tidied(name: str) -> str:
    return " ".join(name.lower().split())


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


def make_expressions(images: Iterable[ReferredImage], per_image: int, seed: int = 0) -> list[Referred]:
    """What refers to at most so many objects of each image; all chance follows from seed and image id."""
    referred: list[Referred] = []
    for image in progress(images, "expressions", unit="image"):
        objects, record = image.objects, image.record
        random = generator(seed, record.image_id)
        places = [place for place in objects.own if objects.may_be_named(place)]
        order = [places[place] for place in random.permutation(len(places))]
        order.sort(key=lambda place: objects.count(objects.items[place].name) == 1)
        size = (round(objects.size[0]), round(objects.size[1]))
        found = 0
        for place in order if len(objects.own) > 1 else []:
            if found < per_image and (texts := _texts(objects, place, random)):
                found += 1
                referred.append(Referred(record, objects.items[place], size, texts))
    return referred


def _texts(objects: ImageObjects, place: int, random: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """Some expressions of an object, of different kinds."""
    by_kind: dict[str, list[str]] = {}
    for kind, phrase in objects.phrases_of(place):
        by_kind.setdefault(kind, []).append(text_of(phrase, objects.count(phrase.name, phrase.attribute)))
    kinds = [list(by_kind)[number] for number in random.permutation(len(by_kind))][:MOST_TEXTS]
    return tuple((kind, by_kind[kind][random.integers(len(by_kind[kind]))]) for kind in kinds)


# ---- files --------------------------------------------------------------------------------------


def check_expression_places(directory: Path) -> None:
    """Refuse to write where something else would be lost.

    Raises:
        ConfigError: A file there that this did not write.
        DataError: The directory cannot be made or written to.
    """
    for name in (REFS, INSTANCES):
        check_file_place(directory / name, "expressions", lambda start: EXPRESSIONS_MADE_BY.encode() in start)


def write_expressions(
    directory: Path, referred: Sequence[Referred], root: Path, seed: int = 0
) -> ExpressionFiles:
    """Write refs, and as instances the objects that they are about, numbered anew; nothing for none.

    A ref has its box beside what RefCOCO has: tbkin needs no other file.

    Args:
        directory: For the files; what an earlier call left there goes.
        referred: What to write.
        root: Directory of the dataset, from which images are named.
        seed: To be noted.
    """
    for name in (INSTANCES, REFS):
        (directory / name).unlink(missing_ok=True)  # old and new ones would not fit each other
    categories = {name: number for number, name in enumerate(sorted({it.item.name for it in referred}), 1)}
    refs: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    images: dict[Any, dict[str, Any]] = {}
    sent_id = 0
    for number, it in enumerate(referred, 1):
        x1, y1, x2, y2 = (round(side, 2) for side in it.item.box)
        sentences = []
        for _, text in it.texts:
            sent_id += 1
            sentences.append({"tokens": text.split(), "raw": text, "sent_id": sent_id, "sent": text})
        place = it.record.path
        file_name = None if place is None else place.relative_to(root).as_posix()
        about = {"image_id": it.record.image_id, "category_id": categories[it.item.name]}
        bbox = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        size = {"width": it.size[0], "height": it.size[1]}
        refs.append(
            {
                "made_by": EXPRESSIONS_MADE_BY,
                "ref_id": number,
                "ann_id": number,
                **about,
                "file_name": file_name,
                "split": it.record.split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
                "bbox": bbox,
                **size,
            }
        )
        annotations.append({"id": number, **about, "bbox": bbox, "area": it.item.area, "iscrowd": 0})
        images[it.record.image_id] = {"id": it.record.image_id, "file_name": file_name, **size}
    paths = [directory / REFS, directory / INSTANCES] if refs else []
    if refs:
        listed = [{"id": number, "name": name} for name, number in categories.items()]
        content = {"images": list(images.values()), "annotations": annotations, "categories": listed}
        info = {"made_by": EXPRESSIONS_MADE_BY, "seed": seed}
        write_text(directory / REFS, json.dumps(refs))
        write_text(directory / INSTANCES, json.dumps({"info": info, **content}))
    counts: dict[str, Counter[str]] = {}
    spoken: dict[str, set[Any]] = {}
    for it in referred:
        counts.setdefault(it.record.split, Counter()).update(kind for kind, _ in it.texts)
        spoken.setdefault(it.record.split, set()).add(it.record.image_id)
    return ExpressionFiles(
        paths,
        {split: dict(kinds) for split, kinds in counts.items()},
        {split: len(image_ids) for split, image_ids in spoken.items()},
    )
