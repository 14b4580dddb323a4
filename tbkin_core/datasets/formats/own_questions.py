"""Questions as people write them down: JSON lines, or a table with a header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.formats.vqa import (
    ANSWER_KEYS,
    ID_KEYS,
    IMAGE_KEYS,
    QUESTION_KEYS,
    first_of,
    has_keys,
    questions_of,
)
from tbkin_core.datasets.reading import Source
from tbkin_core.datasets.records import Content

SHAPE = '{"image": "dog.jpg", "question": "what color is the dog?", "answer": "brown"}'
"""A line that is read; "answers" may be a list of what several people said, "split" train, val or test."""


_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ID_COLUMNS = frozenset({*IMAGE_KEYS, *ID_KEYS})
TABLES = frozenset({".csv", ".tsv"})


def read_questions(source: Source) -> Content:
    """Questions of lines `{"image", "question", "answer" (or "answers"), "split", "id"}`; two are a must.

    A table has these names as its header; several answers stand apart by "|", or are a list in brackets.
    """
    table = source.file.path.suffix.lower() in TABLES
    return questions_of(source, _entries(source, table))


def _entries(source: Source, table: bool) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, item in source.table_rows() if table else source.json_lines():
        subject = f"line {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        if table:
            item = {key: _plain_id(value) if key in _ID_COLUMNS else value for key, value in item.items()}
            if (given := first_of(item, ANSWER_KEYS)) is not None:
                if (texts := _texts(str(given))) is None:
                    source.problem(subject, f"has answers that are no list of texts: {given[:40]} (left out)")
                item = {key: value for key, value in item.items() if key not in ANSWER_KEYS}
                item |= {"answers": texts} if texts else {}
        yield number, subject, item


def _plain_id(value: str | None) -> str | None:
    """42 of "42.0", as tables have it in a column in which a value is missing."""
    return value and re.sub(r"^(\d+)\.0$", r"\1", value)


def _texts(cell: str) -> list[str] | None:
    """The texts of "yes|no", or of a list as Python, JSON or NumPy write it; None where it is none."""
    if not re.fullmatch(r"\s*\[.*\]\s*", cell, re.DOTALL):
        return [part.strip() for part in cell.split("|") if part.strip()]
    if re.sub(_QUOTED, "", cell).strip("[], \t\n").replace(",", "").strip():
        return None
    return [re.sub(r"\\(.)", r"\1", found.group()[1:-1]) for found in re.finditer(_QUOTED, cell)]


def _has_questions(file: Candidate) -> bool:
    if file.suffix in TABLES:
        return all(
            set(file.header) & {key.lower() for key in keys} for keys in (IMAGE_KEYS, QUESTION_KEYS[:1])
        )
    return has_keys(file, IMAGE_KEYS, QUESTION_KEYS[:1])


QUESTION_LINES = Format(
    name="own-questions",
    layout="questions",
    holds=Holds.IMAGES | Holds.QUESTIONS,
    read=read_questions,
    looked_for="lines of image, question and answer",
    suffixes=frozenset({".jsonl", ".ndjson"}) | TABLES,
    content=_has_questions,
    split_by_row=True,
    family_by_name=False,
)
