"""What a fine-tuned model is worth on a split: rows beside those it is to be compared with, and each answer.

A row holds the accuracy in percent with its 95 % interval (bootstrap over images). Every answer goes into
`results-SPLIT.json`, of which `tbkin visualize --from` draws sheets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.evaluation.intervals import bootstrap_interval, paired_difference, too_few_images
from tbkin_core.results import ReportEntry
from tbkin_core.runs import finished_runs
from tbkin_core.settings import FinetuneConfig
from tbkin_core.support.files import write_json
from tbkin_core.support.places import place_of
from tbkin_core.tasks.base import OWN_ROW, FinetuneTask, LearningPlan, ReportRow, Split


@dataclass(slots=True)
class Report:
    """What a model is worth on all splits."""

    entries: list[ReportEntry] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)  # accuracies by type on the split reported last
    notes: list[str] = field(default_factory=list)  # what is worth knowing, one line each

    @property
    def accuracy(self) -> dict[str, float]:
        """The model's accuracy in percent by split; of several parts of a task the mean."""
        found: dict[str, list[float]] = {}
        for entry in self.entries:
            if entry.order == OWN_ROW:
                found.setdefault(entry.split, []).append(entry.accuracy)
        return {split: sum(values) / len(values) for split, values in found.items()}


def report_splits(
    task: FinetuneTask,
    model: Any,
    splits: Mapping[str, Split],
    training: Split,
    config: FinetuneConfig,
    plan: LearningPlan,
    out: Path,
) -> Report:
    """Evaluate a model on splits and write what it answered to each sample into `out`/results-SPLIT.json.

    Args:
        model: In evaluation mode, on its device.
        training: What it was trained on, for baselines.
        config, plan: What the model was trained with.
    """
    report = Report()
    baselines, fitted = None, False
    for name, split in splits.items():
        if not len(split):
            continue  # none of its images has features, which a note has said
        if not task.scored(split):
            report.notes.append(f"{name}: has no {task.label}, so it is not evaluated")
            continue
        predictions = task.predict(model, split.inputs, model.device, plan.batch_size)
        hidden = None
        if plan.image_dropout and model.config.use_regions:
            blind = replace(split.inputs, blind=True)
            hidden = task.predict(model, blind, model.device, plan.batch_size)
        found = task.report(split, predictions, training.samples, config.blind, hidden)
        if not fitted:
            baselines, fitted = task.baselines(training, model, config.blind), True
        simple = baselines.rows(split) if baselines else []
        content = {
            "task": task.name,
            "split": name,
            "checkpoint": str(place_of(out)),
            "data": str(config.data),
        }
        write_json(out / f"results-{name}.json", {**content, "results": found.results}, indent=None)
        report.entries += [report_entry(name, row, split.image_ids) for row in (*found.rows, *simple)]
        # Test comes last among the splits, and is the one to show by type.
        if found.by_type:
            report.values |= {**found.by_type, "type_split": name}
        few = too_few_images(name, split.image_ids)
        report.notes += few or _better_baseline(name, found.rows, simple, split.image_ids)
    if baselines:
        report.values |= baselines.values
        report.notes += baselines.notes
    return report


def _better_baseline(
    split: str, rows: Sequence[ReportRow], simple: Sequence[ReportRow], image_ids: Sequence[Any]
) -> list[str]:
    """A note where the best of the simple models does better than the model itself, if only by chance."""
    notes = []
    for own in (row for row in rows if row.order == OWN_ROW):
        others = [row for row in simple if row.part == own.part]
        best = max(others, key=lambda row: row.scores.mean(), default=own)
        images = image_ids if own.image_ids is None else own.image_ids
        paired = paired_difference(best.scores, own.scores, [str(image_id) for image_id in images])
        if paired.difference <= 0:
            continue
        verdict = "does better" if paired.low > 0 else "does no worse"
        where = f"{split}, {own.part}" if own.part else split
        notes.append(
            f"{where}: the linear model {verdict} ({best.model}): {best.scores.mean():.1f} % against"
            f" {own.scores.mean():.1f} %, {paired.difference:+.1f} ({paired.low:+.1f} to {paired.high:+.1f})"
        )
    return notes


def report_entry(split: str, row: ReportRow, image_ids: Sequence[Any]) -> ReportEntry:
    """An entry with its interval, from a row and the images (N,) of the split's samples."""
    # Ids may be numbers and texts at once.
    images = [str(image_id) for image_id in (image_ids if row.image_ids is None else row.image_ids)]

    def measured(scores: NDArray[np.float64]) -> tuple[float, float, float]:
        return float(scores.mean()), *bootstrap_interval(scores, images)

    names = ("value", "low", "high")
    also = {name: dict(zip(names, measured(scores), strict=True)) for name, scores in row.also.items()}
    also |= {name: {"value": value} for name, value in row.values.items()}
    found = (*measured(row.scores), len(row.scores), row.order)
    return ReportEntry(split, row.model, *found, row.part or None, also or None)


def question_only_entries(results: Mapping[str, Any]) -> list[ReportEntry] | None:
    """Entries of the latest question-only model of the same data as a run; None where there is none."""
    counts = {entry["split"]: entry["n"] for entry in results["report"]}
    for _, run in finished_runs("finetune"):
        # Another seed or --train-split may hold other questions out, and as many.
        same = run["results"].get("content") == results.get("content") is not None
        if run["settings"].get("blind") and same:
            return [
                replace(ReportEntry.read(entry), model="question only", order=2)
                for entry in run["results"]["report"]
                if entry["order"] == OWN_ROW and counts.get(entry["split"]) == entry["n"]
            ]
    return None
