"""What a stage hands back: plain values, tables for people, files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Table:
    """A table of the result: cells are text already."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(slots=True)
class StageResult:
    """What a stage made.

    Attributes:
        out: Directory or file of the results.
        values: Plain values, as printed by --json.
        tables: What a person wants to see.
        problems: What was skipped or is worth knowing, one line each.
        files: Files to open.
        hints: Commands worth running next.
    """

    out: Path
    values: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
