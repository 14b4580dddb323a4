"""Flickr8k (Hodosh et al. 2013) and Flickr30k (Young et al. 2014): token files, and the tables of Kaggle."""

from __future__ import annotations

import re
import sys

from tbkin_core.datasets.formats.base import Candidate, Format, Holds, named_images
from tbkin_core.datasets.reading import AnnotationFile, Source
from tbkin_core.datasets.records import CaptionRow, Content, NamedImage
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.errors import DataError

# Lines as the token files and tables have them.
_LINES = re.compile(
    r"^[^\t\r\n]+\.\w+#\d+\t|\A\s*\"?image\"?,\s*\"?caption\"?\s*$|\A\s*image_name\s*\|.*\|\s*comment\s*$",
    re.MULTILINE | re.IGNORECASE,
)
_TABLE_HEADER = re.compile(r'\s*"?image(?:_name)?"?\s*([,|]).*(?:caption|comment)"?\s*$', re.IGNORECASE)


def read_flickr(source: Source) -> Content:
    """Captions of a token file or of Kaggle's table, with the line's number and the image's name.

    Token files (Hodosh et al. 2013; Young et al. 2014) have lines `1000092795.jpg#0<TAB>caption`; the tables
    `image,caption` or `image_name| comment_number| comment`, after a header that says so.

    Raises:
        DataError: Unreadable, or no line has the form.
    """
    rows: list[CaptionRow] = []
    seen: set[str] = set()
    separator: str | None = None
    fault = 0
    for number, line in source.lines():
        if not rows and not fault and separator is None and (header := _TABLE_HEADER.match(line)):
            separator = header.group(1)
            continue
        subject = f"line {number}"
        name, mark, text = _table_row(line, separator) if separator else _token_row(line)
        if not name or text is None:
            fault = fault or number
            source.problem(subject, "is no image name and caption (skipped)")
        elif mark and f"{name}#{mark}" in seen:
            source.problem(subject, "numbers a caption as one before (skipped)")
        elif not (caption := source.sentence(subject, text)):
            source.problem(subject, "has an empty caption (skipped)")
        else:
            seen.add(f"{name}#{mark}")
            rows.append(CaptionRow(number, caption, image_name=sys.intern(name)))
    if fault and not rows:
        raise DataError(
            f"{source.file.path}: no line is an image name and a caption, from line {fault} on",
            hint="expected lines such as `1000092795.jpg#0<TAB>A caption` or a header `image,caption`",
        )
    return Content(named=named_images(source, rows), captions=rows)


def _token_row(line: str) -> tuple[str, str, str | None]:
    name, tab, text = line.partition("\t")
    name, _, mark = name.rpartition("#")
    return name.strip(), mark.strip(), text if tab else None


def _table_row(line: str, separator: str) -> tuple[str, str, str | None]:
    # One line at a time, not as the csv module reads: a quotation mark without its second would swallow the
    # rest of the file.
    name, comma, text = line.partition(separator)
    mark = ""
    if separator == "|":
        mark, comma, text = text.partition(separator)
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return name.strip().strip('"'), mark.strip(), text if comma else None


def _has_lines(file: Candidate) -> bool:
    # By name first: a tree may hold 100,000 text files of another kind.
    likely = file.suffix == ".token" or re.search(r"token|caption|result|flickr", file.name)
    return bool(likely) and _LINES.search(file.ends) is not None


def _without_lemmas(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """Flickr8k comes with a second token file whose words are lemmas."""
    plain = {file.path.parent for file in files if "lemma" not in file.path.name.lower()}
    return [file for file in files if "lemma" not in file.path.name.lower() or file.path.parent not in plain]


FLICKR = Format(
    name="flickr",
    holds=Holds.IMAGES | Holds.CAPTIONS,
    read=read_flickr,
    looked_for="Flickr token files",
    suffixes=frozenset({".token", ".txt", ".csv"}),
    content=_has_lines,
    prefer=_without_lemmas,
    yields=True,
    claims=True,
)


def read_list(source: Source) -> Content:
    """Images of a split, a name per line; Flickr30k Entities leaves the extension out."""
    stated = re.search(r"train|dev|val|test", source.file.path.name.lower())
    split = normalise_split(stated.group()) if stated else "all"
    named: dict[str, NamedImage] = {}
    for number, line in source.lines():
        name = line.strip()
        if not name:
            continue
        if name in named:
            source.problem(f"line {number}", "names an image as one before (skipped)")
        named.setdefault(name, NamedImage(name, source.file.directory, split))
    return Content(named=list(named.values()))


def _lists_numbers(file: Candidate) -> bool:
    """Whether it is one of Flickr30k Entities' train.txt, val.txt and test.txt: Flickr's numbers alone."""
    own = re.fullmatch(r"(flickr30k[_-])?(train|val|test)\.txt", file.name)
    return bool(own) and re.fullmatch(r"(\d{6,12}\s+)*\d{0,12}\s*", file.ends) is not None


FLICKR_LISTS = Format(
    name="flickr-lists",
    # Not of images: what only a list names has no caption and, as a rule, no file.
    holds=Holds.IMAGE_SPLITS,
    read=read_list,
    layout="flickr",
    suffixes=frozenset({".txt"}),
    names=re.compile(r"flickr_?(8k|30k)[._-](train|dev|val|test)_?images\.txt"),
    content=_lists_numbers,
)
