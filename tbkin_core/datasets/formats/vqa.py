"""Questions as JSON: VQA v1 and v2 (Antol et al. 2015; Goyal et al. 2017), and others by their own names.

VQA and OK-VQA keep the answers in a second file. With the answers beside the question: A-OKVQA, VizWiz,
TextVQA, GQA (an object by id), CLEVR, VQA-RAD, SLAKE, the files of LXMERT, ALBEF, BLIP and LAVIS, one's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.reading import AnnotationFile, Source, as_id, as_text, malformed, type_name
from tbkin_core.datasets.records import AnswerRow, Content, ImageId, NamedImage, QuestionRow
from tbkin_core.datasets.splits import more_exact_split, normalise_split, split_in

# What publishers call the parts of an entry; of several that it has the first counts.
QUESTION_KEYS = ("question", "sent", "query")
IMAGE_KEYS = (  # names of files first: an id beside one may count something else
    *("image", "image_name", "img_name", "image_filename", "file_path", "file_name", "imgname", "img_file"),
    *("image_path", "image_id", "imageId", "img_id"),
)
ID_KEYS = ("question_id", "questionId", "qid", "question_index", "id")
ANSWER_KEYS = ("answers", "direct_answers", "multiple_choice_answer", "answer", "label")
_CHOICE_KEYS = ("choices", "options")
SPLIT_KEYS = ("split", "set_name", "data_split")
_LIST_KEYS = ("questions", "data", "annotations")
_MOST_PEOPLE = 1000
# Parts of GQA's entries, most of its gigabyte, that are not needed.
_GQA_LARGE = ("semantic", "entailed", "equivalent", "annotations", "semanticStr", "groups", "fullAnswer")


def read_questions(source: Source) -> Content:
    """Questions of a JSON file, with answers where they are in it.

    The file is a list, has one under "questions", "data" or "annotations" or a list under the name of each
    split, or is an object of entries by id.
    """
    content = source.json(_small)
    entries = _entries(source, content)
    if isinstance(content, dict) and isinstance(content.get("images"), list) and content["images"]:
        source.problem("", "lists images, which is not read: its questions' ids are looked for among all")
    if entries is None:
        return Content()
    listed = source.objects(entries, "question", *ID_KEYS)
    found = questions_of(source, ((row.position, row.subject, row.item) for row in listed))
    if not found.questions:
        source.problem("", "holds no question that can be used")
    return replace(found, split=_stated_split(content))


def questions_of(source: Source, entries: Iterable[tuple[int, str, dict[str, Any]]]) -> Content:
    """Questions of a file's entries, each with its number and what messages call it; images by name, too.

    An entry without an id, or with the id of another question, gets FILE:NUMBER.
    """
    rows: list[QuestionRow] = []
    named: dict[str, NamedImage] = {}
    seen: dict[ImageId, tuple[ImageId, str]] = {}
    for number, subject, item in entries:
        image_id = as_id(first_of(item, IMAGE_KEYS))
        text = source.sentence(subject, first_of(item, QUESTION_KEYS))
        given = first_of(item, ID_KEYS)
        question_id = as_id(given)
        if given is not None and question_id is None:
            source.problem(subject, "has an id that is neither text nor a number of 64 bits (skipped)")
        elif image_id is None:
            source.problem(subject, "has no image (skipped)")
        elif not text:
            source.problem(subject, "has no question (skipped)")
        elif question_id in seen and seen[question_id] == (image_id, text):
            source.problem(subject, "is there twice, id and question (first kept)")
        else:
            if question_id is None or question_id in seen:
                question_id = f"{source.file.name}:{number}"
            seen[question_id] = image_id, text
            split = _split_of(source, item)
            answers = answers_of(source, subject, item) if first_of(item, ANSWER_KEYS) is not None else None
            rows.append(QuestionRow(question_id, image_id, text, answers, split))
            if isinstance(image_id, str) and image_id not in named and PurePosixPath(image_id).suffix:
                named[image_id] = NamedImage(image_id, source.file.directory, split or source.file.split)
    return Content(questions=rows, named=list(named.values()))


def read_answers(source: Source) -> Content:
    """Answers of a VQA annotations file."""
    content = source.json(_small)
    rows: dict[int | str, AnswerRow] = {}
    listed = content if isinstance(content, list) else source.items(content, "annotations")
    for position, question_id, _, item in source.objects(listed, "annotation", "question_id"):
        if question_id is None:
            source.problem(f"annotation at position {position}", "has no question_id (skipped)")
        elif question_id in rows:
            source.problem(f"question {question_id}", "is annotated twice (first kept)")
        else:
            rows[question_id] = answers_of(source, f"question {question_id}", item)
    return Content(answers=rows, split=_stated_split(content))


def _small(item: dict[str, Any]) -> Any:
    """What is needed of an object, while the file is parsed."""
    if "answer" in item and ("answer_confidence" in item or "answer_id" in item) and "question" not in item:
        return item["answer"]  # one of ten of a question: millions in VQA v2
    if "imageId" in item:
        for key in _GQA_LARGE:
            item.pop(key, None)
    return item


def _entries(source: Source, content: Any) -> list[Any] | None:
    """The list of a file's entries, wherever it is; None, and a problem, of a file that has none."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise malformed(source.file.path, f"expected a list of questions, got {type_name(content)}")
    key = next((key for key in _LIST_KEYS if isinstance(content.get(key), list)), None)
    if key is None and content and all(map(_is_entry, content.values())):
        return [{"id": question_id, **item} for question_id, item in content.items()]
    lists = {name: value for name, value in content.items() if isinstance(value, list) and split_in(name)}
    if key is None and lists:
        return [
            {"split": name, **item} if isinstance(item, dict) else item
            for name, listed in lists.items()
            for item in listed
        ]
    if key is None and "questions" not in content:
        # Common words alone make a file one of questions: what else it may be must not stop a command.
        source.problem("", f"holds no list of questions (found {', '.join(list(content)[:4])}; not read)")
        return None
    return source.items(content, key or "questions")


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and first_of(value, QUESTION_KEYS) is not None


