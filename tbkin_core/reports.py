"""What a fine-tuned model is worth on a split: rows beside those it is to be compared with, and each answer.

A row holds the accuracy in percent with its 95 % interval (bootstrap over images); `order` is its place in
the table. Every answer goes into `results-SPLIT.json`, of which `tbkin visualize --from` draws sheets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from tbkin_core.boxes import box_iou_paired
from tbkin_core.evaluation.intervals import bootstrap_interval
from tbkin_core.runs import finished_runs
from tbkin_core.settings import FinetuneConfig
from tbkin_core.support.files import write_json
from tbkin_core.tasks import (
    best_region_hits,
    largest_region_hits,
    majority_answer,
    official_accuracy,
    random_region_hits,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tbkin_core.datasets.records import Question
    from tbkin_core.tasks import RecSplit, VqaSplit

OWN_ROW = 3
"""`order` of the row of the model itself."""


def report_vqa(
    report: list[dict[str, Any]],
    name: str,
    split: VqaSplit,
    task: Any,
    model: PreTrainedModel,
    device: Any,
    training: Sequence[Question],
    config: FinetuneConfig,
    out: Path,
) -> dict[str, Any]:
    """Add the rows of a split to `report`; the accuracies by type, as values of the run."""
    images = [item.image_id for item in split.questions]
    order = [item.question_id for item in split.questions]

    def row(model: str, accuracy: Any, place: int) -> dict[str, Any]:
        scores = [accuracy.per_question[question_id] for question_id in order]
        return _row(name, model, scores, images, place)

    predicted, probability = task.predict(model, split.inputs, device)
    accuracy = official_accuracy(split, predicted)
    rows = [
        {
            "question_id": item.question_id,
            "image_id": item.image_id,
            "text": item.question,
            "type": item.question_type or item.answer_type,
            "answer": answer,
            "probability": round(float(certainty), 4),
            "answers": {name: round(score, 4) for name, score in scores.items()},
            "score": round(accuracy.per_question[item.question_id] / 100, 4),
        }
        for item, answer, certainty, scores in zip(
            split.questions, predicted, probability, split.scores, strict=True
        )
    ]
    _write_results(out, name, config, rows)
    if task.image_dropout and model.config.use_regions:
        hidden, _ = task.predict(model, replace(split.inputs, blind=True), device)
        report.append(row("this model, image hidden", official_accuracy(split, hidden), 2))
    majority = official_accuracy(split, [majority_answer(training)] * len(order))
    label = "this model, without the image" if config.blind else "this model"
    report += [row("majority answer", majority, 0), row(label, accuracy, OWN_ROW)]
    # Test comes last among the splits, and is the one to show by type.
    return {
        "per_question_type": accuracy.per_question_type,
        "per_answer_type": accuracy.per_answer_type,
        "type_split": name,
    }


def report_rec(
    report: list[dict[str, Any]],
    name: str,
    split: RecSplit,
    task: Any,
    model: PreTrainedModel,
    device: Any,
    config: FinetuneConfig,
    out: Path,
) -> None:
    """Add the rows of a split to `report`."""
    if not split.expressions:
        return
    images = [item.image_id for item in split.expressions]
    boxes, _, probability = task.predict(model, split.inputs, device)
    near = best_region_hits(split)
    overlaps = box_iou_paired(boxes, split.targets)
    rows = [
        {
            "sent_id": item.sent_id,
            "ref_id": item.ref_id,
            "image_id": item.image_id,
            "text": item.text,
            # What a better choice could mend, and what only other regions could.
            "type": "a region fits the target" if fits else "no region fits the target",
            "box": [round(float(side), 2) for side in box],
            "probability": round(float(certainty), 4),
            "target": [round(float(side), 2) for side in target],
            "iou": round(float(overlap), 4),
            "score": float(overlap > 0.5),
        }
        for item, fits, box, certainty, target, overlap in zip(
            split.expressions, near, boxes, probability, split.targets, overlaps, strict=True
        )
    ]
    _write_results(out, name, config, rows)
    report += [
        _row(name, label, 100 * np.asarray(hits, np.float64), images, place)
        for label, hits, place in (
            ("random region", random_region_hits(split), 0),
            ("largest region", largest_region_hits(split), 1),
            ("this model", task.hits(split, boxes), OWN_ROW),
            ("upper bound (a region of IoU>0.5 exists)", near, 4),
        )
    ]


def question_only_rows(config: FinetuneConfig, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the latest question-only model trained on the same data, to stand beside this one."""
    if config.task != "vqa" or config.blind:
        return []
    counts = {entry["split"]: entry["n"] for entry in results["report"]}
    for _, run in finished_runs("finetune"):
        # Another seed or --train-split may hold other questions out, and as many.
        same = run["results"].get("content") == results.get("content") is not None
        if run["settings"].get("blind") and same:
            return [
                {**entry, "model": "question only", "order": 2}
                for entry in run["results"]["report"]
                if entry["order"] == OWN_ROW and counts.get(entry["split"]) == entry["n"]
            ]
    results["problems"].append(
        "no question-only model to compare with: train one with"
        f" `tbkin finetune --task vqa --data {config.data} --blind`"
    )
    return []


def _row(split: str, model: str, scores: ArrayLike, images: Sequence[Any], order: int) -> dict[str, Any]:
    """A row, from a score in percent of each sample and the image that it is about."""
    values = np.asarray(scores, np.float64)
    # Ids may be numbers and texts at once.
    low, high = bootstrap_interval(values, [str(image_id) for image_id in images])
    return {
        "split": split,
        "model": model,
        "accuracy": float(values.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "n": len(values),
        "order": order,
    }


def _write_results(out: Path, split: str, config: FinetuneConfig, rows: list[dict[str, Any]]) -> None:
    """Write what a model answered to each sample of a split."""
    content = {"task": config.task, "split": split, "checkpoint": str(out), "data": str(config.data)}
    write_json(out / f"results-{split}.json", {**content, "results": rows}, indent=None)
