"""Does tbkin compute rightly on this machine's GPU, and how fast: one command, with data of its own.

    python tests/cuda/check.py --minutes 8 --out cuda-check

takes a checkout and torch, transformers, tokenizers and what they need; nothing is installed or downloaded.
It writes cuda-check.md and cuda-check.json anew after every row, and ends within the minutes given. Without
a GPU the same code runs on the CPU with tiny sizes (--device cpu). Exit code 1 where a row of correctness
or learning failed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(HERE), str(ROOT / "tests" / "benchmarks"), str(ROOT)]
DIFFERENCES = (
    "Relative differences of a step of training: from the CPU in single precision (where the device is a CPU:"
    " in double), of half precisions from single. The largest of all outputs, losses and weights' gradients."
)
# Of each section its title, its share of the time (what one leaves over the next ones get), and what its
# columns say.
SECTIONS = {
    "correct": ("Correct", 0.22, DIFFERENCES),
    "speed": (
        "Fast: training",
        0.34,
        "Whole steps, loader and optimizer included, bf16, 20 tokens and 36 regions of 2048 numbers a sample"
        " (sizes tiny: fewer), medians. GB is the most memory in use.",
    ),
    "kernels": (
        "Where the time goes",
        0.08,
        "The ten dearest kernels of a step (on a CPU: operators), and the longest waits between them.",
    ),
    "learning": (
        "Learning",
        0.24,
        "Questions about drawn scenes; a model of size small from random weights.",
    ),
    "extraction": ("Extraction", 0.10, "Files to region features with random weights, end to end."),
}
OPTIONAL = ("spacy", "rich", "networkx", "triton", "entmax", "h5py", "torchvision", "tensorboard")
GRACE = 0.04  # share of all time that a section may take over its own before it is cut off


def main() -> int:
    """Run the check; its exit code."""
    options = _options()
    started = time.monotonic()
    for name in options.without:
        # As if it were not installed.
        sys.modules[name] = None  # type: ignore[assignment]
    sys.path[:0] = [path for path in PATHS if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from checking.machine import processors

    os.environ.setdefault("OMP_NUM_THREADS", str(processors()))
    # Nothing is to be downloaded.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

    import torch
    from checking.outcome import Check, FirstFailureError, Report, TimeUpError, brief, free_memory

    from tbkin_core.support.console import quiet_transformers

    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu runs the check with tiny sizes")
    device = torch.device("cuda", 0) if name == "cuda" else torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.init()
    tiny = options.tiny or device.type == "cpu"
    logging.getLogger("tbkin").setLevel(logging.ERROR)
    quiet_transformers()
    titles = {section: (title, words) for section, (title, _, words) in SECTIONS.items()}
    report = Report(options.out, _head(device, tiny), titles, options.fail_fast)
    for key, value in report.head.items():
        print(f"{key}: {value}", flush=True)
    grace = max(60 * options.minutes * GRACE, 2)
    until = started + 60 * options.minutes - grace
    _watch(report, until + grace + 5)
    with tempfile.TemporaryDirectory(prefix="tbkin-check-", ignore_cleanup_errors=True) as place:
        left = {section: SECTIONS[section][1] for section in SECTIONS if section in options.sections}
        while left:
            section, share = next(iter(left.items()))
            now = time.monotonic()
            ends = now + max(until - now, 0) * share / sum(left.values())
            del left[section]
            print(f"\n{titles[section][0]} ({ends - now:.0f} seconds)", flush=True)
            check = Check(report, section, device, tiny, Path(place), options.bar, options.without, ends)
            try:
                with _cut_off(ends - now + grace, TimeUpError):
                    if ends - now > 1:
                        importlib.import_module(f"checking.{section}").run(check)
                    else:
                        check.row(section, "skipped", "no time was left")
            except FirstFailureError:
                break
            except TimeUpError:
                check.row(section, "skipped", "the rest was cut off: the time was over")
            except Exception as error:
                check.row(section, "failed", brief(error))
                traceback.print_exc()
            free_memory()
    if loaded := [name for name in options.without if sys.modules.get(name)]:
        report.add(_row("correct", f"without {', '.join(loaded)}", "failed"))
    report.head["took"] = f"{time.monotonic() - started:.0f} s of {60 * options.minutes:.0f}"
    report.write()
    failed = report.failed(("correct", "learning"))
    for row in report.rows:
        if row.status in ("failed", "missed", "out of memory"):
            print(f"\n[{row.status}] {row.section}: {row.name}", end="")
    print(f"\n{len(report.rows)} rows, {len(failed)} of correctness or learning failed", flush=True)
    return 1 if failed else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after about so many (default 8)")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json (default: print alone)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of %(default)s")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, as always on a CPU")
    parser.add_argument("--bar", type=float, default=1e-4, help="largest relative difference (default 1e-4)")
    parser.add_argument("--without", default="", help="modules to do without, as if not installed: a,b")
    parser.add_argument("--fail-fast", action="store_true", help="end at the first row that fails")
    options = parser.parse_args()
    options.sections = options.sections.split(",")
    options.without = tuple(filter(None, options.without.split(",")))
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"--sections: expected some of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    if options.out is not None:
        # Sections work in other directories.
        out = options.out.absolute()
        options.out = out.with_suffix("") if out.suffix in (".md", ".json") else out
        options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


def _head(device: Any, tiny: bool) -> dict[str, Any]:
    """What the table was measured on, and with what."""
    import torch
    import transformers
    from checking.machine import processors

    head: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "commit": _commit()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / 1e9
        head["card"] = f"{torch.cuda.device_count()} x {properties.name}, {memory:.0f} GB"
        head["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        head["CUDA"], head["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
    else:
        head["device"] = f"CPU ({platform.machine()})"
    head["CPUs"] = f"{processors()} of {os.cpu_count()}, {torch.get_num_threads()} threads"
    head["Python"] = platform.python_version()
    head["torch"], head["transformers"] = torch.__version__, transformers.__version__
    present = {name: _present(name) for name in OPTIONAL}
    if present["triton"]:
        head["triton"] = __import__("triton").__version__
    head["not installed"] = ", ".join(name for name, there in present.items() if not there) or "nothing"
    head["float32 products"] = torch.get_float32_matmul_precision()
    head["sizes"] = "tiny" if tiny else "full"
    return head


def _present(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that is to be done without
        return False


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return commit + (" with changes" if changed not in ("", "unknown") else "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _row(section: str, name: str, status: str, note: str = "") -> Any:
    from checking.outcome import Row

    return Row(section, name, status, {}, note)


class _cut_off:
    """While in it, so many seconds may pass before an exception comes."""

    def __init__(self, seconds: float, error: type[BaseException]) -> None:
        self.seconds, self.error = seconds, error

    def __enter__(self) -> None:
        def over(number: int, frame: object) -> None:
            raise self.error

        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _watch(report: Any, until: float) -> None:
    """End the process where a call that cannot be interrupted hangs; what was measured is on disk."""

    def wait() -> None:
        time.sleep(max(until - time.monotonic(), 0))
        last = report.rows[-1] if report.rows else None
        where = f"after {last.name!r}" if last else "at the beginning"
        try:
            report.add(_row(last.section if last else "correct", "hung", "failed", f"ended by force {where}"))
        finally:
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
