"""Loaders: real files of the publishers, small trees with faults, hostile pickles, the image id rule."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.formats import FORMATS
from tbkin_core.datasets.formats.base import Holds
from tbkin_core.datasets.image_index import ImageIndex, key_of_name, trailing_number
from tbkin_core.datasets.reading import Problems
from tbkin_core.datasets.records import Caption, GoldGraph, ImageRecord, ListedImage
from tbkin_core.datasets.splits import normalise_split, split_in
from tbkin_core.datasets.unpickle import load_plain_pickle, loads_plain
from tbkin_core.errors import DataError
from tbkin_core.evaluation.vqa import soft_scores
from tbkin_core.tasks.base import finetune_task


def write(root: Path, name: str, content: Any = b"") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def captions_file(*texts: Any, images: Any = None) -> dict[str, Any]:
    """COCO captions file: caption i, with id i, of image i."""
    listed = [{"id": i, "file_name": f"{i}.jpg", "width": 10, "height": 8} for i in range(len(texts))]
    return {
        "images": listed if images is None else images,
        "annotations": [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(texts)],
    }


def vqa_files(root: Path, split: str, image_ids: list[Any], answered: bool = True) -> None:
    questions = [
        {"question_id": i, "image_id": image_id, "question": f"what is {i}?"}
        for i, image_id in enumerate(image_ids)
    ]
    write(root, f"v2_OpenEnded_{split}_questions.json", {"data_subtype": split, "questions": questions})
    if answered:
        annotations = [
            {
                "question_id": i,
                "image_id": image_id,
                "answers": [{"answer": "yes"}] * 10,
                "answer_type": "yes/no",
            }
            for i, image_id in enumerate(image_ids)
        ]
        write(root, f"v2_{split}_annotations.json", {"data_subtype": split, "annotations": annotations})


def ref(ref_id: int, ann_id: int, image_id: int, *texts: str, split: str = "val") -> dict[str, Any]:
    sentences = [{"sent_id": 10 * ref_id + i, "sent": text} for i, text in enumerate(texts)]
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": sentences}


def one_problem(problems: list[str], *parts: str) -> None:
    assert sum(all(part in line for part in parts) for line in problems) == 1, problems


# --- real data ---------------------------------------------------------------------------------------------


def test_coco(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "coco")
    assert dataset.layouts == ("coco-captions", "coco-instances", "images")
    assert len(dataset.images("train")) == 80 and len(dataset.images("val2017")) == 193
    captions = dataset.captions("val")
    assert len({caption.text_id for caption in dataset.captions()}) == len(dataset.captions()) == 1366
    assert Caption(441, 331352, "A small closed toilet in a cramped space.", "val") in captions
    assert dataset.image(139) == ImageRecord(
        139, shared_data / "coco/val2017/000000000139.jpg", "val", 640, 426, 139
    )
    assert all(record.path is not None and record.path.is_file() for record in dataset.images())
    boxes = dataset.boxes()
    assert sum(map(len, boxes.values())) == sum(
        len(
            json.loads((shared_data / f"coco/annotations/instances_{split}2017.json").read_text())[
                "annotations"
            ]
        )
        for split in ("train", "val")
    )
    assert set(dataset.boxes("val")) <= {record.image_id for record in dataset.images("val")}
    assert dataset.problems == []


def test_vqa_layout(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "daquar_500")
    assert dataset.layouts == ("vqa", "images")
    assert dataset.question_splits() == ("train", "val")
    assert len(dataset.questions()) == 4318
    assert len(dataset.images("train")) + len(dataset.images("val")) == len(dataset.images()) == 500
    question = next(q for q in dataset.questions("train") if q.question_id == 2)
    assert question.image_id == 1174 and question.answers == ("curtain",) * 10
    assert dataset.image(1174).path == shared_data / "daquar_500/images/image1174.jpg"
    assert dataset.problems == []


@pytest.mark.parametrize(("folder", "expressions"), [("refcoco", 26488), ("refcoco_smoke", 163)])
def test_refcoco_family(shared_data: Path, folder: str, expressions: int) -> None:
    dataset = open_dataset(shared_data / folder)
    assert dataset.layouts[0] == "refcoco"
    assert dataset.expression_sets() == ("refcoco", "refcoco+", "refcocog")
    assert len(dataset.expressions()) == expressions
    assert "val" in dataset.expression_splits("refcocog")
    known = {record.image_id for record in dataset.images()}
    for row in dataset.expressions("val", "refcoco"):
        assert row.image_id in known and row.split == "val" and row.target_xywh[2] > 0
    assert dataset.problems == []


def test_one_directory_of_the_refcoco_family(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "refcoco_smoke/refcocog")
    assert dataset.expression_sets() == ("refcocog",)
    first = dataset.expressions("val", "refcocog")[0]
    assert first.image_id == 309 and (first.width, first.height) == (600, 600)
    assert dataset.image(309).path is None
    with pytest.raises(DataError, match="refcocog"):
        dataset.expressions(name="refcoco")


def test_json_lines(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "flickr8k_1000")
    assert dataset.layouts == ("jsonl", "images")
    assert len(dataset.images()) == 1000 and len(dataset.captions()) == 5000
    assert {caption.image_id for caption in dataset.captions()} == {r.image_id for r in dataset.images()}
    assert all(record.path is not None for record in dataset.images())
    assert len({caption.text_id for caption in dataset.captions()}) == 5000


def test_visual_genome(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "visual_genome_samples")
    assert dataset.layouts == ("visual-genome",)
    assert len(dataset.images()) == 100 and dataset.image(1).width == 800
    assert dataset.captions()[0] == Caption(1382, 1, "the clock is green in colour", "all")
    clock = next(box for box in dataset.boxes()[1] if box.label == "clock")
    assert clock.xywh == (421, 91, 79, 339) and clock.attributes == ("green", "tall")


def test_bottom_up_features(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "butd_coco8")
    assert dataset.layouts == ("bottom-up-npz", "images")
    files = dataset.bottom_up_files()
    assert set(files) == {record.image_id for record in dataset.images()} and len(files) == 8
    assert files[58350].name == "COCO_val2014_000000058350.jpg.npz"
    assert len(dataset.captions()) == 40
    assert dataset.image(58350).width == 640 and dataset.image(58350).path is not None


def test_annotations_without_questions_are_reported(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "vqa2_samples")
    assert dataset.questions() == [] and dataset.problems


def test_official_refs_are_what_the_unpickler_admits(shared_data: Path) -> None:
    for path in sorted(shared_data.glob("refcoco*/*/refs*.p")):
        assert load_plain_pickle(path) == pickle.loads(path.read_bytes(), encoding="utf-8")


# --- finding ---------------------------------------------------------------------------------------------


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="a file, not a dataset directory"):
        open_dataset(write(tmp_path, "captions.json", "{}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        open_dataset(tmp_path / "empty")
    write(tmp_path, "other/notes.csv", "a,b")
    with pytest.raises(DataError, match=r"looked for .*found 1 \.csv") as raised:
        open_dataset(tmp_path / "other")
    assert raised.value.hint


def test_what_tbkin_wrote_is_no_data(tmp_path: Path) -> None:
    write(tmp_path, "images/1.jpg")
    write(tmp_path, "features/store.json", {"format_version": 1, "kind": "features"})
    write(tmp_path, "features/2.png")
    np.savez(tmp_path / "features/1.jpg.npz", x=np.zeros((1, 2)), boxes=np.zeros((1, 4)))
    write(tmp_path, "runs/finetune/vqa/run.json", {"stage": "finetune", "status": "running"})
    write(tmp_path, "runs/threshold-sweep/vqa/sweep.json", {"identity": {"refit": False}})
    for name in ("finetune/vqa/training.png", "threshold-sweep/vqa/sweep.png"):
        write(tmp_path, f"runs/{name}")
    write(tmp_path, "runs/visualize/sheet.png", b"\x89PNG...tEXtSoftware\0Matplotlib version3.11.2...")
    write(tmp_path, "runs/visualize/sheet.svg")
    write(tmp_path, ".cache/3.jpg")
    dataset = open_dataset(tmp_path)
    assert [record.image_id for record in dataset.images()] == [1]
    assert set(dataset.bottom_up_files()) == {1}
    one_problem(dataset.problems, "features", "2.png", "lies in a store that tbkin wrote (skipped)")
    assert len(dataset.problems) == 1
    for own in ("features", "runs/finetune/vqa", "runs/threshold-sweep/vqa"):
        with pytest.raises(DataError, match="tbkin wrote"):
            open_dataset(tmp_path / own)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("photos/store.json", {"shop": "ours"}),
        ("photos/store.json", []),
        ("photos/run.json", {"stage": "warm-up", "runner": 4}),
        ("runs/photos/config.yaml", "camera: mine"),
        ("features/photos/config.yaml", "camera: mine"),
        ("graphs/config.yaml", "camera: mine"),
        ("photos/config.yaml", "camera: mine"),
        ("runs/visualize/config.yaml", "camera: mine"),
    ],
)
def test_names_of_files_hide_no_images(tmp_path: Path, name: str, content: Any) -> None:
    place = (tmp_path / name).parent
    for file in ("1.jpg", "2.png", "model.safetensors", "checkpoint.txt"):
        write(place, file)
    write(tmp_path, name, content)
    dataset = open_dataset(tmp_path)
    assert sorted(record.image_id for record in dataset.images()) == [1, 2]
    assert not any("skipped" in problem for problem in dataset.problems)


def test_a_pipe_of_an_own_name_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "store.json")
    assert len(open_dataset(tmp_path).images()) == 1


def test_symlink_loop_and_depth(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c/d/1.jpg")
    write(tmp_path, "a/b/c/d/e/2.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a/broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    # A link that leads nowhere is an image that cannot be read, so that whoever reads it says so.
    assert [record.image_id for record in open_dataset(tmp_path).images()] == [1, "broken"]


def test_files_of_any_name_are_recognised_by_content(tmp_path: Path) -> None:
    write(tmp_path, "texts.json", captions_file("a dog", "a cat"))
    write(tmp_path, "asked.json", {"data_subtype": "minival2014", "questions": [
        {"question_id": 1, "image_id": 0, "question": "is it?"}]})  # fmt: skip
    write(tmp_path, "told.json", {"data_subtype": "minival2014", "annotations": [
        {"question_id": 1, "image_id": 0, "multiple_choice_answer": "yes"}]})  # fmt: skip
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("coco-captions", "vqa")
    assert len(dataset.captions()) == 2
    assert dataset.questions("minival")[0].answers == ("yes",)


def test_results_that_lie_beside_the_data_are_named(tmp_path: Path) -> None:
    vqa_files(tmp_path, "val", [1])
    write(tmp_path, "captions_val.json", captions_file("a dog", "a cat"))
    good = open_dataset(tmp_path)
    result = {"question_id": 0, "image_id": 1, "text": "what?", "answer": "no", "answers": ["yes"]}
    run = {"task": "vqa", "split": "val", "checkpoint": "runs/x", "data": ".", "results": [result]}
    detection = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
    found = {
        "captions_val2014_fakecap_results.json": [{"image_id": 0, "caption": "a cow"}],
        "instances_val2014_results.json": [detection] * 999,
        "predictions-test.json": [{"sent_id": 1, "ref_id": 1, "image_id": 1, "box": [1, 2, 3, 4]}],
        "results-val.json": run,
        "v2_OpenEnded_mscoco_val2014_questions_results.json": [{"question_id": 0, "answer": "no"}],
    }
    for name, content in found.items():
        write(tmp_path, name, content)
    dataset = open_dataset(tmp_path)
    assert dataset.problems == [f"{', '.join(found)}: results of a model (not read)"]
    assert (dataset.captions(), dataset.questions()) == (good.captions(), good.questions())
    assert dataset.layouts == good.layouts
    # What only looks like it is read, or its fault told.
    write(tmp_path, "captions_val.json", [{"image_id": 0, "caption": "a cow", "id": 3}])
    with pytest.raises(DataError, match=r"captions_val.json: expected a JSON object"):
        open_dataset(tmp_path).captions()


def test_common_keys_claim_no_file_of_another_format(tmp_path: Path) -> None:
    image = {"id": 0, "file_name": "0.jpg"}
    questions = [{"question_id": 1, "image_id": 0, "question": "is it?"}]
    write(tmp_path, "asked.json", {"images": [image], "questions": questions})
    write(tmp_path, "split.json", {"images": [karpathy_image(0, "val", "a dog") | image]})
    write(tmp_path, "stuff_val2017.json", {"images": [image], "annotations": [{"bbox": [0, 0, 1, 1]}]})
    write(tmp_path, "regions.tsv", f"http://a/1.jpg\t9\t9\t36\t{'A' * 300}\n")
    assert open_dataset(tmp_path).layouts == ("karpathy", "vqa", "feature-tables")


def test_the_table_of_formats() -> None:
    names = [row.name for row in FORMATS]
    assert len(set(names)) == len(names)
    for row in FORMATS:
        assert set(row.supersedes) < set(names)
        assert row.names is not None or row.content is not None
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in row.suffixes)
        assert row.read is not None or row.holds in (Holds.NOTHING, Holds.FEATURE_TABLES)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("v2_OpenEnded_mscoco_train2014_questions", "train"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions", "test-dev"),
        ("OpenEnded_mscoco_test2015_questions", "test"),
        ("captions_val2017", "val"),
        ("trainset", "train"),
        ("val_set_2017", "val"),
        ("vqa_val_eval", "val"),
        ("Testing_questions", "test"),
        ("training", "train"),
        ("medieval_dataset", None),
        ("instances_valminusminival2014", "valminusminival"),
        ("captions_minival", "minival"),
        ("testA", "testA"),
        ("trainspotting", None),
        ("interval", None),
    ],
)
def test_split_names(text: str, split: str | None) -> None:
    assert split_in(text) == split
    if split is not None:
        assert normalise_split(split) == split


@given(st.one_of(st.text(), st.from_regex(r"[./\\\\ ]*(train|x|\.\.)(/\.\.)*(20\d\d|set)?", fullmatch=True)))
def test_the_name_of_a_split_is_one_part_of_a_path(text: str) -> None:
    name = normalise_split(text)
    assert "/" not in name and "\\" not in name and "\0" not in name and not name.startswith(".")
    assert len(name) <= 100 and normalise_split(name) == normalise_split(normalise_split(name))


def test_test_split_without_answers(tmp_path: Path) -> None:
    vqa_files(tmp_path, "train2014", [42])
    vqa_files(tmp_path, "test-dev2015", [43], answered=False)
    write(tmp_path, "images/COCO_42.JPG")
    dataset = open_dataset(tmp_path)
    assert dataset.question_splits() == ("test-dev", "train")
    assert dataset.questions("test-dev2015")[0].answers == ()
    assert dataset.questions("train")[0].answers == ("yes",) * 10
    assert dataset.image(42).path == tmp_path / "images/COCO_42.JPG" and dataset.image(43).path is None
    assert dataset.problems == []


def test_one_refs_file_per_directory(tmp_path: Path) -> None:
    instances = {
        "images": [{"id": 5, "file_name": "5.jpg", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 5, "bbox": [0, 0, 5, 5], "category_id": 1}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    for name in ("refcoco", "refcocog"):
        write(tmp_path, f"{name}/instances.json", instances)
        for who in ("unc", "umd", "google"):
            write(tmp_path, f"{name}/refs({who}).p", pickle.dumps([ref(1, 1, 5, who)]))
    dataset = open_dataset(tmp_path)
    assert [row.text for row in dataset.expressions(name="refcoco")] == ["unc"]
    assert [row.text for row in dataset.expressions(name="refcocog")] == ["umd"]
    assert [box.label for box in dataset.boxes()[5]] == ["dog"]  # listed in two files, there once


# --- image keys ------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**18 - 1),
    st.sampled_from(["", "COCO_val2014_", "image", "frame-", "a b "]),
    st.integers(0, 6),
)
def test_trailing_number(number: int, prefix: str, zeros: int) -> None:
    digits = str(number).zfill(min(18, len(str(number)) + zeros))
    assert trailing_number(prefix + digits) == number


@given(st.text(alphabet="abcdef_ -", max_size=12))
def test_no_trailing_number(stem: str) -> None:
    assert trailing_number(stem) is None
    assert trailing_number("7" + "0" * 18) is None  # does not fit the stores' 64 bits
    assert trailing_number("1001773457_577c3a7d70") is None
    assert trailing_number("1001773457_d123456789") is None, "a hash that happens to end in digits"
    assert trailing_number("dev-850-0-img0") is None


def test_a_picture_is_not_that_of_the_same_name_in_another_directory(tmp_path: Path) -> None:
    rows = [{"image": f"{kind}/1.jpg", "question": f"{kind}?", "answer": "x"} for kind in ("cats", "dogs")]
    for kind, content in (("jsonl", "\n".join(map(json.dumps, rows))), ("json", rows)):
        write(tmp_path / kind, "dogs/1.jpg")
        write(tmp_path / kind, f"questions.{kind}", content)
        dataset = open_dataset(tmp_path / kind)
        cat, dog = dataset.questions()
        assert dataset.image(cat.image_id).path is None
        assert dataset.image(dog.image_id).path == tmp_path / kind / "dogs/1.jpg"

    # Nor in another split.
    write(tmp_path / "split", "val/1.jpg")
    write(tmp_path / "split", "questions.jsonl", json.dumps({**rows[0], "image": "train/1.jpg"}))
    dataset = open_dataset(tmp_path / "split")
    assert dataset.image(dataset.questions()[0].image_id).path is None and dataset.problems == []

    # Where only one is called so, it may have been moved: with a word.
    write(tmp_path / "moved", "photos/a.jpg")
    write(tmp_path / "moved", "questions.jsonl", json.dumps({**rows[0], "image": "images/a.jpg"}))
    dataset = open_dataset(tmp_path / "moved")
    assert dataset.image(dataset.questions()[0].image_id).path == tmp_path / "moved/photos/a.jpg"
    one_problem(dataset.problems, "photos: images/a.jpg is not where its name says")
    for name in ("/home/somebody/photos/a.jpg", "photos/a", "a.jpg"):
        write(tmp_path / "moved", "questions.jsonl", json.dumps({**rows[0], "image": name}))
        dataset = open_dataset(tmp_path / "moved")
        assert dataset.image(dataset.questions()[0].image_id).path and dataset.problems == []


def test_names_that_file_systems_write_otherwise(tmp_path: Path) -> None:
    names = {
        "cafe\u0301.jpg": "caf\u00e9.jpg",
        "B.JPG": "b.jpg",
        "c.jpg": " c.jpg",
        "d.jpg": "d.jpg",
        "D.jpg": "D.jpg",
    }
    for name in names:
        write(tmp_path, name)
    rows = [{"image": name, "question": "what?"} for name in [*names.values(), "d.JPG"]]
    write(tmp_path, "questions.json", rows)
    dataset = open_dataset(tmp_path)
    paths = [dataset.image(question.image_id).path for question in dataset.questions()]
    assert paths == [tmp_path / name for name in names]
    one_problem(dataset.problems, "d.JPG, which may be")

    # Directories, too, also where other ones have a picture of the name.
    for name in ("Zoe\u0308/1.jpg", "img/1.jpg"):
        write(tmp_path / "deep", name)
    rows = [
        {"image": name, "question": "what?"}
        for name in ("Zo\u00eb/1.jpg", "IMG/1.jpg", "img/1.jpg", "far/1.jpg")
    ]
    write(tmp_path / "deep", "questions.json", rows)
    dataset = open_dataset(tmp_path / "deep")
    paths = [dataset.image(question.image_id).path for question in dataset.questions()]
    img = tmp_path / "deep/img/1.jpg"
    assert paths == [tmp_path / "deep/Zoe\u0308/1.jpg", img, img, None]


def test_pictures_that_are_not_read_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.heic", "c.HEIC", "d.jfif", "1/2/3/4/e.jpg", "1/2/3/4/5/f.jpg"):
        write(tmp_path, name)
    dataset = open_dataset(tmp_path)
    assert [image.path.name for image in dataset.images() if image.path] == ["e.jpg", "a.jpg", "d.jfif"]
    one_problem(dataset.problems, "b.heic and 1 more: is a .heic picture, a kind that is not read")
    one_problem(dataset.problems, "1/2/3/4: 5 lies below 4 directories (not looked into)")


def test_a_listed_picture_is_not_one_that_only_shares_name_or_number(tmp_path: Path) -> None:
    for name in ("dogs/1.jpg", "mine/scan-7.jpg", "val2014/COCO_val2014_000000000009.jpg"):
        write(tmp_path, name)
    names = {1: "cats/1.jpg", 101: "dogs/1.jpg", 7: "000000000007.jpg", 9: "000000000009.jpg"}
    content = captions_file(
        "a", "b", "c", "d", images=[{"id": n, "file_name": it} for n, it in names.items()]
    )
    for row, number in zip(content["annotations"], names, strict=True):
        row["image_id"] = number
    write(tmp_path, "captions_val2014.json", content)
    dataset = open_dataset(tmp_path)
    paths = {number: dataset.image(number).path for number in names}
    coco = tmp_path / "val2014/COCO_val2014_000000000009.jpg"
    assert paths == {1: None, 101: tmp_path / "dogs/1.jpg", 7: None, 9: coco}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("42", 42), ("0042.jpg", 42), ("000000000042.png", 42), ("COCO_val2014_000000000042.jpg", 42),
        ("val2014/COCO_val2014_000000000042", 42), ("viz_train_00000000.jpg", "viz_train_00000000"),
        ("viz_val_00000000.jpg", "viz_val_00000000"), ("n161313", "n161313"), ("img7.jpg", "img7"),
        ("test1-0-1-img0.png", "test1-0-1-img0"), ("a.b.c", "a.b.c"), ("train/42.jpg", "train/42"),
        ("9" * 19, "9" * 19), ("\u0664\u0662", "\u0664\u0662"),
    ],
)  # fmt: skip
def test_the_key_of_an_image_that_is_known_by_name_alone(name: str, key: int | str) -> None:
    """Never the number at its end alone: other images of the dataset may have the same."""
    assert key_of_name(name) == key


@given(st.lists(st.from_regex(r"(train|val|x)/[ab]?[0-9a-c]{1,2}\.(jpg|PNG)", fullmatch=True), unique=True))
def test_every_file_has_its_own_key(names: list[str]) -> None:
    index = ImageIndex(names, [], [], Problems())
    assert len(index.keys()) == len(names) and sorted(index.path_of.values()) == sorted(names)
    for key, name in index.path_of.items():
        assert index.by_name(name, "") == key and index.by_id(key, None)[0] == key


def test_equal_numbers_in_two_splits(tmp_path: Path) -> None:
    for name in ("train/images/0.jpg", "test/images/0.jpg", "train/images/1.jpg", "train/images/cat.jpg"):
        write(tmp_path, name)
    vqa_files(tmp_path, "train", [0, 1, "cat.jpg"])
    vqa_files(tmp_path, "test", [0], answered=False)
    vqa_files(tmp_path, "minival", [0], answered=False)
    dataset = open_dataset(tmp_path)
    assert [q.image_id for q in dataset.questions("train")] == ["train/images/0", 1, "cat"]
    assert [q.image_id for q in dataset.questions("test")] == ["test/images/0"]
    assert dataset.questions("minival") == []
    one_problem(dataset.problems, "minival", "may be", "train/images/0.jpg")
    assert dataset.image("test/images/0").split == "test"


def test_json_lines_find_their_images(tmp_path: Path) -> None:
    write(tmp_path, "train/images/dog.jpg")
    write(tmp_path, "images/cat.jpg")
    lines = [
        {"image": "dog.jpg", "text": "a dog"},
        {"image": "images/cat.jpg", "caption": "a cat", "extra": 1},
        {"image": "gone/7.jpg", "text": "gone"},
        {"text": "no image"},
        {"text": "  "},
        {"image": 3, "text": "three"},
    ]
    write(tmp_path, "train/pairs.jsonl", "\n\n".join(map(json.dumps, lines)))
    dataset = open_dataset(tmp_path)
    assert [(c.image_id, c.text) for c in dataset.captions()] == [
        *(("dog", "a dog"), ("cat", "a cat"), (7, "gone"), (None, "no image"), (3, "three"))
    ]
    assert dataset.image("cat").path == tmp_path / "images/cat.jpg"
    assert dataset.image(7) == ImageRecord(7, None, "train")
    one_problem(dataset.problems, "line 9", "empty text")


def test_an_image_in_many_files_is_one_record(tmp_path: Path) -> None:
    write(tmp_path, "captions_val2014.json", {
        "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}],
        "annotations": [{"id": 1, "image_id": 42, "caption": "a dog"}]})  # fmt: skip
    write(tmp_path, "instances_val2014.json", {
        "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "width": 9, "height": 7}],
        "annotations": [], "categories": []})  # fmt: skip
    write(tmp_path, "pairs.jsonl", '{"image": "COCO_val2014_000000000042.jpg", "text": "the dog"}')
    vqa_files(tmp_path, "val2014", [42])
    path = write(tmp_path, "val2017/000000000042.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.images() == [ImageRecord(42, path, "val", 9, 7, 42)]
    assert {c.image_id for c in dataset.captions()} == {q.image_id for q in dataset.questions()} == {42}


@pytest.mark.parametrize("annotations", ["beside", "apart"])
@pytest.mark.parametrize("file_name", ["0.png", "images/0.png", "split"])
def test_lists_that_number_from_zero_each(tmp_path: Path, annotations: str, file_name: str) -> None:
    for split in ("train", "test"):
        write(tmp_path, f"{split}/images/0.png")
        name = f"{split}/images/0.png" if file_name == "split" else file_name
        images = [{"id": 0, "file_name": name, "width": 10, "height": 8}]
        where = (f"{split}/{{}}.json", f"annotations/{{}}_{split}.json")[annotations == "apart"]
        write(tmp_path, where.format("captions"), captions_file(f"a {split} caption", images=images))
        boxes = [{"id": 1, "image_id": 0, "bbox": [0, 0, 4, 4], "category_id": 1}]
        categories = [{"id": 1, "name": split}]
        content = {"images": images, "annotations": boxes, "categories": categories}
        write(tmp_path, where.format("instances"), content)
        vqa_files(tmp_path, split, [0, "0.png"])
    write(tmp_path, "pairs_test.jsonl", '{"image": "0.png", "text": "a test line"}')
    dataset = open_dataset(tmp_path)
    assert [(image.image_id, image.path, image.split) for image in dataset.images()] == [
        (f"{split}/images/0", tmp_path / split / "images/0.png", split) for split in ("test", "train")
    ]
    for split in ("train", "test"):
        key = f"{split}/images/0"
        assert {c.image_id for c in dataset.captions(split)} == {key}
        assert dataset.captions(split)[0].text == f"a {split} caption"
        assert [q.image_id for q in dataset.questions(split)] == [key, key]
        assert [box.label for box in dataset.boxes(split)[key]] == [split]
    assert dataset.captions("test")[1].text == "a test line"
    assert dataset.captions()[0].text_id != dataset.captions()[1].text_id
    assert all("kept apart" in line for line in dataset.problems), dataset.problems


def test_listed_images_that_are_not_on_disk_are_kept_apart_by_what_is_known(tmp_path: Path) -> None:
    def listed(name: str, width: int) -> list[dict[str, Any]]:
        return [{"id": 0, "file_name": name, "width": width, "height": 8}]

    write(tmp_path, "a/captions_train.json", captions_file("one", images=listed("0.png", 10)))
    write(tmp_path, "a/captions_test.json", captions_file("two", images=listed("0.png", 12)))
    write(tmp_path, "b/captions_train.json", captions_file("one", images=listed("train/0.png", 10)))
    write(tmp_path, "b/captions_test.json", captions_file("two", images=listed("test/0.png", 10)))
    for root in (tmp_path / "a", tmp_path / "b"):
        vqa_files(root, "test", [0], answered=False)
        dataset = open_dataset(root)
        assert {c.text: c.image_id for c in dataset.captions()} == {"one": "train/0", "two": "test/0"}
        assert dataset.questions()[0].image_id == "test/0"


def test_ids_of_coco_mean_one_image_in_every_release(tmp_path: Path) -> None:
    write(tmp_path, "train2017/000000000042.jpg")
    write(tmp_path, "val2014/COCO_val2014_000000000042.jpg")
    for split, name in (("train2017", "000000000042.jpg"), ("val2014", "COCO_val2014_000000000042.jpg")):
        content = captions_file(split, images=[{"id": 42, "file_name": name}])
        content["annotations"][0]["image_id"] = 42
        write(tmp_path, f"annotations/captions_{split}.json", content)
    dataset = open_dataset(tmp_path)
    assert {c.image_id for c in dataset.captions()} == {42} and dataset.problems == []
    assert dataset.image(42).split == "val"


def test_refs_of_images_that_share_an_id(tmp_path: Path) -> None:
    for name in ("refcoco", "mine"):
        write(tmp_path, f"{name}/images/0.png")
        write(tmp_path, f"{name}/instances.json", {
            "images": [{"id": 0, "file_name": "0.png", "width": 9, "height": 9}],
            "annotations": [{"id": 1, "image_id": 0, "bbox": [0, 0, 5, 5], "category_id": 1}],
            "categories": [{"id": 1, "name": "dog"}],
        })  # fmt: skip
        write(tmp_path, f"{name}/refs(unc).p", pickle.dumps([ref(1, 1, 0, name)]))
    dataset = open_dataset(tmp_path)
    for name in ("refcoco", "mine"):
        (row,) = dataset.expressions(name=name)
        assert row.text == name and dataset.image(row.image_id).path == tmp_path / name / "images/0.png"


@given(st.lists(st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 4)), unique=True))
def test_listed_images_never_merge_across_directories(listed: list[tuple[str, int]]) -> None:
    from tbkin_core.datasets.image_index import ImageIndex
    from tbkin_core.datasets.reading import Problems

    files = [f"{split}/images/{number}.jpg" for split, number in listed]
    images = [ListedImage(number, f"{number}.jpg", split, 9, 9, f"{split}.json") for split, number in listed]
    index = ImageIndex(files, images, [], Problems())
    assert len(index.keys()) == len(files)
    for (split, number), file in zip(listed, files, strict=True):
        key = index.key_in(f"{split}.json", number)
        assert index.path_of[key] == file
        assert index.by_id(number, split) == (key, []) and index.by_name(f"{number}.jpg", "", split) == key


# --- further formats ---------------------------------------------------------------------------------------


def karpathy_image(number: int, split: str, *texts: Any, **more: Any) -> dict[str, Any]:
    sentences = [
        {"raw": text, "tokens": str(text).split(), "imgid": number, "sentid": 10 * number + i}
        for i, text in enumerate(texts)
    ]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences, **more}


def test_karpathy_of_coco(tmp_path: Path) -> None:
    def named(number: int, split: str) -> dict[str, Any]:
        name = f"COCO_val2014_{number:012}.jpg"
        return {"filename": name, "filepath": "val2014", "cocoid": number}

    images = [
        karpathy_image(0, "test", "a dog", "a brown dog", **named(40, "val")),
        karpathy_image(1, "restval", "a cat", **named(41, "val")),
    ]
    write(tmp_path, "annotations/dataset_coco.json", {"images": images, "dataset": "coco"})
    path = write(tmp_path, "val2014/COCO_val2014_000000000040.jpg")
    listed = [
        {"id": i, "file_name": f"COCO_val2014_{i:012}.jpg", "width": 9, "height": 7} for i in (40, 41, 42)
    ]
    annotations = [{"id": i, "image_id": i, "caption": f"official {i}"} for i in (40, 41, 42)]
    write(tmp_path, "annotations/captions_val2014.json", {"images": listed, "annotations": annotations})
    boxes = [{"id": 1, "image_id": 40, "bbox": [0, 0, 4, 4], "category_id": 1}]
    write(tmp_path, "annotations/instances_val2014.json", {
        "images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]})  # fmt: skip
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("coco-captions", "coco-instances", "karpathy", "images")
    assert dataset.captions("test") == [
        Caption(0, 40, "a dog", "test"),
        Caption(1, 40, "a brown dog", "test"),
    ]
    assert dataset.captions("train") == [Caption(10, 41, "a cat", "train")]
    assert dataset.captions("val") == [Caption(42, 42, "official 42", "val")]
    assert dataset.images("test") == [ImageRecord(40, path, "test", 9, 7, 40)]
    assert list(dataset.boxes("test")) == [40] and dataset.boxes("val") == {}
    one_problem(dataset.problems, "captions_val2014.json: annotation 40 and 1 more", "another file gives")


def test_karpathy_of_flickr_and_its_faults(tmp_path: Path) -> None:
    images = [
        karpathy_image(1000092795, "train", "two men", 3, "", "  "),
        karpathy_image(2, "val", filename="2_5f.jpg"),
        karpathy_image(2, "val", "again"),
        {"imgid": 4, "split": "val"},
        karpathy_image(5, "", "no split"),
        karpathy_image(6, "test", "same"),
        "no object",
    ]
    images[5]["sentences"] *= 2  # type: ignore[index]
    images[5]["sentences"] += ["no object", {}]  # type: ignore[index]
    write(tmp_path, "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    path = write(tmp_path, "flickr30k-images/2_5f.jpg")
    dataset = open_dataset(tmp_path)
    assert [(c.text_id, c.image_id, c.text, c.split) for c in dataset.captions()] == [
        (10000927950, 1000092795, "two men", "train"),
        (50, 5, "no split", "train"),
        (60, 6, "same", "test"),
    ]
    assert dataset.image("2_5f") == ImageRecord("2_5f", path, "val")
    one_problem(dataset.problems, "sentence 10000927951 and 3 more", "no text")
    for part in (
        *("image 2 has no sentences", "image 2 is listed twice", "image 4 has no filename"),
        *("image 5 has no split", "sentence 60 has a sentid used before"),
        "image 6: sentence at position 2 and 1 more: is no JSON object",
    ):
        one_problem(dataset.problems, "dataset_flickr30k.json", part)
    write(tmp_path, "other/dataset_coco.json", {"dataset": "coco"})
    with pytest.raises(DataError, match=r"dataset_coco\.json: expected a list under 'images'"):
        open_dataset(tmp_path / "other").captions()


def test_conceptual_captions(tmp_path: Path) -> None:
    lines = [
        "a very typical bus station\thttp://lh6.ggpht.com/-1/IMG_5?x=1",
        "sierra looked stunning\thttps://b",
    ]
    write(tmp_path, "Train_GCC-training.tsv", "\n".join([*lines, "no url here", "\thttp://c", ""]))
    write(tmp_path, "Validation_GCC-1.1.0-Validation.tsv", f"{lines[0]}\r\n{lines[1]}\r\n")
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("conceptual-captions",) and dataset.images() == []
    assert dataset.captions("train") == [
        Caption("Train_GCC-training.tsv:0", None, "a very typical bus station", "train"),
        Caption("Train_GCC-training.tsv:1", None, "sierra looked stunning", "train"),
    ]
    assert [c.text for c in dataset.captions("val")] == [c.text for c in dataset.captions("train")]
    one_problem(dataset.problems, "Train_GCC-training.tsv: line 3 is no caption, tab and url")
    one_problem(dataset.problems, "Train_GCC-training.tsv: line 4 has an empty caption")
    write(tmp_path, "twelve/web.tsv", "http://a/1.jpg\ta cat\nhttp://a/2.jpg\ta dog\n")
    assert [c.text for c in open_dataset(tmp_path / "twelve").captions()] == ["a cat", "a dog"]
    write(tmp_path, "bad/conceptual.tsv", "a cat\na dog\n")
    with pytest.raises(
        DataError, match=r"conceptual\.tsv: no line is a caption, a tab and a url, from line 1"
    ):
        open_dataset(tmp_path / "bad").captions()


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["0.jpg", "2.jpg"], [0, None, 2]),
        (["00000/000000000.jpg", "00000/000000001.jpg"], [0, 1, None]),
        (["1.jpg", "3.jpg"], [1, None, 3]),
        (["1.jpg"], [None, 1, None]),
        (["COCO_val_2.jpg"], [None, None, None]),
        (["val/0.jpg"], [None, None, None]),
    ],
)
def test_images_by_row_number(tmp_path: Path, files: list[str], keys: list[int | None]) -> None:
    for name in files:
        write(tmp_path, name)
    write(tmp_path, "Train_GCC-training.tsv", "".join(f"text {i}\thttp://a/{i}\n" for i in range(3)))
    dataset = open_dataset(tmp_path)
    assert [caption.image_id for caption in dataset.captions()] == keys
    assert len(dataset.problems) == (files == ["1.jpg"])


def test_sbu(tmp_path: Path) -> None:
    content = {"image_urls": ["http://a", "http://b", "http://c"], "captions": ["one", "", 3], "user_ids": []}
    write(tmp_path, "sbu-captions-all.json", content)
    write(tmp_path, "images/0.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("sbu", "images")
    assert dataset.captions() == [Caption("sbu-captions-all.json:0", 0, "one", "all")]
    one_problem(dataset.problems, "row 1 has an empty caption")
    one_problem(dataset.problems, "row 2 has a caption that is no text")
    write(tmp_path, "short/any.json", {"image_urls": ["http://a"], "captions": ["one", "two"]})
    short = open_dataset(tmp_path / "short")
    assert [caption.text for caption in short.captions()] == ["one", "two"]
    one_problem(short.problems, "row 1 has no url: 2 captions and 1 urls")
    write(tmp_path, "none/sbu-captions-all.json", {"image_urls": []})
    with pytest.raises(DataError, match="expected a list under 'captions'"):
        open_dataset(tmp_path / "none").captions()


def test_flickr_token_file(tmp_path: Path) -> None:
    lines = ["1000092795.jpg#0\ttwo men", "1000092795.jpg#1\ttwo guys", "1000092795.jpg#1\tagain", "x.jpg#0"]
    write(tmp_path, "results_20130124.token", "\n".join([*lines, "7_a.jpg#0\t ", "7_a.jpg#1\ta girl"]))
    path = write(tmp_path, "flickr30k_images/1000092795.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("flickr", "images")
    assert [(c.text_id, c.image_id, c.text) for c in dataset.captions()] == [
        ("results_20130124.token:1", 1000092795, "two men"),
        ("results_20130124.token:2", 1000092795, "two guys"),
        ("results_20130124.token:6", "7_a", "a girl"),
    ]
    assert dataset.image(1000092795).path == path
    for part in ("line 3 numbers a caption as one before", "line 4 is no image name", "line 5 has an empty"):
        one_problem(dataset.problems, part)
    write(
        tmp_path,
        "bad/results.token",
        "a.jpg\tno number\nb.jpg#0 no tab\nc.jpg#0\tword\n".replace("c.jpg#0", "c#0.jpg#1"),
    )
    assert len(open_dataset(tmp_path / "bad").captions()) == 1


@pytest.mark.parametrize(
    ("names", "form"),
    [
        ({"Flickr_8k.trainImages.txt": "train", "Flickr_8k.devImages.txt": "val",
          "Flickr_8k.testImages.txt": "test"}, "{}.jpg"),
        ({"train.txt": "train", "val.txt": "val", "test.txt": "test"}, "{}"),
    ],
)  # fmt: skip
def test_the_official_lists_give_flickrs_splits(tmp_path: Path, names: dict[str, str], form: str) -> None:
    numbers = range(1000092795, 1000092795 + 7)
    write(tmp_path, "text/results.token", "".join(f"{n}.jpg#{k}\ta dog\n" for n in numbers for k in (0, 1)))
    for number in numbers:
        write(tmp_path, f"images/{number}.jpg")
    for place, name in enumerate(names):
        listed = [form.format(numbers[0] + 2 * place + k) for k in (0, 1)]
        write(tmp_path, f"text/{name}", "\n".join([*listed, form.format(999999999)]) + "\n")
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("flickr", "images") and not dataset.problems
    splits = {record.image_id: record.split for record in dataset.images()}
    expected = [split for split in names.values() for _ in (0, 1)]
    assert [splits[number] for number in numbers] == [*expected, "all"]
    assert [caption.split for caption in dataset.captions()][::2] == [*expected, "all"]


def test_lines_state_their_splits(tmp_path: Path) -> None:
    lines = [
        ("a.jpg", "train"),
        ("b.jpg", "validation"),
        ("c.jpg", "dev"),
        ("d.jpg", "test"),
        ("e.jpg", None),
    ]
    rows = [{"image": name, "text": "a dog"} | ({"split": split} if split else {}) for name, split in lines]
    write(tmp_path, "captions.jsonl", "\n".join(map(json.dumps, [*rows, {**rows[0], "split": [3]}])))
    for name, _ in lines:
        write(tmp_path, name)
    dataset = open_dataset(tmp_path)
    found = [caption.split for caption in dataset.captions()]
    assert found == ["train", "val", "val", "test", "all", "train"]
    assert [record.split for record in dataset.images()][:4] == ["train", "val", "val", "test"]
    one_problem(dataset.problems, "captions.jsonl: line 6 has a split that is no name")


def test_own_questions_as_lines_and_as_a_table(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"image": "dog.jpg", "question": "what is this?", "answer": "a dog"},
        {
            "image": "far/cat.jpg",
            "question": "what is it?",
            "answers": ["a cat", "cat"],
            "split": "dev",
            "id": 7,
        },
        {"image": "cat", "question": "is it red?", "answers": ["no", {}], "split": "test"},
        {"image": "dog.jpg", "question": "unanswered?"},
        {"image": "dog.jpg", "question": " ", "answer": "x"},
        {"question": "of what?", "answer": "x"},
        {"image": "dog.jpg", "question": "again?", "id": 7},
        ["dog.jpg", "what?"],
    ]
    write(tmp_path / "lines", "questions.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("dog.jpg", "far/cat.jpg"):
        write(tmp_path / "lines", name)
    dataset = open_dataset(tmp_path / "lines")
    assert dataset.layouts == ("questions", "images")
    assert dataset.question_splits() == ("all", "val", "test")
    found = [(q.question_id, q.image_id, q.question, q.answers) for q in dataset.questions()]
    assert found == [
        ("questions.jsonl:1", "dog", "what is this?", ("a dog",)),
        ("questions.jsonl:4", "dog", "unanswered?", ()),
        ("questions.jsonl:7", "dog", "again?", ()),
        (7, "cat", "what is it?", ("a cat", "cat")),
        ("questions.jsonl:3", "cat", "is it red?", ("no",)),
    ]
    assert [record.split for record in dataset.images()] != []
    for part in (
        "line 5 has no question",
        "line 6 has no image",
        "line 8 is no JSON object",
        "line 3",
    ):
        one_problem(dataset.problems, part)

    table = [
        "Image,Question,Answer,Split",
        'dog.jpg,"what, then?",a dog|dog,train',
        "cat.jpg,is it red?,,val",
    ]
    write(tmp_path / "table", "mine.csv", "\r\n".join([*table, "x.jpg,,no,"]))
    dataset = open_dataset(tmp_path / "table")
    assert [(q.image_id, q.question, q.split, q.answers) for q in dataset.questions()] == [
        ("dog", "what, then?", "train", ("a dog", "dog")),
        ("cat", "is it red?", "val", ()),
    ]
    assert dataset.question_files("train") == {"mine.csv": 1}
    one_problem(dataset.problems, "mine.csv: line 4 has no question")
    rows = [
        "image,question,answer",
        "a.jpg,in this picture, what is red?,ball",
        'b.jpg,"what,x',
        "c.jpg,what?,3",
    ]
    write(tmp_path / "faults", "mine.csv", "\n".join([*rows, "", "c.jpg,too, many,x,y"]))
    dataset = open_dataset(tmp_path / "faults")
    assert [(q.question_id, q.answers) for q in dataset.questions()] == [("mine.csv:4", ("3",))]
    for part in ("line 2 has 4 columns, the header 3", "line 3 is no row", "line 6 has 5 columns"):
        one_problem(dataset.problems, part)
    # Each file may number its questions from 1, and answers may be numbers, or as VQA has them.
    for name, answer in (("a", 3), ("b", [{"answer": "2"}, 4.5])):
        lines = [{"id": 1, "image": "x.jpg", "question": f"how many, {name}?", "answers": answer}]
        write(tmp_path / "two", f"{name}.jsonl", json.dumps(lines[0]))
    dataset = open_dataset(tmp_path / "two")
    found = [(q.question_id, q.answers) for q in dataset.questions()]
    assert found == [(1, ("3",)), ("b.jsonl:1", ("2", "4.5"))] and not dataset.problems
    # A table of captions is none of questions.
    write(tmp_path / "captions", "captions.csv", "image,caption\n1_a.jpg,A question and an answer")
    assert open_dataset(tmp_path / "captions").layouts == ("flickr",)


ASKED = {"question": "what color?", "question_id": 5}
TEN = ["red"] * 6 + ["dark red"] * 3 + [""]
PUBLISHED: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "vizwiz": (
        "train.json",
        [{"image": "a_1.jpg", "question": "what color?", "answers": [{"answer": it, "answer_confidence": "no"}
          for it in TEN], "answer_type": "other", "answerable": 1}],
        tuple(TEN),
    ),
    "gqa": (
        "train_balanced_questions.json",
        {"5": {"semantic": [{"operation": "query", "argument": "color", "dependencies": []}], "question":
         "what color?", "imageId": "a_1", "types": {"structural": "query"}, "answer": "red",
         "annotations": {"answer": {}, "question": {"0": "1"}}, "fullAnswer": "It is red."}},
        ("red",),
    ),
    "textvqa": (
        "TextVQA_0.5.1_train.json",
        {"dataset_type": "train", "data": [{**ASKED, "image_id": "a_1", "answers": TEN}]},
        tuple(TEN),
    ),
    "aokvqa": (
        "aokvqa_v1p0_train.json",
        [{**ASKED, "split": "train", "image_id": 1, "choices": ["red", "blue"], "correct_choice_idx": 0,
          "direct_answers": TEN}],
        tuple(TEN),
    ),
    "lxmert": (
        "train.json",
        [{"question_id": 5, "sent": "what color?", "img_id": "a_1", "label": {"red": 1, "dark red": 0.6},
          "answer_type": "other", "question_type": "what color"}],
        ("red",) * 4 + ("dark red",) * 2 + ("",) * 4,
    ),
    "albef": ("vqa_train.json", [{**ASKED, "image": "images/a_1.jpg", "answer": TEN, "dataset": "vqa"}],
              tuple(TEN)),
    "clevr": (
        "CLEVR_train_questions.json",
        {"info": {"split": "train"}, "questions": [{"question": "what color?", "question_index": 5,
         "image_filename": "a_1.jpg", "image_index": 7, "split": "train", "answer": "red", "program": []}]},
        ("red",),
    ),
    "vqa-rad": (
        "questions.json",
        [{"qid": 5, "image_name": "a_1.jpg", "question": "what color?", "answer": "Red",
          "phrase_type": "freeform"}],
        ("Red",),
    ),
    "slake": (
        "train.json",
        [{"img_id": 900, "img_name": "images/a_1.jpg", "question": "what color?", "answer": "red", "qid": 5}],
        ("red",),
    ),
    "own list": ("mine_train.json", [{"image": "a_1.jpg", "question": "what color?", "answer": "red"}],
                 ("red",)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_question_files_of_many_publishers(tmp_path: Path, name: str) -> None:
    file, content, answers = PUBLISHED[name]
    write(tmp_path, "images/a_1.jpg")
    write(tmp_path, file, content)
    dataset = open_dataset(tmp_path)
    (question,) = dataset.questions()
    assert (question.image_id, question.question, question.split) == (1, "what color?", "train")
    assert question.answers == answers and dataset.problems == []
    assert str(question.question_id) == "5" or file in str(question.question_id)
    assert len(dataset.question_sets()) == 1


@pytest.mark.parametrize("scores", [{"x": 1.0}, {"x": 0.3}, {"x": 1, "b": 0.9, "c": 0.3}, {"x": 1.0, "b": 1}])
def test_scores_of_answers_are_those_that_ten_people_give(tmp_path: Path, scores: dict[str, float]) -> None:
    row = {"question_id": 1, "sent": "what?", "img_id": "x", "label": scores}
    write(tmp_path, "train.json", [row])
    dataset = open_dataset(tmp_path)
    found = soft_scores(dataset.questions()[0].answers)
    assert dataset.problems == [] and found == pytest.approx(scores)


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("['yes', 'yes', \"it's\"]", ("yes", "yes", "it's")),
        ('["no", "a, b"]', ("no", "a, b")),
        ("['yes' 'no'\n 'yes']", ("yes", "no", "yes")),  # as NumPy prints its arrays
        ("yes|no|", ("yes", "no")),
        ("[]", ()),
        ("42.0", ("42.0",)),
    ],
)
def test_cells_of_a_table_with_several_answers(tmp_path: Path, cell: str, answers: tuple[str, ...]) -> None:
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["image", "question", "answers"], ["7.0", "how many?", cell.replace("\n", " ")]])
    dataset = open_dataset(tmp_path)
    (question,) = dataset.questions()
    assert (question.image_id, question.answers) == (7, answers) and dataset.problems == []


def test_a_cell_that_is_no_list_of_texts_is_named(tmp_path: Path) -> None:
    write(tmp_path, "mine.csv", "image;question;answers\na.jpg;what?;[nan, {'x': 1}]\n")
    dataset = open_dataset(tmp_path)
    assert dataset.questions()[0].answers == ()
    one_problem(dataset.problems, "mine.csv: line 2 has answers that are no list of texts")


def test_ids_that_begin_anew_cost_no_question(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.jpg", "question": "what?", "answer": "x"}
    write(
        tmp_path / "one", "all.json", [{**row, "split": "train"}, {**row, "image": "b.jpg", "split": "val"}]
    )
    for name in ("a", "b"):  # the same question of another picture
        write(tmp_path / "two", f"{name}.jsonl", json.dumps({**row, "image": f"{name}.jpg"}))
    for place in ("one", "two"):
        dataset = open_dataset(tmp_path / place)
        assert len({item.question_id for item in dataset.questions()}) == 2 and dataset.problems == []
    write(tmp_path / "big", "all.json", [{**row, "question_id": 1 << 64}])
    one_problem(open_dataset_problems(tmp_path / "big"), "neither text nor a number of 64 bits")
    write(tmp_path / "none", "val.json", {"questions": []})
    one_problem(open_dataset_problems(tmp_path / "none"), "val.json: holds no question that can be used")


def open_dataset_problems(place: Path) -> list[str]:
    dataset = open_dataset(place)
    dataset.questions()
    return dataset.problems


def test_counts_and_choices_are_taken_for_what_they_are(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "question": "where?"}
    rows = [
        {"answers": {"red": 2, "blue": 1}},
        {"answers": {"ids": ["x"], "weights": [1]}},
        {"choices": ["Maine", "Ohio"], "answer": 1},
        {"options": ["Maine", "Ohio"], "answer": "B"},
        {"options": {"A": "Maine", "B": "Ohio"}, "answer": "B"},
        {"options": ["a", "b"], "answer": "b"},
        {"answer": "yes", "label": 1},
        {"label": "yes"},
    ]
    entries = [{**row, "question": f"where {number}?", **more} for number, more in enumerate(rows)]
    write(tmp_path, "train.json", [{**entry, "id": number} for number, entry in enumerate(entries)])
    dataset = open_dataset(tmp_path)
    found = [question.answers for question in dataset.questions()]
    assert found == [
        ("red", "red", "blue"), (), ("Ohio",), ("Ohio",), ("Ohio",), ("b",), ("yes",), ("yes",)
    ]  # fmt: skip
    one_problem(dataset.problems, "question 1", "none of 0 to 1")


def test_the_name_of_a_file_goes_before_an_id_beside_it(tmp_path: Path) -> None:
    for number in (1, 9):
        write(tmp_path, f"images/img{number}.jpg")
    row = {"image": "img9.jpg", "image_id": 1, "question": "what?", "answer": "x"}
    write(tmp_path, "q.json", [row])
    write(tmp_path, "q.jsonl", json.dumps({**row, "question": "and?"}))
    write(tmp_path, "c.jsonl", json.dumps({"image": "img9.jpg", "image_id": 1, "text": "a dog"}))
    dataset = open_dataset(tmp_path)
    assert {item.image_id for item in (*dataset.questions(), *dataset.captions())} == {9}


def test_a_set_without_answers_takes_none_of_another_set(tmp_path: Path) -> None:
    for place, text in (("vqa1", "what?"), ("okvqa", "who?")):
        for split in ("train", "val"):
            asked = [{"question_id": 5, "image_id": 1, "question": text}]
            write(tmp_path, f"{place}/OpenEnded_mscoco_{split}2014_questions.json", {"questions": asked})
    told = [{"question_id": 5, "multiple_choice_answer": "red"}]
    write(tmp_path, "vqa1/mscoco_train2014_annotations.json", {"annotations": told})
    dataset = open_dataset(tmp_path)
    answers = {
        name: [q.answers for q in dataset.questions("train", name)] for name in dataset.question_sets()
    }
    assert sorted(answers.items()) == [("okvqa", [()]), ("vqa1", [("red",)])]


def test_a_quoted_text_over_several_lines_of_a_table(tmp_path: Path) -> None:
    rows = ["image,question,answer", 'a.jpg,"what', 'is it?",red', 'b.jpg,"open,x', 'c.jpg,"is, it?",no']
    write(tmp_path, "mine.csv", "\n".join(rows))
    dataset = open_dataset(tmp_path)
    assert [(q.image_id, q.question) for q in dataset.questions()] == [("a", "what is it?"), ("c", "is, it?")]
    one_problem(dataset.problems, "line 4 is no row of separated values")


def test_many_pictures_of_one_name_take_no_longer_than_others() -> None:
    def seconds(count: int) -> float:
        files = [f"images/s{number}/img.jpg" for number in range(count)]
        names = [(f"s{number}/img.jpg", "annotations", None) for number in range(count)]
        begin = time.process_time()
        index = ImageIndex(files, [], names, Problems())
        assert all(index.by_name(name, "annotations") is not None for name, _, _ in names)
        return time.process_time() - begin

    seconds(100)
    assert seconds(8000) < 30 * max(seconds(1000), 0.01)  # 8 times as many; squared it would be 64 times


def test_scores_that_nobody_gives_are_named(tmp_path: Path) -> None:
    for number, scores in enumerate(
        [{"a": 0.45}, {"a": 1, "b": 1, "c": 1}, {"a": 7.5}, {"a": "x", "b": 0.6}]
    ):
        row = {"question_id": 1, "sent": "what?", "img_id": "x", "label": scores}
        write(tmp_path / str(number), "train.json", [row])
        dataset = open_dataset(tmp_path / str(number))
        assert dataset.questions() and len(dataset.problems) == 1, scores
    assert dataset.questions()[0].answers == ("b", "b", *[""] * 8)


def test_an_empty_answer_counts_as_the_official_evaluator_counts_it(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image_id": 1, "question": "what?"}]
    told = [{"question_id": 1, "image_id": 1, "answers": [{"answer": it, "answer_id": 1} for it in TEN]}]
    write(tmp_path, "train_questions.json", {"questions": rows})
    write(tmp_path, "train_annotations.json", {"annotations": told})
    dataset = open_dataset(tmp_path)
    (question,) = dataset.questions()
    assert question.answers == tuple(TEN) and dataset.problems == []
    assert soft_scores(question.answers) == pytest.approx({"red": 1.0, "dark red": 0.9})


def test_balanced_questions_come_before_all_and_both_are_a_choice(tmp_path: Path) -> None:
    one = {"1": {"question": "what?", "imageId": "5", "answer": "red"}}
    for split in ("train", "val"):
        write(tmp_path, f"{split}_balanced_questions.json", one)
    for number in (0, 1):
        more = {f"{number}7": {"question": f"what {number}?", "imageId": "6", "answer": "red"}}
        write(tmp_path, f"train_all_questions/train_all_questions_{number}.json", more)
    write(tmp_path, "val_all_questions.json", one)
    dataset = open_dataset(tmp_path)
    assert dataset.question_sets() == ("balanced", "all")
    assert [len(dataset.questions("train", name)) for name in dataset.question_sets()] == [1, 2]


def test_a_table_with_semicolons_or_tabs(tmp_path: Path) -> None:
    for mark, suffix in ((";", "csv"), ("\t", "tsv")):
        lines = ["\ufeffimage_name?question?answer?split", "a.jpg?what is it, then?red, or so?val"]
        write(tmp_path / suffix, f"mine.{suffix}", "\n".join(line.replace("?", mark) for line in lines))
        (question,) = open_dataset(tmp_path / suffix).questions()
        assert (question.image_id, question.answers, question.split) == ("a", ("red, or so",), "val")


def test_lists_by_split_and_files_that_only_look_like_questions(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "question": "what?", "answer": "red"}
    write(tmp_path, "mine.json", {"train": [row], "validation": [{**row, "question": "and?"}]})
    write(tmp_path, "settings.json", {"prompt": {"image": "<image>", "question": "{}"}, "shots": 4})
    dataset = open_dataset(tmp_path)
    assert [(q.question, q.split) for q in dataset.questions()] == [("what?", "train"), ("and?", "val")]
    assert len(dataset.question_sets()) == 1 and not dataset.mixes_questions()
    assert dataset.problems == ["settings.json: holds no list of questions (found prompt, shots; not read)"]


def test_files_that_nobody_reads_are_named_where_questions_are_missing(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    write(tmp_path, "chats.json", [{"id": 1, "image": "a.jpg", "conversations": []}])
    write(tmp_path, "rows.parquet", "PAR1")
    with pytest.raises(DataError, match="no VQA questions") as caught:
        finetune_task("vqa").samples(open_dataset(tmp_path), None)
    assert "chats.json (id, image, conversations); rows.parquet (binary)" in str(caught.value)


def test_what_is_wrong_with_a_question_counts_once(tmp_path: Path) -> None:
    for number in (1, 2):
        rows = [{"question_id": 7, "image_id": 1, "question": "what?"}]
        write(tmp_path, f"train_questions_{number}.json", {"questions": rows})
    dataset = open_dataset(tmp_path)
    dataset.images()
    dataset.question_images("train")
    assert len(dataset.questions("train")) == 1
    assert dataset.problems == ["train_questions_2.json: question 7 is in another file too (skipped)"]


def test_flickr_tables_and_repeats(tmp_path: Path) -> None:
    table = ["1_a.jpg,A child , running .", '1_a.jpg,"A ""red"" dog, sitting"', '2_b.jpg,"unclosed', "none"]
    write(tmp_path, "captions.txt", "\n".join(["image,caption", *table]))
    write(tmp_path, "Images/1_a.jpg")
    dataset = open_dataset(tmp_path)
    assert [(c.image_id, c.text) for c in dataset.captions()] == [
        ("1_a", "A child , running ."),
        ("1_a", 'A "red" dog, sitting'),
        ("2_b", '"unclosed'),
    ]
    one_problem(dataset.problems, "captions.txt: line 5 is no image name and caption")
    write(tmp_path, "Flickr8k.token.txt", "1_a.jpg#0\tA child\n3_c.jpg#0\tA boat\n")
    write(tmp_path, "Flickr8k.lemma.token.txt", "1_a.jpg#0\tA child\n9_c.jpg#0\ta boat\n")
    write(tmp_path, "Flickr_8k.trainImages.txt", "1_a.jpg\n")
    dataset = open_dataset(tmp_path)
    assert [c.text for c in dataset.captions()] == ["A child", "A boat", '"unclosed']
    one_problem(dataset.problems, "captions.txt: line 2 and 1 more", "another file gives")
    write(
        tmp_path,
        "pipes/results.csv",
        "image_name| comment_number| comment\n5.jpg| 0| a dog\n5.jpg| 0| a cat\n",
    )
    pipes = open_dataset(tmp_path / "pipes")
    assert [(c.image_id, c.text) for c in pipes.captions()] == [(5, "a dog")]
    write(tmp_path, "bad/captions.txt", "image,caption\nnothing\n")
    with pytest.raises(
        DataError, match=r"captions\.txt: no line is an image name and a caption, from line 2"
    ):
        open_dataset(tmp_path / "bad").captions()


def test_gold_graphs(tmp_path: Path) -> None:
    def relation(number: int, subject: int, predicate: Any, object_: int) -> dict[str, Any]:
        return {
            "relationship_id": number,
            "subject_id": subject,
            "predicate": predicate,
            "object_id": object_,
        }

    def thing(number: int, name: str, *attributes: str, w: int = 4) -> dict[str, Any]:
        box = {"x": 1, "y": 2, "w": w, "h": 3}
        return {"object_id": number, "names": [name], "attributes": [*attributes], **box}

    entry = {
        "image_id": 7,
        "objects": [thing(11, "man", "tall"), thing(12, "shade", w=0), thing(13, "shoe"), thing(11, "twin")],
        "relationships": [
            *(relation(1, 11, " wears ", 13), relation(2, 11, "ON", 12), relation(1, 13, "ON", 11)),
            *(relation(3, 11, None, 13), {"subject_id": 11}, "no object"),
        ],
    }
    write(tmp_path, "scene_graphs.json", [entry, {"image_id": 8, "objects": 5}, entry, {"objects": []}])
    dataset = open_dataset(tmp_path)
    man, shoe = ("man", (1, 2, 4, 3), ("tall",)), ("shoe", (1, 2, 4, 3), ())
    expected = {7: GoldGraph((man, shoe), ((0, "wears", 1),)), 8: GoldGraph((), ())}  # type: ignore[arg-type]
    assert dataset.gold_graphs() == dataset.gold_graphs("all") == expected
    assert dataset.gold_graphs("train") == {}
    assert [box.label for box in dataset.boxes()[7]] == ["man", "shoe"]
    for part in (
        *(
            "image 7: object 12 has a box without area",
            "image 7: object 11 and 1 more: has an id used before",
        ),
        *("image 7: relationship 2 relates an object",),
        *("image 7: relationship 3 has no predicate", "image 7 has a second scene graph"),
        *("relationship at position 4 and 1 more", "image at position 3 has no image_id"),
    ):
        one_problem(dataset.problems, part)
    write(tmp_path, "other/image.png")
    assert open_dataset(tmp_path / "other").gold_graphs() == {}


def test_gold_graphs_of_visual_genome(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "visual_genome_samples")
    graphs = dataset.gold_graphs()
    assert set(graphs) <= {record.image_id for record in dataset.images()} and len(graphs) > 50
    graph = graphs[1]
    named = {
        (graph.objects[r.subject].name, r.predicate, graph.objects[r.object].name) for r in graph.relations
    }
    assert ("man", "wears", "sneakers") in named or ("shade", "ON", "street") in named, named
    assert sum(len(each.relations) for each in graphs.values()) > 1000


# --- faults in files -------------------------------------------------------------------------------------


def test_faulty_captions_are_counted(tmp_path: Path) -> None:
    content = captions_file("fine", 7, "", None, "\ud800 odd")
    content["annotations"] += [
        *({"id": 12, "image_id": 0}, {"id": 13, "image_id": 0}),
        {"id": 0, "image_id": 1, "caption": "again"},
        *({"id": 14, "image_id": 99, "caption": "whose?"}, {"id": 15, "caption": "whose?"}, "no object"),
    ]
    content["images"] += [{"file_name": "x.jpg"}, {"id": 0, "file_name": "y.jpg"}]
    write(tmp_path, "captions_val.json", content)
    dataset = open_dataset(tmp_path)
    assert [caption.text for caption in dataset.captions()] == ["fine", "? odd"]
    problems = dataset.problems
    one_problem(problems, "captions_val.json: annotation 12 and 1 more: has no caption (skipped)")
    one_problem(problems, "annotation 1 and 1 more", "no text")
    one_problem(problems, "annotation 2 has an empty caption")
    one_problem(problems, "annotation 0 has an id used before")
    one_problem(problems, "annotation 14 names an image that is not listed")
    one_problem(problems, "annotation 15 has no image_id")
    one_problem(problems, "is no JSON object")
    one_problem(problems, "has no id")
    one_problem(problems, "image 0 is listed twice")


def test_faulty_boxes_are_clipped_or_skipped(tmp_path: Path) -> None:
    boxes = [
        [1, 1, 5, 5],
        [8, 2, 50, 2],
        [1, 1, 0, 5],
        [20, 20, 5, 5],
        [1, 1, float("nan"), 2],
        "box",
        [1, 2],
    ]
    write(tmp_path, "instances_val.json", {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": i, "image_id": 1, "bbox": b, "category_id": 1} for i, b in enumerate(boxes)],
    })  # fmt: skip
    dataset = open_dataset(tmp_path)
    assert [box.xywh for box in dataset.boxes("val")[1]] == [(1, 1, 5, 5), (8, 2, 2, 2)]
    for part in ("clipped", "without area", "outside the image", "not finite", "four numbers"):
        one_problem(dataset.problems, part)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_boxes_of_another_form_are_known_from_all_together(data: st.DataObject) -> None:
    sides = st.tuples(*[st.integers(0, 500), st.integers(0, 400), st.integers(2, 130), st.integers(2, 70)])
    boxes = [list(map(float, box)) for box in data.draw(st.lists(sides, min_size=1, max_size=60))]
    spread = [[x, y, 130.0, 70.0] for x in (400.0, 450.0, 500.0) for y in (250.0, 300.0, 350.0, 400.0)]
    forms = {
        "": boxes,
        "shares of the image": [[x / 640, y / 480, w / 640, h / 480] for x, y, w, h in boxes],
        "two corners": [[x, y, x + w, y + h] for x, y, w, h in boxes + spread],
    }
    images = [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}]
    for says, form in forms.items():
        rows = [{"id": i, "image_id": 1, "bbox": box, "category_id": 1} for i, box in enumerate(form)]
        with tempfile.TemporaryDirectory() as place:
            content = {"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": rows}
            write(Path(place), "instances_val.json", content)
            dataset = open_dataset(place)
            if says:
                with pytest.raises(DataError, match=says):
                    dataset.boxes()
            else:
                assert len(dataset.boxes()[1]) == len(form) and dataset.problems == []


def test_faulty_questions_are_counted(tmp_path: Path) -> None:
    vqa_files(tmp_path, "val", [1, 2])
    path = tmp_path / "v2_OpenEnded_val_questions.json"
    content = json.loads(path.read_text())
    content["questions"] += [{"question_id": 7, "image_id": 3, "question": "and?"}, content["questions"][0]]
    del content["questions"][1]
    write(tmp_path, path.name, content)
    dataset = open_dataset(tmp_path)
    assert [(q.question_id, len(q.answers)) for q in dataset.questions()] == [(0, 10), (7, 0)]
    one_problem(dataset.problems, "question 7 has no annotation")
    one_problem(dataset.problems, "question 1 is in no questions file")
    one_problem(dataset.problems, "question 0 is there twice")


def test_refs_without_annotation_or_image_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "refcoco/instances.json", {
        "images": [{"id": 5, "width": 9, "height": 9}],
        "annotations": [
            {"id": 1, "image_id": 5, "bbox": [0, 0, 5, 5]}, {"id": 2, "image_id": 6, "bbox": [0, 0, 5, 5]}],
    })  # fmt: skip
    refs = [ref(1, 1, 5, "here"), ref(2, 9, 5, "no box"), ref(3, 2, 6, "no image"), ref(1, 1, 5, "again"), {}]
    write(tmp_path, "refcoco/refs(unc).p", pickle.dumps(refs, protocol=2))
    dataset = open_dataset(tmp_path)
    assert [row.text for row in dataset.expressions()] == ["here"]
    one_problem(dataset.problems, "ref 2 has no usable annotation")
    one_problem(dataset.problems, "ref 3 has no image")
    one_problem(dataset.problems, "ref 1 has a ref_id used before")
    one_problem(dataset.problems, "ref 4 lacks")
    assert dataset.boxes()


def test_malformed_json_says_where(tmp_path: Path) -> None:
    write(tmp_path, "captions_val.json", '{"images": [],\n "annotations": [{"id": 1,,}]}')
    with pytest.raises(DataError, match=r"captions_val\.json: malformed JSON at line 2, column 27") as raised:
        open_dataset(tmp_path).captions()
    assert raised.value.hint
    write(tmp_path, "lines/a.jsonl", '\n{"text": "one"\n{"text": "tw')
    with pytest.raises(DataError, match=r"a\.jsonl: malformed JSON at line 2, column"):
        open_dataset(tmp_path / "lines").captions()
    for content in ("[]", "{}", '{"annotations": 3}', "[" * 100_000, '{"annotations": ' + "1" * 5000):
        write(tmp_path, "bad/captions_val.json", content)
        with pytest.raises(DataError, match=r"captions_val\.json"):
            open_dataset(tmp_path / "bad").images()


def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    text = json.dumps(captions_file("caf#")).encode().replace(b"#", b"\xe9")
    write(tmp_path, "captions_val.json", text)
    dataset = open_dataset(tmp_path)
    assert dataset.captions()[0].text == "caf\ufffd"
    one_problem(dataset.problems, "is not UTF-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_files_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    def encoded(name: str, text: str) -> None:
        write(tmp_path, name, text.encode(encoding))

    images = [{"id": 0, "file_name": "0.jpg"}] * 1  # recognised by content, which is longer than is looked at
    texts = json.dumps(
        captions_file("un café", *["padding"] * 500, images=None) | {"x": images}, ensure_ascii=False
    )
    encoded("texts.json", texts)
    encoded("pairs.jsonl", '{"text": "ein Mädchen"}\r\n{"text": "two"}')
    encoded("conceptual.tsv", "naïve\thttp://a\n")
    encoded("results.token", "9_z.jpg#0\tœuvre\n")
    dataset = open_dataset(tmp_path)
    found = [caption.text for caption in dataset.captions()]
    assert found[0] == "un café" and found[-4:] == ["œuvre", "ein Mädchen", "two", "naïve"]
    assert len(found) == 505 and dataset.problems == []


def test_a_broken_line_costs_that_line(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", b'{"text": "tw\n{"text": "one"}\n[]\n{"text": "\xff two"}\n{"text": "thr')
    dataset = open_dataset(tmp_path)
    assert [(c.text_id, c.text) for c in dataset.captions()] == [
        ("a.jsonl:2", "one"),
        ("a.jsonl:4", "\ufffd two"),
    ]
    one_problem(dataset.problems, "a.jsonl: line 1 and 1 more: is malformed JSON (skipped)")
    one_problem(dataset.problems, "a.jsonl: line 3 is no JSON object")
    one_problem(dataset.problems, "a.jsonl: line 4 has characters lost to a wrong encoding")


def odd_texts(root: Path, text: str) -> None:
    """The same text in every format, with everything in it that the format can hold."""
    image = {"id": 0, "file_name": "0.jpg"}
    write(root, "captions_val.json", captions_file(text, images=[image]))
    write(root, "a.jsonl", json.dumps({"text": text}))
    write(root, "dataset_flickr8k.json", {"images": [karpathy_image(3, "val", text)]})
    write(root, "sbu-captions-all.json", {"captions": [text], "image_urls": ["http://a"]})
    plain = " ".join(text.replace("\t", " ").split("\n")).encode(errors="replace").decode()
    write(root, "conceptual.tsv", f"{plain}\thttp://a\nlast\thttp://b\n")
    write(root, "results.token", f"5_a.jpg#0\t{plain}\n5_a.jpg#1\tlast\n")
    write(
        root,
        "region_descriptions.json",
        [{"id": 0, "regions": [{"region_id": 77, "phrase": text}]}],
    )


@given(text=st.text(max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_text_in_any_format(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.mktemp("odd")
    odd_texts(root, text)
    dataset = open_dataset(root)
    captions = dataset.captions()
    for caption in captions:
        assert caption.text.strip() == caption.text != ""
        assert not any(ord(c) < 9 or 13 < ord(c) < 32 or ord(c) == 127 for c in caption.text)
        caption.text.encode()
    assert len({caption.text_id for caption in captions}) == len(captions)
    assert open_dataset(root).captions() == captions


def test_odd_texts_are_kept_or_reported(tmp_path: Path) -> None:
    for text in (
        "\U0001f415\u200d\U0001f9ba on a mat",
        "\u05db\u05dc\u05d1 \u05d7\u05d5\u05dd",
        "line\nbreak",
    ):
        odd_texts(tmp_path, text)
        dataset = open_dataset(tmp_path)
        assert [c.text.replace("\n", " ") for c in dataset.captions()].count(text.replace("\n", " ")) == 7
        assert dataset.problems == []
    odd_texts(tmp_path, "a\x00b\x1b[1m dog")
    dataset = open_dataset(tmp_path)
    assert [c.text for c in dataset.captions()].count("a b [1m dog") == 7
    records = ("annotation 0", "line 1", "sentence 30", "row 0", "image 0: region 77")
    told = [line for line in dataset.problems if "has control characters (replaced by blanks)" in line]
    assert len(told) == 7 and {record for record in records if any(record in line for line in told)} == {
        *records
    }
    odd_texts(tmp_path, "dog " * 10_000)
    dataset = open_dataset(tmp_path)
    assert [len(c.text.split()) for c in dataset.captions()].count(10_000) == 7
    assert len([line for line in dataset.problems if "has more than 1000 words (kept)" in line]) == 7


def test_lines_are_not_held(tmp_path: Path) -> None:
    """A file of lines costs its records, not its bytes: here nine tenths are urls and unused keys."""
    import tracemalloc

    url = "http://host/" + "x" * 900
    write(tmp_path, "conceptual.tsv", "".join(f"caption {i}\t{url}{i}\n" for i in range(3000)))
    write(tmp_path, "a.jsonl", "".join(f'{{"text": "line {i}", "url": "{url}"}}\n' for i in range(3000)))
    dataset = open_dataset(tmp_path)
    tracemalloc.start()
    assert len(dataset.captions()) == 6000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6000 * 500, peak  # the two files are 6 MB


def test_broken_npz_is_skipped_and_named(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"x": np.zeros((2, 8)), "bbox": np.zeros((2, 4)), "image_w": 9, "image_h": 7}
    (tmp_path / "features").mkdir()
    np.savez(tmp_path / "features/1.npz", **arrays)
    whole = (tmp_path / "features/1.npz").read_bytes()
    write(tmp_path, "features/2.npz", whole[: len(whole) // 2])
    write(tmp_path, "features/3.npz", b"")
    np.savez(tmp_path / "features/4.npz", other=np.zeros(3))
    np.savez(tmp_path / "features/5.npz", text=np.array([{}], dtype=object), **arrays)
    dataset = open_dataset(tmp_path)
    assert set(dataset.bottom_up_files()) == {1, 5} and dataset.captions() == []
    assert dataset.image(1) == ImageRecord(1, None, "all", 9, 7)
    one_problem(dataset.problems, "features: 2.npz and 1 more: cannot be read")
    one_problem(dataset.problems, "4.npz")
    one_problem(dataset.problems, "5.npz has pickled captions")


# --- pickles ---------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_objects_come_back(value: Any, protocol: int) -> None:
    assert loads_plain(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_data_error(data: bytes) -> None:
    with contextlib.suppress(DataError):
        loads_plain(data)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_cannot_run_code(tmp_path: Path, protocol: int) -> None:
    payload = pickle.dumps([ref(1, 1, 1, "a"), _Payload(tmp_path / "marker")], protocol)
    path = write(tmp_path, "refcoco/refs(unc).p", payload)
    write(tmp_path, "refcoco/instances.json", {"images": [], "annotations": []})
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: refused.*(posix|nt)\.system"):
        load_plain_pickle(path)
    with pytest.raises(DataError, match="refused"):
        open_dataset(tmp_path).expressions()
    assert not (tmp_path / "marker").exists()


def test_a_few_bytes_cannot_ask_for_gigabytes() -> None:
    with pytest.raises(DataError, match="memo index"):
        loads_plain(b"\x80\x02]r" + struct.pack("<I", 2**31) + b".")


def test_python2_strings() -> None:
    assert loads_plain(b"\x80\x02]q\x01(U\x03dogU\x05caf\xc3\xa9e.") == ["dog", "café"]
    assert loads_plain(b"\x80\x02]q\x01(U\x03dogU\x04caf\xe9e.") == ["dog", "café"]


def test_import_is_light() -> None:
    code = (
        "import sys, tbkin_core.datasets; print({'torch', 'spacy', 'transformers', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
