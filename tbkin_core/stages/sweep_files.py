"""What a sweep leaves beside `sweep.json`: the table for other programs, and the figures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tbkin_core.evaluation.sweep import with_regions_of
from tbkin_core.settings import ThresholdSweepConfig
from tbkin_core.support.files import atomic_path

TABLE = "sweep.csv"
_FIGURE = re.compile(r"(sweep|sparsity|regions)(-column)?\.(png|svg|pdf)")


def is_sweep_file(name: str) -> bool:
    """Whether `write_table` or `draw_sweep` write what has a name."""
    return name == TABLE or _FIGURE.fullmatch(name) is not None


def draw_sweep(
    config: ThresholdSweepConfig, out: Path, rows: Sequence[dict[str, Any]], headline: str, metric: str
) -> list[str]:
    """Draw the rows of a sweep, with several numbers of regions also by these.

    Args:
        config: Formats, width, and the numbers of regions.
        out: The directory.
        headline: What was measured, in words.
        metric: What accuracy is called.

    Returns:
        Names of the files, the accuracies first.
    """
    # matplotlib is loaded by the rank that draws.
    from tbkin_core.figures.sweep_curves import regions_figure, sparsity_figure, sweep_figure

    counts = config.region_counts()
    first = with_regions_of(rows[0], rows)
    of_first = f"{headline}; {counts[0]} regions" if counts[0] else headline
    # Figures of an earlier command are drawn again: what they show would be of fewer measurements.
    wanted = dict.fromkeys((config.column, suffix) for suffix in config.format)
    found = [match for file in out.iterdir() if (match := _FIGURE.fullmatch(file.name))]
    wanted |= dict.fromkeys(sorted((bool(match[2]), match[3]) for match in found))
    names = []
    for column, suffix in wanted:
        sweep, regions, sparsity = (
            f"{name}{'-column' * column}.{suffix}" for name in ("sweep", "regions", "sparsity")
        )
        sweep_figure(out / sweep, first, title=of_first, accuracy_name=metric, column=column)
        sparsity_figure(out / sparsity, first, title=of_first, column=column)
        names += [sweep, sparsity]
        if len(counts) > 1:
            regions_figure(out / regions, rows, title=headline, accuracy_name=metric, column=column)
            names.insert(-1, regions)
        else:
            (out / regions).unlink(missing_ok=True)  # of a sweep that measured more
    return names


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows with one number a cell: "accuracy.yes/no", "kept.text-to-image.layer 0"."""
    flat = []
    for row in rows:
        values: dict[str, Any] = {}
        for name, value in row.items():
            if name == "answer_types":
                values |= {f"accuracy.{kind}": number for kind, number in value.items()}
            elif name == "kept":
                for direction, shares in value.items():
                    values |= {f"kept.{direction}.layer {layer}": x for layer, x in enumerate(shares)}
            elif isinstance(value, list):
                values[name] = json.dumps(value)
            else:
                values[name] = value
        flat.append(values)
    names = list(dict.fromkeys(name for row in flat for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(flat)
