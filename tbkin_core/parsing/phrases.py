"""Noun phrases of more than one noun or with a number: "a glass of wine", "a couple of dogs", "three cats".

Token numbers are positions in the batch.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from tbkin_core.parsing.mending import shipped_adjectives
from tbkin_core.parsing.network import ParsedBatch, Vocabulary
from tbkin_core.parsing.sentences import COLLECTIVES, PLACES, Sentences

# What stands on a table is the glass, not the wine.
VESSELS = frozenset(
    {
        "bag", "barrel", "basin", "basket", "bin", "bottle", "bowl", "box", "bucket", "can", "carafe", "cart",
        "carton", "case", "cooler", "crate", "cup", "dish", "glass", "glasses", "goblet", "jar", "jug", "keg",
        "mug", "pail", "pan", "pitcher", "plate", "platter", "pot", "sack", "saucer", "tank", "teacup",
        "thermos", "tin", "tray", "tub", "tumbler", "vase", "wagon", "wheelbarrow",
    }
)  # fmt: skip
NAMED = VESSELS | COLLECTIVES
FLAT = frozenset({"dish", "plate", "platter", "saucer", "tray"})  # what they hold is on them


class Phrases:
    """The noun phrases of a batch.

    Attributes:
        numeral: Noun -> the numeral that counts it.
        contents: Vessel or collective -> (its "of", the noun after that).
        adjective: Adjective in -y, which the network may take for an object -> the noun that it describes.
        subject: Verb -> its subject.
        clause: (subject, object) -> (their verb, whether the object is its own and not a preposition's).
    """

    def __init__(self, sentences: Sentences, vocabulary: Vocabulary, batch: ParsedBatch) -> None:
        self._sentences = sentences
        head, noun = sentences.head, sentences.noun
        counts = vocabulary.tagged({"CD"})[batch.tags] & (batch.labels == vocabulary.label("nummod"))
        self.numeral = {
            head[token]: token for token in np.flatnonzero(counts).tolist() if token < head[token]
        }
        self.contents: dict[int, tuple[int, int]] = {}
        self._is_object = (batch.labels == vocabulary.label("pobj")).tolist()
        for token in np.flatnonzero(self._is_object).tolist():
            of = head[token]
            if sentences.text[of] == "of" and noun[head[of]] in NAMED:
                self.contents.setdefault(head[of], (of, token))
        objects = [
            token for token in np.flatnonzero(self._is_object).tolist() if sentences.text[head[token]] != "of"
        ]
        ties = [(self._governor(token), token) for token in objects] if self.contents else []
        self._ties = [tie for tie in ties if tie[0] in self.contents or tie[1] in self.contents]
        self.subject = {
            head[token]: token for token in np.flatnonzero(batch.labels == vocabulary.label("nsubj")).tolist()
        }
        listed, is_adjective = shipped_adjectives(), sentences.is_adjective
        self.adjective = {
            token: self.subject.get(head[token], head[token])
            for token, text in enumerate(sentences.text)
            if is_adjective[token] and text in listed
        }
        self.clause: dict[tuple[int, int], tuple[int, bool]] = {}
        taken = set(batch.heads[batch.labels == vocabulary.label("dobj")].tolist())
        for label in ("dobj", "pobj"):  # a verb's own object, or else that of its first preposition
            for token in np.flatnonzero(batch.labels == vocabulary.label(label)).tolist():
                preposition = head[token]
                if sentences.text[preposition] == "of" and sentences.text[head[preposition]] in PLACES:
                    preposition = head[head[preposition]]  # "in front of"
                verb = preposition if label == "dobj" else head[preposition]
                subject = self.subject.get(verb, verb)
                if sentences.text[token] in PLACES:
                    continue
                if (
                    sentences.is_verb[verb]
                    and subject < verb < token
                    and (label == "dobj" or verb not in taken)
                ):
                    self.clause[subject, token] = verb, label == "dobj"
                    taken.add(verb)

    def counts_another(self, token: int, noun: int, heads: Container[int]) -> bool:
        """Whether a token counts another object than `noun`, as "two" of "two dogs and three cats"."""
        counted = self._sentences.head[token]
        if counted == noun or self.numeral.get(counted) != token or counted not in heads:
            return False
        return noun in self.numeral or self._sentences.head[noun] != counted

    def is_of_another(self, token: int, noun: int, heads: Container[int]) -> bool:
        """Whether a token is the "group" of another object: of the men in "a group of men in helmets"."""
        if self._sentences.text[token] == "of":  # the network may have "group of" end there
            token = self._sentences.head[token]
        content = self.contents.get(token, (token, noun))[1]
        return content != noun and content in heads

    def meant(self, noun: int, heads: Container[int]) -> int | None:
        """The object that a noun is, or that a collective is of; None for none."""
        if noun in heads:
            return noun
        content = self.contents.get(noun, (noun, noun))[1]
        return content if content in heads else None

    def _governor(self, noun: int) -> int:
        """What the preposition before a noun hangs from: the dogs, of "dogs in front of a house"."""
        head, text = self._sentences.head, self._sentences.text
        token = head[noun]
        while head[token] != token and (
            text[token] in PLACES or self._is_object[token] or token == head[noun]
        ):
            token = head[token]
        return token

    def tied_collectives(self, begin: int, end: int, heads: Container[int]) -> list[tuple[int, int]]:
        """Objects that a preposition ties where one is named by a collective: "dogs near a pair of shoes"."""
        tied = []
        for governor, token in self._ties:
            if begin <= token < end:
                first, second = self.meant(governor, heads), self.meant(token, heads)
                if first is not None and second is not None and (first, second) != (governor, token):
                    tied.append((first, second))
        return tied
