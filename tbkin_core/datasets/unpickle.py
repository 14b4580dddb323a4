"""Reads pickles of plain objects, and nothing else: a pickle from elsewhere must not run code here."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

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
MAX_PICKLE_BYTES = 1 << 30


def load_plain_pickle(path: Path) -> Any:
    """`loads_plain` of a file.

    Raises:
        DataError: The file cannot be read, or is longer than `MAX_PICKLE_BYTES`; else as `loads_plain`.
    """
    try:
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


def _refused(what: str) -> DataError:
    hint = "take the file from the publisher; tbkin reads only pickles of lists, dicts, strings and numbers"
    return DataError(what, hint=hint)


def _refuse_other_opcodes(data: bytes, name: str) -> None:
    """Walks the opcodes without executing them; raises DataError at the first that is not plain."""
    strings: list[str] = []  # STACK_GLOBAL takes its module and name from the two strings pushed last
    position: int | None = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in _PLAIN_OPCODES:
                if opcode.name == "STACK_GLOBAL":
                    argument = ".".join(strings[-2:])
                wanted = str(argument).replace(" ", ".") if argument is not None else ""
                what = f"{name}: refused: pickle opcode {opcode.name} {wanted}".rstrip()
                raise _refused(f"{what} at byte {position}")
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
