"""What the model looked at: dense attention beside thresholded attention, for one image and one text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.boxes import box_iou_paired
from tbkin_core.errors import DataError
from tbkin_core.figures.canvas import COLORS, Page, check_format, clean_text, figure_style, plain_axes
from tbkin_core.figures.trace import Trace
from tbkin_core.figures.views import AttentionView, attention_views
from tbkin_core.selection import TRANSFORMS

# All in inches.
_WIDTH = 7.2
_MARGIN = 0.15
_GAP = 0.2
_SCALE_WIDTH = 0.64  # a colour bar with its numbers
_HEADING = 0.2
_WORD_ROW = 0.17
_ANSWER_ROW = 0.2
_LEGEND_ROW = 0.15

_COLUMN = 3.4  # width of one of two columns, with what follows for it
_COLUMN_MARGIN = 0.05
_COLUMN_GAP = 0.12
_COLUMN_WORDS = 12
_COLUMN_REGIONS = 8
_COLUMN_ANSWERS = 3

_MAX_REGIONS = 10
_MAX_WORDS = 24
_MAX_ANSWERS = 5
_OUTLINED = 3
_LEAST_WORD_SPAN = 0.05
_OUTLINED_SHARE = 0.1  # of the largest weight; what has less was hardly looked at
_COLORMAP = "viridis"
_DROPPED = "#e6e6e6"
_DENSE, _THRESHOLDED = COLORS[0], COLORS[1]
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


def _named_regions(trace: Trace, answers: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Answers of a grounding, "region 3", as the rest of the figure calls them: "3 red"."""
    names = {f"region {index}": _region_name(index, label) for index, label in enumerate(trace.region_labels)}
    return [
        (names.get(answer, answer) if trace.task == "rec" else answer, value) for answer, value in answers
    ]


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
    with figure_style():
        page = (_draw_column if column else _draw)(
            image=_rgb(image),
            boxes=_numbers(boxes, "boxes", (len(region_labels), 4)),
            region_labels=[_region_name(index, label) for index, label in enumerate(region_labels)],
            words=[clean_text(word) for word in words],
            views=(
                _checked(dense, "dense", len(words), len(region_labels)),
                _checked(thresholded, "thresholded", len(words), len(region_labels)),
            ),
            headings=("Dense attention", _threshold_name(selection, threshold)),
            answers=(list(answers_dense)[:_MAX_ANSWERS], list(answers_thresholded)[:_MAX_ANSWERS]),
            choices=(
                _Choice(chosen_dense, runner_up_dense, _box(predicted_box_dense), _box(target_box)),
                _Choice(chosen, runner_up, _box(predicted_box), _box(target_box)),
            ),
            kept_fraction=kept_fraction,
            title=title,
            note=clean_text(note),
        )
        page.save(Path(path))


@dataclass(frozen=True)
class _Choice:
    """What one pass grounded: region indices and (4,) boxes, or None."""

    chosen: int | None
    runner_up: int | None
    predicted: NDArray[np.float64] | None
    target: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Line:
    """A box to outline on the image, and its entry in the legend."""

    box: NDArray[np.float64]
    color: str
    style: Literal["-", "--", "-.", ":"]
    label: str


