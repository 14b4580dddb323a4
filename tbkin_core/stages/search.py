"""`tbkin visualize PHOTOS/ SENTENCE`: the pictures of a directory that a sentence fits best, on one sheet."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets import open_dataset
from tbkin_core.errors import CheckpointError, ConfigError, DataError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors import recorded_extractor
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, feature_kind
from tbkin_core.figures.contact_sheet import SheetGroup, SheetItem, contact_sheet
from tbkin_core.figures.views import attention_views
from tbkin_core.modeling.checkpoint import load_model_config, task_of
from tbkin_core.results import Match, SearchResult
from tbkin_core.runs import ROOT, find_checkpoint
from tbkin_core.settings import VisualizeConfig
from tbkin_core.stages.answering import Answerer
from tbkin_core.stages.figure_places import figure_place, path_number, sheet_files
from tbkin_core.support.console import percent
from tbkin_core.support.files import file_content, real_path, slug
from tbkin_core.support.shards import MANIFEST
from tbkin_core.tasks.base import Inputs
from tbkin_core.tasks.pairs import search_images, tower_vectors
from tbkin_core.training.start import check_feature_kind

logger = logging.getLogger("tbkin")

STANDS_OUT = 2.0
"""A region with so many times the attention of an even share."""

SHOWN = 12
"""Pictures on a sheet: three rows."""


def search(config: VisualizeConfig, place: Path) -> SearchResult:
    """Rank the pictures of a directory by how well a sentence fits, and look at the best ones.

    Raises:
        TbkinError: There are no pictures or no model for it, features cannot be made, or no word is known.
    """
    checkpoint = _checkpoint(config, place)
    problems: list[str] = []
    store, images = _open_photos(config, place, checkpoint, problems)
    model = Answerer(replace(config, features=store.path, data=place), checkpoint)
    model.model.tbkin.selection = model.model.config.attention_selection()
    weights = file_content(checkpoint / "model.safetensors")
    vectors = tower_vectors(model.model, weights, store, model.device)
    rows = np.array([store.row(image_id) for image_id in images], np.int64)
    if len(rows) < len(vectors):
        vectors = vectors[rows]

    started = time.perf_counter()
    inputs = Inputs(model.table, rows[:1], store, model.model.config.max_regions)
    best = search_images(model.model, inputs, rows, vectors, model.device)
    seconds = time.perf_counter() - started
    ids = list(images)
    scores = best.scores(model.model.config.match_weight)
    ranks = zip(best.places[0], scores[0].tolist(), best.probability[0].tolist(), strict=True)
    matches = [
        _looked_at(model, ids[place], images[ids[place]], score, probability)
        for place, score, probability in list(ranks)[: config.top or SHOWN]
    ]
    result = SearchResult(
        out=place,
        sentence=model.question,
        place=place,
        checkpoint=checkpoint,
        searched=len(rows),
        seconds=seconds,
        matches=[match for match, _ in matches],
        problems=list(dict.fromkeys([*problems, *model.problems])),
        hints=[f'tbkin visualize "{matches[0][0].image}" "{model.question}" --checkpoint {checkpoint}'],
    )
    files = _draw(config, result, [picture for _, picture in matches])
    return replace(result, out=files[0], files=files)


def _checkpoint(config: VisualizeConfig, place: Path) -> Path:
    """The retrieval model to search with; an error says why a directory takes one."""
    takes = f"{place}: is a directory; to search one takes a model for retrieval"
    hint = "make one with `tbkin finetune --task retrieval`, or name pictures, not their directory"
    if config.checkpoint is None:
        try:
            return find_checkpoint(["retrieval"])
        except CheckpointError as error:
            raise CheckpointError(f"{takes}, and none is finished below {ROOT}/", hint=hint) from error
    if (found := task_of(config.checkpoint)) != "retrieval":
        raise ConfigError(f"{takes}, {config.checkpoint} is a checkpoint for {found}", hint=hint)
    return config.checkpoint


def _draw(config: VisualizeConfig, result: SearchResult, pictures: list[NDArray[np.uint8]]) -> list[Path]:
    """The sheet of a search."""
    items = []
    for match, picture in zip(result.matches, pictures, strict=True):
        width, height = match.size
        scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
        said = f"score {match.score:.1f} · match {percent(match.probability)}"
        box = np.array(match.region) * scale if match.stands_out else None
        items.append(SheetItem(picture, match.image.name, said, "", None, box))
    name = f"{slug(result.place.resolve().name) or 'pictures'}-{slug(result.sentence) or 'sentence'}"
    base = figure_place(config, [result.place]) / name
    asked = Path(real_path(result.place), result.sentence)
    mark = f"tbkin search {path_number(asked)}"
    files = sheet_files(base, config.format, mark)
    title = f"{result.sentence}: the best of {result.searched:,} pictures in {result.place}"
    caption = (
        f"{result.checkpoint}. Below each picture the score that it is ranked by, and how likely it matches"
        " the sentence. Outlined: the region that was attended to most, where one stands out."
    )
    for file in files:
        contact_sheet(file, [SheetGroup("", items)], title=title, caption=caption, mark=mark)
    return files


def _looked_at(
    model: Answerer, image_id: ImageId, path: Path, score: float, probability: float
) -> tuple[Match, NDArray[np.uint8]]:
    """A match with the region that was attended to most, and its picture."""
    trace = model.trace(str(image_id))
    asked = model.config
    thresholded = model.thresholded or asked.threshold is not None or asked.selection is not None
    views = attention_views(trace, asked.aggregate, asked.layer, asked.head)
    weights = views[int(thresholded)].region_weights
    region = int(np.argmax(weights))
    x1, y1, x2, y2 = trace.boxes[region].tolist()
    share = float(weights[region] / max(weights.sum(), 1e-12))
    match = Match(
        image=path,
        image_id=image_id,
        score=score,
        probability=probability,
        size=trace.image_size,
        region=(x1, y1, x2, y2),
        attention=share,
        stands_out=share * len(weights) >= STANDS_OUT,
    )
    return match, trace.image


# ---- the pictures of a directory ----------------------------------------------------------------


def _open_photos(
    config: VisualizeConfig, place: Path, checkpoint: Path, problems: list[str]
) -> tuple[FeatureStore, dict[ImageId, Path]]:
    """Features of a directory of pictures, of the kind that a checkpoint was trained on, and the pictures.

    They are taken from `config.features`, else from the directory's own store, else made and kept below
    `runs/visualize`; pictures that have come since are added there.

    Raises:
        TbkinError: There are no pictures, or their features cannot be made.
    """
    dataset = open_dataset(place)
    found = {record.image_id: record.path for record in dataset.images() if record.path is not None}
    # As people named them, not where links lead.
    paths = {
        image_id: place / path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path
        for image_id, path in found.items()
    }
    if not paths:
        raise DataError(f"{place}: holds no pictures{dataset.unread()}", hint="name a directory of images")
    kind = load_model_config(checkpoint).extractor or {}
    store = _own_store(config, place, kind, checkpoint)
    if store is None:
        out = ROOT / "visualize" / "features" / f"{slug(place.resolve().name)}-{path_number(place)}"
        logger.info("regions of %d pictures in %s are made, and kept in %s", len(paths), place, out)
        extraction = extract_dataset(dataset, out, devices=config.devices, **_as_recorded(kind))
        problems += extraction.problems
        store = extraction.store
        check_feature_kind(kind, store, checkpoint)
    images = {image_id: path for image_id, path in paths.items() if image_id in store}
    if not images:
        raise DataError(
            f"{store.path}: holds features of none of the {len(paths)} pictures in {place}",
            hint=f"make them with `tbkin extract-features {place}`",
        )
    if lacking := len(paths) - len(images):
        problems.append(f"{lacking} of the {len(paths)} pictures in {place} have no features in {store.path}")
    return store, images


def _own_store(
    config: VisualizeConfig, place: Path, kind: dict[str, Any], checkpoint: Path
) -> FeatureStore | None:
    """The store asked for, or the directory's own where it is of this kind."""
    if config.features is not None:
        store = FeatureStore(config.features)
        check_feature_kind(kind, store, checkpoint)
        return store
    if not (place / "features" / MANIFEST).exists():
        return None
    store = FeatureStore(place / "features")
    return store if feature_kind(store.settings) == feature_kind(kind) else None


def _as_recorded(kind: dict[str, Any]) -> dict[str, Any]:
    """What `extract_dataset` makes features of a recorded kind with; ConfigError where it cannot."""
    row = recorded_extractor(kind)
    if row is None or not row.from_image_alone:
        raise ConfigError(
            f"features of kind {kind.get('extractor')!r} cannot be made here for new pictures",
            hint="give a store that holds these pictures with --features DIR",
        )
    backbone = kind.get("backbone")
    return {
        "extractor": kind.get("model") or row.name,
        "max_regions": int(kind["max_regions"]),
        "backbone": None if backbone == row.backbone else backbone,
        "backbone_side": kind.get("backbone_side") if backbone != row.backbone else None,
    }
