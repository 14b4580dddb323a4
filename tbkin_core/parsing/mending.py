"""Slips of taggers in captions, mended before the network reads the parse.

What a tagger of running text takes for a noun may be an adjective ("a SNOWY road") or the verb of a caption
that is a sentence ("a dog LEAPS over a log", "two children WAVE to each other"). Token numbers are positions
in the batch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tbkin_core.names.lexicon import parser_file
from tbkin_core.parsing.network import ParsedBatch, Vocabulary
from tbkin_core.parsing.sentences import VERB_TAGS

ONE = frozenset({"a", "an", "another", "one"})
SEVERAL = frozenset(
    {
        "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several", "many", "some",
        "both",
    }
)  # fmt: skip
SUBORDINATING = frozenset({"while", "as", "when"})
MODALS = frozenset({"can", "will", "may", "must"})


@cache
def shipped_adjectives() -> frozenset[str]:
    """Adjectives in -y that are nothing else, from `resources/parser/adjectives.txt`."""
    return frozenset(parser_file("adjectives.txt").read_text(encoding="utf-8").split())


def mend(vocabulary: Vocabulary, batch: ParsedBatch) -> ParsedBatch:
    """The batch, mended in place, with what was found; a text's mending depends on no other text."""
    return _Mender(vocabulary, batch).mended() if len(batch.words) else batch


