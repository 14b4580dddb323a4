"""The drawn world of examples/scenes.py: deterministic, true, unambiguous, and hard to guess blind."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import scenes
from tbkin_core.expressions.geometry import CLEAR

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES: dict[str, Any] = {"train": 24, "val": 8, "test": 8}  # images
SIDES = "left of|right of|above|below"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    scenes.generate(out, **SIZES, seed=3)
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def read_refs(world: Path) -> list[dict[str, Any]]:
    return pickle.loads((world / "refcoco/refs(unc).p").read_bytes())


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# A second reader of the language: plain geometry on the gold scene graphs, none of the generator's code.


class Reader:
    """Understands the questions, expressions and captions about one gold scene graph."""

    def __init__(self, graph: dict[str, Any], width: int, height: int) -> None:
        self.objects: list[Object] = graph["objects"]
        self.sides = (width, height)

    def center(self, item: Object, axis: int) -> float:
        start, length = (("x", "w"), ("y", "h"))[axis]
        return (item[start] + item[length] / 2) / self.sides[axis]

    def distance(self, first: Object, relation: str, second: Object) -> float:
        """Positive when the relation holds; of the image's side."""
        axis = 0 if relation in ("left of", "right of") else 1
        value = self.center(second, axis) - self.center(first, axis)
        return value if relation in ("left of", "above") else -value

    def fitting(self, noun: str) -> list[Object]:
        """Objects that have every word of "small red circles"."""
        words = [word for word in noun.split() if word not in ("object", "objects")]
        if words:
            words[-1] = {"crosses": "cross"}.get(words[-1], words[-1])
            if words[-1].endswith("s") and words[-1] != "cross":
                words[-1] = words[-1][:-1]
        return [
            item
            for item in self.objects
            if all(word in (*item["names"], *item["attributes"]) for word in words)
        ]

    def meant(self, phrase: str) -> Object:
        """The one object that "the ..." means."""
        match = re.fullmatch(
            r"the (?:(\w+most) )?((?:\w+ )*?\w+)(?: at the (\w+ \w+))?" rf"(?: ({SIDES}) (the .+))?", phrase
        )
        assert match, phrase
        place, noun, corner, relation, anchor = match.groups()
        found = self.fitting(noun)
        if relation:
            near = self.meant(anchor)
            found = [item for item in found if item is not near and self.distance(item, relation, near) > 0]
        if corner:
            low, first = (word in ("top", "left") for word in corner.split())
            found = [
                item
                for item in found
                if (self.center(item, 1) < 0.5) == low and (self.center(item, 0) < 0.5) == first
            ]
        if place:
            axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}[
                place
            ]
            found.sort(key=lambda item: sign * self.center(item, axis))
            if len(found) > 1:
                gap = self.center(found[1], axis) - self.center(found[0], axis)
                assert sign * gap >= 0.149, phrase
            found = found[:1]
        assert len(found) == 1, f"{phrase!r} fits {len(found)}"
        return found[0]

    def answer(self, question: str) -> str:
        text = question.removesuffix("?")
        if match := re.fullmatch(r"is there an? (.+)", text):
            return _yes(bool(self.fitting(match[1])))
        if match := re.fullmatch(r"how many (.+) are there", text):
            return str(len(self.fitting(match[1])))
        if match := re.fullmatch(r"are there more (.+) than (.+)", text):
            counts = [len(self.fitting(noun)) for noun in match.groups()]
            assert counts[0] != counts[1]
            return _yes(counts[0] > counts[1])
        if match := re.fullmatch(r"do (the .+) and (the .+) have the same (color|shape)", text):
            first, second = (self.meant(match[group]) for group in (1, 2))
            assert first is not second
            return _yes(_value(first, match[3]) == _value(second, match[3]))
        if match := re.fullmatch(r"is (the .+) larger than (the .+)", text):
            areas = [item["w"] * item["h"] for item in map(self.meant, match.groups())]
            assert max(areas) > 1.5 * min(areas)
            return _yes(areas[0] > areas[1])
        if match := re.fullmatch(rf"is (the .+?) ({SIDES}) (the .+)", text):
            distance = self.distance(self.meant(match[1]), match[2], self.meant(match[3]))
            assert abs(distance) >= 0.149
            return _yes(distance > 0)
        if match := re.fullmatch(rf"what shape is ((?:{SIDES}) the .+)", text):
            return _value(self.meant(f"the object {match[1]}"), "shape")
        if match := re.fullmatch(r"what (color|shape) is (the .+)", text):
            return _value(self.meant(match[2]), match[1])
        raise AssertionError(f"not understood: {question}")

    def is_true(self, caption: str) -> bool:
        """Of a caption; the objects of "a ..." are any distinct ones that fit."""
        text = caption[0].lower() + caption[1:].removesuffix(".")
        text = re.sub(rf"to the ({SIDES})", r"\1", text)
        if match := re.fullmatch(r"there are (\w+) objects; (.+)", text):
            return scenes.NUMBERS.index(match[1]) == len(self.objects) and self.is_true(match[2])
        if match := re.fullmatch(r"(the \w+) is (\w+) and (\w+)", text):
            return {match[2], match[3]} <= set(self.meant(match[1])["attributes"])
        if match := re.fullmatch(rf"(the .+?) is ({SIDES}) (the .+?)(?: and ({SIDES}) (the .+))?", text):
            first, pairs = self.meant(match[1]), [(match[2], match[3])]
            pairs += [(match[4], match[5])] if match[4] else []
            return all(self.distance(first, side, self.meant(other)) > 0.149 for side, other in pairs)
        if match := re.fullmatch(rf"an? (.+) with an? (.+) ({SIDES}) it", text):
            return self._some_pair(match[2], match[3], match[1])
        if match := re.fullmatch(rf"an? (.+?) (?:is )?({SIDES}) an? (.+)", text):
            return self._some_pair(match[1], match[2], match[3])
        if match := re.fullmatch(r"on the left is an? (.+), and on the right is an? (.+)", text):
            left, right = (self.fitting(noun) for noun in match.groups())
            return any(self.center(a, 0) < 0.35 and self.center(b, 0) > 0.65 for a in left for b in right)
        if match := re.fullmatch(r"an? (.+) is (?:in front of|behind) an? (.+)", text):
            pairs_of = permutations(self.objects, 2)
            nouns = [self.fitting(noun) for noun in match.groups()]
            return any(a in nouns[0] and b in nouns[1] and _boxes_meet(a, b) for a, b in pairs_of)
        text = re.sub(r"^(there (is|are)|a picture of|an image with) ", "", text)
        needed: Counter[str] = Counter()
        for part in re.split(r", | and ", text):
            word, noun = part.split(" ", 1)
            if word in ("a", "an"):
                needed[noun] += 1
            elif len(self.fitting(noun)) != scenes.NUMBERS.index(word):
                return False
        return all(len(self.fitting(noun)) >= number for noun, number in needed.items())

    def _some_pair(self, first: str, relation: str, second: str) -> bool:
        return any(
            a is not b and self.distance(a, relation, b) > 0.149
            for a in self.fitting(first)
            for b in self.fitting(second)
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _value(item: Object, name: str) -> str:
    return item["names"][0] if name == "shape" else item["attributes"][0]


def _boxes_meet(first: Object, second: Object) -> bool:
    return all(
        first[start] < second[start] + second[length] and second[start] < first[start] + first[length]
        for start, length in (("x", "w"), ("y", "h"))
    )


def readers(world: Path) -> dict[int, Reader]:
    data = {entry["image_id"]: entry for entry in read(world / "image_data.json")}
    return {
        graph["image_id"]: Reader(graph, data[graph["image_id"]]["width"], data[graph["image_id"]]["height"])
        for graph in read(world / "scene_graphs.json")
    }


def vqa(world: Path, split: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    questions = read(world / f"v2_OpenEnded_scenes_{split}_questions.json")["questions"]
    annotations = read(world / f"v2_scenes_{split}_annotations.json")["annotations"]
    return zip(questions, annotations, strict=True)


# What is said is true --------------------------------------------------------------------------------


def test_every_answer_is_right_by_the_gold_scene_graph(world: Path) -> None:
    gold = readers(world)
    kinds: Counter[str] = Counter()
    for split in SIZES:
        for question, annotation in vqa(world, split):
            expected = gold[question["image_id"]].answer(question["question"])
            assert annotation["multiple_choice_answer"] == expected, question
            kinds[annotation["question_type"]] += 1
    assert set(kinds) == {"exist", "count", "color", "shape", "relation", "comparison"}
    assert 7 <= sum(kinds.values()) / sum(SIZES.values()) <= 8


def test_every_expression_means_exactly_its_object(world: Path) -> None:
    gold = readers(world)
    for ref in read_refs(world):
        for sentence in ref["sentences"]:
            assert gold[ref["image_id"]].meant(sentence["sent"])["object_id"] == ref["ann_id"]


def test_every_caption_is_true_and_well_formed(world: Path) -> None:
    gold = readers(world)
    for split in SIZES:
        for entry in read(world / f"annotations/captions_{split}.json")["annotations"]:
            text = entry["caption"]
            assert gold[entry["image_id"]].is_true(text), text
            assert text[0].isupper() == text.endswith(".")
            assert not re.search(r"  |\ba [aeiou]|\ban [^aeiou]", text), text


def test_relationships_of_the_gold_graphs_are_the_clear_ones(world: Path) -> None:
    gold = readers(world)
    for graph in read(world / "scene_graphs.json"):
        reader = gold[graph["image_id"]]
        by_id = {item["object_id"]: item for item in reader.objects}
        spatial = set()
        for relationship in graph["relationships"]:
            subject, target = by_id[relationship["subject_id"]], by_id[relationship["object_id"]]
            if relationship["predicate"] in ("in front of", "behind"):
                assert _boxes_meet(subject, target)
            else:
                spatial.add((subject["object_id"], relationship["predicate"], target["object_id"]))
        assert spatial == {
            (a["object_id"], side, b["object_id"])
            for a, b in permutations(reader.objects, 2)
            for side in SIDES.split("|")
            if reader.distance(a, side, b) >= CLEAR
        }


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    split=st.sampled_from(scenes.SPLITS),
    index=st.integers(0, 999_999),
    size=st.sampled_from([(256, 192), (160, 120), (200, 240), (96, 96)]),
)
def test_any_seed_and_size_gives_a_sound_scene(
    seed: int, split: str, index: int, size: tuple[int, int]
) -> None:
    scene = scenes.make_scene(seed, split, index, size)
    assert 3 <= len(scene.objects) <= 8
    for item in scene.objects:
        x, y, width, height = item.box
        assert x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
        assert (item.polygon >= (x, y)).all() and (item.polygon <= (x + width, y + height)).all()
    reader = Reader(scenes._scene_graph(scene), *size)
    for question in scenes.ask(scene, seed):
        assert reader.answer(question.text) == question.answer
    for target, phrases in scenes.refer(scene, seed):
        for phrase in phrases:
            assert reader.meant(str(phrase)) is reader.objects[target]
    for text in scenes.caption(scene, seed):
        assert reader.is_true(text), text
    for first, second in permutations(scene.objects, 2):
        for relation, opposite in scenes.OPPOSITE.items():
            if scenes.relation_holds(scene, first, relation, second):
                assert scenes.relation_holds(scene, second, opposite, first)
                assert scenes.relation_holds(scene, first, opposite, second) is False


# What is drawn ---------------------------------------------------------------------------------------


def test_pictures_show_what_the_annotations_say(world: Path) -> None:
    for index in range(SIZES["train"]):
        scene = scenes.make_scene(3, "train", index)
        with Image.open(world / "train" / scene.file_name) as picture:
            assert picture.size == (scene.width, scene.height)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        masks = []
        for item in scene.objects:
            mask = Image.new("1", picture.size)
            ImageDraw.Draw(mask).polygon([tuple(point) for point in item.polygon], fill=1)
            masks.append(np.array(mask))
        for position, (item, silhouette) in enumerate(zip(scene.objects, masks, strict=True)):
            seen = silhouette.copy()
            for cover in masks[position + 1 :]:
                seen &= ~cover
            assert seen.sum() >= 0.65 * silhouette.sum()
            distance = np.abs(pixels[seen] - np.array(scenes.COLORS[item.color])).max(axis=1)
            share = (distance < 30).mean()
            # The rest is the edge, and the stripes or dots.
            assert share > (0.45 if item.texture == "plain" else 0.25), (scene.image_id, item.color)


def test_backgrounds_stay_away_from_the_objects_colors() -> None:
    colors = np.array(list(scenes.COLORS.values()))
    drawn = set()
    for index in range(40):
        scene = scenes.make_scene(0, "val", index)
        drawn.add(scene.background)
        pixels = np.asarray(scenes.render(replace(scene, objects=()), 0)).reshape(-1, 3).astype(int)
        assert (pixels.max(axis=1) - pixels.min(axis=1)).max() <= 60
        unlike = np.abs(pixels[::7, None] - colors).max(axis=2)
        assert unlike.min() >= 24
    assert drawn == set(scenes.BACKGROUNDS)


# What is written -------------------------------------------------------------------------------------


def test_files_have_the_official_fields(world: Path) -> None:
    seen: dict[str, set[int]] = {}
    for split, number in SIZES.items():
        captions = read(world / f"annotations/captions_{split}.json")
        instances = read(world / f"annotations/instances_{split}.json")
        assert captions["images"] == instances["images"]
        seen[split] = {image["id"] for image in captions["images"]}
        files = {path.name for path in (world / split).iterdir()}
        assert len(seen[split]) == number and {image["file_name"] for image in captions["images"]} == files
        assert all(int(Path(image["file_name"]).stem) == image["id"] for image in captions["images"])
        assert Counter(entry["image_id"] for entry in captions["annotations"]) == dict.fromkeys(
            seen[split], 3
        )
        assert [category["name"] for category in instances["categories"]] == list(scenes.SHAPES)
        for entry in instances["annotations"]:
            x, y, width, height = entry["bbox"]
            assert min(x, y) >= 0 and x + width <= 256 and y + height <= 192
            assert 0 < entry["area"] <= width * height and entry["iscrowd"] == 0
            corners = np.array(entry["segmentation"][0]).reshape(-1, 2)
            assert np.allclose(corners.min(axis=0), (x, y), atol=1.01)
            assert np.allclose(corners.max(axis=0), (x + width, y + height), atol=1.01)
        for question, annotation in vqa(world, split):
            assert set(question) == {"image_id", "question_id", "question"}
            assert question["question_id"] == annotation["question_id"]
            assert question["image_id"] == annotation["image_id"] in seen[split]
            assert annotation["answer_type"] in ("yes/no", "number", "other")
            assert annotation["answers"] == [
                {
                    "answer": annotation["multiple_choice_answer"],
                    "answer_confidence": "yes",
                    "answer_id": number,
                }
                for number in range(1, 11)
            ]
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])
    gold = read(world / "scene_graphs.json")
    assert [graph["image_id"] for graph in gold] == [
        entry["image_id"] for entry in read(world / "image_data.json")
    ]
    assert {graph["image_id"] for graph in gold} == set.union(*seen.values())


