"""Where figures go: into no dataset, and over nothing else than the same figure."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tbkin_core.errors import ConfigError
from tbkin_core.figures.canvas import figure_mark
from tbkin_core.runs import ROOT
from tbkin_core.settings import VisualizeConfig
from tbkin_core.support.files import make_directory, real_path
from tbkin_core.support.places import numbered
from tbkin_core.support.shards import MANIFEST


def figure_place(config: VisualizeConfig, data: Iterable[Path]) -> Path:
    """The directory of figures, which is none of a dataset's: they would count as its pictures.

    `data` are datasets that what is drawn has to do with.
    """
    if config.out is None:
        return make_directory(ROOT / "visualize")
    place = real_path(config.out)
    within = (place, *place.parents)
    known = [*([config.data] if config.data else []), *data]
    datasets = [path for path in known if os.path.isdir(path) and real_path(path) in within]  # noqa: PTH112
    if datasets := datasets or list(filter(_has_stores, within)):
        raise ConfigError(
            f"out: {config.out} lies in the dataset {datasets[0]}, which would take figures for its pictures",
            hint="choose another place, or omit --out",
        )
    return make_directory(config.out)


def _has_stores(directory: Path) -> bool:
    """Whether a directory is a dataset whose features or graphs were made, without --out, in it."""
    for store in (directory / "features", directory / "graphs"):
        with contextlib.suppress(OSError, ValueError):
            settings = (store / "config.yaml").read_text(encoding="utf-8")
            if settings.startswith("out: null\n") and (store / MANIFEST).exists():
                return True
    return False


def path_number(*parts: Path | str) -> str:
    """A number of a path, and what else there is, to tell files apart that have to do with equal names."""
    told = "\0".join(map(str, parts))
    return f"{zlib.crc32(told.encode(errors='replace')):08x}"


def sheet_files(base: Path, formats: Sequence[str], mark: str) -> list[Path]:
    """Files called `base` in some formats, with a number where something else than that figure has the name.

    `mark` is as of `figure_mark`.
    """
    for place in numbered(base):
        files = [place.with_name(f"{place.name}.{suffix}") for suffix in dict.fromkeys(formats)]
        if all(figure_mark(file) == mark for file in files if os.path.lexists(file)):
            return files
    raise AssertionError("numbers have no end")
