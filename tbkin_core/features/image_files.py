"""Region features that other programs keep one image to a file: `.npz`, and `.npy` with an `_info.npy`.

- Bottom-up attention (Anderson et al. 2018; bottom-up-attention.pytorch, OpenVQA, MCAN), `.npz`: `x` (K, D)
  or (D, K), `boxes` or `bbox` (K, 4) or (4, K), `image_h`, `image_w`; perhaps `num_bbox`, how many rows are
  regions, and `objects_id`, `objects_conf`, `attrs_id`, `attrs_conf` (K,), alone or in a dict `info`.
- UNITER (Chen et al. 2020), `.npz`: `features` (K, D), `norm_bb` (K, 6 or 7), whose first four numbers are
  corners as fractions, `conf` (K,), `soft_labels` (K, 1601), probabilities of the background and of objects.
- MMF (Singh et al. 2020), `NAME.npy` (K, D) and `NAME_info.npy`, a dict with `bbox` (K, 4), `num_boxes`,
  `image_width`, `image_height`, `cls_prob`. Its objects are numbered by a list that is not in the files.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets.unpickle import loads_object_npy
from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId, RegionFeatures

LABELS = {
    "object_ids": ("objects_id", np.int32),
    "object_scores": ("objects_conf", np.float32),
    "attribute_ids": ("attrs_id", np.int32),
    "attribute_scores": ("attrs_conf", np.float32),
}
"""Arrays of `RegionFeatures`, what bottom-up attention's files call them, and their types."""
_CLASSES = 1601  # of bottom-up attention's detector, the background first
_DAMAGED = (
    *(OSError, ValueError, TypeError, EOFError, KeyError, IndexError, OverflowError, AttributeError),
    *(NotImplementedError, RuntimeError, MemoryError, SyntaxError, tokenize.TokenError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)


def read_feature_file(path: Path, image_id: ImageId, vectors: bool = True) -> RegionFeatures:
    """The regions of one image; boxes as the file has them, of width and height 0 where it tells none.

    Args:
        path: `.npz`, or the `.npy` of a pair. Pickled content is read without running code.
        image_id: Key of the image.
        vectors: Whether the features are wanted; else zeros of their shape stand for them.

    Raises:
        DataError: It cannot be read, or is of another form.
    """
    reader = _read_pair if path.suffix.lower() == ".npy" else _read_npz
    try:
        return reader(path, image_id, vectors)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: is not a whole {path.suffix} file ({error})",
            hint="fetch or make this file again; the others are kept",
        ) from error


def class_labels(probabilities: NDArray) -> dict[str, NDArray]:
    """Object numbers and scores (K,) of class probabilities (K, 1601); {} of another number of classes."""
    if probabilities.ndim != 2 or probabilities.shape[1] != _CLASSES:
        return {}
    objects = probabilities[:, 1:]  # the background is no object, however likely
    scores = objects.max(axis=1).astype(np.float32)
    return {
        "object_ids": np.where(scores > 0, objects.argmax(axis=1), -1).astype(np.int32),
        "object_scores": scores,
    }


def other_classes(count: int) -> str:
    """What to say of probabilities of other classes than `class_labels` knows."""
    return (
        f"class probabilities are of {count} classes, not of bottom-up attention's {_CLASSES}: the regions"
        " have no names"
    )


def _read_npz(path: Path, image_id: ImageId, vectors: bool) -> RegionFeatures:
    with np.load(path, allow_pickle=False) as archive:
        names = set(archive.files)
        if {"norm_bb", "features"} <= names:
            return _read_uniter(path, archive, image_id, vectors)
        box_key = "boxes" if "boxes" in names else "bbox"
        missing = {"x", box_key, "image_h", "image_w"} - names
        if missing:
            raise DataError(
                f"{path}: lacks {', '.join(sorted(missing))}; found {', '.join(sorted(names))}",
                hint="expected x, boxes (or bbox), image_h, image_w of bottom-up attention, or norm_bb and"
                " features of UNITER",
            )
        features = _features(archive, "x", vectors)
        boxes = np.asarray(archive[box_key], np.float32)
        width, height = int(archive["image_w"].item()), int(archive["image_h"].item())
        count = int(archive["num_bbox"].item()) if "num_bbox" in names else None
        known: Mapping[str, Any] = {key: archive[key] for key, _ in LABELS.values() if key in names}
        notes: tuple[str, ...] = ()
        if not known and "info" in names:
            try:
                known = _dict(loads_object_npy(archive.zip.read("info.npy"), "info"))
            except DataError as error:
                notes = (f"their regions have no names, which cannot be read ({error.message})",)
    if width <= 0 or height <= 0:
        raise DataError(f"{path}: image size {width}×{height} is not positive")
    features, boxes = _oriented(path, features, boxes)
    labels = {field: known[key] for field, (key, _) in LABELS.items() if key in known}
    return _cut(path, RegionFeatures(image_id, features, boxes, width, height, notes=notes), labels, count)


