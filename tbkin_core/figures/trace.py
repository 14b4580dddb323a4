"""A trace: all that figures and the page need of one answer, so that they are drawn again without the model.

Letters: N layers, H heads, L length (T word pieces, then K regions), W words.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tbkin_core.errors import DataError, TbkinError
from tbkin_core.selection import RULE_TABLE, SCOPES, check_threshold
from tbkin_core.support.files import atomic_path, json_text
from tbkin_core.support.schema import (
    BOX,
    Fault,
    flag,
    list_of,
    maybe,
    number,
    one_of,
    record,
    row_of,
    text,
)
from tbkin_core.tasks.table import Presentation, presentation_of

_VERSION = 1
_ARRAYS = ("image", "boxes", "word_ids")
_PASSES = ("dense", "thresholded")
_PASS_ARRAYS = {"scores": "f2", "kept": "?", "attention": "f2"}
# What a trace may hold: a model of 12 layers and heads over 512 word pieces and 100 regions has 324 MB.
_MOST_BYTES = 330_000_000
_MOST_BYTES_OF_VALUES = 1 << 25  # what is no array, four bytes a letter
_LONGEST_TEXT = 200_000  # letters; no command line takes more
_MOST_POSITIONS = 4096
_LARGEST_SIDE = 4096  # pixels of the picture


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
        # In place: these are the largest arrays there are.
        weights = self.scores.astype(np.float32)
        weights[~self.kept] = -np.inf
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        return weights


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
    answered_by: str = ""  # which pass is the model's own answer, as it was trained; "" where unknown
    also_by: str = ""  # what it answers by beside its attention, in words; "" for nothing, or where unknown
    names_from: str = ""  # the extractor that `region_labels` come from; "" where unknown

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
    arrays["values"] = np.array(json_text({"version": _VERSION, **values}))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_trace(path: Path) -> Trace:
    """Read a trace; all that figures and the page go by is checked here.

    Raises:
        DataError: The file cannot be read, is no trace, or says what no trace can.
    """
    hint = "`tbkin visualize` writes traces"
    try:
        arrays = _read_arrays(path)
        values = json.loads(str(arrays.pop("values")))
        if isinstance(values, dict) and values.get("version") != _VERSION:
            raise DataError(f"{path}: a trace of another version of tbkin", hint="make it anew")
        _check_values(values)
        _check_arrays(arrays, values)
        passes = {
            name: Pass(
                **{part: arrays.pop(f"{name}.{part}", None) for part in _PASS_ARRAYS},  # type: ignore[arg-type]
                **_fields(Pass, values.pop(name)),
            )
            for name in _PASSES
        }
        read: dict[str, Any] = {**arrays, **passes, **_fields(Trace, values)}
        return Trace(**read)
    except TbkinError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and json raise many kinds
        raise DataError(f"{path}: cannot be read as a trace ({error})", hint=hint) from error


def _read_arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of a trace; what they declare is compared with their size in the file before any is made."""
    names = {"values", *_ARRAYS, *(f"{name}.{part}" for name in _PASSES for part in _PASS_ARRAYS)}
    arrays = {}
    if not path.is_file():
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as file:
        members = {member.filename.removesuffix(".npy"): member for member in file.infolist()}
        members = {name: member for name, member in members.items() if name in names}
        if (size := sum(member.file_size for member in members.values())) > _MOST_BYTES:
            raise ValueError(f"it holds {size:,} bytes, and no trace more than {_MOST_BYTES:,}")
        if "values" in members and (size := members["values"].file_size) > _MOST_BYTES_OF_VALUES:
            raise ValueError(f"values: {size:,} bytes, and no trace has more than {_MOST_BYTES_OF_VALUES:,}")
        for name, member in members.items():
            with file.open(member) as stream:
                read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                shape, _, dtype = read_header[npy.read_magic(stream)](stream)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize >= member.file_size:
                raise ValueError(f"{name}: declares {shape} {dtype} in {member.file_size:,} bytes")
            with file.open(member) as stream:
                arrays[name] = npy.read_array(stream, allow_pickle=False)
    if lacking := sorted(names - {*arrays} - {f"{name}.attention" for name in _PASSES}):
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return arrays


def _text(value: Any, where: str) -> None:
    text(value, where)
    if len(value) > _LONGEST_TEXT:
        raise Fault(where, f"a text of at most {_LONGEST_TEXT:,} letters", value)


