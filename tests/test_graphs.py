"""Unified scene graphs: edges, names, priors, the store, and building them from a dataset directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from command_line import abandoned
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import tbkin_core.graphs.build as build_module
import tbkin_core.parsing.parser as parser_module
from tbkin_core.boxes import pairwise_iou
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError, MissingDependencyError
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import write_feature_store
from tbkin_core.graphs.arrays import (
    GraphImage,
    RaggedEdges,
    ShardArrays,
    ShardCaptions,
    pack_shard,
    shard_counts,
)
from tbkin_core.graphs.build import Build, Recipe, build_dataset, choose_workers
from tbkin_core.graphs.exports import export_jsonl, to_networkx
from tbkin_core.graphs.joining import PairWeights, borrowed_labels, ragged_cross_edges
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.store import GraphStore, GraphStoreWriter, write_graph_shard
from tbkin_core.graphs.unified import (
    PREDICATES,
    CrossEdges,
    UnifiedGraph,
    cross_edges,
    region_edges,
    spatial_predicates,
)
from tbkin_core.names.lexicon import lemmatize_predicate
from tbkin_core.names.similarity import LexicalSimilarity, make_similarity
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation
from tbkin_core.support.shards import ragged_offsets, shard_name

BOXES = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 8), st.just(4)), elements=st.integers(0, 40).map(float)
).map(lambda boxes: np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1], axis=1))

# ---- region edges -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "predicate"),
    [
        ((0, 0, 10, 10), (20, 0, 30, 10), "left of"),
        ((20, 0, 30, 10), (0, 2, 10, 12), "right of"),
        ((0, 0, 10, 10), (2, 20, 12, 30), "above"),
        ((0, 20, 10, 30), (0, 0, 10, 10), "below"),
        ((2, 2, 5, 5), (0, 0, 10, 10), "inside"),
        ((0, 0, 10, 10), (2, 2, 5, 10), "contains"),
        ((0, 0, 10, 10), (5, 5, 15, 15), "overlaps"),
        ((0, 0, 10, 10), (10, 0, 20, 10), "left of"),
    ],
)
def test_spatial_predicates(first: tuple[int, ...], second: tuple[int, ...], predicate: str) -> None:
    found = spatial_predicates(np.array([first], np.float32), np.array([second], np.float32))
    assert PREDICATES[found[0]] == predicate


@settings(max_examples=80, deadline=None)
@given(boxes=BOXES, neighbours=st.integers(0, 4))
def test_regions_are_joined_where_they_overlap_and_to_their_nearest(boxes: NDArray, neighbours: int) -> None:
    edges = region_edges(boxes, neighbours)
    pairs = {tuple(pair) for pair in edges.pairs.tolist()}
    assert len(pairs) == len(edges.pairs) == len(edges.iou) == len(edges.predicate)
    assert all(first < second for first, second in pairs)
    iou = pairwise_iou(boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    degree = np.zeros(len(boxes), int)
    for first, second in pairs:
        degree[[first, second]] += 1
    for first in range(len(boxes)):
        others = sorted(
            (np.linalg.norm(centres[first] - centres[other]), other)
            for other in range(len(boxes))
            if other != first
        )
        assert degree[first] >= min(neighbours, len(others))
        for second in range(first + 1, len(boxes)):
            if iou[first, second] > 0:
                assert (first, second) in pairs
        if others and neighbours:
            nearest = [other for distance, other in others if distance == others[0][0]]
            assert any(tuple(sorted((first, other))) in pairs for other in nearest)
    for (first, second), weight, predicate in zip(edges.pairs, edges.iou, edges.predicate, strict=True):
        assert weight == pytest.approx(iou[first, second])
        assert (PREDICATES[predicate] in ("inside", "contains", "overlaps")) == (weight > 0)


def test_mirrored_pairs_have_opposite_predicates() -> None:
    opposite = {"left of": "right of", "above": "below", "inside": "contains"}
    opposite |= {value: key for key, value in opposite.items()} | {"overlaps": "overlaps"}
    source = np.random.default_rng(0)
    corners = source.integers(0, 60, (2, 500, 2))
    boxes = np.concatenate([corners, corners + source.integers(5, 30, (2, 500, 2))], axis=2).astype(
        np.float32
    )
    boxes += source.random(boxes.shape).astype(np.float32)  # no two centres on one diagonal
    forth, back = spatial_predicates(boxes[0], boxes[1]), spatial_predicates(boxes[1], boxes[0])
    for one, other in zip(forth, back, strict=True):
        assert PREDICATES[other] == opposite[PREDICATES[one]]
    assert len(set(forth.tolist())) == 7


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("dog", "dog", 1.0),
        ("Dog ", "dogs", 1.0),
        ("man", "person", 1.0),
        ("traffic light", "light", 0.8),
        ("bus", "bus stop", 0.0),
        ("dog", "table", 0.0),
        ("glass", "glasses", 0.6),
        ("", "dog", 0.0),
        ("dog", "", 0.0),
    ],
)
def test_similarity_of_names(name: str, label: str, expected: float) -> None:
    similarity = LexicalSimilarity()
    assert similarity(name, label) == pytest.approx(expected)
    assert similarity(label, name) == pytest.approx(expected)


def test_cross_edges_keep_what_is_similar_enough() -> None:
    names, labels = ["man", "traffic light", "sky"], ["person", "", "light", "person"]
    similarity = LexicalSimilarity()

    def triples(minimum: float) -> set[tuple[int, int, float]]:
        edges = cross_edges(names, labels, similarity, minimum)
        columns = (
            edges.object.tolist(),
            edges.region.tolist(),
            [round(weight, 3) for weight in edges.weight.tolist()],
        )
        return set(zip(*columns, strict=True))

    assert triples(0.5) == {(0, 0, 1.0), (0, 3, 1.0), (1, 2, 0.8)}
    assert triples(0.9) == {(0, 0, 1.0), (0, 3, 1.0)}
    assert triples(0.0) == triples(0.5), "what is not similar at all is never joined"
    assert not len(cross_edges([], labels, similarity, 0.5).object)
    assert not len(cross_edges(names, [], similarity, 0.5).object)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_edges_of_many_captions_equal_those_of_each(data: st.DataObject) -> None:
    words = st.sampled_from(["dog", "dogs", "man", "person", "traffic light", "light", "sky", "food", ""])
    images = [
        GraphImage(number, np.zeros((len(labels), 4), np.float32), tuple(labels))
        for number, labels in enumerate(data.draw(st.lists(st.lists(words, max_size=5), max_size=3)))
    ]
    similarity, minimum = make_similarity(), data.draw(st.sampled_from([0.0, 0.5, 0.9]))
    weights = PairWeights(make_similarity(), minimum)
    for _ in range(2):  # the second time from memory
        graphs = [
            simple_graph(*names) for names in data.draw(st.lists(st.lists(words, max_size=4), max_size=4))
        ]
        places = [data.draw(st.integers(-1, len(images) - 1)) for _ in graphs]
        found = ragged_cross_edges(graphs, places, images, weights)
        assert len(found.offsets) == len(graphs) + 1
        for row, (graph, place) in enumerate(zip(graphs, places, strict=True)):
            labels = images[place].labels if place >= 0 else ()
            expected = cross_edges([item.name for item in graph.objects], labels, similarity, minimum)
            begin, end = found.offsets[row : row + 2]
            for name in ("object", "region", "weight"):
                np.testing.assert_array_equal(getattr(found, name)[begin:end], getattr(expected, name))


def test_each_pair_of_words_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    similarity = make_similarity()
    compare = similarity.matrix

    def counted(names: Any, labels: Any) -> NDArray[np.float32]:
        asked.extend((name, label) for name in names for label in labels)
        return compare(names, labels)

    monkeypatch.setattr(similarity, "matrix", counted)
    weights = PairWeights(similarity, 0.5)
    image = GraphImage(1, np.zeros((3, 4), np.float32), ("dog", "dog", "sofa"))
    for _ in range(3):
        edges = ragged_cross_edges([simple_graph("dog", "couch", "dog")] * 2, [0, 0], [image], weights)
        assert (
            list(zip(edges.object, edges.region, strict=True)) == [(0, 0), (0, 1), (1, 2), (2, 0), (2, 1)] * 2
        )
    assert len(asked) == len(set(asked)) == 4


def test_labels_are_borrowed_from_the_best_overlapping_annotation() -> None:
    annotated = np.array([[0, 0, 10, 10], [0, 0, 10, 20]], np.float32)
    boxes = np.array([[0, 0, 10, 11], [0, 0, 10, 18], [50, 50, 60, 60], [0, 0, 30, 30]], np.float32)
    assert borrowed_labels(boxes, annotated, ["cat", "dog"], 0.5) == ("cat", "dog", "", "")
    assert borrowed_labels(boxes, annotated[:0], [], 0.5) == ("",) * 4
    assert borrowed_labels(boxes[:0], annotated, ["cat", "dog"], 0.5) == ()


# ---- priors -------------------------------------------------------------------------------------


def simple_graph(*objects: str, attributes: Any = (), relations: Any = ()) -> TextGraph:
    """A graph whose tokens are its objects' names, then the words of attributes and relations."""
    tokens = [*objects, *(name for _, name in attributes), *(name for _, name, _ in relations)]
    first = len(objects)
    return TextGraph(
        tuple(tokens),
        tuple(TextObject(place, (place, place + 1), name) for place, name in enumerate(objects)),
        tuple(TextAttribute(item, name, (first + n,)) for n, (item, name) in enumerate(attributes)),
        tuple(
            TextRelation(one, name, two, (first + len(attributes) + n,))
            for n, (one, name, two) in enumerate(relations)
        ),
    )


