"""Accuracy and sparsity over the threshold, one line per selection rule; sparsity by layer and direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.evaluation.attribution import DIRECTIONS
from tbkin_core.figures.canvas import (
    COLORS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Page,
    check_format,
    clean_text,
    figure_style,
    plain_axes,
)
from tbkin_core.selection import RULE_TABLE, Rule

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_PLOT_HEIGHT, _COLUMN_PLOT_HEIGHT = 2.6, 1.8
_LEVEL_STYLE = "-."
_GREY = "#555555"
_NO_RULE = Rule("")  # where only the dense model was measured
_BAND = "95 % interval"

_Entry = tuple[str, Any, Any]
"""Name, colour and style of line of an entry of the legend; `_BAND` is an area."""


def sweep_figure(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    accuracy_name: str = "Accuracy (%)",
    column: bool = False,
) -> None:
    """Draw a threshold sweep: accuracy with its interval (left axis), attention kept (right axis, dashed).

    Args:
        path: Ends in .png, .svg or .pdf.
        rows: One per measurement: "selection", "threshold", "accuracy" (percent), "kept_fraction" (in [0, 1])
            and, if known, "accuracy_low", "accuracy_high" (percent). A row of threshold 0 is the dense model,
            drawn as a horizontal line, and so is what has no threshold (sparsemax, entmax15).
        title: Above the plot.
        accuracy_name: Label of the left axis.
        column: Draw for one column of a paper, 3.4 inches wide, in place of 7.2: plots below each other.

    Raises:
        DataError: There are no rows, or one lacks its keys.
        ConfigError: The format is unknown.
    """
    check_format(path)
    with figure_style():
        _draw(_checked(rows), title, accuracy_name, column).save(Path(path))


def _draw(rows: list[dict[str, Any]], title: str, accuracy_name: str, column: bool) -> Page:
    page = Page(COLUMN_WIDTH if column else PAGE_WIDTH)
    selections = list(dict.fromkeys(row["selection"] for row in rows if not _is_dense(row)))
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(selections)}
    dense = [row for row in rows if _is_dense(row)]
    levels = [row for row in rows if _is_level(row)]
    groups = _plots([RULE_TABLE[name] for name in selections])

    title_lines = page.wrapped_title(title)
    top = 0.15 + 0.18 * len(title_lines)
    left, right, gap, below = (0.55, 0.5, 0.25, 0.4) if column else (0.6, 0.6, 0.25, 0.42)
    # In a column plots stand below each other.
    across, down = (1, len(groups)) if column else (len(groups), 1)
    width = (page.width - left - right - gap * (across - 1)) / across
    height = _COLUMN_PLOT_HEIGHT if column else _PLOT_HEIGHT
    legend_top = top + (height + below) * down + (down - 1) * 0.1
    entries: list[_Entry] = [
        (name, colors[name], _LEVEL_STYLE if RULE_TABLE[name].is_transform else "-") for name in selections
    ]
    entries += [("dense", _GREY, ":")] * bool(dense)
    entries.append(("attention kept", _GREY, "--"))
    entries += [(_BAND, _GREY, "")] * any(math.isfinite(row["accuracy_low"]) for row in rows)
    legend_rows = _legend_rows(page, entries)
    page.resize(legend_top + 0.17 * len(legend_rows) + 0.1)
    page.title(title_lines)

    limits = _accuracy_limits(rows)
    for index, group in enumerate(groups):
        place = (left + (index % across) * (width + gap), top + index // across * (height + below + 0.1))
        axes = page.axes(*place, width, height)
        kept_axes = axes.twinx()
        _draw_plot(axes, kept_axes, group, rows, dense, colors)
        for row in levels:
            color = colors[row["selection"]]
            kept = 100 * row["kept_fraction"]
            axes.axhline(row["accuracy"], color=color, linestyle=_LEVEL_STYLE, linewidth=1.2, zorder=1)
            kept_axes.axhline(kept, color=color, linestyle="--", linewidth=0.8, zorder=1)
        shown = group[0] if group else _NO_RULE
        axes.set_xlabel(shown.axis + shown.axis_detail)
        axes.set(ylim=limits)
        kept_axes.set(ylim=(0, 105), yticks=[0, 25, 50, 75, 100])
        plain_axes(axes)
        kept_axes.spines[["top", "left", "bottom"]].set_visible(False)
        kept_axes.spines["right"].set_linestyle("--")
        if index % across == 0:
            axes.set_ylabel(accuracy_name)
        else:
            axes.tick_params(labelleft=False)
        if index % across == across - 1:
            kept_axes.set_ylabel("Attention kept (%)")
        else:
            kept_axes.tick_params(labelright=False, right=False)
    _draw_legend(page, legend_top, legend_rows)
    return page


def _draw_plot(
    axes: Axes,
    kept_axes: Axes,
    group: list[Rule],
    rows: list[dict[str, Any]],
    dense: list[dict[str, Any]],
    colors: Mapping[str, str],
) -> None:
    if dense:
        axes.axhline(dense[0]["accuracy"], color=_GREY, linestyle=":", linewidth=1.2, zorder=1)
    for rule in group:
        own = [row for row in rows if row["selection"] == rule.name and not _is_dense(row)]
        # The line of a rule that does not tend to the dense model at 0 starts at the first real threshold.
        own += dense[:1] if rule.dense_at_zero else []
        own.sort(key=lambda row: row["threshold"])
        threshold, accuracy, low, high, kept = (
            np.array([row[key] for row in own])
            for key in ("threshold", "accuracy", "accuracy_low", "accuracy_high", "kept_fraction")
        )
        color = colors[rule.name]
        marker = "o" if len(own) <= 30 else ""
        axes.fill_between(threshold, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)
        axes.plot(threshold, accuracy, color=color, marker=marker, markersize=3, linewidth=1.4, zorder=4)
        kept_axes.plot(threshold, 100 * kept, color=color, linestyle="--", linewidth=1.0, zorder=3)
        if len(own) == 1:
            # One point shows neither a band nor a dashed line.
            axes.vlines(threshold, low, high, color=color, alpha=0.4, linewidth=2, zorder=2)
            kept_axes.plot(threshold, 100 * kept, color=color, marker="_", markersize=9)
    names = [rule.name for rule in group]
    thresholds = [row["threshold"] for row in rows if row["selection"] in names]
    _scale_thresholds(axes, thresholds, 6, any(rule.whole for rule in group))
    if not group and dense:
        kept_axes.plot([0], [100 * dense[0]["kept_fraction"]], color=_GREY, marker="_", markersize=9)


def _scale_thresholds(axes: Axes, thresholds: list[float], most: int, whole: bool) -> None:
    """At most so many ticks on the axis of the thresholds, at round values."""
    from matplotlib.ticker import MaxNLocator

    if len(set(thresholds)) < 2:
        # A scale fitted to one threshold would show digits without meaning.
        middle = thresholds[0] if thresholds else 0.0
        axes.set_xlim(*((-0.05, 1.05) if 0 <= middle <= 1 else (middle - 1, middle + 1)))
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole))


def _plots(rules: list[Rule]) -> list[list[Rule]]:
    """Rules by plot: those whose thresholds mean the same share one; those that begin at dense come first."""
    plots: dict[str, list[Rule]] = {}
    for rule in sorted(rules, key=lambda rule: not rule.dense_at_zero):
        if not rule.is_transform:
            plots.setdefault(rule.axis + rule.axis_detail, []).append(rule)
    return list(plots.values()) or [[]]


def _accuracy_limits(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Around all intervals, and never so narrow that half a point looks like a cliff."""
    values = np.array([row[key] for row in rows for key in ("accuracy", "accuracy_low", "accuracy_high")])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 100.0
    low, high = float(values.min()), float(values.max())
    margin = max(0.08 * (high - low), (4 - (high - low)) / 2)
    return max(low - margin, min(-0.5, low)), min(high + margin, max(100.5, high))