def _read_uniter(path: Path, archive: Any, image_id: ImageId, vectors: bool) -> RegionFeatures:
    features, boxes = _features(archive, "features", vectors), np.asarray(archive["norm_bb"], np.float32)
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6, 7):
        raise DataError(f"{path}: expected norm_bb (K, 6), got {boxes.shape}")
    labels: dict[str, NDArray] = {}
    notes: tuple[str, ...] = ()
    if "soft_labels" in archive.files:
        labels = class_labels(probabilities := archive["soft_labels"])
        notes = () if labels else (other_classes(probabilities.shape[-1]),)
    if "conf" in archive.files:
        labels["object_scores"] = archive["conf"]
    features, boxes = _oriented(path, features, boxes[:, :4])
    return _cut(path, RegionFeatures(image_id, features, boxes, 0, 0, notes=notes), labels, None)


def _info_beside(path: Path) -> Mapping[str, Any]:
    """The dict beside MMF's `NAME.npy`; DataError where there is none."""
    beside = path.with_name(f"{path.stem}_info.npy")
    if not beside.is_file():
        raise DataError(
            f"{path}: holds features alone, no boxes",
            hint=f"put {beside.name}, which MMF writes with it, beside it",
        )
    return _dict(loads_object_npy(beside.read_bytes(), str(beside)))


def _read_pair(path: Path, image_id: ImageId, vectors: bool) -> RegionFeatures:
    info = _info_beside(path)
    missing = {"bbox", "image_width", "image_height"} - set(info)
    if missing:
        raise DataError(f"{path.stem}_info.npy: lacks {', '.join(sorted(missing))}; found {', '.join(info)}")
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors:
        features = np.asarray(features, np.float32)
    boxes, labels = np.asarray(info["bbox"], np.float32), dict[str, NDArray]()
    if "cls_prob" in info:
        labels["object_scores"] = np.asarray(info["cls_prob"])[:, 1 - _CLASSES :].max(axis=1)
    note = (
        "objects are numbered by a list of MMF's own, which is not among its files: the regions have no names"
    )
    notes = (note,) if {"objects", "cls_prob"} & set(info) else ()
    size = int(info["image_width"]), int(info["image_height"])
    features, boxes = _oriented(path, features, boxes)
    count = int(info["num_boxes"]) if "num_boxes" in info else None
    return _cut(path, RegionFeatures(image_id, features, boxes, *size, notes=notes), labels, count)


def _dict(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its info is no dict")
    return value


def _features(archive: Any, key: str, vectors: bool) -> NDArray:
    if vectors:
        return np.asarray(archive[key], np.float32)
    with archive.zip.open(f"{key}.npy") as member:
        if np.lib.format.read_magic(member) == (1, 0):
            return np.broadcast_to(np.float32(0), np.lib.format.read_array_header_1_0(member)[0])
    return np.broadcast_to(np.float32(0), archive[key].shape)


def _oriented(path: Path, features: NDArray, boxes: NDArray) -> tuple[NDArray, NDArray]:
    """Features (K, D) and boxes (K, 4), of which either may be turned; DataError where that is not clear."""
    found = list(_orientations(features, boxes))
    if len(found) > 1:
        # Of four regions: corners that end before they begin are read the wrong way.
        found = [each for each in found if (each[1][:, 2:] > each[1][:, :2]).all()] or found
    if not found or not len(found[0][1]):
        raise DataError(
            f"{path}: expected x (K, D) and boxes (K, 4), got {features.shape} and {boxes.shape}",
            hint="K is the number of regions; x may also be (D, K), and boxes (4, K)",
        )
    if len(found) > 1:
        raise DataError(
            f"{path}: with x {features.shape} and boxes {boxes.shape} either side may be the regions",
            hint="write x as (K, D) with D other than K, and boxes as (K, 4)",
        )
    return found[0]


def _orientations(features: NDArray, boxes: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    if features.ndim == boxes.ndim == 2:
        for rows in (boxes, boxes.T):
            for vectors in (features, features.T):
                if rows.shape == (len(vectors), 4):
                    yield vectors, rows


def _cut(path: Path, regions: RegionFeatures, given: Mapping[str, Any], count: int | None) -> RegionFeatures:
    """The first `count` regions, with their labels; of padded files some pad the labels too."""
    if count is not None and not 0 < count <= len(regions):
        raise DataError(f"{path}: num_bbox is {count}, of {len(regions)} rows")
    labels: dict[str, Any] = {}
    for field, values in given.items():
        labels[field] = np.asarray(values).reshape(-1).astype(LABELS[field][1])
        if len(labels[field]) not in (len(regions), count):
            raise DataError(f"{path}: {field} has {len(labels[field])} entries for {len(regions)} regions")
    return RegionFeatures(
        *(regions.image_id, regions.features[:count], regions.boxes[:count]),
        *(regions.image_width, regions.image_height),
        **{field: values[:count] for field, values in labels.items()},
        notes=regions.notes,
    )
