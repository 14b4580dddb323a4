"""The feature store: region features of many images, memory-mapped, half precision.

from safetensors.numpy import load_file
shard = load_file("features/shard-00000.safetensors")
shard["features"], shard["boxes"], shard["offsets"]   # image i: rows offsets[i] to offsets[i + 1]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.shards import StoreReader, StoreWriter, ragged_gather, ragged_offsets

COMMAND = "tbkin extract-features DATA"
SHARD_IMAGES = 256


@dataclass(frozen=True, slots=True)
class RegionBatch:
    """Regions of B images, padded to the widest.

    Attributes:
        features: (B, K, D) float32, zero where padded.
        boxes: (B, K, 4) float32 absolute-pixel xyxy.
        geometry: (B, K, 5) float32, as `region_geometry`.
        mask: (B, K) bool, True where there is a region.
        object_ids: (B, K) int64, -1 unknown or padded.
        object_scores: (B, K) float32.
        attribute_ids: (B, K) int64, -1 unknown or padded.
        attribute_scores: (B, K) float32.
        sizes: (B, 2) float32, image width and height in pixels.
    """

    features: NDArray[np.float32]
    boxes: NDArray[np.float32]
    geometry: NDArray[np.float32]
    mask: NDArray[np.bool_]
    object_ids: NDArray[np.int64]
    object_scores: NDArray[np.float32]
    attribute_ids: NDArray[np.int64]
    attribute_scores: NDArray[np.float32]
    sizes: NDArray[np.float32]


class FeatureStore:
    """Reads a feature store.

    Args:
        path: Directory that `tbkin extract-features` wrote.

    Raises:
        DataError: No store there, a damaged shard, or another format version.
    """

    def __init__(self, path: Path | str) -> None:
        self._reader = StoreReader(Path(path), "features", COMMAND)
        self.path = Path(path)
        self.complete = self._reader.complete
        self.settings: dict[str, Any] = self._reader.settings
        self.extractor: str = self.settings["extractor"]
        self.feature_size = int(self.settings["feature_size"])
        self.object_names: list[str] = list(self.settings.get("object_names", []))
        self.attribute_names: list[str] = list(self.settings.get("attribute_names", []))
        self.image_ids: list[ImageId] = []
        self._shard_of: list[int] = []
        self._row_in_shard: list[int] = []
        for number, (_, metadata) in enumerate(self._reader):
            ids = metadata["image_ids"]
            self.image_ids += ids
            self._shard_of += [number] * len(ids)
            self._row_in_shard += range(len(ids))
        self._rows: dict[ImageId, int] = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if not self.image_ids:
            raise DataError(
                f"{self.path}: the feature store is empty", hint=f"make features with `{COMMAND}`"
            )
        self._shards = np.array(self._shard_of)
        self._places = np.array(self._row_in_shard)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: ImageId) -> bool:
        return image_id in self._rows

    def row(self, image_id: ImageId) -> int:
        """Row number of an image, for `gather`; KeyError where the store lacks it."""
        return self._rows[image_id]

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """The regions of one image, views into the memory map.

        Raises:
            DataError: The store holds no such image.
        """
        if image_id not in self._rows:
            raise DataError(
                f"{self.path}: no features for image {image_id!r}",
                hint=f"run `{COMMAND}` again: it adds what is missing",
            )
        row = self._rows[image_id]
        arrays, _ = self._reader.shards[self._shards[row]]
        place = self._places[row]
        begin, end = arrays["offsets"][place : place + 2]
        width, height = arrays["image_sizes"][place]
        return RegionFeatures(
            image_id=image_id,
            features=arrays["features"][begin:end],
            boxes=arrays["boxes"][begin:end],
            image_width=int(width),
            image_height=int(height),
            object_ids=arrays["object_ids"][begin:end],
            object_scores=arrays["object_scores"][begin:end],
            attribute_ids=arrays["attribute_ids"][begin:end],
            attribute_scores=arrays["attribute_scores"][begin:end],
        )

    def fingerprint(self) -> int:
        """A number that changes with the images of the store and with their regions."""
        value = zlib.crc32(repr(self.image_ids).encode("utf-8", errors="replace"))
        for arrays, _ in self._reader:
            value = zlib.crc32(arrays["boxes"].tobytes(), zlib.crc32(arrays["offsets"].tobytes(), value))
        return value

    def gather(self, rows: Sequence[int] | NDArray, max_regions: int | None = None) -> RegionBatch:
        """Regions of many images at once, without a Python loop over regions.

        Args:
            rows: (B,) row numbers.
            max_regions: Keep at most the first so many of each image.
        """
        rows = np.asarray(rows, dtype=np.int64)
        shards, places = self._shards[rows], self._places[rows]
        pieces = []
        lengths = np.zeros(len(rows), np.int64)
        for number in np.unique(shards):
            arrays, _ = self._reader.shards[number]
            members = np.flatnonzero(shards == number)
            flat, row, column = ragged_gather(arrays["offsets"], places[members])
            if max_regions is not None:
                keep = column < max_regions
                flat, row, column = flat[keep], row[keep], column[keep]
            lengths[members] = np.bincount(row, minlength=len(members))
            pieces.append((arrays, members, flat, members[row], column))
        widest = int(lengths.max(initial=1))
        shape = (len(rows), widest)
        features = np.zeros((*shape, self.feature_size), np.float32)
        boxes = np.zeros((*shape, 4), np.float32)
        mask = np.zeros(shape, np.bool_)
        object_ids = np.full(shape, -1, np.int64)
        attribute_ids = np.full(shape, -1, np.int64)
        object_scores = np.zeros(shape, np.float32)
        attribute_scores = np.zeros(shape, np.float32)
        sizes = np.ones((len(rows), 2), np.float32)
        for arrays, members, flat, row, column in pieces:
            features[row, column] = arrays["features"][flat]
            boxes[row, column] = arrays["boxes"][flat]
            mask[row, column] = True
            object_ids[row, column] = arrays["object_ids"][flat]
            attribute_ids[row, column] = arrays["attribute_ids"][flat]
            object_scores[row, column] = arrays["object_scores"][flat]
            attribute_scores[row, column] = arrays["attribute_scores"][flat]
            sizes[members] = arrays["image_sizes"][places[members]]
        return RegionBatch(
            features,
            boxes,
            batch_geometry(boxes, sizes),
            mask,
            object_ids,
            object_scores,
            attribute_ids,
            attribute_scores,
            sizes,
        )


def feature_kind(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes features comparable: a store's settings, or a checkpoint's note of them.

    How many regions were kept and where the store lies make no other kind.
    """
    return {name: value for name, value in settings.items() if name not in ("max_regions", "store")}


