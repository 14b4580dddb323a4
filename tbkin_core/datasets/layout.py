"""What lies in a dataset directory: finds the files, names their format, and their split.

scan(Path("coco")).files["coco-captions"]   # [AnnotationFile(..., "annotations/captions_val.json", "val")]
"""

from __future__ import annotations

import codecs
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tbkin_core.errors import DataError

MAX_DEPTH = 4
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SNIFF_BYTES = 4096

# Kinds of files by the layout they belong to, in the order in which layouts are listed.
LAYOUT_KINDS: dict[str, tuple[str, ...]] = {
    "coco-captions": ("coco-captions",),
    "coco-instances": ("coco-instances",),
    "karpathy": ("karpathy",),
    "flickr": ("flickr",),
    "conceptual-captions": ("conceptual",),
    "sbu": ("sbu",),
    "vqa": ("vqa-questions", "vqa-annotations"),
    "refcoco": ("refs",),
    "jsonl": ("jsonl",),
    "visual-genome": ("vg-regions", "vg-scene-graphs", "vg-objects", "vg-attributes", "vg-images"),
    "bottom-up-npz": ("npz",),
    "feature-tables": ("feature-table",),
    "images": (),
}
LOOKED_FOR = (
    "COCO captions_*.json or instances_*.json, Karpathy's dataset_*.json, Flickr token files, Conceptual "
    "Captions TSV, SBU JSON, VQA questions and annotations, RefCOCO refs(*).p, JSON lines of image and text, "
    "Visual Genome, bottom-up-attention npz, TSV or HDF5 files, or image files"
)

# Lines as Conceptual Captions has them, either column first, and as the Flickr token files and tables do.
_CAPTION_AND_URL = re.compile(
    r"^(?:[^\t\r\n]+\t\s*https?://\S+|https?://[^\s]+\t[^\t\r\n]*\w)", re.MULTILINE | re.IGNORECASE
)
_FLICKR = re.compile(
    r"^[^\t\r\n]+\.\w+#\d+\t|\A\s*\"?image\"?,\s*\"?caption\"?\s*$|\A\s*image_name\s*\|.*\|\s*comment\s*$",
    re.MULTILINE | re.IGNORECASE,
)

# A row of region features: a name, perhaps some numbers, and a long stretch of base64, bare or within JSON.
# A line of column names may come first, or a row that was cut short.
_FEATURES = re.compile(
    r"\A(?:[^\r\n]{0,600}\r?\n)?[^\t\r\n]+\t"
    r"(?:(?:\d+\t){0,3}[A-Za-z0-9+/]{16}[A-Za-z0-9+/=\t]{200}"
    r"|[\[{][^\t\r\n]*\"features?\"\s*:\s*\"[A-Za-z0-9+/]{200})"
)

_SPLIT = re.compile(
    r"(?<![a-z])(valminusminival|minival|nominival|trainval|train|validation|valid|val|unlabeled"
    r"|test[-_ ]?(?:dev|standard|std|challenge)|test[ab]?)"
    r"(?=(?:19|20)\d\d(?!\d)|[^a-z0-9]|$)"
)
_SYNONYMS = {
    "validation": "val",
    "valid": "val",
    "testa": "testA",
    "testb": "testB",
    "test-standard": "test-std",
}


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """One file that is not an image.

    Attributes:
        path: Where it is.
        name: The same, relative to the dataset directory, for messages.
        split: Normalised split that the file's content, name or directory gives; None where they give none.
    """

    path: Path
    name: str
    split: str | None


@dataclass(slots=True)
class Layout:
    """Files of a dataset directory by kind (see `LAYOUT_KINDS`; "coco-..." of the RefCOCO family apart).

    Attributes:
        files: Kind to files, in the order of their names.
        images: Paths of image files relative to the directory, "/" between parts.
        unreadable: Directories and files that could not be looked into, with the reason.
    """

    files: dict[str, list[AnnotationFile]] = field(default_factory=lambda: defaultdict(list))
    images: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def names(self) -> tuple[str, ...]:
        """Layouts found, in the order of `LAYOUT_KINDS`; "images" where image files are on disk."""
        found = [name for name, kinds in LAYOUT_KINDS.items() if any(self.files.get(kind) for kind in kinds)]
        return (*found, "images") if self.images else tuple(found)


