"""Referring expressions: RefCOCO's refs as JSON, in COCO's form, and as people write them down."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_datasets import one_problem, ref, write

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import DataError
from tbkin_core.tasks.rec import expression_set


def expressions_of(dataset: Dataset, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(item, name) for name in names) for item in dataset.expressions()]


def test_refs_as_json_are_those_of_the_pickle(tmp_path: Path) -> None:
    refs = [ref(1, 10, 1, "the red box", "box"), ref(2, 11, 2, "the dog", split="testA")]
    images = [
        {"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "width": 90, "height": 60} for i in (1, 2)
    ]
    boxes = [{"id": 9 + i, "image_id": i, "bbox": [i, 2, 30, 40], "category_id": 1} for i in (1, 2)]
    for place, name, content in (
        ("one/refcoco+", "refs(unc).p", pickle.dumps(refs, protocol=2)),
        ("two/refcoco+", "refs(unc).json", refs),
        ("both/refcoco+", "refs(unc).json", refs),
        ("both/refcoco+", "refs(unc).p", pickle.dumps(refs, protocol=2)),
        ("other/refcoco+", "of_another_name.json", refs),
    ):
        write(tmp_path / place, name, content)
        write(tmp_path / place, "instances.json", {"images": images, "annotations": boxes})
    first, *others = [open_dataset(tmp_path / place) for place in ("one", "two", "both", "other")]
    assert len(first.expressions("val")) == 2 and len(first.expressions("testA")) == 1
    for dataset in others:
        assert dataset.expressions() == first.expressions()
        assert dataset.expression_sets(every_version=True) == ("refcoco+",)
        assert dataset.problems == [
            "refcoco+/instances.json: annotation 10 and 1 more: has no known category (kept without a label)"
        ]


def test_grefcoco_is_read_where_an_expression_has_one_target(tmp_path: Path) -> None:
    several = [ref(number, 0, 1, f"{number} things", "again") for number in range(1, 7)]
    for entry, ids in zip(several, ([10], [10, 11], [], [-1], -1, 11), strict=True):
        entry["ann_id"] = ids
    several.append({**ref(8, 10, 1, "nothing"), "no_target": True})
    boxes = [{"id": i, "image_id": 1, "bbox": [i, 2, 30, 40], "category_id": 1} for i in (10, 11)]
    images = [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 90, "height": 60}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
    write(tmp_path / "grefs", "grefs(unc).json", several)
    write(tmp_path / "grefs", "instances.json", content)
    dataset = open_dataset(tmp_path)
    assert dataset.expression_sets() == ("grefcoco",)
    assert expressions_of(dataset, "ref_id", "text", "target_xywh") == [
        (1, "1 things", (10, 2, 30, 40)),
        (1, "again", (10, 2, 30, 40)),
        (6, "6 things", (11, 2, 30, 40)),
        (6, "again", (11, 2, 30, 40)),
    ]
    assert len(dataset.problems) == 1
    one_problem(dataset.problems, "grefs(unc).json: 2 expressions with several targets and 7 with none")
    write(
        tmp_path / "grefs",
        "grefs(unc).json",
        [{**ref(1, 10, 1, "a dog"), "ann_id": None}, ref(2, 11, 1, "b")],
    )
    dataset = open_dataset(tmp_path)
    assert expressions_of(dataset, "ref_id") == [(2,)]
    one_problem(dataset.problems, "ref 1 lacks ref_id, ann_id or image_id")


def mdetr_file(first: int, name: str, *texts: str) -> dict[str, Any]:
    """Expression i about box i of one image."""
    images = [
        {"file_name": "COCO_train2014_000000000042.jpg", "height": 60, "width": 90, "id": first + i,
         "original_id": 42, "caption": text, "dataset_name": name, "tokens_negative": [[0, 3]]}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    boxes = [
        {"iscrowd": 0, "image_id": first + i, "category_id": 1, "id": first + i, "original_id": 700 + i,
         "bbox": [i, 2, 30, 40], "tokens_positive": [[0, 3]]}
        for i in range(len(texts))
    ]  # fmt: skip
    return {"info": {}, "licenses": [], "images": images, "annotations": boxes, "categories": []}


def test_expressions_in_the_form_of_mdetr(tmp_path: Path) -> None:
    write(tmp_path, "train2014/COCO_train2014_000000000042.jpg")
    write(tmp_path, "mdetr/finetune_refcoco_train.json", mdetr_file(0, "refcoco", "the dog", "the cat"))
    write(tmp_path, "mdetr/finetune_refcoco_val.json", mdetr_file(1, "refcoco", "a cow"))
    write(tmp_path, "mdetr/finetune_refcoco+_testA.json", mdetr_file(9, "refcoco+", "a man"))
    several = mdetr_file(0, "grefcoco", "dogs", "no dog", "one dog")
    several["annotations"][0:2] = [
        {**several["annotations"][0], "id": 7}, several["annotations"][0],
        {**several["annotations"][1], "empty": True, "bbox": [0, 0, 0, 0]},
    ]  # fmt: skip
    write(tmp_path, "mdetr/finetune_grefcoco_val.json", several)
    write(tmp_path, "mdetr/final_flickr.json", mdetr_file(0, "flickr", "a man with two dogs"))
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("refcoco", "images") and not dataset.captions() and not dataset.boxes()
    assert (
        dataset.expression_sets()[:2] == ("refcoco", "refcoco+") and "grefcoco" in dataset.expression_sets()
    )
    assert dataset.expression_splits("refcoco") == ("train", "val")
    found = [(e.sent_id, e.ref_id, e.image_id, e.text, e.split, e.target_xywh, e.width, e.height)
             for e in dataset.expressions(name="refcoco")]  # fmt: skip
    assert found == [
        (0, 700, 42, "the dog", "train", (0, 2, 30, 40), 90, 60),
        (1, 701, 42, "the cat", "train", (1, 2, 30, 40), 90, 60),
        ("mdetr/finetune_refcoco_val.json:1", 700, 42, "a cow", "val", (0, 2, 30, 40), 90, 60),
    ]
    assert [e.split for e in dataset.expressions(name="refcoco+")] == ["testA"]
    assert [e.text for e in dataset.expressions(name="grefcoco")] == ["one dog"]
    assert [(image.image_id, image.split) for image in dataset.images()] == [(42, "val")]
    dataset.expressions()
    one_problem(
        dataset.problems, "finetune_grefcoco_val.json: 1 expressions with several targets and 1 with none"
    )
    one_problem(dataset.problems, "final_flickr.json: image 0 is of 'flickr'")


def test_expressions_without_boxes_are_named(tmp_path: Path) -> None:
    rows = [{"image": "train2014/COCO_train2014_000000000042.jpg", "text": "the dog", "ref_id": 7}]
    write(tmp_path, "refcoco+_train.json", rows)
    with pytest.raises(DataError, match=r"refcoco\+_train.json: expressions without boxes"):
        open_dataset(tmp_path)
    write(tmp_path, "train2014/COCO_train2014_000000000042.jpg")
    one_problem(open_dataset(tmp_path).problems, "refcoco+_train.json: expressions without boxes")
    write(
        tmp_path,
        "google_refexp_val_201511.json",
        {"annotations": {"1": {"bbox": [1, 2, 3, 4]}}, "images": {}},
    )
    dataset = open_dataset(tmp_path)
    one_problem(dataset.problems, "google_refexp_val_201511.json: RefCOCOg in Google's first form")
    assert not dataset.boxes()
    (tmp_path / "google_refexp_val_201511.json").unlink()
    # The same list with boxes is read.
    write(tmp_path, "refcoco+_train.json", [{**rows[0], "xywh": [1, 2, 30, 40]}])
    dataset = open_dataset(tmp_path)
    assert dataset.expression_sets() == ("refcoco+",) and not dataset.problems
    assert expressions_of(dataset, "ref_id", "image_id", "split", "target_xywh") == [
        (7, 42, "train", (1, 2, 30, 40))
    ]


# ---- as people write them down -------------------------------------------------------------------


def lines(rows: list[Any]) -> str:
    return "\n".join(map(json.dumps, rows))


def boxes_of(root: Path) -> list[tuple[Any, ...]]:
    return [item.target_xywh for item in open_dataset(root).expressions()]


def test_own_expressions_as_lines(tmp_path: Path) -> None:
    box = {"x1": 10, "y1": 20, "x2": 40, "y2": 60}
    rows: list[Any] = [
        {"image": "dog.jpg", "text": "the dog", **box},
        {"image": "far/cat.jpg", "expression": "a cat", "box": box, "split": "dev", "id": 7, "ref_id": 3},
        {"img_path": "cat", "sent": "it", "bbox": {"x": 1, "y": 2, "w": 3, "h": 4}, "split": "test"},
        {"image": "dog.jpg", "text": "dogs", "xyxy": [[1, 1, 2, 2], [3, 3, 4, 4]]},
        {"image": "dog.jpg", "text": "no dog", "xyxy": []},
        {"image": "dog.jpg", "text": "a caption"},
        {"image": "dog.jpg", "text": "x", "xyxy": [1, 2, 3]},
        {"image": "dog.jpg", "text": "x", "box": None},
        {"image": "dog.jpg", "text": " ", **box},
        {"text": "of what", **box},
        {"image": "dog.jpg", "text": "again", "id": 7, **box},
        {"image": "dog.jpg", "text": "left", "question": "where?", "xywh": [1, 2, 3, 4]},
        {"image": "dog.jpg", "text": "none", "xyxy": [9, 9, 3, 4]},
        ["dog.jpg"],
    ]
    write(tmp_path, "mine/train.jsonl", lines(rows))
    for name in ("dog.jpg", "far/cat.jpg"):
        write(tmp_path / "mine", name)
    dataset = open_dataset(tmp_path)
    assert dataset.layouts == ("expressions", "images") and dataset.expression_sets() == ("mine",)
    assert dataset.expression_splits() == ("train", "val", "test")
    assert expressions_of(dataset, "sent_id", "ref_id", "image_id", "text", "split", "target_xywh") == [
        ("mine/train.jsonl:1", "mine/train.jsonl:1", "dog", "the dog", "train", (10, 20, 30, 40)),
        (7, 3, "cat", "a cat", "val", (10, 20, 30, 40)),
        ("mine/train.jsonl:3", "mine/train.jsonl:3", "cat", "it", "test", (1, 2, 3, 4)),
        ("mine/train.jsonl:12", "mine/train.jsonl:12", "dog", "left", "train", (1, 2, 3, 4)),
    ]
    assert [(caption.image_id, caption.text) for caption in dataset.captions()] == [("dog", "a caption")]
    assert {image.image_id: image.split for image in dataset.images()} == {"dog": "train", "cat": "val"}
    for part in (
        "1 expressions with several targets and 1 with none",
        "line 7 and 1 more: has no box of four numbers",
        "line 9 has no text",
        "line 10 has no image",
        "line 11 has an id used before",
        "line 12 has a question too",
        "line 13 has a box without area",
        "line 14 is no JSON object",
    ):
        one_problem(dataset.problems, part)
    assert len(dataset.problems) == 8


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("image,text,x1,y1,x2,y2", "10,20,40,60"),
        ("Image,Phrase,xmin,ymin,xmax,ymax", "10,20,40,60"),
        ("image,sentence,x,y,w,h", "10,20,30,40"),
        ("image,text,x,y,width,height", "10,20,30,40"),
        ("image,text,xywh", '"10, 20, 30, 40"'),
        ("image,text,xyxy", '"[10 20 40 60]"'),
        ("image,text,box,width,height", '"10, 20, 40, 60",45,70'),
        ("image,text,width,height,box", '45,70,"(10, 20, 40, 60)"'),
        ("image,text,x,y,w,h,width,height", "10,20,90,40,40,60"),  # it reaches out of the image
    ],
)
def test_own_expressions_as_a_table(tmp_path: Path, header: str, cells: str) -> None:
    table = [f"{header},split", f'dog.jpg,"the dog, left",{cells},val', "x.jpg,"]
    write(tmp_path, "mine.csv", "\r\n".join(table))
    dataset = open_dataset(tmp_path)
    assert expressions_of(dataset, "sent_id", "image_id", "text", "split", "target_xywh") == [
        ("mine.csv:2", "dog", "the dog, left", "val", (10, 20, 30, 40))
    ]
    one_problem(dataset.problems, "line 3 has no text")


SIZE = (640, 480)


@st.composite
def corners(draw: st.DrawFn) -> list[list[int]]:
    """Corners of boxes in pictures of `SIZE`, one of which neither reading could take for the other."""
    rows = [[400, 300, 500, 400]]
    for _ in range(draw(st.integers(0, 10))):
        x, y = draw(st.integers(0, SIZE[0] - 2)), draw(st.integers(0, SIZE[1] - 2))
        rows.append([x, y, draw(st.integers(x + 1, SIZE[0])), draw(st.integers(y + 1, SIZE[1]))])
    return draw(st.permutations(rows))


@given(rows=corners(), known=st.sampled_from(["row", "picture"]), form=st.sampled_from(["xyxy", "xywh"]))
@settings(max_examples=40, deadline=None)
def test_what_four_numbers_are_is_told_from_all_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], known: str, form: str
) -> None:
    root = tmp_path_factory.mktemp("boxes")
    as_xywh = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in rows]
    size = {"width": SIZE[0], "height": SIZE[1]} if known == "row" else {}
    if known == "picture":
        Image.new("RGB", SIZE).save(root / "a.png")
    given_boxes = rows if form == "xyxy" else as_xywh
    write(
        root,
        "mine.jsonl",
        lines([{"image": "a.png", "text": "it", "bbox": box, **size} for box in given_boxes]),
    )
    assert boxes_of(root) == as_xywh


def test_boxes_that_may_be_either_are_refused(tmp_path: Path) -> None:
    def refused(name: str, rows: list[list[float]], says: str, **more: Any) -> None:
        write(
            tmp_path / name,
            "mine.jsonl",
            lines([{"image": "a.png", "text": "it", "box": box, **more} for box in rows]),
        )
        with pytest.raises(DataError, match=says) as error:
            open_dataset(tmp_path / name).expressions()
        assert str(tmp_path / name / "mine.jsonl") in str(error.value) and error.value.hint

    refused("both", [[10, 20, 30, 40], [1, 2, 300, 200]], "line 1: 10, 20, 30, 40", width=640, height=480)
    refused("unknown size", [[10, 20, 30, 40]], "two corners or a corner and a size")
    refused(
        "neither",
        [[600, 20, 300, 700], [700, 2, 800, 900]] * 9,
        "fit their images neither",
        width=640,
        height=480,
    )
    refused(
        "mixed", [[400, 300, 500, 400], [400, 300, 100, 100]] * 9, "two corners or", width=640, height=480
    )
    refused("slip", [[10, 20, 30, 40]] * 30 + [[30, 20, 10, 40]], "two corners or")
    refused("shares", [[0.1, 0.2, 0.5, 0.6]], "shares of the image")
    # A slip among many does not spoil what the others tell.
    rows = [[400, 300, 500, 400]] * 30 + [[600, 300, 500, 400]]
    write(
        tmp_path / "good", "mine.jsonl", lines([{"image": "a.png", "text": "it", "box": box} for box in rows])
    )
    Image.new("RGB", SIZE).save(tmp_path / "good" / "a.png")
    assert boxes_of(tmp_path / "good") == [(400, 300, 100, 100)] * 30


def test_a_picture_that_is_turned_counts_as_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg", exif=exif)
    # Within 480 x 640 two corners alone, within 640 x 480 neither reading.
    write(tmp_path, "mine.jsonl", lines([{"image": "a.jpg", "text": "it", "box": [300, 400, 470, 620]}]))
    assert boxes_of(tmp_path) == [(300, 400, 170, 220)]


def test_a_dataset_is_called_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "mine/a.png")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("mine")
    assert (dataset.path, dataset.root) == (Path("mine"), tmp_path / "mine")
    with pytest.raises(DataError, match=r"^mine: no image"):
        dataset.image("b")
    with pytest.raises(DataError, match=r"^mine: no referring expressions"):
        expression_set(dataset, None)


def test_own_expressions_beside_others(tmp_path: Path) -> None:
    row = {"image": "a.png", "text": "it", "xywh": [1, 2, 3, 4]}
    for split in ("train", "val"):
        write(tmp_path / "parts", f"lines/{split}/it.jsonl", lines([{**row, "id": 1}]))
    dataset = open_dataset(tmp_path / "parts")
    assert dataset.expression_sets() == ("lines",) and dataset.expression_splits() == ("train", "val")
    assert expressions_of(dataset, "sent_id") == [(1,), ("lines/val/it.jsonl:1",)]
    # Images may have numbers, of which nothing else knows.
    write(tmp_path / "numbers", "mine.json", [{**row, "image": 7}, {**row, "image": None}])
    dataset = open_dataset(tmp_path / "numbers")
    assert expressions_of(dataset, "image_id", "width") == [(7, 0)] and len(dataset.images()) == 1
    one_problem(dataset.problems, "mine.json: entry 2 has no image")
    # Questions stay questions, captions captions.
    asked = {"image": "a.png", "question": "what?", "answer": "it", "text": "it", "box": [1, 2, 3, 4]}
    write(tmp_path / "others", "questions.jsonl", lines([asked]))
    captions = [{"image": "a.png", "caption": "a caption", "bbox": [1, 2, 3, 4]}]
    write(tmp_path / "others", "captions.jsonl", lines(captions))
    dataset = open_dataset(tmp_path / "others")
    assert not dataset.expression_sets() and len(dataset.questions()) == len(dataset.captions()) == 1
    one_problem(dataset.problems, "captions.jsonl: line 1 has a box (not read")


def test_shares_of_the_image_among_pixels_are_left_out_and_most_of_them_refused(tmp_path: Path) -> None:
    share = {"image": "a.jpg", "text": "left", "x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 1.002}
    pixels = {"image": "a.jpg", "text": "right", "x1": 10, "y1": 20, "x2": 50, "y2": 90}
    file = tmp_path / "expressions.jsonl"
    file.write_text("\n".join(map(json.dumps, [pixels, pixels, share])))
    dataset = open_dataset(tmp_path)
    assert [item.text for item in dataset.expressions()] == ["right", "right"]
    assert any("line 3 has a box of shares of the image" in problem for problem in dataset.problems)
    file.write_text("\n".join(map(json.dumps, [pixels, share, share])))
    with pytest.raises(DataError, match="shares of the image"):
        open_dataset(tmp_path).expressions()
