"""Where the panels of an answer's figure stand, in inches: on a whole page, or in one column of a paper."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tbkin_core.figures.attention_panels import (
    LEGEND_ROW,
    SCALE_WIDTH,
    SIDE_COLORS,
    WORD_ROW,
    Outline,
    draw_answers,
    draw_image,
    draw_legend,
    draw_map,
    draw_map_scale,
    draw_note,
    draw_picture_scale,
    draw_row_names,
    draw_word_bars,
)
from tbkin_core.figures.canvas import Page, Slot
from tbkin_core.figures.scale import FULL, OUTLINED, full_share, percent, rounded_percent, stands_out
from tbkin_core.figures.views import AttentionView

_WIDTH = 7.2
_MARGIN = 0.15
_GAP = 0.2
_HEADING = 0.2
_ANSWER_ROW = 0.2
_MAX_REGIONS = 10
_MAX_WORDS = 24

_COLUMN = 3.4  # width of one of two columns, with what follows for it
_COLUMN_MARGIN = 0.05
_COLUMN_GAP = 0.12
_COLUMN_ANSWER_ROW = 0.16
_COLUMN_WORDS = 12
_COLUMN_REGIONS = 8
_COLUMN_ANSWERS = 3

_MOST_OUTLINED = 3


@dataclass(frozen=True)
class Content:
    """What a figure of an answer shows, checked; of each pair the first is dense, the second thresholded."""

    image: NDArray[np.uint8]  # (H, W, 3)
    boxes: NDArray[np.float64]  # (K, 4) xyxy in pixels of the image
    regions: list[str]  # K names, numbered
    words: list[str]  # W
    views: list[AttentionView]  # attention on regions and words
    heading: str  # of the thresholded side; that of the other is "Dense attention"
    short_heading: str  # where there is less room; that of the other is "Dense"
    answers: list[list[tuple[str, float]]]  # (answer, probability), best first
    grounding: bool  # whether the answer is a box; the images then show `outlines`, else what was attended to
    outlines: list[list[Outline]]  # boxes of the grounding, those drawn first first
    kept_fraction: float  # share of the attention entries kept, in [0, 1]
    title: str  # the question or expression
    note: str  # ends the caption

    def most_attended_words(self, most: int) -> NDArray[np.intp]:
        """In the order of the text."""
        weights = np.maximum(*(view.word_weights for view in self.views))
        return np.sort(np.argsort(-weights, kind="stable")[:most])

    def most_attended_regions(self, most: int) -> NDArray[np.intp]:
        """The most attended first; a region counts with its share in either view: none is overlooked.

        There are none where nothing attends to any region, as in a model that does not see the image.
        """
        if not any(view.region_weights.any() or view.word_region.any() for view in self.views):
            return np.zeros(0, np.intp)
        shares = [view.region_weights / (view.region_weights.sum() or 1) for view in self.views]
        return np.argsort(-np.maximum(*shares), kind="stable")[:most]

    def drawn_outlines(self, side: int) -> list[Outline]:
        """Boxes of the grounding; else the most attended regions that stand out."""
        if self.grounding:
            return self.outlines[side]
        weights = self.views[side].region_weights
        order = np.argsort(-weights, kind="stable")[:_MOST_OUTLINED]
        order = order[stands_out(weights[order], self.even)]
        return [Outline(self.boxes[index], "white", "-", self.regions[index]) for index in order]

    @property
    def even(self) -> float:
        """The even share, the same of both passes."""
        return self.views[0].even_share

    def image_notes(self) -> tuple[str, str]:
        """What is written over the dense and the thresholded image where no region has any weight."""
        dense, thresholded = (view.region_weights.any() or not len(self.boxes) for view in self.views)
        unread = "no attention on regions"
        return "" if dense else unread, "" if thresholded else "all regions dropped" if dense else unread

    def caption_start(self) -> str:
        caption = f"{self.heading} keeps {percent(self.kept_fraction)} of the attention entries."
        return caption + (f" Weights: {self.views[0].source}." if self.views[0].source else "")

    def scale_in_words(self) -> str:
        """The one scale of colours (see `tbkin_core.figures.scale`), and which regions are outlined by it."""
        even, full = rounded_percent(self.even), full_share(self.even)
        times = f"{FULL:g} times the even share of {even}" if full < 1 else f"the even share is {even}"
        words = (
            "Regions, words and maps have one scale of colour: none at 0, full from"
            f" {rounded_percent(full)} of the attention ({times}, the dotted line)."
        )
        if self.grounding or not any(view.region_weights.any() for view in self.views):
            return words  # the boxes of a grounding have a legend
        rule = "Outlined: regions with at least twice the even share."
        return " ".join([words, rule, *self._without_outlines()])

    def _without_outlines(self) -> list[str]:
        """Of the passes that no region stands out in, what attention looks like there."""
        found = {}
        for name, view in zip(("dense", "thresholded"), self.views, strict=True):
            highest = float(view.region_weights.max(initial=0))
            if highest and not stands_out(highest, self.even):
                # Little on all regions is another thing than alike on all of them.
                alike = highest < OUTLINED * float(view.region_weights.mean()) and highest > self.even / 2
                how = "is nearly even on regions" if alike else "reaches that on no region"
                found[name] = f"{how}: at most {rounded_percent(highest)}"
        if len(found) == 2 and found["dense"] == found["thresholded"]:
            return [f"Attention {found['dense']}."]
        return [f"{name.capitalize()} attention {words}." for name, words in found.items()]


@dataclass(frozen=True)
class _Shown:
    """The part of a content that a layout has room for; what both layouts measure and draw of it."""

    words: NDArray[np.intp]  # (w,) numbers of the words shown
    regions: NDArray[np.intp]  # (k,) numbers of the regions shown
    weights: list[NDArray[np.floating]]  # (w,) of the words, dense and thresholded
    maps: list[NDArray[np.floating]]  # (w, k) attention, dense and thresholded

    @classmethod
    def of(cls, content: Content, most_words: int, most_regions: int) -> _Shown:
        words = content.most_attended_words(most_words)
        regions = content.most_attended_regions(most_regions)
        weights = [view.word_weights[words] for view in content.views]
        maps = [view.word_region[np.ix_(words, regions)] for view in content.views]
        return cls(words, regions, weights, maps)


@dataclass(frozen=True)
class _Section:
    """A part of a page over its whole width; its heights add up, `draw` takes the place of its top."""

    heights: tuple[float, ...] = ()
    draw: Callable[[float], None] = lambda top: None


def _stack(page: Page, sections: Sequence[_Section], margin: float) -> Page:
    """Draw sections below each other, on a page as high as they are."""
    tops = [margin]
    for section in sections:
        # One after the other, so that a figure is the same to the last bit however it is cut into sections.
        tops.append(functools.reduce(operator.add, section.heights, tops[-1]))
    page.resize(tops[-1] + margin)
    for top, section in zip(tops, sections, strict=False):
        section.draw(top)
    return page


def _draw_panel(page: Page, slot: Slot, content: Content, side: int) -> None:
    shares, outlines = content.views[side].region_weights, content.drawn_outlines(side)
    named = not content.grounding
    draw_image(page, slot, content.image, content.boxes, shares, content.even, outlines, named)
    draw_note(page, slot, content.image_notes()[side])


def _answer_panel(
    page: Page, content: Content, width: float, size: float, row: float, number_width: float
) -> Callable[[int, float, float], None]:
    """What draws the answers of a side at a left and a top; both sides alike, to compare their bars."""
    labels = [[page.fit(answer, width * 0.45, size) for answer, _ in given] for given in content.answers]
    label_width = max((page.measure(label, size) for own in labels for label in own), default=0.0) + 0.08

    def draw(side: int, left: float, top: float) -> None:
        heading = ("Dense", "Thresholded")[side] + (": regions" if content.grounding else ": answers")
        page.text(left, top, heading, 8, weight="bold")
        bars = (left + label_width, top + _HEADING, width - label_width - number_width)
        if chances := [probability for _, probability in content.answers[side]]:
            draw_answers(page, bars, labels[side], chances, SIDE_COLORS[side], row, size)

    return draw


# ---- a page -------------------------------------------------------------------------------------


def page_layout(content: Content) -> Page:
    """Title and caption, the images, words beside their maps, answers; dense left, thresholded right."""
    page = Page(_WIDTH)
    shown = _Shown.of(content, _MAX_WORDS, _MAX_REGIONS)
    sections = [
        _title_and_caption(page, content, shown),
        _images(page, content, shown),
        _words_and_maps(page, content, shown),
        _answers_side_by_side(page, content),
    ]
    return _stack(page, sections, _MARGIN)


def _page_caption(content: Content, shown: _Shown) -> str:
    caption = content.caption_start()
    words, regions = len(shown.words), len(shown.regions)
    if regions:
        caption += f" {content.scale_in_words()}"
    elif len(content.boxes):
        caption += " No word attends to a region: the answer is from the words alone."
    if words and any((view.word_region[:, shown.regions] == 0).any() for view in content.views):
        caption += " Grey cells: dropped."
    if words and 0 < regions < len(content.boxes):
        caption += f" Below: the {regions} most attended of {len(content.boxes)} regions."
    if words < len(content.words):
        caption += f" {words} of {len(content.words)} words are shown."
    return f"{caption} {content.note}" if regions else caption


def _title_and_caption(page: Page, content: Content, shown: _Shown) -> _Section:
    inner = _WIDTH - 2 * _MARGIN
    title = page.wrap(content.title, inner, 10, lines=4, bold=True)
    caption = page.wrap(_page_caption(content, shown), inner, 7.5, lines=6)
    title_height = 0.19 * len(title) + 0.03

    def draw(top: float) -> None:
        page.lines(_MARGIN, top, title, 0.19, size=10, weight="bold")
        page.lines(_MARGIN, top + title_height, caption, 0.14, color="#444444")

    return _Section((title_height, 0.14 * len(caption), 0.1), draw)


def _images(page: Page, content: Content, shown: _Shown) -> _Section:
    """Side by side, or wide ones one below the other, each with its legend; one scale for both."""
    inner = _WIDTH - 2 * _MARGIN
    height, width = content.image.shape[:2]
    stacked = width > 2.4 * height
    slot_width = inner - SCALE_WIDTH if stacked else (inner - SCALE_WIDTH - _GAP) / 2
    slot_height = float(np.clip(slot_width * height / width, 0.35, 2.0 if stacked else 3.4))
    rows = max(map(len, content.outlines))
    panel_height = _HEADING + slot_height + (LEGEND_ROW * rows + 0.05 if rows else 0.0)

    def draw(images_top: float) -> None:
        for side, view in enumerate(content.views):
            left = _MARGIN + (0 if stacked else side * (slot_width + _GAP))
            top = images_top + (side * (panel_height + 0.1) if stacked else 0)
            on_regions = percent(float(view.region_weights.sum()))
            share = f"{on_regions} on regions" if len(content.boxes) else ""
            room = slot_width - (page.measure(share, 7) + 0.1)
            heading = page.fit(("Dense attention", content.heading)[side], room, 8, bold=True)
            page.text(left, top, heading, 8, weight="bold")
            page.text(left + slot_width, top + 0.02, share, 7, ha="right", color="#444444")
            _draw_panel(page, (left, top + _HEADING, slot_width, slot_height), content, side)
            legend_top = top + _HEADING + slot_height + 0.05
            draw_legend(page, left, legend_top, slot_width, content.outlines[side])
        if len(shown.regions):
            scale_left, scale_top = _WIDTH - _MARGIN - SCALE_WIDTH, images_top + _HEADING
            scale_height = slot_height + (panel_height + 0.1 if stacked else 0)
            draw_picture_scale(page, scale_left, scale_top, scale_height, content.image, content.even)

    return _Section((panel_height * (2 if stacked else 1), 0.1 if stacked else 0, _GAP), draw)


def _words_and_maps(page: Page, content: Content, shown: _Shown) -> _Section:
    """One row per word: its weight as bars, then its attention to the regions, dense and thresholded."""
    if not len(shown.words):
        return _Section()
    region_names = [page.fit(content.regions[index], 0.85, 7) for index in shown.regions]
    names_height = max((page.measure(name, 7) for name in region_names), default=0.2) * 0.71 + 0.15
    rows_height = WORD_ROW * len(shown.words)
    names = [page.fit(content.words[index], 1.1, 7.5) for index in shown.words]
    bars_left = _MARGIN + max(page.measure(name, 7.5) for name in names) + 0.08
    bars_width = 1.35
    maps_left = bars_left + bars_width + 0.3
    scale_left = _WIDTH - _MARGIN - SCALE_WIDTH
    width = (scale_left - maps_left - _GAP) / 2
    # Few regions stay narrow columns: wide ones would look like more attention.
    map_width = min(width, 0.35 * len(shown.regions))

    def draw(top: float) -> None:
        rows_top = top + _HEADING + 0.2
        page.text(bars_left, top, "Weight of words", 8, weight="bold")
        draw_word_bars(
            page, (bars_left, rows_top, bars_width), names, shown.weights, content.even, 7.5, _MARGIN
        )
        if not len(shown.regions):
            return
        for side, values in enumerate(shown.maps):
            left = maps_left + side * (width + _GAP)
            heading = ("Word to region, dense", "Word to region, thresholded")[side]
            fitted = page.fit(heading, width + _GAP - 0.05, 8, bold=True)
            page.text(left, rows_top - _HEADING, fitted, 8, weight="bold")
            slot = (left, rows_top, map_width, rows_height)
            draw_map(page, slot, values, content.even, region_names, 45)
        draw_map_scale(page, scale_left, rows_top, rows_height, content.even)

    return _Section((_HEADING + 0.2 + rows_height + max(names_height, 0.35) + 0.1,), draw)


def _answers_side_by_side(page: Page, content: Content) -> _Section:
    rows = max(map(len, content.answers))
    if not rows:
        return _Section((-0.1,))
    width = (_WIDTH - 2 * _MARGIN - _GAP) / 2
    draw_side = _answer_panel(page, content, width, 7.5, _ANSWER_ROW, 0.4)

    def draw(top: float) -> None:
        for side in (0, 1):
            draw_side(side, _MARGIN + side * (width + _GAP), top)

    return _Section((_HEADING + _ANSWER_ROW * rows,), draw)


# ---- a column -----------------------------------------------------------------------------------

_INNER = _COLUMN - 2 * _COLUMN_MARGIN
_HALF = (_INNER - _COLUMN_GAP) / 2
_LEFTS = (_COLUMN_MARGIN, _COLUMN_MARGIN + _HALF + _COLUMN_GAP)


def column_layout(content: Content) -> Page:
    """As `page_layout`, in half the width: images, words beside answers, maps, and the caption last."""
    page = Page(_COLUMN)
    content = replace(content, answers=[given[:_COLUMN_ANSWERS] for given in content.answers])
    shown = _Shown.of(content, _COLUMN_WORDS, _COLUMN_REGIONS)
    names = [page.fit(content.words[index], 0.62, 7) for index in shown.words]
    names_width = max((page.measure(name, 7) for name in names), default=0.0) + 0.08
    title = page.wrap(content.title, _INNER, 9, lines=3, bold=True)
    legend = _merged(content.outlines)
    sections = [
        _Section(
            (0.17 * len(title), 0.05),
            lambda top: page.lines(_COLUMN_MARGIN, top, title, 0.17, size=9, weight="bold"),
        ),
        _column_images(page, content, shown),
        _Section(
            (LEGEND_ROW * len(legend), 0.1),
            lambda top: draw_legend(page, _COLUMN_MARGIN, top, _INNER, legend),
        ),
        _words_beside_answers(page, content, shown, names, names_width),
        _column_maps(page, content, shown, names, names_width),
        _column_caption(page, content, shown),
    ]
    return _stack(page, sections, _COLUMN_MARGIN)


def _column_images(page: Page, content: Content, shown: _Shown) -> _Section:
    height, width = content.image.shape[:2]
    slot_height = float(np.clip(_HALF * height / width, 0.35, 2.2))

    def draw(top: float) -> None:
        for side, heading in enumerate(("Dense", content.short_heading)):
            left = _LEFTS[side]
            page.text(left, top, page.fit(heading, _HALF, 8, bold=True), 8, weight="bold")
            _draw_panel(page, (left, top + _HEADING, _HALF, slot_height), content, side)

    return _Section((_HEADING, slot_height, 0.05), draw)


def _merged(outlines: list[list[Outline]]) -> list[Outline]:
    """One legend for both images: an entry that differs between them stands there twice."""
    dense, thresholded = ({(one.color, one.style): one for one in own} for own in outlines)
    merged = []
    for key in dict.fromkeys([*dense, *thresholded]):
        sides = (("thresholded", thresholded.get(key)), ("dense", dense.get(key)))
        found = [(name, one) for name, one in sides if one is not None]
        if len(found) == 2 and found[0][1].label == found[1][1].label:
            merged.append(found[1][1])
        else:
            merged += [replace(one, label=f"{one.label} ({name})") for name, one in found]
    return merged


def _words_beside_answers(
    page: Page, content: Content, shown: _Shown, names: list[str], names_width: float
) -> _Section:
    draw_side = _answer_panel(page, content, _HALF, 7, _COLUMN_ANSWER_ROW, 0.36)
    heights = [
        _HEADING + _COLUMN_ANSWER_ROW * len(given) + 0.06 if given else 0.0 for given in content.answers
    ]
    words_height = _HEADING + 0.16 + WORD_ROW * len(names) + 0.32 if names else 0.0

    def draw(top: float) -> None:
        if names:
            page.text(_LEFTS[0], top, "Weight of words", 8, weight="bold")
            bars = (_LEFTS[0] + names_width, top + _HEADING + 0.16, _HALF - names_width)
            draw_word_bars(page, bars, names, shown.weights, content.even, 7, _COLUMN_MARGIN)
        for side, given in enumerate(content.answers):
            if given:
                draw_side(side, _LEFTS[1], top)
            top += heights[side]

    return _Section((max(words_height, sum(heights)), 0.1), draw)


def _column_maps(
    page: Page, content: Content, shown: _Shown, names: list[str], names_width: float
) -> _Section:
    if not len(shown.words) or not len(shown.regions):
        return _Section()
    region_names = [page.fit(content.regions[index], 0.7, 7) for index in shown.regions]
    names_height = max(page.measure(name, 7) for name in region_names) + 0.1
    rows_height = WORD_ROW * len(names)
    width = (_INNER - names_width - _COLUMN_GAP) / 2

    def draw(top: float) -> None:
        rows_top = top + _HEADING
        draw_row_names(page, _LEFTS[0] + names_width, rows_top, names, WORD_ROW, 7)
        for side, heading in enumerate(("Map, dense", "Map, thresholded")):
            left = _LEFTS[0] + names_width + side * (width + _COLUMN_GAP)
            page.text(left, top, page.fit(heading, width, 8, bold=True), 8, weight="bold")
            slot = (left, rows_top, min(width, 0.3 * len(shown.regions)), rows_height)
            draw_map(page, slot, shown.maps[side], content.even, region_names, 90)

    return _Section((_HEADING + rows_height + names_height + 0.05,), draw)


def _column_caption(page: Page, content: Content, shown: _Shown) -> _Section:
    caption = content.caption_start()
    words, regions, total = len(shown.words), len(shown.regions), len(content.boxes)
    if total and not regions:
        caption += " No word attends to a region: the answer is from the words alone."
    elif total:
        shares = [percent(float(view.region_weights.sum())) for view in content.views]
        caption += f" On regions: {shares[0]} dense, {shares[1]} thresholded."
        caption += f" {content.scale_in_words()}"
    if words and regions:
        caption += f" Map: {regions} of {total} regions." if regions < total else ""
        if any((values == 0).any() for values in shown.maps):
            caption += " Grey: dropped."
    if words < len(content.words):
        caption += f" {words} of {len(content.words)} words."
    lines = page.wrap(f"{caption} {content.note}" if regions else caption, _INNER, 7, lines=12)
    return _Section(
        (0.13 * len(lines),),
        lambda top: page.lines(_COLUMN_MARGIN, top, lines, 0.13, size=7, color="#444444"),
    )
