"""A file that is given by itself, without a dataset directory: captions, or questions about images."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tbkin_core.datasets.formats.own_questions import TABLES
from tbkin_core.datasets.formats.vqa import IMAGE_KEYS, QUESTION_KEYS, first_of
from tbkin_core.datasets.reading import AnnotationFile, Problems, Source, as_text, delimiter_of
from tbkin_core.errors import DataError

LINES = frozenset({".jsonl", ".ndjson"})
CAPTION_KEYS = ("text", "caption", "sentence")
CAPTION_SUFFIXES = (".txt", *sorted(LINES), *sorted(TABLES))
QUESTION_SUFFIXES = (*sorted(LINES), *sorted(TABLES))


class Asked(NamedTuple):
    """A question about an image, and the line that it stands in."""

    line: int  # from 1
    image: str  # as the file has it
    question: str
    values: dict[str, Any]  # of the whole line, by name


class QuestionFile(NamedTuple):
    """Questions about images, what was passed over, and the names of a table's columns as it spells them."""

    asked: list[Asked]
    problems: list[str]
    names: dict[str, str]  # by the names that `Asked.values` has; empty of JSON lines


def read_captions(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """The captions of a file, each with the number of its line, from 1; and what was passed over.

    A `.txt` has one a line; a `.jsonl` a JSON string or an object with `text` or `caption` a line; a `.csv`
    or `.tsv` a header with such a column.

    Raises:
        DataError: The file cannot be read, or has no such column.
    """
    source, found = _source(path), []
    suffix = path.suffix.lower()
    entries: Iterator[tuple[int, Any]] = source.lines() if suffix == ".txt" else _entries(source)
    columns: set[str] = set()
    for number, item in entries:
        columns |= item.keys() if isinstance(item, dict) else {"text"}
        value = first_of(item, CAPTION_KEYS) if isinstance(item, dict) else item
        text = source.sentence(f"line {number}", value) if isinstance(value, str) else None
        if text:
            found.append((number, text))
        else:
            source.problem(f"line {number}", "has no caption (skipped)")
    if suffix in TABLES and not columns & set(CAPTION_KEYS):
        raise _no_column(path, CAPTION_KEYS)
    return found, source.problems.lines()


def read_questions(path: Path) -> QuestionFile:
    """The questions of a file, or expressions, each about an image.

    A `.jsonl` has an object with `image` and `question` (or `text`) a line, a `.csv` or `.tsv` a header with
    such columns; whatever else a line holds is kept.

    Raises:
        DataError: The file cannot be read, or its header lacks such a column or has one twice.
    """
    source, found = _source(path), []
    names = _spelt(source) if path.suffix.lower() in TABLES else {}
    keys = (*QUESTION_KEYS, *CAPTION_KEYS, "expression")
    if path.suffix.lower() in TABLES:
        for wanted, known in (("image", IMAGE_KEYS), ("question", keys)):
            if not names.keys() & set(known):
                raise _no_column(path, (wanted,))
    for number, item in _entries(source):
        if not isinstance(item, dict):
            source.problem(f"line {number}", "is no JSON object (skipped)")
            continue
        image, text = first_of(item, IMAGE_KEYS), source.sentence("", first_of(item, keys))
        name = as_text(image)
        if name and text:
            found.append(Asked(number, name, text, item))
        elif text and isinstance(image, int):
            source.problem(f"line {number}", "names its image by a number, not by its file (skipped)")
        else:
            lacks = "image" if text else "question" if name else "image and no question"
            source.problem(f"line {number}", f"has no {lacks} (skipped)")
    return QuestionFile(found, source.problems.lines(), names)


def _spelt(source: Source) -> dict[str, str]:
    """The names of a table's columns as its header spells them, by what its rows call them."""
    line = next((text for _, text in source.lines()), "")
    spelt = next(csv.reader([line], delimiter=delimiter_of(line)), [])
    names = {name.strip().lower(): name.strip() for name in spelt}
    if len(names) < len(spelt):
        twice = next(name for name in names if [it.strip().lower() for it in spelt].count(name) > 1)
        raise DataError(
            f"{source.file.path}: two columns are called {names[twice]!r}", hint="give each its own name"
        )
    return names


def _source(path: Path) -> Source:
    if not path.exists():
        raise DataError(f"{path}: no such file", hint="check its name, and the working directory")
    return Source(AnnotationFile(path, str(path), None, "single"), Problems())


def _entries(source: Source) -> Iterator[tuple[int, Any]]:
    if source.file.path.suffix.lower() in TABLES:
        return source.table_rows()
    return source.json_lines()


def _no_column(path: Path, names: tuple[str, ...]) -> DataError:
    return DataError(
        f"{path}: no column of its header is called {' or '.join(names)}",
        hint="its first line names the columns",
    )