def test_ids_are_unique_over_all_splits(world: Path) -> None:
    for pattern, key, name in (
        ("annotations/captions_{}.json", "annotations", "id"),
        ("annotations/instances_{}.json", "annotations", "id"),
        ("v2_OpenEnded_scenes_{}_questions.json", "questions", "question_id"),
    ):
        ids = [entry[name] for split in SIZES for entry in read(world / pattern.format(split))[key]]
        assert len(ids) == len(set(ids))


def test_refs_are_plain_types_in_the_official_layout(world: Path) -> None:
    data = (world / "refcoco/refs(unc).p").read_bytes()
    assert data.startswith(b"\x80\x02")

    class PlainOnly(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str) -> Any:
            raise AssertionError(f"{module_name}.{global_name} is not a plain type")

    with (world / "refcoco/refs(unc).p").open("rb") as file:
        refs = PlainOnly(file).load()
    annotations = {entry["id"]: entry for entry in read(world / "refcoco/instances.json")["annotations"]}
    sent_ids = []
    for ref in refs:
        assert set(ref) == {
            *("sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id")
        }
        target = annotations[ref["ann_id"]]
        assert (target["image_id"], target["category_id"]) == (ref["image_id"], ref["category_id"])
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert all(sentence["tokens"] == sentence["sent"].split() for sentence in ref["sentences"])
        sent_ids += ref["sent_ids"]
    assert len(sent_ids) == len(set(sent_ids)) and len({ref["ref_id"] for ref in refs}) == len(refs)
    images = defaultdict(set)
    for ref in refs:
        images[ref["split"]].add(ref["image_id"])
    assert {split: len(ids) for split, ids in images.items()} == {
        "train": 24,
        "val": 8,
        "testA": 4,
        "testB": 4,
    }
    assert all(image_id % 2 == 0 for image_id in images["testA"])


