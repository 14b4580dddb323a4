"""A dataset directory as plain records, whoever published it.

dataset = open_dataset("coco")
dataset.captions("val")[0]   # Caption(text_id=441, image_id=331352, text="A small closed toilet ...", ...)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from tbkin_core.datasets import formats
from tbkin_core.datasets.formats import (
    AnswerRow,
    BoxRow,
    CocoContent,
    ListedImage,
    NamedText,
    NpzRow,
    QuestionRow,
    RefRow,
    SceneGraphRow,
    SplitImage,
)
from tbkin_core.datasets.image_index import ImageIndex, trailing_number
from tbkin_core.datasets.layout import (
    AnnotationFile,
    normalise_split,
    refs_rank,
    refs_version,
    scan,
    split_of_path,
)
from tbkin_core.datasets.reading import Problems, Source, as_box
from tbkin_core.datasets.records import (
    BoxAnnotation,
    Caption,
    Expression,
    GoldGraph,
    GoldObject,
    GoldRelation,
    ImageId,
    ImageRecord,
    Question,
)
from tbkin_core.errors import DataError

# text_id, image key, text, file and number in it (its name should its text_id be taken), split
_TextRow = tuple[int | str | None, ImageId | None, str, str, int, str | None]
_EXPRESSION_SETS = ("refcoco", "refcoco+", "refcocog")


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
    return Dataset(root)


class Dataset:
    """The records of a dataset directory. Use `open_dataset`.

    Every method takes the split by any of its names ("val", "val2017"), None for all, and returns an empty
    collection where the dataset has no such records. All records of an image carry the same `image_id`.

    Attributes:
        root: The directory.
        layouts: What was found, of "coco-captions", "coco-instances", "karpathy", "flickr",
            "conceptual-captions", "sbu", "vqa", "refcoco", "jsonl", "visual-genome", "bottom-up-npz",
            "feature-tables", "images" (image files on disk), in this order.

    Raises:
        DataError: From any method: a file that is needed is malformed as a whole (file, line, column).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._layout = scan(root)
        self.layouts: tuple[str, ...] = self._layout.names()
        self._problems = Problems()
        for name, reason in self._layout.unreadable:
            self._problems.add(name, "", f"cannot be read: {reason} (skipped)")
        asked = {file.split for file in self._layout.files["vqa-questions"]}
        for file in self._layout.files["vqa-annotations"]:
            if None not in asked and file.split not in asked:
                self._problems.add(file.name, "", "answers questions that no file here asks (not used)")
        self._coco_content: dict[str, CocoContent] = {}
        self._questions_of_file: dict[str, tuple[str, list[QuestionRow]]] = {}
        self._answers_of_file: dict[str, tuple[str, dict[int | str, AnswerRow]]] = {}
        self._questions: dict[str, list[Question]] = {}
        self._refs_of_file: dict[str, list[RefRow]] = {}
        self._expressions: dict[str, list[Expression]] = {}

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r}, layouts={self.layouts})"

    @property
    def problems(self) -> list[str]:
        """What was skipped or repaired so far, counted by file and kind; grows as files are read."""
        return self._problems.lines()

    # --- images --------------------------------------------------------------------------------------

    def images(self, split: str | None = None) -> list[ImageRecord]:
        """All images, on disk or only named by annotations.

        An image that is listed in several splits counts as held out: it is in "train" only if in no other.
        """
        records = self._records.values()
        if split is None:
            return list(records)
        split = normalise_split(split)
        return [
            record
            for record in records
            if record.split == split or (split != "train" and split in self._image_splits[record.image_id])
        ]

    def image(self, image_id: ImageId) -> ImageRecord:
        """The image of a key, or of a file name.

        Raises:
            DataError: The dataset has no such image.
        """
        record = self._records.get(image_id)
        if record is None:
            key, _ = self._index.by_id(image_id, None)
            record = None if key is None else self._records.get(key)
        if record is None:
            example = next(iter(self._records), None)
            raise DataError(
                f"{self.root}: no image {image_id!r} among {len(self._records)}",
                hint=f"ids look like {example!r}" if example is not None else "the dataset has no images",
            )
        return record

    def bottom_up_files(self) -> dict[ImageId, Path]:
        """Image key to the npz file with its bottom-up-attention features."""
        files: dict[ImageId, Path] = {}
        for file, row in self._npz_rows:
            key = self._key_of_npz(file, row)
            if key in files:
                self._problems.add(
                    str(PurePosixPath(file.name).parent),
                    file.path.name,
                    "is a second file of its image (skipped)",
                )
            else:
                files[key] = file.path
        return files

    def feature_tables(self) -> list[Path]:
        """TSV and HDF5 files of region features, see `tbkin_core.features.tables`."""
        return [file.path for file in self._layout.files["feature-table"]]

    def key_of(self, name: str) -> ImageId:
        """Key of the image that another program's file calls so: a file name, its stem, or an id."""
        key = self._index.by_name(name, "")
        if key is None:
            key, _ = self._index.by_id(int(name) if name.isdecimal() and len(name) < 19 else name, None)
        if key is None:
            stem = PurePosixPath(name).stem if PurePosixPath(name).suffix else name
            key = trailing_number(stem)
            key = stem if key is None else key
        return key

    # --- texts ---------------------------------------------------------------------------------------

    def captions(self, split: str | None = None) -> list[Caption]:
        """Captions of Karpathy's files, COCO, Flickr, JSON lines, Conceptual Captions, SBU, bottom-up npz
        files and Visual Genome regions, in this order.

        `text_id` is the publisher's; where a file gives none, or two files give the same to different
        captions, it is "FILE:NUMBER", where lines count from 1, rows of Conceptual Captions and SBU from 0.

        Of Karpathy's, COCO's and the Flickr files, Karpathy's alone gives the captions and the split of the
        images that it lists, and of several Flickr files the first. A caption of Conceptual Captions or SBU
        has an image where a file is named by the number of its row.
        """
        if split is None:
            return list(self._captions)
        split = normalise_split(split)
        return [caption for caption in self._captions if caption.split == split]

    def caption_splits(self) -> tuple[str, ...]:
        """Splits that have captions."""
        return tuple(dict.fromkeys(caption.split for caption in self._captions))

    def questions(self, split: str | None = None) -> list[Question]:
        """VQA questions with their answers; only the files of the split are read."""
        if split is not None:
            return list(self._questions_of_split(normalise_split(split)))
        return [question for name in self.question_splits() for question in self._questions_of_split(name)]

    def question_splits(self) -> tuple[str, ...]:
        """Splits that have questions."""
        files = self._layout.files["vqa-questions"]
        return tuple(dict.fromkeys(file.split or self._read_questions(file)[0] for file in files))

    def expressions(self, split: str | None = None, name: str | None = None) -> list[Expression]:
        """Referring expressions, of one of `expression_sets(every_version=True)`, or of all usual versions.

        `width` and `height` of an expression are 0 where no annotation file gives the image's size.

        Raises:
            DataError: No set of this name; the boxes' `instances.json` is absent.
        """
        rows = [row for each in self._named_sets(name) for row in self._expressions_of_set(each)]
        if split is None:
            return rows
        split = normalise_split(split)
        return [row for row in rows if row.split == split]

    def expression_sets(self, every_version: bool = False) -> tuple[str, ...]:
        """Sets of referring expressions: "refcoco", "refcoco+", "refcocog", or another directory's name.

        Where a directory holds several refs files, its name stands for the version that papers report: "unc"
        of RefCOCO and RefCOCO+, "umd" of RefCOCOg (no image in two splits). `every_version` also lists the
        others, as "refcocog-google" (split by object: one image may be in train and in val).
        """
        found = [name for name in self._refs_files if every_version or name in self._usual_sets]
        return tuple(sorted(found, key=lambda name: (name.split("-")[0] not in _EXPRESSION_SETS, name)))

    def expression_splits(self, name: str | None = None) -> tuple[str, ...]:
        """Splits of one set of referring expressions, or of all usual versions.

        Raises:
            DataError: No set of this name.
        """
        files = [file for each in self._named_sets(name) for file in self._refs_files[each]]
        return tuple(dict.fromkeys(row.split for file in files for row in self._read_refs(file)))

    def expression_set(self, name: str) -> str:
        """The name of a set, by any of its names: "RefCOCOg_umd" is "refcocog" where both versions are there.

        Raises:
            DataError: No set of this name.
        """
        return self._named_sets(name)[0]

    def is_split_by_object(self, name: str) -> bool:
        """Whether a set of expressions is one of google's, in which an image may be in several splits."""
        return any(refs_version(file) == "google" for file in self._refs_files[self.expression_set(name)])

    # --- boxes ---------------------------------------------------------------------------------------

    def boxes(self, split: str | None = None) -> dict[ImageId, list[BoxAnnotation]]:
        """Labelled boxes by image: COCO instances if there are any, else Visual Genome objects.

        A COCO box takes the attributes of the Visual Genome object of the same label and place, if there is
        one. The label is "" where the publisher gives none.
        """
        wanted = None if split is None else normalise_split(split)
        boxes: dict[ImageId, list[BoxAnnotation]] = {}
        for box_split, box in self._boxes:
            if box.image_id in self._karpathy_splits:
                box_split = self._karpathy_splits[box.image_id]
            if wanted is None or wanted == (box_split or self._records[box.image_id].split):
                boxes.setdefault(box.image_id, []).append(box)
        return boxes

    @cached_property
    def _boxes(self) -> list[tuple[str | None, BoxAnnotation]]:
        rows, attributes = self._coco_boxes, {}
        if rows:
            attributes = {
                _place(key, row): row.attributes for _, key, row in self._genome_boxes if row.attributes
            }
        return [
            (
                file.split,
                BoxAnnotation(
                    key, row.label, row.xywh, row.attributes or attributes.get(_place(key, row), ())
                ),
            )
            for file, key, row in rows or self._genome_boxes
        ]

    @cached_property
    def _coco_boxes(self) -> list[tuple[AnnotationFile, ImageId, BoxRow]]:
        seen: set[tuple[ImageId, int | str]] = set()
        boxes: list[tuple[AnnotationFile, ImageId, BoxRow]] = []
        for file in [*self._layout.files["coco-instances"], *self._layout.files["refcoco-instances"]]:
            content = self._read_coco(file)
            for row in content.boxes.values():
                key = self._resolve(row.image_id, file, f"annotation {row.box_id}", bool(content.images))
                if key is not None and (key, row.box_id) not in seen:
                    seen.add((key, row.box_id))
                    boxes.append((file, key, row))
        return boxes

    @cached_property
    def _genome_boxes(self) -> list[tuple[AnnotationFile, ImageId, BoxRow]]:
        if self._layout.files["vg-scene-graphs"]:
            return [(file, key, row) for file, key, graph in self._scene_graphs for row in graph.boxes]
        kinds = (("vg-objects", "objects"), ("vg-attributes", "attributes"))
        kind, list_key = next(((kind, key) for kind, key in kinds if self._layout.files[kind]), kinds[0])
        boxes: list[tuple[AnnotationFile, ImageId, BoxRow]] = []
        for file in self._layout.files[kind]:
            for row in formats.read_genome_objects(self._source(file), list_key, self._genome_images):
                key = self._resolve_genome(row.image_id, file, f"object {row.box_id}")
                if key is not None:
                    boxes.append((file, key, row))
        return boxes

    # --- gold graphs ---------------------------------------------------------------------------------

    @property
    def has_gold_graphs(self) -> bool:
        """Whether there are annotated scene graphs."""
        return bool(self._layout.files["vg-scene-graphs"])

    def gold_graphs(self, split: str | None = None) -> dict[ImageId, GoldGraph]:
        """Annotated scene graph of each image, from Visual Genome's `scene_graphs.json` where there is one.

        Objects without a usable box, and the relations with them, are left out and counted as problems.
        """
        wanted = None if split is None else normalise_split(split)
        graphs: dict[ImageId, GoldGraph] = {}
        for file, key, row in self._scene_graphs:
            if key in graphs or (wanted is not None and wanted != (file.split or self._records[key].split)):
                continue
            place = {box.box_id: position for position, box in enumerate(row.boxes)}
            graphs[key] = GoldGraph(
                tuple(GoldObject(box.label, box.xywh, box.attributes) for box in row.boxes),
                tuple(
                    GoldRelation(place[subject], predicate, place[object_])
                    for subject, predicate, object_ in row.relations
                ),
            )
        return graphs

    @cached_property
    def _scene_graphs(self) -> list[tuple[AnnotationFile, ImageId, SceneGraphRow]]:
        return [
            (file, key, row)
            for file in self._layout.files["vg-scene-graphs"]
            for row in formats.read_scene_graphs(self._source(file), self._genome_images)
            if (key := self._resolve_genome(row.image_id, file, f"scene graph of {row.image_id}")) is not None
        ]

    # --- reading, once a file ------------------------------------------------------------------------

    def _source(self, file: AnnotationFile) -> Source:
        return Source(file, self._problems)

    def _read_coco(self, file: AnnotationFile) -> CocoContent:
        if file.name not in self._coco_content:
            captions = file in self._layout.files["coco-captions"]
            read = formats.read_coco_captions if captions else formats.read_coco_instances
            self._coco_content[file.name] = read(self._source(file))
        return self._coco_content[file.name]

    def _read_questions(self, file: AnnotationFile) -> tuple[str, list[QuestionRow]]:
        if file.name not in self._questions_of_file:
            stated, rows = formats.read_questions(self._source(file))
            self._questions_of_file[file.name] = (file.split or stated or "all", rows)
        return self._questions_of_file[file.name]

    def _read_answers(self, file: AnnotationFile) -> tuple[str, dict[int | str, AnswerRow]]:
        if file.name not in self._answers_of_file:
            stated, rows = formats.read_answers(self._source(file))
            self._answers_of_file[file.name] = (file.split or stated or "all", rows)
        return self._answers_of_file[file.name]

    def _read_refs(self, file: AnnotationFile) -> list[RefRow]:
        if file.name not in self._refs_of_file:
            self._refs_of_file[file.name] = formats.read_refs(self._source(file))
        return self._refs_of_file[file.name]

    @cached_property
    def _json_lines(self) -> list[tuple[AnnotationFile, list[NamedText]]]:
        return [(file, formats.read_image_texts(self._source(file))) for file in self._layout.files["jsonl"]]

    @cached_property
    def _flickr_lines(self) -> list[tuple[AnnotationFile, list[NamedText]]]:
        return [(file, formats.read_flickr(self._source(file))) for file in self._layout.files["flickr"]]

    @cached_property
    def _karpathy(self) -> list[tuple[AnnotationFile, list[SplitImage]]]:
        return [(file, formats.read_karpathy(self._source(file))) for file in self._layout.files["karpathy"]]

    @cached_property
    def _npz_rows(self) -> list[tuple[AnnotationFile, NpzRow]]:
        files = self._layout.files["npz"]
        return [(file, row) for file in files if (row := formats.read_npz(self._source(file))) is not None]

    @cached_property
    def _genome_images(self) -> dict[ImageId, ListedImage]:
        rows = [
            row
            for file in self._layout.files["vg-images"]
            for row in formats.read_genome_images(self._source(file))
        ]
        return {row.image_id: row for row in reversed(rows)}

    # --- which image is which ------------------------------------------------------------------------

    @cached_property
    def _index(self) -> ImageIndex:
        files = self._layout.files
        listed: list[ListedImage] = []
        for kind in ("coco-captions", "coco-instances", "refcoco-instances"):
            for file in files[kind]:
                listed.extend(self._read_coco(file).images.values())
        listed.extend(reversed(self._genome_images.values()))
        named: list[tuple[str, str, str | None]] = []
        for file, images in self._karpathy:
            for image in images:
                if image.image_id is None:
                    named.append((image.file_name, _directory(file.name), image.split))
                else:
                    listed.append(
                        ListedImage(image.image_id, image.file_name, image.split, None, None, file.name)
                    )
        for file, rows in [*self._flickr_lines, *self._json_lines]:
            names = dict.fromkeys(name for _, name, _ in rows if name is not None)
            named.extend((name, _directory(file.name), file.split) for name in names)
        named.extend((row.image_name, "", file.split) for file, row in self._npz_rows)
        return ImageIndex(self._layout.images, listed, dict.fromkeys(named), self._problems)

    def _resolve(
        self, image_id: ImageId, file: AnnotationFile, subject: str, must_be_listed: bool
    ) -> ImageId | None:
        """Key of the image that an annotation names; None, and a problem, if it cannot be told which."""
        key = self._index.key_in(file.name, image_id)
        if key != image_id:
            return key
        key_or_none, candidates = self._index.by_id(image_id, file.split, _directory(file.name))
        if key_or_none is not None:
            return key_or_none
        if candidates:
            files = " or ".join(candidates[:2])
            self._problems.add(file.name, subject, f"names image {image_id}, which may be {files} (skipped)")
            return None
        if must_be_listed:
            self._problems.add(file.name, subject, "names an image that is not listed (skipped)")
            return None
        return image_id

    def _resolve_genome(self, image_id: ImageId, file: AnnotationFile, subject: str) -> ImageId | None:
        """Like `_resolve`, of the ids that image_data.json lists."""
        listed = self._genome_images.get(image_id)
        key = image_id if listed is None else self._index.key_in(listed.listed_in, image_id)
        return key if key != image_id else self._resolve(image_id, file, subject, bool(self._genome_images))

    def _key_of_npz(self, file: AnnotationFile, row: NpzRow) -> ImageId:
        key = self._index.by_name(row.image_name, "", file.split)
        if key is None and row.image_name.isdigit():
            key, _ = self._index.by_id(row.image_name, file.split)
        if key is None:
            key = row.image_name if not file.split else file.name.removesuffix(".npz")
        return key

    @cached_property
    def _karpathy_splits(self) -> dict[ImageId, str]:
        """Image key to the split that Karpathy's files give it."""
        splits: dict[ImageId, str] = {}
        for file, images in self._karpathy:
            for image in images:
                key = self._key_of_split_image(file, image)
                if key is not None:
                    splits.setdefault(key, image.split)
        return splits

    def _key_of_split_image(self, file: AnnotationFile, image: SplitImage) -> ImageId | None:
        if image.image_id is not None:
            return self._index.key_in(file.name, image.image_id)
        return self._index.by_name(image.file_name, _directory(file.name), image.split)

    @cached_property
    def _image_splits(self) -> dict[ImageId, list[str]]:
        """Splits in which annotations list an image; those that give it no split of its own aside."""
        splits: dict[ImageId, list[str]] = defaultdict(list)
        for key, names in self._index.splits_of.items():
            splits[key].extend(names)
        mentioned: dict[ImageId, list[str]] = defaultdict(list)
        for file in self._usual_refs:
            for ref in self._read_refs(file):
                key = self._key_of_ref(file, ref)
                if ref.split != "all" and key in self._index.listed:
                    mentioned[key].append(ref.split)
        for name in self.question_splits():
            for question in self._keyed_questions(name):
                mentioned[question[0]].extend(() if name == "all" else (name,))
        texts = list(self._text_rows)
        boxes = [] if self._coco_lists_images else list(self._coco_boxes)
        if not self._genome_images:  # else they list no others, and are long to read
            texts.extend(self._region_rows)
            boxes.extend(self._genome_boxes)
            for scene_file, key, _ in self._scene_graphs:
                mentioned[key].extend(() if scene_file.split is None else (scene_file.split,))
        for _, key_or_none, _, _, _, file_split in texts:
            if key_or_none is not None:
                known = mentioned[key_or_none]
                if file_split is not None and file_split not in known:
                    known.append(file_split)
        for box_file, key, _ in boxes:
            mentioned[key].extend(() if box_file.split is None else (box_file.split,))
        for key, names in mentioned.items():
            if not splits[key]:
                splits[key].extend(dict.fromkeys(names))
        for key, split in self._karpathy_splits.items():
            splits[key] = [split]
        return splits

    @property
    def _coco_lists_images(self) -> bool:
        files = [*self._layout.files["coco-instances"], *self._layout.files["refcoco-instances"]]
        return all(self._read_coco(file).images for file in files)

    @cached_property
    def _records(self) -> dict[ImageId, ImageRecord]:
        index, splits = self._index, self._image_splits
        sizes = {self._key_of_npz(file, row): (row.width, row.height) for file, row in self._npz_rows}
        records: dict[ImageId, ImageRecord] = {}
        for key in dict.fromkeys([*index.keys(), *splits]):
            listed, path = index.listed.get(key), index.path_of.get(key)
            width, height = (listed.width, listed.height) if listed else (None, None)
            if width is None or height is None:
                width, height = sizes.get(key, (width, height))
            names = splits[key]
            split = next((name for name in names if name != "train"), next(iter(names), None))
            split = split or (split_of_path(path) if path else None) or "all"
            records[key] = ImageRecord(key, self.root / path if path else None, split, width, height)
        return records

    # --- records from rows ---------------------------------------------------------------------------

    @cached_property
    def _text_rows(self) -> list[_TextRow]:
        """Captions but for Visual Genome's, which are many, and whose images are listed elsewhere."""
        rows: list[_TextRow] = []
        told: set[ImageId] = set()  # images whose captions another file of the same photographs has given
        for file, images in self._karpathy:
            of_file: set[ImageId] = set()
            for position, image in enumerate(images):
                key = self._key_of_split_image(file, image)
                if key in told:
                    self._repeated(file, f"image {position}", len(image.captions))
                    continue
                if key is None:
                    self._problems.add(
                        file.name, image.file_name, "is an image that is not clear (captions kept)"
                    )
                elif image.captions:
                    of_file.add(key)
                for number, caption in enumerate(image.captions):
                    rows.append(
                        (caption.text_id, key, caption.text, f"{file.name}:{position}", number, image.split)
                    )
            told |= of_file
        for file in self._layout.files["coco-captions"]:
            content = self._read_coco(file)
            for position, caption in enumerate(content.captions):
                key = caption.image_id
                if key is not None:
                    subject = f"annotation {caption.text_id}"
                    key = self._resolve(key, file, subject, bool(content.images))
                    if key is None:
                        continue
                    if key in told:
                        self._repeated(file, subject)
                        continue
                rows.append((caption.text_id, key, caption.text, file.name, position, file.split))
        for file, lines in self._flickr_lines:
            of_file = set()
            for row in self._rows_of_names(file, lines):
                if row[1] is not None and row[1] in told:
                    self._repeated(file, f"line {row[4]}")
                    continue
                if row[1] is not None:
                    of_file.add(row[1])
                rows.append(row)
            told |= of_file
        for file, lines in self._json_lines:
            rows.extend(self._rows_of_names(file, lines))
        for file in self._layout.files["conceptual"]:
            rows.extend(self._numbered(file, formats.read_conceptual(self._source(file))))
        for file in self._layout.files["sbu"]:
            rows.extend(self._numbered(file, iter(formats.read_sbu(self._source(file)))))
        for file, npz in self._npz_rows:
            for position, text in enumerate(npz.texts):
                rows.append((None, self._key_of_npz(file, npz), text, file.name, position, None))
        return rows

    def _repeated(self, file: AnnotationFile, subject: str, count: int = 1) -> None:
        what = "is about an image whose captions another file gives (skipped)"
        self._problems.add(file.name, subject, what, count)

    def _rows_of_names(self, file: AnnotationFile, lines: list[NamedText]) -> Iterator[_TextRow]:
        directory = _directory(file.name)
        for number, name, text in lines:
            key = None
            if name is not None:
                key = self._index.by_name(name, directory, file.split)
                if key is None:
                    self._problems.add(
                        file.name, f"line {number}", "names an image that is not clear (text kept)"
                    )
            yield None, key, text, file.name, number, file.split

    def _numbered(self, file: AnnotationFile, texts: Iterator[tuple[int, str]]) -> Iterator[_TextRow]:
        """Rows whose images, if there are any, are files named by the row's number, from 0 or from 1."""
        index = self._index
        highest = index.highest_row()
        first: int | None = None
        if highest >= 0 and index.by_row(0, file.split) is not None:
            first = 0
        waiting: list[tuple[int, str]] = []
        if highest >= 0 and first is None:
            # Only the end of the file can tell: three rows that count from 0 have no image 3.
            waiting = list(texts)
            rows = waiting[-1][0] + 1 if waiting else 0
            first = 1 if index.by_row(rows, file.split) is not None else None
            if first is None and any(index.by_row(row, file.split) is not None for row, _ in waiting):
                self._problems.add(
                    file.name, "", "has images by row number, but neither 0 nor the last: counted from 0"
                )
                first = 0
            texts = iter(waiting)
        for row, text in texts:
            key = None if first is None else index.by_row(row + first, file.split)
            yield None, key, text, file.name, row, file.split

    @cached_property
    def _region_rows(self) -> list[_TextRow]:
        rows: list[_TextRow] = []
        for file in self._layout.files["vg-regions"]:
            for position, row in enumerate(formats.read_regions(self._source(file))):
                key = row.image_id
                if key is not None:
                    key = self._resolve_genome(key, file, f"region {row.text_id}")
                if key is not None:
                    rows.append((row.text_id, key, row.text, file.name, position, file.split))
        return rows

    @cached_property
    def _captions(self) -> list[Caption]:
        records = self._records  # what it needs of the rows below is read by now
        captions: list[Caption] = []
        owner: dict[int | str, tuple[ImageId | None, str]] = {}
        for name in ("_text_rows", "_region_rows"):
            rows: list[_TextRow] = getattr(self, name)
            rows.reverse()
            while rows:  # row by row into captions, so that millions are not there twice
                text_id, key, text, file, number, split = rows.pop()
                if text_id is not None and owner.setdefault(text_id, (key, text)) != (key, text):
                    text_id = None  # another file's caption has it
                if split is None:
                    split = records[key].split if key is not None else "all"
                captions.append(Caption(f"{file}:{number}" if text_id is None else text_id, key, text, split))
        # Nothing asks for these again.
        for lines in (self._json_lines, self._flickr_lines):
            lines.clear()
        return captions

    def _keyed_questions(self, split: str) -> list[tuple[ImageId, QuestionRow]]:
        """Image key and row of each question of a split, each question_id once."""
        rows: list[tuple[ImageId, QuestionRow]] = []
        seen: set[int | str] = set()
        for file in self._layout.files["vqa-questions"]:
            if (file.split or self._read_questions(file)[0]) != split:
                continue
            for row in self._read_questions(file)[1]:
                if row.question_id in seen:
                    self._problems.add(
                        file.name, f"question {row.question_id}", "is in another file too (skipped)"
                    )
                    continue
                seen.add(row.question_id)
                resolved_from = file if file.split else AnnotationFile(file.path, file.name, split)
                key = self._resolve(row.image_id, resolved_from, f"question {row.question_id}", False)
                if key is not None:
                    rows.append((key, row))
        return rows

    def _questions_of_split(self, split: str) -> list[Question]:
        if split not in self._questions:
            answers: dict[int | str, AnswerRow] = {}
            files = [
                file
                for file in self._layout.files["vqa-annotations"]
                if (file.split or self._read_answers(file)[0]) == split
            ]
            keyed = self._keyed_questions(split)
            known = {row.question_id for _, row in keyed}
            written = {str(question_id): question_id for question_id in known}
            for file in files:
                for annotated_id, row in self._read_answers(file)[1].items():
                    # A number in one file may be a text in the other.
                    question_id = annotated_id if annotated_id in known else written.get(str(annotated_id))
                    if question_id is None:
                        self._problems.add(
                            file.name, f"question {annotated_id}", "is in no questions file (skipped)"
                        )
                    else:
                        answers.setdefault(question_id, row)
            questions: list[Question] = []
            for key, row_of_question in keyed:
                answer = answers.get(row_of_question.question_id) or row_of_question.answers
                if answer is None:
                    if files:
                        subject = f"question {row_of_question.question_id}"
                        self._problems.add(files[0].name, subject, "has no annotation (kept without answers)")
                    answer = AnswerRow((), "", "")
                elif _other_image(answer.image_id, row_of_question.image_id):
                    subject = f"question {row_of_question.question_id}"
                    what = "is annotated for another image than it asks about (answers kept)"
                    self._problems.add(files[0].name if files else "questions", subject, what)
                questions.append(
                    Question(
                        row_of_question.question_id,
                        key,
                        row_of_question.question,
                        split,
                        answer.answers,
                        answer.question_type,
                        answer.answer_type,
                    )
                )
            self._questions[split] = questions
        return self._questions[split]

    @cached_property
    def _refs_files(self) -> dict[str, list[AnnotationFile]]:
        """Files of each set of expressions, whatever its version; those of a directory by `refs_rank`."""
        files: dict[str, list[AnnotationFile]] = {}
        seen: set[Path] = set()
        for file in sorted(self._layout.files["refs"], key=lambda file: (file.path.parent, refs_rank(file))):
            name = file.path.parent.name.lower()
            if file.path.parent in seen:
                name = f"{name}-{refs_version(file) or file.path.name.lower()}"
            seen.add(file.path.parent)
            files.setdefault(name, []).append(file)
        return files

    @cached_property
    def _usual_sets(self) -> set[str]:
        return {file.path.parent.name.lower() for file in self._layout.files["refs"]}

    @cached_property
    def _usual_refs(self) -> list[AnnotationFile]:
        return [file for name in sorted(self._usual_sets) for file in self._refs_files[name]]

    def _named_sets(self, name: str | None) -> tuple[str, ...]:
        if name is None:
            return self.expression_sets()
        asked = name.lower().replace("_", "-")
        for each, files in self._refs_files.items():
            # "refcocog-umd" is what "refcocog" means, where both files are there.
            if asked in (each.replace("_", "-"), f"{each}-{refs_version(files[0])}".replace("_", "-")):
                return (each,)
        raise DataError(
            f"{self.root}: no referring expressions {name!r}; found"
            f" {', '.join(self.expression_sets(every_version=True)) or 'none'}",
            hint="RefCOCO expects a directory refcoco/ with refs(unc).p and instances.json",
        )

    def _expressions_of_set(self, name: str) -> list[Expression]:
        if name not in self._expressions:
            files = self._refs_files[name]
            self._expressions[name] = [row for file in files for row in self._expressions_of_file(file)]
        return self._expressions[name]

    def _sources_of_refs(self, file: AnnotationFile) -> list[AnnotationFile]:
        beside = [
            each for each in self._layout.files["refcoco-instances"] if each.path.parent == file.path.parent
        ]
        # Without its own file, the family's boxes are those of the COCO 2014 annotations under the same ids.
        return beside or self._layout.files["coco-instances"]

    def _key_of_ref(self, file: AnnotationFile, ref: RefRow) -> ImageId:
        for source in self._sources_of_refs(file):
            if ref.image_id in self._read_coco(source).images:
                return self._index.key_in(source.name, ref.image_id)
        return ref.image_id

    def _expressions_of_file(self, file: AnnotationFile) -> Iterable[Expression]:
        sources = self._sources_of_refs(file)
        if not sources:
            raise DataError(
                f"{file.path.parent}: no instances.json beside {file.path.name}",
                hint="it comes in the same archive as the refs file, and holds the boxes",
            )
        images: dict[ImageId, ListedImage] = {}
        boxes: dict[int | str, BoxRow] = {}
        for each in sources:
            images = {**self._read_coco(each).images, **images}
            boxes = {**self._read_coco(each).boxes, **boxes}
        index = self._index
        expressions: list[Expression] = []
        for ref in self._read_refs(file):
            subject = f"ref {ref.ref_id}"
            box, image = boxes.get(ref.ann_id), images.get(ref.image_id)
            if box is None or box.image_id != ref.image_id:
                self._problems.add(file.name, subject, "has no usable annotation in instances.json (skipped)")
                continue
            if image is None:
                self._problems.add(file.name, subject, "has no image in instances.json (skipped)")
                continue
            xywh, width, height = box.xywh, image.width, image.height
            if width is None or height is None:
                record = self._records[index.key_in(image.listed_in, image.image_id)]
                width, height = record.width or 0, record.height or 0
                xywh = as_box(xywh, record.width, record.height)[0] or xywh
            key = index.key_in(image.listed_in, ref.image_id)
            for sent_id, text in ref.sentences:
                expressions.append(Expression(sent_id, ref.ref_id, key, text, ref.split, xywh, width, height))
        return expressions


def _other_image(first: ImageId | None, second: ImageId | None) -> bool:
    """Whether two ids of one question's image differ; names, which can be written in many ways, aside."""
    return isinstance(first, int) and isinstance(second, int) and first != second


def _directory(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def _place(key: ImageId, box: BoxRow) -> tuple[ImageId, str, tuple[int, ...]]:
    """Image, label and box to the pixel: the same for an object that two publishers' files describe."""
    return key, box.label, tuple(round(value) for value in box.xywh)
