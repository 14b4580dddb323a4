"""The models that come with tbkin: when they are taken, what is said of them, and what they know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import fails, files_below, succeeds
from safetensors import safe_open

from tbkin_core import shipped
from tbkin_core.errors import CheckpointError
from tbkin_core.features.extractors import LITE_PACKAGES
from tbkin_core.modeling.checkpoint import load_init, load_model, load_model_config
from tbkin_core.runs import find_checkpoint
from tbkin_core.shipped import located, shipped_for, shipped_model, shipped_models
from tbkin_core.support.files import write_json

NAME, ABOUT = "scene-answers", "it knows drawn scenes"
ASK = ("visualize", "img.jpg", "what color is the circle?")


@pytest.fixture
def ships(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place of the models that come with tbkin, which is one of drawn scenes."""
    place = tmp_path / "models"
    copied = shutil.copytree(trained / "runs/finetune/vqa-relative-0.3", place / NAME)
    for file in copied.iterdir():
        if file.name not in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    write_json(place / NAME / "about.json", {"task": "vqa", "about": ABOUT})
    monkeypatch.setattr(shipped, "_models", lambda: place)
    shipped_models.cache_clear()
    yield place
    shipped_models.cache_clear()


def result(*arguments: str | Path, cwd: Path) -> dict[str, Any]:
    return json.loads(succeeds(*arguments, "--json", cwd=cwd).out)


def test_where_nothing_is_trained_the_model_that_ships_answers(ships: Path, workspace: Path) -> None:
    before = files_below(ships)
    values = result(*ASK, cwd=workspace)
    assert values["checkpoint"] == NAME
    assert f"{NAME} comes with tbkin: {ABOUT}" in values["problems"]
    named = result(*ASK, "--checkpoint", NAME, cwd=workspace)
    assert named["answers"] == values["answers"]
    copied = shutil.copytree(ships / NAME, workspace / "mine")
    own = result(*ASK, "--checkpoint", copied, cwd=workspace)
    assert own["answers"] == values["answers"] and not any(ABOUT in note for note in own["problems"])
    assert files_below(ships) == before, "nothing is written where it is installed"


def test_without_any_model_the_command_that_makes_one_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_models", lambda: workspace / "nothing")
    shipped_models.cache_clear()
    try:
        fails(*ASK, cwd=workspace, code=1, says="tbkin finetune --task vqa")
        fails("visualize", "coco", "a dog", cwd=workspace, code=1, says="tbkin finetune --task retrieval")
    finally:
        shipped_models.cache_clear()
    assert not (workspace / "runs").exists()


def test_own_models_go_first(ships: Path, trained_workspace: Path) -> None:
    place = trained_workspace
    assert result(*ASK, cwd=place)["checkpoint"] == "runs/finetune/vqa-relative-0.3"
    shutil.rmtree(place / "runs/finetune/vqa-relative-0.3")
    values = result(*ASK, cwd=place)
    assert values["checkpoint"] == "runs/finetune/rec"
    assert any(f"`--checkpoint {NAME}`" in note for note in values["problems"]), "but one is better suited"
    phrase = result("visualize", "img.jpg", "the red circle", cwd=place)
    assert not any(NAME in note for note in phrase["problems"])
    shutil.copytree(place / "runs/finetune/rec", place / NAME)
    hidden = result("visualize", "img.jpg", "the red circle", "--checkpoint", NAME, cwd=place)
    assert hidden["task"] == "rec", "a directory of that name is meant"


