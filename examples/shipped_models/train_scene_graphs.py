r"""Train the network that reads scene graphs off parses: make `scene_graph.npz` and `wording.json`.

    python examples/shipped_models/train_scene_graphs.py FACTUAL/train.csv OUT/ \
        --encoder sentence-transformers/all-MiniLM-L6-v2

1. Captions are parsed by the shipped pipeline, and the annotated graphs aligned with their words.
2. Captions are turned into questions and referring expressions whose graphs are known by construction.
3. A pretrained encoder (`--encoder`, a directory or hub id of a BERT-type model) is fine-tuned on them.
4. The small network learns from the annotators and from the encoder, which also labels captions with words
   exchanged (knowledge distillation, Hinton et al. 2015). Without `--encoder` it learns from the annotators.

Three quarters of an hour on two CPU cores with an encoder, five minutes without.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from factual import (
    Tuples,
    graph_tuples,
    lemmatize_phrase,
    parse_factual_graph,
    read_factual,
    score,
)
from networks import parsed_batch, write_network
from spacy.tokens import Doc
from torch import nn
from torch.nn import functional

from tbkin_core.names.lexicon import plain_sides
from tbkin_core.parsing.decoding import NUMBERS, decode_graphs
from tbkin_core.parsing.network import (
    AFFIX_BUCKETS,
    JOINED,
    MAX_ATTRIBUTE_DISTANCE,
    MAX_DISTANCE,
    MAX_OBJECTS_APART,
    NO_OBJECT,
    NO_RELATION,
    OBJECT,
    PART,
    SAME,
    WORD_BUCKETS,
    Choices,
    GraphNetwork,
    ParsedBatch,
    Vocabulary,
    object_roles,
    read_network,
    word_buckets,
)
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.parsing.sentences import PREPOSITION_TAGS, READINGS, Reading, Sentences
from tbkin_core.parsing.wording import FactualWording

TAGS = [
    "$", "''", ",", "-LRB-", "-RRB-", ".", ":", "ADD", "AFX", "CC", "CD", "DT", "EX", "FW", "HYPH", "IN",
    "JJ", "JJR", "JJS", "LS", "MD", "NFP", "NN", "NNP", "NNPS", "NNS", "PDT", "POS", "PRP", "PRP$", "RB",
    "RBR", "RBS", "RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT", "WP", "WP$",
    "WRB", "XX", "``",
]  # fmt: skip
LABELS = [
    "ROOT", "acl", "acomp", "advcl", "advmod", "agent", "amod", "appos", "attr", "aux", "auxpass", "case",
    "cc", "ccomp", "compound", "conj", "csubj", "csubjpass", "dative", "dep", "det", "dobj", "expl", "intj",
    "mark", "meta", "neg", "nmod", "npadvmod", "nsubj", "nsubjpass", "nummod", "oprd", "parataxis", "pcomp",
    "pobj", "poss", "preconj", "predet", "prep", "prt", "punct", "quantmod", "relcl", "xcomp",
]  # fmt: skip
SIDE_ATTRIBUTES = {"on the left": "left", "on the right": "right", "in the middle": "middle"}
RENAMED_TAGS = frozenset({"NN", "NNS", "NNP", "PRP", "JJ"})
RARE = 4  # outcomes and renamings seen less often are omitted


# ------------------------------------------------------------------------------------- aligned captions


@dataclass
class Aligned:
    """A parsed caption and the annotated graph in terms of its tokens.

    Attributes:
        words, tags, labels, heads: The parse.
        roles: Role of every token.
        prefix: Whether a token belongs to the attribute that follows.
        attributes: (token, head of an object) -> form, "" for the token itself.
        open_attributes: Pairs that the annotation leaves open (which of two men is tall?).
        relations: (first, second) -> ">" or "<" and the predicate, sides plain.
        open_relations: Pairs that it leaves open.
        gold: The annotated tuples.
    """

    words: list[str]
    tags: list[str]
    labels: list[str]
    heads: list[int]
    roles: list[str] = field(default_factory=list)
    prefix: list[bool] = field(default_factory=list)
    attributes: dict[tuple[int, int], str] = field(default_factory=dict)
    open_attributes: set[tuple[int, int]] = field(default_factory=set)
    relations: dict[tuple[int, int], str] = field(default_factory=dict)
    open_relations: set[tuple[int, int]] = field(default_factory=set)
    gold: Tuples = frozenset()

    @property
    def objects(self) -> list[int]:
        return np.flatnonzero(object_roles(self.roles)).tolist()

    @property
    def parse(self) -> tuple[list[str], list[str], list[str], list[int]]:
        return self.words, self.tags, self.labels, self.heads


class Lemmas:
    """Words of a caption in lower case and as lemmas."""

    def __init__(self, vocabulary: Vocabulary, words: Sequence[str]) -> None:
        rows = vocabulary.rows([word.lower() for word in words])
        self.text = [vocabulary.text[row] for row in rows]
        self.noun = [vocabulary.noun[row] for row in rows]
        self.verb = [vocabulary.verb[row] for row in rows]


def graph_parts(
    text: str,
) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Objects, attributes and relations of a graph in FACTUAL's notation, predicates as they stand."""
    objects: dict[str, None] = {}
    attributes: dict[tuple[str, str], None] = {}
    relations: dict[tuple[str, str, str], None] = {}
    for group in text.split(") , ("):
        parts = [" ".join(part.lower().split()) for part in group.strip().strip("()").split(" , ")]
        if parts == [""]:
            continue
        subject = lemmatize_phrase(parts[0])
        objects[subject] = None
        if len(parts) == 3 and parts[1] == "is":
            attributes[subject, parts[2]] = None
        elif len(parts) == 3:
            other = lemmatize_phrase(parts[2])
            objects[other] = None
            relations[subject, plain_sides(parts[1]), other] = None
    return list(objects), list(attributes), list(relations)


def mentions(name: str, lemmas: Lemmas) -> list[tuple[int, int, str]]:
    """(first token, head, role of the tokens before the head) of every mention of an object."""
    parts = name.split()
    count, size = len(lemmas.text), len(parts)
    found = [
        (start, start + size - 1, PART)
        for start in range(count - size + 1)
        if all(
            part in (lemmas.noun[start + at], lemmas.text[start + at], lemmas.verb[start + at])
            for at, part in enumerate(parts)
        )
    ]
    squeezed = name.replace(" ", "")
    for size in (2, 3):
        if not found:
            found = [
                (start, start + size - 1, JOINED)
                for start in range(count - size + 1)
                if "".join(lemmas.text[start : start + size - 1]) + lemmas.noun[start + size - 1] == squeezed
            ]
    return found


def renamings(
    rows: Sequence[Aligned], graphs: Sequence[str], vocabulary: Vocabulary
) -> Counter[tuple[str, str]]:
    """How often a word stands where an object of another name was drawn ("guy", "person")."""
    counts = Counter[tuple[str, str]]()
    for row, text in zip(rows, graphs, strict=True):
        lemmas = Lemmas(vocabulary, row.words)
        objects, attributes, relations = graph_parts(text)
        missing = [name for name in objects if not mentions(name, lemmas)]
        if len(missing) != 1:
            continue
        used = {
            token
            for name in objects
            for start, head, _ in mentions(name, lemmas)
            for token in range(start, head + 1)
        }
        said = {word for _, name in attributes for word in name.split()}
        said |= {word for _, predicate, _ in relations for word in predicate.split()}
        for token, word in enumerate(lemmas.text):
            if (
                token not in used
                and row.tags[token] in RENAMED_TAGS
                and word.isalpha()
                and not said & {word, lemmas.verb[token]}
            ):
                counts[word, missing[0]] += 1
    return counts


