"""Fine-tuning: what it chooses, the image hidden now and then, a growing threshold, what attention kept."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_plans import tiny_plan

from tbkin_cli.tables import tables_of
from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.records import Question
from tbkin_core.errors import ConfigError
from tbkin_core.evaluation.attribution import kept_counts
from tbkin_core.evaluation.vqa import soft_scores
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling.checkpoint import load_model
from tbkin_core.results import FinetuneResult
from tbkin_core.selection import Selection
from tbkin_core.settings import FinetuneConfig
from tbkin_core.tasks.base import Head, Split
from tbkin_core.tasks.inputs import InputSource, accuracy_and_kept, to_device
from tbkin_core.tasks.vqa import Answers, VqaObjective, VqaTask, official_accuracy
from tbkin_core.training.loop import learning_rate
from tbkin_core.training.plan import (
    CPU_MINUTES,
    DIRECT_WIDTHS,
    ENCODER_RATE,
    OPEN_ANSWERS,
    SCARCE_MOST,
    SCARCE_SAMPLES,
    SCARCE_STEPS,
    FinetunePlan,
    plan_finetuning,
)
from tbkin_core.training.run import GROWS, growing_threshold
from tbkin_core.training.start import Start


@pytest.fixture(scope="module")
def vqa(trained: Path) -> tuple[VqaObjective, Any]:
    """An objective over the training questions of the small world, half of them hidden, and its model."""
    run = trained / "runs/finetune/vqa-relative-0.3"
    model, tokenizer = load_model(run, "vqa")
    store = FeatureStore(trained / "coco/features")
    questions = open_dataset(trained / "coco").questions("train")
    split = VqaTask().build_split(questions, InputSource(store, tokenizer, 16, 36))
    return VqaObjective(split, split, model.config.answers(), 0, 16, seed=1, image_dropout=0.5), model.eval()


def test_an_image_is_hidden_whole_by_seed_epoch_and_sample_alone(vqa: tuple[VqaObjective, Any]) -> None:
    task, _ = vqa
    rows = task.samples(0)
    full = task.train.inputs.batch(task.rows[rows])["region_mask"]
    shown = task.collate(rows, 0)["region_mask"]
    hidden = ~shown.any(axis=1)
    assert np.array_equal(shown[~hidden], full[~hidden])
    assert 0.3 < hidden.mean() < 0.7
    alone = [task.collate(rows[[place]], 0)["region_mask"].any() for place in range(20)]
    assert [not value for value in alone] == hidden[:20].tolist(), "the same in a batch of its own"
    other = ~task.collate(rows, 1)["region_mask"].any(axis=1)
    assert 0.2 < (hidden != other).mean() < 0.8, "others in the next epoch"


def test_the_first_epochs_learn_from_the_questions_alone(vqa: tuple[VqaObjective, Any]) -> None:
    known, _ = vqa
    task = VqaObjective(known.train, None, known.answers, 0, 16, blind_epochs=2)
    rows = task.samples(0)
    shown = [task.collate(rows, epoch)["region_mask"].any(axis=1) for epoch in range(3)]
    assert not shown[0].any() and not shown[1].any() and shown[2].all()
    early, late = task.collate(rows, 1), task.collate(rows, 2)
    assert np.array_equal(early["input_ids"], late["input_ids"])
    assert np.array_equal(early["targets"], late["targets"])


@pytest.mark.parametrize("helps", [True, False])
def test_a_model_that_the_image_misleads_is_told_from_one_that_it_helps(
    vqa: tuple[VqaObjective, Any], helps: bool
) -> None:
    task, _ = vqa
    split = task.validation
    assert split is not None
    right = [max(scores, key=lambda answer: scores[answer]) for scores in split.targets]
    number = {answer: place for place, answer in enumerate(task.answers)}

    class Model:
        """Right with regions, or right without them; its other answer is the first of all."""

        tbkin = SimpleNamespace(selection=Selection())
        config = SimpleNamespace(answers=lambda: task.answers)

        def __call__(self, input_ids: Any, region_mask: Any, **_: Any) -> Any:
            logits = torch.zeros(len(input_ids), len(task.answers))
            for place, answer in enumerate(self.answers_of(input_ids)):
                known = bool(region_mask[place].any()) == helps
                logits[place, number[answer] if known else 0] = 9.0
            return SimpleNamespace(vqa_logits=logits)

        def answers_of(self, input_ids: Any) -> list[str]:
            # run_batches asks for the samples in the order of their lengths.
            taken, self.left = self.left[: len(input_ids)], self.left[len(input_ids) :]
            return [right[index] for index in taken]

    model = Model()
    orders = [
        np.argsort(inputs.lengths(), kind="stable")
        for inputs in (split.inputs, replace(split.inputs, blind=True))
    ]
    model.left = np.concatenate(orders)  # type: ignore[attr-defined]
    values = task.evaluate(model, torch.device("cpu"))
    assert task.ignores_image is not helps
    best, other = ("accuracy", "accuracy_without_image") if helps else ("accuracy_without_image", "accuracy")
    assert values["best_accuracy"] == values[best] == 100 > values[other]


def test_a_model_that_ignores_the_image_is_kept_as_one(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate = VqaObjective.evaluate

    def misled(self: VqaObjective, model: Any, device: Any) -> dict[str, float]:
        values = evaluate(self, model, device)
        assert model.config.use_regions, "the image is there to learn from in every epoch"
        self.ignores_image = True
        return values

    monkeypatch.setattr(VqaObjective, "evaluate", misled)
    line = "finetune --task vqa --data coco --init none --epochs 2 --out blind --json"
    values = json.loads(succeeds(*line.split(), cwd=trained_workspace).out)
    assert "ignores the image" in values["problems"][0], "what matters most comes first"
    model, _ = load_model(trained_workspace / "blind", "vqa")
    assert model.config.use_regions is False
    # As `this model` was measured, so `--predict` and the sweep measure it.
    sweep = "threshold-sweep --task vqa --checkpoint blind --thresholds 0 --json"
    rows = json.loads(succeeds(*sweep.split(), cwd=trained_workspace).out)["rows"]
    assert rows[0]["accuracy"] == pytest.approx(values["accuracy"]["val"])


def test_what_is_held_out_can_be_predicted(trained_workspace: Path) -> None:
    """A file of questions of one's own has no splits: val is what the run holds out of it."""
    place = trained_workspace
    shutil.copytree(place / "coco/train", place / "own")
    files = sorted((place / "own").glob("*.jpg"))
    lines = ["image,question,answer", *(f"{file.name},what is this?,a scene" for file in files)]
    (place / "own/mine.csv").write_text("\n".join(lines))
    succeeds("extract-features", "own", "--workers", "0", cwd=place)
    line = [
        "finetune",
        "--task",
        "vqa",
        "--data",
        "own",
        "--epochs",
        "1",
        "--init",
        "none",
        "--devices",
        "cpu",
    ]
    line += ["--json", "--predict"]
    values = json.loads(succeeds(*line, "val", cwd=place).out)
    (file,) = values["predictions"]
    (measured,) = (row["n"] for row in values["report"] if (row["split"], row["order"]) == ("val", 3))
    assert 0 < len(json.loads((place / file).read_text())) == measured < len(files)
    fails(*line, "test", cwd=place, code=2, says=("has no split 'test'", "val"))


