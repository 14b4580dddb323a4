"""Where one thing lies from another, with a margin: yes, no, or nobody would say."""

from __future__ import annotations

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CLEAR = 0.15  # of the image's side: from here on one centre is left of (above, ...) another
UNCLEAR = -0.04  # of the image's side: below this it is clearly not; between the two nothing is said

Point = tuple[float, float]


def lies(first: Point, relation: str, second: Point, size: Point) -> bool | None:
    """Whether a centre is left of (right of, above, below) another.

    Args:
        first, second: (x, y) in pixels.
        relation: A key of `OPPOSITE`.
        size: Width and height of the image.

    Returns:
        True, False where it is clearly otherwise, None in between.
    """
    axis = 0 if relation in ("left of", "right of") else 1
    distance = (second[axis] - first[axis]) / size[axis]
    if relation in ("right of", "below"):
        distance = -distance
    if distance >= CLEAR:
        return True
    return False if distance < UNCLEAR else None
