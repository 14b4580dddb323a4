"""`tbkin visualize`: several images in one call, traces, stored images, sheets of results, bad input."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, succeeds, tbkin_process
from PIL import Image
from tiny_traces import tiny_trace

from tbkin_cli.tables import percent, tables_of
from tbkin_core.datasets import open_dataset
from tbkin_core.figures.trace import load_trace
from tbkin_core.graphs.question import unified_graph
from tbkin_core.results import AnswersResult
from tbkin_core.texts.language import looks_foreign

# In `tbkin_core.stages` the name of a stage is its function.
visualize_module = importlib.import_module("tbkin_core.stages.visualize")

VQA, REC = "runs/finetune/vqa-relative-0.3", "runs/finetune/rec"
choose_results = visualize_module.choose_results
QUESTION = "what color is the star?"


def values_of(*arguments: str | Path, cwd: Path) -> dict[str, Any]:
    values = json.loads(succeeds("visualize", *arguments, "--json", cwd=cwd).out)
    assert isinstance(values, dict)
    return values


def pictures(place: Path) -> list[Path]:
    return sorted((place / "coco/val").glob("*.jpg"))


# ---- answering ----------------------------------------------------------------------------------


def test_an_object_without_a_name_is_joined_with_the_region_that_it_is_seen_in() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 40, 40], [40, 0, 80, 40], [0, 0, 100, 100]], np.float32)
    names = ("dog", "person")
    values = np.array([[9, -9], [3, -9], [4, -9], [-9, 0.5]], np.float32)

    def edges(labels: list[str], text: str = "the man pets a dog", looks: tuple[str, ...] = ("",) * 4) -> Any:
        graph = unified_graph(text, boxes, labels, looks=looks, seen=(names, values))
        objects = [item["name"] for item in graph["objects"]]
        found = graph["cross_edges"]
        return {(objects[edge["object"]], edge["region"]): edge["weight"] for edge in found}

    # The first region is too small to tell it from what is around it, and a person is not seen well enough.
    assert edges(["", "", "", ""]) == {("dog", 2): 0.5}
    assert edges(["", "", "cat", ""]) == {("dog", 1): 0.5}, "what has another name is no dog"
    assert edges(["", "brown", "cat", ""], looks=("", "brown", "", "")) == {("dog", 1): 0.5}
    assert edges(["", "", "", "dog"]) == {("dog", 3): 1.0}, "a name that is sure comes before"
    assert edges(["", "", "", ""], "a red kite in the sky") == {}


def test_a_trace_holds_what_the_command_says_and_draws_it_again(trained: Path, tmp_path: Path) -> None:
    arguments = ("img.jpg", QUESTION, "--out", tmp_path, "--format", "png", "--format", "svg")
    values = values_of(*arguments, cwd=trained)
    trace = load_trace(Path(values["trace"]))
    assert (trace.task, trace.text, trace.checkpoint) == ("vqa", QUESTION, VQA)
    assert trace.words == ["what", "color", "is", "the", "star", "?"]
    assert trace.image_size == (128, 96) and trace.image.shape == (96, 128, 3)
    assert len(trace.boxes) == len(trace.region_labels) == trace.dense.scores.shape[-1] - len(trace.pieces)
    said = [(entry["answer"], entry["probability"]) for entry in values["answers_thresholded"]]
    assert said == trace.thresholded.answers
    assert values["kept_fraction"] == trace.kept_fraction()
    assert 0 < trace.kept_fraction() < 1 and trace.dense.kept.all()
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".png", ".svg"}
    figure = Path(values["figure"])
    drawn = figure.read_bytes()
    figure.unlink()
    again = values_of(values["trace"], cwd=trained)
    assert again["images"][0]["figure"] == str(figure) and figure.read_bytes() == drawn
    other = values_of(values["trace"], "--layer", "0", "--head", "1", cwd=trained)["images"][0]["figure"]
    assert Path(other).name.endswith("-layer0-head1.png") and Path(other).read_bytes() != drawn


def test_drawing_again_needs_no_model(trained: Path, tmp_path: Path) -> None:
    values = values_of("img.jpg", QUESTION, "--out", tmp_path, cwd=trained)
    code = (
        "import sys; from pathlib import Path; from tbkin_core.settings import VisualizeConfig;"
        "from tbkin_core.stages import visualize;"
        f"visualize(VisualizeConfig(images=[Path({values['trace']!r})]));"
        "sys.exit('torch' in sys.modules)"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0


def test_several_images_in_one_call_answer_as_one_by_one(trained: Path, tmp_path: Path) -> None:
    first, second = pictures(trained)[:2]
    (tmp_path / "broken.jpg").write_text("<html>")
    out = tmp_path / "out"
    shutil.copy(second, tmp_path / first.name)
    arguments = (first, tmp_path / "broken.jpg", tmp_path / first.name, QUESTION, "--out", out)
    values = values_of(*arguments, cwd=trained)
    assert [entry["image"] for entry in values["images"]] == [str(first), str(tmp_path / first.name)]
    (problem,) = values["problems"]
    assert "broken.jpg" in problem
    # Files of the same name do not overwrite each other's figures.
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.npz"))) == 2
    for entry, path in zip(values["images"], (first, second), strict=True):
        alone = values_of(path, QUESTION, "--out", tmp_path / "alone", cwd=trained)
        assert alone["answers"] == entry["answers"]


def test_nothing_of_something_else_is_overwritten(trained: Path, tmp_path: Path) -> None:
    first, second = pictures(trained)[:2]
    for name, picture in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        shutil.copy(picture, tmp_path / name / "img.jpg")
    shutil.copytree(trained / VQA, tmp_path / "another")
    one, other, out = tmp_path / "a/img.jpg", tmp_path / "b/img.jpg", tmp_path / "out"
    same = "is there a red circle to the left of the small blue square or of the "
    asked: list[tuple[str | Path, ...]] = [
        (one, QUESTION, "--checkpoint", VQA),
        (other, QUESTION, "--checkpoint", VQA),
        (one, QUESTION, "--checkpoint", tmp_path / "another"),
        (one, "is it red? цвет"),
        (one, "is it red? размер"),
        (one, same + "cross"),
        (one, same + "star"),
        (one, "the star", "--checkpoint", REC, "--graph"),
        (one, "the star graph", "--checkpoint", REC),
    ]
    made = [values_of(*arguments, "--out", out, cwd=trained) for arguments in asked]
    files = [file for values in made for file in (values["trace"], *values["files"])]
    assert len(set(files)) == len(files) == 2 * len(asked) + 1
    content = {file: Path(file).read_bytes() for file in files}
    # The same again has its place again, also where its checkpoint is named in another way.
    again = [values_of(*arguments, "--out", out, cwd=trained) for arguments in asked[:2]]
    assert all(Path(file).read_bytes() == content[file] for file in files if file.endswith(".png"))
    again.append(values_of(one, QUESTION, "--checkpoint", trained / VQA, "--out", out, cwd=trained))
    assert [values["trace"] for values in again] == [made[place]["trace"] for place in (0, 1, 0)]
    assert {path.name for path in out.iterdir()} == {Path(file).name for file in files}
    # A picture that nobody knows, and a trace that cannot be read.
    Path(made[0]["trace"]).unlink()
    Path(made[1]["trace"]).write_bytes(b"PK")
    assert Path(values_of(*asked[0], "--out", out, cwd=trained)["trace"]).stem.endswith("-4")
    assert Path(made[1]["trace"]).read_bytes() == b"PK"


def test_traces_of_one_name_are_drawn_again_side_by_side(trained: Path, tmp_path: Path) -> None:
    traces = []
    for number, picture in enumerate(pictures(trained)[:2]):
        shutil.copy(picture, tmp_path / "img.jpg")
        options = ("--out", tmp_path / str(number))
        traces.append(values_of(tmp_path / "img.jpg", QUESTION, *options, cwd=trained)["trace"])
    assert Path(traces[0]).name == Path(traces[1]).name
    drawn = values_of(*traces, "--out", tmp_path / "both", cwd=trained)["images"]
    assert len({Path(entry["figure"]).read_bytes() for entry in drawn}) == 2


def redrawn(*arguments: str | Path, cwd: Path) -> list[Path]:
    """The figures of one trace, in the order in which they are named to a person."""
    out = succeeds("visualize", *arguments, cwd=cwd).out
    return [Path(line.removeprefix("wrote ")) for line in out.splitlines() if line.startswith("wrote ")]


def test_a_redrawn_figure_replaces_no_file_but_its_own(trained: Path, tmp_path: Path) -> None:
    first, second = (
        values_of("img.jpg", text, "--out", tmp_path / "from", cwd=trained)["trace"]
        for text in (QUESTION, "is it red?")
    )
    for name in ("x.png", "x-graph.png", "x.html", "x-graph.npz"):
        place = tmp_path / name
        place.mkdir()
        shutil.copy(first, place / "x.npz")
        (place / name).write_text("mine")
        for _ in range(2):
            names = [file.name for file in redrawn("x.npz", "--html", "--graph", cwd=place)]
            assert names == ["x-2.png", "x-2-graph.png", "x-2.html"]
        assert (place / name).read_text() == "mine" and len(list(place.iterdir())) == 5
    # Two of one name in commands of their own, and the first once more.
    for number, trace in enumerate((first, second)):
        (tmp_path / str(number)).mkdir()
        shutil.copy(trace, tmp_path / str(number) / "x.npz")
    drawn = [redrawn(f"{number}/x.npz", "--out", "both", cwd=tmp_path) for number in (0, 1, 0)]
    assert drawn == [[Path("both/x.png")], [Path("both/x-2.png")], [Path("both/x.png")]]
    # Where a trace lies the figures of another do not go, as its own would have these names.
    shutil.copy(tmp_path / "1/x.npz", tmp_path / "both/x-3.npz")
    (tmp_path / "both/x.png").write_text("mine")
    assert redrawn("0/x.npz", "--out", "both", cwd=tmp_path) == [Path("both/x-4.png")]
    (tmp_path / "both/x-3.npz").write_text("mine")
    (tmp_path / "both/x-4.png").unlink()
    (tmp_path / "both/x-4.png").symlink_to("nowhere")
    assert redrawn("0/x.npz", "--out", "both", cwd=tmp_path) == [Path("both/x-5.png")]


def test_an_answer_replaces_its_own_figures_alone(trained: Path, tmp_path: Path) -> None:
    arguments = ("img.jpg", QUESTION, "--out", tmp_path)
    made = values_of(*arguments, cwd=trained)
    page = Path(values_of(*arguments, "--html", cwd=trained)["files"][1])
    page.write_text("notes")
    assert values_of(*arguments, cwd=trained)["trace"] == made["trace"]
    assert values_of(*arguments, "--html", cwd=trained)["trace"] != made["trace"]
    assert page.read_text() == "notes"


def test_a_redrawn_figure_and_a_sheet_become_no_images_of_a_dataset(
    trained_workspace: Path, tmp_path: Path
) -> None:
    place = trained_workspace
    trace = values_of("img.jpg", QUESTION, "--checkpoint", VQA, cwd=place)["trace"]
    sheet = ("--from", f"{VQA}/results-val.json")
    shutil.copytree(place / "coco", place / "another")
    shutil.rmtree(place / "another/graphs")
    # One that the model learnt from, and one whose features were made.
    for data in ("coco", "another"):
        before = sorted((place / data).rglob("*"))
        for out in (data, f"{data}/new/one"):
            for line in ((trace,), sheet):
                says = (f"out: {out} lies in the dataset", "choose another place")
                fails("visualize", *line, "--out", out, cwd=place, code=2, says=says)
        assert sorted((place / data).rglob("*")) == before
    # Features that lie elsewhere make no dataset of that place; nor does a model that is gone hinder.
    shutil.copytree(place / "another/features", place / "store/features")
    file = place / "store/features/config.yaml"
    file.write_text(file.read_text().replace("out: null", "out: store/features"))
    shutil.copy(place / trace, place / "x.npz")
    shutil.rmtree(place / "runs")
    assert redrawn("x.npz", "--out", "store", cwd=place) == [Path("store/x.png")]


def test_sheets_replace_no_file_but_their_own(trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(trained / VQA / "results-val.json", tmp_path / name)

    def drawn(name: str, *formats: str) -> list[str]:
        line = ("--from", tmp_path / name / "results-val.json", "--out", tmp_path / "out", *formats)
        return [file.name for file in redrawn(*line, cwd=trained)]

    name = "vqa-relative-0-3-val-answers"
    assert drawn("a") == drawn("a") == [f"{name}.png"]
    # Of another run of this name; and where a file in one of several formats is somebody's.
    assert drawn("b") == drawn("b") == [f"{name}-2.png"]
    (tmp_path / f"out/{name}.svg").write_text("mine")
    assert drawn("a", "--format", "png", "--format", "svg") == [f"{name}-3.png", f"{name}-3.svg"]
    assert (tmp_path / f"out/{name}.svg").read_text() == "mine"


def test_sheets_of_models_of_one_name_lie_side_by_side(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / VQA / "results-val.json").read_text())
    figures = []
    for place in (VQA, "elsewhere/vqa-relative-0.3"):
        (tmp_path / "results.json").write_text(json.dumps({**content, "checkpoint": place}))
        arguments = ("--from", tmp_path / "results.json", "--out", tmp_path)
        figures.append(Path(values_of(*arguments, cwd=trained)["figure"]).name)
    assert figures[0] == "vqa-relative-0-3-val-answers.png" != figures[1]


def test_an_image_of_a_store_brings_its_picture_and_its_target(trained: Path, tmp_path: Path) -> None:
    expression = open_dataset(trained / "coco").expressions("val")[0]
    stored = values_of(
        "--image-id", str(expression.image_id), expression.text, "--out", tmp_path, cwd=trained
    )
    path = open_dataset(trained / "coco").image(expression.image_id).path
    assert path is not None
    made = values_of(path, expression.text, "--out", tmp_path, cwd=trained)
    assert stored["box"] == pytest.approx(made["box"], abs=0.2)
    left, top, width, height = expression.target_xywh
    for values in (stored, made):
        assert values["target_box"] == pytest.approx([left, top, left + width, top + height], abs=0.1)
        assert 0 <= values["iou"] <= 1
    trace = load_trace(Path(stored["trace"]))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(trace.image, np.asarray(picture))
    assert trace.target_box == pytest.approx(stored["target_box"], abs=0.1)


def test_a_text_that_means_two_objects_has_no_target(trained_workspace: Path) -> None:
    place = trained_workspace
    dataset = open_dataset(place / "coco")
    first = dataset.expressions("val")[0]
    others = [item for item in dataset.expressions("val") if item.image_id == first.image_id]
    second = next(item for item in others if item.target_xywh != first.target_xywh)
    picture = dataset.image(first.image_id).path
    assert picture is not None
    shutil.rmtree(place / "coco/refcoco")

    def write(name: str, *targets: tuple[float, float, float, float]) -> None:
        rows = [
            {"image": picture.name, "text": "the  Thing", **dict(zip("xywh", map(float, box), strict=True))}
            for box in targets
        ]
        lines = "".join(json.dumps({**row, "split": "val"}) + "\n" for row in rows)
        (place / "coco" / name).write_text(lines)

    line = (picture, "the thing", "--checkpoint", REC)
    write("expressions.jsonl", first.target_xywh, second.target_xywh)
    values = values_of(*line, cwd=place)
    assert "target_box" not in values and "iou" not in values
    (problem,) = [problem for problem in values["problems"] if "2 objects" in problem]
    assert "'the thing'" in problem and "none is shown" in problem
    assert load_trace(place / values["trace"]).target_box is None
    # Said twice of one object it is no less clear.
    write("expressions.jsonl", second.target_xywh, second.target_xywh)
    values = values_of(*line, cwd=place)
    left, top, width, height = second.target_xywh
    assert values["target_box"] == pytest.approx([left, top, left + width, top + height], abs=0.1)
    assert not any("objects of" in problem for problem in values["problems"])


def test_a_stored_image_without_a_picture_is_drawn_on_white(trained: Path, tmp_path: Path) -> None:
    image_id = str(open_dataset(trained / "coco").images("val")[0].image_id)
    arguments = ("--image-id", image_id, QUESTION, "--features", trained / "coco/features")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(trained / "img.jpg", tmp_path / "elsewhere/another.jpg")
    options = ("--data", tmp_path / "elsewhere", "--checkpoint", trained / VQA, "--out", tmp_path / "out")
    values = values_of(*arguments, *options, cwd=tmp_path)
    assert "no picture" in values["problems"][0]
    assert load_trace(Path(values["trace"])).image.min() == 255


def test_the_graph_joins_words_and_regions() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    graph = unified_graph("a red star above a dog", boxes, ["red", "dog", ""])
    names = [entry["name"] for entry in graph["objects"]]
    edges = {(names[edge["object"]], edge["region"]) for edge in graph["cross_edges"]}
    assert edges == {("star", 0), ("dog", 1)}
    weights = {names[edge["object"]]: edge["weight"] for edge in graph["cross_edges"]}
    assert weights["star"] < weights["dog"], "by its colour alone"
    assert [region["label"] for region in graph["regions"]] == ["red", "dog", ""]


def test_the_graph_joins_named_regions_by_colour_where_the_text_names_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    labels, looks = ["heart", "star", "red"], ["red", "blue", ""]
    graph = unified_graph("a red thing above a red star", boxes, labels, looks=looks)
    names = [entry["name"] for entry in graph["objects"]]
    edges = {(names[edge["object"]], edge["region"]) for edge in graph["cross_edges"]}
    assert edges == {("thing", 0), ("star", 1)}


def test_the_graph_comes_into_the_trace_when_it_is_asked_for(trained: Path, tmp_path: Path) -> None:
    from tbkin_core.settings import VisualizeConfig
    from tbkin_core.stages import visualize

    expression = open_dataset(trained / "coco").expressions("val")[0]
    path = open_dataset(trained / "coco").image(expression.image_id).path
    assert path is not None
    config = {"images": [path], "question": expression.text, "checkpoint": trained / REC, "out": tmp_path}
    settings: dict[str, Any] = {**config, "data": trained / "coco"}
    plain = load_trace(Path(visualize(VisualizeConfig(**settings)).values["trace"]))
    assert plain.graph is None and plain.names_annotated
    graph = load_trace(Path(visualize(VisualizeConfig(**settings, graph=True)).values["trace"])).graph
    assert graph is not None and graph["text"] == expression.text
    # Annotated boxes name the shapes that the extractor has no names for.
    shapes = {box.label for box in open_dataset(trained / "coco").boxes()[expression.image_id]}
    assert shapes & {region["label"] for region in graph["regions"]}
    # In figures the colour stands before the name.
    assert shapes & {label.partition(" ")[2] for label in plain.region_labels}


# ---- sheets of results --------------------------------------------------------------------------


def row(kind: str, image: int, probability: float, score: float) -> dict[str, Any]:
    return {"type": kind, "image_id": image, "probability": probability, "score": score}


def test_a_sheet_shows_the_types_that_fail_most_and_the_surest_of_each() -> None:
    rows = [row("count", number % 2, number / 10, 0.3) for number in range(9)]
    rows += [row("color", number, 0.5, 0) for number in range(3)] + [row("shape", 0, 0.9, 1)]
    chosen = choose_results(rows, wrong=True, limit=6, per_row=4)
    assert {kind: len(found) for kind, found in chosen.items()} == {"count": 4, "color": 2}
    # Of each of the two images the surest, then of each the second.
    assert [entry["probability"] for entry in chosen["count"]] == [0.8, 0.7, 0.6, 0.5]
    assert [entry["image_id"] for entry in chosen["count"]] == [0, 1, 0, 1]
    everything = choose_results(rows, wrong=False, limit=100, per_row=4)
    assert sum(map(len, everything.values())) == len(rows)
    assert list(everything) == ["count", "color", "shape"]
    one_image = choose_results([row("a", 1, 0.9, 0), row("a", 1, 0.8, 0), row("a", 2, 0.1, 0)], True, 2, 4)
    assert [entry["image_id"] for entry in one_image["a"]] == [1, 2]


@pytest.mark.parametrize("run", [VQA, REC])
def test_a_fine_tuned_run_leaves_results_and_a_sheet_is_drawn_of_them(
    trained: Path, tmp_path: Path, run: str
) -> None:
    content = json.loads((trained / run / "results-val.json").read_text())
    report = json.loads((trained / run / "run.json").read_text())["results"]["accuracy"]["val"]
    assert 100 * np.mean([entry["score"] for entry in content["results"]]) == pytest.approx(report, abs=0.01)
    values = values_of(
        "--from", Path(run) / "results-val.json", "--wrong", "--limit", "5", "--out", tmp_path, cwd=trained
    )
    assert values["wrong"] == sum(entry["score"] < 0.5 for entry in content["results"])
    assert len(values["shown"]) == min(5, values["wrong"])
    assert all(entry["score"] < 0.5 for entry in values["shown"])
    with Image.open(values["figure"]) as sheet:
        assert sheet.width == 1440


def test_a_sheet_says_where_the_model_ignores_the_image(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = []
    monkeypatch.setattr(visualize_module, "contact_sheet", lambda *_, caption, **__: captions.append(caption))
    for name in ("sees", "ignores", "damaged"):
        run = shutil.copytree(trained / VQA, tmp_path / name)
        shape = json.loads((run / "config.json").read_text())
        assert shape.get("use_regions", True)
        content = json.dumps(shape | {"use_regions": name != "ignores"})
        (run / "config.json").write_text("{" if name == "damaged" else content)
        said = succeeds(
            "visualize", "--from", run / "results-val.json", "--out", tmp_path / "out", cwd=trained
        )
        assert ("this model ignores the image" in said.out) == (name == "ignores")
    assert [caption.startswith("This model ignores the image") for caption in captions] == [
        False,
        True,
        False,
    ]


def test_a_fine_tuned_run_names_the_command_that_shows_its_failures(trained: Path) -> None:
    outcome = succeeds(
        "finetune", "--task", "rec", "--data", "coco", "--epochs", "1", "--devices", "cpu", cwd=trained
    )
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("next: ")]
    assert line == f"next: tbkin visualize --from {REC}/results-val.json --wrong --limit 20"
    assert (trained / REC / "training.png").stat().st_size > 5000


def test_curves_of_a_finished_run_are_drawn_in_the_format_that_is_asked_for(trained: Path) -> None:
    line = ("finetune", "--task", "rec", "--data", "coco", "--epochs", "1", "--devices", "cpu", "--json")
    weights = (trained / REC / "model.safetensors").stat().st_mtime_ns
    values = json.loads(succeeds(*line, "--format", "pdf", "--format", "svg", "--column", cwd=trained).out)
    assert (trained / REC / "model.safetensors").stat().st_mtime_ns == weights, "nothing is trained anew"
    drawn = {path.name for path in (trained / REC).glob("training*")}
    assert drawn == {"training.png", "training-column.pdf", "training-column.svg"}
    assert values["out"] == REC
    assert b"/Type3" not in (trained / REC / "training-column.pdf").read_bytes()
    # What was drawn of fewer epochs is drawn anew, and nothing else is.
    os.utime(trained / REC / "training-column.svg", (0, 0))
    before = (trained / REC / "training-column.pdf").stat().st_mtime_ns
    succeeds(*line, cwd=trained)
    assert (trained / REC / "training-column.svg").stat().st_mtime > 0
    assert (trained / REC / "training-column.pdf").stat().st_mtime_ns == before
    for suffix in ("pdf", "svg"):
        (trained / REC / f"training-column.{suffix}").unlink()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"question_id": 1, "answer": "yes"}]', "no results of `tbkin finetune`"),
        ("{", "results.json"),
        (
            '{"task": "vqa", "split": "val", "checkpoint": "a", "data": "coco", "results": []}',
            "results: expected a list",
        ),
        (
            '{"task": "vqa", "split": "val", "checkpoint": "a", "data": "coco", "results": [{}]}',
            "results[0]: expected an object with image_id",
        ),
        (None, "results.json"),
    ],
)
def test_results_of_something_else(trained: Path, tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    fails("visualize", "--from", tmp_path / "results.json", cwd=trained, code=1, says=(says, "results.json"))


def test_results_are_looked_for_in_a_run_that_is_given(trained: Path) -> None:
    says = ("is a directory", f"{REC}/results-val.json")
    fails("visualize", "--from", REC, cwd=trained, code=1, says=says)


# ---- what a person may get wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("img.jpg what --layer 99", "layer: expected a number from 0 to"),
        ("img.jpg what --head 99", "head: expected a number from 0 to"),
        ("img.jpg what --layer -1", "layer: expected at least 0"),
        ("img.jpg what --aggregate mean", "rollout, last"),
        ("what%color", "'what color' is alone"),
        ("img.jpg what --aggregate last --head 0", "omit it beside"),
        ("img.jpg what --format gif", "png, svg, pdf"),
        ("img.jpg what --wrong", "--from results-val.json"),
        ("img.jpg what --limit 3", "limit: only with --from"),
        ("img.jpg what --from runs/finetune/rec/results-val.json", "give no image"),
        ("trace.npz img.jpg what", "drawn again by themselves"),
        ("trace.npz --threshold 0.5", "a trace has its own"),
        ("--from runs/finetune/rec/results-val.json --limit 9999", "from 1 to 200"),
    ],
)
def test_settings_that_contradict_each_other(trained: Path, arguments: str, says: str) -> None:
    given = [argument.replace("%", " ") for argument in arguments.split()]
    fails("visualize", *given, cwd=trained, code=2, says=says)


def test_an_id_that_no_store_has(trained: Path) -> None:
    fails(
        "visualize",
        "--image-id",
        "dog",
        QUESTION,
        cwd=trained,
        code=1,
        says=("no image 'dog'", "ids look like"),
    )


def test_a_trace_that_is_none(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK")
    np.savez(tmp_path / "b.npz", features=np.zeros(3))
    for name in ("a.npz", "b.npz", "none.npz"):
        fails("visualize", tmp_path / name, cwd=trained, code=1, says=(name, "cannot be read as a trace"))


def test_a_huge_image_is_refused(trained: Path, tmp_path: Path) -> None:
    Image.new("1", (20_000, 15_000)).save(tmp_path / "huge.png")
    fails("visualize", tmp_path / "huge.png", QUESTION, cwd=trained, code=1, says=("huge.png", "too large"))


def test_features_of_a_store_are_those_of_the_same_picture_alone(
    trained_workspace: Path, tmp_path: Path
) -> None:
    """A number at the end of a name says nothing; a place in the dataset does, or COCO's whole name."""
    coco, place = trained_workspace / "coco", tmp_path / "elsewhere"
    record = open_dataset(coco).images("val")[0]
    assert record.path is not None and isinstance(record.image_id, int)
    options = ("--features", coco / "features", "--checkpoint", trained_workspace / VQA, "--out", place)

    def refused(path: Path, code: int, *says: str) -> None:
        fails("visualize", path, QUESTION, *options, cwd=trained_workspace, code=code, says=says)

    own = values_of(record.path, QUESTION, *options, cwd=trained_workspace)
    assert own["problems"] == []
    with Image.open(record.path) as picture:
        width, height = picture.size
    place.mkdir(exist_ok=True)
    for name in (f"holiday-{record.image_id}.png", f"{record.image_id}.png", f"img{record.image_id}.png"):
        Image.new("RGB", (width, height), "white").save(place / name)
        refused(place / name, 2, Path(name).stem, "holds no image")
    # Beside the dataset's images, but not there when the features were made.
    Image.new("RGB", (width, height), "white").save(coco / f"other-{record.image_id}.png")
    refused(coco / f"other-{record.image_id}.png", 2, "holds no image")
    (coco / f"other-{record.image_id}.png").unlink()
    name = f"COCO_val2014_{record.image_id:012}.jpg"
    shutil.copy(record.path, place / name)
    moved = values_of(place / name, QUESTION, *options, cwd=trained_workspace)
    assert moved["answers"] == own["answers"]
    assert f"by its name it is image {record.image_id}" in moved["problems"][0]
    Image.new("RGB", (width + 1, height)).save(place / name)
    refused(place / name, 1, name, f"{width + 1} x {height}", f"{width} x {height}")


