"""Slips of taggers in captions, mended before the network reads the parse.

What a tagger of running text takes for a noun may be an adjective ("a SNOWY road") or the verb of a caption
that is a sentence ("a dog LEAPS over a log", "two children WAVE to each other"). Token numbers are positions
in the batch.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from tbkin_core.names.lexicon import parser_file
from tbkin_core.parsing.network import ParsedBatch, Vocabulary
from tbkin_core.parsing.sentences import VERB_TAGS

ONE = frozenset({"a", "an", "another", "one", "each", "every"})
SEVERAL = frozenset(
    {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several", "many", "some", "both"}
)
SUBORDINATING = frozenset({"while", "as", "when"})
FINITE_TAGS = ("VBZ", "VBP", "VBD")


@cache
def shipped_adjectives() -> frozenset[str]:
    """Adjectives in -y that are nothing else, from `resources/parser/adjectives.txt`."""
    return frozenset(parser_file("adjectives.txt").read_text(encoding="utf-8").split())


def mend(vocabulary: Vocabulary, batch: ParsedBatch) -> None:
    """Mend tags, labels and heads of a batch in place; a text's depend on no other text."""
    if len(batch.words):
        _Mender(vocabulary, batch).mend()


class _Mender:
    def __init__(self, vocabulary: Vocabulary, batch: ParsedBatch) -> None:
        self._vocabulary, self._batch = vocabulary, batch
        self._text = [vocabulary.text[row] for row in batch.words.tolist()]
        tagged = vocabulary.tagged
        self._singular, self._plural = (tagged({tag})[batch.tags] for tag in ("NN", "NNS"))
        self._noun = tagged({"NN", "NNS", "NNP", "NNPS"})[batch.tags]
        self._verb = tagged(VERB_TAGS)[batch.tags]
        self._in_phrase = tagged({"NN", "NNS", "NNP", "JJ", "VBN", "CD"})[batch.tags]
        self._place = np.arange(len(batch.words))

    def _label(self, *names: str) -> list[int]:
        return [self._vocabulary.label(name) for name in names]

    def mend(self) -> None:
        adjectives = shipped_adjectives()
        listed = [token for token, text in enumerate(self._text) if text in adjectives and self._noun[token]]
        for token in listed:
            self._make_adjective(token)
        for token in self._verbs():
            self._make_verb(token)

    def _make_adjective(self, token: int) -> None:
        batch = self._batch
        compound, modifier, attribute, complement = self._label("compound", "amod", "attr", "acomp")
        renamed = {compound: modifier, attribute: complement, modifier: modifier}
        if batch.labels[token] in renamed:
            batch.tags[token] = self._vocabulary.tag("JJ")
            batch.labels[token] = renamed[int(batch.labels[token])]

    def _verbs(self) -> list[int]:
        """Tokens that the tagger or the parser takes for nouns and that can only be verbs.

        No phrase begins with "a" and ends with a plural, nor with "two" and ends with a singular.
        """
        batch, text = self._batch, self._text
        begins = batch.offsets[:-1]
        noun_before = np.append(False, self._noun[:-1])
        noun_before[begins[begins < len(text)]] = False
        goes_on = np.append((self._noun | self._verb)[1:], False)
        last = batch.offsets[1:] - 1
        goes_on[last[last >= 0]] = False
        candidates = np.flatnonzero(noun_before & (self._singular | self._plural) & ~goes_on)
        starts = batch.offsets[np.searchsorted(batch.offsets, candidates, side="right") - 1]
        found = []
        for token, begin in zip(candidates.tolist(), starts.tolist(), strict=True):
            if self._plural[token] != self._singular[token - 1]:
                continue
            start = token - 1
            while start > begin and self._in_phrase[start - 1] and text[start] not in SEVERAL:
                start -= 1
            opening = text[start] if text[start] in SEVERAL or start == begin else text[start - 1]
            if self._plural[token]:
                right = opening in ONE and text[token].endswith("s")
            else:
                twice = token + 2 < len(text) and text[token] == text[token + 2]  # "side by side"
                right = opening in SEVERAL and self._plural[token - 1] and not twice
            if right:
                found.append(token)
        return found

    def _make_verb(self, verb: int) -> None:
        """Make a noun a verb whose subject is the noun before it, or the noun that that one describes."""
        batch, subject = self._batch, verb - 1
        head, labels = batch.heads, batch.labels
        root, nsubj, mark, advcl, direct, conjunct = self._label("ROOT", "nsubj", "mark", "advcl", "dobj", "conj")
        governor, label = int(head[verb]), labels[verb]
        children = np.flatnonzero((head == verb) & (self._place != verb))
        batch.tags[verb] = self._vocabulary.tag("VBZ" if self._plural[verb] else "VBP")
        self._plural[verb] = self._singular[verb] = self._noun[verb] = False
        head[children[children < subject]] = subject
        if self._text[governor] in SUBORDINATING and governor < subject:
            above = int(head[governor])
            labels[governor], head[governor] = mark, verb
            labels[verb], head[verb] = advcl, above if above != governor else verb
        elif label in self._label("pobj", "dobj") and governor < subject:
            labels[subject], head[subject] = label, governor
            while not self._noun[subject] or subject >= governor:
                if head[subject] == subject:
                    break
                subject = int(head[subject])
            labels[verb] = labels[subject]
            head[verb] = verb if head[subject] == subject else head[subject]
            later = np.flatnonzero((head == subject) & (self._place > verb))
            head[later] = verb
        elif label not in (root, conjunct):
            return
        labels[subject], head[subject] = nsubj, verb
        for child in np.flatnonzero((head == verb) & (self._place > verb) & self._noun):
            if labels[child] != conjunct:
                labels[child] = direct
                break
