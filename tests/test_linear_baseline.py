"""The linear models that a fine-tuned model is set beside: their fit, what they find, and their rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from tbkin_core.datasets.records import Question
from tbkin_core.evaluation import linear
from tbkin_core.evaluation.linear import Examples, LinearModels, bags, fit_linear, fit_linear_models
from tbkin_core.evaluation.report import report_splits
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import write_feature_store
from tbkin_core.tasks.inputs import InputSource
from tbkin_core.tasks.vqa import Answers, VqaTask
from tbkin_core.texts.tokenizer import build_tokenizer

COLOURS = ("red", "green", "blue")
WIDTH = 6
BOXES = np.array([[0, 0, 50, 40], [10, 10, 60, 60]], np.float32)
Asked = tuple[str, str, int]  # question, answer, image


def region_vectors(number: int, source: np.random.Generator) -> NDArray[np.float32]:
    """(2, WIDTH) whose mean tells the number modulo 3, each alone little."""
    apart = source.normal(0, 1, WIDTH)
    signal = np.zeros(WIDTH)
    signal[number % 3] = 1
    return np.stack([signal + apart, signal - apart]).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Regions of 60 images, of whose colours the mean vector tells."""
    source = np.random.default_rng(0)
    images = [RegionFeatures(n, region_vectors(n, source), BOXES, 100, 100) for n in range(60)]
    settings = {"extractor": "drawn", "feature_size": WIDTH}
    return write_feature_store(tmp_path_factory.mktemp("linear") / "store", settings, images)


def asked_about(numbers: range) -> list[Asked]:
    """What the image decides, and what the words do."""
    return [
        asked
        for number in numbers
        for asked in (
            ("what color is the thing?", COLOURS[number % 3], number),
            ("Is it a WHALE?", "no", number),
            ("is it a thing?", "yes", number),
        )
    ]


def fitted(store: FeatureStore, asked: list[Asked], blind: bool = False) -> LinearModels | None:
    texts, labels, images = ([item[place] for item in asked] for place in range(3))
    source = InputSource(store, build_tokenizer(["a thing"]), 16, 36)
    return fit_linear_models(texts, labels, source.inputs(texts, images), blind)  # type: ignore[arg-type]


def answered(store: FeatureStore, models: LinearModels, asked: list[Asked], with_image: bool) -> list[str]:
    source = InputSource(store, build_tokenizer(["a thing"]), 16, 36)
    texts = [item[0] for item in asked]
    return models.predict(texts, source.inputs(texts, [item[2] for item in asked]), with_image)


# ---- the fit ------------------------------------------------------------------------------------


def drawn_examples(source: np.random.Generator, classes: int) -> tuple[Examples, NDArray[np.int64]]:
    words = bags(
        [" ".join(source.choice(list("abcdef"), 3)) for _ in range(50)], {w: n for n, w in enumerate("abcde")}
    )
    examples = Examples(words, source.normal(0, 1, (7, 3)).astype(np.float32), source.integers(0, 7, 50))
    return examples, source.integers(0, classes, 50)


def objective(flat: NDArray, examples: Examples, labels: NDArray, decay: float) -> float:
    """The loss as its definition reads, of dense matrices in double precision."""
    whole = np.concatenate(
        [examples.words.toarray(), examples.vectors[examples.image], np.ones((50, 1))], axis=1
    )
    weights = flat.reshape(whole.shape[1], -1)
    likely = log_softmax(whole.astype(np.float64) @ weights, axis=1)
    return float(-likely[np.arange(50), labels].mean() + decay / 2 * (weights[:-1] ** 2).sum())


