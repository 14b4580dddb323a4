"""Reads pickles of plain objects, and nothing else: a pickle from elsewhere must not run code here."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.datasets.arrays import npy_header, read_npy
from tbkin_core.datasets.reading import unreadable
from tbkin_core.errors import DataError

# The RefCOCO family's refs files are the only pickles tbkin reads: plain lists of dicts of strings and
# integers (protocol 2, written by Python 2), whose opcodes name no class and no function.
_PLAIN_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
    """.split()  # noqa: SIM905 - readable as a block
# What NumPy's arrays and scalars are written with, besides.
_ARRAY_OPCODES = ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD")
MAX_PICKLE_BYTES = 1 << 30
MAX_MEMORY = 1 << 30
"""Bytes that what a pickle stands for may take."""
MAX_ARRAY_MEMORY = 1 << 28
"""The same of the dict of one image."""
# What the value of an opcode takes in bytes, with its place: an empty set that is written as one takes 224.
_USUAL_BYTES = 64
_BYTES = {"EMPTY_SET": 232, "FROZENSET": 232, "EMPTY_DICT": 80, "DICT": 80, "DUP": 8, "MARK": 8}
_BYTES |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 16)


def load_plain_pickle(path: Path) -> Any:
    """`loads_plain` of a file.

    Raises:
        DataError: The file cannot be read, or is longer than `MAX_PICKLE_BYTES`; else as `loads_plain`.
    """
    try:
        if path.exists() and not path.is_file():
            raise _refused(f"{path}: is no regular file")  # a pipe would be waited for
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise _refused(f"{path}: pickle of {size} bytes, at most {MAX_PICKLE_BYTES} are read")
        return loads_plain(path.read_bytes(), str(path))
    except OSError as error:
        raise unreadable(path, error) from error


def loads_plain(data: bytes, name: str = "pickle") -> Any:
    """Object of a pickle made of plain containers, strings, bytes, numbers, None and booleans.

    Byte strings of Python 2 become str (UTF-8, else Latin-1).

    Args:
        data: A pickle of any protocol.
        name: Stands for the file in messages.

    Raises:
        DataError: It is no whole pickle, or asks for anything else than plain objects; a class or function
            it asks for is named, and never imported.
    """
    _refuse_other_opcodes(data, name)
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except Exception as error:  # a broken pickle raises almost anything: KeyError, IndexError, ...
        raise _refused(f"{name}: not a readable pickle: {type(error).__name__}: {error}") from error


def load_object_npy(path: Path) -> Any:
    """`loads_object_npy` of a file.

    Raises:
        FileNotFoundError: There is none.
        DataError: It cannot be read, or is too large; else as `loads_object_npy`.
    """
    try:
        return loads_object_npy(read_npy(path), str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def loads_object_npy(data: bytes, name: str) -> Any:
    """The object that `numpy.save` was given, of a `.npy` file that holds it as a pickle.

    Besides plain objects it may consist of NumPy arrays and scalars of numbers and strings; these are put
    together here from their bytes, no function of NumPy's is looked up by a name that the file gives.

    Args:
        data: Content of the file.
        name: Stands for the file in messages.

    Raises:
        DataError: It is no whole `.npy` file, or asks for anything else.
    """
    stream = io.BytesIO(data)
    try:
        _, _, dtype = npy_header(stream)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    if dtype.kind != "O":
        raise DataError(f"{name}: holds numbers alone, expected a dict")
    content = data[stream.tell() :]
    _refuse_other_opcodes(content, name, _ARRAY_OPCODES, MAX_ARRAY_MEMORY)
    try:
        loaded = _ArrayUnpickler(io.BytesIO(content), encoding="latin-1").load()
        value = _restored(loaded, {})
        return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    except Exception as error:
        raise _refused(f"{name}: not a readable pickle: {type(error).__name__}: {error}") from error


def _refused(what: str) -> DataError:
    hint = "take the file from the publisher; tbkin reads only pickles of lists, dicts, strings and numbers"
    return DataError(what, hint=hint)


def _refuse_other_opcodes(data: bytes, name: str, more: tuple[str, ...] = (), most: int = MAX_MEMORY) -> None:
    """Walks the opcodes without executing them; DataError at the first that is not plain, nor of `more`.

    Also where their values would take more than `most` bytes.
    """
    strings: list[str] = []  # STACK_GLOBAL takes its module and name from the two strings pushed last
    position: int | None = 0
    taken = len(data)
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in _PLAIN_OPCODES and opcode.name not in more:
                if opcode.name == "STACK_GLOBAL":
                    argument = ".".join(strings[-2:])
                wanted = str(argument).replace(" ", ".") if argument is not None else ""
                what = f"{name}: refused: pickle opcode {opcode.name} {wanted}".rstrip()
                raise _refused(f"{what} at byte {position}")
            taken += _BYTES.get(opcode.name, _USUAL_BYTES)
            if taken > most:
                raise _refused(f"{name}: stands for more than {most:,} bytes, by byte {position} of it")
            if isinstance(argument, str):
                strings.append(argument)
                del strings[:-2]
            # The unpickler makes a memo as long as the largest index: a few bytes must not ask for gigabytes.
            if "PUT" in opcode.name and isinstance(argument, int) and not 0 <= argument <= len(data):
                raise _refused(f"{name}: not a readable pickle: memo index {argument} at byte {position}")
    except DataError:
        raise
    except Exception as error:
        raise _refused(f"{name}: not a readable pickle near byte {position}: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Second lock behind the walk over the opcodes: no name is ever looked up."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"refused: {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refused: persistent object")


# ---- arrays -------------------------------------------------------------------------------------


class _Call:
    """Stands for one of the names below; has no attributes that a pickle could change for others."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Dtype:
    """A type of numbers or strings."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[biufcSUO]\d{0,6}", name):
            raise ValueError(f"type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array whose content comes after it."""

    __slots__ = ("_state",)

    def __init__(self, *_: Any) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def restored(self, known: dict[int, Any]) -> np.ndarray:
        _, shape, kind, fortran, content = self._state
        if kind.dtype.kind != "O":
            flat = np.frombuffer(_as_bytes(content), kind.dtype)
        elif len(content) != math.prod(shape):
            raise ValueError(f"{len(content)} objects for shape {shape}")
        else:
            flat = np.empty(len(content), object)
            for place, item in enumerate(content):
                flat[place] = _restored(item, known)
        return flat.reshape(shape, order="F" if fortran else "C")


def _restored(value: Any, known: dict[int, Any]) -> Any:
    """A value with its arrays put together; what is `known`, by its identity, is so already."""
    if id(value) in known:
        return known[id(value)]
    found = value
    if isinstance(value, _Array):
        found = value.restored(known)
    elif isinstance(value, dict):
        found = {key: _restored(item, known) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)([_restored(item, known) for item in value])
    elif isinstance(value, _Call | _Dtype):
        raise ValueError("a name without a value")
    known[id(value)] = found
    return found


def _as_bytes(content: Any) -> bytes:
    return content.encode("latin-1") if isinstance(content, str) else bytes(memoryview(content))


def _scalar(kind: _Dtype, content: Any) -> Any:
    return np.frombuffer(_as_bytes(content), kind.dtype)[0].item()


_ARRAY_NAMES: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": lambda text, _: text.encode("latin-1"),  # of bytes, up to protocol 2
}


class _ArrayUnpickler(_PlainUnpickler):
    """Knows what NumPy writes arrays with, as code of this module."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name.replace('numpy._core', 'numpy.core')}.{global_name}"
        if name not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"refused: {name}")
        return _Call(_ARRAY_NAMES[name])
