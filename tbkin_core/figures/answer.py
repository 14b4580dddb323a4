"""What the model looked at: dense attention beside thresholded attention, for one image and one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.boxes import box_iou_paired
from tbkin_core.errors import DataError
from tbkin_core.figures.answer_layouts import Content, column_layout, page_layout
from tbkin_core.figures.attention_panels import LineStyle, Outline
from tbkin_core.figures.canvas import COLORS, check_format, clean_text, figure_style, region_name
from tbkin_core.figures.trace import Pass, Trace
from tbkin_core.figures.views import AttentionView, attention_views
from tbkin_core.selection import Selection, rule_of

_MAX_ANSWERS = 5
# The four that are farthest apart for deuteranopes and protanopes; each has a line style of its own, too.
CHOSEN, RUNNER_UP, TARGET, PREDICTED = COLORS[1], COLORS[5], COLORS[2], COLORS[7]


def trace_figure(
    path: Path,
    trace: Trace,
    aggregate: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    column: bool = False,
    mark: str = "",
) -> None:
    """Draw a trace; `aggregate`, `layer`, `head` as for `attention_views`, the rest as for `answer_figure`.

    Raises:
        ConfigError: The format is unknown; no such layer or head.
        DataError: Shapes do not fit each other.
    """
    dense, thresholded = attention_views(trace, aggregate, layer, head)
    width, height = trace.image_size
    scale = np.array([trace.image.shape[1] / width, trace.image.shape[0] / height] * 2)

    def scaled(box: ArrayLike | None) -> NDArray[np.float64] | None:
        return None if box is None else np.asarray(box, np.float64) * scale

    # Answers that are regions, "region 3", are called as in the rest of the figure: "3 red".
    named = enumerate(trace.region_labels) if trace.presentation.answers_are_regions else ()
    names = {f"region {index}": region_name(index, label) for index, label in named}

    def side(view: AttentionView, content: Pass) -> Side:
        answers = [(names.get(answer, answer), value) for answer, value in content.answers]
        return Side(view, answers, content.chosen, content.runner_up, scaled(content.box))

    notes = _answered_by(trace) + _named_by(trace)
    if where := Selection(
        layers=None if trace.layers is None else tuple(trace.layers), scope=trace.scope
    ).where:
        notes.append(f"The threshold selects {where}.")
    answer_figure(
        path,
        image=trace.image,
        boxes=np.asarray(trace.boxes, np.float64) * scale,
        region_labels=trace.region_labels,
        words=trace.words,
        dense=side(dense, trace.dense),
        thresholded=side(thresholded, trace.thresholded),
        threshold=trace.threshold,
        selection=trace.selection,
        target_box=scaled(trace.target_box),
        kept_fraction=trace.kept_fraction(),
        title=trace.text,
        note=" ".join(notes),
        column=column,
        mark=mark,
    )


def _answered_by(trace: Trace) -> list[str]:
    """What the model's answer goes by, as far as the trace tells."""
    trained = {"dense": "without", "thresholded": "with"}.get(trace.answered_by)
    own = f"The {trace.answered_by} answer is the model's own, which was trained {trained} a threshold."
    return [own] * bool(trained) + [f"It also goes by {trace.also_by}."] * bool(trace.also_by)


def _named_by(trace: Trace) -> list[str]:
    """Where the regions' names are from; nothing where none has one."""
    if trace.names_annotated:
        return ["Regions are named by the annotated boxes that they meet."]
    named = [bool(clean_text(label)) for label in trace.region_labels]
    if not any(named) or not trace.names_from:
        return []
    where = "" if all(named) else ", where it is sure; else by the colour that fills them, or by number alone"
    return [f"Regions are named by the extractor ({trace.names_from}){where}."]


@dataclass(frozen=True)
class Side:
    """One pass, dense or thresholded, as its half of the figure shows it."""

    view: AttentionView  # where attention went
    answers: Sequence[tuple[str, float]] = ()  # (answer or region, probability), best first
    chosen: int | None = None  # of a grounding, the region with the highest score
    runner_up: int | None = None  # the one with the second highest
    box: ArrayLike | None = None  # (4,) xyxy of a grounding after box regression


