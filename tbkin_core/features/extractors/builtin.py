"""The built-in extractor: proposals and descriptors from NumPy, SciPy and scikit-image, no download."""

from __future__ import annotations

from typing import Any

import numpy as np

from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.descriptors import COLOUR_PROTOTYPES, FEATURE_SIZE, colour_shares, described
from tbkin_core.features.extractors.base import PictureExtractor, Request
from tbkin_core.features.proposals import masks_of_boxes, propose
from tbkin_core.features.regions import Floats, ImageId, Pixels, RegionFeatures
from tbkin_core.features.segmentation import to_lab, working_copy

VERSION = 1  # of the features; raise it with any change of their meaning
GRAY_WEIGHT = 0.5  # of the share of gray in the choice of a colour name


def open_extractor(request: Request) -> PictureExtractor:
    """For any image."""
    return BuiltinExtractor(request.max_regions)


class BuiltinExtractor(PictureExtractor):
    """Regions and descriptors of one image; deterministic, without state, fit for worker processes.

    Args:
        max_regions: Most regions of an image, the whole image included.
        working_side: Long side of the working copy in pixels.
        photo_side: Long side of the smaller copy for the graph-based segmentation.
        overlap: Intersection over union above which the lesser of two proposals is dropped.
        photos: Whether all images are photographs whose vectors a backbone gives: half of the work is for
            drawings and for vectors.

    Attributes:
        feature_size: D, the length of a region's vector.
        object_names: Names that `object_ids` index: none, for the proposals have no class.
        attribute_names: Names that `attribute_ids` index: colours, words of the Visual Genome attributes.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        max_regions: int = 36,
        working_side: int = 256,
        photo_side: int = 160,
        overlap: float = 0.7,
        photos: bool = False,
    ) -> None:
        if max_regions < 1:
            raise ConfigError(
                f"max_regions must be at least 1, got {max_regions}", hint="36 is the usual choice"
            )
        if not 64 <= working_side <= 1024 or not 32 <= photo_side <= working_side:
            raise ConfigError(
                f"working_side must be 64 to 1024 and photo_side 32 to working_side, "
                f"got {working_side} and {photo_side}"
            )
        if not 0.0 < overlap <= 1.0:
            raise ConfigError(f"overlap must be above 0 and at most 1, got {overlap}")
        self.max_regions = max_regions
        self.working_side = working_side
        self.photo_side = photo_side
        self.overlap = overlap
        self.photos = photos
        self.feature_size = 0 if photos else FEATURE_SIZE
        self.object_names: list[str] = []
        self.attribute_names = list(COLOUR_PROTOTYPES)

    def settings(self) -> dict[str, Any]:
        return {
            "feature_size": self.feature_size,
            "object_names": self.object_names,
            "attribute_names": self.attribute_names,
            **self.parameters(),
        }

    def parameters(self) -> dict[str, Any]:
        """What the features depend on beside the image; plain JSON values."""
        return {
            "extractor": "photo" if self.photos else "builtin",
            "version": VERSION,
            "max_regions": self.max_regions,
            "working_side": self.working_side,
            "photo_side": self.photo_side,
            "overlap": self.overlap,
        }

    def extract(
        self, image_id: ImageId, image: Pixels, width: int, height: int, known: Floats | None = None
    ) -> RegionFeatures:
        """Propose regions, or take known boxes, and describe them.

        A known box takes the shape of the proposal that fills it; without one it is described as a whole.

        Args:
            image_id: Key of the image, passed through.
            image: (H, W, 3) uint8 RGB, at any scale.
            width, height: In pixels, of the image that the boxes refer to.
            known: (K, 4) xyxy in pixels of that image, K > 0, each within it and with an area.

        Returns:
            1 to `max_regions` regions, best first, the whole image last; or the K known ones in their order.
            `object_ids` are -1 and `object_scores` the objectness, 1 of known boxes; `attribute_ids` and
            `attribute_scores` the dominant colour name and its share of the region.

        Raises:
            DataError: The array is not an 8-bit RGB image or has no pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(
                f"image {image_id}: expected a uint8 array (H, W, 3), got {image.dtype} {image.shape}",
                hint="read the file with tbkin_core.features.pictures.load_image",
            )
        if width < 1 or height < 1:
            raise DataError(f"image {image_id}: expected a positive size, got {width} x {height}")
        copy = working_copy(image, self.working_side)
        lab = to_lab(copy)
        limit = np.array([width, height] * 2, np.float32)
        if known is None:
            most, drawings = self.max_regions, not self.photos
            boxes, scores, masks = propose(copy, lab, self.photo_side, self.overlap, most, drawings)
        else:
            boxes, scores = (known / limit).astype(np.float32), np.ones(len(known), np.float32)
            masks = masks_of_boxes(copy, lab, self.photo_side, boxes)
        if self.photos:
            features = np.zeros((len(boxes), 0), np.float32)
            shares = colour_shares(copy, lab, boxes, masks, limit[:2])
        else:
            features, shares = described(copy, lab, boxes, masks, limit[:2])
        # Where black meets white the blend is gray: gray must win clearly to be the name.
        weighted = np.where(np.array(self.attribute_names) == "gray", GRAY_WEIGHT * shares, shares)
        colours = weighted.argmax(axis=1)
        return RegionFeatures(
            image_id=image_id,
            features=features,
            boxes=np.clip(boxes * limit, 0, limit).astype(np.float32),
            image_width=width,
            image_height=height,
            object_ids=np.full(len(boxes), -1, np.int32),
            object_scores=scores.astype(np.float32),
            attribute_ids=colours.astype(np.int32),
            attribute_scores=np.clip(shares[np.arange(len(shares)), colours], 0.0, 1.0).astype(np.float32),
        )
