"""Retrieval with the defaults: recall both ways, with and without pretraining, over several seeds.

    python tests/benchmarks/retrieval.py DATA WORKSPACE [--seeds 3] [--minutes 10] [--pretrain-minutes 0]

DATA holds photos with captions and official splits (Flickr8k in its publisher's layout). Links it into
WORKSPACE, runs `tbkin extract-features` once, and for each seed `tbkin finetune --task retrieval --init
words` with no further flags than the minutes; with --pretrain-minutes also `tbkin build-graphs` and, for each
seed, `tbkin pretrain` before a second fine-tuning. Prints the rows of val: R@1 with its 95 % interval
(bootstrap over images), R@5, R@10 and the median rank; of several seeds at last the mean of R@1 both ways and
its spread (standard deviation). Each run keeps the epoch that is best on 250 images of val, which flatters it
a little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from simple_vqa import tbkin


def show(name: str, values: dict[str, Any], seconds: float) -> None:
    """Print the rows of a run on val."""
    print(f"{name} ({seconds:.0f} s, {values['epochs']} epochs):")
    for row in values["report"]:
        if row["split"] == "val":
            also = ", ".join(f"{key} {entry['value']:.1f}" for key, entry in row["also"].items())
            interval = f"({row['accuracy_low']:.1f} to {row['accuracy_high']:.1f})"
            print(f"  {row['part']}, {row['model']}: R@1 {row['accuracy']:.1f} {interval}, {also}")


def main(
    data: Annotated[Path, typer.Argument()],
    workspace: Annotated[Path, typer.Argument()],
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0 up.")] = 3,
    minutes: Annotated[float, typer.Option(help="Of fine-tuning, each model.")] = 10.0,
    pretrain_minutes: Annotated[float, typer.Option(help="Of pretraining; 0 leaves it out.")] = 0.0,
    extractor: Annotated[str, typer.Option(help="Of the features.")] = "auto",
) -> None:
    place = workspace / "data"
    place.mkdir(parents=True, exist_ok=True)
    for entry in data.iterdir():
        if entry.name not in ("features", "graphs") and not (place / entry.name).exists():
            (place / entry.name).symlink_to(entry.resolve())
    tbkin(f"extract-features data --extractor {extractor}", workspace)
    # Not auto, which would begin from the model that comes with tbkin.
    starts = {"without pretraining": "words"}
    if pretrain_minutes:
        tbkin("build-graphs data", workspace)
        starts["after pretraining"] = ""
    found: dict[str, list[float]] = {name: [] for name in starts}
    for seed in range(seeds):
        for name, init in starts.items():
            if not init:
                line = (
                    f"pretrain data --size tiny --seed {seed} --out pretrained-{seed}"
                    f" --max-minutes {pretrain_minutes:g}"
                )
                values, seconds = tbkin(line, workspace)
                print(f"pretraining, seed {seed} ({seconds:.0f} s): {values['validation']}")
            source = init or f"pretrained-{seed}"
            line = f"finetune --task retrieval --data data --seed {seed} --init {source}"
            values, seconds = tbkin(f"{line} --max-minutes {minutes:g}", workspace)
            show(f"seed {seed}, {name}", values, seconds)
            found[name].append(values["accuracy"]["val"])
    for name, values in found.items():
        spread = f" ± {np.std(values, ddof=1):.1f}" if seeds > 1 else ""
        print(f"{name}: R@1, mean of both ways and {seeds} seeds {np.mean(values):.1f}{spread}")


if __name__ == "__main__":
    typer.run(main)
