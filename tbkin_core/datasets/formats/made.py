"""Questions and expressions that `build-graphs` made of a dataset; their image ids are its own keys."""

from __future__ import annotations

from dataclasses import replace

from tbkin_core.datasets.formats import vqa
from tbkin_core.datasets.formats.base import Format, Holds, Version
from tbkin_core.datasets.reading import Source
from tbkin_core.datasets.records import Content, RefRow, Target

QUESTIONS_MADE_BY = "tbkin build-graphs --questions"
"""What questions and annotations say under "made_by"."""
EXPRESSIONS_MADE_BY = "tbkin build-graphs --expressions"
"""What each ref says, and the instances beside them."""
QUESTION_SET, EXPRESSION_SET = "captions", "made"
"""The sets that these are."""


def _read_questions(source: Source) -> Content:
    return replace(vqa.read_questions(source), named=[])


def _read_refs(source: Source) -> Content:
    """Refs with boxes of their own."""
    rows = []
    for _, ref_id, subject, item in source.objects(source.json(), "ref", "ref_id"):
        try:
            x, y, w, h = map(float, item["bbox"])
            sentences = tuple((each["sent_id"], each["sent"]) for each in item["sentences"])
            target = Target((x, y, w, h), int(item["width"]), int(item["height"]))
            rows.append(RefRow(ref_id or 0, target, item["image_id"], item["split"], sentences))
        except (KeyError, TypeError, ValueError):
            source.problem(subject, "is not as it was made (skipped)")
    return Content(refs=rows)


QUESTIONS = replace(
    vqa.QUESTIONS,
    name="made-questions",
    holds=Holds.QUESTIONS,
    read=_read_questions,
    looked_for="",
    content=lambda file: QUESTIONS_MADE_BY in file.ends and '"question"' in file.ends,
    content_first=True,
    ids_are_keys=True,
)
ANNOTATIONS = replace(
    vqa.ANNOTATIONS,
    name="made-annotations",
    content=lambda file: QUESTIONS_MADE_BY in file.ends,
    content_first=True,
)
REFS = Format(
    name="made-refs",
    layout="refcoco",
    holds=Holds.EXPRESSIONS,
    read=_read_refs,
    content=lambda file: EXPRESSIONS_MADE_BY in file.ends and '"ref_id"' in file.ends,
    content_first=True,
    version=lambda _: Version(set=EXPRESSION_SET),
    noun="ref",
    ids_are_keys=True,
)
INSTANCES = Format(
    name="made-instances",
    holds=Holds.NOTHING,
    content=lambda file: EXPRESSIONS_MADE_BY in file.ends,
    content_first=True,
)
