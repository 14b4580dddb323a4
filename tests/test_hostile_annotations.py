"""Files from elsewhere that are made to harm: annotations, settings, names, models that bring a program."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import fails, files_below, leftovers, succeeds

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


# ---- names from data in every writer ------------------------------------------------------------

HOSTILE = (
    *("../../x", "a/b", "..", "nul\0x", "new\nline", "n" * 300, "con.json", "C:\\x", "漢" * 200, "\ud800"),
    *(".git", "~", "%s{}", "run", "val"),
)


def hostile_world(place: Path, world: Path) -> list[str]:
    """A dataset in which every name is one of `HOSTILE` or an absolute path; the ids of its images."""
    shutil.copytree(world / "coco" / "train", place / "train")
    names = [*HOSTILE, str(place.parent / "outside" / "x")]
    pictures = sorted(path.name for path in (place / "train").iterdir())
    images, boxes, lines, refs = [], [], [], []
    for number, name in enumerate(names):
        if number < len(pictures):
            file_name = f"train/{pictures[number]}"
            images.append({"id": name, "file_name": file_name, "width": 128, "height": 96})
        image_id, split = names[number % len(pictures)], name if name == "val" else f"test-{name}"
        boxes.append({"id": number, "image_id": image_id, "category_id": number, "bbox": [8, 8, 60, 50]})
        one = {"id": name, "question": f"what is {name}?", "answer": name}
        lines.append(one | {"image": f"train/{pictures[number % 4]}", "split": split})
        one |= {"image": f"train/{pictures[4 + number % 8]}", "id": f"{name} "}
        lines.append(one | {"question": f"is it {name}?", "split": "train"})
        sentence = {"sent_id": number, "sent": f"the {name}"}
        ref = {"ref_id": number, "ann_id": number, "image_id": image_id, "sentences": [sentence]}
        if number % len(pictures) < 8:
            refs.append(ref | {"split": split if number % len(pictures) < 4 else "train"})
    captions = [
        {"id": name, "image_id": image["id"], "caption": f"a dog on the {name}"}
        for name, image in zip(names, images, strict=False)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    (place / "refcoco").mkdir()
    for name, content in {
        "captions_train.json": {"images": images, "annotations": captions},
        "instances_train.json": {"images": images, "annotations": boxes, "categories": categories},
        "refcoco/instances.json": {"images": images, "annotations": boxes, "categories": categories},
        "refcoco/refs(unc).json": refs,
    }.items():
        (place / name).write_text(json.dumps(content))
    (place / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [image["id"] for image in images]


def test_names_from_data_lead_out_of_no_directory(world: Path, tmp_path: Path) -> None:
    place = tmp_path / "one" / "two"
    for directory in (place / "results", tmp_path / "one" / "outside", tmp_path / "results"):
        directory.mkdir(parents=True)
        for name in ("x.json", "x", "config.yaml"):
            (directory / name).write_text("mine")
    ids = hostile_world(place / "coco", world)
    data_before = set(files_below(place / "coco"))
    for line in (
        "extract-features coco --extractor annotations --workers 0 --out out/features",
        "build-graphs coco --features out/features --out out/graphs --export out/g.jsonl --networkx out/nx",
        "pretrain coco --features out/features --graphs out/graphs --epochs 1 --out out/pretrain",
        "finetune --task vqa --data coco --features out/features --epochs 1 --out out/vqa",
        "finetune --task rec --data coco --features out/features --epochs 1 --out out/rec",
        "threshold-sweep --task vqa --checkpoint out/vqa --thresholds 0,0.5 --out out/sweep",
        "visualize --checkpoint out/vqa --from out/vqa/results-val.json --out out/sheet",
    ):
        command, *rest = line.split()
        succeeds(command, *rest, *(["--devices", "cpu"] if "epochs" in line else []), cwd=place)
    given = [image_id for image_id in ids if image_id.isprintable()][:2]
    chosen = [word for image_id in given for word in ("--image-id", image_id)]
    draw = ("visualize", "--checkpoint", "out/vqa", "--features", "out/features", "--data", "coco", "--html")
    succeeds(*draw, "--graph", *chosen, "what is ../../x?", "--out", "out/figures", cwd=place)
    tune = "finetune --task vqa --data coco --features out/features --epochs 1 --out out/vqa --devices cpu"
    fails(*tune.split(), "--predict", "../../../x", cwd=place, code=2, says="no split")
    succeeds(*tune.split(), "--predict", "test-a_b", cwd=place)

    assert set(files_below(place / "coco")) == data_before
    (own,) = (path for path in place.iterdir() if path.name not in ("coco", "results"))
    written = {str(path.relative_to(own)): path for path in own.rglob("*")}
    assert [name for name in written if not re.fullmatch(r"[\w .+/-]+", name)] == []
    assert leftovers(own) == []
    kinds = {path.suffix for path in written.values() if path.is_file()}
    assert kinds >= {".json", ".jsonl", ".safetensors", ".png", ".npz", ".html", ".csv", ".graphml", ".yaml"}
    assert {
        "vqa/predictions-test-a_b.json",
        "vqa/results-test-a_b.json",
        "rec/results-test-a_b.json",
    } <= written.keys()
    others = {**files_below(tmp_path / "results"), **files_below(tmp_path / "one" / "outside")}
    assert set(others.values()) == {b"mine"}
    assert len(files_below(tmp_path)) == len(files_below(own)) + len(data_before) + 9