def count_graph(priors: Priors, graph: TextGraph) -> None:
    """Add one text scene graph to the counts, name by name."""
    names = [item.name for item in graph.objects]
    priors.objects.update(names)
    priors.attributes.update((names[item.object], item.name) for item in graph.attributes)
    priors.relations.update(
        (names[item.subject], item.predicate, names[item.object]) for item in graph.relations
    )


def test_priors_are_shares_of_mentions(tmp_path: Path) -> None:
    priors = Priors()
    count_graph(priors, simple_graph("dog", "sofa", attributes=[(0, "brown")], relations=[(0, "on", 1)]))
    count_graph(priors, simple_graph("dog", "dog", attributes=[(1, "brown")]))
    count_graph(priors, simple_graph("dog"))
    assert priors.attribute("dog", "brown") == 2 / 4
    assert priors.attribute("dog", "red") == 0
    assert priors.attribute("cat", "brown") == 0
    assert priors.relation("dog", "on", "sofa") == 1 / 4
    assert priors.relation("sofa", "on", "dog") == 0
    other = Priors()
    count_graph(other, simple_graph("dog"))
    priors.merge(other)
    assert priors.attribute("dog", "brown") == 2 / 5
    priors.save(tmp_path / "priors.json")
    loaded = Priors.load(tmp_path / "priors.json")
    assert (loaded.objects, loaded.attributes, loaded.relations) == (
        priors.objects,
        priors.attributes,
        priors.relations,
    )


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"objects": {}, "attributes": [[1]], "relations": []}', "3"]
)
def test_broken_priors_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "priors.json").write_text(content)
    with pytest.raises(DataError, match=r"priors\.json"):
        Priors.load(tmp_path / "priors.json")


