"""HDF5 files from elsewhere: datasets that lie in the file itself, and whose declared sizes fit its own.

A file of 2 KB may declare terabytes of zeros, lead to any other file, or have a chunk that unpacks to
gigabytes; HDF5 would allocate, open and unpack all of it.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets.arrays import MAX_ARRAY_BYTES
from tbkin_core.errors import DataError, MissingDependencyError

_MAX_CHUNK = 128 * 2**20  # bytes; a chunk is unpacked whole for a row of it
_MAX_PACKED = 2**20  # bytes of a chunk that are unpacked without a look, to 1 GB at most
_MAX_RATIO = 1100  # of declared to stored bytes; deflate packs 1,032 times
_BYTES_OF_IMAGE = 16  # of a file that each image has at least
_MAX_NAME = 1000
_LINKS = 8
_DEFLATE, _SHUFFLE, _FLETCHER, _LZF = 1, 2, 3, 32000  # numbers of filters
_PACKINGS: tuple[list[int], ...] = ([], [_DEFLATE], [_LZF])
TAKE_AGAIN = "take the file from where it came from again, or leave it out"


class Hdf5Dataset:
    """One dataset of a file.

    Attributes:
        shape: As declared.
    """

    def __init__(self, path: Path, name: str, dataset: Any) -> None:
        self._where, self._dataset = f"{path}: {name}", dataset
        self.shape: tuple[int, ...] = dataset.shape or ()
        try:
            self.dtype: np.dtype = dataset.dtype
            properties = dataset.id.get_create_plist()
            filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise DataError(f"{self._where} is damaged ({error})", hint=TAKE_AGAIN) from error
        if dataset.is_virtual or dataset.external:
            raise self._refused("takes its content from other files", "write it into the file itself")
        # Deflate is looked through before HDF5 follows it: its bytes must lie in the file as it left them.
        packing = [number for number in filters if number not in (_SHUFFLE, _FLETCHER)]
        self._deflated = _DEFLATE in filters
        if packing not in _PACKINGS or (self._deflated and _SHUFFLE in filters[filters.index(_DEFLATE) :]):
            raise self._refused(
                f"is packed by filters {', '.join(map(str, filters))}",
                "write it with gzip, LZF or no compression",
            )
        chunk = math.prod(dataset.chunks or ()) * self.dtype.itemsize
        if chunk > _MAX_CHUNK:
            what = f"is in chunks of {chunk:,} bytes, of which {_MAX_CHUNK:,} are read"
            raise self._refused(what, "write it in chunks of a few images")
        self._chunk = chunk
        stored, declared = dataset.id.get_storage_size(), math.prod(self.shape) * self.dtype.itemsize
        if declared > stored * (_MAX_RATIO if dataset.chunks else 1):
            what = f"is declared as {self.shape}, {declared:,} bytes, of which the file holds {stored:,}"
            raise self._refused(what, "the file is not whole: fetch or make it again")

    def _refused(self, what: str, hint: str) -> DataError:
        return DataError(f"{self._where} {what}", hint=hint)

    def check(self, shape: tuple[int, ...]) -> None:
        """A ValueError where a part of it, of that shape, is not of numbers, or too large for one image."""
        if self.dtype.kind not in "biuf":
            raise ValueError(f"{self._where} holds values of type {self.dtype}, expected numbers")
        if (size := math.prod(shape) * self.dtype.itemsize) > MAX_ARRAY_BYTES:
            raise ValueError(f"{self._where} has {size:,} bytes there, at most {MAX_ARRAY_BYTES:,} are read")

    def numbers(self, place: Any, shape: tuple[int, ...]) -> NDArray:
        """A part of it, of that shape.

        Raises:
            ValueError: As `check`.
            OSError: It is damaged.
        """
        self.check(shape)
        if self._deflated:
            self._unpack_before(place)
        return np.asarray(self._dataset[place])

    def _unpack_before(self, place: Any) -> None:
        """Refuse chunks that unpack to more than they should; HDF5 would follow them to their end."""
        first = place if isinstance(place, int) else place.start
        last = first if isinstance(place, int) else place.stop - 1
        rows, *rest = self._dataset.chunks
        others = [range(-(-side // own)) for side, own in zip(self.shape[1:], rest, strict=True)]
        for row in range(first // rows, last // rows + 1):
            for numbers in np.ndindex(*map(len, others)):
                corner = (row * rows, *(number * own for number, own in zip(numbers, rest, strict=True)))
                info = self._dataset.id.get_chunk_info_by_coord(corner)
                if info.size <= _MAX_PACKED:
                    continue
                packed = self._dataset.id.read_direct_chunk(corner)[1]
                with contextlib.suppress(zlib.error):  # one that was not worth packing
                    if len(zlib.decompressobj().decompress(packed, self._chunk + 1)) > self._chunk:
                        raise OSError(f"{self._where} has a chunk that unpacks to more than it declares")

    def texts(self) -> list[str]:
        """Its values as texts, each short; a ValueError where they are neither numbers nor texts."""
        if self.dtype.kind in "iu":
            return list(map(str, self.numbers(slice(0, self.shape[0]), self.shape).tolist()))
        if self.dtype.kind not in "SO" or self.dtype.itemsize > _MAX_NAME:
            raise ValueError(f"{self._where} holds values of type {self.dtype}, expected ids")
        # Texts of any length lie where the file likes, also all at one place.
        step = max(min((1 << 28) // self._size_of_file(), 4096), 16)
        found = []
        for begin in range(0, self.shape[0], step):
            for value in self._dataset[begin : begin + step]:
                if not isinstance(value, bytes | str) or len(value) > _MAX_NAME:
                    raise ValueError(
                        f"{self._where} holds ids that are no texts of up to {_MAX_NAME} letters"
                    )
                found.append(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
        return found

    def _size_of_file(self) -> int:
        return max(int(self._dataset.file.id.get_filesize()), 1)


class Hdf5File:
    """The datasets at the top of an HDF5 file.

    Attributes:
        most_images: Of more images it would have too few bytes each.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.names = set(file)
        self.most_images = max(path.stat().st_size // _BYTES_OF_IMAGE, 1000)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Hdf5Dataset:
        """A dataset; a DataError where it lies elsewhere, or declares more than the file holds."""
        import h5py

        target = name
        for _ in range(_LINKS):
            link = self._file.get(target, getlink=True)
            if isinstance(link, h5py.HardLink):
                found = self._file[target]
                if not isinstance(found, h5py.Dataset):
                    raise DataError(f"{self._path}: {name} is a group, expected an array", hint=TAKE_AGAIN)
                return Hdf5Dataset(self._path, name, found)
            target = link.path.strip("/") if isinstance(link, h5py.SoftLink) else ""
            if target not in self.names:
                break
        raise DataError(
            f"{self._path}: {name} is a link that leads to another file, to nothing, or in a circle",
            hint="write the array itself into the file",
        )


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """An HDF5 file.

    Raises:
        DataError: It cannot be read.
        MissingDependencyError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(f"{path}: reading HDF5 needs h5py", hint="pip install h5py") from error
    try:
        # Rows are read one by one: without room for their chunk it would be unpacked for each of them.
        with h5py.File(path, "r", rdcc_nbytes=_MAX_CHUNK) as file:
            yield Hdf5File(path, file)
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: is no whole HDF5 file of region features ({reason})", hint=TAKE_AGAIN
        ) from error