def test_training_begins_from_the_model_that_ships_where_features_fit(ships: Path, workspace: Path) -> None:
    succeeds("extract-features", "coco", "--workers", "0", cwd=workspace)
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1", "--devices", "cpu")
    values = result(*line, "--out", "auto", cwd=workspace)
    assert values["initialised_from"] == NAME
    assert result(*line, "--out", "auto", cwd=workspace)["initialised_from"] == NAME, "known again"
    named = result(*line, "--init", NAME, "--out", "named", cwd=workspace)
    assert named["report"] == values["report"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "_models", lambda: workspace / "nothing")
        shipped_models.cache_clear()
        values = result(*line, "--out", "none", cwd=workspace)
    shipped_models.cache_clear()
    assert values["initialised_from"] != NAME
    config = json.loads((ships / NAME / "config.json").read_text())
    config["extractor"]["extractor"] = "photo"
    write_json(ships / NAME / "config.json", config)
    assert result(*line, "--out", "other", cwd=workspace)["initialised_from"] != NAME


def test_answers_keep_their_rows_and_new_ones_begin_at_random(ships: Path, workspace: Path) -> None:
    succeeds("extract-features", "coco", "--workers", "0", cwd=workspace)
    config = load_model_config(Path(NAME))
    own = workspace / "own"
    own.mkdir()
    rows = (("img.jpg", "red", "train"), ("img.jpg", "a zebra", "train"), ("other.jpg", "red", "val"))
    asked = [
        {"image": image, "question": "what is it?", "answer": answer, "split": split}
        for image, answer, split in rows
    ]
    shutil.copy(workspace / "img.jpg", own)
    shutil.copy(sorted((workspace / "coco/train").glob("*.jpg"))[0], own / "other.jpg")
    (own / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    succeeds("extract-features", "own", "--extractor", "builtin", "--workers", "0", cwd=workspace)
    line = ("finetune", "--task", "vqa", "--data", "own", "--epochs", "0", "--devices", "cpu")
    assert result(*line, "--out", "run", cwd=workspace)["initialised_from"] == NAME
    model, tokenizer = load_model(workspace / "run", "vqa")
    before, _ = load_init(NAME)
    found = {answer: model.answer_decoder.weight[row] for row, answer in enumerate(model.config.answers())}
    known = config.answers().index("red")
    torch.testing.assert_close(found["red"], before["answer_decoder.weight"][known])
    assert set(found) == {"red", "zebra"} and not (found["zebra"] == 0).all()
    words = model.get_input_embeddings().weight
    assert len(words) == tokenizer.get_vocab_size() >= config.vocab_size
    torch.testing.assert_close(
        words[: config.vocab_size], before["tbkin.text_embeddings.word_embeddings.weight"]
    )


def test_a_run_called_like_it_does_not_hide_it_before_there_is_a_model(ships: Path, workspace: Path) -> None:
    succeeds("extract-features", "coco", "--workers", "0", cwd=workspace)
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "0", "--devices", "cpu")
    fails(*line, "--out", NAME, cwd=workspace, code=2, says=f"{NAME} is the name of the model")
    (workspace / NAME).mkdir()
    assert result(*line, "--out", "run", cwd=workspace)["initialised_from"] == NAME
    (ships / ".notes").mkdir()
    shipped_models.cache_clear()
    assert [model.name for model in shipped_models()] == [NAME], "what else lies there is no model"


def test_a_sweep_of_it_needs_no_run_and_refits_do_without(ships: Path, workspace: Path) -> None:
    succeeds("extract-features", "coco", "--workers", "0", cwd=workspace)
    line = ("threshold-sweep", "--task", "vqa", "--data", "coco", "--thresholds", "0,0.3")
    values = result(*line, cwd=workspace)
    assert values["checkpoint"] == NAME and len(values["rows"]) == 2
    refit = result(*line, "--refit", "--epochs", "0", "--out", "refit", cwd=workspace)
    assert any("no checkpoint for vqa here" in note for note in refit["problems"])


def test_what_is_damaged_or_has_no_such_name_is_said(ships: Path, workspace: Path) -> None:
    fails(*ASK, "--checkpoint", "scene-answer", cwd=workspace, code=1, says="there is no such checkpoint")
    assert shipped_for("rec") is None and shipped_model(None) is None
    assert located(Path("runs/x")) == Path("runs/x")
    (ships / NAME / "about.json").write_text('{"task": "vqa"}')
    shipped_models.cache_clear()
    with pytest.raises(CheckpointError, match="about"):
        shipped_models()


