"""What the six commands leave behind on a small drawn world, as digests to compare two versions of tbkin by.

    OMP_NUM_THREADS=1 python tests/benchmarks/same_outputs.py run WORKSPACE
    python tests/benchmarks/same_outputs.py compare BEFORE/digests.json AFTER/digests.json

`run` takes whichever tbkin Python finds (set PYTHONPATH to a checkout of another version) and writes
WORKSPACE/digests.json: a digest for each file, and two for each command, of its `--json` and of its tables.
Times, speeds and dates are taken out first; nothing else is. `compare` lists what differs and ends with 1 if
any does.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

app = typer.Typer(add_completion=False, help=__doc__)

COMMANDS = (
    "extract-features coco --workers 0",
    "build-graphs coco --export graphs.jsonl --networkx graphs.graphml",
    "pretrain coco --epochs 2",
    "finetune --task rec --data coco --epochs 2",
    "finetune --task vqa --data coco --epochs 2 --threshold 0.3 --predict test",
    "finetune --task vqa --data coco --epochs 2 --blind --init none",
    "finetune --task vqa --data coco --epochs 2 --threshold 0.3 --predict test",
    "threshold-sweep --task vqa --checkpoint runs/finetune/vqa-relative-0.3 --thresholds 0,0.1,0.5"
    " --selection relative --selection topk=1,4 --selection entmax15 --selection probability"
    " --selection score",
    "threshold-sweep --task rec --thresholds 0,0.3 --split testA",
    "threshold-sweep --task vqa --refit --thresholds 0,0.2 --seeds 2 --epochs 1 --init none --out refit",
    'visualize img.jpg "what color is the circle?" --graph --html --format png --format svg',
    'visualize img.jpg "the red circle" --selection topk --threshold 3 --aggregate last',
    'visualize img.jpg "a red circle" --checkpoint runs/pretrain --layer 0 --head 1 --column',
    "visualize --from runs/finetune/vqa-relative-0.3/results-test.json --wrong --limit 4",
    "visualize --from runs/finetune/rec/results-testA.json --limit 4",
)  # fmt: skip
VOLATILE = {
    "seconds", "samples_per_second", "started", "finished", "trained", "init", "learning_seconds",
}  # fmt: skip


@app.command()
def run(
    workspace: Annotated[Path, typer.Argument(help="Made anew.")],
    train: Annotated[int, typer.Option(help="Training scenes.")] = 24,
) -> None:
    """Run the commands and write the digests of all they leave behind."""
    from examples.scenes import generate

    shutil.rmtree(workspace, ignore_errors=True)
    generate(workspace / "coco", train, 8, 8, 0, (128, 96))
    shutil.copy(sorted((workspace / "coco" / "val").glob("*.jpg"))[0], workspace / "img.jpg")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "SOURCE_DATE_EPOCH": "0"}
    digests: dict[str, str] = {}
    for line in COMMANDS:
        for form in ("tables", "json"):
            # The second run of a finished command says what it has: the same table without the work.
            arguments = [*shlex.split(line), *(["--json"] if form == "json" else [])]
            command = [sys.executable, "-m", "tbkin_cli", *arguments]
            done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{line}: exit code {done.returncode}\n{done.stderr}")
            text = done.stdout
            text = _digest_text(_stripped(json.loads(text))) if form == "json" else _without_speed(text)
            digests[f"{form}: {line}"] = _digest(text.encode())
            print(f"{form}: {line}", file=sys.stderr)
    for path in sorted(workspace.rglob("*")):
        if path.is_file() and ("coco" not in path.parts or _is_made(path)):
            content = content_of(path).replace(str(workspace.resolve()).encode(), b".")
            digests[str(path.relative_to(workspace))] = _digest(content)
    (workspace / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


@app.command()
def compare(
    before: Path,
    after: Path,
    noise: Annotated[Path | None, typer.Option(help="A second run of the first version.")] = None,
) -> None:
    """List what differs between two runs; what differs between two of one version is left out as noise."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    again = json.loads(noise.read_text()) if noise else old
    noisy = {name for name in {*old, *again} if old.get(name) != again.get(name)}
    different = sorted(name for name in {*old, *new} - noisy if old.get(name) != new.get(name))
    for name in different:
        state = "differs" if name in old and name in new else "is new" if name in new else "is gone"
        print(f"{name}: {state}")
    print(f"{len({*old, *new})} compared, {len(noisy)} left out as noise, {len(different)} differ")
    raise typer.Exit(bool(different))


def _is_made(path: Path) -> bool:
    return any(part in ("features", "graphs") for part in path.parts)


def content_of(path: Path) -> bytes:
    """A file's content without times and speeds."""
    if path.suffix == ".json":
        return _digest_text(_stripped(json.loads(path.read_text(encoding="utf-8")))).encode()
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return "\n".join(_digest_text(_stripped(json.loads(line))) for line in lines).encode()
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return _digest_text([_stripped(row) for row in csv.DictReader(file)]).encode()
    return path.read_bytes()


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(entry) for key, entry in value.items() if key not in VOLATILE}
    return [_stripped(entry) for entry in value] if isinstance(value, list) else value


def _without_speed(text: str) -> str:
    """A table without its last column where that is a speed."""
    return re.sub(r"[ \d]+$", "", text, flags=re.MULTILINE) if "samples/s" in text else text


def _digest_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    app()
