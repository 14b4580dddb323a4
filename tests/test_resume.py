"""A run that was killed or interrupted and started again ends as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, Outcome, abandoned, files_below, leftovers, succeeds, tbkin

from tbkin_core.tasks.rec import RecObjective

EACH_STEP = "save_minutes: 0\nbatch_size: 4\n"
STAGES = {
    "pretrain": ["pretrain", "coco"],
    "finetune": ["finetune", "--task", "vqa", "--data", "coco", "--threshold", "0.3"],
}


@pytest.fixture(scope="module")
def place(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained workspace in which every step of a run saves its state."""
    directory = tmp_path_factory.mktemp("resume") / "workspace"
    shutil.copytree(trained, directory)
    (directory / "each.yaml").write_text(EACH_STEP)
    return directory


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, bytes]:
    """Weights of each stage's run that nobody disturbed."""
    weights = {}
    for stage, line in STAGES.items():
        out = f"whole-{stage}"
        succeeds(*line, "--config", "each.yaml", "--epochs", "2", "--out", out, cwd=place)
        weights[stage] = (place / out / "model.safetensors").read_bytes()
    return weights


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tbkin_cli", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own, so that the signal reaches workers as one from a terminal does.
        start_new_session=True,
        # In the background of a shell Ctrl-C is ignored, and what the tests start there would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def disturb(process: subprocess.Popen[str], when: Callable[[], bool], number: int) -> Outcome:
    """Send a signal to a process and its workers once a condition holds."""
    until = time.monotonic() + 60
    while not when():
        if process.poll() is not None or time.monotonic() > until:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            raise AssertionError(f"too late to disturb: {process.communicate()}")
        time.sleep(0.002)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


def step_of(run: Path) -> int:
    """Step of the saved state, 0 without one; the file is replaced as a whole."""
    try:
        return int(json.loads((run / "state/progress.json").read_text())["step"])
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("stage", STAGES)
def test_killed_twice_ends_with_the_same_bytes(place: Path, whole: dict[str, bytes], stage: str) -> None:
    line = [*STAGES[stage], "--config", "each.yaml", "--epochs", "2", "--out", f"killed-{stage}"]
    run = place / f"killed-{stage}"
    for moment in (2, 9 if stage == "pretrain" else 30):
        outcome = disturb(start(line, place), lambda step=moment: step_of(run) >= step, signal.SIGKILL)  # type: ignore[misc]
        assert outcome.code == -signal.SIGKILL
        assert json.loads((run / "run.json").read_text())["status"] == "running"
    outcome = succeeds(*line, cwd=place)
    assert "going on at epoch" in outcome.err
    assert (run / "model.safetensors").read_bytes() == whole[stage]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert leftovers(run) == []
    assert not (run / "state").exists()


def test_interrupted_says_so_and_goes_on(place: Path, whole: dict[str, bytes]) -> None:
    line = [*STAGES["finetune"], "--config", "each.yaml", "--epochs", "2", "--out", "interrupted"]
    run = place / "interrupted"
    outcome = disturb(start(line, place), lambda: step_of(run) >= 5, signal.SIGINT)
    assert outcome.code == 130
    assert outcome.out == ""
    assert "interrupted" in outcome.err and "Traceback" not in outcome.err
    assert step_of(run) >= 5
    assert leftovers(run) == []
    outcome = succeeds(*line, cwd=place)
    assert "going on at epoch" in outcome.err
    assert (run / "model.safetensors").read_bytes() == whole["finetune"]


def test_two_processes_are_interrupted_together(place: Path) -> None:
    line = [
        *STAGES["finetune"],
        "--config",
        "each.yaml",
        "--epochs",
        "40",
        "--out",
        "two",
        "--devices",
        "cpu:2",
    ]
    run = place / "two"
    outcome = disturb(start(line, place), lambda: step_of(run) >= 2, signal.SIGINT)
    assert outcome.code == 130
    assert "interrupted" in outcome.err and "Traceback" not in outcome.err
    assert step_of(run) >= 2
    assert leftovers(run) == []


def test_a_state_killed_while_it_replaces_another_is_not_lost(place: Path, whole: dict[str, bytes]) -> None:
    """The two renames of a directory cannot be one: the moment between them leaves no `state`."""
    line = [*STAGES["finetune"], "--config", "each.yaml", "--epochs", "2", "--out", "between"]
    run = place / "between"
    disturb(start(line, place), lambda: step_of(run) >= 3, signal.SIGKILL)
    for rest in run.glob(".state.*"):
        shutil.rmtree(rest)
    aside = run / abandoned("state", "-old")
    (run / "state").rename(aside)
    assert "going on at epoch" in succeeds(*line, cwd=place).err
    assert (run / "model.safetensors").read_bytes() == whole["finetune"]
    assert leftovers(run) == []


