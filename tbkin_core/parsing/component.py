"""`scene_graph`, a component for spaCy pipelines: `doc._.scene_graph` holds the text scene graph.

    import spacy
    nlp = spacy.load("en_core_web_sm")
    nlp.add_pipe("scene_graph")
    nlp("a man sitting on a wooden bench")._.scene_graph.relations

It needs a tagger and a parser before it. Once tbkin is installed, spaCy finds it by its entry point.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import srsly
from spacy.attrs import DEP, HEAD, IS_SPACE, LOWER, ORTH, TAG
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import minibatch
from spacy.vocab import Vocab

from tbkin_core.errors import ConfigError
from tbkin_core.parsing.decoding import decode_graphs
from tbkin_core.parsing.mending import mend
from tbkin_core.parsing.network import Array, ParsedBatch, new_shipped_network
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation
from tbkin_core.parsing.wording import WORDINGS, shipped_factual_wording

BATCH = 256
_COLUMNS = [LOWER, TAG, DEP, HEAD, ORTH, IS_SPACE]

if not Doc.has_extension("scene_graph"):
    Doc.set_extension("scene_graph", default=None)


@Language.factory(
    "scene_graph",
    assigns=["doc._.scene_graph"],
    requires=["token.tag", "token.dep", "token.head"],
    default_config={"wording": "caption"},
)
def make_scene_graph(nlp: Language, name: str, wording: str) -> SceneGraphComponent:
    """The component for a pipeline; `wording` as in `SceneGraphComponent`."""
    return SceneGraphComponent(nlp.vocab, wording)


class SceneGraphComponent:
    """Reads the scene graphs of parsed documents.

    Args:
        vocab: The pipeline's.
        wording: "caption" or "factual", see `tbkin_core.parsing.decoding.decode_graphs`.

    Raises:
        ConfigError: Unknown wording.
    """

    def __init__(self, vocab: Vocab, wording: str = "caption") -> None:
        if wording not in WORDINGS:
            raise ConfigError(f"wording must be one of {', '.join(WORDINGS)}, got {wording!r}")
        self.wording = wording
        self._factual = shipped_factual_wording() if wording == "factual" else None
        self._strings = vocab.strings
        self._network = new_shipped_network()

    def __call__(self, doc: Doc) -> Doc:
        doc._.scene_graph = self.graphs([doc])[0]
        return doc

    def pipe(self, stream: Iterable[Doc], batch_size: int = BATCH) -> Iterator[Doc]:
        """Like spaCy's own components: many documents at a time."""
        for docs in minibatch(stream, batch_size):
            for doc, graph in zip(docs, self.graphs(docs), strict=True):
                doc._.scene_graph = graph
            yield from docs

    def graphs(self, docs: list[Doc]) -> list[TextGraph]:
        """The graph of each document; it depends on that document alone.

        White space that spaCy keeps as tokens ("a  dog") is left out of the graph's tokens.

        Raises:
            ConfigError: The first document has no tags or no tree.
        """
        if not docs:
            return []
        if len(docs[0]) and not (docs[0].has_annotation("TAG") and docs[0].has_annotation("DEP")):
            raise ConfigError(
                "scene_graph: the documents have no tags or no dependency tree",
                hint="add it after a tagger and a parser",
            )
        parts = [_without_spaces(doc.to_array(_COLUMNS).reshape(-1, len(_COLUMNS))) for doc in docs]
        rows = np.concatenate(parts)
        offsets = np.cumsum([0, *map(len, parts)])
        batch = mend(self._network.vocabulary, self._batch(rows, offsets))
        tags, words = rows[:, 1].tolist(), rows[:, 4].tolist()
        text = {number: self._strings[number] for number in {*tags, *words}}
        tokens = [text[number] for number in words]
        texts = [tokens[begin:end] for begin, end in itertools.pairwise(offsets.tolist())]
        choices = self._network(batch)
        graphs = decode_graphs(
            self._network, batch, choices, texts, lambda token: text[tags[token]], self._factual
        )
        return list(graphs)

    def _batch(self, rows: Array, offsets: Array) -> ParsedBatch:
        """Documents end to end as the network numbers them; `rows` (T, 6) is how spaCy does."""
        vocabulary = self._network.vocabulary

        def numbers(column: int, number: Callable[[list[str]], list[int]]) -> Array:
            distinct, place = np.unique(rows[:, column], return_inverse=True)
            found = number([self._strings[item] for item in distinct.tolist()])
            return np.array(found, np.int64)[place.reshape(-1)]

        return ParsedBatch(
            numbers(0, vocabulary.rows),
            numbers(1, lambda tags: [vocabulary.tag(tag) for tag in tags]),
            numbers(2, lambda labels: [vocabulary.label(label) for label in labels]),
            np.arange(len(rows)) + rows[:, 3].astype(np.int64),  # spaCy counts heads from the token
            offsets,
            vocabulary.generation,
        )


def _without_spaces(rows: Array) -> Array:
    """A document's tokens without those of white space; what hangs from one of them becomes a root."""
    space = rows[:, 5] != 0
    if not space.any():
        return rows
    kept = np.flatnonzero(~space)
    place = np.cumsum(~space) - 1
    head = kept + rows[kept, 3].astype(np.int64)
    rows = rows[kept]
    moved = np.where(space[head], 0, place[head] - np.arange(len(kept)))
    rows[:, 3] = moved.astype(np.int64).astype(rows.dtype)
    return rows


# ---- documents on disk and between processes ----------------------------------------------------


@srsly.msgpack_encoders("tbkin_scene_graph")
def _encode(value: Any, chain: Callable[[Any], Any] | None = None) -> Any:
    if isinstance(value, TextGraph):
        return {"__tbkin_scene_graph__": astuple(value)}
    return value if chain is None else chain(value)


@srsly.msgpack_decoders("tbkin_scene_graph")
def _decode(value: Any, chain: Callable[[Any], Any] | None = None) -> Any:
    if isinstance(value, dict) and "__tbkin_scene_graph__" in value:
        tokens, objects, attributes, relations = value["__tbkin_scene_graph__"]
        return TextGraph(
            tuple(tokens),
            tuple(TextObject(head, tuple(span), name) for head, span, name in objects),
            tuple(TextAttribute(item, name, tuple(at)) for item, name, at in attributes),
            tuple(TextRelation(one, name, other, tuple(at)) for one, name, other, at in relations),
        )
    return value if chain is None else chain(value)
