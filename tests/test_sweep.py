"""Threshold sweeps and what attention kept."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbkin_core import stages
from tbkin_core.errors import DataError
from tbkin_core.evaluation.attribution import (
    DIRECTIONS,
    AttentionMeter,
    attention_entropy,
    kept_counts,
    recorded_samples,
)
from tbkin_core.evaluation.intervals import bootstrap_interval, paired_difference
from tbkin_core.evaluation.sweep import Evaluation, Measurement, Samples, conclude, p_text, summarise
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling import AttentionRecord, TbkinConfig, TbkinForVqa
from tbkin_core.runs import find_checkpoint, finished_runs
from tbkin_core.selection import Selection
from tbkin_core.settings import ThresholdSweepConfig
from tbkin_core.tasks.base import OWN_ROW

SAMPLES = 400
IMAGES = [number // 4 for number in range(SAMPLES)]
TYPES = ["yes/no" if number % 2 else "other" for number in range(SAMPLES)]


def measurement(
    threshold: float, scores: Any, seed: int = 0, rule: str = "relative", regions: int = 0
) -> Measurement:
    """Two layers; the first keeps all, the second what the threshold leaves of text to text."""
    kept = {name: [[8.0, 8.0], [8.0 * (1 - threshold), 8.0]] for name in DIRECTIONS}
    kept["image-to-image"] = [[0.0, 0.0], [0.0, 0.0]]
    name = rule if threshold else "dense"
    scores = list(map(float, scores))
    return Measurement(name, threshold, seed, scores, kept, 1.5 - threshold, 2.0, regions=regions)


def drawn(accuracy: float, seed: int = 0) -> NDArray[np.float64]:
    """Right answers with this chance; the same draws at any accuracy."""
    return (np.random.default_rng(seed).random(SAMPLES) < accuracy).astype(np.float64)


def rows_of(accuracies: dict[float, float]) -> list[dict[str, Any]]:
    found = [measurement(threshold, drawn(value)) for threshold, value in accuracies.items()]
    keys = [("relative", threshold) for threshold in accuracies]
    return summarise(found, {0: Samples(IMAGES, TYPES)}, keys)


# ---- rows ---------------------------------------------------------------------------------------


def test_rows_hold_accuracy_intervals_differences_and_shares() -> None:
    dense, other = rows_of({0.0: 0.6, 0.25: 0.7})
    assert (dense["selection"], other["selection"], other["threshold"]) == ("dense", "relative", 0.25)
    assert "difference" not in dense
    assert "accuracy_by_seed" not in dense
    for row, accuracy in ((dense, 0.6), (other, 0.7)):
        scores = drawn(accuracy)
        assert row["accuracy"] == pytest.approx(100 * scores.mean())
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["samples_per_second"] == SAMPLES / 2
        assert row["answer_types"] == pytest.approx(
            {"other": 100 * scores[::2].mean(), "yes/no": 100 * scores[1::2].mean()}
        )
    assert other["difference"] == pytest.approx(other["accuracy"] - dense["accuracy"])
    assert other["difference_low"] <= other["difference"] <= other["difference_high"]
    assert other["kept"]["text-to-image"] == [1.0, 0.75]
    assert other["kept"]["image-to-image"] == [None, None], "there was nothing to keep"
    assert (dense["kept_fraction"], other["kept_fraction"], other["entropy"]) == (1.0, 0.875, 1.25)


def test_samples_without_an_answer_type_count_for_none() -> None:
    """As in the report of `finetune`; they were told as "other"."""
    types = ["", "yes/no", "other", ""] * (SAMPLES // 4)
    scores = drawn(0.5)
    (row,) = summarise([measurement(0, scores)], {0: Samples(IMAGES, types)}, [])
    assert row["accuracy"] == pytest.approx(100 * scores.mean())
    assert row["answer_types"] == pytest.approx(
        {"yes/no": 100 * scores[1::4].mean(), "other": 100 * scores[2::4].mean()}
    )
    (row,) = summarise([measurement(0, scores)], {0: Samples(IMAGES, [""] * SAMPLES)}, [])
    assert "answer_types" not in row


def test_rows_come_in_order_with_dense_first_and_once() -> None:
    found = [measurement(value, drawn(0.5), rule=rule) for rule, value in (("topk", 4.0), ("relative", 0.1))]
    rows = summarise(
        [*found, measurement(0, drawn(0.5))], {0: Samples(IMAGES)}, [("relative", 0.1), ("topk", 4.0)]
    )
    assert [(row["selection"], row["threshold"]) for row in rows] == [
        ("dense", 0.0),
        ("relative", 0.1),
        ("topk", 4.0),
    ]
    assert "answer_types" not in rows[0]


def test_seeds_give_mean_and_spread_and_count_as_noise() -> None:
    """Gains of +10, 0 and -10 points are no gain; three times +3 are one, though each is smaller."""

    def last(gains: Sequence[float]) -> dict[str, Any]:
        found = []
        for seed, gain in enumerate(gains):
            base = drawn(0.6, seed)
            lifted = base.copy()
            places = np.flatnonzero(base == (0 if gain > 0 else 1))[: round(abs(gain) * SAMPLES)]
            lifted[places] = 1 - lifted[places]
            found += [measurement(0, base, seed), measurement(0.5, lifted, seed)]
        samples = {seed: Samples(IMAGES) for seed in range(len(gains))}
        return summarise(found, samples, [("relative", 0.5)])[-1]

    wild, steady = last([0.2, 0.01, -0.03]), last([0.06, 0.06, 0.06])
    assert wild["difference"] == pytest.approx(6)
    assert steady["difference"] == pytest.approx(6)
    assert len(wild["accuracy_by_seed"]) == 3
    assert wild["accuracy_spread"] == pytest.approx(np.std(wild["accuracy_by_seed"], ddof=1))
    assert wild["p_value"] > 0.2 > 0.01 > steady["p_value"]
    assert wild["difference_low"] < 0 < steady["difference_low"]


def test_the_spread_of_runs_widens_an_interval_as_students_t_does() -> None:
    values, runs = np.repeat([0.4, 0.5, 0.6], 100), np.repeat([0, 1, 2], 100)
    low, high = bootstrap_interval(values, runs=runs, samples=20000)
    # t with 2 degrees of freedom: 97.5 % lie below 4.303; the standard error of the runs is 0.1 / √3.
    assert (high - low) / 2 == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=0.1)
    assert bootstrap_interval(values, runs=np.zeros(300)) == bootstrap_interval(values)
    same = paired_difference(values + 0.1, values, runs=runs)
    assert same.low == pytest.approx(same.high), "each run gained the same"
    with pytest.raises(DataError, match="runs must be"):
        bootstrap_interval(values, runs=[1, 2])


# ---- conclusions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "differs", "all_alike", "part"),
    [
        ({0.0: 0.6, 0.2: 0.6}, False, True, "all 2 settings give the same accuracy"),
        ({0.0: 0.6, 0.2: 0.5}, False, False, "the dense model is best"),
        ({0.0: 0.4, 0.2: 0.7}, True, False, "above dense"),
        ({0.0: 0.6, 0.2: 0.605}, False, False, "does not differ from dense"),
    ],
)
def test_the_conclusion_is_honest(
    accuracy: dict[float, float], differs: bool, all_alike: bool, part: str
) -> None:
    rows = rows_of(accuracy)
    conclusion = conclude(rows)
    assert (conclusion.differs, conclusion.all_alike) == (differs, all_alike)
    assert part in conclusion.text
    assert conclusion.best["accuracy"] == max(row["accuracy"] for row in rows)


def test_models_trained_once_say_that_training_has_noise() -> None:
    rows = rows_of({0.0: 0.4, 0.2: 0.7})
    assert "--seeds 3" in conclude(rows, refit=True).text
    assert "--seeds" not in conclude(rows).text
    for row in rows:
        row["accuracy_by_seed"] = [1, 2, 3]
    assert "images and 3 seeds" in conclude(rows, refit=True).text


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


def test_a_clear_gain_is_told_from_noise_among_many() -> None:
    """A p value cannot fall below one in the number of resamples; that grows with the thresholds."""
    accuracies = {0.0: 0.3, **{0.01 * number: 0.3 for number in range(1, 60)}, 0.9: 0.8}
    assert conclude(rows_of(accuracies)).differs


def test_words_of_p_values_and_of_nothing_tried() -> None:
    assert [p_text(value) for value in (0.0312, 0.0005, 0.0002)] == ["0.031", "0.001", "< 0.001"]
    accuracies = {0.0: 0.3, **{0.01 * number: 0.3 for number in range(1, 60)}, 0.9: 0.8}
    assert "(p < 0.001, 60 settings tried)" in conclude(rows_of(accuracies)).text
    assert conclude(rows_of({0.0: 0.6})).text.startswith("only the dense model was measured")


def swept_regions(accuracies: dict[tuple[float, int], float]) -> list[dict[str, Any]]:
    """Rows of thresholds and numbers of regions, by the chance of a right answer."""
    found = [measurement(tau, drawn(value), regions=count) for (tau, count), value in accuracies.items()]
    keys = [("relative", tau) for tau, _ in accuracies]
    counts = sorted({count for _, count in accuracies})
    return summarise(found, {0: Samples(IMAGES, TYPES)}, keys, regions=counts)


def test_what_more_regions_cost_is_compared_with_what_they_cost_the_dense_model() -> None:
    rows = swept_regions({(0, 36): 0.9, (0.3, 36): 0.85, (0, 144): 0.6, (0.3, 144): 0.8})
    assert [(row["regions"], row["threshold"]) for row in rows] == [(36, 0), (36, 0.3), (144, 0), (144, 0.3)]
    assert "lost" not in rows[0] and "lost" not in rows[1]
    for before, after in ((0, 2), (1, 3)):
        lost = rows[before]["accuracy"] - rows[after]["accuracy"]
        assert rows[after]["lost"] == pytest.approx(lost)
        assert rows[after]["lost_low"] < lost < rows[after]["lost_high"]
    assert rows[3]["lost_more"] == pytest.approx(rows[3]["lost"] - rows[2]["lost"])
    assert rows[3]["difference"] == pytest.approx(rows[3]["accuracy"] - rows[2]["accuracy"])
    conclusion = conclude(rows)
    assert conclusion.best == rows[0], "of the first number of regions"
    assert f"dense loses {rows[2]['lost']:.2f}" in conclusion.text
    assert ": better than dense beyond noise" in conclusion.text and "no better" not in conclusion.text
    alike = swept_regions({(0, 36): 0.9, (0.3, 36): 0.9, (0, 144): 0.8, (0.3, 144): 0.8})
    assert "no better than dense" in conclude(alike).text
    assert "dense loses" in conclude(swept_regions({(0, 8): 0.9, (0, 16): 0.8})).text
    more = swept_regions({(0, 8): 0.8, (0, 16): 0.9})
    gained = f"dense gains {-more[1]['lost']:.2f} ({-more[1]['lost_high']:.2f} to {-more[1]['lost_low']:.2f})"
    assert gained in conclude(more).text
    one = swept_regions({(0, 36): 0.9, (0.3, 36): 0.85})
    assert "loses" not in conclude(one).text and "lost" not in one[0]


def test_equal_accuracies_of_different_answers_prefer_dense() -> None:
    rows = rows_of({0.0: 0.6, 0.2: 0.6, 0.5: 0.3})
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


def drawn_model() -> Any:
    """A small VQA model whose weights are large enough to prefer some keys."""
    torch.manual_seed(0)
    config = TbkinConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        region_feature_size=3, num_answers=2, initializer_range=0.5,
    )  # fmt: skip
    return TbkinForVqa(config).eval()


def test_a_model_is_measured_over_what_is_there() -> None:
    model = drawn_model()
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
        meter = AttentionMeter(model, 4)
        with torch.no_grad():
            outputs = [meter(**batch), meter(**batch)]
            assert torch.equal(outputs[0].vqa_logits, model(**batch).vqa_logits)
        assert meter.recorded == 4, "all of few"
        counts = np.sum([np.sum(rows, axis=0) for rows in meter.kept().values()], axis=0)
        found[threshold] = (counts[0] / counts[1], meter.entropy())
    kept = [found[threshold][0] for threshold in sorted(found)]
    entropy = [found[threshold][1] for threshold in sorted(found)]
    assert kept[0] == 1
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == pytest.approx((7 + 3) / (7**2 + 3**2), abs=1e-6), "one key a query is left"
    assert entropy[-1] == pytest.approx(0, abs=1e-6)
    assert entropy[0] > entropy[2] > entropy[3]


@settings(max_examples=200, deadline=None)
@given(samples=st.integers(1, 300_000))
def test_attention_is_recorded_of_samples_spread_over_all(samples: int) -> None:
    chosen = recorded_samples(samples)
    assert len(chosen) == samples
    assert min(samples, 65) <= chosen.sum() <= max(128, min(samples / 8, 4096))
    if samples <= 128:
        assert chosen.all()
    else:
        # As many in either half, up to a block.
        assert abs(chosen[: samples // 2].sum() - chosen[samples // 2 :].sum()) <= 64


def test_what_attention_kept_does_not_depend_on_the_batch_size() -> None:
    model = drawn_model()
    model.tbkin.selection = Selection("relative", 0.5)
    count = 200
    words, regions = torch.arange(count) // 20 + 2, torch.arange(count) % 5 + 1
    batch = {
        "input_ids": torch.randint(0, 20, (count, 12)),
        "attention_mask": torch.arange(12) < words[:, None],
        "region_features": torch.randn(count, 5, 3),
        "region_geometry": torch.rand(count, 5, 5),
        "region_mask": torch.arange(5) < regions[:, None],
    }
    found = []
    for size in (1, 7, 64, 200):
        meter = AttentionMeter(model, count)
        for begin in range(0, count, size):
            most = int(words[begin : begin + size].max())
            rows = {name: value[begin : begin + size] for name, value in batch.items()}
            texts = {name: rows[name][:, :most] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                meter(**{**rows, **texts})
        found.append((meter.kept(), meter.entropy()))
    for kept, entropy in found[1:]:
        assert kept == found[0][0]
        assert entropy == pytest.approx(found[0][1], abs=1e-5)
    assert 64 < meter.recorded < count


# ---- the command --------------------------------------------------------------------------------

LINE = ("threshold-sweep", "--task", "vqa")
# In `tbkin_core.stages` the name of a stage is its function.
finetune_module = importlib.import_module("tbkin_core.stages.finetune")
threshold_sweep_module = importlib.import_module("tbkin_core.stages.threshold_sweep")


def result(*arguments: str | Path, cwd: Path) -> dict[str, Any]:
    return json.loads(succeeds(*arguments, "--json", cwd=cwd).out)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Selection]:
    """What is evaluated from here on."""
    found: list[Selection] = []
    evaluate = Evaluation.__call__

    def spy(self: Any, selection: Selection, regions: int = 0) -> Measurement:
        found.append(selection)
        return evaluate(self, selection, regions)

    monkeypatch.setattr(Evaluation, "__call__", spy)
    return found


def test_one_command_compares_all_selections(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = counted(monkeypatch)
    rules = ("relative", "probability", "score=-1,1", "topk=1,4", "sparsemax", "entmax15")
    flags = [flag for rule in rules for flag in ("--selection", rule)]
    values = result(*LINE, *flags, "--thresholds", "0,0.3", "--out", "all", cwd=trained_workspace)
    expected = [
        "dense", "relative τ = 0.3", "probability τ = 0.3", "score τ = -1", "score τ = 1", "topk k = 1",
        "topk k = 4", "sparsemax", "entmax15",
    ]  # fmt: skip
    assert [selection.name for selection in asked] == expected
    assert [row["kept_fraction"] < 1 for row in values["rows"]] == [False, *[True] * 8]
    dense, relative = values["rows"][:2]
    assert set(dense["kept"]) == set(DIRECTIONS)
    assert set(dense["answer_types"]) == {"yes/no", "number", "other"}
    assert all(len(shares) == 2 and max(shares) < 1 for shares in relative["kept"].values())
    with (trained_workspace / "all/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["kept.text-to-image.layer 1"]) == pytest.approx(relative["kept"]["text-to-image"][1])
    assert float(rows[1]["accuracy.yes/no"]) == pytest.approx(relative["answer_types"]["yes/no"])
    for name in ("sweep.png", "sparsity.png"):
        assert (trained_workspace / "all" / name).stat().st_size > 5000


def test_figures_of_a_sweep_in_other_formats_for_one_column(trained_workspace: Path) -> None:
    line = (*LINE, "--thresholds", "0,0.3", "--out", "formats")
    formats = ("--format", "pdf", "--format", "svg", "--column")
    succeeds(*line, cwd=trained_workspace)
    values = result(*line, *formats, cwd=trained_workspace)
    out = trained_workspace / "formats"
    names = {f"{name}-column.{suffix}" for name in ("sweep", "sparsity") for suffix in ("pdf", "svg")}
    assert {path.name for path in out.iterdir()} >= names | {"sweep.png", "sparsity.png"}
    for suffix in ("pdf", "svg"):
        content = (out / f"sweep-column.{suffix}").read_bytes()
        assert (b"<text" if suffix == "svg" else b"/CIDFontType2") in content and b"/Type3" not in content
    assert len(values["rows"]) == 2
    # Figures of before are of what is measured now, too.
    os.utime(out / "sweep.png", (0, 0))
    result(*LINE, "--thresholds", "0,0.3,0.6", "--out", "formats", cwd=trained_workspace)
    assert (out / "sweep.png").stat().st_mtime > 0 and (out / "sweep-column.svg").exists()
    fails(*line, "--format", "gif", cwd=trained_workspace, code=2, says=("gif", "svg"))


def test_a_sweep_over_numbers_of_regions(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = trained_workspace
    store = FeatureStore(place / "coco/features")
    own = int(store.region_counts(range(len(store))).max())
    plain = result(*LINE, "--thresholds", "0,0.3", "--out", "plain", cwd=place)
    asked = counted(monkeypatch)
    line = (*LINE, "--thresholds", "0,0.3", "--out", "regions", "--regions")
    values = result(*line, f"2,{own}", cwd=place)
    assert [(row["regions"], row["threshold"]) for row in values["rows"]] == [
        (2, 0), (2, 0.3), (own, 0), (own, 0.3)
    ]  # fmt: skip
    assert len(asked) == 4
    for found, expected in zip(values["rows"][2:], plain["rows"], strict=True):
        assert {name: found[name] for name in ("accuracy", "kept")} == {
            name: expected[name] for name in ("accuracy", "kept")
        }
    assert values["rows"][0]["kept"]["image-to-image"] == [1.0, 1.0]
    assert f"with {own} regions in place of 2" in values["conclusion"]
    assert (place / "regions/regions.png").stat().st_size > 5000
    with (place / "regions/sweep.csv").open(newline="") as file:
        assert [row["regions"] for row in csv.DictReader(file)] == ["2", "2", str(own), str(own)]
    further = result(*line, f"2,5,{own}", cwd=place)
    assert len(asked) == 6 and len(further["rows"]) == 6, "what is measured is kept"
    shown = succeeds(*line, f"2,{own}", cwd=place).out
    assert "regions" in shown and "lost" in shown
    result(*line[:-1], cwd=place)
    assert not (place / "regions/regions.png").exists(), "it shows nothing of this sweep"
    fails(*line, f"2,{own + 1}", cwd=place, code=2, says=(f"regions: {own + 1} are", "--max-regions"))


def test_a_sweep_goes_on_after_each_threshold(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = [*LINE, "--thresholds", "0,0.2,0.4,0.6"]
    whole = result(*line, "--out", "whole", cwd=trained_workspace)
    asked = counted(monkeypatch)
    add = threshold_sweep_module.Keeper.add

    def killed(self: Any, entry: Measurement) -> None:
        add(self, entry)
        if len(self.found) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threshold_sweep_module.Keeper, "add", killed)
        fails(*line, "--out", "cut", cwd=trained_workspace, code=130, says="the same command goes on")
    assert len(asked) == 2
    rest = result(*line, "--out", "cut", cwd=trained_workspace)
    assert [selection.threshold for selection in asked] == [0, 0.2, 0.4, 0.6], "each once"
    for found, expected in zip(rest["rows"], whole["rows"], strict=True):
        for row in (found, expected):
            del row["samples_per_second"]
        assert found == expected


def test_a_sweep_takes_what_was_held_out_of_own_data_and_all_of_other(trained_workspace: Path) -> None:
    place = trained_workspace
    both = "finetune --task vqa --data coco --train-split train+val --epochs 1 --out both --json --init none"
    tuned = json.loads(succeeds(*both.split(), "--devices", "cpu", cwd=place).out)
    line = (*LINE, "--checkpoint", "both", "--thresholds", "0")
    own = result(*line, cwd=place)
    held = next(entry["n"] for entry in tuned["report"] if entry["split"] == "val")
    questions = len(
        json.loads((place / "coco/v2_OpenEnded_scenes_val_questions.json").read_text())["questions"]
    )
    assert own["samples"] == held < questions
    assert own["rows"][0]["accuracy"] == pytest.approx(tuned["accuracy"]["val"])
    assert any("val: only" in problem for problem in own["problems"])
    # The same samples at another place are own data; where they have changed they may be.
    shutil.copytree(place / "coco", place / "copy")
    copy = result(*line, "--data", "copy", cwd=place)
    assert copy["samples"] == held and copy["rows"][0]["accuracy"] == own["rows"][0]["accuracy"]
    assert not any("other data" in problem for problem in copy["problems"])
    file = place / "copy/v2_scenes_val_annotations.json"
    file.write_text(file.read_text().replace('"yes"', '"maybe"'))
    changed = result(*line, "--data", "copy", cwd=place)
    assert changed["samples"] == held
    assert "trained on train+val of other data than copy: divided as they were" in changed["problems"][0]
    # Nothing of other data need be there to train on.
    shutil.copytree(place / "coco", place / "other")
    for file in (place / "other").glob("v2_*train*"):
        file.unlink()
    other = result(*line, "--data", "other", cwd=place)
    assert other["samples"] == questions
    assert "taken whole: some of it may be trained on" in other["problems"][0]
    fails(*line, "--data", "other", "--split", "train", cwd=place, code=2, says="one of test, val")
    (place / "other/v2_scenes_val_annotations.json").unlink()
    fails(*line, "--data", "other", cwd=place, code=1, says="has no answers")


def test_a_run_is_evaluated_from_elsewhere_on_its_own_data(trained_workspace: Path) -> None:
    """A relative path leads from where the run was made, not into another directory's data of that name."""
    here, there = trained_workspace, trained_workspace.parent / "there"
    shutil.copytree(here / "coco", there / "coco")
    file = there / "coco/v2_scenes_val_annotations.json"
    file.write_text(file.read_text().replace('"answer": "', '"answer": "un'))
    run = Path("runs/finetune/vqa-relative-0.3")
    own = result(*LINE, "--thresholds", "0", "--checkpoint", run, cwd=here)
    away = result(*LINE, "--thresholds", "0", "--checkpoint", "../workspace" / run, cwd=there)
    assert away["data"] == "../workspace/coco"
    assert away["rows"][0]["accuracy"] == own["rows"][0]["accuracy"] > 0
    assert not any("changed" in problem for problem in away["problems"])
    sheet = ("visualize", "--from", "../workspace" / run / "results-val.json", "--limit", "2", "--json")
    assert json.loads(succeeds(*sheet, cwd=there).out)["problems"] == []
    # Moved as a whole, it finds what was moved with it.
    here.rename(here.with_name("moved"))
    moved = ("../moved" / run, "--thresholds", "0")
    assert result(*LINE, "--checkpoint", *moved, cwd=there)["data"] == "../moved/coco"


