"""Captions without images, from a file of their own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from tbkin_core.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv")
_KEYS = ("text", "caption", "sentence")


def read_captions(path: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """The captions of a file, each with the number of its line, from 1.

    A `.txt` has one a line; a `.jsonl` a JSON string or an object with `text` or `caption` a line; a `.csv`
    or `.tsv` a header with such a column. Empty lines are passed over; others without a caption are told
    in `problems`, which is complete when all have been read.

    Raises:
        DataError: The file cannot be read, is no UTF-8, or has no such column.
    """
    lacking: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, text in _texts(path, file):
                if text.strip():
                    yield number, text.strip()
                elif number:
                    lacking.append(number)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text", hint="save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is no table ({error})") from error
    if lacking:
        some = ", ".join(map(str, lacking[:4])) + (f" and {len(lacking) - 4:,} more" if lacking[4:] else "")
        problems.append(f"{path}: no caption in line {some} (skipped)")


def _texts(path: Path, file: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Number of the line and text; "" where a line holds none that should."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        table = csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t")
        names = {name.strip().lower(): name for name in table.fieldnames or [] if name}
        column = next((names[key] for key in _KEYS if key in names), None)
        if column is None:
            raise DataError(
                f"{path}: no column of its header is called {', '.join(_KEYS[:-1])} or {_KEYS[-1]}",
                hint="its first line names the columns, for example: text",
            )
        for row in table:
            yield table.line_num, row.get(column) or ""
        return
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        yield number, line if suffix == ".txt" else _of_json(line)


def _of_json(line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    return value if isinstance(value, str) else ""