def _draw(
    *,
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    region_labels: list[str],
    words: list[str],
    views: tuple[AttentionView, AttentionView],
    headings: tuple[str, str],
    answers: tuple[list[tuple[str, float]], list[tuple[str, float]]],
    choices: tuple[_Choice, _Choice],
    kept_fraction: float,
    title: str,
    note: str,
) -> Page:
    page = Page(_WIDTH)
    inner = _WIDTH - 2 * _MARGIN
    grounding = any(choice.chosen is not None or choice.predicted is not None for choice in choices)
    lines = [_grounding_lines(choice, boxes, region_labels) for choice in choices]
    shown_words = _most_attended_words(views)
    shown_regions = _most_attended_regions(views)
    with_words = len(shown_words) > 0
    notes = _notes(views)

    caption = f"{headings[1]} keeps {_percentage(kept_fraction)} of the attention entries."
    if views[0].source:
        caption += f" Weights: {views[0].source}."
    if not len(shown_regions):
        caption += " No word attends to a region: the answer is from the words alone." if len(boxes) else ""
    else:
        caption += " Regions in full colour have the highest weight, faded ones none."
    if with_words and any((view.word_region[:, shown_regions] == 0).any() for view in views):
        caption += " Grey cells: dropped."
    if with_words and 0 < len(shown_regions) < len(boxes):
        caption += f" Below: the {len(shown_regions)} most attended of {len(boxes)} regions."
    if len(shown_words) < len(words):
        caption += f" {len(shown_words)} of {len(words)} words are shown."
    title_lines = page.wrap(title, inner, 10, lines=4, bold=True)
    caption_lines = page.wrap(f"{caption} {note}" if len(shown_regions) else caption, inner, 7.5, lines=4)

    height, width = image.shape[:2]
    stacked = width > 2.4 * height
    slot_width = inner - _SCALE_WIDTH if stacked else (inner - _SCALE_WIDTH - _GAP) / 2
    slot_height = float(np.clip(slot_width * height / width, 0.35, 2.0 if stacked else 3.4))
    legend_height = _LEGEND_ROW * max(map(len, lines)) + 0.05 if any(lines) else 0.0
    panel_height = _HEADING + slot_height + legend_height

    # From the top down: where each part begins.
    title_height = 0.19 * len(title_lines) + 0.03
    images_top = _MARGIN + title_height + 0.14 * len(caption_lines) + 0.1
    words_top = images_top + panel_height * (2 if stacked else 1) + (0.1 if stacked else 0) + _GAP
    region_names = [page.fit(region_labels[index], 0.85, 7) for index in shown_regions]
    names_height = max((page.measure(name, 7) for name in region_names), default=0.2) * 0.71 + 0.15
    matrix_height = _WORD_ROW * len(shown_words)
    words_height = _HEADING + 0.2 + matrix_height + max(names_height, 0.35) + 0.1 if with_words else 0.0
    answers_top = words_top + words_height
    answer_rows = max(map(len, answers))
    answers_height = _HEADING + _ANSWER_ROW * answer_rows if answer_rows else -0.1
    page.resize(answers_top + answers_height + _MARGIN)

    for row, line in enumerate(title_lines):
        page.text(_MARGIN, _MARGIN + 0.19 * row, line, 10, weight="bold")
    for row, line in enumerate(caption_lines):
        page.text(_MARGIN, _MARGIN + title_height + 0.14 * row, line, 7.5, color="#444444")

    highest = _highest(view.region_weights for view in views)
    for place, view in enumerate(views):
        left = _MARGIN + (0 if stacked else place * (slot_width + _GAP))
        top = images_top + (place * (panel_height + 0.1) if stacked else 0)
        # Colours are relative to the largest weight: how much there was to share is said beside the heading.
        share = f"{_percentage(float(view.region_weights.sum()))} on regions" if len(boxes) else ""
        share_width = page.measure(share, 7) + 0.1
        heading = page.fit(headings[place], slot_width - share_width, 8, bold=True)
        page.text(left, top, heading, 8, weight="bold")
        page.text(left + slot_width, top + 0.02, share, 7, ha="right", color="#444444")
        slot = (left, top + _HEADING, slot_width, slot_height)
        outlines = lines[place] if grounding else _attended_lines(view, boxes, region_labels)
        _draw_image(page, slot, image, boxes, view.region_weights, highest, outlines, named=not grounding)
        _draw_note(page, slot, notes[place])
        if lines[place]:
            _draw_legend(page, left, top + _HEADING + slot_height + 0.05, slot_width, lines[place])
    scale_height = slot_height + (panel_height + 0.1 if stacked else 0)
    if len(shown_regions):
        scale_left = _WIDTH - _MARGIN - _SCALE_WIDTH
        _draw_scale(page, scale_left, images_top + _HEADING, scale_height, highest, "region weight", True)
    if with_words:
        _draw_words(page, words_top, matrix_height, words, shown_words, shown_regions, region_names, views)
    if answer_rows:
        width_each = (inner - _GAP) / 2
        names = [[page.fit(answer, width_each * 0.45, 7.5) for answer, _ in values] for values in answers]
        label_width = max(page.measure(name, 7.5) for column in names for name in column) + 0.08
        for place, values in enumerate(answers):
            left = _MARGIN + place * (width_each + _GAP)
            name = ("Dense", "Thresholded")[place] + (": regions" if grounding else ": answers")
            page.text(left, answers_top, name, 8, weight="bold")
            if values:
                color = (_DENSE, _THRESHOLDED)[place]
                bars = (left + label_width, answers_top + _HEADING, width_each - label_width - 0.4)
                probabilities = [probability for _, probability in values]
                _draw_answers(page, bars, names[place], probabilities, color)
    return page


