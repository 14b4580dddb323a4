"""The network that reads a scene graph off a dependency parse, run with NumPy alone.

Letters: N texts, T tokens of a batch end to end, D width, P pairs of tokens, C outcomes of a choice.

A token is the sum of learned rows for its word, its tag and its dependency label. A few layers let it see its
neighbours and its head in the tree (a convolution over text and tree, after Marcheggiani & Titov, EMNLP
2017). From the states, as in semantic dependency parsing (Dozat & Manning, ACL 2018), four choices are read:
what a token is to an object, which tokens are attributes of which objects, in what form, and what relates two
objects.
`examples/shipped_models/train_scene_graphs.py` trains it.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tbkin_core.errors import MissingDependencyError
from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb, parser_file

Array = np.ndarray[Any, np.dtype[Any]]

NO_OBJECT = "-"
OBJECT = "object"
PART = "part"  # of the name of the object that follows: "bed" in "bed spread"
JOINED = "joined"  # the same without a space: "cell" in "cellphone"
SAME = "same"  # an object named as the one before: "other" in "next to each other"
NO_RELATION = "none"

MAX_ATTRIBUTE_DISTANCE = 24  # tokens
MAX_OBJECTS_APART = 5
MAX_DISTANCE = 20  # further apart counts as this
REMEMBERED_WORDS = 40_000  # at 640 bytes each for D = 160

# Sums of integers up to this are exact in 32-bit floats, in whatever order a library adds them.
EXACT = 2**24
WEIGHT_LEVELS = 127

WORD_BUCKETS = 8192
AFFIX_BUCKETS = 2048


def word_buckets(word: str) -> tuple[int, int, int, int]:
    """Rows of a lower-case word in the tables of hashed words (two) and of affixes (two)."""
    code, suffix, prefix = (
        crc32(part.encode("utf-8", "replace")) for part in (word, word[-3:], "^" + word[:3])
    )
    words = code % WORD_BUCKETS, (code >> 16) * 31 % WORD_BUCKETS
    return *words, suffix % AFFIX_BUCKETS, prefix % AFFIX_BUCKETS


def object_roles(roles: Sequence[str]) -> Array:
    """(number of roles,) bool, which roles are objects."""
    return np.array([role not in (NO_OBJECT, PART, JOINED) for role in roles])


@dataclass(frozen=True)
class ParsedBatch:
    """N parsed texts as numbers, T tokens end to end."""

    words: Array  # (T,) int64 rows of a `Vocabulary`
    tags: Array  # (T,) int64 numbers of the tags, 0 for unknown ones
    labels: Array  # (T,) int64 numbers of the dependency labels, likewise
    heads: Array  # (T,) int64 position in the batch of each token's head; a root is its own
    offsets: Array  # (N+1,) int64 where each text begins
    generation: int  # `Vocabulary.generation` when the rows were given out
    # Tokens that the tagger took for nouns and that are verbs or adjectives, see `parsing.mending`.
    verbs: frozenset[int] = frozenset()
    adjectives: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Choices:
    """What the network makes of a batch; token numbers are positions in the batch."""

    role: Array  # (T,) int64 into `GraphNetwork.roles`
    prefix: Array  # (T,) bool, whether a token is part of the attribute after it ("light" in "light blue")
    form: Array  # (T,) int64 into `GraphNetwork.forms`: in which form a token is an attribute
    attributes: Array  # (A, 2) int64 pairs (token, head of an object)
    pairs: Array  # (P, 2) int64 pairs of heads of objects of one text, first < second
    relations: Array  # (P, C) float32 probabilities of `GraphNetwork.outcomes`


class Vocabulary:
    """Tags and labels as numbers, and the words met so far with their lemmas.

    Args:
        tags: Penn tags; the first has number 1, 0 stands for others.
        labels: Dependency labels, likewise.

    Attributes:
        text, noun, verb: Of each word's row: the word in lower case, its lemma as a noun and as a verb.
        generation: How often the words have been forgotten, which keeps memory flat.
    """

    def __init__(self, tags: Sequence[str], labels: Sequence[str]) -> None:
        self._tags = {tag: number for number, tag in enumerate(tags, start=1)}
        self._labels = {label: number for number, label in enumerate(labels, start=1)}
        self.generation = -1
        self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self._row: dict[str, int] = {}
        self.text: list[str] = []
        self.noun: list[str] = []
        self.verb: list[str] = []

    def tag(self, tag: str) -> int:
        """Number of a Penn tag, 0 for an unknown one."""
        return self._tags.get(tag, 0)

    def label(self, label: str) -> int:
        """Number of a dependency label, 0 for an unknown one."""
        return self._labels.get(label, 0)

    def tagged(self, tags: Iterable[str]) -> Array:
        """Of every tag number, whether it is one of `tags`."""
        table = np.zeros(len(self._tags) + 1, bool)
        table[[self._tags[tag] for tag in tags if tag in self._tags]] = True
        return table

    def rows(self, words: Sequence[str]) -> list[int]:
        """Row of each lower-case word; new words are added. Rows given out before may end here."""
        missing = [word for word in dict.fromkeys(words) if word not in self._row]
        if len(self.text) + len(missing) > REMEMBERED_WORDS and self.text:
            self._forget()
            missing = list(dict.fromkeys(words))
        for word in missing:
            self._row[word] = len(self.text)
            self.text.append(word)
            self.noun.append(lemmatize_noun(word))
            self.verb.append(lemmatize_verb(word))
        return [self._row[word] for word in words]


class GraphNetwork:
    """The network with its weights; see the module.

    Attributes:
        width: D.
        roles: Roles of a token: `NO_OBJECT`, `OBJECT`, `PART`, `JOINED`, `SAME`, or "=name" for an object
            under another name.
        forms: Forms of an attribute; "" is the token itself.
        outcomes: `NO_RELATION`, and else ">" or "<" (the second object is the subject) followed by a
            predicate, or by "@" and one of the readings of `tbkin_core.parsing.sentences`.
        objects: (number of roles,) bool, which roles are objects.
        vocabulary: Tags, labels and words as it knows them.
    """

    def __init__(self, arrays: Mapping[str, Array], names: Mapping[str, Sequence[str]]) -> None:
        self.roles = tuple(names["roles"])
        self.forms = tuple(names["forms"])
        self.outcomes = tuple(names["outcomes"])
        self.vocabulary = Vocabulary(names["tags"], names["labels"])
        self._known = {word: number for number, word in enumerate(names["words"], start=1)}
        self._arrays = arrays
        self.width = arrays["input.bias"].shape[0]
        weights = _weights(arrays, "input")
        weight = weights.levels * weights.scale  # (word + hash + affix + tag + label, D)
        sizes = [arrays[f"{name}.table"].shape[1] for name in ("word", "hash", "affix", "tag", "label")]
        cuts = np.cumsum(sizes)[:-1]
        word, hashed, affix, tag, label = np.split(weight, cuts, axis=0)
        self._word_weight = Weights.quantised(np.concatenate([word, hashed, affix]))
        self._tag_inputs = arrays["tag.table"] @ tag
        self._label_inputs = arrays["label.table"] @ label
        self.objects = object_roles(self.roles)
        self._weights = {
            name: _weights(arrays, name)
            for name in (
                "role.0", "role.1", "single", "arc.object", "relation.first", "relation.second",
                "relation.between", "relation.out",
            )
        }  # fmt: skip
        # One product for what a token gives to its neighbours, itself and those it heads.
        self._layer_weights: list[Weights] = []
        while (layer := f"layer{len(self._layer_weights)}") + ".weight" in arrays:
            self._layer_weights.append(_weights(arrays, layer))
        self._inputs = np.zeros((1024, self.width), np.float32)
        self._ready = (0, 0)  # generation of the vocabulary, how many of its words have their inputs

    def knows(self, word: str) -> bool:
        """Whether a lower-case word has a vector of its own."""
        return word in self._known

    def likeness(self, first: str, second: str) -> float:
        """Cosine of the vectors of two lower-case words, 0 where one has none."""
        if first not in self._known or second not in self._known:
            return float(first == second)
        rows = np.array([self._known[first], self._known[second]])
        one, other = _table(self._arrays, "word", rows)
        return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-9))

    def word_inputs(self, words: Sequence[str]) -> Array:
        """(len(words), D) shares of words in the input of the first layer."""
        arrays = self._arrays
        buckets = np.array([word_buckets(word) for word in words], np.int64).reshape(-1, 4)
        known = np.array([self._known.get(word, 0) for word in words], np.int64)
        parts = [
            _table(arrays, "word", known),
            _table(arrays, "hash", buckets[:, 0]) + _table(arrays, "hash", buckets[:, 1]),
            _table(arrays, "affix", buckets[:, 2]) + _table(arrays, "affix", buckets[:, 3]),
        ]
        return _product(np.concatenate(parts, axis=1), self._word_weight)

    def _inputs_of(self, rows: Array) -> Array:
        """(T, D) share of each word in the input of the first layer, computed once per word."""
        vocabulary = self.vocabulary
        count = len(vocabulary.text)
        begin = self._ready[1] if self._ready[0] == vocabulary.generation else 0
        if begin < count:
            while len(self._inputs) < count:
                self._inputs = np.concatenate([self._inputs, np.zeros_like(self._inputs)])
            self._inputs[begin:count] = self.word_inputs(vocabulary.text[begin:])
            self._ready = (vocabulary.generation, count)
        return self._inputs[rows]

    def __call__(self, batch: ParsedBatch) -> Choices:
        """The choices for a batch; a text's depend on no other text of the batch.

        Raises:
            ValueError: The vocabulary has forgotten the batch's words in the meantime.
        """
        if batch.generation != self.vocabulary.generation:
            raise ValueError("the words of this batch have been forgotten: make the batch anew")
        states, arrays, weights = self.states(batch), self._arrays, self._weights
        hidden = np.maximum(_product(states, weights["role.0"]) + arrays["role.0.bias"], 0)
        role = (_product(hidden, weights["role.1"]) + arrays["role.1.bias"]).argmax(axis=1)
        # Everything about the token by itself in one product.
        single = _product(states, weights["single"]) + arrays["single.bias"]  # (T, 1 + forms + arc)
        forms = len(self.forms)
        prefix, form = single[:, 0] > 0, single[:, 1 : 1 + forms].argmax(axis=1)
        objects = np.flatnonzero(self.objects[role])
        text = np.repeat(np.arange(len(batch.offsets) - 1), np.diff(batch.offsets))
        attributes = self._attributes(states, single[:, 1 + forms :], objects, text, batch.offsets)
        pairs, apart = _object_pairs(objects, text)
        relations = self._relations(states, pairs, apart)
        return Choices(role, prefix, form, attributes, pairs, relations)

    def states(self, batch: ParsedBatch) -> Array:
        """(T, D) what the layers make of every token in its text."""
        arrays, width = self._arrays, self.width
        count, texts = len(batch.words), len(batch.offsets) - 1
        # A row of zeros before and after every text keeps it from its neighbours.
        text = np.repeat(np.arange(texts), np.diff(batch.offsets))
        place = np.arange(count) + text + 1
        inputs = self._inputs_of(batch.words)
        inputs += self._tag_inputs[batch.tags]
        inputs += self._label_inputs[batch.labels]
        inputs += arrays["input.bias"]
        np.maximum(inputs, 0, out=inputs)
        state = _normalised(inputs, arrays["input.norm.weight"], arrays["input.norm.bias"])
        given = np.zeros((count + texts + 1, 4 * width), np.float32)
        for layer, weights in enumerate(self._layer_weights):
            given[place] = _product(state, weights)
            new = given[place - 1, :width]
            new += given[place, width : 2 * width]
            new += given[place + 1, 2 * width : 3 * width]
            new += given[place[batch.heads], 3 * width :]
            new += arrays[f"layer{layer}.bias"]
            np.maximum(new, 0, out=new)
            new += state
            state = _normalised(new, arrays[f"layer{layer}.norm.weight"], arrays[f"layer{layer}.norm.bias"])
        return state

    def _attributes(
        self, states: Array, token_side: Array, objects: Array, text: Array, offsets: Array
    ) -> Array:
        arrays = self._arrays
        object_side = _product(states[objects], self._weights["arc.object"])
        begin = np.maximum(offsets[text[objects]], objects - MAX_ATTRIBUTE_DISTANCE)
        end = np.minimum(offsets[text[objects] + 1], objects + MAX_ATTRIBUTE_DISTANCE + 1)
        counts = end - begin
        which = np.repeat(np.arange(len(objects)), counts)
        token = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + begin[which]
        distance = np.clip(token - objects[which], -10, 10) + 10
        hidden = token_side[token]
        hidden += object_side[which]
        hidden += arrays["arc.distance.table"][distance]
        np.maximum(hidden, 0, out=hidden)
        score = np.einsum("pd,d->p", hidden, arrays["arc.out.weight"]) + arrays["arc.out.bias"]
        found = np.flatnonzero(score > 0)
        return np.stack([token[found], objects[which[found]]], axis=1)

    def _relations(self, states: Array, pairs: Array, apart: Array) -> Array:
        arrays, weights = self._arrays, self._weights
        first, second = pairs[:, 0], pairs[:, 1]
        ends, place = np.unique(pairs, return_inverse=True)
        place = place.reshape(pairs.shape)
        hidden = _product(states[ends], weights["relation.first"])[place[:, 0]]
        hidden += _product(states[ends], weights["relation.second"])[place[:, 1]]
        hidden += _product(_between(states, first, second), weights["relation.between"])
        hidden += arrays["relation.distance.table"][np.minimum(second - first, MAX_DISTANCE)]
        hidden += arrays["relation.apart.table"][np.minimum(apart, MAX_OBJECTS_APART)]
        np.maximum(hidden, 0, out=hidden)
        scores = _product(hidden, weights["relation.out"]) + arrays["relation.out.bias"]
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        return scores


def _weights(arrays: Mapping[str, Array], name: str) -> Weights:
    stored, scale = arrays[f"{name}.weight"], arrays.get(f"{name}.scale")
    return Weights.quantised(stored) if scale is None else Weights(stored.astype(np.float32), scale)


def _table(arrays: Mapping[str, Array], name: str, rows: Array) -> Array:
    found = arrays[f"{name}.table"][rows].astype(np.float32)
    scale = arrays.get(f"{name}.scale")
    return found if scale is None else found * scale


@dataclass(frozen=True)
class Weights:
    """A matrix (K, M) as whole numbers of at most `WEIGHT_LEVELS`, in float32, and a level's worth (M,)."""

    levels: Array
    scale: Array

    @classmethod
    def quantised(cls, values: Array) -> Weights:
        """The nearest such matrix; a column's largest number has the highest level."""
        scale = np.maximum(np.abs(values).max(axis=0), 1e-12).astype(np.float32) / WEIGHT_LEVELS
        return cls(np.rint(values / scale).astype(np.float32), scale)


