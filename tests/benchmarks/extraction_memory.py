"""Peak memory of extract-features by number of images: it should not grow with them.

    OMP_NUM_THREADS=1 python tests/benchmarks/extraction_memory.py --images 100 10000 --workers 2

draws small images, and a table of features of 36 regions in the form of bottom-up attention, and runs the
command on each: the built-in extractor (with worker processes) and the import. A table: the largest
proportional memory of all processes together (pages that several share count once) and of the main one
(resident), in MiB, with the seconds that it took; the median of `--rounds` runs.
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

REGIONS, SIZE = 36, 128  # numbers per region; a table of 2048 would take 4 GB


def draw_images(place: Path, count: int) -> None:
    """Small images, two hundred of them different."""
    place.mkdir()
    chance = np.random.default_rng(0)
    kinds = [
        Image.fromarray(chance.integers(0, 255, (3, 4, 3), np.uint8)).resize((32, 24)) for _ in range(200)
    ]
    for number in range(count):
        kinds[number % len(kinds)].save(place / f"{number}.png")


def draw_table(place: Path, count: int) -> None:
    """One row an image."""
    place.mkdir()
    chance = np.random.default_rng(0)
    boxes = np.tile(np.array([10, 10, 50, 50], np.float32), (REGIONS, 1))
    with (place / "features.tsv").open("wb") as file:
        for number in range(count):
            arrays = (boxes, chance.random((REGIONS, SIZE), np.float32))
            columns = [base64.b64encode(array.tobytes()) for array in arrays]
            file.write(b"\t".join([b"%d\t64\t64\t%d" % (number, REGIONS), *columns]) + b"\n")


def memory(pid: int) -> tuple[int, int]:
    """Bytes of a process and all below it, proportional; and of itself, resident."""
    total, own, queue = 0, 0, [pid]
    while queue:
        process = queue.pop()
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            sizes = {line.split()[0]: int(line.split()[1]) for line in rollup[1:] if line.endswith("kB")}
            total += 1024 * sizes["Pss:"]
            # Files mapped to read are the system's cache, which it takes back when it needs it.
            own = 1024 * sizes["Rss:"] if process == pid else own
            for task in Path(f"/proc/{process}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
        except (OSError, KeyError, IndexError):
            continue  # it has ended meanwhile
    return total, own


def measure(data: Path, out: Path, workers: int) -> tuple[int, int, float]:
    """The two peaks in bytes, and the seconds, of one run of the command."""
    command = [sys.executable, "-m", "tbkin_cli", "extract-features", str(data), "--out", str(out), "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL)
    together, alone = 0, 0
    while process.poll() is None:
        found = memory(process.pid)
        together, alone = max(together, found[0]), max(alone, found[1])
        time.sleep(0.03)
    if process.returncode:
        raise SystemExit(process.returncode)
    return together, alone, time.perf_counter() - start


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="runs of the import; the extractor runs once")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.workers} worker processes")
    print(f"{'':14}{'images':>8}{'all MiB':>10}{'main MiB':>10}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for kind, draw in (("built-in", draw_images), ("import", draw_table)):
            for count in arguments.images:
                data = place / f"{kind}-{count}"
                draw(data, count)
                runs = [
                    measure(data, place / f"{kind}-{count}-{turn}", arguments.workers)
                    for turn in range(arguments.rounds if kind == "import" else 1)
                ]
                together, alone, seconds = (statistics.median(column) for column in zip(*runs, strict=True))
                print(
                    f"{kind:14}{count:8}{together / 2**20:10.0f}{alone / 2**20:10.0f}{seconds:9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
