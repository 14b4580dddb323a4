"""Reading of annotation files that others wrote: JSON, its fields, and an account of what was skipped."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gc
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tbkin_core.datasets.records import ImageId, ListedImage, Xywh
from tbkin_core.errors import DataError
from tbkin_core.support.console import shortened, shown

# A box may pass the border by the rounding of its coordinates; more is worth a word.
BORDER_TOLERANCE = 1.0

# Longer texts are kept and reported: a caption of this length is mostly a faulty column or a whole page.
LONG_TEXT_WORDS = 1000

_JSON_BLANKS = re.compile(r"[ \t\n\r]*")
_LARGEST_SHARE = 1.05
_LONGEST_MESSAGE = 300  # with what a file says, which may be of any length
_LARGEST_BOX = float(1 << 31)
_LARGEST_FILE = 1 << 31  # bytes of JSON; the largest that a publisher has is of half as many
_LONGEST_LINE = 1 << 24  # characters; what is longer would fill the memory, and is no line of annotations
_MOST_LINES = 20  # of a text in a table

# Line breaks and tabs are blanks like any other; these are no part of a text.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")

csv.field_size_limit(_LONGEST_LINE)  # a text of 131,072 characters is no fault of its quotes


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """One file that is not an image."""

    path: Path
    name: str  # the path relative to the dataset directory, for messages
    split: str | None  # normalised, from the file's content, name or directory; None where they give none
    format: str  # name of its `Format`

    @property
    def directory(self) -> str:
        """Its directory, relative to the dataset directory; "" for that itself."""
        return self.name.rpartition("/")[0]


class Problems:
    """Counts what a loader skipped or repaired, one line per file and kind, with the first example."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[str, int]] = {}

    def add(self, file: str, subject: str, what: str, count: int = 1) -> None:
        """Note what is wrong with a part of a file: "annotation 12", "has no caption (skipped)"."""
        what, subject = shortened(what, _LONGEST_MESSAGE), shortened(subject, _LONGEST_MESSAGE)
        first, before = self._counts.get((file, what), (subject, 0))
        self._counts[file, what] = (first, before + count)

    def lines(self) -> list[str]:
        """Such as "captions_val.json: annotation 12 and 3 more: has no caption (skipped)"."""
        return [
            f"{file}: {subject + ' ' if subject else ''}{what}"
            if count == 1
            else f"{file}: {subject} and {count - 1} more: {what}"
            for (file, what), (subject, count) in self._counts.items()
        ]