class _Mender:
    def __init__(self, vocabulary: Vocabulary, batch: ParsedBatch) -> None:
        self._vocabulary, self._batch = vocabulary, batch
        rows = batch.words.tolist()
        self._text = text = [vocabulary.text[row] for row in rows]
        tagged = vocabulary.tagged
        self._singular, self._plural = (tagged({tag})[batch.tags] for tag in ("NN", "NNS"))
        inflected = [
            word.endswith("s") and vocabulary.noun[row] != word for word, row in zip(text, rows, strict=True)
        ]
        self._with_s = (self._singular | self._plural) & np.array(inflected, bool)
        self._noun = tagged({"NN", "NNS", "NNP", "NNPS"})[batch.tags]
        self._verb = tagged(VERB_TAGS)[batch.tags]
        self._adjective = tagged({"JJ"})[batch.tags]
        self._in_phrase = self._noun | tagged({"JJ", "VBN", "CD"})[batch.tags]
        self._place = np.arange(len(text))

    def _label(self, *names: str) -> list[int]:
        return [self._vocabulary.label(name) for name in names]

    def mended(self) -> ParsedBatch:
        listed = shipped_adjectives()
        adjectives = [
            token
            for token, text in enumerate(self._text)
            if text in listed and self._noun[token] and self._make_adjective(token)
        ]
        verbs = [token for token in self._candidates() if self._make_verb(token)]
        return replace(self._batch, verbs=frozenset(verbs), adjectives=frozenset(adjectives))

    def _make_adjective(self, token: int) -> bool:
        batch = self._batch
        compound, modifier, attribute, complement = self._label("compound", "amod", "attr", "acomp")
        renamed = {compound: modifier, attribute: complement, modifier: modifier}
        if batch.labels[token] not in renamed:
            return False
        batch.tags[token] = self._vocabulary.tag("JJ")
        batch.labels[token] = renamed[int(batch.labels[token])]
        self._noun[token] = self._singular[token] = False
        return True

    def _candidates(self) -> list[int]:
        """Tokens that the tagger takes for nouns and that agree with the noun before them as verbs do.

        Either the parser gives them a subject nevertheless, or as nouns they would not agree with what the
        phrase begins with: "a ... leaps", "two ... wave".
        """
        batch, text = self._batch, self._text
        before = np.append(0, self._place[:-1])
        singular = self._singular & ~self._with_s
        agrees = (singular[before] & self._with_s) | (self._plural[before] & (singular | self._adjective))
        begins = np.zeros(len(text) + 1, bool)
        begins[batch.offsets] = True
        agrees &= ~begins[:-1]
        goes_on = np.append((self._noun | self._verb)[1:], False) & ~begins[1:]
        subject = (batch.labels[before] == self._label("nsubj")[0]) & (batch.heads[before] == self._place)
        found = [
            token
            for token, word in enumerate(text)
            if word == "like" and not begins[token] and self._is_liking(token, begins)
        ]
        for token in np.flatnonzero(agrees & (~self._adjective | subject)).tolist():
            begin = token - 1
            while begin > 0 and not begins[begin] and self._in_phrase[begin] and text[begin] not in SEVERAL:
                begin -= 1
            if goes_on[token]:  # only where the caption begins with it: "a boy pours water"
                right = begins[begin] and text[begin] in ONE and self._with_s[token]
            elif self._with_s[token]:
                right = text[begin] in ONE
            else:
                following = text[token + 1 : token + 3] if not begins[token + 1 : token + 3].any() else []
                right = text[begin] in SEVERAL and text[token] not in following  # "two cups side by side"
            if right or (subject[token] and text[token] not in MODALS):
                found.append(token)
        return found

    def _is_liking(self, token: int, begins: NDArray[np.bool_]) -> bool:
        """Whether a "like" that the parser has for a preposition is the verb of "the kids like pizza"."""
        batch, vocabulary = self._batch, self._vocabulary
        if batch.labels[token] != self._label("prep")[0] or batch.heads[token] != token - 1:
            return False
        definite = self._text[token + 1 : token + 2] == ["the"] and not begins[token + 1]
        return self._plural[token - 1] and (batch.tags[token] == vocabulary.tag("VBP") or definite)

    def _make_verb(self, verb: int) -> bool:
        """Make a noun a verb whose subject is the noun before it, or the noun that that one describes."""
        batch, text = self._batch, int(np.searchsorted(self._batch.offsets, verb, side="right")) - 1
        part = slice(*batch.offsets[text : text + 2].tolist())
        labels, heads = batch.labels[part].copy(), batch.heads[part].copy()
        subject = self._move_subject(verb, part.stop - part.start)
        if subject is not None:
            nsubj, direct, conjunct = self._label("nsubj", "dobj", "conj")
            children = (batch.heads == verb) & (self._place != verb)
            batch.heads[children & (self._place < subject)] = subject
            batch.labels[subject], batch.heads[subject] = nsubj, verb
            objects = np.flatnonzero(
                children & (self._place > verb) & self._noun & (batch.labels != conjunct)
            )
            batch.labels[objects[:1]] = direct
            if self._is_tree(part):
                batch.tags[verb] = self._vocabulary.tag("VBZ" if self._with_s[verb] else "VBP")
                self._noun[verb] = False
                return True
        batch.labels[part], batch.heads[part] = labels, heads
        return False

    def _move_subject(self, verb: int, length: int) -> int | None:
        """The subject of a verb, freed from where the parser has it; None for none."""
        subject, (head, labels) = verb - 1, (self._batch.heads, self._batch.labels)
        nsubj, mark, advcl, direct = self._label("nsubj", "mark", "advcl", "dobj")
        root, conjunct, relative, aside, preposition = self._label(
            "ROOT", "conj", "relcl", "parataxis", "prep"
        )
        compound, of_preposition = self._label("compound", "pobj")
        governor, label = int(head[verb]), int(labels[verb])
        if labels[subject] == nsubj and head[subject] == verb:
            return subject if label in (root, conjunct, advcl, relative, aside) else None
        if self._text[governor] in SUBORDINATING and governor < subject:
            above = int(head[governor])
            labels[governor], head[governor] = mark, verb
            labels[verb], head[verb] = advcl, above if above != governor else verb
        elif label == preposition and governor == subject:  # "the kids like pizza"
            labels[verb], head[verb] = labels[subject], verb if head[subject] == subject else head[subject]
        elif label == compound and governor > verb:  # "a boy pours water"
            labels[verb], labels[governor] = labels[governor], direct
            head[verb], head[governor] = verb if head[governor] == governor else head[governor], verb
            head[(head == governor) & (self._place < subject)] = subject
        elif label in (of_preposition, direct) and governor < subject:  # "a man in a hat runs"
            head[(head == verb) & (self._place < subject)] = subject
            labels[subject], head[subject] = label, governor
            for _ in range(length):
                if self._noun[subject] and subject < governor:
                    break
                subject = int(head[subject])
            else:
                return None
            labels[verb], head[verb] = labels[subject], verb if head[subject] == subject else head[subject]
            head[(head == subject) & (self._place > verb)] = verb
        elif label not in (root, conjunct):
            return None
        return subject

    def _is_tree(self, part: slice) -> bool:
        """Whether the heads of a text lead to roots."""
        heads = self._batch.heads[part]
        above = heads - part.start
        for _ in range(len(heads).bit_length()):
            above = above[above]
        return bool((above == (heads - part.start)[above]).all())
