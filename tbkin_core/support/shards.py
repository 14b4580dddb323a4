"""Sharded, memory-mapped arrays on disk: the format under the feature store and the graph store.

A store is a directory of `shard-00000.safetensors`, ... and a `store.json` that names them. A shard
appears whole or not at all, so an interrupted writer loses at most the shard it was filling, and a
shard is an ordinary safetensors file that other programs can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError, DataError
from tbkin_core.support.files import atomic_path, make_directory, other_entries, read_json, write_json
from tbkin_core.support.places import Content, beside, held, open_place, put_in_place
from tbkin_core.support.ranks import share_of_run

FORMAT_VERSION = 1
MANIFEST = "store.json"
_ELSEWHERE = "choose another place with --out DIR"
_SHARD_NAME = re.compile(r"shard-(\d{5}|[1-9]\d{5,11})\.safetensors", re.ASCII)  # as `shard_name` gives
TOWERS = "towers.safetensors"
"""In a feature store: the vectors of its images by the towers of the model that was last asked."""
_BESIDE_SHARDS = (MANIFEST, "priors.json", "config.yaml", TOWERS)

_DTYPES = {"BOOL": "bool", "U8": "u1", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}
_DTYPES |= {"F16": "f2", "F32": "f4", "F64": "f8"}  # of safetensors in the words of NumPy


def write_shard(path: Path, arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> None:
    """Write one shard atomically: arrays of any shape by name, and JSON-able metadata for the header."""
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

    With `verify` the whole file is read and compared with the checksum that it carries.

    Raises:
        DataError: The file is missing, cut short, no safetensors file, or damaged.
    """
    if os.path.exists(path) and not path.is_file():  # noqa: PTH110 - a pipe would be waited for
        raise DataError(f"{path}: is no file", hint="remove it and run the stage that made it again")
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
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})",
            hint="run the stage that made it again: it makes what is missing",
        ) from error
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: is not a whole shard ({error})",
            hint="remove this file and run the stage that made it again",
        ) from error
    return arrays, metadata


def shard_checksum(path: Path) -> int | None:
    """The checksum that a shard carries of all it holds; None of one that an early version wrote."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    checksum: int | None = json.loads(header["__metadata__"]["metadata"]).get("checksum")
    return checksum


@dataclass(frozen=True)
class StoreKind:
    """What a store holds; the module that knows its arrays declares it."""

    name: str  # in the manifest and in messages, such as "features"
    array: str  # an array that every shard of this kind has, and none of another kind
    command: str  # what makes such a store, for messages


@dataclass(frozen=True)
class Manifest:
    """Content of a store's `store.json`."""

    format_version: int  # `FORMAT_VERSION` of the tbkin that wrote it
    kind: str  # name of its `StoreKind`
    complete: bool  # whether all that was to be made is there
    settings: dict[str, Any]  # what made the content; stores of other settings are not mixed with
    shards: list[str]  # names of its files
    extra: dict[str, Any]  # what else its kind notes

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """The manifest of the store in a directory; DataError where it is missing or damaged."""
        content = read_json(store / MANIFEST)
        types = {"format_version": int, "kind": str, "complete": bool}
        types |= {"settings": dict, "shards": list, "extra": dict}
        whole = isinstance(content, dict) and all(isinstance(content.get(key), types[key]) for key in types)
        # A name that leads elsewhere would have other files read, or removed.
        if not whole or not all(_SHARD_NAME.fullmatch(str(name)) for name in content["shards"]):
            raise DataError(
                f"{store / MANIFEST}: is not the manifest of a store",
                hint="remove this file and run the stage again: whole shards are used again where possible",
            )
        return cls(**{name: content[name] for name in types})


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


def share_of_store(out: Path, overwrite: bool) -> tuple[int, int]:
    """Rank and number of the processes that make the store at `out` together, as `share_of_run`.

    Raises:
        ConfigError: The environment gives no proper share, or `overwrite` in a shared run.
    """
    rank, world = share_of_run()
    if overwrite and world > 1:
        raise ConfigError(
            f"overwrite: {world} processes share this run, and one might remove what another has made",
            hint=f"remove {out} first, or choose another place with --out DIR",
        )
    return rank, world


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def own_shards(store: Path) -> dict[int, Path]:
    """The files in a directory that have the very names of shards, by number; any other is somebody's."""
    files = sorted(store.iterdir()) if store.is_dir() else []
    found = [(match, file) for file in files if (match := _SHARD_NAME.fullmatch(file.name))]
    return {int(match[1]): file for match, file in found if file.is_file()}


@contextlib.contextmanager
def store_place_held(
    path: Path,
    kind: StoreKind,
    settings: Mapping[str, Any],
    overwrite: bool,
    alone: bool,
    stack: contextlib.ExitStack | None = None,
) -> Iterator[Path]:
    """Where to write the store that belongs at `path`, which other processes meanwhile keep out of.

    That is `path` itself; with `overwrite`, where a store is there, its `replacement`, which takes its place
    when the block has left it complete. One of the same settings that was interrupted is gone on with.

    Args:
        alone: No other process writes to this store; else they all hold it.
        stack: Keeps the others out for as long as it is open; None: until the block ends.

    Raises:
        DataError: Something else than a store of this kind is there, or another process is at work there.
        ConfigError: As `begin_replacement`.
    """
    _refuse_others(path, kind)
    given = json.loads(json.dumps(dict(settings)))

    def look(place: Path) -> Content:
        names = other_entries(place)
        if not any(_is_own(place, name) for name in names):
            return Content.FOREIGN if names else Content.NOTHING
        try:
            found = Manifest.read(place)
        except DataError:
            return Content.OTHER
        same = Content.WHOLE if found.complete else Content.BEGUN
        return same if found.settings == given else Content.OTHER

    with contextlib.ExitStack() as own:
        stack = own if stack is None else stack
        if not alone:
            _refuse_replacing(path, kind)
            stack.enter_context(held(path, shared=True))
            yield path
            return
        work = open_place(path, look, _is_own, overwrite, stack)
        _refuse_others(path, kind)  # once more: it may have come from beside
        yield work
        if work != path and look(work) is Content.WHOLE:
            put_in_place(path, _is_own)