@pytest.mark.parametrize("decay", [0.3, 0.01])
def test_the_fit_is_the_minimum_of_the_loss_as_defined(decay: float) -> None:
    source = np.random.default_rng(3)
    examples, labels = drawn_examples(source, 4)
    found = fit_linear(examples, labels, np.zeros((9, 4)), decay, 500)
    least = objective(found.ravel(), examples, labels, decay)
    assert least < objective(np.zeros(36), examples, labels, decay) - 0.01
    for _ in range(200):
        step = source.normal(0, source.choice([1e-3, 1e-2, 0.1]), 36)
        assert objective(found.ravel() + step, examples, labels, decay) > least - 1e-6
    # Where the gradient is 0: decay · W = Xᵀ(Y − P) / N.
    whole = np.concatenate([examples.words.toarray(), examples.vectors[examples.image]], axis=1)
    missing = np.eye(4)[labels] - softmax(examples.scores(found.astype(np.float32)), axis=1)
    np.testing.assert_allclose(decay * found[:-1], whole.T @ missing / 50, atol=2e-4)


def test_without_words_the_shares_of_the_answers_are_learnt() -> None:
    examples = Examples(bags(["?"] * 10, {"never": 0}), np.zeros((1, 0), np.float32), np.zeros(10, np.int64))
    labels = np.array([0] * 7 + [1] * 2 + [2])
    found = fit_linear(examples, labels, np.zeros((2, 3)), 1e-3, 200)
    np.testing.assert_allclose(softmax(found[-1]), [0.7, 0.2, 0.1], atol=1e-3)
    assert not found[:-1].any()


# ---- what it finds ------------------------------------------------------------------------------


def test_a_planted_signal_in_the_image_is_found_on_new_images(store: FeatureStore) -> None:
    models = fitted(store, asked_about(range(40)))
    assert models is not None
    new = asked_about(range(40, 60))
    right = [item[1] for item in new]
    seeing = answered(store, models, new, True)
    assert np.mean([one == other for one, other in zip(seeing, right, strict=True)]) > 0.95
    alone = answered(store, models, new, False)
    assert alone[1:3] == ["no", "yes"]
    colours = [one == other for one, other in zip(alone[::3], right[::3], strict=True)]
    assert np.mean(colours) < 0.5, "of the question alone nobody can tell"


@settings(max_examples=12, deadline=None)
@given(source=st.randoms(use_true_random=False))
def test_the_order_of_the_questions_does_not_matter(store: FeatureStore, source: Any) -> None:
    asked = asked_about(range(12))
    known, models = fitted(store, asked), fitted(store, source.sample(asked, len(asked)))
    assert known is not None and models is not None
    assert known.values == models.values and known.words == models.words
    assert np.array_equal(known.alone, models.alone)
    assert known.seeing is not None and models.seeing is not None
    assert np.array_equal(known.seeing, models.seeing)


def test_principal_components_stand_for_wide_vectors(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = np.random.default_rng(1)
    flat = source.normal(0, 1, (30, 2)) @ source.normal(0, 3, (2, 9)) + 5
    whole = linear.SeenImages.of(flat.astype(np.float32))
    monkeypatch.setattr(linear, "MOST_COMPONENTS", 2)
    turned = linear.SeenImages.of(flat.astype(np.float32))
    assert whole.turn.shape == (9, 9) and turned.turn.shape == (9, 2)
    vectors = [seen.components(flat.astype(np.float32)) for seen in (whole, turned)]
    np.testing.assert_allclose(vectors[0] @ vectors[0].T, vectors[1] @ vectors[1].T, atol=1e-4)
    assert np.mean(np.sum(vectors[0] ** 2, axis=1)) == pytest.approx(1, abs=1e-3), "as long as one word"


def test_a_number_that_never_varies_says_nothing() -> None:
    vectors = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)
    vectors[:, 1] = 1 / 3
    seen = linear.SeenImages.of(vectors)
    assert np.isfinite(seen.turn).all() and not seen.turn[1].any()


