"""`tbkin visualize PHOTOS/ SENTENCE`: the pictures of a directory that a sentence fits best, on one sheet."""

from __future__ import annotations

import json
import shlex
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import CheckpointError, ConfigError, DataError
from tbkin_core.figures.contact_sheet import SheetGroup, SheetItem, contact_sheet
from tbkin_core.figures.views import attention_views
from tbkin_core.modeling.checkpoint import task_of
from tbkin_core.results import Match, SearchResult
from tbkin_core.runs import ROOT
from tbkin_core.settings import VisualizeConfig
from tbkin_core.shipped import located
from tbkin_core.stages.album import open_album
from tbkin_core.stages.answering import LoadedModel, NamedRegions, Question
from tbkin_core.stages.choosing import model_for
from tbkin_core.stages.figure_places import figure_place, path_number, sheet_files
from tbkin_core.support.console import percent
from tbkin_core.support.files import file_content, real_path, slug
from tbkin_core.tasks.inputs import Inputs
from tbkin_core.tasks.pairs import search_images, tower_vectors

STANDS_OUT = 2.0
"""A region with so many times the attention of an even share."""

SHOWN = 12
"""Pictures on a sheet: three rows."""


def search(config: VisualizeConfig, place: Path) -> SearchResult:
    """Rank the pictures of a directory by how well a sentence fits, and look at the best ones.

    Raises:
        TbkinError: There are no pictures or no model for it, features cannot be made, or no word is known.
    """
    _refuse_what_has_no_effect(config)
    checkpoint, notes = _checkpoint(config, place)
    album = open_album(place, checkpoint, config.features, config.devices)
    store, ids = album.store, list(album.pictures)
    model = LoadedModel(config, checkpoint)
    sentence = model.read(config.question)
    model.model.tbkin.selection = model.model.config.attention_selection()
    rows = np.array([store.row(image_id) for image_id in ids], np.int64)
    vectors = tower_vectors(model.model, _made_by(checkpoint, model.model), store, model.device)[rows]

    started = time.perf_counter()
    inputs = Inputs(sentence.table, rows[:1], store, model.model.config.max_regions)
    wanted = config.top or SHOWN
    best = search_images(model.model, inputs, rows, vectors, model.device, wanted)
    seconds = time.perf_counter() - started
    ranks = zip(best.places[0], best.scores[0].tolist(), best.probability[0].tolist(), strict=True)
    matches, problems = [], list(album.problems)
    for number, score, probability in list(ranks)[:wanted]:
        key = ids[number]
        known = NamedRegions(store[key], store.object_names, store.attribute_names)
        try:
            matches.append(_looked_at(model, sentence, album.pictures[key], known, score, probability))
        except DataError as error:
            problems.append(f"left out: {error.message}")
    if not matches:
        raise DataError(f"none of the pictures that were found can be shown: {'; '.join(problems)}")
    found = [match for match, _ in matches]
    line = ["tbkin", "visualize", "--checkpoint", str(checkpoint)]
    line += ["--features", str(config.features)] if config.features else []
    line += ["--"] if sentence.text.startswith("-") else []
    line += [str(found[0].image), sentence.text]
    result = SearchResult(
        out=place,
        sentence=sentence.text,
        place=place,
        checkpoint=checkpoint,
        about=model.about,
        searched=len(rows),
        seconds=seconds,
        matches=found,
        problems=list(dict.fromkeys([*problems, *model.problems, *notes, *sentence.problems])),
        hints=[shlex.join(line)],
    )
    files = _draw(config, result, [picture for _, picture in matches])
    return replace(result, out=files[0], files=files)


def _refuse_what_has_no_effect(config: VisualizeConfig) -> None:
    """ConfigError where an option is given that a search does not take."""
    for name, why in (
        ("data", "the pictures are those of the directory"),
        ("threshold", "pictures are ranked as the model was trained"),
        ("selection", "pictures are ranked as the model was trained"),
    ):
        if getattr(config, name) not in (None, False):
            raise ConfigError(f"{name}: has no effect on a search, {why}", hint="omit it")


def _made_by(checkpoint: Path, model: Any) -> int | None:
    """A number that changes with what a model's vectors follow from; None where it has no file of weights."""
    weights = file_content(located(checkpoint) / "model.safetensors")
    settings = model.config.to_dict()
    settings.pop("match_weight")  # of what is ranked, not of the vectors
    return weights and zlib.crc32(json.dumps(settings, sort_keys=True, default=str).encode(), weights)


def _checkpoint(config: VisualizeConfig, place: Path) -> tuple[Path, list[str]]:
    """The retrieval model to search with, and notes; an error says why a directory takes one."""
    takes = f"{place}: is a directory; to search one takes a model for retrieval"
    hint = "make one with `tbkin finetune --task retrieval`, or name pictures, not their directory"
    if config.checkpoint is None:
        try:
            return model_for("retrieval", stored=config.features is not None)
        except CheckpointError as error:
            raise CheckpointError(f"{takes}, and none is finished below {ROOT}/", hint=hint) from error
    if (found := task_of(config.checkpoint)) != "retrieval":
        raise ConfigError(f"{takes}, {config.checkpoint} is a checkpoint for {found}", hint=hint)
    return config.checkpoint, []


def _draw(config: VisualizeConfig, result: SearchResult, pictures: list[NDArray[np.uint8]]) -> list[Path]:
    """The sheet of a search."""
    items = []
    for match, picture in zip(result.matches, pictures, strict=True):
        width, height = match.size
        scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
        said = f"score {match.score:.1f} · match {percent(match.probability)}"
        box = np.array(match.region) * scale if match.stands_out else None
        items.append(SheetItem(picture, result.name_of(match), said, "", None, box))
    name = f"{slug(result.place.resolve().name) or 'pictures'}-{slug(result.sentence) or 'sentence'}"
    name += "-column" * config.column
    base = figure_place(config, [result.place]) / name
    view = f"{config.aggregate} {config.layer} {config.head} {config.top}"
    asked = path_number(real_path(result.place), result.sentence, real_path(result.checkpoint), view)
    mark = f"tbkin search {asked}"
    files = sheet_files(base, config.format, mark)
    title = f"{result.sentence}: the best of {result.searched:,} pictures in {result.place}"
    caption = (
        f"{result.checkpoint}. Below each picture the score that it is ranked by, and how likely it matches"
        " the sentence. Outlined: the region that was attended to most, where one stands out."
    )
    for file in files:
        contact_sheet(
            file, [SheetGroup("", items)], title=title, caption=caption, mark=mark, column=config.column
        )
    return files


def _looked_at(
    model: LoadedModel, sentence: Question, path: Path, known: NamedRegions, score: float, probability: float
) -> tuple[Match, NDArray[np.uint8]]:
    """A match with the region that was attended to most, and its picture."""
    trace, asked = model.trace(path, sentence, known), model.config
    views = attention_views(trace, asked.aggregate, asked.layer, asked.head)
    weights = views[int(model.thresholded)].region_weights
    region = int(np.argmax(weights))
    x1, y1, x2, y2 = trace.boxes[region].tolist()
    share = float(weights[region] / max(weights.sum(), 1e-12))
    match = Match(
        image=path,
        image_id=known.regions.image_id,
        score=score,
        probability=probability,
        size=trace.image_size,
        region=(x1, y1, x2, y2),
        attention=share,
        stands_out=share * len(weights) >= STANDS_OUT,
    )
    return match, trace.image
