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
from tbkin_core.figures.canvas import (
    COLORS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Page,
    check_format,
    figure_style,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLOT_HEIGHT, _COLUMN_PLOT_HEIGHT = 1.9, 1.4
_LEGEND_ROW = 0.16
_MAX_LABELS = 8
# Keys of a metrics row that are no measurement of the model.
_NOT_DRAWN = frozenset({"step", "epoch", "lr", "learning_rate", "seconds", "time", "samples", "examples"}) | {
    "best_accuracy"  # the higher of two that are drawn
}


def training_figure(
    path: Path, metrics: Sequence[Mapping[str, Any]], *, title: str = "", column: bool = False
) -> None:
    """Draw losses above and validation metrics below, over the same steps.

    Losses have "loss" in their key; of the others, those with "accuracy" in it, or that start with "val" or
    "eval", are metrics.

    A loss of the validation data ("val_mlm_loss") has the colour of that of training ("loss_mlm") and is
    dashed. Many noisy values are drawn thin, with their running median over them.

    Args:
        path: Ends in .png, .svg or .pdf.
        metrics: Rows in the order of the run, each with "step" and some of what was measured at it.
        title: Above the plots.
        column: Draw for one column of a paper, 3.4 inches wide, in place of 7.2: with the legend of a plot
            above it, not beside it.

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
        _draw(plots, title, column).save(Path(path))


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


_Entry = tuple[str, str, str]
"""Mark, colour and name in a legend."""


def _draw(plots: list[tuple[str, list[_Line]]], title: str, column: bool) -> Page:
    page = Page(COLUMN_WIDTH if column else PAGE_WIDTH)
    title_lines = page.wrapped_title(title)
    labels = [list(dict.fromkeys(line.label for line in lines))[:_MAX_LABELS] for _, lines in plots]
    tasks = dict.fromkeys(label.removesuffix(" accuracy") for own in labels for label in own)
    color_of = {task: COLORS[number % len(COLORS)] for number, task in enumerate(tasks)}
    colors = [{name: color_of[name.removesuffix(" accuracy")] for name in own} for own in labels]
    both = [len({line.validation for line in lines}) == 2 for _, lines in plots]
    # The legend never hides a line. What differs in data alone shares an entry.
    legends: list[list[_Entry]] = [
        [
            *(("■", color, page.fit(name, 1.6, 7.5)) for name, color in own.items()),
            *[("—", "#444444", "training"), ("╌", "#444444", "validation")] * mixed,
        ]
        for own, mixed in zip(colors, both, strict=True)
    ]
    rows = [_in_rows(page, entries) if column else [] for entries in legends]
    first = min(float(line.steps.min()) for _, lines in plots for line in lines)
    last = max(float(line.steps.max()) for _, lines in plots for line in lines)
    # Beside a plot stands its legend, or the half of the last number below it.
    beside = 0.65 + max(page.measure(name) for own in legends for _, _, name in own)
    beside = 0.1 + page.measure(f"{last:,.0f}", 7) / 2 if column else beside
    left, height = (0.55, _COLUMN_PLOT_HEIGHT) if column else (0.65, _PLOT_HEIGHT)
    width = page.width - left - beside
    # Above each plot there is room for the common factor of its scale ("1e−5").
    top, tops = 0.25 + 0.18 * len(title_lines), []
    for legend_rows in rows:
        top += _LEGEND_ROW * len(legend_rows) + (0.05 if legend_rows else 0.0)
        tops.append(top)
        top += height + 0.25
    page.resize(top + 0.25)
    page.title(title_lines)
    margin = 0.02 * (last - first) or 2.0
    for index, (label, lines) in enumerate(plots):
        axes = page.axes(left, tops[index], width, height)
        for line in lines:
            if line.label in colors[index]:
                style = "--" if line.validation and both[index] else "-"
                _draw_line(axes, line, colors[index][line.label], style)
        if column:
            # Above the common factor of the scale.
            above = tops[index] - 0.2 - _LEGEND_ROW * (len(rows[index]) - 0.5)
            for number, entries in enumerate(rows[index]):
                _draw_entries(page, left - 0.45, above + _LEGEND_ROW * number, entries)
        else:
            for number, entry in enumerate(legends[index]):
                _draw_entries(page, left + width + 0.12, tops[index] + 0.1 + _LEGEND_ROW * number, [entry])
        axes.set_xlim(first - margin, last + margin)
        _dress(axes, label, index == len(plots) - 1, 4 if column else 6)
    return page


def _dress(axes: Axes, label: str, is_last: bool, most_ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(most_ticks, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color="#e0e0e0", linewidth=0.5)
    axes.set_axisbelow(True)
    plain_axes(axes)
    if is_last:
        axes.set_xlabel("Step")
    else:
        axes.tick_params(labelbottom=False)


def _entry_width(page: Page, entry: _Entry) -> float:
    return 0.3 + page.measure(entry[2])


def _in_rows(page: Page, entries: list[_Entry]) -> list[list[_Entry]]:
    """Entries of a legend in as few lines as the page allows."""
    rows: list[list[_Entry]] = [[]]
    for entry in entries:
        used = sum(_entry_width(page, one) for one in rows[-1])
        if rows[-1] and used + _entry_width(page, entry) > page.width - 0.15:
            rows.append([])
        rows[-1].append(entry)
    return rows


def _draw_entries(page: Page, left: float, middle: float, entries: list[_Entry]) -> None:
    """Entries of a legend beside each other."""
    for entry in entries:
        mark, color, name = entry
        page.text(left, middle, mark, color=color, va="center")
        page.text(left + 0.16, middle, name, va="center")
        left += _entry_width(page, entry)


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
