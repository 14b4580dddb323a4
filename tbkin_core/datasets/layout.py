"""What lies in a dataset directory: finds the files, names their format, and their split.

Layout(Path("coco")).files[0]   # AnnotationFile(..., "annotations/captions_val.json", "val", "coco-captions")
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tbkin_core.datasets.formats import FORMAT_OF, FORMATS
from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.formats.own import ANSWERS, GRAPH_EXPORT, OWN_PICTURES, own_directory, own_figures
from tbkin_core.datasets.reading import AnnotationFile
from tbkin_core.datasets.splits import more_exact_split, normalise_split, split_in, split_of_path
from tbkin_core.errors import DataError

MAX_DEPTH = 4
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
_OTHER_IMAGES = frozenset({".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".dng", ".cr2", ".nef", ".arw"})
_MAY_BE_DATA = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".pkl", ".npy"})
LOOKED_FOR = ", ".join([*filter(None, (format.looked_for for format in FORMATS)), "or image files"])

_BY_NAME = sorted(FORMATS, key=lambda format: format.beside is None)
_FIRST = [format for format in FORMATS if format.content_first]
_BY_CONTENT = sorted(FORMATS, key=lambda format: format.content_last)


class Layout:
    """Files of a directory, searched breadth first, `MAX_DEPTH` levels deep, without what tbkin wrote there.

    Attributes:
        files: Files of all formats but those that only repeat another, in the order of `FORMATS`, then of
            their names.
        images: Paths of image files relative to the directory, "/" between parts.
        unreadable: Directories and files that could not be looked into, with the reason.
        left_out: Pictures of kinds that are not read and directories that lie too deep, with the reason.
        unread: Files that may be data and that nobody reads, with the first names of what is in them.

    Raises:
        DataError: The directory cannot be listed, is empty, is itself a store or run of tbkin, or holds
            nothing that is recognised.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files: list[AnnotationFile] = []
        self.images: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self.left_out: list[tuple[str, str]] = []
        self.unread: dict[str, list[str]] = {}
        self._passed_over: dict[str, list[str]] = {}
        self._other: dict[str, list[str]] = {}  # files of no format, by suffix
        self._pending: list[tuple[Path, str, int]] = [(root, "", 0)]  # path, prefix of its files, depth
        self._seen: set[tuple[int, int]] = set()
        while self._pending:
            self._look_into(*self._pending.pop(0))
        if not self.files and not self.images:
            others = sorted(self._other.items(), key=lambda entry: -len(entry[1]))
            counts = ", ".join(f"{len(names)} {suffix} ({_some(names)})" for suffix, names in others[:5])
            unreadable = "".join(f"; {it}: {why}" for it, why in [*self.passed_over, *self.unreadable[:3]])
            raise DataError(
                f"{root}: no dataset recognised; looked for {LOOKED_FOR}; "
                f"found {counts or 'no files'}{unreadable}",
                hint="give the directory that holds the annotation files or images; it is searched "
                f"{MAX_DEPTH} levels deep",
            )
        self.images.sort()
        superseding = [file for file in self.files if FORMAT_OF[file.format].supersedes]
        self._superseded = [file for file in self.files if _is_superseded(file, superseding)]
        self.files = _without_repeats([file for file in self.files if file not in self._superseded])

    def names(self) -> tuple[str, ...]:
        """Layouts found, in the order of `FORMATS`; "images" where image files are on disk."""
        found = {file.format for file in self.files}
        names = dict.fromkeys(format.layout or format.name for format in FORMATS if format.name in found)
        return (*names, "images") if self.images else tuple(names)

    def companions(self, file: AnnotationFile, format_name: str) -> list[AnnotationFile]:
        """The files of a format that are read with a file that supersedes them."""
        found = [it for it in self._superseded if it.format == format_name and _same_split(it, file)]
        return FORMAT_OF[format_name].prefer(found)

    @property
    def passed_over(self) -> list[tuple[str, str]]:
        """Files that are known and not read, with what they are (`Format.passed_over`); of many the first."""
        return [(_some(names, 5), f"{what} (not read)") for what, names in self._passed_over.items()]

    def _look_into(self, directory: Path, prefix: str, depth: int) -> None:
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in self._seen:  # a symlink back to a directory already read
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                # Real directories first, so that a symlink to one of them adds nothing.
                listed = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            if depth == 0:
                what = f"{self._root}: cannot be listed: {error.strerror}"
                raise DataError(what, hint="check the directory's permissions") from error
            self.unreadable.append((prefix.rstrip("/"), error.strerror or str(error)))
            return
        listed = [entry for entry in listed if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        names = {entry.name for entry in listed}
        if depth == 0 and not names:
            raise DataError(f"{self._root}: the directory is empty", hint=f"expected {LOOKED_FOR}")
        own = own_directory(directory, names)
        if own and depth == 0:
            raise DataError(
                f"{self._root}: this is a {own} that tbkin wrote, not a dataset",
                hint="give the directory of the dataset (by default the one above)",
            )
        beside = {name.lower() for name in names}
        figures = own_figures(directory, prefix, names)
        hidden: list[str] = []
        for entry in listed:
            if entry.name in figures:
                continue
            name = prefix + entry.name
            try:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - 100,000 files
                if entry.is_dir() and not own:
                    if depth < MAX_DEPTH:
                        self._pending.append((directory / entry.name, name + "/", depth + 1))
                    else:
                        self.left_out.append((name, f"lies below {MAX_DEPTH} directories (not looked into)"))
                if suffix in _OTHER_IMAGES and not own:
                    self.left_out.append((name, f"is a {suffix} picture, a kind that is not read (skipped)"))
                if suffix in IMAGE_SUFFIXES:
                    # A directory, a broken symlink, a socket, too: reading it fails, with its name.
                    (hidden if own else self.images).append(name)
                elif entry.is_file():
                    self._look_at(Candidate(directory / entry.name, beside), name, own)
                elif not entry.is_dir() and not own:
                    self.unreadable.append((name, "is no file, or a link that leads nowhere"))
            except OSError as error:
                self.unreadable.append((name, error.strerror or str(error)))
        hidden = [name for name in hidden if name.removeprefix(prefix) not in OWN_PICTURES]
        self.left_out += [(name, f"lies in a {own} that tbkin wrote (skipped)") for name in hidden]

    def _look_at(self, file: Candidate, name: str, own: str | None) -> None:
        if own:
            format = _of_name(file)
            if own == "store" and format is not None and format.in_stores:
                self.files.append(AnnotationFile(file.path, name, None, format.name))
            return
        format = None
        with suppress(OSError):  # a file known by its name says what is wrong when it is read
            format = _of_content(file, _FIRST)
        format = format or _of_name(file) or _of_content(file, _BY_CONTENT)
        if format is not None and format.passed_over:
            self._passed_over.setdefault(format.passed_over, []).append(name)
        if format is None or format.holds is Holds.NOTHING:
            self._other.setdefault(file.suffix or "other", []).append(name)
            if file.suffix in _MAY_BE_DATA and not (
                format and (format.passed_over or format in (GRAPH_EXPORT, ANSWERS))
            ):
                self.unread[name] = file.names_within
            return
        stated = format.stated_split(file)
        split = more_exact_split(split_in(file.path.name), normalise_split(stated) if stated else None)
        self.files.append(AnnotationFile(file.path, name, split or split_of_path(name), format.name))


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def named_like_annotations(path: Path) -> bool:
    """Whether a JSON file of this name counts as an annotation file, whatever is in it."""
    return path.name.lower().endswith(".json") and _of_name(Candidate(path)) is not None


def _of_name(file: Candidate) -> Format | None:
    return next((each for each in _BY_NAME if file.suffix in each.suffixes and each.has_name(file)), None)


def _of_content(file: Candidate, formats: Sequence[Format]) -> Format | None:
    """Raises OSError where the file cannot be read."""
    likely = (each for each in formats if file.suffix in each.suffixes)
    return next((each for each in likely if each.content is not None and each.content(file)), None)


def _without_repeats(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """The files in order, without those that repeat what a better one of the same format says."""
    files = sorted(files, key=lambda file: file.name)
    kept = (form.prefer([file for file in files if file.format == form.name]) for form in FORMATS)
    return [file for of_format in kept for file in of_format]


def _is_superseded(file: AnnotationFile, superseding: Iterable[AnnotationFile]) -> bool:
    return any(file.format in FORMAT_OF[it.format].supersedes and _same_split(it, file) for it in superseding)


def _same_split(first: AnnotationFile, second: AnnotationFile) -> bool:
    return first.split == second.split or None in (first.split, second.split)