def _product(left: Array, right: Weights) -> Array:
    """left (N, K) @ right (K, M), bit for bit the same for a row whatever stands in the others.

    A float product is rounded in an order that depends on the number of rows, the row's place and the
    library. Here the rows are whole numbers too, as fine as the sums stay exact: nothing is rounded.
    """
    finest = EXACT // (left.shape[1] * WEIGHT_LEVELS)
    scale = np.maximum(np.abs(left).max(axis=1), 1e-12) / np.float32(finest)
    result: Array = np.rint(left * (1 / scale)[:, None]) @ right.levels
    result *= scale[:, None]
    result *= right.scale
    return result


def _normalised(values: Array, weight: Array, bias: Array) -> Array:
    """Layer normalisation, in place."""
    values -= values.mean(axis=1, keepdims=True)
    variance = np.einsum("td,td->t", values, values) / values.shape[1]
    values *= (1 / np.sqrt(variance + 1e-5))[:, None]
    values *= weight
    values += bias
    return values


def _object_pairs(objects: Array, text: Array) -> tuple[Array, Array]:
    """Pairs of objects of one text at most `MAX_OBJECTS_APART` objects apart, and how many they are apart."""
    pairs, aparts = [], []
    for apart in range(1, MAX_OBJECTS_APART + 1):
        first, second = objects[:-apart], objects[apart:]
        same = text[first] == text[second]
        pairs.append(np.stack([first[same], second[same]], axis=1))
        aparts.append(np.full(int(same.sum()), apart))
    both, steps = np.concatenate(pairs), np.concatenate(aparts)
    order = np.lexsort((both[:, 1], both[:, 0]))
    return both[order], steps[order]


