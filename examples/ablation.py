"""What each part of structural knowledge masking brings, on a small world of drawn scenes.

    python examples/ablation.py [WORKSPACE] [--train 500] [--seeds 3] [--jobs 2]

Pretrains once a variant and seed, fine-tunes REC from it and VQA from that, as `tbkin finetune` does by
itself, and prints a table of the accuracies on val: mean over the seeds, smallest and largest, and the mean
difference from plain masking with the same seed. The variants add up: plain masking, + text structure,
+ image structure, + cross-modal structure, + interference removal; before them stands fine-tuning without
pretraining. The data of all is the same. Stopped and started again, it goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import scenes

console = Console(highlight=False)

SWITCHES = ("text_structure", "image_structure", "cross_modal_structure", "interference")
# Each variant has the switches of those before it, and its own.
VARIANTS: dict[str, tuple[str, ...] | None] = {
    "no pretraining": None,
    "plain masking": (),
    "+ text structure": SWITCHES[:1],
    "+ image structure": SWITCHES[:2],
    "+ cross-modal structure": SWITCHES[:3],
    "+ interference removal": SWITCHES[:4],
}


def tbkin(workspace: Path, *arguments: str) -> dict[str, Any]:
    """One tbkin command in the workspace; what it prints with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "tbkin_cli", *arguments, "--json", "--quiet"],
        cwd=workspace,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise typer.Exit(1)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def accuracy(result: dict[str, Any]) -> float:
    return float(
        next(
            row["accuracy"]
            for row in result["report"]
            if row["split"] == "val" and row["model"] == "this model"
        )
    )


def one_run(workspace: Path, variant: str, seed: int, epochs: dict[str, int]) -> dict[str, float]:
    """Validation accuracy of both tasks after pretraining as the variant has it."""
    switches = VARIANTS[variant]
    place = f"runs/ablation/{variant.replace('+ ', '').replace(' ', '-')}-{seed}"
    source = "none"
    if switches is not None:
        settings = workspace / f"{variant.replace('+ ', '').replace(' ', '-')}.yaml"
        lines = [f"  {name}: {str(name in switches).lower()}" for name in SWITCHES]
        settings.write_text("\n".join(["masking:", *lines]) + "\n", encoding="utf-8")
        source = f"{place}-pretrain"
        tbkin(
            workspace, "pretrain", "coco", "--config", settings.name, "--seed", str(seed),
            "--epochs", str(epochs["pretrain"]), "--out", source,
        )  # fmt: skip
    found = {}
    for task in ("rec", "vqa"):
        result = tbkin(
            workspace, "finetune", "--task", task, "--data", "coco", "--init", source, "--seed", str(seed),
            "--epochs", str(epochs[task]), "--out", f"{place}-{task}",
        )  # fmt: skip
        found[task] = accuracy(result)
        source = f"{place}-{task}"
    console.print(f"  {variant}, seed {seed}: VQA {found['vqa']:.1f} %, REC {found['rec']:.1f} %")
    return found


def main(
    workspace: Annotated[Path, typer.Argument(help="Made, or gone on with.")] = Path("ablation"),
    train: Annotated[int, typer.Option(help="Training scenes.")] = 500,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.")] = 3,
    jobs: Annotated[int, typer.Option(help="Runs side by side, one thread each.")] = 2,
    pretrain_epochs: Annotated[int, typer.Option()] = 8,
    vqa_epochs: Annotated[int, typer.Option()] = 5,
    rec_epochs: Annotated[int, typer.Option()] = 5,
) -> None:
    """Pretrain and fine-tune every variant with every seed, and show what came out."""
    if not (workspace / "coco" / "scene_graphs.json").exists():
        if workspace.exists() and any(workspace.iterdir()):
            console.print(f"ablation: {workspace} holds something else; name another workspace", markup=False)
            raise typer.Exit(2)
        scenes.generate(workspace / "coco", train=train, val=150, test=1, seed=0, workers=jobs)
    tbkin(workspace, "extract-features", "coco", "--workers", str(jobs))
    tbkin(workspace, "build-graphs", "coco")
    os.environ["OMP_NUM_THREADS"] = "1"
    epochs = {"pretrain": pretrain_epochs, "vqa": vqa_epochs, "rec": rec_epochs}
    cases = list(itertools.product(VARIANTS, range(seeds)))
    with ThreadPoolExecutor(jobs) as pool:
        # All variants of a seed before the next seed: stopped early, what there is can be compared.
        order = sorted(cases, key=lambda case: case[1])
        results = dict(
            zip(order, pool.map(lambda case: one_run(workspace, *case, epochs), order), strict=True)
        )
    table = Table(
        title=f"val accuracy in %, {seeds} seeds: mean (smallest to largest), against plain masking"
    )
    for column in ("pretraining", "VQA", "difference", "REC", "difference"):
        table.add_column(column, justify="left" if column == "pretraining" else "right")
    for variant in VARIANTS:
        cells = [variant]
        for task in ("vqa", "rec"):
            values = [results[variant, seed][task] for seed in range(seeds)]
            gains = [value - results["plain masking", seed][task] for seed, value in enumerate(values)]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
            cells.append(f"{statistics.mean(gains):+.1f}")
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