def test_question_types_are_shown_with_their_numbers_the_most_frequent_first(
    trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained / "runs/finetune/vqa-relative-0.3", tmp_path / "run"))
    content = json.loads((run / "run.json").read_text())
    results = content["results"]
    counts = results["questions_per_type"]
    own = next(entry for entry in results["report"] if entry["split"] == results["type_split"])
    assert counts.keys() == results["per_question_type"].keys() and sum(counts.values()) == own["n"]
    names = [f"type {number:02}" for number in range(20)]
    found: dict[str, Any] = {"per_question_type": dict.fromkeys(names, 50.0)}
    found["questions_per_type"] = {name: number + 1 for number, name in enumerate(names)}
    shown = FinetuneResult(
        out=run, metric="accuracy", report=[], results={**results, **found}, problems=[], files=[], hints=[]
    )
    table = tables_of(shown)[-1]
    assert table.columns[-1] == "n" and "the most frequent 12 of 20" in table.title
    assert [row[0] for row in table.rows] == names[:7:-1] and table.rows[0][-1] == "20"
    before = {key: value for key, value in {**results, **found}.items() if key != "questions_per_type"}
    table = tables_of(replace(shown, results=before))[-1]
    assert len(table.columns) == 2 and [row[0] for row in table.rows] == names[:12]


