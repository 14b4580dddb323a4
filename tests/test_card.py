"""The model card that `finetune` writes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from command_line import succeeds

from tbkin_core.evaluation.card import is_card

VQA, REC = "runs/finetune/vqa-relative-0.3", "runs/finetune/rec"


@pytest.mark.parametrize("run", [VQA, REC])
def test_a_model_comes_with_a_card_of_its_run(trained: Path, run: str) -> None:
    text = (trained / run / "README.md").read_text(encoding="utf-8")
    assert is_card(trained / run / "README.md") and f"# {Path(run).name}\n" in text
    results = json.loads((trained / run / "run.json").read_text())["results"]
    for row in results["report"]:
        numbers = f"{row['accuracy']:.1f} | {row['accuracy_low']:.1f} to {row['accuracy_high']:.1f}"
        assert f"| {row['split']} | {row['model']} | {numbers} | {row['n']} |" in text
    assert ("relative τ = 0.3" in text) == (run == VQA) and ("dense" in text) == (run == REC)
    assert f"{results['training_samples']}" in text and "`builtin`" in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_command_of_a_card_is_that_of_the_run(trained_workspace: Path) -> None:
    place = trained_workspace
    text = (place / VQA / "README.md").read_text(encoding="utf-8")
    command = next(line for line in text.splitlines() if line.startswith("    tbkin finetune"))
    before = (place / VQA / "model.safetensors").read_bytes()
    succeeds(*shlex.split(command)[1:], cwd=place)
    assert (place / VQA / "model.safetensors").read_bytes() == before, "it finds the run finished"
    assert not (place / f"{VQA}-2").exists()
    use = next(line for line in text.splitlines() if line.startswith("    tbkin visualize"))
    words = ["img.jpg" if word == "photo.jpg" else word for word in shlex.split(use)[1:]]
    words = ["what color is the star?" if word.startswith("what") else word for word in words]
    succeeds(*words, cwd=place)


def test_a_card_is_made_anew_and_a_readme_of_somebodys_stays(trained_workspace: Path) -> None:
    place = trained_workspace
    line = ("finetune", "--task", "rec", "--data", "coco", "--epochs", "0", "--devices", "cpu", "--out", REC)
    succeeds(*line, "--overwrite", cwd=place)
    text = (place / REC / "README.md").read_text(encoding="utf-8")
    assert "--epochs 0" in text and "# rec\n" in text and ".tbkin" not in text
    (place / REC / "README.md").write_text("mine")
    succeeds(*line, "--overwrite", cwd=place)
    assert (place / REC / "README.md").read_text() == "mine"
