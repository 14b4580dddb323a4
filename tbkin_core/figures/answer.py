"""What the model looked at: dense attention beside thresholded attention, for one image and one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.boxes import box_iou_paired
from tbkin_core.errors import DataError
from tbkin_core.figures.answer_layouts import Content, column_layout, page_layout
from tbkin_core.figures.attention_panels import Outline
from tbkin_core.figures.canvas import COLORS, check_format, clean_text, figure_style
from tbkin_core.figures.trace import Trace
from tbkin_core.figures.views import AttentionView, attention_views
from tbkin_core.selection import rule_of

_MAX_ANSWERS = 5
_CHOSEN, _RUNNER_UP, _TARGET, _PREDICTED = COLORS[1], COLORS[5], COLORS[2], COLORS[3]


def trace_figure(
    path: Path,
    trace: Trace,
    aggregate: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    column: bool = False,
) -> None:
    """Draw a trace; `aggregate`, `layer`, `head` as for `attention_views`, `column` as for `answer_figure`.

    Raises:
        ConfigError: The format is unknown; no such layer or head.
        DataError: Shapes do not fit each other.
    """
    dense, thresholded = attention_views(trace, aggregate, layer, head)
    width, height = trace.image_size
    scale = np.array([trace.image.shape[1] / width, trace.image.shape[0] / height] * 2)

    def scaled(box: ArrayLike | None) -> NDArray[np.float64] | None:
        return None if box is None else np.asarray(box, np.float64) * scale

    answer_figure(
        path,
        image=trace.image,
        boxes=np.asarray(trace.boxes, np.float64) * scale,
        region_labels=trace.region_labels,
        words=trace.words,
        dense=dense,
        thresholded=thresholded,
        threshold=trace.threshold,
        selection=trace.selection,
        answers_dense=_named_regions(trace, trace.dense.answers),
        answers_thresholded=_named_regions(trace, trace.thresholded.answers),
        chosen=trace.thresholded.chosen,
        runner_up=trace.thresholded.runner_up,
        chosen_dense=trace.dense.chosen,
        runner_up_dense=trace.dense.runner_up,
        target_box=scaled(trace.target_box),
        predicted_box=scaled(trace.thresholded.box),
        predicted_box_dense=scaled(trace.dense.box),
        kept_fraction=trace.kept_fraction(),
        title=trace.text,
        note="Regions are named by the annotated boxes that they meet." if trace.names_annotated else "",
        column=column,
    )


def _named_regions(trace: Trace, answers: Sequence[tuple[str, float]]) -> Sequence[tuple[str, float]]:
    """Answers that are regions, "region 3", as the rest of the figure calls them: "3 red"."""
    if not trace.presentation.answers_are_regions:
        return answers
    names = {f"region {index}": _region_name(index, label) for index, label in enumerate(trace.region_labels)}
    return [(names.get(answer, answer), value) for answer, value in answers]


def answer_figure(
    path: Path,
    *,
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    region_labels: Sequence[str],
    words: Sequence[str],
    dense: AttentionView,
    thresholded: AttentionView,
    threshold: float,
    selection: str,
    answers_dense: Sequence[tuple[str, float]] = (),
    answers_thresholded: Sequence[tuple[str, float]] = (),
    chosen: int | None = None,
    runner_up: int | None = None,
    chosen_dense: int | None = None,
    runner_up_dense: int | None = None,
    target_box: ArrayLike | None = None,
    predicted_box: ArrayLike | None = None,
    predicted_box_dense: ArrayLike | None = None,
    kept_fraction: float,
    title: str,
    note: str = "",
    column: bool = False,
) -> None:
    """Draw one answer (VQA) or one grounding (REC) with the attention behind it.

    Dense on the left, thresholded on the right, each pair on one scale. The image keeps its own colours where
    the model looked and fades to grey elsewhere; where all weights are alike it looks as it is. For a
    grounding give `chosen` (and what else is known); the image then shows boxes in place of the most attended
    regions.

    Args:
        path: Ends in .png, .svg or .pdf.
        image: (H, W, 3) uint8; grey (H, W) and RGBA (H, W, 4) are accepted.
        boxes: (K, 4) xyxy in pixels.
        region_labels: K names; may be empty strings.
        words: T words of the question or expression.
        dense: Attention at threshold 0.
        thresholded: Attention at `threshold`.
        threshold: The threshold, or k for top-k selection.
        selection: Name of the selection rule.
        answers_dense: (answer, probability), best first; for REC (region, probability).
        answers_thresholded: Likewise.
        chosen: Region chosen with thresholded attention (REC), else None.
        runner_up: The region with the second highest score.
        chosen_dense: Region chosen with dense attention.
        runner_up_dense: The second there.
        target_box: (4,) xyxy of the true box, if known.
        predicted_box: (4,) xyxy after box regression, with thresholded attention.
        predicted_box_dense: Likewise, with dense attention.
        kept_fraction: Share of the attention entries that the threshold kept, in [0, 1].
        title: The question or expression.
        note: Ends the caption.
        column: Draw for one column of a paper, 3.4 inches wide, in place of 7.2: letters of the same size,
            fewer words, regions and answers.

    Raises:
        DataError: Shapes do not fit each other.
        ConfigError: The format is unknown.
    """
    check_format(path)
    target = _box(target_box)
    groundings = (
        _Grounding(chosen_dense, runner_up_dense, _box(predicted_box_dense), target),
        _Grounding(chosen, runner_up, _box(predicted_box), target),
    )
    places = _numbers(boxes, "boxes", (len(region_labels), 4))
    regions = [_region_name(index, label) for index, label in enumerate(region_labels)]
    heading, short_heading = _threshold_names(selection, threshold)
    content = Content(
        image=_rgb(image),
        boxes=places,
        regions=regions,
        words=[clean_text(word) for word in words],
        views=(
            _checked(dense, "dense", len(words), len(regions)),
            _checked(thresholded, "thresholded", len(words), len(regions)),
        ),
        heading=heading,
        short_heading=short_heading,
        answers=(list(answers_dense)[:_MAX_ANSWERS], list(answers_thresholded)[:_MAX_ANSWERS]),
        grounding=any(one.chosen is not None or one.predicted is not None for one in groundings),
        outlines=(
            _grounding_outlines(groundings[0], places, regions),
            _grounding_outlines(groundings[1], places, regions),
        ),
        kept_fraction=kept_fraction,
        title=title,
        note=clean_text(note),
    )
    with figure_style():
        (column_layout if column else page_layout)(content).save(Path(path))


@dataclass(frozen=True)
class _Grounding:
    """What one pass grounded: numbers of regions and (4,) boxes, or None."""

    chosen: int | None
    runner_up: int | None
    predicted: NDArray[np.float64] | None
    target: NDArray[np.float64] | None


def _grounding_outlines(found: _Grounding, boxes: NDArray[np.float64], labels: list[str]) -> list[Outline]:
    """Boxes of a grounding, the least important first, so that the others are drawn over it."""

    def name(start: str, box: NDArray[np.float64], label: str = "") -> str:
        overlap = "" if found.target is None else f", IoU {_iou(box, found.target):.2f}"
        return f"{start}{label and f': {label}'}{overlap}"

    outlines: list[Outline] = []
    regions: tuple[tuple[int | None, str, Literal["-", "--"], str], ...] = (
        (found.runner_up, _RUNNER_UP, "--", "runner-up"),
        (found.chosen, _CHOSEN, "-", "chosen region"),
    )
    for index, color, style, start in regions:
        if index is not None:
            if not 0 <= index < len(boxes):
                raise DataError(f"{start} {index} is not one of the {len(boxes)} regions")
            outlines.append(Outline(boxes[index], color, style, name(start, boxes[index], labels[index])))
    if found.predicted is not None:
        outlines.append(Outline(found.predicted, _PREDICTED, "-.", name("predicted box", found.predicted)))
    # A good prediction covers the target; dots let what is below them through.
    if found.target is not None and outlines:
        outlines.append(Outline(found.target, _TARGET, ":", "target"))
    return outlines


def _iou(box: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(box_iou_paired(box[None], other[None])[0])


def _threshold_names(selection: str, threshold: float) -> tuple[str, str]:
    """Heading of the thresholded side, and a short one."""
    rule = rule_of(selection)
    words = rule.in_words(threshold)
    if rule.is_transform:
        heading = f"Sparse attention ({words})"
        return heading, heading.removesuffix(")")
    return f"Thresholded ({words})", words


def _region_name(index: int, label: str) -> str:
    return f"{index} {clean_text(label)}".strip()


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape or array.dtype != np.uint8:
        raise DataError(f"image must be (H, W, 3) uint8, got {array.shape} {array.dtype}")
    return np.ascontiguousarray(array[..., :3])


def _box(values: ArrayLike | None) -> NDArray[np.float64] | None:
    return None if values is None else _numbers(values, "box", (4,))


def _numbers(values: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.size == 0 and 0 in shape:
        return array.reshape(shape)
    if array.shape != shape:
        raise DataError(f"{name} must be {shape}, got {array.shape}")
    return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def _checked(view: AttentionView, name: str, words: int, regions: int) -> AttentionView:
    return AttentionView(
        region_weights=_numbers(view.region_weights, f"{name}.region_weights", (regions,)),
        word_weights=_numbers(view.word_weights, f"{name}.word_weights", (words,)),
        word_region=_numbers(view.word_region, f"{name}.word_region", (words, regions)),
        source=clean_text(view.source),
    )
