"""`tbkin visualize`: answers about images and what was looked at; traces drawn again; sheets of results.

A trace (`tbkin_core.figures.trace`) is made for every image; figures are drawn from traces alone.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.boxes import box_iou_paired, scale_between
from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.pictures import load_image
from tbkin_core.figures.canvas import figure_mark
from tbkin_core.figures.contact_sheet import SheetGroup, SheetItem, contact_sheet, pictures_in_row
from tbkin_core.figures.trace import Pass, Trace, load_trace, save_trace
from tbkin_core.results import Answer, AnswersResult, ImageAnswer, RedrawnResult, ResultSheet, StageResult
from tbkin_core.runs import ROOT, datasets_of, kept_contents
from tbkin_core.selection import run_name_part
from tbkin_core.settings import VisualizeConfig
from tbkin_core.stages.figure_places import figure_place, path_number, sheet_files
from tbkin_core.support.console import progress, shortened
from tbkin_core.support.files import file_content, read_json, real_path, slug
from tbkin_core.support.places import numbered
from tbkin_core.support.schema import (
    BOX,
    Fault,
    anything,
    list_of,
    mapping_of,
    maybe,
    number,
    one_of,
    path_text,
    record,
    text,
)
from tbkin_core.tasks.table import FINETUNE_TASKS

_SHEET_PICTURE_SIDE = 400  # pixels


def visualize(config: VisualizeConfig) -> StageResult:
    """Answer a question about images, or find an expression in them, and draw what was attended to.

    Each image leaves a trace (.npz) beside its figure. Traces in the place of images are drawn again, without
    the model; `config.results` draws a contact sheet of what a fine-tuned model answered; `config.serve`
    opens a page where images are asked about, whose result has a `finish` that serves it.

    Raises:
        TbkinError: An image cannot be read, there is no checkpoint, or its features cannot be made. Of
            several images, `problems` name those that cannot be read.
    """
    if config.serve:
        from tbkin_core.stages.serve import serve  # with the model comes torch

        return serve(config)
    if config.results is not None:
        return draw_result_sheet(config, config.results)
    if config.redraws:
        return _draw_again(config)
    if config.question_file is not None:
        from tbkin_core.stages.question_file import answer_file  # with the model comes torch

        return answer_file(config, config.question_file)
    directories = [path for path in config.images if os.path.isdir(path)]  # noqa: PTH112 - says no to long names
    if not directories:
        return _answer(config)
    if len(config.images) > 1 or config.image_id:
        raise ConfigError(
            f"images: {directories[0]} is a directory, which is searched by itself",
            hint=f'for example `tbkin visualize {directories[0]} "a dog jumps into the water"`',
        )
    if config.wants_graph:
        raise ConfigError(
            "graph: --graph and --html are of one image; a directory gets a sheet",
            hint="omit them, then give one of the pictures that were found",
        )
    # With the model comes torch.
    from tbkin_core.stages.search import search

    return search(config, directories[0])


def _answer(config: VisualizeConfig) -> AnswersResult:
    if len(config.images) == 1 and not config.image_id:
        # Reading an image is quick, and it is what people mistype; the model takes seconds to load.
        load_image(config.images[0], max_side=64)
    # With the model comes torch.
    from tbkin_core.stages.answering import LoadedModel
    from tbkin_core.stages.choosing import suited_model
    from tbkin_core.texts.language import is_question

    sources: list[Path | str] = [*config.images, *config.image_id]
    stored = config.features is not None or bool(config.image_id)
    asks = is_question(config.question)
    checkpoint, notes = suited_model(config.checkpoint, asks, config.images, stored)
    model = LoadedModel(config, checkpoint)
    question = model.read(config.question)
    model.problems += notes
    result = AnswersResult(
        out=figure_place(config, datasets_of(model.checkpoint)),
        title=f"{shortened(question.text)}  ({model.about})",
        about=model.about,
        heading=model.task.presentation.answer_heading,
        selection=model.selection.name,
        shows_box=model.task.presentation.answers_are_regions,
        several=len(sources) > 1,
        problems=model.problems,
    )
    model.problems += question.problems
    asked = [slug(question.text) or "question"]
    if config.threshold is not None or config.selection is not None:
        asked.append(run_name_part(model.selection.rule, model.selection.threshold))
    for source in progress(sources, "visualize", total=len(sources)) if len(sources) > 1 else sources:
        try:
            trace = model.trace(source, question)
        except DataError as error:
            if len(sources) == 1:
                raise
            result.problems.append(f"left out: {error.message}")
            continue
        stem = _stem(source, 100) if isinstance(source, Path) else slug(source) or "image"
        base = _free_base(config, result.out / "-".join([stem, *asked]), trace)
        file = base.with_name(f"{base.name}.npz")
        save_trace(file, trace)
        figures = _draw_trace(config, base, trace, _trace_mark(file))
        result.images.append(image_answer(trace, model.shown(trace), str(source), figures, file))
        result.files += figures if len(sources) > 1 else [*figures, file]
    if not result.images:
        raise DataError(f"none of the {len(sources)} images can be shown: {'; '.join(result.problems)}")
    return result if len(sources) > 1 else replace(result, out=result.files[0])


def image_answer(trace: Trace, shown: Pass, image: str, figures: Sequence[Path], file: Path) -> ImageAnswer:
    """What a result says of one image; `shown` is the pass that counts."""
    iou = None
    if trace.target_box is not None and shown.box is not None:
        iou = round(float(box_iou_paired([shown.box], [trace.target_box])[0]), 4)
    return ImageAnswer(
        image=image,
        question=trace.text,
        checkpoint=trace.checkpoint,
        task=trace.task,
        answers=_answers(trace, shown),
        dense=_answers(trace, trace.dense),
        thresholded=_answers(trace, trace.thresholded),
        threshold=trace.threshold,
        selection=trace.selection,
        kept_fraction=trace.kept_fraction(),
        figures=list(figures),
        trace=file,
        box=shown.box,
        target_box=trace.target_box,
        iou=iou,
    )


def _answers(trace: Trace, content: Pass) -> list[Answer]:
    """Answers of a pass, regions with their labels."""
    named = enumerate(trace.region_labels) if content.chosen is not None else ()
    labels = {f"region {region}": label for region, label in named}
    return [Answer(name, probability, labels.get(name, "")) for name, probability in content.answers]


def _draw_trace(config: VisualizeConfig, base: Path, trace: Trace, mark: str) -> list[Path]:
    """The figures of a trace, with its mark, in files that begin with `base`."""
    # matplotlib is loaded where something is drawn.
    from tbkin_core.figures.answer import trace_figure
    from tbkin_core.figures.graph import graph_figure
    from tbkin_core.figures.page import write_page

    figures = _figure_files(config, base)
    for file in figures:
        if file.suffix == ".html":
            write_page(file, trace, mark, config.aggregate, config.layer, config.head)
        elif file.stem == f"{base.name}-graph{'-column' * config.column}":
            graph_figure(file, trace, mark, config.column)
        else:
            trace_figure(file, trace, config.aggregate, config.layer, config.head, config.column, mark)
    return figures


def _figure_files(config: VisualizeConfig, base: Path) -> list[Path]:
    """The files that the figures of a trace are drawn into, the one of the attention first."""
    parts = [base.name, *([config.aggregate] if config.aggregate else [])]
    parts += [f"{name}{value}" for name in ("layer", "head") if (value := getattr(config, name)) is not None]
    width = "-column" * config.column
    files = []
    for suffix in dict.fromkeys(config.format):
        files.append(base.with_name(f"{'-'.join(parts)}{width}.{suffix}"))
        if config.graph:
            files.append(base.with_name(f"{base.name}-graph{width}.{suffix}"))
    return [*files, base.with_name(f"{base.name}.html")] if config.html else files


def _stem(path: Path, most: int) -> str:
    """A file's name without its suffix, of at most so many bytes: file systems end names at 255."""
    encoded = os.fsencode(path.stem)
    return path.stem if len(encoded) <= most else encoded[:most].decode(errors="ignore")


