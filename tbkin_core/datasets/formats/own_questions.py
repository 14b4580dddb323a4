"""Questions as people write them down: JSON lines, or a table with a header."""

from __future__ import annotations

from typing import Any

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.formats.vqa import (
    ANSWER_KEYS,
    ID_KEYS,
    IMAGE_KEYS,
    QUESTION_KEYS,
    SPLIT_KEYS,
    answers_of,
    first_of,
    has_keys,
)
from tbkin_core.datasets.reading import Source, as_id, as_text
from tbkin_core.datasets.records import AnswerRow, Content, ImageId, NamedImage, QuestionRow
from tbkin_core.datasets.splits import normalise_split

SHAPE = '{"image": "dog.jpg", "question": "what color is the dog?", "answer": "brown"}'
"""A line that is read; "answers" may be a list of what several people said, "split" train, val or test."""


TABLES = frozenset({".csv", ".tsv"})


def read_questions(source: Source) -> Content:
    """Questions of lines `{"image", "question", "answer" (or "answers"), "split", "id"}`; two are a must.

    A table has these names as its header; several answers stand apart by "|".
    """
    table = source.file.path.suffix.lower() in TABLES
    rows: list[QuestionRow] = []
    named: dict[str, NamedImage] = {}
    seen: set[ImageId] = set()
    for number, item in source.table_rows() if table else source.json_lines():
        subject = f"line {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        image, text = (
            as_id(first_of(item, IMAGE_KEYS)),
            source.sentence(subject, first_of(item, QUESTION_KEYS)),
        )
        question_id = as_id(first_of(item, ID_KEYS))
        question_id = f"{source.file.name}:{number}" if question_id in (None, "") else question_id
        if image is None or image == "":
            source.problem(subject, "has no image (skipped)")
        elif not text:
            source.problem(subject, "has no question (skipped)")
        elif source.admits(seen, question_id, subject, "an id"):
            split = normalise_split(as_text(first_of(item, SPLIT_KEYS)) or "") or None
            if isinstance(image, str):
                named.setdefault(image, NamedImage(image, source.file.directory, split or source.file.split))
            rows.append(QuestionRow(question_id, image, text, _answers(source, subject, item, table), split))
    return Content(questions=rows, named=list(named.values()))


def _answers(source: Source, subject: str, item: dict[str, Any], table: bool) -> AnswerRow | None:
    given = first_of(item, ANSWER_KEYS)
    if given is None:
        return None
    if table:
        given = [part.strip() for part in str(given).split("|") if part.strip()]
    return answers_of(source, subject, {"answers": given, "answer_type": item.get("answer_type")})


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
