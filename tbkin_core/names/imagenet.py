"""Names of regions from an ImageNet network: what captions call its 1,000 classes, pooled up to what is sure."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError

CLASSES = 1000


@dataclass(frozen=True)
class ClassNames:
    """Which classes each name covers.

    Attributes:
        names: N names in a fixed order, sorted.
        covers: (1000, N) float32, 1 where the class is, or is a kind of, the name.
        above: (N, N) bool, [special, general] True where the second name is above the first.
    """

    names: tuple[str, ...]
    covers: NDArray[np.float32]
    above: NDArray[np.bool_]


def chain(name: str, general: Mapping[str, str]) -> list[str]:
    """A name and the more general ones above it, from special to general; none for ""."""
    found: list[str] = []
    while name and name not in found:
        found.append(name)
        name = general.get(name, "")
    return found


@functools.cache
def class_names() -> ClassNames:
    """The table in `resources/imagenet_names.json`."""
    text = resources.files("tbkin_core.resources").joinpath("imagenet_names.json").read_text("utf-8")
    table = json.loads(text)
    general: dict[str, str] = table["general"]
    chains = [chain(name, general) for _, name in table["classes"]]
    names = tuple(sorted({name for names in chains for name in names}))
    number = {name: place for place, name in enumerate(names)}
    covers = np.zeros((CLASSES, len(names)), np.float32)
    for row, found in enumerate(chains):
        covers[row, [number[name] for name in found]] = 1
    above = np.zeros((len(names), len(names)), np.bool_)
    for name in names:
        above[number[name], [number[other] for other in chain(name, general)[1:]]] = True
    return ClassNames(names, covers, above)


def pooled(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probability of each name: the sum over the classes that are, or are a kind of, what it names.

    Args:
        probabilities: (K, 1000), rows that sum to 1, in the order of ILSVRC 2012.

    Returns:
        (K, N) float32 in [0, 1]; a more general name never has less than a more special one.

    Raises:
        DataError: Another shape.
    """
    probabilities = np.asarray(probabilities, np.float32)
    if probabilities.ndim != 2 or probabilities.shape[1] != CLASSES:
        raise DataError(
            f"probabilities must be (K, {CLASSES}), got {probabilities.shape}",
            hint="take a network with the classes of ILSVRC 2012",
        )
    return np.minimum(probabilities @ class_names().covers, 1)  # (K, N)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probabilities of each row."""
    logits = np.asarray(logits, np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def most_special(
    sure: NDArray[np.floating], above: NDArray[np.bool_], minimum: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The most special name that is sure enough; of several that do not contain each other the surest.

    Args:
        sure: (K, N) how sure each name is, in [0, 1].
        above: (N, N) bool, [special, general] as in `ClassNames`.
        minimum: From where on a name is sure enough.

    Returns:
        (K,) int32 numbers of names, -1 where none is sure enough, and (K,) float32 how sure they are, 0 there.
    """
    enough = sure >= minimum  # (K, N)
    # A name that is above another one which is sure enough gives way to it.
    covered = enough.astype(np.float32) @ above.astype(np.float32) > 0  # (K, N)
    value = np.where(enough & ~covered, sure, -1)
    ids = value.argmax(axis=1)
    best = value[np.arange(len(value)), ids]
    found = best >= 0
    return np.where(found, ids, -1).astype(np.int32), np.where(found, best, 0).astype(np.float32)


OBJECT_NAMES: tuple[str, ...] = class_names().names


def region_names(
    features: NDArray[np.floating], logits: NDArray[np.floating], minimum: float = 0.5
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Numbers into `OBJECT_NAMES` of K regions and how sure they are; -1 and 0 where none is sure enough."""
    return most_special(pooled(softmax(logits)), class_names().above, minimum)