def test_a_state_of_other_data_is_refused(trained_workspace: Path) -> None:
    (trained_workspace / "each.yaml").write_text(EACH_STEP)
    line = [*STAGES["finetune"], "--config", "each.yaml", "--epochs", "2", "--out", "changed"]
    run = trained_workspace / "changed"
    disturb(start(line, trained_workspace), lambda: step_of(run) >= 1, signal.SIGKILL)
    file = trained_workspace / "coco/v2_OpenEnded_scenes_train_questions.json"
    content = json.loads(file.read_text())
    content["questions"] = content["questions"][:-9]
    file.write_text(json.dumps(content))
    outcome = tbkin(*line, cwd=trained_workspace)
    assert outcome.code == 1
    assert "--overwrite" in outcome.err
    succeeds(*line, "--overwrite", cwd=trained_workspace)


def test_a_run_goes_on_with_the_validation_samples_and_the_weights_that_it_began_with(
    trained_workspace: Path,
) -> None:
    """Its best epoch was chosen by those; an earlier version did not keep them, and its runs go on."""
    place = trained_workspace
    (place / "each.yaml").write_text(EACH_STEP)
    line = [*STAGES["finetune"], "--config", "each.yaml", "--epochs", "2", "--out", "changed"]
    line += ["--init", "runs/pretrain"]
    run = place / "changed"
    disturb(start(line, place), lambda: step_of(run) >= 1, signal.SIGKILL)
    weights = place / "runs/pretrain/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole + b" ")
    assert "the weights of runs/pretrain" in tbkin(*line, cwd=place).err
    weights.write_bytes(whole)
    file = place / "coco/v2_scenes_val_annotations.json"
    file.write_text(file.read_text().replace('"yes"', '"purple"'))
    outcome = tbkin(*line, cwd=place)
    assert outcome.code == 1
    assert "have changed since this run began (val)" in outcome.err and "--overwrite" in outcome.err
    content = json.loads((run / "run.json").read_text())
    del content["made_from"]
    (run / "run.json").write_text(json.dumps(content))
    assert "going on at epoch" in succeeds(*line, cwd=place).err


def test_a_broken_state_is_refused(place: Path) -> None:
    line = [*STAGES["finetune"], "--config", "each.yaml", "--epochs", "1", "--out", "broken"]
    run = place / "broken"
    disturb(start(line, place), lambda: step_of(run) >= 1, signal.SIGKILL)
    weights = next((run / "state").glob("model.*"))
    weights.write_bytes(weights.read_bytes()[:100])
    outcome = tbkin(*line, cwd=place)
    assert outcome.code == 1
    assert "--overwrite" in outcome.err and "Traceback" not in outcome.err


# ---- stores -------------------------------------------------------------------------------------


def store_content(store: Path) -> dict[str, bytes]:
    """What a store holds: the arrays by image, whatever shard they are in, and its priors."""
    from tbkin_core.features.store import FeatureStore

    features = FeatureStore(store)
    content = {}
    for image_id in features.image_ids:
        regions = features[image_id]
        content[str(image_id)] = regions.features.tobytes() + regions.boxes.tobytes()
    return content


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_extraction_goes_on(trained: Path, workspace: Path, number: int) -> None:
    line = ["extract-features", "coco", "--workers", "2"]
    store = workspace / "coco/features"
    outcome = disturb(start(line, workspace), (store / "store.json").exists, number)
    if number == signal.SIGINT:
        assert outcome.code == 130
        assert "interrupted" in outcome.err and "Traceback" not in outcome.err
        assert leftovers(workspace) == []
    succeeds(*line, cwd=workspace)
    assert json.loads((store / "store.json").read_text())["complete"]
    assert store_content(store) == store_content(trained / "coco/features")
    assert leftovers(workspace) == []


