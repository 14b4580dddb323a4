"""What a format states about itself: how its files are recognised, what they hold, how they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tbkin_core.datasets.reading import AnnotationFile, Source, delimiter_of, encoding_of
from tbkin_core.datasets.records import CaptionRow, Content, NamedImage
from tbkin_core.datasets.splits import split_in

SNIFF_BYTES = 4096
_PART = re.compile(r"(?<=\.tsv)\.\d{1,4}$")


class Holds(Flag):
    """What a format's files may hold: a file is read when the first of it is asked for."""

    NOTHING = 0
    IMAGES = auto()  # listed with ids, or known by name
    IMAGE_SPLITS = auto()  # splits of images that go before all others
    CAPTIONS = auto()
    PHRASES = auto()  # captions of parts of an image, by the million, which follow the captions
    BOXES = auto()
    SCENE_GRAPHS = auto()
    QUESTIONS = auto()
    ANSWERS = auto()
    EXPRESSIONS = auto()
    IMAGE_FEATURES = auto()  # region features of one image, named in `Content.named`
    FEATURE_TABLES = auto()  # region features of many images, read by `tbkin_core.features`
    UNREAD_FEATURES = auto()  # what may be region features, in a form that is not read


class Candidate:
    """A file that may be of some format; `name` and `suffix` (".json", "" without one) are in lower case."""

    def __init__(self, path: Path, beside: Collection[str] = ()) -> None:
        self.path = path
        self.name = path.name.lower()
        # A table in parts counts as a table: "train.tsv.0", "train.tsv.1".
        self.suffix = os.path.splitext(_PART.sub("", self.name))[1]  # noqa: PTH122 - 100,000 files
        self.beside = beside  # names of all files in its directory, in lower case

    @cached_property
    def ends(self) -> str:
        """First and last 4 KB, as text of whatever bytes."""
        with self.path.open("rb") as stream:
            ends = stream.read(SNIFF_BYTES)
            encoding = encoding_of(ends)
            size = stream.seek(0, os.SEEK_END)
            if size > SNIFF_BYTES:
                start = max(SNIFF_BYTES, size - SNIFF_BYTES)
                stream.seek(start + -start % 4)  # no character of UTF-16 or UTF-32 cut in two
                ends += stream.read(SNIFF_BYTES)
        if encoding.startswith("utf-8"):
            return ends.decode("latin-1").removeprefix("\xef\xbb\xbf")
        return ends.decode(encoding, errors="replace")

    @cached_property
    def header(self) -> list[str]:
        """Names in the first line of a table, in lower case."""
        line = re.split(r"[\r\n]", self.ends.lstrip("\ufeff"), maxsplit=1)[0].lower()
        return [name.strip(' "') for name in line.split(delimiter_of(line))]

    @property
    def names_within(self) -> list[str]:
        """The first keys of JSON, or the header of a table; empty for another file."""
        found = re.findall(r'"([A-Za-z_]\w{0,30})"\s*:', self.ends) if "json" in self.suffix else []
        if self.suffix in {".csv", ".tsv"}:
            found = [name[:30] for name in self.header if name.isprintable()]
        return list(dict.fromkeys(found))[:6]


class Version(NamedTuple):
    """One of the versions in which a publisher's annotations come: "unc" of `refs(unc).p`."""

    name: str = ""  # where the file's name gives none
    rank: int = 0  # 0 is the version that papers report; unknown ones have the highest
    split_by_object: bool = False  # whether one image may be in several splits
    set: str = ""  # name of the set of expressions, where it is not the directory's
    is_part: bool = False  # whether other files of the format hold other parts of the set


