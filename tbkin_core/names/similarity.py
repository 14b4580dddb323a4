"""Similarity of text objects' names and region labels: the weights of cross-modal edges.

Three kinds, chosen by `make_similarity`; all are symmetric, lie in [0, 1], give 1 to equal names, and mean
about the same by 0.5, so that one threshold serves them all:

- `lexical`: spellings, synonyms, kinds and head words from a table that ships with tbkin.
- `vectors`: cosine of a spaCy pipeline's word vectors.
- `encoder`: cosine of a sentence encoder's mean-pooled states (Reimers & Gurevych 2019, Sentence-BERT).

Cosines of different models are not comparable: unrelated words have a cosine of 0.1 in one and 0.9 in
another. `vectors` and `encoder` are therefore calibrated on names that are known to differ, COCO's 80
categories: their median cosine becomes 0, the one that one pair in a hundred reaches becomes 0.5, and 1
stays 1, linearly in between; what lies below 0 is 0.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError, DataError, MissingDependencyError, TbkinError
from tbkin_core.support.pretrained import load_pretrained

logger = logging.getLogger("tbkin")

SIMILARITIES = ("lexical", "vectors", "encoder")
DEFAULT_MODELS = {"vectors": "en_core_web_md", "encoder": "sentence-transformers/all-MiniLM-L6-v2"}

HEAD_WEIGHT = 0.8  # "traffic light" and "light"
BROAD_WEIGHT = 0.6  # "food" and "pizza"

PAIRS_KEPT = 1_000_000  # about 100 MB
TEXTS_KEPT = 50_000
_UNNEEDED = ("tok2vec", "transformer", "tagger", "parser", "senter", "ner", "attribute_ruler", "lemmatizer")
MAX_NAME_TOKENS = 64
ENCODER_BATCH = 16
UNRELATED_QUANTILE = 0.99

COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def make_similarity(kind: str = "lexical", model: str | None = None) -> Similarity:
    """The similarity that `--similarity` names.

    Args:
        kind: `lexical`, `vectors` or `encoder`.
        model: For `vectors` the name or directory of a spaCy pipeline with vectors, for `encoder` the
            directory or hub id of a sentence encoder; None takes `DEFAULT_MODELS`.

    Raises:
        ConfigError: Unknown kind, a model where none is used, or a pipeline without vectors.
        MissingDependencyError: The model is not on this machine and cannot be downloaded.
        DataError: The model's directory cannot be read.
    """
    if kind == "vectors":
        return VectorSimilarity(model or DEFAULT_MODELS[kind])
    if kind == "encoder":
        return EncoderSimilarity(model or DEFAULT_MODELS[kind])
    if kind != "lexical":
        what = f"similarity: expected {', '.join(SIMILARITIES)}, got {kind!r}"
        raise ConfigError(what, hint="lexical needs no download")
    if model:
        what = f"similarity: lexical takes no model, got {model!r}"
        raise ConfigError(what, hint="choose --similarity vectors or --similarity encoder for a model")
    return LexicalSimilarity()


class Similarity(ABC):
    """Similarity of names; each distinct pair is compared once.

    Attributes:
        name: Kind, model and version, for provenance: another name may mean other weights.
    """

    name: str

    def __init__(self) -> None:
        self._pairs: dict[str, dict[str, float]] = {}
        self._kept = 0

    @abstractmethod
    def _compare(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        """(len(names), len(labels)) weights in [0, 1] of tidied, distinct, non-empty names."""

    def __call__(self, name: str, label: str) -> float:
        return float(self.matrix([name], [label])[0, 0])

    def prepare(self, names: Iterable[str]) -> None:  # noqa: B027 (nothing to prepare is the common case)
        """Make ready for these names in large batches, where that is faster than one caption at a time."""

    def matrix(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        """Weights of every name with every label.

        Args:
            names: N names of text objects.
            labels: M labels of regions; "" (unknown) is similar to nothing.

        Returns:
            (N, M) float32 in [0, 1].
        """
        try:
            rows = [self._pairs[name] for name in names]
            values = [[row[label] for label in labels] for row in rows]
        except KeyError:
            self._fill(names, labels)
            rows = [self._pairs[name] for name in names]
            values = [[row[label] for label in labels] for row in rows]
        return np.array(values, np.float32).reshape(len(names), len(labels))

    def _fill(self, names: Sequence[str], labels: Sequence[str]) -> None:
        """Compare the pairs that have not been compared yet."""
        distinct = list(dict.fromkeys(labels))
        if self._kept > PAIRS_KEPT:
            # Captions of any length stay in bounded memory; what is frequent comes back at once.
            self._pairs.clear()
            self._kept = 0
        known = {name: self._pairs.setdefault(name, {}) for name in names}
        missing = {name: [label for label in distinct if label not in row] for name, row in known.items()}
        new_names = [name for name, found in missing.items() if found and _tidy(name)]
        new_labels = [label for label in distinct if any(label in missing[name] for name in new_names)]
        known_labels = [label for label in new_labels if _tidy(label)]
        # The tidied forms are compared, so that "Dog " costs no more than "dog".
        columns = {label: _tidy(label) for label in known_labels}
        tidied_names = list(dict.fromkeys(_tidy(name) for name in new_names))
        tidied_labels = list(dict.fromkeys(columns.values()))
        if tidied_names and tidied_labels:
            compared = np.clip(self._compare(tidied_names, tidied_labels), 0, 1)
            row_of = {name: row for row, name in enumerate(tidied_names)}
            column_of = {label: column for column, label in enumerate(tidied_labels)}
        for name, found in missing.items():
            row, tidied = known[name], _tidy(name)
            for label in found:
                column = columns.get(label)
                if not tidied or column is None:
                    row[label] = 0.0
                elif tidied == column:
                    row[label] = 1.0
                else:
                    # Most are 0: all share one constant instead of an object each.
                    row[label] = float(compared[row_of[tidied], column_of[column]]) or 0.0
            self._kept += len(found)


def _tidy(name: str) -> str:
    """Lower case, single spaces; hyphens are spaces."""
    return " ".join(name.casefold().replace("-", " ").split())


# ---- lexical ------------------------------------------------------------------------------------


def regular_singular(name: str) -> str:
    """A rough singular of the last word; only ever compared with another rough singular."""
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if name.endswith(ending) and len(name) > len(ending) + 1:
            return name[: -len(ending)] + replacement
    if name.endswith("s") and not name.endswith(("ss", "us", "is")) and len(name) > 3:
        return name[:-1]
    return name


class SynonymTable:
    """What is a spelling, a synonym or a kind of what; read from `resources/object_names.json`.

    Names are compared by their key: singular, without spaces ("surf boards" and "surfboard" are one).
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._plurals: dict[str, str] = content["plurals"]
        self._senses: dict[str, set[str]] = {}
        self._kinds: dict[str, set[str]] = {}
        self._broad: dict[str, set[str]] = {}
        self._spaced: dict[str, str] = {}
        self._opaque = {self.key(name) for name in content["opaque"]}
        for group in content["same"]:
            for name in group:
                self._senses.setdefault(self.key(name), set()).add(self.key(group[0]))
                self._remember_spaces(name)
        for name in content["compounds"]:
            self._remember_spaces(name)
        for table, source in ((self._kinds, content["kinds"]), (self._broad, content["broad"])):
            for concept, words in source.items():
                self._remember_spaces(concept)
                for word in words:
                    self._remember_spaces(word)
                    # Of the words themselves, not of what else they mean: a coach is a person, a bus is not.
                    table.setdefault(self.key(word), set()).add(self.key(concept))

    def singular(self, name: str) -> str:
        """The tidied name with its last word in the singular."""
        if name in self._plurals:
            return self._plurals[name]
        first, _, last = name.rpartition(" ")
        last = self._plurals.get(last) or regular_singular(last)
        return f"{first} {last}" if first else last

    def key(self, name: str) -> str:
        return self.singular(_tidy(name)).replace(" ", "")

    def profile(self, name: str) -> Profile:
        """What the comparison needs of a tidied name."""
        spaced = self.singular(name)
        key = spaced.replace(" ", "")
        spaced = self._spaced.get(key, spaced)
        words = spaced.split()
        tails = [] if key in self._opaque else [" ".join(words[begin:]) for begin in range(1, len(words))]
        return Profile(self._meaning(key), tuple(self._meaning(tail.replace(" ", "")) for tail in tails))

    def _meaning(self, key: str) -> Meaning:
        senses = {key} | self._senses.get(key, set())
        kinds: set[str] = set()
        queue = list(senses)
        while queue:
            for concept in self._kinds.get(queue.pop(), ()):
                if concept not in kinds:
                    kinds.add(concept)
                    queue.append(concept)
        broad = {concept for sense in senses | kinds for concept in self._broad.get(sense, ())}
        return Meaning(frozenset(senses), frozenset(kinds), frozenset(broad))

    def _remember_spaces(self, name: str) -> None:
        spaced = self.singular(_tidy(name))
        if " " in spaced:
            self._spaced[spaced.replace(" ", "")] = spaced