def test_the_report_tells_what_the_image_brings(trained: Path) -> None:
    report = json.loads((trained / "runs/finetune/vqa-relative-0.3/run.json").read_text())["results"][
        "report"
    ]
    names = {row["model"] for row in report if row["split"] == "val"}
    assert {"majority answer", "this model"} <= names
    model, _ = load_model(trained / "runs/finetune/vqa-relative-0.3", "vqa")
    assert ("this model, image hidden" in names) is model.config.use_regions


ANSWERS = ["night_stand", "night stand", "The Cat", "cat", "two", "2", "yes", "a"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=10), st.sampled_from(ANSWERS)),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_sweeps_and_validation_score_as_the_official_evaluator(
    rows: list[tuple[list[str], str]], agreed: bool
) -> None:
    questions = [
        Question(number, number, "what?", "val", tuple(given[:1] * 10 if agreed else given))
        for number, (given, _) in enumerate(rows)
    ]
    split = Split(questions, None, [soft_scores(item.answers) for item in questions])  # type: ignore[arg-type]
    predicted = [answer for _, answer in rows]
    official = official_accuracy(split, predicted).per_question
    scores = VqaTask().scores(split, Answers(predicted, np.ones(len(predicted), np.float32)))
    assert list(100 * scores) == pytest.approx(list(official.values()))


def test_what_cannot_grow_is_refused(trained: Path) -> None:
    line = "finetune --task vqa --data coco --selection sparsemax --threshold-epochs 2 --out none"
    fails(*line.split(), cwd=trained, code=2, says=("threshold_epochs", "could grow"))
    assert not (trained / "none").exists()


def test_a_threshold_grows_in_training() -> None:
    model = SimpleNamespace(tbkin=SimpleNamespace(selection=Selection("relative", 0.4, scope="cross-modal")))

    def seen(epochs: float | None, *places: tuple[float, float]) -> list[float]:
        grow, found = growing_threshold(model, epochs), []
        full = model.tbkin.selection
        for place in places:
            grow(*place)
            found.append(model.tbkin.selection.threshold)
            assert model.tbkin.selection.scope == "cross-modal"
        model.tbkin.selection = full
        return found

    end = (math.inf, 1.0)
    over_two = seen(2, (0.0, 0.0), (1.0, 0.1), (2.0, 0.2), (5.0, 0.5), end)
    assert over_two == pytest.approx([0, 0.4 / 1000**0.5, 0.4, 0.4, 0.4])
    # By the share of all that there is of epochs or minutes where nothing is asked for.
    (begin, full), middle = GROWS, sum(GROWS) / 2
    places = [(0.0, 0.0), (3.0, begin), (9.0, middle), (2.0, full), (7.0, 0.99), end]
    assert seen(None, *places) == pytest.approx([0, 0, 0.4 / 1000**0.5, 0.4, 0.4, 0.4])
    assert seen(0, (0.0, 0.0)) == [0.4], "as published it is there from the first step"


