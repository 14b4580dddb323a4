"""Import of region features that other programs extracted: files of one image each, TSV tables, HDF5."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets import Dataset
from tbkin_core.datasets.records import ImageRecord
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.box_forms import SAMPLE, BoxForm, box_form
from tbkin_core.features.extractors.base import FeatureReader, Request
from tbkin_core.features.image_files import LABELS, UNNAMED, read_feature_file
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.tables import MAX_SIDE, FeatureRow, feature_rows
from tbkin_core.names.vocabulary import visual_genome_names

_NAMES = {"object_ids": "objects", "attribute_ids": "attributes"}  # of bottom-up attention, in their order
# Share and number of regions numbered 0: the first name, "yolk", is nowhere near as common.
_BACKGROUND_SHARE, _BACKGROUND_REGIONS = 0.05, 10
_DAMAGED_SHARE = 0.001  # of numbers that are too large; more are of another list
_MANY_REGIONS, _SHORT_LIST = 1000, 100  # so many have no higher number where all 1,600 may be
_BEYOND = "some of their numbers are beyond the {} {} of bottom-up attention: those regions have no such name"
_UNSURE = "some of their confidences are no numbers from 0 to 1: these are taken for 0, not known"
_LARGE = "some of their features are beyond half precision: they are cut to ±65,504"
_MAX_WIDTH = 1 << 16  # numbers of a vector; a model has a thousand times as many weights for them
_ROUNDING = 1e-3  # by which a confidence may leave 0 to 1
_LATE = "their {} are numbered, while those of the first images are not: these have no names"


def open_extractor(request: Request) -> FeatureReader:
    """The feature files of the request's dataset."""
    return ImportedFeatures(request.needed_dataset(), request.max_regions)


