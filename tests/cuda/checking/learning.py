"""Whether a model learns: drawn scenes, questions about them, and fine-tuning as `tbkin finetune` does it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from checking.outcome import FAILED, MEASURED, Check
from examples.scenes import generate
from tbkin_core.settings import ExtractFeaturesConfig, FinetuneConfig
from tbkin_core.stages.extract_features import extract_features
from tbkin_core.stages.finetune import finetune

SECONDS = 90.0


def run(check: Check) -> None:
    """Rows: accuracy on val after 90 seconds beside the commonest answer's."""
    with contextlib.chdir(check.place):
        if check.attempt("scenes", scenes, check) is None:
            return
        seconds = 2.0 if check.tiny else min(SECONDS, max(check.left() - 20, 10))
        check.attempt("dense", learn, check, 0.0, seconds)
        if check.tiny or check.left() > 50:
            check.attempt("τ = 0.3", learn, check, 0.3, min(seconds, max(check.left() - 20, 2)))


def scenes(check: Check) -> Path:
    """A row: pictures drawn and their regions found, on the CPUs alone."""
    start = time.perf_counter()
    train, other, size = (8, 4, (128, 96)) if check.tiny else (2000, 200, (256, 192))
    workers = 1 if check.tiny else min(os.cpu_count() or 1, 16)
    made = generate("scenes", train, other, 0, 0, size, workers=workers)
    drawn = time.perf_counter() - start
    # A process of its own would load all that it needs.
    config = ExtractFeaturesConfig(
        data=Path("scenes"), extractor="builtin", workers=0 if check.tiny else None
    )
    extract_features(config)
    seconds = time.perf_counter() - start
    note = (
        f"{made['questions']:,} questions; drawn in {drawn:.0f} s, regions found in {seconds - drawn:.0f} s"
    )
    check.row(f"{made['images']:,} scenes", MEASURED, note, seconds=seconds)
    return Path("scenes")


def learn(check: Check, threshold: float, seconds: float) -> None:
    """A row: a model of size small after so many seconds."""
    device = "cpu" if check.device.type == "cpu" else f"cuda:{check.device.index or 0}"
    config = FinetuneConfig(
        task="vqa",
        data=Path("scenes"),
        size="tiny" if check.tiny else "small",
        threshold=threshold,
        # The rate falls with the time, so that the minutes end the run; a tiny one has few epochs too.
        epochs=2 if check.tiny else None,
        max_minutes=seconds / 60,
        image_dropout=0.0,
        devices=device,
        out=Path(f"learnt-{threshold:g}"),
    )
    results = finetune(config)
    rows = {entry.model: entry.accuracy for entry in results.report if entry.split == "val"}
    own, usual = rows["this model"], rows["majority answer"]
    values = results.results
    note = (
        f"commonest answer {usual:.1f} %; {values['epochs']} epochs, {values['samples_per_second']:,.0f} samples"
        f" a second, ended by {values['reason']}"
    )
    # Of some seconds on a CPU nothing can be asked.
    learnt = check.tiny or own > usual + 5
    title = "dense" if threshold == 0 else f"τ = {threshold:g}"
    columns = {"accuracy on val": f"{own:.1f} %", "seconds": values["seconds"]}
    check.row(title, MEASURED if learnt else FAILED, note, **columns)
