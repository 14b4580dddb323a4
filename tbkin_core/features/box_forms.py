"""How files that other programs wrote give their boxes: in pixels or as fractions, by corners or by sides.

No file says it. A sample of its boxes shows it, or shows that it cannot be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.features.regions import Floats

SAMPLE = 200  # images that decide
_MANY = 0.1  # share of boxes that is no accident
_CERTAIN = 10  # boxes that cannot be corners, where all fit as sides
_LARGEST_FRACTION = 1.05  # a detector's boxes may leave the image a little
_SLACK = 0.02  # of a side, by which boxes pass the border


class BoxForm(NamedTuple):
    """What four numbers of a box are."""

    fractions: bool = False  # of the image's width and height, else pixels
    sides: bool = False  # x, y, width, height, else x1, y1, x2, y2

    def __str__(self) -> str:
        numbers = "x, y, width and height" if self.sides else "x1, y1, x2, y2"
        return f"{numbers} {'as fractions of the image' if self.fractions else 'in pixels'}"

    def pixels(self, boxes: NDArray, size: tuple[int, int]) -> Floats:
        """Boxes (K, 4) of this form in an image of a width and height, as x1, y1, x2, y2 in pixels.

        Raises:
            DataError: The boxes are of another form, or fractions of an unknown size.
        """
        boxes = np.asarray(boxes, np.float32)
        if not any(self) and boxes.max(initial=0) > _LARGEST_FRACTION and not _backwards(boxes).any():
            return boxes  # as nearly all are
        known = boxes[np.isfinite(boxes).all(axis=1)]
        if len(known) and _are_fractions(known, np.array([size])) != self.fractions:
            what = "are not fractions" if self.fractions else "look like fractions of the image's sides"
            raise DataError(f"its boxes {what}, unlike those before them, which are {self}")
        if (self.fractions or self.sides) and min(size) < 1:
            raise DataError(
                f"its boxes are {self}, and nothing tells the image's width and height: put its picture, or"
                " an annotation file with its size, into the directory"
            )
        if self.fractions:
            known, boxes = (part * np.array([*size, *size], np.float32) for part in (known, boxes))
        if self.sides:
            if not _fit_as_sides(known, np.array([size])).all():
                raise DataError(f"its boxes are not {BoxForm(sides=True)}, as those before them are")
            return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        if len(known) and _backwards(known).mean() > 0.5:
            raise DataError("most of its boxes end before they begin: x1, y1, x2, y2 are expected")
        return boxes


def box_form(boxes: Sequence[NDArray], sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> BoxForm:
    """The form of the boxes of some images of one file or directory.

    Args:
        boxes: (K, 4) of each image.
        sizes: Width and height of each in pixels, 0 where unknown.
        names: What messages call each: the file and the row.

    Raises:
        DataError: They cannot be corners, and it is not certain what else they are.
    """
    image = np.repeat(np.arange(len(boxes)), [len(each) for each in boxes])
    every = np.concatenate([np.zeros((0, 4)), *boxes])
    finite = np.isfinite(every).all(axis=1)
    image, every = image[finite], every[finite]
    size = np.array(sizes, np.float64).reshape(-1, 2)[image]
    if not len(every):
        return BoxForm()
    # Image by image: a table of which a part are fractions is one of pixels, whose other rows are refused.
    of_each = [_are_fractions(every[image == number], size[image == number]) for number in np.unique(image)]
    fractions = bool(np.mean(of_each) > 0.5)
    unit = np.ones_like(size) if fractions else size
    backwards = _backwards(every)
    if not backwards.any():
        _refuse_beyond(every, unit, image, names)
        return BoxForm(fractions)
    fit = _fit_as_sides(every, unit)
    if fit.all() and backwards.sum() >= _CERTAIN:
        return BoxForm(fractions, sides=True)
    if backwards.mean() < _MANY and not fit.all():
        return BoxForm(fractions)  # some are damaged
    place = int(backwards.argmax())
    why = "too few to be certain that they are" if fit.all() else "and not all of them can be"
    raise DataError(
        f"{names[image[place]]}: {backwards.sum()} of the first {len(every)} boxes end before they begin,"
        f" such as {_shown(every[place])} in an image of {size[place][0]:g} x {size[place][1]:g}, {why} x, y,"
        " width and height",
        hint="write the boxes as x1, y1, x2, y2 in pixels, and the image's true width and height beside them",
    )


def _are_fractions(boxes: NDArray, sizes: NDArray) -> bool:
    """Whether boxes (M, 4) with any extent lie within the first pixel of larger images."""
    small = boxes.min(initial=0) >= 1 - _LARGEST_FRACTION and boxes.max(initial=0) <= _LARGEST_FRACTION
    return bool(small and boxes.any() and not (sizes.min(initial=9, where=sizes > 0) <= 2))


def _backwards(boxes: NDArray) -> NDArray[np.bool_]:
    return (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])


def _fit_as_sides(boxes: NDArray, sizes: NDArray) -> NDArray[np.bool_]:
    """(M,) whether boxes as x, y, width, height lie in images of sizes (M, 2) or (1, 2); not if unknown."""
    ends = boxes[:, :2] + boxes[:, 2:]
    inside = ends <= sizes * (1 + _SLACK) + np.where(sizes > 1, 1, 0)
    return (inside & (boxes[:, 2:] >= 0) & (boxes[:, :2] >= -_SLACK * sizes - 1) & (sizes > 0)).all(axis=1)


def _refuse_beyond(boxes: NDArray, sizes: NDArray, image: NDArray, names: Sequence[str]) -> None:
    """DataError where many corners are beyond images of known sizes: of other pictures, or in disorder."""
    beyond = ((boxes[:, 2:] > _LARGEST_FRACTION * sizes + 1) & (sizes > 0)).any(axis=1)
    if beyond.sum() < _CERTAIN or beyond.mean() < _MANY:
        return
    place = int(beyond.argmax())
    raise DataError(
        f"{names[image[place]]}: {beyond.sum()} of the first {len(boxes)} boxes reach out of their images,"
        f" such as {_shown(boxes[place])} of {sizes[place][0]:g} x {sizes[place][1]:g}",
        hint="write the boxes as x1, y1, x2, y2 in pixels of the picture whose size the file tells",
    )


def _shown(box: NDArray) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in box) + "]"
