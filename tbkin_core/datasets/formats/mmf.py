"""Region features of MMF (Singh et al. 2020): vectors in `NAME.npy`, boxes in `NAME_info.npy`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from tbkin_core.datasets.formats.base import Format, Holds
from tbkin_core.datasets.reading import Source, as_pixels
from tbkin_core.datasets.records import Content, NamedImage
from tbkin_core.datasets.unpickle import load_object_npy
from tbkin_core.errors import DataError

_INFO = "_info.npy"


def read_npy(source: Source) -> Content:
    """The image of the vectors, with its size; nothing, and a problem, of either file without the other."""
    path = source.file.path
    where = str(PurePosixPath(source.file.name).parent)  # one line per directory, not one per file
    if path.name.lower().endswith(_INFO):
        if not path.with_name(path.name[: -len(_INFO)] + ".npy").exists():
            source.problems.add(where, path.name, "has no file of features beside it (skipped)")
        return Content()
    beside = path.with_name(path.stem + _INFO)
    try:
        info = load_object_npy(beside)
    except FileNotFoundError:
        what = "may be region features, but lacks the boxes, which MMF writes into NAME_info.npy (skipped)"
        source.problems.add(where, path.name, what)
        return Content()
    except DataError as error:
        source.problem("", f"its boxes cannot be read: {error.message} (skipped)")
        return Content()
    sizes = (
        (info.get(key) for key in ("image_width", "image_height")) if isinstance(info, dict) else (None,) * 2
    )
    return Content(named=[NamedImage(path.stem, "", source.file.split, *map(as_pixels, sizes))])


NPY = Format(
    name="npy",
    layout="mmf-npy",
    holds=Holds.IMAGES | Holds.IMAGE_FEATURES,
    read=read_npy,
    looked_for="MMF's pairs of npy files",
    suffixes=frozenset({".npy"}),
    names=re.compile(r".*\.npy", re.DOTALL),
    in_stores=True,
)
