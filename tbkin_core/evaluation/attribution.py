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

# Attention is recorded of blocks of so many samples, as a usual batch has: of one in so many, and of so many
# blocks at least and at most.
_BLOCK, _RECORD_EVERY, _LEAST_RECORDED, _MOST_RECORDED = 64, 16, 2, 64

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


def recorded_samples(samples: int) -> NDArray[np.bool_]:
    """(N,) of which samples attention is recorded: all of few, else blocks spread over the whole order.

    Which they are does not depend on how many are evaluated at once.
    """
    blocks = -(-samples // _BLOCK)
    count = min(max(blocks // _RECORD_EVERY, _LEAST_RECORDED), _MOST_RECORDED, blocks)
    chosen = [int((place + 0.5) * blocks / count) for place in range(count)]
    return np.isin(np.arange(samples) // _BLOCK, chosen)


class AttentionMeter:
    """Stands in for a model during an evaluation and records attention of some samples on the way.

    A pass of its own would cost as much again as its samples; this costs the recording alone. `samples` is
    how many there will be, in an order that is always the same (`evaluation_order`).
    """

    def __init__(self, model: Any, samples: int) -> None:
        self.model, self.config = model, model.config
        self._chosen = recorded_samples(samples)
        self._seen = 0
        self._kept: dict[str, NDArray[np.float64]] = {}
        self._entropy, self._queries = 0.0, 0

    def __call__(self, **inputs: Any) -> Any:
        import torch

        batch = len(inputs["input_ids"])
        own = self._chosen[self._seen : self._seen + batch]
        # Where a task evaluates more pairs than there are samples, none is recorded of the rest.
        chosen = torch.from_numpy(np.pad(own, (0, batch - len(own))))
        self._seen += batch
        record = bool(chosen.any())
        output = self.model(**inputs, output_attentions=record)
        if record:
            valid = torch.cat([inputs["attention_mask"].bool(), inputs["region_mask"].bool()], dim=1)
            valid &= chosen.to(valid.device)[:, None]
            counts = kept_counts(output.attentions, valid, inputs["input_ids"].shape[1])
            for name, found in counts.items():
                self._kept[name] = self._kept.get(name, 0) + found
            queries = int(valid.sum())
            self._entropy += queries * attention_entropy(output.attentions, valid)
            self._queries += queries
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def recorded(self) -> int:
        """How many samples are recorded."""
        return int(self._chosen.sum())

    def kept(self) -> dict[str, list[list[float]]]:
        """(kept, total) a layer, for each direction."""
        return {name: self._kept[name].tolist() for name in DIRECTIONS}

    def shares(self) -> dict[str, float]:
        """ "kept" overall, and "kept_LAYER_DIRECTION" where there is something to keep, in [0, 1]."""
        kept, total = np.sum([counts.sum(axis=0) for counts in self._kept.values()], axis=0)
        shares = {"kept": float(kept / total)}
        for direction, counts in self._kept.items():
            for layer, (kept, total) in enumerate(counts):
                if total:
                    shares[f"kept_{layer}_{direction}"] = float(kept / total)
        return shares

    def entropy(self) -> float:
        """Mean entropy of attention in nats."""
        return self._entropy / max(self._queries, 1)
