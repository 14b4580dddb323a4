"""Random numbers as functions of their seed and their place."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mix(*parts: int) -> int:
    """One 63-bit seed from several whole numbers (splitmix64 finaliser), the same everywhere."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 31)) + 0x9E3779B97F4A7C15
    return state & 0x7FFFFFFFFFFFFFFF


def generator(seed: int, what: Any) -> np.random.Generator:
    """Chance that depends on a seed and on what it is for (an image id, say), whatever others there are."""
    return np.random.default_rng(mix(seed, zlib.crc32(repr(what).encode(errors="backslashreplace"))))


def uniform(seed: int, stream: int, rows: NDArray, columns: int) -> NDArray[np.float32]:
    """Uniform draws in [0, 1) that depend on (seed, stream, row key, column) alone.

    A counter-based generator: a sample's draws are the same in any batch, order, or worker.

    Args:
        seed: Mixed from the run's seed and the epoch.
        stream: Names what the draws are for, so that two uses never share numbers.
        rows: (B,) whole numbers, one key a sample.
        columns: N, draws a sample.

    Returns:
        (B, N) float32.
    """
    with np.errstate(over="ignore"):
        state = np.asarray(rows).astype(np.uint64)[:, None] * np.uint64(0xD6E8FEB86659FD93)
        state = state + np.arange(1, columns + 1, dtype=np.uint64)[None, :] * np.uint64(0x9E3779B97F4A7C15)
        state = state ^ np.uint64(mix(seed, stream))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return ((state >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)