# ---- the store ----------------------------------------------------------------------------------

NAMES = st.text(max_size=6)
TOKENS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=5)


@st.composite
def text_graphs(draw: st.DrawFn) -> TextGraph:
    tokens = draw(st.lists(TOKENS, max_size=6))
    if not tokens:
        return TextGraph(())
    place = st.integers(0, len(tokens) - 1)
    places = st.lists(place, min_size=1, max_size=3).map(tuple)
    spans = st.tuples(place, place).map(lambda ends: (min(ends), max(ends) + 1))
    objects = draw(st.lists(st.builds(TextObject, place, spans, NAMES), max_size=4))
    numbers = st.integers(0, len(objects) - 1)
    attributes = st.lists(st.builds(TextAttribute, numbers, NAMES, places), max_size=3)
    relations = st.lists(st.builds(TextRelation, numbers, NAMES, numbers, places), max_size=3)
    return TextGraph(
        tuple(tokens),
        tuple(objects),
        tuple(draw(attributes)) if objects else (),
        tuple(draw(relations)) if objects else (),
    )


@dataclass(frozen=True)
class GraphRecord:
    """One caption of a shard."""

    text_id: int | str
    text: str
    split: str
    image: int
    graph: TextGraph
    cross: CrossEdges


def shard_of(records: list[GraphRecord], images: list[GraphImage]) -> ShardArrays:
    def joined(name: str, dtype: Any) -> NDArray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(record.cross, name) for record in records)])

    offsets = ragged_offsets([len(record.cross.object) for record in records])
    cross = RaggedEdges(
        offsets, joined("object", np.int32), joined("region", np.int32), joined("weight", np.float32)
    )
    captions = ShardCaptions(
        [record.text_id for record in records],
        [record.text for record in records],
        [record.split for record in records],
        [record.image for record in records],
        images,
    )
    return pack_shard(captions, [record.graph for record in records], cross)


@st.composite
def shards(draw: st.DrawFn, number: int = 0) -> tuple[list[GraphRecord], list[GraphImage]]:
    images = [
        GraphImage(
            draw(st.integers(0, 99) | NAMES),
            boxes,
            tuple(draw(st.lists(NAMES, min_size=len(boxes), max_size=len(boxes)))),
        )
        for boxes in draw(st.lists(BOXES, max_size=3))
    ]
    records = []
    for place in range(draw(st.integers(0, 4))):
        graph = draw(text_graphs())
        image = draw(st.integers(-1, len(images) - 1))
        most = min(len(graph.objects), len(images[image].boxes) if image >= 0 else 0)
        edges = draw(st.integers(0, 3)) if most else 0
        cross = CrossEdges(
            np.array([draw(st.integers(0, most - 1)) for _ in range(edges)], np.int32),
            np.array([draw(st.integers(0, most - 1)) for _ in range(edges)], np.int32),
            np.array([draw(st.floats(0, 1, width=32)) for _ in range(edges)], np.float32),
        )
        text = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
        text_id = draw(st.just(f"{number}:{place}") | st.just(100 * number + place))
        records.append(
            GraphRecord(text_id, text, draw(st.sampled_from(["train", "val"])), image, graph, cross)
        )
    return records, images


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_graph_store_gives_back_what_was_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("graphs")
    parts = [data.draw(shards(number)) for number in range(data.draw(st.integers(1, 3)))]
    writer = GraphStoreWriter(path, {"parser": "test"}, len(parts))
    for number, (records, images) in enumerate(parts):
        write_graph_shard(path, number, shard_of(records, images), "any")
    writer.finish({"captions": 1}, Priors())
    store = GraphStore(path)
    expected = [(record, images) for records, images in parts for record in records]
    assert len(store) == len(expected)
    assert store.summary["summary"] == {"captions": 1}
    priors, counted = Priors(), Priors()
    for shard, (records, _) in zip(store.shards, parts, strict=True):
        keep = np.array([record.split == "train" for record in records], bool)
        counted.merge(shard_counts(shard, keep))
        for record in records:
            if record.split == "train":
                count_graph(priors, record.graph)
    for name in ("objects", "attributes", "relations"):
        assert getattr(counted, name) == getattr(priors, name), name
    for found, (record, images) in zip(store, expected, strict=True):
        assert (found.text_id, found.text, found.graph) == (record.text_id, record.text, record.graph)
        for name in ("object", "region", "weight"):
            np.testing.assert_array_equal(getattr(found.cross, name), getattr(record.cross, name))
        if record.image < 0:
            assert found.image_id is None
            assert not len(found.boxes)
        else:
            image = images[record.image]
            assert (found.image_id, found.labels) == (image.image_id, image.labels)
            np.testing.assert_array_equal(found.boxes, image.boxes)
        json.dumps(found.to_dict())


