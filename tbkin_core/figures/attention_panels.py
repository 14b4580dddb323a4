"""The panels of an answer's figure: image, legend, keys to the scale, words, map and answers.

Colours are as strong as `tbkin_core.figures.scale` says. All places and sizes are in inches from the top left
corner of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tbkin_core.figures.canvas import COLORS, Page, Slot, draw_box, placed_inside, plain_axes
from tbkin_core.figures.scale import full_share, levels, normalize, rounded_percent, strength

SCALE_WIDTH = 0.78  # a key to the scale with its numbers
WORD_ROW = 0.17
LEGEND_ROW = 0.15
SIDE_COLORS = COLORS[:2]  # of dense and thresholded attention

_SAMPLE = 0.32  # width of a picture in the key to the scale
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
    shares: NDArray[np.floating],
    even: float,
    outlines: list[Outline],
    named: bool,
) -> None:
    """The image, faded where it got little attention: a pixel is as clear as the strongest of its regions."""
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
    clarity = np.zeros((rows, columns), np.float32)
    clear = strength(shares, even)
    to_pixels = np.array([columns / width, rows / height] * 2)
    for index in np.argsort(clear, kind="stable"):
        x1, y1, x2, y2 = boxes[index] * to_pixels
        clarity[_pixels(y1, y2, rows), _pixels(x1, x2, columns)] = clear[index]
    # In single precision: what is shown has 256 steps.
    shown = _faded(np.asarray(picture, np.float32) / 255, clarity)

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
    from matplotlib.patheffects import Normal, withStroke

    # As on the image: pale colours would not be seen on white.
    halo = [withStroke(linewidth=2.4, foreground="#000000c0"), Normal()]
    for row, line in enumerate(reversed(lines)):
        middle = top + LEGEND_ROW * (row + 0.5)
        ends = [left / page.width, (left + 0.3) / page.width], [1 - middle / page.height] * 2
        sample = Line2D(*ends, color=line.color, linestyle=line.style, linewidth=1.3, path_effects=halo)
        page.figure.add_artist(sample)
        page.text(left + 0.36, middle, page.fit(line.label, width - 0.36, 7), 7, va="center")


def draw_picture_scale(
    page: Page, left: float, top: float, height: float, image: NDArray[np.uint8], even: float
) -> None:
    """The key to the images: the image itself, small, as clear as it is at some shares of attention."""
    from PIL import Image

    sample = np.clip(_SAMPLE * image.shape[0] / image.shape[1], 0.12, 0.42)
    row = max(float(sample) + 0.08, 0.2)
    most = max(image.shape[:2])
    small = (
        np.asarray(Image.fromarray(image).resize((64, 64) if most > 64 else (most, most)), np.float32) / 255
    )
    for number, share in enumerate(levels(even, int((height + 0.08) / row))):
        clear = np.full(small.shape[:2], strength(share, even), np.float32)
        axes = page.axes(left + 0.08, top + row * number, _SAMPLE, float(sample))
        axes.imshow(_faded(small, clear), aspect="auto", interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_linewidth(0.4)
        middle = top + row * number + float(sample) / 2
        label = _level_label(share, even)
        if share == even and row > 0.26:
            page.text(left + _SAMPLE + 0.12, middle + 0.1, "even", 6.5, va="center")
        page.text(left + _SAMPLE + 0.12, middle, label, 6.5, va="center")


def draw_map_scale(page: Page, left: float, top: float, height: float, even: float) -> None:
    """The key to the maps: their colours from none to full, with the shares of attention."""
    from matplotlib import colormaps

    length = min(height, 1.8)
    steps = np.linspace(1, 0, max(2, round(length * 100)))  # (rows,)
    axes = page.axes(left + 0.08, top, 0.09, length)
    colors = colormaps[_COLORMAP](steps)[:, None, :3]
    axes.imshow(colors, extent=(0, 1, 0, 1), aspect="auto", interpolation="none")
    ticks = levels(even, max(2, int(length / 0.16)))
    axes.set(xticks=[], ylim=(0, 1), yticks=strength(ticks, even))
    axes.set_yticklabels([_level_label(tick, even) for tick in ticks])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=6.5, pad=1.5)
    axes.spines[:].set_linewidth(0.4)


def _level_label(share: float, even: float) -> str:
    more = full_share(even) <= share < 1
    return f"{'≥ ' * more}{rounded_percent(share)}"


def draw_word_bars(
    page: Page,
    bars: tuple[float, float, float],
    names: list[str],
    weights: Sequence[NDArray[np.floating]],
    even: float,
    size: float,
    edge: float,
) -> None:
    """Dense and thresholded weight of each word at `bars` (left, top, width), names to the left.

    A bar is as long as its share and coloured as strongly as that share is anywhere; the axis spans at least
    the share of full colour, so that words that get next to nothing look so. `edge` is where the key to the
    two colours begins, below.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    left, top, width = bars
    count = len(names)
    draw_row_names(page, left, top, names, WORD_ROW, size)
    axes = page.axes(left, top, width, WORD_ROW * count)
    for values, color, shift in zip(weights, SIDE_COLORS, (-0.19, 0.19), strict=True):
        strong = strength(values, even)[:, None]
        shown = 1 - strong * (1 - np.array(to_rgb(color)))
        axes.barh(np.arange(count) + shift, values, height=0.38, color=shown)
    highest = max(full_share(even), *(float(values.max(initial=0)) for values in weights))
    axes.axvline(even, color="#777777", linewidth=0.7, linestyle=":")
    axes.set(ylim=(count - 0.5, -0.5), xlim=(0, highest * 1.05), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3 if width > 1 else 2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded_percent(value) if value else "0"))
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
    page: Page, slot: Slot, values: NDArray[np.floating], even: float, names: list[str], rotation: int
) -> None:
    """Attention of words to regions (W, K) in `slot` (left, top, width, height), regions named below."""
    from matplotlib import colormaps

    left, top, width, height = slot
    axes = page.axes(left, top, width, height)
    colors, norm = colormaps[_COLORMAP].with_extremes(bad=_DROPPED), normalize(even)
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


def _faded(colors: NDArray[np.floating], clarity: NDArray[np.floating]) -> NDArray[np.floating]:
    """`colors` (..., 3) in [0, 1] as they are where `clarity` (...) is 1, pale grey where it is 0.

    What is faded is neither black nor white nor coloured, so that white and black objects stand out from it
    as coloured ones do, to colour-blind readers and in print without colours too.
    """
    luminance = colors @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    pale = (0.56 + 0.34 * luminance)[..., None]
    return pale + clarity[..., None] * (colors - pale)


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
