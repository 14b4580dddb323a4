"""The tokens of a parsed batch, and where in a text the predicate of two objects may stand.

A relation's words mostly stand in the caption, in one of a few places relative to the two objects ("a man
SITTING ON a bench", "the bench the man IS SITTING ON"). `Sentences.readings` finds those places; the network
chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tbkin_core.parsing.network import Array, ParsedBatch, Vocabulary

READINGS = (
    "preposition", "verb", "verb preposition", "verb particle", "verb particle preposition",
    "later verb", "later verb preposition", "last preposition",
)  # fmt: skip

PREPOSITION_TAGS = frozenset({"IN", "TO", "RP"})
PARTICLE_TAGS = frozenset({"RP", "RB", "IN"})
VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
BE_FORMS = frozenset({"is", "are", "was", "were", "be", "been", "being", "am", "'s", "'re", "’s", "’re"})
# Left at the end ("the bench the man is sitting on") they are often tagged as adverbs.
STRANDED = frozenset(
    {"on", "in", "at", "by", "with", "under", "over", "behind", "above", "near", "beside", "from", "through"}
)
NO_PREPOSITIONS = frozenset({"that", "while", "if", "because", "whether", "so", "though", "although"})
PLACES = frozenset(
    {
        "front", "top", "side", "sides", "left", "right", "middle", "center", "centre", "edge", "edges",
        "corner", "bottom", "end", "rear", "back", "face", "rim", "tip", "base", "next", "close", "inside",
        "outside", "part", "lap",
    }
)  # fmt: skip
# What these are of is what is there.
COLLECTIVES = frozenset(
    {
        "array", "bunch", "collection", "couple", "crowd", "dozen", "flock", "group", "handful", "herd",
        "line", "lot", "lots", "number", "pack", "pair", "pile", "row", "set", "stack", "team", "variety",
    }
)  # fmt: skip
AFTER_PLACES = frozenset({"of", "to", "by", "side"})
COMPARED = 5  # tokens before "than" that may hold its adjective
ARTICLES = frozenset({"the", "a", "an", "his", "her", "its", "their", "very"})


class Reading(NamedTuple):
    """A predicate that stands in the text: its words, the verb as a lemma, and its tokens in the batch."""

    predicate: str
    tokens: tuple[int, ...]


class Sentences:
    """The tokens of a batch as the readings see them; token numbers are positions in the batch.

    Attributes:
        text, noun, verb: Of each token: the word in lower case, its lemma as a noun and as a verb.
        head: Of each token, its head in the tree.
        is_noun, is_verb, is_adjective, is_adverb, is_preposition: Of each token; forms of "be" are no verbs
            here.
        is_owned: Of each token, whether it has a possessive: "his dog".
        verb_before: Of each token, the last verb before it in its text, -1 without one.
    """

    def __init__(self, vocabulary: Vocabulary, batch: ParsedBatch) -> None:
        rows = batch.words.tolist()
        self.text = [vocabulary.text[row] for row in rows]
        self.noun = [vocabulary.noun[row] for row in rows]
        self.verb = [vocabulary.verb[row] for row in rows]
        self.head = batch.heads.tolist()
        adverb = vocabulary.tagged({"RB"})[batch.tags]
        verb = vocabulary.tagged(VERB_TAGS)[batch.tags] & ~self._among(BE_FORMS)
        preposition = vocabulary.tagged(PREPOSITION_TAGS)[batch.tags] & ~self._among(NO_PREPOSITIONS)
        preposition |= self._among(STRANDED) & adverb
        # What stands before "a pair of shoes" stands before the shoes.
        collective = np.array([word in COLLECTIVES for word in self.noun], bool)
        preposition[1:] &= ~(collective[:-1] & self._among(frozenset({"of"}))[1:])
        possessive = np.flatnonzero(batch.labels == vocabulary.label("poss"))
        self.is_owned = np.isin(np.arange(len(rows)), batch.heads[possessive]).tolist()
        self.is_noun = vocabulary.tagged({"NN", "NNS"})[batch.tags].tolist()
        self.is_verb = verb.tolist()
        self.is_adjective = vocabulary.tagged({"JJ", "JJR", "JJS"})[batch.tags].tolist()
        self.is_adverb = adverb.tolist()
        self._is_comparative = vocabulary.tagged({"JJR", "RBR"})[batch.tags].tolist()
        self.is_preposition = preposition.tolist()
        self._is_particle = vocabulary.tagged(PARTICLE_TAGS)[batch.tags].tolist()
        self._preposition_before = _last_before(preposition, batch.offsets)
        self.verb_before = _last_before(verb, batch.offsets)
        self._verb_after = _first_after(verb, batch.offsets)
        self._last_preposition = _last_before(preposition, batch.offsets, inclusive_end=True)

    def _among(self, words: frozenset[str]) -> Array:
        """(T,) bool, which tokens are one of `words`."""
        return np.array([word in words for word in self.text], bool)

    def _preposition(self, last: int, begin: int) -> list[int]:
        """Tokens of the preposition that ends at `last`, without articles: "on (the) side of"."""
        text, is_preposition = self.text, self.is_preposition
        if compared := self._comparison(last, begin):
            return compared
        tokens = [last]
        for token in range(last - 1, begin - 1, -1):
            # A place belongs to it ("on top of") unless the words end there ("on the right with").
            place = text[token] in PLACES and text[token + 1] in AFTER_PLACES
            if place or is_preposition[token]:
                tokens.append(token)
            elif not (
                text[token] in ARTICLES
                and token > begin
                and is_preposition[token - 1]
                and text[token + 1] in PLACES
                and token + 1 in tokens
            ):
                break
        return tokens[::-1]

    def _comparison(self, last: int, begin: int) -> list[int]:
        """Tokens of a comparison that ends at `last`: "bigger (dog) than", "as tall as"; none elsewhere."""
        text = self.text
        if text[last] == "as" and last - 2 >= begin and text[last - 2] == "as":
            return [last - 2, last - 1, last]
        if text[last] == "than":
            for token in range(last - 1, max(begin, last - COMPARED) - 1, -1):
                guessed = text[token].endswith("er") and (token == last - 1 or text[token - 1] in ARTICLES)
                if self._is_comparative[token] or guessed:
                    more = text[token] in {"more", "less"} and token + 1 < last
                    return [token, token + 1, last] if more else [token, last]
        return []

    def readings(self, first: int, second: int, begin: int, end: int) -> dict[str, Reading]:
        """Predicates that stand in the text for a pair of objects, by their name in `READINGS`.

        Args:
            first, second: Heads of the objects, first < second.
            begin, end: Where their text begins and ends.
        """
        found: dict[str, Reading] = {}

        def add(name: str, verb: int | None, others: Sequence[int]) -> None:
            words = [self.text[token] for token in others]
            tokens = tuple(others) if verb is None else (verb, *others)
            found[name] = Reading(" ".join(words if verb is None else [self.verb[verb], *words]), tokens)

        place = self._preposition_before[second]
        before: list[int] = []
        if place >= 0 and place > first - 6:
            before = self._preposition(place, begin)
            add("preposition", None, before)
        verb = self.verb_before[second]
        if verb >= 0:
            add("verb", verb, ())
            if before and verb not in before:
                add("verb preposition", verb, before)
            particle = verb + 1
            if particle < end and self._is_particle[particle]:
                add("verb particle", verb, (particle,))
                if before and particle not in before:
                    add("verb particle preposition", verb, (particle, *before))
        verb = self._verb_after[second]
        if verb >= 0:
            add("later verb", verb, ())
            if verb + 1 < end and self.is_preposition[verb + 1]:
                add("later verb preposition", verb, (verb + 1,))
        last = self._last_preposition[second]
        if last > second:
            add("last preposition", None, (last,))
        return found


def _last_before(marked: Array, offsets: Array, inclusive_end: bool = False) -> list[int]:
    """Of each token, the last marked token before it in its text (or of its whole text), -1 without one."""
    places = np.where(marked, np.arange(len(marked)), -1)
    latest = np.maximum.accumulate(places) if len(places) else places
    lengths = np.diff(offsets)
    begin = np.repeat(offsets[:-1], lengths)
    if inclusive_end:
        found = latest[np.repeat(offsets[1:], lengths) - 1]
    else:
        found = np.concatenate([[-1], latest[:-1]])[: len(marked)]
    return np.where(found >= begin, found, -1).tolist()


def _first_after(marked: Array, offsets: Array) -> list[int]:
    """Of each token, the first marked token after it in its text, -1 without one."""
    count = len(marked)
    places = np.where(marked, np.arange(count), count)
    earliest = np.minimum.accumulate(places[::-1])[::-1] if count else places
    found = np.concatenate([earliest[1:], [count]])[:count]
    end = np.repeat(offsets[1:], np.diff(offsets))
    return np.where(found < end, found, -1).tolist()