def answer_figure(
    path: Path,
    *,
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    region_labels: Sequence[str],
    words: Sequence[str],
    dense: Side,
    thresholded: Side,
    threshold: float,
    selection: str,
    target_box: ArrayLike | None = None,
    kept_fraction: float,
    title: str,
    note: str = "",
    column: bool = False,
    mark: str = "",
) -> None:
    """Draw one answer or one grounding with the attention behind it.

    Dense on the left, thresholded on the right. The image keeps its own colours where the model looked and
    fades to grey elsewhere, words and cells of the maps are coloured as strongly: all by the one scale of
    `tbkin_core.figures.scale`, which the caption states, so that a share of attention looks alike anywhere.
    Regions with at least twice the even share are outlined, three at most; where attention is even, none is.
    For a grounding (a side with `chosen` or `box`) boxes stand in place of these.

    Args:
        path: Ends in .png, .svg or .pdf.
        image: (H, W, 3) uint8; grey (H, W) and RGBA (H, W, 4) are accepted.
        boxes: (K, 4) xyxy in pixels.
        region_labels: K names; may be empty strings.
        words: W words of the question or expression.
        dense, thresholded: The two passes.
        threshold, selection: Threshold and rule of the thresholded one.
        target_box: (4,) xyxy of the true box, if known.
        kept_fraction: Share of the attention entries that the threshold kept, in [0, 1].
        title: The question or expression.
        note: Ends the caption.
        column: Draw for one column of a paper, 3.4 inches wide, in place of 7.2: letters of the same size,
            fewer words, regions and answers.
        mark: See `tbkin_core.figures.canvas.figure_mark`.

    Raises:
        DataError: Shapes do not fit each other.
        ConfigError: The format or the rule is unknown.
    """
    check_format(path)
    places = _numbers(boxes, "boxes", (len(region_labels), 4))
    sides = {"dense": dense, "thresholded": thresholded}
    regions = [region_name(index, label) for index, label in enumerate(region_labels)]
    rule = rule_of(selection)
    rule_words = rule.in_words(threshold)
    content = Content(
        image=_rgb(image),
        boxes=places,
        regions=regions,
        words=[clean_text(word) for word in words],
        views=[_checked(side.view, name, len(words), len(regions)) for name, side in sides.items()],
        heading=f"{'Sparse attention' if rule.is_transform else 'Thresholded'} ({rule_words})",
        short_heading=rule_words,
        answers=[list(side.answers)[:_MAX_ANSWERS] for side in sides.values()],
        grounding=any(side.chosen is not None or side.box is not None for side in sides.values()),
        outlines=[_grounding_outlines(side, target_box, places, regions) for side in sides.values()],
        kept_fraction=kept_fraction,
        title=title,
        note=clean_text(note),
    )
    with figure_style():
        (column_layout if column else page_layout)(content).save(Path(path), mark)


def _grounding_outlines(
    side: Side, target_box: ArrayLike | None, boxes: NDArray[np.float64], labels: list[str]
) -> list[Outline]:
    """Boxes of a grounding, the least important first, so that the others are drawn over it."""
    target, predicted = (
        None if box is None else _numbers(box, "box", (4,)) for box in (target_box, side.box)
    )

    def outline(box: NDArray[np.float64], color: str, style: LineStyle, label: str) -> Outline:
        overlap = "" if target is None else f", IoU {box_iou_paired([box], [target])[0]:.2f}"
        return Outline(box, color, style, f"{label}{overlap}")

    outlines = []
    regions: tuple[tuple[int | None, str, LineStyle, str], ...] = (
        (side.runner_up, RUNNER_UP, "--", "runner-up"),
        (side.chosen, CHOSEN, "-", "chosen region"),
    )
    for index, color, style, start in regions:
        if index is not None:
            if not 0 <= index < len(boxes):
                raise DataError(f"{start} {index} is not one of the {len(boxes)} regions")
            outlines.append(outline(boxes[index], color, style, f"{start}: {labels[index]}"))
    if predicted is not None:
        outlines.append(outline(predicted, PREDICTED, "-.", "predicted box"))
    # A good prediction covers the target; dots let what is below them through.
    if target is not None and outlines:
        outlines.append(Outline(target, TARGET, ":", "target"))
    return outlines


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape or array.dtype != np.uint8:
        raise DataError(f"image must be (H, W, 3) uint8, got {array.shape} {array.dtype}")
    return np.ascontiguousarray(array[..., :3])


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
        positions=view.positions,
    )
