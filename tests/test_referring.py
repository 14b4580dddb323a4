"""Referring expressions that are made of boxes: what they mean, and the command that makes them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import fails, succeeds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.expressions.geometry import OPPOSITE, lies
from tbkin_core.expressions.referring import ImageObjects, Item, Phrase, text_of
from tbkin_core.training.splits import EvaluatedImages

SIZE = (200.0, 100.0)


def _item(name: str, x: float, y: float, side: float = 20, *attributes: str, crowd: bool = False) -> Item:
    return Item(name, (x, y, x + side, y + side), frozenset(attributes), in_doubt=crowd)


def _texts(*items: Item, relations: tuple[tuple[int, str, int], ...] = ()) -> list[set[str]]:
    """What refers to each item."""
    objects = ImageObjects(items, SIZE, relations)
    return [
        {
            text_of(phrase, objects.count(phrase.name, phrase.attribute))
            for _, phrase in objects.phrases_of(place)
        }
        if place in objects.own
        else set()
        for place, item in enumerate(items)
    ]


def test_the_only_one_of_its_name_is_named() -> None:
    dog, cat = _texts(_item("dog", 10, 40), _item("cat", 150, 40))
    assert dog == {"the dog", "the dog to the left of the cat"}
    assert cat == {"the cat", "the cat to the right of the dog"}


def test_one_of_two_is_told_by_place_size_and_what_is_beside_it() -> None:
    small, large, _ = _texts(_item("dog", 10, 40), _item("dog", 100, 32, 38), _item("cat", 70, 40))
    assert small == {"the dog on the left", "the smaller dog", "the dog to the left of the cat"}
    assert large == {
        "the dog on the right",
        "the bigger dog",
        "the dog to the right of the cat",
    }


def test_of_three_there_is_a_middle_and_a_second() -> None:
    _, middle, _ = _texts(*(_item("dog", x, 40) for x in (10, 90, 170)))
    assert {
        "the dog in the middle",
        "the second dog from the left",
        "the second dog from the right",
    } <= middle
    assert not any("bigger" in text or "biggest" in text for text in middle)


def test_a_look_refers_only_where_the_others_surely_look_otherwise() -> None:
    red, blue = _texts(_item("car", 10, 40, 20, "red"), _item("car", 100, 40, 20, "blue"))
    assert "the red car" in red
    assert "the blue car" in blue
    red, _ = _texts(_item("car", 10, 40, 20, "red"), _item("car", 100, 40, 20, "parked"))
    assert "the red car" not in red  # nobody says what the other looks like
    red, _ = _texts(_item("car", 10, 40, 20, "red"), _item("car", 100, 40, 20, "orange"))
    assert "the red car" not in red  # orange is red to some


@pytest.mark.parametrize(
    "other",
    [
        _item("person", 100, 40),  # a man, for all one knows
        _item("man", 100, 40, crowd=True),
    ],
)
def test_what_may_be_another_one_is_in_doubt(other: Item) -> None:
    assert _texts(_item("man", 10, 40), other)[0] == set()


def test_beside_what_nobody_named_nothing_is_sure() -> None:
    assert _texts(_item("man", 10, 40), _item("", 100, 40)) == [set(), set()]


def test_two_annotations_of_one_thing_are_one() -> None:
    first, second = _texts(_item("man", 10, 40), _item("person", 11, 40))
    assert first == {"the man"}
    assert second == set()


def test_annotated_relations_single_out_where_no_other_can_be_meant() -> None:
    items = [_item("man", 10, 30), _item("man", 150, 30), _item("horse", 10, 40, 30)]
    rider, other, _ = _texts(*items, relations=((0, "riding", 2),))
    assert "the man riding the horse" in rider
    assert not any("riding" in text for text in other)
    items[1] = _item("man", 30, 50)  # touches the horse: who knows whether he rides it too
    assert not any("riding" in text for text in _texts(*items, relations=((0, "riding", 2),))[0])


POINTS = st.tuples(st.floats(0, 200), st.floats(0, 100))


@given(POINTS, POINTS, st.sampled_from(sorted(OPPOSITE)))
def test_what_is_left_is_not_right(
    first: tuple[float, float], second: tuple[float, float], side: str
) -> None:
    if lies(first, side, second, SIZE):
        assert lies(second, OPPOSITE[side], first, SIZE)
        assert lies(first, OPPOSITE[side], second, SIZE) is False


ITEMS = st.lists(
    st.builds(
        lambda name, x, y, side, look, crowd: _item(name, x, y, side, *look, crowd=crowd),
        st.sampled_from(["dog", "cat", "man", "person", "ball"]),
        st.integers(0, 160),
        st.integers(0, 60),
        st.sampled_from([4, 15, 20, 40]),
        st.lists(st.sampled_from(["red", "blue", "orange", "striped", "old"]), max_size=2),
        st.booleans(),
    ),
    max_size=7,
)


@given(ITEMS)
def test_no_text_refers_to_two_things(items: list[Item]) -> None:
    counts = Counter(text for texts in _texts(*items) for text in texts)
    assert max(counts.values(), default=0) <= 1


@given(ITEMS)
def test_a_mirror_swaps_left_and_right(items: list[Item]) -> None:
    def mirrored(item: Item) -> Item:
        x1, y1, x2, y2 = item.box
        return Item(item.name, (SIZE[0] - x2, y1, SIZE[0] - x1, y2), item.attributes, item.in_doubt)

    def swapped(text: str) -> str:
        return text.replace("left", "?").replace("right", "left").replace("?", "right")

    expected = [{swapped(text) for text in texts} for texts in _texts(*items)]
    assert _texts(*map(mirrored, items)) == expected


@given(ITEMS, ITEMS)
def test_a_phrase_that_means_something_fits_its_name(items: list[Item], others: list[Item]) -> None:
    """More objects never make a phrase mean another one by name alone."""
    for name in ("dog", "cat", "ball"):
        meant = ImageObjects(items, SIZE).means(Phrase(name))
        more = ImageObjects([*items, *others], SIZE).means(Phrase(name))
        if meant is not None and more is not None:
            assert more == meant


# ---- the command --------------------------------------------------------------------------------


def _json(*arguments: str, cwd: Path) -> dict[str, Any]:
    return json.loads(succeeds(*arguments, "--json", cwd=cwd).out)


def test_a_model_learns_from_instances_alone(workspace: Path) -> None:
    """No captions, no refs: the expressions are also what graphs are built of."""
    own = workspace / "own"
    shutil.copytree(workspace / "coco", own)
    for path in own.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".p") and not path.name.startswith("instances_"):
            path.unlink()
    before = open_dataset(own)
    boxes = before.boxes()
    assert not before.expression_sets()
    result = _json("build-graphs", "own", "--expressions", cwd=workspace)
    dataset = open_dataset(own)
    assert dataset.expression_sets() == ("made",)
    assert dataset.boxes() == boxes
    for split, counts in result["expressions"].items():
        expressions = dataset.expressions(split)
        assert len(expressions) == sum(counts.values())
        assert len({item.image_id for item in expressions}) == result["images_referred_in"][split]
        for item in expressions:
            drawn = {tuple(round(side, 1) for side in box.xywh) for box in boxes[item.image_id]}
            assert tuple(round(side, 1) for side in item.target_xywh) in drawn
    assert not dataset.problems
    succeeds("extract-features", "own", "--workers", "0", cwd=workspace)
    run = _json("finetune", "--task", "rec", "--data", "own", "--epochs", "1", cwd=workspace)
    assert any(entry["model"] == "this model" for entry in run["report"])


def test_pictures_stay_what_they_are(tmp_path: Path) -> None:
    """Equal names in two directories, one without an expression, and nothing that divides into splits."""
    own = tmp_path / "own"
    images, annotations = [], []
    for number, place in enumerate(("a/0.png", "b/0.png", "b/1.png"), 1):
        (own / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(own / place)
        images.append({"id": number, "file_name": place, "width": 200, "height": 100})
        for x in (10, 100)[: 2 if number > 1 else 1]:
            box = {"bbox": [x, 40, 40, 40], "category_id": 1, "image_id": number}
            annotations.append({"id": len(annotations) + 1, **box})
    categories = [{"id": 1, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (own / "instances_default.json").write_text(json.dumps(content))
    (own / "c.jsonl").write_text('{"image": "a/0.png", "text": "a dog"}')
    before = open_dataset(own).images()
    succeeds("build-graphs", "own", "--expressions", cwd=tmp_path)
    dataset = open_dataset(own)
    assert dataset.images() == before
    assert len({item.image_id for item in dataset.expressions("all")}) == 2
    # Expressions that no split divides are trained on: pretraining keeps their captions.
    assert not EvaluatedImages([dataset]).among(dataset, [record.image_id for record in before]).any()


def test_expressions_follow_from_boxes_and_seed(workspace: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((workspace / "coco/expressions").iterdir())}

    succeeds("build-graphs", "coco", "--expressions", cwd=workspace)
    made = files()
    assert open_dataset(workspace / "coco").expression_sets()[-1] == "made"
    succeeds("build-graphs", "coco", "--expressions", cwd=workspace)
    assert files() == made
    succeeds("build-graphs", "coco", "--expressions", "--seed", "1", cwd=workspace)
    assert files() != made
    succeeds("build-graphs", "coco", "--expressions", "--expressions-per-image", "1", cwd=workspace)
    refs = json.loads((workspace / "coco/expressions/refs(made).json").read_text())
    assert set(Counter(ref["image_id"] for ref in refs).values()) == {1}


def test_nothing_of_others_is_overwritten(workspace: Path) -> None:
    place = workspace / "coco/expressions"
    place.mkdir()
    (place / "refs(made).json").write_text("[]")
    message = fails("build-graphs", "coco", "--expressions", cwd=workspace, code=2)
    assert "no earlier result" in message
    assert [path.name for path in place.iterdir()] == ["refs(made).json"]


def test_without_boxes_one_is_told_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "own/a.png")
    (tmp_path / "own/c.jsonl").write_text('{"image": "a.png", "text": "a red ball"}')
    message = fails("build-graphs", "own", "--expressions", cwd=tmp_path, code=1)
    assert "annotated boxes or named regions" in message
    assert "instances_*.json" in message
