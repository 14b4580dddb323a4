"""Keys of a dataset's images: which file, which annotated id, which name in a text file is the same image."""

from __future__ import annotations

import posixpath
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from tbkin_core.datasets.layout import IMAGE_SUFFIXES, MAX_DEPTH
from tbkin_core.datasets.reading import Problems
from tbkin_core.datasets.records import ImageId, ListedImage
from tbkin_core.datasets.splits import split_family, split_in, split_of_path

# Keys are stored as 64-bit integers beside the features; a longer run of digits is a name, not a number.
_LONGEST_NUMBER = 18
_LONGEST_NAME = 4096
_MANY = 100  # files of one name; what was found among more is kept for the next row
_PARTS = MAX_DEPTH + 1  # of the path of an image on disk
_MOST_PARTS = 32  # of a name that are looked at
# COCO's own names have the id in twelve digits.
_COCO_PATH = re.compile(
    r"(?:(?:^|/)(?:train|val|test|unlabeled)20\d\d/|(?:^|/)COCO_(?:train|val|test)20\d\d_)([0-9]{12})\.[A-Za-z]+$"
)
_COCO_STEM = re.compile(r"(?:coco_(?:train|val|test)20\d\d_)?[0-9]{12}(?:\.jpg)?", re.IGNORECASE)
_OTHER_LETTER = re.compile(r"[^\x00-\x7f]")
_COCO_NAME = re.compile(r"(?:^|[^0-9])[0-9]{12}\.[A-Za-z]+$")


def trailing_number(stem: str) -> int | None:
    """Number at the end of a file stem: "COCO_val2014_000000000042" -> 42, "image100" -> 100; else None.

    The last word must be the number, or letters and then the number, and no word before it a number of its
    own: of "1001773457_577c3a7d70" and "1001773457_d12345", whose last words are hashes, and of
    "dev-850-0-img0", the last digits say nothing, and the whole stem is the better key.
    """
    before = stem.rstrip(string.digits)
    number = stem[len(before) :]
    if not 1 <= len(number) <= _LONGEST_NUMBER:
        return None
    # Letter by letter: a pattern would try every letter of a long name as the first of the last word.
    place = len(before)
    while place and before[place - 1].isalnum() and not before[place - 1].isdecimal():
        place -= 1
    end = max(place - 1, 0)
    if place and before[place - 1] in string.digits:
        # The word begins with another number, unless one of its letters stands apart from A to Z.
        apart = _OTHER_LETTER.search(before, place)
        if apart is None:
            return None
        end = apart.start()
    words = re.split(r"[\W_]+", before[:end])
    return None if any(word.isdecimal() for word in words) else int(number)


def key_of_name(name: str) -> ImageId:
    """Key of an image that is on no disk and in no list, by what files call it: an id, a file name, its stem.

    A name in digits alone is a number, as is COCO's; of any other the whole stem is the key.
    """
    pure = PurePosixPath(_plain(name))
    stem = str(pure.with_suffix("")) if pure.suffix.lower() in IMAGE_SUFFIXES else str(pure)
    if stem.isascii() and stem.isdecimal() and len(stem) <= _LONGEST_NUMBER:
        return int(stem)
    number = trailing_number(PurePosixPath(stem).name) if is_coco_name(f"{stem}.jpg") else None
    return stem if number is None else number


def is_coco_name(name: str) -> bool:
    """Whether a file name has its image's id as COCO's have: twelve digits before the extension."""
    return _COCO_NAME.search(name) is not None


def coco_id_of(path: str) -> int | None:
    """COCO's id of a picture by its path: 42 of "COCO_val2014_000000000042.jpg", "val2017/000000000042.jpg".

    Twelve digits alone may be any dataset's own number: the name or the directory must be COCO's.
    """
    match = _COCO_PATH.search(path)
    return int(match.group(1)) if match else None