def _draw_again(config: VisualizeConfig) -> RedrawnResult:
    """Figures of traces, beside them or in `config.out`; no model is loaded."""
    files: list[Path] = []
    images = []
    for path in config.images:
        trace = load_trace(path)
        out = path.parent if config.out is None else figure_place(config, _data_of(trace))
        if config.wants_graph and trace.graph is None:
            # spaCy takes a second to load, and most figures have no graph.
            from tbkin_core.graphs.question import unified_graph

            trace = replace(trace, graph=unified_graph(trace.text, trace.boxes, trace.region_labels))
        mark = _trace_mark(path)
        figures = _draw_trace(config, _free_base(config, out / _stem(path, 190), trace, mark), trace, mark)
        files += figures
        images.append(image_answer(trace, trace.dense, str(path), figures, path))
    return RedrawnResult(out=config.out or files[0].parent, images=images, files=list(dict.fromkeys(files)))


def _data_of(trace: Trace) -> list[Path]:
    """Datasets that the model of a trace learnt from; none where it is not to be found."""
    try:
        return datasets_of(Path(trace.checkpoint))
    except DataError:
        return []


def _trace_mark(file: Path) -> str:
    """The `figure_mark` of what is drawn from the file of a trace; "" where it cannot be read."""
    with contextlib.suppress(OSError):
        return f"tbkin trace {file_content(file) or 0:08x}"
    return ""


