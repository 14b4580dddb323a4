"""TSV and HDF5 files of region features, whose rows `tbkin_core.features.tables` reads."""

from __future__ import annotations

import re

from tbkin_core.datasets.formats.base import Candidate, Format, Holds
from tbkin_core.datasets.reading import Source
from tbkin_core.datasets.records import Content

# A row of region features: a name, perhaps some numbers, and a long stretch of base64, bare or within JSON.
# A line of column names may come first, or a row that was cut short.
_FEATURES = re.compile(
    r"\A(?:[^\r\n]{0,600}\r?\n)?[^\t\r\n]+\t"
    r"(?:(?:\d+\t){0,3}[A-Za-z0-9+/]{16}[A-Za-z0-9+/=\t]{200}"
    r"|[\[{][^\t\r\n]*\"features?\"\s*:\s*\"[A-Za-z0-9+/]{200})"
)
_FEATURE_FILE = r"\.(?:tsv|npz|npy|h5|hdf5)(?:\.\d{1,4})?"
_PACKED = re.compile(rf".*{_FEATURE_FILE}(?:\.tar)?\.[a-z0-9]+", re.DOTALL)
# A zip file ends with the names of what is in it.
_IN_ZIP = re.compile(rf"PK\x01\x02.{{42}}[^\x00]{{0,300}}?{_FEATURE_FILE}(?=PK|[^A-Za-z0-9])", re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{1500}")


def _may_hold_features(file: Candidate) -> bool:
    """Whether an archive has files of features in it, or a table long stretches of base64."""
    if file.suffix == ".tsv":
        return _BASE64.search(file.ends) is not None
    return bool(_PACKED.fullmatch(file.name) or (file.suffix == ".zip" and _IN_ZIP.search(file.ends)))


def _note(source: Source) -> Content:
    suffix = Candidate(source.file.path).suffix
    what = {
        ".tsv": "has rows of no form that is known: write them as bottom-up attention does",
        ".mdb": "is an LMDB database, which is not read: convert it to npz or TSV",
    }.get(suffix.replace(".lmdb", ".mdb"), "is packed: unpack it")
    source.problem("", f"{what}, if the region features that it may hold are to be imported (skipped)")
    return Content()


UNREAD = Format(
    name="unread-features",
    holds=Holds.UNREAD_FEATURES,
    read=_note,
    suffixes=frozenset({".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tsv", ".mdb", ".lmdb"}),
    names=re.compile(r"(?!lock\.mdb).*\.l?mdb", re.DOTALL),
    content=_may_hold_features,
    content_last=True,
)
FEATURE_TABLES = Format(
    name="feature-table",
    layout="feature-tables",
    holds=Holds.FEATURE_TABLES,
    looked_for="TSV or HDF5 files of region features",
    suffixes=frozenset({".h5", ".hdf5", ".tsv"}),
    names=re.compile(r".*\.(h5|hdf5)", re.DOTALL),
    content=lambda file: _FEATURES.search(file.ends) is not None,
)
