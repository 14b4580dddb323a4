"""A trace as one HTML file to explore: no server, no network, nothing but the file.

The page is put together from the files in `resources/page`. The scores of both passes go into it, and it
shows of them what the figure shows (`figures/answer.py`). What another threshold keeps is computed in the
page from the dense scores (`attention.js`), so that its slider can go anywhere; in the page that `tbkin
visualize --serve` serves (`ask.html`, `ask.js`) the model answers anew there.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tbkin_core.boxes import box_iou_paired
from tbkin_core.errors import DataError
from tbkin_core.figures.canvas import clean_text, region_name
from tbkin_core.figures.graph import graph_regions, regions_agree
from tbkin_core.figures.trace import Pass, Trace
from tbkin_core.figures.views import check_choice
from tbkin_core.selection import RULE_TABLE
from tbkin_core.support.console import OBEYED
from tbkin_core.support.files import atomic_path, finite

_MAX_SIDE = 1280  # pixels; the image is shown at most so large
_JPEG_QUALITY = 85
# In this order: "page.js" ends by starting the page.
_SCRIPTS = ("attention.js", "graph.js", "map.js", "controls.js", "page.js")
_ASK = "ask.js"  # comes behind them in the page that is served
_NO_IMAGE = "data:,"
# As the figures call them (`figures/answer.py`).
_NAMES = {
    "chosen": "chosen region",
    "runner-up": "runner-up",
    "predicted": "predicted box",
    "target": "target",
}


def write_page(
    path: Path,
    trace: Trace,
    mark: str = "",
    aggregate: str | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> None:
    """Write the page of a trace, whole or not at all.

    Args:
        path: The file.
        trace: The trace.
        mark: See `tbkin_core.figures.canvas.figure_mark`.
        aggregate, layer, head: What it shows at first, as of `tbkin_core.figures.views.attention_views`.

    Raises:
        DataError: The arrays of the trace do not fit each other.
        ConfigError: No such layer or head.
    """
    content = page_content(trace, aggregate, layer, head)
    page, _ = _page(
        mark=html.escape(mark),
        title=html.escape(clean_text(trace.text)[:200]) or "tbkin",
        image=image_uri(trace.image),
        # "<" is escaped so that no text of the trace can end the element.
        trace=json.dumps(content["trace"]).replace("<", "\\u003c"),
        scores=content["scores"],
        run=content["run"],
    )
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def page_content(
    trace: Trace, aggregate: str | None = None, layer: int | None = None, head: int | None = None
) -> dict[str, Any]:
    """What the page's script reads of a trace but the image; JSON values.

    `trace` holds all but the scores. These are float16 in base64, (N, H, L, L) of the dense pass in `scores`
    and of the thresholded one in `run`, which is "" where the two are one pass; the latter are minus infinity
    for dropped keys, so that the softmax over them is that pass's attention.

    Arguments and errors as of `write_page`.
    """
    _check(trace)
    layers, heads = trace.dense.scores.shape[:2]
    check_choice(layers, heads, layer, head)
    view = {"aggregate": aggregate or trace.presentation.aggregate, "layer": layer, "head": head}
    if layer is None and head is not None:
        view["layer"] = layers - 1
    return {
        "trace": finite(_shown(_values(trace) | {"view": view})),
        "scores": _half(trace.dense.scores),
        "run": _half(_scores_kept(trace.thresholded)) if trace.threshold else "",
    }


def image_uri(pixels: NDArray[np.uint8], side: int = _MAX_SIDE) -> str:
    """An image (H, W, 3) as a data URI, its longer side of at most so many pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{_base64(buffer.getvalue())}"


def served_page(
    title: str, checkpoint: str, asked: str, example: str, notes: Sequence[str]
) -> tuple[str, str]:
    """The page of a server, where images are asked about; and its content security policy.

    Args:
        title: What the model does, in the words of its task.
        checkpoint: Its name.
        asked: What it is asked: "question", "expression".
        example: One of these.
        notes: What is worth knowing of the model.
    """
    texts = {"title": title, "checkpoint": checkpoint, "asked": asked, "example": example}
    parts = {name: html.escape(clean_text(text)) for name, text in texts.items()}
    parts["Asked"] = parts["asked"].capitalize()
    parts["notes"] = "".join(f"<li>{html.escape(clean_text(note))}</li>" for note in notes)
    return _page(
        ask=_filled("ask.html", parts),
        mark="",
        title="tbkin",
        image=_NO_IMAGE,
        trace="null",
        scores="",
        run="",
    )


def _page(ask: str = "", **parts: str) -> tuple[str, str]:
    """The page made of its parts, and its content security policy; with `ask`, the one that is served."""
    style = "\n".join(_resource(name) for name in ("page.css", *(["ask.css"] if ask else [])))
    script = "\n".join(_resource(name) for name in (*_SCRIPTS, *([_ASK] if ask else [])))
    policy = _policy(script, style, bool(ask))
    page = _filled("page.html", {**parts, "ask": ask, "policy": policy, "style": style, "script": script})
    return page, policy


def _filled(name: str, parts: dict[str, str]) -> str:
    # In one pass, so that a text which looks like a placeholder stays a text.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource(name))


def _policy(script: str, style: str, served: bool) -> str:
    """Content security policy: this script, this style, images inside the file, and nothing else.

    The page of a server may ask that server.
    """
    hashes = [_base64(hashlib.sha256(text.encode("utf-8")).digest()) for text in (script, style)]
    connect = " connect-src 'self';" if served else ""
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:;"
        f"{connect} base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _scores_kept(content: Pass) -> NDArray[np.floating]:
    """(N, H, L, L) of which the softmax is the attention of a pass; minus infinity where it dropped a key."""
    if content.attention is None:
        return np.where(content.kept, content.scores, -np.inf)
    with np.errstate(divide="ignore"):
        return np.log(content.attention.astype(np.float32))


