"""The annotation files of a dataset directory: each read once, its rows with the keys of their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tbkin_core.datasets.formats import FORMAT_OF
from tbkin_core.datasets.formats.base import Format, Holds, Version
from tbkin_core.datasets.image_index import ImageIndex, key_of_name
from tbkin_core.datasets.layout import Layout
from tbkin_core.datasets.reading import AnnotationFile, Problems, Source
from tbkin_core.datasets.records import (
    BoxRow,
    CaptionRow,
    Content,
    ImageId,
    ListedImage,
    NamedImage,
    RefRow,
    SceneGraphRow,
)


class KeyedCaption(NamedTuple):
    """A caption with the key of its image (None without an image); `file` is the annotation file's name."""

    text_id: int | str | None
    key: ImageId | None
    text: str
    file: str
    number: int | str
    split: str | None


def format_of(file: AnnotationFile) -> Format:
    return FORMAT_OF[file.format]


def version_of(file: AnnotationFile) -> Version:
    return format_of(file).version(file)


def set_of(file: AnnotationFile) -> str:
    """Name of the set that a file's expressions are of, its version aside."""
    return version_of(file).set or file.path.parent.name.lower()


class AnnotationFiles:
    """What `Layout` finds in a directory, read file by file when first asked for.

    Attributes:
        layouts: See `Dataset`.
        problems: What was skipped or repaired so far.
        unread: See `Layout`.
        passed_over: Files that are known and not read, and what they are, one line each.

    Raises:
        DataError: As `Layout`; from any method, a file that is needed is malformed as a whole.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._layout = Layout(root)
        self.layouts = self._layout.names()
        self.unread = self._layout.unread
        self.problems = Problems()
        for name, reason in self._layout.left_out:
            self.problems.add(PurePosixPath(name).parent.as_posix(), PurePosixPath(name).name, reason)
        for name, reason in self._layout.unreadable:
            self.problems.add(name, "", f"cannot be read: {reason} (skipped)")
        self.passed_over = [f"{files}: {what}" for files, what in self._layout.passed_over]
        self.names: list[str] = [file.name for file in self._layout.files]
        for files, what in self._layout.passed_over:
            self.problems.add(files, "", what)
        self._contents: dict[str, Content] = {}
        self._listed: dict[str, Mapping[ImageId, ListedImage]] = {}
        self._keyed_refs: dict[str, list[tuple[ImageId, RefRow]]] = {}

    def holding(self, holds: Holds) -> list[AnnotationFile]:
        """Files of the formats that hold something, in the order of the formats' table."""
        return [file for file in self._layout.files if holds in format_of(file).holds]

    def read(self, file: AnnotationFile) -> Content:
        """What a file holds, as its format reads it."""
        if file.name not in self._contents:
            read = format_of(file).read
            self._contents[file.name] = read(self._source(file)) if read else Content()
        return self._contents[file.name]

    def _source(self, file: AnnotationFile) -> Source:
        listed = dict if format_of(file).listed_by is None else partial(self.images_for, file)

        def companions(name: str) -> list[Source]:
            return [self._source(each) for each in self._layout.companions(file, name)]

        return Source(file, self.problems, listed, partial(self._picture, file), companions)

    def _picture(self, file: AnnotationFile, image_id: ImageId) -> Path | None:
        key, _ = self._on_disk.by_id(image_id, file.split, file.directory)
        path = None if key is None else self._on_disk.path_of.get(key)
        return None if path is None else self._root / path

    @cached_property
    def _on_disk(self) -> ImageIndex:
        """Keys of the images on disk, before any file is read."""
        return ImageIndex(self._layout.images, (), (), Problems())

    def forget_captions(self) -> None:
        """Frees the captions of all files read so far."""
        for content in self._contents.values():
            content.captions = ()

    def split_of(self, file: AnnotationFile) -> str:
        """Split of a file by its name, or else its content; "all" without one."""
        return file.split or self.read(file).split or "all"

    def lists_for(self, file: AnnotationFile) -> list[AnnotationFile]:
        """Files that list the images and boxes whose ids a file uses."""
        listed_by = format_of(file).listed_by
        return [file] if listed_by is None else listed_by(file, self._layout.files)

    def images_for(self, file: AnnotationFile) -> Mapping[ImageId, ListedImage]:
        """Listed images by the ids that a file uses; of several lists the first counts."""
        if file.name not in self._listed:
            lists = [self.read(each).images for each in reversed(self.lists_for(file))]
            all_of_them = chain.from_iterable(images.items() for images in lists)
            self._listed[file.name] = lists[0] if len(lists) == 1 else dict(all_of_them)
        return self._listed[file.name]

    # --- which image is which ------------------------------------------------------------------------

    @cached_property
    def index(self) -> ImageIndex:
        """Keys of all images on disk, listed or named."""
        files = self.holding(Holds.IMAGES)
        # Files that give splits to the images of others come last: these files' own lists say more.
        lists = sorted(files, key=lambda file: Holds.IMAGE_SPLITS in format_of(file).holds)
        listed = [image for file in lists for image in self.read(file).images.values()]
        names: dict[bool, dict[tuple[str, str, str | None], None]] = {True: {}, False: {}}
        for file in files:
            own = ((image.name, image.directory, image.split) for image in self.read(file).named)
            names[Holds.IMAGE_FEATURES in format_of(file).holds] |= dict.fromkeys(own)
        return ImageIndex(self._layout.images, listed, names[False], self.problems, names[True])

    def listed_key(self, file: AnnotationFile, image_id: ImageId) -> ImageId:
        """Key of the image that is listed for a file under an id; the id itself if none is."""
        image = self.images_for(file).get(image_id)
        return image_id if image is None else self.index.key_in(image.listed_in, image_id)

    def resolve(self, file: AnnotationFile, image_id: ImageId, row: int | str) -> ImageId | None:
        """Key of the image that a row of a file means; None, and a problem, if that is not clear.

        Args:
            row: Number or id of the row, for the message.
        """
        if format_of(file).ids_are_keys:
            return image_id
        images = self.images_for(file)
        if image_id in images:
            return self.index.key_in(images[image_id].listed_in, image_id)
        found, candidates = self.index.by_id(image_id, file.split, file.directory)
        if found is not None:
            return found
        if candidates:
            what = f"names image {image_id}, which may be {' or '.join(candidates[:2])} (skipped)"
        elif images:
            what = "names an image that is not listed (skipped)"
        else:
            return key_of_name(image_id) if isinstance(image_id, str) else image_id
        self.problems.add(file.name, f"{format_of(file).noun} {row}", what)
        return None

    @cached_property
    def feature_images(self) -> dict[AnnotationFile, tuple[ImageId, NamedImage]]:
        """Files with the features of one image each: its key, and what the file says of it."""
        return {
            file: (self._feature_key(file, image), image)
            for file in self.holding(Holds.IMAGE_FEATURES)
            for image in self.read(file).named
        }

    def _feature_key(self, file: AnnotationFile, image: NamedImage) -> ImageId:
        key = self.index.by_name(image.name, image.directory, image.split)
        if key is None and image.name.isdigit():
            key, _ = self.index.by_id(image.name, image.split)
        named = image.name if not image.split else file.name.removesuffix(file.path.suffix)
        return key_of_name(named) if key is None else key

    @cached_property
    def assigned_splits(self) -> dict[ImageId, str]:
        """Image key to the split that goes before all others (that of Karpathy's files)."""
        splits: dict[ImageId, str] = {}
        for file in self.holding(Holds.IMAGE_SPLITS):
            for listed in self.read(file).images.values():
                splits.setdefault(self.listed_key(file, listed.image_id), listed.split or "all")
            for image in self.read(file).named:
                key = self.index.by_name(image.name, image.directory, image.split)
                if key is None:
                    # A list alone may speak of images that nobody has.
                    if Holds.CAPTIONS in format_of(file).holds:
                        what = "is an image that is not clear (captions kept)"
                        self.problems.add(file.name, image.name, what)
                else:
                    splits.setdefault(key, image.split or "all")
        return splits

    # --- rows with the keys of their images ----------------------------------------------------------

    def keyed_refs(self, file: AnnotationFile) -> list[tuple[ImageId, RefRow]]:
        """Refs of a file; those that name a box themselves may name an image that is not clear, and are left
        out."""
        if file.name not in self._keyed_refs:
            keyed = self._keyed_refs[file.name] = list[tuple[ImageId, RefRow]]()
            for ref in self.read(file).refs:
                if ref.target is None:
                    keyed.append((self.listed_key(file, ref.image_id), ref))
                elif (key := self.resolve(file, ref.image_id, ref.ref_id)) is not None:
                    keyed.append((key, ref))
        return self._keyed_refs[file.name]

    @cached_property
    def scene_graphs(self) -> list[tuple[AnnotationFile, ImageId, SceneGraphRow]]:
        return [
            (file, key, row)
            for file in self.holding(Holds.SCENE_GRAPHS)
            for row in self.read(file).graphs
            if (key := self.resolve(file, row.image_id, row.image_id)) is not None
        ]

    def boxes(self, file: AnnotationFile) -> Iterator[tuple[ImageId, BoxRow]]:
        for row in self.read(file).boxes:
            if (key := self.resolve(file, row.image_id, row.box_id)) is not None:
                yield key, row
        if Holds.SCENE_GRAPHS in format_of(file).holds:
            rows = [(key, row) for of, key, row in self.scene_graphs if of == file]
            yield from ((key, box) for key, row in rows for box in row.boxes)

    @cached_property
    def captions(self) -> list[KeyedCaption]:
        """Captions but for phrases; of an image that one file claims, none from a later file that yields."""
        captions: list[KeyedCaption] = []
        claimed: set[ImageId | None] = set()
        files = self.holding(Holds.CAPTIONS)
        for file in sorted(files, key=lambda file: Holds.IMAGE_SPLITS not in format_of(file).holds):
            form, start = format_of(file), len(captions)
            for row in self._keyed(file):
                if form.yields and row.key is not None and row.key in claimed:
                    what = "is about an image whose captions another file gives (skipped)"
                    number = row.number if row.text_id is None else row.text_id
                    self.problems.add(file.name, f"{form.noun} {number}", what)
                else:
                    captions.append(row)
            if form.claims:
                claimed.update(row.key for row in captions[start:])
        return captions

    @cached_property
    def phrases(self) -> list[KeyedCaption]:
        return [row for file in self.holding(Holds.PHRASES) for row in self._keyed(file)]

    def _keyed(self, file: AnnotationFile) -> Iterator[KeyedCaption]:
        """Captions of a file; those whose image is listed nowhere, or may be several, are left out."""
        form, rows, directory = format_of(file), self.read(file).captions, file.directory
        if form.images_by_row:
            yield from self._keyed_by_row(file, iter(rows))
            return
        feature_key, _ = self.feature_images.get(file, (None, None))
        for number, text, text_id, image_id, image_name, row_split in rows:
            key, split = feature_key, row_split or file.split
            row = number if text_id is None else text_id
            if feature_key is not None:
                split = None  # where features are kept says nothing about the split
            elif image_id is not None:
                key = self.resolve(file, image_id, row)
                if key is None:
                    continue
            elif image_name is not None:
                key = self.index.by_name(image_name, directory, split)
                if key is None and Holds.IMAGE_SPLITS not in form.holds:  # else `assigned_splits` says so
                    what = "names an image that is not clear (text kept)"
                    self.problems.add(file.name, f"{form.noun} {row}", what)
            yield KeyedCaption(text_id, key, text, file.name, number, split)

    def _keyed_by_row(self, file: AnnotationFile, rows: Iterator[CaptionRow]) -> Iterator[KeyedCaption]:
        """Captions whose images, if there are any, are files named by the row's number, from 0 or from 1."""
        by_row, split = self.index.by_row, file.split
        first: int | None = None
        if by_row(0, split) is not None:
            first = 0
        elif self.index.has_rows:
            # Only the end of the file can tell: three rows that count from 0 have no image 3.
            read = list(rows)
            rows = iter(read)
            if by_row(int(read[-1].number) + 1 if read else 0, split) is not None:
                first = 1
            elif any(by_row(int(row.number), split) is not None for row in read):
                first = 0
                what = "has images by row number, but neither 0 nor the last: counted from 0"
                self.problems.add(file.name, "", what)
        for row in rows:
            key = None if first is None else by_row(int(row.number) + first, split)
            yield KeyedCaption(row.text_id, key, row.text, file.name, row.number, split)
