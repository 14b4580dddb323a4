"""What all figures share: a page measured in inches, colours, text that fits, and writing to disk."""

from __future__ import annotations

import contextlib
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from tbkin_core.errors import ConfigError
from tbkin_core.support.console import OBEYED
from tbkin_core.support.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

Slot = tuple[float, float, float, float]
"""Left, top, width and height of a place on a page, in inches."""

# Okabe and Ito (2008): eight colours that colour-blind readers tell apart, in the order used here.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
PAGE_WIDTH, COLUMN_WIDTH = 7.2, 3.4  # inches, of both columns of a paper and of one
FORMATS = (".png", ".svg", ".pdf")  # what the name of every figure's file ends in
DOTS_PER_INCH = 200
# Tried in this order for what DejaVu Sans, which comes with matplotlib, cannot write.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Thai",
    "Noto Emoji",
    "Arial Unicode MS",
)
_MOST_LETTERS = 400  # no line holds more; without a bound, a book given as a question takes minutes
# What says in a figure's file what it was drawn from.
_MARK = re.compile(rb"tbkin (?:trace|results|search) [0-9a-f]{8}")
_MARK_WITHIN = 4096  # bytes of its beginning or end
_TICKS = {"labelsize": 7, "major.size": 2.5, "major.width": 0.6}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Settings for drawing and writing one figure; the caller's own matplotlib settings come back after.

    Text is never read as mathematics (a question may contain "$"), and a character that no installed font has
    becomes a box without a warning.
    """
    import matplotlib
    from matplotlib import font_manager

    fallback = [font for font in font_manager.fontManager.ttflist if font.name in _FALLBACK_FONTS]
    installed = {font.name for font in fallback}
    # TrueType is what journals take, where many refuse the default, Type 3. What some OpenType fonts have in
    # its place may not be embedded as such.
    true_type = not any(font.fname.lower().endswith((".otf", ".ttc")) for font in fallback)
    settings: dict[str, Any] = {
        "axes.edgecolor": "#444444",
        "axes.labelsize": 7.5,
        "axes.linewidth": 0.6,
        **{f"{axis}.{name}": value for axis in ("xtick", "ytick") for name, value in _TICKS.items()},
        "font.family": [
            "DejaVu Sans",
            *(name for name in _FALLBACK_FONTS if name in installed),
            "sans-serif",
        ],
        "font.size": 7.5,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "pdf.fonttype": 42 if true_type else 3,
        "svg.fonttype": "none",  # letters, which can be searched and edited, not their outlines
        "svg.hashsalt": "tbkin",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, settings))  # its keys are typed as literals
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def check_format(path: Path) -> None:
    """Raise ConfigError when `path` does not end in a format that figures can be written in."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{path}: unknown figure format {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}"
        )