@dataclass(frozen=True, slots=True)
class Source:
    """An annotation file being read, where its problems are noted, and the images its ids refer to.

    `listed` gives the images by id where another file lists them (see `Format.listed_by`), and reads it;
    `picture` the image file that an id or name of this file means, as far as the files on disk tell;
    `companions` the files of a format that are read with this one (see `Format.supersedes`).

    Raises:
        DataError: From every method that reads: the file cannot be read.
    """

    file: AnnotationFile
    problems: Problems
    listed: Callable[[], Mapping[ImageId, ListedImage]] = dict
    picture: Callable[[ImageId], Path | None] = lambda _: None
    companions: Callable[[str], Sequence[Source]] = lambda _: ()

    def problem(self, subject: str, what: str, count: int = 1) -> None:
        self.problems.add(self.file.name, subject, what, count)

    def json(self, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
        """Parsed content; the DataError of a malformed one names file, line and column."""
        return parse_json(self.text(), self.file.path, self._whole_object(object_hook))

    def json_items(self) -> Iterator[Any]:
        """The items of a file that is one JSON list, one at a time; else as `json`."""
        text, path = self.text(), self.file.path
        decode = json.JSONDecoder(object_pairs_hook=self._whole_object(), strict=False).raw_decode
        place = _after_blanks(text, 0)
        if not text.startswith("[", place):
            raise malformed(path, f"expected a list, got {type_name(parse_json(text, path))}")
        with _json_faults(text, path), _not_collecting():
            place = _after_blanks(text, place + 1)
            more = not text.startswith("]", place)
            while more:
                item, place = decode(text, place)
                yield item
                place = _after_blanks(text, place)
                more = text.startswith(",", place)
                if more:
                    place = _after_blanks(text, place + 1)
            if not text.startswith("]", place):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
            if (place := _after_blanks(text, place + 1)) != len(text):
                raise json.JSONDecodeError("Extra data", text, place)

    def _whole_object(
        self, object_hook: Callable[[dict[str, Any]], Any] | None = None
    ) -> Callable[[list[tuple[str, Any]]], Any]:
        """Makes an object of its names and values, and says where a name is there twice."""

        def whole(pairs: list[tuple[str, Any]]) -> Any:
            item = dict(pairs)
            if len(item) < len(pairs):
                twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
                self.problem(f"an object with {shown(twice)}", "gives a name twice (the last counts)")
            return item if object_hook is None else object_hook(item)

        return whole

    def text(self) -> str:
        """Content as UTF-8 (UTF-16 or UTF-32 where it is that); other bytes become U+FFFD and are counted."""
        try:
            if (size := self.file.path.stat().st_size) > _LARGEST_FILE:
                raise DataError(
                    f"{self.file.path}: {size:,} bytes, at most {_LARGEST_FILE:,} are read at once",
                    hint="write it as several files, or as JSON lines",
                )
            data = self.file.path.read_bytes()
        except OSError as error:
            raise unreadable(self.file.path, error) from error
        encoding = encoding_of(data[:4])
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            text = data.decode(encoding, errors="replace")
            name = encoding.removesuffix("-sig").upper()
            before = data.count(b"\xef\xbf\xbd") if name == "UTF-8" else 0
            count = max(1, text.count("\ufffd") - before)
            self.problem(f"byte {error.start}", f"is not {name} (replaced)", count)
            return text

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number (from 1) and text of each line that is not blank, one at a time.

        Encodings as in `text`; bytes that are not of the encoding become U+FFFD, which `sentence` counts.
        """
        try:
            with self.file.path.open("rb") as stream:
                encoding = encoding_of(stream.read(4))
            with self.file.path.open(encoding=encoding, errors="replace", newline="\n") as lines:
                number = 0
                while line := lines.readline(_LONGEST_LINE):
                    number += 1
                    if len(line) == _LONGEST_LINE and not line.endswith("\n"):
                        self.problem(
                            f"line {number}", f"is longer than {_LONGEST_LINE:,} characters (skipped)"
                        )
                        while line and not line.endswith("\n"):
                            line = lines.readline(_LONGEST_LINE)
                    elif not line.isspace():
                        yield number, line.rstrip("\r\n")
        except OSError as error:
            raise unreadable(self.file.path, error) from error

    def json_lines(self) -> Iterator[tuple[int, Any]]:
        """Line number (from 1) and parsed content of each line; a malformed one is counted and left out.

        Raises:
            DataError: No line is JSON; names file, line and column of the first fault.
        """
        first_fault: DataError | None = None
        found = False
        for number, line in self.lines():
            try:
                content = parse_json(line, self.file.path, self._whole_object(), first_line=number)
            except DataError as error:
                first_fault = first_fault or error
                self.problem(f"line {number}", "is malformed JSON (skipped)")
            else:
                found = True
                yield number, content
        if first_fault is not None and not found:
            raise first_fault

    def table_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and values, by the header's names, of each line of a table (see `delimiter_of`).

        A quoted text may go over several lines; a quotation mark without its second costs its line alone.
        """
        names: list[str] = []
        delimiter, lines, place = ",", list(self.lines()), 0
        while place < len(lines):
            number, line = lines[place]
            delimiter = delimiter if names else delimiter_of(line)
            values, taken = _row_of([text for _, text in lines[place : place + _MOST_LINES]], delimiter)
            place += max(taken, 1)
            if not taken:
                self.problem(
                    f"line {number}", "is no row of separated values: its quotes do not fit (skipped)"
                )
            elif not names:
                names = [value.strip().lower() for value in values]
            elif len(values) > len(names):
                what = f"has {len(values)} columns, the header {len(names)}"
                self.problem(f"line {number}", f"{what}: a text with commas needs quotes (skipped)")
            elif values:
                yield number, {name: value or None for name, value in zip(names, values, strict=False)}

    def sentence(self, subject: str, value: Any) -> str | None:
        """`as_text` of a caption, question or phrase, without control characters.

        Any script, emoji and any length stay as they are; what was replaced, U+FFFD, and texts of more than
        `LONG_TEXT_WORDS` words are counted as problems of the subject.
        """
        text = as_text(value)
        if not text:
            return text
        if not text.isprintable() and _CONTROL_CHARACTERS.search(text):
            self.problem(subject, "has control characters (replaced by blanks)")
            text = _CONTROL_CHARACTERS.sub(" ", text).strip()
        if "\ufffd" in text:
            self.problem(subject, "has characters lost to a wrong encoding (U+FFFD, kept)")
        if len(text) > 2 * LONG_TEXT_WORDS and len(text.split()) > LONG_TEXT_WORDS:
            self.problem(subject, f"has more than {LONG_TEXT_WORDS} words (kept)")
        return text

    def items(self, content: Any, key: str, required: bool = True) -> list[Any]:
        """The list under `key` of a JSON object.

        Raises:
            DataError: `content` is no object, the key is absent though required, or holds no list.
        """
        if not isinstance(content, dict):
            what = f"expected a JSON object with {key!r}, got {type_name(content)}"
            raise malformed(self.file.path, what, _own_captions(self.file.path))
        if key not in content:
            if not required:
                return []
            found = ", ".join(repr(str(name)[:40]) for name in list(content)[:6]) or "nothing"
            what = f"expected a list under {key!r}, found {found}"
            raise malformed(self.file.path, what, _own_captions(self.file.path))
        items = content[key]
        if not isinstance(items, list):
            raise malformed(self.file.path, f"{key!r} must be a list, got {type_name(items)}")
        return items

    def objects(self, items: Any, noun: str, *id_keys: str) -> Iterator[Row]:
        """The items that are JSON objects; others are counted as problems.

        Args:
            noun: What an item is called in messages.
            id_keys: Where an item's id may be; the first key that it has counts.
        """
        for position, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict):
                row_id = as_id(next((item[key] for key in id_keys if key in item), None))
                yield Row(position, row_id, f"{noun} {position if row_id is None else row_id}", item)
            else:
                self.problem(f"{noun} at position {position}", "is no JSON object (skipped)")

    def admits(self, seen: set[ImageId], row_id: ImageId | None, subject: str, name: str = "an id") -> bool:
        """Whether a row may be kept: it has no id, or one that is not among those seen, which it joins."""
        if row_id in seen:
            self.problem(subject, f"has {name} used before (skipped)")
            return False
        if row_id is not None:
            seen.add(row_id)
        return True


