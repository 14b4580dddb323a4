"""A trace: all that figures and the page need of one answer, so that they are drawn again without the model.

Letters: N layers, H heads, L length (T word pieces, then K regions), W words.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.support.files import atomic_path
from tbkin_core.tasks.table import Presentation, presentation_of

_VERSION = 1
_ARRAYS = ("image", "boxes", "word_ids")
_PASSES = ("dense", "thresholded")
_PASS_ARRAYS = ("scores", "kept", "attention")


@dataclass(frozen=True)
class Pass:
    """One forward pass: what it answered, each answer or region with its probability, and its attention."""

    scores: NDArray[np.float16]  # (N, H, L, L) qkᵀ/√d before the softmax
    kept: NDArray[
        np.bool_
    ]  # (N, H, L, L) keys that the selection kept; the weights are the softmax over them
    attention: NDArray[np.float16] | None = None  # (N, H, L, L) weights, of sparsemax and 1.5-entmax alone
    answers: list[tuple[str, float]] = field(default_factory=list)  # best first
    chosen: int | None = None  # region that a REC model chose, by number
    runner_up: int | None = None  # the region with the second highest score
    box: tuple[float, float, float, float] | None = None  # xyxy pixels of the original, after box regression

    def weights(self) -> NDArray[np.float32]:
        """(N, H, L, L) attention; rows sum to 1, dropped keys are exactly 0."""
        if self.attention is not None:
            return self.attention.astype(np.float32)
        scores = np.where(self.kept, self.scores.astype(np.float32), -np.inf)
        exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return exponents / exponents.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Trace:
    """One image, one text, and a model's dense and thresholded pass over them."""

    task: str  # name of the task; `presentation` says what it means for a figure
    text: str  # question or expression
    image: NDArray[np.uint8]  # (H, W, 3) uint8, perhaps scaled down for display
    image_size: tuple[int, int]  # width and height of the original in pixels
    boxes: NDArray[np.float32]  # (K, 4) float32 xyxy pixels of the original
    region_labels: list[str]  # K names; "" where unknown
    words: list[str]  # W words of the text
    pieces: list[str]  # T word pieces, special tokens included
    word_ids: NDArray[np.int64]  # (T,) word of each piece, -1 for special tokens
    selection: str  # rule of the thresholded pass
    threshold: float
    dense: Pass
    thresholded: Pass
    scope: str = "all"  # of the rule
    layers: list[int] | None = None  # those that select; None means all
    checkpoint: str = ""  # name of the model
    target_box: tuple[float, float, float, float] | None = None  # xyxy, as `boxes`; None where unknown
    names_annotated: bool = False  # whether `region_labels` are names that people gave, in part or all
    graph: dict[str, Any] | None = None  # the unified scene graph as `UnifiedGraph.to_dict` writes it

    @property
    def presentation(self) -> Presentation:
        """How the task's answers are shown; from its name, so that every trace there is has one."""
        return presentation_of(self.task)

    def kept_fraction(self) -> float:
        """Share of the attention entries of the dense pass that the threshold kept, in [0, 1]."""
        return float(self.thresholded.kept.sum() / max(self.dense.kept.sum(), 1))


def save_trace(path: Path, trace: Trace) -> None:
    """Write a trace as one .npz file, whole or not at all."""
    values = dict(vars(trace))
    arrays: dict[str, Any] = {name: values.pop(name) for name in _ARRAYS}
    for name in _PASSES:
        content = dict(vars(values.pop(name)))
        parts = {f"{name}.{part}": content.pop(part) for part in _PASS_ARRAYS}
        arrays |= {part: array for part, array in parts.items() if array is not None}
        values[name] = content
    arrays["values"] = np.array(json.dumps({"version": _VERSION, **values}, ensure_ascii=False))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        DataError: The file cannot be read or is no trace.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        values = json.loads(str(arrays.pop("values")))
        if values.pop("version") != _VERSION:
            raise DataError(f"{path}: a trace of another version of tbkin", hint="make it anew")
        passes: dict[str, Any] = {
            name: Pass(
                **{part: arrays.pop(f"{name}.{part}") for part in _PASS_ARRAYS if f"{name}.{part}" in arrays},
                **_tupled(values.pop(name)),
            )
            for name in _PASSES
        }
        return Trace(**arrays, **passes, **_tupled(values))
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read as a trace ({error})", hint="`tbkin visualize` writes traces"
        ) from error


def _tupled(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    for name in ("box", "target_box", "image_size"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    if "answers" in values:
        values["answers"] = [(answer, probability) for answer, probability in values["answers"]]
    return values
