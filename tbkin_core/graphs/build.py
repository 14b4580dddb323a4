"""Builds the unified scene graphs of a dataset: parse, join with regions, count priors, write."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets import Dataset
from tbkin_core.datasets.records import BoxAnnotation, Caption
from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId, pairwise_iou
from tbkin_core.features.store import FeatureStore
from tbkin_core.graphs.parser import CaptionParser
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.store import GraphImage, GraphRecord, GraphStore, GraphStoreWriter, text_graph
from tbkin_core.graphs.unified import LexicalSimilarity, cross_edges
from tbkin_core.runtime import atomic_path, progress
from tbkin_core.shards import MANIFEST

logger = logging.getLogger("tbkin")

SHARD_CAPTIONS = 4096


@dataclass(slots=True)
class Build:
    """What a build made, and the counts for its summary."""

    store: GraphStore
    made: int
    present: int
    summary: dict[str, Any]


def texts_of(dataset: Dataset) -> tuple[list[Caption], str]:
    """The texts to parse and what they are: captions, else referring expressions, else questions."""
    captions = dataset.captions()
    if captions:
        return captions, "captions"
    expressions = [
        Caption(f"{name}:{item.sent_id}", item.image_id, item.text, item.split)
        for name in dataset.expression_sets()
        for item in dataset.expressions(name=name)
    ]
    if expressions:
        return expressions, "expressions"
    questions = [
        Caption(item.question_id, item.image_id, item.question, item.split) for item in dataset.questions()
    ]
    if questions:
        return questions, "questions"
    raise DataError(
        f"{dataset.root}: no captions, expressions or questions to build graphs from"
        f" (found: {', '.join(dataset.layouts)})",
        hint="add COCO captions_*.json, or a JSONL file with lines such as"
        ' {"image": "dog.jpg", "text": "a dog on a sofa"}',
    )


def build_dataset(
    dataset: Dataset,
    out: Path,
    features: FeatureStore | None,
    parser: CaptionParser,
    min_similarity: float = 0.5,
    label_iou: float = 0.5,
    overwrite: bool = False,
) -> Build:
    """Build the graph store of a dataset, going on with an unfinished one.

    Args:
        dataset: Opened dataset.
        out: Directory of the store.
        features: Feature store whose regions the graphs join; None takes the annotated boxes.
        parser: Caption parser.
        min_similarity: Cross-modal edges are kept from this weight up.
        label_iou: Unlabelled regions take the label of an annotated box that they overlap this much.
        overwrite: Remove a store that is there.

    Raises:
        DataError: No texts, a store of other settings at `out`, or the disk refuses.
    """
    texts, kind = texts_of(dataset)
    if overwrite and (out / MANIFEST).exists():
        for path in [*out.glob("shard-*.safetensors"), out / MANIFEST]:
            path.unlink()
    settings = {
        "texts": kind,
        "parser": parser.name,
        "parser_version": parser.version,
        "similarity": "lexical",
        "min_similarity": min_similarity,
        "label_iou": label_iou,
        "regions": "annotations" if features is None else "features",
        "features": None if features is None else features.settings,
    }
    writer = GraphStoreWriter(out, settings)
    todo = [text for text in texts if text.text_id not in writer.done]
    present = len(texts) - len(todo)
    regions = _Regions(dataset, features, label_iou)
    similarity = LexicalSimilarity()
    with_image = [text for text in todo if text.image_id is not None]
    if present:
        logger.info("%d %s are in the store already", present, kind)
    if todo:
        logger.info("%d %s, %d with an image, parser %s", len(todo), kind, len(with_image), parser.name)
    chunks = [todo[begin : begin + SHARD_CAPTIONS] for begin in range(0, len(todo), SHARD_CAPTIONS)]
    graphs = iter(
        progress(parser.parse(text.text for text in todo), "captions", total=len(todo), unit="caption")
    )
    for chunk in chunks:
        places: dict[ImageId, int] = {}
        images: list[GraphImage] = []
        records = []
        for text in chunk:
            graph = next(graphs)
            if text.image_id is not None and text.image_id not in places:
                places[text.image_id] = len(images)
                images.append(regions[text.image_id])
            place = -1 if text.image_id is None else places[text.image_id]
            labels = () if place < 0 else images[place].labels
            cross = cross_edges([item.name for item in graph.objects], labels, similarity, min_similarity)
            records.append(GraphRecord(text.text_id, text.text, text.split, place, graph, cross))
        writer.add(records, images)
    for _ in graphs:
        pass
    return _finish(writer, out, len(todo), present)


def export_jsonl(store: GraphStore, path: Path) -> None:
    """Write every unified graph as a line of JSON, atomically."""
    import json

    # Lone surrogates (file names that are no UTF-8) become JSON's own escapes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for graph in progress(store, "export", total=len(store), unit="graph"):
            file.write(json.dumps(graph.to_dict(), ensure_ascii=False) + "\n")


def _finish(writer: GraphStoreWriter, out: Path, made: int, present: int) -> Build:
    """Count priors and the summary over the whole store, that of an interrupted run included."""
    store = GraphStore(out, allow_unfinished=True)
    splits = {split for _, metadata in store.shards for split in metadata["splits"]}
    priors = Priors()
    common: dict[str, Counter[str]] = {"objects": Counter(), "attributes": Counter(), "relations": Counter()}
    anchored, captions, with_regions = 0, 0, 0
    for arrays, metadata in store.shards:
        regions = np.append(np.diff(arrays["region_offsets"]), 0)  # the last one serves image -1
        anchored += int((np.diff(arrays["cross_offsets"]) > 0).sum())
        with_regions += int((regions[arrays["image"]] > 0).sum())
        for place, split in enumerate(metadata["splits"]):
            graph = text_graph(arrays, metadata, place)
            # What is learnt from val or test captions would leak into masking.
            if "train" not in splits or split == "train":
                priors.add(graph)
            captions += 1
            common["objects"].update(item.name for item in graph.objects)
            common["attributes"].update(item.name for item in graph.attributes)
            common["relations"].update(item.predicate for item in graph.relations)
    summary = {
        "captions": captions,
        "captions_with_regions": with_regions,
        "anchored": anchored,
        **{f"{name}_per_caption": sum(counts.values()) / max(captions, 1) for name, counts in common.items()},
        "most_common": {name: counts.most_common(10) for name, counts in common.items()},
    }
    writer.finish(priors, summary=summary)
    return Build(GraphStore(out), made, present, summary)


class _Regions:
    """Boxes and labels of an image, from a feature store or from annotations."""

    def __init__(self, dataset: Dataset, features: FeatureStore | None, label_iou: float) -> None:
        self._features = features
        self._label_iou = label_iou
        named = features is not None and bool(features.object_names)
        # A detector's own labels need no annotations.
        self._annotated: dict[ImageId, list[BoxAnnotation]] = {} if named else dataset.boxes()

    def __getitem__(self, image_id: ImageId) -> GraphImage:
        annotated = self._annotated.get(image_id, [])
        corners = np.array([box.xywh for box in annotated], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        if self._features is None:
            return GraphImage(image_id, corners, tuple(box.label for box in annotated))
        if image_id not in self._features:
            return GraphImage(image_id, np.zeros((0, 4), np.float32), ())
        regions = self._features[image_id]
        if self._features.object_names:
            names = self._features.object_names
            labels = tuple(names[number] if 0 <= number < len(names) else "" for number in regions.object_ids)
        else:
            labels = borrowed_labels(
                regions.boxes, corners, [box.label for box in annotated], self._label_iou
            )
        return GraphImage(image_id, regions.boxes, labels)


def borrowed_labels(
    boxes: NDArray, annotated: NDArray, labels: Sequence[str], minimum: float
) -> tuple[str, ...]:
    """Label of the annotated box that each region overlaps best, "" below `minimum` IoU."""
    if not len(labels) or not len(boxes):
        return ("",) * len(boxes)
    iou = pairwise_iou(boxes, annotated)
    best = iou.argmax(axis=1)
    return tuple(labels[index] if iou[row, index] >= minimum else "" for row, index in enumerate(best))