def test_a_checkpoint_whose_extractor_is_not_installed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / VQA, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    model = str(tmp_path / "detector")
    config["extractor"] |= {"extractor": "detector", "model": model, "weights": "0", "store": ""}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    arguments = ("visualize", "img.jpg", QUESTION, "--checkpoint", tmp_path / "run")
    assert model in fails(*arguments, cwd=trained, code=1)


def test_a_long_question_is_cut_and_this_is_said(trained: Path, tmp_path: Path) -> None:
    question = QUESTION + " and what color is the circle" * 50
    (problem,) = values_of("img.jpg", question, "--out", tmp_path, cwd=trained)["problems"]
    assert "cut to 32 tokens" in problem and "of its 306 words the model read 30" in problem


def test_words_that_the_model_does_not_know_are_told_of(trained: Path, tmp_path: Path) -> None:
    arguments = ("img.jpg", "what color is the xylophone 这 star of a xylophone?", "--out", tmp_path)
    (problem,) = values_of(*arguments, cwd=trained)["problems"]
    assert problem.endswith(": xylophone, 这")


def test_a_model_that_does_not_see_the_image_says_so(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / VQA, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"use_regions": False}))
    arguments = ("img.jpg", QUESTION, "--checkpoint", tmp_path / "run", "--out", tmp_path, "--html")
    values = values_of(*arguments, "--selection", "sparsemax", cwd=trained)
    assert any("does not see the image" in problem for problem in values["problems"])
    assert Path(values["figure"]).name.endswith("-sparsemax.png")
    trace = load_trace(Path(values["trace"]))
    length = len(trace.pieces)
    for content in (trace.dense, trace.thresholded):
        assert not content.weights()[..., :length, length:].any()


