"""Boxes: overlap, suppression, conversion. Corners are xyxy; COCO's files have xywh (x, y, width, height)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.errors import DataError


def xywh_to_xyxy(boxes: ArrayLike, dtype: Any = np.float32) -> NDArray[Any]:
    """(N, 4) boxes in COCO order (x, y, width, height) -> (N, 4) corners (x1, y1, x2, y2)."""
    corners = as_boxes(boxes, "boxes", dtype).copy()
    corners[:, 2:] += corners[:, :2]
    return corners


SAME_SHAPE = 0.02
"""Relative difference of aspect ratios up to which a picture was merely scaled."""


def scale_between(drawn: tuple[float, float], shown: tuple[float, float]) -> NDArray[np.float32] | None:
    """(4,) factors that take boxes from one size of a picture, (width, height) in pixels, to another.

    1 where the first size is not known (0). None where the shapes differ: it is another picture, or one of
    the two was turned.
    """
    if not all(drawn) or drawn == shown:
        return np.ones(4, np.float32)
    across, down = shown[0] / drawn[0], shown[1] / drawn[1]
    # Sides are whole pixels: of a thumbnail one is more than that share.
    if abs(across / down - 1) > max(SAME_SHAPE, 1 / min(shown)):
        return None
    return np.array([across, down] * 2, np.float32)


def turned(drawn: tuple[float, float], shown: tuple[float, float]) -> str:
    """What to add to a message about two sizes of one picture: "" unless one is the other on its side."""
    on_its_side = scale_between((drawn[1], drawn[0]), shown) is not None and all(drawn)
    return " (is the picture turned by an EXIF tag that its boxes do not know?)" if on_its_side else ""


def pairwise_iou(boxes: NDArray, others: NDArray | None = None) -> NDArray[np.float32]:
    """Intersection over union of every box with every other.

    Args:
        boxes: (..., N, 4) xyxy.
        others: (..., M, 4) xyxy; `boxes` themselves when None.

    Returns:
        (..., N, M) float32 in [0, 1]; 0 where a box has no area or is not finite.
    """
    first = np.asarray(boxes, np.float32)
    second = first if others is None else np.asarray(others, np.float32)
    # An empty list of boxes has no second axis.
    first, second = (part if part.ndim > 1 else part.reshape(-1, 4) for part in (first, second))
    return _iou(first[..., :, None, :], second[..., None, :, :]).astype(np.float32)


def non_maximum_suppression(boxes: NDArray, overlap: float, limit: int) -> list[int]:
    """Greedy non-maximum suppression: of boxes that overlap too much the best is kept.

    Args:
        boxes: (N, 4) xyxy, best first.
        overlap: A box is dropped where its intersection over union (float32) with a better one that was kept
            is above this.
        limit: Most boxes to keep, at least 1.

    Returns:
        Positions of the boxes kept, best first.
    """
    free = np.ones(len(boxes), bool)
    kept: list[int] = []
    for place in range(len(boxes)):
        if free[place]:
            kept.append(place)
            if len(kept) == limit:
                break
            free &= pairwise_iou(boxes[place : place + 1], boxes)[0] <= overlap
    return kept


def box_iou_paired(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each box with the one at the same place in `others`.

    Args:
        boxes: (N, 4) xyxy.
        others: (N, 4) xyxy; or (1, 4), which is compared with every box.

    Returns:
        (N,) in [0, 1]; 0 where a box has no area, is inside out, or is not finite.

    Raises:
        DataError: The shapes do not fit.
    """
    first, second = (as_boxes(part, name) for part, name in ((boxes, "boxes"), (others, "others")))
    if len(first) != len(second) and len(second) != 1:
        raise DataError(f"paired boxes must be equally many, got {len(first)} and {len(second)}")
    return _iou(first, second)


def _iou(first: NDArray, second: NDArray) -> NDArray:
    """IoU of boxes (..., 4) that broadcast against each other."""
    with np.errstate(invalid="ignore", over="ignore"):
        # Width and height apart: a last axis of two would make every pass over the pairs a slow one.
        sides = []
        for low, high in ((0, 2), (1, 3)):
            side = np.minimum(first[..., high], second[..., high])
            side -= np.maximum(first[..., low], second[..., low])
            sides.append(np.maximum(side, 0, out=side))
        intersection = sides[0] * sides[1]
        union = box_area(first) + box_area(second) - intersection
        # `>` is False for NaN, so a box that is not finite overlaps nothing.
        overlaps = (intersection > 0) & np.isfinite(union)
        return np.where(overlaps, intersection / np.where(overlaps, union, 1), 0)


def box_area(boxes: NDArray) -> NDArray:
    """Areas (...,) of boxes (..., 4) xyxy; 0 where one is inside out."""
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)


def as_boxes(values: ArrayLike, name: str, dtype: Any = np.float64) -> NDArray:
    """Boxes as an (N, 4) array; DataError, which calls them `name`, where they have another shape."""
    boxes = np.asarray(values, dtype)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{name} must be (N, 4), got {boxes.shape}")
    return boxes
