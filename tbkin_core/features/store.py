"""The feature store: region features of many images, memory-mapped, half precision.

from safetensors.numpy import load_file
shard = load_file("features/shard-00000.safetensors")
shard["features"], shard["boxes"], shard["offsets"]   # image i: rows offsets[i] to offsets[i + 1]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import scale_between
from tbkin_core.errors import DataError
from tbkin_core.features.extractors import LITE, LITE_WEIGHTS
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.vectors import Vectors, VectorTable
from tbkin_core.features.verification import Verification, are, damaged, look, shard_fault
from tbkin_core.support.shards import (
    MANIFEST,
    StoreKind,
    read_store,
    shard_checksum,
)

FEATURES = StoreKind("features", array="features", command="tbkin extract-features DATA")
# Settings that name a model, and those that say which weights it has.
NAMED_BY_WEIGHTS = (("model", "weights"), ("backbone", "backbone_weights"))
# What an image without labels has for them, and their types in a store and in a batch.
LABELS: dict[str, tuple[float, type, type]] = {
    "object_ids": (-1, np.int32, np.int64),
    "object_scores": (0, np.float32, np.float32),
    "attribute_ids": (-1, np.int32, np.int64),
    "attribute_scores": (0, np.float32, np.float32),
}
TEXTS = "object_texts"  # of a shard: each name that the store's object names lack, with its rows
_WHOLE = 0.999  # of an image's area that a region covers which stands for all of it
REGION_ARRAYS = ("features", "boxes", *LABELS)


@dataclass(frozen=True, slots=True)
class RegionBatch:
    """Regions of B images, padded to the widest."""

    features: Vectors  # (B, K, F), zero where padded; read when they are needed
    boxes: NDArray[np.float32]  # (B, K, 4) float32 absolute-pixel xyxy
    geometry: NDArray[np.float32]  # (B, K, 5) float32 (x1/W, y1/H, x2/W, y2/H, area/(W·H))
    mask: NDArray[np.bool_]  # (B, K) bool, True where there is a region
    object_ids: NDArray[np.int64]  # (B, K) int64, -1 unknown or padded
    object_scores: NDArray[np.float32]  # (B, K) float32
    attribute_ids: NDArray[np.int64]  # (B, K) int64, -1 unknown or padded
    attribute_scores: NDArray[np.float32]  # (B, K) float32
    sizes: NDArray[np.float32]  # (B, 2) float32, image width and height in pixels


class FeatureStore:
    """Reads a feature store.

    Each shard is compared with its checksum once, when something of it is first asked for: for `gather` in a
    thread beside it, whose end `settle` waits for.

    Args:
        path: Directory that `tbkin extract-features` wrote.
        verify: Compare all of it at once.

    Raises:
        DataError: No store there, a damaged shard, or another format version.
    """

    def __init__(self, path: Path | str, verify: bool = False) -> None:
        self.path = Path(path)
        # Proposals end with the whole image. Graphs and training number regions as they are stored.
        self.keeps_whole_image = False
        manifest, shards = read_store(self.path, FEATURES)
        self.complete = manifest.complete
        self.settings = manifest.settings
        self._names = manifest.shards
        self.extractor: Any = self.settings.get("extractor")
        self.feature_size: int = self.settings.get("feature_size", 0)
        self.object_names: list[str] = self.settings.get("object_names", [])
        self.attribute_names: list[str] = self.settings.get("attribute_names", [])
        named = are(str, self.object_names) and are(str, self.attribute_names)
        if not (
            named and are(str, [self.extractor]) and are(int, [self.feature_size]) and self.feature_size > 0
        ):
            raise DataError(
                f"{self.path / MANIFEST}: does not say which extractor made the features, and of what size",
                hint=f"remove this directory and run `{FEATURES.command}` again",
            )
        self.image_ids: list[ImageId] = []
        self._arrays: list[dict[str, NDArray]] = []
        self._texts: list[dict[int, str]] = []  # of each shard, names that `object_names` lacks, by row
        shard_of: list[int] = []
        for number, (name, (mapped, metadata)) in enumerate(zip(manifest.shards, shards, strict=True)):
            ids: Any = metadata.get("image_ids")
            # Plain arrays: every slice of a memmap pays for being one.
            arrays = {key: np.asarray(array) for key, array in mapped.items()}
            texts: dict[str, list[int]] = metadata.get(TEXTS, {})
            if fault := shard_fault(arrays, ids, texts, self.feature_size):
                raise damaged(self.path / name, fault)
            self._arrays.append(arrays)
            self._texts.append(texts_by_row(metadata))
            self.image_ids += ids
            shard_of += [number] * len(ids)
        paths = [self.path / name for name in manifest.shards]
        # Without names, those of Visual Genome are meant, as by a model's heads.
        limits = {
            "object_ids": len(self.object_names) or 1600,
            "attribute_ids": len(self.attribute_names) or 400,
        }
        self._verification = Verification(paths, partial(look, paths, self._arrays, limits))
        self._rows: dict[ImageId, int] = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if not self.image_ids:
            raise DataError(
                f"{self.path}: the feature store is empty", hint=f"make features with `{FEATURES.command}`"
            )
        # Of each image its shard, its first row there, how many rows it has, and its size.
        self._shards = np.array(shard_of)
        self._begins = np.concatenate([arrays["offsets"][:-1] for arrays in self._arrays])
        self.vectors = VectorTable([arrays["features"] for arrays in self._arrays])
        self._first_rows = np.concatenate([[0], self.vectors.ends])  # of each shard, in that table
        self._counts = np.concatenate([np.diff(arrays["offsets"]) for arrays in self._arrays])
        self._sizes = np.concatenate([arrays["image_sizes"] for arrays in self._arrays])
        if verify:
            self._verification.ask(self._shards)
            self.settle()

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
                hint=f"run `{FEATURES.command}` again: it adds what is missing",
            )
        self._verification.ask(self._shards[[self._rows[image_id]]])
        self.settle()
        return self._regions(image_id)

    def settle(self) -> None:
        """Wait until all that has been read is compared with its checksums, before it is answered or saved.

        Raises:
            DataError: A shard is damaged.
        """
        self._verification.settle()

    def _regions(self, image_id: ImageId) -> RegionFeatures:
        row = self._rows[image_id]
        shard = self._shards[row]
        own = slice(self._begins[row], self._begins[row] + self._counts[row])
        return regions_of_rows(image_id, self._arrays[shard], own, self._sizes[row], self._texts[shard])

    def fingerprint(self) -> int:
        """A number that changes with the images of the store and with their regions."""
        value = zlib.crc32(repr(self.image_ids).encode("utf-8", errors="replace"))
        for arrays in self._arrays:
            value = zlib.crc32(arrays["boxes"].tobytes(), zlib.crc32(arrays["offsets"].tobytes(), value))
        return value

    def content(self, image_ids: Iterable[ImageId]) -> int:
        """A number that changes with what the store holds of some images, the vectors of their regions too.

        It is of their shards' checksums: images that come later go into further shards, and change nothing.
        """
        shards = {int(self._shards[self._rows[image_id]]) for image_id in image_ids if image_id in self._rows}
        value = 0
        for number in sorted(shards):
            checksum, arrays = shard_checksum(self.path / self._names[number]), self._arrays[number]
            if checksum is None:
                checksum = zlib.crc32(arrays["boxes"].tobytes(), zlib.crc32(arrays["offsets"].tobytes()))
            value = zlib.crc32(repr((number, checksum)).encode(), value)
        return value

    def boxes_of(self, image_id: ImageId) -> NDArray[np.float32]:
        """(K, 4) boxes of an image, for which no checksum is waited; KeyError where it is lacking."""
        row = self._rows[image_id]
        begin = self._begins[row]
        boxes: NDArray[np.float32] = self._arrays[self._shards[row]]["boxes"]
        return boxes[begin : begin + self._counts[row]]

    def size_of(self, image_id: ImageId) -> tuple[int, int]:
        """Width and height in pixels of an image, as its boxes are measured; KeyError where it is lacking."""
        width, height = self._sizes[self._rows[image_id]].tolist()
        return width, height

    def scale_from(self, drawn: tuple[float, float], image_id: ImageId) -> NDArray[np.float32] | None:
        """(4,) factors from boxes drawn on an image of a size to the regions' pixels, see `scale_between`.

        Tables of features often do not tell an image's size, which then is where the last box ends, a little
        less than the true one, whose pixels the boxes have: of imported features that is no scale.
        """
        shown = self.size_of(image_id)
        shares = [part / whole if whole else 1 for part, whole in zip(shown, drawn, strict=True)]
        if self.extractor == "import" and all(0.9 <= share <= 1 for share in shares):
            return np.ones(4, np.float32)
        return scale_between(drawn, shown)

    def same_pictures(
        self, image_ids: Iterable[ImageId], others: Iterable[ImageId]
    ) -> dict[ImageId, ImageId]:
        """Those of some images whose regions and vectors are those of another one's, each with that one.

        The same picture under two names, but for chance. Vectors are read only where all boxes are equal.
        """
        own = {image_id: zlib.crc32(self.boxes_of(image_id).tobytes()) for image_id in image_ids}
        wanted, known = set(own.values()), dict[tuple[int, bytes], ImageId]()
        for other in others:
            if (boxes := zlib.crc32(self.boxes_of(other).tobytes())) in wanted:
                known.setdefault((boxes, self._regions(other).features[0].tobytes()), other)
        found: dict[ImageId, ImageId] = {}
        for image_id, boxes in own.items() if known else ():
            features = self._regions(image_id).features
            same = known.get((boxes, features[0].tobytes()), image_id)
            if same != image_id and np.array_equal(features, self._regions(same).features):
                found[image_id] = same
        return found

    def region_counts(self, rows: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """(N,) number of regions of each of some images, by (N,) row numbers."""
        return self._counts[np.asarray(rows, np.int64)].astype(np.int64)

    def gather(self, rows: Sequence[int] | NDArray, max_regions: int | None = None) -> RegionBatch:
        """Regions of many images at once, without a Python loop over regions.

        Args:
            rows: (B,) row numbers.
            max_regions: Keep at most the first so many of each image; with `keeps_whole_image` the last of
                them is the whole image, where the image's last region is that.

        Raises:
            DataError: A shard is damaged, of these or of earlier ones.
        """
        rows = np.asarray(rows, dtype=np.int64)
        shards, begins, counts = self._shards[rows], self._begins[rows], self._counts[rows]
        self._verification.ask(shards)
        lengths = counts if max_regions is None else np.minimum(counts, max_regions)
        column = np.arange(lengths.max(initial=1))
        mask = column < lengths[:, None]  # (B, K)
        boxes = np.zeros((*mask.shape, 4), np.float32)
        labels = {name: np.full(mask.shape, default, dtype) for name, (default, _, dtype) in LABELS.items()}
        flat = begins[:, None] + column  # (B, K) rows of the image's shard
        for image in np.flatnonzero(lengths < counts) if self.keeps_whole_image else ():
            last = begins[image] + counts[image] - 1
            x1, y1, x2, y2 = self._arrays[shards[image]]["boxes"][last]
            if (x2 - x1) * (y2 - y1) >= _WHOLE * np.prod(self._sizes[rows[image]], dtype=np.float64):
                flat[image, lengths[image] - 1] = last
        for number in np.unique(shards):
            own = mask & (shards == number)[:, None]
            for name, values in {"boxes": boxes, **labels}.items():
                values[own] = self._arrays[number][name][flat[own]]
        sizes = self._sizes[rows].astype(np.float32)
        features = Vectors(self.vectors, np.where(mask, self._first_rows[shards][:, None] + flat, -1))
        return RegionBatch(features, boxes, batch_geometry(boxes, sizes), mask, sizes=sizes, **labels)


def texts_by_row(metadata: Mapping[str, Any]) -> dict[int, str]:
    return {row: text for text, rows in metadata.get(TEXTS, {}).items() for row in rows}


def regions_of_rows(
    image_id: ImageId, arrays: Mapping[str, NDArray], own: slice, size: NDArray, texts: Mapping[int, str]
) -> RegionFeatures:
    """The regions of one image, whose rows of a shard are known, and the texts of that shard by row."""
    width, height = map(int, size)
    regions: dict[str, Any] = {name: arrays[name][own] for name in REGION_ARRAYS}
    named = tuple(texts.get(place, "") for place in range(own.start, own.stop)) if texts else ()
    regions |= {"image_width": width, "image_height": height, "object_texts": named}
    return RegionFeatures(image_id=image_id, **regions)


def with_known_weights(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings that name the weights of the network for photos by their file, as stores do now.

    Earlier versions noted a number of the weights after normalisation had been put into them, whose last bits
    are another on another CPU. All of these are of one file.
    """
    return {**settings, "backbone_weights": LITE_WEIGHTS} if settings.get("backbone") == LITE else settings


