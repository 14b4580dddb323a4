"""What tbkin itself writes into a dataset directory, which is no data."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

from tbkin_core.datasets.formats.base import SNIFF_BYTES, Format, Holds
from tbkin_core.support.shards import MANIFEST

_TEXT = r'"(?:[^"\\]|\\.)*'
# A text may be longer than what is looked at.
_GRAPH_EXPORT = re.compile(
    rf'\A\{{"text_id": (?:-?\d+|{_TEXT}"), "image_id": (?:null|-?\d+|{_TEXT}"), "text": {_TEXT}'
    r'(?:\Z|", "tokens": \[)'
)


def is_graph_export(start: str) -> bool:
    """Whether a file with this beginning is what `build-graphs --export` wrote."""
    return _GRAPH_EXPORT.match(start[:SNIFF_BYTES]) is not None


def own_directory(prefix: str, names: Collection[str]) -> str | None:
    """ "store" or "run" where a directory holds what a stage of tbkin wrote, else None.

    Args:
        prefix: Its path, relative to the dataset directory.
        names: Of the files and directories in it.
    """
    if MANIFEST in names:
        return "store"
    if "config.yaml" not in names:
        return None
    checkpoint = any(name.endswith(".safetensors") or name.startswith("checkpoint") for name in names)
    return "run" if checkpoint or {"features", "graphs", "runs"} & set(PurePosixPath(prefix).parts) else None


GRAPH_EXPORT = Format(
    name="graph-export",
    holds=Holds.NOTHING,
    suffixes=frozenset({".jsonl", ".ndjson"}),
    content=lambda file: is_graph_export(file.ends),
)
