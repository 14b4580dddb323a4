"""The one scale of attention: how strong the colour of a share is, in pictures, maps and words of figures.

A row of attention sums to 1 over n positions, the word pieces and the regions; where all get alike, each has
the even share, 1 / n. With a share a and r = a · n, how many times the even share that is, its colour has the
strength

    s(a, n) = √(min(r, f) / f),   f = min(FULL, n)

so it is 0 for what is dropped, √(1/8) = 0.35 for the even share, and 1 from eight times the even share on.
It depends on nothing else: neither on what other regions get, nor on the other pass, nor on the picture. The
root keeps attention that is spread thin from looking like none. A region is outlined from `OUTLINED` times
the even share on: where attention is even, none is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FULL = 8.0  # times the even share that have full colour
OUTLINED = 2.0  # times the even share from which on a region stands out


def full_share(even: float) -> float:
    """The share from which on colours are full; at most all of it."""
    return min(FULL * even, 1.0)


def strength(shares: ArrayLike, even: float) -> NDArray[np.float64]:
    """Strength of colour, in [0, 1], of shares of attention.

    Args:
        shares: Any shape, in [0, 1].
        even: The even share, 1 / n.
    """
    return np.sqrt(np.clip(np.asarray(shares, np.float64) / full_share(even), 0, 1))


def stands_out(shares: ArrayLike, even: float) -> NDArray[np.bool_]:
    """Which shares are at least `OUTLINED` times the even one, and more than nothing."""
    return np.asarray(shares) >= max(OUTLINED * even, 1e-12)


def normalize(even: float) -> Any:
    """`strength` as matplotlib has it, for the colours of a map."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, full_share(even), clip=True)


def levels(even: float, most: int) -> list[float]:
    """At most so many shares for a key to the scale, the largest first: full, even, none, and between."""
    full = full_share(even)
    between = [factor * even for factor in (4, 2) if factor * even < 0.99 * full]
    wanted = [full, *between, *([even] if even < 0.99 * full else []), 0.0]
    while len(wanted) > max(most, 2):
        wanted.pop(1)
    return wanted


def percent(share: float) -> str:
    """Never "0 %" or "100 %" for what is only nearly so."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    if 0.999 < share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.3g} %"


def rounded_percent(share: float) -> str:
    """Two digits, for keys and captions: "2.3 %", "18 %", "100 %"."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.2g} %"
