"""`tbkin visualize QUESTIONS.csv`: a model's answers to a file of questions about images, without figures."""

from __future__ import annotations

import csv
import json
import time
import zlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from tbkin_core.datasets.formats.own import ANSWER_MARKS, is_answers
from tbkin_core.datasets.formats.own_questions import TABLES
from tbkin_core.datasets.single_files import Asked, QuestionFile, read_questions
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.results import QuestionFileResult
from tbkin_core.settings import VisualizeConfig
from tbkin_core.shipped import located
from tbkin_core.stages.answering import LoadedModel, Question
from tbkin_core.stages.choosing import MOST_PICTURES, suited_model
from tbkin_core.support.console import progress
from tbkin_core.support.files import (
    atomic_path,
    check_file_place,
    file_content,
    json_text,
    make_directory,
)
from tbkin_core.support.shards import MANIFEST
from tbkin_core.texts.language import is_question

OWN = (*ANSWER_MARKS, "problem")
"""What is added to each line. None of it is called as an answer of a dataset is: a model's are no data."""
BOX = ("x1", "y1", "x2", "y2")
SHOWN = 5  # lines on the terminal
SAVE_SECONDS = 60.0  # what is answered is on disk after so long at the latest
_MOST_NOTES = 3  # of one kind


def answer_file(config: VisualizeConfig, file: Path) -> QuestionFileResult:
    """Answer every question of a file; each line is written with what the model says.

    The result is `NAME.answers.csv` (or `.jsonl`) beside the file, or in the directory `config.out`. What it
    holds of an earlier run stays where model, threshold and picture are the same, and is not asked again. An
    image that cannot be read costs its own lines alone.

    Raises:
        TbkinError: The file holds no question, a column has the name of one that is added, there is no model
            for it, or no question could be answered; then nothing is written.
    """
    questions = read_questions(file)
    if not questions.asked:
        raise DataError(
            f"{file}: holds no question about an image", hint="; ".join(questions.problems) or None
        )
    out = _place(config, file)
    asks = 2 * sum(is_question(it.question) for it in questions.asked) >= len(questions.asked)
    images = list(dict.fromkeys(it.image for it in questions.asked))[:MOST_PICTURES]
    # Those that cannot be read are told of when they are asked about.
    readable = [path for path, content, _ in (_picture(file, name) for name in images) if content]
    checkpoint, notes = suited_model(config.checkpoint, asks, readable, stored=config.features is not None)
    model = LoadedModel(config, checkpoint)
    has_boxes = model.task.presentation.answers_are_regions
    _check_names(file, questions, (*OWN, *(BOX if has_boxes else ())))
    run = _Run(config, model, questions, out, has_boxes)
    started = time.perf_counter()
    run.answer_all(file)
    failed = [place for place, line in run.lines.items() if not line["prediction"]]
    if len(failed) == len(questions.asked):
        reason = run.lines[failed[0]]["problem"]
        raise DataError(f"{file}: none of its {len(failed)} questions can be answered: {reason}")
    run.write()
    first = range(min(SHOWN, len(questions.asked)))
    return QuestionFileResult(
        out=out,
        model=str(checkpoint),
        about=model.about,
        task=model.task.name,
        threshold=run.same["threshold"],
        questions=len(questions.asked),
        images=run.images,
        kept=run.kept,
        failed=len(failed),
        seconds=time.perf_counter() - started,
        shown=[_shown(questions.asked[place], run.lines[place]) for place in first],
        problems=[*questions.problems, *notes, *run.notes(), *model.problems],
        files=[out],
    )


def _place(config: VisualizeConfig, file: Path) -> Path:
    """Where the answers to a file go."""
    name = f"{file.stem}.answers{file.suffix.lower()}"
    out = file.with_name(name) if config.out is None else make_directory(config.out) / name
    check_file_place(out, "out", lambda start: is_answers(start.decode("utf-8", errors="replace")))
    return out


