"""The unified scene graph: region edges, cross-modal edges, and one image's graph as a whole.

Vertices are regions and text objects, attributes and relations; edges inside the image weigh IoU, across
the modalities the similarity of names (ROSITA, ACM MM 2021, §3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import pairwise_iou
from tbkin_core.features.regions import ImageId
from tbkin_core.names.similarity import Similarity
from tbkin_core.parsing.text_graph import TextGraph

PREDICATES = ("left of", "right of", "above", "below", "inside", "contains", "overlaps")


@dataclass(frozen=True, slots=True)
class RegionEdges:
    """Edges between regions of an image."""

    pairs: NDArray[np.int32]  # (E, 2) int32 region numbers, first < second
    iou: NDArray[np.float32]  # (E,) float32 weight
    predicate: NDArray[np.int8]  # (E,) int8 into `PREDICATES`, read "first PREDICATE second"


def region_edges(boxes: NDArray, neighbours: int = 3) -> RegionEdges:
    """Edges between regions that overlap, and from each region to its nearest neighbours.

    Args:
        boxes: (K, 4) xyxy pixels.
        neighbours: How many nearest regions by centre distance each is joined to, overlapping or not.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    iou = pairwise_iou(boxes)
    linked = iou > 0
    if count > 1 and neighbours > 0:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(neighbours, count - 1)]
        linked[np.arange(count)[:, None], nearest] = True
    first, second = np.nonzero(np.triu(linked | linked.T, k=1))
    return RegionEdges(
        np.stack([first, second], axis=1).astype(np.int32).reshape(-1, 2),
        iou[first, second].astype(np.float32),
        spatial_predicates(boxes[first], boxes[second]),
    )


def spatial_predicates(first: NDArray, second: NDArray) -> NDArray[np.int8]:
    """(E,) index into `PREDICATES` for pairs of boxes (E, 4): containment, overlap, else direction."""
    inside = (first[:, :2] >= second[:, :2]).all(axis=1) & (first[:, 2:] <= second[:, 2:]).all(axis=1)
    contains = (second[:, :2] >= first[:, :2]).all(axis=1) & (second[:, 2:] <= first[:, 2:]).all(axis=1)
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    overlaps = (high > low).all(axis=1)
    offset = (second[:, :2] + second[:, 2:]) - (first[:, :2] + first[:, 2:])
    sideways = np.abs(offset[:, 0]) >= np.abs(offset[:, 1])
    direction = np.where(sideways, np.where(offset[:, 0] >= 0, 0, 1), np.where(offset[:, 1] >= 0, 2, 3))
    return np.select([inside, contains, overlaps], [4, 5, 6], direction).astype(np.int8)


# ---- the graph of one caption -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CrossEdges:
    """Edges between text objects and regions: object, region and weight, each (E,)."""

    object: NDArray[np.int32]
    region: NDArray[np.int32]
    weight: NDArray[np.float32]


def cross_edges(
    names: Sequence[str], labels: Sequence[str], similarity: Similarity, minimum: float
) -> CrossEdges:
    """Edges of weight >= `minimum` between text objects and labelled regions ("" has no label)."""
    if not names or not labels:
        return CrossEdges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    weights = similarity.matrix(names, labels)
    rows, columns = np.nonzero((weights >= minimum) & (weights > 0))
    return CrossEdges(rows.astype(np.int32), columns.astype(np.int32), weights[rows, columns])


@dataclass(frozen=True, slots=True)
class UnifiedGraph:
    """Text graph, regions and all edges of one caption and its image."""

    text_id: int | str
    image_id: ImageId | None  # None without an image
    text: str  # the caption
    graph: TextGraph  # its text scene graph
    boxes: NDArray[np.float32]  # (K, 4) xyxy pixels
    labels: tuple[str, ...]  # K region labels, "" unknown
    image_edges: RegionEdges  # between regions
    cross: CrossEdges  # between text objects and regions
    region_attributes: tuple[tuple[int, str], ...] = ()  # as people annotated them; empty where nobody did
    region_relations: tuple[tuple[int, str, int], ...] = ()  # subject, predicate, object; likewise

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as one line of `--export graphs.jsonl`."""
        graph, edges, cross = self.graph, self.image_edges, self.cross
        spatial = zip(edges.pairs.tolist(), edges.iou.tolist(), edges.predicate.tolist(), strict=True)
        linked = zip(cross.object.tolist(), cross.region.tolist(), cross.weight.tolist(), strict=True)
        return {
            "text_id": self.text_id,
            "image_id": self.image_id,
            "text": self.text,
            "tokens": list(graph.tokens),
            "objects": [
                {"id": number, "head": item.head, "span": list(item.span), "name": item.name}
                for number, item in enumerate(graph.objects)
            ],
            "attributes": [
                {"object": item.object, "name": item.name, "tokens": list(item.tokens)}
                for item in graph.attributes
            ],
            "relations": [
                {
                    "subject": item.subject,
                    "predicate": item.predicate,
                    "object": item.object,
                    "tokens": list(item.tokens),
                }
                for item in graph.relations
            ],
            "regions": [
                {"id": number, "box": [round(float(side), 2) for side in box], "label": label}
                for number, (box, label) in enumerate(zip(self.boxes, self.labels, strict=True))
            ],
            "image_edges": [
                {"first": first, "second": second, "iou": round(iou, 4), "predicate": PREDICATES[kind]}
                for (first, second), iou, kind in spatial
            ],
            "region_attributes": [
                {"region": region, "name": name} for region, name in self.region_attributes
            ],
            "region_relations": [
                {"subject": subject, "predicate": predicate, "object": other}
                for subject, predicate, other in self.region_relations
            ],
            "cross_edges": [
                {"object": item, "region": region, "weight": round(weight, 4)}
                for item, region, weight in linked
            ],
        }
