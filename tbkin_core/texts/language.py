"""Whether a text asks, and whether it is English, as far as small words tell."""

from __future__ import annotations

import re

from tbkin_core.parsing.parser import CaptionParser

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# "in this picture, what is red": what follows asks.
_BEFORE = re.compile(r"\s*((in|on|at|from)\s[^,?]*,|(tell|ask)\s+me\b)", re.IGNORECASE)
_AUXILIARY = re.compile(
    r"(is|are|was|were|am|do|does|did|can|could|will|would|has|have|had|should|must|may|might)(n't)?|won't|can't"
)
# First words that are a verb before its subject, or else: the can on the left, Will, one that has a hat.
_OR_ELSE = re.compile(r"(can|will|may|might|must|do|does|has|have|had)(n't)?|can't|won't")
_ASKS = re.compile(r"which|whose|why|how|(what|who|where|when|why|how)'(s|re|d|ll)")
# Behind "what" or "who" these begin a clause that names something: "what the man is holding".
_SUBJECTS = frozenset(
    re.findall(r"\w+", "a an the this that these those he she it they i you we his her its their my your")
)
_SEEMS = re.compile(r"(what|who) (looks? like|resembles?|(appears?|seems?) to be an?)\b")
_DETERMINERS = frozenset(["the", "a", "an", "this", "these", "those", "any"])
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
        " que qué quel quelle quelles quem quién qui são sind sont sono sur todo tu um uma un una une und"
        " vor waar wat welche welcher welches welke wer wie wo y zijn",
    )
)


def is_question(text: str) -> bool:
    """Whether an English text asks ("what color", "is it red") rather than names something.

    Word order decides where the first word may do either: "can he swim" asks, "can on the left" and "what he
    holds" name. Only where that word may be a noun is the text parsed, which takes a second or two.
    """
    if text.rstrip().endswith("?"):
        return True
    text = text[found.end() :] if (found := _BEFORE.match(text)) else text
    words = [word.replace("’", "'") for word in _WORD.findall(text.lower())]
    first, second = (*words, "", "")[:2]
    if second == "ever":  # whichever
        return False
    if first in ("when", "where"):
        return second not in _SUBJECTS and (not second or any(map(_AUXILIARY.fullmatch, words)))
    if first in ("what", "who", "whom"):
        return second not in _SUBJECTS and not _SEEMS.match(f"{first} {' '.join(words[1:])}")
    if _OR_ELSE.fullmatch(first):
        return len(words) > 1 and _is_inverted(text, second)
    return (_ASKS.fullmatch(first) or _AUXILIARY.fullmatch(first)) is not None


def _is_inverted(text: str, second: str) -> bool:
    """Whether a text begins with an auxiliary, then its subject, then its verb, which is not finite."""
    words = CaptionParser.pipeline()(" ".join(text.split()))
    verb = words[0].head
    finite = {"VBZ", "MD"} & {
        word.tag_ for word in (verb, *verb.children) if word.i and word.dep_ in ("ROOT", "aux")
    }
    if finite:  # "can that is open"
        return False
    subjects = [word for word in verb.lefts if word.dep_ in ("nsubj", "nsubjpass")]
    # A parse may miss the verb, as "fall" in "will the man fall".
    missed = second in _DETERMINERS and words[0].tag_ == "MD"
    return missed or bool(subjects and 0 < subjects[0].i < verb.i)


def looks_foreign(text: str, least: int = 2) -> bool:
    """Whether a text is in another language than English, as far as its small words and letters tell.

    Where its letters do not, it must have `least` small words of other languages, and fewer of English. One
    says little of one text, such as "le mans poster", and enough of many.
    """
    letters = [character for character in text if character.isalpha()]
    if sum(character > "\u024f" for character in letters) > len(letters) / 2:
        return True
    words = re.findall(r"\w+", text.lower())
    # Each once: "la la land poster" is English.
    foreign, english = (len(known.intersection(words)) for known in (_FOREIGN, _ENGLISH))
    return foreign >= least and foreign > english
