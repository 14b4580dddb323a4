"""Ctrl-C, SIGTERM and SIGKILL at any moment: the command ends, keeps what it has, and leaves no process."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import files_below, leftovers, succeeds, tbkin
from test_extraction import children, left
from test_resume import disturb, start, step_of

from tbkin_core.support.interruption import held_back, interrupted, interruptible, let_through
from tbkin_core.tasks.rec import RecObjective
from tbkin_core.tasks.vqa import VqaTask

IN_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers_come_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before


# ---- blocks -------------------------------------------------------------------------------------


@BOTH
def test_a_signal_ends_a_block_and_waits_for_one_that_must_be_whole(number: int) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        with held_back():
            signal.raise_signal(number)
            assert interrupted()
            with held_back():
                done.append("inner")
            done.append("outer")
        done.append("behind")
    assert done == ["inner", "outer"]
    with interruptible():
        assert not interrupted()
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)


def test_a_second_signal_does_not_wait_but_for_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    for rank in (None, "1"):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(KeyboardInterrupt), held_back():
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
                done.append(1)
    assert len(done) == 1 + 3


def test_a_part_of_such_a_block_may_be_cut() -> None:
    for moment in ("before", "within"):
        done: list[str] = []
        with pytest.raises(KeyboardInterrupt), held_back():
            signal.raise_signal(signal.SIGINT) if moment == "before" else None
            with let_through():
                done.append("entered")
                signal.raise_signal(signal.SIGINT)
                done.append("behind")
        assert done == ([] if moment == "before" else ["entered"])


def test_an_error_that_an_interruption_leads_to_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a worker has died") from None
    with pytest.raises(RuntimeError), interruptible():
        raise RuntimeError("a worker has died")


def test_an_interruption_in_a_destructor_is_not_lost() -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), interruptible():
        Interrupted()
        gc.collect()
        time.sleep(20)


# ---- commands -----------------------------------------------------------------------------------


def sent_in(function: Callable[..., Any], number: int, call: int = 1) -> Callable[..., Any]:
    """The function, in whose so many-th call the signal comes."""
    calls = 0

    def sending(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*arguments, **named)
        if calls == call:
            signal.raise_signal(number)
        return result

    return sending


@BOTH
def test_a_signal_in_the_evaluation_after_the_last_step(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It was forgotten: the run went on to its end."""
    place = trained_workspace
    line = ["finetune", "--task", "rec", "--data", "coco", "--init", "none", "--epochs", "2", "--out"]
    succeeds(*line, "whole", cwd=place)
    with monkeypatch.context() as patch:
        patch.setattr(RecObjective, "evaluate", sent_in(RecObjective.evaluate, number, call=2))
        outcome = tbkin(*line, "cut", cwd=place)
    assert outcome.code == 130 and outcome.out == "" and "interrupted" in outcome.err
    progress = json.loads((place / "cut/state/progress.json").read_text())
    assert progress["epoch"] == 1 and progress["batch"] > 0, "the steps of the epoch are kept"
    again = succeeds(*line, "cut", cwd=place)
    assert "going on at epoch 2" in again.err
    for name in ("model.safetensors", "metrics.jsonl", "config.json", "results-testA.json"):
        assert (place / "cut" / name).read_bytes() == (place / "whole" / name).read_bytes().replace(
            b"whole", b"cut"
        ), name
    assert leftovers(place) == []