def place_objects(
    names: Sequence[str], lemmas: Lemmas, tags: Sequence[str], renamed: Counter[tuple[str, str]]
) -> dict[str, list[tuple[int, int, str]]]:
    """The mentions of every object; those renamed or misspelt have "=name" and "~" as their role."""
    places: dict[str, list[tuple[int, int, str]]] = {}
    for name in names:
        found = mentions(name, lemmas)
        if not found:
            counts = [renamed[word, name] for word in lemmas.text]
            if max(counts) >= RARE:
                token = counts.index(max(counts))
                found = [(token, token, f"={name}")]
            else:
                last = name.split()[-1]
                alike = [
                    token
                    for token, word in enumerate(lemmas.text)
                    if len(word) > 3 and difflib.SequenceMatcher(None, word, last).ratio() >= 0.75
                ]
                found = [(token, token, "~") for token in alike[:1]]
        places[name] = found
    for name, found in places.items():
        if len(found) > 1:
            inside = [
                place
                for place in found
                if not any(
                    other != name and start <= place[1] <= head and head - start > place[1] - place[0]
                    for other, spans in places.items()
                    for start, head, _ in spans
                )
            ]
            found = inside or found
            places[name] = [place for place in found if tags[place[1]].startswith("NN")] or found
    return places


def align(row: Aligned, text: str, vocabulary: Vocabulary, renamed: Counter[tuple[str, str]]) -> Aligned:
    """The annotated graph `text` in terms of the tokens of a parsed caption."""
    lemmas = Lemmas(vocabulary, row.words)
    words, count = lemmas.text, len(row.words)
    objects, attributes, relations = graph_parts(text)
    places = place_objects(objects, lemmas, row.tags, renamed)
    roles, prefix = [NO_OBJECT] * count, [False] * count
    for found in places.values():
        for start, head, kind in found:
            roles[head] = kind if kind.startswith("=") else OBJECT
            for token in range(start, head):
                roles[token] = JOINED if kind == JOINED else PART
    result = replace(
        row,
        roles=roles,
        prefix=prefix,
        attributes={},
        open_attributes=set(),
        relations={},
        open_relations=set(),
        gold=parse_factual_graph(text),
    )
    for name, attribute in attributes:
        heads = [head for _, head, _ in places[name]]
        if not heads:
            continue
        start, token, form = place_attribute(attribute, heads, lemmas, {*result.objects})
        if token < 0:
            result.attributes[heads[0], heads[0]] = form
            continue
        nearest = min(heads, key=lambda head: (abs(token - head), head))
        for before in range(start, token):
            prefix[before] = True
        result.attributes[token, nearest] = form
        result.open_attributes |= {(token, head) for head in heads if head != nearest}
    for subject, predicate, other in relations:
        pairs = sorted(
            (abs(one[1] - two[1]), one[1] > two[1], one[1], two[1])
            for one in places[subject]
            for two in places[other]
            if one[1] != two[1]
        )
        if not pairs and subject == other and places[subject]:
            # "two dogs next to each other"
            head = places[subject][0][1]
            again = [
                token
                for token in range(count - 1, head, -1)
                if words[token] in {"other", "another", "each", "one", "ones", "together"}
            ]
            if again:
                roles[again[0]] = SAME
                pairs = [(0, False, head, again[0])]
        if not pairs:
            continue
        _, backward, one, two = pairs[0]
        mark = "<" if backward else ">"
        result.relations.setdefault((min(one, two), max(one, two)), mark + predicate)
        result.open_relations |= {(min(a, b), max(a, b)) for _, _, a, b in pairs[1:]}
    result.open_relations -= set(result.relations)
    return result


def place_attribute(
    attribute: str, heads: Sequence[int], lemmas: Lemmas, objects: set[int]
) -> tuple[int, int, str]:
    """First and last token of an attribute and its form; -1 where nothing in the caption says it."""
    words = lemmas.text
    if attribute in SIDE_ATTRIBUTES and SIDE_ATTRIBUTES[attribute] in words:
        token = words.index(SIDE_ATTRIBUTES[attribute])
        return token, token, ""
    parts = attribute.split()
    size = len(parts)
    starts = [
        start
        for start in range(len(words) - size + 1)
        if all(
            part in (words[start + at], lemmas.noun[start + at], NUMBERS.get(words[start + at]))
            for at, part in enumerate(parts)
        )
    ]
    starts = [start for start in starts if not any(start <= head < start + size for head in heads)] or starts
    if starts:
        start = min(starts, key=lambda start: (min(abs(start + size - 1 - head) for head in heads), start))
        return start, start + size - 1, ""
    for token, word in enumerate(words):
        alike = difflib.SequenceMatcher(None, word.replace("-", " "), attribute).ratio() >= 0.75
        if len(word) >= 3 and token not in objects and (alike or lemmas.verb[token] == parts[-1]):
            return token, token, attribute
    return -1, -1, attribute


