"""What tbkin itself writes into a dataset directory, which is no data."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tbkin_core.datasets.formats.base import SNIFF_BYTES, Format, Holds
from tbkin_core.support.shards import MANIFEST

_BEGUN = {"run.json": '{"stage":', "sweep.json": '{"identity":'}  # of a run that is not finished
_LOOKED_AT = 3  # arrays that turn out to be no traces
_TEXT = r'"(?:[^"\\]|\\.)*'
# A text may be longer than what is looked at.
_GRAPH_EXPORT = re.compile(
    rf'\A\{{"text_id": (?:-?\d+|{_TEXT}"), "image_id": (?:null|-?\d+|{_TEXT}"), "text": {_TEXT}'
    r'(?:\Z|", "tokens": \[)'
)


def is_graph_export(start: str) -> bool:
    """Whether a file with this beginning is what `build-graphs --export` wrote."""
    return _GRAPH_EXPORT.match(start[:SNIFF_BYTES]) is not None


def own_directory(directory: Path, prefix: str, names: Collection[str]) -> str | None:
    """ "store" or "run" where a directory holds what a stage of tbkin wrote, else None.

    Args:
        directory: It.
        prefix: Its path, relative to the dataset directory.
        names: Of the files and directories in it.
    """
    if MANIFEST in names:
        return "store"
    parts = PurePosixPath(prefix).parts
    begun = any(name in names and _begins(directory / name, start) for name, start in _BEGUN.items())
    if parts[-2:] == ("runs", "visualize") or (parts and begun):
        return "run"
    if "config.yaml" not in names:
        return None
    checkpoint = any(name.endswith(".safetensors") or name.startswith("checkpoint") for name in names)
    return "run" if checkpoint or {"features", "graphs", "runs"} & set(parts) else None


def _begins(file: Path, start: str) -> bool:
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.read(100).replace(" ", "").replace("\n", "").startswith(start)
    except (OSError, ValueError):
        return False


def own_figures(directory: Path, names: Collection[str]) -> set[str]:
    """The traces that `visualize` left in a directory, and the figures beside them, named after a trace."""
    own: set[str] = set()
    stems: dict[str, bool] = {}  # of arrays, whether they are a trace
    for name in sorted(names):
        starts = [name[: end.start()] for end in re.finditer(r"-|\.[^.]*\Z", name)]
        if name.endswith(".npz") or not any(f"{start}.npz" in names for start in starts):
            continue
        for start in starts:
            # Of a dataset's own arrays beside its pictures a few tell what all are.
            if (
                start not in stems
                and f"{start}.npz" in names
                and len(stems) - sum(stems.values()) < _LOOKED_AT
            ):
                stems[start] = _is_trace(directory / f"{start}.npz")
            if stems.get(start):
                own |= {name, f"{start}.npz"}
    return own


def _is_trace(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return {"values.npy", "dense.kept.npy"} <= set(archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


GRAPH_EXPORT = Format(
    name="graph-export",
    holds=Holds.NOTHING,
    suffixes=frozenset({".jsonl", ".ndjson"}),
    content=lambda file: is_graph_export(file.ends),
)
