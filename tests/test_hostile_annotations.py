"""Files from elsewhere that are made to harm: annotations, settings, names, models that bring a program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import fails

# ---- models that bring a program ----------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory whose program leaves a file behind; whoever is asked about it says yes."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    place = tmp_path / "model"
    place.mkdir()
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    (place / "own.py").write_text(f"{mark}\nfrom transformers import PreTrainedConfig as Config\n")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForObjectDetection", "AutoImageProcessor", "AutoBackbone")
    own = {"auto_map": {**dict.fromkeys(kinds, "own.Config"), "AutoTokenizer": ["own.Config", "own.Config"]}}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (place / name).write_text(json.dumps({"model_type": "of-its-own", **own}))
    return place


@pytest.mark.parametrize(
    "command",
    [
        "extract-features coco --workers 0 --extractor",
        "extract-features coco --workers 0 --backbone",
        "build-graphs coco --similarity encoder --similarity-model",
        "pretrain coco --init",
    ],
)
def test_no_program_of_a_model_is_run(
    trained: Path, tmp_path: Path, program: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "coco"
    shutil.copytree(trained / "coco", data)
    words = command.replace("coco", str(data)).split()
    says = ("auto_map", "tbkin never does")
    fails(*words, program, "--out", tmp_path / "out", cwd=tmp_path, code=1, says=says)
    assert not (tmp_path / "ran").exists()
    assert "?" not in capsys.readouterr().out


def test_a_known_kind_of_model_loads_without_its_program(program: Path, tmp_path: Path) -> None:
    from tiny_models import vit
    from transformers import AutoModel

    from tbkin_core.support.pretrained import load_pretrained

    brought = json.loads((program / "config.json").read_text())["auto_map"]
    vit(program)
    config = json.loads((program / "config.json").read_text())
    (program / "config.json").write_text(json.dumps(config | {"auto_map": brought}))
    assert type(load_pretrained(AutoModel, str(program))).__name__ == "ViTModel"
    assert not (tmp_path / "ran").exists()
