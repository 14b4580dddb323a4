"""What is seen while something runs: one bar for a run, a line an epoch, nothing twice."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import succeeds
from hypothesis import given
from hypothesis import strategies as some

from tbkin_core.support import console
from tbkin_core.support.console import RunBar, duration, progress, said_once
from tbkin_core.training import run as run_module


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    yield now


@given(some.floats(0, 1e6))
def test_a_duration_is_as_long_as_it_says(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    words = duration(seconds).split()
    told = sum(int(count) * units[unit] for count, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(told - seconds) <= (0.5 if seconds < 3600 else 60)


def test_the_time_left_is_that_of_what_is_left(clock: list[float]) -> None:
    bar = RunBar("epoch 1/1", total=1000, done=0)
    assert bar.seconds_left() is None
    clock[0] += 10
    bar.add(100)
    assert bar.seconds_left() == 90
    clock[0] += 10  # validation counts: it will come again
    assert bar.seconds_left() == 180
    bar.add(900)
    assert bar.seconds_left() == 0


def test_a_run_that_goes_on_knows_its_speed_of_now(clock: list[float]) -> None:
    bar = RunBar("epoch 1/1", total=1000, done=900)
    clock[0] += 10
    bar.add(50)
    assert bar.seconds_left() == 10


def test_minutes_that_end_a_run_end_its_bar(clock: list[float]) -> None:
    bar = RunBar("epoch 1/1", total=1000, done=0, most_seconds=60)
    clock[0] += 10
    bar.add(10)
    assert bar.seconds_left() == 50


def test_of_runs_that_say_the_same_the_first_is_heard() -> None:
    logger, said = logging.getLogger("tbkin"), list[str]()

    class Ears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ears, level = Ears(), logger.level
    logger.addHandler(ears)
    logger.setLevel(logging.INFO)
    try:
        with said_once():
            for number in range(3):
                logger.info("data: %s", "coco")
                logger.info("run %d", number)
                logger.info("epoch 1/1: loss 1")
                logger.warning("dark")
        logger.info("data: %s", "coco")
    finally:
        logger.removeHandler(ears)
        logger.setLevel(level)
    own = ["epoch 1/1: loss 1", "dark"]
    assert said == ["data: coco", "run 0", *own, "run 1", *own, "run 2", *own, "data: coco"]


@pytest.mark.parametrize(("level", "shows"), [(logging.INFO, True), (logging.WARNING, False)])
def test_a_bar_is_for_somebody_who_sees_it(
    level: int, shows: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("tbkin")
    before = logger.level
    logger.setLevel(level)
    try:
        assert list(progress(range(3), "nobody", 3)) == [0, 1, 2]
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        list(progress(range(3), "somebody", 3))
        assert ("somebody" in capsys.readouterr().err) is shows
        list(progress(range(3), "quick", 3, delay=60))
        assert "quick" not in capsys.readouterr().err
    finally:
        logger.setLevel(before)


def test_a_line_an_epoch_says_what_a_person_wants_to_know(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LOG_SECONDS", 0.0)
    line = ["--epochs", "3", "--devices", "cpu", "--out"]
    err = succeeds("finetune", "--task", "vqa", *line, tmp_path / "vqa", cwd=trained).err
    lines = [text for text in err.splitlines() if "epoch " in text]
    assert len(lines) == 3 and all("% on val" not in text for text in lines)
    assert all("loss " in text and "val VQA accuracy " in text for text in lines)
    assert "best so far" in lines[0] and " left)" in lines[0] and " left)" not in lines[-1]
    err = succeeds("pretrain", "coco", *line, tmp_path / "pretrain", cwd=trained).err
    (first, *_) = [text for text in err.splitlines() if "epoch 1/3" in text]
    assert "masked words " in first and "% without image" in first and "matching " in first
    assert "mlm" not in first and "itm" not in first


def test_short_epochs_share_a_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LOG_SECONDS", 3600.0)
    arguments: tuple[Any, ...] = ("--epochs", "5", "--devices", "cpu", "--out", tmp_path / "rec")
    err = succeeds("finetune", "--task", "rec", *arguments, cwd=trained).err
    said = [text.split(":")[1].strip() for text in err.splitlines() if "epoch " in text and "/5" in text]
    assert said == ["epoch 1/5", "epoch 5/5"], "the first, and how it ended"