def learn_wording(rows: Sequence[Aligned], vocabulary: Vocabulary) -> FactualWording:
    """Prepositions and predicates that annotators mostly replace by another ("below" by "under")."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    prepositions = {
        word.lower()
        for row in rows
        for word, tag in zip(row.words, row.tags, strict=True)
        if tag in PREPOSITION_TAGS
    }
    for row, readings in zip(rows, all_readings(rows, vocabulary), strict=True):
        for pair, relation in row.relations.items():
            said = {name: plain_sides(predicate) for name, (predicate, _) in readings.get(pair, {}).items()}
            target = relation[1:]
            if target in said.values():
                for name in ("preposition", "verb preposition", "verb"):
                    if said.get(name) == target:
                        counts[target]["="] += 1
                        break
                continue
            if "preposition" in said and target.split()[0] in prepositions:
                counts[said["preposition"]][target] += 1
            longer = said.get("verb preposition")
            if longer and longer.split()[0] == target.split()[0]:
                counts[longer][target] += 1
    table = {}
    for words, targets in sorted(counts.items()):
        target, count = targets.most_common(1)[0]
        alike = len(target.split()) == len(words.split()) or target in ("under", "inside", "on top of")
        if target != "=" and words != "of" and count >= 4 and count >= 0.5 * targets.total() and alike:
            table[words] = target
    return FactualWording(table)


Readings = dict[tuple[int, int], dict[str, Reading]]


def all_readings(rows: Sequence[Aligned], vocabulary: Vocabulary) -> Iterator[Readings]:
    """The readings of every pair of objects of every caption."""
    for begin in range(0, len(rows), 256):
        part = rows[begin : begin + 256]
        batch = parsed_batch(vocabulary, (row.parse for row in part))
        sentences = Sentences(vocabulary, batch)
        for row, start, end in zip(part, batch.offsets.tolist(), batch.offsets[1:].tolist(), strict=False):
            yield {
                (first, second): {
                    name: Reading(predicate, tuple(token - start for token in tokens))
                    for name, (predicate, tokens) in sentences.readings(
                        start + first, start + second, start, end
                    ).items()
                }
                for first, second in pairs_of(row.objects)
            }


def pairs_of(objects: Sequence[int]) -> list[tuple[int, int]]:
    return [
        (first, second)
        for at, first in enumerate(objects)
        for second in objects[at + 1 : at + 1 + MAX_OBJECTS_APART]
    ]


# ------------------------------------------------------------------- questions and referring expressions


@dataclass
class Frame:
    """Words for a new text, and for each the token of the caption it comes from, -1 for an added one."""

    words: list[str]
    origin: list[int]


SPATIAL = (
    "left of", "right of", "to the left of", "to the right of", "on the left side of", "on the right side of",
    "above", "below", "behind", "in front of", "next to", "near", "inside", "under", "beside", "on top of",
)  # fmt: skip
PLAIN_PLACES = frozenset(
    {">on", ">near", ">next to", ">behind", ">in", ">beside", ">under", ">above"}
)  # relations for which others of `SPATIAL` may stand
DETERMINERS = frozenset({"a", "an", "the", "this", "that", "some", "one", "two", "three", "several", "many"})


class _Framing:
    """One caption, and the new texts that can be made of it.

    Attributes:
        row: The caption.
        words: Its words in lower case, without final punctuation.
        root: The root of its tree.
        is_nominal: Whether that is a noun and an object.
        body: The tokens after a determiner that begins the text.
        be: The form of "be" that goes with the root.
    """

    def __init__(self, row: Aligned, words: list[str], root: int, chance: random.Random) -> None:
        self.row, self.words, self.root, self.chance = row, words, root, chance
        self.keep = list(range(len(words)))
        self.is_nominal = row.tags[root] in {"NN", "NNS"} and root in row.objects
        self.is_plural = self.is_nominal and row.tags[root] == "NNS"
        self.body = self.keep[1:] if words[0] in DETERMINERS else self.keep
        self.be = "are" if self.is_plural else "is"

    def frame(self, before: str, tokens: Sequence[int], after: str = "?") -> Frame:
        """Tokens of the caption with words before and after them."""
        new, tail = before.split(), after.split()
        return Frame(
            [*new, *(self.words[token] for token in tokens), *tail],
            [-1] * len(new) + list(tokens) + [-1] * len(tail),
        )

    def question(self) -> Frame:
        """A question about the whole caption: "is there a cup on a table?"."""
        keep, body, be, chance = self.keep, self.body, self.be, self.chance
        bare = not self.is_plural and self.words[0] not in DETERMINERS
        asked = [
            self.frame(
                chance.choice(["is there", "do you see", "can you see", "is that"])
                + (" a" if bare and chance.random() < 0.7 else ""),
                keep,
            ),
            self.frame(f"{chance.choice(['what color', 'what kind', 'where', 'what'])} {be} the", body),
            self.frame(f"what {be} the", body, "doing ?"),
        ]
        if self.is_plural and self.words[0] not in {"a", "an"}:
            after = chance.choice(["are there ?", "can you see ?", "?"])
            asked.append(self.frame("how many", body, after))
        if not self.row.relations and self.root == body[-1]:
            after = chance.choice(["?", "in the picture ?"])
            asked.append(self.frame(f"what color {be} the", body, after))
        return chance.choice(asked)

    def with_side(self) -> Iterator[tuple[Frame, Aligned]]:
        """The caption as an expression that tells one of several by its place: "man on the left"."""
        row, root, body, chance = self.row, self.root, self.body, self.chance
        side = chance.choice(["left", "right"])
        where = chance.choice(
            ["on the {}", "on {}", "at the {}", "on the {} side", "to the {}", "{}", "on far {}"]
        ).format(side)
        new = self.frame("", self.keep, where)
        marked = replace(row, attributes=dict(row.attributes))
        if root == row.objects[0] or not row.relations:
            place = new.words.index(side, len(self.keep))
            marked.attributes[-place - 1, root] = ""  # an added token
            yield new, marked
        if root == body[-1] and len(body) <= 3:
            before = chance.choice([side, f"far {side}", f"the {side}", "second", "the middle"])
            new = self.frame(before, body, "")
            marked = replace(row, attributes=dict(row.attributes))
            marked.attributes[-len(new.words) + len(body), root] = ""
            yield new, marked

    def inverted(self) -> Iterator[Frame]:
        """From "the dog is sleeping on a mat": "is the dog sleeping on a mat?"."""
        verbs = [token for token in self.keep if self.words[token] in {"is", "are"}]
        if len(verbs) == 1 and verbs[0] > 0 and self.row.heads[verbs[0]] in (self.root, verbs[0]):
            yield self.frame(self.words[verbs[0]], [token for token in self.keep if token != verbs[0]])

    def subject_asked(self) -> Iterator[Frame]:
        """From "a man sitting on a bench": "who is sitting on a bench?"."""
        row, root = self.row, self.root
        if not self.is_nominal or root + 1 >= len(self.keep) or root != row.objects[0]:
            return
        rest = self.keep[root + 1 :]
        attributed = any((token, root) in row.attributes for token in rest)
        if row.tags[root + 1] in {"VBG", "IN"} and not attributed and len(row.objects) > 1:
            yield self.frame(self.chance.choice(["who is", "what is", "what are", "who are"]), rest)

    def otherwise_placed(self) -> Iterator[tuple[Frame, Aligned]]:
        """From "a cup on a table": "a cup left of a table"."""
        words, keep, chance = self.words, self.keep, self.chance
        plain = [item for item in self.row.relations.items() if item[1] in PLAIN_PLACES]
        if not plain:
            return
        (first, second), relation = chance.choice(plain)
        old = relation[1:].split()
        size = len(old)
        at = next(
            (token for token in range(first + 1, second) if words[token : token + size] == old),
            None,
        )
        if at is None or any(words[token] in {"it", "them"} for token in keep):
            return
        said = chance.choice(SPATIAL)
        follows = self.is_nominal and first == self.root and at == self.root + 1
        verb = [self.be] if follows and chance.random() < 0.4 else []
        new = [*verb, *said.split()]
        whole = Frame(
            [*words[:at], *new, *words[at + size :]],
            [*keep[:at], *[-1] * len(new), *keep[at + size :]],
        )
        if verb and chance.random() < 0.5:  # "is the cup left of a table?"
            whole = Frame(
                [self.be, *(word for token, word in enumerate(whole.words) if token != at), "?"],
                [-1, *(origin for token, origin in enumerate(whole.origin) if token != at), -1],
            )
        relations = {**self.row.relations, (first, second): ">" + plain_sides(said)}
        yield whole, replace(self.row, relations=relations)


def frames(row: Aligned, chance: random.Random) -> Iterator[tuple[Frame, Aligned]]:
    """Questions and expressions made of a caption, each with what they still say of its graph."""
    words = [word.lower() for word in row.words]
    while words and words[-1] in {".", "?", "!"}:
        words = words[:-1]
    roots = [token for token in range(len(words)) if row.heads[token] == token]
    quoted = any(mark in words for mark in ("?", "``", "''", '"'))
    if not row.objects or quoted or len(roots) != 1:
        return
    framing = _Framing(row, words, roots[0], chance)
    if framing.is_nominal and framing.body and words[0] not in {"there", "this", "it"}:
        yield framing.question(), row
        if len(words) <= 7:
            yield from framing.with_side()
    yield from ((frame, row) for frame in framing.inverted())
    yield from ((frame, row) for frame in framing.subject_asked())
    yield from framing.otherwise_placed()


def framed(rows: Sequence[Aligned], nlp: Any, share: float, chance: random.Random) -> list[Aligned]:
    """New texts made of a share of the captions, parsed and aligned."""
    made: list[tuple[Frame, Aligned]] = []
    for row in rows:
        made += [pair for pair in frames(row, chance) if chance.random() < share]
    parses = parsed([frame.words for frame, _ in made], nlp)
    result = []
    for (frame, row), parse in zip(made, parses, strict=True):
        new = {old: place for place, old in enumerate(frame.origin) if old >= 0}

        def moved(token: int, new: dict[int, int] = new) -> int | None:
            return -token - 1 if token < 0 else new.get(token)

        roles, prefix = [NO_OBJECT] * len(frame.words), [False] * len(frame.words)
        for old, place in new.items():
            roles[place], prefix[place] = row.roles[old], row.prefix[old]
        result.append(
            replace(
                parse,
                roles=roles,
                prefix=prefix,
                attributes=_moved(row.attributes, moved),
                open_attributes=set(_moved(dict.fromkeys(row.open_attributes, ""), moved)),
                relations=_moved(row.relations, moved),
                open_relations=set(_moved(dict.fromkeys(row.open_relations, ""), moved)),
            )
        )
    return result


def _moved(
    pairs: dict[tuple[int, int], str], moved: Callable[[int], int | None]
) -> dict[tuple[int, int], str]:
    """Pairs of tokens at their new places, without those that are gone."""
    result = {}
    for (one, other), value in pairs.items():
        places = moved(one), moved(other)
        if places[0] is not None and places[1] is not None:
            result[places[0], places[1]] = value
    return result


def exchanged(rows: Sequence[Aligned], count: int, nlp: Any, chance: random.Random) -> list[Aligned]:
    """Captions with some words in place of others of the same tag, for the encoder to label."""
    by_tag: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for word, tag in zip(row.words, row.tags, strict=True):
            if tag in {"NN", "NNS", "JJ", "VBG", "VBN", "VBZ", "IN", "CD"} and word.isalpha():
                by_tag[tag].append(word.lower())
    # Half of the time each word once, so that rare ones are met.
    distinct = {tag: sorted(set(words)) for tag, words in by_tag.items()}
    texts = []
    for _ in range(count):
        row = chance.choice(rows)
        words = []
        for word, tag in zip(row.words, row.tags, strict=True):
            pool = (distinct if chance.random() < 0.5 else by_tag).get(tag)
            share = 0.1 if tag == "IN" else 0.35
            words.append(chance.choice(pool) if pool and chance.random() < share else word.lower())
        if chance.random() < 0.15:  # longer ones, as in COCO
            more = chance.choice(rows).words
            words = [*[w for w in words if w != "."], chance.choice(["with", "and", "near", "while", ","])]
            words += [word.lower() for word in more]
        texts.append(words[:40])
    return parsed(texts, nlp)


def parsed(texts: Sequence[Sequence[str]], nlp: Any) -> list[Aligned]:
    """Texts given as words, parsed."""
    docs = (Doc(nlp.vocab, words=list(words)) for words in texts)
    return [of_document(doc) for doc in nlp.pipe(docs, batch_size=256)]


def of_document(doc: Doc) -> Aligned:
    """A parsed text that is yet to be aligned."""
    return Aligned(
        [token.text for token in doc],
        [token.tag_ for token in doc],
        [token.dep_ for token in doc],
        [token.head.i for token in doc],
    )


# ---------------------------------------------------------------------------------------- the networks


@dataclass
class Names:
    """Names of the outcomes of all choices."""

    roles: list[str]
    forms: list[str]
    outcomes: list[str]


def learn_names(rows: Sequence[Aligned], vocabulary: Vocabulary, wording: FactualWording) -> Names:
    """The outcomes that occur often enough; predicates only where no reading gives them."""
    roles = Counter(role for row in rows for role in row.roles)
    forms = Counter(form for row in rows for form in row.attributes.values() if form)
    predicates = Counter[str]()
    for row, readings in zip(rows, all_readings(rows, vocabulary), strict=True):
        for pair, relation in row.relations.items():
            if not _matching(relation, readings.get(pair, {}), wording):
                predicates[relation] += 1
    fixed = [NO_OBJECT, OBJECT, PART, JOINED, SAME]
    return Names(
        [*fixed, *(role for role, count in sorted(roles.items()) if count >= RARE and role not in fixed)],
        ["", *(form for form, count in sorted(forms.items()) if count >= RARE)],
        [
            NO_RELATION,
            *(f"{mark}@{name}" for mark in "><" for name in READINGS),
            *(predicate for predicate, count in sorted(predicates.items()) if count >= 3),
        ],
    )


def _matching(relation: str, readings: dict[str, Reading], wording: FactualWording) -> list[str]:
    """The outcomes whose reading says a relation, as it stands or as annotators word it."""
    return [
        f"{relation[0]}@{name}"
        for name, (said, _) in readings.items()
        if relation[1:] in (plain_sides(said), wording.predicate(said))
    ]


@dataclass
class Targets:
    """What is to be learnt of a caption, as numbers; E attribute candidates, P pairs of objects.

    Attributes:
        roles: (n,).
        prefix: (n,).
        arcs: (E, 3) token, head, form: -2 no attribute, -1 one of a rare form.
        pairs: (P, 3) first, second, how many objects apart.
        relations: Of each pair the numbers of all right outcomes.
    """

    roles: np.ndarray
    prefix: np.ndarray
    arcs: np.ndarray
    pairs: np.ndarray
    relations: list[list[int]]


def targets_of(
    rows: Sequence[Aligned], names: Names, vocabulary: Vocabulary, wording: FactualWording
) -> list[Targets]:
    """Targets of aligned captions."""
    role_number = {name: number for number, name in enumerate(names.roles)}
    form_number = {name: number for number, name in enumerate(names.forms)}
    outcome_number = {name: number for number, name in enumerate(names.outcomes)}
    result = []
    for row, readings in zip(rows, all_readings(rows, vocabulary), strict=True):
        objects = row.objects
        arcs = []
        for head in objects:
            for token in range(
                max(0, head - MAX_ATTRIBUTE_DISTANCE), min(len(row.words), head + MAX_ATTRIBUTE_DISTANCE + 1)
            ):
                if (token, head) not in row.open_attributes:
                    form = row.attributes.get((token, head))
                    arcs.append((token, head, -2 if form is None else form_number.get(form, -1)))
        pairs, relations = [], []
        for first, second in pairs_of(objects):
            if (first, second) in row.open_relations:
                continue
            relation = row.relations.get((first, second))
            right = [0]
            if relation is not None:
                matching = _matching(relation, readings[first, second], wording)
                right = [outcome_number[name] for name in matching]
                if not right and relation in outcome_number:
                    right = [outcome_number[relation]]
            if right:
                pairs.append((first, second, objects.index(second) - objects.index(first)))
                relations.append(right)
        result.append(
            Targets(
                np.array([role_number.get(role, role_number[OBJECT]) for role in row.roles], np.int64),
                np.array(row.prefix, np.float32),
                np.array(arcs, np.int64).reshape(-1, 3),
                np.array(pairs, np.int64).reshape(-1, 3),
                relations,
            )
        )
    return result


class Heads(nn.Module):
    """The four choices over states (B, n, D)."""

    def __init__(
        self, width: int, names: Names, arc: int, relation: int, drop: float, role: int = 128
    ) -> None:
        super().__init__()
        self.role = nn.ModuleList([nn.Linear(width, role), nn.Linear(role, len(names.roles))])
        self.single = nn.Linear(width, 1 + len(names.forms) + arc)
        self.arc_object = nn.Linear(width, arc, bias=False)
        self.arc_distance = nn.Embedding(21, arc)
        self.arc_out = nn.Linear(arc, 1)
        self.first = nn.Linear(width, relation)
        self.second = nn.Linear(width, relation, bias=False)
        self.between = nn.Linear(width, relation, bias=False)
        self.distance = nn.Embedding(MAX_DISTANCE + 1, relation)
        self.apart = nn.Embedding(MAX_OBJECTS_APART + 1, relation)
        self.out = nn.Linear(relation, len(names.outcomes))
        self.drop = nn.Dropout(drop)
        self.forms = len(names.forms)
        for table in (self.arc_distance, self.distance, self.apart):
            nn.init.normal_(table.weight, std=0.1)

    def roles(self, states: torch.Tensor) -> torch.Tensor:
        return self.role[1](self.drop(torch.relu(self.role[0](states))))  # type: ignore[no-any-return]

    def arcs(self, states: torch.Tensor, single: torch.Tensor, arcs: torch.Tensor) -> torch.Tensor:
        """(E,) scores of arcs (text, token, head)."""
        text, token, head = arcs.T
        hidden = single[..., 1 + self.forms :][text, token] + self.arc_object(states[text, head])
        hidden = hidden + self.arc_distance((token - head).clamp(-10, 10) + 10)
        return self.arc_out(self.drop(torch.relu(hidden))).squeeze(-1)  # type: ignore[no-any-return]

    def relations(self, states: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """(P, C) scores of pairs (text, first, second, apart)."""
        text, first, second, apart = pairs.T
        sums = torch.cat([torch.zeros_like(states[:, :1]), states.cumsum(1)], 1)
        count = (second - first - 1).clamp(min=1)[:, None]
        between = (sums[text, second] - sums[text, first + 1]) / count
        hidden = self.first(states[text, first]) + self.second(states[text, second]) + self.between(between)
        hidden = hidden + self.distance((second - first).clamp(max=MAX_DISTANCE))
        hidden = hidden + self.apart(apart.clamp(max=MAX_OBJECTS_APART))
        return self.out(self.drop(torch.relu(hidden)))  # type: ignore[no-any-return]


class SmallNetwork(nn.Module):
    """What `tbkin_core.parsing.network` runs, in torch. Input: (features (B, n, 7), heads (B, n), mask)."""

    def __init__(
        self,
        names: Names,
        vectors: np.ndarray,
        width: int = 160,
        layers: int = 3,
        arc: int = 64,
        relation: int = 192,
        drop: float = 0.25,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding.from_pretrained(torch.from_numpy(vectors), freeze=False)
        self.hash = nn.Embedding(WORD_BUCKETS, 64)
        self.affix = nn.Embedding(AFFIX_BUCKETS, 32)
        self.tag = nn.Embedding(len(TAGS) + 1, 24)
        self.label = nn.Embedding(len(LABELS) + 1, 24)
        for table in (self.hash, self.affix, self.tag, self.label):
            nn.init.normal_(table.weight, std=0.1)
        self.input = nn.Linear(vectors.shape[1] + 64 + 32 + 48, width)
        self.input_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([nn.Linear(4 * width, width) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.drop = nn.Dropout(drop)
        self.heads = Heads(width, names, arc, relation, drop)

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        features, heads, mask = inputs
        shown: torch.Tensor | float = 1.0
        read: torch.Tensor | float = 1.0
        if self.training:  # a word, or the parse of a text, is sometimes hidden
            shown = (torch.rand(*features.shape[:2], 1) > 0.1).float()
            read = (torch.rand(len(features), 1, 1) > 0.05).float()
        parts = [
            self.word(features[..., 0]) * shown,
            (self.hash(features[..., 1]) + self.hash(features[..., 2])) * shown,
            self.affix(features[..., 3]) + self.affix(features[..., 4]),
            self.tag(features[..., 5]) * read,
            self.label(features[..., 6]) * read,
        ]
        state = self.input_norm(torch.relu(self.input(self.drop(torch.cat(parts, -1))))) * mask
        for layer, norm in zip(self.layers, self.norms, strict=True):
            zero = torch.zeros_like(state[:, :1])
            seen = [torch.cat([zero, state[:, :-1]], 1), state, torch.cat([state[:, 1:], zero], 1)]
            seen.append(state.gather(1, heads[..., None].expand(-1, -1, state.shape[-1])))
            state = norm(state + torch.relu(layer(self.drop(torch.cat(seen, -1))))) * mask
        return state

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights under the names that `tbkin_core.parsing.network` reads."""
        modules: dict[str, nn.Module] = {
            "input": self.input,
            "input.norm": self.input_norm,
            **{f"layer{number}": layer for number, layer in enumerate(self.layers)},
            **{f"layer{number}.norm": norm for number, norm in enumerate(self.norms)},
            "role.0": self.heads.role[0],
            "role.1": self.heads.role[1],
            "single": self.heads.single,
            "arc.object": self.heads.arc_object,
            "arc.out": self.heads.arc_out,
            "relation.first": self.heads.first,
            "relation.second": self.heads.second,
            "relation.between": self.heads.between,
            "relation.out": self.heads.out,
        }
        tables = {
            "word": self.word,
            "hash": self.hash,
            "affix": self.affix,
            "tag": self.tag,
            "label": self.label,
            "arc.distance": self.heads.arc_distance,
            "relation.distance": self.heads.distance,
            "relation.apart": self.heads.apart,
        }
        found: dict[str, np.ndarray] = {}
        for name, module in modules.items():
            for kind, values in module.named_parameters():
                turned = values.detach().numpy()
                found[f"{name}.{kind}"] = turned.T if turned.ndim == 2 else turned
        for number in range(len(self.layers)):  # (4 D, D) to (D, 4 D): one product, its parts added up later
            parts = np.split(found[f"layer{number}.weight"], 4)
            found[f"layer{number}.weight"] = np.concatenate(parts, axis=1)
        for name, table in tables.items():
            found[f"{name}.table"] = table.weight.detach().numpy()
        # The bias of a pair's first object goes into the table that every pair takes a row of.
        found["relation.apart.table"] = found["relation.apart.table"] + found.pop("relation.first.bias")
        found["arc.out.weight"] = found["arc.out.weight"][:, 0]
        return found


