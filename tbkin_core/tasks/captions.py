"""Captions of graph stores as arrays, with the structure that masking needs.

Letters: B batch, N captions, K regions.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, RegionBatch
from tbkin_core.features.vectors import Vectors, VectorTable
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
from tbkin_core.texts.table import encode_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Names of streams of random numbers, see `uniform`.
_MISMATCH, _PARTNER = 30, 31


@dataclass
class CaptionTable:
    """N captions of one dataset, split or several, with the structure that masking needs."""

    # Each as a list; none any more once `CaptionSide` has encoded them.
    tokens: list[tuple[str, ...]] = field(default_factory=list)
    image_ids: list[ImageId] = field(default_factory=list)
    # (N+1,) into the pairs of (object, word, prior) below.
    pair_offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    # pair_object, pair_word: object number and word index within the caption
    pair_object: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    pair_word: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    # 0 the object's own words, 1 an attribute's, 2 a relation's.
    pair_kind: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    # P(attribute | object) or P(relation, object | subject); 1 for own words.
    pair_prior: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    # cross_offsets, cross_object, cross_region, cross_weight: cross-modal edges likewise
    cross_offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    cross_object: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    cross_region: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    cross_weight: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.image_ids)

    def content(self) -> int:
        """A number that changes with the captions, their order, their images and their graphs."""
        value = 0
        for values in vars(self).values():
            for part in values if isinstance(values, list) else [values.tobytes()]:
                text = part if isinstance(part, bytes) else repr(part).encode("utf-8", errors="replace")
                value = zlib.crc32(text, value)
        return value


def load_captions(graphs: GraphStore, splits: Sequence[str] | None, known: FeatureStore) -> CaptionTable:
    """Captions of a graph store, those of some splits or all, whose image has features in `known`."""
    priors = graphs.priors()
    return join_tables([_shard_captions(shard, splits, known, priors) for shard in graphs.shards])


def join_tables(tables: Sequence[CaptionTable]) -> CaptionTable:
    """Several tables end to end."""
    if len(tables) == 1:
        return tables[0]

    def joined(name: str, empty: Any) -> Any:
        parts = [getattr(table, name) for table in tables]
        if name.endswith("offsets"):
            return ragged_offsets(np.concatenate([np.diff(part) for part in (empty, *parts)]))
        return list(chain(*parts)) if isinstance(empty, list) else np.concatenate([empty, *parts])

    return CaptionTable(**{name: joined(name, empty) for name, empty in vars(CaptionTable()).items()})


def select_captions(table: CaptionTable, keep: NDArray[np.bool_]) -> CaptionTable:
    """The captions where (N,) `keep` is True."""
    rows = np.flatnonzero(keep)
    pairs, _, _ = ragged_gather(table.pair_offsets, rows)
    edges, _, _ = ragged_gather(table.cross_offsets, rows)

    def selected(name: str, values: Any) -> Any:
        if isinstance(values, list):
            return [values[row] for row in rows]
        if name.endswith("offsets"):
            return ragged_offsets(np.diff(values)[rows])
        return values[pairs if name.startswith("pair") else edges]

    return CaptionTable(**{name: selected(name, values) for name, values in vars(table).items()})


def _shard_captions(
    shard: ShardArrays, splits: Sequence[str] | None, known: FeatureStore, priors: Priors
) -> CaptionTable:
    image_ids = shard.image_ids
    places = [
        place
        for place, (image, split) in enumerate(zip(shard.image, shard.splits, strict=True))
        if image >= 0 and image_ids[image] in known and (splits is None or split in splits)
    ]
    kept = np.array(places, np.int64)
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
    pieces: list[tuple[NDArray, ...]]
    pieces = [(object_row[own], object_number[own], own_word, np.zeros(len(own)), np.ones(len(own)))]

    # Words of attributes, and of relations for both their ends.
    first_object = shard.object_offsets[kept]
    flat, row, _ = ragged_gather(shard.attribute_offsets, kept)
    owner = shard.attribute_object[flat].astype(np.int64)
    keys = np.stack([shard.object_name[first_object[row] + owner], shard.attribute_name[flat]], axis=1)
    prior = prior_of(keys, priors.attribute)
    token, item, _ = ragged_gather(shard.attribute_token_offsets, flat)
    kind = np.full(len(item), 1)
    pieces.append((row[item], owner[item], shard.attribute_tokens[token], kind, prior[item]))

    flat, row, _ = ragged_gather(shard.relation_offsets, kept)
    subject = shard.relation_subject[flat].astype(np.int64)
    target = shard.relation_object[flat].astype(np.int64)
    ends = [shard.object_name[first_object[row] + end] for end in (subject, target)]
    prior = prior_of(np.stack([ends[0], shard.relation_name[flat], ends[1]], axis=1), priors.relation)
    token, item, _ = ragged_gather(shard.relation_token_offsets, flat)
    kind = np.full(len(item), 2)
    for end in (subject, target):
        pieces.append((row[item], end[item], shard.relation_tokens[token], kind, prior[item]))

    sample, objects, words, kinds, chances = (np.concatenate(column) for column in zip(*pieces, strict=True))
    order = np.argsort(sample, kind="stable")
    known_words: dict[str, str] = {}  # a word's text is held once, however often it occurs
    flat_cross, cross_row, _ = ragged_gather(shard.cross_offsets, kept)
    return CaptionTable(
        [
            tuple(known_words.setdefault(word, word) for word in shard.caption_tokens(place))
            for place in places
        ],
        [image_ids[shard.image[place]] for place in places],
        ragged_offsets(np.bincount(sample, minlength=len(kept))),
        objects[order].astype(np.int16),
        words[order].astype(np.int16),
        kinds[order].astype(np.int8),
        chances[order].astype(np.float32),
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
        tables = [store.vectors for store in self.stores]
        self.vectors = tables[0] if len(tables) == 1 else VectorTable([it for t in tables for it in t.shards])
        self._first_rows = ragged_offsets([len(table) for table in tables])  # of each store
        self.store_of = np.repeat(np.arange(len(parts)), [len(table) for table, _ in parts])
        self.rows = np.array(
            [store.row(image_id) for table, store in parts for image_id in table.image_ids], np.int64
        )
        self.table = encode_texts(tokenizer, self.captions.tokens, max_text_tokens)
        # Millions of captions as lists of words take more memory than all else here.
        self.captions = captions = replace(self.captions, tokens=[])
        prior = captions.pair_prior
        chances = [attribute_probability(prior, masking), relation_probability(prior, masking)]
        of_kind = [captions.pair_kind == 1, captions.pair_kind == 2]
        self._probability = np.select(of_kind, chances, 1.0).astype(np.float32)

    def structure(self, rows: NDArray) -> TextStructure:
        captions = self.captions
        flat, row, _ = ragged_gather(captions.pair_offsets, rows)
        objects, words = (part[flat].astype(np.int64) for part in (captions.pair_object, captions.pair_word))
        return TextStructure(row, objects, words, self._probability[flat], captions.pair_kind[flat] == 0)

    def cross(self, rows: NDArray) -> CrossStructure:
        captions = self.captions
        flat, row, _ = ragged_gather(captions.cross_offsets, rows)
        ends = (part[flat].astype(np.int64) for part in (captions.cross_object, captions.cross_region))
        return CrossStructure(row, *ends)

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

        def same_image() -> NDArray[np.bool_]:
            return (self.rows[partner] == self.rows[rows]) & (self.store_of[partner] == self.store_of[rows])

        for _ in range(64):
            if not (same := same_image()).any():
                break
            partner = np.where(same, (partner + 1) % count, partner)
        # With one image alone there is no negative.
        swapped &= ~same_image()
        return np.where(swapped, partner, rows), ~swapped

    def regions(self, samples: NDArray, max_regions: int) -> RegionBatch:
        if len(self.stores) == 1:
            return self.stores[0].gather(self.rows[samples], max_regions)
        stores = self.store_of[samples]
        parts = []
        for number in np.unique(stores):
            members = np.flatnonzero(stores == number)
            parts.append((members, self.stores[number].gather(self.rows[samples[members]], max_regions)))
        width = max(batch.mask.shape[1] for _, batch in parts)

        rows = np.full((len(samples), width), -1, np.int64)
        for (members, batch), number in zip(parts, np.unique(stores), strict=True):
            own = batch.features.rows
            rows[members, : own.shape[1]] = np.where(own < 0, -1, own + self._first_rows[number])

        def merged(name: str) -> NDArray:
            first = getattr(parts[0][1], name)
            shape = first.shape[1:] if name == "sizes" else (width, *first.shape[2:])
            result = np.full((len(samples), *shape), -1 if name.endswith("_ids") else 0, first.dtype)
            for members, batch in parts:
                value = getattr(batch, name)
                result[members, : value.shape[1]] = value
            return result

        names = [entry.name for entry in fields(RegionBatch) if entry.name != "features"]
        return RegionBatch(Vectors(self.vectors, rows), **{name: merged(name) for name in names})
