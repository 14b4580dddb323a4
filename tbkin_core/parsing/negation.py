"""What a text denies: objects that are not there ("no cars"), relations and attributes ("not holding").

Token numbers are positions in the batch; `begin` is where the text begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence

from tbkin_core.parsing.sentences import BE_FORMS, Sentences

# "nt" is what is left of "isnt".
NOBODY = frozenset({"nobody", "noone", "no-one"})
NEGATIONS = frozenset({"not", "n't", "n’t", "nt", "never", "neither", "nor", "without", "hardly"})
# Without one of these nothing is denied.
DENIALS = NEGATIONS | NOBODY | {"no", "instead", "longer", "none"}
# "not only a bag but also", "not far from", "not all of them": what follows is not denied.
NO_NEGATION_BEFORE = frozenset({"only", "just", "merely", "necessarily", "far", "all", "every", "everybody"})
EVERYONE, EXCEPT = frozenset({"everyone", "everybody"}), frozenset({"but", "except"})
QUANTIFIERS = frozenset({"every", "each", "all", "both"})
DETERMINERS = frozenset({"the", "a", "an", "any", "his", "her", "its", "their", "my", "your", "this", "that"})


def absence_of(sentences: Sentences, start: int, begin: int) -> int | None:
    """The "no" or "instead of" before the noun phrase at `start`, which says that it is not there."""
    text = sentences.text
    for token in range(start - 1, max(begin, start - 3) - 1, -1):
        if text[token] == "no":
            return token
        if text[token] == "of" and token > begin and text[token - 1] == "instead":
            return token - 1
        if not (sentences.is_adjective[token] or text[token] in DETERMINERS):
            return None
    return None


def shared_absence(sentences: Sentences, start: int, partner: int, begin: int) -> int | None:
    """The "no" that a noun phrase at `start` shares with the noun before "or": "no dogs or cats"."""
    text = sentences.text
    while start > begin and sentences.is_adjective[start - 1]:
        start -= 1
    if start == begin or text[start - 1] not in {"or", "nor", "and", ","}:
        return None
    while partner > begin and (sentences.is_noun[partner - 1] or sentences.is_adjective[partner - 1]):
        partner -= 1
    return absence_of(sentences, partner, begin)


def denied_quantifier(sentences: Sentences, start: int, begin: int) -> int | None:
    """The "not" of "not every dog" and "not all the dogs" before the noun phrase at `start`."""
    text = sentences.text
    for token in range(start - 1, max(begin + 1, start - 3) - 1, -1):
        if text[token] in QUANTIFIERS and text[token - 1] == "not":
            return token - 1
        if not (sentences.is_adjective[token] or text[token] in DETERMINERS):
            return None
    return None


def exceptions(sentences: Sentences) -> list[tuple[int, int]]:
    """(who, "but") of what all do but some: "everyone but the goalie"."""
    words = enumerate(itertools.pairwise(sentences.text))
    return [(token, token + 1) for token, (who, but) in words if who in EVERYONE and but in EXCEPT]


def relates_something_absent(
    sentences: Sentences, predicate: Sequence[int], heads: Container[int], begin: int
) -> bool:
    """Whether a predicate is of what is not there: "a bus, no sticker on it", "a dog instead of a cat".

    `predicate` are its tokens, `heads` those of the text's objects.
    """
    token = min(predicate)
    if token > begin and sentences.text[token - 1 : token + 1] == ["instead", "of"]:
        return True
    noun = sentences.head[token]
    return sentences.is_noun[noun] and noun not in heads and absence_of(sentences, noun, begin) is not None


def denial_of_relation(
    sentences: Sentences, predicate: Sequence[int], noun_phrases: Sequence[int], begin: int
) -> int | None:
    """The word that denies a relation: its own ("is not really holding") or of what it ties ("not the bat").

    Args:
        predicate: Tokens of the predicate.
        noun_phrases: Where the names of the two objects start.
    """
    text = sentences.text
    first, last = min(predicate), max(predicate)
    if any(start > last and _follows_but(sentences, start, begin) for start in noun_phrases):
        return None  # "isn't holding a phone but a book"
    for token in range(first + 1, last):  # "sitting not on the chair"
        if token not in predicate and _denies(sentences, token, begin):
            return token
    starts = [first]
    if first > max(noun_phrases) and sentences.is_verb[sentences.head[first]]:  # "doesn't have a shirt on"
        starts.append(sentences.head[first])
    if "without" in (text[token] for token in predicate):
        starts = []
    for start in starts:
        if (found := denial_before(sentences, start, begin)) is not None:
            return found
    for start in noun_phrases:
        token = _before_noun_phrase(sentences, start, begin)
        if token > begin and text[token] == "of" and text[token - 1] in {"none", "neither"}:
            return token - 1
        if token in predicate or text[max(token, begin)] == "without":
            continue
        if token >= begin and _denies(sentences, token, begin):
            return token
    return None


def denial_before(sentences: Sentences, start: int, begin: int) -> int | None:
    """The "not" before a word, with nothing but adverbs and forms of "be" between: "not really being"."""
    token = start - 1
    while token > begin and (sentences.is_adverb[token] or sentences.text[token] in BE_FORMS):
        if sentences.text[token] in NEGATIONS or sentences.text[token] == "longer":
            break
        token -= 1
    return token if token >= begin and _denies(sentences, token, begin) else None


def _denies(sentences: Sentences, token: int, begin: int) -> bool:
    """Whether a token is a "not" that denies what follows it; not so in "not only" and "whether or not"."""
    text = sentences.text
    if text[token] == "longer":
        return token > begin and text[token - 1] == "no"
    if text[token] not in NEGATIONS or token + 1 >= len(text):
        return False
    before = text[max(token - 2, begin) : token]
    return text[token + 1] not in NO_NEGATION_BEFORE and "or" not in before


def _follows_but(sentences: Sentences, start: int, begin: int) -> bool:
    """Whether a noun phrase is what is there in place of something denied: "not a phone but a book"."""
    token = _before_noun_phrase(sentences, start, begin)
    return token >= begin and sentences.text[token] == "but"


def _before_noun_phrase(sentences: Sentences, start: int, begin: int) -> int:
    """The token before the determiners and adjectives of a name at `start`; at least `begin` - 1."""
    token = start - 1
    while token > begin and (sentences.text[token] in DETERMINERS or sentences.is_adjective[token]):
        token -= 1
    return token
