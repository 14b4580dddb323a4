"""Captions of graph stores as arrays, with the structure that masking needs.

Letters: B batch, N captions, K regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, RegionBatch
from tbkin_core.graphs.arrays import ShardArrays
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.store import GraphStore
from tbkin_core.support.randomness import uniform
from tbkin_core.support.shards import ragged_gather, ragged_offsets
from tbkin_core.tasks.masking import (
    CrossStructure,
    MaskingConfig,
    TextStructure,
    attribute_probability,
    relation_probability,
)
from tbkin_core.texts.table import TextTable, encode_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Names of streams of random numbers, see `uniform`.
_MISMATCH, _PARTNER = 30, 31


@dataclass(slots=True)
class CaptionTable:
    """Captions of one dataset, split or several, with the structure that masking needs.

    Attributes:
        tokens: N captions as token lists; none any more once `CaptionSide` has encoded them.
        image_ids: N image keys.
        pair_offsets: (N+1,) into the pairs of (object, word, prior) below.
        pair_object, pair_word: Object number and word index within the caption.
        pair_kind: 0 the object's own words, 1 an attribute's, 2 a relation's.
        pair_prior: P(attribute | object) or P(relation, object | subject); 1 for own words.
        cross_offsets, cross_object, cross_region, cross_weight: Cross-modal edges likewise.
    """

    tokens: list[tuple[str, ...]] = field(default_factory=list)
    image_ids: list[ImageId] = field(default_factory=list)
    pair_offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    pair_object: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    pair_word: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    pair_kind: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    pair_prior: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    cross_offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    cross_object: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    cross_region: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    cross_weight: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.image_ids)


def load_captions(graphs: GraphStore, splits: Sequence[str] | None, known: FeatureStore) -> CaptionTable:
    """Captions of a graph store whose image has features.

    Args:
        graphs: The store.
        splits: Take these splits only; None takes all.
        known: Feature store that must hold the image.
    """
    priors = graphs.priors()
    tables = [_shard_captions(shard, splits, known, priors) for shard in graphs.shards]
    return join_tables(tables)


def join_tables(tables: Sequence[CaptionTable]) -> CaptionTable:
    """Several tables end to end."""
    if len(tables) == 1:
        return tables[0]

    def joined(name: str) -> NDArray:
        empty = getattr(CaptionTable(), name)
        return np.concatenate([empty, *(getattr(table, name) for table in tables)])

    def offsets(name: str) -> NDArray[np.int64]:
        return ragged_offsets(
            np.concatenate([np.zeros(0, np.int64), *(np.diff(getattr(table, name)) for table in tables)])
        )

    return CaptionTable(
        [tokens for table in tables for tokens in table.tokens],
        [image_id for table in tables for image_id in table.image_ids],
        offsets("pair_offsets"),
        joined("pair_object"),
        joined("pair_word"),
        joined("pair_kind"),
        joined("pair_prior"),
        offsets("cross_offsets"),
        joined("cross_object"),
        joined("cross_region"),
        joined("cross_weight"),
    )


def select_captions(table: CaptionTable, keep: NDArray[np.bool_]) -> CaptionTable:
    """The captions where (N,) `keep` is True."""
    rows = np.flatnonzero(keep)
    pairs, _, _ = ragged_gather(table.pair_offsets, rows)
    edges, _, _ = ragged_gather(table.cross_offsets, rows)
    return CaptionTable(
        [table.tokens[row] for row in rows],
        [table.image_ids[row] for row in rows],
        ragged_offsets(np.diff(table.pair_offsets)[rows]),
        table.pair_object[pairs],
        table.pair_word[pairs],
        table.pair_kind[pairs],
        table.pair_prior[pairs],
        ragged_offsets(np.diff(table.cross_offsets)[rows]),
        table.cross_object[edges],
        table.cross_region[edges],
        table.cross_weight[edges],
    )


def _shard_captions(
    shard: ShardArrays,
    splits: Sequence[str] | None,
    known: FeatureStore,
    priors: Priors,
) -> CaptionTable:
    image_ids = shard.image_ids
    kept = np.array(
        [
            place
            for place, (image, split) in enumerate(zip(shard.image, shard.splits, strict=True))
            if image >= 0 and image_ids[image] in known and (splits is None or split in splits)
        ],
        np.int64,
    )
    names = shard.names

    def prior_of(keys: NDArray, lookup: Any) -> NDArray[np.float32]:
        """One look-up for each distinct row of name numbers."""
        if not len(keys):
            return np.zeros(0, np.float32)
        distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
        values = np.array([lookup(*(names[number] for number in row)) for row in distinct], np.float32)
        return values[inverse.reshape(-1)]

    # Own words of every object: its span.
    flat_object, object_row, object_number = ragged_gather(shard.object_offsets, kept)
    spans = shard.object_span[flat_object].astype(np.int64)
    width = np.maximum(spans[:, 1] - spans[:, 0], 0)
    own = np.repeat(np.arange(len(spans)), width)
    own_word = spans[own, 0] + np.arange(len(own)) - np.repeat(ragged_offsets(width)[:-1], width)
    pieces = [(object_row[own], object_number[own], own_word, 0, np.ones(len(own), np.float32))]

    # Words of attributes, and of relations for both their ends.
    first_object = shard.object_offsets[kept]
    flat, row, _ = ragged_gather(shard.attribute_offsets, kept)
    owner = shard.attribute_object[flat].astype(np.int64)
    keys = np.stack([shard.object_name[first_object[row] + owner], shard.attribute_name[flat]], axis=1)
    prior = prior_of(keys, priors.attribute)
    token, item, _ = ragged_gather(shard.attribute_token_offsets, flat)
    pieces.append((row[item], owner[item], shard.attribute_tokens[token].astype(np.int64), 1, prior[item]))

    flat, row, _ = ragged_gather(shard.relation_offsets, kept)
    subject = shard.relation_subject[flat].astype(np.int64)
    target = shard.relation_object[flat].astype(np.int64)
    keys = np.stack(
        [
            shard.object_name[first_object[row] + subject],
            shard.relation_name[flat],
            shard.object_name[first_object[row] + target],
        ],
        axis=1,
    )
    prior = prior_of(keys, priors.relation)
    token, item, _ = ragged_gather(shard.relation_token_offsets, flat)
    words = shard.relation_tokens[token].astype(np.int64)
    for end in (subject, target):
        pieces.append((row[item], end[item], words, 2, prior[item]))

    sample = np.concatenate([piece[0] for piece in pieces])
    order = np.argsort(sample, kind="stable")
    known_words: dict[str, str] = {}  # a word's text is held once, however often it occurs
    flat_cross, cross_row, _ = ragged_gather(shard.cross_offsets, kept)
    return CaptionTable(
        [
            tuple(known_words.setdefault(token, token) for token in shard.caption_tokens(int(place)))
            for place in kept
        ],
        [image_ids[shard.image[place]] for place in kept],
        ragged_offsets(np.bincount(sample, minlength=len(kept))),
        np.concatenate([piece[1] for piece in pieces])[order].astype(np.int16),
        np.concatenate([piece[2] for piece in pieces])[order].astype(np.int16),
        np.concatenate([np.full(len(piece[0]), piece[3], np.int8) for piece in pieces])[order],
        np.concatenate([piece[4] for piece in pieces])[order].astype(np.float32),
        ragged_offsets(np.bincount(cross_row, minlength=len(kept))),
        shard.cross_object[flat_cross].astype(np.int16),
        shard.cross_region[flat_cross].astype(np.int16),
        shard.cross_weight[flat_cross].astype(np.float32),
    )


def caption_texts(graphs: GraphStore, splits: Sequence[str]) -> list[str]:
    """The captions of some splits as they were written."""
    return [
        shard.caption(place)
        for shard in graphs.shards
        for place, split in enumerate(shard.splits)
        if split in splits
    ]


class CaptionSide:
    """The captions of training or validation, over one or more feature stores."""

    def __init__(
        self,
        parts: Sequence[tuple[CaptionTable, FeatureStore]],
        tokenizer: Tokenizer,
        max_text_tokens: int,
        masking: MaskingConfig,
    ) -> None:
        self.captions = join_tables([table for table, _ in parts])
        self.stores = [store for _, store in parts]
        self.store_of = np.repeat(np.arange(len(parts)), [len(table) for table, _ in parts])
        self.rows = np.array(
            [store.row(image_id) for table, store in parts for image_id in table.image_ids], np.int64
        )
        self.table: TextTable = encode_texts(tokenizer, self.captions.tokens, max_text_tokens)
        # Millions of captions as lists of words take more memory than all else here.
        self.captions = captions = replace(self.captions, tokens=[])
        self._probability = np.select(
            [captions.pair_kind == 1, captions.pair_kind == 2],
            [
                attribute_probability(captions.pair_prior, masking),
                relation_probability(captions.pair_prior, masking),
            ],
            1.0,
        ).astype(np.float32)

    def structure(self, rows: NDArray) -> TextStructure:
        captions = self.captions
        flat, row, _ = ragged_gather(captions.pair_offsets, rows)
        return TextStructure(
            row,
            captions.pair_object[flat].astype(np.int64),
            captions.pair_word[flat].astype(np.int64),
            self._probability[flat],
            captions.pair_kind[flat] == 0,
        )

    def cross(self, rows: NDArray) -> CrossStructure:
        captions = self.captions
        flat, row, _ = ragged_gather(captions.cross_offsets, rows)
        return CrossStructure(
            row, captions.cross_object[flat].astype(np.int64), captions.cross_region[flat].astype(np.int64)
        )

    def cross_weight(self, rows: NDArray, regions: int) -> NDArray[np.float32]:
        """(B, K) mean weight of each region's cross-modal edges; 0 without any."""
        captions = self.captions
        flat, row, _ = ragged_gather(captions.cross_offsets, rows)
        region = captions.cross_region[flat]
        inside = region < regions
        row, region, weight = row[inside], region[inside], captions.cross_weight[flat][inside]
        total = np.zeros((len(rows), regions), np.float32)
        count = np.zeros((len(rows), regions), np.float32)
        np.add.at(total, (row, region), weight)
        np.add.at(count, (row, region), 1)
        return (total / np.maximum(count, 1)).astype(np.float32)

    def partners(
        self, rows: NDArray, samples: NDArray, key: int, mismatch: float
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Which caption's image each one gets, and whether it is its own; a negative has another image."""
        count = len(self.rows)
        swapped = uniform(key, _MISMATCH, samples, 1)[:, 0] < mismatch
        step = 1 + (uniform(key, _PARTNER, samples, 1)[:, 0] * max(count - 1, 1)).astype(np.int64)
        partner = (rows + step) % count
        for _ in range(64):
            same = (self.rows[partner] == self.rows[rows]) & (self.store_of[partner] == self.store_of[rows])
            if not same.any():
                break
            partner = np.where(same, (partner + 1) % count, partner)
        # With one image alone there is no negative.
        same = (self.rows[partner] == self.rows[rows]) & (self.store_of[partner] == self.store_of[rows])
        swapped &= ~same
        return np.where(swapped, partner, rows), ~swapped

    def regions(self, samples: NDArray, max_regions: int) -> RegionBatch:
        if len(self.stores) == 1:
            return self.stores[0].gather(self.rows[samples], max_regions)
        stores = self.store_of[samples]
        parts = [
            (
                np.flatnonzero(stores == number),
                self.stores[number].gather(self.rows[samples[stores == number]], max_regions),
            )
            for number in np.unique(stores)
        ]
        width = max(batch.mask.shape[1] for _, batch in parts)

        def merged(name: str, fill: float) -> NDArray:
            first = getattr(parts[0][1], name)
            shape = (len(samples), *((width, *first.shape[2:]) if name != "sizes" else first.shape[1:]))
            result = np.full(shape, fill, first.dtype)
            for members, batch in parts:
                value = getattr(batch, name)
                if name == "sizes":
                    result[members] = value
                else:
                    result[members, : value.shape[1]] = value
            return result

        return RegionBatch(
            merged("features", 0),
            merged("boxes", 0),
            merged("geometry", 0),
            merged("mask", False),
            merged("object_ids", -1),
            merged("object_scores", 0),
            merged("attribute_ids", -1),
            merged("attribute_scores", 0),
            merged("sizes", 1),
        )