def test_tables_name_regions_and_never_round_to_certainty() -> None:
    trace = tiny_trace("the large dog", task="rec")
    image = visualize_module.image_answer(trace, trace.dense, "img.jpg", [], Path("img.npz"))
    result = AnswersResult(
        out=Path(),
        about="runs/one",
        title="",
        heading="region",
        selection="τ",
        shows_box=True,
        several=False,
        images=[image],
    )
    rows = tables_of(result)[0].rows
    assert {row[0] for row in rows} == {
        "region 0 (dog)",
        "region 1 (tall building)",
        "region 2",
        "region 3 (car)",
        "region 4 (dog)",
    }
    assert [percent(value) for value in (0, 1e-6, 0.25, 0.9999, 1)] == [
        "0.0 %",
        "< 0.1 %",
        "25.0 %",
        "> 99.9 %",
        "100.0 %",
    ]


def test_a_question_in_another_language_is_told_of(trained: Path, tmp_path: Path) -> None:
    arguments = ("img.jpg", "de quelle couleur est la star", "--out", tmp_path)
    assert any("not look English" in problem for problem in values_of(*arguments, cwd=trained)["problems"])


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("welche Farbe hat der Hund", True),
        ("¿de qué color es el perro?", True),
        ("собака on", True),
        ("what color is the die on the left", False),
        ("la la land poster", False),
        ("la la casa de papel", True),
        ("man in red", False),
        ("", False),
        ("el nino sign", False),
        ("was ist das", True),
    ],
)
def test_which_texts_look_foreign(text: str, foreign: bool) -> None:
    assert looks_foreign(text) is foreign