# What depends on what --------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes_whatever_the_workers(world: Path, tmp_path: Path) -> None:
    scenes.generate(tmp_path, **SIZES, seed=3, workers=2)
    assert contents(tmp_path) == contents(world)


def test_resizing_one_split_changes_no_other(world: Path, tmp_path: Path) -> None:
    scenes.generate(tmp_path, train=6, val=SIZES["val"], test=9, seed=3)
    scenes.generate(tmp_path, train=4, val=SIZES["val"], test=3, seed=3)
    smaller, larger = contents(tmp_path), contents(world)
    assert len(list((tmp_path / "train").iterdir())) == 4
    for name, data in smaller.items():
        if name.endswith(".jpg") or "_val" in name:
            assert larger[name] == data, name
    for graph in read(tmp_path / "scene_graphs.json"):
        assert graph in read(world / "scene_graphs.json")


def test_another_seed_gives_another_world() -> None:
    first, second = (scenes.make_scene(seed, "train", 0) for seed in (0, 1))
    assert [item.box for item in first.objects] != [item.box for item in second.objects]


# What a blind model can know -------------------------------------------------------------------------


def test_a_lookup_of_the_question_text_stays_low() -> None:
    asked = {
        split: [
            question
            for index in range(number)
            for question in scenes.ask(scenes.make_scene(11, split, index), 11)
        ]
        for split, number in (("train", 1200), ("test", 400))
    }
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked["train"]:
        table[question.text][question.answer] += 1
        table[question.kind][question.answer] += 1
    right = [
        table.get(question.text, table[question.kind]).most_common(1)[0][0] == question.answer
        for question in asked["test"]
    ]
    assert np.mean(right) < 0.35
    opening: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked["train"] + asked["test"]:
        words = question.text.split()
        opening[f"{question.kind} {words[0]} {words[1]}"][question.answer] += 1
    for name, answers in opening.items():
        total = answers.total()
        if set(answers) <= {"yes", "no"}:
            # Six standard deviations of a fair coin.
            assert abs(answers["yes"] / total - 0.5) < 3 / total**0.5, name
        else:
            number = 5 if name.startswith("count") else 8
            assert max(answers.values()) / total < 1 / number + 3 / total**0.5, name


# How it is called ------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "examples/scenes.py"), str(tmp_path / "out")]
    small = ["--train", "2", "--val", "1", "--test", "0", "--size", "160x120"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, check=True)
    assert "3 images" in done.stdout and not done.stderr
    with Image.open(tmp_path / "out/train/000001000001.jpg") as picture:
        assert picture.size == (160, 120)
    wrong = subprocess.run([*command, "--size", "wide"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "256x192" in wrong.stderr


@pytest.mark.parametrize("wrong", [{"train": -1}, {"size": (8, 8)}, {"workers": 0}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scenes.generate(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
