"""The defaults on data they were not made for: small pictures of one object, against a CNN made for them.

    python tests/benchmarks/simple_vqa.py WORKSPACE [--images 4000] [--cnn-minutes 5]

Draws 64 x 64 pictures of one shape in one of eight colours with questions about shape, colour and presence
(about ten an image, a quarter of them denied) in VQA v2 files; runs `tbkin extract-features` and
`tbkin finetune --task vqa` with no further flags; trains a small convolutional network with an embedding of
the question on the same pictures; and prints the accuracy of both on the val split, by answer type.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional

COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (45, 85, 220),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
    "teal": (20, 145, 150),
    "brown": (120, 72, 30),
    "yellow": (235, 210, 40),
}
SHAPES = ("circle", "rectangle", "triangle")
SIDE = 64


def draw(shape: str, color: str, source: np.random.Generator) -> Image.Image:
    """One picture: a jittered colour, a light background, any size and place."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in source.integers(225, 256, 3)))
    fill = tuple(
        int(value) for value in np.clip(np.array(COLORS[color]) + source.integers(-18, 19, 3), 0, 255)
    )
    width, height = (int(value) for value in source.integers(14, 40, 2))
    left, top = int(source.integers(0, SIDE - width)), int(source.integers(0, SIDE - height))
    box = (left, top, left + width, top + height)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(
            (left, top, left + width, top + width) if left + width < SIDE > top + width else box, fill
        )
    elif shape == "rectangle":
        pen.rectangle(box, fill)
    else:
        apex = left + int(source.integers(0, width + 1))
        pen.polygon([(left, top + height), (left + width, top + height), (apex, top)], fill)
    return image


def questions(shape: str, color: str, source: np.random.Generator) -> list[tuple[str, str]]:
    """About ten questions with their answers."""
    asked = [
        (
            str(
                source.choice(["what shape is in the image?", "what shape is present?", "what is the shape?"])
            ),
            shape,
        ),
        (str(source.choice(["what color is the shape?", f"what color is the {shape}?"])), color),
    ]
    for _ in range(8):
        other_color = color if source.random() < 0.5 else str(source.choice(list(COLORS)))
        other_shape = shape if source.random() < 0.5 else str(source.choice(SHAPES))
        kind = int(source.integers(3))
        named, true = (
            (f"{other_color} shape", other_color == color),
            (other_shape, other_shape == shape),
            (f"{other_color} {other_shape}", other_color == color and other_shape == shape),
        )[kind]
        denied = source.random() < 0.25
        start = str(
            source.choice(
                ["is there not a", "does the image not contain a", "is no"]
                if denied
                else ["is there a", "does the image contain a", "is a"]
            )
        )
        end = " present?" if start in ("is no", "is a") else str(source.choice(["?", " in the image?"]))
        asked.append((f"{start} {named}{end}", "yes" if true != denied else "no"))
    return asked


