"""Kills each command at random moments, runs it again, and compares what is there with an unbroken run.

    python tests/benchmarks/kills.py WORKSPACE --count 30 --jobs 2

A kill is INT or TERM, to the command alone or to all of its processes (as a terminal and a scheduler send
them), or KILL to the command alone. Its moment is drawn from a seed, evenly over the time that an unbroken
run takes, from when the command takes signals, a tenth of a second after its start. Then must hold: all of
its processes end within ten seconds, without a traceback, after INT and TERM with exit code 130 (0 where it
was done) and without a temporary file; the same command then succeeds, and ends in the bytes of an unbroken
run in a directory of another name, times aside, with nothing left over. Ends with 1 if anything does not.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Annotated

import typer
from same_outputs import content_of

PREPARED = (
    "extract-features coco --workers 0",
    "build-graphs coco",
    "pretrain coco --epochs 1 --devices cpu",
    "finetune --task rec --data coco --epochs 1 --devices cpu",
)
COMMANDS = {
    "extract-features": "extract-features photos --workers 2 --out features",
    "build-graphs": "build-graphs coco --export graphs.jsonl --networkx graphs.graphml --out graphs",
    "pretrain": "pretrain coco --epochs 2 --config each.yaml --out run",
    "finetune": "finetune --task vqa --data coco --epochs 2 --threshold 0.3 --config each.yaml --predict test"
    " --out run",
    "finetune, 2 devices": "finetune --task vqa --data coco --epochs 2 --config each.yaml --out run"
    " --devices cpu:2",
    "threshold-sweep": "threshold-sweep --task rec --thresholds 0:0.5:0.1 --out sweep",
    "threshold-sweep --refit": "threshold-sweep --task rec --refit --thresholds 0,0.3 --epochs 1 --out sweep",
    "visualize": 'visualize img.jpg "the red circle" --graph --html --format png --format svg --out figures',
}  # fmt: skip
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "KILL": signal.SIGKILL}
SOON = 10.0  # seconds
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "0", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Kill:
    """One kill and what came of it."""

    command: str
    signal: str
    to_all: bool
    moment: float  # seconds after the start
    code: int = 0
    took: float = 0.0  # seconds to the end
    faults: list[str] = field(default_factory=list)


def start(line: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tbkin_cli", *shlex.split(line)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # In the background of a shell Ctrl-C is ignored, and what is started there inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(line: str, cwd: Path) -> str:
    """Run a command to its end; its stderr."""
    process = start(line, cwd)
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"{line}: exit code {process.returncode}\n{errors}")
    return errors


def hears(pid: int) -> bool:
    """Whether a process takes SIGTERM by a handler of its own."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def left_of(session: int) -> list[int]:
    """Processes of a session that are there still."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            state, _, _, its = (place / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(its) == session and state != "Z":
            found.append(int(place.name))
    return found


def hidden(place: Path) -> list[str]:
    return [str(path.relative_to(place)) for path in place.rglob(".*")]


def files_of(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): content_of(path) for path in place.rglob("*") if path.is_file()}


def until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def killed(kill: Kill, template: Path, place: Path, whole: dict[str, bytes]) -> None:
    """Kill a command in a copy of the template, run it again, and note what is not as it should be."""
    shutil.copytree(template, place)
    line, faults = COMMANDS[kill.command], kill.faults
    process = start(line, place)
    until(lambda: process.poll() is not None, kill.moment)
    until(lambda: process.poll() is not None or hears(process.pid), SOON)
    ended = process.poll() is not None
    before = time.monotonic()
    if not ended:
        (os.killpg if kill.to_all else os.kill)(process.pid, SIGNALS[kill.signal])
    try:
        out, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        faults.append("did not end")
    kill.took, kill.code = time.monotonic() - before, process.returncode
    if not until(lambda: not left_of(process.pid), SOON):
        faults.append("left processes")
        os.killpg(process.pid, signal.SIGKILL)
    if "Traceback" in errors or "Exception ignored" in errors:
        faults.append(f"traceback: {errors[-1500:]}")
    if kill.took > SOON:
        faults.append(f"took {kill.took:.1f} s to end")
    if kill.signal != "KILL" and not ended:
        # What is done when Python ends takes no signal any more.
        if kill.code != 130 and not (kill.code == 0 and out and kill.took < 1):
            faults.append(f"exit code {kill.code}: {errors[-300:]}")
        faults += [f"left at once: {name}" for name in hidden(place)]
    try:
        run(line, place)
    except RuntimeError as error:
        faults.append(f"again: {str(error)[-1500:]}")
    else:
        faults += [f"left over: {name}" for name in hidden(place)]
        found = files_of(place)
        unequal = sorted(name for name in {*whole, *found} if whole.get(name) != found.get(name))
        faults += [f"differs: {name}" for name in unequal]
    if not faults:
        shutil.rmtree(place)


def prepared(workspace: Path) -> Path:
    """A directory with what the commands begin from."""
    from examples.scenes import generate

    template = workspace / "template"
    if not template.exists():
        making = workspace / "making"
        shutil.rmtree(making, ignore_errors=True)
        generate(making / "coco", 12, 4, 4, 0, (128, 96))
        shutil.copy(sorted((making / "coco" / "val").glob("*.jpg"))[0], making / "img.jpg")
        (making / "each.yaml").write_text("save_minutes: 0.01\nbatch_size: 16\n")
        generate(making / "many", 60, 4, 4, 1, (320, 240))
        (making / "many" / "train").rename(making / "photos")
        shutil.rmtree(making / "many")
        for line in PREPARED:
            run(line, making)
        making.rename(template)
    return template


def drawn(command: str, count: int, seconds: float, seed: int) -> list[Kill]:
    """Kills of a command that takes so many seconds."""
    chance = random.Random(f"{seed} {command}")
    kills = []
    for number in range(count):
        sent = list(SIGNALS)[number % len(SIGNALS)]
        to_all = sent != "KILL" and chance.random() < 0.5
        kills.append(Kill(command, sent, to_all, chance.uniform(0, seconds)))
    return kills


def show(kills: list[Kill]) -> None:
    """The rows of one command, and what was not right."""
    for sent in SIGNALS:
        some = [kill for kill in kills if kill.signal == sent]
        times = sorted(kill.took for kill in some) or [0.0]
        counts = f"{len(some):>7}{sum(not kill.faults for kill in some):>7}"
        ends = f"{times[len(times) // 2]:>10.2f}{times[-1]:>8.2f}"
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(Counter(it.code for it in some).items()))
        print(f"{kills[0].command:26}{sent:>8}{counts}{ends}  {codes}", flush=True)
    for number, kill in enumerate(kills):
        for fault in kill.faults:
            sent = f"{kill.signal} {'to all' if kill.to_all else 'alone'} at {kill.moment:.2f} s"
            print(f"{kill.command}, {number}: {sent}, exit code {kill.code}: {fault}", file=sys.stderr)


def main(
    workspace: Annotated[Path, typer.Argument(help="What it holds of an earlier call is used again.")],
    count: Annotated[int, typer.Option(help="Kills of each command.")] = 30,
    seed: int = 0,
    jobs: Annotated[int, typer.Option(help="Kills at a time.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Of these commands alone.")] = None,
) -> None:
    """Kill, compare, and print a row for each command and signal; directories of faulty ones stay."""
    template = prepared(workspace)
    faulty = False
    print(f"{'command':26}{'signal':>8}{'kills':>7}{'right':>7}{'median s':>10}{'most s':>8}  exit codes")
    for command in only or COMMANDS:
        name = command.replace(" ", "-").replace(",", "")
        for before in workspace.glob(f"{name}-[0-9u]*"):
            shutil.rmtree(before)
        unbroken = Path(shutil.copytree(template, workspace / f"{name}-unbroken"))
        began = time.monotonic()
        run(COMMANDS[command], unbroken)
        kills = drawn(command, count, time.monotonic() - began, seed)
        whole = files_of(unbroken)
        with ThreadPoolExecutor(jobs) as pool:
            places = [workspace / f"{name}-{number}" for number in range(count)]
            list(pool.map(killed, kills, repeat(template), places, repeat(whole)))
        show(kills)
        faulty |= any(kill.faults for kill in kills)
    raise typer.Exit(faulty)


if __name__ == "__main__":
    typer.run(main)
