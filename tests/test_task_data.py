"""What fine-tuning trains and reports on: splits, versions, and what faulty data costs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, succeeds
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tbkin_core.boxes import scale_between, turned
from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.records import Expression
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.evaluation.intervals import bootstrap_interval
from tbkin_core.evaluation.report import report_entry
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import RegionBatch
from tbkin_core.features.writing import write_feature_store
from tbkin_core.settings import FinetuneConfig
from tbkin_core.tasks.base import ReportRow, Split, finetune_task
from tbkin_core.tasks.inputs import InputSource
from tbkin_core.tasks.rec import (
    Boxes,
    RecTask,
    best_region_hits,
    largest_region_hits,
    random_region_hits,
)
from tbkin_core.texts.tokenizer import build_tokenizer
from tbkin_core.training.splits import EvaluatedImages, hold_out, task_splits

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 180, 20)}
Entries = dict[str, list[dict[str, Any]]]


def write_vqa(place: Path, questions: Entries, annotations: Entries) -> None:
    for kind, name, entries in (
        ("questions", "v2_OpenEnded_mscoco_{}2014_questions.json", questions),
        ("annotations", "v2_mscoco_{}2014_annotations.json", annotations),
    ):
        for split, rows in entries.items():
            (place / name.format(split)).write_text(json.dumps({kind: rows}))


def vqa_entries(images: dict[str, Sequence[int]]) -> tuple[Entries, Entries]:
    """Two questions of each image, numbered 10 × image and the next, with ten answers each."""
    questions: Entries = {split: [] for split in images}
    annotations: Entries = {split: [] for split in images}
    for split, numbers in images.items():
        for number in numbers:
            colour = list(COLOURS)[number % 3]
            for place, (text, answer) in enumerate(
                (("what color is it?", colour), ("is it red?", "yes" if colour == "red" else "no"))
            ):
                entry = {"question_id": 10 * number + place, "image_id": number}
                questions[split].append({**entry, "question": text})
                annotations[split].append({**entry, "answers": [{"answer": answer}] * 10})
    return questions, annotations


def splits_of(place: Path, **settings: Any) -> tuple[dict[str, list[Any]], list[str]]:
    """Samples by split, and the notes."""
    config = FinetuneConfig(**{"task": "vqa", "data": place, **settings})
    task, dataset = finetune_task(config.task), open_dataset(place)
    divided = task_splits(task, dataset, config.dataset, config.train_split, config.seed)
    return divided.samples, divided.notes


def images_of(samples: Sequence[Any]) -> list[int]:
    return sorted({sample.image_id for sample in samples})


# ---- splits of VQA ------------------------------------------------------------------------------


def test_minival_is_kept_apart_from_val(tmp_path: Path) -> None:
    write_vqa(tmp_path, *vqa_entries({"train": range(4), "val": range(4, 8), "minival": [6, 7]}))
    splits, problems = splits_of(tmp_path, train_split="train+val")
    assert images_of(splits["train"]) == [0, 1, 2, 3, 4, 5]
    assert images_of(splits["val"]) == [6, 7]
    assert problems == [
        "4 samples of train+val are left out: their images are in minival",
        "minival is the validation split",
    ]
    splits, problems = splits_of(tmp_path)
    assert (images_of(splits["train"]), images_of(splits["val"])) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert problems == []


def test_minival_cut_out_of_val_is_told_by_its_name(tmp_path: Path) -> None:
    questions, annotations = vqa_entries({"train": range(4), "val": range(4, 8), "minival": [6, 7]})
    write_vqa(tmp_path, questions, annotations)
    for split, rows in questions.items():
        subtype = "train2014" if split == "train" else "val2014"
        file = tmp_path / f"v2_OpenEnded_mscoco_{split}2014_questions.json"
        file.write_text(json.dumps({"data_subtype": subtype, "questions": rows}))
    assert set(open_dataset(tmp_path).question_splits()) == {"train", "val", "minival"}


@pytest.mark.parametrize("validation", ["val", "minival"])
def test_a_validation_question_is_never_trained_on(tmp_path: Path, validation: str) -> None:
    questions, annotations = vqa_entries({"train": range(4), validation: [3, 4]})
    (tmp_path / "same").mkdir()
    write_vqa(tmp_path / "same", questions, annotations)
    with pytest.raises(DataError, match=rf"2 questions of train are in {validation} too") as raised:
        splits_of(tmp_path / "same")
    assert "about image 3" in raised.value.message and "held out" in (raised.value.hint or "")
    # Others about the same picture: so VQA-RAD is split, on purpose.
    for number, question in enumerate(questions[validation]):
        question["question"] = f"how many are there, {number}?"
    (tmp_path / "other").mkdir()
    write_vqa(tmp_path / "other", questions, annotations)
    splits, problems = splits_of(tmp_path / "other")
    assert (images_of(splits["train"]), images_of(splits["val"])) == ([0, 1, 2, 3], [3, 4])
    assert any("split by question: 1 of 2 images" in problem for problem in problems)


def test_two_sets_of_questions_in_one_directory_are_a_choice(tmp_path: Path) -> None:
    questions, annotations = vqa_entries({"train": range(4), "val": [4, 5]})
    write_vqa(tmp_path, questions, annotations)
    assert splits_of(tmp_path)[1] == []
    # OK-VQA's files are named as those of VQA v1, and some of its ids are VQA's.
    other = [{**item, "question": "and this?"} for item in questions["train"][:3]]
    told = [{"question_id": item["question_id"], "multiple_choice_answer": "other"} for item in other]
    (tmp_path / "OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": other}))
    (tmp_path / "mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": told}))
    splits, notes = splits_of(tmp_path)
    assert "vqa-v2 is used; choose another with --dataset (vqa)" in notes
    assert not any("other" in item.answers or item.question == "and this?" for item in splits["train"])
    splits, _ = splits_of(tmp_path, dataset="vqa")
    assert [(item.question, item.answers) for item in [*splits["train"], *splits["val"]]] == [
        ("and this?", ("other",))
    ] * 3
    with pytest.raises(ConfigError, match="dataset: expected one of vqa-v2, vqa, got 'okvqa'"):
        splits_of(tmp_path, dataset="okvqa")
    # Of all sets together each question has an id of its own.
    ids = [item.question_id for item in open_dataset(tmp_path).questions()]
    assert len(set(ids)) == len(ids) and f"vqa:{other[0]['question_id']}" in ids
    # In what one set trains on, another may validate.
    asked = [{"question_id": 1, "image_id": 3, "question": "what?"}]
    (tmp_path / "OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    evaluated = EvaluatedImages([open_dataset(tmp_path)]).among(open_dataset(tmp_path), range(6))
    assert evaluated.tolist() == [False, False, False, True, True, True]


def test_splits_from_files_that_are_named_unlike_are_one_set_with_a_note(tmp_path: Path) -> None:
    for stem, image in (("v2_OpenEnded_mscoco_train2014_questions", 1), ("aokvqa_v1p0_val", 2)):
        row = {"question_id": image, "image_id": image, "question": "what?", "direct_answers": ["a", "b"]}
        (tmp_path / f"{stem}.json").write_text(json.dumps({"questions": [row]}))
    splits, (note, *_) = splits_of(tmp_path)
    assert images_of(splits["train"]) == [1] and images_of(splits["val"]) == [2]
    assert "unlike names: val from aokvqa_v1p0_val.json; train from v2_" in note


def test_a_split_that_is_not_used_is_named(tmp_path: Path) -> None:
    write_vqa(tmp_path, *vqa_entries({"train": range(4), "val": [4, 5]}))
    lines = [{"image": 9, "question": "what?", "answer": "x", "split": "holdout"}]
    (tmp_path / "more.jsonl").write_text(json.dumps(lines[0]))
    (note,) = (note for note in splits_of(tmp_path)[1] if "neither" in note)
    assert note.startswith("neither trained on nor evaluated: holdout (1)")


def test_a_part_of_trainval_and_a_trained_val(tmp_path: Path) -> None:
    write_vqa(tmp_path, *vqa_entries({"trainval": range(6), "val": [4, 5]}))
    splits, _ = splits_of(tmp_path)
    assert (images_of(splits["train"]), images_of(splits["val"])) == ([0, 1, 2, 3], [4, 5])
    splits, problems = splits_of(tmp_path, train_split="val")
    assert len(images_of(splits["train"])) == len(images_of(splits["val"])) == 1
    assert "held out by image" in problems[0]


@pytest.mark.parametrize(
    ("asked", "says"),
    [("train+test", "never trained on"), ("trian", "no split 'trian'"), ("", "no split ''")],
)
def test_splits_that_cannot_be_trained_on(tmp_path: Path, asked: str, says: str) -> None:
    write_vqa(tmp_path, *vqa_entries({"train": range(4), "test": [4, 5]}))
    with pytest.raises(ConfigError, match=says):
        splits_of(tmp_path, train_split=asked)


def test_nothing_is_left_to_train_on(tmp_path: Path) -> None:
    write_vqa(tmp_path, *vqa_entries({"val": [0, 1], "minival": [0, 1]}))
    with pytest.raises(DataError, match="none is left to train on"):
        splits_of(tmp_path, train_split="val")
    questions, _ = vqa_entries({"train": [0, 1], "val": [2]})
    (tmp_path / "bare").mkdir()
    write_vqa(tmp_path / "bare", questions, {})
    with pytest.raises(DataError, match="no question of train or val has answers"):
        splits_of(tmp_path / "bare")
    (tmp_path / "test").mkdir()
    write_vqa(tmp_path / "test", *vqa_entries({"test": [0, 1]}))
    with pytest.raises(DataError, match=r"only test splits \(test\)"):
        splits_of(tmp_path / "test")


def test_questions_without_answers_are_counted_and_left_out(tmp_path: Path) -> None:
    questions, annotations = vqa_entries({"train": range(4), "val": [4, 5], "test": [6, 7]})
    del annotations["train"][:3], annotations["test"]
    annotations["val"][0]["answers"] = []
    annotations["val"][1]["answers"] = [{"answer": None}, {"answer": "red"}]
    write_vqa(tmp_path, questions, annotations)
    splits, problems = splits_of(tmp_path)
    assert [len(items) for items in splits.values()] == [5, 3, 4]
    assert "train: 3 of 8 questions have no answers (left out)" in problems
    assert "val: 1 of 4 questions have no answers (left out)" in problems
    del annotations["val"]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    write_vqa(tmp_path, questions, annotations)
    splits, problems = splits_of(tmp_path)
    assert len(images_of(splits["val"])) == 1 and not {4, 5} & set(images_of(splits["val"]))
    assert "val: none of its questions has answers (not used)" in problems


def test_test_images_that_are_trained_on_are_told(tmp_path: Path) -> None:
    write_vqa(tmp_path, *vqa_entries({"train": range(4), "val": [4], "test": [3, 5]}))
    assert splits_of(tmp_path)[1] == ["test: 1 of its images are trained on; it tells little of new images"]


def test_own_files_in_other_spellings(tmp_path: Path) -> None:
    """Bare lists, ids that are numbers in one file and texts in the other, one answer beside its question."""
    questions, annotations = vqa_entries({"train": [0, 1]})
    for entry in annotations["train"]:
        entry["question_id"] = str(entry["question_id"])
    annotations["train"][0]["image_id"] = 1
    (tmp_path / "train_questions.json").write_text(json.dumps(questions["train"]))
    (tmp_path / "train_annotations.json").write_text(json.dumps(annotations["train"]))
    own = [{"question_id": "a", "image_id": "cat.jpg", "question": "what is it?", "answer": "a cat"}]
    (tmp_path / "val.json").write_text(json.dumps(own))
    dataset = open_dataset(tmp_path)
    assert [len(item.answers) for item in dataset.questions("train")] == [10] * 4
    assert dataset.questions("val")[0].answers == ("a cat",)
    (problem,) = dataset.problems
    assert "question 0 is annotated for another image than it asks about" in problem


# ---- splits of the RefCOCO family ---------------------------------------------------------------


def rec_entries(images: dict[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Refs of the one object of each image, whose annotation has the image's number."""
    return [
        {
            "ref_id": 100 * place + number,
            "ann_id": number,
            "image_id": number,
            "split": split,
            "sentences": [{"sent_id": 100 * place + number, "sent": f"the {split} object {number}"}],
        }
        for place, (split, numbers) in enumerate(images.items())
        for number in numbers
    ]