@BOTH
def test_a_signal_in_the_evaluation_of_a_refit_trains_no_further_model(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    line = ["threshold-sweep", "--task", "vqa", "--refit", "--thresholds", "0,0.3", "--epochs", "1"]
    line += ["--out", "sweep", "--init", "none"]
    monkeypatch.setattr(VqaTask, "predict", sent_in(VqaTask.predict, number))
    outcome = tbkin(*line, cwd=trained_workspace)
    assert outcome.code == 130, outcome.err
    assert len(list((trained_workspace / "sweep/refit").iterdir())) == 1


def test_an_interrupted_extraction_says_how_many_images_it_keeps(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tbkin_core.features import extract

    line = ["extract-features", "coco", "--workers", "0", "--out"]
    succeeds(*line, "whole", cwd=workspace)
    for images in (7, 1, 5):
        with monkeypatch.context() as patch:
            sending = sent_in(extract._extract_or_reason, signal.SIGTERM, images + 1)
            patch.setattr(extract, "_extract_or_reason", sending)
            outcome = tbkin(*line, "cut", cwd=workspace)
        assert outcome.code == 130
    assert "13 images are kept in cut" in outcome.err
    manifest = json.loads((workspace / "cut/store.json").read_text())
    assert not manifest["complete"] and manifest["shards"] == ["shard-00000.safetensors"]
    values = json.loads(succeeds(*line, "cut", "--json", cwd=workspace).out)
    assert (values["made"], values["present"]) == (7, 13)
    whole, cut = (files_below(workspace / name) for name in ("whole", "cut"))
    assert {**cut, "config.yaml": b""} == {**whole, "config.yaml": b""}


def test_an_interrupted_overwrite_leaves_the_store_and_goes_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tbkin_core.features import extract

    line = ["extract-features", "coco", "--workers", "0"]
    succeeds(*line, cwd=workspace)
    before = files_below(workspace / "coco/features")
    monkeypatch.setattr(extract, "_extract_or_reason", sent_in(extract._extract_or_reason, signal.SIGINT, 5))
    outcome = tbkin(*line, "--max-regions", "5", "--overwrite", cwd=workspace)
    assert outcome.code == 130 and "4 images are kept" in outcome.err
    assert files_below(workspace / "coco/features") == before
    monkeypatch.undo()
    assert "goes on" in outcome.err and "without --overwrite" in outcome.err
    assert "4 images are in" in succeeds(*line, "--max-regions", "5", cwd=workspace).err
    assert files_below(workspace / "coco/features") != before and not leftovers(workspace)


def test_a_shard_that_was_cut_short_after_its_last_image_is_made_whole(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tbkin_core.features.writing import FeatureStoreWriter

    line = ["extract-features", "coco", "--workers", "0", "--out"]
    succeeds(*line, "whole", cwd=workspace)
    with monkeypatch.context() as patch:
        turn = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
        patch.setattr(FeatureStoreWriter, "turn", turn)
        assert "20 images are kept in cut" in tbkin(*line, "cut", cwd=workspace).err
    succeeds(*line, "cut", cwd=workspace)
    assert (workspace / "cut/shard-00000.safetensors").read_bytes() == (
        workspace / "whole/shard-00000.safetensors"
    ).read_bytes()


def test_equal_runs_of_equal_data_are_equal_bytes_wherever_they_lie(
    trained_workspace: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(trained_workspace, tmp_path / "elsewhere" / "deeper"))
    line = ["finetune", "--task", "vqa", "--data", "coco", "--init", "none", "--epochs", "0", "--out", "run"]
    for place in (trained_workspace, other):
        succeeds(*line, cwd=place)
    assert (trained_workspace / "run/config.json").read_bytes() == (other / "run/config.json").read_bytes()
    assert str(tmp_path) not in (other / "run/config.json").read_text()
    from tbkin_core.modeling.checkpoint import load_model

    with contextlib.chdir(tmp_path):
        model, _ = load_model(Path("elsewhere/deeper/run"), "vqa")
    assert model.config.extractor["store"] == str(other / "coco/features")


# ---- processes ----------------------------------------------------------------------------------


@IN_PROC
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_their_parent(trained: Path, tmp_path: Path, number: int) -> None:
    """The signal is for the command alone, as `kill` sends it."""
    place = Path(shutil.copytree(trained, tmp_path / "workspace"))
    line = ["finetune", "--task", "vqa", "--data", "coco", "--epochs", "400", "--out", "two", "--devices"]
    line += ["cpu:2", "--config", "often.yaml"]
    (place / "often.yaml").write_text("save_minutes: 0.02\n")
    process = start(line, place)
    until = time.monotonic() + 120
    while not step_of(place / "two") and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    ranks = list(children(process.pid))
    assert len(ranks) >= 2
    process.send_signal(number)
    # Its pipes are the ranks' too: this returns when the last of them has ended.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert left(ranks) == []
    assert "Traceback" not in errors
    if number == signal.SIGTERM:
        assert f"state saved at step {step_of(place / 'two')}" in errors
        assert leftovers(place / "two") == []


def hears(pid: int, number: int) -> bool:
    """Whether a process takes a signal by a handler of its own or of Python's."""
    with contextlib.suppress(OSError):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
    return False


@IN_PROC
@BOTH
def test_workers_that_are_loading_end_without_a_traceback(workspace: Path, number: int) -> None:
    # As many pictures as keep them at work until they are seen to be ready.
    (workspace / "many").mkdir()
    for copy in range(300):
        os.link(workspace / "img.jpg", workspace / f"many/{copy}.jpg")
    process = start(["extract-features", "many", "--workers", "2"], workspace)

    def loading() -> bool:
        """Whether Python is ready in two workers; multiprocessing's tracker beside them does not count."""
        own = (pid for pid in children(process.pid) if hears(pid, signal.SIGINT))
        return sum(b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in own) >= 2

    outcome = disturb(process, loading, number)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err and "interrupted" in outcome.err


@IN_PROC
@BOTH
def test_a_command_that_is_loading_ends_without_a_traceback(workspace: Path, number: int) -> None:
    process = start(["build-graphs", "coco"], workspace)
    outcome = disturb(process, lambda: hears(process.pid, signal.SIGTERM), number)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_an_interruption_within_an_import_has_the_exit_code_of_any_other(tmp_path: Path) -> None:
    """Dataclasses, for one, are made by executing text; Python remembers that such code was interrupted."""
    (tmp_path / "interrupted.py").write_text(
        "import contextlib, sys, tbkin_cli.main as m, tbkin_cli.__main__ as entry\n"
        "with contextlib.suppress(KeyboardInterrupt):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "m.main = lambda: sys.exit(130)\n"
        "entry.main()"
    )
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, check=False)
    assert ended.returncode == 130