def feature_kind(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes features comparable: a store's settings, or a checkpoint's note of them.

    How many regions were kept, how files that were imported gave their boxes and numbers, where the store
    lies, and where a model lay whose weights are known make no other kind; nor does a hub's revision.
    """
    settings = with_known_weights(settings)
    aside = {"max_regions", "boxes", "background", "store", "revision", "backbone_revision"}
    if settings.get("extractor") == "import":
        aside |= {"object_names", "attribute_names"}  # there or not, a number means the same
    aside |= {name for name, weights in NAMED_BY_WEIGHTS if weights in settings}
    return {name: value for name, value in settings.items() if name not in aside}


def vector_source(settings: Mapping[str, Any]) -> str:
    """What the numbers of region vectors come from, whatever boxes they are of and however these are named.

    Args:
        settings: A store's, or a checkpoint's note of them.
    """
    settings = with_known_weights(settings)
    for name in ("backbone_weights", "backbone", "weights", "model"):
        if settings.get(name):
            return f"{name} {settings[name]}"
    return "import" if settings.get("extractor") == "import" else "descriptors"


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
            parts.append(np.asarray(batch.features[batch.mask], np.float64))
    count = sum(len(part) for part in parts)
    mean = sum(part.sum(axis=0) for part in parts) / count
    variance = sum(((part - mean) ** 2).sum(axis=0) for part in parts) / count
    deviation = np.sqrt(variance)
    floor = 0.05 * float(deviation.mean()) or 1.0
    return mean.astype(np.float32), (1 / np.maximum(deviation, floor)).astype(np.float32)


def batch_geometry(boxes: NDArray[np.float32], sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Geometry (B, K, 5) float32, as of `RegionBatch`, of boxes (B, K, 4) in images of some sizes (B, 2)."""
    scaled = boxes / np.concatenate([sizes, sizes], axis=1)[:, None, :]  # (B, K, 4)
    area = (scaled[..., 2] - scaled[..., 0]) * (scaled[..., 3] - scaled[..., 1])
    return np.concatenate([scaled, area[..., None]], axis=-1).astype(np.float32)


def batch_of_one(regions: RegionFeatures) -> RegionBatch:
    """A batch that holds the regions of one image that is in no store."""
    sizes = np.array([[regions.image_width, regions.image_height]], np.float32)
    # Through half precision, as from a store: the same image gives the same answer either way.
    stored = as_stored(regions)
    boxes = stored["boxes"][None]
    labels = {name: stored[name][None].astype(dtype) for name, (_, _, dtype) in LABELS.items()}
    features = Vectors(VectorTable([stored["features"]]), np.arange(len(regions))[None])
    mask = np.ones(boxes.shape[:2], np.bool_)
    return RegionBatch(features, boxes, batch_geometry(boxes, sizes), mask, sizes=sizes, **labels)


def _half(features: NDArray) -> NDArray[np.float16]:
    """Half precision, cut to its range: an overflow to infinity would poison every later stage."""
    largest = np.finfo(np.float16).max
    return np.clip(features, -largest, largest).astype(np.float16)


def as_stored(regions: RegionFeatures) -> dict[str, Any]:
    """The arrays of K regions as a store has them; default labels where the extractor gave none."""
    arrays = {"features": _half(regions.features), "boxes": np.asarray(regions.boxes, np.float32)}
    for name, (default, dtype, _) in LABELS.items():
        values = getattr(regions, name)
        arrays[name] = np.asarray(values if len(values) else np.full(len(regions), default), dtype)
    return arrays