def write_rec(place: Path, refs: dict[str, list[dict[str, Any]]], count: int = 8) -> dict[str, Any]:
    place.mkdir(parents=True)
    for who, content in refs.items():
        (place / f"refs({who}).p").write_bytes(pickle.dumps(content, protocol=2))
    instances = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 72} for number in range(count)
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 15, 41, 41]}
            for number in range(count)
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    (place / "instances.json").write_text(json.dumps(instances))
    return instances


def test_both_versions_of_refcocog_can_be_chosen(tmp_path: Path) -> None:
    by_image = rec_entries({"train": range(4), "val": [4], "test": [5, 6]})
    by_object = rec_entries({"train": range(6), "val": [4, 5, 6]})
    write_rec(tmp_path / "refcocog", {"google": by_object, "umd": by_image})
    write_rec(tmp_path / "refcoco", {"google": by_object, "unc": by_image})
    dataset = open_dataset(tmp_path)
    assert dataset.expression_sets() == ("refcoco", "refcocog")
    everything = ("refcoco", "refcoco-google", "refcocog", "refcocog-google")
    assert dataset.expression_sets(every_version=True) == everything
    for name in ("refcocog", "refcocog-umd", "RefCOCOg_umd"):
        splits, problems = splits_of(tmp_path, task="rec", dataset=name)
        assert [images_of(items) for items in splits.values()] == [[0, 1, 2, 3], [4], [5, 6]]
        assert problems == []
    splits, problems = splits_of(tmp_path, task="rec", dataset="refcocog_google")
    assert [images_of(items) for items in splits.values()] == [[0, 1, 2, 3, 4, 5], [4, 5, 6]]
    assert "refcocog-google is split by object: 2 of 3 images of val are trained on" in problems[0]
    with pytest.raises(ConfigError, match="refcocog, refcocog-google, got 'refcocog-unc'"):
        splits_of(tmp_path, task="rec", dataset="refcocog-unc")