def test_there_is_no_model_where_nothing_is_to_be_told_apart(store: FeatureStore) -> None:
    one_answer = [(text, "yes", image) for text, _, image in asked_about(range(4))]
    assert fitted(store, one_answer) is None
    assert fitted(store, asked_about(range(1))) is None
    assert fitted(store, [("what?", None, 0), ("what?", None, 1)]) is None  # type: ignore[list-item]
    blind = fitted(store, asked_about(range(6)), blind=True)
    assert blind is not None and blind.seeing is None and "image_scale" not in blind.values


def test_of_many_questions_whole_images_are_taken_and_it_is_said(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = fitted(store, asked_about(range(40)))
    assert full is not None and not full.notes and full.values["questions"] == 120
    monkeypatch.setattr(linear, "MOST_ANSWERS", 4)
    monkeypatch.setattr(linear, "MOST_SCORES", 4 * 50)
    models = fitted(store, asked_about(range(40)))
    assert models is not None
    assert models.values["answers"] == 4
    assert 40 < models.values["questions"] <= 50
    (note,) = models.notes
    assert f"{120 - models.values['questions']} training questions are left out" in note


# ---- rows ---------------------------------------------------------------------------------------


def test_a_model_below_the_linear_one_is_told_so(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(numbers: range) -> Any:
        samples = [
            Question(place, image, text, "val", (answer,) * 10)
            for place, (text, answer, image) in enumerate(asked_about(numbers))
        ]
        return VqaTask().build_split(samples, InputSource(store, build_tokenizer(["a thing"]), 16, 36))

    given = {"val": split(range(40, 60)), "test": split(range(56, 60))}
    monkeypatch.setattr(
        VqaTask,
        "predict",
        lambda self, model, inputs, *rest: Answers(["no"] * len(inputs), np.ones(len(inputs), np.float32)),
    )
    known = SimpleNamespace(use_regions=True, answers=lambda: ["no", "yes", *COLOURS])
    model = SimpleNamespace(config=known, device=None)
    plan, config = SimpleNamespace(batch_size=8, image_dropout=0.0), SimpleNamespace(data="data", blind=False)
    report = report_splits(VqaTask(), model, given, split(range(40)), config, plan, tmp_path)  # type: ignore[arg-type]
    rows = {(entry.split, entry.model): entry for entry in report.entries}
    seeing, alone = rows["val", "linear, with image"], rows["val", "linear, question only"]
    assert seeing.order == alone.order == 1 and seeing.n == 60
    assert seeing.accuracy > 95 and 60 < alone.accuracy < 90
    assert alone.accuracy_low is not None and alone.accuracy_low <= alone.accuracy
    (note,) = [note for note in report.notes if "linear" in note]
    assert note.startswith("val: the linear model does better (linear, with image):"), "4 images tell nothing"
    assert "against 33.3 %" in note
    assert report.values["linear"]["answers"] == 5


def test_a_run_shows_the_linear_models_in_its_table(trained_workspace: Path) -> None:
    run = (
        "finetune",
        "--task",
        "vqa",
        "--data",
        "coco",
        "--epochs",
        "1",
        "--init",
        "none",
        "--devices",
        "cpu",
        "--json",
    )
    values = json.loads(succeeds(*run, "--out", "one", cwd=trained_workspace).out)
    names = [entry["model"] for entry in values["report"] if entry["order"] == 1 and entry["split"] == "val"]
    assert names == ["linear, question only", "linear, with image"]
    assert values["linear"]["answers"] >= 2
    again = json.loads(succeeds(*run, "--out", "two", "--seed", "1", cwd=trained_workspace).out)
    rows = [[entry for entry in each["report"] if entry["order"] == 1] for each in (values, again)]
    assert rows[0] == rows[1], "the seed is that of the model"
    blind = json.loads(succeeds(*run, "--out", "three", "--blind", cwd=trained_workspace).out)
    assert not any("with image" in entry["model"] for entry in blind["report"])
    assert any(entry["model"] == "linear, question only" for entry in blind["report"])
