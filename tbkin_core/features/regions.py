"""Regions of one image: what every extractor returns and every later stage reads."""

from __future__ import annotations

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
    image_width: int  # pixels
    image_height: int  # pixels
    # (K,) int32 into the store's object names; -1 where unknown.
    object_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    object_scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))  # (K,) float32 in [0, 1]
    # (K,) int32 into the store's attribute names; -1 where unknown.
    attribute_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    # (K,) float32 in [0, 1].
    attribute_scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    size_guessed: bool = False  # whether nothing but the boxes tells the image's width and height
    left_out: int = 0  # regions of the same image that were given up for want of room

    def __len__(self) -> int:
        return len(self.boxes)