def _between(states: Array, first: Array, second: Array) -> Array:
    """(P, D) mean of the states strictly between two tokens, 0 where they are neighbours."""
    counts = second - first - 1
    result = np.zeros((len(first), states.shape[1]), np.float32)
    some = np.flatnonzero(counts > 0)
    if len(some):
        wanted = counts[some]
        starts = np.cumsum(wanted) - wanted
        token = np.arange(int(wanted.sum())) - np.repeat(starts - first[some] - 1, wanted)
        result[some] = np.add.reduceat(states[token], starts, axis=0) / wanted[:, None].astype(np.float32)
    return result


# ---- the file -----------------------------------------------------------------------------------


def read_network(path: Path) -> GraphNetwork:
    """The network in a file of the recipes in `examples/shipped_models`.

    Raises:
        MissingDependencyError: The file is missing, cut short or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = json.loads(str(stored["names"]))
            arrays = {
                name: stored[name] if stored[name].dtype == np.int8 else stored[name].astype(np.float32)
                for name in stored.files
                if name != "names"
            }
        return GraphNetwork(arrays, names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MissingDependencyError(
            f"{path}: not a scene-graph network: {error}",
            hint="re-install tbkin, or train it again with examples/shipped_models/train_scene_graphs.py",
        ) from error


def new_shipped_network() -> GraphNetwork:
    """A new network with the shipped weights, for its caller alone."""
    return read_network(parser_file("scene_graph.npz"))