def _free_base(config: VisualizeConfig, base: Path, trace: Trace, mark: str = "") -> Path:
    """Where the figures of a trace go: at `base`, with a number where something else lies there.

    The same thing drawn again has its place again. Beside its trace it replaces figures of tbkin alone,
    elsewhere those of this very trace.

    Args:
        mark: Of a trace that has its own place (see `_trace_mark`); without one it goes beside the figures.
    """

    def is_free(place: Path) -> bool:
        own, figures = place.with_name(f"{place.name}.npz"), _figure_files(config, place)
        # "the bar" with --graph draws into the file of "the bar graph".
        if any(other.exists() for file in figures if (other := file.with_suffix(".npz")) != own):
            return False
        found = [figure_mark(file) for file in figures if os.path.lexists(file)]
        if not own.exists():
            return all(other and other == mark for other in found)
        return all(found) and (_trace_mark(own) == mark if mark else _shows_the_same(own, trace))

    return next(filter(is_free, numbered(base)))


def _shows_the_same(file: Path, other: Trace) -> bool:
    """Whether a file holds a trace of another's image, regions, text, checkpoint and selection."""
    try:
        one = load_trace(file)
    except DataError:
        return False
    alike = all(
        getattr(one, name) == getattr(other, name)
        for name in ("task", "text", "image_size", "selection", "threshold", "scope", "layers")
    )
    same_model = real_path(Path(one.checkpoint)) == real_path(Path(other.checkpoint))
    same_boxes = one.boxes.shape == other.boxes.shape and np.allclose(one.boxes, other.boxes, atol=1)
    return alike and same_model and same_boxes and np.array_equal(one.image, other.image)


# ---- sheets of results --------------------------------------------------------------------------


def draw_result_sheet(config: VisualizeConfig, file: Path) -> ResultSheet:
    """Draw the surest answers of a file of results, or its surest wrong ones.

    Raises:
        DataError: The file is missing, broken, of something else, or holds nothing to show.
    """
    content = _read_results(file)
    rows = content["results"]
    # From another working directory the run leads to its data.
    known = [*datasets_of(file.parent), Path(content["data"])]
    data = config.data or known[0]
    dataset = open_dataset(data)
    chosen = choose_results(rows, config.wrong, config.limit, pictures_in_row(config.column))
    if not chosen:
        raise DataError(f"{file}: none of its {len(rows)} answers is wrong", hint="omit --wrong")
    counts, groups = {}, []
    problems: list[str] = []
    missing = 0
    for kind, members in chosen.items():
        of_kind = [row for row in rows if row["type"] == kind]
        failed = sum(_is_wrong(row) for row in of_kind)
        counts[kind] = (failed, len(of_kind), len(members))
        share = f"{failed:,} of {len(of_kind):,} wrong ({100 * failed / len(of_kind):.1f} %)"
        items, unread = zip(*(_sheet_item(dataset, row) for row in members), strict=True)
        missing += sum(item.image is None for item in items)
        problems += filter(None, unread)
        groups.append(SheetGroup(f"{kind}: {share}" if kind else share, items))
    if kept_contents(file.parent):
        # What samples are is known to the tasks, with which comes torch.
        from tbkin_core.tasks.base import finetune_task
        from tbkin_core.training.splits import changed_since

        if changed_since(file.parent, finetune_task(content["task"]), dataset, content["split"]):
            problems.append(
                f"{data}: {content['split']} changed since {file.parent} was made; its answers were judged"
                f" by the data before (`tbkin finetune --task {content['task']} --overwrite` judges anew)"
            )
    if missing:
        problems.insert(0, f"{missing} pictures are not in {data}; name the dataset with --data DIR")
    shown, failed = sum(map(len, chosen.values())), sum(map(_is_wrong, rows))
    what = f"{shown} of {failed:,} wrong answers" if config.wrong else f"{shown} of {len(rows):,} answers"
    name = _sheet_name(content) + ("-wrong" if config.wrong else "-answers") + "-column" * config.column
    place = figure_place(config, known) / name
    ignored = _ignores_image(file.parent)
    if ignored:
        problems.insert(0, f"{content['checkpoint']}: {ignored}")
    mark = f"tbkin results {path_number(real_path(file))}"
    files = _draw_sheet(config, place, content, groups, (what, ignored), mark)
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


def _ignores_image(run: Path) -> str:
    """A sentence where the model of a run does not look at the image; "" where it does, or nobody knows."""
    with contextlib.suppress(DataError):
        shape = read_json(run / "config.json", "")
        if isinstance(shape, dict) and shape.get("use_regions") is False:
            return "this model ignores the image: its answers are from the words alone"
    return ""


def _sheet_name(content: dict[str, Any]) -> str:
    """How files of sheets of some results begin."""
    checkpoint = Path(content["checkpoint"])
    name = f"{slug(checkpoint.name)}-{slug(content['split'])}"
    # Models of several directories may have one name.
    return name if checkpoint.parent == ROOT / "finetune" else f"{name}-{path_number(checkpoint)}"


