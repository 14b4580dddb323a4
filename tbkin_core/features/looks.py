"""Colours that are true of whole boxes of a photo, to call regions by that have no other name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tbkin_core.features.descriptors import COLOUR_PROTOTYPES, FRAME, MARGIN, colour_shares
from tbkin_core.features.regions import Floats, Pixels
from tbkin_core.features.segmentation import to_lab, working_copy

# A store has the colour of the shape that a region was found by, which in a photo is often what lies behind
# the thing in its box: of 40 such colours with most of their shape, eight were of something else.
LEAST_SHARE = 0.75  # of the pixels of a box

_SIDE = 256  # pixels of the copy that is looked at


def true_colours(picture: Pixels, boxes: Floats, looks: Sequence[str], size: tuple[int, int]) -> list[str]:
    """The colours among `looks` that most of a box has; "" in the place of others, and of what is no colour.

    Args:
        picture: (H, W, 3) uint8, at any scale.
        boxes: (K, 4) xyxy pixels of an image of `size`.
        looks: K names of colours, "" where unknown.
        size: Width and height of that image.
    """
    if not len(boxes):
        return []
    copy = working_copy(picture, _SIDE)
    inner = np.zeros((len(boxes), FRAME, FRAME), bool)
    inner[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    places = (np.asarray(boxes) / np.array([*size, *size])).astype(np.float32)
    shares = colour_shares(copy, to_lab(copy), places, inner, np.array(size, np.float32))  # (K, names)
    number = {name: place for place, name in enumerate(COLOUR_PROTOTYPES)}
    return [
        look if look in number and own[number[look]] >= LEAST_SHARE else ""
        for look, own in zip(looks, shares, strict=True)
    ]
