"""The defaults on photos with the built-in features: majority answer, question alone, and the image.

    python tests/benchmarks/photo_vqa.py DATA WORKSPACE

DATA holds VQA v2 files and their photos, split by image (DAQUAR in this form, say). Copies it to WORKSPACE,
runs `tbkin extract-features`, `tbkin finetune --task vqa --blind` and `tbkin finetune --task vqa` with no
further flags, and prints each one's accuracy on val with its 95 % interval (bootstrap over images), the
paired difference, and the seconds. Each run keeps what is best on val: all are flattered a little.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from simple_vqa import tbkin

from tbkin_core.evaluation.intervals import bootstrap_interval, paired_difference


def main(
    data: Annotated[Path, typer.Argument()],
    workspace: Annotated[Path, typer.Argument()],
    seed: Annotated[int, typer.Option(help="Of both models.")] = 0,
) -> None:
    """Run and print."""
    if not (workspace / "data").exists():
        shutil.copytree(data, workspace / "data")
    made, seconds = tbkin("extract-features data --extractor builtin", workspace)
    print(f"extract-features: {made['images']} images, {seconds:.0f} s")
    scores, groups = {}, None
    for name, flags in (("question only", "--blind"), ("this model", "")):
        values, seconds = tbkin(f"finetune --task vqa --data data --seed {seed} {flags}", workspace)
        found = json.loads((workspace / values["out"] / "results-val.json").read_text())["results"]
        scores[name] = np.array([100 * row["score"] for row in found])
        groups = [str(row["image_id"]) for row in found]
        low, high = bootstrap_interval(scores[name], groups)
        print(f"{name}: {scores[name].mean():.1f} % ({low:.1f} to {high:.1f}), {seconds:.0f} s")
        for note in values["problems"]:
            print(f"  {note}")
    majority = next(row["accuracy"] for row in values["report"] if row["model"] == "majority answer")
    paired = paired_difference(scores["this model"], scores["question only"], groups)
    print(f"majority answer: {majority:.1f} %")
    print(
        f"this model - question only: {paired.difference:+.1f} ({paired.low:+.1f} to {paired.high:+.1f}),"
        f" p = {paired.p_value:.3f}, {len(found)} questions about {len(set(groups or []))} images"
    )


if __name__ == "__main__":
    typer.run(main)