def test_only_google_may_split_by_object(tmp_path: Path) -> None:
    write_rec(tmp_path / "refcocog", {"umd": rec_entries({"train": range(6), "val": [5, 6]})})
    with pytest.raises(DataError, match="1 images of val are in train too"):
        splits_of(tmp_path, task="rec")


# ---- what is not pretrained on ----


def write_json_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_images_that_any_dataset_evaluates_on_are_known_in_all(tmp_path: Path) -> None:
    """RefCOCO's val and test pictures as COCO's 2014 and 2017 have them, and by Visual Genome's coco_id."""
    refs = rec_entries({"train": [1, 2], "val": [3], "testA": [4]})
    instances = write_rec(tmp_path / "refcoco", {"unc": refs})
    for image in instances["images"]:
        image["file_name"] = f"COCO_train2014_{image['id']:012}.jpg"
    (tmp_path / "refcoco/instances.json").write_text(json.dumps(instances))
    forms = {"coco14": "train2014/COCO_train2014_{:012}.jpg", "coco17": "train2017/{:012}.jpg"}
    for place, form in {**forms, "own": "{:012}.jpg"}.items():
        for number in (1, 3, 4, 9):
            path = tmp_path / place / form.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    listed = [{"image_id": 100 + n, "coco_id": n, "width": 8, "height": 8} for n in (1, 3, 4)]
    listed.append({"image_id": 200, "coco_id": None, "width": 8, "height": 8})
    write_json_file(tmp_path / "vg/image_data.json", listed)
    write_json_file(
        tmp_path / "questions/v2_OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"question_id": 1, "image_id": 9, "question": "what is it?"}]},
    )
    listed = [{"id": n, "file_name": f"{n:012}.jpg"} for n in (1, 3, 4, 9)]
    captions = [{"id": n, "image_id": n, "caption": "a box"} for n in (1, 3, 4, 9)]
    write_json_file(
        tmp_path / "listed/annotations/captions_train2017.json", {"images": listed, "annotations": captions}
    )
    opened = [open_dataset(tmp_path / place) for place in ("refcoco", "coco14", "questions")]
    evaluated = EvaluatedImages(opened[:2], opened[2:])
    assert evaluated.places == [tmp_path / "refcoco", tmp_path / "questions"]

    def known(place: str, *image_ids: int) -> list[int]:
        mask = evaluated.among(open_dataset(tmp_path / place), image_ids)
        return [number for number, is_evaluated in zip(image_ids, mask, strict=True) if is_evaluated]

    assert known("coco14", 1, 3, 4, 9) == [3, 4, 9]
    assert known("coco17", 1, 3, 4, 9) == [3, 4, 9]
    assert known("listed", 1, 3, 4, 9) == [3, 4, 9], "without any picture on disk"
    assert known("vg", 101, 103, 104, 200) == [103, 104]
    assert known("refcoco", 1, 2, 3, 4) == [3, 4]
    assert known("own", 1, 3, 4, 9) == [], "twelve digits may be anybody's numbers"