def small_inputs(
    rows: Sequence[Aligned], known: dict[str, int], vocabulary: Vocabulary
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features (n, 7) and heads (n,) of captions."""
    result = []
    for row in rows:
        features = [
            (
                known.get(word.lower(), 0),
                *word_buckets(word.lower()),
                vocabulary.tag(tag),
                vocabulary.label(label),
            )
            for word, tag, label in zip(row.words, row.tags, row.labels, strict=True)
        ]
        result.append((np.array(features, np.int64).reshape(-1, 7), np.array(row.heads, np.int64)))
    return result


def collate_small(
    items: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(len(features) for features, _ in items)
    features = np.zeros((len(items), longest, 7), np.int64)
    heads = np.tile(np.arange(longest), (len(items), 1))
    mask = np.zeros((len(items), longest, 1), np.float32)
    for place, (own, own_heads) in enumerate(items):
        features[place, : len(own)] = own
        heads[place, : len(own)] = own_heads
        mask[place, : len(own)] = 1
    return torch.from_numpy(features), torch.from_numpy(heads), torch.from_numpy(mask)


class Encoder(nn.Module):
    """A pretrained encoder with the same heads. Input: (ids, mask, first piece of a token, tags, labels)."""

    def __init__(self, source: str, names: Names) -> None:
        super().__init__()
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(source)
        width = self.bert.config.hidden_size
        self.tag = nn.Embedding(len(TAGS) + 1, width)
        self.label = nn.Embedding(len(LABELS) + 1, width)
        for table in (self.tag, self.label):
            nn.init.normal_(table.weight, std=0.02)
        self.heads = Heads(width, names, arc=128, relation=256, drop=0.2)

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        ids, mask, first, tags, labels = inputs
        states = self.bert(ids, attention_mask=mask).last_hidden_state
        states = states.gather(1, first[..., None].expand(-1, -1, states.shape[-1]))
        return states + self.tag(tags) + self.label(labels)  # type: ignore[no-any-return]


def encoder_inputs(
    rows: Sequence[Aligned], tokenizer: Any, vocabulary: Vocabulary
) -> list[tuple[list[int], list[int], list[int], list[int]]]:
    pieces: dict[str, list[int]] = {}
    result = []
    for row in rows:
        ids, first = [tokenizer.cls_token_id], []
        for word in row.words:
            lower = word.lower()
            if lower not in pieces:
                pieces[lower] = tokenizer.encode(lower, add_special_tokens=False)[:6] or [
                    tokenizer.unk_token_id
                ]
            first.append(len(ids))
            ids += pieces[lower]
        tags = [vocabulary.tag(tag) for tag in row.tags]
        labels = [vocabulary.label(label) for label in row.labels]
        result.append(([*ids, tokenizer.sep_token_id], first, tags, labels))
    return result


def collate_encoder(items: Sequence[tuple[list[int], ...]]) -> tuple[torch.Tensor, ...]:
    def padded(column: int) -> torch.Tensor:
        rows = [torch.tensor(item[column]) for item in items]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    ids = padded(0)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(item[0]), dtype=torch.long) for item in items], True)
    return ids, mask, padded(1), padded(2), padded(3)


# --------------------------------------------------------------------------------------------- learning


def loss_of(heads: Heads, states: torch.Tensor, targets: Sequence[Targets]) -> torch.Tensor:
    """Sum of the negative log likelihoods of all choices of a batch."""
    states = heads.drop(states)
    width = states.shape[1]
    roles = torch.full((len(targets), width), -100)
    prefix = torch.full((len(targets), width), -1.0)
    for text, target in enumerate(targets):
        roles[text, : len(target.roles)] = torch.from_numpy(target.roles)
        prefix[text, : len(target.prefix)] = torch.from_numpy(target.prefix)
    total = functional.cross_entropy(
        heads.roles(states).flatten(0, 1), roles.flatten(), ignore_index=-100, reduction="sum"
    )
    single = heads.single(states)
    here = prefix >= 0
    total = total + functional.binary_cross_entropy_with_logits(
        single[..., 0][here], prefix[here], reduction="sum"
    )
    arcs = _stacked([target.arcs for target in targets])
    if len(arcs):
        scores = heads.arcs(states, single, arcs[:, :3])
        form = arcs[:, 3]
        total = total + functional.binary_cross_entropy_with_logits(
            scores, (form > -2).float(), reduction="sum"
        )
        known = form >= 0
        if known.any():
            text, token = arcs[known, 0], arcs[known, 1]
            total = total + functional.cross_entropy(
                single[text, token, 1 : 1 + heads.forms], form[known], reduction="sum"
            )
    pairs = _stacked([target.pairs for target in targets])
    if len(pairs):
        scores = heads.relations(states, pairs).log_softmax(-1)
        right = torch.zeros_like(scores, dtype=torch.bool)
        for row, outcomes in enumerate(o for target in targets for o in target.relations):
            right[row, outcomes] = True
        total = total - scores.masked_fill(~right, -torch.inf).logsumexp(-1).sum()
    return total


def _stacked(parts: Sequence[np.ndarray]) -> torch.Tensor:
    """Rows of all texts, with the number of their text in front."""
    return torch.from_numpy(
        np.concatenate([np.insert(part, 0, text, axis=1) for text, part in enumerate(parts)])
    )


@dataclass
class Soft:
    """What an encoder says of a caption: probabilities of all choices, 16 bits each."""

    roles: np.ndarray  # (n, roles)
    single: np.ndarray  # (n, 1 + forms)
    arcs: np.ndarray  # (E, 2)
    arc: np.ndarray  # (E,)
    pairs: np.ndarray  # (P, 3)
    relations: np.ndarray  # (P, C)


@torch.no_grad()
def soft_targets(
    model: Any, batches: Callable[[Sequence[int]], Any], rows: Sequence[Aligned], names: Names
) -> list[Soft]:
    """The encoder's probabilities for captions, for the objects it sees itself."""
    model.eval()
    heads: Heads = model.heads
    objects_are = object_roles(names.roles)
    result: list[Soft | None] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].words))
    for begin in range(0, len(order), 128):
        numbers = order[begin : begin + 128]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model(batches(numbers))
        states = states.float()
        roles = heads.roles(states).softmax(-1)
        single = heads.single(states)
        forms = single[..., 1 : 1 + heads.forms].softmax(-1)
        own = torch.cat([single[..., :1].sigmoid(), forms], -1).numpy().astype(np.float16)
        # Objects that are likely, not only those that win: what the small network is unsure of counts too.
        likely = roles.numpy()[..., objects_are].sum(-1) > 0.3
        found_arcs, found_pairs = [], []
        for text, number in enumerate(numbers):
            objects = np.flatnonzero(likely[text, : len(rows[number].words)])
            span = range(len(rows[number].words))
            arcs = [
                (token, head)
                for head in objects
                for token in span
                if abs(token - head) <= MAX_ATTRIBUTE_DISTANCE
            ]
            place = {head: at for at, head in enumerate(objects.tolist())}
            pairs = [(a, b, place[b] - place[a]) for a, b in pairs_of(objects.tolist())]
            found_arcs.append(np.array(arcs, np.int64).reshape(-1, 2))
            found_pairs.append(np.array(pairs, np.int64).reshape(-1, 3))
        arcs_all, pairs_all = _stacked(found_arcs), _stacked(found_pairs)
        arc = heads.arcs(states, single, arcs_all).sigmoid().numpy().astype(np.float16)
        relation = heads.relations(states, pairs_all).softmax(-1).numpy().astype(np.float16)
        arc_at, pair_at = 0, 0
        for text, number in enumerate(numbers):
            size = len(rows[number].words)
            arcs, pairs = found_arcs[text], found_pairs[text]
            result[number] = Soft(
                roles[text, :size].numpy().astype(np.float16),
                own[text, :size],
                arcs,
                arc[arc_at : arc_at + len(arcs)],
                pairs,
                relation[pair_at : pair_at + len(pairs)],
            )
            arc_at, pair_at = arc_at + len(arcs), pair_at + len(pairs)
    return [item for item in result if item is not None]


