"""Runs tbkin as a user does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from tbkin_core.support import files

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def tbkin(*arguments: str | Path, cwd: Path) -> Outcome:
    """Run a command in this process: a second each instead of five, and the same entry point."""
    from tbkin_cli.main import app

    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def tbkin_process(*arguments: str | Path, cwd: Path, stdin: str | None = None, **environment: str) -> Outcome:
    """Run a command in a process of its own, through the console entry; `stdin` is what it can read."""
    done = subprocess.run(
        [sys.executable, "-m", "tbkin_cli", *map(str, arguments)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def succeeds(*arguments: str | Path, cwd: Path) -> Outcome:
    """Run a command that must end with exit code 0."""
    outcome = tbkin(*arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


def fails(*arguments: str | Path, cwd: Path, code: int, says: str | tuple[str, ...] = ()) -> str:
    """Run a command that must end with a message for its user; returns the message."""
    outcome = tbkin(*arguments, cwd=cwd)
    assert outcome.code == code, (outcome.code, outcome.out, outcome.err)
    for text in (says,) if isinstance(says, str) else says:
        assert text in outcome.err, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    return outcome.err


def files_below(directory: Path) -> dict[str, bytes]:
    """Content of every file, by path relative to the directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def abandoned(stem: str, ending: str = "", process: int = 2**22 + 1, host: str = files._HOST) -> str:
    """Name of what a writer leaves when it is killed; no process has the number that is the default."""
    return f".{stem}.{host}-{process}-0123abcd.tbkin{ending}"


def leftovers(directory: Path) -> list[Path]:
    """Temporary files that a command should have removed."""
    return list(directory.rglob(".*"))