def test_rows_outside_the_store_are_refused(tmp_path: Path) -> None:
    writer = GraphStoreWriter(tmp_path, {}, 0)
    writer.begin()
    with pytest.raises(DataError, match="interrupted"):
        GraphStore(tmp_path)
    writer.finish({}, Priors())
    for row in (-1, 0, 5):
        with pytest.raises(IndexError):
            GraphStore(tmp_path)[row]


# ---- export -------------------------------------------------------------------------------------


def example_graph() -> UnifiedGraph:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 20], [30, 30, 40, 40]], np.float32)
    graph = simple_graph("dog", "sofa", attributes=[(0, "brown")], relations=[(0, "on", 1)])
    labels = ("dog", "couch", "")
    cross = cross_edges(["dog", "sofa"], labels, LexicalSimilarity(), 0.5)
    return UnifiedGraph(1, 42, "a brown dog on a sofa", graph, boxes, labels, region_edges(boxes), cross)


def test_a_graph_becomes_plain_values() -> None:
    content = json.loads(json.dumps(example_graph().to_dict()))
    assert content["objects"][1] == {"id": 1, "head": 1, "span": [1, 2], "name": "sofa"}
    assert content["attributes"] == [{"object": 0, "name": "brown", "tokens": [2]}]
    assert content["relations"] == [{"subject": 0, "predicate": "on", "object": 1, "tokens": [3]}]
    assert content["regions"][1] == {"id": 1, "box": [5.0, 5.0, 20.0, 20.0], "label": "couch"}
    assert {"object": 0, "region": 0, "weight": 1.0} in content["cross_edges"]
    overlap = next(edge for edge in content["image_edges"] if (edge["first"], edge["second"]) == (0, 1))
    assert overlap == {"first": 0, "second": 1, "iou": round(25 / 300, 4), "predicate": "overlaps"}


def test_a_graph_becomes_a_networkx_graph_that_can_be_written(tmp_path: Path) -> None:
    unified = example_graph()
    graph = to_networkx(unified)
    kinds = networkx.get_node_attributes(graph, "kind")
    assert sorted(kinds.values()) == [
        "attribute",
        "object",
        "object",
        "region",
        "region",
        "region",
        "relation",
    ]
    assert graph.edges["object0", "region0"] == {"kind": "cross-modal", "weight": 1.0}
    assert graph.has_edge("object0", "relation0")
    assert graph.has_edge("relation0", "object1")
    assert graph.nodes["attribute0"]["name"] == "brown"
    assert graph.number_of_edges() == 3 + len(unified.cross.object) + len(unified.image_edges.pairs)
    networkx.write_graphml(graph, tmp_path / "graph.graphml")
    again = networkx.read_graphml(tmp_path / "graph.graphml")
    assert set(again) == set(graph)
    assert again.edges["object0", "region0"]["weight"] == 1.0
    networkx.write_gexf(graph, tmp_path / "graph.gexf")


# ---- building -----------------------------------------------------------------------------------


class WordParser:
    """Nouns and "NOUN is ADJECTIVE" and "NOUN on NOUN" of a few words: the build without spaCy."""

    name = "words"
    version = "1"
    nouns = frozenset({"dog", "cat", "sofa", "man", "horse"})

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.seen = 0

    def parse(self, texts: Iterable[str]) -> Iterator[TextGraph]:
        for text in texts:
            if self.stop_after is not None and self.seen >= self.stop_after:
                raise KeyboardInterrupt
            self.seen += 1
            tokens = text.split()
            places = [place for place, token in enumerate(tokens) if token in self.nouns]
            objects = tuple(TextObject(place, (place, place + 1), tokens[place]) for place in places)
            attributes = tuple(
                TextAttribute(item, tokens[place - 1], (place - 1,))
                for item, place in enumerate(places)
                if place and tokens[place - 1] in ("brown", "red")
            )
            relations = tuple(
                TextRelation(item, "on", item + 1, (place + 1,))
                for item, place in enumerate(places[:-1])
                if tokens[place + 1] == "on"
            )
            yield TextGraph(tuple(tokens), objects, attributes, relations)


class DyingParser(WordParser):
    """Ends its process, as one that runs out of memory is ended."""

    def parse(self, texts: Iterable[str]) -> Iterator[TextGraph]:
        os._exit(9)


def missing_parser() -> WordParser:
    raise MissingDependencyError("the parser is not installed")


TEXTS = ["a brown dog on sofa", "a cat", "", "man on horse", "the red sofa", "nothing here", "dog and cat"]


def coco_directory(root: Path) -> Path:
    """Two splits of captions, and boxes of the training images."""
    annotations = root / "annotations"
    annotations.mkdir(parents=True)
    for split, first, texts in (
        ("train2017", 1, TEXTS),
        ("val2017", 5, ["a brown cat", "a brown cat on sofa"]),
    ):
        images = [
            {"id": first + number, "file_name": f"{first + number:012d}.jpg", "width": 100, "height": 80}
            for number in range(3)
        ]
        captions = [
            {"id": 100 * first + number, "image_id": first + number % 3, "caption": text}
            for number, text in enumerate(texts)
        ]
        (annotations / f"captions_{split}.json").write_text(
            json.dumps({"images": images, "annotations": captions})
        )
        boxes = [
            {
                "id": 1,
                "image_id": first,
                "category_id": 18,
                "bbox": [10, 10, 30, 30],
                "area": 900,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": first,
                "category_id": 63,
                "bbox": [5, 20, 60, 40],
                "area": 2400,
                "iscrowd": 0,
            },
        ]
        categories = [{"id": 18, "name": "dog"}, {"id": 63, "name": "couch"}]
        (annotations / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": boxes, "categories": categories})
        )
    return root