def _refuse_replacing(path: Path, kind: StoreKind) -> None:
    """DataError where one process began to replace a store: of several, each would put it in its place."""
    if begun := next(filter(Path.is_dir, beside(path)), None):
        raise DataError(
            f"{path}: what replaces it waits unfinished in {begun}",
            hint=f"finish it by one process (`{kind.command}`), or remove that directory",
        )


def _is_own(directory: Path, name: str) -> bool:
    """Whether a name in a store's directory is of what its stage writes there."""
    return name in _BESIDE_SHARDS or _SHARD_NAME.fullmatch(name) is not None


def _refuse_others(path: Path, kind: StoreKind) -> None:
    """DataError where a directory is neither empty nor a store of a kind, by manifest or else by a shard."""
    if not (names := other_entries(path)):
        return
    found = "something else than a store"
    try:
        found = Manifest.read(path).kind
    except DataError:
        for file in own_shards(path).values():
            with contextlib.suppress(DataError):
                found = kind.name if kind.array in read_shard(file)[0] else "shards of another kind"
                break
    if found != kind.name:
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        raise DataError(f"{path}: holds {found}, not {kind.name} ({some})", hint=_ELSEWHERE)


class StoreWriter:
    """A store that is being written: its directory, its manifest, and which of its shards are whole.

    Any process may write shards, with `write_shard`. A shard says in its metadata what it is made from, so it
    counts whether or not the process that wrote it lived to list it. Several processes can thus write to one
    store, each the shards of its own numbers, without knowing of each other. Whichever finds all of them
    there lists them as complete; doing so twice writes the same bytes twice.

    Args:
        path: Directory of the store.
        kind: What it holds.
        settings: What makes the content.

    Attributes:
        settings: Those given, as JSON gives them back.
        manifest: What was found when this was opened, None without one; later what was written last.

    Raises:
        DataError: A store of another kind or version is there, or one of other settings.
    """

    def __init__(self, path: Path, kind: StoreKind, settings: Mapping[str, Any]) -> None:
        self.path = make_directory(path)
        self.kind = kind
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.manifest = self._found()

    def _found(self) -> Manifest | None:
        path, kind = self.path, self.kind.name
        if not (path / MANIFEST).exists():
            _refuse_others(path, self.kind)
            return None
        found = Manifest.read(path)
        if found.kind != kind or found.format_version != FORMAT_VERSION:
            raise DataError(
                f"{path}: holds a store of kind {found.kind!r}, version {found.format_version!r};"
                f" expected {kind!r}, version {FORMAT_VERSION}",
                hint=_ELSEWHERE,
            )
        if (there := found.settings) != (given := self.settings):
            changed = sorted(key for key in {*there, *given} if there.get(key) != given.get(key))
            raise DataError(
                f"{path}: holds {kind} made with other settings ({', '.join(changed)}); they are not mixed",
                hint="use --overwrite to make them anew, or --out DIR for another place",
            )
        return found

    def shards(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and metadata of every shard on disk; one that is broken is left out, to be made again."""
        for number, path in own_shards(self.path).items():
            with contextlib.suppress(DataError):
                yield number, read_shard(path)[1]

    def list_shards(self, numbers: Iterable[int], complete: bool = False, **extra: Any) -> None:
        """Write the manifest: readers see these shards, and whether they are all."""
        names = [shard_name(number) for number in sorted(numbers)]
        self.manifest = Manifest(FORMAT_VERSION, self.kind.name, complete, self.settings, names, extra)
        write_json(self.path / MANIFEST, vars(self.manifest))


def read_store(
    path: Path, kind: StoreKind, verify: bool = False
) -> tuple[Manifest, list[tuple[dict[str, NDArray], dict[str, Any]]]]:
    """The manifest of a store and, mapped into memory, the arrays and metadata of each of its shards.

    With `verify` all shards are read and compared with their checksums.

    Raises:
        DataError: No store of this kind and version there, or a damaged one.
    """
    if not (path / MANIFEST).exists():
        raise DataError(f"{path}: holds no {kind.name}", hint=f"make them with `{kind.command}`")
    manifest = Manifest.read(path)
    if manifest.kind != kind.name:
        raise DataError(
            f"{path}: expected a store of {kind.name}, found {manifest.kind!r}",
            hint=f"name the directory of {kind.name}, or make them with `{kind.command}`",
        )
    if manifest.format_version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {manifest.format_version}, this tbkin reads {FORMAT_VERSION}",
            hint=f"make it anew with `{kind.command} --overwrite`",
        )
    return manifest, [read_shard(path / name, verify) for name in manifest.shards]


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
