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
    text = valid[:, :text_length].sum(dim=1).double()  # (B,)
    image = valid[:, text_length:].sum(dim=1).double()
    sides = {"text": (slice(0, text_length), text), "image": (slice(text_length, None), image)}
    counts = {name: np.zeros((len(records), 2)) for name in DIRECTIONS}
    for layer, record in enumerate(records):
        for key, (keys, key_count) in sides.items():
            # Padding is never kept, so only padded queries are left to leave out.
            kept = record.kept[..., keys].sum(dim=(1, 3)) * valid  # (B, L)
            for query, (queries, query_count) in sides.items():
                total = float((query_count * key_count).sum()) * record.kept.shape[1]
                counts[f"{query}-to-{key}"][layer] = float(kept[:, queries].sum()), total
    return counts


def attention_entropy(records: Sequence[Any], valid: Tensor) -> float:
    """Mean entropy in nats of the attention of real queries, over layers and heads."""
    import torch

    total, count = 0.0, 0.0
    for record in records:
        entropy = torch.special.entr(record.weights.float()).sum(dim=-1)  # (B, H, L)
        where = valid[:, None, :].expand_as(entropy)
        total += float(entropy[where].sum())
        count += float(where.sum())
    return total / max(count, 1.0)
