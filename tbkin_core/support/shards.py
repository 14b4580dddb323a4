"""Sharded, memory-mapped arrays on disk: the format under the feature store and the graph store.

A store is a directory of `shard-00000.safetensors`, ... and a `store.json` that names them. A shard
appears whole or not at all, so an interrupted writer loses at most the shard it was filling, and a
shard is an ordinary safetensors file that other programs can read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, filterfalse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError, DataError
from tbkin_core.support.files import atomic_path, make_directory, read_json, write_errors, write_json

FORMAT_VERSION = 1
MANIFEST = "store.json"
_SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors")

_DTYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "BOOL": np.bool_,
}


def write_shard(path: Path, arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> None:
    """Write one shard atomically.

    Args:
        path: `shard-00000.safetensors`.
        arrays: Name to array of any shape.
        metadata: JSON-able values, kept in the header.
    """
    from safetensors.numpy import save_file

    # ASCII: file names that are no UTF-8 give image ids with lone surrogates, which only escapes carry. One
    # entry: safetensors writes several in random order, and equal content should give equal files.
    header = {"metadata": json.dumps({**metadata, "checksum": _checksum(arrays, metadata)})}
    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, header)


def _checksum(arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> int:
    """Of all that a shard holds, whatever the order it lies in."""
    value = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        value = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def read_shard(path: Path, verify: bool = False) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Map one shard into memory: its arrays (no copy) and its metadata.

    Args:
        path: The file.
        verify: Compare the content with the checksum that it carries; reads the whole file.

    Raises:
        DataError: The file is missing, cut short, no safetensors file, or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        metadata = dict(json.loads(header.pop("__metadata__")["metadata"]))
        checksum = metadata.pop("checksum", None)
        if max((entry["data_offsets"][1] for entry in header.values()), default=0) != size - 8 - length:
            raise ValueError("the file is shorter or longer than its header says")
        base = np.memmap(path, dtype=np.uint8, mode="r")
        arrays: dict[str, NDArray] = {}
        for name, entry in header.items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if end > size:
                raise ValueError(f"{name} ends after the file does")
            arrays[name] = base[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if verify and checksum != _checksum(arrays, metadata):
            raise ValueError("its content is not what was written")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is not a whole shard ({error})",
            hint="remove this file and run the stage that made it again",
        ) from error
    return arrays, metadata


def _read_manifest(path: Path) -> dict[str, Any]:
    content = read_json(path)
    expected = {
        "kind": str,
        "format_version": int,
        "complete": bool,
        "settings": dict,
        "shards": list,
        "extra": dict,
    }
    whole = isinstance(content, dict) and all(
        isinstance(content.get(name), kind) for name, kind in expected.items()
    )
    # A name that leads elsewhere would have other files read, or removed.
    if not whole or not all(
        isinstance(name, str) and _SHARD_NAME.fullmatch(name) for name in content["shards"]
    ):
        raise DataError(
            f"{path}: is not the manifest of a store",
            hint="remove this file and run the stage again: whole shards are used again where that can be",
        )
    return dict(content)


def store_place(out: Path | None, data: Path, name: str) -> Path:
    """Where a dataset's store goes: to `out`, else to the directory `name` in the dataset.

    Raises:
        ConfigError: `out` is the dataset's own directory; a store there would hide the dataset.
    """
    place = out or data / name
    if os.path.realpath(place) == os.path.realpath(data):
        raise ConfigError(
            f"out: {place} is the dataset itself", hint=f"name a directory in it: {place / 'made'}"
        )
    return place


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


@contextlib.contextmanager
def replaced_store(path: Path, kind: str) -> Iterator[None]:
    """Put the store at `path` aside for a new one; without one shard of that, it comes back.

    Raises:
        DataError: A store of another kind is there.
    """
    _refuse_others(path, kind)
    files = [*path.glob("shard-*.safetensors"), *path.glob(MANIFEST)]
    if not files:
        yield
        return
    with write_errors(path):
        aside = Path(tempfile.mkdtemp(dir=path, prefix=".replaced-"))
        for file in files:
            file.replace(aside / file.name)
    try:
        yield
    finally:
        if not any(path.glob("shard-*.safetensors")):
            for file in aside.iterdir():
                file.replace(path / file.name)
        shutil.rmtree(aside, ignore_errors=True)


def _kind_of(path: Path) -> str | None:
    """What the store at a place holds, by its manifest or, where that is gone or damaged, by its shards."""
    with contextlib.suppress(DataError):
        return str(_read_manifest(path / MANIFEST)["kind"])
    for file in sorted(path.glob("shard-*.safetensors")):
        with contextlib.suppress(DataError):
            return "graphs" if "text_ids" in read_shard(file)[1] else "features"
    return None


class StoreWriter:
    """Writes a store shard by shard; opened on an unfinished store, it goes on where that one stopped.

    A shard carries a digest of the settings that it was made with, so that it counts whether or not the
    process that wrote it lived to list it. Several processes may thus write to one store, each to shards of
    its own numbers.

    Args:
        path: Directory of the store.
        kind: "features" or "graphs"; a reader of another kind refuses it.
        settings: What made the content. A store with other settings is not mixed with.
        alone: No other process works on this store; what killed writers left is removed.

    Attributes:
        metadata: Number to metadata of every shard that is there and whole.

    Raises:
        DataError: Another store is there, or one with other settings.
    """

    def __init__(self, path: Path, kind: str, settings: Mapping[str, Any], alone: bool = True) -> None:
        self.path = make_directory(path)
        self.kind = kind
        self.settings = json.loads(json.dumps(dict(settings)))
        self._digest = hashlib.blake2b(
            json.dumps([kind, self.settings], sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        found = _manifest_of(path, kind, self.settings)
        self._listed: list[str] = [] if found is None else found["shards"]
        self.extra: dict[str, Any] = {} if found is None else found["extra"]
        if alone:
            self._remove_leftovers(".shard-*", ".store-*")
        self.metadata = self._there()
        if found is None and len(self.metadata) < len(list(self._readable())):
            raise DataError(
                f"{path}: holds shards of other settings, whose {MANIFEST} is missing",
                hint="choose another place with --out DIR, or remove them",
            )

    def free_numbers(self) -> Iterator[int]:
        """Numbers that no shard had when this was opened, in order, without end."""
        return filterfalse(set(self.metadata).__contains__, count())

    def write(self, number: int, arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> None:
        """Write one shard; it is on disk and listed when this returns."""
        path = self.path / shard_name(number)
        self._remove_leftovers(f".{path.stem}-*")
        write_shard(path, arrays, {**metadata, "made_with": self._digest})
        self.metadata[number] = dict(metadata)
        self._write_manifest(complete=False)

    def missing(self, numbers: Iterable[int]) -> int:
        """How many of these shards nobody has written yet; takes note of what others have written."""
        self.metadata = self._there()
        return sum(number not in self.metadata for number in numbers)

    def finish(self, **extra: Any) -> None:
        """Mark the store complete; `extra` goes into the manifest."""
        self.extra = {**self.extra, **extra}
        self.metadata = self._there()
        self._write_manifest(complete=True)

    def _there(self) -> dict[int, dict[str, Any]]:
        """Shards of these settings on disk. One that is broken does not count, and is simply made again."""
        return {
            number: metadata
            for number, metadata in self._readable()
            # Shards of before carry no digest; of those, the listed ones count.
            if metadata.pop("made_with", self._digest if shard_name(number) in self._listed else "")
            == self._digest
        }

    def _readable(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for path in sorted(self.path.glob("shard-*.safetensors")):
            digits = path.stem.removeprefix("shard-")
            if digits.isdecimal():
                with contextlib.suppress(DataError):
                    yield int(digits), read_shard(path)[1]

    def _remove_leftovers(self, *patterns: str) -> None:
        for pattern in patterns:
            for leftover in self.path.glob(pattern):
                leftover.unlink(missing_ok=True)  # of a writer that was killed

    def _write_manifest(self, complete: bool) -> None:
        shards = [shard_name(number) for number in sorted(self.metadata)]
        _write_manifest(self.path, self.kind, self.settings, complete, shards, self.extra)


class SharedStoreWriter:
    """Writes a store whose shards have numbers fixed in advance; several processes may share one store.

    A shard carries a fingerprint of what it is made from. A shard on disk with the right one is finished,
    whoever wrote it and when, so no process needs to know of another: each writes the shards that it
    chooses, and whoever finds all of them there calls `finish`. Doing so twice writes the same bytes twice.

    Args:
        path: Directory of the store.
        kind: As for `StoreWriter`.
        settings: As for `StoreWriter`.
        count: Number of shards of the finished store.

    Raises:
        DataError: Another store is there, or one with other settings.
    """

    def __init__(self, path: Path, kind: str, settings: Mapping[str, Any], count: int) -> None:
        self.path = make_directory(path)
        self.kind = kind
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.count = count
        self._found = _manifest_of(path, kind, self.settings)

    @property
    def extra(self) -> dict[str, Any] | None:
        """The manifest's `extra` where the store was finished, with these shards, when this was opened."""
        found = self._found
        whole = [shard_name(number) for number in range(self.count)]
        if found is None or not found["complete"] or found["shards"] != whole:
            return None
        extra: dict[str, Any] = found["extra"]
        return extra

    def has(self, number: int, fingerprint: str) -> bool:
        """Whether a shard is there, whole, and made from what the fingerprint says."""
        path = self.path / shard_name(number)
        try:
            if not path.exists() or read_shard(path)[1].get("fingerprint") != fingerprint:
                return False
            read_shard(path, verify=True)
            return True
        except DataError:
            return False

    def begin(self, numbers: Iterable[int], alone: bool) -> None:
        """Call before writing the shards `numbers`: readers learn that the store is unfinished.

        Args:
            numbers: Shards that this process writes.
            alone: No other process works on this store; all that killed writers left is removed. With
                others about, only what was left of these shards, for the rest may be theirs.
        """
        patterns = [".shard-*", ".store-*", ".priors-*"] if alone else []
        patterns += [f".shard-{number:05d}-*" for number in numbers]
        for pattern in patterns:
            for leftover in self.path.glob(pattern):
                leftover.unlink(missing_ok=True)
        self._found = None
        _write_manifest(self.path, self.kind, self.settings, False, [], {})

    def finish(self, **extra: Any) -> None:
        """List all shards and mark the store complete; shards beyond them, of a larger corpus, go."""
        names = [shard_name(number) for number in range(self.count)]
        _write_manifest(self.path, self.kind, self.settings, True, names, extra)
        for path in self.path.glob("shard-*.safetensors"):
            if path.name not in set(names):
                path.unlink(missing_ok=True)


