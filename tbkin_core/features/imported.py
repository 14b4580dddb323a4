"""Import of region features that other programs made."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId, RegionFeatures


def read_bottom_up_npz(path: Path, image_id: ImageId) -> RegionFeatures:
    """Read one bottom-up-attention file (Anderson et al. 2018; the key sets of the public extractors).

    Args:
        path: `.npz` with `x` (K, D), `boxes` or `bbox` (K, 4) absolute-pixel xyxy, `image_h`, `image_w`;
            optional `objects_id`, `objects_conf`, `attrs_id`, `attrs_conf` (K,). Pickled content is refused.
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
                for field, key, dtype in (
                    ("object_ids", "objects_id", np.int32),
                    ("object_scores", "objects_conf", np.float32),
                    ("attribute_ids", "attrs_id", np.int32),
                    ("attribute_scores", "attrs_conf", np.float32),
                )
                if key in names
            }
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        OverflowError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path}: is not a whole .npz file ({error})",
            hint="fetch or make this file again; the others are kept",
        ) from error
    if features.ndim != 2 or boxes.shape != (len(features), 4) or len(features) == 0:
        raise DataError(f"{path}: expected x (K, D) and boxes (K, 4), got {features.shape} and {boxes.shape}")
    if width <= 0 or height <= 0:
        raise DataError(f"{path}: image size {width}×{height} is not positive")
    for field, values in labels.items():
        if len(values) != len(features):
            raise DataError(f"{path}: {field} has {len(values)} entries for {len(features)} regions")
    return RegionFeatures(
        image_id=image_id,
        features=features,
        boxes=boxes,
        image_width=width,
        image_height=height,
        object_ids=labels.get("object_ids", np.full(len(features), -1, np.int32)),
        object_scores=labels.get("object_scores", np.zeros(len(features), np.float32)),
        attribute_ids=labels.get("attribute_ids", np.full(len(features), -1, np.int32)),
        attribute_scores=labels.get("attribute_scores", np.zeros(len(features), np.float32)),
    )
