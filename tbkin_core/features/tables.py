"""Region features that other programs keep many images to a file: TSV tables and HDF5, read image by image.

Three tables are told apart by their first line; arrays lie in their columns as base64, float32 if not said
otherwise:

- Bottom-up attention (Anderson et al. 2018): image_id, image_w, image_h, num_boxes, boxes, features.
- LXMERT (Tan & Bansal 2019): img_id, img_h, img_w, objects_id (int64), objects_conf, attrs_id (int64),
  attrs_conf, num_boxes, boxes, features.
- ROSITA (Cui et al. 2021): filename, features, image_h, image_w, num_boxes, boxes, objects_id, objects_conf,
  attrs_id, attrs_conf, all float32.

An HDF5 file is as those of BAN and Pythia: `image_features` (N, K, D), `image_bb` (N, K, 4) in pixels, or
both end to end with `pos_boxes` (N, 2); `spatial_features` tell the images' sizes, and `image_ids`, or a file
`*imgid2idx.json` beside it, their ids.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError, MissingDependencyError
from tbkin_core.features.regions import ImageId, RegionFeatures

BOTTOM_UP, LXMERT, ROSITA = "bottom-up", "lxmert", "rosita"
MAX_LINE = 64 * 2**20  # bytes; 100 regions of 2048 numbers take 1.1 MB


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """One image of a file.

    Attributes:
        name: What the file calls the image.
        where: The row, for messages.
        read: Decodes the regions for the key of the image; a DataError where they are damaged.
    """

    name: str
    where: str
    read: Callable[[ImageId], RegionFeatures]


def feature_rows(path: Path) -> Iterator[FeatureRow]:
    """The images of a file, one at a time.

    Raises:
        DataError: The file cannot be read, or is no such table.
        MissingDependencyError: It is HDF5 and h5py is not installed.
    """
    return _hdf5_rows(path) if path.suffix.lower() in {".h5", ".hdf5"} else _table_rows(path)


# ---- tables -------------------------------------------------------------------------------------


def table_format(line: bytes) -> str | None:
    """Which of the tables has such a line; None for another file. The line may be cut off."""
    columns = line.split(b"\t")
    if len(columns) > 4 and all(column.isdigit() for column in columns[1:4]) and _is_base64(columns[4]):
        return BOTTOM_UP
    if len(columns) > 3 and all(column.isdigit() for column in columns[1:3]) and _is_base64(columns[3]):
        return LXMERT
    if len(columns) > 1 and len(columns[1]) > 1000 and _is_base64(columns[1]):
        return ROSITA
    return None


def _is_base64(column: bytes) -> bool:
    start = column[:1000].rstrip()
    return len(start) >= 16 and re.fullmatch(rb"[A-Za-z0-9+/]+=*", start) is not None


def _table_rows(path: Path) -> Iterator[FeatureRow]:
    try:
        with path.open("rb") as file:
            kind = table_format(file.readline(MAX_LINE))
            if kind is None:
                raise DataError(
                    f"{path}: line 1 is no row of region features",
                    hint="expected the TSV of bottom-up attention, LXMERT or ROSITA",
                )
            file.seek(0)
            yield from _rows_of(file, path, kind)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _rows_of(file: IO[bytes], path: Path, kind: str) -> Iterator[FeatureRow]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        columns = line.rstrip(b"\r\n").split(b"\t")
        name = columns[0].decode("utf-8", "replace").strip()
        where = f"{path}: line {number} (image {name!r})"

        def read(image_id: ImageId, columns: list[bytes] = columns, where: str = where) -> RegionFeatures:
            try:
                return _decode(columns, kind, image_id)
            except (ValueError, IndexError, binascii.Error) as error:
                raise DataError(
                    f"{where}: is cut short or damaged ({error})", hint="the other rows are kept"
                ) from error

        if name:
            yield FeatureRow(name, where, read)


def _decode(columns: list[bytes], kind: str, image_id: ImageId) -> RegionFeatures:
    wanted = {BOTTOM_UP: 6, LXMERT: 10, ROSITA: 10}[kind]
    if len(columns) != wanted:
        raise ValueError(f"{len(columns)} columns, expected {wanted}")

    def array(column: int, dtype: type = np.float32) -> NDArray[Any]:
        return np.frombuffer(base64.b64decode(columns[column], validate=True), dtype)

    labels: dict[str, Any] = {}
    if kind == BOTTOM_UP:
        width, height, count = (int(columns[at]) for at in (1, 2, 3))
        boxes, features = array(4), array(5)
    elif kind == LXMERT:
        height, width, count = (int(columns[at]) for at in (1, 2, 7))
        boxes, features = array(8), array(9)
        labels = _labels(array(3, np.int64), array(4), array(5, np.int64), array(6), count)
    else:
        height, width, count = (int(float(columns[at])) for at in (2, 3, 4))
        boxes, features = array(5), array(1)
        labels = _labels(array(6), array(7), array(8), array(9), count)
    if count < 1 or boxes.size != 4 * count or not features.size or features.size % count:
        raise ValueError(f"{boxes.size} numbers of boxes and {features.size} of features for {count} boxes")
    if width < 1 or height < 1:
        raise ValueError(f"image size {width}x{height}")
    return RegionFeatures(
        image_id,
        features.reshape(count, -1).astype(np.float32),
        boxes.reshape(count, 4).astype(np.float32),
        width,
        height,
        **labels,
    )


def _labels(
    object_ids: NDArray, object_scores: NDArray, attribute_ids: NDArray, attribute_scores: NDArray, count: int
) -> dict[str, Any]:
    found = {
        "object_ids": object_ids.astype(np.int32),
        "object_scores": object_scores.astype(np.float32),
        "attribute_ids": attribute_ids.astype(np.int32),
        "attribute_scores": attribute_scores.astype(np.float32),
    }
    for name, values in found.items():
        if len(values) != count:
            raise ValueError(f"{len(values)} {name} for {count} boxes")
    return found


# ---- HDF5 ---------------------------------------------------------------------------------------


def _hdf5_rows(path: Path) -> Iterator[FeatureRow]:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(f"{path}: reading HDF5 needs h5py", hint="pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            missing = {"image_features", "image_bb"} - set(file)
            if missing:
                raise DataError(
                    f"{path}: lacks {', '.join(sorted(missing))}; found {', '.join(sorted(file))}",
                    hint="expected image_features and image_bb, as in the files of BAN and Pythia",
                )
            features, boxes = file["image_features"], file["image_bb"]
            joined = features.ndim == 2
            if joined and "pos_boxes" not in file:
                raise DataError(f"{path}: features end to end need pos_boxes (N, 2)")
            ranges = file["pos_boxes"][()] if joined else None
            count = len(ranges) if ranges is not None else len(features)
            names = _hdf5_names(path, file, count)
            spatial = file.get("spatial_features")
            for row, name in enumerate(names):
                place: Any = slice(*map(int, ranges[row])) if ranges is not None else row
                where = f"{path}: row {row} (image {name!r})"

                def read(image_id: ImageId, place: Any = place, where: str = where) -> RegionFeatures:
                    own = np.asarray(boxes[place], np.float32).reshape(-1, 4)
                    vectors = np.asarray(features[place], np.float32)
                    if not len(own) or len(own) != len(vectors):
                        raise DataError(f"{where}: {len(own)} boxes and {len(vectors)} feature vectors")
                    width, height = _size_of(own, None if spatial is None else np.asarray(spatial[place]))
                    return RegionFeatures(image_id, vectors, own, width, height)

                yield FeatureRow(name, where, read)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is no whole HDF5 file of region features ({error})") from error


def _hdf5_names(path: Path, file: Any, count: int) -> list[str]:
    for key in ("image_ids", "image_id", "ids"):
        if key in file and len(file[key]) == count:
            values = file[key][()]
            return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    for beside in sorted(path.parent.glob("*imgid2idx*.json")):
        table = json.loads(beside.read_text(encoding="utf-8"))
        names = {int(place): str(name) for name, place in table.items()}
        if set(names) == set(range(count)):
            return [names[place] for place in range(count)]
    raise DataError(
        f"{path}: nothing says which row is which image",
        hint="expected a dataset image_ids in it, or a file imgid2idx.json beside it: image id to row",
    )


def _size_of(boxes: NDArray[np.float32], spatial: NDArray | None) -> tuple[int, int]:
    """Width and height of an image, from boxes in pixels and as fractions; else where the last box ends."""
    ends = boxes[:, 2:].max(axis=0)
    if spatial is not None and spatial.ndim == 2 and spatial.shape[1] >= 4:
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = boxes[:, 2:] / spatial[:, 2:4]
        known = np.isfinite(sizes).all(axis=1)
        if known.any():
            ends = np.maximum(ends, np.median(sizes[known], axis=0))
    return max(round(float(ends[0])), 1), max(round(float(ends[1])), 1)