def _draw_column(
    *,
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    region_labels: list[str],
    words: list[str],
    views: tuple[AttentionView, AttentionView],
    headings: tuple[str, str],
    answers: tuple[list[tuple[str, float]], list[tuple[str, float]]],
    choices: tuple[_Choice, _Choice],
    kept_fraction: float,
    title: str,
    note: str,
) -> Page:
    """As `_draw`, in half the width: pictures, then words beside answers, then the maps, then the caption."""
    page = Page(_COLUMN)
    inner = _COLUMN - 2 * _COLUMN_MARGIN
    half = (inner - _COLUMN_GAP) / 2
    lefts = (_COLUMN_MARGIN, _COLUMN_MARGIN + half + _COLUMN_GAP)
    grounding = any(choice.chosen is not None or choice.predicted is not None for choice in choices)
    lines = [_grounding_lines(choice, boxes, region_labels) for choice in choices]
    legend = _merged(lines)
    shown_words = _most_attended_words(views, _COLUMN_WORDS)
    shown_regions = _most_attended_regions(views)[:_COLUMN_REGIONS]
    with_map = bool(len(shown_words) and len(shown_regions))
    answers = (answers[0][:_COLUMN_ANSWERS], answers[1][:_COLUMN_ANSWERS])

    short = headings[1].removeprefix("Thresholded (").removesuffix(")")
    caption = f"{headings[1]} keeps {_percentage(kept_fraction)} of the attention entries."
    if views[0].source:
        caption += f" Weights: {views[0].source}."
    highest = _highest(view.region_weights for view in views)
    if len(boxes) and not len(shown_regions):
        caption += " No word attends to a region: the answer is from the words alone."
    elif len(boxes):
        shares = [_percentage(float(view.region_weights.sum())) for view in views]
        caption += f" On regions: {shares[0]} dense, {shares[1]} thresholded; in full colour: {highest:.2g}."
    brightest = _highest(view.word_region[np.ix_(shown_words, shown_regions)] for view in views)
    if with_map:
        caption += f" Map: 0 (dark) to {brightest:.2g} (bright), square-root scale"
        caption += (
            f"; {len(shown_regions)} of {len(boxes)} regions." if len(shown_regions) < len(boxes) else "."
        )
    if with_map and any((view.word_region[np.ix_(shown_words, shown_regions)] == 0).any() for view in views):
        caption += " Grey: dropped."
    if len(shown_words) < len(words):
        caption += f" {len(shown_words)} of {len(words)} words."
    title_lines = page.wrap(title, inner, 9, lines=3, bold=True)
    caption_lines = page.wrap(f"{caption} {note}" if len(shown_regions) else caption, inner, 7, lines=8)

    height, width = image.shape[:2]
    slot_height = float(np.clip(half * height / width, 0.35, 2.2))
    images_top = _COLUMN_MARGIN + 0.17 * len(title_lines) + 0.05
    legend_top = images_top + _HEADING + slot_height + 0.05
    words_top = legend_top + _LEGEND_ROW * len(legend) + 0.1
    names = [page.fit(words[index], 0.62, 7) for index in shown_words]
    rows = _WORD_ROW * len(names)
    answers_height = sum(_HEADING + 0.16 * len(values) + 0.06 for values in answers if values)
    words_height = max(_HEADING + 0.16 + rows + 0.32 if names else 0.0, answers_height)
    map_top = words_top + words_height + 0.1
    region_names = [page.fit(region_labels[index], 0.7, 7) for index in shown_regions]
    names_height = max((page.measure(name, 7) for name in region_names), default=0.0) + 0.1
    map_height = _HEADING + rows + names_height + 0.05 if with_map else 0.0
    caption_top = map_top + map_height
    page.resize(caption_top + 0.13 * len(caption_lines) + _COLUMN_MARGIN)

    for row, line in enumerate(title_lines):
        page.text(_COLUMN_MARGIN, _COLUMN_MARGIN + 0.17 * row, line, 9, weight="bold")
    panels = zip(lefts, views, ("Dense", short), lines, _notes(views), strict=True)
    for left, view, heading, own, unread in panels:
        page.text(left, images_top, page.fit(heading, half, 8, bold=True), 8, weight="bold")
        slot = (left, images_top + _HEADING, half, slot_height)
        outlines = own if grounding else _attended_lines(view, boxes, region_labels)
        _draw_image(page, slot, image, boxes, view.region_weights, highest, outlines, named=not grounding)
        _draw_note(page, slot, unread)
    _draw_legend(page, _COLUMN_MARGIN, legend_top, inner, legend)

    names_width = max((page.measure(name, 7) for name in names), default=0.0) + 0.08
    if names:
        page.text(lefts[0], words_top, "Weight of words", 8, weight="bold")
        bars = (lefts[0] + names_width, words_top + _HEADING + 0.16, half - names_width)
        _draw_word_bars(page, bars, names, [view.word_weights[shown_words] for view in views], 7)
    top = words_top
    labels = [[page.fit(answer, half * 0.45, 7) for answer, _ in given] for given in answers]
    # One width for both, so that their bars can be compared.
    label_width = max((page.measure(label, 7) for group in labels for label in group), default=0.0) + 0.08
    for place, given in enumerate(answers):
        if given:
            name = ("Dense", "Thresholded")[place] + (": regions" if grounding else ": answers")
            page.text(lefts[1], top, name, 8, weight="bold")
            bars = (lefts[1] + label_width, top + _HEADING, half - label_width - 0.36)
            chances = [probability for _, probability in given]
            _draw_answers(page, bars, labels[place], chances, (_DENSE, _THRESHOLDED)[place], 0.16, 7)
            top += _HEADING + 0.16 * len(given) + 0.06
    if with_map:
        map_width = (inner - names_width - _COLUMN_GAP) / 2
        for row, name in enumerate(names):
            middle = map_top + _HEADING + _WORD_ROW * (row + 0.5)
            page.text(lefts[0] + names_width - 0.06, middle, name, 7, ha="right", va="center")
        for place, (view, heading) in enumerate(zip(views, ("Map, dense", "Map, thresholded"), strict=True)):
            left = lefts[0] + names_width + place * (map_width + _COLUMN_GAP)
            page.text(left, map_top, page.fit(heading, map_width, 8, bold=True), 8, weight="bold")
            values = view.word_region[np.ix_(shown_words, shown_regions)]
            shown_width = min(map_width, 0.3 * len(shown_regions))
            _draw_map(
                page, (left, map_top + _HEADING, shown_width, rows), values, brightest, region_names, 90
            )
    for row, line in enumerate(caption_lines):
        page.text(_COLUMN_MARGIN, caption_top + 0.13 * row, line, 7, color="#444444")
    return page


