"""`tbkin visualize`: answers about images and what was looked at; traces drawn again; sheets of results.

A trace (`tbkin_core.figures.trace`) is made for every image; figures are drawn from traces alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tbkin_core.boxes import box_iou_paired
from tbkin_core.errors import DataError
from tbkin_core.features.pictures import load_image
from tbkin_core.figures.trace import Pass, Trace, load_trace, save_trace
from tbkin_core.results import Answer, AnswersResult, ImageAnswer, RedrawnResult, StageResult
from tbkin_core.runs import ROOT, find_checkpoint
from tbkin_core.selection import run_name_part
from tbkin_core.settings import VisualizeConfig
from tbkin_core.stages.result_sheet import draw_result_sheet
from tbkin_core.support.console import progress, shortened
from tbkin_core.support.files import make_directory, slug
from tbkin_core.tasks.table import FINETUNE_TASKS, TASKS

logger = logging.getLogger("tbkin")


def visualize(config: VisualizeConfig) -> StageResult:
    """Answer a question about images, or find an expression in them, and draw what was attended to.

    Each image leaves a trace (.npz) beside its figure. Traces in the place of images are drawn again, without
    the model; `config.results` draws a contact sheet of what a fine-tuned model answered.

    Raises:
        TbkinError: An image cannot be read, there is no checkpoint, or its features cannot be made. Of
            several images, `problems` name those that cannot be read.
    """
    if config.results is not None:
        return draw_result_sheet(config, config.results)
    return _draw_again(config) if config.redraws else _answer(config)


def _answer(config: VisualizeConfig) -> AnswersResult:
    if len(config.images) == 1 and not config.image_id:
        # Reading an image is quick, and it is what people mistype; the model takes seconds to load.
        load_image(config.images[0], max_side=64)
    # With the model comes torch.
    from tbkin_core.stages.answering import Answerer
    from tbkin_core.tasks.base import task_named
    from tbkin_core.texts.language import is_question

    sources: list[Path | str] = [*config.images, *config.image_id]
    # Of a VQA and a REC model, a question goes to the first and an expression to the second.
    asks = is_question(config.question)
    wanted = next((name for name in FINETUNE_TASKS if task_named(name).asks == asks), None)
    model = Answerer(config, config.checkpoint or find_checkpoint(list(TASKS), prefer=wanted))
    result = AnswersResult(
        out=make_directory(config.out or ROOT / "visualize"),
        title=f"{shortened(model.question)}  ({model.checkpoint})",
        heading=model.task.presentation.answer_heading,
        selection=model.selection.name,
        shows_box=model.task.presentation.answers_are_regions,
        several=len(sources) > 1,
        problems=model.problems,
    )
    question = [slug(model.question) or "question"]
    if config.threshold is not None or config.selection is not None:
        question.append(run_name_part(model.selection.rule, model.selection.threshold))
    taken: set[str] = set()
    for source in progress(sources, "visualize", total=len(sources)) if len(sources) > 1 else sources:
        try:
            trace = model.trace(source)
        except DataError as error:
            if len(sources) == 1:
                raise
            result.problems.append(f"left out: {error.message}")
            continue
        stem = source.stem if isinstance(source, Path) else slug(source) or "image"
        base = result.out / _free_name("-".join([stem, *question]), taken)
        file = base.with_name(f"{base.name}.npz")
        save_trace(file, trace)
        figures = _draw_trace(config, base, trace)
        result.images.append(
            image_answer(trace, model.shown(trace), str(source), str(model.checkpoint), figures, file)
        )
        result.files += figures if len(sources) > 1 else [*figures, file]
    if not result.images:
        raise DataError(f"none of the {len(sources)} images can be shown: {result.problems[-1]}")
    return result if len(sources) > 1 else replace(result, out=result.files[0])


def image_answer(
    trace: Trace, shown: Pass, image: str, checkpoint: str, figures: Sequence[Path], file: Path
) -> ImageAnswer:
    """What a result says of one image; `shown` is the pass that counts."""
    iou = None
    if trace.target_box is not None and shown.box is not None:
        iou = round(float(box_iou_paired([shown.box], [trace.target_box])[0]), 4)
    return ImageAnswer(
        image=image,
        question=trace.text,
        checkpoint=checkpoint,
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

    def label(answer: str) -> str:
        found = re.fullmatch(r"region (\d+)", answer) if content.chosen is not None else None
        return trace.region_labels[int(found[1])] if found else ""

    return [Answer(name, probability, label(name)) for name, probability in content.answers]


def _draw_trace(config: VisualizeConfig, base: Path, trace: Trace) -> list[Path]:
    """The figures of a trace in files that begin with `base`."""
    # matplotlib is loaded where something is drawn.
    from tbkin_core.figures.answer import trace_figure
    from tbkin_core.figures.graph import graph_figure
    from tbkin_core.figures.page import write_page

    parts = [base.name, *([config.aggregate] if config.aggregate else [])]
    parts += [f"{name}{value}" for name in ("layer", "head") if (value := getattr(config, name)) is not None]
    parts += ["column"] if config.column else []
    files = []
    for suffix in dict.fromkeys(config.format):
        files.append(base.with_name(f"{'-'.join(parts)}.{suffix}"))
        trace_figure(files[-1], trace, config.aggregate, config.layer, config.head, config.column)
        if config.graph:
            files.append(base.with_name(f"{base.name}-graph.{suffix}"))
            graph_figure(files[-1], trace)
    if config.html:
        files.append(base.with_name(f"{base.name}.html"))
        write_page(files[-1], trace)
    return files


def _draw_again(config: VisualizeConfig) -> RedrawnResult:
    """Figures of traces, beside them or in `config.out`; no model is loaded."""
    out = None if config.out is None else make_directory(config.out)
    files: list[Path] = []
    images = []
    for path in config.images:
        trace = load_trace(path)
        if config.wants_graph and trace.graph is None:
            # spaCy takes a second to load, and most figures have no graph.
            from tbkin_core.graphs.question import unified_graph

            trace = replace(trace, graph=unified_graph(trace.text, trace.boxes, trace.region_labels))
        figures = _draw_trace(config, (out or path.parent) / path.stem, trace)
        files += figures
        images.append(image_answer(trace, trace.dense, str(path), trace.checkpoint, figures, path))
    return RedrawnResult(out=out or files[0].parent, images=images, files=files)


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where an image before it in this call has the same."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free