class Meaning(NamedTuple):
    """`senses` of a name, the things these are `kinds` of, and the `broad` words that cover them."""

    senses: frozenset[str]
    kinds: frozenset[str]
    broad: frozenset[str]


class Profile(NamedTuple):
    """Meaning of a name as a whole and of what is left of it without its first words."""

    whole: Meaning
    tails: tuple[Meaning, ...]


def _covers(general: Meaning, special: Meaning) -> float:
    """How far `general` names what `special` is."""
    if not (general.senses.isdisjoint(special.senses) and general.senses.isdisjoint(special.kinds)):
        return 1.0
    return 0.0 if general.senses.isdisjoint(special.broad) else BROAD_WEIGHT


@functools.cache
def shipped_synonyms() -> tuple[SynonymTable, str]:
    """The table in `tbkin_core/resources` and the start of its hash."""
    data = resources.files("tbkin_core.resources").joinpath("object_names.json").read_bytes()
    return SynonymTable(json.loads(data)), hashlib.sha256(data).hexdigest()[:8]


class LexicalSimilarity(Similarity):
    """Similarity from words alone; no download.

    1 for the same name, another spelling or number of it, a synonym ("bike" and "bicycle") or a kind ("man"
    and "person"); 0.6 for a broad word ("food" and "pizza"); where the one is the head of the other ("traffic
    light" and "light"), 0.8 of that; else 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._table, version = shipped_synonyms()
        self._profile = functools.lru_cache(maxsize=TEXTS_KEPT)(self._table.profile)
        self.name = f"lexical-{version}"

    def _compare(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        columns = [self._profile(label) for label in labels]
        values = [[self._weight(self._profile(name), column) for column in columns] for name in names]
        return np.array(values, np.float32)

    def _weight(self, name: Profile, label: Profile) -> float:
        whole = max(_covers(name.whole, label.whole), _covers(label.whole, name.whole))
        # What covers signs covers a street sign; a stop sign is a sign too, but another one.
        heads = [_covers(label.whole, tail) for tail in name.tails]
        heads += [_covers(name.whole, tail) for tail in label.tails]
        return max(whole, HEAD_WEIGHT * max(heads, default=0.0))

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


# ---- vectors ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """Linear from cosine to weight in two pieces: `unrelated` to 0, `related` to 0.5, 1 to 1."""

    unrelated: float
    related: float

    def __call__(self, cosine: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(cosine, [self.unrelated, self.related, 1.0], [0.0, 0.5, 1.0])

    @classmethod
    def of(cls, cosine: NDArray[np.float64]) -> Calibration:
        """From the cosines (N, N) of N names of different things."""
        pairs = cosine[np.triu_indices(len(cosine), k=1)]
        related = min(max(float(np.quantile(pairs, UNRELATED_QUANTILE)), 0.05), 0.995)
        unrelated = max(float(np.median(pairs)), 0.0)
        return cls(min(unrelated, related - 0.005), related)


class _Cosine(Similarity):
    """Calibrated cosine of one vector per name; vectors are made once."""

    def __init__(self) -> None:
        super().__init__()
        self._vectors: dict[str, NDArray[np.float64]] = {}
        cosine = self._cosine(COCO_NAMES, COCO_NAMES)
        self.calibration = Calibration.of(cosine)
        if self.calibration.related >= 0.99:
            logger.warning(
                "%s hardly tells one name from another (one in a hundred pairs of COCO's categories has a"
                " cosine above %.3f); its cross-modal edges will be poor",
                self.name,
                self.calibration.related,
            )

    @abstractmethod
    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """(len(texts), D) vectors of tidied texts."""

    def prepare(self, names: Iterable[str]) -> None:
        tidied = {_tidy(name) for name in names} - {""}
        self._need(sorted(tidied - self._vectors.keys()))

    def _need(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        if len(self._vectors) + len(texts) > TEXTS_KEPT:
            self._vectors.clear()
        vectors = np.asarray(self._embed(texts), np.float64)  # (N, D)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A name of unknown words has no direction and is similar to nothing but itself.
        usable = np.isfinite(norm) & (norm > 0)
        vectors = np.where(usable, vectors / np.where(usable, norm, 1), 0)
        self._vectors.update(zip(texts, vectors, strict=True))

    def _cosine(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[np.float64]:
        texts = dict.fromkeys([*names, *labels])
        for _ in range(2):  # the second time what clearing threw out
            self._need([text for text in texts if text not in self._vectors])
        first = np.stack([self._vectors[name] for name in names])
        second = np.stack([self._vectors[label] for label in labels])
        return first @ second.T

    def _compare(self, names: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        # Rounded: the last bits of a product depend on how many names were compared at once, and the graphs
        # of an interrupted or divided run have to be the same.
        return np.round(self.calibration(self._cosine(names, labels)), 4).astype(np.float32)


class VectorSimilarity(_Cosine):
    """Cosine of the mean word vectors of a spaCy pipeline, calibrated (see the module).

    Args:
        pipeline: Name or directory of a spaCy pipeline with vectors, such as en_core_web_md.

    Raises:
        MissingDependencyError: The pipeline is not installed.
        ConfigError: It has no vectors.
    """

    def __init__(self, pipeline: str) -> None:
        import spacy

        try:
            # Names need the tokenizer and the vectors only.
            self._nlp = spacy.load(pipeline, exclude=list(_UNNEEDED))
        except (OSError, ImportError, ValueError) as error:
            raise MissingDependencyError(
                f"similarity vectors: spaCy pipeline {pipeline!r} cannot be loaded ({_first_line(error)})",
                hint=f"python -m spacy download {DEFAULT_MODELS['vectors']}, or give the directory of a"
                " pipeline with vectors",
            ) from error
        vectors = self._nlp.vocab.vectors
        if not self._nlp.vocab.vectors_length or not vectors.data.size:
            raise ConfigError(
                f"similarity vectors: the spaCy pipeline {pipeline!r} has no word vectors",
                hint="take one that has vectors (_md and _lg pipelines), or --similarity lexical",
            )
        digest = hashlib.sha256(np.ascontiguousarray(vectors.data).tobytes()).hexdigest()[:8]
        self.name = f"vectors-{_base_name(pipeline)}-{digest}"
        super().__init__()

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating]:
        return np.stack([np.asarray(self._nlp.make_doc(text).vector, np.float64) for text in texts])


# ---- sentence encoder ---------------------------------------------------------------------------


class EncoderSimilarity(_Cosine):
    """Cosine of a sentence encoder's mean-pooled last states, calibrated (see the module).

    Args:
        model: Directory or hub id of any encoder that transformers' AutoModel and AutoTokenizer load.

    Raises:
        MissingDependencyError: A hub id that cannot be fetched.
        DataError: A directory that holds no such model.
        ConfigError: A model that makes no states of its text alone (CLIP and the like).
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        local = Path(model).is_dir()
        try:
            self._tokenizer = load_pretrained(AutoTokenizer, model)
            encoder = load_pretrained(AutoModel, model)
        except TbkinError:
            raise
        # Damaged files make the libraries below raise anything: SafetensorError, UnpicklingError, ...
        except Exception as error:
            if local:
                raise DataError(
                    f"{model}: no sentence encoder can be loaded from here ({_first_line(error)})",
                    hint="it needs config.json, the weights and the tokenizer of a transformers model",
                ) from error
            raise MissingDependencyError(
                f"similarity encoder: {model!r} cannot be loaded ({_first_line(error)})",
                hint="give the directory of a sentence encoder, or a hub id while there is a network",
            ) from error
        if encoder.config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        self._model = encoder.float().eval()  # on the CPU: names are few
        digest = hashlib.sha256()
        for parameter_name, parameter in self._model.state_dict().items():
            summary = parameter.detach().double()
            digest.update(f"{parameter_name} {tuple(summary.shape)} {float(summary.sum()):.6g}".encode())
        self.name = f"encoder-{_base_name(model)}-{digest.hexdigest()[:8]}"
        try:
            super().__init__()
        except (TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"similarity encoder: {model!r} ({type(encoder).__name__}) gives no states of a text alone"
                f" ({_first_line(error)})",
                hint="take a text encoder such as BERT",
            ) from error

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating]:
        import torch

        encoded = self._tokenizer(list(texts), truncation=True, max_length=MAX_NAME_TOKENS)["input_ids"]
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(encoded):
            by_length.setdefault(len(ids), []).append(place)
        result = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        for length, places in sorted(by_length.items()):
            # A name without tokens keeps the zero vector: similar to nothing.
            for begin in range(0, len(places) if length else 0, ENCODER_BATCH):
                batch = places[begin : begin + ENCODER_BATCH]
                # Batches of one length and a fixed size: a vector is the same whatever else is in its batch.
                # Without padding the attention mask is all ones, and the mean over it the plain mean.
                filled = batch + batch[:1] * (ENCODER_BATCH - len(batch))
                rows = [encoded[place] for place in filled]
                input_ids = torch.tensor(rows, dtype=torch.long)  # (B, L)
                with torch.inference_mode():
                    output = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
                result[batch] = output.last_hidden_state.mean(1)[: len(batch)].numpy()  # (B, D)
        return result


def _base_name(model: str) -> str:
    """The last part of a path or hub id: provenance says what, not where on this machine."""
    return Path(model.rstrip("/\\")).name or model


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
