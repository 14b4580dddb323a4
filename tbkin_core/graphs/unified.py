"""The unified scene graph: region edges, cross-modal edges, and one image's graph as a whole.

Vertices are regions and text objects, attributes and relations; edges inside the image weigh IoU, across
the modalities the similarity of names (ROSITA, ACM MM 2021, §3.1).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.features.regions import ImageId, pairwise_iou
from tbkin_core.graphs.text_graph import TextGraph

if TYPE_CHECKING:
    import networkx

PREDICATES = ("left of", "right of", "above", "below", "inside", "contains", "overlaps")


@dataclass(frozen=True, slots=True)
class RegionEdges:
    """Edges between regions of an image.

    Attributes:
        pairs: (E, 2) int32 region numbers, first < second.
        iou: (E,) float32 weight.
        predicate: (E,) int8 into `PREDICATES`, read "first PREDICATE second".
    """

    pairs: NDArray[np.int32]
    iou: NDArray[np.float32]
    predicate: NDArray[np.int8]


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


# ---- names --------------------------------------------------------------------------------------


class LexicalSimilarity:
    """Similarity of a text object's name and a region's label from words alone; no download.

    1 for the same name or a listed synonym ("man" and "person"), 0.8 where one name's head word is the
    other name ("traffic light" and "light"), else 0. Each distinct pair is compared once.
    """

    def __init__(self) -> None:
        self._cache: dict[tuple[str, str], float] = {}

    def __call__(self, name: str, label: str) -> float:
        pair = (name, label)
        if pair not in self._cache:
            self._cache[pair] = self._compare(name.lower().strip(), label.lower().strip())
        return self._cache[pair]

    def matrix(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        """(len(names), len(labels)) float32."""
        values = [[self(name, label) for label in labels] for name in names]
        return np.array(values, np.float32).reshape(len(names), len(labels))

    def _compare(self, name: str, label: str) -> float:
        if not name or not label:
            return 0.0
        names, labels = _synonyms(name), _synonyms(label)
        if names & labels:
            return 1.0
        if _synonyms(name.split()[-1]) & labels or names & _synonyms(label.split()[-1]):
            return 0.8
        return 0.0


@functools.cache
def _groups() -> dict[str, frozenset[str]]:
    content = json.loads(resources.files("tbkin_core.resources").joinpath("synonyms.json").read_text("utf-8"))
    table: dict[str, set[str]] = {}
    for concept, words in content["groups"].items():
        for word in [concept, *words]:
            table.setdefault(word, set()).add(concept)
    return {word: frozenset(concepts) for word, concepts in table.items()}


@functools.cache
def _synonyms(name: str) -> frozenset[str]:
    groups = _groups()
    singular = _singular(name)
    return frozenset({name, singular}) | groups.get(name, frozenset()) | groups.get(singular, frozenset())


def _singular(name: str) -> str:
    """A rough singular of the last word; only ever compared with another rough singular."""
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if name.endswith(ending) and len(name) > len(ending) + 1:
            return name[: -len(ending)] + replacement
    if name.endswith("s") and not name.endswith(("ss", "us", "is")) and len(name) > 3:
        return name[:-1]
    return name


# ---- the graph of one caption -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CrossEdges:
    """Edges between text objects and regions: object, region and weight, each (E,)."""

    object: NDArray[np.int32]
    region: NDArray[np.int32]
    weight: NDArray[np.float32]


def cross_edges(
    names: Sequence[str], labels: Sequence[str], similarity: LexicalSimilarity, minimum: float
) -> CrossEdges:
    """Edges of weight >= `minimum` between text objects and labelled regions ("" has no label)."""
    if not names or not labels:
        empty = np.zeros(0, np.int32)
        return CrossEdges(empty, empty, np.zeros(0, np.float32))
    weights = similarity.matrix(names, labels)
    rows, columns = np.nonzero((weights >= minimum) & (weights > 0))
    return CrossEdges(rows.astype(np.int32), columns.astype(np.int32), weights[rows, columns])


@dataclass(frozen=True, slots=True)
class UnifiedGraph:
    """Text graph, regions and all edges of one caption and its image.

    Attributes:
        text_id, image_id, text: The caption; `image_id` None without an image.
        graph: Its text scene graph.
        boxes: (K, 4) xyxy pixels.
        labels: K region labels, "" unknown.
        image_edges: Between regions.
        cross: Between text objects and regions.
    """

    text_id: int | str
    image_id: ImageId | None
    text: str
    graph: TextGraph
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    image_edges: RegionEdges
    cross: CrossEdges

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as one line of `--export graphs.jsonl`."""
        graph = self.graph
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
                {
                    "first": int(first),
                    "second": int(second),
                    "iou": round(float(iou), 4),
                    "predicate": PREDICATES[kind],
                }
                for (first, second), iou, kind in zip(
                    self.image_edges.pairs, self.image_edges.iou, self.image_edges.predicate, strict=True
                )
            ],
            "cross_edges": [
                {"object": int(item), "region": int(region), "weight": round(float(weight), 4)}
                for item, region, weight in zip(
                    self.cross.object, self.cross.region, self.cross.weight, strict=True
                )
            ],
        }

    def to_networkx(self) -> networkx.DiGraph:
        """A directed graph whose vertices carry `kind` (region, object, attribute, relation) and `name`."""
        import networkx

        result = networkx.DiGraph(text_id=str(self.text_id), image_id=str(self.image_id), text=self.text)
        for number, (box, label) in enumerate(zip(self.boxes, self.labels, strict=True)):
            result.add_node(
                f"region{number}", kind="region", name=label, box=" ".join(f"{side:.1f}" for side in box)
            )
        for number, item in enumerate(self.graph.objects):
            result.add_node(f"object{number}", kind="object", name=item.name)
        for number, attribute in enumerate(self.graph.attributes):
            result.add_node(f"attribute{number}", kind="attribute", name=attribute.name)
            result.add_edge(f"object{attribute.object}", f"attribute{number}", kind="attribute")
        for number, relation in enumerate(self.graph.relations):
            result.add_node(f"relation{number}", kind="relation", name=relation.predicate)
            result.add_edge(f"object{relation.subject}", f"relation{number}", kind="subject")
            result.add_edge(f"relation{number}", f"object{relation.object}", kind="object")
        edges = self.image_edges
        for (first, second), iou, kind in zip(edges.pairs, edges.iou, edges.predicate, strict=True):
            result.add_edge(
                f"region{first}", f"region{second}", kind="spatial", name=PREDICATES[kind], weight=float(iou)
            )
        for item_number, region, weight in zip(
            self.cross.object, self.cross.region, self.cross.weight, strict=True
        ):
            result.add_edge(
                f"object{item_number}", f"region{region}", kind="cross-modal", weight=float(weight)
            )
        return result
