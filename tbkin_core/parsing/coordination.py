"""What coordination keeps apart: "a man is eating a pizza and a woman is eating a salad".

A coordinated clause with a subject of its own, and a coordinated noun that is described by itself where the
noun before it is too ("a lamp on the desk and a clock on the wall"), are islands: no relation leads from
outside into what they say. Token numbers are positions in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tbkin_core.parsing.network import ParsedBatch, Vocabulary
from tbkin_core.parsing.sentences import PLACES, VERB_TAGS

CLAUSES = ("conj", "parataxis", "advcl", "ccomp")
FINITE = frozenset({"is", "are", "was", "were", "has", "have"})
PLURAL = frozenset({"are", "were", "have"})
LINKS = frozenset({"and", "but", "or", ",", "while", "as"})  # a clause after one of these is no complement
# How much more alike a noun must be to one than to the other of the nouns that it may be coordinated with;
# less where both are described by the same preposition, more where the first is the subject of a clause.
ALIKE, SAME_PREPOSITION, OF_CLAUSE = 0.1, 0.5, 0.2


@dataclass(frozen=True, slots=True)
class Island:
    """A coordinated clause or noun.

    Attributes:
        head: Its verb or noun.
        tokens: All of it.
        subject: Of a clause, the tokens of its subject; empty for a noun.
        partner: Of a noun, the noun that it is coordinated with, and what describes that one.
    """

    head: int
    tokens: frozenset[int]
    subject: frozenset[int]
    partner: frozenset[int]

    def parts(self, first: int, second: int, heads: Container[int]) -> bool:
        """Whether it stands between two objects, of which `heads` are all of the text."""
        if (first in self.tokens) == (second in self.tokens):
            return False
        if self.subject:
            return any(token in heads for token in self.subject)
        outer, inner = (second, first) if first in self.tokens else (first, second)
        return inner != self.head or outer in self.partner


class Coordination:
    """The islands of a batch's texts.

    Args:
        vocabulary: The network's.
        batch: The texts.
        likeness: How alike two nouns are, a cosine. Coordinated nouns mostly are (Resnik, JAIR 11, 1999).
    """

    def __init__(
        self, vocabulary: Vocabulary, batch: ParsedBatch, likeness: Callable[[str, str], float]
    ) -> None:
        self._head = batch.heads.tolist()
        self._likeness = likeness
        rows = batch.words.tolist()
        self._text, self._lemma = (
            [words[row] for row in rows] for words in (vocabulary.text, vocabulary.noun)
        )
        labels = batch.labels

        def labelled(*names: str) -> list[bool]:
            return np.isin(labels, [vocabulary.label(name) for name in names]).tolist()

        self._is_subject, self._is_auxiliary = labelled("nsubj", "nsubjpass"), labelled("aux", "auxpass")
        self._is_conjunct, self._is_complement = labelled("conj"), labelled("ccomp")
        self._is_object, self._describes = labelled("pobj", "dobj"), labelled("prep", "acl", "relcl")
        self._opens = labelled("det", "nummod", "poss")
        self._is_noun = vocabulary.tagged({"NN", "NNS", "NNP", "NNPS"})[batch.tags].tolist()
        self._is_singular = vocabulary.tagged({"NN"})[batch.tags].tolist()
        self._is_verb = (verb := vocabulary.tagged(VERB_TAGS)[batch.tags]).tolist()
        self._begins_phrase = vocabulary.tagged({"IN", "TO", "VBG", "VBN"})[batch.tags].tolist()
        clauses = verb & np.array(labelled(*CLAUSES), bool)
        linked = clauses | np.array(labelled("cc"), bool) | np.array(self._is_conjunct, bool)
        self._texts = set((np.searchsorted(batch.offsets, np.flatnonzero(linked), side="right") - 1).tolist())
        self._clauses: list[bool] = clauses.tolist()

    def islands(self, text: int, begin: int, end: int, pairs: Iterable[Sequence[int]]) -> list[Island]:
        """The islands of a text, of which `pairs` are the objects that the network relates."""
        if text not in self._texts:
            return []
        related = {(first, second) for first, second in pairs}
        children: dict[int, list[int]] = {}
        for token in range(begin, end):
            if (head := self._head[token]) != token:
                children.setdefault(head, []).append(token)
        found = []
        for token in range(begin + 1, end):
            if self._clauses[token]:
                island = self._clause(token, begin, children)
            elif self._is_noun[token]:
                island = self._noun(token, end, children, related)
            else:
                continue
            if island is not None:
                found.append(island)
        return found

    def first_partner(self, noun: int) -> int:
        """The first of the nouns that a noun is coordinated with, itself where there is none."""
        while self._is_conjunct[noun] and self._head[noun] < noun:
            noun = self._head[noun]
        return noun

    def are_coordinated(self, first: int, second: int) -> bool:
        """Whether the tree has the second noun as a partner of the first, or of the first's."""
        return self.first_partner(first) == self.first_partner(second)

    def _clause(self, verb: int, begin: int, children: dict[int, list[int]]) -> Island | None:
        subject = self._subject_of(verb, begin, children)
        if subject is None or not self._is_noun[subject]:
            return None  # "she" may be anybody of the other clause
        if self._is_singular[subject] and any(self._text[child] in PLURAL for child in children[verb]):
            return None  # "bowls of fruit and celery ARE sitting": all of them
        tokens = _below(verb, children) | _below(subject, children)
        first = min(tokens)
        if self._is_complement[verb] and (first == begin or self._text[first - 1] not in LINKS):
            return None  # "a man watching a dog run"
        return Island(verb, tokens, _below(subject, children), frozenset())

    def _subject_of(self, verb: int, begin: int, children: dict[int, list[int]]) -> int | None:
        auxiliary = begin
        for token in children.get(verb, ()):
            if token < verb and self._is_subject[token]:
                return token
            if self._is_auxiliary[token] and self._text[token] in FINITE:
                auxiliary = token
        if auxiliary == begin:
            return None
        # Only the subject is before "is" where the tree has a second object: "a pizza and a woman IS eating".
        noun = auxiliary - 1
        while not self._is_conjunct[noun] and noun < auxiliary and self._head[noun] != noun:
            noun = self._head[noun]
        if noun >= auxiliary or not self._is_conjunct[noun]:
            return None
        above = self._head[noun]
        while not self._is_verb[above] and self._head[above] != above:
            above = self._head[above]
        # Without a verb before, all nouns before "is" are subjects.
        return noun if self._is_verb[above] and above != verb else None

    def _noun(
        self, noun: int, end: int, children: dict[int, list[int]], related: Container[tuple[int, int]]
    ) -> Island | None:
        partner = self._head[noun]
        if not self._is_conjunct[noun]:  # a second object of one preposition is coordinated as well
            siblings = children.get(partner, ()) if self._is_object[noun] else ()
            partner = next((token for token in siblings if token < noun and self._is_object[token]), noun)
        if partner == noun or not self._is_noun[partner]:
            return None
        tokens = _below(noun, children)
        if not (self._described(noun, children) and self._described(partner, children, before=noun)):
            phrase = noun + 1
            if phrase >= end or not (self._begins_phrase[phrase] or self._text[phrase] == "next"):
                return None
            higher = self._higher_partner(noun, partner, phrase, end, children, related)
            if higher is None:
                return None
            partner, tokens = higher, tokens | _below(phrase, children)
        return Island(noun, tokens, frozenset(), _below(partner, children) - tokens)

    def _described(self, noun: int, children: dict[int, list[int]], before: int | None = None) -> bool:
        """Whether a phrase or clause after a noun describes it by itself; "of" goes without saying."""
        return any(
            token > noun
            and (before is None or token < before)
            and self._describes[token]
            and self._text[token] != "of"
            for token in children.get(noun, ())
        )

    def _higher_partner(
        self,
        noun: int,
        partner: int,
        phrase: int,
        end: int,
        children: dict[int, list[int]],
        related: Container[tuple[int, int]],
    ) -> int | None:
        """The noun that a partner of the tree's choice describes, where that is rather the partner.

        "a man with a dog and a woman with a cat", where the tree has a dog and a woman; `phrase` is the
        second "with".
        """
        governor = self._head[partner]
        if self._text[governor] == "of" and self._text[self._head[governor]] in PLACES:
            governor = self._head[self._head[governor]]  # "in front of"
        higher = self._head[governor]
        while self._describes[higher] and not self._is_verb[higher] and self._head[higher] != higher:
            governor, higher = higher, self._head[higher]  # "next to"
        if self._text[governor] == "of" or not self._is_object[partner]:
            return None
        subjects = []
        if self._is_verb[governor] and not self._describes[governor]:
            higher = governor
        if self._is_verb[higher]:
            subjects = [token for token in children[higher] if self._is_subject[token]]
            higher = subjects[0] if subjects else self._head[higher]
        if not self._is_noun[higher] or higher >= governor or self._text[phrase] == "of":
            return None
        if (higher, noun) not in related:
            return higher
        nearest = max(token for token in range(partner, noun) if self._is_noun[token])
        if self._text[partner] not in PLACES:
            nearest = partner
        same = self._text[phrase] == self._text[governor]
        described = any(later > phrase and (noun, later) in related for later in range(phrase, end))
        opened = any(self._opens[child] for child in children.get(noun, ()))
        if not (described or (same and opened)):
            return None  # "a table with food and drinks with posters"
        lemma, likeness = self._lemma, self._likeness
        more = likeness(lemma[higher], lemma[noun]) - likeness(lemma[nearest], lemma[noun])
        more += SAME_PREPOSITION * same - OF_CLAUSE * bool(subjects)
        return higher if more > ALIKE else None


def _below(token: int, children: dict[int, list[int]]) -> frozenset[int]:
    """A token and all that hangs from it."""
    found, waiting = {token}, [token]
    while waiting:
        below = children.get(waiting.pop(), ())
        found.update(below)
        waiting += below
    return frozenset(found)