# ---- those that really come with it -------------------------------------------------------------

MODELS = {"photo-answers": "vqa", "photo-search": "retrieval"}


@pytest.mark.parametrize(("name", "task"), MODELS.items())
def test_models_are_small_and_whole_and_have_a_card(name: str, task: str) -> None:
    assert {model.name: model.task for model in shipped_models()} == MODELS
    place = located(Path(name))
    file = place / "model.safetensors"
    assert file.stat().st_size <= 6_000_000
    with safe_open(file, framework="pt") as opened:
        assert {opened.get_slice(key).get_dtype() for key in opened.keys()} == {"F16"}  # noqa: SIM118
    model, tokenizer = load_model(Path(name), task)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}, "it computes in single"
    assert "store" not in (model.config.extractor or {})
    if task == "vqa":
        size = model.config.region_feature_size
        inputs = {
            "input_ids": torch.tensor([tokenizer.encode("is there a dog?").ids]),
            "region_features": torch.randn(1, 3, size),
            "region_geometry": torch.tensor(
                [[[0, 0, 1, 1, 1.0], [0, 0, 0.5, 1, 0.5], [0, 0, 0.5, 0.5, 0.25]]]
            ),
            "region_mask": torch.ones(1, 3, dtype=torch.bool),
        }
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            exact = model(**inputs).vqa_logits.softmax(-1)
            half = model.to(torch.bfloat16)(**inputs).vqa_logits.float().softmax(-1)
        torch.testing.assert_close(half, exact, atol=0.05, rtol=0.1)
    card = (place / "README.md").read_text()
    for part in ("**Data.**", "**Licence.**", "**How good it is.**", "**Recipe.**", "this model |"):
        assert part in card, part
    about = shipped_model(name)
    assert about is not None and "%" in about.about
    assert str(Path.home()) not in card + (place / "config.json").read_text()


def test_in_an_empty_directory_photos_are_answered_about_and_found(tmp_path: Path, shared_data: Path) -> None:
    for package in LITE_PACKAGES:
        pytest.importorskip(package)
    photos = tmp_path / "photos"
    photos.mkdir()
    source = shared_data / "flickr8k/Flicker8k_Dataset"
    names = (shared_data / "flickr8k/Flickr8k_text/Flickr_8k.devImages.txt").read_text().split()[:24]
    for name in names:
        shutil.copy(source / name, photos)
    captions = dict.fromkeys(names, "")
    for line in (shared_data / "flickr8k/Flickr8k_text/Flickr8k.token.txt").read_text().splitlines():
        name, _, text = line.partition("\t")
        if name.partition("#")[0] in captions:
            captions[name.partition("#")[0]] += f" {text.lower()}"
    dogs = [name for name in names if " dog" in captions[name]]
    assert len(dogs) > 3
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert find_checkpoint(["vqa"], prefer="vqa") == Path("photo-answers")
    asked = [photos / name for name in dogs]
    values = result("visualize", *asked, "is there a dog?", cwd=tmp_path)
    answers = [image["answers"][0]["answer"] for image in values["images"]]
    assert answers.count("yes") > 0.7 * len(answers), answers
    assert any("photo-answers comes with tbkin" in note for note in values["problems"])
    one = result("visualize", asked[0], "what color is the dog?", cwd=tmp_path)
    colors = {"black", "brown", "white", "tan", "black and white", "brown and white", "yellow", "gray", "red"}
    assert one["answers"][0]["answer"] in colors and (tmp_path / one["figure"]).exists()
    found = result("visualize", photos, "a dog", "--top", "4", cwd=tmp_path)
    assert found["checkpoint"] == "photo-search"
    hits = [Path(match["image"]).name in dogs for match in found["matches"]]
    assert sum(hits) >= 3, found["matches"]
