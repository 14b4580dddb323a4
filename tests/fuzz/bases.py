"""One small valid file of each format that tbkin reads, and the commands that read it.

`make_bases` writes all of them into one workspace: a drawn world after every command, and in `own/` a
directory for each format of other publishers.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from test_datasets import PUBLISHED, captions_file, odd_texts
from test_expressions import mdetr_file
from test_feature_tables import image, write_table
from test_imports import write_pair
from test_stores import write_npz
from test_visual_genome import relation, thing

from examples.scenes import generate

NUMBERS = range(1, 7)  # of the pictures a_1.jpg to a_6.jpg
_LEARN = "--init none --size tiny --epochs 1 --max-minutes 0.001 --devices cpu --out out --json"
GRAPHS = "build-graphs {data} --workers 0 --out out --json"
MAKE = "build-graphs {data} --questions --expressions --workers 0 --out out --json"
REFER = "build-graphs {data} --expressions --workers 0 --out out --json"
EXTRACT = "extract-features {data} --extractor builtin --workers 0 --out out --json"
IMPORT = "extract-features {data} --extractor import --workers 0 --out out --json"
ANNOTATED = "extract-features {data} --extractor annotations --workers 0 --out out --json"
PRETRAIN = f"pretrain coco {_LEARN}"
VQA = f"finetune --task vqa --data {{data}} --features {{features}} {_LEARN}"
REC = f"finetune --task rec --data {{data}} --features {{features}} {_LEARN}"
SWEEP = "threshold-sweep --task vqa --thresholds 0,0.3 --devices cpu --out out --json"
SWEEP_AGAIN = f"{SWEEP} --checkpoint runs/finetune/vqa".replace("--out out", "--out runs/sweep")
SHOW = "visualize img.jpg what~color? --devices cpu --out out --json"
SHOW_STORED = "visualize --image-id 1000000 what~color? --data coco --devices cpu --out out --json"
SHEET = "visualize --from {file} --wrong --out out --json"
REDRAWN = "visualize {file} --graph --html --out out --json"
HALF = (
    "finetune --task vqa --data coco --features coco/features --init none --size tiny --epochs 2"
    " --max-minutes {minutes} --devices cpu --config half.yaml --out runs/half --json"
)
AGAIN = HALF.replace("--max-minutes {minutes}", "")  # more than it had: it goes on
CONFIGS = {  # settings in files, of different types
    EXTRACT: "max_regions: 9\nseed: 3\nbatch_size: 8\noverwrite: false\n",
    GRAPHS: "min_similarity: 0.4\nparser: builtin\nlabel_iou: 0.5\n",
    PRETRAIN: "weights: [1.0]\ndecay_epochs: [1, 2]\nwarmup: 0.1\nmasking: {base: 0.2, interference: true}\n",
    VQA: "threshold: 0.3\nthreshold_layers: [0]\nbatch_size: 8\npredict: [val]\ndropout: 0.1\nblind: false\n",
    SWEEP: "selection: [relative, 'topk=1,4']\nsplit: val\nbatch_size: 8\n",
    SHOW: "threshold: 0.3\nformat: [svg]\ntop: 3\nhtml: true\n",
}
PIPELINE = {  # what leads to the files of tbkin itself, at the smallest settings
    "coco/features": "extract-features coco --workers 0",
    "coco/graphs": "build-graphs coco --workers 0",
    "runs/pretrain": "pretrain coco --size tiny --epochs 1 --devices cpu --out runs/pretrain",
    "runs/finetune/vqa": (
        "finetune --task vqa --data coco --threshold 0.3 --size tiny --epochs 1 --devices cpu"
        " --out runs/finetune/vqa"
    ),
    "runs/finetune/rec": "finetune --task rec --data coco --size tiny --epochs 1 --devices cpu --out"
    " runs/finetune/rec",
    "runs/half": HALF.replace("{minutes}", "0.0001"),
    "runs/sweep": SWEEP_AGAIN,
    "runs/shown": "visualize img.jpg what~color? --graph --devices cpu --out runs/shown",
    "own/features": "extract-features own/pictures --workers 0 --out own/features",
}


@dataclass(frozen=True)
class Format:
    """A file to damage.

    Attributes:
        file: Below the workspace.
        kind: How it is read and written, a name of `mutations.CODECS`; bytes and lines where it is none.
        commands: Those that read it, with ~ for a space within an argument.
        needs: What they need of the workspace.
        data: The dataset that they are given.
    """

    name: str
    file: str
    kind: str
    commands: tuple[str, ...]
    needs: tuple[str, ...]
    data: str = "coco"

    @property
    def known_as(self) -> tuple[str, ...]:
        """What a message may call it: what tbkin wrote by its directory, settings by their names."""
        path = Path(self.file)
        if self.kind == "yaml":
            return (path.name, *re.findall(r"\w+(?=:)", "".join(CONFIGS.values())))
        whole = [str(parent) for parent in path.parents if str(parent) in PIPELINE]
        return (path.name, *([path.stem] if whole else []), *whole)

    def copy(self, bases: Path, work: Path) -> None:
        """What the commands need, in a workspace of its own."""
        for name in self.needs:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (bases / name).is_dir() else shutil.copy2
            copy(bases / name, work / name)

    def arguments(self, command: str) -> list[str]:
        """A command as it is typed."""
        features = "own/features" if self.data.startswith("own/") else "coco/features"
        filled = command.format(data=self.data, features=features, file=self.file)
        return [part.replace("~", " ") for part in filled.split()]


def _of_scenes(name: str, file: str, kind: str, *commands: str) -> Format:
    """In the drawn world, whose runs are needed by the commands that look for a model alone."""
    runs = any("runs/" in line or line.startswith(("visualize", "threshold")) for line in commands)
    beside = dict.fromkeys(re.findall(r"\b\w[\w-]*\.(?:yaml|jpg|json)\b", " ".join(commands)))
    return Format(name, file, kind, commands, ("coco", *(["runs"] if runs else []), *beside))


def _of_others(name: str, file: str, kind: str, *commands: str) -> Format:
    needs = (
        "own/" + file.partition("/")[0],
        *(("own/features",) if "{features}" in "".join(commands) else ()),
    )
    return Format(name, f"own/{file}", kind, commands, needs, data=needs[0])


RUN = "runs/finetune/vqa"
FORMATS = (
    _of_scenes("coco-captions", "coco/annotations/captions_train.json", "json", MAKE, PRETRAIN),
    _of_scenes("coco-instances", "coco/annotations/instances_val.json", "json", ANNOTATED, MAKE),
    _of_others("karpathy", "karpathy/dataset_flickr8k.json", "json", GRAPHS),
    _of_others("flickr-tokens", "flickr/text/results.token", "tsv", GRAPHS),
    _of_others("flickr-table", "captions/captions.txt", "csv", GRAPHS),
    _of_others("split-list", "flickr/text/train.txt", "text", GRAPHS),
    _of_others("conceptual", "conceptual/conceptual.tsv", "tsv", GRAPHS),
    _of_others("sbu", "sbu/sbu-captions-all.json", "json", GRAPHS),
    _of_others("own-captions", "lines/captions.jsonl", "jsonl", GRAPHS),
    _of_others("vg-regions", "regions/region_descriptions.json", "json", GRAPHS),
    _of_others("vg-objects", "vg/objects.json", "json", ANNOTATED, REFER),
    _of_others("vg-attributes", "vg/attributes.json", "json", ANNOTATED, REFER),
    _of_others("vg-relationships", "vg/relationships.json", "json", GRAPHS),
    _of_scenes("vg-scene-graphs", "coco/scene_graphs.json", "json", ANNOTATED, MAKE),
    _of_others("vg-image-data", "vg/image_data.json", "json", ANNOTATED, REFER),
    _of_scenes("vqa-questions", "coco/v2_OpenEnded_scenes_train_questions.json", "json", VQA),
    _of_scenes("vqa-annotations", "coco/v2_scenes_train_annotations.json", "json", VQA),
    *(_of_others(f"questions-{name}".replace(" ", "-"), f"{name.replace(' ', '-')}/{file}", "json", VQA)
      for name, (file, *_) in PUBLISHED.items()),
    *(_of_others(f"questions-{end}", f"questions-{end}/mine.{end}", end, VQA)
      for end in ("jsonl", "csv", "tsv")),
    _of_scenes("answers", "answers.json", "json", VQA + " --answers answers.json"),
    _of_scenes("refcoco-pickle", "coco/refcoco/refs(unc).p", "pickle", REC),
    _of_others("refcoco-json", "refcoco/refs(unc).json", "json", REC),
    _of_scenes("refcoco-instances", "coco/refcoco/instances.json", "json", REC, ANNOTATED),
    _of_others("mdetr", "mdetr/finetune_refcoco_train.json", "json", REC),
    _of_others("expressions-jsonl", "expressions-jsonl/mine.jsonl", "jsonl", REC),
    _of_others("expressions-csv", "expressions-csv/mine.csv", "csv", REC),
    *(_of_others(f"picture-{end}", f"picture-{end}/x.{end}", "picture", EXTRACT)
      for end in ("png", "jpg", "tif", "gif", "webp", "bmp")),
    _of_scenes("picture-shown", "img.jpg", "picture", SHOW),
    _of_others("image-names", "lines/captions.jsonl", "names", GRAPHS, EXTRACT),
    *(_of_others(f"features-{form}", f"features-{form}/val.tsv", "tsv", IMPORT)
      for form in ("bottom-up", "lxmert", "rosita")),
    _of_others("features-vinvl", "features-vinvl/features.tsv", "tsv", IMPORT),
    _of_others("features-labels", "features-vinvl/labels.tsv", "tsv", IMPORT),
    _of_others("features-npz", "features-npz/1.npz", "npz", IMPORT),
    _of_others("features-npy", "features-npy/1.npy", "npy", IMPORT),
    _of_others("features-info", "features-npy/1_info.npy", "npy", IMPORT),
    _of_others("features-hdf5", "features-hdf5/val36.hdf5", "hdf5", IMPORT),
    _of_others("features-rows", "features-hdf5/val36_imgid2idx.json", "json", IMPORT),
    _of_scenes("store-manifest", "coco/features/store.json", "json", GRAPHS, VQA, EXTRACT, SHOW_STORED),
    _of_scenes("store-shard", "coco/features/shard-00000.safetensors", "safetensors",
               GRAPHS, REC, SHOW_STORED),
    _of_scenes("store-resumed", "coco/features/store.json", "json", PIPELINE["coco/features"] + " --json"),
    _of_scenes("graph-manifest", "coco/graphs/store.json", "json", PRETRAIN),
    _of_scenes("graph-shard", "coco/graphs/shard-00000.safetensors", "safetensors", PRETRAIN),
    _of_scenes("graph-priors", "coco/graphs/priors.json", "json", PRETRAIN),
    _of_scenes("graphs-resumed", "coco/graphs/store.json", "json", PIPELINE["coco/graphs"] + " --json"),
    _of_scenes("run", f"{RUN}/run.json", "json", SWEEP, SHOW, SWEEP_AGAIN, VQA.replace("--init none", "")),
    *(_of_scenes(f"config-{line.partition(' ')[0]}", f"{line.partition(' ')[0]}.yaml", "yaml",
                 f"{line} --config {line.partition(' ')[0]}.yaml") for line in CONFIGS),
    _of_scenes("model-config", f"{RUN}/config.json", "json", SWEEP, SHOW),
    _of_scenes("model-weights", f"{RUN}/model.safetensors", "safetensors", SWEEP, SHOW),
    _of_scenes("tokenizer", f"{RUN}/tokenizer.json", "json", SWEEP, SHOW),
    _of_scenes("tokenizer-config", f"{RUN}/tokenizer_config.json", "json", SWEEP, SHOW),
    _of_scenes("init", "runs/pretrain/model.safetensors", "safetensors",
               REC.replace("none", "runs/pretrain")),
    _of_scenes("init-config", "runs/pretrain/config.json", "json", REC.replace("none", "runs/pretrain")),
    _of_scenes("state-progress", "runs/half/state/progress.json", "json", AGAIN),
    _of_scenes("state-model", "runs/half/state/model.pt", "torch", AGAIN),
    _of_scenes("state-optimizer", "runs/half/state/optimizer.pt", "torch", AGAIN),
    _of_scenes("half-run", "runs/half/run.json", "json", AGAIN),
    _of_scenes("metrics", "runs/half/metrics.jsonl", "jsonl", AGAIN),
    _of_scenes("sweep", "runs/sweep/sweep.json", "json", SWEEP_AGAIN),
    _of_scenes("results", f"{RUN}/results-val.json", "json", SHEET),
    _of_scenes("trace", "runs/shown/img-what-color.npz", "npz", REDRAWN),
)  # fmt: skip


def format_of(number: int) -> Format:
    """Of input `number`: all formats in turn, those of one kind not one after the other."""
    return FORMATS[number * 37 % len(FORMATS)]


def make_bases(place: Path, run: Callable[[list[str], Path], None]) -> None:
    """Write the workspace; `run` runs a command in it, which must succeed."""
    generate(place / "coco", 5, 2, 2, 0, (96, 96))
    shutil.copy(sorted((place / "coco" / "val").glob("*.jpg"))[0], place / "img.jpg")
    for line, text in CONFIGS.items():
        _write(place, f"{line.partition(' ')[0]}.yaml", text)
    _write(place, "half.yaml", "save_minutes: 0\nbatch_size: 8\n")
    _write(place, "answers.json", ["yes", "no", "red", "blue", "2", "circle"])
    _write_others(place / "own")
    for line in PIPELINE.values():
        run([part.replace("~", " ") for part in line.split()], place)
    # A figure is nothing that a command reads.
    for figure in place.glob("runs/**/*.png"):
        figure.unlink()


def _write(place: Path, name: str, content: Any) -> None:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def _write_others(own: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (len(NUMBERS), 32, 48, 3), np.uint8)
    texts = ["a red dog on a mat", "two men and a tall tree", "the cat sits under a blue chair"] * 2
    for number, picture in zip(NUMBERS, pixels, strict=True):
        for place in ("pictures", "lines"):
            (own / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(own / place / f"a_{number}.jpg")
    for end in ("png", "jpg", "tif", "gif", "webp", "bmp"):
        (own / f"picture-{end}").mkdir()
        Image.fromarray(pixels[0]).save(own / f"picture-{end}" / f"x.{end}")
        Image.fromarray(pixels[1]).save(own / f"picture-{end}" / "y.png")
    names = [f"a_{number}.jpg" for number in NUMBERS]
    for file in ("karpathy/dataset_flickr8k.json", "conceptual/conceptual.tsv", "sbu/sbu-captions-all.json",
                 "regions/region_descriptions.json"):  # fmt: skip
        _keep_alone(own / file, texts[0])
    tokens = (f"{name}#{k}\t{text}\n" for name, text in zip(names, texts, strict=True) for k in (0, 1))
    _write(own, "flickr/text/results.token", "".join(tokens))
    for place, split in enumerate(("train", "val", "test")):
        _write(own, f"flickr/text/{split}.txt", "".join(f"{name}\n" for name in names[2 * place :][:2]))
    _write(own, "captions/captions.txt", _table(["image", "caption"], zip(names, texts, strict=True)))
    rows = [{"image": name, "text": text} for name, text in zip(names, texts, strict=True)]
    _write(own, "lines/captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _write_visual_genome(own / "vg")
    _write_questions(own, names)
    _write_expressions(own, names, texts)
    _write_features(own)


def _keep_alone(file: Path, text: str) -> None:
    """Of the files that the tests write of a text, the one of this name."""
    odd_texts(file.parent, text)
    for other in file.parent.iterdir():
        if other != file and other.is_file():
            other.unlink()


def _table(header: list[str], rows: Iterable[Iterable[Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _write_visual_genome(place: Path) -> None:
    for n in NUMBERS:
        (place / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 32), (40 * n, 90, 20)).save(place / "images" / f"{n}.jpg")
    things = {n: [thing(10 * n, "man", attributes=["tall"]), thing(10 * n + 1, "shoe", 20)] for n in NUMBERS}
    for name in ("objects", "attributes"):
        _write(place, f"{name}.json", [{"image_id": n, name: things[n]} for n in NUMBERS])
    related = {n: [relation(n, things[n][0], "wears", things[n][1])] for n in NUMBERS}
    _write(place, "relationships.json", [{"image_id": n, "relationships": related[n]} for n in NUMBERS])
    rows = (json.dumps({"image": f"{n}.jpg", "text": "a man in shoes"}) + "\n" for n in NUMBERS)
    _write(place, "captions.jsonl", "".join(rows))
    size = {"width": 48, "height": 32, "coco_id": None}
    _write(place, "image_data.json", [{"image_id": n, "url": f"http://a/b/{n}.jpg", **size} for n in NUMBERS])


def _write_questions(own: Path, names: list[str]) -> None:
    for name, (file, content, _) in PUBLISHED.items():
        text, merged = json.dumps(content), None
        for n in NUMBERS:
            own_text = text.replace("a_1", f"a_{n}").replace(": 5", f": {n}").replace('"5"', f'"{n}"')
            own_text = own_text.replace('"image_id": 1,', f'"image_id": {n},')
            merged = json.loads(own_text) if merged is None else _joined(merged, json.loads(own_text))
        _write(own, f"{name.replace(' ', '-')}/{file}", merged)
        shutil.copytree(own / "pictures", own / name.replace(" ", "-") / "images")
    rows = [(name, "what color?", ["red", "blue"][n % 2]) for n, name in enumerate(names)]
    header = ["image", "question", "answer"]
    lines = (json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    _write(own, "questions-jsonl/mine.jsonl", "".join(lines))
    _write(own, "questions-csv/mine.csv", _table(header, rows))
    _write(own, "questions-tsv/mine.tsv", _table(header, rows, "\t"))


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, list):
        return one + other
    return other | {
        key: _joined(value, other[key]) if isinstance(value, list) else value for key, value in one.items()
    }


def _write_expressions(own: Path, names: list[str], texts: list[str]) -> None:
    header = ["image", "text", "x1", "y1", "x2", "y2"]
    rows = [(name, text, 1, 2, 30, 25) for name, text in zip(names, texts, strict=True)]
    lines = (json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    _write(own, "expressions-jsonl/mine.jsonl", "".join(lines))
    _write(own, "expressions-csv/mine.csv", _table(header, rows))
    merged: Any = None
    for n, text in zip(NUMBERS, texts, strict=True):
        one = json.loads(json.dumps(mdetr_file(n, "refcoco", text)).replace("42,", f"{n},").replace(
            "COCO_train2014_000000000042", f"a_{n}"))  # fmt: skip
        merged = one if merged is None else _joined(merged, one)
    _write(own, "mdetr/finetune_refcoco_train.json", merged)
    listed = captions_file(*texts, images=[
        {"id": n, "file_name": f"a_{n}.jpg", "width": 48, "height": 32} for n in NUMBERS
    ])["images"]  # fmt: skip
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 30, 25]} for n in NUMBERS]
    instances = {"images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
    _write(own, "refcoco/instances.json", instances)
    _write(own, "refcoco/refs(unc).json", [
        {"ref_id": n, "ann_id": n, "image_id": n, "split": "val" if n > 4 else "train",
         "sentences": [{"sent_id": n, "sent": text}]} for n, text in zip(NUMBERS, texts, strict=True)
    ])  # fmt: skip


def _write_features(own: Path) -> None:
    for form in ("bottom-up", "lxmert", "rosita"):
        write_table(own / f"features-{form}" / "val.tsv", form, [1, 2, 3])
    item = image(1)
    regions = [{"class": "dog", "conf": 0.9, "rect": list(map(float, box))} for box in item["boxes"]]
    cells = write_table(own / "x.tsv", "bottom-up", [1, 2]).read_text().splitlines()
    (own / "x.tsv").unlink()
    vectors = (f"{n}\t5\t{cell.rpartition(chr(9))[2]}\n" for n, cell in enumerate(cells, 1))
    _write(own, "features-vinvl/features.tsv", "".join(vectors))
    _write(own, "features-vinvl/labels.tsv", "".join(f"{n}\t{json.dumps(regions)}\n" for n in (1, 2)))
    for place in ("features-npz", "features-npy", "features-hdf5"):
        (own / place).mkdir()
    for n in (1, 2):
        write_npz(own / "features-npz" / f"{n}.npz")
        write_pair(own / "features-npy", str(n))
    with h5py.File(own / "features-hdf5" / "val36.hdf5", "w") as file:
        items = [image(n) for n in (1, 2)]
        file["image_features"] = np.stack([it["features"] for it in items])
        file["image_bb"] = np.stack([it["boxes"] for it in items])
        file["spatial_features"] = np.stack([it["boxes"] / [200, 100, 200, 100] for it in items])
    _write(own, "features-hdf5/val36_imgid2idx.json", {"1": 0, "2": 1})
