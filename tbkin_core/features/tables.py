"""Region features that other programs keep many images to a file: TSV tables and HDF5, read image by image.

A line of column names, if the table begins with one, says what is where. Else a row tells the table; arrays
lie in their columns as base64, float32 if not said otherwise:

- Bottom-up attention (Anderson et al. 2018): image_id, image_w, image_h, num_boxes, boxes, features.
  ViLBERT (Lu et al. 2019) adds cls_prob, (K, 1601) probabilities of the background and of 1,600 objects.
- LXMERT (Tan & Bansal 2019): img_id, img_h, img_w, objects_id (int64), objects_conf, attrs_id (int64),
  attrs_conf, num_boxes, boxes, features.
- ROSITA (Cui et al. 2021): filename, features, image_h, image_w, num_boxes, boxes, objects_id, objects_conf,
  attrs_id, attrs_conf, all float32. Its `.lineidx` is not needed: the rows are read in their order.
- VinVL (Zhang et al. 2021), `features.tsv` as its authors publish it: image key and {"num_boxes", "features"}
  as JSON, or image key, num_boxes, features; boxes and scores are in `labels.tsv` or `predictions.tsv` beside
  it, image key and [{"class", "conf", "rect", "attributes", "attr_scores"}, ...] as JSON, names as texts.
  The six numbers of place at the end of each
  vector are left out of the features and tell the image's size.
- VinVL, `predictions.tsv` as its extractor writes it: image key and {"objects": [{"rect", "conf", "feature"},
  ...]} as JSON; the image's size is in `hw.tsv` beside it, [{"height", "width"}], else is where the last box
  ends.

An HDF5 file is as those of BAN and Pythia: `image_features` (N, K, D), `image_bb` (N, K, 4) in pixels, or
both end to end with `pos_boxes` (N, 2); `spatial_features` tell the images' sizes, and `image_ids`, or a file
`*imgid2idx.json` or `.pkl` beside it, their ids.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets.splits import split_in
from tbkin_core.datasets.unpickle import load_plain_pickle
from tbkin_core.errors import DataError
from tbkin_core.features.hdf5 import TAKE_AGAIN, Hdf5Dataset, Hdf5File, open_hdf5
from tbkin_core.features.image_files import LABELS, class_labels, label_values, other_classes
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.names.vocabulary import tidy, visual_genome_names

BOTTOM_UP, LXMERT, ROSITA, VINVL = "bottom-up", "lxmert", "rosita", "vinvl"
MAX_LINE = 32 * 2**20  # bytes; 100 regions of 2048 numbers take 1.1 MB
MAX_SIDE = (1 << 31) - 1  # pixels that an image is wide or high at most
# What a damaged row raises; of another program's JSON also for its depth.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
_MOST_COLUMNS = 32
_MOST_LETTERS = 1000  # of what a file calls an image, or a region
_LINES_LOOKED_AT = 16  # for one that tells the table; the first may be damaged
_COLUMNS = {
    BOTTOM_UP: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    LXMERT: (
        *("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
    ROSITA: (
        *("image_id", "features", "image_h", "image_w", "num_boxes", "boxes"),
        *("objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    ),
}
_OTHER_NAMES = {"img_id": "image_id", "filename": "image_id", "img_h": "image_h", "img_w": "image_w"}
_PROBABILITIES = "cls_prob"


class RowReader(Protocol):
    """Decodes the regions of a row for the key of its image."""

    def __call__(self, image_id: ImageId, vectors: bool = True) -> RegionFeatures:
        """The regions, as `read_feature_file`; a DataError where they are damaged."""


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """One image of a file."""

    name: str  # what the file calls the image
    where: str  # the row, for messages
    read: RowReader


def feature_rows(path: Path) -> Iterator[FeatureRow]:
    """The images of a file, one at a time.

    Raises:
        DataError: The file cannot be read, or is no such table.
        MissingDependencyError: It is HDF5 and h5py is not installed.
    """
    return _hdf5_rows(path) if path.suffix.lower() in {".h5", ".hdf5"} else _table_rows(path)


# ---- tables -------------------------------------------------------------------------------------


def table_format(line: bytes) -> str | None:
    """Which of the tables has such a line; None for another file. The line may be cut off."""
    columns = line.split(b"\t", _MOST_COLUMNS)
    if len(columns) > 1 and re.match(
        rb'[\[{].{0,4000}?"features?"\s*:\s*"[A-Za-z0-9+/]{16}', columns[1][:5000]
    ):
        return VINVL
    if len(columns) == 3 and columns[1].isdigit() and _is_base64(columns[2]):
        return VINVL
    if len(columns) > 4 and all(column.isdigit() for column in columns[1:4]) and _is_base64(columns[4]):
        return BOTTOM_UP
    if len(columns) > 3 and all(column.isdigit() for column in columns[1:3]) and _is_base64(columns[3]):
        return LXMERT
    if len(columns) > 1 and len(columns[1]) > 1000 and _is_base64(columns[1]):
        return ROSITA
    return None


def _is_base64(column: bytes) -> bool:
    start = column[:1000].rstrip()
    return len(start) >= 16 and re.fullmatch(rb"[A-Za-z0-9+/]+=*", start) is not None


def _column_names(line: bytes) -> tuple[str, ...] | None:
    """Names of the columns where a line gives them, as in `_COLUMNS`; None for a row of content."""
    names = [
        name.strip().lower()
        for name in line.decode("utf-8", "replace").strip("\ufeff\r\n").split("\t", _MOST_COLUMNS)
    ]
    known = tuple(_OTHER_NAMES.get(name, name) for name in names)
    return known if set(_COLUMNS[BOTTOM_UP]) <= set(known) else None


def _table_rows(path: Path) -> Iterator[FeatureRow]:
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_LINE)
            names = _column_names(first)
            begin = file.tell() if names else 0
            lines = chain([first], iter(partial(file.readline, MAX_LINE), b""))
            kinds = map(table_format, islice(lines, _LINES_LOOKED_AT))
            kind = BOTTOM_UP if names else next(filter(None, kinds), None)
            if kind is None:
                raise DataError(
                    f"{path}: none of its first lines is a row of region features",
                    hint="expected the TSV of bottom-up attention, LXMERT, ROSITA or VinVL",
                )
            file.seek(begin)
            if kind == VINVL:
                with _VinvlLabels(path) as labels:
                    yield from _rows_of(file, path, 0, labels.decode)
            else:
                decode = partial(_decode, names=names or _COLUMNS[kind])
                yield from _rows_of(file, path, 1 if names else 0, decode)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or path}: cannot be read ({reason})", hint=TAKE_AGAIN) from error


def _rows_of(
    file: IO[bytes], path: Path, number: int, decode: Callable[[list[bytes], ImageId, bool], RegionFeatures]
) -> Iterator[FeatureRow]:
    while line := file.readline(MAX_LINE):
        number += 1
        columns = line.rstrip(b"\r\n").split(b"\t", _MOST_COLUMNS)
        name = columns[0][: 4 * _MOST_LETTERS].decode("utf-8", "replace").strip()[:_MOST_LETTERS]
        where = f"{path}: line {number} (image {name[:80]!r})"

        def read(
            image_id: ImageId, vectors: bool = True, columns: list[bytes] = columns, where: str = where
        ) -> RegionFeatures:
            try:
                if len(columns[0]) > 4 * _MOST_LETTERS:
                    raise ValueError(f"its image's name has more than {_MOST_LETTERS} letters")
                with np.errstate(all="ignore"):
                    return decode(columns, image_id, vectors)
            except DAMAGED as error:
                raise DataError(
                    f"{where}: is cut short or damaged ({error})", hint="the other rows are kept"
                ) from error

        if name:
            yield FeatureRow(name, where, read)


def _numbers(column: bytes | str, dtype: type = np.float32) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(column, validate=True), dtype)


def _zeros(column: bytes) -> NDArray[Any]:
    """What `_numbers` has of float32, zeros in their place: nothing is decoded."""
    whole = column.strip()
    count = (len(whole) // 4 * 3 - whole[-2:].count(b"=")) // 4
    return np.broadcast_to(np.float32(0), count)


def _decode(columns: list[bytes], image_id: ImageId, vectors: bool, names: tuple[str, ...]) -> RegionFeatures:
    if len(columns) == len(names) + 1 and names == _COLUMNS[BOTTOM_UP]:
        names = (*names, _PROBABILITIES)
    if len(columns) != len(names):
        raise ValueError(f"{len(columns)} columns, expected {len(names)}")
    row = dict(zip(names, columns, strict=True))
    width, height, count = (int(float(row[name])) for name in ("image_w", "image_h", "num_boxes"))
    labels: dict[str, Any] = {}
    for name, column in LABELS.items():
        if column in row:
            raw = base64.b64decode(row[column], validate=True)
            wide = name.endswith("_ids") and len(raw) == 8 * count
            labels[name] = label_values(name, np.frombuffer(raw, np.int64 if wide else np.float32))
            if len(labels[name]) != count:
                raise ValueError(f"{len(labels[name])} {name} for {count} boxes")
    if row.get(_PROBABILITIES):
        chances = _numbers(row[_PROBABILITIES]).reshape(count, -1)
        own: dict[str, Any] = {**class_labels(chances)}
        labels |= own or {"notes": (other_classes(chances.shape[1]),)}
    features = _numbers(row["features"]) if vectors else _zeros(row["features"])
    return _regions(image_id, features, _numbers(row["boxes"]), count, (width, height), labels)


def _regions(
    image_id: ImageId,
    features: NDArray,
    boxes: NDArray,
    count: int,
    size: tuple[int, int],
    labels: dict[str, Any],
) -> RegionFeatures:
    if count < 1 or boxes.size != 4 * count or not features.size or features.size % count:
        raise ValueError(f"{boxes.size} numbers of boxes and {features.size} of features for {count} boxes")
    if any(size) and not all(1 <= side <= MAX_SIDE for side in size):
        raise ValueError(f"image size {size[0]:g}x{size[1]:g}")
    vectors, corners = features.reshape(count, -1), boxes.reshape(count, -1).astype(np.float32)
    return RegionFeatures(image_id, vectors, corners, *size, **labels)


class _VinvlLabels:
    """Rows of VinVL's tables, with what the tables beside them say of an image; those are read by key."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, IO[bytes]] = {}
        self._starts: dict[str, dict[bytes, int]] = {}
        for what, words in (("labels", ("labels", "label", "predictions")), ("hw", ("hw",))):
            names = [re.sub("features?|predictions?", word, path.name) for word in words]
            names += [f"{word}.tsv" for word in words]
            beside = next((path.parent / name for name in names if (path.parent / name).is_file()), path)
            if beside != path:
                self._files[what] = beside.open("rb")

    def __enter__(self) -> _VinvlLabels:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def _beside(self, what: str, key: bytes) -> Any:
        """The JSON of an image in a table beside; None without."""
        if what not in self._files:
            return None
        file = self._files[what]
        if what not in self._starts:
            self._starts[what], begin = {}, 0
            while line := file.readline(MAX_LINE):
                self._starts[what].setdefault(line.partition(b"\t")[0].strip(), begin)
                begin += len(line)
        if key not in self._starts[what]:
            return None
        file.seek(self._starts[what][key])
        try:
            return json.loads(file.readline(MAX_LINE).partition(b"\t")[2])
        except DAMAGED as error:
            raise ValueError(f"its row in {Path(file.name).name}: {error}") from error

    def decode(self, columns: list[bytes], image_id: ImageId, vectors: bool) -> RegionFeatures:
        """One row, always with its vectors; ValueError and its like where it is damaged."""
        key = columns[0].strip()
        content = json.loads(columns[1]) if columns[1].lstrip()[:1] in (b"{", b"[") else None
        objects: Any = content.get("objects") if isinstance(content, dict) else content
        if objects is not None:
            features = np.stack([_numbers(item["feature"]) for item in objects])
        else:
            text, number = (
                (columns[2], columns[1]) if content is None else (content["features"], content["num_boxes"])
            )
            features = _numbers(text).reshape(int(number), -1)
        if objects is None or "rect" not in objects[0]:
            objects = self._beside("labels", key)
            if isinstance(objects, dict):
                objects = objects["objects"]
            if objects is None:
                read = Path(self._files["labels"].name).name if "labels" in self._files else "none is there"
                raise ValueError(
                    f"its boxes are in no labels.tsv or predictions.tsv beside the file ({read})"
                )
        boxes = np.array([item["rect"] for item in objects], np.float32).reshape(-1, 4)
        if len(boxes) != len(features):
            beside = Path(self._files["labels"].name).name if "labels" in self._files else "its row"
            raise ValueError(f"{len(features)} feature vectors, and {len(boxes)} boxes in {beside}")
        features, spatial = _without_place(features)
        sizes = self._beside("hw", key)
        size = (int(sizes[0]["width"]), int(sizes[0]["height"])) if sizes else _size_of(boxes, spatial)
        labels = {**_named_labels(objects), "size_guessed": not sizes and spatial is None}
        return _regions(image_id, features, boxes, len(features), size, labels)


