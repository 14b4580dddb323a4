"""Training loss and validation metrics over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.figures.canvas import COLORS, Page, check_format, figure_style, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 7.2
_PLOT_HEIGHT = 1.9
_MAX_LABELS = 8
# Keys of a metrics row that are no measurement of the model.
_NOT_DRAWN = frozenset({"step", "epoch", "lr", "learning_rate", "seconds", "time", "samples", "examples"}) | {
    "best_accuracy"  # the higher of two that are drawn
}


def training_figure(path: Path, metrics: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Draw losses above and validation metrics below, over the same steps.

    Losses have "loss" in their key; of the others, those with "accuracy" in it, or that start with "val" or
    "eval", are metrics.

    A loss of the validation data ("val_mlm_loss") has the colour of that of training ("loss_mlm") and is
    dashed. Many noisy values are drawn thin, with their running median over them.

    Args:
        path: Ends in .png, .svg or .pdf.
        metrics: Rows in the order of the run, each with "step" and some of what was measured at it.
        title: Above the plots.

    Raises:
        DataError: No row has a step and a loss or metric.
        ConfigError: The format is unknown.
    """
    check_format(path)
    names = list(dict.fromkeys(key for row in metrics for key in row if key not in _NOT_DRAWN))
    losses = [name for name in names if "loss" in name]
    others = [name for name in names if "loss" not in name]
    others = [name for name in others if "accuracy" in name or name.startswith(("val", "eval"))]
    percent = all("accuracy" in name for name in others)
    plots = [
        (label, lines)
        for label, keys in (("Loss", losses), (f"Validation{' (%)' * percent}", others))
        if (lines := [line for key in keys if (line := _line(metrics, key)).steps.size])
    ]
    if not plots:
        raise DataError(
            f"a training figure needs rows with a step and a loss or metric, got {len(metrics)} rows "
            f"with {', '.join(names) or 'no keys'}"
        )
    with figure_style():
        _draw(plots, title).save(Path(path))


@dataclass(frozen=True)
class _Line:
    """What one key measured at (N,) steps."""

    label: str
    validation: bool
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def _label(key: str) -> str:
    """ "loss_mlm" and "val_mlm_loss" are both "mlm"; "val_itm_accuracy" is "itm accuracy"."""
    words = [word for word in key.split("_") if word not in ("val", "eval")]
    named = [word for word in words if word != "loss"]
    return " ".join(named) if named else "loss"


def _draw(plots: list[tuple[str, list[_Line]]], title: str) -> Page:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    page = Page(_WIDTH)
    title_lines = page.wrapped_title(title)
    # Above each plot there is room for the common factor of its scale ("1e−5").
    top = 0.25 + 0.18 * len(title_lines)
    # The legend stands beside the plots: it never hides a line. What differs in data alone shares an entry.
    labels = [list(dict.fromkeys(line.label for line in lines))[:_MAX_LABELS] for _, lines in plots]
    both = [len({line.validation for line in lines}) == 2 for _, lines in plots]
    names = [page.fit(label, 1.6, 7.5) for own in labels for label in own] + ["validation"] * any(both)
    legend_width = 0.5 + max(page.measure(name, 7.5) for name in names)
    left, gap = 0.65, 0.25
    width = _WIDTH - left - legend_width - 0.15
    page.resize(top + (_PLOT_HEIGHT + gap) * len(plots) - gap + 0.5)
    page.title(title_lines)
    first = min(float(line.steps.min()) for _, lines in plots for line in lines)
    last = max(float(line.steps.max()) for _, lines in plots for line in lines)
    margin = 0.02 * (last - first) or 2.0
    tasks = dict.fromkeys(label.removesuffix(" accuracy") for own in labels for label in own)
    color_of = {task: COLORS[number % len(COLORS)] for number, task in enumerate(tasks)}
    for index, (label, lines) in enumerate(plots):
        plot_top = top + index * (_PLOT_HEIGHT + gap)
        axes = page.axes(left, plot_top, width, _PLOT_HEIGHT)
        colors = {name: color_of[name.removesuffix(" accuracy")] for name in labels[index]}
        for line in lines:
            if line.label in colors:
                style = "--" if line.validation and both[index] else "-"
                _draw_line(axes, line, colors[line.label], style)
        entries = [("■", color, name) for name, color in colors.items()]
        entries += [("—", "#444444", "training"), ("╌", "#444444", "validation")] * both[index]
        for number, (mark, color, name) in enumerate(entries):
            row = plot_top + 0.1 + 0.16 * number
            page.text(left + width + 0.12, row, mark, 7.5, color=color, va="center")
            page.text(left + width + 0.28, row, page.fit(name, 1.6, 7.5), 7.5, va="center")
        axes.set_xlim(first - margin, last + margin)
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(axis="y", color="#e0e0e0", linewidth=0.5)
        axes.set_axisbelow(True)
        plain_axes(axes)
        if index < len(plots) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("Step")
    return page


def _draw_line(axes: Axes, line: _Line, color: str, style: str) -> None:
    from scipy.ndimage import median_filter

    steps, values = line.steps, line.values
    if len(values) > 60:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.35)
        smooth = median_filter(values, size=2 * (len(values) // 60) + 3, mode="reflect")
        axes.plot(steps, smooth, color=color, linewidth=1.4, linestyle=style)
    else:
        marker = "o" if len(values) <= 25 else ""
        axes.plot(steps, values, color=color, marker=marker, markersize=3, linewidth=1.4, linestyle=style)


def _line(metrics: Sequence[Mapping[str, Any]], key: str) -> _Line:
    """The rows that have a step and the key as finite numbers, by step."""
    # A resumed run measures some steps again: the last value counts.
    points = {
        float(row["step"]): float(row[key])
        for row in metrics
        if all(
            isinstance(row.get(name), (int, float, np.number)) and math.isfinite(float(row[name]))
            for name in ("step", key)
        )
    }
    steps, values = np.array(sorted(points.items()), np.float64).reshape(-1, 2).T
    return _Line(_label(key), key.startswith("val"), steps, values)
