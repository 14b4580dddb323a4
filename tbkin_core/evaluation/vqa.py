"""VQA accuracy as the official evaluator computes it (Antol et al. 2015; Goyal et al. 2017).

An answer is right to the degree min(1, matches / 3), averaged over leaving one of the ten human answers out.
Answers are compared after the evaluator's normalisation, its irregularities included, so that scores can be
set beside published ones.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tbkin_core.errors import DataError

QuestionId = int | str

# Marks that the evaluator treats; the others (apostrophe, colon, %, $, ...) stay; the full stop has a rule.
_MARKS = frozenset(string.punctuation) - frozenset("#$%&'*.:^|~")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The evaluator passes a regular expression flag where the number of replacements belongs; its value is 32.
_MOST_FULL_STOPS = 32
_ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
# From this number of human answers on, the official formula can reach 1 and is followed to the letter.
_OFFICIAL_ANSWERS = 4

# Words the evaluator restores when one apostrophe is missing, as ending -> stems. A word that is absent here
# is absent there too ("shed", "ill", "im", "ive").
_CONTRACTED = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
}
_CONTRACTED_WHOLE = "ma'am o'clock 'twas y'all y'all'll y'all'd've 'ow's'at"


def _contractions() -> dict[str, str]:
    """Every spelling with exactly one apostrophe missing -> the full spelling."""
    words = [stem + ending for ending, stems in _CONTRACTED.items() for stem in stems.split()]
    words += _CONTRACTED_WHOLE.split()
    restored = {
        word[:place] + word[place + 1 :]: word
        for word in words
        for place, character in enumerate(word)
        if character == "'"
    }
    # The one entry that the evaluator has the wrong way round: it removes this apostrophe.
    return restored | {"somebody'd": "somebodyd"}


_RESTORED = _contractions()


@dataclass(frozen=True, slots=True)
class VqaAccuracy:
    """Accuracies in percent, not rounded (the official evaluator prints them rounded to 2 decimals).

    Those by type are empty where the annotations name none.
    """

    overall: float  # mean over the questions
    per_answer_type: dict[str, float]  # mean for each of "yes/no", "number", "other"
    per_question_type: dict[str, float]  # mean for each of "what color is the", ...
    per_question: dict[QuestionId, float]  # in the order of the annotations


@lru_cache(maxsize=1 << 16)
def normalize_answer(text: str) -> str:
    """An answer in the form in which the official evaluator compares answers.

    In this order: white space, punctuation, full stops, lower case, number words, articles, contractions.
    Punctuation becomes a space, or nothing where the mark stands beside a space anywhere in the answer or
    where the answer has a comma between digits ("1,000" -> "1000", "black/white" -> "black white").
    """
    text = _strip(text)
    drops_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    replacement = {
        ord(mark): "" if drops_all or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _MARKS.intersection(text)
    }
    text = _FULL_STOP.sub("", text.translate(replacement), count=_MOST_FULL_STOPS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Training targets: each distinct answer -> the accuracy that predicting it earns.

    With ten answers these are 0.3, 0.6, 0.9 and 1.0 for one, two, three and more matches. Answers are
    normalised just where `answer_accuracy` normalises them, so that `answer_accuracy(key, answers)` is the
    value and a vocabulary of these keys holds answers that can be right (DAQUAR's "night_stand", given ten
    times, must not become "night stand").

    Args:
        answers: The human answers, any number of them; see `answer_accuracy` for fewer than ten.

    Returns:
        Accuracies in (0, 1], most frequent answer first. Empty where there are no answers; answers of which
        normalisation leaves nothing are left out.
    """
    counts = Counter(_comparable(answers))
    return {answer: _leave_one_out(count, len(answers)) for answer, count in counts.most_common() if answer}


