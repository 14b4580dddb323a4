"""The pretraining task: masked words, masked regions, image-text matching over a graph store.

Letters: B batch, T text tokens, K regions, M masked positions, F region feature size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.boxes import pairwise_iou
from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, RegionBatch
from tbkin_core.graphs.arrays import ShardArrays
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.store import GraphStore
from tbkin_core.masking import (
    MASK,
    REPLACE,
    CrossStructure,
    MaskingConfig,
    TextStructure,
    attribute_probability,
    interference_mask,
    mask_regions,
    mask_text,
    relation_probability,
    text_side,
)
from tbkin_core.modeling.losses import (
    masked_word_loss,
    matching_loss,
    optimal_transport_distance,
    region_class_loss,
    region_feature_loss,
)
from tbkin_core.support.randomness import mix, uniform
from tbkin_core.support.shards import ragged_gather, ragged_offsets
from tbkin_core.tasks import listed, model_inputs
from tbkin_core.texts.table import TextTable, encode_texts
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS
from tbkin_core.training import Batch, to_device

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MISMATCH, _PARTNER = 30, 31
VALIDATION_EPOCH = 1_000_003  # masks of the validation captions, the same after every epoch


@dataclass(slots=True)
class CaptionTable:
    """Captions of one dataset, split or several, with the structure that masking needs.

    Attributes:
        tokens: N captions as token lists; none any more once `PretrainTask` has encoded them.
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


