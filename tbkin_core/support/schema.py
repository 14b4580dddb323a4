"""What a value of JSON must be, said once and checked where a file is read; nothing behind asks again.

A `Check` is called with a value and the place where it stands ("results[3].box"), and raises a `Fault` that
names the place, what was expected and what was found.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tbkin_core.errors import DataError, TbkinError
from tbkin_core.support.files import read_json

Check = Callable[[Any, str], None]

_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes; file systems take no more


class Fault(ValueError):
    """A value is not what it must be."""

    def __init__(self, where: str, expected: str, value: Any) -> None:
        super().__init__(f"{where + ': ' if where else ''}expected {expected}, got {reprlib.repr(value)}")


def read_checked(path: Path, check: Check, hint: str, error: type[TbkinError] = DataError) -> Any:
    """The content of a JSON file that tbkin wrote; an `error` names file and place of what is damaged."""
    try:
        content = read_json(path, hint)
        check(content, "")
    except DataError as found:
        raise error(found.message, hint=found.hint or hint) from found
    except Fault as fault:
        raise error(f"{path}: {fault}", hint=hint) from fault
    return content


def number(low: float = -math.inf, high: float = math.inf, whole: bool = False) -> Check:
    """A finite number between bounds that count as within; a `whole` one is an int."""
    kind = "whole number" if whole else "number"
    bounds = f" from {low:g}" * (low > -math.inf) + f" up to {high:g}" * (high < math.inf)

    def check(value: Any, where: str) -> None:
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        # An int may be beyond any float, which comparing allows and computing does not.
        if not good or not (low <= value <= high and abs(value) < 1e300):
            raise Fault(where, f"a {kind}{bounds}", value)

    return check


def text(value: Any, where: str) -> None:
    """Any text."""
    if not isinstance(value, str):
        raise Fault(where, "text", value)


def path_text(value: Any, where: str) -> None:
    """A text that a path may be."""
    text(value, where)
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise Fault(where, "a path", value)


def flag(value: Any, where: str) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise Fault(where, "true or false", value)


def anything(value: Any, where: str) -> None:
    """Whatever JSON has."""


def one_of(*values: Any) -> Check:
    """One of some texts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise Fault(where, f"one of {', '.join(values)}", value)

    return check


def maybe(item: Check) -> Check:
    """Null, or what `item` takes."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            item(value, where)

    return check


def list_of(item: Check, least: int = 0, most: float = math.inf) -> Check:
    """A list of `least` to `most` entries."""
    count = f" {least} entries" if least == most else f" {least} entries or more" * (least > 0)
    count += f" at most {most:g} entries" * (least < most < math.inf)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Fault(where, f"a list of{count}" if count else "a list", value)
        for place, entry in enumerate(value):
            item(entry, f"{where}[{place}]")

    return check


def row_of(*items: Check) -> Check:
    """A list with an entry for each item."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) != len(items):
            raise Fault(where, f"a list of {len(items)} entries", value)
        for place, (item, entry) in enumerate(zip(items, value, strict=True)):
            item(entry, f"{where}[{place}]")

    return check


def mapping_of(item: Check) -> Check:
    """An object with any names, whose values are all of one kind."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Fault(where, "an object", value)
        for name, entry in value.items():
            item(entry, _within(where, name))

    return check


def record(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with some names, and perhaps some others; what else it has is not looked at."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Fault(where, "an object", value)
        if lacking := [name for name in needed if name not in value]:
            raise Fault(where, f"an object with {', '.join(lacking)}", value)
        for name, item in {**needed, **(optional or {})}.items():
            if name in value:
                item(value[name], _within(where, name))

    return check


def _within(where: str, name: str) -> str:
    return f"{where}.{name}" if where else reprlib.repr(name)[1:-1]


BOX = row_of(*[number(-1e9, 1e9)] * 4)
"""(x1, y1, x2, y2) in pixels."""
