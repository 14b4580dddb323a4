"""Seconds that `tbkin visualize` takes in a fresh process, of that imports, and for each further image.

    python tests/benchmarks/visualize_speed.py "what color is the star?" coco/val/*.jpg \
        --checkpoint runs/finetune/vqa

Medians over several runs, wall-clock time and user + system time of the processes, as one JSON object. A
further image costs what a call with all images takes longer than one with the first, by image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# What answering one question loads, from the command line's start to the figure.
_IMPORTS = (
    "import tbkin_cli.main, tbkin_core.stages, tbkin_core.modeling.checkpoint, tbkin_core.tasks.vqa,"
    " tbkin_core.features.extract, tbkin_core.figures.answer, matplotlib.backends.backend_agg,"
    " matplotlib.figure, matplotlib.font_manager, matplotlib.patheffects"
)


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall-clock seconds, and user + system seconds, of a process that must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(message)
    return seconds, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    images = [str(path) for path in arguments.images]
    results: dict[str, list[tuple[float, float]]] = {"fresh": [], "imports": [], "further_image": []}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "tbkin_cli", "visualize", "--quiet", "--out", out]
        command += ["--checkpoint", str(arguments.checkpoint)]
        timed([*command, images[0], arguments.question])  # the files come into the system's cache
        for _ in range(arguments.runs):
            results["imports"].append(timed([sys.executable, "-c", _IMPORTS]))
            results["fresh"].append(timed([*command, images[0], arguments.question]))
            if len(images) > 1:
                several = timed([*command, *images, arguments.question])
                more = zip(several, results["fresh"][-1], strict=True)
                wall, cpu = ((long - short) / (len(images) - 1) for long, short in more)
                results["further_image"].append((wall, cpu))
    measured = {
        name: {
            "wall_s": round(statistics.median(wall for wall, _ in values), 3),
            "cpu_s": round(statistics.median(cpu for _, cpu in values), 3),
        }
        for name, values in results.items()
        if values
    }
    print(json.dumps({"images": len(images), "runs": arguments.runs, "load": os.getloadavg()[0], **measured}))


if __name__ == "__main__":
    main()
