"""Visual Genome: objects, attributes and relationships that lie in one file or in three."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_datasets import one_problem, write

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.reading import AnnotationFile, Problems, Source, parse_json
from tbkin_core.datasets.records import GoldGraph
from tbkin_core.errors import DataError


def thing(object_id: int, name: str, x: int = 0, **more: Any) -> dict[str, Any]:
    return {"object_id": object_id, "names": [name], "x": x, "y": 0, "w": 10, "h": 10, **more}


def relation(number: int, subject: Any, predicate: Any, target: Any) -> dict[str, Any]:
    return {"relationship_id": number, "subject": subject, "predicate": predicate, "object": target}


def in_words(graph: GoldGraph) -> tuple[list[Any], list[Any]]:
    """Objects with their attributes, and relations by names; in order."""
    named = [
        (graph.objects[it.subject].name, it.predicate, graph.objects[it.object].name)
        for it in graph.relations
    ]
    return sorted((it.name, it.xywh, sorted(it.attributes)) for it in graph.objects), sorted(named)


def test_attributes_are_joined_to_the_objects(tmp_path: Path) -> None:
    objects = [
        thing(1, "man", merged_object_ids=[11]),
        thing(2, "shoe", 50, merged_object_ids=[11, 1]),  # which is 1's
        {**thing(3, "sky", 80), "object_id": None},
    ]
    attributes = [
        thing(1, "man", attributes=["tall"]),
        thing(11, "guy", 30, attributes=["tall", "old"]),  # merged into 1
        thing(21, "shoe", 52, attributes=["red"]),  # object 2, but for the way it was cleaned
        thing(22, "shoe", 90, attributes=["blue"]),  # another one
        {**thing(23, "cloud", 80, attributes=["white"]), "object_id": None},
    ]
    write(tmp_path, "objects.json", [{"image_id": 7, "objects": objects}])
    boxes = open_dataset(tmp_path).boxes()[7]
    assert [(box.label, box.attributes) for box in boxes] == [("man", ()), ("shoe", ()), ("sky", ())]
    other = {"image_id": 8, "attributes": [thing(31, "dog", attributes=["brown"])]}
    write(tmp_path, "attributes.json", [{"image_id": 7, "attributes": attributes}, other])
    dataset = open_dataset(tmp_path)
    assert [(box.label, box.xywh[0], box.attributes) for box in dataset.boxes()[7]] == [
        ("man", 0, ("tall", "old")),
        ("shoe", 50, ("red",)),
        ("sky", 80, ()),
        ("shoe", 90, ("blue",)),
        ("cloud", 80, ("white",)),
    ]
    assert [(box.label, box.attributes) for box in dataset.boxes()[8]] == [("dog", ("brown",))]
    assert not dataset.has_gold_graphs and not dataset.problems


def test_relationships_give_the_graph(tmp_path: Path) -> None:
    man, shoe = thing(1, "man"), thing(2, "shoe", 50)
    listed = [
        relation(1, man, "wears", shoe),
        relation(2, thing(11, "guy", 30), "has", thing(9, "hat", 70)),  # merged into 1; there alone
        relation(2, man, "again", shoe),
        relation(3, man, " ", shoe),
        relation(4, man, "on", thing(10, "flat", w=0)),
        relation(5, {"name": "nobody"}, "on", shoe),
        {"relationship_id": 6, "subject_id": 1, "predicate": "near", "object_id": 2},
        "none",
    ]
    relationships = [{"image_id": 7, "relationships": listed}, {"image_id": 8, "relationships": 5}]
    write(tmp_path, "relationships.json", relationships)
    write(tmp_path, "objects.json", [{"image_id": 7, "objects": [{**man, "merged_object_ids": [11]}, shoe]}])
    write(tmp_path, "attributes.json", [{"image_id": 7, "attributes": [{**shoe, "attributes": ["red"]}]}])
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("visual-genome",) and dataset.has_gold_graphs
    graphs = dataset.gold_graphs()
    assert in_words(graphs[7]) == (
        [("hat", (70, 0, 10, 10), []), ("man", (0, 0, 10, 10), []), ("shoe", (50, 0, 10, 10), ["red"])],
        [("man", "has", "hat"), ("man", "near", "shoe"), ("man", "wears", "shoe")],
    )
    assert graphs[8] == GoldGraph((), ())
    assert [box.label for box in dataset.boxes()[7]] == ["man", "shoe", "hat"]
    for part in (
        "relationship 2 has an id used before",
        "relationship 3 has no predicate",
        "object 10 has a box without area",
        "relationship 4 relates an object",
        "relationship at position 5 and 1 more: lacks subject_id",
        "image 8 has relationships that are no list",
    ):
        one_problem(dataset.problems, "relationships.json", part)
    assert len(dataset.problems) == 6


def test_a_scene_graphs_file_goes_before_the_three(tmp_path: Path) -> None:
    entry = {"image_id": 7, "objects": [thing(1, "man", attributes=["tall"])], "relationships": []}
    write(tmp_path, "scene_graphs.json", [entry])
    for name in ("objects", "attributes", "relationships"):
        write(tmp_path, f"{name}.json", [{"image_id": 9, name: []}])
    assert set(open_dataset(tmp_path).gold_graphs()) == {7}


def test_files_of_other_splits_are_read_by_themselves(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        write(tmp_path, f"objects_{split}.json", [{"image_id": number, "objects": [thing(number, "man")]}])
        described = thing(number, "man", attributes=[split])
        write(tmp_path, f"attributes_{split}.json", [{"image_id": number, "attributes": [described]}])
    write(tmp_path, "relationships_train.json", [{"image_id": 0, "relationships": []}])
    dataset = open_dataset(tmp_path)
    assert {key: [box.attributes for box in boxes] for key, boxes in dataset.boxes().items()} == {
        0: [("train",)],
        1: [("val",)],
    }
    assert set(dataset.gold_graphs()) == {0}


def test_the_three_files_say_what_the_scene_graphs_say(shared_data: Path, tmp_path: Path) -> None:
    def opened(*names: str) -> Dataset:
        place = tmp_path / names[0]
        for name in names:
            (sample,) = (shared_data / "visual_genome_samples" / name).iterdir()
            write(place, name.replace("_v1_2", ""), sample.read_bytes())
        return open_dataset(place)

    apart = opened("relationships_v1_2.json", "objects_v1_2.json", "attributes.json")
    whole = opened("scene_graphs.json")
    graphs = whole.gold_graphs()
    assert {key: in_words(it) for key, it in apart.gold_graphs().items()} == {
        key: in_words(it) for key, it in graphs.items()
    }
    assert len(graphs) == 100 and not apart.problems
    # Version 1.4 has objects merged; each relation is there with the names it had.
    merged = opened("relationships.json", "objects.json", "attributes.json").gold_graphs()
    assert sum(len(it.relations) for it in merged.values()) == sum(
        len(it.relations) for it in graphs.values()
    )
    assert sum(len(it.objects) for it in merged.values()) < sum(len(it.objects) for it in graphs.values())
    shutil.rmtree(tmp_path)


# ---- a list that is read item by item -----------------------------------------------------------


def items_of(path: Path) -> list[Any]:
    return list(Source(AnnotationFile(path, path.name, None, "x"), Problems()).json_items())


@given(
    items=st.lists(
        st.recursive(st.none() | st.integers() | st.text(), lambda it: st.lists(it), max_leaves=4)
    ),
    indent=st.sampled_from([None, 1]),
    cut=st.integers(0, 60),
    extra=st.sampled_from(["", "", " \n", "]", ",", "x", "[1]"]),
)
@settings(max_examples=200, deadline=None)
def test_items_and_faults_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], indent: int | None, cut: int, extra: str
) -> None:
    text = json.dumps(items, indent=indent)
    text = (text[: max(1, len(text) - cut)] if cut < 20 else text) + extra
    path = write(tmp_path_factory.getbasetemp(), "list.json", text)
    try:
        whole = parse_json(text, path)
    except DataError as error:
        with pytest.raises(DataError) as raised:
            items_of(path)
        assert str(raised.value) == str(error)
    else:
        assert items_of(path) == whole


def test_what_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a list, got an object"):
        items_of(write(tmp_path, "object.json", {"a": 1}))
    with pytest.raises(DataError, match="malformed JSON at line 1"):
        items_of(write(tmp_path, "broken.json", "{"))
