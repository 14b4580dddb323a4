"""The models that come with tbkin: one that answers questions about photos, one that finds photos.

    python examples/shipped_models/photo_models.py FLICKR8K WORKSPACE [--out tbkin_core/resources/models]

FLICKR8K is Flickr8k in its publisher's layout. Of its 6,000 training photos 500, drawn at random, choose the
epoch ("val"); its 1,000 development photos give the figures of the model cards ("test"), and choose none.
All is done by `tbkin` itself; the script makes the dataset, runs the commands and packs what came out, in
half precision. Stopped and started again, it goes on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from tbkin_core.datasets import open_dataset
from tbkin_core.modeling.checkpoint import load_model, save_model, task_of
from tbkin_core.runs import read_run
from tbkin_core.support.files import write_json
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS, tokenizer_of, words_of

REPOSITORY = Path(__file__).resolve().parents[2]
HELD_OUT, SEED = 500, 0
MOST_BYTES = 6_000_000  # of a model
LEAST_SAID = {"photo-answers": 2, "photo-search": 3}
"""How often captions and questions must say a word for a model to keep it; the search has a table more."""
WORD_TABLES = ("word_embeddings.weight", "text_tower.words.weight", "direct.vocabulary.weight",
               "direct.vocabulary.bias", "direct.usual")  # fmt: skip

COMMANDS = {
    "features": "extract-features data --extractor photo",
    "questions": "build-graphs data --questions",
    "pretrained": "pretrain data --size tiny --epochs {pretrain_epochs}",
    "photo-answers": "finetune --task vqa --data data --init pretrained --epochs {answer_epochs}",
    "photo-search": "finetune --task retrieval --data data --init pretrained --epochs {search_epochs}",
}


class Card(NamedTuple):
    """What a model card says that its run does not."""

    does: str
    knows: str


CARDS = {
    "photo-answers": Card(
        "answers questions about a photo: what somebody does, wears, holds or rides, colours, numbers, where"
        " things are, yes or no",
        "it chooses among {answers} answers, and was asked nothing but what captions tell. It goes by the"
        " words, by the image as a whole and by what its attention looks at; without the last one in ten"
        " of its answers is another.",
    ),
    "photo-search": Card(
        "says how well a sentence fits a photo, and finds the photos of a directory that fit it best",
        "of two photos of one kind it seldom knows which is meant.",
    ),
}


def write_data(flickr: Path, place: Path) -> dict[str, int]:
    """Link the photos and write their captions with the split that each has here; photos by split."""
    source = open_dataset(flickr)
    captions = defaultdict[Any, list[str]](list)
    splits: dict[Any, str] = {}
    for split, name in (("train", "train"), ("val", "test")):
        for caption in source.captions(split):
            captions[caption.image_id].append(caption.text)
            splits[caption.image_id] = name
    photos = sorted(
        (it for it in source.images() if it.path is not None and it.image_id in captions),
        key=lambda it: it.path.name,
    )
    training = [it.image_id for it in photos if splits[it.image_id] == "train"]
    for number in np.random.default_rng(SEED).permutation(len(training))[:HELD_OUT]:
        splits[training[number]] = "val"
    (place / "images").mkdir(parents=True, exist_ok=True)
    lines, counts = [], dict.fromkeys(("train", "val", "test"), 0)
    for record in photos:
        link = place / "images" / record.path.name
        if not link.is_symlink():
            link.symlink_to(record.path.resolve())
        split = splits[record.image_id]
        counts[split] += 1
        lines += [{"image": link.name, "text": text, "split": split} for text in captions[record.image_id]]
    (place / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return counts


def tbkin(workspace: Path, line: str, *more: str) -> None:
    """One command in the workspace, where it goes on or has finished before."""
    command = [sys.executable, "-m", "tbkin_cli", *line.split(), *more]
    if subprocess.run(command, cwd=workspace, check=False).returncode:
        raise typer.Exit(1)


def with_words(model: Any, tokenizer: Any, data: Path, least: int) -> tuple[Any, Any]:
    """A model that knows the words alone which the training texts of a dataset say so often."""
    dataset = open_dataset(data)
    texts = [caption.text for caption in dataset.captions("train")]
    texts += [question.question for question in dataset.questions("train", "captions")]
    counts = Counter(word for text in texts for word in words_of(text))
    known = tokenizer.get_vocab()
    always = {token for token in known if token in SPECIAL_TOKENS or len(token.removeprefix("##")) == 1}
    kept = [
        token for token in sorted(known, key=known.__getitem__) if token in always or counts[token] >= least
    ]
    rows = torch.tensor([known[token] for token in kept])
    weights = {
        key: value[rows] if key.endswith(WORD_TABLES) else value for key, value in model.state_dict().items()
    }
    config = type(model.config).from_dict({**model.config.to_dict(), "vocab_size": len(kept)})
    smaller = type(model)(config)
    smaller.load_state_dict(weights)
    return smaller.eval(), tokenizer_of(kept)


def measured(workspace: Path, place: Path) -> float:
    """What a packed model is worth on the test photos, in percent."""
    line = (
        f"threshold-sweep --task {task_of(place)} --data data --split test --thresholds 0 --json --overwrite"
    )
    command = [sys.executable, "-m", "tbkin_cli", *line.split(), "--checkpoint", str(place.resolve())]
    done = subprocess.run(command, cwd=workspace, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["rows"][0]["accuracy"])


def test_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a report on the test photos."""
    return [row for row in results["report"] if row["split"] == "test"]


