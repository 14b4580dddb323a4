"""What captions are joined with: the regions of their images, labelled, and the edges to those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.boxes import pairwise_iou, xywh_to_xyxy
from tbkin_core.datasets import Dataset
from tbkin_core.datasets.records import BoxAnnotation, GoldGraph
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore
from tbkin_core.graphs.arrays import GraphImage, RaggedEdges, number_names
from tbkin_core.names.lexicon import lemmatize_predicate
from tbkin_core.names.similarity import Similarity
from tbkin_core.parsing.text_graph import TextGraph
from tbkin_core.support.shards import ragged_gather, ragged_offsets

REMEMBERED_PAIRS = 4_000_000  # of names and labels compared; 12 bytes each


class DatasetRegions:
    """Boxes and labels of an image, from a feature store or from annotations."""

    def __init__(self, dataset: Dataset, features: FeatureStore | None, label_iou: float) -> None:
        self._features = features
        self._label_iou = label_iou
        named = features is not None and bool(features.object_names)
        # A detector's own labels need no annotated boxes.
        self._annotated: dict[ImageId, list[BoxAnnotation]] = {} if named else dataset.boxes()
        self._graphs = dataset.gold_graphs()
        self._drawn = {it.image_id: (it.width or 0, it.height or 0) for it in dataset.images()}

    def __getitem__(self, image_id: ImageId) -> GraphImage:
        regions = self._labelled(image_id)
        graph, scale = self._graphs.get(image_id), self._scale(image_id)
        if graph is None or scale is None:
            return regions
        return with_annotations(regions, graph, self._label_iou, scale)

    def _scale(self, image_id: ImageId) -> NDArray[np.float32] | None:
        """(4,) factors from the pixels of the annotations to those of the regions; None where none fit."""
        if self._features is None or image_id not in self._features:
            return np.ones(4, np.float32)
        return self._features.scale_from(self._drawn.get(image_id, (0, 0)), image_id)

    def _labelled(self, image_id: ImageId) -> GraphImage:
        annotated = self._annotated.get(image_id, [])
        corners = xywh_to_xyxy([box.xywh for box in annotated])
        if self._features is None:
            return GraphImage(image_id, corners, tuple(box.label for box in annotated))
        if image_id not in self._features:
            return GraphImage(image_id, np.zeros((0, 4), np.float32), ())
        regions = self._features[image_id]
        if names := self._features.object_names:
            labels = regions.labels(names)
        else:
            given, scale = [box.label for box in annotated], self._scale(image_id)
            labels = ("",) * len(regions)
            if scale is not None:
                labels = borrowed_labels(regions.boxes, corners * scale, given, self._label_iou)
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


def with_annotations(
    image: GraphImage, graph: GoldGraph, minimum: float, scale: ArrayLike = 1.0
) -> GraphImage:
    """Regions with the attributes and relations that people annotated.

    Each annotated object is the region that it overlaps best, from `minimum` IoU up; of equal ones that with
    its name. Predicates become lower case and lemmas ("is parked ON" is "park on"). `scale` takes boxes of
    objects to the pixels of the regions.
    """
    if not len(image.boxes) or not graph.objects:
        return image
    corners = xywh_to_xyxy([item.xywh for item in graph.objects]) * np.asarray(scale, np.float32)
    iou = pairwise_iou(corners, image.boxes)
    same = np.array([item.name for item in graph.objects])[:, None] == np.array(image.labels)[None]
    best = (iou + 1e-3 * same).argmax(axis=1)
    overlap = iou[np.arange(len(best)), best]
    region = np.where(overlap >= minimum, best, -1).tolist()
    attributes = {
        (region[row], attribute.lower()): None
        for row, item in enumerate(graph.objects)
        for attribute in item.attributes
        if region[row] >= 0 and attribute
    }
    relations = {
        (region[item.subject], predicate, region[item.object]): None
        for item in graph.relations
        if region[item.subject] >= 0
        and region[item.object] >= 0
        and region[item.subject] != region[item.object]
        and (predicate := lemmatize_predicate(item.predicate))
    }
    return replace(
        image,
        attributes=tuple(attributes),
        relations=tuple(relations),
        annotated=tuple(sorted({place for place in region if place >= 0})),
    )


# ---- cross-modal edges --------------------------------------------------------------------------


class PairWeights:
    """Weights of (name, label) pairs, each compared once while memory allows.

    Args:
        similarity: What compares them.
        minimum: Lower weights count as 0.
    """

    def __init__(self, similarity: Similarity, minimum: float) -> None:
        self._similarity = similarity
        self._minimum = minimum
        self._forget()

    def _forget(self) -> None:
        self._names: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._keys: NDArray[np.int64] = np.zeros(0, np.int64)  # sorted
        self._values: NDArray[np.float32] = np.zeros(0, np.float32)

    def __call__(
        self, names: Sequence[str], labels: Sequence[str], rows: NDArray, columns: NDArray
    ) -> NDArray[np.float32]:
        """(P,) weights of the pairs (names[rows], labels[columns]); 0 below the minimum and for "" names."""
        if len(self._keys) > REMEMBERED_PAIRS:
            self._forget()
        name_ids = np.array(number_names(self._names, names), np.int64)
        label_ids = np.array(number_names(self._labels, labels), np.int64)
        keys = (name_ids << 32)[rows] | label_ids[columns]
        wanted = np.unique(keys)
        unknown = wanted[~np.isin(wanted, self._keys, assume_unique=True)]
        if len(unknown):
            name_of = dict(zip(name_ids.tolist(), names, strict=True))
            label_of = dict(zip(label_ids.tolist(), labels, strict=True))
            self._similarity.prepare({*names, *labels})
            values = np.zeros(len(unknown), np.float32)
            bounds = np.flatnonzero(np.diff(unknown >> 32, prepend=-1))
            for begin, end in zip(bounds, [*bounds[1:], len(unknown)], strict=True):
                name = name_of[int(unknown[begin] >> 32)]
                others = [label_of[key] for key in (unknown[begin:end] & 0xFFFFFFFF).tolist()]
                if name:
                    known = np.array([label != "" for label in others])
                    values[begin:end] = np.where(known, self._similarity.matrix([name], others)[0], 0)
            values[values < self._minimum] = 0
            keys_all = np.concatenate([self._keys, unknown])
            order = np.argsort(keys_all, kind="stable")
            self._keys, self._values = keys_all[order], np.concatenate([self._values, values])[order]
        return self._values[np.searchsorted(self._keys, keys)]


def ragged_cross_edges(
    graphs: Sequence[TextGraph], image: Sequence[int], images: Sequence[GraphImage], weights: PairWeights
) -> RaggedEdges:
    """Edges of weight > 0 between the text objects of N captions and the regions of their images.

    Args:
        graphs: N text scene graphs.
        image: N numbers into `images`, -1 without one.
        images: Regions with labels, "" unknown.
        weights: Weights of names and labels.

    Returns:
        Edges in the order of caption, object, region.
    """
    object_counts = np.array([len(graph.objects) for graph in graphs], np.int64)
    first_object = ragged_offsets(object_counts)
    caption = np.repeat(np.arange(len(graphs)), object_counts)
    image_of = np.array(image, np.int64)[caption] if len(graphs) else np.zeros(0, np.int64)
    placed = np.flatnonzero(image_of >= 0)  # objects whose caption has an image
    region_offsets = ragged_offsets([len(item.labels) for item in images])
    label, row, region = ragged_gather(region_offsets, image_of[placed])
    names = [item.name for graph in graphs for item in graph.objects]
    labels = [name for item in images for name in item.labels]
    weight = weights(names, labels, placed[row], label)
    kept = np.flatnonzero(weight > 0)
    item = placed[row[kept]]
    return RaggedEdges(
        ragged_offsets(np.bincount(caption[item], minlength=len(graphs))),
        (item - first_object[caption[item]]).astype(np.int32),
        region[kept].astype(np.int32),
        weight[kept],
    )
