"""Threshold sweeps and what attention kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbkin_core.evaluation.attribution import (
    DIRECTIONS,
    attention_entropy,
    kept_counts,
)
from tbkin_core.evaluation.sweep import conclude, measure_attention, sweep_rows
from tbkin_core.modeling import AttentionRecord, TbkinConfig, TbkinForVqa
from tbkin_core.selection import Selection

SAMPLES = 400
GROUPS = [number // 4 for number in range(SAMPLES)]


class Model:
    """Answers right with a chance that depends on the selection; counts how often it is asked."""

    def __init__(self, accuracy: dict[float, float]) -> None:
        self.accuracy = accuracy
        self.asked: list[Selection] = []
        self.draw = np.random.default_rng(0).random(SAMPLES)

    def evaluate(self, selection: Selection) -> NDArray[np.float64]:
        self.asked.append(selection)
        return (self.draw < self.accuracy[selection.threshold]).astype(np.float64)

    def measure(self, selection: Selection) -> tuple[float, float]:
        return 1 - selection.threshold / 2, 1.5

    def rows(self, thresholds: list[float], **options: Any) -> list[dict[str, Any]]:
        selections = [Selection("relative", threshold) for threshold in thresholds]
        return sweep_rows(self.evaluate, self.measure, selections, GROUPS, **options)


def test_dense_is_evaluated_first_and_once() -> None:
    model = Model({0.0: 0.6, 0.2: 0.7, 0.5: 0.5})
    rows = model.rows([0.0, 0.2, 0.5])
    assert [selection.threshold for selection in model.asked] == [0.0, 0.2, 0.5]
    assert [(row["selection"], row["threshold"]) for row in rows] == [
        ("dense", 0.0),
        ("relative", 0.2),
        ("relative", 0.5),
    ]
    model.asked.clear()
    assert len(model.rows([0.2])) == 2, "without 0 among the thresholds, dense is there to compare with"
    selections = [Selection(rule, value) for rule in ("relative", "probability") for value in (0.0, 0.2)]
    model.asked.clear()
    sweep_rows(model.evaluate, model.measure, selections, GROUPS)
    assert [selection.threshold for selection in model.asked] == [0.0, 0.2, 0.2]


def test_rows_hold_accuracy_intervals_and_differences() -> None:
    rows = Model({0.0: 0.6, 0.2: 0.7}).rows([0.0, 0.2])
    dense, other = rows
    assert "difference" not in dense
    for row in rows:
        scores = np.array(row["scores"])
        assert row["accuracy"] == pytest.approx(100 * scores.mean())
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["samples_per_second"] > 0
    assert other["difference"] == pytest.approx(other["accuracy"] - dense["accuracy"])
    assert other["difference_low"] <= other["difference"] <= other["difference_high"]
    assert (dense["kept_fraction"], other["kept_fraction"], other["entropy"]) == (1.0, 0.9, 1.5)


def test_an_interrupted_sweep_goes_on_to_the_same_rows() -> None:
    thresholds, accuracy = [0.0, 0.2, 0.5], {0.0: 0.6, 0.2: 0.7, 0.5: 0.5}
    whole = Model(accuracy).rows(thresholds)
    saved: list[list[dict[str, Any]]] = []
    Model(accuracy).rows(thresholds, on_row=lambda rows: saved.append(list(rows)))
    assert [len(rows) for rows in saved] == [1, 2, 3]
    for done in saved[:2]:
        model = Model(accuracy)
        resumed = model.rows(thresholds, done=done)
        assert len(model.asked) == 3 - len(done)
        for found, expected in zip(resumed, whole, strict=True):
            for name in expected:
                assert name == "samples_per_second" or found[name] == pytest.approx(expected[name]), name


@pytest.mark.parametrize(
    ("accuracy", "differs", "all_alike", "part"),
    [
        ({0.0: 0.6, 0.2: 0.6}, False, True, "every threshold gives the same"),
        ({0.0: 0.6, 0.2: 0.5}, False, False, "the dense model is best"),
        ({0.0: 0.4, 0.2: 0.7}, True, False, "beyond noise (p = "),
        ({0.0: 0.6, 0.2: 0.605}, False, False, "does not differ from dense"),
    ],
)
def test_the_conclusion_is_honest(
    accuracy: dict[float, float], differs: bool, all_alike: bool, part: str
) -> None:
    rows = Model(accuracy).rows(sorted(accuracy))
    conclusion = conclude(rows)
    assert (conclusion.differs, conclusion.all_alike) == (differs, all_alike)
    assert part in conclusion.text
    assert conclusion.best["accuracy"] == max(row["accuracy"] for row in rows)


def test_the_best_of_many_needs_more_evidence() -> None:
    """p = 0.02 counts for one threshold tried, not for ten (Bonferroni)."""

    def row(threshold: float, accuracy: float, p_value: float) -> dict[str, Any]:
        return {
            "selection": "relative" if threshold else "dense",
            "threshold": threshold,
            "accuracy": accuracy,
            "difference": accuracy - 60,
            "p_value": p_value,
        }

    dense, best = row(0, 60, 1), row(0.5, 64, 0.02)
    assert conclude([dense, best]).differs
    assert not conclude([dense, best, *(row(0.01 * number, 60, 1) for number in range(1, 10))]).differs


def test_equal_accuracies_of_different_answers_prefer_dense() -> None:
    rows = Model({0.0: 0.6, 0.2: 0.6, 0.5: 0.3}).rows([0.0, 0.2, 0.5])
    assert conclude(rows).best["threshold"] == 0


# ---- attention ----------------------------------------------------------------------------------


def records_of(seed: int, layers: int, length: int, valid: torch.Tensor) -> list[AttentionRecord]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(layers):
        scores = torch.randn((len(valid), 2, length, length), generator=generator)
        scores = scores.masked_fill(~valid[:, None, None, :], float("-inf"))
        kept = scores >= scores.median(dim=-1, keepdim=True).values
        kept &= valid[:, None, None, :]
        kept |= scores == scores.amax(dim=-1, keepdim=True)
        found.append(AttentionRecord(scores, scores.masked_fill(~kept, float("-inf")).softmax(dim=-1), kept))
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), layers=st.integers(1, 3), text=st.integers(1, 5))
def test_kept_counts_and_entropy_equal_loops(seed: int, layers: int, text: int) -> None:
    length = 6
    valid = torch.rand((2, length), generator=torch.Generator().manual_seed(seed)) > 0.3
    valid[:, 0] = True
    records = records_of(seed, layers, length, valid)
    counts = kept_counts(records, valid, text)
    assert tuple(counts) == DIRECTIONS
    expected = {name: np.zeros((layers, 2)) for name in DIRECTIONS}
    entropies = []
    for layer, record in enumerate(records):
        for batch in range(2):
            for head in range(2):
                for query in range(length):
                    if not valid[batch, query]:
                        continue
                    weights = record.weights[batch, head, query].double().numpy()
                    entropies.append(-sum(value * np.log(value) for value in weights if value > 0))
                    for key in range(length):
                        if valid[batch, key]:
                            sides = ["text" if place < text else "image" for place in (query, key)]
                            row = expected["-to-".join(sides)][layer]
                            row += (bool(record.kept[batch, head, query, key]), 1)
    for name in DIRECTIONS:
        np.testing.assert_array_equal(counts[name], expected[name], err_msg=name)
    assert attention_entropy(records, valid) == pytest.approx(np.mean(entropies), abs=1e-5)


def test_a_model_is_measured_over_what_is_there() -> None:
    torch.manual_seed(0)
    config = TbkinConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        region_feature_size=3, num_answers=2, initializer_range=0.5,
    )  # fmt: skip
    model: Any = TbkinForVqa(config).eval()
    batch = {
        "input_ids": torch.randint(0, 20, (2, 4)),
        "attention_mask": torch.tensor([[True] * 4, [True, True, False, False]]),
        "region_features": torch.randn(2, 3, 3),
        "region_geometry": torch.rand(2, 3, 5),
        "region_mask": torch.tensor([[True] * 3, [True, False, False]]),
    }
    found = {}
    for threshold in (0.0, 0.3, 0.9, 1.0):
        model.tbkin.selection = Selection("relative", threshold)
        found[threshold] = measure_attention(model, [batch, batch])
    kept = [found[threshold][0] for threshold in sorted(found)]
    entropy = [found[threshold][1] for threshold in sorted(found)]
    assert kept[0] == 1
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == pytest.approx((7 + 3) / (7**2 + 3**2), abs=1e-6), "one key a query is left"
    assert entropy[-1] == pytest.approx(0, abs=1e-6)
    assert entropy[0] > entropy[2] > entropy[3]
