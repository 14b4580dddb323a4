"""NumPy's files from elsewhere, `.npy` and `.npz`: what they declare is checked before it is allocated."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError

MAX_ARRAY_BYTES = 128 * 2**20
"""Largest array of one image: 8,000 regions of 4,096 numbers. Bottom-up attention's have 100 of 2,048."""
_NUMBERS_AND_TEXTS = "biufSU"
_HEADER = 16_384  # bytes that a header takes at most; NumPy itself reads 10,000
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npy_header(stream: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type, as a `.npy` file begins with; else a ValueError."""
    try:
        return _READERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # of a broken header almost any: SyntaxError, TokenError, RecursionError, ...
        raise ValueError(f"no header of an .npy file: {error}") from error


def npy_array(data: bytes) -> NDArray:
    """The array of numbers or texts in a `.npy` file's bytes, without a copy; else a ValueError."""
    stream = io.BytesIO(data)
    shape, fortran, dtype = npy_header(stream)
    _check(shape, dtype, len(data) - stream.tell())
    flat = np.frombuffer(data, dtype, offset=stream.tell()) if math.prod(shape) else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def npy_shape(start: bytes, size: int) -> tuple[int, ...]:
    """The shape of the array in a `.npy` file of so many bytes, by how it starts; as `npy_array`."""
    stream = io.BytesIO(start)
    shape, _, dtype = npy_header(stream)
    _check(shape, dtype, size - stream.tell())
    return shape


def _check(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    if dtype.kind not in _NUMBERS_AND_TEXTS:
        raise ValueError(f"holds values of type {dtype}, expected numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"declares shape {shape} of {dtype}, and holds {max(size, 0)} bytes")


def read_npy(path: Path, limit: int = MAX_ARRAY_BYTES) -> bytes:
    """The bytes of a `.npy` file; a ValueError where it is none, or larger than an image's array may be."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("is no regular file")
    if (size := path.stat().st_size) > limit + _HEADER:
        raise ValueError(f"is {size:,} bytes large, at most {limit:,} are read")
    return path.read_bytes()


class Npz:
    """The arrays in a `.npz` file, read by name.

    Raises:
        ValueError: From every method: an array is damaged, holds objects, or is larger than an image's.
        KeyError: There is no such array.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {
            entry.filename.removesuffix(".npy"): entry
            for entry in archive.infolist()
            if entry.filename.endswith(".npy")
        }
        self.names = set(self._entries)

    def bytes_of(self, name: str) -> bytes:
        """The `.npy` file of an array."""
        with self._opened(name) as stream:
            return stream.read()

    def __getitem__(self, name: str) -> NDArray:
        return npy_array(self.bytes_of(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not read."""
        with self._opened(name) as stream:
            return npy_shape(stream.read(_HEADER), self._entries[name].file_size)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[io.BufferedIOBase]:
        entry = self._entries[name]
        if entry.file_size > MAX_ARRAY_BYTES + _HEADER:
            raise ValueError(
                f"{name} is {entry.file_size:,} bytes large, at most {MAX_ARRAY_BYTES:,} are read"
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in a way that NumPy does not write")
        with self._archive.open(entry) as stream:
            yield stream  # type: ignore[misc]


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """The arrays in a `.npz` file.

    Raises:
        DataError: Within the block too: the file cannot be read, or what is read of it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield Npz(archive)
    except DataError:
        raise
    except Exception as error:  # of a broken archive almost any: BadZipFile, zlib.error, RuntimeError, ...
        raise damaged_file(path, error) from error


def damaged_file(path: Path, error: Exception) -> DataError:
    """The error of a file of features that cannot be read."""
    reason = (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else str(error) or type(error).__name__
    )
    return DataError(
        f"{path}: is not a whole {path.suffix} file ({' '.join(reason.split())[:300]})",
        hint="fetch or make this file again; the others are kept",
    )
