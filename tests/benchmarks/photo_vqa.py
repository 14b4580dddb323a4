"""The defaults on photos: majority answer, linear models, question alone, and the image, over several seeds.

    python tests/benchmarks/photo_vqa.py DATA WORKSPACE [--seeds 3] [--extractor auto] [--minutes 10]
        [--init words]

DATA holds VQA v2 files and their photos, split by image (DAQUAR in this form, or what caption_questions.py
makes of a dataset with captions). Copies it to WORKSPACE, runs `tbkin extract-features` once, and for each
seed `tbkin finetune --task vqa --blind` and `tbkin finetune --task vqa`, from words unless --init says
otherwise, with no further flags than the minutes. Prints the accuracy on val with its 95 % interval
(bootstrap over images), the paired differences, the linear models' rows, and the seconds; of several seeds at
last the means and their spread (standard deviation), with intervals that cover training again. Each run keeps
what is best on val: all but the linear models are flattered a little.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from simple_vqa import tbkin

from tbkin_core.evaluation.intervals import bootstrap_interval, paired_difference

BLIND, SEEING, LINEAR = "question only", "this model", "linear, with image"


def answered(workspace: Path, run: str) -> tuple[NDArray[np.float64], list[str]]:
    """What each question of val earned in percent (N,), and its image."""
    found = json.loads((workspace / run / "results-val.json").read_text())["results"]
    return np.array([100 * row["score"] for row in found]), [str(row["image_id"]) for row in found]


def row_of(values: dict[str, Any], model: str) -> float:
    """Accuracy in percent of a baseline on val, as a run reports it."""
    rows = (row for row in values["report"] if row["split"] == "val")
    return next(row["accuracy"] for row in rows if row["model"] == model)


def one_seed(
    workspace: Path, seed: int, minutes: float, init: str
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Train both models and print what they are worth; (N,) scores of each, and the N questions' images."""
    scores, images, values = dict[str, NDArray[np.float64]](), list[str](), dict[str, Any]()
    for name, flags in ((BLIND, "--blind --init words"), (SEEING, f"--init {init}")):
        line = f"finetune --task vqa --data data --seed {seed} --max-minutes {minutes:g} {flags}"
        values, seconds = tbkin(line, workspace)
        scores[name], images = answered(workspace, values["out"])
        low, high = bootstrap_interval(scores[name], images)
        print(f"  {name}: {scores[name].mean():.1f} % ({low:.1f} to {high:.1f}), {seconds:.0f} s")
        for note in values["problems"]:
            print(f"    {note}")
    if seed == 0:  # the same for all
        for model in ("majority answer", "linear, question only", LINEAR):
            print(f"  {model}: {row_of(values, model):.1f} %")
    print(f"  image: {difference(scores[SEEING], scores[BLIND], images)}")
    print(f"  above {LINEAR}: {scores[SEEING].mean() - row_of(values, LINEAR):+.1f}")
    return scores, images


def difference(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    images: list[str],
    runs: NDArray[np.int64] | None = None,
) -> str:
    """A paired difference in words."""
    paired = paired_difference(first, second, images, runs)
    interval = f"({paired.low:+.1f} to {paired.high:+.1f})"
    return f"{paired.difference:+.1f} {interval}, p = {paired.p_value:.3f}"


def main(
    data: Annotated[Path, typer.Argument()],
    workspace: Annotated[Path, typer.Argument()],
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0 up.")] = 3,
    extractor: Annotated[str, typer.Option(help="Of the features.")] = "auto",
    minutes: Annotated[float, typer.Option(help="Of training, each model.")] = 10.0,
    init: Annotated[str, typer.Option(help="auto begins from the model that comes with tbkin.")] = "words",
) -> None:
    """Run and print."""
    if not (workspace / "data").exists():
        shutil.copytree(data, workspace / "data")
    made, seconds = tbkin(f"extract-features data --extractor {extractor}", workspace)
    print(f"extract-features: {made['images']} images by {made['extractor']}, {seconds:.0f} s")
    all_scores, all_images = dict[str, list[NDArray[np.float64]]](), list[str]()
    for seed in range(seeds):
        print(f"seed {seed}", flush=True)
        scores, images = one_seed(workspace, seed, minutes, init)
        for name, values in scores.items():
            all_scores.setdefault(name, []).append(values)
        all_images += images
    print(f"{len(all_images) // seeds} questions about {len(set(all_images))} images")
    if seeds > 1:
        runs = np.repeat(np.arange(seeds), len(all_images) // seeds)
        for name, each in all_scores.items():
            means = np.array([values.mean() for values in each])
            low, high = bootstrap_interval(np.concatenate(each), all_images, runs)
            print(f"{name}: {means.mean():.1f} ± {means.std(ddof=1):.1f} % ({low:.1f} to {high:.1f})")
        both = (np.concatenate(all_scores[name]) for name in (SEEING, BLIND))
        print(f"image: {difference(*both, all_images, runs)}")


if __name__ == "__main__":
    typer.run(main)
