"""A contact sheet of what a fine-tuned model answered to a split, by question type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import DataError
from tbkin_core.features.pictures import load_image
from tbkin_core.figures.contact_sheet import COLUMNS, SheetGroup, SheetItem, contact_sheet
from tbkin_core.results import ResultSheet
from tbkin_core.runs import ROOT
from tbkin_core.settings import VisualizeConfig
from tbkin_core.support.files import make_directory, read_json, slug

_PICTURE_SIDE = 400  # pixels
# What a result is: an answer beside those that people gave, or a box beside the target.
_ANSWER_KEYS, _BOX_KEYS = ("answer", "answers"), ("box", "target", "iou")


def draw_result_sheet(config: VisualizeConfig, file: Path) -> ResultSheet:
    """Draw the surest answers of a file of results, or its surest wrong ones.

    Raises:
        DataError: The file is missing, broken, of something else, or holds nothing to show.
    """
    content = _read_results(file)
    rows = content["results"]
    data = config.data or Path(content["data"])
    dataset = open_dataset(data)
    chosen = choose_results(rows, config.wrong, config.limit, COLUMNS)
    if not chosen:
        raise DataError(f"{file}: none of its {len(rows)} answers is wrong", hint="omit --wrong")
    counts = {}
    groups = []
    problems: list[str] = []
    missing = 0
    for kind, members in chosen.items():
        of_kind = [row for row in rows if row["type"] == kind]
        failed = sum(_is_wrong(row) for row in of_kind)
        counts[kind] = (failed, len(of_kind), len(members))
        share = f"{failed:,} of {len(of_kind):,} wrong ({100 * failed / len(of_kind):.1f} %)"
        items = []
        for row in members:
            item, problem = _sheet_item(dataset, row)
            items.append(item)
            missing += item.image is None
            problems += [problem] if problem else []
        groups.append(SheetGroup(f"{kind}: {share}" if kind else share, items))
    if missing:
        problems.insert(0, f"{missing} pictures are not in {data}; name the dataset with --data DIR")
    shown, failed = sum(map(len, chosen.values())), sum(map(_is_wrong, rows))
    what = f"{shown} of {failed:,} wrong answers" if config.wrong else f"{shown} of {len(rows):,} answers"
    files = _draw(config, content, groups, what)
    return ResultSheet(
        out=files[0],
        title=f"{what} to {content['split']}",
        task=content["task"],
        split=content["split"],
        wrong=failed,
        answers=len(rows),
        shown=chosen,
        counts=counts,
        problems=problems,
        files=files,
    )


def _draw(
    config: VisualizeConfig, content: dict[str, Any], groups: Sequence[SheetGroup], what: str
) -> list[Path]:
    caption = "The surest come first, of each image one before any second. "
    if "box" in content["results"][0]:
        caption += "Solid: the box that the model chose, dotted: the target."
    else:
        caption += "✗ what the model answered with its probability, ✓ what is right."
    out = make_directory(config.out or ROOT / "visualize")
    title = f"{content['checkpoint']} on {content['split']}: {what}"
    name = f"{slug(Path(content['checkpoint']).name)}-{slug(content['split'])}"
    files = []
    for suffix in dict.fromkeys(config.format):
        files.append(out / f"{name}-{'wrong' if config.wrong else 'answers'}.{suffix}")
        contact_sheet(files[-1], groups, title=title, caption=caption)
    return files


def _sheet_item(dataset: Dataset, row: dict[str, Any]) -> tuple[SheetItem, str]:
    """One result with its picture, where there is one; and why its file could not be read."""
    picture, scale, problem = None, np.ones(4), ""
    try:
        path = dataset.image(row["image_id"]).path
        if path is not None:
            picture, width, height = load_image(path, max_side=_PICTURE_SIDE)
            scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
    except DataError as error:
        problem = error.message
    boxes: dict[str, Any] = {
        name: np.asarray(row[name]) * scale if name in row else None for name in ("box", "target")
    }
    return SheetItem(picture, row["text"], *_in_words(row), not _is_wrong(row), **boxes), problem


def _read_results(file: Path) -> dict[str, Any]:
    """The results of a fine-tuned model, as `tbkin_core.evaluation.report` writes them.

    Raises:
        DataError: The file is missing, broken, or of something else.
    """
    hint = "give results-SPLIT.json from the directory of a `tbkin finetune` run"
    if file.is_dir():
        found = sorted(file.glob("results-*.json"))
        raise DataError(
            f"{file}: is a directory, expected a file of results",
            hint=f"it holds {', '.join(map(str, found))}" if found else hint,
        )
    if not file.exists():
        raise DataError(f"{file}: there is no such file", hint=hint)
    content = read_json(file)
    needed = ("task", "split", "checkpoint", "data", "results")
    if not isinstance(content, dict) or any(name not in content for name in needed):
        raise DataError(f"{file}: holds no results of `tbkin finetune`", hint=hint)
    rows = content["results"]
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: holds no answers", hint=hint)
    has_boxes = isinstance(rows[0], dict) and any(name in rows[0] for name in _BOX_KEYS)
    keys: tuple[str, ...] = ("image_id", "text", "type", "score", "probability")
    keys += _BOX_KEYS if has_boxes else _ANSWER_KEYS
    for number, row in enumerate(rows):
        lacking = [name for name in keys if not isinstance(row, dict) or name not in row]
        if lacking:
            raise DataError(f"{file}: result {number} lacks {', '.join(lacking)}", hint=hint)
    return content


def choose_results(
    rows: Sequence[dict[str, Any]], wrong: bool, limit: int, per_row: int
) -> dict[str, list[dict[str, Any]]]:
    """Which results a sheet shows, by question type, the type with the most candidates first.

    A type gets a row of the sheet at a time, those with the most candidates left first, so that few rows
    show different types. Within a type the surest answers come first, of each image one before any second.

    Args:
        rows: All results.
        wrong: Take the wrong ones alone.
        limit: How many at most.
        per_row: How many stand in a row.
    """
    by_type: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -row["probability"]):
        if not wrong or _is_wrong(row):
            by_type.setdefault(row["type"], []).append(row)
    counts = dict.fromkeys(sorted(by_type, key=lambda kind: (-len(by_type[kind]), kind)), 0)
    left = limit
    while left and any(counts[kind] < len(by_type[kind]) for kind in counts):
        kind = min(counts, key=lambda kind: (counts[kind] >= len(by_type[kind]), counts[kind]))
        taken = min(per_row, left, len(by_type[kind]) - counts[kind])
        counts[kind] += taken
        left -= taken
    chosen = {}
    for kind, count in counts.items():
        seen: Counter[Any] = Counter()
        turns = []  # of each row: how many of its image come before it
        for row in by_type[kind]:
            turns.append(seen[row["image_id"]])
            seen[row["image_id"]] += 1
        order = sorted(range(len(turns)), key=turns.__getitem__)
        if count:
            chosen[kind] = [by_type[kind][place] for place in order[:count]]
    return chosen


def _is_wrong(row: dict[str, Any]) -> bool:
    """Whether an answer earns less than half of its point; a box earns all or nothing."""
    return bool(row["score"] < 0.5)


def _in_words(row: dict[str, Any]) -> tuple[str, str]:
    """What was answered and what is right."""
    if "box" in row:
        return f"IoU {row['iou']:.2f} ({row['probability']:.2f})", ""
    best = sorted(row["answers"], key=lambda answer: -row["answers"][answer])
    return f"{row['answer']} ({row['probability']:.2f})", "" if not _is_wrong(row) else " / ".join(best[:3])