def answer_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Accuracy of one predicted answer, in [0, 1].

    The official evaluator leaves both sides unprocessed (but for white space at the ends) when all human
    answers are the same: "2" is then wrong where ten people wrote "two". This does the same.

    A person's own data may have n answers other than ten: one is left out in turn as well, and min(3, n - 1)
    matches among the rest make an answer fully right; a single answer counts as agreed, so that a match is 1.
    From four answers up this is the official formula. Below, where the official one could not reach 1,
    answers are always normalised.

    Args:
        answer: The prediction.
        answers: The human answers, at least one.

    Raises:
        DataError: There are no answers.
    """
    if not answers:
        raise DataError("a question without answers has no accuracy, got 0 answers, expected 1 or more")
    compared = _strip(answer) if _is_unprocessed(answers) else normalize_answer(answer)
    return _leave_one_out(_comparable(answers).count(compared), len(answers))


def vqa_accuracy(
    questions: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
) -> VqaAccuracy:
    """VQA accuracy of a results file, equal to the official evaluator's.

    Args:
        questions: VQA v2 questions: the list, or the whole file ({"questions": [...]}).
        annotations: VQA v2 annotations: the list, or the whole file ({"annotations": [...]}); each with
            "question_id", "answers" ([{"answer": ...}, ...]) and, if known, "question_type", "answer_type".
        results: [{"question_id": ..., "answer": ...}], one for each annotated question, in any order.

    Raises:
        DataError: A list lacks its keys, an annotated question has no answer in `results` or is not among
            `questions`, or an answer is not text.
    """
    question_ids = _entries(questions, "questions")
    annotated = _entries(annotations, "annotations", "answers")
    predicted = _entries(results, "results", "answer")
    if not annotated:
        raise DataError("annotations: no questions to evaluate")
    if len(predicted) != len(results):
        raise DataError(f"results: {len(results)} entries for {len(predicted)} questions, expected one each")
    _require_subset(annotated, question_ids, "annotations", "questions")
    _require_subset(annotated, predicted, "annotations", "results")
    _require_subset(predicted, annotated, "results", "annotations")

    accuracies: dict[QuestionId, float] = {}
    for question_id, entry in annotated.items():
        answer = predicted[question_id]["answer"]
        try:
            accuracy = answer_accuracy(answer, [given["answer"] for given in entry["answers"]])
        except DataError as error:
            raise DataError(f"annotations: question {question_id!r}: {error.message}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'question {question_id!r}: answers must be text, expected {{"answer": "..."}}, got'
                f" {_brief(answer)} in results and {_brief(entry['answers'])} in annotations"
            ) from error
        accuracies[question_id] = accuracy

    def by_type(kind: str) -> dict[str, float]:
        lists: dict[str, list[float]] = {}
        for question_id, entry in annotated.items():
            if entry.get(kind):
                lists.setdefault(entry[kind], []).append(accuracies[question_id])
        return {name: 100 * sum(values) / len(values) for name, values in lists.items()}

    per_question = {question_id: 100 * accuracy for question_id, accuracy in accuracies.items()}
    overall = sum(per_question.values()) / len(per_question)
    return VqaAccuracy(overall, by_type("answer_type"), by_type("question_type"), per_question)


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _is_unprocessed(answers: Sequence[str]) -> bool:
    """Whether the evaluator compares these human answers as they are: they all agree."""
    return len(answers) >= _OFFICIAL_ANSWERS and len({_strip(answer) for answer in answers}) == 1


def _comparable(answers: Sequence[str]) -> list[str]:
    process = _strip if _is_unprocessed(answers) else normalize_answer
    return [process(answer) for answer in answers]


def _leave_one_out(matches: int, total: int) -> float:
    """Mean of min(1, matches / 3) over leaving each of `total` answers out; `matches` of them match."""
    if total == 1:
        return float(matches)
    needed = min(3, total - 1)
    without_a_match = min(1.0, (matches - 1) / needed) if matches else 0.0
    without_another = min(1.0, matches / needed)
    return (matches * without_a_match + (total - matches) * without_another) / total


def _entries(
    content: Mapping[str, Any] | Sequence[Mapping[str, Any]], name: str, *keys: str
) -> dict[QuestionId, Mapping[str, Any]]:
    """By number, the entries of the list inside a VQA v2 file, or of the list itself; all have `keys`."""
    entries = content.get(name) if isinstance(content, Mapping) else content
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise DataError(f'{name}: expected a list of objects or {{"{name}": [...]}}, got {_brief(content)}')
    for index, entry in enumerate(entries):
        lacks = [it for it in ("question_id", *keys) if not isinstance(entry, Mapping) or it not in entry]
        if lacks:
            raise DataError(f"{name}[{index}]: no {' or '.join(lacks)} in {_brief(entry)}")
    return {entry["question_id"]: entry for entry in entries}


def _require_subset(ids: Iterable[QuestionId], known: Mapping, name: str, known_name: str) -> None:
    unknown = [identifier for identifier in ids if identifier not in known]
    if unknown:
        examples = ", ".join(map(repr, unknown[:3]))
        raise DataError(
            f"{name}: {len(unknown)} questions are not in {known_name}, such as {examples}",
            hint=f"evaluate the split that the {known_name} were made for; all of its questions are needed",
        )


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
