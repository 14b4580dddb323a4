"""Import of region features that other programs extracted: bottom-up-attention .npz, TSV tables, HDF5."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.datasets import Dataset
from tbkin_core.datasets.records import ImageRecord
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.extractors.base import FeatureReader, Request
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.tables import LABEL_COLUMNS, feature_rows

_ROWS_LOOKED_AT = 16  # of the files, for the size of their features


def open_extractor(request: Request) -> FeatureReader:
    """The feature files of the request's dataset."""
    return ImportedFeatures(request.needed_dataset(), request.max_regions)


class ImportedFeatures(FeatureReader):
    """The features in the files of a dataset; the first file and row of an image counts.

    Args:
        dataset: Opened dataset.
        max_regions: Of more regions those of the highest confidence are taken; without any, the first.

    Raises:
        ConfigError: The dataset has no such files.
        DataError: None of the first rows can be read.
    """

    def __init__(self, dataset: Dataset, max_regions: int) -> None:
        self._dataset = dataset
        self._max_regions = max_regions
        self._feature_size, self._format = _size_and_format(dataset)

    def settings(self) -> dict[str, Any]:
        return {
            "extractor": "import",
            "format": self._format,
            "feature_size": self._feature_size,
            "max_regions": self._max_regions,
            "object_names": [],
            "attribute_names": [],
        }

    def rows(self) -> Iterator[tuple[ImageId, Callable[[ImageId], RegionFeatures]] | str]:
        seen: set[ImageId] = set()
        for image_id, path in self._dataset.bottom_up_files().items():
            seen.add(image_id)
            yield image_id, partial(read_bottom_up_npz, path)
        for path in self._dataset.feature_tables():
            own: set[ImageId] = set()
            for row in feature_rows(path):
                key = self._dataset.key_of(row.name)
                if key in own:
                    yield f"{row.where}: is a second row of its image (skipped)"
                elif key not in seen:
                    yield key, partial(self._with_size, row.read)
                own.add(key)
                seen.add(key)

    @cached_property
    def _records(self) -> dict[ImageId, ImageRecord]:
        try:
            return {record.image_id: record for record in self._dataset.images()}
        except DataError:
            return {}  # some other file of the dataset is damaged, which is not asked for here

    def _with_size(self, read: Callable[[ImageId], RegionFeatures], image_id: ImageId) -> RegionFeatures:
        """A row's regions; where its file does not tell the image's size, annotations or the picture do."""
        found = read(image_id)
        record = self._records.get(image_id) if found.size_guessed else None
        if record is None:
            return found
        width, height = record.width, record.height
        if (width is None or height is None) and record.path is not None:
            with contextlib.suppress(DataError):
                _, width, height = load_image(record.path, max_side=32)
        # What the boxes exceed is another picture, or one that was scaled down since.
        if not width or not height or width < found.image_width - 1 or height < found.image_height - 1:
            return found
        return replace(found, image_width=width, image_height=height, size_guessed=False)

    def regions(self, image_id: ImageId, source: Callable[[ImageId], RegionFeatures]) -> RegionFeatures:
        found = source(image_id)
        size = np.array([found.image_width, found.image_height] * 2, np.float32)
        boxes = np.clip(np.asarray(found.boxes, np.float32), 0, size)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        if not len(kept):
            raise DataError(
                f"image {image_id!r}: none of its boxes lies within its {size[0]:g} x {size[1]:g} pixels"
            )
        left_out = max(len(kept) - self._max_regions, 0)
        if left_out and len(found.object_scores):
            # The order of rows means nothing in such files; the surest first, so that a later cut keeps them.
            kept = kept[np.argsort(-np.nan_to_num(found.object_scores[kept]), kind="stable")]
        kept = kept[: self._max_regions]
        labels = {name: getattr(found, name) for name in LABEL_COLUMNS}
        given = {name: values[kept] for name, values in labels.items() if len(values)}
        return replace(found, features=found.features[kept], boxes=boxes[kept], left_out=left_out, **given)


def _size_and_format(dataset: Dataset) -> tuple[int, str]:
    """Size of the features that most of the first rows have, and what kind of files they are in."""
    error: DataError | None = None
    npz = (partial(read_bottom_up_npz, path, name) for name, path in dataset.bottom_up_files().items())
    rows = (partial(row.read, 0) for path in dataset.feature_tables() for row in feature_rows(path))
    for file_format, readers in (("bottom-up-attention npz", npz), ("bottom-up-attention table", rows)):
        sizes: Counter[int] = Counter()
        for read in readers:
            try:
                sizes[int(read().features.shape[1])] += 1
            except DataError as found:
                error = error or found
            if sizes.total() == _ROWS_LOOKED_AT:
                break
        if sizes:
            return sizes.most_common(1)[0][0], file_format
    if error is None:
        raise ConfigError(
            f"{dataset.root}: no features to import (bottom-up-attention .npz, TSV or HDF5 files)",
            hint="use --extractor builtin",
        )
    raise error


def read_bottom_up_npz(path: Path, image_id: ImageId) -> RegionFeatures:
    """Read one bottom-up-attention file (Anderson et al. 2018; the key sets of the public extractors).

    Args:
        path: `.npz` with `x` (K, D), `boxes` or `bbox` (K, 4) absolute-pixel xyxy, `image_h`, `image_w`;
            optional `objects_id`, `objects_conf`, `attrs_id`, `attrs_conf` (K,), and `num_bbox`, how many of
            the rows are regions. Pickled content is refused.
        image_id: Key of the image.

    Raises:
        DataError: The file is cut short, holds pickles, lacks a key, or has arrays of other shapes.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            box_key = "boxes" if "boxes" in names else "bbox"
            missing = {"x", box_key, "image_h", "image_w"} - names
            if missing:
                raise DataError(
                    f"{path}: lacks {', '.join(sorted(missing))}; found {', '.join(sorted(names))}",
                    hint="expected a bottom-up-attention file with x, boxes (or bbox), image_h, image_w",
                )
            features = np.asarray(archive["x"], np.float32)
            boxes = np.asarray(archive[box_key], np.float32)
            width, height = int(archive["image_w"].item()), int(archive["image_h"].item())
            labels: dict[str, Any] = {
                field: np.asarray(archive[key]).reshape(-1).astype(dtype)
                for field, (key, dtype) in LABEL_COLUMNS.items()
                if key in names
            }
            count = int(archive["num_bbox"].item()) if "num_bbox" in names else None
    except (
        *(OSError, ValueError, TypeError, EOFError, KeyError, OverflowError),
        *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise DataError(
            f"{path}: is not a whole .npz file ({error})",
            hint="fetch or make this file again; the others are kept",
        ) from error
    if features.ndim != 2 or boxes.shape != (len(features), 4) or len(features) == 0:
        raise DataError(f"{path}: expected x (K, D) and boxes (K, 4), got {features.shape} and {boxes.shape}")
    if width <= 0 or height <= 0:
        raise DataError(f"{path}: image size {width}×{height} is not positive")
    if count is not None and not 0 < count <= len(features):
        raise DataError(f"{path}: num_bbox is {count}, of {len(features)} rows")
    for field, values in labels.items():
        # Of padded files some pad these too.
        if len(values) not in (len(features), count):
            raise DataError(f"{path}: {field} has {len(values)} entries for {len(features)} regions")
    features, boxes = features[:count], boxes[:count]
    labels = {field: values[:count] for field, values in labels.items()}
    return RegionFeatures(image_id, features, boxes, width, height, **labels)