class Row(NamedTuple):
    """An object in a list of an annotation file; `subject` is what messages call it: "annotation 12"."""

    position: int
    row_id: ImageId | None
    subject: str
    item: dict[str, Any]


def malformed(path: Path, what: str, hint: str = "") -> DataError:
    """The error of a file that is not what its format says."""
    return DataError(f"{path}: {what}", hint=hint or "compare the file with the publisher's original")


def _own_captions(path: Path) -> str:
    """What to do with captions that look like nobody's but one's own; "" for another file."""
    if path.stem.casefold() not in ("caption", "captions"):
        return ""
    return (
        f"captions of your own go into {path.stem}.jsonl, one object a line:"
        ' {"image": "a.jpg", "caption": "a dog"}; else compare the file with the publisher\'s original'
    )


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror}", hint="check the file's permissions")


def encoding_of(start: bytes) -> str:
    """Encoding that a text file's first bytes speak of: UTF-8 but for a mark, or ASCII two or four wide."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF8, "utf-8-sig"),
    ):
        if start.startswith(mark):
            return encoding
    zeros = "".join("0" if byte == 0 else "x" for byte in start[:4])
    wide = {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}
    return wide.get(zeros, "utf-8")


def _row_of(lines: Sequence[str], delimiter: str) -> tuple[list[str], int]:
    """The values that the first of some lines begins, and how many lines they take: 0 where it is no row."""
    for taken in range(1, len(lines) + 1):
        with contextlib.suppress(csv.Error):
            row = csv.reader([" ".join(lines[:taken])], delimiter=delimiter, strict=True)
            return next(row, []), taken
    return [], 0


def delimiter_of(header: str) -> str:
    """What stands between the names in a table's first line: a comma, a semicolon or a tab."""
    return max(",;\t", key=header.count)