@pytest.mark.parametrize(
    ("text", "task"), [("can on the left", "rec"), ("the can on the left", "rec"), ("is it red", "vqa")]
)
def test_a_question_goes_to_the_model_that_answers_it(
    trained: Path, tmp_path: Path, text: str, task: str
) -> None:
    outcome = succeeds("visualize", "img.jpg", text, "--json", "--out", tmp_path, cwd=trained)
    assert json.loads(outcome.out)["task"] == task


def test_no_display_is_needed(trained: Path, tmp_path: Path) -> None:
    """A display that is not there, and a toolkit that would need one."""
    arguments = ("visualize", "img.jpg", QUESTION, "--out", str(tmp_path), "--json")
    outcome = tbkin_process(*arguments, cwd=trained, DISPLAY="", WAYLAND_DISPLAY="", MPLBACKEND="TkAgg")
    assert outcome.code == 0, outcome.err
    assert Path(json.loads(outcome.out)["figure"]).stat().st_size > 5000


def test_figures_say_that_the_data_have_changed(trained_workspace: Path) -> None:
    wrong = ("--from", f"{VQA}/results-val.json")
    assert not any("changed" in note for note in values_of(*wrong, cwd=trained_workspace)["problems"])
    for file in (trained_workspace / "coco").rglob("*annotations.json"):
        file.write_text(re.sub(r'"answer":"\w+"', '"answer":"purple"', file.read_text()))
    notes = values_of(*wrong, cwd=trained_workspace)["problems"]
    assert sum(f"coco: val changed since {VQA} was made" in note for note in notes) == 1
    # The target of an expression is that of the data as they are now.
    dataset = open_dataset(trained_workspace / "coco")
    item = dataset.expressions("val")[0]
    picture = dataset.image(item.image_id).path
    assert picture is not None
    line = (picture, item.text, "--checkpoint", REC)
    before = values_of(*line, cwd=trained_workspace)
    assert before["target_box"] and not any("changed" in note for note in before["problems"])
    for file in (trained_workspace / "coco").rglob("instances.json"):
        content = json.loads(file.read_text())
        for box in content["annotations"]:
            box["bbox"][0] += 1
        file.write_text(json.dumps(content))
    after = values_of(*line, cwd=trained_workspace)
    assert after["target_box"][0] == before["target_box"][0] + 1
    assert sum(f"changed since {REC} was made" in note for note in after["problems"]) == 1
    # Nothing is said where nothing of the data is shown.
    after = values_of(picture, "the red square nowhere", "--checkpoint", REC, cwd=trained_workspace)
    assert not any("changed" in note for note in after["problems"])
