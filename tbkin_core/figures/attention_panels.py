"""The panels of an answer's figure: image, legend, scale, words, map and answers, each where it belongs.

All places and sizes are in inches from the top left corner of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tbkin_core.figures.canvas import COLORS, Page, Slot, draw_box, placed_inside, plain_axes

SCALE_WIDTH = 0.64  # a colour bar with its numbers
WORD_ROW = 0.17
LEGEND_ROW = 0.15
SIDE_COLORS = COLORS[:2]  # of dense and thresholded attention

_LEAST_WORD_SPAN = 0.05
_COLORMAP = "viridis"
_DROPPED = "#e6e6e6"
_ON_IMAGE: dict[str, Any] = {"facecolor": "white", "alpha": 0.85, "linewidth": 0}  # what text stands on


LineStyle = Literal["-", "--", "-.", ":"]


@dataclass(frozen=True)
class Outline:
    """A box (x1, y1, x2, y2) to outline on the image, and its entry in the legend."""

    box: NDArray[np.float64]
    color: str
    style: LineStyle
    label: str


def draw_image(
    page: Page,
    slot: Slot,
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    weights: NDArray[np.floating],
    highest: float,
    outlines: list[Outline],
    named: bool,
) -> None:
    """The image, faded where it got little attention: a pixel has the highest weight of its regions."""
    from matplotlib.patheffects import withStroke
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
    taken: list[Slot] = []
    inches = np.array([shown_width / width, shown_height / height] * 2)
    outlined = [line.box * inches + np.array([left, top] * 2) for line in outlines]
    for line, corners in zip(outlines, outlined, strict=True):
        halo = withStroke(linewidth=2.2, foreground="#000000c0")
        draw_box(axes, line.box, halo, edgecolor=line.color, linestyle=line.style, linewidth=1.2)
        if named:
            label = page.fit(line.label, min(1.2, slot_width), 7)
            size = (page.measure(label, 7) + 0.06, 0.15)
            place = _free_place(corners, size, slot, taken, outlined)
            taken.append((*place, *size))
            middle = (place[0] + size[0] / 2, place[1] + size[1] / 2)
            page.text(*middle, label, 7, ha="center", va="center", bbox={**_ON_IMAGE, "pad": 1.2})


def draw_note(page: Page, slot: Slot, note: str) -> None:
    """A note in the middle of an image, which would else look like one that is there but faded."""
    left, top, width, height = slot
    if note:
        middle = (left + width / 2, top + height / 2)
        shown, box = page.fit(note, width, 7.5), {**_ON_IMAGE, "pad": 2.0}
        page.text(*middle, shown, 7.5, ha="center", va="center", bbox=box)


def draw_legend(page: Page, left: float, top: float, width: float, lines: list[Outline]) -> None:
    from matplotlib.lines import Line2D

    for row, line in enumerate(reversed(lines)):
        middle = top + LEGEND_ROW * (row + 0.5)
        ends = [left / page.width, (left + 0.3) / page.width], [1 - middle / page.height] * 2
        page.figure.add_artist(Line2D(*ends, color=line.color, linestyle=line.style, linewidth=1.5))
        page.text(left + 0.36, middle, page.fit(line.label, width - 0.36, 7), 7, va="center")


def draw_scale(
    page: Page, left: float, top: float, height: float, highest: float, label: str, faded: bool = False
) -> None:
    """The scale of both panels beside it, in colours or from faded to clear."""
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
        page.text(left + SCALE_WIDTH, top + length / 2, label, 6.5, rotation=90, ha="right", va="center")


def _scale_ticks(highest: float, length: float) -> list[float]:
    """Round values, far enough from each other on a bar of `length` inches."""
    step = 10.0 ** np.floor(np.log10(highest))
    rounded = next(factor * step for factor in (5, 2, 1) if factor * step <= highest * (1 + 1e-9))
    shares = (1, 0.5, 0.2, 0.05) if length > 0.8 else (1,)
    return [0.0, *sorted(rounded * share for share in shares)]


def draw_word_bars(
    page: Page,
    bars: tuple[float, float, float],
    names: list[str],
    weights: Sequence[NDArray[np.floating]],
    size: float,
    edge: float,
) -> None:
    """Dense and thresholded weight of each word at `bars` (left, top, width), names to the left.

    `edge` is where the key to the two colours begins, below.
    """
    from matplotlib.ticker import MaxNLocator

    left, top, width = bars
    count = len(names)
    draw_row_names(page, left, top, names, WORD_ROW, size)
    axes = page.axes(left, top, width, WORD_ROW * count)
    for values, color, shift in zip(weights, SIDE_COLORS, (-0.19, 0.19), strict=True):
        axes.barh(np.arange(count) + shift, values, height=0.38, color=color)
    # Words that get next to nothing must look so: the axis never spans less than this share.
    highest = max(highest_of(weights), _LEAST_WORD_SPAN)
    axes.set(ylim=(count - 0.5, -0.5), xlim=(0, highest * 1.05), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3 if width > 1 else 2))
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=6.5, pad=1)
    axes.spines[["right", "bottom"]].set_visible(False)
    for row, (name, color) in enumerate(zip(("dense", "thresholded"), SIDE_COLORS, strict=True)):
        below = top + WORD_ROW * count + 0.06 + 0.14 * row
        page.text(edge, below, "■", 7.5, color=color)
        page.text(edge + 0.12, below, name, 7)


def draw_row_names(
    page: Page, right: float, top: float, names: list[str], row_height: float, size: float
) -> None:
    """Names that end a little left of `right`, each in the middle of its row."""
    for row, name in enumerate(names):
        page.text(right - 0.06, top + row_height * (row + 0.5), name, size, ha="right", va="center")


def draw_map(
    page: Page, slot: Slot, values: NDArray[np.floating], highest: float, names: list[str], rotation: int
) -> None:
    """Attention of words to regions (W, K) in `slot` (left, top, width, height), regions named below."""
    from matplotlib import colormaps

    left, top, width, height = slot
    axes = page.axes(left, top, width, height)
    colors, norm = colormaps[_COLORMAP].with_extremes(bad=_DROPPED), _normalize(highest)
    axes.imshow(np.ma.masked_equal(values, 0), colors, norm, aspect="auto", interpolation="none")
    axes.set(xticks=[], yticks=[])
    column = width / len(names)
    shift, align = (0.04, "center_baseline") if rotation < 90 else (0.0, "center")
    style: dict[str, Any] = {"ha": "right", "va": align, "rotation": rotation, "rotation_mode": "anchor"}
    for index, name in enumerate(names):
        page.text(left + column * (index + 0.5) + shift, top + height + 0.05, name, 7, **style)


def draw_answers(
    page: Page,
    bars: tuple[float, float, float],
    names: list[str],
    probabilities: list[float],
    color: str,
    row_height: float,
    size: float,
) -> None:
    """Horizontal bars at `bars` (left, top, width), their names to the left."""
    left, top, width = bars
    axes = page.axes(left, top, width, row_height * len(names))
    draw_row_names(page, left, top, names, row_height, size)
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    for row, probability in enumerate(probabilities):
        axes.barh(row, probability, height=0.62, color=color)
        axes.annotate(_rounded(probability), (probability, row), xytext=(3, 0), fontsize=7, **style)
    # One scale for both panels, 0 to 1, so that the bars can be compared.
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=[])
    plain_axes(axes)
    axes.spines["bottom"].set_visible(False)


def highest_of(values: Iterable[NDArray[np.floating]]) -> float:
    """Upper end of a scale common to `values`; 1 where all are 0."""
    return max((float(array.max()) for array in values if array.size), default=0.0) or 1.0


def _faded(colors: NDArray[np.floating], clarity: NDArray[np.floating]) -> NDArray[np.floating]:
    """`colors` (..., 3) in [0, 1] as they are where `clarity` (...) is 1, pale grey where it is 0.

    What is faded is neither black nor white nor coloured, so that white and black objects stand out from it
    as coloured ones do, to colour-blind readers and in print without colours too.
    """
    luminance = colors @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    pale = (0.56 + 0.34 * luminance)[..., None]
    return pale + clarity[..., None] * (colors - pale)


def _normalize(highest: float) -> Any:
    """0 to `highest` on a square-root scale, where dense attention, spread thin, does not look empty."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, highest)


