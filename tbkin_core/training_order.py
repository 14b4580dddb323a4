"""Batches in a fixed order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tbkin_core.support.randomness import mix


def epoch_order(
    lengths: NDArray, batch_size: int, seed: int, epoch: int, bucket: int = 32
) -> list[NDArray[np.int64]]:
    """Shuffled batches of similar length; a function of (seed, epoch) alone.

    Rows are shuffled, sorted by length within windows of `bucket` batches so that little is padded,
    and the batches shuffled again. The last batch may be smaller.

    Args:
        lengths: (N,) length of each row.
        batch_size: Rows a batch.
        bucket: Batches a window; 1 turns bucketing off.
    """
    generator = np.random.default_rng(mix(seed, epoch, 1))
    order = generator.permutation(len(lengths))
    window = batch_size * max(bucket, 1)
    batches: list[NDArray[np.int64]] = []
    for begin in range(0, len(order), window):
        rows = order[begin : begin + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]
