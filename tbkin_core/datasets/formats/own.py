"""What tbkin itself writes into a dataset directory, which is no data: known by its content, not by names."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tbkin_core.datasets.formats.base import SNIFF_BYTES, Format, Holds
from tbkin_core.support.shards import MANIFEST

# Each directory of a stage has one of these files from its first moment on. Spaces are left out.
_MARKS = {
    MANIFEST: ("store", re.compile(r'\{"format_version":\d+,"kind":"')),
    "run.json": ("run", re.compile(r'\{"stage":"[\w-]+","status":"')),
    "sweep.json": ("run", re.compile(r'\{"identity":\{')),
}
OWN_PICTURES = frozenset(
    f"{name}{width}.png" for name in ("training", "sweep", "sparsity", "regions") for width in ("", "-column")
)
"""Pictures that lie in a directory of a stage; any other there is somebody's."""
ANSWER_MARKS = ("prediction", "probability", "threshold", "selection", "model", "picture")
"""Names that a model's answers to a file of questions have beside what the file had."""
_DRAWN = b"tEXtSoftware\0Matplotlib"  # near the beginning of a PNG
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


def is_answers(start: str) -> bool:
    """Whether a file with this beginning is what `visualize QUESTIONS.csv` wrote: a model's answers."""
    first = start.lstrip("\ufeff").split("\n")[0]
    if first.startswith("{"):
        return all(f'"{name}": ' in first for name in ANSWER_MARKS) and first.startswith('{"prediction": ')
    return set(ANSWER_MARKS) <= {name.strip(' "\r') for name in re.split("[,;\t]", first)}


def own_directory(directory: Path, names: Collection[str]) -> str | None:
    """ "store" or "run" where a directory, with files of these names, is one that a stage made, else None."""
    found = (what for name, (what, start) in _MARKS.items() if name in names and _is(directory / name, start))
    return next(found, None)


def _is(file: Path, start: re.Pattern[str]) -> bool:
    return start.match(re.sub(r"\s", "", _beginning(file).decode("latin-1"))) is not None


def _beginning(file: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        if not file.is_file():  # a pipe would be waited for
            return b""
        with file.open("rb") as stream:
            return stream.read(200)
    except OSError:
        return b""


def own_figures(directory: Path, prefix: str, names: Collection[str]) -> set[str]:
    """The traces that `visualize` left in a directory, and the figures beside them, named after a trace.

    In runs/visualize, where it draws unless told otherwise, all of its figures.

    Args:
        directory: It.
        prefix: Its path, relative to the dataset directory.
        names: Of the files and directories in it.
    """
    own: set[str] = set()
    if PurePosixPath(prefix).parts[-2:] == ("runs", "visualize"):
        own = {name for name in names if _is_drawn(directory / name)}
    if not any(name.endswith(".npz") for name in names):
        return own
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


def _is_drawn(file: Path) -> bool:
    # Of the other kinds, none is read as a picture.
    return file.suffix in (".svg", ".pdf", ".html") or (file.suffix == ".png" and _DRAWN in _beginning(file))


def _is_trace(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
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
ANSWERS = Format(
    name="answers",
    holds=Holds.NOTHING,
    suffixes=frozenset({".jsonl", ".ndjson", ".csv", ".tsv"}),
    content=lambda file: is_answers(file.ends),
)