def soft_loss(heads: Heads, states: torch.Tensor, targets: Sequence[Soft]) -> torch.Tensor:
    """Sum of the cross-entropies between the encoder's probabilities and the network's."""
    states = heads.drop(states)
    width = states.shape[1]
    shape = (len(targets), width)
    roles = np.zeros((*shape, targets[0].roles.shape[1]), np.float32)
    own = np.zeros((*shape, targets[0].single.shape[1]), np.float32)
    here = np.zeros(shape, bool)
    for text, target in enumerate(targets):
        size = len(target.roles)
        roles[text, :size], own[text, :size], here[text, :size] = target.roles, target.single, True
    total = -(torch.from_numpy(roles) * heads.roles(states).log_softmax(-1)).sum()
    single = heads.single(states)
    mask, wanted = torch.from_numpy(here), torch.from_numpy(own)
    total = total + functional.binary_cross_entropy_with_logits(
        single[..., 0][mask], wanted[..., 0][mask], reduction="sum"
    )
    arcs = _stacked([target.arcs for target in targets])
    if len(arcs):
        arc = torch.from_numpy(np.concatenate([target.arc for target in targets]).astype(np.float32))
        total = total + functional.binary_cross_entropy_with_logits(
            heads.arcs(states, single, arcs), arc, reduction="sum"
        )
        sure = arc > 0.5
        text, token = arcs[sure, 0], arcs[sure, 1]
        forms = single[text, token, 1 : 1 + heads.forms].log_softmax(-1)
        total = total - (wanted[text, token, 1:] * forms).sum()
    pairs = _stacked([target.pairs for target in targets])
    if len(pairs):
        relation = torch.from_numpy(np.concatenate([t.relations for t in targets]).astype(np.float32))
        total = total - (relation * heads.relations(states, pairs).log_softmax(-1)).sum()
    return total


