"""The unified scene graph of one text and the regions of one image, for figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.features.regions import ImageId
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, cross_edges, region_edges
from tbkin_core.names.similarity import Similarity, make_similarity
from tbkin_core.parsing.parser import CaptionParser

Seen = tuple[Sequence[str], NDArray[np.float32]]
"""N names, and how sure an extractor is of each in K regions, (K, N) log odds above its bar."""

_ANYTHING = frozenset({"item", "object", "one", "shape", "something", "thing"})
_LOOK_WEIGHT = 0.5  # of a link by colour alone: not all that is red is the red heart
_SEEN_WEIGHT = 0.5  # of a link to a region that may be a part of the object, or hold it beside other things
# Of 32 such links in photos, 26 led to the object or a part of it; of smaller regions it is often beside.
_LEAST_SEEN, _LEAST_SEEN_AREA = 1.0, 0.02  # log odds above the extractor's own bar; of the image


def unified_graph(
    text: str,
    boxes: Any,
    labels: Sequence[str],
    image_id: ImageId | None = None,
    looks: Sequence[str] | None = None,
    minimum: float = 0.5,
    seen: Seen | None = None,
) -> dict[str, Any]:
    """The unified scene graph of a text and the regions of an image, as `UnifiedGraph.to_dict` writes it.

    A text object and a region are joined where the region's label is like the object's name. Where a region
    has no name but a look ("red"), or the object none of its own ("the red thing"), they are joined where the
    look is like an attribute that the text gives the object; where the object has a name, that counts half.
    An object that nothing is joined with yet is joined with the region that the extractor sees it in most,
    where it has no other name; that counts half, too.

    Args:
        text: One sentence.
        boxes: (K, 4) xyxy pixels.
        labels: K names, or looks in their place, "" where unknown.
        image_id: Of the image, if known.
        looks: K attributes, "" where unknown; `labels` when None.
        minimum: Least weight of an edge between the modalities.
        seen: N names, and how sure (K, N) the extractor is of each in each region, from 0 on; None where it
            does not tell.
    """
    graph = next(iter(CaptionParser().parse([text])))
    similarity = make_similarity()
    named = cross_edges([item.name for item in graph.objects], labels, similarity, minimum)
    looks = labels if looks is None else looks
    described = cross_edges([item.name for item in graph.attributes], looks, similarity, minimum)
    weights: dict[tuple[int, int], float] = {}
    for number, region, weight in zip(named.object, named.region, named.weight, strict=True):
        weights[int(number), int(region)] = float(weight)
    for number, region, weight in zip(described.object, described.region, described.weight, strict=True):
        owner = graph.attributes[number].object
        # A named region that looks alike is another thing: a red heart is no red cross.
        nameless = graph.objects[owner].name in _ANYTHING
        if nameless or labels[region] in ("", looks[region]):
            place = (owner, int(region))
            weights[place] = max(weights.get(place, 0.0), float(weight) * (1.0 if nameless else _LOOK_WEIGHT))
    if seen is not None:
        unnamed = np.array([label in ("", look) for label, look in zip(labels, looks, strict=True)], bool)
        joined = {owner for owner, _ in weights}
        for owner, item in enumerate(graph.objects):
            if owner not in joined:
                region = _seen_in(item.name, seen, np.asarray(boxes), unnamed, similarity)
                weights |= {} if region is None else {(owner, region): _SEEN_WEIGHT}
    pairs = np.array(sorted(weights), np.int32).reshape(-1, 2)
    weight = np.array([weights[place] for place in sorted(weights)], np.float32)
    return UnifiedGraph(
        text_id=0,
        image_id=image_id,
        text=text,
        graph=graph,
        boxes=np.asarray(boxes, np.float32),
        labels=tuple(labels),
        image_edges=region_edges(boxes),
        cross=CrossEdges(pairs[:, 0], pairs[:, 1], weight),
    ).to_dict()


def _seen_in(
    name: str, seen: Seen, boxes: NDArray, unnamed: NDArray[np.bool_], similarity: Similarity
) -> int | None:
    """The region without a name in which an object of this name is seen most, if it is seen at all."""
    names, values = seen
    # What is a kind of it, too, but nothing that is only like it.
    same = cross_edges([name], names, similarity, 0.999).region
    if not len(same) or not len(boxes):
        return None
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    whole = max(float(boxes[:, 2].max() * boxes[:, 3].max()), 1e-6)
    most = np.where(unnamed & (areas >= _LEAST_SEEN_AREA * whole), values[:, same].max(axis=1), -np.inf)
    best = int(most.argmax())
    return best if most[best] >= _LEAST_SEEN else None