def _refuse_others(path: Path, kind: str) -> None:
    """DataError where a store of another kind is."""
    found = _kind_of(path)
    if found not in (None, kind):
        raise DataError(f"{path}: holds {found}, not {kind}", hint="choose another place with --out DIR")


def _manifest_of(path: Path, kind: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest that a writer of these settings finds, None without one."""
    manifest = path / MANIFEST
    if not manifest.exists():
        _refuse_others(path, kind)
        return None
    found = _read_manifest(manifest)
    if found.get("kind") != kind or found.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: holds a store of kind {found.get('kind')!r},"
            f" version {found.get('format_version')!r}; expected {kind!r}, version {FORMAT_VERSION}",
            hint="choose another place with --out DIR",
        )
    if found["settings"] != settings:
        changed = sorted(
            key for key in {*found["settings"], *settings} if found["settings"].get(key) != settings.get(key)
        )
        raise DataError(
            f"{path}: holds {kind} made with other settings ({', '.join(changed)}); they are not mixed",
            hint="use --overwrite to make them anew, or --out DIR for another place",
        )
    return found


def _write_manifest(
    path: Path, kind: str, settings: dict[str, Any], complete: bool, shards: list[str], extra: dict[str, Any]
) -> None:
    write_json(
        path / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "complete": complete,
            "settings": settings,
            "shards": shards,
            "extra": extra,
        },
    )


class StoreReader:
    """Maps every shard of a store; iterate for (arrays, metadata).

    Args:
        path: Directory of the store.
        kind: "features" or "graphs".
        command: What makes such a store, for messages.
        verify: Read all shards and compare them with their checksums.

    Raises:
        DataError: No store of this kind and version there, or a damaged one.
    """

    def __init__(self, path: Path, kind: str, command: str, verify: bool = False) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.exists():
            raise DataError(f"{self.path}: holds no {kind}", hint=f"make them with `{command}`")
        content = _read_manifest(manifest)
        if content.get("kind") != kind:
            raise DataError(f"{self.path}: expected a store of {kind}, found {content.get('kind')!r}")
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{self.path}: format version {content.get('format_version')},"
                f" this tbkin reads {FORMAT_VERSION}",
                hint=f"make it anew with `{command} --overwrite`",
            )
        self.settings: dict[str, Any] = content["settings"]
        self.extra: dict[str, Any] = content["extra"]
        self.complete: bool = content["complete"]
        self.shards = [read_shard(self.path / name, verify) for name in content["shards"]]

    def __iter__(self) -> Iterator[tuple[dict[str, NDArray], dict[str, Any]]]:
        return iter(self.shards)


def ragged_offsets(lengths: NDArray | list[int]) -> NDArray[np.int64]:
    """(N+1,) offsets of N variable-length rows laid end to end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def ragged_gather(
    offsets: NDArray, rows: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Flat positions of the elements of some rows, without a loop over them.

    Args:
        offsets: (N+1,) offsets.
        rows: (B,) row numbers.

    Returns:
        `flat` (M,) positions in the flat array, `row` (M,) which of the B rows each belongs to,
        `column` (M,) its place within the row.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    row = np.repeat(np.arange(len(rows)), lengths)
    column = np.arange(len(row)) - np.repeat(ragged_offsets(lengths)[:-1], lengths)
    return starts[row] + column, row, column