def _named_labels(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Labels, as `RegionFeatures` has them, of the classes and attributes that VinVL gives as texts."""
    labels: dict[str, Any] = {}
    scores = [item.get("conf") for item in objects]
    if None not in scores:
        labels["object_scores"] = np.array(scores, np.float32)
    classes = [item.get("class") for item in objects]
    if any(classes):
        usable = (name if isinstance(name, str) and len(name) <= _MOST_LETTERS else "" for name in classes)
        texts = [tidy(name) if name else "" for name in usable]
        ids = [_number("objects", text) for text in texts]
        labels["object_ids"] = np.array(ids, np.int32)
        if any(text and number < 0 for text, number in zip(texts, ids, strict=True)):
            beyond = (text if number < 0 else "" for text, number in zip(texts, ids, strict=True))
            labels["object_texts"] = tuple(beyond)
    if any(item.get("attributes") for item in objects):
        best = [_best_attribute(item) for item in objects]
        labels["attribute_ids"] = np.array([number for number, _ in best], np.int32)
        labels["attribute_scores"] = np.array([score for _, score in best], np.float32)
    return labels


def _best_attribute(item: dict[str, Any]) -> tuple[int, float]:
    """Number and score of the surest attribute that the vocabulary has: a region has room for one."""
    names = item.get("attributes") or []
    scores = item.get("attr_scores") or [1.0] * len(names)
    known = [
        (float(score), number)
        for name, score in zip(names, scores, strict=True)
        if isinstance(name, str) and (number := _number("attributes", tidy(name))) >= 0
    ]
    score, number = max(known, key=lambda pair: pair[0], default=(0.0, -1))
    return number, score


@functools.lru_cache(maxsize=1 << 16)
def _number(kind: str, name: str) -> int:
    return visual_genome_names(kind).number(name)


def _without_place(features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Vectors without the fractions x1, y1, x2, y2, width, height at their end, and those."""
    if features.shape[1] <= 6:
        return features, None
    place = features[:, -6:]
    sides = place[:, 2:4] - place[:, :2]
    swapped = place[:, [5, 4]]
    same = any(np.allclose(sides, found, atol=2e-3) for found in (place[:, 4:], swapped))
    if not same or place.min() < -1e-3 or place.max() > 1.01 or not sides.any():
        return features, None
    return features[:, :-6], place


# ---- HDF5 ---------------------------------------------------------------------------------------


def _hdf5_rows(path: Path) -> Iterator[FeatureRow]:
    with open_hdf5(path) as file:
        if missing := {"image_features", "image_bb"} - file.names:
            found = ", ".join(sorted(file.names)[:20])[:300]
            raise DataError(
                f"{path}: lacks {', '.join(sorted(missing))}; found {found}",
                hint="expected image_features and image_bb, as in the files of BAN and Pythia",
            )
        features, boxes = file["image_features"], file["image_bb"]
        spatial, ranges = None, None
        if "spatial_features" in file:
            spatial = file["spatial_features"]
        if len(features.shape) == 2:
            if "pos_boxes" not in file:
                raise DataError(f"{path}: features end to end need pos_boxes (N, 2)", hint=TAKE_AGAIN)
            positions = file["pos_boxes"]
            ranges = positions.numbers(slice(0, positions.shape[0]), positions.shape)
        sides = (2, 2, 2) if ranges is not None else (3, 3, 3)
        arrays = [features, boxes, *([spatial] if spatial else [])]
        shapes = ", ".join(str(array.shape) for array in arrays)
        if tuple(len(array.shape) for array in arrays) != sides[: len(arrays)] or boxes.shape[-1] != 4:
            expected = "image_features (N, K, D) and image_bb (N, K, 4)"
            raise DataError(f"{path}: expected {expected}, got {shapes}", hint=TAKE_AGAIN)
        if len({array.shape[0] for array in arrays}) > 1:
            raise DataError(f"{path}: its arrays are of different lengths: {shapes}", hint=TAKE_AGAIN)
        if ranges is not None and (ranges.dtype.kind not in "iu" or ranges.shape[1:] != (2,)):
            got = ranges.shape
            raise DataError(f"{path}: expected whole numbers pos_boxes (N, 2), got {got}", hint=TAKE_AGAIN)
        for array in arrays:
            array.check(array.shape[1:])
        count = features.shape[0] if ranges is None else len(ranges)
        if count > file.most_images:
            raise DataError(f"{path}: declares {count:,} images, for which it is too small", hint=TAKE_AGAIN)
        reader = partial(_hdf5_regions, path, features, boxes, spatial)
        for row, name in enumerate(_hdf5_names(path, file, count)):
            place: Any = row if ranges is None else slice(*map(int, ranges[row]))
            where = f"{path}: row {row} (image {name[:80]!r})"
            yield FeatureRow(name, where, partial(reader, place, where))


def _hdf5_regions(
    path: Path,
    features: Hdf5Dataset,
    boxes: Hdf5Dataset,
    spatial: Hdf5Dataset | None,
    place: Any,
    where: str,
    image_id: ImageId,
    vectors: bool = True,
) -> RegionFeatures:
    """The regions of the row, or of the rows end to end, at a place."""

    def part(dataset: Hdf5Dataset) -> NDArray[Any]:
        shape = dataset.shape[1:]
        if isinstance(place, slice):
            if not 0 <= place.start < place.stop <= dataset.shape[0]:
                raise ValueError(f"pos_boxes has {place.start} to {place.stop} of {dataset.shape[0]} rows")
            shape = (place.stop - place.start, *shape)
        return dataset.numbers(place, shape)

    try:
        with np.errstate(all="ignore"):
            own = part(boxes).astype(np.float32)
            shape = features.shape[1:] if isinstance(place, int) else (len(own), features.shape[1])
            rows = part(features).astype(np.float32) if vectors else np.broadcast_to(np.float32(0), shape)
            if not len(own) or len(own) != len(rows):
                raise ValueError(f"{len(own)} boxes and {len(rows)} feature vectors")
            size = _size_of(own, None if spatial is None else part(spatial))
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:300].removeprefix(f"{path}: ")
        raise DataError(f"{where}: is damaged ({reason})", hint="the other rows are kept") from error
    return RegionFeatures(image_id, rows, own, *size, size_guessed=spatial is None)


