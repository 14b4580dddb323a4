"""`tbkin visualize QUESTIONS.csv`: a model's answers to a file of questions about images, without figures."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from tbkin_core.datasets.formats.own_questions import TABLES
from tbkin_core.datasets.single_files import Asked, read_questions
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.pictures import load_image
from tbkin_core.results import QuestionFileResult
from tbkin_core.runs import datasets_of, find_checkpoint
from tbkin_core.settings import VisualizeConfig
from tbkin_core.shipped import located
from tbkin_core.stages.answering import ANSWERS, LoadedModel, Question
from tbkin_core.stages.figure_places import figure_place
from tbkin_core.support.console import progress
from tbkin_core.support.files import atomic_path, check_file_place, file_content, json_text
from tbkin_core.tasks.base import task_named
from tbkin_core.tasks.table import FINETUNE_TASKS
from tbkin_core.texts.language import is_question

OWN = ("prediction", "probability", "threshold", "model", "problem")
"""What is added to each line. None of it is called as an answer of a dataset is: a model's are no data."""
BOX = ("x1", "y1", "x2", "y2")
SHOWN = 5  # lines on the terminal


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the result: what the file has, and what was added."""

    values: dict[str, Any]
    added: dict[str, Any]


def answer_file(config: VisualizeConfig, file: Path) -> QuestionFileResult:
    """Answer every question of a file; each line is written with what the model says.

    The result goes beside the figures, `runs/visualize/NAME.answers.csv` (or `.jsonl`), or to `config.out`.
    Lines of an earlier result that the same model gave to the same question about the same image are kept.
    An image that cannot be read costs its own lines alone.

    Raises:
        TbkinError: The file holds no question, there is no model for it, or no question could be answered.
    """
    asked, problems = read_questions(file)
    if not asked:
        raise DataError(f"{file}: holds no question about an image", hint="; ".join(problems) or None)
    checkpoint = config.checkpoint or _suited(asked)
    out = figure_place(config, datasets_of(checkpoint)) / f"{file.stem}.answers{file.suffix.lower()}"
    check_file_place(out, "out", _is_own)
    model = LoadedModel(config, checkpoint)
    threshold = model.selection.threshold if model.thresholded else 0.0
    weights = file_content(located(checkpoint) / "model.safetensors") or 0
    same = {"threshold": threshold, "model": f"{checkpoint}@{weights:08x}"}
    earlier = _earlier(out, same)
    done: dict[int, Line] = {}
    started = time.perf_counter()
    kept = 0
    try:
        by_image = sorted(range(len(asked)), key=lambda place: asked[place].image)
        groups = [
            (image, list(group)) for image, group in groupby(by_image, lambda place: asked[place].image)
        ]
        for image, places in progress(groups, "visualize", total=len(groups), unit="image"):
            path = _image_file(file, image)
            for place, said, is_new in _answered(model, config, path, asked, places, earlier, out):
                kept += not is_new
                done[place] = Line(asked[place].values, {**dict.fromkeys(OWN), **said, **same})
    finally:
        # After an interruption too: the same command then goes on from here.
        if done:
            _write(out, [done[place] for place in sorted(done)])
    lines = [done[place] for place in range(len(asked))]
    failed = [line for line in lines if line.added["problem"]]
    if len(failed) == len(lines):
        raise DataError(
            f"{file}: none of its {len(lines)} questions can be answered: {failed[0].added['problem']}"
        )
    reasons = dict.fromkeys(line.added["problem"] for line in failed)
    problems += [f"left out: {reason}" for reason in reasons]
    return QuestionFileResult(
        out=out,
        model=str(checkpoint),
        task=model.task.name,
        threshold=threshold,
        questions=len(lines),
        images=len(groups),
        kept=kept,
        failed=len(failed),
        seconds=time.perf_counter() - started,
        shown=[
            (asked[place].image, asked[place].question, done[place].added["prediction"] or "",
             done[place].added["probability"])
            for place in range(min(SHOWN, len(asked)))
        ],
        problems=[*problems, *model.problems],
        files=[out],
    )  # fmt: skip


def _suited(asked: list[Asked]) -> Path:
    """The model for most of the texts: questions, or expressions."""
    asks = 2 * sum(is_question(item.question) for item in asked) >= len(asked)
    order = sorted(FINETUNE_TASKS, key=lambda name: task_named(name).asks != asks)
    return find_checkpoint(order, prefer=order[0])


def _image_file(file: Path, image: str) -> Path:
    """An image as the file names it: beside the file, else from the working directory."""
    beside = file.parent / image
    return beside if beside.exists() else Path(image)


def _answered(
    model: LoadedModel,
    config: VisualizeConfig,
    path: Path,
    asked: list[Asked],
    places: Iterable[int],
    earlier: dict[tuple[str, str], dict[str, Any]],
    out: Path,
) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """For each question about one image, by its place: what is added to its line, and whether it is new."""
    regions = None
    unchanged = bool(earlier) and path.exists() and path.stat().st_mtime < out.stat().st_mtime
    for place in places:
        said = earlier.get((asked[place].image, asked[place].question)) if unchanged else None
        if said is not None:
            yield place, said, False
            continue
        try:
            if regions is None:
                _, width, height = load_image(path, max_side=64)
                regions = model.regions.of_file(path, (width, height)).regions
            question: Question = model.read(asked[place].question)
        except (DataError, ConfigError) as error:
            yield place, {"problem": error.message}, True
            continue
        shown = model.answer(regions, question, config.top or ANSWERS)
        name, probability = shown.answers[0]
        new = {"prediction": name, "probability": round(probability, 6)}
        if shown.box is not None:
            new |= dict(zip(BOX, (round(side, 1) for side in shown.box), strict=True))
        yield place, new, True


# ---- the file of a result -----------------------------------------------------------------------


def _is_own(start: bytes) -> bool:
    """Whether a file begins as a result does."""
    first = start.decode("utf-8", errors="replace").split("\n")[0]
    return all(name in first for name in ("prediction", "probability", "threshold", "model"))


def _earlier(out: Path, same: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What an earlier result says of each (image, question), where the same model said it."""
    if not out.exists():
        return {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for item in read_questions(out)[0]:
        said = {name: item.values.get(name) for name in (*OWN, *BOX) if item.values.get(name) is not None}
        try:
            numbers = {
                name: float(str(said[name])) for name in ("threshold", "probability", *BOX) if name in said
            }
        except (TypeError, ValueError):
            continue  # somebody has written into it
        is_same = said.get("model") == same["model"] and numbers.pop("threshold", None) == same["threshold"]
        if is_same and "prediction" in said:
            found[item.image, item.question] = {"prediction": said["prediction"], **numbers}
    return found


def _write(out: Path, lines: list[Line]) -> None:
    """The lines, in the form that the suffix tells."""
    names = list(dict.fromkeys(name for line in lines for name in (*line.values, *line.added)))
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if out.suffix in TABLES:
            _write_table(file, "\t" if out.suffix == ".tsv" else ",", names, lines)
            return
        for line in lines:
            file.write(json_text({**line.values, **line.added}) + "\n")


def _write_table(file: IO[str], delimiter: str, names: list[str], lines: Iterable[Line]) -> None:
    table = csv.DictWriter(file, names, delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    for line in lines:
        values = {**line.values, **line.added}
        table.writerow(
            {key: value if isinstance(value, str) else _cell(value) for key, value in values.items()}
        )


def _cell(value: Any) -> str:
    return "" if value is None else json.dumps(value)
