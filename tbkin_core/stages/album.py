"""The pictures of a directory and their regions, for a search."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors import recorded_extractor
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, feature_kind
from tbkin_core.modeling.checkpoint import load_model_config
from tbkin_core.runs import ROOT
from tbkin_core.stages.figure_places import path_number
from tbkin_core.support.files import real_path, slug
from tbkin_core.support.shards import MANIFEST
from tbkin_core.training.start import check_feature_kind

logger = logging.getLogger("tbkin")


@dataclass(frozen=True, slots=True)
class Album:
    """Pictures with regions."""

    store: FeatureStore
    pictures: Mapping[ImageId, Path]  # those that the store holds, as people named them
    problems: list[str]  # what is worth knowing, one line each


def open_album(place: Path, checkpoint: Path, features: Path | None, devices: str) -> Album:
    """The pictures of a directory with regions of the kind that a checkpoint was trained on.

    Regions are taken from `features`, else from the directory's own store, else made and kept below
    `runs/visualize`, where pictures that have come or changed since are added.

    Raises:
        TbkinError: There are no pictures, or their regions cannot be made.
    """
    dataset = open_dataset(place)
    files = {record.image_id: record.path for record in dataset.images() if record.path is not None}
    if not files:
        raise DataError(f"{place}: holds no pictures{dataset.unread()}", hint="name a directory of images")
    kind = load_model_config(checkpoint).extractor or {}
    store = _own_store(place, kind, checkpoint, features)
    if store is None:
        return _kept_album(dataset, kind, checkpoint, devices)
    album = _album(store, dataset, files, [])
    made = (store.path / MANIFEST).stat().st_mtime
    if newer := [path for path in album.pictures.values() if path.stat().st_mtime > made]:
        album.problems.append(
            f"{len(newer)} pictures, such as {newer[0]}, are newer than {store.path}: where they are others"
            f" now, `tbkin extract-features {place} --overwrite` makes their regions anew"
        )
    return album


def _album(
    store: FeatureStore, dataset: Dataset, files: Mapping[ImageId, Path], problems: list[str]
) -> Album:
    """Of all pictures of a directory those that a store holds."""
    place, root = dataset.path, dataset.root
    # As people named them, not where links lead.
    pictures = {
        key: place / path.relative_to(root) if path.is_relative_to(root) else path
        for key, path in files.items()
        if key in store
    }
    if not pictures:
        raise DataError(
            f"{store.path}: holds features of none of the {len(files)} pictures in {place}",
            hint=f"make them with `tbkin extract-features {place}`",
        )
    if lacking := len(files) - len(pictures):
        problems = [*problems, f"{lacking} of the {len(files)} pictures in {place} have no features"]
    return Album(store, pictures, problems)


def _own_store(
    place: Path, kind: dict[str, Any], checkpoint: Path, features: Path | None
) -> FeatureStore | None:
    """The store asked for, or the directory's own where it is of this kind."""
    if features is not None:
        store = FeatureStore(features)
        check_feature_kind(kind, store, checkpoint)
        return store
    if not (place / "features" / MANIFEST).exists():
        return None
    store = FeatureStore(place / "features")
    return store if feature_kind(store.settings) == feature_kind(kind) else None


# ---- regions that are kept for the next search --------------------------------------------------


def _kept_album(dataset: Dataset, kind: dict[str, Any], checkpoint: Path, devices: str) -> Album:
    """Pictures of a directory without regions of its own."""
    place = dataset.path
    records, keyed = [], dict[ImageId, Path]()
    for record in dataset.images():
        if record.path is not None:
            key = _key(dataset.root, record.path)
            keyed[key] = record.path
            records.append(replace(record, image_id=key))
    number = path_number(real_path(place), json.dumps([feature_kind(kind), kind.get("max_regions")]))
    out = ROOT / "visualize" / "features" / f"{slug(real_path(place).name) or 'pictures'}-{number}"
    store = None
    with contextlib.suppress(DataError):  # none, or a damaged one, which is mended below
        store = FeatureStore(out, verify=True)
    if store is not None and all(key in store for key in keyed):
        return _album(store, dataset, keyed, [])
    logger.info("regions of %d pictures in %s are made, and kept in %s", len(keyed), place, out)
    try:
        made = extract_dataset(dataset, out, devices=devices, images=records, **_as_recorded(kind))
    except DataError as error:
        # The disk takes nothing, or another search is at work there: what was made before serves.
        if store is None or not any(key in store for key in keyed):
            raise
        return _album(store, dataset, keyed, [error.message])
    check_feature_kind(kind, made.store, checkpoint)
    return _album(made.store, dataset, keyed, made.problems)


def _key(root: Path, path: Path) -> str:
    """A key that a picture keeps until it is another one, told by its name, inode, size and time."""
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    told = [str(inside)]
    with contextlib.suppress(OSError):  # whoever reads it says what is wrong with it
        about = path.stat()
        told += [str(about.st_ino), str(about.st_size), str(about.st_mtime_ns)]
    content = "\0".join(told).encode(errors="replace")
    return f"picture-{hashlib.blake2b(content, digest_size=8).hexdigest()}"


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
