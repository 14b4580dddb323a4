"""Many answers on one sheet: small pictures with what was asked, what was answered and what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.errors import DataError
from tbkin_core.figures.canvas import (
    COLORS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Page,
    check_format,
    draw_box,
    figure_style,
)

# All in inches.
_GAP = 0.16
_PICTURE = 1.25  # height
_LINE = 0.135
_SIZE = 7.5  # points
_TEXT_LINES = 3
_ANSWER_LINES = 2
GIVEN, RIGHT = COLORS[1], COLORS[2]


@dataclass(frozen=True)
class SheetItem:
    """One answer."""

    image: NDArray[np.uint8] | None  # (H, W, 3) uint8, or None where there is no picture
    text: str  # question or expression
    given: str  # what the model answered, in words; empty for a box
    right: str  # what would have been right
    correct: bool | None = False  # whether the answer counts as right; None where nobody knows
    box: ArrayLike | None = None  # (4,) xyxy that the model chose, in pixels of `image`
    target: ArrayLike | None = None  # (4,) xyxy of the true box


@dataclass(frozen=True)
class SheetGroup:
    """Answers under one heading."""

    heading: str
    items: Sequence[SheetItem] = ()


def pictures_in_row(column: bool) -> int:
    """How many pictures stand beside each other, over the width of a page or in one column of a paper."""
    return 2 if column else 4


def contact_sheet(
    path: Path,
    groups: Sequence[SheetGroup],
    *,
    title: str = "",
    caption: str = "",
    mark: str = "",
    column: bool = False,
) -> None:
    """Draw answers in rows of four, or in a column of a paper of two, a heading above each group.

    Groups without items are omitted; the caption stands below the title, in smaller letters. For `mark` see
    `tbkin_core.figures.canvas.figure_mark`.

    Raises:
        DataError: There is nothing to draw, or an image is none.
        ConfigError: The format is unknown.
    """
    check_format(path)
    groups = [group for group in groups if group.items]
    if not groups:
        raise DataError("a contact sheet needs at least one answer, got none")
    with figure_style():
        _draw(groups, title, caption, column).save(Path(path), mark)


_Cell = tuple[SheetItem, list[tuple[str, str]]]
"""An item, and its lines as they fit, each with its colour."""


def _draw(groups: Sequence[SheetGroup], title: str, caption: str, column: bool) -> Page:
    page = Page(COLUMN_WIDTH if column else PAGE_WIDTH)
    margin, across = 0.05 if column else 0.15, pictures_in_row(column)
    inner = page.width - 2 * margin
    cell = (inner - (across - 1) * _GAP) / across
    title_lines = page.wrap(title, inner, 9 if column else 10, lines=3 if column else 2, bold=True)
    caption_lines = page.wrap(caption, inner, _SIZE, lines=6 if column else 3)
    rows: list[tuple[str, list[_Cell]]] = []
    for group in groups:
        cells = [(item, _lines(page, item, cell)) for item in group.items]
        for begin in range(0, len(cells), across):
            rows.append((group.heading if begin == 0 else "", cells[begin : begin + across]))
    top = margin + 0.19 * len(title_lines) + 0.14 * len(caption_lines) + 0.1
    tops = []
    for heading, cells in rows:
        top += 0.26 if heading else 0.0
        tops.append(top)
        top += max(_PICTURE + 0.06 + _LINE * len(lines) for _, lines in cells) + 0.14
    page.resize(top + margin - 0.1)
    page.lines(margin, margin, title_lines, 0.19, size=9 if column else 10, weight="bold")
    below = margin + 0.19 * len(title_lines) + 0.03
    page.lines(margin, below, caption_lines, 0.14, size=_SIZE, color="#444444")
    for (heading, cells), row_top in zip(rows, tops, strict=True):
        if heading:
            page.text(margin, row_top - 0.21, page.fit(heading, inner, 8.5, bold=True), 8.5, weight="bold")
        for place, (item, lines) in enumerate(cells):
            left = margin + place * (cell + _GAP)
            if item.image is None:
                middle = (left + cell / 2, row_top + _PICTURE / 2)
                page.text(*middle, "no picture", _SIZE, ha="center", va="center")
            else:
                _draw_picture(page, left, row_top, cell, item, item.image)
            for number, (line, color) in enumerate(lines):
                page.text(left, row_top + _PICTURE + 0.06 + _LINE * number, line, _SIZE, color=color)
    return page


def _lines(page: Page, item: SheetItem, cell: float) -> list[tuple[str, str]]:
    mark, color = {True: ("✓ ", RIGHT), False: ("✗ ", GIVEN), None: ("", "#444444")}[item.correct]
    parts = [(item.text, "black", _TEXT_LINES)]
    parts += [(f"{mark}{item.given}", color, _ANSWER_LINES)] * bool(item.given)
    parts += [(f"✓ {item.right}", RIGHT, _ANSWER_LINES)] * bool(item.right)
    return [(line, color) for text, color, most in parts for line in page.wrap(text, cell, _SIZE, most)]


def _draw_picture(
    page: Page, left: float, top: float, cell: float, item: SheetItem, image: NDArray[np.uint8]
) -> None:
    from matplotlib.patheffects import withStroke

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError("a picture of a contact sheet must be (H, W, 3) uint8")
    height, width = image.shape[:2]
    scale = min(cell / width, _PICTURE / height)
    shown = max(width * scale, 0.1), max(height * scale, 0.1)
    axes = page.axes(left, top + _PICTURE - shown[1], *shown)
    axes.imshow(image, extent=(0, width, height, 0), aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for box, color, style in ((item.target, RIGHT, ":"), (item.box, GIVEN, "-")):
        if box is not None:
            corners = np.nan_to_num(np.asarray(box, np.float64))
            halo = withStroke(linewidth=2.3, foreground="#ffffffc0")
            draw_box(axes, corners, halo, edgecolor=color, linestyle=style, linewidth=1.3)