@dataclass
class _Survey:
    """What the first images of a table, or of the files of a directory, show of all of them."""

    name: str  # for messages
    form: BoxForm = field(default_factory=BoxForm)
    feature_sizes: Counter[int] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)  # fields whose numbers have names
    unnamed: dict[str, str] = field(default_factory=dict)  # fields whose numbers have none, with the reason
    background: bool = False  # whether numbers count the background as 0
    refused: str = ""  # why nothing of it is imported

    def notes(self) -> Iterator[str]:
        """What it changes."""
        if self.refused:
            yield f"{self.refused} (none of {self.name} is imported)"
        if self.form != BoxForm():
            yield f"{self.name}: boxes are given as {self.form}: taken to x1, y1, x2, y2 in pixels"
        if self.background:
            yield f"{self.name}: objects are numbered from 1, the background is 0: it names no region"
        for name, why in self.unnamed.items():
            yield f"{self.name}: {_NAMES[name]} have no names: {why}"

    def learn_numbers(self, name: str, numbers: NDArray[np.int32]) -> None:
        """Find out what the numbers (M,) of a field stand for; objects before attributes."""
        count = len(visual_genome_names(_NAMES[name]).names)
        numbers = numbers[numbers < UNNAMED]  # what is damaged tells nothing
        if name == "object_ids":  # attributes are counted alike, but the first of them is common
            zeros = int((numbers == 0).sum())
            common = zeros > 0 and zeros >= _BACKGROUND_SHARE * len(numbers)
            self.background = common and zeros >= _BACKGROUND_REGIONS
            if common and not self.background:
                self.unnamed[name] = "it cannot be told whether 0 is the background or the first name"
        elif "object_ids" in self.unnamed:
            self.unnamed[name] = "what the numbers of the objects stand for is not known"
        few = name == "object_ids" and len(numbers) >= _MANY_REGIONS and numbers.max() < _SHORT_LIST
        if few and name not in self.unnamed:
            self.unnamed[name] = (
                f"none is above {numbers.max()}, so they are of a shorter list, such as COCO's"
            )
        beyond = int((numbers >= count + self.background).sum())
        if beyond and beyond >= _DAMAGED_SHARE * len(numbers):
            self.unnamed[name] = f"their numbers go beyond the {count} of bottom-up attention"
        self.named |= {name} - self.unnamed.keys()

    def numbered(self, name: str, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Numbers (K,) of the field, counted from 0 without a background; -1 where unknown."""
        if name in self.unnamed:
            return np.full_like(numbers, -1)
        return np.maximum(numbers - self.background, -1)


class ImportedFeatures(FeatureReader):
    """The features in the files of a dataset; the first file and row of an image counts.

    Args:
        dataset: Opened dataset.
        max_regions: Of more regions those of the highest confidence are taken; without any, the first.

    Raises:
        ConfigError: The dataset has no such files.
        DataError: None of the first rows can be read, or it cannot be told what their boxes are.
    """

    def __init__(self, dataset: Dataset, max_regions: int) -> None:
        self._dataset = dataset
        self._max_regions = max_regions
        self._error: DataError | None = None
        files = dataset.bottom_up_files()
        directories: dict[Path, list[FeatureRow]] = {}
        for path in files.values():
            rows = directories.setdefault(path.parent, [])
            if len(rows) < SAMPLE:
                rows.append(FeatureRow(path.stem, str(path), partial(read_feature_file, path)))
        self._directories = {path: self._surveyed(str(path), rows) for path, rows in directories.items()}
        self._tables = {
            path: self._surveyed(str(path), feature_rows(path)) for path in dataset.feature_tables()
        }
        surveys = [*self._directories.values(), *self._tables.values()]
        first = next((survey for survey in surveys if survey.feature_sizes), None)
        if first is None:
            raise self._error or ConfigError(
                f"{dataset.path}: no features to import (.npz, pairs of .npy, TSV or HDF5"
                f" files){dataset.unread()}",
                hint="use --extractor builtin",
            )
        file_format = (
            "bottom-up-attention table" if first in self._tables.values() else "bottom-up-attention npz"
        )
        if file_format.endswith("npz") and next(iter(files.values())).suffix == ".npy":
            file_format = "mmf npy"
        named = set[str]().union(*(survey.named for survey in surveys))
        self._names = {
            name: visual_genome_names(kind).names for name, kind in _NAMES.items() if name in named
        }
        forms = sorted({str(survey.form) for survey in surveys if survey.form != BoxForm()})
        self._settings = {
            "extractor": "import",
            "format": file_format,
            "feature_size": first.feature_sizes.most_common(1)[0][0],
            "max_regions": max_regions,
            "object_names": list(self._names.get("object_ids", ())),
            "attribute_names": list(self._names.get("attribute_ids", ())),
            # Where they are not the usual ones, so that later images are not read another way.
            **({"boxes": forms} if forms else {}),
            **({"background": 0} if any(survey.background for survey in surveys) else {}),
        }

    def settings(self) -> dict[str, Any]:
        return self._settings

    def _surveyed(self, name: str, rows: Iterable[FeatureRow]) -> _Survey:
        survey = _Survey(name)
        boxes, sizes, wheres = [], list[tuple[int, int]](), []
        numbers: dict[str, list[NDArray]] = {name: [] for name in _NAMES}
        try:
            for row in islice(rows, SAMPLE):
                try:
                    found = row.read("", vectors=False)
                    if found.features.shape[1] > _MAX_WIDTH:
                        raise DataError(f"{row.where}: has vectors of more than {_MAX_WIDTH:,} numbers")
                except DataError as error:
                    self._error = self._error or error
                    continue
                survey.feature_sizes[found.features.shape[1]] += 1
                size = (0, 0) if found.size_guessed else (found.image_width, found.image_height)
                if min(size) < 1 and (found.boxes[:, 2:] < found.boxes[:, :2]).any():
                    size = self._true_size(self._dataset.key_of(row.name))
                boxes.append(found.boxes)
                sizes.append(size)
                wheres.append(row.where)
                real = found.boxes.any(axis=1)  # of padded files some pad the numbers too
                for field_name, values in numbers.items():
                    values += [own[real]] if len(own := getattr(found, field_name)) else []
        except DataError as error:  # the table as a whole, which `rows` says again
            self._error = self._error or error
            return survey
        try:
            survey.form = box_form(boxes, sizes, wheres)
        except DataError as error:
            self._error, survey.refused = self._error or error, error.message
            survey.feature_sizes.clear()
        for field_name, values in numbers.items():
            found_numbers = np.concatenate([np.zeros(0, np.int32), *values])
            if len(found_numbers):
                survey.learn_numbers(field_name, found_numbers)
        return survey

    def rows(self) -> Iterator[tuple[ImageId, Callable[[ImageId], RegionFeatures]] | str]:
        seen: set[ImageId] = set()
        for image_id, path in self._dataset.bottom_up_files().items():
            if self._directories[path.parent].refused:
                continue
            seen.add(image_id)
            row = FeatureRow(path.stem, str(path), partial(read_feature_file, path))
            yield image_id, partial(self._read, row, self._directories[path.parent])
        for path, survey in self._tables.items():
            if survey.refused:
                continue
            own: set[ImageId] = set()
            try:
                for row in feature_rows(path):
                    key = self._dataset.key_of(row.name)
                    if key in own:
                        yield f"{row.where}: is a second row of its image (skipped)"
                    elif key not in seen:
                        yield key, partial(self._read, row, survey)
                    own.add(key)
                    seen.add(key)
            except DataError as error:
                yield f"{error.message} (the rest of the file is skipped)"
        for survey in (*self._directories.values(), *self._tables.values()):
            yield from survey.notes()

    @cached_property
    def _records(self) -> dict[ImageId, ImageRecord]:
        try:
            return {record.image_id: record for record in self._dataset.images()}
        except DataError:
            return {}  # some other file of the dataset is damaged, which is not asked for here

    def _true_size(self, image_id: ImageId) -> tuple[int, int]:
        """Width and height of an image as annotations or its picture tell them; 0 where neither does."""
        record = self._records.get(image_id)
        if record is None:
            return 0, 0
        width, height = record.width, record.height
        if (width is None or height is None) and record.path is not None:
            with contextlib.suppress(DataError):
                _, width, height = load_image(record.path, max_side=32)
        return width or 0, height or 0

    def _read(self, row: FeatureRow, survey: _Survey, image_id: ImageId) -> RegionFeatures:
        """A row's regions as the store has them; a DataError that names the row where it cannot be used."""
        found = row.read(image_id)
        try:
            kept = self._kept(self._in_pixels(found, survey))
            return replace(kept, notes=tuple(f"{note} ({survey.name})" for note in kept.notes))
        except DataError as error:
            raise DataError(f"{row.where}: {error.message}") from error

    def _in_pixels(self, found: RegionFeatures, survey: _Survey) -> RegionFeatures:
        """Regions in pixels; where their file does not tell the image's size, others do."""
        size = found.image_width, found.image_height
        if found.size_guessed and survey.form != BoxForm():
            size = 0, 0  # the guess took the boxes for corners in pixels
        if found.size_guessed or min(size) < 1:
            true = self._true_size(found.image_id)
            # What the boxes exceed is another picture, or one that was scaled down since.
            if all(told and told >= guess - 1 for told, guess in zip(true, size, strict=True)):
                size, found = true, replace(found, size_guessed=False)
        boxes = survey.form.pixels(found.boxes, size)
        if min(size) < 1:
            raise DataError("nothing tells the image's width and height")
        if max(size) > MAX_SIDE:
            raise DataError(f"the image is said to be {size[0]:g} x {size[1]:g} pixels large")
        numbers: dict[str, Any] = {
            name: survey.numbered(name, values) for name in _NAMES if len(values := getattr(found, name))
        }
        if boxes is found.boxes and size == (found.image_width, found.image_height) and not numbers:
            return found
        return replace(found, boxes=boxes, image_width=size[0], image_height=size[1], **numbers)

    def regions(self, image_id: ImageId, source: Callable[[ImageId], RegionFeatures]) -> RegionFeatures:
        return source(image_id)

    def _kept(self, found: RegionFeatures) -> RegionFeatures:
        """The regions that lie in the image, the surest if there are too many, and what is usable of them."""
        size = np.array([found.image_width, found.image_height] * 2, np.float32)
        boxes = np.clip(np.asarray(found.boxes, np.float32), 0, size)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        if not len(kept):
            raise DataError(f"none of its boxes lies within its {size[0]:g} x {size[1]:g} pixels")
        if (width := found.features.shape[1]) != self._settings["feature_size"]:
            raise DataError(f"its vectors have {width} numbers, most others {self._settings['feature_size']}")
        notes = list(found.notes)
        if len(kept) < len(boxes):
            notes.append("some of their boxes have no area within the image: those regions are left out")
        labels = {name: values for name in LABELS if len(values := getattr(found, name))}
        for name in labels.keys() & {"object_scores", "attribute_scores"}:
            scores = np.nan_to_num(labels[name], nan=-1, posinf=-1, neginf=-1)
            unsure = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
            notes += [_UNSURE] if unsure.any() and _UNSURE not in notes else []
            labels[name] = np.clip(np.where(unsure, 0, scores), 0, 1)
        left_out = max(len(kept) - self._max_regions, 0)
        if left_out and "object_scores" in labels:
            # The order of rows means nothing in such files; the surest first, so that a later cut keeps them.
            kept = kept[np.argsort(-labels["object_scores"][kept], kind="stable")]
        kept = kept[: self._max_regions]
        features = found.features[kept]
        largest = np.abs(features).max()
        if not np.isfinite(largest):
            raise DataError("its features are not finite numbers")
        if largest > np.finfo(np.float16).max:
            notes.append(_LARGE)
        given = {name: values[kept] for name, values in labels.items()}
        for name, kind in _NAMES.items():
            names = self._names.get(name, ())
            if name in given and (beyond := given[name] >= len(names)).any():
                given[name] = np.where(beyond, -1, given[name])
                notes.append(_BEYOND.format(len(names), kind) if names else _LATE.format(kind))
        return replace(
            found,
            features=features,
            boxes=boxes[kept],
            left_out=left_out,
            object_texts=tuple(found.object_texts[row] for row in kept) if found.object_texts else (),
            notes=tuple(notes),
            **given,
        )