class PretrainTask:
    """Masked word prediction, masked region modelling and image-text matching.

    Args:
        train, validation: Captions of each dataset, with the features of their images.
        tokenizer: Of the model.
        masking: What is hidden.
        seed: All draws follow from it.
        mismatch: Chance of a caption to get another image.
        ot_weight: Weight of the optimal-transport term.
        max_text_tokens, max_regions: Longer texts and images of more regions are cut.
        batch_size: Of validation.
        weights: How often an epoch shows each dataset's captions: 2 twice, each time hidden otherwise, 0.5
            another half in every epoch. None shows each once.

    Raises:
        DataError: No training caption has an image with features, or the weights leave none.
    """

    name = "pretrain"
    metric = "score"

    def __init__(
        self,
        train: Sequence[tuple[CaptionTable, FeatureStore]],
        validation: Sequence[tuple[CaptionTable, FeatureStore]],
        tokenizer: Tokenizer,
        masking: MaskingConfig,
        *,
        seed: int,
        mismatch: float,
        ot_weight: float,
        max_text_tokens: int,
        max_regions: int,
        batch_size: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.masking = masking
        self.seed = seed
        self.mismatch = mismatch
        self.ot_weight = ot_weight
        self.max_regions = max_regions
        self.batch_size = batch_size
        self.vocabulary = tokenizer.get_vocab_size()
        self.mask_id = tokenizer.token_to_id("[MASK]") or 0
        self.first_ordinary = 1 + max(tokenizer.token_to_id(token) or 0 for token in SPECIAL_TOKENS)
        if self.first_ordinary >= self.vocabulary:
            self.first_ordinary = 0
        self.train = _Side(train, tokenizer, max_text_tokens, masking)
        self.validation = _Side(validation, tokenizer, max_text_tokens, masking) if validation else None
        if not len(self.train.table):
            raise DataError(
                "pretrain: no training caption has an image with features",
                hint="run `tbkin extract-features` and `tbkin build-graphs` on the same data first",
            )
        self._parts, self._row_of = _repeated([len(table) for table, _ in train], weights)
        if not len(self.samples(0)):
            raise DataError("pretrain: the weights of the datasets leave no caption to train on")

    def lengths(self) -> NDArray:
        return self.train.table.lengths[self._row_of]

    def samples(self, epoch: int) -> NDArray[np.int64]:
        chosen = []
        for number, (keys, count) in enumerate(self._parts):
            if count < len(keys):
                generator = np.random.default_rng(mix(self.seed, epoch, number, 3))
                keys = np.sort(generator.permutation(keys)[:count])
            chosen.append(keys)
        return np.concatenate(chosen)

    def fingerprint(self) -> int:
        """A number that changes with the captions, their order, their graphs and their images."""
        captions = self.train.captions
        arrays = (
            self._row_of,
            self.train.table.ids,
            self.train.rows,
            captions.pair_object,
            captions.pair_word,
            captions.pair_prior,
            captions.cross_region,
            captions.cross_weight,
        )
        value = 0
        for array in arrays:
            value = zlib.crc32(array.tobytes(), value)
        return value

    def named(self, rows: NDArray) -> str:
        return listed(
            "captions of images", [self.train.captions.image_ids[row] for row in self._row_of[rows]]
        )

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        return self._collate(self.train, self._row_of[rows], rows, epoch)

    def _collate(self, side: _Side, rows: NDArray, samples: NDArray, epoch: int) -> Batch:
        """Arrays of (B,) captions; what is hidden of each follows from its number in `samples`."""
        key = mix(self.seed, epoch)
        input_ids, attention_mask, word_ids = side.table.padded(rows)
        image_of, matched = side.partners(rows, samples, key, self.mismatch)
        regions = side.regions(image_of, self.max_regions)
        on_text = text_side(self.masking, self.seed, epoch, samples)

        structure = side.structure(rows)
        action, replacement = mask_text(
            word_ids,
            structure,
            self.vocabulary,
            self.first_ordinary,
            self.masking,
            self.seed,
            epoch,
            samples,
        )
        action = np.where(on_text[:, None], action, -1)
        masked_ids = np.where(
            action == MASK, self.mask_id, np.where(action == REPLACE, replacement, input_ids)
        )

        on_regions = np.flatnonzero(~on_text)
        region_action = np.full(regions.mask.shape, -1, np.int8)
        source = np.zeros(regions.mask.shape, np.int64)
        region_action[on_regions], source[on_regions] = mask_regions(
            regions.mask[on_regions],
            side.cross_weight(image_of[on_regions], regions.mask.shape[1]),
            pairwise_iou(regions.boxes[on_regions]),
            self.masking,
            self.seed,
            epoch,
            samples[on_regions],
        )

        # A mismatched pair is masked like any other (its regions by their own caption's edges), so that the
        # masks do not tell it; but it teaches no words.
        text_targets = (action >= 0) & matched[:, None]
        region_targets = (region_action >= 0) & matched[:, None]
        features = regions.features
        feature_labels = features[region_targets]
        # In place, but what replaces a region is as it was.
        replaced = region_action == REPLACE
        sample = np.nonzero(replaced)[0]
        put = features[sample, source[replaced]]
        features[region_action == MASK] = 0
        features[replaced] = put
        batch = {
            "input_ids": masked_ids,
            "attention_mask": attention_mask,
            "region_features": features,
            "region_geometry": regions.geometry,
            "region_mask": regions.mask,
            "text_targets": text_targets,
            "text_labels": input_ids[text_targets],
            "region_targets": region_targets,
            "feature_labels": feature_labels,
            "object_labels": regions.object_ids[region_targets],
            "object_scores": regions.object_scores[region_targets],
            "attribute_labels": regions.attribute_ids[region_targets],
            "attribute_scores": regions.attribute_scores[region_targets],
            "matched": matched.astype(np.int64),
        }
        if self.masking.interference:
            # For a mismatched pair by its own caption's edges too, so that this does not tell it either.
            batch["pair_mask"] = interference_mask(
                word_ids,
                action >= 0,
                region_action >= 0,
                structure,
                side.cross(rows),
                pairwise_iou(regions.boxes),
                self.masking,
            )
        return batch

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        counts = {
            "mlm": len(batch["text_labels"]),
            "mrfr": len(batch["feature_labels"]),
            "object": int((batch["object_labels"] >= 0).sum()),
            "attribute": int((batch["attribute_labels"] >= 0).sum()),
            "itm": len(batch["matched"]),
        }
        if self.ot_weight > 0:
            counts["alignment"] = len(batch["matched"])
        return {name: float(count) for name, count in counts.items()}

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self._losses(self._forward(model, batch), batch)

    def _forward(self, model: Any, batch: Batch) -> Any:
        return model(
            **model_inputs(batch), text_targets=batch["text_targets"], region_targets=batch["region_targets"]
        )

    def _losses(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        losses = {
            "mlm": masked_word_loss(output.mlm_logits, batch["text_labels"]),
            "mrfr": region_feature_loss(output.region_feature_pred, batch["feature_labels"]),
            "object": region_class_loss(output.object_logits, batch["object_labels"], batch["object_scores"]),
            "attribute": region_class_loss(
                output.attribute_logits, batch["attribute_labels"], batch["attribute_scores"]
            ),
            "itm": matching_loss(output.itm_logits, batch["matched"]),
        }
        if self.ot_weight > 0:
            distance = optimal_transport_distance(
                output.text_states, output.region_states, batch["attention_mask"], batch["region_mask"]
            )
            sign = 2.0 * batch["matched"].to(distance.dtype) - 1.0
            losses["alignment"] = self.ot_weight * (distance * sign).sum()
        return losses

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        """Validation loss and accuracy of each objective."""
        if self.validation is None or not len(self.validation.table):
            return {}
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        right = {"mlm": 0.0, "object": 0.0, "attribute": 0.0, "itm": 0.0}
        with torch.inference_mode():
            for begin in range(0, len(self.validation.table), self.batch_size):
                rows = np.arange(begin, min(begin + self.batch_size, len(self.validation.table)))
                arrays = self._collate(self.validation, rows, rows, VALIDATION_EPOCH)
                batch = to_device(arrays, device)
                output = self._forward(model, batch)
                for name, count in self.targets(arrays, 0).items():
                    counts[name] = counts.get(name, 0.0) + count
                for name, loss in self._losses(output, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(loss)
                for name, logits, labels in (
                    ("mlm", output.mlm_logits, batch["text_labels"]),
                    ("object", output.object_logits, batch["object_labels"]),
                    ("attribute", output.attribute_logits, batch["attribute_labels"]),
                    ("itm", output.itm_logits, batch["matched"]),
                ):
                    right[name] += float((logits.argmax(dim=-1) == labels).sum())
        losses = {name: value / counts[name] for name, value in sums.items() if counts[name]}
        total = sum(losses.values())
        return {
            "val_loss": total,
            **{f"val_{name}_loss": value for name, value in losses.items()},
            **{
                f"val_{name}_accuracy": 100 * hits / counts[name]
                for name, hits in right.items()
                if counts[name]
            },
            "score": -total,
        }


class _Side:
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


def _repeated(
    sizes: Sequence[int], weights: Sequence[float] | None
) -> tuple[list[tuple[NDArray[np.int64], int]], NDArray[np.int64]]:
    """Samples of datasets of some sizes, shown as often as their weights say.

    Returns:
        Groups of sample numbers, each with how many of them an epoch shows; and the row of each sample.
        The first so many samples are the rows themselves.
    """
    whole = np.arange(sum(sizes))
    parts: list[tuple[NDArray[np.int64], int]] = []
    rows = [whole]
    count = len(whole)
    for size, first, weight in zip(
        sizes, ragged_offsets(list(sizes))[:-1], weights or [1.0] * len(sizes), strict=True
    ):
        own = whole[first : first + size]
        keys, rest = own, float(weight)
        while rest > 0:
            parts.append((keys, round(min(rest, 1.0) * size)))
            rest -= 1
            if rest > 0:
                keys = count + np.arange(size)
                rows.append(own)
                count += size
    return parts or [(whole[:0], 0)], np.concatenate(rows)