def test_extraction_keeps_what_was_done_before_ctrl_c(
    trained: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tbkin_core.features import extract

    real = extract._extract_or_reason
    done = 0

    def interrupted(*arguments: object) -> object:
        nonlocal done
        done += 1
        if done == 8:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    line = ["extract-features", "coco", "--workers", "0", "--json"]
    monkeypatch.setattr(extract, "FeatureStoreWriter", partial(extract.FeatureStoreWriter, shard_images=4))
    monkeypatch.setattr(extract, "_extract_or_reason", interrupted)
    assert tbkin(*line, cwd=workspace).code == 130
    monkeypatch.setattr(extract, "_extract_or_reason", real)
    values = json.loads(succeeds(*line, cwd=workspace).out)
    assert (values["made"], values["present"]) == (13, 7)
    assert store_content(workspace / "coco/features") == store_content(trained / "coco/features")


def test_graphs_go_on(trained_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tbkin_core.graphs import build

    original = succeeds("build-graphs", "coco", "--export", "before.jsonl", cwd=trained_workspace)
    assert "wrote" in original.out
    shutil.rmtree(trained_workspace / "coco/graphs")
    monkeypatch.setattr(build, "SHARD_CAPTIONS", 16)
    real = build.write_graph_shard
    done = 0

    def interrupted(*arguments: object) -> object:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "write_graph_shard", interrupted)
    outcome = tbkin("build-graphs", "coco", cwd=trained_workspace)
    assert outcome.code == 130 and "interrupted" in outcome.err
    monkeypatch.setattr(build, "write_graph_shard", real)
    refused = tbkin("pretrain", "coco", "--epochs", "1", "--out", "early", cwd=trained_workspace)
    assert refused.code == 1 and "build-graphs" in refused.err
    again = succeeds("build-graphs", "coco", "--json", "--export", "after.jsonl", cwd=trained_workspace)
    values = json.loads(again.out)
    assert values["present"] >= 32 and values["made"] + values["present"] == 60
    before, after = (
        sorted((trained_workspace / name).read_text().splitlines())
        for name in ("before.jsonl", "after.jsonl")
    )
    assert before == after
    assert leftovers(trained_workspace) == []


def test_graphs_killed(trained_workspace: Path) -> None:
    line = ["build-graphs", "coco"]
    succeeds(*line, "--export", "before.jsonl", cwd=trained_workspace)
    shutil.rmtree(trained_workspace / "coco/graphs")
    disturb(
        start(line, trained_workspace), (trained_workspace / "coco/graphs/store.json").exists, signal.SIGKILL
    )
    succeeds(*line, "--export", "after.jsonl", cwd=trained_workspace)
    before, after = (
        sorted((trained_workspace / name).read_text().splitlines())
        for name in ("before.jsonl", "after.jsonl")
    )
    assert before == after


def test_a_sweep_goes_on(trained_workspace: Path) -> None:
    line = ["threshold-sweep", "--task", "vqa", "--thresholds"]
    succeeds(*line, "0,0.3", "--out", "one", cwd=trained_workspace)
    outcome = succeeds(*line, "0,0.3,0.6", "--out", "one", cwd=trained_workspace)
    assert "measured already: 2" in outcome.err
    rows = json.loads((trained_workspace / "one/sweep.json").read_text())["rows"]
    assert [row["threshold"] for row in rows] == [0, 0.3, 0.6]
    before = files_below(trained_workspace / "one")
    succeeds(*line, "0,0.3,0.6", "--out", "one", cwd=trained_workspace)
    assert files_below(trained_workspace / "one")["sweep.csv"] == before["sweep.csv"]


def test_a_run_cut_by_minutes_goes_on_with_more(trained_workspace: Path) -> None:
    line = ["finetune", "--task", "rec", "--data", "coco", "--init", "none", "--epochs", "2", "--out", "cut"]
    values = json.loads(succeeds(*line, "--max-minutes", "0.0001", "--json", cwd=trained_workspace).out)
    assert values["reason"] == "minutes" and any("--max-minutes" in note for note in values["problems"])
    more = json.loads(succeeds(*line, "--json", cwd=trained_workspace).out)
    assert more["reason"] == "epochs" and more["epochs"] == 2
    whole = [*line[:-1], "whole"]
    best = json.loads(succeeds(*whole, "--json", cwd=trained_workspace).out)["best"]
    measured = [(trained_workspace / name / "metrics.jsonl").read_text() for name in ("cut", "whole")]
    assert measured[0] == measured[1], "losses and accuracies of each epoch are those of an uncut run"
    assert more["best"] >= best, "a model kept when the minutes were over may be better"


def test_more_minutes_never_make_a_kept_model_worse(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [90.0, 10.0, 20.0]
    monkeypatch.setattr(RecObjective, "evaluate", lambda *_: {"accuracy": accuracies.pop(0)})
    settings = "--task rec --data coco --init none --epochs 2 --out cut --json"
    line = ["finetune", *settings.split(), "--max-minutes"]
    succeeds(*line, "0.0001", cwd=trained_workspace)
    before = (trained_workspace / "cut/model.safetensors").read_bytes()
    more = json.loads(succeeds(*line, "5", cwd=trained_workspace).out)
    assert (more["reason"], more["best"], accuracies) == ("epochs", 90.0, [])
    assert (trained_workspace / "cut/model.safetensors").read_bytes() == before
    epochs = [json.loads(row)["epoch"] for row in (trained_workspace / "cut/metrics.jsonl").open()]
    assert epochs == [1, 2], "the part of an epoch has no row of its own"


def test_what_is_overwritten_is_kept_until_the_new_run_has_finished(trained_workspace: Path) -> None:
    line = ["finetune", "--task", "rec", "--data", "coco", "--init", "none", "--epochs", "1", "--out", "kept"]
    succeeds(*line, cwd=trained_workspace)
    before = (trained_workspace / "kept/model.safetensors").read_bytes()
    bad = tbkin(*line, "--threshold-layers", "9", "--overwrite", cwd=trained_workspace)
    assert bad.code == 2 and "threshold_layers" in bad.err
    assert (trained_workspace / "kept/model.safetensors").read_bytes() == before
    succeeds(*line, "--seed", "1", "--overwrite", cwd=trained_workspace)
    assert (trained_workspace / "kept/model.safetensors").read_bytes() != before
    assert leftovers(trained_workspace) == []