def test_report_and_sweep_agree_where_some_answers_have_no_type(trained_workspace: Path) -> None:
    file = trained_workspace / "coco/v2_scenes_val_annotations.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"][::2]:
        entry["answer_type"] = ""
    file.write_text(json.dumps(content))
    tune = "finetune --task vqa --data coco --epochs 1 --out typed --json --init none --devices cpu"
    for file in (trained_workspace / "coco").glob("v2_*_test_*"):
        file.unlink()
    report = json.loads(succeeds(*tune.split(), cwd=trained_workspace).out)
    assert report["type_split"] == "val"
    values = result(*LINE, "--checkpoint", "typed", "--thresholds", "0", cwd=trained_workspace)
    assert values["rows"][0]["answer_types"] == pytest.approx(report["per_answer_type"])


def test_a_sweep_says_where_the_model_selects(trained_workspace: Path) -> None:
    place, vqa = trained_workspace, "runs/finetune/vqa-relative-0.3"
    line = (*LINE, "--checkpoint", vqa, "--thresholds", "0,0.3")
    assert "where" not in result(*line, cwd=place)["rows"][1]
    config = json.loads((place / vqa / "config.json").read_text())
    config |= {"threshold_layers": [1], "threshold_scope": "cross-modal"}
    (place / vqa / "config.json").write_text(json.dumps(config))
    values = result(*line, "--out", "some", cwd=place)
    where = "in layer 1, across modalities"
    assert [row["where"] for row in values["rows"]] == ["", where]
    assert sum(where in problem for problem in values["problems"]) == 1
    with (place / "some/sweep.csv").open(newline="") as file:
        assert [row["where"] for row in csv.DictReader(file)] == ["", where]
    shown = ("visualize", "img.jpg", "what color is the star?", "--checkpoint", vqa)
    assert any(where in problem for problem in result(*shown, cwd=place)["problems"])
    refit = result(*LINE, "--refit", "--epochs", "1", "--thresholds", "0", "--devices", "cpu", cwd=place)
    assert "where" not in refit["rows"][0], "the settings of the runs are those of run.json"