def _merged(lines: Sequence[list[_Line]]) -> list[_Line]:
    """One legend for both panels: an entry that differs between them stands there twice."""
    dense, thresholded = ({(line.color, line.style): line for line in own} for own in lines)
    merged = []
    for key in dict.fromkeys([*dense, *thresholded]):
        found = [
            (own[key], name) for own, name in ((dense, "dense"), (thresholded, "thresholded")) if key in own
        ]
        if len({line.label for line, _ in found}) == 1 and len(found) == 2:
            merged.append(found[0][0])
        else:
            merged += [replace(line, label=f"{line.label} ({name})") for line, name in reversed(found)]
    return merged


def _draw_image(
    page: Page,
    slot: tuple[float, float, float, float],
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    weights: NDArray[np.floating],
    highest: float,
    outlines: list[_Line],
    named: bool,
) -> None:
    """The image, faded where it got little attention: a pixel has the highest weight of its regions."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, withStroke
    from PIL import Image

    slot_left, slot_top, slot_width, slot_height = slot
    height, width = image.shape[:2]
    scale = min(slot_width / width, slot_height / height)
    # A strip thinner than this could not be seen; only images of extreme proportions are stretched.
    shown_width, shown_height = max(width * scale, 0.15), max(height * scale, 0.15)
    left, top = slot_left + (slot_width - shown_width) / 2, slot_top + (slot_height - shown_height) / 2

    columns, rows = max(1, round(shown_width * 250)), max(1, round(shown_height * 250))
    picture = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    weight = np.zeros((rows, columns), np.float32)
    to_pixels = np.array([columns / width, rows / height] * 2)
    for index in np.argsort(weights, kind="stable"):
        x1, y1, x2, y2 = boxes[index] * to_pixels
        weight[_pixels(y1, y2, rows), _pixels(x1, x2, columns)] = weights[index]
    # In single precision: what is shown has 256 steps.
    shown = _faded(np.asarray(picture, np.float32) / 255, np.asarray(_normalize(highest)(weight)))

    axes = page.axes(left, top, shown_width, shown_height)
    axes.imshow(shown, extent=(0, width, height, 0), aspect="auto", interpolation="none")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    taken: list[tuple[float, float, float, float]] = []
    for line in outlines:
        x1, y1, x2, y2 = line.box
        patch = Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=line.color, linestyle=line.style, linewidth=1.2
        )
        patch.set_path_effects([withStroke(linewidth=2.2, foreground="#000000c0"), Normal()])
        axes.add_patch(patch)
        if named:
            label = page.fit(line.label, min(1.2, slot_width), 7)
            size = (page.measure(label, 7) + 0.06, 0.15)
            inches = np.array([shown_width / width, shown_height / height] * 2)
            outlined = [other.box * inches + np.array([left, top] * 2) for other in outlines]
            corners = line.box * inches + np.array([left, top] * 2)
            place = _free_place(corners, size, slot, taken, outlined)
            taken.append((*place, *size))
            page.text(
                place[0] + size[0] / 2,
                place[1] + size[1] / 2,
                label,
                7,
                ha="center",
                va="center",
                bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.2},
            )


def _notes(views: tuple[AttentionView, AttentionView]) -> tuple[str, str]:
    """What is written over the dense and the thresholded image where no region has any weight."""
    dense, thresholded = (bool(view.region_weights.any()) or not view.region_weights.size for view in views)
    unread = "no attention on regions"
    return "" if dense else unread, "" if thresholded else "all regions dropped" if dense else unread


def _draw_note(page: Page, slot: tuple[float, float, float, float], note: str) -> None:
    """A note in the middle of an image, which would else look like one that is there but faded."""
    left, top, width, height = slot
    if note:
        box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 2.0}
        middle = (left + width / 2, top + height / 2)
        page.text(*middle, page.fit(note, width, 7.5), 7.5, ha="center", va="center", bbox=box)


def _faded(colors: NDArray[np.floating], clarity: NDArray[np.floating]) -> NDArray[np.floating]:
    """`colors` (..., 3) in [0, 1] as they are where `clarity` (...) is 1, pale grey where it is 0.

    What is faded is neither black nor white nor coloured, so that white and black objects stand out from it
    as coloured ones do, to colour-blind readers and in print without colours too.
    """
    luminance = colors @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    pale = (0.56 + 0.34 * luminance)[..., None]
    return pale + clarity[..., None] * (colors - pale)


def _draw_legend(page: Page, left: float, top: float, width: float, lines: list[_Line]) -> None:
    from matplotlib.lines import Line2D

    for row, line in enumerate(reversed(lines)):
        middle = top + _LEGEND_ROW * (row + 0.5)
        sample = Line2D(
            [left / page.width, (left + 0.3) / page.width],
            [1 - middle / page.height] * 2,
            color=line.color,
            linestyle=line.style,
            linewidth=1.5,
        )
        page.figure.add_artist(sample)
        page.text(left + 0.36, middle, page.fit(line.label, width - 0.36, 7), 7, va="center")


def _draw_scale(
    page: Page, left: float, top: float, height: float, highest: float, label: str, faded: bool = False
) -> None:
    """The scale of both panels beside it, in colours or from faded to clear; `left` and `top` in inches."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    length = min(height, 1.8)
    steps = np.linspace(1, 0, max(2, round(length * 100)))  # (rows,)
    if faded:
        samples = np.repeat([to_rgb(color) for color in COLORS[:3]], 4, axis=0)  # (columns, 3)
        colors = _faded(np.tile(samples, (len(steps), 1, 1)), np.tile(steps[:, None], len(samples)))
    else:
        colors = colormaps[_COLORMAP](steps)[:, None, :3]
    axes = page.axes(left + 0.08, top, 0.15 if faded else 0.09, length)
    axes.imshow(colors, extent=(0, 1, 0, 1), aspect="auto", interpolation="none")
    ticks = _scale_ticks(highest, length)
    axes.set(xticks=[], ylim=(0, 1), yticks=_normalize(highest)(np.array(ticks)))
    axes.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=6.5, pad=1.5)
    axes.spines[:].set_linewidth(0.4)
    if length > page.measure(label, 6.5):
        page.text(left + _SCALE_WIDTH, top + length / 2, label, 6.5, rotation=90, ha="right", va="center")


