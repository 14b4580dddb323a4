"""Captions, questions and referring expressions to text scene graphs: a dependency parse, then rules.

Any of spaCy's own English pipelines may take the place of the shipped one. What a grammar cannot know (that
"tennis racket" is one thing and "metal racket" a racket of metal, that the man and not the snow is "on
skis") comes from human-made scene graphs: counts in `resources/parser/lexicon.json` and small networks in
`decisions.npz` beside it; see the README there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tbkin_core.errors import ConfigError, MissingDependencyError
from tbkin_core.graphs.decisions import Choice, Decisions, shipped_decisions
from tbkin_core.graphs.lexicon import Lexicon, lemmatize_noun, lemmatize_verb, shipped_lexicon
from tbkin_core.graphs.rules import GraphReader, Sentence
from tbkin_core.graphs.text_graph import TextGraph

__all__ = [
    "MAX_TOKENS",
    "WORDINGS",
    "CaptionParser",
    "graph_from_parse",
    "graphs_from_parses",
    "lemmatize_noun",
    "lemmatize_verb",
]

MAX_TOKENS = 512
MAX_CHARACTERS = 16_384
_LONG_RUN = re.compile(r"(\S{64})(?=\S)")
WORDINGS = ("caption", "factual")

Parse = tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[int]]


def graph_from_parse(
    tokens: Sequence[str],
    tags: Sequence[str],
    labels: Sequence[str],
    heads: Sequence[int],
    lexicon: Lexicon | None = None,
    *,
    rewrite: bool = True,
) -> TextGraph:
    """Scene graph of one parsed text by the rules and the lexicon alone.

    Args:
        tokens: Words.
        tags: Penn Treebank tags.
        labels: ClearNLP-like dependency labels (those of spaCy's English pipelines).
        heads: Index of each token's head; a root is its own head.
        lexicon: Decisions on compounds and predicates; the shipped one when None.
        rewrite: Whether predicates and attributes are mapped through the lexicon.
    """
    if not tokens:
        return TextGraph(())
    lexicon = shipped_lexicon() if lexicon is None else lexicon
    reader = GraphReader(Sentence(tokens, tags, labels, heads), lexicon, rewrite)
    reader.prepare()
    reader.read()
    return reader.graph(tokens)


def graphs_from_parses(
    parses: Sequence[Parse],
    lexicon: Lexicon | None = None,
    decisions: Decisions | None = None,
    *,
    wording: str = "caption",
) -> list[TextGraph]:
    """Scene graphs of parsed texts: rules, lexicon and the learned choices.

    Args:
        parses: (tokens, tags, labels, heads) of each text, as for `graph_from_parse`.
        lexicon: The shipped one when None.
        decisions: Learned choices by kind; the shipped ones when None, an empty mapping for none.
        wording: "caption" keeps the caption's own words; "factual" words relations and attributes as the
            annotators of FACTUAL do ("below" becomes "under", "a wall with a clock" a "clock on wall").
    """
    lexicon = shipped_lexicon() if lexicon is None else lexicon
    decisions = shipped_decisions() if decisions is None else decisions
    natural = wording == "caption"
    readers = [GraphReader(Sentence(*parse), lexicon, natural=natural) for parse in parses]
    for reader in readers:
        reader.prepare()
    if "modifier" in decisions:
        modifiers = [(reader, pair) for reader in readers for pair in reader.modifier_choices()]
        best = _best(decisions["modifier"], [reader.modifier_features(*pair) for reader, pair in modifiers])
        for (reader, pair), outcome in zip(modifiers, best, strict=True):
            reader.modifier_kind[pair] = "attribute" if natural and outcome == "drop" else outcome
    for reader in readers:
        reader.read()
    # Features first, all of them: a choice changes what the features of the others would see.
    relations = [reader.relation_choices() for reader in readers]
    relation_features = [
        features
        for reader, pairs in zip(readers, relations, strict=True)
        for features in reader.relation_features(pairs)
    ]
    attributes = [reader.attribute_choices() for reader in readers]
    attribute_features = [
        reader.attribute_features(*choice)
        for reader, choices in zip(readers, attributes, strict=True)
        for choice in choices
    ]
    objects = [reader.object_choices() if not natural else [] for reader in readers]
    object_features = [
        reader.object_features(noun) for reader, nouns in zip(readers, objects, strict=True) for noun in nouns
    ]
    if "relation" in decisions and relation_features:
        choice = decisions["relation"]
        rows = iter(choice.probabilities(relation_features).tolist())
        for reader, pairs in zip(readers, relations, strict=True):
            reader.choose_relations(pairs, choice.outcomes, list(itertools.islice(rows, len(pairs))))
    if "attribute" in decisions:
        outcomes = iter(_best(decisions["attribute"], attribute_features))
        for reader, choices in zip(readers, attributes, strict=True):
            reader.choose_attributes(choices, list(itertools.islice(outcomes, len(choices))))
    if "object" in decisions:
        outcomes = iter(_best(decisions["object"], object_features))
        for reader, nouns in zip(readers, objects, strict=True):
            reader.choose_objects(nouns, list(itertools.islice(outcomes, len(nouns))))
    return [reader.graph(parse[0]) for reader, parse in zip(readers, parses, strict=True)]


def _best(choice: Choice, features: Sequence[Sequence[str]]) -> list[str]:
    """The likeliest outcome of every choice."""
    if not features:
        return []
    return [choice.outcomes[index] for index in choice.probabilities(features).argmax(axis=1)]


class CaptionParser:
    """Texts to scene graphs.

    Args:
        pipeline: "builtin" for the pipeline that ships with tbkin, else the name or path of a spaCy English
            pipeline with a tagger and a parser.
        wording: "caption" keeps to the caption's own words; "factual" words relations and attributes as
            FACTUAL's annotators do, for comparison with what was trained or scored on it.

    Raises:
        ConfigError: Unknown wording.
        MissingDependencyError: The pipeline cannot be loaded, or lacks a tagger or parser.
    """

    def __init__(self, pipeline: str = "builtin", wording: str = "caption") -> None:
        if wording not in WORDINGS:
            raise ConfigError(f"wording must be one of {', '.join(WORDINGS)}, got {wording!r}")
        self._wording = wording
        self._nlp: Any = _load(pipeline)
        self.name: str = pipeline if pipeline == "builtin" else Path(pipeline).name
        self.version: str = str(self._nlp.meta.get("version", "0"))
        self._lexicon = shipped_lexicon()

    def parse(self, texts: Iterable[str], batch_size: int = 256) -> Iterator[TextGraph]:
        """One graph a text, in order; a text without words gives an empty graph.

        Only the first `MAX_TOKENS` tokens (and `MAX_CHARACTERS` characters) of a text are read. Runs of white
        space count as one space, runs of more than 64 other characters are cut. A text that occurs several
        times in a batch is parsed once.
        """
        for batch in _batched(texts, max(1, batch_size)):
            cleaned = [_clean(text) for text in batch]
            graphs: dict[str, TextGraph] = {"": TextGraph(())}
            distinct = [text for text in dict.fromkeys(cleaned) if text]
            docs = self._nlp.pipe(self._tokenize(distinct), batch_size=batch_size)
            parses = [_parse(doc) for doc in docs]
            graphs.update(
                zip(distinct, graphs_from_parses(parses, self._lexicon, wording=self._wording), strict=True)
            )
            for text in cleaned:
                yield graphs[text]

    def _tokenize(self, texts: Iterable[str]) -> Iterator[Any]:
        for text in texts:
            doc = self._nlp.make_doc(text)
            yield doc[:MAX_TOKENS].as_doc() if len(doc) > MAX_TOKENS else doc


def _parse(doc: Any) -> Parse:
    tokens, tags, labels, heads = [], [], [], []
    for token in doc:
        tokens.append(token.text)
        tags.append(token.tag_)
        labels.append(token.dep_)
        heads.append(token.head.i)
    return tokens, tags, labels, heads


def _batched(texts: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    iterator = iter(texts)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _clean(text: str) -> str:
    # Lone surrogates cannot enter spaCy's string store.
    text = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    # spaCy's tokeniser takes time quadratic in the length of a run without spaces (a line of emoji).
    return _LONG_RUN.sub(r"\1 ", " ".join(text.split()))


def _load(pipeline: str) -> Any:
    import spacy

    unneeded = ["ner", "attribute_ruler", "lemmatizer", "senter"]
    if pipeline == "builtin":
        directory = resources.files("tbkin_core").joinpath("resources", "parser")
        try:
            return spacy.load(Path(str(directory)), exclude=unneeded)
        except OSError as error:
            raise MissingDependencyError(
                f"the built-in caption parser cannot be loaded from {directory}: {error}",
                hint="re-install tbkin, or train it again with examples/train_parser.py",
            ) from error
    hint = "use `--parser builtin`, or install the pipeline: python -m spacy download " + Path(pipeline).name
    try:
        nlp = spacy.load(pipeline, exclude=unneeded)
    except (OSError, ImportError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependencyError(
            f"caption parser {pipeline!r} cannot be loaded: {reason}", hint=hint
        ) from error
    missing = {"tagger", "parser"} - set(nlp.pipe_names)
    if missing or nlp.lang != "en":
        raise MissingDependencyError(
            f"caption parser {pipeline!r} must be an English pipeline with a tagger and a parser, "
            f"got language {nlp.lang!r}, components {nlp.pipe_names}",
            hint="use `--parser builtin`, or a spaCy English pipeline such as en_core_web_sm",
        )
    return nlp
