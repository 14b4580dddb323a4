"""Names of splits: what a file, a directory or an annotation calls them, and their plain forms."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_SPLIT = re.compile(
    r"(?<![a-z])(valminusminival|minival|nominival|trainval|training|train|validation|validate|valid|val|evaluation|eval"
    r"|unlabeled|development|dev|testing|test[-_ ]?(?:dev|standard|std|challenge)|test[ab]?)"
    r"(?=(?:[-_ ]?(?:set|split))?(?:(?:19|20)\d\d(?!\d)|[^a-z0-9]|$))"
)
_SYNONYMS = {
    "training": "train",
    "testing": "test",
    "eval": "val",
    "evaluation": "val",
    "validation": "val",
    "validate": "val",
    "valid": "val",
    "dev": "val",
    "development": "val",
    "testa": "testA",
    "testb": "testB",
    "test-standard": "test-std",
}
_LONGEST = 100  # bytes of a split's name
_WHOLE = {"minival": "val", "nominival": "val", "valminusminival": "val", "testA": "test", "testB": "test"}


def normalise_split(text: str) -> str:
    """Plain name of a split: "train2014" -> "train", "test-dev2015" -> "test-dev", "testA" stays.

    Data say what their splits are called, and files are named after them: the name is one part of a path,
    whatever they say.
    """
    plain = re.sub(r"(?<=[a-z])[-_]?(?:19|20)\d\d$", "", text.strip().lower())
    plain = re.sub(r"(?<=[a-z])[-_ ]?(?:set|split)$", "", plain)
    plain = re.sub(r"^test[_ ]?(dev|std|standard|challenge)$", r"test-\1", plain)
    plain = re.sub(r"[^\w+. -]", "_", plain)
    plain = plain.encode(errors="replace")[:_LONGEST].decode(errors="ignore").strip(". ")
    return _SYNONYMS.get(plain, plain)


def split_in(text: str) -> str | None:
    """Split that a file or directory name speaks of: "v2_mscoco_val2014_annotations" -> "val"; else None."""
    match = _SPLIT.search(text.lower())
    return normalise_split(match.group(1)) if match else None


def more_exact_split(named: str | None, stated: str | None) -> str | None:
    """Of the split that a file's name has and the one that its content states the one that says more.

    A part that was cut out of val keeps val's name within: then "minival" says more.
    """
    return named if named and (stated is None or split_family(named) == stated) else stated


def split_of_path(name: str) -> str | None:
    """Split of a relative path by its directories alone, the innermost that names one."""
    return next(filter(None, map(split_in, reversed(PurePosixPath(name).parts[:-1]))), None)


def split_family(split: str) -> str:
    """Split of the image files that a split is about: "test-dev" -> "test", "minival" -> "val"."""
    plain = split.split("-")[0]
    return _WHOLE.get(plain, plain)
