"""Accuracy of referring expression comprehension: Acc@IoU>0.5 (Yu et al. 2016, RefCOCO)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tbkin_core.boxes import as_boxes, box_iou_paired, xywh_to_xyxy
from tbkin_core.errors import DataError


def rec_accuracy(predicted_xyxy: ArrayLike, target_xywh: ArrayLike, threshold: float = 0.5) -> float:
    """Share of predictions whose IoU with the target is above `threshold`, in percent.

    Args:
        predicted_xyxy: (N, 4) predicted corners, absolute pixels.
        target_xywh: (N, 4) target boxes, absolute pixels, in COCO order.
        threshold: IoU that must be exceeded: exactly `threshold` is not enough.

    Raises:
        DataError: There is nothing to evaluate, or the shapes do not fit.
    """
    predicted, target = as_boxes(predicted_xyxy, "predicted_xyxy"), xywh_to_xyxy(target_xywh, np.float64)
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
    target = xywh_to_xyxy(target_xywh, np.float64)
    if len(region_boxes) != len(target):
        raise DataError(f"expected the regions of each target, got {len(region_boxes)} for {len(target)}")
    if len(target) == 0:
        raise DataError("no referring expressions to evaluate")
    hits = [
        bool(np.any(box_iou_paired(boxes, box[None]) > threshold))
        for boxes, box in zip(region_boxes, target, strict=True)
    ]
    return 100 * sum(hits) / len(hits)