def normalise_split(text: str) -> str:
    """Split's plain name: "train2014" -> "train", "test-dev2015" -> "test-dev", "testA" stays."""
    plain = re.sub(r"(?<=[a-z])[-_]?(?:19|20)\d\d$", "", text.strip().lower())
    plain = re.sub(r"^test[_ ]?(dev|std|standard|challenge)$", r"test-\1", plain)
    return _SYNONYMS.get(plain, plain)


def split_in(text: str) -> str | None:
    """Split that a file or directory name speaks of: "v2_mscoco_val2014_annotations" -> "val"; else None."""
    match = _SPLIT.search(text.lower())
    return normalise_split(match.group(1)) if match else None


def split_of_path(name: str) -> str | None:
    """Split of a relative path by its directories alone, the innermost that names one."""
    for part in reversed(PurePosixPath(name).parts[:-1]):
        if (split := split_in(part)) is not None:
            return split
    return None


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


def scan(root: Path) -> Layout:
    """Search a directory, at most `MAX_DEPTH` levels deep, without what tbkin itself wrote there.

    Raises:
        DataError: The directory cannot be listed, is empty, is itself a store or run of tbkin, or holds
            nothing that is recognised.
    """
    layout = Layout()
    seen: set[tuple[int, int]] = set()
    other: dict[str, int] = defaultdict(int)
    pending = [(root, "", 0)]
    while pending:
        directory, prefix, depth = pending.pop(0)
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:  # a symlink back to a directory already read
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                # Real directories first, so that a symlink to one of them adds nothing.
                listed = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            if depth == 0:
                raise DataError(
                    f"{root}: cannot be listed: {error.strerror}", hint="check the directory's permissions"
                ) from error
            layout.unreadable.append((prefix.rstrip("/"), error.strerror or str(error)))
            continue
        listed = [entry for entry in listed if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        names = {entry.name for entry in listed}
        if depth == 0 and not names:
            raise DataError(f"{root}: the directory is empty", hint=f"expected {LOOKED_FOR}")
        own = _made_by_tbkin(prefix, names)
        if own and depth == 0:
            raise DataError(
                f"{root}: this is a {own} that tbkin wrote, not a dataset",
                hint="give the directory of the dataset (by default the one above)",
            )
        has_refs = any(_is_refs(name) for name in names)
        for entry in listed:
            name = prefix + entry.name
            try:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - 100,000 files a directory
                if not own and suffix in IMAGE_SUFFIXES and (entry.is_dir() or not entry.is_file()):
                    # A directory, a broken symlink, a socket: reading it fails, with its name.
                    layout.images.append(name)
                if entry.is_dir():
                    if depth < MAX_DEPTH and not own:
                        pending.append((directory / entry.name, name + "/", depth + 1))
                    continue
                if not entry.is_file():
                    continue
                if own:
                    # `features/` may hold the npz files a store was imported from, beside the store.
                    if suffix == ".npz" and own == "store":
                        layout.files["npz"].append(AnnotationFile(directory / entry.name, name, None))
                elif suffix in IMAGE_SUFFIXES:
                    layout.images.append(name)
                else:
                    kind, split = _recognise(directory / entry.name, suffix, has_refs)
                    if kind:
                        named = split_in(entry.name)
                        # A part that was cut out of val keeps val's data_subtype: "minival" tells more.
                        split = named if split and named and split in named else split or named
                        split = split or split_of_path(name)
                        layout.files[kind].append(AnnotationFile(directory / entry.name, name, split))
                    else:
                        other[suffix or entry.name] += 1
            except OSError as error:
                layout.unreadable.append((name, error.strerror or str(error)))
    for files in layout.files.values():
        files.sort(key=lambda file: file.name)
    layout.images.sort()
    if not layout.names():
        found = ", ".join(
            f"{count} {suffix}" for suffix, count in sorted(other.items(), key=lambda item: -item[1])[:5]
        )
        unreadable = "".join(f"; {name}: {reason}" for name, reason in layout.unreadable[:3])
        raise DataError(
            f"{root}: no dataset recognised; looked for {LOOKED_FOR}; "
            f"found {found or 'no files'}{unreadable}",
            hint="give the directory that holds the annotation files or images; it is searched 4 levels deep",
        )
    _keep_one_of_alternatives(layout)
    return layout


def _made_by_tbkin(prefix: str, names: set[str]) -> str | None:
    """ "store" or "run" where a directory holds what a stage of tbkin wrote, else None."""
    if "store.json" in names:
        return "store"
    if "config.yaml" in names:
        below = PurePosixPath(prefix).parts
        checkpoint = any(name.endswith(".safetensors") or name.startswith("checkpoint") for name in names)
        if checkpoint or {"features", "graphs", "runs"} & set(below):
            return "run"
    return None


_JSON_NAMES = (
    (r"dataset_(coco|flickr8k|flickr30k)([_.-].*)?", "karpathy"),
    (r"sbu[_-]?captions.*", "sbu"),
    (r"captions([_.-].*)?", "coco-captions"),
    (r"instances([_.-].*)?", "coco-instances"),
    (r"region_descriptions.*", "vg-regions"),
    (r"scene_graphs.*", "vg-scene-graphs"),
    (r"image_data.*", "vg-images"),
    (r"objects([_.]v?\d.*|[_.](train|val|test).*)?(\.json.*)?", "vg-objects"),
    (r"attributes([_.]v?\d.*|[_.](train|val|test).*)?(\.json.*)?", "vg-attributes"),
    (
        r"(person_keypoints|stuff|panoptic|question_answers|qa_to_region_mapping|relationships?)(_.*|\.json.*)?",
        "",
    ),
)
_TEXT = r'"(?:[^"\\]|\\.)*'
# A text may be longer than what is looked at.
_GRAPH_EXPORT = re.compile(
    rf'\A\{{"text_id": (?:-?\d+|{_TEXT}"), "image_id": (?:null|-?\d+|{_TEXT}"), "text": {_TEXT}'
    r'(?:\Z|", "tokens": \[)'
)


def is_graph_export(start: str) -> bool:
    """Whether a file with this beginning is what `build-graphs --export` wrote."""
    return _GRAPH_EXPORT.match(start[:SNIFF_BYTES]) is not None


def named_like_annotations(path: Path) -> bool:
    """Whether a JSON file of this name counts as an annotation file, whatever is in it."""
    return path.name.lower().endswith(".json") and _kind_of_name(path) is not None


def _kind_of_name(path: Path) -> str | None:
    """Kind of a JSON file by its name: "" for one that is not read, None where the name tells nothing."""
    stem = path.name.lower().removesuffix(".json")
    return next((kind for pattern, kind in _JSON_NAMES if re.fullmatch(pattern, stem)), None)


def _is_refs(name: str) -> bool:
    return re.fullmatch(r"refs.*\.(p|pkl|pickle)", name.lower()) is not None


def _recognise(path: Path, suffix: str, has_refs: bool) -> tuple[str | None, str | None]:
    """Kind of a file, by name first and by its first and last 4 KB second, and the split it states."""
    name = path.name.lower()
    if suffix == ".npz":
        return "npz", None
    if _is_refs(name):
        return "refs", None
    if suffix in {".jsonl", ".ndjson"}:
        ends = _ends_of(path)
        if is_graph_export(ends):
            return None, None
        return ("jsonl", None) if re.search(r'"(text|caption)"\s*:', ends) else (None, None)
    if suffix in {".h5", ".hdf5"}:
        return "feature-table", None
    if suffix == ".tsv":
        if _FEATURES.search(_ends_of(path)):
            return "feature-table", None
        named = re.match(r"(train|validation|test)_gcc-|.*conceptual", name)
        return ("conceptual", None) if named or _CAPTION_AND_URL.search(_ends_of(path)) else (None, None)
    if suffix in {".token", ".txt", ".csv"}:
        # By name first: a tree may hold 100,000 text files of another kind.
        likely = suffix == ".token" or re.search(r"token|caption|result|flickr", name)
        return ("flickr", None) if likely and _FLICKR.search(_ends_of(path)) else (None, None)
    if suffix != ".json":
        return None, None
    named_kind = _kind_of_name(path)
    if named_kind is not None:
        if named_kind == "coco-instances" and has_refs:
            named_kind = "refcoco-instances"
        return named_kind or None, None
    ends = _ends_of(path)
    kind: str | None = None
    if '"sentences"' in ends and '"raw"' in ends and '"filename"' in ends:
        kind = "karpathy"
    elif '"image_urls"' in ends and ends.lstrip().startswith("{"):
        kind = "sbu"
    elif '"question_id"' in ends and ('"question"' in ends or '"questions"' in ends):
        kind = "vqa-questions"
    elif '"question_id"' in ends and re.search(r'"(answers|multiple_choice_answer)"', ends):
        kind = "vqa-annotations"
    elif '"file_name"' in ends or '"images"' in ends or '"annotations"' in ends:
        if '"caption"' in ends:
            kind = "coco-captions"
        elif '"bbox"' in ends or '"supercategory"' in ends:
            kind = "coco-instances"
        elif ends.lstrip().startswith("{") and '"file_name"' in ends:
            kind = "coco-captions"  # a list of images alone, such as image_info_test2015.json
    elif '"phrase"' in ends and '"regions"' in ends:
        kind = "vg-regions"
    elif '"subject_id"' in ends and '"objects"' in ends:
        kind = "vg-scene-graphs"
    stated = re.search(r'"data_subtype"\s*:\s*"([^"\\]+)"', ends) if kind and kind.startswith("vqa") else None
    return kind, normalise_split(stated.group(1)) if stated else None


def _ends_of(path: Path) -> str:
    """First and last 4 KB of a file, as text of whatever bytes."""
    with path.open("rb") as stream:
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


def _keep_one_of_alternatives(layout: Layout) -> None:
    """Drops files that tell again what a better file beside them tells."""
    # Multiple-choice files of VQA v1 repeat the open-ended questions under the same ids.
    questions = layout.files["vqa-questions"]
    if any("openended" in file.name.lower() for file in questions):
        layout.files["vqa-questions"] = [
            file for file in questions if "multiplechoice" not in file.name.lower()
        ]
    # Visual Genome publishes versions 1, 1.2 and 1.4 of a file; the name without a version is the newest.
    for kind in LAYOUT_KINDS["visual-genome"]:
        best: dict[str | None, AnnotationFile] = {}
        for file in layout.files[kind]:
            kept = best.get(file.split)
            if kept is None or _version_rank(file.name) < _version_rank(kept.name):
                best[file.split] = file
        layout.files[kind] = sorted(best.values(), key=lambda file: file.name)
    # A subset of Conceptual Captions comes again with labels that a classifier gave.
    whole = {file.split for file in layout.files["conceptual"] if "labels" not in file.path.name.lower()}
    layout.files["conceptual"] = [
        file
        for file in layout.files["conceptual"]
        if "labels" not in file.path.name.lower() or file.split not in whole
    ]
    # Flickr8k comes with a second token file whose words are lemmas.
    plain = {file.path.parent for file in layout.files["flickr"] if "lemma" not in file.path.name.lower()}
    layout.files["flickr"] = [
        file
        for file in layout.files["flickr"]
        if "lemma" not in file.path.name.lower() or file.path.parent not in plain
    ]


def refs_version(file: AnnotationFile) -> str:
    """Whose splits a refs file holds: "unc", "umd" or "google"; of another file what its name tells."""
    stem = file.path.stem.lower()
    return next(
        (who for who in ("unc", "umd", "google") if who in stem), stem.removeprefix("refs").strip("()_-.")
    )


def refs_rank(file: AnnotationFile) -> tuple[int, str]:
    """Sorts the refs files of a directory: the version that papers report comes first."""
    usual = (
        ("umd", "google", "unc") if "refcocog" in file.path.parent.name.lower() else ("unc", "umd", "google")
    )
    version = refs_version(file)
    return usual.index(version) if version in usual else len(usual), file.name


def _version_rank(name: str) -> tuple[bool, tuple[int, ...], str]:
    version = re.search(r"_v(\d+(?:_\d+)*)", name)
    newest_first = tuple(-int(part) for part in version.group(1).split("_")) if version else ()
    return version is not None, newest_first, name
