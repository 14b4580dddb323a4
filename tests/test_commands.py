"""The six commands one after the other, as they are typed, on a small drawn world."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import ENVIRONMENT, fails, leftovers, succeeds, tbkin, tbkin_process
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from tbkin_cli.output import print_table
from tbkin_cli.tables import Table
from tbkin_core import stages

QUESTION = "what color is the star?"
CHAIN = {
    "extract-features": ["coco/"],
    "build-graphs": ["coco/"],
    "pretrain": ["coco/", "--epochs", "1"],
    "finetune": ["--task", "vqa", "--threshold", "0.3", "--epochs", "1"],
    "finetune rec": ["--task", "rec", "--epochs", "1"],
    "threshold-sweep": ["--task", "vqa", "--thresholds", "0,0.3"],
    "visualize": ["img.jpg", QUESTION],
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A workspace after the whole chain with default devices, workers and places."""
    place = tmp_path_factory.mktemp("chain") / "workspace"
    shutil.copytree(world, place)
    for name, arguments in CHAIN.items():
        succeeds(name.split()[0], *arguments, cwd=place)
    return place


def test_the_chain_leaves_what_each_command_promises(chain: Path) -> None:
    for store in ("coco/features", "coco/graphs"):
        assert json.loads((chain / store / "store.json").read_text())["complete"]
    for run in ("runs/pretrain", "runs/finetune/vqa-relative-0.3", "runs/finetune/rec"):
        for name in ("config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "run.json"):
            assert (chain / run / name).stat().st_size > 0
        assert not (chain / run / "state").exists()
    assert leftovers(chain) == []


def test_finetuning_begins_from_the_pretrained_model(chain: Path) -> None:
    for run in ("vqa-relative-0.3", "rec"):
        results = json.loads((chain / "runs/finetune" / run / "run.json").read_text())["results"]
        assert results["initialised_from"] == "runs/pretrain"


def test_figures_open(chain: Path) -> None:
    figures = sorted(chain.glob("runs/**/*.png"))
    assert [str(figure.relative_to(chain / "runs").parent) for figure in figures] == [
        "finetune/rec",
        "finetune/vqa-relative-0.3",
        "pretrain",
        *["threshold-sweep/vqa-relative-0.3-val"] * 2,
        "visualize",
    ]
    for figure in figures:
        with Image.open(figure) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 300


def test_the_sweep_table_is_a_csv_file(chain: Path) -> None:
    with (chain / "runs/threshold-sweep/vqa-relative-0.3-val/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["selection"], float(row["threshold"])) for row in rows] == [
        ("dense", 0.0),
        ("relative", 0.3),
    ]
    assert all(0 <= float(row["accuracy"]) <= 100 for row in rows)


def test_running_a_finished_command_again_changes_no_result(chain: Path) -> None:
    kept = {
        name: (chain / name).read_bytes()
        for name in (
            "coco/features/shard-00000.safetensors",
            "coco/graphs/shard-00000.safetensors",
            "runs/pretrain/model.safetensors",
            "runs/pretrain/run.json",
            "runs/finetune/rec/model.safetensors",
            "runs/finetune/rec/run.json",
        )
    }
    runs = sorted(path.parent for path in chain.glob("runs/**/run.json"))
    for name in ("extract-features", "build-graphs", "pretrain", "finetune rec"):
        outcome = succeeds(name.split()[0], *CHAIN[name], cwd=chain)
        if name in ("pretrain", "finetune rec"):
            assert "had finished already" in outcome.out and "--overwrite" in outcome.out
    assert {name: (chain / name).read_bytes() for name in kept} == kept
    assert sorted(path.parent for path in chain.glob("runs/**/run.json")) == runs
    outcome = succeeds("extract-features", "coco/", "--json", cwd=chain)
    assert (json.loads(outcome.out)["made"], json.loads(outcome.out)["present"]) == (0, 20)


@pytest.mark.parametrize("name", CHAIN)
def test_json_is_one_object_and_nothing_else(chain: Path, name: str) -> None:
    outcome = succeeds(name.split()[0], *CHAIN[name], "--json", cwd=chain)
    assert outcome.out.count("\n") == 1
    values = json.loads(outcome.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert isinstance(values, dict)
    assert isinstance(values["problems"], list)


@pytest.mark.parametrize("name", CHAIN)
def test_quiet_is_quiet(chain: Path, tmp_path: Path, name: str) -> None:
    arguments = [*CHAIN[name], "--out", str(tmp_path / "out")]
    outcome = succeeds(name.split()[0], *arguments, "--quiet", "--json", cwd=chain)
    assert [line for line in outcome.err.splitlines() if not line.startswith("tbkin: warning: ")] == []
    json.loads(outcome.out)


def test_out_keeps_everything_in_one_place(trained_workspace: Path, tmp_path: Path) -> None:
    before = sorted(str(path) for path in trained_workspace.rglob("*"))
    for name, arguments in CHAIN.items():
        out = tmp_path / "elsewhere" / name.replace(" ", "-")
        succeeds(name.split()[0], *arguments, "--out", out, cwd=trained_workspace)
        assert any(out.iterdir())
    assert sorted(str(path) for path in trained_workspace.rglob("*")) == before


def test_a_question_goes_to_the_vqa_model_although_rec_came_later(chain: Path) -> None:
    values = json.loads(succeeds("visualize", "img.jpg", QUESTION, "--json", cwd=chain).out)
    assert values["task"] == "vqa"
    assert values["threshold"] == 0.3
    assert 0 < values["answers"][0]["probability"] <= 1


def test_an_expression_gets_a_box(chain: Path) -> None:
    arguments = ("visualize", "img.jpg", "the large circle", "--checkpoint", "runs/finetune/rec", "--json")
    values = json.loads(succeeds(*arguments, cwd=chain).out)
    left, top, right, bottom = values["box"]
    assert 0 <= left < right <= 128 and 0 <= top < bottom <= 96


def test_a_pretrained_model_can_be_looked_at(chain: Path, tmp_path: Path) -> None:
    arguments = ("visualize", "img.jpg", "a red circle", "--checkpoint", "runs/pretrain", "--json")
    values = json.loads(succeeds(*arguments, "--out", tmp_path, cwd=chain).out)
    assert values["task"] == "pretrain"
    assert sum(entry["probability"] for entry in values["answers"]) == pytest.approx(1)


def test_a_checkpoint_keeps_its_threshold(trained: Path) -> None:
    from tbkin_core.modeling.checkpoint import load_model

    model, _ = load_model(trained / "runs/finetune/vqa-relative-0.3", "vqa")
    assert (model.config.threshold, model.config.selection) == (0.3, "relative")
    assert (model.tbkin.selection.rule, model.tbkin.selection.threshold) == ("relative", 0.3)
    dense, _ = load_model(trained / "runs/finetune/rec", "rec")
    assert dense.tbkin.selection.threshold == 0


@torch.inference_mode()
def test_threshold_zero_is_exactly_dense(trained: Path) -> None:
    from tbkin_core.modeling.checkpoint import load_model
    from tbkin_core.selection import Selection

    model, _ = load_model(trained / "runs/finetune/vqa-relative-0.3", "vqa")
    generator = torch.Generator().manual_seed(0)
    size = model.config.region_feature_size
    inputs = {
        "input_ids": torch.randint(5, 20, (3, 7), generator=generator),
        "attention_mask": torch.ones(3, 7, dtype=torch.bool),
        "region_features": torch.randn(3, 9, size, generator=generator),
        "region_geometry": torch.rand(3, 9, 5, generator=generator),
        "region_mask": torch.arange(9)[None] < torch.tensor([9, 5, 1])[:, None],
    }
    model.tbkin.selection = Selection("relative", 0.0)
    dense = model(**inputs).vqa_logits
    for rule in ("probability", "score", "topk", "relative"):
        model.tbkin.selection = Selection(rule, 0.0)
        assert torch.equal(model(**inputs).vqa_logits, dense)
    model.tbkin.selection = Selection("relative", 0.9)
    assert not torch.equal(model(**inputs).vqa_logits, dense)


def test_two_processes_train_as_one(trained_workspace: Path) -> None:
    from safetensors.torch import load_file

    settings = "dropout: 0\nbatch_size: 8\nmicro_batch_size: 3\nprecision: fp32\n"
    (trained_workspace / "plain.yaml").write_text(settings)
    weights = []
    for devices in ("cpu", "cpu:2"):
        out = f"out-{devices.replace(':', '-')}"
        outcome = tbkin_process(
            *("finetune", "--task", "vqa", "--data", "coco", "--threshold", "0.3", "--epochs", "1"),
            *("--config", "plain.yaml", "--devices", devices, "--out", out),
            cwd=trained_workspace,
        )
        assert outcome.code == 0, outcome.err
        assert outcome.err.count("epoch 1/1") == 1
        weights.append(load_file(trained_workspace / out / "model.safetensors"))
    one, two = weights
    assert one.keys() == two.keys()
    for name, value in one.items():
        # A key's bias changes no attention: its gradient is what rounding leaves, and Adam makes steps of it.
        most = 1e-4 if name.endswith("key.bias") else 2e-5
        torch.testing.assert_close(two[name], value, rtol=0, atol=most, msg=name)


@pytest.mark.parametrize("name", dict.fromkeys(name.split()[0] for name in CHAIN))
def test_help_shows_an_example(name: str, tmp_path: Path) -> None:
    outcome = succeeds(name, "--help", cwd=tmp_path)
    assert f"Example: tbkin {name} " in outcome.out


@pytest.mark.parametrize("name", dict.fromkeys(name.split()[0] for name in CHAIN))
def test_settings_are_printed_before_there_is_any_data(name: str, tmp_path: Path) -> None:
    text = succeeds(name, "--seed", "5", "--print-config", cwd=tmp_path).out
    assert yaml.safe_load(text)["seed"] == 5
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    again = succeeds(name, "--config", "own.yaml", "--print-config", cwd=tmp_path).out
    assert again == text
    fails(name, "--seed", "-5", "--print-config", cwd=tmp_path, code=2, says="seed: expected")
    (tmp_path / "own.yaml").unlink()
    assert tbkin(name, cwd=tmp_path).code != 0, "what a command needs it needs as before"
    assert not (tmp_path / "features").exists()


def test_version_and_short_help(tmp_path: Path) -> None:
    assert succeeds("--version", cwd=tmp_path).out == f"tbkin {version('tbkin')}\n"
    assert succeeds("-h", cwd=tmp_path).out == succeeds("--help", cwd=tmp_path).out
    assert succeeds("finetune", "-h", cwd=tmp_path).out == succeeds("finetune", "--help", cwd=tmp_path).out


def test_help_lists_the_commands_in_order(tmp_path: Path) -> None:
    outcome = tbkin_process("--help", cwd=tmp_path)
    assert outcome.code == 0 and outcome.err == ""
    places = [outcome.out.index(f"  {name.split()[0]} ") for name in CHAIN]
    assert places == sorted(places)


def test_a_stage_is_its_function_however_its_module_was_imported() -> None:
    for name in ("extract_features", "build_graphs"):
        module = importlib.import_module(f"tbkin_core.stages.{name}")
        assert getattr(stages, name) is getattr(module, name)


def test_help_and_import_load_no_heavy_package(tmp_path: Path) -> None:
    program = """
import sys
import tbkin_core
from typer.testing import CliRunner
from tbkin_cli.main import app
for arguments in (["--help"], ["finetune", "--help"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
heavy = {"torch", "transformers", "spacy", "matplotlib", "skimage", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_terminal_without_greek_gets_the_table_all_the_same(chain: Path) -> None:
    outcome = tbkin_process("threshold-sweep", *CHAIN["threshold-sweep"], cwd=chain, PYTHONIOENCODING="ascii")
    assert outcome.code == 0, outcome.err
    assert "accuracy" in outcome.out


def test_flags_win_over_the_file_and_the_file_over_defaults(trained_workspace: Path) -> None:
    (trained_workspace / "settings.yaml").write_text("epochs: 2\nbatch-size: 24\nthreshold: 0.1\n")
    succeeds(
        *("finetune", "--task", "rec", "--data", "coco", "--config", "settings.yaml"),
        *("--epochs", "1", "--out", "here"),
        cwd=trained_workspace,
    )
    settings = json.loads((trained_workspace / "here/run.json").read_text())["settings"]
    assert (settings["epochs"], settings["batch_size"], settings["threshold"]) == (1, 24, 0.1)
    # What was written can be used again.
    again = tbkin("finetune", "--config", "here/config.yaml", "--out", "there", cwd=trained_workspace)
    assert again.code == 0, again.err
    one, two = (trained_workspace / name / "model.safetensors" for name in ("here", "there"))
    assert one.read_bytes() == two.read_bytes()


def test_predictions_of_a_finished_run_are_those_that_its_report_counts(chain: Path) -> None:
    from tbkin_core.boxes import box_iou_paired, xywh_to_xyxy
    from tbkin_core.datasets import open_dataset
    from tbkin_core.evaluation.vqa import vqa_accuracy

    before = (chain / "runs/finetune/rec/model.safetensors").read_bytes()
    dataset = open_dataset(chain / "coco")
    line = [*CHAIN["finetune"], "--init", "none", "--out", "runs/finetune/mine"]
    succeeds("finetune", *line, cwd=chain)
    values = json.loads(succeeds("finetune", *line, "--predict", "test", "--json", cwd=chain).out)
    assert any("finished already" in problem for problem in values["problems"])
    (file,) = values["predictions"]
    results = json.loads((chain / file).read_text())
    questions = dataset.questions("test")
    assert [entry["question_id"] for entry in results] == [item.question_id for item in questions]
    annotations = [
        {
            "question_id": item.question_id, "image_id": item.image_id, "question_type": item.question_type,
            "answer_type": item.answer_type, "answers": [{"answer": answer} for answer in item.answers],
        }
        for item in questions
    ]  # fmt: skip
    asked = [
        {"question_id": item.question_id, "image_id": item.image_id, "question": item.question}
        for item in questions
    ]
    reported = {row["split"]: row["accuracy"] for row in values["report"] if row["model"] == "this model"}
    assert vqa_accuracy(asked, annotations, results).overall == pytest.approx(reported["test"])

    line = [*CHAIN["finetune rec"], "--predict", "testA", "--predict", "testB", "--json"]
    values = json.loads(succeeds("finetune", *line, cwd=chain).out)
    reported = {row["split"]: row["accuracy"] for row in values["report"] if row["model"] == "this model"}
    for split, file in zip(("testA", "testB"), values["predictions"], strict=True):
        found = {entry["sent_id"]: entry["box"] for entry in json.loads((chain / file).read_text())}
        expressions = dataset.expressions(split)
        boxes = np.array([found[item.sent_id] for item in expressions], np.float32)
        overlap = box_iou_paired(boxes, xywh_to_xyxy([item.target_xywh for item in expressions]))
        assert 100 * np.mean(overlap > 0.5) == pytest.approx(reported[split])
    assert (chain / "runs/finetune/rec/model.safetensors").read_bytes() == before
    assert "no split 'nowhere'" in fails(
        "finetune", *CHAIN["finetune rec"], "--predict", "nowhere", cwd=chain, code=2
    )


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=12),
    st.integers(40, 120),
    st.integers(1, 4),
)
def test_a_narrow_terminal_breaks_no_number(widths: list[int], width: int, rows: int) -> None:
    cells = [[f"{row + 1}" + "7" * (size - 1) for size in widths] for row in range(rows)]
    names = [f"c{place}"[: max(size, 2)] for place, size in enumerate(widths)]
    text = io.StringIO()
    print_table(Console(width=width, file=text), Table("title", names, cells))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    blocks = [
        block.splitlines() for block in text.getvalue().removeprefix("title\n").strip("\n").split("\n\n")
    ]
    shown = [[re.split(" *[│┃] *", line.strip()) for line in block if "━" not in line] for block in blocks]
    found: dict[str, list[str]] = {}
    for block in shown:
        assert block[0][0] == names[0], "each begins with the first column"
        for column in list(zip(*block, strict=True))[0 if block is shown[0] else 1 :]:
            found[column[0]] = list(column[1:])
    assert found == {name: [row[place] for row in cells] for place, name in enumerate(names)}
