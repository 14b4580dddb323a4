"""Whether the same run gives the same weights on a busy machine.

    python tests/benchmarks/same_weights.py WORKSPACE --runs 30 --threads 2 --busy 2

Pretrains again and again on a few drawn scenes, each time in a process of its own, beside processes that keep
the cores busy, and counts the different weights. Ends with 1 if there are any.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(
    workspace: Annotated[Path, typer.Argument(help="Made anew.")],
    runs: Annotated[int, typer.Option(help="Runs.")] = 30,
    threads: Annotated[int, typer.Option(help="Threads of each.")] = 2,
    busy: Annotated[int, typer.Option(help="Processes beside it that do nothing but compute.")] = 2,
    precision: Annotated[str, typer.Option(help="As of pretrain.")] = "auto",
) -> None:
    """Pretrain again and again, and compare the weights."""
    from examples.scenes import generate

    shutil.rmtree(workspace, ignore_errors=True)
    generate(workspace / "coco", 16, 4, 4, 1)
    tbkin = [sys.executable, "-m", "tbkin_cli"]
    for stage in ("extract-features", "build-graphs"):
        subprocess.run(
            [*tbkin, stage, "coco", "--quiet"], cwd=workspace, check=True, stdout=subprocess.DEVNULL
        )
    # Loaded once, and forked for every run: torch has started no threads yet.
    import tbkin_core.stages.pretrain  # noqa: F401

    context = multiprocessing.get_context("fork")
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    digests: Counter[str] = Counter()
    try:
        for number in range(runs):
            out = workspace / f"run-{number}"
            child = context.Process(target=pretrain, args=(workspace / "coco", out, threads, precision))
            child.start()
            child.join()
            digests[hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()[:12]] += 1
            shutil.rmtree(out)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    print(json.dumps({"runs": runs, "threads": threads, "busy": busy, "weights": dict(digests)}))
    raise typer.Exit(len(digests) != 1)


def pretrain(data: Path, out: Path, threads: int, precision: str) -> None:
    """One run, in a process of its own."""
    import torch

    from tbkin_core.settings import PretrainConfig
    from tbkin_core.stages import pretrain as stage

    torch.set_num_threads(threads)
    stage(PretrainConfig(data=[data], out=out, epochs=3, precision=precision, devices="cpu"))


if __name__ == "__main__":
    typer.run(main)
