"""Whether the shards of a feature store hold what they should: their arrays, and their checksums.

A store of many GB is not read whole before its first batch, and no number of a damaged shard is to be
answered or saved. So a thread compares a shard as soon as it is asked for, reading goes on meanwhile, and
whoever answers or saves waits first for what has been asked for.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.support.shards import read_shard, shard_checksum

# Arrays of a shard with K regions of N images: type, and shape, where "F" is the size of a vector.
_ARRAYS: dict[str, tuple[type, tuple[str | int, ...]]] = {
    "features": (np.float16, ("K", "F")),
    "boxes": (np.float32, ("K", 4)),
    "object_ids": (np.int32, ("K",)),
    "object_scores": (np.float32, ("K",)),
    "attribute_ids": (np.int32, ("K",)),
    "attribute_scores": (np.float32, ("K",)),
    "offsets": (np.int64, ("N + 1",)),
    "image_sizes": (np.int32, ("N", 2)),
}
# What shards told of themselves before they carried a checksum.
_EARLY = {"image_ids", "skipped", "files", "object_texts", "made_with"}
_INFINITE = 0x7C00  # of half precision: this and what follows are infinite or no numbers
_SIGN = 0x8000

_open: weakref.WeakSet[Verification] = weakref.WeakSet()
_whole: set[tuple[int, int, int, int]] = (
    set()
)  # files that this process has compared: device, inode, size, time


def damaged(path: Path, fault: str) -> DataError:
    """The error of a shard."""
    return DataError(
        f"{path}: is damaged: {fault}",
        hint="remove this file and run `tbkin extract-features DATA` again: it makes what is missing",
    )


def are(kind: type, values: Any) -> bool:
    """Whether values out of JSON are a list of that kind."""
    return isinstance(values, list) and all(type(value) is kind for value in values)


def are_ids(values: Any) -> bool:
    """Whether values out of JSON are a list of keys of images."""
    return isinstance(values, list) and all(type(value) in (int, str) for value in values)


def shard_fault(arrays: Mapping[str, NDArray], ids: Any, texts: Any, feature_size: int) -> str:
    """What is wrong with the form of a shard and its metadata, "" if nothing is."""
    if not are_ids(ids):
        return "it does not list its images"
    if missing := _ARRAYS.keys() - arrays.keys():
        return f"it lacks {', '.join(sorted(missing))}"
    offsets, count = arrays["offsets"], len(arrays["boxes"]) if arrays["boxes"].ndim else 0
    sides = {"K": count, "F": feature_size, "N": len(ids), "N + 1": len(ids) + 1}
    for name, (dtype, letters) in _ARRAYS.items():
        shape = tuple(sides.get(str(side), side) for side in letters)
        if arrays[name].dtype != dtype:
            return f"{name} must be {np.dtype(dtype)}, got {arrays[name].dtype}"
        if arrays[name].shape != shape:
            return f"{name} must be {shape}, got {arrays[name].shape}"
    if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 1).any():
        return "its offsets do not fit its regions"
    lists: list[Any] = list(texts.values()) if isinstance(texts, dict) else [None]
    if not all(are(int, rows) and all(0 <= row < count for row in rows) for rows in lists):
        return "its names of regions do not fit its regions"
    return ""


def look(
    paths: Sequence[Path], arrays: Sequence[Mapping[str, NDArray]], limits: Mapping[str, int], number: int
) -> None:
    """DataError where the small arrays of a shard hold what would end a model's work, or spoil it."""
    shard = arrays[number]
    for name, limit in limits.items():
        low, high = int(shard[name].min(initial=-1)), int(shard[name].max(initial=-1))
        if low < -1 or high >= limit:
            found = f"{low if low < -1 else high}, expected -1 to {limit - 1}"
            raise damaged(paths[number], f"{name} holds {found}")
    for name in ("boxes", "object_scores", "attribute_scores"):
        if not np.isfinite(shard[name]).all():
            raise damaged(paths[number], f"not all of its {name} are finite numbers")
    if shard["image_sizes"].min(initial=1) < 1:
        raise damaged(paths[number], "not all of its images have a width and a height")


def settle_stores() -> None:
    """Wait until all that this process has read of feature stores is compared.

    Raises:
        DataError: A shard is damaged; names the file and what to do.
    """
    for verification in list(_open):
        verification.settle()


class Verification:
    """Compares the shards of a store as they are asked for.

    Args:
        paths: Their files.
        look: What can be seen of a shard at once, by its number; raises a DataError.
    """

    def __init__(self, paths: list[Path], look: Callable[[int], None]) -> None:
        self._paths, self._look = paths, look
        self._asked = np.zeros(len(paths), np.bool_)
        self._waiting: deque[int] = deque()
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None
        self._lock = threading.Lock()
        _open.add(self)

    def ask(self, shards: NDArray[np.int64]) -> None:
        """Have shards compared, by their numbers; a DataError where one has been found damaged by now."""
        self._raise()
        if self._asked[shards].all():
            return
        with self._lock:
            for number in np.unique(shards[~self._asked[shards]]).tolist():
                self._look(number)
                self._asked[number] = True
                self._waiting.append(number)
            if self._thread is None:
                # Not to be waited for where the process ends for another reason.
                self._thread = threading.Thread(target=self._compare, name="checksums", daemon=True)
                self._thread.start()

    def settle(self) -> None:
        """Wait until all that has been asked for is compared; a DataError where something is damaged."""
        if (thread := self._thread) is not None:
            thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._fault is not None:
            _open.discard(self)  # a later command of this process need not end for what one has ended for
            raise self._fault

    def _compare(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._fault is not None:
                    self._thread = None
                    return
                number = self._waiting.popleft()
            try:
                _compare(self._paths[number])
            except Exception as error:  # whoever reads raises it
                self._fault = error


def fault_of(path: Path) -> str:
    """What is wrong with a shard that is read whole, "" if nothing is."""
    try:
        _compare(path)
    except DataError as error:
        return error.message
    return ""


def _compare(path: Path) -> None:
    """Read a shard whole; a DataError where it is not what was written, or holds what is no finite number."""
    status = path.stat()
    file = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if file in _whole:
        return
    early = shard_checksum(path) is None
    arrays, metadata = read_shard(path, verify=not early)
    if early and not metadata.keys() <= _EARLY:
        raise damaged(path, "its checksum is gone")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not _finite(array):
            raise damaged(path, f"not all of its {name} are finite numbers")
    _whole.add(file)


def _finite(array: NDArray) -> bool:
    if array.dtype != np.float16 or not array.size:
        return bool(np.isfinite(array).all())
    # By their bits: ten times as fast.
    positive, negative = int(array.view(np.int16).max()), int(array.view(np.uint16).max())
    return positive < _INFINITE and negative < _SIGN + _INFINITE
