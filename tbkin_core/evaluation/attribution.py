"""What attention looked at and what a threshold left of it; for figures and sweep metrics.

Letters: B batch, H heads, L length (T text tokens, then K regions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = ("text-to-text", "text-to-image", "image-to-text", "image-to-image")


def kept_counts(records: Sequence[Any], valid: Tensor, text_length: int) -> dict[str, NDArray[np.float64]]:
    """How many attention entries each layer kept, and how many there were.

    Args:
        records: One `AttentionRecord` a layer.
        valid: (B, L) bool, True where a position is real: padded queries do not count.
        text_length: T.

    Returns:
        For each of `DIRECTIONS`: (layers, 2) kept and total.
    """
    import torch

    is_text = torch.arange(valid.shape[1], device=valid.device) < text_length
    pairs = valid[:, :, None] & valid[:, None, :]  # (B, L, L)
    sides = {"text": is_text, "image": ~is_text}
    counts = {}
    for direction in DIRECTIONS:
        query, key = direction.split("-to-")
        where = pairs & sides[query][None, :, None] & sides[key][None, None, :]
        rows = []
        for record in records:
            heads = record.kept.shape[1]
            rows.append([float((record.kept & where[:, None]).sum()), float(where.sum()) * heads])
        counts[direction] = np.array(rows, np.float64)
    return counts


def attention_entropy(records: Sequence[Any], valid: Tensor) -> float:
    """Mean entropy in nats of the attention of real queries, over layers and heads."""
    total, count = 0.0, 0.0
    for record in records:
        weights = record.weights.float()
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=-1)  # (B, H, L)
        where = valid[:, None, :].expand_as(entropy)
        total += float(entropy[where].sum())
        count += float(where.sum())
    return total / max(count, 1.0)
