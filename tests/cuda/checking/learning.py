"""Whether a model learns: drawn scenes, questions about them, and fine-tuning as `tbkin finetune` does it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from checking.machine import processors
from checking.outcome import FAILED, MEASURED, Check
from examples.scenes import generate
from tbkin_core.settings import ExtractFeaturesConfig, FinetuneConfig
from tbkin_core.stages.extract_features import extract_features
from tbkin_core.stages.finetune import finetune

SECONDS = 90.0
REST = 20.0  # seconds that a run takes beside its training


def run(check: Check) -> None:
    """Rows: accuracy on val beside the commonest answer's, after the epochs chosen and after 90 seconds."""
    with contextlib.chdir(check.place):
        if check.attempt("scenes", scenes, check) is None:
            return
        limit = 2.0 if check.tiny else min(SECONDS, max(check.left() - REST, 10))
        epochs = check.attempt("as chosen", learn, check, "as chosen", 0.0, 1 if check.tiny else None, limit)
        if epochs is None:
            return
        for title, threshold in (("longer", 0.0), ("longer, τ = 0.3", 0.3)):
            # Both are measured over as many epochs as fit into the time of the first.
            limit = 2.0 if check.tiny else min(SECONDS, check.left() - REST)
            count = 2 if check.tiny else int(epochs * limit)
            if limit > 1 and count:
                check.attempt(title, learn, check, title, threshold, count, limit)


def scenes(check: Check) -> Path:
    """A row: pictures drawn and their regions found, on the CPUs alone."""
    start = time.perf_counter()
    train, other, size = (8, 4, (128, 96)) if check.tiny else (1600, 200, (256, 192))
    made = generate("scenes", train, other, 0, 0, size, workers=1 if check.tiny else processors())
    drawn = time.perf_counter() - start
    workers = 0 if check.tiny else processors()  # each of several loads all that it needs
    extract_features(ExtractFeaturesConfig(data=Path("scenes"), extractor="builtin", workers=workers))
    seconds = time.perf_counter() - start
    note = f"{made['questions']:,} questions; drawing took {drawn:.1f} s, finding regions the rest"
    check.row(f"{made['images']:,} scenes", MEASURED, note, seconds=seconds)
    return Path("scenes")


def learn(check: Check, title: str, threshold: float, epochs: int | None, seconds: float) -> float:
    """A row: a model of size small, as `tbkin finetune` trains it, after so many epochs or seconds.

    Returns:
        Epochs that a second of training takes in.
    """
    device = "cpu" if check.device.type == "cpu" else f"cuda:{check.device.index or 0}"
    config = FinetuneConfig(
        task="vqa",
        data=Path("scenes"),
        size="tiny" if check.tiny else "small",
        init="none",
        threshold=threshold,
        epochs=epochs,
        max_minutes=seconds / 60,
        devices=device,
        out=Path(title.replace(" ", "-")),
    )
    results = finetune(config)
    rows = {entry.model: entry.accuracy for entry in results.report if entry.split == "val"}
    own, usual = rows["this model"], rows["majority answer"]
    values = results.results
    speed = f"{values['samples_per_second']:,.0f} samples a second"
    note = (
        f"the commonest answer {usual:.1f} %; {values['epochs']} epochs, {speed}, ended by {values['reason']}"
    )
    # Of some seconds on a CPU nothing can be asked.
    learnt = check.tiny or own > usual + 5
    columns = {"accuracy on val": f"{own:.1f} %", "seconds": values["seconds"]}
    check.row(title, MEASURED if learnt else FAILED, note, **columns)
    return float(values["epochs"]) / max(values["seconds"], 1e-3)
