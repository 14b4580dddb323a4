"""What people get wrong: each gets one clear message, a nonzero exit code, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from command_line import fails, files_below, leftovers, succeeds, tbkin
from PIL import Image

VQA = "runs/finetune/vqa-relative-0.3"
REC = "runs/finetune/rec"
TUNE = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1")


@pytest.fixture(scope="module")
def shop(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained workspace for commands that fail and so must change nothing; checked at the end."""
    place = tmp_path_factory.mktemp("shop") / "workspace"
    shutil.copytree(trained, place)
    return place


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that takes `shop`: what was there is there, and no temporary file is."""
    if "shop" not in request.fixturenames:
        yield
        return
    place: Path = request.getfixturevalue("shop")
    before = files_below(place)
    yield
    after = files_below(place)
    assert {name for name in before if after.get(name) != before[name]} == set()
    assert leftovers(place) == []


def save_image(path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


# ---- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["extract-features", "build-graphs", "pretrain", "finetune"])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("nowhere", "no such directory"),
        ("img.jpg", "a file, not a dataset directory"),
        ("empty", "is empty"),
        ("odd", "no dataset recognised"),
    ],
)
def test_a_place_without_a_dataset(world: Path, tmp_path: Path, command: str, place: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").write_text("milk, eggs")
    shutil.copy(world / "img.jpg", tmp_path)
    before = files_below(tmp_path)
    arguments = ("--task", "vqa", "--data", place) if command == "finetune" else (place,)
    fails(command, *arguments, cwd=tmp_path, code=1, says=(place, says))
    assert files_below(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_stages_out_of_order(workspace: Path) -> None:
    fails("pretrain", "coco", cwd=workspace, code=1, says="tbkin extract-features coco")
    fails("finetune", "--task", "vqa", cwd=workspace, code=1, says="tbkin extract-features coco")
    fails("threshold-sweep", "--task", "rec", cwd=workspace, code=1, says="tbkin finetune --task rec")
    succeeds("extract-features", "coco", "--workers", "0", cwd=workspace)
    fails("pretrain", "coco", cwd=workspace, code=1, says="tbkin build-graphs coco")
    assert leftovers(workspace) == []


def test_photos_without_texts(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    save_image(tmp_path / "photos" / "one.jpg", (64, 48))
    fails("build-graphs", "photos", cwd=tmp_path, code=1, says=("photos", "JSONL"))
    succeeds("extract-features", "photos", "--workers", "0", cwd=tmp_path)
    before = files_below(tmp_path)
    says = ("no VQA questions", '"question": "what color is the dog?", "answer": "brown"')
    fails("finetune", "--task", "vqa", "--data", "photos", cwd=tmp_path, code=1, says=says)
    fails(
        "finetune",
        "--task",
        "rec",
        "--data",
        "photos",
        cwd=tmp_path,
        code=1,
        says=("refs(unc).p", '"text": "the dog on the left"'),
    )
    assert files_below(tmp_path) == before


def test_graphs_over_other_features(trained_workspace: Path) -> None:
    succeeds(
        *("extract-features", "coco", "--max-regions", "9", "--workers", "0", "--overwrite"),
        cwd=trained_workspace,
    )
    arguments = ("pretrain", "coco", "--epochs", "1", "--out", "again")
    fails(*arguments, cwd=trained_workspace, code=1, says="tbkin build-graphs coco --overwrite")
    fails("build-graphs", "coco", cwd=trained_workspace, code=1, says="--overwrite")
    succeeds("build-graphs", "coco", "--overwrite", cwd=trained_workspace)
    succeeds(*arguments, cwd=trained_workspace)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--export", "coco"], "coco is a directory"),
        (["--export", "notes.txt"], "notes.txt exists and is no earlier result"),
        (["--export", "CAPTIONS"], "would be read as an annotation file"),
        (["--export", "elsewhere/store.json"], "is a file of the store itself"),
        (["--export", "/dev/null"], "is a device or pipe"),
        (["--networkx", "notes"], "notes is a file, expected a directory"),
        (["--networkx", "notes.txt"], "expected a .graphml or .json file"),
        (["--networkx", "coco"], "holds other files"),
        (["--networkx", "."], "holds the current directory"),
        (["--networkx", "full.graphml"], "full.graphml is a directory"),
        (["--networkx", "elsewhere/priors.json"], "is a file of the store itself"),
        (["--networkx", "new.json", "--export", "x/../new.json"], "is also where --export goes"),
        (["--networkx", "new", "--export", "new/graphs.jsonl"], "is also where --export goes"),
        (["--export", "elsewhere"], "is a file of the store itself"),
        (["--export", "elsewhere/shard-00000.safetensors"], "is a file of the store itself"),
        (["--networkx", "elsewhere"], "is the store itself"),
        (["--networkx", "theirs.graphml"], "is no earlier result"),
        (["--networkx", "theirs.json"], "is no earlier result"),
        (["--networkx", "numbered"], "holds other files"),
        (["--export", "theirs.jsonl"], "is no earlier result"),
        (["--export", "coco/annotations/captions_mine.json"], "would be read as an annotation file"),
        (["--networkx", "coco/objects.json"], "would be read as an annotation file"),
    ],
)
def test_what_an_export_would_destroy_is_refused_before_any_work(
    shop: Path, options: list[str], says: str
) -> None:
    for name in ("notes", "notes.txt"):
        (shop / name).write_text("mine")
    (shop / "full.graphml").mkdir(exist_ok=True)
    theirs = networkx.DiGraph([("a", "b")], name="theirs", text="mine")
    networkx.write_graphml(theirs, shop / "theirs.graphml")
    (shop / "theirs.json").write_text(json.dumps(networkx.node_link_data(theirs, edges="edges")))
    (shop / "theirs.jsonl").write_text('{"text_id": 1, "image_id": 2, "text": "a", "cross_edges": []}\n')
    (shop / "numbered").mkdir(exist_ok=True)
    (shop / "numbered" / "00000000-x.json").write_text("mine")
    captions = next(iter(sorted((shop / "coco").rglob("captions_*.json"))))
    options = [str(captions) if option == "CAPTIONS" else option for option in options]
    before = files_below(shop)
    fails("build-graphs", "coco", *options, "--out", "elsewhere", cwd=shop, code=2, says=says)
    assert files_below(shop) == before
    assert not (shop / "elsewhere").exists()
    assert not (shop / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["build-graphs", "coco", "--out", "coco/features", "--overwrite"], 1, "holds features, not graphs"),
        (
            ["extract-features", "coco", "--out", "coco/graphs", "--overwrite"],
            1,
            "holds graphs, not features",
        ),
        (["build-graphs", "coco", "--overwrite", "--parser", "nope"], 1, "'nope' cannot be loaded"),
        (["build-graphs", "coco", "--overwrite", "--similarity", "vectors"], 1, "cannot be loaded"),
        (["build-graphs", "coco", "--out", "coco"], 2, "is the dataset itself"),
        (["extract-features", "coco", "--out", "coco/."], 2, "is the dataset itself"),
        (["build-graphs", "coco", "--out="], 2, "one is empty"),
    ],
)
def test_what_cannot_be_done_costs_nothing_that_is_there(
    trained_workspace: Path, arguments: list[str], code: int, says: str
) -> None:
    before = files_below(trained_workspace)
    fails(*arguments, cwd=trained_workspace, code=code, says=says)
    assert files_below(trained_workspace) == before


def test_an_export_in_the_dataset_is_no_input(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "captions.jsonl").write_text(json.dumps({"image": "a.jpg", "text": "a dog on a sofa"}) + "\n")
    for made in (1, 0):  # the second time it takes the place of the first
        options = ["--export", "data/graphs.jsonl", "--networkx", "data/graphs.json", "--json"]
        result = json.loads(succeeds("build-graphs", "data", *options, cwd=tmp_path).out)
        assert (result["captions"], result["made"]) == (1, made)
    assert len((data / "graphs.jsonl").read_text().splitlines()) == 1
    # However long the lines are: many people meet many annotated boxes of people.
    (data / "captions.jsonl").unlink()
    shutil.rmtree(data / "graphs")
    (data / "annotations").mkdir()
    image = {"id": 1, "file_name": "a.jpg", "width": 99, "height": 99}
    text = "A man, a woman, a boy, a girl and some people wait beside a man with another woman."
    boxes = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [number, 1, 9, 9], "area": 81}
        for number in range(30)
    ]
    for name, items in (("captions", [{"id": 1, "image_id": 1, "caption": text}]), ("instances", boxes)):
        (data / "annotations" / f"{name}_val.json").write_text(
            json.dumps({"images": [image], "annotations": items, "categories": [{"id": 1, "name": "person"}]})
        )
    for _ in range(2):
        options = ["--export", "data/graphs.jsonl", "--json"]
        assert json.loads(succeeds("build-graphs", "data", *options, cwd=tmp_path).out)["captions"] == 1
    assert (data / "graphs.jsonl").read_bytes()[-4096:].count(b'"cross_edges"') == 0


def test_an_empty_argument_is_not_the_current_directory(shop: Path) -> None:
    before = files_below(shop)
    for command in ("build-graphs", "extract-features", "pretrain"):
        fails(command, "", cwd=shop, code=2, says="one is empty")
    fails("build-graphs", "coco", "--out", "", cwd=shop, code=2, says="one is empty")
    assert files_below(shop) == before


@pytest.mark.parametrize("name", ["RANK", "LOCAL_WORLD_SIZE"])
def test_an_environment_without_numbers_is_named(
    shop: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "first")
    fails("build-graphs", "coco", "--out", "elsewhere", cwd=shop, code=2, says=f"{name}=first is no number")


def test_graphs_without_any_regions_say_how_to_get_some(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.jpg", "text": "a dog"}) + "\n")
    outcome = succeeds("build-graphs", ".", cwd=tmp_path)
    assert "no annotated boxes: these graphs have no regions" in " ".join((outcome.out + outcome.err).split())


def test_graphs_over_unfinished_features_say_so(trained_workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_workspace / "coco" / "features", tmp_path / "features")
    manifest = tmp_path / "features" / "store.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "complete": False}))
    place = str(tmp_path / "features")
    result = succeeds(
        "build-graphs", "coco", "--features", place, "--out", str(tmp_path / "graphs"), cwd=trained_workspace
    )
    assert "interrupted" in " ".join((result.out + result.err).split())


def test_features_of_other_settings_are_not_mixed(shop: Path) -> None:
    message = fails("extract-features", "coco", "--max-regions", "7", cwd=shop, code=1, says="max_regions")
    assert "--overwrite" in message


# ---- images and features ------------------------------------------------------------------------


def test_broken_images_are_skipped_counted_and_named(workspace: Path) -> None:
    photos = workspace / "photos"
    photos.mkdir()
    for number, file in enumerate(sorted((workspace / "coco/train").glob("*.jpg"))[:3]):
        shutil.copy(file, photos / f"good_{number}.jpg")
    whole = (photos / "good_0.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "page.jpg").write_text("<html>404</html>")
    save_image(photos / "dot.png", (1, 1))
    save_image(photos / "strip.png", (20_000, 20))
    outcome = succeeds("extract-features", "photos", "--workers", "0", cwd=workspace)
    for name in ("truncated.jpg", "empty.jpg", "page.jpg"):
        assert f"{name}: " in outcome.out
    values = json.loads(succeeds("extract-features", "photos", "--json", cwd=workspace).out)
    assert (values["images"], values["made"], values["skipped"]) == (5, 0, 3)


def test_no_readable_image(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "page.jpg").write_text("<html>404</html>")
    fails("extract-features", "photos", cwd=tmp_path, code=1, says=("none of 1 images", "page.jpg"))
    assert leftovers(tmp_path) == []
    save_image(tmp_path / "photos" / "good.jpg", (64, 48))
    succeeds("extract-features", "photos", cwd=tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000)])
@pytest.mark.parametrize("checkpoint", [VQA, REC])
def test_odd_image_sizes_can_be_looked_at(
    shop: Path, tmp_path: Path, size: tuple[int, int], checkpoint: str
) -> None:
    save_image(tmp_path / "odd.png", size)
    arguments = ("visualize", tmp_path / "odd.png", "the star", "--checkpoint", checkpoint)
    succeeds(*arguments, "--out", tmp_path / "figures", cwd=shop)
    with Image.open(tmp_path / "figures" / "odd-the-star.png") as figure:
        figure.load()


def bottom_up(path: Path, **changes: Any) -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([[0, 0, 30, 20], [5, 5, 60, 40]], np.float32)
    content = {"x": generator.random((2, 16), np.float32), "bbox": boxes, "image_h": 48, "image_w": 64}
    np.savez(path, **{**content, **changes})


class Trap:
    """Unpickling it makes a directory: a program that runs code of a data file would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_broken_npz_files_are_skipped_and_run_no_code(tmp_path: Path) -> None:
    features = tmp_path / "data" / "features_npz"
    features.mkdir(parents=True)
    for number in range(3):
        bottom_up(features / f"image_{number}.npz")
    whole = (features / "image_0.npz").read_bytes()
    (features / "image_7.npz").write_bytes(whole[: len(whole) // 2])
    trap = np.array([Trap(tmp_path / "trapped")], dtype=object)
    bottom_up(features / "image_8.npz", x=trap)
    bottom_up(features / "image_9.npz", x=np.full((2, 16), np.nan, np.float32))
    outcome = succeeds("extract-features", "data", "--out", "store", "--json", cwd=tmp_path)
    values = json.loads(outcome.out)
    assert values["images"] == 3
    for number in (7, 8, 9):
        assert any(
            f"image_{number}" in problem or f"image {number}" in problem for problem in values["problems"]
        )
    assert not (tmp_path / "trapped").exists()


def test_a_refs_pickle_runs_no_code(trained_workspace: Path, tmp_path: Path) -> None:
    file = trained_workspace / "coco/refcoco/refs(unc).p"
    file.write_bytes(pickle.dumps([Trap(tmp_path / "trapped")]))
    outcome = tbkin("finetune", "--task", "rec", "--data", "coco", "--seed", "1", cwd=trained_workspace)
    assert outcome.code == 1
    assert "refs(unc).p" in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "trapped").exists()


# ---- texts --------------------------------------------------------------------------------------


def test_captions_of_no_word_and_of_500(trained_workspace: Path) -> None:
    file = trained_workspace / "coco/annotations/captions_train.json"
    content = json.loads(file.read_text())
    texts = ["", "   ", "red circle " * 250, "...", "🤖", "一只红色的猫", "a\tred\ncircle\x00"]
    for entry, text in zip(content["annotations"], texts, strict=False):
        entry["caption"] = text
    file.write_text(json.dumps(content))
    outcome = succeeds("build-graphs", "coco", "--overwrite", "--json", cwd=trained_workspace)
    values = json.loads(outcome.out)
    assert values["captions"] in range(60 - 4, 61)
    assert any("captions_train.json" in problem for problem in values["problems"])
    outcome = succeeds("pretrain", "coco", "--epochs", "1", "--out", "again", "--json", cwd=trained_workspace)
    assert any("cut to 32 tokens" in problem for problem in json.loads(outcome.out)["problems"])


@pytest.mark.parametrize("question", ["🤖🤖", "星星是什么颜色"])
def test_a_question_without_a_known_word(shop: Path, question: str) -> None:
    arguments = ("visualize", "img.jpg", question, "--checkpoint", VQA)
    fails(*arguments, cwd=shop, code=1, says=("none of its words is known", question))


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(shop: Path, question: str) -> None:
    fails("visualize", "img.jpg", question, cwd=shop, code=2, says="question: is empty")


def test_a_question_is_no_path_and_no_markup(shop: Path, tmp_path: Path) -> None:
    question = "/../../what [bold]color[/bold] is $HOME " + "and what " * 300
    arguments = ("visualize", "img.jpg", question, "--checkpoint", VQA, "--out", tmp_path / "figures")
    outcome = succeeds(*arguments, cwd=shop)
    assert [path.parent for path in tmp_path.rglob("*.png")] == [tmp_path / "figures"]
    assert "[bold]" in outcome.out


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("finetune", "task"),
        ("finetune --task captioning", "one of vqa, rec"),
        ("finetune --task vqa --threshold 1.5", "from 0 to 1"),
        ("finetune --task vqa --threshold -0.1", "from 0 to 1"),
        ("finetune --task vqa --threshold nan", "finite"),
        ("finetune --task vqa --threshold high", "--threshold"),
        ("finetune --task vqa --threshold 2.5 --selection topk", "whole number"),
        ("finetune --task vqa --selection relativ", "relative"),
        ("finetune --task vqa --threshold 0.3 --threshold-layers 7", "threshold_layers"),
        ("finetune --task vqa --threshold-layers -1", "threshold_layers: expected at least 0, got -1"),
        ("finetune --task vqa --threshold-scope text", "threshold_scope"),
        ("finetune --task vqa --devices cuda:7", "cuda:7"),
        ("finetune --task vqa --devices gpu", "gpu"),
        ("finetune --task vqa --devices cpu:0", "cpu:N"),
        ("finetune --task vqa --epochs -1", "epochs"),
        ("finetune --task vqa --batch-size 0", "batch_size"),
        ("finetune --task vqa --learning-rate nan", "learning_rate"),
        ("finetune --task vqa --max-text-tokens 5000", "max_text_tokens"),
        ("finetune --task vqa --precision fp8", "fp32"),
        ("finetune --task vqa --size huge", "tiny"),
        ("finetune --task vqa --seed -1", "seed"),
        ("finetune --task vqa --seed 99999999999999999999999", "seed"),
        ("finetune --task rec --dataset refcocoz", "refcoco"),
        ("finetune --task vqa --taks rec", "--task"),
        ("extract-features coco --devices gpu", "gpu"),
        ("extract-features coco --extractor butd", "builtin"),
        ("extract-features coco --extractor import", "npz"),
        ("extract-features coco --max-regions 0", "max_regions"),
        ("build-graphs coco --min-similarity 2", "min_similarity"),
        ("pretrain", "tbkin pretrain coco/"),
        ("threshold-sweep --task vqa --split nonsense", "val, test"),
        ("threshold-sweep --task vqa --split train", "val, test"),
        ("threshold-sweep --task vqa --thresholds 0.5:0.1:0.1", "start:stop:step"),
        ("threshold-sweep --task vqa --thresholds some", "start:stop:step"),
        ("threshold-sweep --task vqa --thresholds 0:2:0.5", "from 0 to 1"),
        ("threshold-sweep --task vqa --thresholds 0.3,0.1", "increasing"),
        ("visualize img.jpg what --threshold 2", "from 0 to 1"),
        ("visualize img.jpg what --devices cuda:7", "cuda:7"),
        ("visualize img.jpg what --top 0", "top"),
        ("visualize img.jpg", "question: is empty"),
        ("visualize", "images: none is given"),
        ("look img.jpg", "look"),
    ],
)
def test_settings_are_refused(shop: Path, arguments: str, says: str) -> None:
    fails(*arguments.split(), cwd=shop, code=2, says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("epoch: 3", "did you mean epochs?"),
        ("batch_size: three", "batch_size"),
        ("- epochs", "mapping"),
        ("epochs: 1: 2", "not valid YAML"),
        ("dropout: 2\nepochs: -1\nwarmap: 3", "did you mean warmup?"),
        ("threshold: yes", "threshold"),
        ("threshold: 0.5\nepochs: 1\nthreshold: 0", "threshold is given twice, in line 1 and in line 3"),
        ("max-regions: 4\nmax_regions: 8", "max_regions is given twice, in line 1 and in line 2"),
        ("masking: {base: 0.1, base: 0.2}", "base is given twice, in line 1 and in line 1"),
        ("!!python/object/apply:os.mkdir [trapped]", "not valid YAML"),
    ],
)
def test_settings_files_are_refused(shop: Path, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "settings.yaml").write_text(content)
    message = fails(*TUNE, "--config", tmp_path / "settings.yaml", cwd=shop, code=2, says=says)
    assert "settings.yaml" in message
    assert not (shop / "trapped").exists()


