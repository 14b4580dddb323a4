"""Feeds damaged files to the six commands and judges what they do.

    python tests/fuzz/run.py --count 3000 [--seed N] [--workers 2] [--only FORMAT]
    python tests/fuzz/run.py --replay SEED:NUMBER     # one input again; its directory is kept

Input NUMBER of a seed is the format, the mutation and the command that a generator seeded with both draws.
Libraries are loaded once; each input gets a process of its own, forked from this one, and a workspace of its
own. What counts as a failure is in `judge`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import itertools
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "examples/shipped_models")]
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

from fuzz.bases import FORMATS, Format, format_of, make_bases  # noqa: E402
from fuzz.mutations import mutate  # noqa: E402

MOST_SECONDS, MOST_BYTES = 60, 2 << 30
IDLE_SECONDS = 10  # without a tick of the processor a process waits for something that never comes
ROOM = 5 << 30  # of address space, beyond what the libraries have taken: so much may be asked for, not more
_REFUSED = re.compile(r"^tbkin: (?!warning|note)(\w+Error: )?(?P<message>.*)", re.MULTILINE | re.DOTALL)


@dataclass
class Ended:
    """How a command ended."""

    code: int  # exit status; -N where signal N ended it
    out: str
    err: str
    frame: str = ""  # innermost one of tbkin, and the type of error that came from there
    seconds: float = 0.0
    peak: int = 0  # bytes
    hung: bool = False
    orphans: bool = False  # whether processes that it had started outlived it


@dataclass
class Outcome:
    """One input and what is wrong with how it was taken."""

    number: int
    format: str
    what: str  # the mutation and the command
    ended: Ended
    faults: list[str] = field(default_factory=list)  # kinds of failure, as they are grouped


# ---- a command in a process of its own ------------------------------------------------------------


def run_command(arguments: Sequence[str], cwd: Path, notes: Path) -> Ended:
    """Run the command line in a fork of this process; streams and frames go through files in `notes`."""
    notes.mkdir(exist_ok=True)
    sys.stdout.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(list(arguments), cwd, notes)
    hung, ticks, idle_since = False, -1, started
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        now = time.monotonic()
        if (now_ticks := _ticks(child)) != ticks:
            ticks, idle_since = now_ticks, now
        if now - started > MOST_SECONDS or now - idle_since > IDLE_SECONDS:
            hung = True
            os.kill(child, signal.SIGUSR1)  # writes where it is
            time.sleep(0.3)
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.005)
    orphans = True
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        orphans = False
    out, err = ((notes / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    frame = (notes / "frame").read_text() if (notes / "frame").exists() else _frame_of_stack(err)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, out, err, frame, time.monotonic() - started, used.ru_maxrss << 10, hung, orphans)


def _ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _be_the_command(arguments: list[str], cwd: Path, notes: Path) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, place in enumerate((Path(os.devnull), notes / "out", notes / "err")):
            os.dup2(os.open(place, flags if number else os.O_RDONLY), number)
        sys.stdin = os.fdopen(0)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", errors="replace") for n in (1, 2))
        faulthandler.register(signal.SIGUSR1)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(cwd)
        from tbkin_cli.main import app

        sys.argv = ["tbkin", *arguments]
        app(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        # The command's error is behind the exit that was made of it.
        cause: BaseException | None = end
        while cause is not None and type(cause).__name__ in ("SystemExit", "Exit"):
            cause = cause.__context__
        if cause is not None and code:
            (notes / "frame").write_text(_frame_of(cause))
    except BaseException as error:
        (notes / "frame").write_text(_frame_of(error))
        try:
            traceback.print_exc()
        except BaseException:
            print("Traceback: of an error that cannot be printed", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _frame_of(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    where = [f"{Path(frame.filename).relative_to(REPOSITORY)}:{frame.name}" for frame in frames[-1:]]
    return f"{type(error).__name__} in {where[0] if where else 'elsewhere'}"


def _frame_of_stack(err: str) -> str:
    """Where faulthandler found it: the innermost frame comes first."""
    found = re.findall(r'File "(.+?)", line \d+ in (\w+)', err)
    ours = [f"{Path(file).relative_to(REPOSITORY)}:{name}" for file, name in found if _is_ours(file)]
    return ours[0] if ours else ""


def _is_ours(file: str) -> bool:
    return file.startswith((f"{REPOSITORY}/tbkin_core", f"{REPOSITORY}/tbkin_cli"))


# ---- one input ----------------------------------------------------------------------------------


def attempt(number: int, seed: int, bases: Path, places: Path, keep: bool = False) -> Outcome:
    """Make input `number` of a seed, run a command on it, and judge."""
    form = format_of(number)
    chance = random.Random(f"{seed}:{number}")
    place = places / str(number)
    shutil.rmtree(place, ignore_errors=True)
    work = place / "work"
    form.copy(bases, work)
    (place / "neighbour.json").write_text('{"not": "ours"}\n')
    command = chance.choice(form.commands)
    told = mutate(work / form.file, form.kind, chance).replace("\n", " ")[:200]
    arguments = form.arguments(command)
    before = _snapshot(place)
    ended = run_command(arguments, work, place.with_name(f"{number}.notes"))
    outcome = Outcome(number, form.name, f"{told} | tbkin {shlex.join(arguments)}", ended)
    out = work / arguments[arguments.index("--out") + 1] if "--out" in arguments else work / form.data
    outcome.faults = list(judge(form, ended, before, _snapshot(place), place, out.relative_to(place)))
    if keep:
        print(f"{outcome.what}\nin {work}\nexit code {ended.code} {ended.frame}")
        print(f"--- out\n{ended.out[-5000:]}\n--- err\n{ended.err[-9000:]}")
    else:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(place.with_name(f"{number}.notes"), ignore_errors=True)
    return outcome


Listing = dict[str, tuple[int, int, int]]


def _snapshot(place: Path) -> Listing:
    found = {}
    for directory, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = os.path.join(directory, name)  # noqa: PTH118 - names that are no UTF-8
            status = os.lstat(path)
            size = 0 if name in folders else status.st_size
            found[os.path.relpath(path, place)] = (
                status.st_mode,
                size,
                0 if name in folders else status.st_mtime_ns,
            )
    return found


def judge(
    form: Format, ended: Ended, before: Listing, after: Listing, place: Path, out: Path
) -> Iterator[str]:
    """What is wrong with how a command took its input, one kind of failure each."""
    where = f" ({ended.frame or form.name})"
    if ended.hung:
        yield f"hang{where}"
    elif ended.code == 99 or "Traceback (most recent" in ended.err:
        yield f"traceback{where}"
    elif ended.code not in (0, 1, 2):
        yield f"exit code {ended.code}{where}"
    elif ended.code and not ended.frame.startswith("MemoryError"):
        there = before.get(str(Path("work", form.file)))
        yield from _poor_refusal(form, ended, there is not None and not stat.S_ISDIR(there[0]), where)
    if ended.peak > MOST_BYTES or ended.frame.startswith("MemoryError"):
        yield f"memory{where}"
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    inside = {name for name in changed if out in (Path(name), *Path(name).parents)}
    made = {name for name in changed if {"questions", "expressions"} & {*Path(name).parts[2:4]}}
    if outside := sorted(changed - inside - made):
        yield f"written outside --out: {outside[0]}"
    if left := sorted(name for name in after.keys() - before.keys() if Path(name).name.startswith(".")):
        yield f"left over: {re.sub('[a-z0-9_]{8}', '*', Path(left[0]).name)}"
    if ended.orphans and not ended.hung:
        yield f"processes left{where}"
    if ended.code == 0 and ended.out.strip():
        yield from _no_json(ended.out, "--json")
    for name in sorted(inside & after.keys()):
        if name.endswith(".json") and stat.S_ISREG(after[name][0]):
            yield from _no_json((place / name).read_text(errors="replace"), Path(name).name)


def _poor_refusal(form: Format, ended: Ended, is_file: bool, where: str) -> Iterator[str]:
    found = _REFUSED.search(ended.err)
    if found is None:
        if not ended.err.startswith("Usage:"):
            yield f"refused without a message{where}"
        return
    # Where there is no such file, what is missing in the dataset is all that can be said.
    if not any(name in found["message"] for name in (*form.known_as, *([] if is_file else [form.data]))):
        yield f"refused without naming the file{where}"
    if "\n  " not in found["message"]:
        yield f"refused without a remedy{where}"


def _no_json(text: str, what: str) -> Iterator[str]:
    def no_constant(name: str) -> Any:
        raise ArithmeticError(name)

    try:
        json.loads(text, parse_constant=no_constant)
    except ArithmeticError:
        yield f"NaN in {what}"
    except ValueError:
        yield f"{what} is no JSON"


# ---- many ---------------------------------------------------------------------------------------


def load_libraries() -> None:
    """What the commands load, before the forks."""
    import importlib

    import torch

    torch.set_num_threads(1)
    stages = ("extract_features", "build_graphs", "pretrain", "finetune", "threshold_sweep", "visualize")
    packages = ("h5py", "matplotlib.pyplot", "scipy.stats", "skimage.color", "spacy", "tbkin_cli.main")
    for name in (*packages, *(f"tbkin_core.stages.{stage}" for stage in stages)):
        importlib.import_module(name)


def make_workspace(place: Path) -> Path:
    """The valid files, in a new directory."""

    def run(arguments: list[str], cwd: Path) -> None:
        # In this process: what the libraries load when they are first used is there in every fork.
        from tbkin_cli.main import app

        streams = io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
            try:
                app(arguments)
            except SystemExit as end:
                if end.code:
                    raise RuntimeError(f"{arguments}: {streams.getvalue()}") from None

    bases = place / "bases"
    make_bases(bases, run)
    return bases


def check_bases(bases: Path, places: Path) -> list[str]:
    """Commands that fail on files that nobody damaged: then a refusal would say nothing."""
    wrong = []
    for form in FORMATS:
        for command in form.commands:
            work = places / "valid"
            shutil.rmtree(work, ignore_errors=True)
            form.copy(bases, work)
            ended = run_command(form.arguments(command), work, places / "valid.notes")
            if ended.code:
                wrong.append(f"{form.name}: tbkin {command}: {ended.err[-600:]}")
    return wrong


def report(outcomes: Sequence[Outcome], seed: int) -> None:
    """Print the kinds of failure with an example each, then a table by format."""
    kinds, rows = defaultdict[str, list[Outcome]](list), defaultdict[str, list[Outcome]](list)
    for outcome in outcomes:
        for kind in outcome.faults:
            kinds[kind].append(outcome)
        rows[outcome.format].append(outcome)
        rows["all"].append(outcome)
    for kind, found in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
        first = found[0]
        said = first.ended.err.strip().rpartition("\ntbkin: ")[2]
        print(f"\n{len(found):4} x {kind}\n  {seed}:{first.number} {first.format}: {first.what}")
        print(f"  {said[-400:]}")
    heads = ("inputs", "done", "refused", "failed", "seconds", "peak MB")
    print(f"\n{'format':24}{''.join(f'{head:>9}' for head in heads)}")
    for name, found in [*((name, rows[name]) for name in rows if name != "all"), ("all", rows["all"])]:
        done = sum(outcome.ended.code == 0 for outcome in found)
        failed = sum(bool(outcome.faults) for outcome in found)
        slowest = max((outcome.ended.seconds for outcome in found), default=0)
        peak = max((outcome.ended.peak for outcome in found), default=0) >> 20
        print(f"{name:24}{len(found):9}{done:9}{len(found) - done:9}{failed:9}{slowest:9.1f}{peak:9}")


def main() -> int:
    """Run what the command line asks for; 1 where anything failed."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--count", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--only", choices=[form.name for form in FORMATS], metavar="FORMAT")
    options.add_argument("--replay", metavar="SEED:NUMBER")
    options.add_argument("--check", action="store_true", help="run every command on undamaged files")
    chosen = options.parse_args()
    load_libraries()
    place = Path(tempfile.mkdtemp(prefix="tbkin-fuzz-"))
    try:
        bases = make_workspace(place)
        if chosen.check:
            print("\n".join(wrong := check_bases(bases, place)))
            return bool(wrong)
        if chosen.replay:
            seed, number = map(int, chosen.replay.split(":"))
            kept = Path(f"fuzz-{seed}-{number}").resolve()
            kept.mkdir(exist_ok=True)
            outcome = attempt(number, seed, bases, kept, keep=True)
            print("\n".join(outcome.faults) or "nothing is wrong with it")
            return bool(outcome.faults)
        fitting = (number for number in itertools.count() if chosen.only in (None, format_of(number).name))
        numbers = itertools.islice(fitting, chosen.count)
        outcomes: list[Outcome] = []
        work = partial(attempt, seed=chosen.seed, bases=bases, places=place)
        ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
        gc.freeze()  # a collection in a fork would copy every page
        # Stopped with Ctrl-C, it reports what it has.
        with contextlib.suppress(KeyboardInterrupt), get_context("fork").Pool(chosen.workers, ignore) as pool:
            for outcome in pool.imap_unordered(work, numbers):
                outcomes.append(outcome)
                at = f"{chosen.seed}:{outcome.number} {outcome.format}"
                for kind in outcome.faults:
                    print(f"{at}: {kind} | {outcome.what}", flush=True)
        gc.unfreeze()
        report(sorted(outcomes, key=lambda outcome: outcome.number), chosen.seed)
        return any(outcome.faults for outcome in outcomes)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
