"""The table of a check: its rows, the time that is left, and what becomes of an exception."""

from __future__ import annotations

import gc
import json
import math
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")

# What a row may say. "failed" in a section of correctness makes the check fail.
OK, FAILED, MEASURED, REACHED, MISSED = "ok", "failed", "measured", "reached", "missed"
SKIPPED, NO_MEMORY = "skipped", "out of memory"


class TimeUpError(BaseException):
    """The time of a section is over; no Exception, so that no library takes it for one of its own."""


class FirstFailureError(BaseException):
    """A row failed, and no other is wanted after it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    section: str
    name: str
    status: str
    values: dict[str, Any] = field(default_factory=dict)  # by column
    note: str = ""


@dataclass(slots=True)
class Report:
    """All rows so far, on disk after each; `out` names the files without their suffix, None writes none."""

    out: Path | None
    head: dict[str, Any]
    titles: dict[str, tuple[str, str]]  # of each section, with what its columns say
    fail_fast: bool = False
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Print a row, and write all of them."""
        self.rows.append(row)
        told = ", ".join(f"{name} {shown(value)}" for name, value in row.values.items())
        parts = [f"[{row.status}] {row.name}", told, row.note]
        print(": ".join(filter(None, parts)), flush=True)
        self.write()
        if self.fail_fast and row.status == FAILED:
            raise FirstFailureError

    def write(self) -> None:
        """Write both files anew, each whole or not at all."""
        if self.out is None:
            return
        content = {"head": self.head, "rows": [asdict(row) for row in self.rows]}
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"
        for suffix, body in ((".json", text), (".md", self.markdown())):
            file = self.out.with_name(self.out.name + suffix)
            draft = file.with_name(f".{file.name}.tmp")
            draft.write_text(body, encoding="utf-8")
            draft.replace(file)

    def markdown(self) -> str:
        """A list of what it was measured on, and a table for each section."""
        lines = ["# CUDA check", "", *(f"- {name}: {value}" for name, value in self.head.items()), ""]
        for section, (title, words) in self.titles.items():
            if rows := [row for row in self.rows if row.section == section]:
                lines += [f"## {title}", "", *textwrap.wrap(words, 80), "", *_table(rows), ""]
        return "\n".join(lines)

    def failed(self, sections: tuple[str, ...]) -> list[Row]:
        """The rows of some sections that failed."""
        return [row for row in self.rows if row.status == FAILED and row.section in sections]


def _table(rows: list[Row]) -> list[str]:
    """Rows as a Markdown table that is aligned in its source too."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    notes = ["note"] if any(row.note for row in rows) else []
    cells = [["", *columns, "result", *notes]]
    for row in rows:
        values = [shown(row.values.get(name, "")) for name in columns]
        cells.append([row.name, *values, row.status, *([row.note] if notes else [])])
    cells = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in cells]
    # Notes come last and may be long: they are not filled up.
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]) - len(notes))]
    right = [False, *(True for _ in columns), False, *(False for _ in notes)]
    padded = [
        [
            (cell.rjust(width) if on_right else cell.ljust(width))
            for cell, width, on_right in zip(line, [*widths, *(0 for _ in notes)], right, strict=True)
        ]
        for line in cells
    ]
    rule = [
        "-" * max(width - on_right, 3) + ":" * on_right
        for width, on_right in zip(widths, right, strict=False)
    ]
    body = [f"| {' | '.join(line)} |" for line in padded]
    return [body[0], f"| {' | '.join([*rule, *('---' for _ in notes)])} |", *body[1:]]


def _plain(value: Any) -> Any:
    """A value that JSON knows."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.3g}"


@dataclass(slots=True)
class Check:
    """What a section gets: where to compute, what with, how long, and where its rows go."""

    report: Report
    section: str
    device: torch.device
    tiny: bool
    place: Path  # a directory of its own
    bar: float  # largest relative difference in single precision
    without: tuple[str, ...]  # modules that must not be loaded
    ends: float = 0.0  # of the section, as `time.monotonic` counts

    def left(self) -> float:
        """Seconds left to the section."""
        return self.ends - time.monotonic()

    def row(self, name: str, status: str, note: str = "", **values: Any) -> None:
        """Add a row to the table."""
        named = {column: _plain(value) for column, value in values.items() if value != ""}
        self.report.add(Row(self.section, name, status, named, note))

    def attempt(self, name: str, work: Callable[..., Value], *arguments: Any) -> Value | None:
        """What `work` returns; None where it raised or there was no time, of which a row tells."""
        if self.left() <= 0:
            self.row(name, SKIPPED, "no time was left")
            return None
        try:
            return work(*arguments)
        except TimeUpError:
            self.row(name, SKIPPED, "cut off: the time of the section was over")
            raise
        except Exception as error:
            if is_memory(error):
                self.row(name, NO_MEMORY, brief(error))
            else:
                self.row(name, FAILED, brief(error))
                traceback.print_exc(file=sys.stderr)
        # Out of the clause above, which holds on to the memory.
        free_memory()
        return None


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def brief(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], Any]]:
    """A function that tells the gigabytes that were in use at most since the block began; "-" on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / 1e9
    else:
        yield lambda: "-"
