"""Vectors of boxes from a map of cells."""

from __future__ import annotations

import torch

SAMPLES = 14  # along a side of a box: RoIAlign's usual 7 bins of 2
BINS = 7


def roi_tokens(cells: torch.Tensor, boxes: torch.Tensor, bins: int = BINS) -> torch.Tensor:
    """RoIAlign: the means of a map over bins x bins equal parts of boxes, (K, bins·bins, D).

    SAMPLES x SAMPLES points in a box, between the cells, are its samples. They form a grid, so a mean weighs
    rows and columns apart, and all boxes of a map are one matrix product, however many points there are.

    Args:
        cells: (D, h, w).
        boxes: (K, 4) xyxy; the first cell reaches from 0 to 1.
        bins: Parts along a side; with 1 the mean is over the whole box.
    """
    down = _weights(boxes[:, 1], boxes[:, 3], cells.shape[1], bins)  # (K, bins, h)
    across = _weights(boxes[:, 0], boxes[:, 2], cells.shape[2], bins)  # (K, bins, w)
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]  # (K, bins, bins, h, w)
    return weights.flatten(3).flatten(1, 2) @ cells.flatten(1).T


def _weights(low: torch.Tensor, high: torch.Tensor, cells: int, bins: int) -> torch.Tensor:
    """How much a row of cells counts for the parts of the stretches from `low` to `high` (K,)."""
    steps = (torch.arange(SAMPLES, device=low.device) + 0.5) / SAMPLES
    points = low[:, None] + (high - low)[:, None] * steps - 0.5  # between the centres of cells
    points = points.clamp(0, cells - 1)
    centres = torch.arange(cells, device=low.device)
    near = (1 - (points[..., None] - centres).abs()).clamp(min=0)  # (K, SAMPLES, cells)
    return near.unflatten(1, (bins, SAMPLES // bins)).mean(dim=2)