def jsonl_directory(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"image": f"{number % 3}.jpg", "text": text or "x"}) for number, text in enumerate(TEXTS)
    ]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return root


def build(
    root: Path, out: Path, parser: Any = None, features: FeatureStore | None = None, **options: Any
) -> Build:
    how = {name: options.pop(name) for name in ("min_similarity", "label_iou") if name in options}
    recipe = Recipe(lambda: parser or WordParser(), **how)
    return build_dataset(open_dataset(root), out, features, recipe, **options)


def contents(store: GraphStore) -> list[dict[str, Any]]:
    return [graph.to_dict() for graph in store]


def test_building_from_coco_annotations(tmp_path: Path) -> None:
    result = build(coco_directory(tmp_path / "coco"), tmp_path / "graphs")
    found = {graph.text_id: graph for graph in result.store}
    captions = open_dataset(tmp_path / "coco").captions()
    assert set(found) == {caption.text_id for caption in captions}
    assert (result.made, result.present) == (len(captions), 0)
    first = found[100]
    assert first.labels == ("dog", "couch")
    np.testing.assert_array_equal(first.boxes, [[10, 10, 40, 40], [5, 20, 65, 60]])
    weights = {
        (first.graph.objects[item].name, first.labels[region]): weight
        for item, region, weight in zip(
            first.cross.object, first.cross.region, first.cross.weight, strict=True
        )
    }
    assert weights == {("dog", "dog"): 1.0, ("sofa", "couch"): 1.0}
    assert found[101].image_id == 2
    assert not len(found[101].boxes)
    assert result.summary["captions"] == len(captions)
    assert result.summary["anchored"] == sum(len(graph.cross.object) > 0 for graph in result.store)
    assert result.summary["captions_with_regions"] == sum(len(graph.boxes) > 0 for graph in result.store)


def test_priors_are_counted_on_the_training_split_alone(tmp_path: Path) -> None:
    priors = build(coco_directory(tmp_path / "coco"), tmp_path / "graphs").store.priors()
    assert priors.objects["dog"] == 2
    assert priors.attribute("cat", "brown") == 0, "only validation captions speak of brown cats"
    assert priors.attribute("dog", "brown") == 1 / 2
    assert priors.relation("man", "on", "horse") == 1


def test_without_splits_every_caption_counts(tmp_path: Path) -> None:
    store = build(jsonl_directory(tmp_path / "data"), tmp_path / "graphs").store
    assert store.priors().objects["sofa"] == 2
    assert len(store) == len(TEXTS)


@pytest.mark.parametrize("layout", [coco_directory, jsonl_directory])
@pytest.mark.parametrize("stop_after", [0, 1, 3, 6])
def test_an_interrupted_build_goes_on_to_the_same_store(
    layout: Any, stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "SHARD_CAPTIONS", 2)
    root = layout(tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        build(root, tmp_path / "resumed", WordParser(stop_after))
    with pytest.raises(DataError, match="interrupted"):
        GraphStore(tmp_path / "resumed")
    resumed = build(root, tmp_path / "resumed")
    whole = build(root, tmp_path / "whole")
    assert resumed.present == stop_after // 2 * 2
    assert resumed.made == whole.made - resumed.present
    assert contents(resumed.store) == contents(whole.store)
    assert resumed.summary == whole.summary
    same_files(tmp_path / "whole", tmp_path / "resumed")
    again = build(root, tmp_path / "resumed")
    assert (again.made, again.present) == (0, whole.made)


def same_files(one: Path, other: Path) -> None:
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int | None, world: int, names: tuple[str, str]) -> None:
    for name, value in zip(names, (rank, world), strict=True):
        if rank is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, str(value))


def test_graphs_of_two_versions_of_a_parser_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = coco_directory(tmp_path / "coco"), tmp_path / "graphs"
    assert build(root, out, CaptionParser()).made
    assert not build(root, out, CaptionParser()).made
    monkeypatch.setattr(parser_module, "RULES", parser_module.RULES + 1)
    with pytest.raises(DataError, match=r"other settings \(parser_version\)"):
        build(root, out, CaptionParser())
    assert build(root, out, CaptionParser(), overwrite=True).made


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SHARD_CAPTIONS", 2)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_ranks_build_the_store_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], order: tuple[int, ...]
) -> None:
    root = coco_directory(tmp_path / "coco")
    whole = build(root, tmp_path / "whole")
    made = 0
    for rank in order:
        with pytest.raises(DataError):
            GraphStore(tmp_path / "shared")
        as_rank(monkeypatch, rank, 3, names)
        part = build(root, tmp_path / "shared")
        made += part.made
        assert (part.summary is None) == (rank != order[-1]) == (part.missing > 0)
    assert made == whole.made
    assert part.summary == whole.summary
    same_files(tmp_path / "whole", tmp_path / "shared")
    with pytest.raises(ConfigError, match="overwrite"):
        build(root, tmp_path / "shared", overwrite=True)