def batches_of(lengths: Sequence[int], size: int, chance: random.Random) -> list[list[int]]:
    """Batches of texts of like length, in random order."""
    order = list(range(len(lengths)))
    chance.shuffle(order)
    found = []
    for begin in range(0, len(order), 50 * size):
        part = sorted(order[begin : begin + 50 * size], key=lengths.__getitem__)
        found += [part[at : at + size] for at in range(0, len(part), size)]
    chance.shuffle(found)
    return found


def fit(
    model: Any,
    lengths: Sequence[int],
    loss: Callable[[list[int]], torch.Tensor],
    groups: list[dict[str, Any]],
    epochs: int,
    size: int,
    chance: random.Random,
    report: Callable[[], str],
) -> None:
    """Train with AdamW, rising and then falling rate; `loss` gives a batch's sum.

    The model ends with the running mean of its weights.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    gc.collect()
    gc.freeze()  # the collector need not scan a million arrays of targets again and again
    rates = [group["lr"] for group in optimizer.param_groups]
    # What is kept is the running mean of the weights (Polyak & Juditsky 1992), which is steadier.
    mean = {name: value.detach().clone() for name, value in model.named_parameters()}
    total, step, started = epochs * math.ceil(len(lengths) / size), 0, time.perf_counter()
    for epoch in range(epochs):
        model.train()
        summed = 0.0
        for batch in batches_of(lengths, size, chance):
            share = min(1.0, (step + 1) / (0.05 * total)) * max(0.02, 1 - step / total)
            step += 1
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            value = loss(batch) / len(batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            keep = min(0.999, step / (step + 10))
            with torch.no_grad():
                for name, weights in model.named_parameters():
                    mean[name].lerp_(weights, 1 - keep)
            summed += value.item() * len(batch)
        latest = {name: value.detach().clone() for name, value in model.named_parameters()}
        model.load_state_dict(mean, strict=False)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {summed / len(lengths):.3f}, {report()},"
            f" {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        if epoch + 1 < epochs:
            model.load_state_dict(latest, strict=False)


# -------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def choices_of(heads: Heads, states: torch.Tensor, sizes: Sequence[int], names: Names) -> Choices:
    """The choices of a padded batch, as the NumPy network would give them."""
    objects_are = object_roles(names.roles)
    mask = torch.arange(states.shape[1])[None] < torch.tensor(sizes)[:, None]
    offsets = np.cumsum([0, *sizes])
    role = heads.roles(states)[mask].argmax(-1).numpy()
    single = heads.single(states)
    arcs, pairs = [], []
    for text, size in enumerate(sizes):
        objects = np.flatnonzero(objects_are[role[offsets[text] : offsets[text] + size]]).tolist()
        arcs += [(text, token, head) for head in objects for token in range(size)]
        arcs = [arc for arc in arcs if abs(arc[1] - arc[2]) <= MAX_ATTRIBUTE_DISTANCE]
        place = {head: at for at, head in enumerate(objects)}
        pairs += [(text, a, b, place[b] - place[a]) for a, b in pairs_of(objects)]
    arc = torch.tensor(arcs, dtype=torch.long).reshape(-1, 3)
    pair = torch.tensor(pairs, dtype=torch.long).reshape(-1, 4)
    kept = arc[heads.arcs(states, single, arc) > 0].numpy() if len(arc) else np.zeros((0, 3), np.int64)
    relations = heads.relations(states, pair).softmax(-1).numpy()
    begin = offsets[pair[:, 0].numpy()]
    return Choices(
        role,
        (single[..., 0][mask] > 0).numpy(),
        single[..., 1 : 1 + heads.forms][mask].argmax(-1).numpy(),
        kept[:, 1:] + offsets[kept[:, 0]][:, None],
        np.stack([pair[:, 1].numpy() + begin, pair[:, 2].numpy() + begin], axis=1),
        relations,
    )


@dataclass
class Judge:
    """Scores a model on captions set aside, in FACTUAL's wording."""

    rows: Sequence[Aligned]
    names: Names
    vocabulary: Vocabulary
    wording: FactualWording

    def __call__(self, model: Any, batches: Callable[[Sequence[int]], Any]) -> str:
        model.eval()

        def choices(begin: int, rows: Sequence[Aligned], _: ParsedBatch) -> Choices:
            with torch.no_grad():
                states = model(batches(range(begin, begin + len(rows)))).float()
            return choices_of(model.heads, states, [len(row.words) for row in rows], self.names)

        return score_of(Outcomes(self.names, self.vocabulary), choices, self.rows, self.wording)


