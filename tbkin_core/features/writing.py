"""Writing of a feature store: images one after the other, shard by shard, whatever interrupts it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count, filterfalse, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import (
    FEATURES,
    LABELS,
    NAMED_BY_WEIGHTS,
    REGION_ARRAYS,
    TEXTS,
    FeatureStore,
    as_stored,
    regions_of_rows,
    texts_by_row,
    with_known_weights,
)
from tbkin_core.features.verification import are_ids, fault_of
from tbkin_core.support.interruption import held_back
from tbkin_core.support.shards import (
    MANIFEST,
    Manifest,
    StoreWriter,
    ragged_offsets,
    read_shard,
    shard_name,
    write_shard,
)

logger = logging.getLogger("tbkin")

SHARD_IMAGES = 256
_BEGUN = "begun"  # of a shard: whether an interruption cut it short, so that it is still to be filled


class FeatureStoreWriter:
    """Collects images and writes them shard by shard; use as a context manager.

    A shard holds so many images in their order, and the ids of those among them that could not be read. The
    images that no shard speaks of, in the order of the dataset, fill the shards that an interruption cut
    short (`keep`), then the numbers that no shard has. So an unfinished store goes on with the very shards
    that an uninterrupted run would have written; several processes can write one store, each the shards of
    its own numbers; and a complete store takes images that have come since into further shards. A shard
    appears whole or not at all: a kill costs the images of the one being filled.

    Args:
        path: Directory of the store.
        settings: What makes the features; a store of other settings is refused.
        shard_images: Images per shard, those that fail included; `SHARD_IMAGES` when None.

    Attributes:
        done: Images in the store, those collected included.
        failed: Images that could not be read when their shard was made, and are not in the store.
        files: Names of the files that images in the store were read from, where that was said.
        begun: Numbers of the shards that were cut short.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], shard_images: int | None = None) -> None:
        self.path = Path(path)
        _refuse_nameless(self.path, settings)
        self._writer = StoreWriter(path, FEATURES, _spelt_as_there(path, settings))
        self._digest = hashlib.blake2b(
            json.dumps([FEATURES.name, self._writer.settings], sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        self._size = int(settings["feature_size"])
        self._shard_images = shard_images or SHARD_IMAGES
        self._pending: list[tuple[RegionFeatures, str]] = []
        self._skipped: list[ImageId] = []
        self._number: int | None = None
        self.begun: list[int] = []
        self._damaged: set[int] = set()
        self._look()
        for number in self._shards:
            if fault := fault_of(self.path / shard_name(number)):
                logger.warning("%s: it is made again", fault)
                self._damaged.add(number)
        if self._damaged:
            self._look()
        # Numbers that no shard has, in order and without end; before them, those of shards to be filled.
        self._free = filterfalse(frozenset(self._shards).__contains__, count())
        self._next: Iterator[int] = chain(self.begun, self._free)
        self._filling, self._left = -1, 0

    def place(self) -> int:
        """Number of the shard of the next image to come; may be asked well ahead of `add`."""
        while self._left < 1:
            self._filling = next(self._next)
            begun = self._shards.get(self._filling, {})
            self._left = self._shard_images - sum(len(begun.get(it, ())) for it in ("image_ids", "skipped"))
        self._left -= 1
        return self._filling

    def turn(self, own: Callable[[int], bool] = lambda number: True) -> None:
        """Write what has been collected, and shards cut short as whole ones; the next place is in a new one.

        `own` says which numbers are this process's.
        """
        self.flush()
        for number in filter(own, self.begun):
            self._begin(number)
            self.flush()
        self._next, self._left = self._free, 0

    def add(self, regions: RegionFeatures, number: int | None = None, file: str = "") -> None:
        """Add one image; it reaches the disk when its shard is full.

        Args:
            regions: Its regions.
            number: Its shard, of `place`; images come shard by shard. None takes the next place.
            file: Name of the file that it was read from.

        Raises:
            DataError: Wrong shapes, no regions, or values that are not finite.
        """
        name = f"image {regions.image_id!r}"
        count = len(regions.boxes)
        if regions.boxes.shape != (count, 4) or count == 0:
            raise DataError(f"{name}: boxes must be (K, 4) with K > 0, got {regions.boxes.shape}")
        if regions.features.shape != (count, self._size):
            raise DataError(f"{name}: features must be ({count}, {self._size}), got {regions.features.shape}")
        for field in REGION_ARRAYS:
            values = np.asarray(getattr(regions, field))
            if field in LABELS and values.shape not in ((0,), (count,)):
                raise DataError(f"{name}: {field} must be ({count},), got {values.shape}")
            if not np.isfinite(values).all():
                raise DataError(f"{name}: {field.replace('_', ' ')} are not finite numbers")
        if not all(0 < side < 1 << 31 for side in (regions.image_width, regions.image_height)):
            raise DataError(f"{name}: is {regions.image_width} x {regions.image_height} pixels large")
        if regions.image_id in self.done:
            raise DataError(f"{name}: is in the store already")
        self._begin(number)
        self.done.add(regions.image_id)
        self.failed.discard(regions.image_id)
        # What waits for its shard takes no more memory than it will take on disk.
        self._pending.append((replace(regions, **as_stored(regions)), file))
        self._flush_full()

    def skip(self, image_id: ImageId, number: int | None = None) -> None:
        """Note that an image cannot be read, so that its shard is complete without it."""
        self._begin(number)
        self._skipped.append(image_id)
        self._flush_full()

    def _begin(self, number: int | None) -> None:
        number = self.place() if number is None else number
        if number != self._number:
            self.flush()
            if number in self.begun:
                self._pending, self._skipped = self._kept(number)
        self._number = number

    def _flush_full(self) -> None:
        if len(self._pending) + len(self._skipped) >= self._shard_images:
            self.flush()

    def _kept(self, number: int) -> tuple[list[tuple[RegionFeatures, str]], list[ImageId]]:
        """What a shard that was cut short holds."""
        arrays, metadata = read_shard(self.path / shard_name(number), verify=True)
        ids, texts = metadata["image_ids"], texts_by_row(metadata)
        rows = (slice(*ends) for ends in pairwise(arrays["offsets"].tolist()))
        found = zip(ids, repeat(arrays), rows, arrays["image_sizes"], strict=False)
        images = (regions_of_rows(*of_one, texts) for of_one in found)
        return list(zip(images, metadata.get("files", repeat("")), strict=False)), metadata["skipped"]

    def keep(self) -> int:
        """Write what has been collected of a shard, which is filled later; images that the store has now."""
        self.flush(begun=True)
        return sum(len(entry.get("image_ids", [])) for entry in self._shards.values())

    def flush(self, begun: bool = False) -> None:
        """Write what has been collected as a shard, or as one that is `begun`."""
        if self._number is None:
            return
        images = [regions for regions, _ in self._pending]
        files, skipped, number = [file for _, file in self._pending], self._skipped, self._number
        self._pending, self._skipped, self._number = [], [], None
        if number == self._filling:
            self._left = 0  # what is written is not added to
        nothing = as_stored(RegionFeatures("", np.zeros((0, self._size)), np.zeros((0, 4), np.float32), 0, 0))
        arrays = {
            name: np.concatenate([empty, *(getattr(regions, name) for regions in images)])
            for name, empty in nothing.items()
        }
        arrays["offsets"] = ragged_offsets([len(regions) for regions in images])
        sizes = [(regions.image_width, regions.image_height) for regions in images]
        arrays["image_sizes"] = np.array(sizes, np.int32).reshape(-1, 2)
        metadata: dict[str, Any] = {"image_ids": [regions.image_id for regions in images], "skipped": skipped}
        if any(files):
            metadata["files"] = files
        texts: dict[str, list[int]] = {}
        for begin, regions in zip(arrays["offsets"].tolist(), images, strict=False):
            for row, text in enumerate(regions.object_texts, start=begin):
                if text:
                    texts.setdefault(text, []).append(row)
        if texts:
            metadata[TEXTS] = texts
        if begun:
            metadata[_BEGUN] = True
        with held_back():  # a signal here would cost all that is collected
            write_shard(self.path / shard_name(number), arrays, {**metadata, "made_with": self._digest})
            self._shards[number] = metadata
            self._damaged.discard(number)
        self.begun = [other for other in self.begun if other != number]
        self._writer.list_shards(self._shards)

    def _look(self) -> None:
        """Learn which shards are there, and of which images they speak."""
        manifest = self._writer.manifest
        listed = frozenset(manifest.shards if manifest else ())
        self._shards: dict[int, dict[str, Any]] = {}
        others = 0
        for number, metadata in self._writer.shards():
            # Shards of earlier versions carry no digest; of those, the listed ones count.
            unmarked = self._digest if shard_name(number) in listed else ""
            if not all(are_ids(metadata.get(key, [])) for key in ("image_ids", "skipped", "files")):
                continue  # to be made again, as any that is broken
            if number in self._damaged:
                continue
            if metadata.pop("made_with", unmarked) == self._digest:
                self._shards[number] = metadata
            else:
                others += 1
        if others and manifest is None:
            raise DataError(
                f"{self.path}: holds shards of other settings, whose {MANIFEST} is missing",
                hint="choose another place with --out DIR, or remove them",
            )
        shards = self._shards.values()
        self.begun = sorted(number for number, entry in self._shards.items() if entry.get(_BEGUN))
        self.done: set[ImageId] = {name for entry in shards for name in entry.get("image_ids", [])}
        self.failed: set[ImageId] = {name for entry in shards for name in entry.get("skipped", [])}
        self.failed -= self.done
        self.files: dict[ImageId, str] = {
            name: file
            for entry in shards
            for name, file in zip(entry.get("image_ids", []), entry.get("files", []), strict=False)
        }

    def missing(self, numbers: Iterable[int]) -> int:
        """How many of these shards other processes have yet to write; what they have written counts now."""
        self._look()
        return len({*numbers, *self.begun} - (self._shards.keys() - set(self.begun)))

    def finish(self) -> None:
        """Write the rest and mark the store complete."""
        self.turn()
        self._look()
        self._writer.list_shards(self._shards, complete=True)

    def remove(self) -> None:
        """Remove this store: its own shards and its manifest."""
        for number in self._shards:
            (self.path / shard_name(number)).unlink(missing_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)

    def __enter__(self) -> FeatureStoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish()


def _refuse_nameless(path: Path, settings: Mapping[str, Any]) -> None:
    """DataError where features lie at `path` that an earlier version imported, without the regions' names."""
    there = Manifest.read(path).settings if (path / MANIFEST).exists() else {}
    names = {"object_names": there.get("object_names"), "attribute_names": there.get("attribute_names")}
    if not any(names.values()) and there == {**settings, **names} != settings:
        raise DataError(
            f"{path}: holds these features without the names of their regions, as earlier versions did",
            hint="--overwrite imports them anew, with the names; they can also be used as they are",
        )


def _spelt_as_there(path: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the store at `path` where they mean the same, else those given."""
    named = [name for name, weights in NAMED_BY_WEIGHTS if weights in settings]
    if not named or not (path / MANIFEST).exists():
        return settings
    there = Manifest.read(path).settings
    # A model may be named by another path, or lie elsewhere by now: its weights say which it is.
    unnamed = dict.fromkeys(named)
    same = {**with_known_weights(there), **unnamed} == json.loads(json.dumps({**settings, **unnamed}))
    return there if same else settings


def write_feature_store(
    path: Path, settings: Mapping[str, Any], images: Iterable[RegionFeatures]
) -> FeatureStore:
    """Write a store from an iterable of images and open it."""
    with FeatureStoreWriter(path, settings) as writer:
        for regions in images:
            writer.add(regions)
    return FeatureStore(path)
