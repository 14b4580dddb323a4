"""Which questions are kept: so many of an image, and such that the question alone does not tell the answer.

As in VQA v2 (Goyal et al. 2017, section 3), a question that is always answered alike teaches nothing about
images. Here a question text has at least two answers in each split, half of its yes-no questions are answered
by no, and its usual answer is at most half of its answers. What one split holds changes nothing in another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tbkin_core.questions.answers import Asked
from tbkin_core.questions.kinds import YES_NO

MOST_OF_TEXT = 0.5  # of a text's questions in a split, those with its usual answer
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image of a split."""

    image_id: Any
    split: str
    asked: Asked


def selected(
    questions: Sequence[Question], most: int, random: np.random.Generator, balanced: bool = True
) -> list[Question]:
    """At most so many questions of an image, balanced; in the order given."""
    order = random.permutation(len(questions)).tolist()
    order.sort(
        key=lambda place: -min(questions[place].asked.support, 3)
    )  # what several captions say comes first
    kept = order
    if balanced:
        kept = _with_two_answers(questions, _even(questions, kept))
    kept = _of_images(questions, kept, most)
    if balanced:
        for _ in range(ROUNDS):
            before = len(kept)
            kept = _with_two_answers(questions, _capped(questions, _even(questions, kept)))
            if len(kept) == before:
                break
    return [questions[place] for place in sorted(kept)]


def worth_a_look(questions: Sequence[Question]) -> list[Question]:
    """Without those that balance would leave out in any case."""
    places = list(range(len(questions)))
    return [questions[place] for place in _with_two_answers(questions, places)]


def _even(questions: Sequence[Question], places: Iterable[int]) -> list[int]:
    """Of a text's yes-no questions in a split as many with yes as with no: the first."""
    found: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    kept = []
    for place in places:
        item = questions[place]
        if item.asked.kind == YES_NO:
            found[item.split, item.asked.text][item.asked.answer].append(place)
        else:
            kept.append(place)
    for by_answer in found.values():
        few = min(len(by_answer["yes"]), len(by_answer["no"]))
        kept += by_answer["yes"][:few] + by_answer["no"][:few]
    return kept


def _with_two_answers(questions: Sequence[Question], places: Sequence[int]) -> list[int]:
    """Without the texts that are always answered alike in a split."""
    answers = defaultdict[tuple[str, str], set[str]](set)
    for place in places:
        item = questions[place]
        answers[item.split, item.asked.text].add(item.asked.answer)
    return [
        place for place in places if len(answers[questions[place].split, questions[place].asked.text]) > 1
    ]


def _of_images(questions: Sequence[Question], places: Sequence[int], most: int) -> list[int]:
    """So many of each image, of all kinds in turn."""
    of_image: dict[Any, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place in places:
        asked = questions[place].asked
        kind = f"{asked.kind} {asked.answer}" if asked.kind == YES_NO else asked.kind
        of_image[questions[place].image_id][kind].append(place)
    kept = []
    for by_kind in of_image.values():
        taken: list[int] = []
        depth = 0
        while len(taken) < most and any(depth < len(those) for those in by_kind.values()):
            taken += [those[depth] for those in by_kind.values() if depth < len(those)]
            depth += 1
        kept += taken[:most]
    return kept


def _capped(questions: Sequence[Question], places: Sequence[int]) -> list[int]:
    """Without so many of a text's usual answer in a split as are too many."""
    counts = defaultdict[tuple[str, str], Counter[str]](Counter)
    for place in places:
        item = questions[place]
        if item.asked.kind != YES_NO:
            counts[item.split, item.asked.text][item.asked.answer] += 1
    limits = {}
    for key, answers in counts.items():
        (usual, count), total = answers.most_common(1)[0], answers.total()
        others = total - count
        if count > MOST_OF_TEXT * total:
            limits[key] = usual, int(others * MOST_OF_TEXT / (1 - MOST_OF_TEXT))
    kept = []
    for place in places:
        item = questions[place]
        limit = limits.get((item.split, item.asked.text)) if item.asked.kind != YES_NO else None
        if limit is not None and item.asked.answer == limit[0]:
            if limit[1] == 0:
                continue
            limits[item.split, item.asked.text] = limit[0], limit[1] - 1
        kept.append(place)
    return kept