@pytest.mark.usefixtures("small_shards")
def test_what_a_rank_left_out_another_run_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank is killed within a shard; then one process, then another number of ranks, goes on."""
    root, names = coco_directory(tmp_path / "coco"), ("RANK", "WORLD_SIZE")
    whole = build(root, tmp_path / "whole")
    for place in ("alone", "others"):
        as_rank(monkeypatch, 1, 2, names)
        with pytest.raises(KeyboardInterrupt):
            build(root, tmp_path / place, WordParser(stop_after=3))
        as_rank(monkeypatch, 0, 2, names)
        part = build(root, tmp_path / place)
        assert part.missing == 1
        (tmp_path / place / abandoned("shard-00003", ".safetensors")).write_bytes(b"half")
        as_rank(monkeypatch, None, 0, names)
        if place == "alone":
            for stem in ("store", "priors"):
                (tmp_path / place / abandoned(stem, ".json")).write_bytes(b"half")
            rest = build(root, tmp_path / place)
            assert (rest.made, rest.present) == (2, whole.made - 2)
        else:
            for rank in (0, 1, 2, 3, 4, 5, 6):  # more ranks than shards
                as_rank(monkeypatch, rank, 7, names)
                build(root, tmp_path / place)
            as_rank(monkeypatch, None, 0, names)
        same_files(tmp_path / "whole", tmp_path / place)


@pytest.mark.parametrize(
    ("rank", "world"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0"), ("", "2"), ("", "x")]
)
def test_a_rank_outside_the_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        build(coco_directory(tmp_path / "coco"), tmp_path / "graphs")


@pytest.mark.usefixtures("small_shards")
def test_shards_of_another_corpus_are_built_again(tmp_path: Path) -> None:
    """A caption is corrected, then the corpus shrinks: what is untouched stays, the result is as if new."""
    root = jsonl_directory(tmp_path / "data")
    build(root, tmp_path / "graphs")
    file = root / "captions.jsonl"
    lines = file.read_text().splitlines()
    for changed, present in ([*lines[:2], lines[2].replace('"x"', '"a cat"'), *lines[3:]], 5), (lines[:2], 2):
        file.write_text("\n".join(changed) + "\n")
        result = build(root, tmp_path / "graphs")
        assert result.present == present
        build(root, tmp_path / f"new{present}")
        same_files(tmp_path / f"new{present}", tmp_path / "graphs")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    "name", ["shard-00000-backup", "shard-7", "shard-000123", "shard-notes", "shard-٠٠٠٠٧", "SHARD-00009"]
)
def test_files_that_are_only_named_like_shards_stay(tmp_path: Path, name: str) -> None:
    """The corpus shrinks, and shards of the larger one go."""
    root = jsonl_directory(tmp_path / "data")
    build(root, tmp_path / "graphs")
    mine = tmp_path / "graphs" / f"{name}.safetensors"
    mine.write_bytes((tmp_path / "graphs/shard-00000.safetensors").read_bytes())
    file = root / "captions.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")
    build(root, tmp_path / "graphs")
    assert sorted(path.name for path in (tmp_path / "graphs").glob("[sS]*.safetensors")) == sorted(
        ["shard-00000.safetensors", mine.name]
    )
    build(root, tmp_path / "graphs", overwrite=True)
    assert mine.exists()


@pytest.mark.usefixtures("small_shards")
def test_regions_that_have_changed_make_their_graphs_anew(tmp_path: Path) -> None:
    """A box moves, then features of one more image come: the result is as if new, the rest stays."""
    root = coco_directory(tmp_path / "coco")
    first = build(root, tmp_path / "graphs")
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace("[10, 10, 30, 30]", "[11, 10, 30, 30]"))
    result = build(root, tmp_path / "graphs")
    # Image 1 has captions in the first two of the training shards and in the last.
    assert 0 < result.present < first.made
    build(root, tmp_path / "new")
    same_files(tmp_path / "new", tmp_path / "graphs")
    settings = {"extractor": "test", "feature_size": 4, "object_names": ["dog"], "attribute_names": []}

    def regions(image: int) -> RegionFeatures:
        box = np.array([[10, 10, 41, 40]], np.float32)
        return RegionFeatures(
            image, np.zeros((1, 4), np.float32), box, 100, 80, object_ids=np.zeros(1, np.int32)
        )

    some = write_feature_store(tmp_path / "some", settings, [regions(1)])
    whole = write_feature_store(tmp_path / "all", settings, [regions(1), regions(5)])
    build(root, tmp_path / "featured", features=some)
    result = build(root, tmp_path / "featured", features=whole)
    assert 0 < result.present < first.made
    build(root, tmp_path / "new featured", features=whole)
    same_files(tmp_path / "new featured", tmp_path / "featured")


def _other_byte(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def _in_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        content = json.loads((store / "store.json").read_text())
        change(content)
        (store / "store.json").write_text(json.dumps(content))

    return damage


def _in_shard(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        content = (store / shard_name(0)).read_bytes()
        assert old in content
        (store / shard_name(0)).write_bytes(content.replace(old, new, 1))

    return damage


DAMAGED_SHARDS: dict[str, Callable[[Path], Any]] = {
    "last byte": lambda store: _other_byte(store / shard_name(1), -1),
    "a byte in the midst": lambda store: _other_byte(store / shard_name(0), -700),
    "a key of the header": _in_shard(b"cross_offsets", b"cross_offsetz"),
    "the checksum's key": _in_shard(b"checksum", b"checksun"),
    "more bytes": lambda store: (store / shard_name(0)).open("ab").write(b"more"),
}
DAMAGE: dict[str, Callable[[Path], Any]] = {
    **DAMAGED_SHARDS,
    "priors without content": lambda store: (store / "priors.json").write_text(
        '{"objects": {}, "attributes": [], "relations": []}'
    ),
    "priors gone": lambda store: (store / "priors.json").unlink(),
    "summary emptied": _in_manifest(lambda content: content["extra"].update(summary={})),
    "a shard listed twice": _in_manifest(lambda content: content["shards"].__setitem__(1, shard_name(0))),
    "shards in another order": _in_manifest(lambda content: content["shards"].reverse()),
    "a shard that is not there": _in_manifest(lambda content: content["shards"].append(shard_name(99))),
}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_noticed_and_mended(tmp_path: Path, damage: str) -> None:
    root = coco_directory(tmp_path / "coco")
    build(root, tmp_path / "whole")
    build(root, tmp_path / "graphs")
    DAMAGE[damage](tmp_path / "graphs")
    if damage in DAMAGED_SHARDS:
        with pytest.raises(DataError, match="not a whole shard"):
            GraphStore(tmp_path / "graphs")
    build(root, tmp_path / "graphs")
    same_files(tmp_path / "whole", tmp_path / "graphs")


@pytest.mark.usefixtures("small_shards")
def test_a_text_that_occurs_again_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CountingParser(WordParser):
        parsed: list[str] = []  # noqa: RUF012

        def parse(self, texts: Iterable[str]) -> Iterator[TextGraph]:
            texts = list(texts)
            self.parsed.extend(texts)
            return super().parse(texts)

    (tmp_path / "data").mkdir()
    texts = ["a dog", "a cat", "man on horse", "a dog", "a dog", "a cat", "red sofa", "a dog"]
    lines = [json.dumps({"image": f"{number}.jpg", "text": text}) for number, text in enumerate(texts)]
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(lines) + "\n")
    build(tmp_path / "data", tmp_path / "once", CountingParser())
    assert CountingParser.parsed == ["a dog", "a cat", "man on horse", "red sofa"]
    monkeypatch.setattr(build_module, "REMEMBERED_GRAPHS", 1)  # memory has its bounds
    CountingParser.parsed.clear()
    build(tmp_path / "data", tmp_path / "again", CountingParser())
    assert len(CountingParser.parsed) > 4
    same_files(tmp_path / "once", tmp_path / "again")


def test_workers_build_the_store_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = coco_directory(tmp_path / "coco")
    monkeypatch.setattr(build_module, "SHARD_CAPTIONS", 2)
    build_dataset(open_dataset(root), tmp_path / "one", None, Recipe(WordParser))
    result = build_dataset(open_dataset(root), tmp_path / "two", None, Recipe(WordParser), workers=2)
    assert result.made == len(result.store) > 4
    same_files(tmp_path / "one", tmp_path / "two")


def test_what_workers_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SHARD_CAPTIONS", 2)
    root = jsonl_directory(tmp_path / "data")
    with pytest.raises(MissingDependencyError, match="not installed"):
        build_dataset(open_dataset(root), tmp_path / "out", None, Recipe(missing_parser), workers=2)
    with pytest.raises(DataError, match="worker process"):
        build_dataset(open_dataset(root), tmp_path / "out", None, Recipe(DyingParser), workers=2)
    build(root, tmp_path / "out")
    build(root, tmp_path / "new")
    same_files(tmp_path / "new", tmp_path / "out")


@pytest.mark.parametrize(
    ("workers", "captions", "expected"),
    [(None, 100, 0), (0, 10**6, 0), (1, 10**6, 0), (3, 10**6, 3), (8, 5000, 3), (8, 10, 0)],
)
def test_number_of_workers(workers: int | None, captions: int, expected: int) -> None:
    assert choose_workers(workers, captions) == expected


def test_other_options_are_refused_until_overwritten(tmp_path: Path) -> None:
    root = coco_directory(tmp_path / "coco")
    build(root, tmp_path / "graphs")
    with pytest.raises(DataError, match="min_similarity"):
        build(root, tmp_path / "graphs", min_similarity=0.9)
    result = build(root, tmp_path / "graphs", min_similarity=0.9, overwrite=True)
    assert result.present == 0
    assert result.store.settings["min_similarity"] == 0.9


@pytest.mark.parametrize("named", [True, False])
def test_regions_come_from_a_feature_store(tmp_path: Path, named: bool) -> None:
    """A detector's own labels are used; regions without labels borrow those of the annotations."""
    root = coco_directory(tmp_path / "coco")
    names = ["horse", "dog"] if named else []
    boxes = np.array([[10, 10, 41, 40], [70, 0, 90, 10], [5, 20, 64, 60]], np.float32)
    regions = RegionFeatures(
        1, np.zeros((3, 4), np.float32), boxes, 100, 80, object_ids=np.array([1, -1, 0], np.int32)
    )
    settings = {"extractor": "test", "feature_size": 4, "object_names": names, "attribute_names": []}
    features = write_feature_store(tmp_path / "features", settings, [regions])
    store = build(root, tmp_path / "graphs", features=features).store
    found = {graph.text_id: graph for graph in store}
    assert found[100].labels == (("dog", "", "horse") if named else ("dog", "", "couch"))
    np.testing.assert_array_equal(found[100].boxes, boxes)
    assert not len(found[101].boxes), "an image without features has no regions"