def _half(scores: NDArray[np.floating]) -> str:
    half = np.nan_to_num(scores.astype("<f2"), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return _base64(half.tobytes())


def _values(trace: Trace) -> dict[str, Any]:
    """All of a trace that the page reads, and the table of rules, as JSON has it."""
    shown = trace.presentation
    return {
        "taskTitle": shown.title,
        "answerHeading": shown.answer_heading,
        "answersAreRegions": shown.answers_are_regions,
        "aggregate": shown.aggregate,
        "text": trace.text,
        "words": trace.words,
        "pieces": trace.pieces,
        "wordIds": trace.word_ids.tolist(),
        "imageSize": list(trace.image_size),
        "boxes": np.nan_to_num(trace.boxes).round(2).tolist(),
        "labels": trace.region_labels,
        "rules": {name: asdict(rule) for name, rule in RULE_TABLE.items()},
        "selection": trace.selection,
        "threshold": trace.threshold,
        "scope": trace.scope,
        "layers": trace.layers,
        "checkpoint": trace.checkpoint,
        "shape": list(trace.dense.scores.shape[:3]),
        "dense": _pass_values(trace, trace.dense),
        "thresholded": _pass_values(trace, trace.thresholded),
        "runKept": _kept_counts(trace),
        "grounding": _grounding_rows(trace),
        "graph": trace.graph,
        "graphRegions": graph_regions(trace, 12),
        "graphRegionsAreRegions": regions_agree(trace),
    }


def _pass_values(trace: Trace, content: Pass) -> dict[str, Any]:
    """What a pass answered, and the boxes that are drawn on the image."""
    boxes = [
        {"kind": kind, "name": name, "box": list(box)} for kind, name, box, _ in _grounding(trace, content)
    ]
    return {
        "answers": content.answers,
        "chosen": content.chosen,
        "runnerUp": content.runner_up,
        "boxes": boxes,
    }


def _kept_counts(trace: Trace) -> dict[str, list[int]]:
    """Entries that the thresholded pass kept and the dense pass has, by direction and in "all"."""
    ends = {"text": slice(0, len(trace.pieces)), "image": slice(len(trace.pieces), None)}
    places: dict[str, Any] = {
        f"{query}-to-{key}": (..., ends[query], ends[key]) for query in ends for key in ends
    }
    places["all"] = ...
    passes = (trace.thresholded, trace.dense)
    return {name: [int(one.kept[place].sum()) for one in passes] for name, place in places.items()}


def _grounding(trace: Trace, content: Pass) -> list[tuple[str, str, tuple[float, ...], str]]:
    """Kind, name, box and, where the target is known, IoU of what a pass grounded; the target first."""
    if content.chosen is None:
        return []
    found: list[tuple[str, str, Any]] = []
    for kind, region in (("chosen", content.chosen), ("runner-up", content.runner_up)):
        if region is not None:
            label = region_name(region, trace.region_labels[region])
            found.append((kind, f"{_NAMES[kind]}: {label}", trace.boxes[region].tolist()))
    if content.box is not None:
        found.append(("predicted", _NAMES["predicted"], content.box))
    if trace.target_box is None:
        return [(kind, name, tuple(map(float, box)), "") for kind, name, box in found]
    overlaps = [f"IoU {box_iou_paired([box], [trace.target_box])[0]:.2f}" for _, _, box in found]
    return [("target", "target", trace.target_box, "")] + [
        (kind, name, tuple(map(float, box)), overlap)
        for (kind, name, box), overlap in zip(found, overlaps, strict=True)
    ]


def _grounding_rows(trace: Trace) -> list[dict[str, Any]]:
    """Rows of the table of boxes: one per kind, a cell for each pass."""
    sides: list[dict[str, str]] = []
    for content in (trace.dense, trace.thresholded):
        sides.append({})
        for kind, name, box, overlap in _grounding(trace, content):
            corners = ", ".join(f"{edge:.0f}" for edge in box)
            shown = name.split(": ", 1)[1] if kind in ("chosen", "runner-up") else f"({corners})"
            sides[-1][kind] = f"{shown}; {overlap}" if overlap else shown
    return [
        {"kind": kind, "name": name, "cells": [side.get(kind, "–") for side in sides]}
        for kind, name in _NAMES.items()
        if any(kind in side for side in sides)
    ]


def _check(trace: Trace) -> None:
    """Raise DataError where the page would show one thing for another."""
    regions, pieces = len(trace.boxes), len(trace.pieces)
    length = regions + pieces
    if trace.dense.scores.ndim != 4 or trace.dense.scores.shape[2:] != (length, length):
        raise DataError(
            f"trace: scores must be (layers, heads, {length}, {length}) for {pieces} word pieces and"
            f" {regions} regions, got {trace.dense.scores.shape}"
        )
    if len(trace.region_labels) != regions or len(trace.word_ids) != pieces:
        raise DataError("trace: every region has a label, and every word piece the number of a word")
    if trace.word_ids.max(initial=-1) >= len(trace.words):
        raise DataError(f"trace: a word piece belongs to a word beyond the {len(trace.words)}")


def _shown(value: Any) -> Any:
    """Values as the page has them: no text of theirs turns the direction of what stands beside it."""
    if isinstance(value, str):
        return OBEYED.sub(lambda found: " " * found[0].isspace(), value)
    if isinstance(value, dict):
        return {key: _shown(entry) for key, entry in value.items()}
    return [_shown(entry) for entry in value] if isinstance(value, list | tuple) else value


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _resource(name: str) -> str:
    return (files("tbkin_core") / "resources" / "page" / name).read_text(encoding="utf-8")
