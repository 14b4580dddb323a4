"""What the regions of a photo are called, from an ImageNet network.

Two sources, with one name for a region or none:

- the network's 1,000 classes, under the names that captions have for them: the probabilities of all classes
  that are a kind of what a name says are pooled;
- for what ImageNet has no class (people, water, grass), a linear map from the network's vectors to nouns of
  captions.

Both are compared with the threshold of each name. Of the names that are sure enough, a more special one goes
before the more general one above it, and else the surer one. How the two resources were made:
`examples/shipped_models`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize

from tbkin_core.errors import ConfigError, DataError

CLASSES = 1000
# Of hundreds of animals each has a little probability in any texture: what is below this does not count.
LEAST_PROBABILITY = 0.03
MOST_ODDS = 12.0  # log odds, up or down


@dataclass(frozen=True)
class ClassNames:
    """Which classes each name covers.

    Attributes:
        names: N names in a fixed order, sorted.
        covers: (1000, N) float32, 1 where the class is, or is a kind of, what the name says.
        general: Each name that is a kind of another one, to the next more general name.
    """

    names: tuple[str, ...]
    covers: NDArray[np.float32]
    general: Mapping[str, str]


def chain(name: str, general: Mapping[str, str]) -> list[str]:
    """A name and the more general ones above it, from special to general; none for ""."""
    found: list[str] = []
    while name:
        found.append(name)
        name = general.get(name, "")
    return found


@functools.cache
def class_names() -> ClassNames:
    """The table in `resources/imagenet_names.json`."""
    text = resources.files("tbkin_core.resources").joinpath("imagenet_names.json").read_text("utf-8")
    table = json.loads(text)
    chains = [chain(name, table["general"]) for _, name in table["classes"]]
    names = tuple(sorted({name for found in chains for name in found}))
    number = {name: place for place, name in enumerate(names)}
    covers = np.zeros((CLASSES, len(names)), np.float32)
    for row, found in enumerate(chains):
        covers[row, [number[name] for name in found]] = 1
    return ClassNames(names, covers, table["general"])


def pooled(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probability of each name: the sum over the classes that are, or are a kind of, what it says.

    Args:
        probabilities: (K, 1000), rows that sum to 1, in the order of ILSVRC 2012; classes below
            `LEAST_PROBABILITY` do not count.

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
    counted = np.where(probabilities >= LEAST_PROBABILITY, probabilities, 0)
    return np.minimum(counted @ class_names().covers, 1)  # (K, N)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probabilities of each row."""
    logits = np.asarray(logits, np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def log_odds(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Logarithm of p / (1 - p), within `MOST_ODDS`."""
    edge = 1 / (1 + np.exp(MOST_ODDS))
    kept = np.clip(np.asarray(probabilities, np.float64), edge, 1 - edge)
    return np.log(kept / (1 - kept)).astype(np.float32)


@dataclass(frozen=True)
class PhotoNouns:
    """Content of `resources/photo_nouns.safetensors`.

    Attributes:
        nouns: M nouns of the map.
        weight: (1280, M) float32 of the map from vectors to nouns.
        bias: (M,) float32; from the value 0 on a noun is sure enough.
        share: (M,) float32, weight of the class names' log odds in a noun's value; mostly 0.
        class_least: (N,) float32, log odds from which on a name of `ClassNames` is sure enough; infinite for
            one that never is.
    """

    nouns: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    share: NDArray[np.float32]
    class_least: NDArray[np.float32]


@functools.cache
def photo_nouns() -> PhotoNouns:
    """The map learnt from captions, and the thresholds of the class names."""
    data = resources.files("tbkin_core.resources").joinpath("photo_nouns.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    kinds = {"F16": np.float16, "F32": np.float32}
    tensors = {
        name: np.frombuffer(item["data"], kinds[item["dtype"]]).reshape(item["shape"]).astype(np.float32)
        for name, item in deserialize(data)
    }
    return PhotoNouns(tuple(header["__metadata__"]["names"].split("\n")), **tensors)


def _object_names() -> tuple[str, ...]:
    """All names that a region may have, sorted."""
    usable = np.isfinite(photo_nouns().class_least)
    known = {name for name, can_be in zip(class_names().names, usable, strict=True) if can_be}
    return tuple(sorted(known | set(photo_nouns().nouns)))


OBJECT_NAMES: tuple[str, ...] = _object_names()


@functools.cache
def _places() -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Where the names of the two sources are in `OBJECT_NAMES`, and which name is above which.

    Returns:
        (C,) numbers of class names and (C,) where each goes; (M,) where each noun goes; (names, names)
        float32, [special, general] 1 where the second name is above the first.
    """
    number = {name: place for place, name in enumerate(OBJECT_NAMES)}
    # What both know, the noun decides: its value has the class name's vote in it already.
    nouns = set(photo_nouns().nouns)
    taken = [row for row, name in enumerate(class_names().names) if name in number and name not in nouns]
    above = np.zeros((len(number), len(number)), np.float32)
    for name, row in number.items():
        above[row, [number[it] for it in chain(name, class_names().general)[1:] if it in number]] = 1
    class_places = np.array([number[class_names().names[row]] for row in taken])
    return np.array(taken), class_places, np.array([number[noun] for noun in photo_nouns().nouns]), above


def name_values(features: NDArray[np.floating], logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """How far each name is above its threshold, in log odds.

    Args:
        features: (K, 1280) mean vectors of the network's last map in each region.
        logits: (K, 1000) class scores of these vectors.

    Returns:
        (K, names) float32; from 0 on a name is sure enough.

    Raises:
        DataError: Another shape.
    """
    table, known = photo_nouns(), class_names()
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or features.shape[1] != len(table.weight):
        raise DataError(
            f"features must be (K, {len(table.weight)}), got {features.shape}",
            hint="take the last map of EfficientNet-Lite2",
        )
    odds = log_odds(pooled(softmax(logits)))  # (K, N)
    taken, class_places, noun_places, _ = _places()
    values = np.full((len(features), len(OBJECT_NAMES)), -np.inf, np.float32)
    values[:, class_places] = odds[:, taken] - table.class_least[taken]
    votes = np.zeros((len(features), len(table.nouns)), np.float32)
    for place in np.flatnonzero(table.share):
        votes[:, place] = table.share[place] * odds[:, known.names.index(table.nouns[place])]
    values[:, noun_places] = features @ table.weight + table.bias + votes
    return values


def region_names(
    features: NDArray[np.floating],
    logits: NDArray[np.floating],
    minimum: float = 0.5,
    behind: float = np.inf,
    least: NDArray[np.floating] | float = -np.inf,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The name of each region of one image.

    Args:
        features: (K, 1280) mean vectors of the network's last map in each region.
        logits: (K, 1000) class scores of these vectors.
        minimum: How sure a name has to be, in (0, 1); 0.5 is where each name is right often enough.
        behind: How far a region may be behind the image's surest one of a name, in log odds. A cell sees far
            beyond itself, so what stands beside a thing is called by its name too, but less surely.
        least: (K, names) or one number, what `name_values` has to be for a name of a region.

    Returns:
        (K,) int32 numbers into `OBJECT_NAMES`, -1 where no name is sure enough, and (K,) float32 how sure
        they are, 0 there.

    Raises:
        ConfigError: `minimum` is out of range.
        DataError: Another shape.
    """
    if not 0 < minimum < 1:
        raise ConfigError(f"minimum must be above 0 and below 1, got {minimum}", hint="0.5 is the default")
    values = name_values(features, logits)
    surest = values.max(axis=0, initial=-np.inf)
    enough = values >= np.maximum(np.maximum(surest - behind, np.log(minimum / (1 - minimum))), least)
    # A name that is above another one which is sure enough gives way to it.
    general = enough.astype(np.float32) @ _places()[3] > 0  # (K, names)
    values = np.where(enough & ~general, values, -np.inf)
    ids = values.argmax(axis=1)
    best = values[np.arange(len(values)), ids]
    found = np.isfinite(best)
    sure = 1 / (1 + np.exp(-np.where(found, best, 0)))
    return np.where(found, ids, -1).astype(np.int32), np.where(found, sure, 0).astype(np.float32)
