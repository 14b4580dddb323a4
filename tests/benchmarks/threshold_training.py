"""What training under a threshold costs, by how the threshold is brought in.

    python tests/benchmarks/threshold_training.py WORKSPACE [--data coco] [--task vqa] [--init ...]
        [--seeds 3] [--epochs 5] [--threshold 0.3] [--selection relative]

WORKSPACE holds a dataset with its features (that of `examples/demo.py` does, with the REC model that its VQA
model begins from). For each seed `tbkin finetune` runs dense; with the threshold as it is by default, which
trains dense first; with the threshold from the first step, as published; and so with the dense gradient for
what is dropped (`--straight-through`). Prints accuracy on val, and the share of attention that is kept there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from simple_vqa import tbkin

WAYS = {
    "dense": "",
    "threshold, by default": "--threshold {tau:g} --selection {rule}",
    "threshold from the first step": "--threshold {tau:g} --selection {rule} --threshold-epochs 0",
    "the same, straight-through": (
        "--threshold {tau:g} --selection {rule} --threshold-epochs 0 --straight-through"
    ),
}


def main(
    workspace: Annotated[Path, typer.Argument()],
    data: Annotated[str, typer.Option(help="Dataset, from there.")] = "coco",
    task: Annotated[str, typer.Option()] = "vqa",
    init: Annotated[str, typer.Option(help="Where the weights begin.")] = "runs/finetune/rec",
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0 up.")] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    threshold: Annotated[float, typer.Option()] = 0.3,
    selection: Annotated[str, typer.Option()] = "relative",
    ways: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(WAYS)}.")] = None,
) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways or WAYS}
    for seed in range(seeds):
        for name, values in found.items():
            out = f"threshold-training/{name.replace(' ', '-').replace(',', '')}-{seed}"
            line = f"finetune --task {task} --data {data} --init {init} --epochs {epochs} --seed {seed}"
            result, seconds = tbkin(
                f"{line} --out {out} {WAYS[name].format(tau=threshold, rule=selection)}", workspace
            )
            measured = [json.loads(row) for row in (workspace / out / "metrics.jsonl").open()]
            kept = measured[result["best_epoch"] - 1].get("kept", 1.0)
            values.append((result["accuracy"]["val"], kept))
            print(
                f"{name}, seed {seed}: {values[-1][0]:.2f}, {100 * kept:.0f} % kept ({seconds:.0f} s)",
                flush=True,
            )
    for name, values in found.items():
        accuracy, kept = np.array(values).T
        spread = f" ± {np.std(accuracy, ddof=1):.2f}" if seeds > 1 else ""
        print(f"{name}: {accuracy.mean():.2f}{spread}, {100 * kept.mean():.0f} % of the attention kept")


if __name__ == "__main__":
    typer.run(main)
