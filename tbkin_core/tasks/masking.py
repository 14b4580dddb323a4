"""Structural knowledge masking: which words and regions of a batch to hide (ROSITA, ACM MM 2021, §3.2).

Pure functions over arrays. Every draw depends on (seed, epoch, sample) alone, so the number of workers,
the batch size and the order change nothing. Letters: B batch, T text tokens, K regions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tbkin_core.settings import MaskingConfig
from tbkin_core.support.randomness import mix, uniform

# Names of the streams of random numbers; two uses never share one.
_SIDE, _TEXT_BASE, _TEXT_ANCHOR, _TEXT_WORD, _TEXT_ACTION, _TEXT_REPLACE, _WHOLE = range(10, 17)
_REGION_BASE, _REGION_CROSS, _REGION_NEIGHBOUR, _REGION_ACTION, _REGION_REPLACE = range(20, 25)

KEEP, MASK, REPLACE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class TextStructure:
    """The text scene graphs of a batch as P (object, word) pairs."""

    sample: NDArray[np.int64]  # (P,) row in the batch
    object: NDArray[np.int64]  # (P,) number of the object within its caption
    word: NDArray[np.int64]  # (P,) word index in the caption
    probability: NDArray[np.float32]  # (P,) chance that the word is masked once its object is an anchor
    own: NDArray[np.bool_]  # (P,) True for the object's own words, False for its attributes' and relations'


@dataclass(frozen=True, slots=True)
class CrossStructure:
    """The E cross-modal edges of a batch."""

    sample: NDArray[np.int64]  # (E,) row in the batch
    object: NDArray[np.int64]  # (E,) number of the object within its caption
    region: NDArray[np.int64]  # (E,) number of the region within its image


def attribute_probability(prior: NDArray, config: MaskingConfig) -> NDArray:
    """Chance of an anchor's attribute word from P(attribute | object)."""
    return np.minimum(config.attribute_factor * prior, config.attribute_cap) + config.extra


def relation_probability(prior: NDArray, config: MaskingConfig) -> NDArray:
    """Chance of an anchor's relation word from P(relation, object | subject)."""
    return np.minimum(config.relation_factor * prior, config.relation_cap) + config.extra


def text_side(config: MaskingConfig, seed: int, epoch: int, samples: NDArray) -> NDArray[np.bool_]:
    """(B,) True where the text is masked, False where the regions are; one side a sample."""
    return uniform(mix(seed, epoch), _SIDE, samples, 1)[:, 0] < config.text_side


def whole_samples(seed: int, epoch: int, samples: NDArray) -> NDArray[np.bool_]:
    """(B,) True for the half of the samples of which nothing is hidden."""
    return uniform(mix(seed, epoch), _WHOLE, samples, 1)[:, 0] < 0.5