def test_export_is_one_json_object_a_line(tmp_path: Path) -> None:
    store = build(coco_directory(tmp_path / "coco"), tmp_path / "graphs").store
    export_jsonl(store, tmp_path / "graphs.jsonl")
    lines = (tmp_path / "graphs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == contents(store)


def test_texts_with_half_characters_are_built_and_exported(tmp_path: Path) -> None:
    """JSON may escape half a surrogate pair, which no UTF-8 file can hold."""
    (tmp_path / "data").mkdir()
    lines = ['{"image": "caf\\udce9.jpg", "text": "a dog \\ud83d on sofa"}']
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(lines) + "\n")
    store = build(tmp_path / "data", tmp_path / "graphs").store
    export_jsonl(store, tmp_path / "graphs.jsonl")
    (content,) = [json.loads(line) for line in (tmp_path / "graphs.jsonl").read_text().splitlines()]
    assert [item["name"] for item in content["objects"]] == ["dog", "sofa"]


def test_a_directory_without_texts_is_refused(tmp_path: Path) -> None:
    root = coco_directory(tmp_path / "coco")
    for file in (root / "annotations").glob("captions_*"):
        file.unlink()
    with pytest.raises(DataError, match="no captions, expressions or questions") as caught:
        build(root, tmp_path / "graphs")
    assert "JSONL" in (caught.value.hint or "")