def _pixels(start: float, end: float, size: int) -> slice:
    """The pixels that a stretch covers, at least one."""
    first = int(np.clip(np.floor(start), 0, size - 1))
    return slice(first, max(first + 1, int(np.clip(np.ceil(end), 0, size))))


def _free_place(
    box: NDArray[np.float64],
    size: tuple[float, float],
    slot: Slot,
    taken: list[Slot],
    outlined: list[NDArray[np.float64]],
) -> tuple[float, float]:
    """Left and top for a label of `size` at `box`, inside `slot`.

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
    candidates = [placed_inside(slot, *corner, size) for corner in (*outside, *beside, *inside, *steps)]

    def shared(place: tuple[float, float], corners: Sequence[float] | NDArray[np.float64]) -> float:
        wide = min(place[0] + width, corners[2]) - max(place[0], corners[0])
        high = min(place[1] + height, corners[3]) - max(place[1], corners[1])
        return max(wide, 0.0) * max(high, 0.0)

    labels = [(left, top, left + wide, top + high) for left, top, wide, high in taken]

    def covered(number: int) -> tuple[float, bool, float]:
        place = candidates[number]
        over_labels = sum(shared(place, corners) for corners in labels)
        shares = sum(
            shared(place, own) / max((own[2] - own[0]) * (own[3] - own[1]), 1e-6) for own in outlined
        )
        return round(over_labels, 6), number >= near, round(shares, 3)

    return candidates[min(range(len(candidates)), key=covered)]  # the first of those that cover least


def _rounded(probability: float) -> str:
    """Never "0.00" or "1.00" for what is only nearly so."""
    if 0 < probability < 0.005:
        return "< 0.01"
    if 0.995 < probability < 1:
        return "> 0.99"
    return f"{probability:.2f}"
