"""Regions of one image: what every extractor returns and every later stage reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ImageId = int | str
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RegionFeatures:
    """K regions of one image, best first (Anderson et al. 2018, bottom-up attention)."""

    image_id: ImageId  # key of the image in its dataset
    features: NDArray[np.floating]  # (K, D) float16 or float32, one vector per region
    boxes: Floats  # (K, 4) float32, absolute pixels, xyxy with 0 <= x1 < x2 <= width
    image_width: int  # pixels; 0 where a file that another program wrote does not tell it
    image_height: int  # pixels; likewise
    # (K,) int32 into the store's object names; -1 where unknown.
    object_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    object_scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))  # (K,) float32 in [0, 1]
    # K names of regions that the store's object names lack, "" for the others; empty where there are none.
    object_texts: tuple[str, ...] = ()
    # (K,) int32 into the store's attribute names; -1 where unknown.
    attribute_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    # (K,) float32 in [0, 1].
    attribute_scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    size_guessed: bool = False  # whether nothing but the boxes tells the image's width and height
    left_out: int = 0  # regions of the same image that were given up for want of room
    notes: tuple[str, ...] = ()  # what to say of the image, and of others alike: "its regions have no names"

    def __len__(self) -> int:
        return len(self.boxes)

    def labels(self, object_names: Sequence[str]) -> tuple[str, ...]:
        """What each of the K regions is called, "" where unknown; `object_names` are the store's."""
        known = [object_names[it] if 0 <= it < len(object_names) else "" for it in self.object_ids.tolist()]
        if not self.object_texts:
            return tuple(known)
        return tuple(name or text for name, text in zip(known, self.object_texts, strict=True))
