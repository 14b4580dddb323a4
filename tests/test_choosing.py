"""Which model answers where none was named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import succeeds
from PIL import Image

from tbkin_core.runs import read_run
from tbkin_core.stages.choosing import best_run, described, suited_model
from tbkin_core.support.files import write_json

VQA = "runs/finetune/vqa-relative-0.3"


def run_of(place: Path, name: str, val: float, low: float, later: float = 0.0, **values: Any) -> Path:
    """A copy of a run of VQA in a workspace, with another accuracy on val and another end."""
    run = place / "runs/finetune" / name
    if not run.exists():
        shutil.copytree(place / VQA, run)
    content = read_run(run)
    results = content["results"]
    results["accuracy"] = {"val": val}
    for entry in results["report"]:
        entry["accuracy_low"] = low
    content["finished"] += later
    results |= values
    write_json(run / "run.json", content)
    return Path("runs/finetune") / name


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    workspace = Path(shutil.copytree(trained, tmp_path / "place"))
    monkeypatch.chdir(workspace)
    run_of(workspace, Path(VQA).name, 60.0, 55.0)
    return workspace


def test_a_later_model_answers_where_it_is_not_clearly_worse(place: Path) -> None:
    later = run_of(place, "later", 56.0, 50.0, 10)
    assert best_run("vqa") == (later, [])


def test_an_experiment_does_not_take_the_place_of_a_better_model(place: Path) -> None:
    later = run_of(place, "experiment", 40.0, 35.0, 10)
    found, (note,) = suited_model(None, asks=True)
    assert found == Path(VQA)
    assert str(later) in note and "40.0 %" in note and "60.0 %" in note and "--checkpoint" in note
    assert suited_model(later, asks=True) == (later, []), "what is named is taken"


def test_accuracies_of_other_data_are_not_compared(place: Path) -> None:
    later = run_of(place, "other-data", 10.0, 5.0, 10, content=12345)
    assert best_run("vqa") == (later, [])


@pytest.mark.parametrize("values", [{"content": None}, {"accuracy": {}}])
def test_a_run_that_tells_too_little_is_not_compared(place: Path, values: dict[str, Any]) -> None:
    later = run_of(place, "before", 10.0, 5.0, 10, **values)
    assert best_run("vqa") == (later, [])


def test_the_latest_of_those_that_are_as_good_as_the_best_answers(place: Path) -> None:
    run_of(place, "good", 58.0, 53.0, 10)
    run_of(place, "poor", 30.0, 25.0, 20)
    found, (note,) = best_run("vqa") or (None, [""])
    assert found == Path("runs/finetune/good") and "poor" in note


def test_a_model_for_photographs_answers_about_them(place: Path, tmp_path: Path) -> None:
    later = run_of(place, "photos", 30.0, 25.0, 10, content=12345)
    config = json.loads((later / "config.json").read_text())
    config["extractor"]["extractor"] = "photo"
    (later / "config.json").write_text(json.dumps(config))
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    photo = [tmp_path / "photo.png"]
    Image.new("RGB", (120, 90), "red").save(tmp_path / "drawing.png")
    drawing = [tmp_path / "drawing.png"]
    assert best_run("vqa", photo) == best_run("vqa", drawing) == (later, [])
    latest = run_of(place, "drawings", 99.0, 98.0, 20)
    assert best_run("vqa", drawing) == (latest, [])
    found, (note,) = best_run("vqa", photo) or (None, [""])
    assert found == later and "drawings is later, but its features (builtin)" in note
    shutil.rmtree(later)
    found, (note,) = best_run("vqa", photo) or (None, [""])
    assert found == latest and "see little in photographs" in note and "--checkpoint photo-answers" in note
    (tmp_path / "broken.png").write_text("<html>")
    assert best_run("vqa", [tmp_path / "broken.png"]) == (latest, []), "of this nothing is known"


def test_the_command_says_which_model_answers_and_how_good_it_is(place: Path) -> None:
    run_of(place, "experiment", 40.0, 35.0, 10)
    values = json.loads(succeeds("visualize", "img.jpg", "what color", "--json", cwd=place).out)
    assert values["checkpoint"] == VQA
    assert values["about"] == f"{VQA}, fine-tuned on coco, VQA accuracy 60.0 % on val"
    assert any("experiment is later, but worse" in note for note in values["problems"])
    assert described(Path("photo-answers")) == "photo-answers"


def test_only_models_that_can_answer_are_compared(place: Path) -> None:
    later = run_of(place, "experiment", 30.0, 25.0, 10)
    assert (best_run("vqa") or (None,))[0] == Path(VQA)
    assert best_run("vqa", stored=True) == (later, []), "whose store is named, the latest is meant"
    config = Path(VQA) / "config.json"
    before = config.read_text()
    kind = json.loads(before)
    kind["extractor"]["extractor"] = "import"
    config.write_text(json.dumps(kind))
    assert best_run("vqa") == (later, []), "its features may not be there to be had"
    config.write_text(before)
    (Path(VQA) / "model.safetensors").rename(place / "elsewhere")
    assert best_run("vqa") == (later, []), "its weights are gone"


@pytest.mark.parametrize("damage", ["task", "data"])
def test_a_run_that_does_not_say_what_it_is_is_called_by_its_name(damage: str, place: Path) -> None:
    content = read_run(Path(VQA))
    del content["settings"][damage]
    write_json(Path(VQA) / "run.json", content)
    assert described(Path(VQA)) == VQA


def test_an_interval_above_its_own_value_ends_nothing(place: Path) -> None:
    run_of(place, Path(VQA).name, 60.0, 70.0)
    run_of(place, "later", 50.0, 45.0, 10)
    assert (best_run("vqa") or (None,))[0] == Path(VQA)
