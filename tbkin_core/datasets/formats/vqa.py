"""VQA v1 and v2 (Antol et al. 2015; Goyal et al. 2017): a file of questions and one of their annotations."""

from __future__ import annotations

import re
import sys
from typing import Any

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.reading import AnnotationFile, Source, as_id, as_text
from tbkin_core.datasets.records import AnswerRow, Content, ImageId, QuestionRow
from tbkin_core.datasets.splits import normalise_split

_MULTIPLE_CHOICE = "multiple_choice_answer"


def read_questions(source: Source) -> Content:
    """Questions of a VQA questions file, with answers where they are in it."""
    content = _with_key(source.json(), "questions")
    key = "questions" if not isinstance(content, dict) or "questions" in content else "annotations"
    rows: list[QuestionRow] = []
    seen: set[ImageId] = set()
    listed = source.items(content, key)
    for position, question_id, subject, item in source.objects(listed, "question", "question_id"):
        image_id, text = as_id(item.get("image_id")), source.sentence(subject, item.get("question"))
        if question_id is None:
            source.problem(f"question at position {position}", "has no question_id (skipped)")
        elif image_id is None:
            source.problem(subject, "has no image_id (skipped)")
        elif not text:
            source.problem(subject, "has no text (skipped)")
        elif source.admits(seen, question_id, subject, "a question_id"):
            answered = any(key in item for key in ("answers", _MULTIPLE_CHOICE, "answer"))
            inline = answers_of(source, subject, item) if answered else None
            rows.append(QuestionRow(question_id, image_id, text, inline))
    return Content(questions=rows, split=_stated_split(content))


def read_answers(source: Source) -> Content:
    """Answers of a VQA annotations file."""

    def answer_text(item: dict[str, Any]) -> Any:
        # Ten of {"answer": ..., "answer_confidence": ..., "answer_id": ...} per question: millions in VQA v2.
        return item["answer"] if "answer" in item and "question_id" not in item else item

    content = _with_key(source.json(answer_text), "annotations")
    rows: dict[int | str, AnswerRow] = {}
    listed = source.items(content, "annotations")
    for position, question_id, _, item in source.objects(listed, "annotation", "question_id"):
        if question_id is None:
            source.problem(f"annotation at position {position}", "has no question_id (skipped)")
        elif question_id in rows:
            source.problem(f"question {question_id}", "is annotated twice (first kept)")
        else:
            rows[question_id] = answers_of(source, f"question {question_id}", item)
    return Content(answers=rows, split=_stated_split(content))


def _with_key(content: Any, key: str) -> Any:
    """The content of a VQA file; of a file that is the list alone, as if it were under its key."""
    return {key: content} if isinstance(content, list) else content


def answers_of(source: Source, subject: str, item: dict[str, Any]) -> AnswerRow:
    """Answers of an entry: texts, numbers, or {"answer": ...}.

    Of several answers an empty one is kept, as the official evaluator keeps it.
    """
    listed = item.get("answers")
    if not isinstance(listed, list) or not listed:
        listed = [item.get(_MULTIPLE_CHOICE, item.get("answer"))]
    answers = []
    for answer in listed:
        value = answer.get("answer") if isinstance(answer, dict) else answer
        text = as_text(str(value) if isinstance(value, int | float) else value)
        if text or (text is not None and len(listed) > 1):
            answers.append(sys.intern(text))
        else:
            source.problem(subject, "has an answer without text (left out)")
    question_type, answer_type = as_text(item.get("question_type")), as_text(item.get("answer_type"))
    return AnswerRow(tuple(answers), question_type or "", answer_type or "", as_id(item.get("image_id")))


def _stated_split(content: Any) -> str | None:
    stated = as_text(content.get("data_subtype")) if isinstance(content, dict) else None
    return normalise_split(stated) if stated else None


def _has_question_ids_and(file: Candidate, *keys: str) -> bool:
    return '"question_id"' in file.ends and any(f'"{key}"' in file.ends for key in keys)


def _split_at_ends(file: Candidate) -> str | None:
    stated = re.search(r'"data_subtype"\s*:\s*"([^"\\]+)"', file.ends)
    return stated.group(1) if stated else None


def _without_multiple_choice(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """Multiple-choice files of VQA v1 repeat the open-ended questions under the same ids."""
    if any("openended" in file.name.lower() for file in files):
        return [file for file in files if "multiplechoice" not in file.name.lower()]
    return files


QUESTIONS = Format(
    name="vqa-questions",
    layout="vqa",
    holds=Holds.QUESTIONS,
    read=read_questions,
    looked_for="VQA questions and annotations",
    content=lambda file: _has_question_ids_and(file, "question", "questions"),
    stated_split=_split_at_ends,
    prefer=_without_multiple_choice,
    noun="question",
)
ANNOTATIONS = Format(
    name="vqa-annotations",
    layout="vqa",
    holds=Holds.ANSWERS,
    read=read_answers,
    content=lambda file: _has_question_ids_and(file, "answers", _MULTIPLE_CHOICE),
    stated_split=_split_at_ends,
    noun="question",
)