def listed_coco_id(image: ListedImage) -> int | None:
    """COCO's id of an image that a file lists: given there, in its name, or its id in a file of COCO's."""
    name, number = image.file_name or "", image.coco_id
    number = number or coco_id_of(name)
    of_release = re.search(r"(?:train|val|test|unlabeled)20\d\d", posixpath.basename(image.listed_in))
    if number is None and of_release and is_coco_name(name) and isinstance(image.image_id, int):
        same = trailing_number(PurePosixPath(name).stem) == image.image_id
        number = image.image_id if same else None
    return number


@dataclass(slots=True)
class _Listing:
    """One image, put together from the annotation files that list it under the same id."""

    image: ListedImage
    path: str | None
    splits: list[str] = field(default_factory=list)
    listed_in: set[str] = field(default_factory=set)


class ImageIndex:
    """Finds the key of an image by id or by name.

    An image that annotations list with an id has this id as its key, unless annotation files use the id for
    different images (train and test numbered apart, each from 0): then each has its relative path without
    extension. Any other file has the number at the end of its stem (see `trailing_number`) if no other image
    of the dataset has the same, else its relative path without extension; a file without such a number has
    its stem, if unique, else the relative path.

    Args:
        files: Image files, relative to the dataset directory.
        named: Names of images in files that give no ids, each with the directory that the name is relative
            to and the split it is about.
        problems: Counts ids that two files use for different images, and names of which only the last part is
            that of a file.
        features: Names of images in files of features, which lie elsewhere than the images: as `named`.
    """

    def __init__(
        self,
        files: Iterable[str],
        listed: Iterable[ListedImage],
        named: Iterable[tuple[str, str, str | None]],
        problems: Problems,
        features: Iterable[tuple[str, str, str | None]] = (),
    ) -> None:
        self.files, listed, named = list(files), list(listed), list(named)
        self._problems = problems
        self._directories: dict[str, set[tuple[str, ...]]] = defaultdict(set)  # of names, by their last part
        self._several: dict[str, bool] = {}  # of names, whether pictures of several directories are called so
        # Folded, by directories and name at the end of a path, and by all of it.
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        self._by_whole: dict[str, list[str]] = defaultdict(list)
        self._ending_in: dict[str, list[str]] = {}  # see `_among`
        self._asked: dict[tuple[int, int, str], tuple[list[str], list[str]]] = {}  # see `_of_split`
        self._elsewhere: set[tuple[str, str]] = set()
        for name in (*(image.file_name or "" for image in listed), *(name for name, _, _ in named)):
            *directory, last = _plain(name).split("/")
            if directory and not is_coco_name(last):
                self._directories[last].add(tuple(map(_fold, reversed(directory))))
        self.listed: dict[ImageId, ListedImage] = {}
        self.path_of: dict[ImageId, str] = {}
        self.splits_of: dict[ImageId, list[str]] = {}
        self._key_of_path: dict[str, ImageId] = {}
        self._known = set(self.files)
        self._by_basename: dict[str, list[str]] = defaultdict(list)
        self._by_folded: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        self._listed_by_name: dict[str, ImageId] = {}
        self._listed_by_stem: dict[str, ImageId | None] = {}  # None where several listed images share it
        self._same_name: dict[str, list[ImageId]] = {}  # names that several listed images share
        self._same_id: dict[ImageId, list[ImageId]] = {}  # ids that several listed images share
        self._key_in: dict[tuple[str, ImageId], ImageId] = {}  # their keys, by annotation file and id
        for file in self.files:
            self._add_path(file)
        self._claim_listed(listed)
        missing: dict[str, None] = {}
        for names in (named, features):  # features are of images that annotations name, where there are such
            found = dict.fromkeys(filter(None, [self._missing_path(*image) for image in names]))
            for path in [path for path in found if path not in missing]:
                self._add_path(path)
            missing |= found
        self._name_the_rest([*self.files, *missing])
        self._keys = set(self._key_of_path.values())

    def keys(self) -> list[ImageId]:
        """Keys of all images, those that annotations list first."""
        return list(dict.fromkeys([*self.listed, *self._key_of_path.values()]))

    def key_in(self, file: str, image_id: ImageId) -> ImageId:
        """Key of the image that an annotation file lists under an id."""
        return self._key_in.get((file, image_id), image_id)

    def by_id(
        self, image_id: ImageId, split: str | None, directory: str = ""
    ) -> tuple[ImageId | None, list[str]]:
        """Key of the image that an annotation without image list means.

        Args:
            image_id: As the annotation says; a str may be a file name.
            split: Of the annotation; it decides between images of the same number or name.
            directory: That a file name may be relative to.

        Returns:
            The key; or None and the files it may be, none or several.
        """
        if keys := self._same_id.get(image_id):
            of_split = self._keys_of_split(keys, split)
            return (of_split[0], []) if len(of_split) == 1 else (None, [str(key) for key in keys])
        if image_id in self.listed:
            return image_id, []
        if isinstance(image_id, str):
            if image_id in self._keys:
                return image_id, []
            key = self.by_name(image_id, directory, split)
            if key is not None:
                return key, []
            if re.fullmatch(rf"[0-9]{{1,{_LONGEST_NUMBER}}}", image_id):
                return self.by_id(int(image_id), split)
            return None, self._of_name(_plain(image_id))
        paths = self._by_number.get(image_id, [])
        if len(paths) > 1 and split is not None:
            paths = self._of_split(paths, split) or paths
        first = self._key_of_path[paths[0]] if paths else None
        clear = all(self._key_of_path[path] == first for path in paths)  # ends at the first of another image
        return (first, []) if clear and paths else (None, paths)

    def by_name(self, name: str, directory: str, split: str | None = None) -> ImageId | None:
        """Key of the image that a file name means, which may be relative to `directory`; None if unknown.

        Where several images have the name, it is the one whose directory speaks of the split.
        """
        path = self._find(name, directory, split)
        if path is not None:
            return self._key_of_path[path]
        basename = PurePosixPath(name).name
        if same := self._same_name.get(basename):
            keys = self._keys_of_split(same, split)
            return keys[0] if len(keys) == 1 else None
        return self._listed_key(_plain(name))

    def _listed_key(self, plain: str) -> ImageId | None:
        """Key of the listed image of a name, whether it is on disk or not."""
        last = posixpath.basename(plain)
        key = self._listed_by_name.get(last)
        if key is None and posixpath.splitext(last)[1].lower() not in IMAGE_SUFFIXES:
            key = self._listed_by_stem.get(last)
            plain = last
        if key is None or not self._may_be(plain, _plain(self.listed[key].file_name or "")):
            return None
        return key

    def by_row(self, row: int, split: str | None) -> ImageId | None:
        """Key of the image file whose whole stem is a row's number ("000000012.jpg"); None if there is none.

        Files that annotations list are not numbered by the rows of another file.
        """
        paths = self._of_row(row)
        if split is not None:
            family = split_family(split)
            paths = [path for path in paths if split_family(split_of_path(path) or split) == family]
            paths = self._of_split(paths, split) or paths
        return self._key_of_path[paths[0]] if len(paths) == 1 else None

    @property
    def has_rows(self) -> bool:
        """Whether `by_row` may find a file for any number."""
        return any(map(self._of_row, self._by_number))

    def _of_row(self, row: int) -> list[str]:
        """Files whose whole stem is a number, those that annotations list aside."""
        paths = [path for path in self._by_number.get(row, []) if PurePosixPath(path).stem.isdecimal()]
        return [path for path in paths if self._key_of_path[path] not in self.listed]

    def _keys_of_split(self, keys: list[ImageId], split: str | None) -> list[ImageId]:
        if split is None:
            return keys
        family = split_family(split)
        return [key for key in keys if family in map(split_family, self.splits_of.get(key, ()))]

    def _add_path(self, path: str) -> None:
        pure = PurePosixPath(path)
        self._known.add(path)
        self._ending_in.clear()
        self._by_basename[pure.name].append(path)
        self._by_folded[_fold(pure.name)].append(path)
        self._by_whole[folded := _fold(path)].append(path)
        for tail in _tails(folded):
            self._by_tail[tail].append(path)
        self._by_stem[pure.stem].append(path)
        number = trailing_number(pure.stem)
        if number is not None:
            self._by_number[number].append(path)

    def _claim_listed(self, listed: Iterable[ListedImage]) -> None:
        groups: dict[ImageId, list[_Listing]] = {}
        claimed: set[str] = set()
        for image in listed:
            group = groups.setdefault(image.image_id, [])
            listing = next((each for each in group if self._same_image(each, image)), None)
            if listing is None:
                candidates = self._files_of(image)
                last = None if group else next(iter(candidates), None)
                path = next((path for path in candidates if path not in claimed), last)
                listing = _Listing(image, path)
                group.append(listing)
                if path is not None:
                    claimed.add(path)
                    self._note_elsewhere(_plain(image.file_name or ""), path)
                if len(group) > 1:
                    first = group[0]
                    other = f"{first.path or first.image.file_name} in {first.image.listed_in}"
                    what = f"is {path or image.file_name} here and {other} (kept apart)"
                    self._problems.add(image.listed_in, f"image {image.image_id}", what)
            else:
                known = listing.image
                listing.image = replace(
                    known,
                    file_name=known.file_name or image.file_name,
                    split=known.split or image.split,
                    width=known.width or image.width,
                    height=known.height or image.height,
                    coco_id=known.coco_id or image.coco_id,
                )
            listing.listed_in.add(image.listed_in)
            if image.split is not None and image.split not in listing.splits:
                listing.splits.append(image.split)
        for image_id, group in groups.items():
            for listing in group:
                key: ImageId = image_id
                if len(group) > 1:
                    key = self._key_of_same_id(listing, groups)
                    self._same_id.setdefault(image_id, []).append(key)
                    self._key_in.update({(file, image_id): key for file in listing.listed_in})
                self._claim(key, listing)

    def _claim(self, key: ImageId, listing: _Listing) -> None:
        self.listed[key] = listing.image
        self.splits_of[key] = listing.splits
        if listing.path is not None:
            self.path_of[key] = listing.path
            self._key_of_path.setdefault(listing.path, key)
        if listing.image.file_name:
            name = PurePosixPath(listing.image.file_name).name
            stem = PurePosixPath(name).stem
            self._listed_by_stem[stem] = None if stem in self._listed_by_stem else key
            if self._listed_by_name.setdefault(name, key) != key:
                self._same_name.setdefault(name, [self._listed_by_name[name]]).append(key)

    def _key_of_same_id(self, listing: _Listing, groups: dict[ImageId, list[_Listing]]) -> ImageId:
        """Path without extension; for a file that is not on disk, the one it would have by its split."""
        path = listing.path
        if path is None:
            name = _plain(listing.image.file_name or str(listing.image.image_id))
            directory = listing.image.split or posixpath.dirname(listing.image.listed_in)
            path = posixpath.join("" if split_of_path(name) else directory, name)
        key = str(PurePosixPath(path).with_suffix(""))
        while key in self.listed or key in groups:
            key = f"{listing.image.listed_in}/{key}"
        return key

    def _same_image(self, listing: _Listing, image: ListedImage) -> bool:
        """Whether two annotation files mean the same image by an id: unless names, files or sizes differ."""
        known = listing.image
        directories = {posixpath.dirname(each.listed_in) for each in (known, image)}
        if (known.file_name, known.split) == (image.file_name, image.split) and len(directories) == 1:
            return True
        if _contradict(known, image):
            return False
        if all(is_coco_name(each.file_name or "") for each in (known, image)):
            return True  # COCO's ids mean the same image in every release and split
        sizes = [(each.width, each.height) for each in (known, image)]
        if known.split != image.split and sizes[0] != sizes[1] and None not in sizes[0] + sizes[1]:
            return False
        if listing.path is not None and (candidates := self._files_of(image)):
            return listing.path in candidates
        here, there = (split_of_path(_plain(each.file_name or "")) for each in (known, image))
        return here is None or there is None or split_family(here) == split_family(there)

    def _files_of(self, image: ListedImage) -> list[str]:
        """Files on disk that a listed image may be, by its name, directory, number and split."""
        paths: list[str] = []
        number: int | None = image.image_id if isinstance(image.image_id, int) else None
        if image.file_name:
            name = _plain(image.file_name)
            if (path := self._relative_to(posixpath.dirname(image.listed_in), name)) is not None:
                return [path]
            paths = self._among(self._called(PurePosixPath(name).name), name)
            if not is_coco_name(name) or trailing_number(PurePosixPath(name).stem) != number:
                number = None
        if not paths and number is not None:
            # COCO's releases name one image COCO_val2014_000000000042.jpg and 000000000042.jpg.
            paths = self._by_number.get(number, [])
            paths = list(filter(is_coco_name, paths)) if image.file_name else paths
        if image.split is not None:
            paths = self._of_split(paths, image.split) or paths
        return paths

    def _find(self, name: str, directory: str, split: str | None) -> str | None:
        plain = _plain(name)
        if (path := self._relative_to(directory, plain)) is not None:
            return path
        same = self._of_name(plain)
        if len(same) > 1 and split is not None:
            same = self._of_split(same, split)
        if len(same) != 1:
            return None
        self._note_elsewhere(plain, same[0])
        return same[0]

    def _relative_to(self, directory: str, plain: str) -> str | None:
        """The likeliest path that a name may stand for in a file that lies in the directory."""
        candidates = (posixpath.join(directory, plain), posixpath.join(directory, "images", plain), plain)
        return next((path for path in map(posixpath.normpath, candidates) if path in self._known), None)

    def _of_name(self, plain: str) -> list[str]:
        """Files of a name, in whatever directory; an extension may be left out."""
        pure = PurePosixPath(plain)
        same = self._called(pure.name)
        if not same and pure.suffix.lower() not in IMAGE_SUFFIXES:
            same = self._by_stem.get(pure.name, [])
        return self._among(same, plain)

    def _called(self, last: str) -> list[str]:
        """Files of a name; else those that are called so but for case, blanks around it, or how accents are
        written, which file systems and archives change."""
        return self._by_basename.get(last) or self._by_folded.get(_fold(last), [])

    def _among(self, paths: list[str], plain: str) -> list[str]:
        """Of paths with the last part of a name those that end in all of it; else those that may be it."""
        if "/" not in plain or not paths:
            return paths
        if plain in self._ending_in:
            return self._ending_in[plain]
        tails = _tails(folded := _fold(plain), _MOST_PARTS)
        ends_so = dict.fromkeys(self._by_tail.get(tails[: _PARTS - 1][-1], ()))
        for tail in tails:
            ends_so |= dict.fromkeys(self._by_whole.get(tail, ()))
        whole = [path for path in ends_so if path.endswith("/" + plain) or _ends_in(plain, path)]
        if not whole:
            ends = ((path, _fold(path)) for path in ends_so)
            whole = [path for path, end in ends if f"/{end}".endswith("/" + folded) or _ends_in(folded, end)]
        last = posixpath.basename(plain)
        if len(whole) > _MANY:
            self._ending_in[plain] = whole
        if whole or is_coco_name(last):
            return whole or paths
        return [] if self._is_of_several(last) else [path for path in paths if self._may_be(plain, path)]

    def _of_split(self, paths: list[str], split: str) -> list[str]:
        """The paths whose directories, or else whose name, speak of the split."""
        known = (id(paths), len(paths), split)  # thousands of rows may ask of the same thousands of files
        if known in self._asked:
            return self._asked[known][1]
        family = split_family(split)
        splits = ((path, split_of_path(path) or split_in(PurePosixPath(path).stem)) for path in paths)
        found = [path for path, of in splits if of and split_family(of) == family]
        if len(paths) > _MANY:
            self._asked[known] = (paths, found)
        return found

    def _may_be(self, plain: str, path: str) -> bool:
        """Whether a name may stand for a path with the same last part.

        Not where pictures of several directories are called so, nor from one split to another: unless it is
        COCO's, whose numbers tell all.
        """
        last = posixpath.basename(plain)
        if last == plain or is_coco_name(last) or _ends_in(plain, path) or _ends_in(path, plain):
            return True
        here, there = split_of_path(plain), split_of_path(path)
        crosses = here and there and split_family(here) != split_family(there)
        return not crosses and not self._is_of_several(last)

    def _is_of_several(self, last: str) -> bool:
        """Whether files call several pictures so, in different directories."""
        if last not in self._several:
            longest = sorted(self._directories.get(last, ()), key=len, reverse=True)
            self._several[last] = any(longest[0][: len(each)] != each for each in longest[1:])
        return self._several[last]

    def _note_elsewhere(self, plain: str, path: str) -> None:
        """Say that a picture lies in another directory than its name says."""
        if "/" not in plain:
            return
        named, lies = (posixpath.basename(posixpath.dirname(each)) for each in (plain, path))
        if named in ("", lies) or is_coco_name(plain) or (plain, path) in self._elsewhere:
            return
        self._elsewhere.add((plain, path))
        what = "is not where its name says: the picture of that name here is taken"
        self._problems.add(posixpath.dirname(path) or ".", plain, what)

    def _missing_path(self, name: str, directory: str, split: str | None) -> str | None:
        """Path by which an image that is on no disk and in no list is known; None if it is on one of them."""
        plain = _plain(name)
        last = PurePosixPath(plain).name
        if (
            last in self._same_name
            or self._listed_key(plain) is not None
            or self._find(name, directory, split)
        ):
            return None
        if len(self._of_name(plain)) > 1:
            return None  # on disk, and not clear which
        number = key_of_name(PurePosixPath(plain).name)
        if isinstance(number, int) and _COCO_STEM.fullmatch(PurePosixPath(plain).name):
            # Other programs leave out ".jpg", write "coco_val2014_...", or name the other release's file.
            listed = self.listed.get(number)
            names = [(listed.file_name or "") if listed else "", *self._by_number.get(number, ())]
            if any(_COCO_STEM.fullmatch(PurePosixPath(each).name) for each in names):
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
            key: ImageId = pure.stem if number is None else number
            same = self._by_stem[pure.stem] if number is None else self._by_number[number]
            if len(same) > 1 or (number is not None and (number in self.listed or number in self._same_id)):
                key = str(pure.with_suffix(""))
            if key in taken:  # a.jpg beside a.png
                key = path
            taken.add(key)
            self._key_of_path[path] = key
            if path in on_disk:
                self.path_of[key] = path


def _plain(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _tails(path: str, most: int = _PARTS) -> list[str]:
    """The last two parts of a path, the last three, and so on."""
    parts = path.rsplit("/", most)[-most:]
    return ["/".join(parts[-count:]) for count in range(2, len(parts) + 1)]


def _fold(name: str) -> str:
    if name.isascii():
        return name.strip().lower()
    # What is longer is no name of a file, and to put thousands of accents in order takes long.
    return (unicodedata.normalize("NFC", name) if len(name) <= _LONGEST_NAME else name).strip().casefold()


def _ends_in(longer: str, shorter: str) -> bool:
    """Whether a path is another one with directories before it; a file name alone is the end of any."""
    return "/" in shorter and (longer == shorter or longer.endswith("/" + shorter))


def _contradict(first: ListedImage, second: ListedImage) -> bool:
    one, two = (PurePosixPath(image.file_name or "") for image in (first, second))
    if not first.file_name or not second.file_name or one.name == two.name:
        return False
    number = trailing_number(one.stem)
    return number is None or number != trailing_number(two.stem)
