"""Asking a model: `tbkin visualize QUESTIONS.csv`, and `tbkin_core.Answerer` from Python."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ENVIRONMENT, fails, succeeds
from PIL import Image

from tbkin_core import Answerer
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.figures.trace import load_trace
from tbkin_core.figures.views import attention_views
from tbkin_core.stages import question_file

VQA, REC = "runs/finetune/vqa-relative-0.3", "runs/finetune/rec"
QUESTIONS = ["what color is the star?", "how many circles are there?", "is there a red heart?"]


def rows_of(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))


def asked(place: Path, suffix: str, images: list[Path], texts: list[str] = QUESTIONS) -> Path:
    """A file of every text about every image, and a column of its writer's own."""
    rows = [
        {"image": os.path.relpath(image, place), "question": text, "note": f'né {number}, "{text[:4]}"'}
        for number, text in enumerate(texts)
        for image in images
    ]
    file = place / f"mine{suffix}"
    with file.open("w", encoding="utf-8", newline="") as lines:
        if suffix == ".jsonl":
            lines.write("\n".join(json.dumps(row) for row in rows))
        else:
            table = csv.DictWriter(lines, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return file


def pictures(place: Path) -> list[Path]:
    return sorted((place / "coco/val").glob("*.jpg"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_file_of_questions_gets_the_answers_that_each_would_get_alone(
    trained: Path, tmp_path: Path, suffix: str
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    file = asked(place, suffix, pictures(place)[:2])
    values = json.loads(succeeds("visualize", file.name, "--json", cwd=place).out)
    assert (values["questions"], values["images"], values["kept"], values["failed"]) == (6, 2, 0, 0)
    assert values["threshold"] == 0.3
    rows, own = rows_of(place / values["out"]), rows_of(file)
    assert [{name: row[name] for name in own[0]} for row in rows] == own, "in the file's order, nothing lost"
    for row in rows:
        alone = json.loads(succeeds("visualize", row["image"], row["question"], "--json", cwd=place).out)
        first = alone["answers_thresholded"][0]
        assert row["prediction"] == first["answer"]
        assert float(row["probability"]) == pytest.approx(first["probability"], abs=1e-5)
        assert row["model"].startswith(f"{VQA}@") and float(row["threshold"]) == 0.3
    before = (place / values["out"]).read_bytes()
    again = json.loads(succeeds("visualize", file.name, "--json", cwd=place).out)
    assert again["kept"] == 6 and (place / values["out"]).read_bytes() == before


def test_expressions_get_boxes(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    asked(place, ".csv", pictures(place)[:1], ["the large circle"])
    out = json.loads(succeeds("visualize", "mine.csv", "--json", "--out", "here", cwd=place).out)["out"]
    assert out == "here/mine.answers.csv"
    (row,) = rows_of(place / out)
    alone = json.loads(
        succeeds("visualize", row["image"], "the large circle", "--checkpoint", REC, "--json", cwd=place).out
    )
    box = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
    assert box == pytest.approx(alone["box"], abs=0.06)
    assert row["model"].startswith(REC)


def test_another_model_threshold_or_picture_is_asked_anew(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    images = pictures(place)[:2]
    asked(place, ".csv", images)

    def kept(*more: str) -> int:
        return json.loads(succeeds("visualize", "mine.csv", "--json", *more, cwd=place).out)["kept"]

    assert (kept(), kept()) == (0, 6)
    assert (kept("--threshold", "0.1"), kept()) == (0, 0)
    shutil.copy(images[1], images[0])
    os.utime(images[0])
    assert kept() == 3
    weights = place / VQA / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert kept() == 0


def test_an_interrupted_file_goes_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    asked(place, ".csv", pictures(place)[:3])
    answer, count = question_file.LoadedModel.answer, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return answer(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(question_file.LoadedModel, "answer", interrupted)
        fails("visualize", "mine.csv", cwd=place, code=130, says="the same command goes on")
    assert len(rows_of(place / "runs/visualize/mine.answers.csv")) == 5
    assert json.loads(succeeds("visualize", "mine.csv", "--json", cwd=place).out)["kept"] == 5


def test_what_cannot_be_answered_costs_its_line_alone(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    image = pictures(place)[0].relative_to(place)
    lines = ["image,question", f"{image},what color is the star?", "no.jpg,what is it?", f"{image},xyzzy"]
    (place / "mine.csv").write_text("\n".join([*lines, f"{image},"]))
    outcome = succeeds("visualize", "mine.csv", cwd=place)
    assert "line 5 has no question (skipped)" in outcome.out and "left out: no.jpg" in outcome.out
    rows = rows_of(place / "runs/visualize/mine.answers.csv")
    assert [bool(row["prediction"]) for row in rows] == [True, False, False]
    assert [bool(row["problem"]) for row in rows] == [False, True, True]
    # Answers of a model are none of a dataset's.
    (place / "own").mkdir()
    shutil.copy(place / "runs/visualize/mine.answers.csv", place / "own/mine.csv")
    shutil.copy(place / image, place / "own")
    assert not any(question.answers for question in open_dataset(place / "own").questions("train"))

    (place / "bad.csv").write_text("image,question\nno.jpg,what is it?\n")
    fails("visualize", "bad.csv", cwd=place, code=1, says="none of its 1 questions can be answered")
    (place / "bad.csv").write_text("picture,question\nno.jpg,what is it?\n")
    fails("visualize", "bad.csv", cwd=place, code=1, says="no column of its header is called image")
    fails("visualize", "none.csv", cwd=place, code=1, says="none.csv: no such file")
    fails("visualize", "mine.csv", "what is it?", cwd=place, code=2, says="is given by itself")
    fails("visualize", "mine.csv", "--html", cwd=place, code=2, says="html: is of figures")
    (place / "runs/visualize/mine.answers.csv").write_text("mine")
    fails("visualize", "mine.csv", cwd=place, code=2, says="is no earlier result of this command")


# ---- from Python --------------------------------------------------------------------------------


@pytest.fixture
def inside(trained_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained_workspace)
    return trained_workspace


def test_an_answer_from_python_is_that_of_the_command(inside: Path) -> None:
    model = Answerer(devices="cpu")
    assert (str(model.checkpoint), model.task) == (VQA, "vqa")
    for question in QUESTIONS:
        found = model.ask("img.jpg", question, top=3)
        values = json.loads(succeeds("visualize", "img.jpg", question, "--json", cwd=inside).out)
        said = [
            (entry["answer"], pytest.approx(entry["probability"])) for entry in values["answers_thresholded"]
        ]
        assert found.answers == said[:3]
        assert (found.answer, found.probability) == found.answers[0]
        trace = load_trace(inside / values["trace"])
        view = attention_views(trace)[1]
        np.testing.assert_allclose(found.region_attention, view.region_weights, atol=1e-3)
        np.testing.assert_allclose(found.word_attention, view.word_weights, atol=1e-3)
        np.testing.assert_array_equal(found.boxes, trace.boxes)
        assert found.words == trace.words and len(found.labels) == len(found.boxes)
        assert 0 < found.region_attention.sum() + found.word_attention.sum() <= 1 + 1e-5
        assert question in repr(found) and found.box is None


def test_images_are_files_pictures_or_arrays(inside: Path) -> None:
    model = Answerer(VQA, devices="cpu")
    picture = Image.open("img.jpg")
    found = [
        model.ask(image, QUESTIONS[0]) for image in ("img.jpg", Path("img.jpg"), picture, np.asarray(picture))
    ]
    for other in found[1:]:
        assert other.answers == found[0].answers
        np.testing.assert_array_equal(other.boxes, found[0].boxes)
    assert found[0]._repr_png_().startswith(b"\x89PNG")
    found[0].save_figure("drawn.pdf")
    assert (inside / "drawn.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(TypeError, match="expected a file, a PIL image or an array"):
        model.ask(3, QUESTIONS[0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no\.jpg"):
        model.ask("no.jpg", QUESTIONS[0])
    with pytest.raises(DataError, match="none of its words is known"):
        model.ask("img.jpg", "xyzzy")
    with pytest.raises(ConfigError, match="top"):
        model.ask("img.jpg", QUESTIONS[0], top=0)
    with pytest.raises(ConfigError, match="threshold"):
        Answerer(VQA, threshold=-1)


def test_notes_are_of_the_last_answer(inside: Path) -> None:
    model = Answerer(VQA, devices="cpu")
    before = model.notes
    model.ask("img.jpg", "what color is the flibbertigibbet star?")
    assert any("flibbertigibbet" in note for note in model.notes)
    model.ask("img.jpg", QUESTIONS[0])
    assert model.notes == before


def test_an_expression_has_a_box(inside: Path) -> None:
    found = Answerer(REC, threshold=0.2, devices="cpu").ask("img.jpg", "the large circle")
    values = json.loads(
        succeeds("visualize", "img.jpg", "the large circle", "--checkpoint", REC, "--json", cwd=inside).out
    )
    assert found.box == pytest.approx(values["box"], abs=0.06)


def test_the_package_loads_nothing_until_it_is_asked(tmp_path: Path) -> None:
    program = "import sys, tbkin_core; assert 'torch' not in sys.modules; tbkin_core.Answerer"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, check=True)
    with pytest.raises(AttributeError):
        __import__("tbkin_core").Answrer  # noqa: B018