def test_questions_without_splits_are_no_reason_to_leave_captions_out(tmp_path: Path) -> None:
    for place, splits in (("own", [None]), ("both", [None, "test"]), ("val", ["val"])):
        rows = [
            {"image": f"{number}.jpg", "question": "what?", "answer": "a dog", "split": split}
            for number, split in enumerate(splits)
        ]
        (tmp_path / place).mkdir()
        (tmp_path / place / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.jpg")
        Image.new("RGB", (8, 8)).save(tmp_path / place / "1.jpg")
    for place, expected in (("own", [False, False]), ("both", [False, True]), ("val", [False, False])):
        dataset = open_dataset(tmp_path / place)
        assert EvaluatedImages([dataset]).among(dataset, [0, 1]).tolist() == expected
    # Of data that nothing is trained on here, val counts.
    dataset = open_dataset(tmp_path / "val")
    assert EvaluatedImages([], [dataset]).among(dataset, [0]).all()


# ---- what a region gets right -------------------------------------------------------------------


class FewRegions:
    """Regions of two images in place of a feature store's; the second image has two."""

    boxes = np.array(
        [[[0, 0, 10, 10], [0, 0, 90, 70], [50, 50, 60, 60]], [[0, 0, 9, 9], [0, 0, 20, 20], [0, 0, 99, 99]]],
        np.float32,
    )
    mask = np.array([[True, True, True], [True, True, False]])

    def regions(self, indices: NDArray) -> RegionBatch:
        batch, count = self.mask[indices].shape
        numbers, scores = np.zeros((batch, count), np.int64), np.zeros((batch, count), np.float32)
        return RegionBatch(
            features=np.zeros((batch, count, 4), np.float32),
            boxes=self.boxes[indices],
            geometry=np.zeros((batch, count, 5), np.float32),
            mask=self.mask[indices],
            object_ids=numbers,
            object_scores=scores,
            attribute_ids=numbers,
            attribute_scores=scores,
            sizes=np.full((batch, 2), 100, np.float32),
        )


def test_rows_to_compare_a_rec_model_with() -> None:
    expressions: list[Any] = [None, None]

    def accuracies(*targets: list[float]) -> list[float]:
        split = Split(expressions, FewRegions(), np.array(targets, np.float32))  # type: ignore[arg-type]
        return [
            100 * float(measure(split).mean())
            for measure in (random_region_hits, largest_region_hits, best_region_hits)
        ]

    assert accuracies([0, 0, 10, 10], [0, 0, 20, 20]) == pytest.approx([100 * (1 / 3 + 1 / 2) / 2, 50, 100])
    # Half is not above a half, and what pads an image is no region.
    assert accuracies([0, 0, 10, 20], [0, 0, 99, 99]) == [0, 0, 0]


def test_boxes_are_taken_to_the_pixels_of_the_features_or_refused(tmp_path: Path) -> None:
    """Pictures of half the size, the same turned, and of a size that nothing tells."""
    boxes = np.array([[10, 20, 60, 50], [0, 0, 200, 100]], np.float32)
    settings = {"extractor": "drawn", "feature_size": 4}
    features = np.ones((2, 4), np.float32)
    sizes = {1: (320, 240), 2: (240, 320), 3: (320, 240), 4: (321, 241)}
    images = [RegionFeatures(number, features, boxes, *size) for number, size in sizes.items()]
    store = write_feature_store(tmp_path / "store", settings, images)
    target = (20.0, 40.0, 100.0, 60.0)  # x, y, width, height on 640 x 480
    drawn = {1: (640, 480), 2: (640, 480), 3: (0, 0), 4: (640, 480)}
    samples = [Expression(n, n, n, "a box", "train", target, *size) for n, size in drawn.items()]
    task = RecTask()
    source = InputSource(store, build_tokenizer(["a box"]), 8, 36)
    split = task.build_split(samples, source)
    assert [item.image_id for item in split.samples] == [1, 3, 4]
    np.testing.assert_allclose(split.targets[0], boxes[0])
    np.testing.assert_allclose(split.targets[1], [20, 40, 120, 100])
    np.testing.assert_allclose(split.targets[2], boxes[0], rtol=0.01)
    assert "640 x 480" in task.misfit(samples[1], store) and "240 x 320" in task.misfit(samples[1], store)
    assert "EXIF" in task.misfit(samples[1], store)
    found = Boxes(split.targets, np.zeros(3, np.int64), np.ones(3, np.float32))
    rows, _ = task.prediction_rows(None, samples, split, found)
    assert all(row["box"] == pytest.approx([20, 40, 120, 100], abs=0.01) for row in rows)
    report = task.report(split, found, samples, False, None)
    assert report.results[0]["target"] == pytest.approx([20, 40, 120, 100], abs=0.01)
    assert report.results[0]["iou"] == pytest.approx(1)


@given(width=st.integers(50, 4000), height=st.integers(50, 4000), share=st.floats(0.3, 3), turn=st.booleans())
def test_a_scale_is_certain_or_none(width: int, height: int, share: float, turn: bool) -> None:
    shown = round(width * share), round(height * share)
    scale = scale_between((width, height), shown[::-1] if turn else shown)
    if turn and abs(width / height - height / width) > 0.4:
        assert scale is None
        assert "EXIF" in turned((width, height), shown[::-1])
    elif not turn:
        assert scale is not None
        corner = np.array([0, 0, width, height]) * scale
        np.testing.assert_allclose(corner[2:], shown, rtol=1e-5)


def test_a_row_has_the_interval_of_its_images() -> None:
    scores = np.array([0.0, 100, 100, 100, 0, 0])
    row = report_entry("val", ReportRow("this model", scores, 3), [1, 1, 2, 2, "x", "x"])
    low, high = bootstrap_interval(scores, ["1", "1", "2", "2", "x", "x"])
    assert (row.accuracy, row.accuracy_low, row.accuracy_high) == (50, low, high)
    assert low < 50 < high and row.n == 6


# ---- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset for both tasks with features and without graphs; not to be written to."""
    place = tmp_path_factory.mktemp("squares") / "data"
    (place / "images").mkdir(parents=True)
    for number in range(10):
        picture = Image.new("RGB", (96, 72), (240, 240, 240))
        ImageDraw.Draw(picture).rectangle(
            (20 + number, 15, 60 + number, 55), fill=COLOURS[list(COLOURS)[number % 3]]
        )
        picture.save(place / "images" / f"{number}.jpg")
    write_vqa(place, *vqa_entries({"train": range(6), "val": range(6, 9)}))
    write_rec(place / "refcoco", {"unc": rec_entries({"train": range(5), "val": [6, 7], "testA": [8]})}, 9)
    succeeds("extract-features", place, "--workers", "0", cwd=place.parent)
    return place


def test_held_out_images_are_drawn_anew_with_each_seed() -> None:
    """As by chance: at no even distances, and with a tenth of another seed's images among them."""
    ids = range(1000)
    held = [np.flatnonzero(hold_out(ids, 0.1, seed)) for seed in range(8)]
    assert all(len(images) == 100 for images in held)
    shared = [len(np.intersect1d(held[0], images)) for images in held[1:]]
    assert 1 <= min(shared) < max(shared) <= 25
    assert 5 <= np.mean(shared) <= 15
    # Of 99 gaps between chance images of mean 10, none is more frequent than 1 is: about 10 times.
    assert np.bincount(np.diff(held[0])).max() < 25
    assert np.array_equal(held[3], np.flatnonzero(hold_out(ids, 0.1, 3)))


Change = Callable[[Entries, Entries], None]


def foreign_answers(questions: Entries, annotations: Entries) -> None:
    for entry in (annotations["train"][0], *annotations["val"][:3]):
        entry["answers"] = [{"answer": "zebra" if entry["image_id"] else "the"}] * 5 + [{"answer": "a"}] * 5


def absent_images(questions: Entries, annotations: Entries) -> None:
    for entry in (*questions["train"][:2], *questions["val"], *annotations["train"][:2], *annotations["val"]):
        entry["image_id"] += 1000


def unknown_and_repeated(questions: Entries, annotations: Entries) -> None:
    annotations["train"] += [{**annotations["train"][0], "question_id": 999}, annotations["train"][0]]
    questions["train"].append(questions["train"][0])


def multiple_choice_alone(questions: Entries, annotations: Entries) -> None:
    for entry in (*annotations["train"], *annotations["val"]):
        entry["multiple_choice_answer"] = entry.pop("answers")[0]["answer"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            foreign_answers,
            (
                "train: 1 of 12 questions (8.3%) have no answer among the 5 that are learnt; skipped",
                "val: 3 of 6 questions (50.0%) have no answer among the 5 that are learnt; never answered",
            ),
        ),
        (
            absent_images,
            (
                "train: 2 of 12 samples skipped, their images have no features, such as '100",
                "val: 6 of 6 samples skipped, their images have no features",
            ),
        ),
        (
            unknown_and_repeated,
            (
                "question 999 is in no questions file",
                "question 0 is annotated twice",
                "question 0 is there twice",
            ),
        ),
        (multiple_choice_alone, ()),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_faulty_vqa_files_cost_what_is_faulty(
    squares: Path, tmp_path: Path, change: Change, says: tuple[str, ...]
) -> None:
    place = tmp_path / "data"
    shutil.copytree(squares, place)
    entries = vqa_entries({"train": range(6), "val": range(6, 9)})
    change(*entries)
    write_vqa(place, *entries)
    outcome = succeeds("finetune", "--task", "vqa", "--epochs", "1", "--json", cwd=tmp_path)
    notes = json.loads(outcome.out)["problems"]
    for text in says:
        assert sum(text in note for note in notes) == 1, notes
    told = ("no question-only model", "weights begin at random", "val: only 3 images")
    assert len([note for note in notes if not note.startswith(told)]) == len(says), notes


def test_a_picture_under_two_names_in_train_and_val_is_named(squares: Path, tmp_path: Path) -> None:
    place = tmp_path / "data"
    shutil.copytree(squares, place)
    shutil.copyfile(place / "images/2.jpg", place / "images/7.jpg")
    line = ("finetune", "--task", "vqa", "--epochs", "1", "--json")
    for told in (False, True):
        notes = json.loads(succeeds(*line, "--out", f"told-{told}", cwd=tmp_path).out)["problems"]
        same = [note for note in notes if "under other names" in note]
        assert bool(same) is told
        succeeds("extract-features", "data", "--overwrite", "--workers", "0", cwd=tmp_path)
    assert same[0].startswith("val: 1 of 3 images") and "such as 7, which is 2 too" in same[0]


def test_a_run_is_the_same_by_whatever_path_its_data_are_named(squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "data")
    (tmp_path / "sub").mkdir()
    line = ("finetune", "--task", "vqa", "--epochs", "1", "--data")
    succeeds(*line, "data", cwd=tmp_path)
    again = (
        (tmp_path, ("data",)),
        (tmp_path, (tmp_path / "data",)),
        (tmp_path / "sub", ("../data", "--out", "../runs/finetune/vqa")),
    )
    for place, named in again:
        assert "had finished already" in succeeds(*line, *named, cwd=place).out
    assert [run.name for run in (tmp_path / "runs/finetune").iterdir()] == ["vqa"]
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    says = ("other settings (data)",)
    fails(*line, "other", "--out", "runs/finetune/vqa", cwd=tmp_path, code=1, says=says)


def test_a_split_from_the_data_writes_nowhere_else(squares: Path, tmp_path: Path) -> None:
    place = tmp_path / "in" / "data"
    shutil.copytree(squares, place)
    rows = [{"image_id": 8, "question": "what?", "answer": "x", "split": "test/../../../../victim"}]
    (place / "more.jsonl").write_text(json.dumps(rows[0]))
    (tmp_path / "victim.json").write_text("mine")
    line = ("finetune", "--task", "vqa", "--epochs", "1", "--json")
    values = json.loads(succeeds(*line, cwd=tmp_path / "in").out)
    assert values["accuracy"].keys() == {"val", "test_.._.._.._.._victim"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "victim.json"]
    assert (tmp_path / "victim.json").read_text() == "mine"


def test_an_answers_file_that_fits_nothing(squares: Path, tmp_path: Path) -> None:
    for content, says in (
        ('["Elephant", "tiger"]', ("none of the 2 answers", "'Elephant'", "--answers")),
        ("[]", ("mine.json", "holds no answers")),
        ("[1, 2]", ("mine.json", "is no list of answers")),
        ('["yes"', ("mine.json", "not valid JSON")),
    ):
        (tmp_path / "mine.json").write_text(content)
        arguments = ("--data", squares, "--answers", "mine.json", "--out", tmp_path / "out")
        fails("finetune", "--task", "vqa", *arguments, cwd=tmp_path, code=1, says=says)
        assert not (tmp_path / "out").exists()


def test_answers_that_are_not_spelt_as_the_metric_compares_them_are_named(
    squares: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.json").write_text('["red", "Blue."]')
    arguments = ("--data", squares, "--answers", "mine.json", "--epochs", "1", "--json")
    notes = json.loads(succeeds("finetune", "--task", "vqa", *arguments, cwd=tmp_path).out)["problems"]
    (note,) = (note for note in notes if "not spelt" in note)
    assert note.startswith("1 of the 2 answers of mine.json") and "'Blue.' ('blue')" in note


def test_faulty_boxes_and_refs_cost_what_is_faulty(squares: Path, tmp_path: Path) -> None:
    place = tmp_path / "data"
    shutil.copytree(squares, place)
    file = place / "refcoco" / "instances.json"
    whole = json.loads(file.read_text())
    content = json.loads(file.read_text())
    for number, box in enumerate(([500, 500, 9, 9], [5, 5, 0, 9], [1, 1, 3, 3])):
        content["annotations"][number]["bbox"] = box
    del content["images"][3], content["annotations"][7]
    file.write_text(json.dumps(content))
    run = ("finetune", "--task", "rec", "--epochs", "1", "--json")
    values = json.loads(succeeds(*run, "--predict", "testA", cwd=tmp_path).out)
    for text in (
        "annotation 0 has a box outside the image",
        "annotation 1 has a box without area",
        "ref 0 and 2 more: has no usable annotation",
        "ref 3 has no image in instances.json",
        "train: 1 of 2 samples skipped, no region is near their target",
    ):
        assert sum(text in note for note in values["problems"]) == 1, values["problems"]
    rows = [(entry["split"], entry["model"].split(" (")[0]) for entry in values["report"]]
    names = ("random region", "largest region", "this model", "upper bound")
    assert rows == [(split, name) for split in ("val", "testA") for name in names]
    assert [entry["sent_id"] for entry in json.loads((tmp_path / values["predictions"][0]).read_text())] == [
        208
    ]
    for entry in whole["annotations"]:
        entry["bbox"] = [1, 1, 3, 3]
    file.write_text(json.dumps(whole))
    fails(
        *run,
        "--out",
        "none",
        cwd=tmp_path,
        code=1,
        says=("no training expression has a region", "--max-regions"),
    )


def test_one_table_holds_majority_question_only_and_this_model(squares: Path, tmp_path: Path) -> None:
    run = ("finetune", "--task", "vqa", "--data", squares, "--epochs", "1", "--init", "none")
    before = " ".join(succeeds(*run, cwd=tmp_path).out.split())
    assert f"`tbkin finetune --task vqa --data {squares} --blind`" in before
    assert "weights begin at random" in before
    succeeds(*run, "--blind", cwd=tmp_path)
    values = json.loads(succeeds(*run, "--json", cwd=tmp_path).out)
    rows = sorted(values["report"], key=lambda entry: entry["order"])
    names = [entry["model"] for entry in rows if "hidden" not in entry["model"]]
    linear = ["linear, question only", "linear, with image"]
    assert names == ["majority answer", *linear, "question only", "this model"]
    assert {entry["n"] for entry in rows} == {6}
    # One that was trained with other samples held out is no measure, be they as many.
    held_out = (*run, "--train-split", "val", "--json")
    hidden = json.loads(succeeds(*held_out, "--blind", cwd=tmp_path).out)["out"]
    asked = questions_of(tmp_path / hidden)
    same = []
    for seed in "013":
        values = json.loads(succeeds(*held_out, "--seed", seed, "--out", seed, cwd=tmp_path).out)
        same.append(questions_of(tmp_path / seed) == asked)
        found = "question only" in [entry["model"] for entry in values["report"]]
        assert found is same[-1]
    assert same[0]
    assert not all(same)


def questions_of(run: Path) -> list[int]:
    """The questions that a run was validated on."""
    content = json.loads((run / "results-val.json").read_text())
    return [entry["question_id"] for entry in content["results"]]


@pytest.mark.parametrize("option", ["--answers", "--min-answer-count"])
def test_settings_of_the_other_task_are_refused(squares: Path, tmp_path: Path, option: str) -> None:
    run = ("finetune", "--task", "rec", "--data", squares, option, "3")
    fails(*run, cwd=tmp_path, code=2, says="only for --task vqa")


def test_images_that_expressions_are_evaluated_on_are_not_pretrained_on(
    squares: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(squares, tmp_path / "data")
    captions = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(10)],
        "annotations": [
            {"id": number, "image_id": number, "caption": "a red square"} for number in range(10)
        ],
    }
    (place / "captions_train2014.json").write_text(json.dumps(captions))
    succeeds("build-graphs", place, cwd=tmp_path)
    values = json.loads(succeeds("pretrain", place, "--epochs", "0", "--json", cwd=tmp_path).out)
    assert any("3 captions left out" in note for note in values["problems"]), values["problems"]
    # The rest, less what is held out for validation.
    assert 5 <= values["captions"] <= 7
