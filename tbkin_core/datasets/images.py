"""Keys of a dataset's images: which file, which annotated id, which name in a text file is the same image."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from tbkin_core.datasets.formats import ListedImage
from tbkin_core.datasets.layout import IMAGE_SUFFIXES, split_in, split_of_path
from tbkin_core.datasets.reading import Problems
from tbkin_core.datasets.records import ImageId

# Keys are stored as 64-bit integers beside the features; a longer run of digits is a name, not a number.
_LONGEST_NUMBER = 18


def trailing_number(stem: str) -> int | None:
    """Number at the end of a file stem: "COCO_val2014_000000000042" -> 42, "image100" -> 100; else None.

    The last word must be the number, or letters and then the number: of "1001773457_577c3a7d70", whose last
    word is a hash, 70 says nothing, and the whole stem is the better key.
    """
    match = re.search(r"(?:^|[^0-9A-Za-z])[^\W\d_]*([0-9]+)$", stem)
    return int(match.group(1)) if match and len(match.group(1)) <= _LONGEST_NUMBER else None


def split_family(split: str) -> str:
    """Split of the image files that a split is about: "test-dev" -> "test", "minival" -> "val"."""
    plain = split.split("-")[0]
    return {
        "minival": "val",
        "nominival": "val",
        "valminusminival": "val",
        "testA": "test",
        "testB": "test",
    }.get(plain, plain)


class ImageIndex:
    """Finds the key of an image by id or by name.

    An image that annotations list with an id has this id as its key. Any other file has the number at the end
    of its stem (see `trailing_number`) if no other image of the dataset has the same, else its relative path
    without extension; a file without such a number has its stem, if unique, else the relative path.

    Args:
        files: Image files, relative to the dataset directory.
        listed: Images that annotation files list.
        named: Names of images in files that give no ids, each with the directory the name is relative to.
        problems: Takes note of ids that two files use for different images.
    """

    def __init__(
        self,
        files: Iterable[str],
        listed: Iterable[ListedImage],
        named: Iterable[tuple[str, str]],
        problems: Problems,
    ) -> None:
        self.files = list(files)
        self.listed: dict[ImageId, ListedImage] = {}
        self.path_of: dict[ImageId, str] = {}
        self.splits_of: dict[ImageId, list[str]] = {}
        self._key_of_path: dict[str, ImageId] = {}
        self._known = set(self.files)
        self._by_basename: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        self._listed_by_name: dict[str, ImageId] = {}
        for file in self.files:
            self._add_path(file)
        self._claim_listed(listed, problems)
        missing = dict.fromkeys(
            path for name, directory in named if (path := self._missing_path(name, directory)) is not None
        )
        for path in missing:
            self._add_path(path)
        self._name_the_rest([*self.files, *missing])
        self._keys = set(self._key_of_path.values())

    def keys(self) -> list[ImageId]:
        """Keys of all images, those that annotations list first."""
        return list(dict.fromkeys([*self.listed, *self._key_of_path.values()]))

    def by_id(self, image_id: ImageId, split: str | None) -> tuple[ImageId | None, list[str]]:
        """Key of the image that an annotation without image list means.

        Args:
            image_id: As the annotation says; a str may be a file name.
            split: Of the annotation; it decides between files of the same number in different directories.

        Returns:
            The key; or None and the files it may be, none or several.
        """
        if image_id in self.listed:
            return image_id, []
        if isinstance(image_id, str):
            if image_id in self._keys:
                return image_id, []
            key = self.by_name(image_id, "")
            if key is not None or not re.fullmatch(rf"[0-9]{{1,{_LONGEST_NUMBER}}}", image_id):
                return key, []
            return self.by_id(int(image_id), split)
        paths = self._by_number.get(image_id, [])
        if len(paths) > 1 and split is not None:
            paths = _of_split(paths, split) or paths
        keys = dict.fromkeys(self._key_of_path[path] for path in paths)
        return (next(iter(keys)), []) if len(keys) == 1 else (None, paths)

    def by_name(self, name: str, directory: str) -> ImageId | None:
        """Key of the image that a file name means, which may be relative to `directory`; None if unknown."""
        path = self._find(name, directory)
        if path is not None:
            return self._key_of_path[path]
        return self._listed_by_name.get(PurePosixPath(name).name)

    def _add_path(self, path: str) -> None:
        pure = PurePosixPath(path)
        self._known.add(path)
        self._by_basename[pure.name].append(path)
        self._by_stem[pure.stem].append(path)
        number = trailing_number(pure.stem)
        if number is not None:
            self._by_number[number].append(path)

    def _claim_listed(self, listed: Iterable[ListedImage], problems: Problems) -> None:
        for image in listed:
            key = image.image_id
            if image.split is not None and image.split not in self.splits_of.setdefault(key, []):
                self.splits_of[key].append(image.split)
            first = self.listed.get(key)
            if first is not None and _contradict(first, image):
                problems.add(
                    image.listed_in,
                    f"image {key}",
                    f"is {image.file_name} here and {first.file_name} in {first.listed_in} (the latter kept)",
                )
                continue
            merged = image
            if first is not None:
                merged = ListedImage(
                    key,
                    first.file_name or image.file_name,
                    first.split or image.split,
                    first.width or image.width,
                    first.height or image.height,
                    first.listed_in,
                )
            self.listed[key] = merged
            if image.file_name:
                self._listed_by_name.setdefault(PurePosixPath(image.file_name).name, key)
            if key not in self.path_of and (path := self._file_of(image)) is not None:
                self.path_of[key] = path
                self._key_of_path.setdefault(path, key)

    def _file_of(self, image: ListedImage) -> str | None:
        paths: list[str] = []
        number: int | None = image.image_id if isinstance(image.image_id, int) else None
        if image.file_name:
            name = _plain(image.file_name)
            if name in self._known:
                return name
            paths = self._by_basename.get(PurePosixPath(name).name, [])
            paths = [path for path in paths if path.endswith("/" + name)] or paths
            if trailing_number(PurePosixPath(name).stem) != number:
                number = None
        if not paths and number is not None:
            # COCO's releases name one image COCO_val2014_000000000042.jpg and 000000000042.jpg.
            paths = self._by_number.get(number, [])
        if image.split is not None:
            paths = _of_split(paths, image.split) or paths
        return next((path for path in paths if path not in self._key_of_path), next(iter(paths), None))

    def _find(self, name: str, directory: str) -> str | None:
        plain = _plain(name)
        for candidate in (
            posixpath.join(directory, plain),
            posixpath.join(directory, "images", plain),
            plain,
        ):
            if posixpath.normpath(candidate) in self._known:
                return posixpath.normpath(candidate)
        pure = PurePosixPath(plain)
        same = self._by_basename.get(pure.name, [])
        if not same and pure.suffix.lower() not in IMAGE_SUFFIXES:
            same = self._by_stem.get(pure.name, [])
        same = [path for path in same if path.endswith("/" + plain)] or same
        return same[0] if len(same) == 1 else None

    def _missing_path(self, name: str, directory: str) -> str | None:
        """Path by which an image that is on no disk and in no list is known; None if it is on one of them."""
        plain = _plain(name)
        if self._find(name, directory) is not None or PurePosixPath(plain).name in self._listed_by_name:
            return None
        path = posixpath.normpath(posixpath.join(directory, plain))
        return None if path in {".", ".."} else path

    def _name_the_rest(self, paths: list[str]) -> None:
        on_disk = set(self.files)
        taken: set[ImageId] = set(self.listed)
        for path in paths:
            if path in self._key_of_path:
                continue
            pure = PurePosixPath(path)
            number = trailing_number(pure.stem)
            relative = str(pure.with_suffix(""))
            key: ImageId
            if number is not None:
                unique = len(self._by_number[number]) == 1 and number not in self.listed
                key = number if unique else relative
            else:
                key = pure.stem if len(self._by_stem[pure.stem]) == 1 else relative
            if key in taken:  # a.jpg beside a.png
                key = path
            taken.add(key)
            self._key_of_path[path] = key
            if path in on_disk:
                self.path_of[key] = path


def _plain(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _of_split(paths: list[str], split: str) -> list[str]:
    """The paths whose directories, or else whose name, speak of the split."""
    family = split_family(split)
    return [
        path
        for path in paths
        if (found := split_of_path(path) or split_in(PurePosixPath(path).stem)) is not None
        and split_family(found) == family
    ]


def _contradict(first: ListedImage, second: ListedImage) -> bool:
    if not first.file_name or not second.file_name:
        return False
    one, two = PurePosixPath(first.file_name), PurePosixPath(second.file_name)
    if one.name == two.name:
        return False
    number = trailing_number(one.stem)
    return number is None or number != trailing_number(two.stem)