def _legend_rows(page: Page, entries: list[_Entry]) -> list[list[_Entry]]:
    """`entries` in as few lines as the page allows."""
    rows: list[list[_Entry]] = [[]]
    used = 0.0
    for entry in entries:
        needed = _entry_width(page, entry[0])
        if rows[-1] and used + needed > page.width - (0.3 if page.width > COLUMN_WIDTH else 0.1):
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += needed
    return rows


def _entry_width(page: Page, name: str) -> float:
    return 0.47 + page.measure(name, 7.5)


def _draw_legend(page: Page, top: float, rows: list[list[_Entry]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    for index, entries in enumerate(rows):
        left = (page.width - sum(_entry_width(page, name) for name, _, _ in entries) + 0.17) / 2
        middle = top + 0.17 * (index + 0.5)
        for name, color, style in entries:
            ends = [left / page.width, (left + 0.25) / page.width]
            height = 1 - middle / page.height
            sample: Artist = Line2D(ends, [height, height], color=color, linestyle=style, linewidth=1.4)
            if name == _BAND:
                size = (ends[1] - ends[0], 0.09 / page.height)
                corner = (ends[0], height - size[1] / 2)
                sample = Rectangle(corner, *size, color=color, alpha=0.25, linewidth=0)
            page.figure.add_artist(sample)
            page.text(left + 0.3, middle, name, 7.5, va="center")
            left += _entry_width(page, name)


def regions_figure(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    accuracy_name: str = "Accuracy (%)",
    column: bool = False,
) -> None:
    """Draw accuracy over the number of regions an image has: a line, with its interval, per selection.

    Args:
        path: Ends in .png, .svg or .pdf.
        rows: As for `sweep_figure`, each with "regions".
        title: Above the plot.
        accuracy_name: Label of the axis.
        column: As for `sweep_figure`.

    Raises:
        DataError: There are no rows, or one lacks its keys.
        ConfigError: The format is unknown.
    """
    check_format(path)
    checked = _checked(rows)
    if missing := [index for index, row in enumerate(rows) if "regions" not in row]:
        raise DataError(f"sweep row {missing[0]}: no regions in {sorted(rows[missing[0]])}")
    counted = [{**row, "regions": int(given["regions"])} for row, given in zip(checked, rows, strict=True)]
    with figure_style():
        _draw_regions(counted, title, accuracy_name, column).save(Path(path))


def _draw_regions(rows: list[dict[str, Any]], title: str, accuracy_name: str, column: bool) -> Page:
    from matplotlib.ticker import FixedLocator, NullLocator

    page = Page(COLUMN_WIDTH if column else PAGE_WIDTH)
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        rule = _NO_RULE if _is_dense(row) else RULE_TABLE[row["selection"]]
        name = rule.name or "dense"
        lines.setdefault(
            name if rule.is_transform or not rule.name else f"{name} {row['threshold']:g}", []
        ).append(row)
    # Dense is grey; of many lines, more than there are colours, some are dashed, too.
    styles = [("-", color) for color in COLORS] + [("--", color) for color in COLORS]
    others = [name for name in lines if name != "dense"]
    drawn = {name: styles[place % len(styles)] for place, name in enumerate(others)} | {"dense": (":", _GREY)}
    entries: list[_Entry] = [(name, drawn[name][1], drawn[name][0]) for name in lines]
    entries += [(_BAND, _GREY, "")] * any(math.isfinite(row["accuracy_low"]) for row in rows)
    legend_rows = _legend_rows(page, entries)
    title_lines = page.wrapped_title(title)
    top, below = 0.15 + 0.18 * len(title_lines), 0.42
    height = _COLUMN_PLOT_HEIGHT if column else _PLOT_HEIGHT
    page.resize(top + height + below + 0.17 * len(legend_rows) + 0.1)
    page.title(title_lines)
    left, right = (0.55, 0.1) if column else (0.6, 0.2)
    axes = page.axes(left, top, page.width - left - right, height)
    for name, own in lines.items():
        style, color = drawn[name]
        counts, accuracy, low, high = (
            np.array([row[key] for row in own])
            for key in ("regions", "accuracy", "accuracy_low", "accuracy_high")
        )
        axes.fill_between(counts, low, high, color=color, alpha=0.12, linewidth=0, zorder=2)
        axes.plot(counts, accuracy, color=color, linestyle=style, marker="o", markersize=3, linewidth=1.4)
    axes.set_xscale("log")
    numbers = sorted({row["regions"] for row in rows})
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{count:,}" for count in numbers])
    axes.set(xlabel="Regions per image at most", ylabel=accuracy_name, ylim=_accuracy_limits(rows))
    plain_axes(axes)
    _draw_legend(page, top + height + below, legend_rows)
    return page


def sparsity_figure(
    path: Path, rows: Sequence[Mapping[str, Any]], *, title: str = "", column: bool = False
) -> None:
    """Draw the share of attention kept over the threshold: a column per direction, a line per layer.

    Args:
        path: Ends in .png, .svg or .pdf.
        rows: As for `sweep_figure`, each with "kept": for each of `DIRECTIONS` the share in [0, 1] per layer,
            None where there is no such pair. What has no threshold is drawn level, over all layers.
        title: Above the plots.
        column: Draw for one column of a paper, 3.4 inches wide, in place of 7.2: two directions in a row.

    Raises:
        DataError: There are no rows, or one lacks its keys.
        ConfigError: The format is unknown.
    """
    check_format(path)
    checked = _checked(rows)
    kept = []
    for index, row in enumerate(rows):
        if "kept" not in row or set(row["kept"]) != set(DIRECTIONS):
            raise DataError(f"sweep row {index}: kept must hold {', '.join(DIRECTIONS)}")
        table = [[math.nan if share is None else share for share in row["kept"][name]] for name in DIRECTIONS]
        kept.append(100 * np.array(table, np.float64).reshape(len(DIRECTIONS), -1))  # (4, layers)
    with figure_style():
        _draw_sparsity(checked, kept, title, column).save(Path(path))


def _draw_sparsity(rows: list[dict[str, Any]], kept: list[Any], title: str, column: bool) -> Page:
    from matplotlib import colormaps

    page = Page(COLUMN_WIDTH if column else PAGE_WIDTH)
    layers = max(table.shape[1] for table in kept)
    # Dark to light with the depth; the end of the scale is too pale for a thin line.
    shades = [colormaps["viridis"](0.85 * layer / max(layers - 1, 1)) for layer in range(layers)]
    level_rows = [(row["selection"], table) for row, table in zip(rows, kept, strict=True) if _is_level(row)]
    levels = [(name, table, COLORS[1 + place % 4]) for place, (name, table) in enumerate(level_rows)]
    names = [row["selection"] for row in rows if not _is_dense(row) and not _is_level(row)]
    plots = [RULE_TABLE[name] for name in dict.fromkeys(names)] or [_NO_RULE]
    # Of many layers the legend names some; the shades tell the rest.
    named = sorted({round(place) for place in np.linspace(0, layers - 1, min(layers, 7))})
    entries: list[_Entry] = [(f"layer {layer}", shades[layer], "-") for layer in named]
    entries += [(name, color, _LEVEL_STYLE) for name, _, color in levels]
    legend_rows = _legend_rows(page, entries)
    title_lines = page.wrapped_title(title)
    top, gap, height = 0.4 + 0.18 * len(title_lines), 0.14, 1.0 if column else 1.35
    left, right, below = (0.45, 0.1, 0.62) if column else (0.6, 0.15, 0.45)
    across = 2 if column else len(DIRECTIONS)
    down = len(DIRECTIONS) // across  # rows of plots for each rule
    width = (page.width - left - right - gap * (across - 1)) / across
    legend_top = top + len(plots) * down * (height + below) - (0.17 if column else 0)
    page.resize(legend_top + 0.17 * len(legend_rows) + 0.12)
    page.title(title_lines)
    for number, rule in enumerate(plots):
        own = [
            (row["threshold"], table)
            for row, table in zip(rows, kept, strict=True)
            if (rule.dense_at_zero if _is_dense(row) else row["selection"] == rule.name)
        ]
        own.sort(key=lambda one: one[0])
        thresholds = [threshold for threshold, _ in own]
        for place, direction in enumerate(DIRECTIONS):
            plot_left = left + place % across * (width + gap)
            plot_top = top + (number * down + place // across) * (height + below)
            axes = page.axes(plot_left, plot_top, width, height)
            shares = np.array([table[place] for _, table in own]).reshape(len(own), -1)  # (rows, layers)
            _draw_layers(axes, rule, thresholds, shares, shades)
            for _, table, color in levels:
                level = float(np.mean(table[place]))
                axes.axhline(level, color=color, linestyle=_LEVEL_STYLE, linewidth=1.0)
            if not np.isfinite(np.concatenate([table[place] for table in kept])).any():
                axes.text(0.5, 0.5, "no such pairs", transform=axes.transAxes, ha="center", color="#777777")
            if place % across:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(f"{rule.name}: kept (%)" if len(plots) > 1 else "Kept (%)")
            if number == 0 or down > 1:
                heading = direction.replace("-to-", " → ")
                page.text(plot_left + width / 2, plot_top - 0.08, heading, 8, ha="center", va="bottom")
    _draw_legend(page, legend_top, legend_rows)
    return page


def _draw_layers(
    axes: Axes, rule: Rule, thresholds: list[float], shares: NDArray[np.float64], shades: Sequence[Any]
) -> None:
    """Percent kept (rows, layers) over the thresholds of a rule, a line for each layer."""
    marker = "o" if len(shares) <= 12 else ""
    for layer in range(shares.shape[1]):
        style = {"color": shades[layer], "marker": marker, "markersize": 2, "linewidth": 1.2}
        axes.plot(thresholds, shares[:, layer], **style)
    axes.set(ylim=(0, 105), yticks=[0, 25, 50, 75, 100])
    _scale_thresholds(axes, thresholds, 5, rule.whole)
    axes.grid(axis="y", color="#e0e0e0", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(rule.axis)
    plain_axes(axes)


def _is_dense(row: Mapping[str, Any]) -> bool:
    return row["threshold"] == 0 or row["selection"] == "dense"


def _is_level(row: Mapping[str, Any]) -> bool:
    """Whether a row has no threshold to be drawn over, and is not the dense model."""
    return not _is_dense(row) and RULE_TABLE[row["selection"]].is_transform


def _checked(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not rows:
        raise DataError("a sweep figure needs at least one row, got none")
    checked = []
    for index, row in enumerate(rows):
        missing = [key for key in ("selection", "threshold", "accuracy", "kept_fraction") if key not in row]
        if missing:
            raise DataError(f"sweep row {index}: no {', '.join(missing)} in {sorted(row)}")
        numbers = {
            key: math.nan if row.get(key) is None else float(row[key])
            for key in ("threshold", "accuracy", "accuracy_low", "accuracy_high", "kept_fraction")
        }
        if not math.isfinite(numbers["threshold"]):
            raise DataError(f"sweep row {index}: threshold must be a finite number, got {row['threshold']}")
        if not _is_dense(row) and row["selection"] not in RULE_TABLE:
            raise DataError(f"sweep row {index}: unknown selection rule {row['selection']!r}")
        checked.append({"selection": clean_text(row["selection"])[:40], **numbers})
    return checked
