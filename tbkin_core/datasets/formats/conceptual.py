"""Conceptual Captions: millions of captions beside the urls of their images."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.reading import AnnotationFile, Source
from tbkin_core.datasets.records import CaptionRow, Content
from tbkin_core.errors import DataError

# Either column first.
_CAPTION_AND_URL = re.compile(
    r"^(?:[^\t\r\n]+\t\s*https?://\S+|https?://[^\s]+\t[^\t\r\n]*\w)", re.MULTILINE | re.IGNORECASE
)
_URL = re.compile(r"\s*(?:https?|ftp)://\S+\s*$", re.IGNORECASE)


def read_captions(source: Source) -> Iterator[CaptionRow]:
    """Row number (from 0, blank lines and a header aside) and caption of each line, one at a time.

    Lines are `caption<TAB>url` in Conceptual Captions 3M (Sharma et al. 2018), perhaps with further columns
    (image labels); 12M (Changpinyo et al. 2021) puts the url first.

    Raises:
        DataError: Unreadable, or no line has the form.
    """
    fault, good, row = 0, False, -1
    for number, line in source.lines():
        columns = line.split("\t")
        if row < 0 and {column.strip().lower() for column in columns} >= {"caption", "url"}:
            continue
        row += 1
        subject = f"line {number}"
        if len(columns) < 2 or not (_URL.match(columns[0]) or _URL.match(columns[1])):
            fault = fault or number
            source.problem(subject, "is no caption, tab and url (skipped)")
            continue
        good = True
        text = source.sentence(subject, columns[0] if _URL.match(columns[1]) else columns[1])
        if text:
            yield CaptionRow(row, text)
        else:
            source.problem(subject, "has an empty caption (skipped)")
    if fault and not good:
        raise DataError(
            f"{source.file.path}: no line is a caption, a tab and a url, from line {fault} on",
            hint="expected Conceptual Captions as published, such as Train_GCC-training.tsv",
        )


def _has_captions_and_urls(file: Candidate) -> bool:
    named = re.match(r"(train|validation|test)_gcc-|.*conceptual", file.name)
    return named is not None or _CAPTION_AND_URL.search(file.ends) is not None


def _without_labels(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """A subset of Conceptual Captions comes again with labels that a classifier gave."""
    whole = {file.split for file in files if "labels" not in file.path.name.lower()}
    return [file for file in files if "labels" not in file.path.name.lower() or file.split not in whole]


CONCEPTUAL = Format(
    name="conceptual",
    layout="conceptual-captions",
    holds=Holds.CAPTIONS,
    read=lambda source: Content(captions=read_captions(source)),
    looked_for="Conceptual Captions TSV",
    suffixes=frozenset({".tsv"}),
    content=_has_captions_and_urls,
    content_last=True,
    prefer=_without_labels,
    images_by_row=True,
)