def mask_text(
    word_ids: NDArray,
    structure: TextStructure,
    vocabulary: int,
    first_ordinary: int,
    config: MaskingConfig,
    seed: int,
    epoch: int,
    samples: NDArray,
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Choose the word pieces to mask, and how.

    Args:
        word_ids: (B, T) word of each piece, -1 for padding and special tokens.
        structure: Text scene graphs of the batch.
        vocabulary: Size of the vocabulary, for random replacement.
        first_ordinary: Ids below are special tokens and never drawn.
        samples: (B,) key of each sample, the same in every epoch.

    Returns:
        `action` (B, T): -1 not a target, else `KEEP`, `MASK` or `REPLACE`; `replacement` (B, T) ids.
    """
    key = mix(seed, epoch)
    batch, length = word_ids.shape
    ordinary = word_ids >= 0
    chosen = uniform(key, _TEXT_BASE, samples, length) < config.base
    if config.text_structure and len(structure.sample):
        objects = int(structure.object.max()) + 1
        anchor = uniform(key, _TEXT_ANCHOR, samples, objects) < config.anchor  # (B, objects)
        active = anchor[structure.sample, structure.object]
        words = int(structure.word.max()) + 1
        chance = np.zeros((batch, words), np.float32)
        np.maximum.at(
            chance, (structure.sample[active], structure.word[active]), structure.probability[active]
        )
        hidden = uniform(key, _TEXT_WORD, samples, words) < chance  # (B, words)
        inside = ordinary & (word_ids < words)
        rows, columns = np.nonzero(inside)
        chosen[rows, columns] |= hidden[rows, word_ids[rows, columns]]
    chosen &= ordinary
    action = _actions(chosen, uniform(key, _TEXT_ACTION, samples, length), config)
    draw = uniform(key, _TEXT_REPLACE, samples, length)
    replacement = first_ordinary + (draw * (vocabulary - first_ordinary)).astype(np.int64)
    return action, replacement


def mask_regions(
    region_mask: NDArray,
    cross_weight: NDArray,
    overlaps: Callable[[NDArray, NDArray], NDArray],
    config: MaskingConfig,
    seed: int,
    epoch: int,
    samples: NDArray,
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Choose the regions to mask, and how.

    Args:
        region_mask: (B, K) bool, True where there is a region.
        cross_weight: (B, K) mean weight of a region's cross-modal edges, 0 without any.
        overlaps: IoU (M, K) of M regions, given by sample (M,) and place (M,), with all of their sample; few
            hide their neighbours, so that not all pairs are compared.
        samples: (B,) key of each sample.

    Returns:
        `action` (B, K) as above; `replacement` (B, K), which of the sample's own regions to put in place.
    """
    key = mix(seed, epoch)
    regions = region_mask.shape[1]
    chosen = uniform(key, _REGION_BASE, samples, regions) < config.base
    if config.cross_modal_structure:
        chosen |= uniform(key, _REGION_CROSS, samples, regions) < config.cross_modal * cross_weight
    chosen &= region_mask
    if config.image_structure:
        spreads = chosen & (uniform(key, _REGION_NEIGHBOUR, samples, regions) < config.neighbour)
        sample, place = np.nonzero(spreads)
        touched = np.zeros_like(chosen)
        np.logical_or.at(touched, sample, overlaps(sample, place) > config.neighbour_iou)
        chosen |= touched & region_mask
    action = _actions(chosen, uniform(key, _REGION_ACTION, samples, regions), config)
    # Drawn among the sample's own regions: what other samples share the batch must not matter.
    count = np.maximum(region_mask.sum(axis=1, keepdims=True), 1)
    replacement = (uniform(key, _REGION_REPLACE, samples, regions) * count).astype(np.int64)
    return action, replacement


def interference_mask(
    word_ids: NDArray,
    text_targets: NDArray,
    region_targets: NDArray,
    text: TextStructure,
    cross: CrossStructure,
    iou: NDArray,
    config: MaskingConfig,
) -> NDArray[np.bool_]:
    """Which keys each query may attend to once interference is removed (ROSITA, ACM MM 2021, §3.2).

    A masked anchor, a word or region with a cross-modal edge, is to be found through the other modality, and
    there through what it is tied to. A masked word of an anchor does not see the words of its attributes and
    relations, nor the regions that it has no edge to. A masked region with an edge does not see the regions
    that it overlaps, nor the words of objects that it has no edge to. What is hidden from an anchor still
    reaches it by way of other tokens from the second layer on.

    Args:
        word_ids: (B, T) word of each piece, -1 for padding and special tokens.
        text_targets: (B, T) bool, masked pieces.
        region_targets: (B, K) bool, masked regions.
        text: Text scene graphs of the batch.
        cross: Their cross-modal edges.
        iou: (B, K, K).

    Returns:
        (B, L, L) bool with L = T + K, True = may attend. Special tokens and a query's own place stay visible.
    """
    batch, length = word_ids.shape
    regions = region_targets.shape[1]
    objects = 1 + max(int(text.object.max(initial=0)), int(cross.object.max(initial=0)))
    words = 1 + max(int(word_ids.max(initial=0)), int(text.word.max(initial=0)))
    own, related = np.zeros((2, batch, objects, words), np.bool_)
    for marked, where in ((own, text.own), (related, ~text.own)):
        marked[text.sample[where], text.object[where], text.word[where]] = True
    edge = np.zeros((batch, objects, regions), np.bool_)
    inside = cross.region < regions
    edge[cross.sample[inside], cross.object[inside], cross.region[inside]] = True

    def of_pieces(marked: NDArray) -> NDArray[np.float32]:
        """(B, O, T) from (B, O, W)."""
        found = np.take_along_axis(marked, np.maximum(word_ids, 0)[:, None, :], axis=2)
        return np.where(word_ids[:, None, :] >= 0, found, False).astype(np.float32)

    def some(one: NDArray, another: NDArray) -> NDArray[np.bool_]:
        """Of (B, O, M) and (B, O, N), whether any object has both: (B, M, N)."""
        return np.greater(one.transpose(0, 2, 1) @ another, 0)

    edges = edge.astype(np.float32)
    of_own, of_related = of_pieces(own), of_pieces(related & ~own)
    anchor = of_own * text_targets[:, None, :] * edges.max(axis=2, keepdims=True, initial=0)  # (B, O, T)
    masked_region = region_targets & edge.any(axis=1)  # (B, K)
    seen = np.ones((batch, length + regions, length + regions), np.bool_)
    seen[:, :length, :length] = ~some(anchor, of_related)
    seen[:, :length, length:] = some(anchor, edges) | (anchor.max(axis=1) == 0)[:, :, None]
    overlapped = (iou > config.neighbour_iou) & ~np.eye(regions, dtype=np.bool_)
    seen[:, length:, length:] = ~(masked_region[:, :, None] & overlapped)
    described = np.maximum(of_own, of_related)
    unrelated = (described.max(axis=1) > 0)[:, None, :] & ~some(edges, described)  # (B, K, T)
    seen[:, length:, :length] = ~(masked_region[:, :, None] & unrelated)
    return seen


def _actions(chosen: NDArray, draw: NDArray, config: MaskingConfig) -> NDArray[np.int8]:
    action = np.where(draw < config.mask, MASK, np.where(draw < config.mask + config.replace, REPLACE, KEEP))
    return np.where(chosen, action, -1).astype(np.int8)
