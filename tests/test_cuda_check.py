"""The check for GPUs, in full on the CPU: every section has rows, and what fails ends it with 1."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import ENVIRONMENT, REPOSITORY

SECTIONS = {"correct", "speed", "kernels", "learning", "extraction"}
# Not there on machines where nothing can be installed.
MISSING = "spacy,rich,networkx,entmax,h5py,tensorboard"


def check(place: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code and both files of a check."""
    out = place / "table"
    done = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "tests/cuda/check.py", "--device", "cpu", "--tiny"),
            *("--out", out, "--without", MISSING, *options),
        ],
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert out.with_suffix(".json").exists(), done.stderr
    content = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    for row in content["rows"]:
        assert row["name"] in done.stdout
    return done.returncode, content, out.with_suffix(".md").read_text(encoding="utf-8")


def test_the_whole_check_runs_on_a_cpu(tmp_path: Path) -> None:
    code, content, text = check(tmp_path, "--minutes", "12")  # four are few on a busy machine
    rows = content["rows"]
    assert {row["section"] for row in rows} == SECTIONS
    assert [row for row in rows if row["status"] in ("failed", "out of memory")] == []
    skipped = [row for row in rows if row["status"] == "skipped"]
    assert all(re.search("not installed|on a CPU", row["note"]) for row in skipped), skipped
    assert code == 0
    assert set(MISSING.split(",")) <= set(content["head"]["not installed"].split(", "))
    assert {"date", "commit", "device", "torch", "transformers", "CPUs"} <= content["head"].keys()
    lines = text.splitlines()
    assert lines[0] == "# CUDA check"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == len(rows) + 2 * len(SECTIONS)
    cells = {section: {line.count("|") for line in part.splitlines() if line.startswith("|")}
             for section, part in enumerate(text.split("\n## ")[1:])}  # fmt: skip
    assert all(len(counts) == 1 for counts in cells.values()), "each table has as many cells in every line"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["table.json", "table.md"]
    assert "hung" not in text


def test_a_difference_above_the_bar_fails(tmp_path: Path) -> None:
    code, content, _ = check(tmp_path, "--sections", "correct", "--bar", "1e-12", "--fail-fast")
    assert code == 1
    assert [(row["name"], row["status"]) for row in content["rows"]] == [("pretraining, dense", "failed")]
