"""TSV and HDF5 files of region features, whose rows `tbkin_core.features.tables` reads."""

from __future__ import annotations

import re

from tbkin_core.datasets.formats.base import Format, Holds

# A row of region features: a name, perhaps some numbers, and a long stretch of base64, bare or within JSON.
# A line of column names may come first, or a row that was cut short.
_FEATURES = re.compile(
    r"\A(?:[^\r\n]{0,600}\r?\n)?[^\t\r\n]+\t"
    r"(?:(?:\d+\t){0,3}[A-Za-z0-9+/]{16}[A-Za-z0-9+/=\t]{200}"
    r"|[\[{][^\t\r\n]*\"features?\"\s*:\s*\"[A-Za-z0-9+/]{200})"
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
