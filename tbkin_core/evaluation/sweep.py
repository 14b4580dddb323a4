"""Threshold sweep of a fine-tuned model: accuracy, sparsity and speed for every τ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.evaluation.attribution import attention_entropy, kept_counts
from tbkin_core.evaluation.bootstrap import bootstrap_interval, paired_difference
from tbkin_core.selection import Selection


@dataclass(frozen=True, slots=True)
class SweepConclusion:
    """What a sweep says in one sentence, and whether its best differs from dense beyond noise."""

    best: dict[str, Any]
    differs: bool
    all_alike: bool
    text: str


def sweep_rows(
    evaluate: Callable[[Selection], NDArray[np.float64]],
    measure: Callable[[Selection], tuple[float, float]],
    selections: Sequence[Selection],
    groups: Sequence[Any],
    seed: int = 0,
    done: Sequence[dict[str, Any]] = (),
    on_row: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Evaluate a model under each selection; the dense model first, and once.

    Args:
        evaluate: Score in [0, 1] of every sample (N,) under a selection.
        measure: Kept fraction and attention entropy under a selection.
        selections: What to evaluate; those of threshold 0 are the dense model.
        groups: N image ids: the bootstrap resamples images.
        done: Rows of an interrupted sweep over the same samples, with their "scores".
        on_row: Called after each row with all rows so far.

    Returns:
        Rows with selection, threshold, accuracy and its 95 % interval in percent, difference to dense with
        its interval and p value, kept_fraction, entropy, samples_per_second, scores.
    """
    rows: list[dict[str, Any]] = list(done)
    finished = {(row["selection"], row["threshold"]): row for row in rows}
    first = replace(selections[0], threshold=0.0) if selections else Selection()
    order = [first, *(selection for selection in selections if selection.threshold != 0)]
    dense: NDArray[np.float64] | None = None
    numbers = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    for selection in order:
        key = ("dense" if selection.threshold == 0 else selection.rule, selection.threshold)
        if key in finished:
            if dense is None:
                dense = np.array(finished[key]["scores"], np.float64)
            continue
        started = time.perf_counter()
        scores = evaluate(selection)
        seconds = time.perf_counter() - started
        kept, entropy = measure(selection)
        low, high = bootstrap_interval(scores, numbers, seed=seed)
        row: dict[str, Any] = {
            "selection": key[0],
            "threshold": selection.threshold,
            "accuracy": 100 * float(scores.mean()),
            "accuracy_low": 100 * low,
            "accuracy_high": 100 * high,
            "kept_fraction": kept,
            "entropy": entropy,
            "samples_per_second": len(scores) / seconds,
        }
        if dense is None:
            dense = scores
        else:
            difference = paired_difference(scores, dense, numbers, seed=seed)
            row |= {
                "difference": 100 * difference.difference,
                "difference_low": 100 * difference.low,
                "difference_high": 100 * difference.high,
                "p_value": difference.p_value,
            }
        row["scores"] = [round(float(score), 6) for score in scores]
        rows.append(row)
        on_row(rows)
    return rows


def conclude(rows: Sequence[dict[str, Any]]) -> SweepConclusion:
    """The best threshold, and an honest word on whether it beats the dense model."""
    best = max(rows, key=lambda row: row["accuracy"])
    dense = next(row for row in rows if row["threshold"] == 0)
    accuracies = [row["accuracy"] for row in rows]
    all_alike = len(rows) > 1 and max(accuracies) - min(accuracies) < 1e-9
    tried = sum(row["threshold"] != 0 for row in rows)
    # The best of many is best partly by luck: the level is divided by how many were tried (Bonferroni).
    differs = best["threshold"] != 0 and best["p_value"] * tried < 0.05 and best["difference"] > 0
    name = f"{best['selection']} τ = {best['threshold']:g}"
    if all_alike:
        text = "every threshold gives the same accuracy: the thresholds tried change no answer"
    elif best["threshold"] == 0:
        text = f"the dense model is best ({dense['accuracy']:.2f} %); no threshold improves on it"
    elif differs:
        text = (
            f"{name} is best ({best['accuracy']:.2f} %), above dense ({dense['accuracy']:.2f} %) beyond noise"
            f" (p = {best['p_value']:.3f}, {tried} thresholds tried)"
        )
    else:
        text = (
            f"{name} is best ({best['accuracy']:.2f} %), but does not differ from dense"
            f" ({dense['accuracy']:.2f} %) beyond noise (p = {best['p_value']:.3f}, {tried} thresholds tried)"
        )
    return SweepConclusion(best, differs, all_alike, text)


def measure_attention(model: Any, batches: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Kept fraction and mean entropy of attention over some batches of model inputs (tensors)."""
    import torch

    kept, total, entropy = 0.0, 0.0, []
    with torch.inference_mode():
        for batch in batches:
            records = model(**batch, output_attentions=True).attentions
            valid = torch.cat([batch["attention_mask"].bool(), batch["region_mask"].bool()], dim=1)
            for counts in kept_counts(records, valid, batch["input_ids"].shape[1]).values():
                kept += counts[:, 0].sum()
                total += counts[:, 1].sum()
            entropy.append(attention_entropy(records, valid))
    return kept / max(total, 1.0), float(np.mean(entropy)) if entropy else 0.0