_NUMBER = number(0, whole=True)
_PASS = record(
    {"answers": list_of(row_of(_text, number(0, 1)), least=1)},
    {"chosen": maybe(_NUMBER), "runner_up": maybe(_NUMBER), "box": maybe(BOX)},
)
_GRAPH = record(
    {
        "text": _text,
        "objects": list_of(record({"name": _text})),
        "attributes": list_of(record({"object": _NUMBER, "name": _text})),
        "relations": list_of(record({"subject": _NUMBER, "predicate": _text, "object": _NUMBER})),
        "regions": list_of(record({"box": BOX, "label": _text})),
        "image_edges": list_of(
            record({"first": _NUMBER, "second": _NUMBER, "iou": number(0, 1), "predicate": _text})
        ),
        "cross_edges": list_of(record({"object": _NUMBER, "region": _NUMBER, "weight": number(0, 1)})),
    }
)
# By list of a graph: what its numbers count among.
_ENDS = {
    "attributes": {"object": "objects"},
    "relations": {"subject": "objects", "object": "objects"},
    "image_edges": {"first": "regions", "second": "regions"},
    "cross_edges": {"object": "objects", "region": "regions"},
}
_VALUES = record(
    {
        "task": _text,
        "text": _text,
        "image_size": row_of(*[number(1, 1e6, whole=True)] * 2),
        "region_labels": list_of(_text, most=_MOST_POSITIONS),
        "words": list_of(_text),
        "pieces": list_of(_text, most=_MOST_POSITIONS),
        "selection": one_of(*RULE_TABLE),
        "threshold": number(),
        **dict.fromkeys(_PASSES, _PASS),
    },
    {
        "scope": one_of(*SCOPES),
        "layers": maybe(list_of(_NUMBER, most=_MOST_POSITIONS)),
        "checkpoint": _text,
        "target_box": maybe(BOX),
        "names_annotated": flag,
        "graph": maybe(_GRAPH),
        "answered_by": one_of("", *_PASSES),
        "also_by": _text,
        "names_from": _text,
    },
)


def _check_values(values: Any) -> None:
    """Fault where the values of a trace are not what they must be."""
    _VALUES(values, "")
    if problem := check_threshold(values["selection"], values["threshold"]):
        raise ValueError(problem)
    for name in _PASSES:
        for key in ("chosen", "runner_up"):
            maybe(number(0, len(values["region_labels"]) - 1))(values[name].get(key), f"{name}.{key}")
    graph = values.get("graph")
    for kind, ends in _ENDS.items() if graph else ():
        for place, entry in enumerate(graph[kind]):
            for name, among in ends.items():
                number(0, len(graph[among]) - 1)(entry[name], f"graph.{kind}[{place}].{name}")


def _check_arrays(arrays: Mapping[str, NDArray], values: Mapping[str, Any]) -> None:
    """Fault or ValueError where the arrays of a trace do not fit each other or its values."""
    regions, pieces, words = (len(values[name]) for name in ("region_labels", "pieces", "words"))
    layers, length = arrays["dense.scores"].shape[:2], pieces + regions
    expected = {"image": ("u1", (*arrays["image"].shape[:2], 3)), "boxes": ("f4", (regions, 4))}
    expected["word_ids"] = ("i8", (pieces,))
    for name in _PASSES:
        for part, kind in _PASS_ARRAYS.items():
            expected[f"{name}.{part}"] = (kind, (*layers, length, length))
    for name, array in arrays.items():
        kind, shape = expected[name]
        if array.dtype != kind or array.shape != shape or (0 in shape and name != "boxes"):
            raise Fault(name, f"{shape} {np.dtype(kind)}", f"{array.shape} {array.dtype}")
    if max(arrays["image"].shape) > _LARGEST_SIDE:
        raise ValueError(f"its picture is larger than {_LARGEST_SIDE} x {_LARGEST_SIDE} pixels")
    if not (np.abs(arrays["boxes"]) < 1e9).all():
        raise ValueError("boxes: some are no places in an image")
    number(-1, words - 1)(int(arrays["word_ids"].min()), "word_ids")
    number(-1, words - 1)(int(arrays["word_ids"].max()), "word_ids")
    if words > pieces:
        raise ValueError(f"it has {words} words in {pieces} word pieces")
    for name in _PASSES:
        kept = arrays[f"{name}.kept"]
        weighed = arrays.get(f"{name}.attention", arrays[f"{name}.scores"])
        if not kept.any(axis=-1).all() or not np.isfinite(weighed[kept]).all():
            raise ValueError(f"{name}: its attention is not finite")


def _fields(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass among values; JSON has no tuples."""
    found = {entry.name: values[entry.name] for entry in fields(kind) if entry.name in values}
    for name in ("box", "target_box", "image_size"):
        if found.get(name) is not None:
            found[name] = tuple(found[name])
    if "answers" in found:
        found["answers"] = [(answer, probability) for answer, probability in found["answers"]]
    return found
