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

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets.arrays import Npz, damaged_file, npy_array, npy_shape, open_npz, read_npy
from tbkin_core.datasets.unpickle import load_object_npy, loads_object_npy
from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId, RegionFeatures

LABELS = {
    "object_ids": "objects_id",
    "object_scores": "objects_conf",
    "attribute_ids": "attrs_id",
    "attribute_scores": "attrs_conf",
}
"""Arrays of `RegionFeatures`, and what bottom-up attention's files call them."""
_CLASSES = 1601  # of bottom-up attention's detector, the background first
UNNAMED = int(np.iinfo(np.int32).max)
"""What stands for a damaged number of a name: beyond all names."""
_MOST_LISTED = 100_000  # numbers in a list of an image's


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
        with np.errstate(all="ignore"):
            return reader(path, image_id, vectors)
    except DataError:
        raise
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        raise damaged_file(path, error) from error


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


def label_values(field: str, values: Any) -> NDArray[Any]:
    """Numbers or confidences (K,) of a field of `RegionFeatures` as a file has them, in that field's type.

    What is no number from 0 up, nor the -1 of a region without a name, becomes one that no list of names has,
    so that it counts among those; a confidence is left as it is.
    """
    given = _numbers(values).reshape(-1)
    if not field.endswith("_ids"):
        return given.astype(np.float32)
    known = (given >= -1) & (given < UNNAMED) & (given == np.floor(given))
    return np.where(known, given, UNNAMED).astype(np.int32)


def _numbers(values: Any) -> NDArray[Any]:
    """An array of numbers, also from a list of them or of lists of them; a ValueError from anything else."""
    if isinstance(values, list):
        rows = values if all(isinstance(row, list) for row in values) else [values]
        # Not whatever a pickle stands for: a list may hold itself as often as it likes.
        if sum(map(len, rows)) > _MOST_LISTED or not all(
            isinstance(number, int | float) for row in rows for number in row
        ):
            raise ValueError("holds a list of other things than numbers, or of too many")
        values = np.array(values, np.float64)
    if not isinstance(values, np.ndarray | np.generic | int | float):
        raise ValueError(f"holds {type(values).__name__}, expected numbers")
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"holds values of type {found.dtype}, expected numbers")
    return found


def _floats(values: Any) -> NDArray[np.float32]:
    return _numbers(values).astype(np.float32, copy=False)


def _whole(value: Any) -> int:
    """One whole number; a ValueError or OverflowError from anything else."""
    found = _numbers(value)
    if found.size != 1:
        raise ValueError(f"holds {found.size} numbers, expected one")
    return int(found.item())


def other_classes(count: int) -> str:
    """What to say of probabilities of other classes than `class_labels` knows."""
    return (
        f"class probabilities are of {count} classes, not of bottom-up attention's {_CLASSES}: the regions"
        " have no names"
    )


def _read_npz(path: Path, image_id: ImageId, vectors: bool) -> RegionFeatures:
    with open_npz(path) as archive:
        names = archive.names
        if {"norm_bb", "features"} <= names:
            return _read_uniter(path, archive, image_id, vectors)
        box_key = "boxes" if "boxes" in names else "bbox"
        missing = {"x", box_key, "image_h", "image_w"} - names
        if missing:
            raise DataError(
                f"{path}: lacks {', '.join(sorted(missing))}; found {', '.join(sorted(names)[:20])[:300]}",
                hint="expected x, boxes (or bbox), image_h, image_w of bottom-up attention, or norm_bb and"
                " features of UNITER",
            )
        features = _features(archive, "x", vectors)
        boxes = _floats(archive[box_key])
        width, height = _whole(archive["image_w"]), _whole(archive["image_h"])
        count = _whole(archive["num_bbox"]) if "num_bbox" in names else None
        known: Mapping[str, Any] = {key: archive[key] for key in LABELS.values() if key in names}
        notes: tuple[str, ...] = ()
        if not known and "info" in names:
            try:
                known = _dict(loads_object_npy(archive.bytes_of("info"), "info"))
            except DataError as error:
                notes = (f"their regions have no names, which cannot be read ({error.message})",)
    if width <= 0 or height <= 0:
        raise DataError(f"{path}: image size {width}×{height} is not positive")
    features, boxes = _oriented(path, features, boxes)
    labels = {field: known[key] for field, key in LABELS.items() if key in known}
    return _cut(path, RegionFeatures(image_id, features, boxes, width, height, notes=notes), labels, count)


def _read_uniter(path: Path, archive: Npz, image_id: ImageId, vectors: bool) -> RegionFeatures:
    features, boxes = _features(archive, "features", vectors), _floats(archive["norm_bb"])
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6, 7):
        raise DataError(f"{path}: expected norm_bb (K, 6), got {boxes.shape}")
    labels: dict[str, NDArray] = {}
    notes: tuple[str, ...] = ()
    if "soft_labels" in archive.names:
        labels = class_labels(probabilities := _numbers(archive["soft_labels"]))
        notes = () if labels else (other_classes(probabilities.shape[-1]),)
    if "conf" in archive.names:
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
    return _dict(load_object_npy(beside))


def _read_pair(path: Path, image_id: ImageId, vectors: bool) -> RegionFeatures:
    info = _info_beside(path)
    missing = {"bbox", "image_width", "image_height"} - set(info)
    if missing:
        beside = path.with_name(f"{path.stem}_info.npy")
        raise DataError(f"{beside}: lacks {', '.join(sorted(missing))}; found {', '.join(info)[:300]}")
    content = read_npy(path)
    features = _floats(npy_array(content)) if vectors else _zeros(npy_shape(content, len(content)))
    boxes, labels = _floats(info["bbox"]), dict[str, NDArray]()
    if "cls_prob" in info:
        labels["object_scores"] = _numbers(info["cls_prob"])[:, 1 - _CLASSES :].max(axis=1)
    note = (
        "objects are numbered by a list of MMF's own, which is not among its files: the regions have no names"
    )
    notes = (note,) if {"objects", "cls_prob"} & set(info) else ()
    size = _whole(info["image_width"]), _whole(info["image_height"])
    features, boxes = _oriented(path, features, boxes)
    count = _whole(info["num_boxes"]) if "num_boxes" in info else None
    return _cut(path, RegionFeatures(image_id, features, boxes, *size, notes=notes), labels, count)


def _dict(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its info is no dict")
    return value


def _features(archive: Npz, key: str, vectors: bool) -> NDArray[np.float32]:
    return _floats(archive[key]) if vectors else _zeros(archive.shape(key))


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.broadcast_to(np.float32(0), shape)


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
        labels[field] = label_values(field, values)
        if len(labels[field]) not in (len(regions), count):
            raise DataError(f"{path}: {field} has {len(labels[field])} entries for {len(regions)} regions")
    return RegionFeatures(
        *(regions.image_id, regions.features[:count], regions.boxes[:count]),
        *(regions.image_width, regions.image_height),
        **{field: values[:count] for field, values in labels.items()},
        notes=regions.notes,
    )
