"""Region features of one image per file: npz of bottom-up attention, perhaps with captions, and of UNITER."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np

from tbkin_core.datasets.arrays import open_npz
from tbkin_core.datasets.formats.base import Format, Holds
from tbkin_core.datasets.reading import Source, as_pixels, texts_in
from tbkin_core.datasets.records import CaptionRow, Content, NamedImage
from tbkin_core.errors import DataError


def read_npz(source: Source) -> Content:
    """Size and captions; nothing, and a problem, if the file is broken.

    Only the small arrays are read; the features are left to whoever imports them.
    """
    path, problems = source.file.path, source.problems
    where = str(PurePosixPath(source.file.name).parent)  # one line per directory, not one per file
    try:
        with open_npz(path) as archive:
            names = archive.names
            if not {"norm_bb", "features"} <= names and ("x" not in names or not names & {"boxes", "bbox"}):
                found = ", ".join(sorted(names)[:8])[:200] or "nothing"
                what = "is no file of region features: it has neither x and boxes (or bbox), as bottom-up"
                what += f" attention, nor features and norm_bb, as UNITER; it has {found} (skipped)"
                problems.add(where, path.name, what)
                return Content()
            sizes = (archive[key] if key in names else np.empty(0) for key in ("image_h", "image_w"))
            height, width = map(_scalar, sizes)
            stored: list[object] = []
            try:
                stored = archive["text"].reshape(-1).tolist() if "text" in names else []
            except ValueError:  # an array of objects, which only a pickle could restore
                problems.add(where, path.name, "has pickled captions (not read)")
            texts = texts_in(stored)
            if len(texts) < len(stored):
                problems.add(where, path.name, "has an empty caption (skipped)", len(stored) - len(texts))
    except DataError:
        problems.add(where, path.name, "cannot be read, perhaps cut short (skipped)")
        return Content()
    # The file lies where features are kept, not where the image is.
    image = NamedImage(path.name.removesuffix(".npz"), "", source.file.split, width, height)
    captions = [CaptionRow(number, text, image_name=image.name) for number, text in enumerate(texts)]
    return Content(named=[image], captions=captions)


def _scalar(array: np.ndarray) -> int | None:
    return as_pixels(array.reshape(-1)[0].item()) if array.size else None


BOTTOM_UP = Format(
    name="npz",
    layout="bottom-up-npz",
    holds=Holds.IMAGES | Holds.CAPTIONS | Holds.IMAGE_FEATURES,
    read=read_npz,
    looked_for="npz files of bottom-up attention or UNITER",
    suffixes=frozenset({".npz"}),
    names=re.compile(r".*\.npz", re.DOTALL),
    in_stores=True,  # `features/` may hold the files a store was imported from, beside the store
)
