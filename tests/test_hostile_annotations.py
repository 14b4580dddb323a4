"""Files from elsewhere that are made to harm: annotations, settings, names, models that bring a program."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import pickle
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from command_line import fails, files_below, leftovers, succeeds

from tbkin_core.datasets import open_dataset
from tbkin_core.errors import CheckpointError, ConfigError, DataError, TbkinError
from tbkin_core.settings import ExtractFeaturesConfig, load_config

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


def test_a_checkpoint_is_as_large_as_its_weights(trained: Path, tmp_path: Path) -> None:
    from tbkin_core.modeling.checkpoint import load_model

    place = Path(shutil.copytree(trained / "runs/finetune/rec", tmp_path / "rec"))
    whole = json.loads((place / "config.json").read_text())
    load_model(place, "rec")
    for name, value, says in (
        ("vocab_size", 10**9, "config.json: vocab_size: expected"),
        ("hidden_size", 100_000, "do not belong together: hidden_size"),
        ("num_hidden_layers", 100_000, "do not belong together: num_hidden_layers"),
        ("id2label", "x", "config.json: id2label: expected"),
        ("architectures", [["a"]], "architectures"),
        ("model_type", "x" * 10_000, "expected 'tbkin'"),
        ("dropout", DEEP, "config.json: is not valid JSON"),
    ):
        (place / "config.json").write_text(written(whole | {name: value}))
        with pytest.raises(CheckpointError, match=says) as refused:
            load_model(place, "rec")
        assert len(str(refused.value)) < 1000


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


def test_a_picture_of_the_longest_name_is_drawn(trained: Path, tmp_path: Path) -> None:
    picture = tmp_path / f"{'x' * 251}.jpg"
    shutil.copy(trained / "img.jpg", picture)
    (checkpoint,) = (trained / "runs/finetune").glob("vqa*")
    asked = f"what {'color ' * 20}is it?"
    succeeds("visualize", picture, asked, "--checkpoint", checkpoint, "--out", tmp_path / "out", cwd=tmp_path)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} >= {".npz", ".png"}


# ---- settings -----------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(2)) + "seed: *b1\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "no references"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "no references"),
        ("seed: " + "[" * 5000 + "]" * 5000, "too deep"),
        ("seed: 0x" + "f" * 20_000, "seed: expected int"),
        ("max_regions: 0x" + "f" * 200, "max_regions: expected int"),
        ("seed: " + "9" * 5000, "is not valid YAML"),
        ("seed: 2001-99-99", "is not valid YAML"),
        ("seed: !!int x", "is not valid YAML"),
        ('out: "a\\0b"', "out: expected Path"),
        ('out: "\\ud800"', "out: expected Path"),
        ("devices: " + "x" * 50_000, "devices: expected"),
        ("".join(f"key{n}: 1\n" for n in range(5000)), "and more"),
        ("# " + "x" * 100_000, "is longer than"),
    ],
)
def test_hostile_settings_are_refused_in_few_words(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        load_config(ExtractFeaturesConfig, file, {})
    assert str(file) in refused.value.message and len(str(refused.value)) < 2000


# ---- annotations --------------------------------------------------------------------------------

BOX = [8, 8, 60, 50]
LISTED = [{"id": n, "file_name": f"{n}.jpg", "width": 128, "height": 96} for n in (1, 2)]
BOXES = {
    "images": LISTED,
    "annotations": [{"id": n, "image_id": n, "bbox": BOX, "category_id": 1} for n in (1, 2)],
    "categories": [{"id": 1, "name": "dog", "supercategory": "animal"}],
}
THING = {"object_id": 1, "x": 1, "y": 2, "w": 30, "h": 40, "names": ["dog"], "attributes": ["red"]}
RELATION = {"relationship_id": 1, "predicate": "on", "subject": THING, "object": THING | {"object_id": 2}}
REF = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": [{"sent_id": 1, "sent": "dog"}]}
ASKED = {"question_id": 1, "image_id": 1, "question": "what?"}
MDETR = {
    "id": 1,
    "caption": "the dog",
    "file_name": "1.jpg",
    "dataset_name": "refcoco",
    "tokens_negative": [],
}
FORMATS = {  # a file or two of each format
    "coco": {
        "captions_val.json": {"images": LISTED, "annotations": [{"id": 1, "image_id": 1, "caption": "dog"}]},
        "instances_val.json": BOXES,
    },
    "karpathy": {
        "dataset_coco.json": {
            "images": [{"cocoid": 1, "filename": "1.jpg", "split": "val", "sentences": [{"raw": "a dog"}]}]
        }
    },
    "lines": {"lines.jsonl": {"image": "1.jpg", "text": "a dog", "split": "val"}},
    "questions": {"q.jsonl": {"image": "1.jpg", "question": "what?", "answers": ["dog"], "split": "val"}},
    "expressions": {"e.jsonl": {"image": "1.jpg", "text": "dog", "x": 8, "y": 8, "w": 60, "h": 50}},
    "boxes": {"e.json": [{"image": "1.jpg", "text": "dog", "bbox": box} for box in (BOX, [60, 8, 9, 50])]},
    "sbu": {"sbu_captions.json": {"captions": ["a dog"], "image_urls": ["http://x/a"]}},
    "vqa": {
        "v2_OpenEnded_mscoco_val2014_questions.json": {"data_subtype": "val2014", "questions": [ASKED]},
        "v2_mscoco_val2014_annotations.json": {
            "annotations": [{"question_id": 1, "image_id": 1, "answers": [{"answer": "a", "answer_id": 1}]}]
        },
    },
    "gqa": {"val_questions.json": {"1": {"imageId": "1", "question": "is it?", "answer": "yes"}}},
    "lxmert": {"val.json": [{"img_id": "1", "label": {"dog": 0.3}, "question_id": 1, "sent": "what?"}]},
    "choices": {"q.json": [ASKED | {"choices": ["a", "b"], "label": 1}]},
    "refs": {"refcoco/refs(unc).json": [REF], "refcoco/instances.json": BOXES},
    "pickle": {"refcoco/refs(unc).p": [REF], "refcoco/instances.json": BOXES},
    "mdetr": {
        "finetune_refcoco_val.json": {"images": [MDETR], "annotations": [{"image_id": 1, "bbox": BOX}]}
    },
    "genome": {
        "image_data.json": [{"image_id": 1, "url": "https://x/VG_100K/1.jpg", "width": 128, "height": 96}],
        "objects.json": [{"image_id": 1, "objects": [THING]}],
        "attributes.json": [{"image_id": 1, "attributes": [THING]}],
        "relationships.json": [{"image_id": 1, "relationships": [RELATION]}],
        "region_descriptions.json": [{"id": 1, "regions": [{"region_id": 1, "image_id": 1, "phrase": "a"}]}],
    },
}
DEEP, TWICE, ENDLESS = "DEEP", "TWICE", "ENDLESS"  # what only JSON's text can have
WRITTEN = {DEEP: "[" * 5000 + "]" * 5000, TWICE: '{"id": 1, "id": 2, "image_id": 3}', ENDLESS: "9" * 5000}
VALUES = (
    *(None, True, -1, 1e308, 10**400, 10**30, 2**63, 0.5, math.nan, math.inf, "", "x" * 100_000, [], {}),
    *("\ud800", "a\0b", "../../x.jpg", "/etc/x", "..", "\n", [[]], [{}], {"": None}, "1", DEEP, TWICE),
    *(ENDLESS, [1e308] * 4, [10**400] * 4, [True] * 4, [math.nan] * 4, "é" * 5000, ["a"], {"a": 1}),
)


def written(content: Any) -> str:
    text = json.dumps(content)
    for name, whole in WRITTEN.items():
        text = text.replace(f'"{name}"', whole)
    return text


def mutated(content: Any, random: Random) -> Any:
    """The content with another value, or another name, in one place."""
    places: list[tuple[Any, Any]] = []
    whole = [copy.deepcopy(content)]

    def walk(parent: Any) -> None:
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            places.append((parent, key))
            if isinstance(parent[key], dict | list):
                walk(parent[key])

    walk(whole)
    parent, key = random.choice(places)
    value = copy.deepcopy(random.choice(VALUES))
    if isinstance(parent, dict) and random.random() < 0.2:
        parent[value if isinstance(value, str) else "id"] = parent.pop(key)
    else:
        parent[key] = value
    return whole[0]


def read_everything(root: Path) -> None:
    """Read all parts of a dataset; what is refused is refused in few words."""
    dataset = open_dataset(root)
    parts = (dataset.images, dataset.captions, dataset.questions, dataset.expressions, dataset.boxes)
    for part in (*parts, dataset.gold_graphs, dataset.question_sets, dataset.expression_splits):
        try:
            found = part()
        except TbkinError as error:
            assert len(str(error)) < 2000
        else:
            check_values(found)
    assert all(len(problem) < 2000 for problem in dataset.problems)
    "".join(dataset.problems).encode()


def check_values(value: Any) -> None:
    """No text that cannot be written, no number that is none or beyond 64 bits."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int | float):
        assert math.isfinite(value) and abs(value) < 1 << 63
    elif is_dataclass(value):
        for field in fields(value):
            check_values(getattr(value, field.name))
    elif isinstance(value, dict | list | tuple):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            check_values(each)