def test_a_sweep_continued_with_another_batch_size_is_one_sweep(trained_workspace: Path) -> None:
    line = (*LINE, "--out", "mine", "--thresholds")
    result(*line, "0,0.3", "--batch-size", "64", cwd=trained_workspace)
    mixed = result(*line, "0,0.3,0.5", "--batch-size", "5", cwd=trained_workspace)
    whole = result(*line, "0,0.3,0.5", "--batch-size", "5", "--overwrite", cwd=trained_workspace)
    assert mixed["recorded"] == min(whole["samples"], 128)
    for found, expected in zip(mixed["rows"], whole["rows"], strict=True):
        assert found["kept_fraction"] == pytest.approx(expected["kept_fraction"], abs=1e-4)
        assert found["entropy"] == pytest.approx(expected["entropy"], abs=1e-3)
    # What an earlier version measured is of samples that depended on the batch size: it is measured anew.
    file = trained_workspace / "mine/sweep.json"
    content = json.loads(file.read_text())
    for entry in content["measurements"]:
        del entry["recorded"]
        entry["entropy"] = 99
    file.write_text(json.dumps(content))
    again = result(*line, "0,0.3,0.5", cwd=trained_workspace)
    assert [row["entropy"] for row in again["rows"]] == pytest.approx(
        [row["entropy"] for row in whole["rows"]], abs=1e-3
    )


