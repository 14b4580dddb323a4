"""A trace as one HTML file to explore: no server, no network, nothing but the file.

The page is put together from the files in `resources/page`. Only the dense scores go into it; what a
threshold keeps is computed in the page (`attention.js`), so that its slider can go anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tbkin_core.boxes import box_iou_paired
from tbkin_core.errors import DataError
from tbkin_core.figures.canvas import clean_text
from tbkin_core.figures.graph import graph_regions, regions_agree
from tbkin_core.figures.trace import Pass, Trace
from tbkin_core.selection import RULE_TABLE
from tbkin_core.support.console import OBEYED
from tbkin_core.support.files import atomic_path, finite

_MAX_SIDE = 1280  # pixels; the image is shown at most so large
_JPEG_QUALITY = 85
# In this order: "page.js" ends by starting the page.
_SCRIPTS = ("attention.js", "graph.js", "page.js")


def write_page(path: Path, trace: Trace, mark: str = "") -> None:
    """Write the page of a trace, whole or not at all; for `mark` see `tbkin_core.figures.canvas.figure_mark`.

    Raises:
        DataError: The arrays of the trace do not fit each other.
    """
    _check(trace)
    style = _resource("page.css")
    script = "\n".join(_resource(name) for name in _SCRIPTS)
    scores = np.nan_to_num(trace.dense.scores.astype("<f2"), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    parts = {
        "mark": html.escape(mark),
        "policy": _policy(script, style),
        "title": html.escape(clean_text(trace.text)[:200]) or "tbkin",
        "style": style,
        "image": f"data:image/jpeg;base64,{_base64(_jpeg(trace))}",
        # "<" is escaped so that no text of the trace can end the element.
        "trace": json.dumps(finite(_shown(_values(trace)))).replace("<", "\\u003c"),
        "scores": _base64(scores.tobytes()),
        "script": script,
    }
    # In one pass, so that a text which looks like a placeholder stays a text.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def _policy(script: str, style: str) -> str:
    """Content security policy: this script, this style, images inside the file, and nothing else."""
    hashes = [_base64(hashlib.sha256(text.encode("utf-8")).digest()) for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:;"
        " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


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
        "dense": {"answers": trace.dense.answers, "chosen": trace.dense.chosen},
        "thresholded": {
            "answers": trace.thresholded.answers,
            "chosen": trace.thresholded.chosen,
            "runnerUp": trace.thresholded.runner_up,
        },
        "runKept": _kept_counts(trace),
        "groundingBoxes": [
            {"kind": kind, "name": name, "box": list(box)}
            for kind, name, box, _ in _grounding(trace, trace.thresholded)
        ],
        "grounding": _grounding_rows(trace),
        "graph": trace.graph,
        "graphRegions": graph_regions(trace, 12),
        "graphRegionsAreRegions": regions_agree(trace),
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
            label = f"{region} {trace.region_labels[region]}".strip()
            found.append((kind, f"{kind}: {label}", trace.boxes[region].tolist()))
    if content.box is not None:
        found.append(("predicted", "refined box", content.box))
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
    names = {"chosen": "chosen region", "runner-up": "runner-up", "predicted": "refined box"}
    return [
        {"kind": kind, "name": name, "cells": [side.get(kind, "–") for side in sides]}
        for kind, name in {**names, "target": "target"}.items()
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


def _jpeg(trace: Trace) -> bytes:
    image = Image.fromarray(trace.image)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


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