def figures(results: Mapping[str, Any]) -> str:
    """The table of a model card: photos that the model has not seen and that chose no epoch."""
    lines = ["| | test | 95 % interval | n |", "|---|---|---|---|"]
    for row in test_rows(results):
        name = f"{row['part']}, {row['model']}" if row.get("part") else row["model"]
        interval = f"{row['accuracy_low']:.1f} to {row['accuracy_high']:.1f}"
        also = "".join(f"; {key} {entry['value']:.1f}" for key, entry in (row.get("also") or {}).items())
        lines.append(f"| {name} | {row['accuracy']:.1f} %{also} | {interval} | {row['n']:,} |")
    kinds = results.get("per_question_type") or {}
    if kinds and results.get("type_split") == "test":
        listed = ", ".join(f"{kind} {value:.0f} %" for kind, value in sorted(kinds.items()))
        lines += ["", f"By kind of question: {listed}."]
    return "\n".join(lines)


def own_row(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model's own rows on the test photos."""
    return [row for row in test_rows(results) if row["model"] == "this model"]


def own_accuracy(results: Mapping[str, Any]) -> float:
    """What the model is worth on the test photos, in percent; of retrieval the mean of both ways."""
    return float(np.mean([row["accuracy"] for row in own_row(results)]))


def about(name: str, results: Mapping[str, Any], photos: int) -> str:
    """The clause that tbkin says whenever the model is used."""
    rows = own_row(results)
    if name == "photo-answers":
        usual = next(row for row in test_rows(results) if row["model"] == "majority answer")
        return (
            f"it learnt from captions of {photos:,} photos of people and animals and is right on"
            f" {rows[0]['accuracy']:.0f} % of such questions about others (the commonest answer:"
            f" {usual['accuracy']:.0f} %); `tbkin finetune` makes one of your own questions"
        )
    found = ", ".join(f"{row['part']} {row['accuracy']:.0f} %" for row in rows)
    return (
        f"it learnt from captions of {photos:,} photos of people and animals; of 1,000 others it finds the"
        f" right one first: {found}; `tbkin finetune --task retrieval` makes one of your own captions"
    )


def card_text(
    name: str, model: Any, results: Mapping[str, Any], photos: Mapping[str, int], commands: Sequence[str]
) -> str:
    """The model card."""
    card = CARDS[name]
    answers = len(model.config.id2label)
    parts = [
        f"A small model for photos that comes with tbkin: it {card.does}. It is a demonstrator:"
        f" {card.knows.format(answers=answers)} English only; people, dogs and what they do outdoors it knows"
        " best, as its photos do.",
        '**Data.** Flickr8k (Hodosh, Young, Hockenmaier: "Framing image description as a ranking task", JAIR'
        f" 47, 2013), for research and education: {photos['train']:,} of its training photos with five"
        f" captions each; {photos['val']:,} others chose the epoch. No photo and no caption is in these"
        " files. Regions and their vectors are those of `--extractor photo`: EfficientNet-Lite2 with its"
        " ImageNet weights (Apache-2.0). Words began as those of all-MiniLM-L6-v2 (Apache-2.0).",
        "**Licence.** Of the weights Apache-2.0, as tbkin; mind what the photos were given out for.",
        f"**Size.** {model.num_parameters() / 1e6:.1f} million parameters, kept in half precision, computed"
        " in single.",
        f"**How good it is.** On {photos['test']:,} photos (Flickr8k's development set) that it has not seen"
        " and that chose no epoch; the recipe was made with an eye on them:",
    ]
    recipe = (
        "**Recipe.** `examples/shipped_models/photo_models.py`, which runs these commands, all training with"
        f" seed {SEED}:"
    )
    wrapped = [textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False) for part in parts]
    lines = "\n".join(f"    tbkin {line}" for line in commands)
    return "\n\n".join([f"# {name}", *wrapped, figures(results), textwrap.fill(recipe, 118), lines]) + "\n"


