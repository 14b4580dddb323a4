"""Some seconds of the mutation harness, and that it sees what it is for."""

from __future__ import annotations

import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, REPOSITORY
from fuzz.bases import FORMATS
from fuzz.mutations import mutate
from fuzz.run import Ended, Listing, judge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and looks into /proc")

HARNESS = [sys.executable, REPOSITORY / "tests" / "fuzz" / "run.py", "--workers", "1"]


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """No traceback, no hang, no gigabytes, nothing outside --out; refusals name the file and a remedy."""
    done = subprocess.run(
        [*HARNESS, "--count", "50", "--seed", "0"],
        cwd=tmp_path, env={**ENVIRONMENT, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # PyTorch's compiler may keep what it made.
    left = [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
    assert left == [], "the harness clears up"


FORMAT = next(form for form in FORMATS if form.name == "coco-captions")
FILE, PIPE = (stat.S_IFREG, 1, 0), (stat.S_IFIFO, 0, 0)
REFUSAL = "tbkin: DataError: coco/annotations/captions_train.json: is empty\n  give another\n"
CODE = "KeyError in tbkin_core/x.py:read"


@pytest.mark.parametrize(
    ("ended", "new", "kinds"),
    [
        (Ended(0, '{"a": 1}', ""), {"work/out/x.json": FILE}, []),
        (Ended(1, "", f"tbkin: warning: slow\n{REFUSAL}", CODE), {}, []),
        (Ended(99, "", "Traceback (most recent call last)", CODE), {}, [f"traceback ({CODE})"]),
        (Ended(-9, "", ""), {}, ["exit code -9 (coco-captions)"]),
        (Ended(-9, "", "", hung=True), {}, ["hang (coco-captions)"]),
        (Ended(0, "", "", orphans=True), {}, ["processes left (coco-captions)"]),
        (Ended(0, "", "", peak=3 << 30), {}, ["memory (coco-captions)"]),
        (Ended(1, "", "tbkin: out of memory\n", "MemoryError in a"), {}, ["memory (MemoryError in a)"]),
        (Ended(1, "", "", CODE), {}, [f"refused without a message ({CODE})"]),
        (Ended(1, "", REFUSAL.partition("\n")[0], CODE), {}, [f"refused without a remedy ({CODE})"]),
        (Ended(1, "", REFUSAL.replace("captions", ""), CODE), {},
         [f"refused without naming the file ({CODE})"]),
        (Ended(0, '{"a": NaN}', ""), {}, ["NaN in --json"]),
        (Ended(0, "wrote it", ""), {}, ["--json is no JSON"]),
        (Ended(0, "", ""), {"neighbour.json": PIPE}, ["written outside --out: neighbour.json"]),
        (Ended(0, "", ""), {"work/out/.x-abcd1234": FILE}, ["left over: .x-*"]),
    ],
)  # fmt: skip
def test_each_kind_of_failure_is_seen(tmp_path: Path, ended: Ended, new: Listing, kinds: list[str]) -> None:
    before: Listing = {f"work/{FORMAT.file}": FILE, "neighbour.json": FILE}
    for name in new:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert list(judge(FORMAT, ended, before, before | new, tmp_path, Path("work/out"))) == kinds


def test_an_input_follows_from_its_number(tmp_path: Path) -> None:
    def damaged(seed: str) -> tuple[str, bytes]:
        file = tmp_path / "x.json"
        file.unlink(missing_ok=True)
        file.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "n": 1.5}')
        told = mutate(file, "json", random.Random(seed))
        return told, file.read_bytes() if file.is_file() else b""

    seeds = [str(number) for number in range(40)]
    assert [damaged(seed) for seed in seeds] == [damaged(seed) for seed in seeds]
    assert len({damaged(seed) for seed in seeds}) > 30
