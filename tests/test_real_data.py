"""Short runs on the real data of TBKIN_SHARED_DATA, with the default settings where that is possible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import leftovers, succeeds
from PIL import Image

FEW = 12


@pytest.fixture
def before_and_after(shared_data: Path) -> Any:
    """The data directory is not ours: a run with --out leaves it as it was."""
    before = sorted(str(path) for path in shared_data.rglob("*"))
    yield
    assert sorted(str(path) for path in shared_data.rglob("*")) == before


def dataset(shared_data: Path, name: str) -> Path:
    directory = shared_data / name
    if not directory.is_dir():
        pytest.skip(f"no {directory}")
    return directory


def values_of(*arguments: str | Path, cwd: Path) -> dict[str, Any]:
    values = json.loads(succeeds(*arguments, "--json", cwd=cwd).out)
    assert isinstance(values, dict)
    return values


def is_figure(path: Path) -> bool:
    with Image.open(path) as figure:
        figure.load()
        return figure.format == "PNG" and min(figure.size) > 300


def test_coco_from_images_to_a_pretrained_model(shared_data: Path, tmp_path: Path) -> None:
    source = dataset(shared_data, "coco")
    coco = tmp_path / "coco"
    shutil.copytree(source / "annotations", coco / "annotations")
    for split in ("train2017", "val2017"):
        (coco / split).mkdir()
        for file in sorted((source / split).glob("*.jpg"))[: FEW // 2]:
            shutil.copy(file, coco / split)
    features = values_of("extract-features", "coco", cwd=tmp_path)
    assert (features["images"], features["skipped"], features["extractor"]) == (FEW, 0, "photo")
    graphs = values_of("build-graphs", "coco", cwd=tmp_path)
    assert graphs["captions"] > 1300
    assert 2 < graphs["objects_per_caption"] < 4
    assert graphs["most_common"]["objects"][0][0] in ("man", "person", "people", "woman")
    assert 5 * FEW <= graphs["captions_with_regions"] <= 6 * FEW
    pretrained = values_of("pretrain", "coco", "--epochs", "1", cwd=tmp_path)
    assert pretrained["captions"] == pytest.approx(5 * FEW // 2, abs=3)
    image = sorted((coco / "val2017").glob("*.jpg"))[0]
    answer = values_of("visualize", image, "a man on a bench", cwd=tmp_path)
    assert answer["task"] == "pretrain" and is_figure(tmp_path / answer["figure"])
    assert leftovers(tmp_path) == []


def test_bottom_up_features_are_imported(shared_data: Path, tmp_path: Path, before_and_after: None) -> None:
    source = dataset(shared_data, "butd_coco8")
    features = values_of("extract-features", source, "--out", "features", cwd=tmp_path)
    assert (features["extractor"], features["images"], features["feature_size"]) == ("import", 8, 2048)
    graphs = values_of("build-graphs", source, "--features", "features", "--out", "graphs", cwd=tmp_path)
    assert graphs["captions"] == 40
    values_of(
        *("pretrain", source, "--features", "features", "--graphs", "graphs", "--epochs", "1"),
        cwd=tmp_path,
    )
    image = sorted((source / "images").glob("*.jpg"))[0]
    # The checkpoint remembers the store that holds the features of this image.
    answer = values_of("visualize", image, "a woman at a table", cwd=tmp_path)
    assert answer["task"] == "pretrain" and is_figure(tmp_path / answer["figure"])


def test_an_image_without_bottom_up_features_says_what_is_needed(
    shared_data: Path, tmp_path: Path, before_and_after: None
) -> None:
    from command_line import fails

    source = dataset(shared_data, "butd_coco8")
    succeeds("extract-features", source, "--out", "features", cwd=tmp_path)
    succeeds("build-graphs", source, "--features", "features", "--out", "graphs", cwd=tmp_path)
    succeeds(
        *("pretrain", source, "--features", "features", "--graphs", "graphs", "--epochs", "0"),
        cwd=tmp_path,
    )
    Image.new("RGB", (64, 48)).save(tmp_path / "mine.jpg")
    fails("visualize", "mine.jpg", "a woman", cwd=tmp_path, code=2, says=("mine.jpg", "--features"))


def test_daquar_questions(shared_data: Path, tmp_path: Path) -> None:
    source = dataset(shared_data, "daquar_500")
    daquar = tmp_path / "daquar"
    (daquar / "images").mkdir(parents=True)
    wanted: set[int] = set()
    for split in ("train", "val"):
        file = source / f"v2_OpenEnded_daquar_{split}_questions.json"
        questions = json.loads(file.read_text())["questions"]
        wanted |= set(sorted({entry["image_id"] for entry in questions})[: FEW // 2])
        for name in (file.name, f"v2_daquar_{split}_annotations.json"):
            shutil.copy(source / name, daquar)
    for image in (source / "images").iterdir():
        if int("".join(filter(str.isdigit, image.stem))) in wanted:
            shutil.copy(image, daquar / "images")
    features = values_of("extract-features", "daquar", cwd=tmp_path)
    assert features["images"] == len(wanted)
    trained = values_of("finetune", "--task", "vqa", "--epochs", "2", cwd=tmp_path)
    assert any("no features" in problem for problem in trained["problems"])
    models = {entry["model"]: entry["accuracy"] for entry in trained["report"] if entry["split"] == "val"}
    assert models["majority answer"] < 30
    swept = values_of("threshold-sweep", "--task", "vqa", "--thresholds", "0,0.5", cwd=tmp_path)
    assert swept["rows"][0]["accuracy"] == pytest.approx(models["this model"])
    assert is_figure(tmp_path / swept["out"] / "sweep.png")
    image = sorted((daquar / "images").iterdir())[0]
    answer = values_of("visualize", image, "what is on the table?", cwd=tmp_path)
    assert answer["task"] == "vqa" and is_figure(tmp_path / answer["figure"])


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_refcoco_expressions(shared_data: Path, tmp_path: Path, before_and_after: None, name: str) -> None:
    source = dataset(shared_data, "refcoco_smoke")
    # The boxes of its few expressions are no sample: those that `photo` finds have none of refcocog's four.
    line = ("extract-features", source, "--extractor", "builtin", "--out", "features")
    features = values_of(*line, cwd=tmp_path)
    assert features["images"] == len(list((source / "images").rglob("*.jpg")))
    trained = values_of(
        *("finetune", "--task", "rec", "--data", source, "--features", "features", "--epochs", "1"),
        *("--dataset", name),
        cwd=tmp_path,
    )
    assert any("no train split" in problem for problem in trained["problems"])
    bound = next(entry for entry in trained["report"] if entry["order"] == 4)
    assert bound["accuracy"] > 30
    image = sorted((source / "images").rglob("*.jpg"))[0]
    answer = values_of("visualize", image, "the man on the left", cwd=tmp_path)
    assert answer["task"] == "rec" and is_figure(tmp_path / answer["figure"])
    with Image.open(image) as picture:
        width, height = picture.size
    left, top, right, bottom = answer["box"]
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
