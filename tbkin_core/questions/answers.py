"""The answer of an image's captions to a question, as ten people would give it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tbkin_core.names.lexicon import lemmatize_name, lemmatize_verb
from tbkin_core.questions import wordlists
from tbkin_core.questions.asking import Fact
from tbkin_core.questions.english import alike

PEOPLE_ASKED = 10  # answers of a question in VQA
LEAST_ALONE = 3  # captions that must speak of one thing alone: one or two may leave others out


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about an image, its answers and how many captions give each."""

    text: str
    kind: str
    answers: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> str:
        """The usual answer."""
        return self.answers[0][0]

    @property
    def support(self) -> int:
        """Captions that answer."""
        return sum(count for _, count in self.answers)

    def given(self) -> list[str]:
        """The answers of ten people of whom as many answer so as captions do."""
        total = self.support
        exact = [(answer, PEOPLE_ASKED * count / total) for answer, count in self.answers]
        counts = [int(share) for _, share in exact]
        rest = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place][1])
        for place in rest[: PEOPLE_ASKED - sum(counts)]:
            counts[place] += 1
        return [answer for (answer, _), count in zip(exact, counts, strict=True) for _ in range(count)]


def gathered(facts: Iterable[Fact], captions: int) -> list[Asked]:
    """The questions that facts answer without contradiction.

    Args:
        facts: Of one image.
        captions: How many it has.
    """
    by_key: dict[tuple[object, ...], list[Fact]] = {}
    for fact in facts:
        by_key.setdefault((fact.kind, *fact.key), []).append(fact)
    asked = []
    for given in by_key.values():
        answers = _agreed(given, captions)
        if answers:
            text = Counter(fact.text for fact in given).most_common(1)[0][0]
            asked.append(Asked(text, given[0].kind, answers))
    return asked


def _agreed(facts: Sequence[Fact], captions: int) -> tuple[tuple[str, int], ...]:
    kind = facts[0].kind
    by_caption: dict[int, list[str]] = {}
    for fact in facts:
        if fact.answer not in by_caption.setdefault(fact.caption, []):
            by_caption[fact.caption].append(fact.answer)
    if kind == "count":
        counted = [answers[0] for answers in by_caption.values()]
        # People in the background are often left out: all captions must speak of people.
        return _count(counted, captions if facts[0].key == ("person",) else min(LEAST_ALONE, captions))
    if kind == "color":
        return _color(list(by_caption.values()))
    counts = Counter(answer for answers in by_caption.values() for answer in answers)
    top = counts.most_common(1)[0][0]
    if kind == "attribute" and (len(counts) > 1 or counts[top] < min(2, captions)):
        return ()
    if kind in ("object", "subject"):
        names = {answer: lemmatize_name(answer) for answer in counts}
        if not all(alike(names[top], name) for name in names.values()):
            return ()
        if kind == "subject" and len({answer == name for answer, name in names.items()}) > 1:
            return ()  # "dog" and "dogs"
    if kind == "action" and not _are_done_together(counts):
        return ()
    return tuple(counts.most_common())


def _count(given: Sequence[str], least: int) -> tuple[tuple[str, int], ...]:
    (answer, *others) = set(given)
    if others or not answer or len(given) < least:
        return ()
    return ((answer, len(given)),)


def _color(given: Sequence[Sequence[str]]) -> tuple[tuple[str, int], ...]:
    """Colours that overlap: "black and white" beside "black" is no contradiction, "black" beside "red" is."""
    if not set[str](given[0]).intersection(*given[1:]):
        return ()
    counts = Counter(" and ".join(answers[:2]) if len(answers) < 3 else "" for answers in given)
    return () if "" in counts else tuple(counts.most_common())


def _are_done_together(counts: Counter[str]) -> bool:
    verbs = {lemmatize_verb(answer.split()[0]) for answer in counts}
    return (
        not (verbs & wordlists.POSTURES and verbs & wordlists.MOTIONS)
        and len(verbs & wordlists.POSTURES) <= 1
    )
