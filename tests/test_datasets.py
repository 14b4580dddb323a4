"""Loaders: real files of the publishers, small trees with faults, hostile pickles, the image id rule."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbkin_core.datasets import Caption, ImageRecord, open_dataset
from tbkin_core.datasets.images import trailing_number
from tbkin_core.datasets.layout import normalise_split, split_in
from tbkin_core.datasets.unpickle import load_plain_pickle, loads_plain
from tbkin_core.errors import DataError


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
        139, shared_data / "coco/val2017/000000000139.jpg", "val", 640, 426
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


def test_annotations_without_questions_are_told(shared_data: Path) -> None:
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
    write(tmp_path, "features/store.json", "{}")
    write(tmp_path, "features/2.png")
    np.savez(tmp_path / "features/1.jpg.npz", x=np.zeros((1, 2)), boxes=np.zeros((1, 4)))
    write(tmp_path, "runs/visualize/config.yaml")
    write(tmp_path, "runs/visualize/figure.png")
    write(tmp_path, ".cache/3.jpg")
    dataset = open_dataset(tmp_path)
    assert [record.image_id for record in dataset.images()] == [1]
    assert set(dataset.bottom_up_files()) == {1}
    with pytest.raises(DataError, match="tbkin wrote"):
        open_dataset(tmp_path / "features")


def test_symlink_loop_and_depth(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c/d/1.jpg")
    write(tmp_path, "a/b/c/d/e/2.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a/broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert [record.image_id for record in open_dataset(tmp_path).images()] == [1]


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


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("v2_OpenEnded_mscoco_train2014_questions", "train"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions", "test-dev"),
        ("OpenEnded_mscoco_test2015_questions", "test"),
        ("captions_val2017", "val"),
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


def test_one_refs_file_a_directory(tmp_path: Path) -> None:
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


@given(st.lists(st.from_regex(r"(train|val|x)/[ab]?[0-9a-c]{1,2}\.(jpg|PNG)", fullmatch=True), unique=True))
def test_every_file_has_its_own_key(names: list[str]) -> None:
    from tbkin_core.datasets.images import ImageIndex
    from tbkin_core.datasets.reading import Problems

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
        *(("dog", "a dog"), ("cat", "a cat"), (7, "gone"), (None, "no image"), (None, "three"))
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
    assert dataset.images() == [ImageRecord(42, path, "val", 9, 7)]
    assert {c.image_id for c in dataset.captions()} == {q.image_id for q in dataset.questions()} == {42}


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
    one_problem(dataset.problems, "question 0 has a question_id used before")


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
    write(tmp_path, "lines/a.jsonl", '{"text": "one"}\n{"text": "tw')
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