def figure_mark(path: Path) -> str:
    """What a figure's file says that it was drawn from ("tbkin trace 1a2b3c4d"); "" of any other file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            ends = file.read(_MARK_WITHIN)
            file.seek(max(0, path.stat().st_size - _MARK_WITHIN))
            ends += b"\n" + file.read(_MARK_WITHIN)
    except OSError:
        return ""
    found = _MARK.search(ends)
    return found[0].decode() if found else ""


def clean_text(text: object) -> str:
    """`text` on one line, without what cannot be drawn, is not allowed in SVG, or turns the direction."""
    joined = OBEYED.sub("", " ".join(str(text).split()))
    kept = (character for character in joined if unicodedata.category(character) != "Cn")
    return "".join(kept)


def region_name(index: int, label: str) -> str:
    """ "3 dog"; of a region without a label the number alone."""
    return f"{index} {clean_text(label)}".strip()


class Page:
    """A figure whose parts are placed in inches from its top left corner.

    Args:
        width: Inches; the height is set by `resize`, before anything is drawn.
    """

    def __init__(self, width: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, 4.0
        self.figure: Figure = Figure(figsize=(width, self.height), dpi=DOTS_PER_INCH, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)

    def resize(self, height: float) -> None:
        self.height = height
        self.figure.set_size_inches(self.width, height)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )

    def text(self, left: float, top: float, text: str, size: float = 7.5, **options: Any) -> None:
        """Write `text` with its top left corner there, unless `ha` or `va` say otherwise."""
        options = {"va": "top", "ha": "left"} | options
        self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, **options)

    def lines(self, left: float, top: float, lines: Sequence[str], row: float, **options: Any) -> None:
        """Write `lines` below each other, one every `row` inches; options as for `text`."""
        for number, line in enumerate(lines):
            self.text(left, top + row * number, line, **options)

    def title(self, lines: Sequence[str]) -> None:
        """Write the title of a figure of curves, as `wrapped_title` has it."""
        left = 0.15 if self.width > COLUMN_WIDTH else 0.05
        self.lines(left, max(left - 0.03, 0.05), lines, 0.18, size=9, weight="bold")

    def wrapped_title(self, title: str) -> list[str]:
        margin = 0.15 if self.width > COLUMN_WIDTH else 0.05
        return self.wrap(title, self.width - 2 * margin, 9, lines=3, bold=True)

    def measure(self, text: str, size: float = 7.5, bold: bool = False) -> float:
        """Width of `text` in inches."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=size, weight="bold" if bold else "normal")
        width, _, _ = self._canvas.get_renderer().get_text_width_height_descent(text, font, ismath=False)
        return float(width) / DOTS_PER_INCH

    def fit(self, text: object, width: float, size: float = 7.5, bold: bool = False) -> str:
        """`text`, shortened with an ellipsis until it is at most `width` inches wide."""
        whole = clean_text(text)
        shown = whole[:_MOST_LETTERS]
        if shown == whole and self.measure(shown, size, bold) <= width:
            return shown
        low, high = 0, len(shown)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.measure(shown[:middle].rstrip() + "…", size, bold) <= width
            low, high = (middle, high) if fits else (low, middle - 1)
        return shown[:low].rstrip() + "…"

    def wrap(self, text: object, width: float, size: float, lines: int, bold: bool = False) -> list[str]:
        """`text` in at most `lines` lines of at most `width` inches; the last one shortened if need be."""
        rest = clean_text(text)[: _MOST_LETTERS * lines]
        wrapped: list[str] = []
        while rest and len(wrapped) < lines - 1 and self.measure(rest, size, bold) > width:
            fitting = len(self.fit(rest, width, size, bold)) - 1  # without the ellipsis
            space = rest.rfind(" ", 0, fitting + 1)
            # A word longer than the line is broken where the line ends.
            end = space if space > fitting // 2 else max(1, fitting)
            wrapped.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        return [*wrapped, self.fit(rest, width, size, bold)] if rest else wrapped

    def save(self, path: Path, mark: str = "") -> None:
        """Write the figure, whole or not at all, in the format that the suffix of `path` names.

        `mark` is kept in the file, see `figure_mark`.
        """
        suffix = Path(path).suffix.lower()
        # Without a date, drawing the same figure again gives the same file.
        metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
        if mark:
            metadata |= {"Keywords" if suffix == ".pdf" else "Source": mark}
        with atomic_path(Path(path)) as temporary:
            # The default of 6 makes a file 5 % smaller and takes twice as long.
            options: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if suffix == ".png" else {}
            self.figure.savefig(temporary, dpi=DOTS_PER_INCH, format=suffix[1:], metadata=metadata, **options)


def plain_axes(axes: Axes) -> None:
    """Leave only the left and the bottom line of a plot."""
    axes.spines[["top", "right"]].set_visible(False)


def draw_box(axes: Axes, box: ArrayLike, halo: AbstractPathEffect, **style: Any) -> None:
    """Outline a box (x1, y1, x2, y2) over a halo that sets it off from the picture."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal

    x1, y1, x2, y2 = np.asarray(box)
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, path_effects=[halo, Normal()], **style))


def placed_inside(slot: Slot, left: float, top: float, size: tuple[float, float]) -> tuple[float, float]:
    """The left and top nearest to those given where something of `size` lies within `slot`."""
    return (
        float(np.clip(left, slot[0], max(slot[0], slot[0] + slot[2] - size[0]))),
        float(np.clip(top, slot[1], max(slot[1], slot[1] + slot[3] - size[1]))),
    )