def score_of(
    network: GraphNetwork | Outcomes,
    choices: Callable[[int, Sequence[Aligned], ParsedBatch], Choices],
    rows: Sequence[Aligned],
    wording: FactualWording,
) -> str:
    """Score of graphs in FACTUAL's wording; `choices` gives those of the rows from a number on."""
    found: list[Tuples] = []
    for begin in range(0, len(rows), 128):
        part = rows[begin : begin + 128]
        batch = parsed_batch(network.vocabulary, (row.parse for row in part))
        tags = [tag for row in part for tag in row.tags]
        words = [row.words for row in part]
        chosen = choices(begin, part, batch)
        graphs = decode_graphs(network, batch, chosen, words, tags.__getitem__, wording)  # type: ignore[arg-type]
        found += map(graph_tuples, graphs)
    result = score(found, [row.gold for row in rows])
    return f"F1 {100 * result.f1:.2f}, exact {100 * result.exact:.2f}"


class Outcomes:
    """What `decode_graphs` needs to know of a network: the names of its outcomes."""

    def __init__(self, names: Names, vocabulary: Vocabulary) -> None:
        self.roles, self.forms, self.outcomes = tuple(names.roles), tuple(names.forms), tuple(names.outcomes)
        self.objects = object_roles(names.roles)
        self.vocabulary = vocabulary

    def knows(self, word: str) -> bool:
        return len(word) > 2


# ------------------------------------------------------------------------------------------------- main