def _normalize(highest: float) -> Any:
    """0 to `highest` on a square-root scale, where dense attention, spread thin, does not look empty."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, highest)


def _scale_ticks(highest: float, length: float) -> list[float]:
    """Round values, far enough from each other on a bar of `length` inches."""
    step = 10.0 ** np.floor(np.log10(highest))
    rounded = next(factor * step for factor in (5, 2, 1) if factor * step <= highest * (1 + 1e-9))
    shares = (1, 0.5, 0.2, 0.05) if length > 0.8 else (1,)
    return [0.0, *sorted(rounded * share for share in shares)]


def _draw_words(
    page: Page,
    top: float,
    matrix_height: float,
    words: list[str],
    shown_words: NDArray[np.intp],
    shown_regions: NDArray[np.intp],
    region_names: list[str],
    views: tuple[AttentionView, AttentionView],
) -> None:
    """One row a word: its weight as bars, then its attention to the regions, dense and thresholded."""
    names = [page.fit(words[index], 1.1, 7.5) for index in shown_words]
    bars_left = _MARGIN + max(page.measure(name, 7.5) for name in names) + 0.08
    bars_width = 1.35
    rows_top = top + _HEADING + 0.2
    page.text(bars_left, top, "Weight of words", 8, weight="bold")
    weights = [view.word_weights[shown_words] for view in views]
    _draw_word_bars(page, (bars_left, rows_top, bars_width), names, weights, 7.5)

    matrix_left = bars_left + bars_width + 0.3
    width = (_WIDTH - _MARGIN - _SCALE_WIDTH - matrix_left - _GAP) / 2
    if not len(shown_regions):
        return
    highest = _highest(view.word_region[np.ix_(shown_words, shown_regions)] for view in views)
    # Few regions stay narrow columns: wide ones would look like more attention.
    matrix_width = min(width, 0.35 * len(shown_regions))
    for place, view in enumerate(views):
        left = matrix_left + place * (width + _GAP)
        heading = ("Word to region, dense", "Word to region, thresholded")[place]
        shown = page.fit(heading, width + _GAP - 0.05, 8, bold=True)
        page.text(left, rows_top - _HEADING, shown, 8, weight="bold")
        values = view.word_region[np.ix_(shown_words, shown_regions)]  # (T, K)
        slot = (left, rows_top, matrix_width, matrix_height)
        _draw_map(page, slot, values, highest, region_names, 45)
    _draw_scale(page, _WIDTH - _MARGIN - _SCALE_WIDTH, rows_top, matrix_height, highest, "attention")


def _draw_word_bars(
    page: Page,
    bars: tuple[float, float, float],
    names: list[str],
    weights: Sequence[NDArray[np.floating]],
    size: float,
) -> None:
    """Dense and thresholded weight of each word at `bars` (left, top, width in inches), names to the left."""
    from matplotlib.ticker import MaxNLocator

    left, top, width = bars
    count = len(names)
    for row, name in enumerate(names):
        page.text(left - 0.06, top + _WORD_ROW * (row + 0.5), name, size, ha="right", va="center")
    axes = page.axes(left, top, width, _WORD_ROW * count)
    for values, color, shift in zip(weights, (_DENSE, _THRESHOLDED), (-0.19, 0.19), strict=True):
        axes.barh(np.arange(count) + shift, values, height=0.38, color=color)
    # Words that get next to nothing must look so: the axis never spans less than this share.
    highest = max(_highest(weights), _LEAST_WORD_SPAN)
    axes.set(ylim=(count - 0.5, -0.5), xlim=(0, highest * 1.05), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3 if width > 1 else 2))
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=6.5, pad=1)
    axes.spines[["right", "bottom"]].set_visible(False)
    edge = _MARGIN if page.width == _WIDTH else _COLUMN_MARGIN
    for row, (name, color) in enumerate((("dense", _DENSE), ("thresholded", _THRESHOLDED))):
        below = top + _WORD_ROW * count + 0.06 + 0.14 * row
        page.text(edge, below, "■", 7.5, color=color)
        page.text(edge + 0.12, below, name, 7)


def _draw_map(
    page: Page,
    slot: tuple[float, float, float, float],
    values: NDArray[np.floating],
    highest: float,
    region_names: list[str],
    rotation: int,
) -> None:
    """Attention of words to regions (W, K) in `slot` (left, top, width, height), regions named below."""
    from matplotlib import colormaps

    left, top, width, height = slot
    axes = page.axes(left, top, width, height)
    axes.imshow(
        np.ma.masked_equal(values, 0),
        cmap=colormaps[_COLORMAP].with_extremes(bad=_DROPPED),
        norm=_normalize(highest),
        aspect="auto",
        interpolation="none",
    )
    axes.set(xticks=[], yticks=[])
    column = width / len(region_names)
    for index, name in enumerate(region_names):
        page.text(
            left + column * (index + 0.5) + (0.04 if rotation < 90 else 0.0),
            top + height + 0.05,
            name,
            7,
            ha="right",
            rotation=rotation,
            rotation_mode="anchor",
            va="center_baseline" if rotation < 90 else "center",
        )


def _draw_answers(
    page: Page,
    bars: tuple[float, float, float],
    names: list[str],
    probabilities: list[float],
    color: str,
    row_height: float = _ANSWER_ROW,
    size: float = 7.5,
) -> None:
    """Horizontal bars at `bars` (left, top, width in inches), their names to the left."""
    left, top, width = bars
    axes = page.axes(left, top, width, row_height * len(names))
    for row, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        page.text(left - 0.06, top + row_height * (row + 0.5), name, size, ha="right", va="center")
        axes.barh(row, probability, height=0.62, color=color)
        axes.annotate(
            _rounded(probability),
            (probability, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            annotation_clip=False,
        )
    # One scale for both panels, 0 to 1, so that the bars can be compared.
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=[])
    plain_axes(axes)
    axes.spines["bottom"].set_visible(False)


def _attended_lines(view: AttentionView, boxes: NDArray[np.float64], labels: list[str]) -> list[_Line]:
    """The most attended regions that have a fair part of the largest weight, the largest first."""
    weights = view.region_weights
    order = np.argsort(-weights, kind="stable")[:_OUTLINED]
    return [
        _Line(boxes[index], "white", "-", labels[index])
        for index in order
        if weights[index] > 0 and weights[index] >= _OUTLINED_SHARE * weights[order[0]]
    ]


def _grounding_lines(choice: _Choice, boxes: NDArray[np.float64], labels: list[str]) -> list[_Line]:
    """Boxes of a grounding, the least important first, so that the others are drawn over it."""

    def name(start: str, box: NDArray[np.float64], label: str = "") -> str:
        overlap = "" if choice.target is None else f", IoU {_iou(box, choice.target):.2f}"
        return f"{start}{label and f': {label}'}{overlap}"

    lines: list[_Line] = []
    regions: tuple[tuple[int | None, str, Literal["-", "--"], str], ...] = (
        (choice.runner_up, _RUNNER_UP, "--", "runner-up"),
        (choice.chosen, _CHOSEN, "-", "chosen region"),
    )
    for index, color, style, start in regions:
        if index is not None:
            if not 0 <= index < len(boxes):
                raise DataError(f"{start} {index} is not one of the {len(boxes)} regions")
            lines.append(_Line(boxes[index], color, style, name(start, boxes[index], labels[index])))
    if choice.predicted is not None:
        lines.append(_Line(choice.predicted, _PREDICTED, "-.", name("predicted box", choice.predicted)))
    # A good prediction covers the target; dots let what is below them through.
    if choice.target is not None and lines:
        lines.append(_Line(choice.target, _TARGET, ":", "target"))
    return lines


def _iou(box: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(box_iou_paired(box[None], other[None])[0])


def _free_place(
    box: NDArray[np.float64],
    size: tuple[float, float],
    slot: tuple[float, float, float, float],
    taken: list[tuple[float, float, float, float]],
    outlined: list[NDArray[np.float64]],
) -> tuple[float, float]:
    """Left and top (inches) for a label of `size` at `box`, inside `slot`.

    Clear of the labels in `taken`; at its box, where it can be; and covering as little as can be of the
    `outlined` boxes, each measured by its own size: a corner of a large box matters less than a small box.
    """
    x1, y1, x2, y2 = box
    width, height = size
    gap = 0.03  # the outline itself
    outside = [(left, top) for top in (y1 - height - gap, y2 + gap) for left in (x1, x2 - width)]
    beside = [(x2 + gap, y1), (x1 - width - gap, y1)]
    inside = [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
    near = len(outside) + len(beside) + len(inside)
    steps = [(x1, slot[1] + height * step) for step in range(int(slot[3] / height))]
    candidates = [
        (
            float(np.clip(left, slot[0], max(slot[0], slot[0] + slot[2] - width))),
            float(np.clip(top, slot[1], max(slot[1], slot[1] + slot[3] - height))),
        )
        for left, top in (*outside, *beside, *inside, *steps)
    ]

    def shared(place: tuple[float, float], corners: Sequence[float] | NDArray[np.float64]) -> float:
        wide = min(place[0] + width, corners[2]) - max(place[0], corners[0])
        high = min(place[1] + height, corners[3]) - max(place[1], corners[1])
        return max(wide, 0.0) * max(high, 0.0)

    labels = [(left, top, left + wide, top + high) for left, top, wide, high in taken]

    def covered(number: int) -> tuple[float, bool, float]:
        place = candidates[number]
        over_labels = sum(shared(place, corners) for corners in labels)
        shares = (
            shared(place, corners) / max((corners[2] - corners[0]) * (corners[3] - corners[1]), 1e-6)
            for corners in outlined
        )
        return round(over_labels, 6), number >= near, round(sum(shares), 3)

    return candidates[min(range(len(candidates)), key=covered)]  # the first of those that cover least


def _most_attended_words(
    views: tuple[AttentionView, AttentionView], most: int = _MAX_WORDS
) -> NDArray[np.intp]:
    """In the order of the text."""
    weights = np.maximum(views[0].word_weights, views[1].word_weights)
    return np.sort(np.argsort(-weights, kind="stable")[:most])


def _most_attended_regions(views: tuple[AttentionView, AttentionView]) -> NDArray[np.intp]:
    """The most attended first; a region counts with its share in either view, so that none is overlooked.

    There are none where nothing attends to any region, as in a model that does not see the image.
    """
    if not any(view.region_weights.any() or view.word_region.any() for view in views):
        return np.zeros(0, np.intp)
    shares = [view.region_weights / (view.region_weights.sum() or 1) for view in views]
    return np.argsort(-np.maximum(*shares), kind="stable")[:_MAX_REGIONS]


def _highest(values: Iterable[NDArray[np.floating]]) -> float:
    """Upper end of a scale common to `values`; 1 where all are 0."""
    return max((float(array.max()) for array in values if array.size), default=0.0) or 1.0


def _pixels(start: float, end: float, size: int) -> slice:
    """The pixels that a stretch covers, at least one."""
    first = int(np.clip(np.floor(start), 0, size - 1))
    return slice(first, max(first + 1, int(np.clip(np.ceil(end), 0, size))))


def _region_name(index: int, label: str) -> str:
    return f"{index} {clean_text(label)}".strip()


def _threshold_name(selection: str, threshold: float) -> str:
    if selection in TRANSFORMS:
        return f"Sparse attention ({selection})"
    if selection == "topk":
        return f"Thresholded (top {threshold:g} key{'s' * (threshold != 1)})"
    return f"Thresholded ({selection}, τ = {threshold:g})"


def _percentage(fraction: float) -> str:
    """Never "0 %" or "100 %" for what is only nearly so."""
    if 0 < fraction < 0.001:
        return "less than 0.1 %"
    if 0.999 < fraction < 1:
        return "more than 99.9 %"
    return f"{100 * fraction:.3g} %"


def _rounded(probability: float) -> str:
    """Never "0.00" or "1.00" for what is only nearly so."""
    if 0 < probability < 0.005:
        return "< 0.01"
    if 0.995 < probability < 1:
        return "> 0.99"
    return f"{probability:.2f}"


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