def test_the_shipped_parser_builds_graphs(tmp_path: Path) -> None:
    from tbkin_core.parsing.parser import CaptionParser

    store = build(coco_directory(tmp_path / "coco"), tmp_path / "graphs", CaptionParser()).store
    first = next(graph for graph in store if graph.text_id == 100)
    assert [item.name for item in first.graph.objects] == ["dog", "sofa"]
    assert [item.name for item in first.graph.attributes] == ["brown"]
    assert len(first.cross.object) == 2


# ---- annotated scene graphs -------------------------------------------------------------------------


def genome_directory(root: Path) -> Path:
    """Two images of Visual Genome: captions of both, a scene graph of the first."""
    root.mkdir()

    def thing(number: int, name: str, x: int, *attributes: str) -> dict[str, Any]:
        box = {"x": x, "y": 10, "w": 20, "h": 20}
        return {"object_id": number, "names": [name], "attributes": [*attributes], **box}

    def relation(number: int, subject: int, predicate: str, other: int) -> dict[str, Any]:
        ends = {"subject_id": subject, "object_id": other}
        return {"relationship_id": number, "predicate": predicate, **ends}

    graph = {
        "image_id": 1,
        "objects": [thing(11, "man", 0, "Tall"), thing(12, "shoe", 60), thing(13, "street", 200)],
        "relationships": [relation(1, 11, "is WEARING", 12), relation(2, 12, "ON", 13)],
    }
    (root / "scene_graphs.json").write_text(json.dumps([graph]))
    regions = [
        {
            "id": image,
            "regions": [
                {"region_id": 10 * image + at, "image_id": image, "phrase": text}
                | {"x": 0, "y": 0, "width": 5, "height": 5}
                for at, text in enumerate(("a brown dog", "a cat on a sofa"))
            ],
        }
        for image in (1, 2)
    ]  # fmt: skip
    (root / "region_descriptions.json").write_text(json.dumps(regions))
    return root


def test_annotated_relations_join_the_regions(tmp_path: Path) -> None:
    root = genome_directory(tmp_path / "genome")
    store = build(root, tmp_path / "graphs").store
    with_graph = [graph for graph in store if graph.image_id == 1]
    assert len(with_graph) == 2
    for graph in with_graph:
        assert graph.labels == ("man", "shoe", "street")
        assert graph.region_attributes == ((0, "tall"),)
        assert graph.region_relations == ((0, "wear", 1), (1, "on", 2))
        content = graph.to_dict()
        assert content["region_relations"][0] == {"subject": 0, "predicate": "wear", "object": 1}
        assert content["region_attributes"] == [{"region": 0, "name": "tall"}]
        vertices = to_networkx(graph).nodes
        assert vertices["region_relation1"] == {"kind": "region relation", "name": "on"}
    assert {graph.region_relations for graph in store if graph.image_id == 2} == {()}
    # Both captions are of one image, which counts once.
    priors = store.priors()
    assert priors.relation("man", "wear", "shoe") == 1
    assert priors.attribute("man", "tall") == 1
    assert priors.objects["shoe"] == 1


def test_annotated_objects_meet_the_regions_they_overlap(tmp_path: Path) -> None:
    """With features of a detector the regions are its own; an object that none of them meets is left out."""
    root = genome_directory(tmp_path / "genome")
    boxes = np.array([[62, 10, 80, 30], [0, 10, 20, 30]], np.float32)
    features = write_feature_store(
        tmp_path / "features",
        {"extractor": "drawn", "feature_size": 1, "object_names": ["shoe", "man"], "attribute_names": []},
        [
            RegionFeatures(
                image, np.zeros((2, 1), np.float16), boxes, 300, 100, object_ids=np.array([0, 1], np.int32)
            )
            for image in (1, 2)
        ],
    )
    graph = next(iter(build(root, tmp_path / "graphs", features=features).store))
    assert graph.labels == ("shoe", "man")
    assert graph.region_relations == ((1, "wear", 0),)
    assert graph.region_attributes == ((1, "tall"),)


@pytest.mark.parametrize(
    ("written", "predicate"),
    [
        ("ON", "on"),
        ("by", "by"),
        ("wears", "wear"),
        ("is parked on", "park on"),
        ("has a", "have"),
        ("are", "be"),
        ("towards", "towards"),
        ("left of", "left of"),
        ("to the right of", "right of"),
        ("during", "during"),
        ("", ""),
    ],
)
def test_predicates_as_annotators_write_them(written: str, predicate: str) -> None:
    assert lemmatize_predicate(written) == predicate