def word_vectors(
    rows: Sequence[Aligned], encoder: Encoder | None, tokenizer: Any, width: int
) -> tuple[list[str], np.ndarray]:
    """Known words and their vectors (1 + words, width); row 0 is of unknown ones.

    They are the fine-tuned encoder's states of the word alone, its largest principal components; without an
    encoder, the captions' words with random vectors.
    """
    counts = Counter(word.lower() for row in rows for word in row.words)
    words = [word for word, count in sorted(counts.items()) if count >= 2]
    chance = np.random.default_rng(0)
    if encoder is None:
        return words, chance.normal(0, 0.1, (1 + len(words), width)).astype(np.float32)
    more = sorted(word for word in tokenizer.get_vocab() if re.fullmatch("[a-z]{2,}", word))
    words = sorted({*words, *more})
    encoder.eval()
    states = []
    with torch.no_grad():
        for begin in range(0, len(words), 256):
            part = [tokenizer.encode(word)[:8] for word in words[begin : begin + 256]]
            ids = nn.utils.rnn.pad_sequence([torch.tensor(item) for item in part], True)
            mask = nn.utils.rnn.pad_sequence([torch.ones(len(i), dtype=torch.long) for i in part], True)
            output = encoder.bert(ids, attention_mask=mask, output_hidden_states=True)
            layers = [
                output.hidden_states[0],
                output.hidden_states[len(output.hidden_states) // 2],
                output.last_hidden_state,
            ]
            states.append(torch.cat([layer[:, 1] for layer in layers], -1).numpy())
    table = np.concatenate(states)
    weights = np.array([math.sqrt(1 + counts[word]) for word in words])[:, None]
    centred = table - np.average(table, axis=0, weights=weights[:, 0])
    centred /= centred.std(axis=0) + 1e-6
    _, _, axes = np.linalg.svd(
        (centred * weights)[chance.permutation(len(words))[:12_000]], full_matrices=False
    )
    vectors = centred @ axes[:width].T
    vectors *= 0.3 / vectors.std()
    return words, np.concatenate([np.zeros((1, width)), vectors]).astype(np.float32)


def read_options() -> argparse.Namespace:
    """The options of the command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("captions", type=Path, help="FACTUAL's train.csv")
    options.add_argument("output", type=Path, help="directory for scene_graph.npz and wording.json")
    options.add_argument("--encoder", help="directory or hub id of a BERT-type encoder to learn from as well")
    options.add_argument("--encoder-epochs", type=int, default=4)
    options.add_argument(
        "--encoder-state", type=Path, help="encoder.pt of an earlier run with the same options, to start from"
    )
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--exchanged", type=int, default=80_000, help="captions with words exchanged")
    options.add_argument("--hold-out", type=int, default=1500, help="last captions of the file, to report on")
    options.add_argument("--width", type=int, default=160)
    options.add_argument("--layers", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--seed", type=int, default=1)
    return options.parse_args()


def aligned_captions(path: Path, nlp: Any, vocabulary: Vocabulary, hold_out: int) -> list[Aligned]:
    """The captions of a FACTUAL file with their graphs; the last `hold_out` teach no other names."""
    pairs = read_factual(path)
    texts = (" ".join(caption.split()) for caption, _ in pairs)
    rows = [of_document(doc) for doc in nlp.pipe(texts, batch_size=256)]
    graphs = [graph for _, graph in pairs]
    cut = len(rows) - hold_out
    renamed = renamings(rows[:cut], graphs[:cut], vocabulary)
    return [align(row, graph, vocabulary, renamed) for row, graph in zip(rows, graphs, strict=True)]


def train_encoder(
    arguments: argparse.Namespace, train: Sequence[Aligned], targets: Sequence[Targets], judge: Judge
) -> tuple[Encoder, Any]:
    """The encoder, fine-tuned on the captions or read from `--encoder-state`, and its tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.encoder)
    encoder = Encoder(arguments.encoder, judge.names)
    inputs = encoder_inputs(train, tokenizer, judge.vocabulary)
    held_inputs = encoder_inputs(judge.rows, tokenizer, judge.vocabulary)

    def loss(batch: list[int]) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = encoder(collate_encoder([inputs[number] for number in batch]))
        return loss_of(encoder.heads, states.float(), [targets[number] for number in batch])

    def report() -> str:
        return judge(encoder, lambda numbers: collate_encoder([held_inputs[n] for n in numbers]))

    if arguments.encoder_state:
        encoder.load_state_dict(torch.load(arguments.encoder_state, weights_only=True))
    else:
        own = [p for name, p in encoder.named_parameters() if not name.startswith("bert.")]
        fit(
            encoder,
            [len(row.words) for row in train],
            loss,
            [{"params": encoder.bert.parameters(), "lr": 1.5e-4}, {"params": own, "lr": 1e-3}],
            arguments.encoder_epochs,
            32,
            random.Random(arguments.seed),
            report,
        )
        torch.save(encoder.state_dict(), arguments.output / "encoder.pt")
    print("encoder:", report(), flush=True)
    return encoder, tokenizer


def train_small(
    arguments: argparse.Namespace,
    rows: Sequence[Aligned],
    targets: Sequence[Targets],
    soft: Sequence[Soft],
    words: Sequence[str],
    vectors: np.ndarray,
    judge: Judge,
) -> SmallNetwork:
    """The small network, trained on annotated captions and on what an encoder says of all.

    Args:
        arguments: The options.
        rows: The captions, annotated ones first.
        targets: Of the annotated ones.
        soft: What the encoder says of each of `rows`; empty without an encoder.
        words: Known words.
        vectors: (1 + words, width) as of `word_vectors`.
        judge: Reports on captions set aside.
    """
    known = {word: number for number, word in enumerate(words, start=1)}
    small = SmallNetwork(judge.names, vectors, arguments.width, arguments.layers)
    inputs = small_inputs(rows, known, judge.vocabulary)
    held_inputs = small_inputs(judge.rows, known, judge.vocabulary)

    def loss(batch: list[int]) -> torch.Tensor:
        states = small(collate_small([inputs[number] for number in batch]))
        if not soft:
            return loss_of(small.heads, states, [targets[number] for number in batch])
        total = soft_loss(small.heads, states, [soft[number] for number in batch])
        annotated = [place for place, number in enumerate(batch) if number < len(targets)]
        if annotated:
            own = [targets[batch[place]] for place in annotated]
            total = 0.7 * total + 0.3 * loss_of(small.heads, states[annotated], own)
        return total

    fit(
        small,
        [len(row.words) for row in rows],
        loss,
        [{"params": small.parameters(), "lr": 2e-3}],
        arguments.epochs,
        64,
        random.Random(arguments.seed + 2),
        lambda: judge(small, lambda numbers: collate_small([held_inputs[n] for n in numbers])),
    )
    return small


def main() -> None:
    """Read the options, align, train, write."""
    arguments = read_options()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    vocabulary, nlp = Vocabulary(TAGS, LABELS), CaptionParser.pipeline()
    rows = aligned_captions(arguments.captions, nlp, vocabulary, arguments.hold_out)
    cut = len(rows) - arguments.hold_out
    train, held = rows[:cut], rows[cut:]
    wording = learn_wording(train, vocabulary)
    written = json.dumps(wording.replaced, indent=0, sort_keys=True)
    (arguments.output / "wording.json").write_text(written + "\n")
    names = learn_names(train, vocabulary, wording)
    train += framed(train, nlp, 0.12, random.Random(arguments.seed))
    print(
        f"{cut} captions, {len(train) - cut} questions and expressions made of them;"
        f" {len(names.roles)} roles, {len(names.forms)} forms, {len(names.outcomes)} outcomes,"
        f" {len(wording.replaced)} rewordings",
        flush=True,
    )
    targets = targets_of(train, names, vocabulary, wording)
    judge = Judge(held, names, vocabulary, wording)
    encoder, tokenizer, everything = None, None, train
    soft: list[Soft] = []
    if arguments.encoder:
        encoder, tokenizer = train_encoder(arguments, train, targets, judge)
        everything = train + exchanged(train, arguments.exchanged, nlp, random.Random(arguments.seed + 1))
        inputs = encoder_inputs(everything, tokenizer, vocabulary)
        soft = soft_targets(
            encoder, lambda numbers: collate_encoder([inputs[n] for n in numbers]), everything, names
        )
        print(f"{len(soft)} texts labelled", flush=True)
    words, vectors = word_vectors(train, encoder, tokenizer, 64)
    small = train_small(arguments, everything, targets, soft, words, vectors, judge)
    stored = {**vars(names), "tags": TAGS, "labels": LABELS, "words": words}
    write_network(arguments.output / "scene_graph.npz", small.arrays(), stored)
    network = read_network(arguments.output / "scene_graph.npz")
    print("written:", score_of(network, lambda _, __, batch: network(batch), held, wording), flush=True)


if __name__ == "__main__":
    main()
