"""What coordination keeps apart: "a man is eating a pizza and a woman is eating a salad".

A coordinated clause with a subject of its own, and a coordinated noun that is described by itself where the
noun before it is too ("a lamp on the desk and a clock on the wall"), are islands: no relation leads from
outside into what they say. Token numbers are positions in the batch.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from tbkin_core.parsing.network import ParsedBatch, Vocabulary

CLAUSES = ("conj", "parataxis", "advcl", "ccomp")
SUBJECTS = ("nsubj", "nsubjpass")
DESCRIPTIONS = ("prep", "acl", "relcl")
FINITE = frozenset({"is", "are", "was", "were", "has", "have"})
LINKS = frozenset({"and", "but", "or", ",", "while", "as"})  # a clause after one of these is no complement


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
    """The islands of a batch.

    Attributes:
        islands: Where a text begins -> its islands.
    """

    def __init__(self, vocabulary: Vocabulary, batch: ParsedBatch) -> None:
        self._heads = batch.heads.tolist()
        self._labels = labels = batch.labels
        self._text = [vocabulary.text[row] for row in batch.words.tolist()]
        self._subject, self._description, self._auxiliary = (
            {vocabulary.label(label) for label in names} for names in (SUBJECTS, DESCRIPTIONS, ("aux", "auxpass"))
        )
        self._conjunct, self._complement = vocabulary.label("conj"), vocabulary.label("ccomp")
        noun = vocabulary.tagged({"NN", "NNS", "NNP", "NNPS"})[batch.tags]
        verb = vocabulary.tagged({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})[batch.tags]
        conjunct = labels == self._conjunct
        clause = np.isin(labels, [vocabulary.label(label) for label in CLAUSES]) & verb
        self.islands: dict[int, list[Island]] = {}
        candidates = np.flatnonzero(clause | (conjunct & noun))
        texts = np.searchsorted(batch.offsets, candidates, side="right") - 1
        offsets = batch.offsets.tolist()
        children: dict[int, list[int]] = {}
        for token, text in zip(candidates.tolist(), texts.tolist(), strict=True):
            begin = offsets[text]
            if begin not in self.islands:
                self.islands[begin] = []
                children = self._children(begin, offsets[text + 1])
            island = self._clause(token, begin, children) if verb[token] else self._noun(token, children)
            if island is not None:
                self.islands[begin].append(island)

    def _children(self, begin: int, end: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for token in range(begin, end):
            if (head := self._heads[token]) != token:
                found.setdefault(head, []).append(token)
        return found

    def _clause(self, verb: int, begin: int, children: dict[int, list[int]]) -> Island | None:
        subject = self._subject_of(verb, begin, children)
        if subject is None:
            return None
        tokens = _below(verb, children) | _below(subject, children)
        first = min(tokens)
        if self._labels[verb] == self._complement and (first == begin or self._text[first - 1] not in LINKS):
            return None  # "a man watching a dog run"
        return Island(verb, tokens, _below(subject, children), frozenset())

    def _subject_of(self, verb: int, begin: int, children: dict[int, list[int]]) -> int | None:
        auxiliary = None
        for token in children.get(verb, ()):
            if token < verb and self._labels[token] in self._subject:
                return token
            if self._labels[token] in self._auxiliary and self._text[token] in FINITE:
                auxiliary = token
        if auxiliary is None or auxiliary == begin:
            return None
        # Only the subject is before "is" where the tree has a second object: "a pizza and a woman IS eating".
        noun = auxiliary - 1
        while self._labels[noun] != self._conjunct and noun < auxiliary and self._heads[noun] != noun:
            noun = self._heads[noun]
        return noun if noun < auxiliary and self._labels[noun] == self._conjunct else None

    def _noun(self, noun: int, children: dict[int, list[int]]) -> Island | None:
        partner = self._heads[noun]
        if not (self._described(noun, children) and self._described(partner, children, before=noun)):
            return None
        tokens = _below(noun, children)
        return Island(noun, tokens, frozenset(), _below(partner, children) - tokens)

    def _described(self, noun: int, children: dict[int, list[int]], before: int | None = None) -> bool:
        """Whether a phrase or clause after a noun describes it by itself; "of" goes without saying."""
        return any(
            token > noun
            and (before is None or token < before)
            and self._labels[token] in self._description
            and self._text[token] != "of"
            for token in children.get(noun, ())
        )


def _below(token: int, children: dict[int, list[int]]) -> frozenset[int]:
    """A token and all that hangs from it."""
    found, waiting = {token}, [token]
    while waiting:
        below = children.get(waiting.pop(), ())
        found.update(below)
        waiting.extend(below)
    return frozenset(found)
