"""From captions, questions and referring expressions to text scene graphs.

A spaCy pipeline tags and parses; the component `scene_graph` reads the graph off its parse. Any of spaCy's
own English pipelines may take the place of the shipped one; see the README in `resources/parser` for what
both were trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tbkin_core.errors import ConfigError, MissingDependencyError
from tbkin_core.names.lexicon import parser_file
from tbkin_core.parsing.text_graph import TextGraph
from tbkin_core.parsing.wording import WORDINGS

MAX_TOKENS = 512
MAX_CHARACTERS = 16_384
PIPE_TEXTS = 256  # texts that a component sees together
NEW_STRINGS = 200_000  # words and their affixes; about 100 MB
# Raised whenever this package or the lexicon gives other graphs for the same parses.
RULES = 4
# Marks that turn the direction of writing: they would hide in names and scramble what a terminal shows.
_DIRECTION_MARKS = dict.fromkeys([0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_WITHOUT = re.compile(r"\bw/o(?:ut)?\b", re.IGNORECASE)
_LONG_RUN = re.compile(r"(\S{64})(?=\S)")


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
        self._pipeline, self._wording = pipeline, wording
        self._load()
        self.name: str = pipeline if pipeline == "builtin" else Path(pipeline).name
        self.version: str = f"{self._nlp.meta.get('version', '0')}+{_digest(wording)}"

    def _load(self) -> None:
        """Load the pipeline, with `scene_graph` as its last component."""
        self._nlp = self.pipeline(self._pipeline)
        for name in list(self._nlp.component_names):
            if self._nlp.get_pipe_meta(name).factory == "scene_graph":  # its wording may be another one
                self._nlp.remove_pipe(name)
        self._nlp.add_pipe("scene_graph", last=True, config={"wording": self._wording})
        self._most_strings = len(self._nlp.vocab.strings) + NEW_STRINGS

    @staticmethod
    def pipeline(name: str = "builtin") -> Any:
        """The spaCy pipeline of that name, without the component `scene_graph`."""
        import spacy  # takes a second: only who parses waits for it

        unneeded = ["ner", "attribute_ruler", "lemmatizer", "senter"]
        if name == "builtin":
            directory = parser_file("")
            try:
                return spacy.load(directory, exclude=unneeded)
            except OSError as error:
                raise MissingDependencyError(
                    f"the built-in caption parser cannot be loaded from {directory}: {error}",
                    hint="re-install tbkin, or train it again with examples/shipped_models/train_parser.py",
                ) from error
        try:
            nlp = spacy.load(name, exclude=unneeded)
        except (OSError, ImportError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "use `--parser builtin`, or install the pipeline: python -m spacy download "
            raise MissingDependencyError(
                f"caption parser {name!r} cannot be loaded: {reason}", hint=hint + Path(name).name
            ) from error
        if not {"tagger", "parser"} <= set(nlp.pipe_names) or nlp.lang != "en":
            raise MissingDependencyError(
                f"caption parser {name!r} must be an English pipeline with a tagger and a parser, "
                f"got language {nlp.lang!r}, components {nlp.pipe_names}",
                hint="use `--parser builtin`, or a spaCy English pipeline such as en_core_web_sm",
            )
        return nlp

    def parse(self, texts: Iterable[str], batch_size: int = 1024) -> Iterator[TextGraph]:
        """One graph per text, in order; a text without words gives an empty graph.

        Only the first `MAX_TOKENS` tokens (and `MAX_CHARACTERS` characters) of a text are read. Runs of white
        space count as one space, runs of more than 64 other characters are cut. A text that occurs several
        times in a batch is parsed once.
        """
        waiting = iter(texts)
        while batch := list(itertools.islice(waiting, max(1, batch_size))):
            if len(self._nlp.vocab.strings) > self._most_strings:
                self._load()  # spaCy never forgets a word; a large corpus would fill the memory
            cleaned = [_clean(text) for text in batch]
            graphs: dict[str, TextGraph] = {"": TextGraph(())}
            distinct = [text for text in dict.fromkeys(cleaned) if text]
            whole = map(self._nlp.make_doc, distinct)
            cut = (doc[:MAX_TOKENS].as_doc() if len(doc) > MAX_TOKENS else doc for doc in whole)
            docs = self._nlp.pipe(cut, batch_size=min(batch_size, PIPE_TEXTS))
            graphs.update(zip(distinct, (doc._.scene_graph for doc in docs), strict=True))
            for text in cleaned:
                yield graphs[text]


def _digest(wording: str) -> str:
    """Digest of whatever decides which graphs come from a parse."""
    digest = hashlib.blake2b(f"{RULES} {wording}".encode(), digest_size=4)
    for name in ("scene_graph.npz", "wording.json", "lemmas.json", "adjectives.txt"):
        digest.update(parser_file(name).read_bytes())
    return digest.hexdigest()


def _clean(text: str) -> str:
    # Lone surrogates cannot enter spaCy's string store.
    text = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    text = _WITHOUT.sub("without", text.translate(_DIRECTION_MARKS))
    # spaCy's tokeniser takes time quadratic in the length of a run without spaces (a line of emoji).
    return _LONG_RUN.sub(r"\1 ", " ".join(text.split()))