def test_what_attention_keeps_is_logged_by_layer_and_direction(
    trained: Path,
    vqa: tuple[VqaObjective, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (trained / "runs/finetune/vqa-relative-0.3/metrics.jsonl").read_text().splitlines()
    logged = json.loads(lines[-1])
    assert {f"kept_{layer}_{way}" for layer in (0, 1) for way in ("text-to-image", "image-to-image")} <= set(
        logged
    )
    assert 0 < logged["kept"] < 1
    task, model = vqa
    inputs = task.train.inputs

    def accuracy(model: Any) -> float:
        task.task.predict(model, inputs, torch.device("cpu"), len(inputs))
        return 50.0

    found = accuracy_and_kept(model, accuracy, inputs)
    assert found["accuracy"] == 50
    with monkeypatch.context() as patch:
        patch.setattr(model.tbkin, "selection", Selection())
        assert accuracy_and_kept(model, accuracy, inputs) == {"accuracy": 50}, "dense keeps all"
    batch = to_device(inputs.batch(np.arange(len(inputs))), torch.device("cpu"))
    with torch.inference_mode():
        records = model(**batch, output_attentions=True).attentions
    valid = torch.cat([batch["attention_mask"].bool(), batch["region_mask"]], dim=1)
    counts = kept_counts(records, valid, batch["input_ids"].shape[1])
    kept, total = counts["text-to-image"][1]
    assert found["kept_1_text-to-image"] == pytest.approx(kept / total)
    assert found["kept"] == pytest.approx(
        sum(value[:, 0].sum() for value in counts.values())
        / sum(value[:, 1].sum() for value in counts.values())
    )


def test_the_rate_has_fallen_when_the_minutes_are_over() -> None:
    config = tiny_plan(epochs=10, learning_rate=1.0, warmup=0.1)
    assert learning_rate(5, 10, config, 0.5) == pytest.approx(learning_rate(50, 10, config))
    assert learning_rate(60, 10, config, 0.5) == learning_rate(60, 10, config), (
        "the further of the two counts"
    )
    assert learning_rate(5, 10, config, 1.5) == 0
    step = tiny_plan(epochs=10, learning_rate=1.0, warmup=0, schedule="step", decay_epochs=[6])
    assert learning_rate(5, 10, step, 0.9) == 1, "a schedule by epochs keeps to the epochs"


def test_minutes_that_were_chosen_end_a_run_for_good(
    trained_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tbkin_core.training.plan.CPU_MINUTES", 1e-4)
    line = [
        "finetune",
        "--task",
        "vqa",
        "--data",
        "coco",
        "--init",
        "none",
        "--out",
        "short",
        "--json",
        "--devices",
        "cpu",
    ]
    values = json.loads(succeeds(*line, cwd=trained_workspace).out)
    assert values["reason"] == "minutes" and values["steps"] == 1
    assert any("--max-minutes" in note for note in values["problems"])
    again = json.loads(succeeds(*line, cwd=trained_workspace).out)
    assert again["steps"] == 1, "the same command shows the same result"
    enough = (again["seconds"] + 2) / 60
    more = json.loads(succeeds(*line, "--max-minutes", str(enough), cwd=trained_workspace).out)
    assert more["steps"] > 1, "asked for more, it goes on"


@pytest.mark.parametrize(
    ("samples", "given_settings", "size", "epochs", "minutes"),
    [
        (40, {}, "tiny", 60, CPU_MINUTES),
        (386, {}, "tiny", 25, CPU_MINUTES),
        (1_000, {}, "tiny", 25, CPU_MINUTES),
        (4_000, {}, "tiny", 16, CPU_MINUTES),
        (20_000, {}, "tiny", 7, CPU_MINUTES),
        (40_000, {}, "tiny", 4, CPU_MINUTES),
        (1_000_000, {}, "tiny", 4, CPU_MINUTES),
        (100_000, {"max_minutes": 120.0}, "small", 10, 120.0),
        (40_000, {"epochs": 3}, "tiny", 3, None),
    ],
)
def test_defaults_on_a_processor(
    trained: Path,
    samples: int,
    given_settings: dict[str, Any],
    size: str,
    epochs: int,
    minutes: float | None,
) -> None:
    store = FeatureStore(trained / "coco/features")
    _, tokenizer = load_model(trained / "runs/finetune/rec", "rec")

    def planned(
        begun: bool = False, answers: int = OPEN_ANSWERS, weights: Any = None, **given: Any
    ) -> FinetunePlan:
        config = FinetuneConfig(task="vqa", devices="cpu", **given)
        values = {"hidden_size": 128} if begun else None
        start = Start("runs/begun" if begun else "none", tokenizer, weights or {}, values)
        return plan_finetuning(config, samples, start, store, VqaTask(), Head(outcomes=answers))

    chosen = planned(**given_settings)
    expected = math.inf if minutes is None else minutes
    assert (chosen.size, chosen.epochs, chosen.max_minutes) == (size, epochs, expected)
    assert chosen.chosen("max_minutes") is (minutes == CPU_MINUTES)
    assert chosen.image_dropout == (0.2 if samples < 10_000 else 0.1)
    assert chosen.blind_epochs == epochs // 8
    assert planned(begun=True).blind_epochs == 0
    assert planned(answers=99, **given_settings).blind_epochs == 0, "habits of few answers stick"
    blind = planned(blind=True)
    assert blind.image_dropout == 0 == blind.blind_epochs == blind.feature_dropout
    # What many answers need that are learnt from few questions.
    scarce = samples < SCARCE_SAMPLES
    assert (chosen.dropout, chosen.feature_dropout) == ((0.3, 0.3) if scarce else (chosen.dropout, 0.0))
    assert chosen.direct_width == DIRECT_WIDTHS[chosen.size]
    steps = chosen.epochs * samples / chosen.batch_size
    assert steps > 0.9 * SCARCE_STEPS or chosen.epochs in (SCARCE_MOST, 3), "few samples, still some steps"
    few = planned(answers=99, **given_settings)
    assert few.epochs == given_settings.get("epochs", min(max(round(1_000_000 / samples), 4), 60))
    assert few.direct_width == 0 == few.feature_dropout and few.dropout in (0.0, 0.1)
    assert chosen.encoder_rate == 1
    words = {"direct.vocabulary.weight": torch.zeros(3, DIRECT_WIDTHS["tiny"])}  # of a pretrained model
    known = {"weights": words, **given_settings}
    if chosen.size == "tiny":
        assert planned(begun=True, **known).encoder_rate == (ENCODER_RATE if scarce else 1.0)
    assert planned(begun=True, **given_settings).encoder_rate == 1, "others have learnt less than all of it"
    assert planned(begun=True, encoder_rate=0.5, **known).encoder_rate == 0.5
    with pytest.raises(ConfigError, match="random"):
        planned(encoder_rate=0.0)
    assert chosen.encoder_dropout == (0.5 if scarce else 0.0) and few.encoder_dropout == 0
    assert planned(direct_width=0, feature_dropout=0.1, **given_settings).head_values() == {
        "direct_width": 0,
        "direct_words": False,
        "direct_attends": False,
        "feature_dropout_prob": 0.1,
        "encoder_dropout_prob": 0,
    }


def test_a_finished_run_does_not_speak_of_data_that_have_changed(trained_workspace: Path) -> None:
    coco = trained_workspace / "coco"
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1", "--init", "none", "--out", "run")
    succeeds(*line, cwd=trained_workspace)
    assert "had finished already" in succeeds(*line, cwd=trained_workspace).out
    questions = next(coco.glob("*val*questions.json"))
    whole = questions.read_text()
    content = json.loads(whole)
    # More questions for a test server are none that the run speaks of.
    asked = [{**it, "question_id": 10**6 + number} for number, it in enumerate(content["questions"])]
    later = {**content, "data_subtype": "test-dev", "questions": asked}
    (coco / "v2_OpenEnded_scenes_test-dev_questions.json").write_text(json.dumps(later))
    succeeds(*line, "--predict", "test-dev", cwd=trained_workspace)
    content["questions"][0]["question"] = "how many are there now?"
    questions.write_text(json.dumps(content))
    fails(*line, cwd=trained_workspace, code=1, says=("changed since this run began (val)", "--overwrite"))
    outcome = succeeds(
        *("threshold-sweep", "--task", "vqa", "--thresholds", "0", "--checkpoint", "run"),
        cwd=trained_workspace,
    )
    assert "val has changed since run was made" in outcome.out
    succeeds(*line, "--overwrite", cwd=trained_workspace)
    succeeds(*line, cwd=trained_workspace)
    questions.write_text(whole)
    fails(*line, cwd=trained_workspace, code=1, says="have changed since this run")


def test_a_finished_run_does_not_speak_of_other_features_answers_or_weights(trained_workspace: Path) -> None:
    place = trained_workspace
    (place / "a.json").write_text('["yes", "no", "1", "2", "red"]')
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1", "--answers", "a.json")
    line = (*line, "--init", "runs/pretrain", "--out", "run", "--devices", "cpu")
    results = json.loads(succeeds(*line, "--json", cwd=place).out)
    assert results["samples_seen"] == results["training_samples"] > 0
    for name, called in (("a.json", "answers in a.json"), ("runs/pretrain", "weights of runs/pretrain")):
        file = place / name if name == "a.json" else place / name / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b" ")
        fails(*line, cwd=place, code=1, says=f"have changed since this run began (the {called})")
        file.write_bytes(whole)
        assert "had finished already" in succeeds(*line, cwd=place).out
    # What is gone cannot be compared.
    (place / "runs/pretrain").rename(place / "elsewhere")
    assert "had finished already" in succeeds(*line, cwd=place).out
    succeeds("extract-features", "coco", "--overwrite", "--max-regions", "4", "--workers", "0", cwd=place)
    fails(*line, cwd=place, code=1, says=("features of train", "features of val", "--overwrite"))
    sweep = ("threshold-sweep", "--task", "vqa", "--thresholds", "0", "--checkpoint", "run")
    assert "features of val have changed since run was made" in succeeds(*sweep, cwd=place).out
    # An earlier version kept the samples alone.
    content = json.loads((place / "run/run.json").read_text())
    del content["made_from"]
    (place / "run/run.json").write_text(json.dumps(content))
    assert "had finished already" in succeeds(*line, cwd=place).out


def test_texts_that_are_cut_or_unknown_are_counted_in_every_split(trained_workspace: Path) -> None:
    for split, spoilt in (("val", "please " * 40), ("test", "бгд ")):
        file = trained_workspace / f"coco/v2_OpenEnded_scenes_{split}_questions.json"
        content = json.loads(file.read_text())
        for number, entry in enumerate(content["questions"][:3]):
            entry["question"] = spoilt + (entry["question"] if split == "val" else number * "б")
        file.write_text(json.dumps(content))
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1", "--init", "none", "--out", "run")
    sweep = ("threshold-sweep", "--task", "vqa", "--thresholds", "0", "--checkpoint", "run")
    lines = ((*line, "--predict", "test"), sweep, (*sweep, "--refit"), (*sweep, "--refit"))
    found = [
        json.loads(succeeds(*it, "--json", cwd=trained_workspace).out)["problems"] for it in lines
    ]  # the last one measures nothing anew
    assert all("val: 3 texts were cut to 32 tokens" in problems for problems in found)
    notes = found[0]
    assert "test: 3 texts hold no known word" in notes
    assert "predictions of test: 3 texts hold no known word" in notes
    assert not [note for note in notes if note.startswith("train: ") and "texts" in note]


def test_weights_that_know_other_vectors_of_the_same_size_are_refused(trained_workspace: Path) -> None:
    """Numbers of another extractor would be taken for those that the weights know."""
    manifest = trained_workspace / "coco/features/store.json"
    content = json.loads(manifest.read_text())
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1", "--max-minutes", "0.02")
    # How regions were found changes no vector.
    content["settings"]["photo_side"] = 12345
    manifest.write_text(json.dumps(content))
    succeeds(*line, "--init", "runs/finetune/rec", "--out", "same", cwd=trained_workspace)
    content["settings"]["backbone_weights"] = "0123"
    manifest.write_text(json.dumps(content))
    says = ("init runs/finetune/rec", "another kind", "0123", "--init none")
    begun = (*line, "--init", "runs/finetune/rec", "--out")
    fails(*begun, "other", cwd=trained_workspace, code=1, says=says)
    succeeds(*begun, "blind", "--blind", cwd=trained_workspace)