def test_several_mistakes_come_in_one_message(shop: Path) -> None:
    message = fails(*TUNE, "--size", "huge", "--batch-size", "0", cwd=shop, code=2)
    assert "size" in message and "batch_size" in message


def test_a_missing_settings_file(shop: Path) -> None:
    fails(*TUNE, "--config", "none.yaml", cwd=shop, code=2, says="none.yaml")
    fails(*TUNE, "--config", ".", cwd=shop, code=2, says="is no file")


# ---- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_of_another_task(shop: Path) -> None:
    sweep = ("threshold-sweep", "--task", "vqa", "--checkpoint")
    fails(*sweep, REC, cwd=shop, code=1, says="tbkin finetune --task vqa")
    fails(*sweep, "runs/pretrain", cwd=shop, code=1, says="expected vqa")


@pytest.mark.parametrize("place", ["nowhere", "coco", "img.jpg"])
def test_a_place_without_a_checkpoint(shop: Path, place: str) -> None:
    fails("visualize", "img.jpg", "what?", "--checkpoint", place, cwd=shop, code=1, says=place)
    fails("threshold-sweep", "--task", "vqa", "--checkpoint", place, cwd=shop, code=1, says=place)


def _only_config(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        if file.name != "config.json":
            file.unlink()


def _cut(checkpoint: Path) -> None:
    weights = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


def _no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "tbkin", ')


@pytest.mark.parametrize("damage", [_only_config, _cut, _no_tokenizer, _no_config])
def test_half_written_checkpoints(trained: Path, shop: Path, tmp_path: Path, damage: Any) -> None:
    place = tmp_path / "half"
    shutil.copytree(trained / VQA, place)
    damage(place)
    fails("visualize", "img.jpg", "what?", "--checkpoint", place, cwd=shop, code=1, says="half")
    fails("threshold-sweep", "--task", "vqa", "--checkpoint", place, cwd=shop, code=1, says="half")
    out = tmp_path / "out"
    fails(*TUNE, "--init", place, "--out", out, cwd=shop, code=1, says="half")


def test_weights_that_are_missing_are_not_made_up(trained: Path, shop: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = tmp_path / "less"
    shutil.copytree(trained / VQA, place)
    weights = load_file(place / "model.safetensors")
    del weights["tbkin.encoder.layers.1.query.weight"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    arguments = ("visualize", "img.jpg", "what?", "--checkpoint", place)
    fails(*arguments, cwd=shop, code=1, says="layers.1.query.weight")


def test_init_of_another_feature_size(trained: Path, shop: Path, tmp_path: Path) -> None:
    place = tmp_path / "wide"
    shutil.copytree(trained / "runs/pretrain", place)
    config = json.loads((place / "config.json").read_text())
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    name = next(name for name in weights if name.endswith("feature_projection.weight"))
    weights[name] = weights[name].new_zeros(weights[name].shape[0], 2048)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    config["region_feature_size"] = 2048
    (place / "config.json").write_text(json.dumps(config))
    arguments = (*TUNE, "--init", place, "--out", tmp_path / "out")
    fails(*arguments, cwd=shop, code=1, says=("2048", "312", "--init none"))


@pytest.mark.parametrize(
    "place", ["runs/pretrian", "./weights", "/nowhere/model", "a/b/c", "img.jpg", "coco"]
)
def test_init_that_is_not_there(shop: Path, tmp_path: Path, place: str) -> None:
    fails(*TUNE, "--init", place, "--out", tmp_path / "out", cwd=shop, code=1, says=place.removeprefix("./"))


def test_a_run_that_never_began_leaves_nothing(trained_workspace: Path) -> None:
    before = files_below(trained_workspace)
    fails(*TUNE, "--init", "runs/pretrian", cwd=trained_workspace, code=1)
    fails(*TUNE, "--init", "runs/pretrian", "--out", "mine", cwd=trained_workspace, code=1)
    assert files_below(trained_workspace) == before
    succeeds(*TUNE, "--out", "mine", cwd=trained_workspace)


def test_a_run_of_other_settings_is_not_replaced(shop: Path) -> None:
    message = fails(*TUNE, "--out", VQA, cwd=shop, code=1, says="other settings")
    assert "--overwrite" in message and "trains it further" not in message
    rec = ("finetune", "--task", "rec", "--data", "coco", "--devices", "cpu", "--out", "runs/finetune/rec")
    further = "--init runs/finetune/rec --out DIR trains it further"
    fails(*rec, "--epochs", "2", cwd=shop, code=1, says=("other settings (epochs)", further))


def test_a_loss_that_explodes(shop: Path, tmp_path: Path) -> None:
    arguments = (*TUNE, "--learning-rate", "1e30", "--out", tmp_path / "out")
    fails(*arguments, cwd=shop, code=1, says=("not finite", "question ids ", "--learning-rate"))


# ---- visualize ----------------------------------------------------------------------------------


def test_visualize_without_a_readable_image(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    whole = (shop / "img.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name in ("none.jpg", "page.jpg", "cut.jpg"):
        fails("visualize", tmp_path / name, "what?", cwd=shop, code=1, says=name)
    fails("visualize", tmp_path, "what?", cwd=shop, code=1, says="none of 2 images could be read")


def test_visualize_with_features_that_lack_the_image(shop: Path) -> None:
    fails("visualize", "img.jpg", "what?", "--features", "coco", cwd=shop, code=1, says="coco")
    fails("visualize", "img.jpg", "what?", "--features", "coco/features", cwd=shop, code=2, says="img")


# ---- the file system ----------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A file system in memory; the test is skipped where mounting is not allowed."""
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, check=False)


COMMANDS: list[tuple[str, ...]] = [
    ("extract-features", "coco", "--workers", "0"),
    ("build-graphs", "coco"),
    ("pretrain", "coco", "--epochs", "1"),
    TUNE,
    ("threshold-sweep", "--task", "vqa", "--thresholds", "0,0.3"),
    ("visualize", "img.jpg", "what color is the star?"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_out_below_a_file(shop: Path, command: tuple[str, ...]) -> None:
    fails(*command, "--out", "img.jpg/out", cwd=shop, code=1, says=("img.jpg", "--out"))


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_place_that_may_not_be_written_to(shop: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "locked", "ro"):
        for command in COMMANDS:
            fails(*command, "--out", tmp_path / "locked" / "out", cwd=shop, code=1, says=("locked", "--out"))


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_full_disk(shop: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    with mounted(tmp_path / "disk", "size=64k"):
        filler = tmp_path / "disk" / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with filler.open("r+b") as rest:
            rest.truncate(max(filler.stat().st_size - 16_384, 0))
        out = tmp_path / "disk" / "out"
        fails(*command, "--out", out, cwd=shop, code=1, says=("disk", "space"))
        assert leftovers(tmp_path / "disk") == []
        filler.unlink()
        for shard in (tmp_path / "disk").rglob("*.safetensors"):
            assert shard.stat().st_size > 0