def test_a_sweep_without_effect_warns(trained_workspace: Path) -> None:
    outcome = succeeds(*LINE, "--thresholds", "0,1e-9", "--quiet", cwd=trained_workspace)
    assert "warning: all 2 settings give the same accuracy" in outcome.err
    assert "same accuracy" in outcome.out


REFIT = (*LINE, "--refit", "--epochs", "1", "--thresholds", "0,0.4", "--devices", "cpu")


def test_refit_trains_a_model_for_each_threshold_and_seed(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainings: list[Path] = []
    real = finetune_module.finetune_run

    def spy(config: Any, out: Path) -> None:
        trainings.append(out)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        real(config, out)

    monkeypatch.setattr(finetune_module, "finetune_run", spy)
    line = (*REFIT, "--seeds", "2", "--out", "refit")
    fails(*line, cwd=trained_workspace, code=130)
    values = result(*line, cwd=trained_workspace)
    names = [f"{name}-seed-{seed}" for seed in (0, 1) for name in ("dense", "relative-0.4")]
    assert [path.name for path in trainings] == [*names[:3], *names[2:]], "what was finished stays"
    asked = counted(monkeypatch)
    again = result(*line, cwd=trained_workspace)
    assert (len(trainings), asked) == (5, [])
    assert [row["accuracy_by_seed"] for row in again["rows"]] == [
        row["accuracy_by_seed"] for row in values["rows"]
    ]
    for name, threshold, seed in zip(names, (0.0, 0.4, 0.0, 0.4), (0, 0, 1, 1), strict=True):
        run = json.loads((trained_workspace / "refit/refit" / name / "run.json").read_text())
        settings = run["settings"]
        assert (settings["threshold"], settings["seed"], settings["epochs"]) == (threshold, seed, 1)
        assert run["results"]["initialised_from"] == "runs/pretrain", "as the checkpoint was"
        accuracy = run["results"]["accuracy"]["val"]
        row = values["rows"][int(threshold > 0)]
        assert row["accuracy_by_seed"][seed] == pytest.approx(accuracy)
    assert "samples_by_seed" in values
    result(*REFIT, "--seeds", "3", "--out", "refit", cwd=trained_workspace)
    assert [path.name for path in trainings[5:]] == ["dense-seed-2", "relative-0.4-seed-2"], "only the new"


def test_refit_takes_what_is_trained_already_and_is_nobodys_latest_model(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trained_workspace)
    latest = find_checkpoint(["vqa"])
    trainings: list[Path] = []
    real = finetune_module.finetune_run
    monkeypatch.setattr(finetune_module, "finetune_run", lambda *run: (trainings.append(run[1]), real(*run)))
    config = ThresholdSweepConfig(
        task="vqa", refit=True, thresholds="0.3", selection=["relative", "entmax15"], devices="cpu"
    )
    outcome = stages.threshold_sweep(config)
    # runs/finetune/vqa-relative-0.3 has just these settings.
    assert [path.name for path in trainings] == ["dense-seed-0", "entmax15-seed-0"]
    assert outcome.out == Path("runs/threshold-sweep/vqa-refit-val")
    assert find_checkpoint(["vqa"]) == latest
    assert len(finished_runs("finetune")) == 2
    # Of other answers it is not trained, though its settings are the same.
    file = Path("coco/v2_scenes_train_annotations.json")
    content = json.loads(file.read_text())
    for entry in content["annotations"][:3]:
        entry["answers"] = [{"answer": "zebra"}] * 10
    file.write_text(json.dumps(content))
    trainings.clear()
    again = stages.threshold_sweep(replace(config, selection=["relative"]))
    assert again.out == Path("runs/threshold-sweep/vqa-refit-val-2")
    assert [path.name for path in trainings] == ["dense-seed-0", "relative-0.3-seed-0"]


def test_refit_trains_anew_where_other_features_have_come_in_the_place_of_those_before(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories are swapped, whose files keep their times."""
    place = trained_workspace
    other = "extract-features coco --max-regions 3 --workers 0 --out coco/features-b"
    succeeds(*other.split(), cwd=place)
    train = "finetune --task vqa --data coco --init none --epochs 1 --devices cpu"
    succeeds(*train.split(), cwd=place)
    trainings: list[str] = []
    real = finetune_module.finetune_run
    monkeypatch.setattr(
        finetune_module, "finetune_run", lambda *run: (trainings.append(run[1].name), real(*run))
    )
    refit = (*LINE, "--refit", "--checkpoint", "runs/finetune/vqa", "--thresholds", "0", "--out")
    result(*refit, "before", cwd=place)
    assert trainings == [], "the same inputs: the model of finetune is taken"
    for aside, back in (("a", "b"), ("b", "a")):
        (place / "coco/features").rename(place / f"coco/features-{aside}")
        (place / f"coco/features-{back}").rename(place / "coco/features")
        result(*refit, f"with-{back}", cwd=place)
        assert trainings == ["dense-seed-0"], "of the features that come back it is there still"


def test_refit_measures_anew_where_the_list_of_answers_has_changed(trained_workspace: Path) -> None:
    answers = trained_workspace / "a.json"
    answers.write_text('["yes", "no"]')
    line = "finetune --task vqa --data coco --epochs 1 --init none --answers a.json --out listed"
    succeeds(*line.split(), "--devices", "cpu", cwd=trained_workspace)
    refit = (*LINE, "--refit", "--checkpoint", "listed", "--thresholds", "0")
    first = result(*refit, cwd=trained_workspace)
    assert result(*refit, cwd=trained_workspace)["out"] == first["out"]
    answers.write_text('["red"]')
    again = result(*refit, cwd=trained_workspace)
    assert again["out"] == f"{first['out']}-2" and again["answers"] != first["answers"]
    assert again["rows"][0]["accuracy"] != first["rows"][0]["accuracy"]
    # A sweep of an earlier version did not keep it, and goes on.
    file = trained_workspace / again["out"] / "sweep.json"
    content = json.loads(file.read_text())
    del content["identity"]["answers"], content["identity"]["vectors"]
    file.write_text(json.dumps(content))
    assert result(*refit, "--out", again["out"], cwd=trained_workspace)["out"] == again["out"]


def test_refit_pairs_each_seed_with_its_own_held_out_images(
    trained_workspace: Path,
) -> None:
    """Without a val split each seed holds out other images, and is judged by those it was not trained on."""
    for file in (trained_workspace / "coco").glob("v2_*_val_*.json"):
        file.unlink()
    file = next((trained_workspace / "coco").glob("v2_*_train_questions.json"))
    content = json.loads(file.read_text())
    # Not as many of each image.
    asked: dict[Any, list[Any]] = {}
    for question in content["questions"]:
        asked.setdefault(question["image_id"], []).append(question)
    content["questions"] = [it for number, own in enumerate(asked.values()) for it in own[: 1 + number % 8]]
    file.write_text(json.dumps(content))
    values = result(*REFIT, "--seeds", "3", "--init", "none", "--out", "own", cwd=trained_workspace)
    counts = []
    for name, threshold in (("dense", 0), ("relative-0.4", 1)):
        for seed in (0, 1, 2):
            run = json.loads((trained_workspace / f"own/refit/{name}-seed-{seed}/run.json").read_text())
            accuracy = run["results"]["accuracy"]["val"]
            assert values["rows"][threshold]["accuracy_by_seed"][seed] == pytest.approx(accuracy)
            own_rows = [entry for entry in run["results"]["report"] if entry["order"] == OWN_ROW]
            counts += [entry["n"] for entry in own_rows if entry["split"] == "val"]
    assert values["samples_by_seed"] == counts[:3] == counts[3:]
    assert values["samples"] == counts[0] and len(set(counts)) > 1


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--thresholds 0.2,0.2", "increasing, distinct"),
        ("--thresholds 0.4,0.2", "increasing, distinct"),
        ("--thresholds nan", "start:stop:step"),
        ("--selection topk", "the whole number k"),
        ("--selection topk=4,2", "increasing"),
        ("--selection relative --selection relative", "named twice"),
        ("--selection sparsemax=0.3", "has no thresholds"),
        ("--selection entmax", "entmax15"),
        ("--seeds 3", "only with --refit"),
        ("--epochs 3", "only with --refit"),
        ("--refit --seeds 0", "at least 1"),
        ("--regions 72,36", "increasing whole numbers"),
        ("--regions 0,36", "increasing whole numbers"),
        ("--regions 36,many", "such as 36,72,144"),
    ],
)
def test_settings_of_no_sense(trained: Path, flags: str, says: str) -> None:
    message = fails(*LINE, *flags.split(), cwd=trained, code=2, says=says)
    assert len(message) < 500, "one clear message"


def test_other_data_is_refused_and_nothing_is_lost(trained_workspace: Path) -> None:
    place = trained_workspace
    line = (*LINE, "--thresholds", "0,0.3")
    vqa = "runs/finetune/vqa-relative-0.3"
    kept = {file.name: file.read_bytes() for file in (place / vqa).iterdir()}
    fails(*line, "--out", vqa, cwd=place, code=1, says="something else than a sweep")
    assert {file.name: file.read_bytes() for file in (place / vqa).iterdir()} == kept
    succeeds(*line, "--out", "mine", cwd=place)
    kept = {file.name: file.read_bytes() for file in (place / "mine").iterdir()}
    fails(
        *line, "--split", "test", "--out", "mine", cwd=place, code=1, says=("(content, split)", "--overwrite")
    )
    fails(*line, "--refit", "--out", "mine", cwd=place, code=1, says="--overwrite")
    assert {file.name: file.read_bytes() for file in (place / "mine").iterdir()} == kept
    succeeds(*line, "--split", "test", "--out", "mine", "--overwrite", cwd=place)
    assert json.loads((place / "mine/sweep.json").read_text())["identity"]["split"] == "test"
    # Without --out another sweep gets a place of its own.
    succeeds(*line, cwd=place)
    checkpoint = place / vqa / "model.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes())
    succeeds(*line, cwd=place)
    assert {path.name for path in (place / "runs/threshold-sweep").iterdir()} == {
        "vqa-relative-0.3-val",
        "vqa-relative-0.3-val-2",
    }


def test_checkpoints_and_splits_that_do_not_fit(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No hub is asked for the weights that are not there.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = trained_workspace
    line = (*LINE, "--thresholds", "0,0.3", "--out", "none")
    rec = ("--checkpoint", "runs/finetune/rec")
    for more in ((), ("--refit",)):
        fails(*line, *rec, *more, cwd=place, code=1, says="is a checkpoint for rec, expected vqa")
    shutil.copytree(place / "runs/finetune/vqa-relative-0.3", place / "bare")
    (place / "bare/run.json").unlink()
    fails(*line, "--checkpoint", "bare", "--refit", cwd=place, code=1, says="settings it was trained with")
    succeeds("extract-features", "coco", "--extractor", "annotations", "--out", "other", cwd=place)
    fails(*line, "--features", "other", cwd=place, code=1, says="was trained on")
    for file in (place / "coco").glob("v2_*test_annotations.json"):
        file.unlink()
    for more in ((), ("--refit",)):
        fails(*line, "--split", "test", *more, cwd=place, code=1, says="has no answers")
    fails(*line, "--refit", "--init", "nowhere", cwd=place, code=1, says="nowhere")
    assert not (place / "none").exists(), "a sweep that cannot begin leaves nothing behind"


def test_a_question_only_checkpoint_has_text_alone(trained_workspace: Path) -> None:
    line = ("finetune", "--task", "vqa", "--data", "coco", "--blind", "--epochs", "1", "--out", "blind")
    succeeds(*line, "--devices", "cpu", cwd=trained_workspace)
    values = result(*LINE, "--checkpoint", "blind", "--thresholds", "0,0.5", cwd=trained_workspace)
    assert any("sees no image" in problem for problem in values["problems"])
    for row in values["rows"]:
        assert row["kept"]["text-to-image"] == row["kept"]["image-to-image"] == [None, None]
        assert None not in row["kept"]["text-to-text"]


def test_a_rule_of_the_entmax_library_names_its_installation(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "entmax" else find(name))
    says = ("MissingDependencyError", "pip install 'tbkin[entmax]'")
    fails(*LINE, "--selection", "sparsemax", cwd=trained, code=1, says=says)
    tune = ("finetune", "--task", "vqa", "--data", "coco", "--selection", "entmax15", "--out", "gone")
    fails(*tune, cwd=trained, code=1, says=says)
    assert not (trained / "gone").exists()


def test_an_entmax_model_is_trained_and_shown(trained_workspace: Path) -> None:
    tune = ("finetune", "--task", "vqa", "--data", "coco", "--selection", "entmax15", "--epochs", "1")
    succeeds(*tune, "--devices", "cpu", cwd=trained_workspace)
    place = trained_workspace / "runs/finetune/vqa-entmax15"
    assert json.loads((place / "config.json").read_text())["selection"] == "entmax15"
    outcome = succeeds(
        "visualize", "img.jpg", "what color is the star?", "--checkpoint", place, cwd=trained_workspace
    )
    assert "entmax15" in outcome.out
    fails(*tune, "--threshold", "0.3", cwd=trained_workspace, code=2, says="has none, omit it")
