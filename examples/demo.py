"""The whole path on a small world of drawn scenes: all six subcommands, then a table of what came out.

    python examples/demo.py [WORKSPACE] [--train 1500] [--quick | --full]

Every line that starts with `$` is a command one can type in the workspace.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import scenes
from tbkin_core.support.console import duration

console = Console(highlight=False)

SECONDS = {
    "draw": 21, "extract-features": 65, "build-graphs": 9, "pretrain": 60, "rec": 140, "blind": 24,
    "vqa": 250, "sweep": 11, "test": 9, "visualize": 8, "sheet": 8, "checks": 50,
}  # fmt: skip
"""What each step takes on two idle cores, with 1,500 training scenes."""
SCENES, FEWER_SCENES = 1500, 600
LONGEST = 25 * 60
"""Seconds that it may take by what its first step took; a slower or busier machine gets fewer scenes."""


class Course:
    """How far the demo is, and the time that is left by what its steps took so far."""

    def __init__(self, scale: float) -> None:
        self.left = {name: scale * seconds for name, seconds in SECONDS.items()}
        self.expected = self.spent = 0.0

    def took(self, step: str, seconds: float) -> str:
        """What a step took, and what is left."""
        self.expected += self.left.pop(step)
        self.spent += seconds
        return f"{duration(seconds)}, step {len(SECONDS) - len(self.left)} of {len(SECONDS)}" + (
            f", some {duration(self.seconds_left(), rounded=True)} left" if self.left else ""
        )

    def seconds_left(self) -> float:
        """By the speed of this machine so far."""
        return sum(self.left.values()) * self.spent / self.expected


def run(line: str, workspace: Path, course: Course, step: str) -> dict[str, Any]:
    """Run one tbkin command in the workspace, show it, and return what --json prints."""
    console.print(f"\n$ {line}", markup=False, soft_wrap=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", "tbkin_cli", *shlex.split(line)[1:], "--json"]
    done = subprocess.run(command, cwd=workspace, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        console.print(f"demo: `{line}` ended with exit code {done.returncode}", markup=False)
        raise typer.Exit(1)
    console.print(f"  {course.took(step, time.perf_counter() - started)}", style="dim")
    return json.loads(done.stdout)


def main(
    workspace: Annotated[Path, typer.Argument(help="Made anew.")] = Path("demo"),
    train: Annotated[
        int | None, typer.Option(help="Training scenes.", show_default="1,500, fewer on a slow machine")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Few scenes, one epoch: shows the path, learns nothing.")
    ] = False,
    full: Annotated[bool, typer.Option(help="6,000 scenes: some 10 minutes of training on 2 cores.")] = False,
) -> None:
    """Draw scenes, run the six subcommands on them, and show the figures they print."""
    started = time.perf_counter()
    if (
        workspace.exists()
        and not (workspace / "coco" / "scene_graphs.json").exists()
        and any(workspace.iterdir())
    ):
        console.print(f"demo: {workspace} holds something else; name another workspace", markup=False)
        raise typer.Exit(2)
    shutil.rmtree(workspace, ignore_errors=True)
    workers = os.cpu_count() or 1
    count, held = (24, 8) if quick else (6000 if full else train or SCENES, 150)
    adapts = train is None and not quick and not full
    course = drawn(workspace / "coco", count, held, workers)
    if adapts and course.seconds_left() > LONGEST:
        console.print(
            f"this machine is slow or busy: with {count} scenes the demo would take some"
            f" {duration(course.seconds_left(), rounded=True)}"
        )
        shutil.rmtree(workspace / "coco")
        course = drawn(workspace / "coco", FEWER_SCENES, held, workers)
    chosen = {"pretrain": 6, "rec": 7, "blind": 4, "vqa": 10}
    if full:
        chosen = {"pretrain": 1, "rec": 3, "blind": 2, "vqa": 10}
    epochs = {name: f"--epochs {1 if quick else count}" for name, count in chosen.items()}

    features = run("tbkin extract-features coco/", workspace, course, "extract-features")
    graphs = run("tbkin build-graphs coco/", workspace, course, "build-graphs")
    pretrained = run(f"tbkin pretrain coco/ {epochs['pretrain']}", workspace, course, "pretrain")
    rec = run(f"tbkin finetune --task rec {epochs['rec']}", workspace, course, "rec")
    blind = run(f"tbkin finetune --task vqa --blind {epochs['blind']}", workspace, course, "blind")
    vqa = run(f"tbkin finetune --task vqa {epochs['vqa']}", workspace, course, "vqa")
    # Thresholds are compared on val; test is looked at for the two that were fixed beforehand.
    sweep = run(
        "tbkin threshold-sweep --task vqa --thresholds 0,0.1,0.3,0.5,0.7,0.9", workspace, course, "sweep"
    )
    line = "tbkin threshold-sweep --task vqa --split test --thresholds 0,0.3 --out runs/threshold-sweep/test"
    test = run(line, workspace, course, "test")
    picture, question = one_question(workspace / "coco")
    shutil.copyfile(picture, workspace / "img.jpg")
    shown = run(f"tbkin visualize img.jpg {shlex.quote(question)} --html", workspace, course, "visualize")
    sheet = run(f"tbkin visualize --from {vqa['results'][0]} --wrong --limit 12", workspace, course, "sheet")

    rows = {row["threshold"]: row for row in test["rows"]}
    table = Table(title="Scenes, test split", title_justify="left")
    for column in ("task", "model", "accuracy"):
        table.add_column(column, justify="right" if column == "accuracy" else "left")
    majority = value_of(vqa, "test", "majority answer")
    without = value_of(blind, "test", "this model, without the image")
    table.add_row("VQA", "majority answer", f"{majority:.1f} %")
    table.add_row("VQA", "question only", f"{without:.1f} %")
    table.add_row("VQA", "dense", f"{rows[0.0]['accuracy']:.1f} %")
    table.add_row("VQA", "τ = 0.3", f"{rows[0.3]['accuracy']:.1f} %")
    for split in ("testA", "testB"):
        for model in ("random region", "largest region", "this model"):
            table.add_row(f"REC {split}", model, f"{value_of(rec, split, model):.1f} %")
    console.print()
    console.print(table)
    types = Table(title="VQA by question type, test split", title_justify="left")
    for column in vqa["per_question_type"]:
        types.add_column(column, justify="right")
    types.add_row(*(f"{value:.1f} %" for value in vqa["per_question_type"].values()))
    console.print(types)
    minutes = sum(result["seconds"] for result in (pretrained, rec, vqa)) / 60
    console.print(f"{minutes:.1f} minutes of training behind the VQA model, pretraining and REC included")
    console.print(f"sweep on val: {sweep['conclusion']}", markup=False, soft_wrap=True)
    kept = 100 * rows[0.3]["kept_fraction"]
    console.print(f"τ = 0.3 keeps {kept:.0f} % of the attention; {features['images']} images")
    anchored = 100 * graphs["anchored"] / graphs["captions"]
    console.print(
        f"{graphs['captions']} captions, {anchored:.0f} % with an anchor in the image", markup=False
    )
    gain = rows[0.0]["accuracy"] - without
    console.print(f"the image brings {gain:+.1f} points over the question alone", markup=False)
    console.print("\nchecks", style="bold")
    checking = time.perf_counter()
    zero = largest_difference_at_zero(workspace / vqa["out"])
    console.print(f"  τ = 0 against dense, all four rules: largest difference of a logit {zero:g}")
    killed = killed_runs(workspace)
    for stage, same in killed.items():
        console.print(
            f"  {stage} killed (SIGKILL) and started again: weights {'equal' if same else 'DIFFER'}"
        )
    console.print("  tbkin --help takes {:.2f} s, import torch {:.2f} s (medians of 5)".format(*start_up()))
    console.print(f"  {course.took('checks', time.perf_counter() - checking)}", style="dim")
    console.print(f"\nall in {duration(time.perf_counter() - started)}\n")
    console.print(f"open {workspace / shown['figure']}", markup=False, soft_wrap=True)
    page = next(file for file in shown["files"] if file.endswith(".html"))
    for file in (page, sheet["figure"], f"{sweep['out']}/sweep.png"):
        console.print(f"open {workspace / file}", markup=False, soft_wrap=True)
    if zero or not all(killed.values()):
        console.print("demo: a promise does not hold here, see the checks above", style="bold")
        raise typer.Exit(1)


def drawn(data: Path, train: int, held: int, workers: int) -> Course:
    """Draw the scenes, and say how long the demo will take by what that took."""
    console.print(f"drawing {train} + {held} + {held} scenes into {data}", markup=False)
    started = time.perf_counter()
    scenes.generate(data, train=train, val=held, test=held, seed=0, workers=workers)
    course = Course(train / SCENES)
    console.print(f"  {course.took('draw', time.perf_counter() - started)}", style="dim")
    return course


def value_of(result: dict[str, Any], split: str, model: str) -> float:
    """Accuracy of a model on a split, in percent."""
    return next(
        row["accuracy"] for row in result["report"] if row["split"] == split and row["model"] == model
    )


def largest_difference_at_zero(checkpoint: Path) -> float:
    """Largest difference between the dense model's logits and those under each rule at τ = 0."""
    import torch

    from tbkin_core.modeling.checkpoint import load_model
    from tbkin_core.selection import RULES, Selection

    model, _ = load_model(checkpoint, "vqa")
    generator = torch.Generator().manual_seed(0)
    batch, words, regions = 8, 12, 36
    inputs = {
        "input_ids": torch.randint(5, model.config.vocab_size, (batch, words), generator=generator),
        "attention_mask": torch.ones(batch, words, dtype=torch.bool),
        "region_features": torch.rand(batch, regions, model.config.region_feature_size, generator=generator),
        "region_geometry": torch.rand(batch, regions, 5, generator=generator),
        "region_mask": torch.arange(regions) < torch.arange(regions - batch, regions)[:, None],
    }
    with torch.inference_mode():
        model.tbkin.selection = Selection()
        dense = model(**inputs).vqa_logits
        differences = []
        for rule in RULES:
            model.tbkin.selection = Selection(rule, 0.0)
            differences.append(float((model(**inputs).vqa_logits - dense).abs().max()))
    return max(differences)


