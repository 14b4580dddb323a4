"""TSV and HDF5 files of region features, whose rows `tbkin_core.features.tables` reads."""

from __future__ import annotations

import re
import zipfile

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
# Of files of features within others.
_PACKED = re.compile(r".*\.(?:tsv|npz|npy|h5|hdf5)(?:\.\d{1,4})?", re.DOTALL | re.IGNORECASE)


def _packs_features(file: Candidate) -> bool:
    """Whether an archive holds, or by its name is, files of features."""
    if file.suffix != ".zip":
        return _PACKED.fullmatch(file.name.removesuffix(file.suffix).removesuffix(".tar")) is not None
    try:
        with zipfile.ZipFile(file.path) as archive:
            return any(map(_PACKED.fullmatch, archive.namelist()))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return _PACKED.fullmatch(file.name.removesuffix(".zip")) is not None


def _note(source: Source) -> Content:
    lmdb = source.file.name.lower().endswith(("mdb", ".lmdb"))
    what = (
        "is an LMDB database, which is not read: convert it to npz or TSV" if lmdb else "is packed: unpack it"
    )
    source.problem("", f"{what}, if the region features that it may hold are to be imported (skipped)")
    return Content()


UNREAD = Format(
    name="unread-features",
    holds=Holds.UNREAD_FEATURES,
    read=_note,
    suffixes=frozenset({".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz", ".mdb", ".lmdb"}),
    names=re.compile(r"(?!lock\.mdb).*\.l?mdb", re.DOTALL),
    content=_packs_features,
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
