"""A dataset directory as plain records, whoever published it.

dataset = open_dataset("coco")
dataset.captions("val")[0]   # Caption(text_id=441, image_id=331352, text="A small closed toilet ...", ...)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from tbkin_core.datasets import records
from tbkin_core.datasets.annotation_files import AnnotationFiles, format_of, set_of, version_of
from tbkin_core.datasets.formats.base import Holds
from tbkin_core.datasets.formats.made import EXPRESSION_SET
from tbkin_core.datasets.image_index import coco_id_of, key_of_name, listed_coco_id
from tbkin_core.datasets.question_sets import QuestionSets
from tbkin_core.datasets.reading import AnnotationFile, as_box
from tbkin_core.datasets.records import BoxRow, ImageId, RefRow, Target
from tbkin_core.datasets.splits import normalise_split, split_of_path
from tbkin_core.errors import DataError

_EXPRESSION_SETS = ("refcoco", "refcoco+", "refcocog")
_KeyedBox = tuple[AnnotationFile, ImageId, BoxRow]


def open_dataset(path: str | Path) -> Dataset:
    """Find what is in a dataset directory; annotation files are parsed when first needed.

    Args:
        path: Directory in its publisher's own layout; searched 4 levels deep.

    Raises:
        DataError: No such directory, an empty one, a file, or nothing that is recognised in it.
    """
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise DataError(f"{path}: no such directory", hint="give the directory of a dataset, such as coco/")
    if not root.is_dir():
        raise DataError(f"{path}: a file, not a dataset directory", hint=f"give its directory: {root.parent}")
    return Dataset(root, Path(path))


class Dataset:
    """The records of a dataset directory. Use `open_dataset`.

    Every method takes the split by any of its names ("val", "val2017"), None for all, and returns an empty
    collection where the dataset has no such records. All records of an image carry the same `image_id`.

    Attributes:
        root: The directory, as an absolute path.
        path: The directory as it was named, for messages.
        layouts: What was found, in the words and order of `tbkin_core.datasets.formats.FORMATS`:
            "coco-captions", "vqa", ...; "images" last, for image files on disk.
        passed_over: Files that are known and not read, and what they are, one line each.

    Raises:
        DataError: From any method: a file that is needed is malformed as a whole (file, line, column), or
            there is no image or set of expressions of the name that is asked for.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path = root, path
        self._first_phrase = 0  # number of the first caption that is of a part of an image
        self._files = AnnotationFiles(root)
        self.layouts: tuple[str, ...] = self._files.layouts
        self.passed_over: list[str] = self._files.passed_over
        self._questions = QuestionSets(self._files)
        self._expressions: dict[str, list[records.Expression]] = {}

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r}, layouts={self.layouts})"

    @property
    def problems(self) -> list[str]:
        """What was skipped or repaired so far, counted by file and kind; grows as files are read."""
        return self._files.problems.lines()

    def unread(self) -> str:
        """For messages: what is passed over, of no format that is read, wrong, or read; "" for nothing."""
        found = [f"{name} ({', '.join(keys) or 'binary'})" for name, keys in self._files.unread.items()]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        unread = [f"of no format known here: {'; '.join(found[:3])}{more}"] if found else []
        names = self._files.names
        some = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
        read = [f"read: {some}"] if names else []
        return "".join(f"; {line}" for line in (*self.passed_over, *unread, *self.problems[:3], *read))

    # --- images --------------------------------------------------------------------------------------

    def images(self, split: str | None = None) -> list[records.ImageRecord]:
        """All images, on disk or only named by annotations.

        An image that is listed in several splits counts as held out: it is in "train" only if in no other.
        """
        images = list(self._records.values())
        if split is None:
            return images
        split, splits = normalise_split(split), self._image_splits
        return [
            image
            for image in images
            if image.split == split or (split != "train" and split in splits[image.image_id])
        ]

    def image(self, image_id: ImageId) -> records.ImageRecord:
        """The image of a key, or of a file name."""
        key = image_id if image_id in self._records else self._files.index.by_id(image_id, None)[0]
        record = None if key is None else self._records.get(key)
        if record is None:
            example = next(iter(self._records), None)
            raise DataError(
                f"{self.path}: no image {image_id!r} among {len(self._records)}",
                hint=f"ids look like {example!r}" if example is not None else "the dataset has no images",
            )
        return record

    def bottom_up_files(self) -> dict[ImageId, Path]:
        """Image key to the npz file with its region features, or to the npy file of MMF's two."""
        files: dict[ImageId, Path] = {}
        for file, (key, _) in self._files.feature_images.items():
            if key in files:
                what = "is a second file of its image (skipped)"
                self._files.problems.add(str(PurePosixPath(file.name).parent), file.path.name, what)
            else:
                files[key] = file.path
        return files

    def feature_tables(self) -> list[Path]:
        """TSV and HDF5 files of region features, see `tbkin_core.features.tables`; what looks like one and is
        not read becomes a problem.
        """
        for file in self._files.holding(Holds.UNREAD_FEATURES):
            self._files.read(file)
        return [file.path for file in self._files.holding(Holds.FEATURE_TABLES)]

    def key_of(self, name: str) -> ImageId:
        """Key of the image that another program's file calls so: a file name, its stem, or an id."""
        key = self._files.index.by_name(name, "")
        if key is None:
            key, _ = self._files.index.by_id(int(name) if name.isdecimal() and len(name) < 19 else name, None)
        return key_of_name(name) if key is None else key

    # --- texts ---------------------------------------------------------------------------------------

    def captions(self, split: str | None = None, whole: bool = False) -> list[records.Caption]:
        """Captions, file by file in the order of the formats' table (Karpathy's files, which also give the
        splits of images, go first), then phrases of parts of images (Visual Genome's regions).

        `text_id` is the publisher's; where a file gives none, or two files give the same to different
        captions, it is "FILE:NUMBER", where lines count from 1, rows of Conceptual Captions and SBU from 0.

        Of Karpathy's, COCO's and the Flickr files, Karpathy's alone gives the captions and the split of the
        images that it lists, and of several Flickr files the first. A caption of Conceptual Captions or SBU
        has an image where a file is named by the number of its row.

        Args:
            split: Those of one split alone.
            whole: Without the phrases of parts of images.
        """
        wanted = None if split is None else normalise_split(split)
        captions = self._captions
        captions = captions[: self._first_phrase] if whole else captions
        return [caption for caption in captions if wanted in (None, caption.split)]

    def questions(self, split: str | None = None, name: str | None = None) -> list[records.Question]:
        """VQA questions with their answers, of one of `question_sets` or of all.

        Of all sets together, an id that two have gets the second's name before it.
        """
        splits = self.question_splits(name) if split is None else (normalise_split(split),)
        return [question for each in splits for question in self._questions.questions(each, name)]

    def question_sets(self) -> tuple[str, ...]:
        """Sets of questions, the one that is usually meant first: "vqa-v2", ..., or a directory's name."""
        return self._questions.names()

    def question_splits(self, name: str | None = None) -> tuple[str, ...]:
        """Splits that have questions, of a set or of all."""
        return self._questions.splits(name)

    def question_images(self, split: str, name: str | None = None) -> set[ImageId]:
        """Images that the questions of a split are about; their answers are not read."""
        return {key for key, _ in self._questions.keyed(split, name)}

    def mixes_questions(self) -> bool:
        """Whether files that are named like several sets are one, as none of their splits is in two."""
        return bool(self.question_sets()) and self._questions.is_mixed

    def question_files(self, split: str, name: str | None = None) -> dict[str, int]:
        """Files that the questions of a split come from, each with how many it has."""
        return self._questions.files(split, name)

    def expressions(self, split: str | None = None, name: str | None = None) -> list[records.Expression]:
        """Referring expressions, of one of `expression_sets(every_version=True)`, or of all usual versions.

        `width` and `height` of an expression are 0 where no annotation file gives the image's size.

        Raises:
            DataError: The boxes' `instances.json` is absent.
        """
        wanted = None if split is None else normalise_split(split)
        rows = (row for each in self._named_sets(name) for row in self._expressions_of_set(each))
        return [row for row in rows if wanted in (None, row.split)]

    def expression_sets(self, every_version: bool = False) -> tuple[str, ...]:
        """Sets of referring expressions: "refcoco", "refcoco+", "refcocog", or another directory's name.

        What `build-graphs --expressions` made is "made", the last.

        Where a directory holds several refs files, its name stands for the version that papers report: "unc"
        of RefCOCO and RefCOCO+, "umd" of RefCOCOg (no image in two splits). `every_version` also lists the
        others, as "refcocog-google" (split by object: one image may be in train and in val).
        """
        usual = set(map(set_of, self._files.holding(Holds.EXPRESSIONS)))
        found = [name for name in self._refs_files if every_version or name in usual]
        order = {
            name: (name == EXPRESSION_SET, name.split("-")[0] not in _EXPRESSION_SETS, name) for name in found
        }
        return tuple(sorted(found, key=order.__getitem__))

    def expression_splits(self, name: str | None = None) -> tuple[str, ...]:
        """Splits of one set of referring expressions, or of all usual versions."""
        files = [file for each in self._named_sets(name) for file in self._refs_files[each]]
        return tuple(dict.fromkeys(row.split for file in files for row in self._files.read(file).refs))

    def expression_set(self, name: str) -> str:
        """Name of a set, by any of its names: "RefCOCOg_umd" is "refcocog" where both versions are there."""
        return self._named_sets(name)[0]

    def is_split_by_object(self, name: str) -> bool:
        """Whether a set of expressions is one of google's, in which an image may be in several splits."""
        files = self._refs_files[self.expression_set(name)]
        return any(version_of(file).split_by_object for file in files)

    # --- boxes ---------------------------------------------------------------------------------------

    def boxes(self, split: str | None = None) -> dict[ImageId, list[records.BoxAnnotation]]:
        """Labelled boxes by image: COCO instances if there are any, else Visual Genome objects.

        A COCO box takes the attributes of the Visual Genome object of the same label and place, if there is
        one. The label is "" where the publisher gives none.
        """
        wanted = None if split is None else normalise_split(split)
        boxes: dict[ImageId, list[records.BoxAnnotation]] = {}
        for box_split, box in self._boxes:
            box_split = self._files.assigned_splits.get(box.image_id, box_split)
            if wanted is None or wanted == (box_split or self._records[box.image_id].split):
                boxes.setdefault(box.image_id, []).append(box)
        return boxes

    @cached_property
    def _boxes(self) -> list[tuple[str | None, records.BoxAnnotation]]:
        own, others = self._own_boxes, self._other_boxes
        attributes = {_place(key, row): row.attributes for _, key, row in others if own and row.attributes}
        boxes = []
        for file, key, row in own or others:
            found = row.attributes or attributes.get(_place(key, row), ())
            boxes.append((file.split, records.BoxAnnotation(key, row.label, row.xywh, found, row.is_crowd)))
        return boxes

    def _box_files(self, yields: bool) -> list[AnnotationFile]:
        return [file for file in self._files.holding(Holds.BOXES) if format_of(file).yields is yields]

    @cached_property
    def _own_boxes(self) -> list[_KeyedBox]:
        """Boxes of the formats that do not yield; a box that two files list is there once."""
        boxes: dict[tuple[ImageId, int | str], _KeyedBox] = {}
        for file in self._box_files(yields=False):
            for key, row in self._files.boxes(file):
                boxes.setdefault((key, row.box_id), (file, key, row))
        return list(boxes.values())

    @cached_property
    def _other_boxes(self) -> list[_KeyedBox]:
        files = self._box_files(yields=True)
        return [(file, key, row) for file in files for key, row in self._files.boxes(file)]

    @property
    def has_boxes(self) -> bool:
        """Whether there are files with boxes that were drawn on the pictures; none is read."""
        return bool(self._box_files(yields=False) or self._box_files(yields=True))

    # --- gold graphs ---------------------------------------------------------------------------------

    @property
    def has_gold_graphs(self) -> bool:
        """Whether there are annotated scene graphs."""
        return bool(self._files.holding(Holds.SCENE_GRAPHS))

    def gold_graphs(self, split: str | None = None) -> dict[ImageId, records.GoldGraph]:
        """Annotated scene graph of each image: `scene_graphs.json` of Visual Genome, or `relationships.json`
        with the objects and attributes beside it.

        Objects without a usable box, and the relations with them, are left out and counted as problems.
        """
        wanted = None if split is None else normalise_split(split)
        graphs: dict[ImageId, records.GoldGraph] = {}
        for file, key, row in self._files.scene_graphs:
            if key in graphs or (wanted is not None and wanted != (file.split or self._records[key].split)):
                continue
            objects = (records.GoldObject(box.label, box.xywh, box.attributes) for box in row.boxes)
            graphs[key] = records.GoldGraph(tuple(objects), tuple(row.relations))
        return graphs

    # --- records of images ---------------------------------------------------------------------------

    @cached_property
    def _image_splits(self) -> dict[ImageId, list[str]]:
        """Splits in which annotations list an image; those that give it no split of its own aside."""
        listed = self._files.index.splits_of
        splits: dict[ImageId, list[str]] = defaultdict(list, {key: [*listed[key]] for key in listed})
        mentioned: dict[ImageId, dict[str, None]] = defaultdict(dict)
        for key, name in self._mentions():
            mentioned[key].update({} if name is None else {name: None})
        for key, found in mentioned.items():
            if not splits[key]:
                splits[key].extend(found)
        for key, split in self._files.assigned_splits.items():
            splits[key] = [split]
        return splits

    def _mentions(self) -> Iterator[tuple[ImageId, str | None]]:
        """Images that annotations speak of, each with the split of the annotation."""
        for file in (file for name in sorted(self.expression_sets()) for file in self._refs_files[name]):
            for key, ref in self._files.keyed_refs(file):
                split = None if ref.split == "all" else ref.split
                if ref.target is not None or (split and key in self._files.index.listed):
                    yield key, split
        for name in self.question_splits():
            yield from ((key, None if name == "all" else name) for key, _ in self._questions.keyed(name))
        # Files whose images are all listed mention no others, and some are long to read.
        if self._mention_others(self._files.holding(Holds.SCENE_GRAPHS)):
            yield from ((key, file.split) for file, key, _ in self._files.scene_graphs)
        yield from ((row.key, row.split) for row in self._files.captions if row.key is not None)
        if self._mention_others(self._files.holding(Holds.PHRASES)):
            yield from ((row.key, row.split) for row in self._files.phrases if row.key is not None)
        for yields, boxes in ((False, lambda: self._own_boxes), (True, lambda: self._other_boxes)):
            if self._mention_others(self._box_files(yields)):
                yield from ((key, file.split) for file, key, _ in boxes())

    def _mention_others(self, files: list[AnnotationFile]) -> bool:
        return any(not self._files.images_for(file) for file in files)

    @cached_property
    def _records(self) -> dict[ImageId, records.ImageRecord]:
        index, splits = self._files.index, self._image_splits
        sizes = {key: (image.width, image.height) for key, image in self._files.feature_images.values()}
        found: dict[ImageId, records.ImageRecord] = {}
        for key in dict.fromkeys([*index.keys(), *splits]):
            listed, path = index.listed.get(key), index.path_of.get(key)
            width, height = (listed.width, listed.height) if listed else (None, None)
            if width is None or height is None:
                width, height = sizes.get(key, (width, height))
            names = splits[key]
            split = next((name for name in names if name != "train"), next(iter(names), None))
            split = split or (split_of_path(path) if path else None) or "all"
            coco_id = listed_coco_id(listed) if listed else None
            coco_id = coco_id or (coco_id_of(path) if path else None) or self._asked_by_coco_id.get(key)
            place = self.root / path if path else None
            found[key] = records.ImageRecord(key, place, split, width, height, coco_id)
        return found

    @cached_property
    def _asked_by_coco_id(self) -> dict[ImageId, int]:
        """COCO's ids of images that questions name by them: those of VQA, OK-VQA and their like."""
        files = (file for file in self._files.holding(Holds.QUESTIONS) if "mscoco" in file.name.lower())
        rows = (row.image_id for file in files for row in self._files.read(file).questions)
        return {number: number for number in rows if isinstance(number, int)}

    # --- records from rows ---------------------------------------------------------------------------

    @cached_property
    def _captions(self) -> list[records.Caption]:
        images = self._records  # what it needs of the rows below is read by now
        captions: list[records.Caption] = []
        owner: dict[int | str, tuple[ImageId | None, str]] = {}
        for rows in (self._files.captions, self._files.phrases):
            self._first_phrase = len(captions)
            rows.reverse()
            while rows:  # row by row into captions, so that millions are not there twice
                text_id, key, text, file, number, split = rows.pop()
                if text_id is not None and owner.setdefault(text_id, (key, text)) != (key, text):
                    text_id = None  # another file's caption has it
                if split is None:
                    split = images[key].split if key is not None else "all"
                text_id = f"{file}:{number}" if text_id is None else text_id
                captions.append(records.Caption(text_id, key, text, split))
        self._files.forget_captions()
        return captions

    @cached_property
    def _refs_files(self) -> dict[str, list[AnnotationFile]]:
        """Files of each set of expressions, whatever its version; those of a directory by rank."""
        files: dict[str, list[AnnotationFile]] = {}
        seen: dict[tuple[Path, str], str] = {}
        found = [(file, version_of(file)) for file in self._files.holding(Holds.EXPRESSIONS)]
        for file, version in sorted(found, key=lambda row: (row[0].path.parent, row[1].rank, row[0].name)):
            name = set_of(file)
            first = seen.setdefault((file.path.parent, name), file.name)
            if first != file.name and not (version.is_part and format_of(files[name][0]) is format_of(file)):
                name = f"{name}-{version.name or file.path.name.lower()}"
            files.setdefault(name, []).append(file)
        return files

    def _named_sets(self, name: str | None) -> tuple[str, ...]:
        if name is None:
            return self.expression_sets()
        asked = name.lower().replace("_", "-")
        for each, files in self._refs_files.items():
            # "refcocog-umd" is what "refcocog" means, where both files are there.
            if asked in (each.replace("_", "-"), f"{each}-{version_of(files[0]).name}".replace("_", "-")):
                return (each,)
        raise DataError(
            f"{self.path}: no referring expressions {name!r}; found"
            f" {', '.join(self.expression_sets(every_version=True)) or 'none'}",
            hint="RefCOCO expects a directory refcoco/ with refs(unc).p and instances.json",
        )

    def _expressions_of_set(self, name: str) -> list[records.Expression]:
        if name not in self._expressions:
            rows = self._expressions[name] = list[records.Expression]()
            seen: set[int | str] = set()
            for file in self._refs_files[name]:
                for row in self._expressions_of_file(file):
                    # Each part may number its rows from 1.
                    if row.sent_id in seen and version_of(file).is_part:
                        row = replace(row, sent_id=f"{file.name}:{row.sent_id}")
                    seen.add(row.sent_id)
                    rows.append(row)
        return self._expressions[name]

    def _expressions_of_file(self, file: AnnotationFile) -> Iterator[records.Expression]:
        for key, ref, box in self._targets(file):
            width, height, xywh = box.width, box.height, box.xywh
            if not width or not height:
                record = self._records[key]
                width, height = record.width or 0, record.height or 0
                xywh = as_box(xywh, record.width, record.height)[0] or xywh
            for sent_id, text in ref.sentences:
                yield records.Expression(sent_id, ref.ref_id, key, text, ref.split, xywh, width, height)

    def _targets(self, file: AnnotationFile) -> Iterator[tuple[ImageId, RefRow, Target]]:
        """Refs of a file with the keys of their images and their boxes."""
        lists = self._files.lists_for(file)
        if not lists:
            raise DataError(
                f"{file.path.parent}: no instances.json beside {file.path.name}",
                hint="it comes in the same archive as the refs file, and holds the boxes",
            )
        images = self._files.images_for(file)
        boxes = {box.box_id: box for each in reversed(lists) for box in self._files.read(each).boxes}
        for key, ref in self._files.keyed_refs(file):
            if ref.target is not None:
                yield key, ref, ref.target
                continue
            box, image = boxes.get(ref.box_id), images.get(ref.image_id)
            if box is None or box.image_id != ref.image_id or image is None:
                lacks = "image" if box and box.image_id == ref.image_id else "usable annotation"
                what = f"has no {lacks} in instances.json (skipped)"
                self._files.problems.add(file.name, f"ref {ref.ref_id}", what)
                continue
            yield key, ref, Target(box.xywh, image.width or 0, image.height or 0)


def _place(key: ImageId, box: BoxRow) -> tuple[ImageId, str, tuple[int, ...]]:
    """Image, label and box to the pixel: the same for an object that two publishers' files describe."""
    return key, box.label, tuple(round(value) for value in box.xywh)
