"""Whether a text asks, and whether it is English, as far as small words tell."""

from __future__ import annotations

import re

_QUESTION = re.compile(
    r"(what|which|who|whose|whom|where|when|why|how|is|are|was|were|does?|did|can|could|will|would|has|have"
    r"|had|should)\b|.*\?\s*$",
    re.IGNORECASE | re.DOTALL,
)
# Small words of English, and of the languages with these letters that many people write; none is in both.
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "a an and are at behind by can color colour does for from front has have how in is it kind left many"
        " no not of on or person right than that the there this to type under was what when where which who"
        " with",
    )
)
_FOREIGN = frozenset(
    re.findall(
        r"\w+",
        "auf aus che chi combien con cor couleur cual cuál cuantos cuántos da das de dei der des di donde"
        " dónde dos dove e é ein eine el en er es esta está est et farbe gli het hay hoeveel hvad hvilken il"
        " ist kleur la las le les lo los mit och od o ona os où para per por pour qual quale quanti quantos"
        " que qué quel quelle quelles quem quién qui são sind sont sono sur todo tu um uma un una une und van"
        " vor waar wat welche welcher welches welke wer wie wo y zijn",
    )
)


def is_question(text: str) -> bool:
    """Whether an English text asks ("what color", "is it red") rather than names something."""
    return _QUESTION.match(text.strip()) is not None


def looks_foreign(text: str) -> bool:
    """Whether a text is in another language than English, as far as its small words and letters tell."""
    letters = [character for character in text if character.isalpha()]
    if sum(character > "\u024f" for character in letters) > len(letters) / 2:
        return True
    words = re.findall(r"\w+", text.lower())
    # Each once: "la la land poster" is English.
    foreign, english = (len(known.intersection(words)) for known in (_FOREIGN, _ENGLISH))
    return foreign >= 2 and foreign > english