def write_data(root: Path, images: int, seed: int = 0) -> None:
    """VQA v2 files and pictures of `images` training and a fifth as many val images."""
    source = np.random.default_rng(seed)
    number = question_id = 0
    for split, count in (("train", images), ("val", images // 5)):
        (root / split).mkdir(parents=True, exist_ok=True)
        asked, answered = [], []
        for _ in range(count):
            number += 1
            shape, color = str(source.choice(SHAPES)), str(source.choice(list(COLORS)))
            draw(shape, color, source).save(root / split / f"{number:06d}.png")
            for question, answer in questions(shape, color, source):
                question_id += 1
                asked.append({"question_id": question_id, "image_id": number, "question": question})
                kind = "yes/no" if answer in ("yes", "no") else "other"
                answered.append(
                    {
                        "question_id": question_id,
                        "image_id": number,
                        "question_type": " ".join(question.split()[:2]),
                        "answer_type": kind,
                        "multiple_choice_answer": answer,
                        "answers": [{"answer": answer, "answer_id": place} for place in range(1, 11)],
                    }
                )
        for name, content in (
            (f"v2_OpenEnded_simple_{split}_questions.json", {"questions": asked}),
            (f"v2_simple_{split}_annotations.json", {"annotations": answered}),
        ):
            (root / name).write_text(json.dumps(content), encoding="utf-8")


def load(root: Path, split: str) -> tuple[torch.Tensor, list[tuple[int, str, str, str]]]:
    """Pictures (N, 3, 64, 64) in [0, 1], and (picture, question, answer, answer type)."""
    files = sorted((root / split).glob("*.png"))
    pictures = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    place = {int(file.stem): row for row, file in enumerate(files)}
    asked = json.loads((root / f"v2_OpenEnded_simple_{split}_questions.json").read_text())["questions"]
    answered = json.loads((root / f"v2_simple_{split}_annotations.json").read_text())["annotations"]
    rows = [
        (place[item["image_id"]], item["question"], entry["multiple_choice_answer"], entry["answer_type"])
        for item, entry in zip(asked, answered, strict=True)
    ]
    return pictures.permute(0, 3, 1, 2).float() / 255, rows


class Cnn(nn.Module):
    """Convolutions over the picture, a bag of words over the question, side by side; three dense layers."""

    def __init__(self, words: int, answers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 64)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.picture = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU())
        self.question = nn.Sequential(nn.Linear(words, 128), nn.ReLU())
        self.answer = nn.Sequential(
            nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, answers)
        )

    def forward(self, pictures: torch.Tensor, bags: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Answers to (Q, words) questions, each about the picture of N that `seen` (Q,) names."""
        return self.answer(torch.cat([self.picture(pictures)[seen], self.question(bags)], dim=1))


def train_cnn(root: Path, minutes: float) -> dict[str, float]:
    """Accuracy in percent by answer type on val after so many minutes."""
    torch.manual_seed(0)
    pictures, rows = load(root, "train")
    words = {w: n for n, w in enumerate(sorted({w for row in rows for w in row[1].rstrip("?").split()}))}
    answers = {answer: number for number, answer in enumerate(sorted({row[2] for row in rows}))}

    def tensors(split: list[tuple[int, str, str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        bags = torch.zeros(len(split), len(words))
        for place, row in enumerate(split):
            for word in row[1].rstrip("?").split():
                if word in words:
                    bags[place, words[word]] = 1
        return torch.tensor([row[0] for row in split]), bags, torch.tensor([answers[row[2]] for row in split])

    model = Cnn(len(words), len(answers))
    places, bags, targets = tensors(rows)
    of_picture = torch.arange(len(rows)).split(torch.bincount(places).tolist())  # questions stand by picture
    started, epochs = time.monotonic(), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    progress = 0.0
    while progress < 1:
        for chosen in torch.randperm(len(pictures)).split(32):
            progress = (time.monotonic() - started) / (60 * minutes)
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - progress)
            asked = torch.cat([of_picture[place] for place in chosen])
            repeats = torch.tensor([len(of_picture[place]) for place in chosen])
            # Each picture goes through the convolutions once, for all of its questions.
            seen = torch.arange(len(chosen)).repeat_interleave(repeats)
            loss = functional.cross_entropy(model(pictures[chosen], bags[asked], seen), targets[asked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epochs += 1
    model.eval()
    pictures, rows = load(root, "val")
    places, bags, targets = tensors(rows)
    with torch.inference_mode():
        right = torch.cat(
            [
                model(pictures[places[part]], bags[part], torch.arange(len(part))).argmax(1) == targets[part]
                for part in torch.arange(len(rows)).split(512)
            ]
        )
    kinds = np.array([row[3] for row in rows])
    found = {
        str(kind): 100 * float(right[torch.from_numpy(kinds == kind)].float().mean())
        for kind in sorted(set(kinds))
    }
    return {"all": 100 * float(right.float().mean()), **found, "epochs": epochs}


def tbkin(line: str, workspace: Path) -> tuple[dict[str, Any], float]:
    """What a command prints with --json, and its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tbkin_cli", *line.split(), "--json"]
    done = subprocess.run(command, cwd=workspace, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.monotonic() - started


def main(
    workspace: Annotated[Path, typer.Argument()],
    images: Annotated[int, typer.Option(help="Training images.")] = 4000,
    cnn_minutes: Annotated[float, typer.Option(help="Training time of the CNN; 0 leaves it out.")] = 5.0,
    cnn_alone: Annotated[bool, typer.Option("--cnn-alone", help="Train the CNN alone.")] = False,
    seed: Annotated[int, typer.Option(help="Of the data.")] = 0,
) -> None:
    """Run and print."""
    data = workspace / "data"
    if not data.exists():
        write_data(data, images, seed)
    if not cnn_alone:
        run_defaults(workspace)
    if cnn_minutes:
        print(f"CNN, {cnn_minutes:g} minutes: {train_cnn(data, cnn_minutes)}")


def run_defaults(workspace: Path) -> None:
    """Features and model with default flags."""
    made, seconds = tbkin("extract-features data --extractor builtin", workspace)
    print(f"extract-features: {seconds:.0f} s, {made['images']} images")
    model, seconds = tbkin("finetune --task vqa --data data", workspace)
    print(
        f"finetune: {seconds:.0f} s, accuracy {model['accuracy']}, by answer type {model['per_answer_type']}"
    )


if __name__ == "__main__":
    typer.run(main)