def _check_names(file: Path, questions: QuestionFile, added: tuple[str, ...]) -> None:
    """ConfigError where a column of the file has the name of one that is added to it."""
    names = {name.lower() for item in questions.asked for name in item.values}
    if taken := sorted(names & set(added)):
        raise ConfigError(
            f"{file}: has {', '.join(taken)} itself, which would be lost among what the model says",
            hint="call it otherwise in the file",
        )


def _shown(asked: Asked, line: Mapping[str, Any]) -> tuple[str, str, str, float | None]:
    return asked.image, asked.question, line["prediction"] or "", line["probability"]


class _Run:
    """The lines of a result as they are made.

    Attributes:
        same: What an earlier line must share to stay: the model, and how it is asked.
        lines: What is added to each line so far, by its place in the file.
        kept: How many of them are of an earlier run.
        images: How many images the file names.
    """

    def __init__(
        self, config: VisualizeConfig, model: LoadedModel, questions: QuestionFile, out: Path, boxes: bool
    ) -> None:
        self._model, self._asked, self._out = model, questions.asked, out
        self._names, self._has_boxes = questions.names, boxes
        # A dense model has a thresholded side only where somebody asks for it.
        wanted = config.threshold is not None or config.selection is not None
        self._selection = model.selection if wanted or model.thresholded else None
        self.same: dict[str, Any] = {
            "threshold": self._selection.threshold if self._selection else 0.0,
            "selection": self._selection.rule if self._selection else "dense",
            "model": f"{model.checkpoint}@{_identity(config, model):08x}",
        }
        self._earlier = _earlier(out, self.same) if out.exists() else {}
        self._read: dict[str, Question | str] = {}  # or why it cannot be read
        self._notes: dict[str, int] = {}
        self._saved = time.monotonic()
        self.lines: dict[int, dict[str, Any]] = {}
        self.kept = self.images = 0

    def answer_all(self, file: Path) -> None:
        """Answer, image by image; whatever ends this, what is answered so far is written."""
        order = sorted(range(len(self._asked)), key=lambda place: self._asked[place].image)
        groups = [(name, list(places)) for name, places in groupby(order, lambda at: self._asked[at].image)]
        self.images = len(groups)
        try:
            for image, places in progress(groups, "visualize", total=len(groups), unit="image"):
                self._answer(file, image, places)
                if time.monotonic() - self._saved > SAVE_SECONDS:
                    self.write()
        except BaseException:
            if any(line["prediction"] for line in self.lines.values()):
                self.write()
            raise

    def _answer(self, file: Path, image: str, places: list[int]) -> None:
        path, picture, problem = _picture(file, image)
        regions: RegionFeatures | None = None
        for place in places:
            asked = self._asked[place]
            earlier = self._earlier.get((image, asked.question))
            # A picture that cannot be read now, as of a disk that is away, leaves its answers as they were.
            if earlier is not None and (problem or earlier["picture"] == picture):
                self.lines[place] = earlier
                self.kept += 1
                if problem:
                    self._note(f"{problem}; its earlier answers stay")
                continue
            if not problem and regions is None:
                regions, problem = self._regions(path)
            question = self._question(asked.question)
            said: dict[str, Any] = {"picture": picture}
            if regions is None or isinstance(question, str):
                said["problem"] = problem or str(question)
                self._note(f"left out: {said['problem']}")
            else:
                said |= self._said(regions, question)
            self.lines[place] = {**dict.fromkeys(OWN), **said, **self.same}

    def _regions(self, path: Path) -> tuple[RegionFeatures | None, str]:
        """Regions of a picture, or why there are none."""
        try:
            _, width, height = load_image(path, max_side=64)
            found = self._model.regions.of_file(path, (width, height)).regions
        except DataError as error:
            return None, error.message
        for note in self._model.regions.notes:
            self._note(note)
        return found, ""

    def _question(self, text: str) -> Question | str:
        if text not in self._read:
            try:
                question = self._model.read(text)
                self._read[text] = question
                for note in question.problems:
                    self._note(note)
            except DataError as error:
                self._read[text] = error.message
        return self._read[text]

    def _said(self, regions: RegionFeatures, question: Question) -> dict[str, Any]:
        shown = self._model.answer(regions, question, self._selection)
        name, probability = shown.answers[0]
        said = {"prediction": name, "probability": round(probability, 6)}
        if shown.box is not None:
            said |= dict(zip(BOX, (round(side, 1) for side in shown.box), strict=True))
        return said

    def _note(self, text: str) -> None:
        self._notes[text] = self._notes.get(text, 0) + 1

    def notes(self) -> list[str]:
        """What is worth knowing of pictures and questions, those of one kind together."""
        kinds: dict[str, list[str]] = {}
        for text, count in self._notes.items():
            kinds.setdefault(text[:40], []).append(text if count == 1 else f"{text} ({count} questions)")
        return [
            text + (f" (and {len(texts) - _MOST_NOTES} more of the kind)" if more else "")
            for texts in kinds.values()
            for number, text in enumerate(texts[:_MOST_NOTES], start=1)
            for more in [number == _MOST_NOTES and len(texts) > _MOST_NOTES]
        ]

    def write(self) -> None:
        """All lines that are answered, and of those that are not yet what an earlier run said of them."""
        lines = []
        for place, asked in enumerate(self._asked):
            added = self.lines.get(place) or self._earlier.get((asked.image, asked.question))
            if added is not None:
                lines.append({**asked.values, **added})
        with atomic_path(self._out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            if self._out.suffix in TABLES:
                added_names = [*OWN, *(BOX if self._has_boxes else ())]
                table = csv.writer(
                    file, delimiter="\t" if self._out.suffix == ".tsv" else ",", lineterminator="\n"
                )
                table.writerow([*self._names.values(), *added_names])
                for line in lines:
                    table.writerow([_cell(line.get(name)) for name in (*self._names, *added_names)])
            else:
                for line in lines:
                    # What was added comes first: by this the file is known.
                    first = {name: line[name] for name in OWN}
                    file.write(json_text(first | line) + "\n")
        self._saved = time.monotonic()


def _identity(config: VisualizeConfig, model: LoadedModel) -> int:
    """A number that changes with the weights, how they are used, and the store of features that is named."""
    place = located(model.checkpoint)
    files = [place / "model.safetensors", place / "config.json"]
    files += [config.features / MANIFEST] if config.features else []
    return zlib.crc32(repr([file_content(file) for file in files]).encode())


def _picture(file: Path, image: str) -> tuple[Path, str | None, str]:
    """An image, beside the file or from the working directory: its path, its content, what is wrong."""
    path = file.parent / image
    try:
        path = path if path.exists() else Path(image)
        content = file_content(path)
    except (OSError, ValueError) as error:  # too long a name, a zero byte, a directory that is closed
        return path, None, f"{image}: cannot be read ({getattr(error, 'strerror', None) or error})"
    if content is None:
        return path, None, f"{image}: no such file"
    return path, f"{content:08x}", ""


def _earlier(out: Path, same: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What an earlier result says of each (image, question), where the same model was asked alike."""
    return {(item.image, item.question): said for item, said in _lines_of(out, same)}


def _lines_of(out: Path, same: Mapping[str, Any]) -> Iterator[tuple[Asked, dict[str, Any]]]:
    for item in read_questions(out).asked:
        said = {name: item.values.get(name) for name in (*OWN, *BOX) if item.values.get(name) is not None}
        numbers = ("threshold", "probability", *BOX)
        try:
            said |= {name: float(str(said[name])) for name in numbers if name in said}
        except ValueError:
            continue  # somebody has written into it
        if {"prediction", "picture"} <= said.keys() and {name: said.get(name) for name in same} == dict(same):
            yield item, {**dict.fromkeys(OWN), **said}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)
