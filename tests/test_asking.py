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
        {"image": os.path.relpath(image, place), "question": text, "Note": f'né {number}, "{text[:4]}"'}
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
    assert out == "here/mine.answers.csv" and not (place / "mine.answers.csv").exists()
    (row,) = rows_of(place / out)
    alone = json.loads(
        succeeds("visualize", row["image"], "the large circle", "--checkpoint", REC, "--json", cwd=place).out
    )
    box = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
    assert box == pytest.approx(alone["box"], abs=0.06)
    assert row["model"].startswith(REC)


def kept_of(place: Path, *more: str) -> int:
    kept = json.loads(succeeds("visualize", "mine.csv", "--json", *more, cwd=place).out)["kept"]
    assert isinstance(kept, int)
    return kept


def test_another_model_threshold_rule_or_picture_is_asked_anew(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    images = pictures(place)[:2]
    asked(place, ".csv", images)
    assert (kept_of(place), kept_of(place)) == (0, 6)
    assert (kept_of(place, "--threshold", "0.1"), kept_of(place)) == (0, 0)
    topk = ("--selection", "topk", "--threshold", "1")
    assert (kept_of(place, *topk), kept_of(place, "--selection", "sparsemax")) == (0, 0)
    assert kept_of(place) == 0
    shutil.copy(images[1], images[0])
    os.utime(images[0], (1, 1))  # as of a copy that keeps the time of the other
    assert kept_of(place) == 3
    weights = place / VQA / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert kept_of(place) == 0


def test_a_dense_model_is_asked_under_a_threshold_that_is_given(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    asked(place, ".csv", pictures(place)[:1], ["the large circle"])
    said = []
    for more in ((), ("--threshold", "0.9")):
        succeeds("visualize", "mine.csv", "--checkpoint", REC, *more, cwd=place)
        said += rows_of(place / "mine.answers.csv")
    assert [(row["threshold"], row["selection"]) for row in said] == [("0.0", "dense"), ("0.9", "relative")]
    assert said[0]["probability"] != said[1]["probability"]


def test_files_of_one_name_have_answers_of_their_own(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    for name, image in zip(("a", "b"), pictures(place)[:2], strict=True):
        (place / name).mkdir()
        shutil.copy(image, place / name / "1.jpg")
        (place / name / "mine.csv").write_text("image,question\n1.jpg,what color is the star?\n")
        succeeds("visualize", f"{name}/mine.csv", cwd=place)
    found = [rows_of(place / name / "mine.answers.csv")[0] for name in ("a", "b")]
    assert found[0]["picture"] != found[1]["picture"]
    # Into one directory, one file of answers: what it says is always of the file that was asked last.
    for name, row in zip(("a", "b"), found, strict=True):
        succeeds("visualize", f"{name}/mine.csv", "--out", "both", cwd=place)
        assert rows_of(place / "both/mine.answers.csv") == [row]


def test_an_interrupted_file_goes_on_and_loses_no_earlier_answer(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    images = pictures(place)[:3]
    answer = question_file.LoadedModel.answer

    def interrupted_at(number: int) -> None:
        count = 0

        def counted(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise KeyboardInterrupt
            return answer(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(question_file.LoadedModel, "answer", counted)
            fails("visualize", "mine.csv", cwd=place, code=130, says="the same command goes on")

    asked(place, ".csv", images)
    interrupted_at(6)
    assert len(rows_of(place / "mine.answers.csv")) == 5
    assert kept_of(place) == 5
    asked(place, ".csv", images, ["is there a blue star?", *QUESTIONS])
    interrupted_at(2)
    assert len(rows_of(place / "mine.answers.csv")) == 9 + 1
    assert kept_of(place) == 10


def test_a_picture_that_is_away_leaves_its_answers(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    images = pictures(place)[:2]
    asked(place, ".csv", images)
    assert kept_of(place) == 0
    before = (place / "mine.answers.csv").read_bytes()
    images[0].rename(tmp_path / "away.jpg")
    outcome = succeeds("visualize", "mine.csv", cwd=place)
    assert "no such file; its earlier answers stay" in outcome.out
    assert (place / "mine.answers.csv").read_bytes() == before
    images[1].rename(tmp_path / "away too.jpg")
    fails("visualize", "mine.csv", "--threshold", "0.1", cwd=place, code=1, says="none of its 6 questions")
    assert (place / "mine.answers.csv").read_bytes() == before


def test_what_cannot_be_answered_costs_its_line_alone(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    image = pictures(place)[0].relative_to(place)
    lines = ["image,question", f"{image},what color is the star?", "no.jpg,what is it?", f"{image},xyzzy"]
    lines += [f"{image},", f"{'x' * 300}.jpg,what is it?", ".,what is it?"]
    (place / "mine.csv").write_text("\n".join(lines))
    outcome = succeeds("visualize", "mine.csv", cwd=place)
    assert "line 5 has no question (skipped)" in outcome.out and "left out: no.jpg" in outcome.out
    rows = rows_of(place / "mine.answers.csv")
    assert [bool(row["prediction"]) for row in rows] == [True, False, False, False, False]
    assert [bool(row["problem"]) for row in rows] == [False, True, True, True, True]
    entries: list[dict[str, Any]] = [
        {"image": "1.jpg\0", "question": "what is it?", "context": "long " * 2000},
        {"image": str(image), "question": "what color is the flibbertigibbet star?"},
        {"image_id": 42, "question": "what is it?"},
    ]
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, entries)))
    for _ in range(2):
        outcome = succeeds("visualize", "mine.jsonl", cwd=place)
        assert "flibbertigibbet" in outcome.out and "names its image by a number" in outcome.out
        one, two = rows_of(place / "mine.answers.jsonl")
        assert one["problem"] and one["context"] == entries[0]["context"] and two["prediction"]


def test_answers_of_a_model_are_no_data(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    for suffix in (".csv", ".jsonl"):
        (place / "coco/own.csv").unlink(missing_ok=True)
        file = asked(place, suffix, pictures(place)[:1])
        succeeds("visualize", file.name, cwd=place)
        before = open_dataset(place / "coco").question_sets()
        shutil.copy(place / f"mine.answers{suffix}", place / "coco")
        assert open_dataset(place / "coco").question_sets() == before
        fails("visualize", f"mine.answers{suffix}", cwd=place, code=2, says="which would be lost")


def test_files_that_are_no_questions_are_named(trained: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    for content, says in (
        ("image,question\nno.jpg,what is it?\n", "none of its 1 questions can be answered"),
        ("picture,question\nno.jpg,what is it?\n", "no column of its header is called image"),
        ("image,question,Note,note\nno.jpg,what is it?,1,2\n", "two columns are called"),
        ("", "no column of its header is called image"),
        ("image,question\n", "holds no question about an image"),
    ):
        (place / "bad.csv").write_text(content)
        fails("visualize", "bad.csv", cwd=place, code=1, says=says)
    assert not (place / "bad.answers.csv").exists()
    (place / "bad.csv").write_text("image,question,Model\nno.jpg,what is it?,nikon\n")
    fails("visualize", "bad.csv", cwd=place, code=2, says="bad.csv: has model itself")
    fails("visualize", "none.csv", cwd=place, code=1, says="none.csv: no such file")
    fails("visualize", "bad.csv", "what is it?", cwd=place, code=2, says="is given by itself")
    fails("visualize", "bad.csv", "--html", cwd=place, code=2, says="html: is of figures")
    asked(place, ".csv", pictures(place)[:1])
    (place / "mine.answers.csv").write_text("mine")
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
    with pytest.raises(TypeError, match="question: expected a text"):
        model.ask("img.jpg", 3)  # type: ignore[arg-type]
    for wrong in (np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected an array \(H, W, 3\) of uint8"):
            model.ask(wrong, QUESTIONS[0])
    with pytest.raises(DataError, match=r"no\.jpg"):
        model.ask("no.jpg", QUESTIONS[0])
    with pytest.raises(DataError, match="none of its words is known"):
        model.ask("img.jpg", "xyzzy")
    with pytest.raises(ConfigError, match="top"):
        model.ask("img.jpg", QUESTIONS[0], top=0)
    with pytest.raises(ConfigError, match="threshold"):
        Answerer(VQA, threshold=-1)


def test_a_picture_is_read_as_its_file_would_be(inside: Path) -> None:
    model, picture = Answerer(VQA, devices="cpu"), Image.open("img.jpg")
    turned = picture.getexif()
    turned[0x0112] = 6
    picture.save("turned.jpg", exif=turned, quality=100)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    clear.save("clear.png")
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    deep.save("deep.png")
    for name in ("turned.jpg", "clear.png", "deep.png"):
        file, opened = model.ask(name, QUESTIONS[0]), model.ask(Image.open(name), QUESTIONS[0])
        assert opened.answers == file.answers
        np.testing.assert_array_equal(opened.boxes, file.boxes)


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