def killed_runs(workspace: Path) -> dict[str, bool]:
    """Whether a run that is killed and started again ends with the weights of one that is not."""
    small = workspace / "small"
    scenes.generate(small / "coco", train=16, val=4, test=4, seed=1)
    (small / "every-step.yaml").write_text("save_minutes: 0\n", encoding="utf-8")
    tbkin = [sys.executable, "-m", "tbkin_cli"]
    quiet = {"cwd": small, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for line in ("extract-features coco", "build-graphs coco"):
        subprocess.run([*tbkin, *line.split()], check=True, **quiet)  # type: ignore[call-overload]
    same = {}
    for stage, line in (
        ("pretrain", "pretrain coco"),
        ("finetune", "finetune --task vqa --data coco --init none"),
    ):
        command = [*tbkin, *line.split(), "--epochs", "3", "--config", "every-step.yaml", "--out"]
        subprocess.run([*command, f"{stage}-whole"], check=True, **quiet)  # type: ignore[call-overload]
        process = subprocess.Popen([*command, f"{stage}-killed"], **quiet)  # type: ignore[call-overload]
        while process.poll() is None and not (small / f"{stage}-killed/state/progress.json").exists():
            time.sleep(0.02)
        process.kill()
        killed = process.wait() < 0
        subprocess.run([*command, f"{stage}-killed"], check=True, **quiet)  # type: ignore[call-overload]
        weights = [(small / f"{stage}-{how}/model.safetensors").read_bytes() for how in ("whole", "killed")]
        same[stage] = killed and weights[0] == weights[1]
    return same


def start_up() -> tuple[float, float]:
    """Median seconds of `tbkin --help` and of `import torch`, five runs each in turn."""
    commands = ([sys.executable, "-m", "tbkin_cli", "--help"], [sys.executable, "-c", "import torch"])
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(5):
        for command, taken in zip(commands, seconds, strict=True):
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def one_question(data: Path) -> tuple[Path, str]:
    """A test image and a question about a colour in it."""
    content = json.loads((data / "v2_OpenEnded_scenes_test_questions.json").read_text(encoding="utf-8"))
    asked = next(item for item in content["questions"] if item["question"].startswith("what color"))
    return data / "test" / f"{asked['image_id']:012d}.jpg", asked["question"]


if __name__ == "__main__":
    typer.run(main)
