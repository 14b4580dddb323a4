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
    """K regions of one image, best first (Anderson et al. 2018, bottom-up attention).

    Attributes:
        image_id: Key of the image in its dataset.
        features: (K, D) float16 or float32, one vector per region.
        boxes: (K, 4) float32, absolute pixels, xyxy with 0 <= x1 < x2 <= width.
        image_width: Pixels.
        image_height: Pixels.
        object_ids: (K,) int32 into the store's object names; -1 where unknown.
        object_scores: (K,) float32 in [0, 1].
        attribute_ids: (K,) int32 into the store's attribute names; -1 where unknown.
        attribute_scores: (K,) float32 in [0, 1].
    """

    image_id: ImageId
    features: NDArray[np.floating]
    boxes: Floats
    image_width: int
    image_height: int
    object_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    object_scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    attribute_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    attribute_scores: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.boxes)
