"""Accuracy of referring expression comprehension: Acc@IoU>0.5 (Yu et al. 2016, RefCOCO)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.errors import DataError


def xywh_to_xyxy(boxes: ArrayLike) -> NDArray[np.float64]:
    """(N, 4) boxes in COCO order (x, y, width, height) -> (N, 4) corners (x1, y1, x2, y2)."""
    corners = _boxes(boxes, "boxes").copy()
    corners[:, 2:] += corners[:, :2]
    return corners


def box_iou_paired(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each box with the one at the same place in `others`.

    Args:
        boxes: (N, 4) xyxy.
        others: (N, 4) xyxy; or (1, 4), which is compared with every box.

    Returns:
        (N,) in [0, 1]; 0 where a box has no area, is inside out, or is not finite.
    """
    first, second = _boxes(boxes, "boxes"), _boxes(others, "others")
    if len(first) != len(second) and len(second) != 1:
        raise DataError(f"paired boxes must be equally many, got {len(first)} and {len(second)}")
    with np.errstate(invalid="ignore", over="ignore"):
        sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])  # (N, 2)
        intersection = np.clip(sides, 0, None).prod(axis=1)
        union = _area(first) + _area(second) - intersection
        # `>` is False for NaN, so a box that is not finite overlaps nothing.
        overlaps = (intersection > 0) & np.isfinite(union)
        return np.where(overlaps, intersection / np.where(overlaps, union, 1), 0.0)


def rec_accuracy(predicted_xyxy: ArrayLike, target_xywh: ArrayLike, threshold: float = 0.5) -> float:
    """Share of predictions whose IoU with the target is above `threshold`, in percent.

    Args:
        predicted_xyxy: (N, 4) predicted corners, absolute pixels.
        target_xywh: (N, 4) target boxes, absolute pixels, in COCO order.
        threshold: IoU that must be exceeded: exactly `threshold` is not enough.

    Raises:
        DataError: There is nothing to evaluate, or the shapes do not fit.
    """
    predicted, target = _boxes(predicted_xyxy, "predicted_xyxy"), xywh_to_xyxy(target_xywh)
    if len(predicted) != len(target):
        raise DataError(f"expected one prediction a target, got {len(predicted)} for {len(target)}")
    if len(target) == 0:
        raise DataError("no referring expressions to evaluate")
    return float(100 * np.mean(box_iou_paired(predicted, target) > threshold))


def oracle_accuracy(
    region_boxes: Sequence[ArrayLike], target_xywh: ArrayLike, threshold: float = 0.5
) -> float:
    """Accuracy of choosing the best region each time, in percent: the bound that the regions set.

    Args:
        region_boxes: One (K_i, 4) array of corners for each item; K_i may be 0.
        target_xywh: (N, 4) target boxes in COCO order.
        threshold: As in `rec_accuracy`.

    Raises:
        DataError: There is nothing to evaluate, or the shapes do not fit.
    """
    target = xywh_to_xyxy(target_xywh)
    if len(region_boxes) != len(target):
        raise DataError(f"expected the regions of each target, got {len(region_boxes)} for {len(target)}")
    if len(target) == 0:
        raise DataError("no referring expressions to evaluate")
    hits = [
        bool(np.any(box_iou_paired(boxes, box[None]) > threshold))
        for boxes, box in zip(region_boxes, target, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)


def _boxes(values: ArrayLike, name: str) -> NDArray[np.float64]:
    boxes = np.asarray(values, np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{name} must be (N, 4), got {boxes.shape}")
    return boxes
