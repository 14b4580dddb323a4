"""Questions as people write them down: JSON lines, or a table of comma-separated values with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.formats.vqa import answers_of
from tbkin_core.datasets.reading import Source, as_id, as_text
from tbkin_core.datasets.records import AnswerRow, Content, ImageId, NamedImage, QuestionRow
from tbkin_core.datasets.splits import normalise_split

SHAPE = '{"image": "dog.jpg", "question": "what color is the dog?", "answer": "brown"}'
"""A line that is read; "answers" may be a list of what several people said, "split" train, val or test."""


def read_questions(source: Source) -> Content:
    """Questions of lines `{"image", "question", "answer" (or "answers"), "split", "id"}`; two are a must.

    A table has these names as its header; several answers stand apart by "|".
    """
    table = source.file.path.suffix.lower() == ".csv"
    rows: list[QuestionRow] = []
    named: dict[str, NamedImage] = {}
    seen: set[ImageId] = set()
    for number, item in table_rows(source) if table else source.json_lines():
        subject = f"line {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        image, text = as_id(item.get("image")), source.sentence(subject, item.get("question"))
        question_id = next(
            (it for key in ("id", "question_id") if (it := as_id(item.get(key))) is not None), None
        )
        question_id = f"{source.file.name}:{number}" if question_id in (None, "") else question_id
        if image is None or image == "":
            source.problem(subject, "has no image (skipped)")
        elif not text:
            source.problem(subject, "has no question (skipped)")
        elif source.admits(seen, question_id, subject, "an id"):
            split = normalise_split(as_text(item.get("split")) or "") or None
            if isinstance(image, str):
                named.setdefault(image, NamedImage(image, source.file.directory, split or source.file.split))
            rows.append(QuestionRow(question_id, image, text, _answers(source, subject, item, table), split))
    return Content(questions=rows, named=list(named.values()))


def table_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the header's names; line by line: a quotation mark without its second costs its line alone."""
    names: list[str] = []
    for number, line in source.lines():
        try:
            values = next(csv.reader([line], strict=True), [])
        except csv.Error as error:
            source.problem(f"line {number}", f"is no row of comma-separated values: {error} (skipped)")
            continue
        if not names:
            names = [value.strip().lower() for value in values]
        elif len(values) > len(names):
            what = f"has {len(values)} columns, the header {len(names)}: a text with commas needs quotes"
            source.problem(f"line {number}", f"{what} (skipped)")
        elif values:
            yield number, {name: value or None for name, value in zip(names, values, strict=False)}


def _answers(source: Source, subject: str, item: dict[str, Any], table: bool) -> AnswerRow | None:
    given = item.get("answers", item.get("answer"))
    if given is None:
        return None
    if table:
        given = [part.strip() for part in str(given).split("|")]
    return answers_of(source, subject, {"answers": given if isinstance(given, list) else [given]})


def _has_questions(file: Candidate) -> bool:
    if file.suffix == ".csv":
        header = re.split(r"[\r\n]", file.ends.lstrip("\ufeff"), maxsplit=1)[0].lower()
        names = {name.strip().strip('"') for name in header.split(",")}
        return {"image", "question"} <= names
    return all(re.search(rf'"{key}"\s*:', file.ends) for key in ("image", "question"))


QUESTION_LINES = Format(
    name="own-questions",
    layout="questions",
    holds=Holds.IMAGES | Holds.QUESTIONS,
    read=read_questions,
    looked_for="lines of image, question and answer",
    suffixes=frozenset({".jsonl", ".ndjson", ".csv"}),
    content=_has_questions,
    split_by_row=True,
)