def _draw_sheet(
    config: VisualizeConfig,
    base: Path,
    content: dict[str, Any],
    groups: Sequence[SheetGroup],
    words: tuple[str, str],
    mark: str,
) -> list[Path]:
    """Sheets in files called `base`, with a number where something else than such a sheet has the name.

    `words` are what is shown, and what is to be known of the model.
    """
    what, known = words
    caption = "The surest come first, of each image one before any second. "
    if "box" in content["results"][0]:
        caption += "Solid: the box that the model chose, dotted: the target."
    elif "rank" in content["results"][0]:
        caption += "The picture that was found first for the caption, with the probability that they match."
    else:
        caption += "✗ what the model answered with its probability, ✓ what is right."
    if known:
        caption = f"{known[0].upper()}{known[1:]}. {caption}"
    title = f"{content['checkpoint']} on {content['split']}: {what}"
    files = sheet_files(base, config.format, mark)
    for file in files:
        contact_sheet(file, groups, title=title, caption=caption, mark=mark, column=config.column)
    return files


def _sheet_item(dataset: Dataset, row: dict[str, Any]) -> tuple[SheetItem, str]:
    """One result with its picture, where there is one; and why its file could not be read."""
    picture, scale, problem = None, np.ones(4), ""
    try:
        record = dataset.image(row.get("found", row["image_id"]))
        if record.path is not None:
            picture, width, height = load_image(record.path, max_side=_SHEET_PICTURE_SIDE)
            # Boxes of results have the pixels of the annotations, which may be of a larger picture.
            drawn = (record.width or width, record.height or height)
            drawn = drawn if scale_between(drawn, (width, height)) is not None else (width, height)
            scale = np.array([picture.shape[1] / drawn[0], picture.shape[0] / drawn[1]] * 2)
    except DataError as error:
        problem = error.message
    boxes: dict[str, Any] = {
        name: np.asarray(row[name]) * scale if name in row else None for name in ("box", "target")
    }
    return SheetItem(picture, row["text"], *_in_words(row), not _is_wrong(row), **boxes), problem


def _image_id(value: Any, where: str) -> None:
    (text if isinstance(value, str) else number(-(2**63), 2**63, whole=True))(value, where)


def _place(value: Any, where: str) -> None:
    path_text(value, where)
    if not value:  # would stand for the working directory
        raise Fault(where, "a path", value)


_RESULTS = record(
    {
        "task": one_of(*FINETUNE_TASKS),
        **dict.fromkeys(("split", "checkpoint"), text),
        "data": _place,
        "results": list_of(anything, least=1),
    }
)
_SHARE = number(0, 1)
_RESULT = {"image_id": _image_id, "text": text, "type": maybe(text), "score": _SHARE, "probability": _SHARE}
_BOX = {"box": BOX, "target": BOX, "iou": _SHARE}
_ANSWER = {"answer": text, "answers": mapping_of(_SHARE)}
_RANK = {"found": _image_id, "rank": number(1, whole=True)}


def _read_results(file: Path) -> dict[str, Any]:
    """The results of a fine-tuned model, as `tbkin_core.evaluation.report` writes them.

    Raises:
        DataError: The file is missing, broken, or of something else.
    """
    hint = "give results-SPLIT.json from the directory of a `tbkin finetune` run"
    if file.is_dir():
        if found := sorted(file.glob("results-*.json")):
            hint = f"it holds {', '.join(map(str, found))}"
        raise DataError(f"{file}: is a directory, expected a file of results", hint=hint)
    if not file.exists():
        raise DataError(f"{file}: there is no such file", hint=hint)
    content = read_json(file, hint)
    try:
        _RESULTS(content, "")
        rows = content["results"]
        # What a result is: an answer beside those that people gave, a box beside the target, or an image that
        # was found beside the rank of the right one.
        names = rows[0].keys() if isinstance(rows[0], dict) else set()
        kind = next((it for it in (_BOX, _RANK) if not names.isdisjoint(it)), _ANSWER)
        list_of(record({**_RESULT, **kind}))(rows, "results")
    except Fault as fault:
        raise DataError(f"{file}: holds no results of `tbkin finetune`: {fault}", hint=hint) from fault
    # Where the data know no type, it is null.
    return {**content, "results": [{**row, "type": row["type"] or ""} for row in rows]}


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
    if "rank" in row:
        own = f"its own picture is number {row['rank']:,}" if _is_wrong(row) else ""
        return f"found first ({row['probability']:.2f})", own
    best = sorted(row["answers"], key=lambda answer: -row["answers"][answer])
    return f"{row['answer']} ({row['probability']:.2f})", "" if not _is_wrong(row) else " / ".join(best[:3])