def _hdf5_names(path: Path, file: Hdf5File, count: int) -> list[str]:
    for key in ("image_ids", "image_id", "ids"):
        if key in file and file[key].shape == (count,):
            return file[key].texts()
    found = sorted(path.parent.glob("*imgid2idx*"))
    # Train's and val's may be of one length: where names say whose a table is, another's is none.
    if split := _split_of(path):
        found = [file for file in found if _split_of(file) in (None, split)]
    fitting: dict[str, list[str]] = {}
    damaged: DataError | None = None
    for table in found:
        try:
            names = _row_names(table, count)
        except DataError as error:
            damaged = damaged or error
        else:
            fitting |= {table.name: names} if names is not None else {}
    own = {name: names for name, names in fitting.items() if name.startswith(f"{path.stem}_")} or fitting
    if len(set(map(tuple, own.values()))) > 1:
        raise DataError(
            f"{path}: {len(own)} tables beside it have as many rows: {', '.join(own)}",
            hint=f"name the right one {path.stem}_imgid2idx.json",
        )
    for names in own.values():
        return names
    raise damaged or DataError(
        f"{path}: nothing says which row is which image"
        + (f" ({', '.join(file.name for file in found[:3])} does not fit)" if found else ""),
        hint="expected a dataset image_ids in it, or a file imgid2idx.json beside it: image id to row",
    )