@pytest.mark.parametrize("name", FORMATS)
def test_any_value_in_any_place_is_refused_or_counted(tmp_path: Path, name: str) -> None:
    random = Random(name)
    for file in FORMATS[name]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
    for round_ in range(60):
        for file, content in FORMATS[name].items():
            content = mutated(content, random) if round_ and random.random() < 0.6 else content
            if file.endswith(".p"):
                (tmp_path / file).write_bytes(pickle.dumps(content, 2))
            else:
                (tmp_path / file).write_text(written(content) + "\n")
        with contextlib.suppress(TbkinError):
            read_everything(tmp_path)


def test_what_lines_and_objects_may_hold(tmp_path: Path) -> None:
    long = "x" * ((1 << 24) + 5)
    lines = ['{"image": "1.jpg", "text": "a", "text": "b"}', f'{{"text": "{long}"}}', '{"text": "c"}']
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    cell = "a" * 200_000
    (tmp_path / "questions.csv").write_text(f'image,question,answer\n1.jpg,"{cell}",b\n')
    (tmp_path / "instances_val.json").write_text(
        json.dumps(BOXES | {"annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1e300, 1e300]}]})
    )
    (tmp_path / "val.json").write_text(
        json.dumps([{"img_id": "1", "sent": "who?", "label": {"a": 3 * 10**9, "b": 10**9}}])
    )
    dataset = open_dataset(tmp_path)
    assert [caption.text for caption in dataset.captions()] == ["b", "c"]
    asked = {item.question: item.answers for item in dataset.questions()}
    assert asked[cell] == ("b",)
    assert Counter(asked["who?"]) == {"a": 750, "b": 250}
    assert not dataset.boxes()
    problems = "\n".join(dataset.problems)
    assert "lines.jsonl: an object with 'text' gives a name twice (the last counts)" in problems
    assert "lines.jsonl: line 2 is longer than 16,777,216 characters (skipped)" in problems
    assert "annotation 1 has a box larger than any image (skipped)" in problems


def test_a_file_larger_than_any_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "captions_val.json").open("wb") as file:
        file.truncate(1 << 40)  # no block of it is on the disk
    with pytest.raises(DataError, match=r"captions_val.json: 1,099,511,627,776 bytes"):
        open_dataset(tmp_path).captions()


# ---- time ---------------------------------------------------------------------------------------


def lines_of(names: Iterable[str]) -> str:
    return "".join(json.dumps({"image": name, "text": "a dog"}) + "\n" for name in names)


def long_name(letters: str) -> Callable[[Path, int], None]:
    def make(root: Path, size: int) -> None:
        name = (letters * size)[: 10 * size]
        (root / "lines.jsonl").write_text(lines_of([f"{name}.jpg", f"{name}7.jpg"]))

    return make


def pictures_of_one_name(file: str, name: str) -> Callable[[Path, int], None]:
    """Pictures in directories of their own, and lines with names that say where; {} is the number."""

    def make(root: Path, size: int) -> None:
        for number in range(size):
            (root / file.format(number)).parent.mkdir(parents=True)
            (root / file.format(number)).touch()
        (root / "lines.jsonl").write_text(lines_of(name.format(number) for number in range(size)))

    return make


def one_id(root: Path, size: int) -> None:
    pictures_of_one_name("d{}/1.jpg", "d{}/1.jpg")(root, size)
    asked = [{"question_id": n, "image_id": 1, "question": "what?", "answer": "a"} for n in range(size)]
    (root / "questions_val.json").write_text(json.dumps(asked))


def objects_of_one_name(root: Path, size: int) -> None:
    things = [THING | {"object_id": n} for n in range(size)]
    others = [THING | {"object_id": size + n} for n in range(size)]
    (root / "objects.json").write_text(json.dumps([{"image_id": 1, "objects": things}]))
    (root / "attributes.json").write_text(json.dumps([{"image_id": 1, "attributes": others}]))


@pytest.mark.parametrize(
    "make",
    [
        *map(long_name, ("é", "ж", "a", "1", "a1", "_1", "../", "\u0301\u0323")),
        pictures_of_one_name("d{}/x.jpg", "x.jpg"),
        pictures_of_one_name("d{}/x.jpg", "e{}/x.jpg"),
        pictures_of_one_name("d{}/e/x.jpg", "e/x.jpg"),
        pictures_of_one_name("images/d{}/e/x.jpg", "far/d{}/e/x.jpg"),
        pictures_of_one_name("d{}/000000000001.jpg", "e{}/000000000001.jpg"),
        one_id,
        objects_of_one_name,
    ],
)
def test_time_grows_with_the_data_and_no_faster(tmp_path: Path, make: Callable[[Path, int], None]) -> None:
    times = []
    for size in (300, 3000):
        root = tmp_path / str(size)
        root.mkdir()
        make(root, size)
        start = time.process_time()
        read_everything(root)
        times.append(time.process_time() - start)
    assert times[1] <= 12 * max(times[0], 0.2)


def test_long_texts_take_time_by_their_length() -> None:
    from tbkin_core.parsing.parser import CaptionParser
    from tbkin_core.texts.tokenizer import build_tokenizer, words_of

    parser = CaptionParser()
    for part in ("a dog on the mat ", "a", "e\u0301", "a-"):
        times = []
        for size in (10_000, 100_000):
            text = (part * size)[:size]
            start = time.process_time()
            list(parser.parse([text]))
            assert words_of(text)
            build_tokenizer([text]).encode(text)
            times.append(time.process_time() - start)
        assert times[1] <= 12 * max(times[0], 0.3), part


@pytest.mark.parametrize("content", [[{"image": "a.png", "caption": "a dog"}], {"a.png": "a dog"}])
def test_own_captions_in_another_form_are_told_where_to_go(tmp_path: Path, content: Any) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError) as raised:
        open_dataset(tmp_path).captions()
    assert "captions.jsonl, one object a line" in str(raised.value.hint)