def parse_json(
    text: str, path: Path, whole: Callable[[list[tuple[str, Any]]], Any] = dict, first_line: int = 1
) -> Any:
    """`json.loads` whose errors are DataErrors with file, line (counted from `first_line`) and column."""
    with _json_faults(text, path, first_line), _not_collecting():
        # Not strict: a raw tab or line break within a text spoils no file.
        return json.loads(text, object_pairs_hook=whole, strict=False)


def _after_blanks(text: str, place: int) -> int:
    blanks = _JSON_BLANKS.match(text, place)
    return blanks.end() if blanks else place


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Millions of small objects and no cycles: collecting would take most of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _json_faults(text: str, path: Path, first_line: int = 1) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        line = error.lineno + first_line - 1
        reason = "ends early" if error.pos >= len(text.rstrip()) else error.msg
        raise DataError(
            f"{path}: malformed JSON at line {line}, column {error.colno}: {reason}",
            hint="the file may be cut short: download or write it again",
        ) from error
    except (ValueError, RecursionError) as error:  # an endless integer, a nesting of thousands of levels
        raise malformed(path, f"malformed JSON at or below line {first_line}: {error}") from error


def type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def as_id(value: Any) -> ImageId | None:
    """Identifier as int or str; None if neither, or beyond 64 bits; 42.0 counts as 42."""
    if isinstance(value, str):
        return as_text(value) or None
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) < 1 << 63 else None


def as_text(value: Any) -> str | None:
    """Text without surrounding white space; None where the value is no string. Lone surrogates become "?"."""
    if not isinstance(value, str):
        return None
    if not value.isascii():
        value = value.encode("utf-8", errors="replace").decode("utf-8")
    return value.strip()


def texts_in(values: Any) -> list[str]:
    """`as_text` of the strings in a list; others, and empty ones, are left out."""
    return [text for value in (values if isinstance(values, list) else []) if (text := as_text(value))]


def as_pixels(value: Any) -> int | None:
    """Width or height in pixels, above 0; None where the value is none."""
    return int(value) if _is_number(value) and 1 <= value < 1 << 31 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_small(box: Sequence[float]) -> bool:
    """Whether four numbers may be shares of an image's sides, which boxes may leave a little."""
    return max(map(abs, box)) <= _LARGEST_SHARE


def are_shares(box: Sequence[float]) -> bool:
    """Whether four numbers can only be shares of an image's sides: no whole pixels, within one of them."""
    return is_small(box) and any(number % 1 for number in box)


def as_box(value: Any, width: int | None, height: int | None) -> tuple[Xywh | None, str]:
    """A box, clipped to the image where its size is known.

    Args:
        value: x, y, width, height in pixels (COCO order).
        width, height: Of the image in pixels, or None.

    Returns:
        The box and "" or what was repaired; None and why it cannot be used.
    """
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(_is_number, value)):
        return None, "has no box of four numbers (skipped)"
    try:
        x, y, w, h = map(float, value)
    except OverflowError:
        x = y = w = h = math.inf
    if not all(map(math.isfinite, (x, y, w, h))):
        return None, "has a box that is not finite (skipped)"
    if max(map(abs, (x, y, w, h))) >= _LARGEST_BOX:
        return None, "has a box larger than any image (skipped)"
    if w <= 0 or h <= 0:
        return None, "has a box without area (skipped)"
    left, top = max(x, 0.0), max(y, 0.0)
    right = x + w if width is None else min(x + w, float(width))
    bottom = y + h if height is None else min(y + h, float(height))
    if right <= left or bottom <= top:
        return None, "has a box outside the image (skipped)"
    overflow = max(left - x, top - y, x + w - right, y + h - bottom)
    if overflow == 0:
        return (x, y, w, h), ""
    what = "" if overflow <= BORDER_TOLERANCE else "has a box that reaches out of the image (clipped)"
    return (left, top, right - left, bottom - top), what