def pack(run: Path, data: Path, out: Path, name: str, photos: Mapping[str, int], commands: list[str]) -> int:
    """Write a run's checkpoint in half precision with its card; the bytes of its weights."""
    results, task = read_run(run)["results"], task_of(run)
    model, tokenizer = load_model(run, task)
    model, tokenizer = with_words(model, tokenizer, data, LEAST_SAID[name])
    place = out / name
    shutil.rmtree(place, ignore_errors=True)
    model.config.extractor = {key: it for key, it in model.config.extractor.items() if key != "store"}
    save_model(model.to(torch.float16), tokenizer, place)
    # It computes in single precision, whatever it is kept in.
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    write_json(place / "config.json", {**config, "dtype": "float32"})
    write_json(place / "about.json", {"task": task, "about": about(name, results, photos["train"])})
    text = card_text(name, model, results, photos, commands)
    (place / "README.md").write_text(text, encoding="utf-8")
    return (place / "model.safetensors").stat().st_size


def main(
    flickr: Annotated[Path, typer.Argument(help="Flickr8k.")],
    workspace: Annotated[Path, typer.Argument(help="Made, or gone on with.")],
    out: Annotated[Path, typer.Option()] = REPOSITORY / "tbkin_core" / "resources" / "models",
    pretrain_epochs: Annotated[int, typer.Option()] = 8,
    answer_epochs: Annotated[int, typer.Option()] = 8,
    search_epochs: Annotated[int, typer.Option()] = 6,
) -> None:
    """Make the data, train, and pack."""
    photos = write_data(flickr, workspace / "data")
    epochs = {
        "pretrain_epochs": pretrain_epochs, "answer_epochs": answer_epochs, "search_epochs": search_epochs
    }  # fmt: skip
    commands = {name: line.format(**epochs) for name, line in COMMANDS.items()}
    for name, line in commands.items():
        trains = line.startswith(("pretrain", "finetune"))
        tbkin(workspace, line, *(["--seed", str(SEED), "--out", name] if trains else []))
    for name in CARDS:
        needed = [line for other, line in commands.items() if other not in CARDS or other == name]
        size = pack(workspace / name, workspace / "data", out, name, photos, needed)
        before = own_accuracy(read_run(workspace / name)["results"])
        after = measured(workspace, out / name)
        print(
            f"{name}: {size / 1e6:.1f} MB; test {before:.2f} % as it was trained, {after:.2f} % as it is kept"
        )
        if size > MOST_BYTES or after < before - 0.5:
            print(f"more than {MOST_BYTES / 1e6:g} MB, or worse for it")
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