def _split_of(file: Path) -> str | None:
    return split_in(re.sub(r"\d+", "", file.name))  # "train36"


def _row_names(file: Path, count: int) -> list[str] | None:
    """Names of the rows by a table of image id to row, JSON or plain pickle; None of another length."""
    if not file.is_file():
        return None
    try:
        if file.suffix.lower() in (".pkl", ".pickle", ".p"):
            table = load_plain_pickle(file)
        elif file.suffix.lower() == ".json":
            table = json.loads(file.read_text(encoding="utf-8"))
        else:
            return None
        if not isinstance(table, dict):
            raise ValueError("is no table")
        names = {int(place): str(name) for name, place in table.items()}
    except DAMAGED as error:
        raise DataError(f"{file}: is no table of image id to row ({error})", hint=TAKE_AGAIN) from error
    return [names[place] for place in range(count)] if set(names) == set(range(count)) else None


def _size_of(boxes: NDArray[np.float32], spatial: NDArray | None) -> tuple[int, int]:
    """Width and height of an image, from boxes in pixels and as fractions; else where the last box ends.

    0 where both are fractions.
    """
    ends = boxes[:, 2:].max(axis=0)
    if spatial is not None and spatial.ndim == 2 and spatial.shape[1] >= 4:
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = boxes[:, 2:] / spatial[:, 2:4]
        known = np.isfinite(sizes).all(axis=1)
        if known.any():
            ends = np.maximum(ends, np.median(sizes[known], axis=0))
    size = max(round(float(ends[0])), 1), max(round(float(ends[1])), 1)
    return (0, 0) if size == (1, 1) else size