def first_of(item: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The first value under the keys; None for none."""
    for key in keys:  # a generator would take twice the time, of a million entries
        if (value := item.get(key)) is not None:
            return value
    return None


def _split_of(source: Source, item: dict[str, Any]) -> str | None:
    """Split that an entry states, where the file's name does not say more."""
    stated = as_text(first_of(item, SPLIT_KEYS))
    if not stated and (phrase := as_text(item.get("phrase_type"))):
        stated = "test" if phrase.startswith("test") else "train"  # VQA-RAD has no other word for it
    return more_exact_split(source.file.split, normalise_split(stated)) if stated else None


def answers_of(source: Source, subject: str, item: dict[str, Any]) -> AnswerRow:
    """Answers of an entry: a text or number, a list of them, of {"answer": ...}, or scores by answer.

    An empty one among several is somebody who wrote nothing, and counts as the official evaluator counts it.
    """
    given = first_of(item, ANSWER_KEYS)
    if given == []:  # what else it says of the answer
        given = first_of(item, ANSWER_KEYS[1:])
    given = _chosen(first_of(item, _CHOICE_KEYS), given)
    if isinstance(given, dict) and "answer" not in given:
        given = _ten_of(source, subject, given)
    listed = given if isinstance(given, list) else [given]
    answers = []
    for answer in listed:
        value = answer.get("answer") if isinstance(answer, dict) else answer
        text = as_text(str(value) if isinstance(value, int | float) else value)
        if text or (text is not None and len(listed) > 1):
            answers.append(sys.intern(text))
        else:
            source.problem(subject, "has an answer without text (left out)")
    kind = item.get("question_type")
    if kind is None and isinstance(types := item.get("types"), dict):
        kind = types.get("structural")  # GQA's "query", "verify", ...
    question_type, answer_type = as_text(kind), as_text(item.get("answer_type"))
    return AnswerRow(tuple(answers), question_type or "", answer_type or "", as_id(item.get("image_id")))


def _chosen(choices: Any, given: Any) -> Any:
    """The text of a choice that is given by its place from 0, or by its letter; else what is given."""
    if isinstance(choices, dict):
        return choices.get(given, given) if isinstance(given, str) else given
    if not isinstance(choices, list) or given in choices:
        return given
    place = given
    if isinstance(given, str) and re.fullmatch(r"[A-Za-z]", given):
        place = ord(given.upper()) - ord("A")
    is_place = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(choices)
    return choices[place] if is_place else given


def _ten_of(source: Source, subject: str, scores: dict[str, Any]) -> list[str]:
    """Ten answers that earn the scores by which LXMERT and its heirs keep them: 0.3, 0.6, 0.9 and 1.

    One, two, three and four or more of ten people earn these; answers that nobody knows of are empty. Whole
    numbers of which one is above 1 say how many people gave an answer.
    """
    given = scores.values()
    if all(isinstance(score, int) and score >= 0 for score in given) and max(given, default=0) > 1:
        share = max(1, -(-sum(given) // _MOST_PEOPLE))  # of more people each stands for several
        return [answer for answer, count in scores.items() for _ in range(-(-count // share))]
    counts: dict[str, int] = {}
    for answer, score in scores.items():
        if not isinstance(score, int | float) or not 0 < score <= 1:
            source.problem(subject, "has a score that is none of 0 to 1 (answer left out)")
            continue
        counts[answer] = max(1, round(score / 0.3)) if score < 1 else 4
        if all(abs(score - usual) > 0.04 for usual in (0.3, 0.6, 0.9, 1.0)):
            source.problem(subject, "has a score other than 0.3, 0.6, 0.9 and 1 (taken as the nearest)")
    if not counts:
        return []
    ten = [answer for answer, count in counts.items() for _ in range(count)]
    if len(counts) == 1 and len(ten) == 4:
        return [*counts]  # all agree
    if len(ten) > 10:
        source.problem(subject, "has scores that ten people's answers cannot earn (kept as near as can be)")
    return ten + [""] * (10 - len(ten))


def _stated_split(content: Any) -> str | None:
    stated = as_text(content.get("data_subtype")) if isinstance(content, dict) else None
    return normalise_split(stated) if stated else None


def has_keys(file: Candidate, *groups: tuple[str, ...]) -> bool:
    """Whether a file's ends have a key of each group."""
    return all(re.search(rf'"(?:{"|".join(keys)})"\s*:', file.ends) for keys in groups)


def _has_questions(file: Candidate) -> bool:
    """Questions about images: with ids, as VQA has them, or with the answers beside."""
    if has_keys(file, ("question_id",), ("question", "questions")):
        return True
    if re.search(r'"questions"\s*:\s*\[\s*\]', file.ends):
        return True  # where a split should be, nothing is: worth a word
    if has_keys(file, ("question", "query"), IMAGE_KEYS):
        return True
    return has_keys(file, ("sent",), ("img_id",), ("label", "question_id"))  # LXMERT


def _split_at_ends(file: Candidate) -> str | None:
    stated = re.search(r'"(?:data_subtype|dataset_type|dataset_split)"\s*:\s*"([^"\\]+)"', file.ends)
    return stated.group(1) if stated else None


def _without_multiple_choice(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """Multiple-choice files of VQA v1 repeat the open-ended questions under the same ids."""
    if any("openended" in file.name.lower() for file in files):
        return [file for file in files if "multiplechoice" not in file.name.lower()]
    return files


QUESTIONS = Format(
    name="vqa-questions",
    layout="vqa",
    holds=Holds.IMAGES | Holds.QUESTIONS,
    read=read_questions,
    looked_for="VQA questions and annotations",
    content=_has_questions,
    stated_split=_split_at_ends,
    prefer=_without_multiple_choice,
    noun="question",
    split_by_row=True,
)
ANNOTATIONS = Format(
    name="vqa-annotations",
    layout="vqa",
    holds=Holds.ANSWERS,
    read=read_answers,
    content=lambda file: has_keys(file, ("question_id",), ("answers", "multiple_choice_answer")),
    stated_split=_split_at_ends,
    noun="question",
)