@dataclass(frozen=True, eq=False, kw_only=True)
class Format:
    """One kind of annotation file; a file is of the first format that claims it, by name before content."""

    name: str  # "coco-captions"
    holds: Holds  # what is in its files; NOTHING for files that are known and not read
    # Reads one file. It leaves out what cannot be used, and counts it as a problem of the source; a file
    # that is not what it should be as a whole is a DataError. None where nothing is read here.
    read: Callable[[Source], Content] | None = None
    layout: str = ""  # what `Dataset.layouts` calls it; `name` unless given
    looked_for: str = ""  # words for "looked for ..." where a directory holds no dataset
    # In lower case; only files with one of these are looked at.
    suffixes: frozenset[str] = frozenset({".json"})
    # Files whose whole lower-case name matches count, whatever is in them.
    names: re.Pattern[str] | None = None
    # A file whose name matches must lie in the same directory; such formats are tried first.
    beside: re.Pattern[str] | None = None
    # Whether a file's ends look like the format; `Candidate.name` may be asked first.
    content: Callable[[Candidate], bool] | None = None
    # Whether its `content` decides before any name does: results are often called as what they are about.
    content_first: bool = False
    # Whether the other formats' `content` is asked first: its own keys are common ones.
    content_last: bool = False
    # Split that the ends of a file state, as the publisher writes it.
    stated_split: Callable[[Candidate], str | None] = lambda _: None
    # Keeps those files of a dataset that do not only repeat others of the same format.
    prefer: Callable[[list[AnnotationFile]], list[AnnotationFile]] = list
    # Names of formats whose files of the same split are not read by themselves where there is one of this,
    # whose reader may read them with it (`Source.companions`).
    supersedes: tuple[str, ...] = ()
    # Files that list the images (and boxes) whose ids a file uses; the file itself unless given.
    listed_by: Callable[[AnnotationFile, Sequence[AnnotationFile]], list[AnnotationFile]] | None = None
    # Version of a file of referring expressions.
    version: Callable[[AnnotationFile], Version] = lambda _: Version()
    noun: str = "line"  # what a row is called in messages: "annotation" 12
    # Whether the image of a caption is the file that is named by the caption's number.
    images_by_row: bool = False
    # Captions of an image are skipped where a file before this one claims the image; boxes are read where no
    # format that does not yield has any, or for their attributes.
    yields: bool = False
    claims: bool = False  # whether captions of its images count as given, see `yields`
    split_by_row: bool = False  # whether a question may say of which split it is
    # Whether question files of one directory with different names are different sets.
    family_by_name: bool = True
    passed_over: str = ""  # what its files are, where they are named in a note and not read
    ids_are_keys: bool = False  # whether image ids are keys of the dataset: of what tbkin made of it
    in_stores: bool = False  # whether its files are also looked for in a store that tbkin wrote

    def has_name(self, candidate: Candidate) -> bool:
        """Whether the file's name alone makes it one of these."""
        if self.names is None or not self.names.fullmatch(candidate.name):
            return False
        return self.beside is None or any(map(self.beside.fullmatch, candidate.beside))


def set_named(file: AnnotationFile, is_part: bool = False) -> Version:
    """Version of a file whose own name may say which set its expressions are of: "refcoco+_val.json"."""
    name = file.path.name.lower()
    found = re.search(r"g?ref(coco([+g]|_?plus)?|clef)(?![a-z])", name)
    set_name = re.sub("_?plus", "+", found.group()) if found else ""
    by_object = set_name == "refcocog" and "google" in name
    if not set_name:  # of the directory, those of its splits aside
        set_name = next((each.name.lower() for each in file.path.parents if not split_in(each.name)), "")
    return Version("", 0, by_object, set_name + "-google" * by_object, is_part)


def named_images(source: Source, captions: Iterable[CaptionRow]) -> list[NamedImage]:
    """The images that captions name, each once; names are relative to the file's directory."""
    splits: dict[str, str | None] = {}
    for row in captions:
        if row.image_name is not None:
            splits.setdefault(row.image_name, row.split or source.file.split)
    return [NamedImage(name, source.file.directory, split) for name, split in splits.items()]