def feature_statistics(
    sources: Sequence[tuple[FeatureStore, Sequence[int] | NDArray]], images: int = 2000
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and reciprocal standard deviation (D,) of the region features of some images.

    A dimension that hardly varies is not blown up: its scale is bounded.

    Args:
        sources: Stores, each with the rows (N,) to take; repeated rows count once.
        images: Of more rows than this, evenly spaced ones are taken.
    """
    parts = []
    for store, wanted in sources:
        rows = np.unique(np.asarray(wanted, np.int64))
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), images)).astype(np.int64))]
        for begin in range(0, len(rows), 256):
            batch = store.gather(rows[begin : begin + 256])
            parts.append(batch.features[batch.mask].astype(np.float64))
    count = sum(len(part) for part in parts)
    mean = sum(part.sum(axis=0) for part in parts) / count
    variance = sum(((part - mean) ** 2).sum(axis=0) for part in parts) / count
    deviation = np.sqrt(variance)
    floor = 0.05 * float(deviation.mean()) or 1.0
    return mean.astype(np.float32), (1 / np.maximum(deviation, floor)).astype(np.float32)


def batch_geometry(boxes: NDArray[np.float32], sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """`region_geometry` for boxes (B, K, 4) and image sizes (B, 2): (B, K, 5) float32."""
    scaled = boxes / np.concatenate([sizes, sizes], axis=1)[:, None, :]  # (B, K, 4)
    area = (scaled[..., 2] - scaled[..., 0]) * (scaled[..., 3] - scaled[..., 1])
    return np.concatenate([scaled, area[..., None]], axis=-1).astype(np.float32)


def batch_of_one(regions: RegionFeatures) -> RegionBatch:
    """A batch that holds the regions of one image that is in no store."""
    sizes = np.array([[regions.image_width, regions.image_height]], np.float32)
    boxes = np.asarray(regions.boxes, np.float32)[None]
    return RegionBatch(
        # Through half precision, as from a store: the same image gives the same answer either way.
        _half(regions.features).astype(np.float32)[None],
        boxes,
        batch_geometry(boxes, sizes),
        np.ones(boxes.shape[:2], np.bool_),
        _labels(regions, "object_ids", np.int64, -1)[None],
        _labels(regions, "object_scores", np.float32, 0)[None],
        _labels(regions, "attribute_ids", np.int64, -1)[None],
        _labels(regions, "attribute_scores", np.float32, 0)[None],
        sizes,
    )


def _half(features: NDArray) -> NDArray[np.float16]:
    """Half precision, cut to its range: an overflow to infinity would poison every later stage."""
    largest = np.finfo(np.float16).max
    return np.clip(features, -largest, largest).astype(np.float16)


def _labels(regions: RegionFeatures, name: str, dtype: type, default: float) -> NDArray:
    """(K,) one of the label arrays, `default` where the extractor gave none."""
    values = getattr(regions, name)
    return np.asarray(values, dtype) if len(values) else np.full(len(regions), default, dtype)


class FeatureStoreWriter:
    """Collects images and writes them shard by shard; use as a context manager.

    Opened on an unfinished store of the same settings it goes on; images already there are in `done`.
    A block that ends with an error writes what has been collected all the same.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], shard_images: int = SHARD_IMAGES) -> None:
        self._writer = StoreWriter(path, "features", settings)
        self._size = int(settings["feature_size"])
        self._shard_images = shard_images
        self._pending: list[RegionFeatures] = []
        self.done: set[ImageId] = {
            image_id for metadata in self._writer.metadata for image_id in metadata["image_ids"]
        }

    def add(self, regions: RegionFeatures) -> None:
        """Add one image; it reaches the disk when its shard is full.

        Raises:
            DataError: Wrong shapes, no regions, or values that are not finite.
        """
        name = f"image {regions.image_id!r}"
        count = len(regions.boxes)
        if regions.boxes.shape != (count, 4) or count == 0:
            raise DataError(f"{name}: boxes must be (K, 4) with K > 0, got {regions.boxes.shape}")
        if regions.features.shape != (count, self._size):
            raise DataError(f"{name}: features must be ({count}, {self._size}), got {regions.features.shape}")
        if not (np.isfinite(regions.features).all() and np.isfinite(regions.boxes).all()):
            raise DataError(f"{name}: features or boxes are not finite")
        for field in ("object_ids", "object_scores", "attribute_ids", "attribute_scores"):
            if len(getattr(regions, field)) not in (0, count):
                raise DataError(f"{name}: {field} must be ({count},), got {getattr(regions, field).shape}")
        if regions.image_id in self.done:
            raise DataError(f"{name}: is in the store already")
        self.done.add(regions.image_id)
        self._pending.append(regions)
        if len(self._pending) >= self._shard_images:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected as a shard."""
        if not self._pending:
            return
        batch, self._pending = self._pending, []

        def stacked(name: str, dtype: type, default: float) -> NDArray:
            return np.concatenate([_labels(regions, name, dtype, default) for regions in batch])

        self._writer.add(
            {
                "features": np.concatenate([_half(regions.features) for regions in batch]),
                "boxes": np.concatenate([np.asarray(regions.boxes, np.float32) for regions in batch]),
                "object_ids": stacked("object_ids", np.int32, -1),
                "object_scores": stacked("object_scores", np.float32, 0),
                "attribute_ids": stacked("attribute_ids", np.int32, -1),
                "attribute_scores": stacked("attribute_scores", np.float32, 0),
                "offsets": ragged_offsets([len(regions) for regions in batch]),
                "image_sizes": np.array(
                    [[regions.image_width, regions.image_height] for regions in batch], np.int32
                ),
            },
            {"image_ids": [regions.image_id for regions in batch]},
        )

    def finish(self) -> None:
        """Write the rest and mark the store complete."""
        self.flush()
        self._writer.finish()

    def __enter__(self) -> FeatureStoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish()
        elif not issubclass(kind, DataError):
            # Ctrl-C or a fault elsewhere: keep what is done. After a DataError the disk itself may be full.
            self.flush()


def write_feature_store(
    path: Path, settings: Mapping[str, Any], images: Iterable[RegionFeatures]
) -> FeatureStore:
    """Write a store from an iterable of images and open it."""
    with FeatureStoreWriter(path, settings) as writer:
        for regions in images:
            writer.add(regions)
    return FeatureStore(path)
