"""The pretraining task: masked words, masked regions, image-text matching over a graph store.

Letters: B batch, T text tokens, K regions, M masked positions, F region feature size.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.boxes import pairwise_iou
from tbkin_core.errors import DataError
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.vectors import Vectors
from tbkin_core.modeling.kernel_checks import transport_kernel_works
from tbkin_core.modeling.losses import (
    image_words_loss,
    masked_word_loss,
    matching_loss,
    optimal_transport_distance,
    region_class_loss,
    region_feature_loss,
)
from tbkin_core.support.console import progress
from tbkin_core.support.randomness import mix
from tbkin_core.tasks.base import Shown, Task, listed
from tbkin_core.tasks.captions import CaptionSide, CaptionTable
from tbkin_core.tasks.inputs import Batch, check_finite, model_inputs, to_device
from tbkin_core.tasks.masking import (
    MASK,
    REPLACE,
    MaskingConfig,
    interference_mask,
    mask_regions,
    mask_text,
    text_side,
    whole_samples,
)
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VALIDATION_EPOCH = 1_000_003  # masks of the validation captions, the same after every epoch
WITHOUT_IMAGE = "mlm_without_image"
NOT_ASKED = -100  # a label that costs nothing


class PretrainTask(Task):
    """Whether image and text belong together: what a pretrained model can be asked."""

    name = "pretrain"

    def shown(self, model: Any, output: Any, boxes: NDArray, size: tuple[int, int], top: int) -> Shown:
        match = float(output.itm_logits[0].float().softmax(dim=-1)[1])
        return Shown([("belong together", match), ("do not", 1 - match)])


class PretrainObjective:
    """Masked word prediction, masked region modelling and image-text matching.

    Args:
        train, validation: Captions of each dataset, with the features of their images.
        tokenizer: Of the model.
        seed: All draws follow from it.
        mismatch: Chance of a caption that is asked for its match to get another image.
        match_hidden: Ask all captions for their match, of words and regions of which some are hidden. Else
            half of the captions are asked, nothing of them is hidden, and words and regions of the others
            alone; with half of those asked swapped, as many captions teach words either way.
        ot_weight: Weight of the optimal-transport term.
        max_text_tokens, max_regions: Longer texts and images of more regions are cut.
        batch_size: Of validation.
        weights: How often an epoch shows each dataset's captions: 2 twice, each time hidden otherwise, 0.5
            another half in every epoch. None shows each once.
        kernels: Find optimal transport in one kernel on a device where that works.
        tells_words: Learn which words are said of an image, with a model that has such a head.

    Raises:
        DataError: No training caption has an image with features, or the weights leave none.
    """

    name = "pretrain"
    metric = "score"
    uses_all_weights = True
    compares_samples = False

    def __init__(
        self,
        train: Sequence[tuple[CaptionTable, FeatureStore]],
        validation: Sequence[tuple[CaptionTable, FeatureStore]],
        tokenizer: Tokenizer,
        masking: MaskingConfig,
        *,
        seed: int,
        mismatch: float,
        match_hidden: bool = False,
        ot_weight: float,
        max_text_tokens: int,
        max_regions: int,
        batch_size: int,
        weights: Sequence[float] | None = None,
        kernels: bool = True,
        tells_words: bool = False,
    ) -> None:
        self.kernels, self.tells_words = kernels, tells_words
        self.masking, self.seed, self.ot_weight = masking, seed, ot_weight
        self.mismatch, self.match_hidden = mismatch, match_hidden
        self.max_regions, self.batch_size = max_regions, batch_size
        self.vocabulary = tokenizer.get_vocab_size()
        self.mask_id = tokenizer.token_to_id("[MASK]") or 0
        self.first_ordinary = 1 + max(tokenizer.token_to_id(token) or 0 for token in SPECIAL_TOKENS)
        if self.first_ordinary >= self.vocabulary:
            self.first_ordinary = 0
        self.train = CaptionSide(train, tokenizer, max_text_tokens, masking)
        self.vectors = self.train.vectors
        self.validation = CaptionSide(validation, tokenizer, max_text_tokens, masking) if validation else None
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

    def fingerprint(self) -> str:
        """Changes with the captions, their order, their graphs and their images."""
        captions = self.train.captions
        pairs = (captions.pair_object, captions.pair_word, captions.pair_prior)
        edges = (captions.cross_region, captions.cross_weight)
        # What earlier versions did otherwise: masked words are also told from where they attend, half of the
        # captions are asked for their match, and words weigh about alike there.
        value = zlib.crc32(b"attended" * self.tells_words + b"asked" * (not self.match_hidden) + b"even")
        for array in (self._row_of, self.train.table.ids, self.train.rows, *pairs, *edges):
            value = zlib.crc32(array.tobytes(), value)
        return str(value)

    def named(self, rows: NDArray) -> str:
        image_ids = self.train.captions.image_ids
        return listed("captions of images", [image_ids[row] for row in self._row_of[rows]])

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        asked = np.ones(len(rows), bool)
        if not self.match_hidden:
            # Where no caption is swapped, all of the answers are yes.
            asked = whole_samples(self.seed, epoch, rows) & (self.mismatch > 0)
        return self._collate(self.train, self._row_of[rows], rows, epoch, asked)

    def _collate(
        self, side: CaptionSide, rows: NDArray, samples: NDArray, epoch: int, asked: NDArray[np.bool_]
    ) -> Batch:
        """Arrays of (B,) captions, `asked` for their match or not.

        What is hidden of each follows from its number in `samples`.
        """
        key = mix(self.seed, epoch)
        input_ids, attention_mask, word_ids = side.table.padded(rows)
        image_of, matched = side.partners(rows, samples, key, self.mismatch)
        image_of, matched = np.where(asked, image_of, rows), matched | ~asked
        hidden = np.full(len(rows), True) if self.match_hidden else ~asked
        regions = side.regions(image_of, self.max_regions)
        on_text = text_side(self.masking, self.seed, epoch, samples)

        structure = side.structure(rows)
        action, replacement = mask_text(
            word_ids, structure, self.vocabulary, self.first_ordinary, self.masking, self.seed, epoch, samples
        )
        action = np.where((on_text & hidden)[:, None], action, -1)
        masked_ids = np.select([action == MASK, action == REPLACE], [self.mask_id, replacement], input_ids)

        on_regions = np.flatnonzero(~on_text & hidden)
        boxes = regions.boxes[on_regions]
        region_action = np.full(regions.mask.shape, -1, np.int8)
        source = np.zeros(regions.mask.shape, np.int64)
        region_action[on_regions], source[on_regions] = mask_regions(
            regions.mask[on_regions],
            side.cross_weight(image_of[on_regions], regions.mask.shape[1]),
            lambda sample, place: pairwise_iou(boxes[sample, place][:, None], boxes[sample])[:, 0],
            self.masking,
            self.seed,
            epoch,
            samples[on_regions],
        )

        # With `match_hidden` a mismatched pair is masked like any other (its regions by their own caption's
        # edges), so that the masks do not tell it; but it teaches no words.
        text_targets = (action >= 0) & matched[:, None]
        region_targets = (region_action >= 0) & matched[:, None]
        rows_of = regions.features.rows
        put = np.take_along_axis(rows_of, source, axis=1)
        shown = np.select([region_action == MASK, region_action == REPLACE], [-1, put], rows_of)
        batch = {
            "input_ids": masked_ids,
            "attention_mask": attention_mask,
            "region_features": Vectors(regions.features.table, shown),
            "region_geometry": regions.geometry,
            "region_mask": regions.mask,
            "text_places": np.flatnonzero(text_targets),
            "text_labels": input_ids[text_targets],
            "region_places": np.flatnonzero(region_targets),
            "feature_labels": regions.features[region_targets],
            "object_labels": regions.object_ids[region_targets],
            "object_scores": regions.object_scores[region_targets],
            "attribute_labels": regions.attribute_ids[region_targets],
            "attribute_scores": regions.attribute_scores[region_targets],
            "matched": matched.astype(np.int64),
            "match_labels": np.where(asked, matched, NOT_ASKED),
            "caption_ids": input_ids,
            # The words of the image are those of its own caption.
            "caption_words": (input_ids >= self.first_ordinary)
            & attention_mask.astype(bool)
            & matched[:, None],
            "visible_regions": regions.mask & (region_action < 0),
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
            "object": (batch["object_labels"] >= 0).sum(),
            "attribute": (batch["attribute_labels"] >= 0).sum(),
            "itm": (batch["match_labels"] != NOT_ASKED).sum(),
        }
        if self.ot_weight > 0:
            counts["alignment"] = len(batch["matched"])
        if self.tells_words:
            counts["words"] = batch["caption_words"].any(axis=1).sum()
        return {name: float(count) for name, count in counts.items()}

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self._losses(_forward(model, batch), batch)

    def _losses(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        losses = {
            "mlm": masked_word_loss(output.mlm_logits, batch["text_labels"]),
            "mrfr": region_feature_loss(output.region_feature_pred, batch["feature_labels"]),
            "object": region_class_loss(output.object_logits, batch["object_labels"], batch["object_scores"]),
            "attribute": region_class_loss(
                output.attribute_logits, batch["attribute_labels"], batch["attribute_scores"]
            ),
            "itm": matching_loss(output.itm_logits, batch["match_labels"]),
        }
        if self.ot_weight > 0:
            distance = optimal_transport_distance(
                output.text_states,
                output.region_states,
                batch["attention_mask"],
                batch["region_mask"],
                kernel=self.kernels and transport_kernel_works(output.text_states.device),
            )
            sign = 2.0 * batch["matched"].to(distance.dtype) - 1.0
            losses["alignment"] = self.ot_weight * (distance * sign).sum()
        if self.tells_words:
            told = batch["caption_ids"], batch["caption_words"]
            losses["words"] = image_words_loss(output.word_logits, *told)
        return losses

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        """Validation loss and accuracy of each objective, and of masked words also without the image.

        What the image teaches of words is the difference of these two. Every caption is asked for its match,
        and words and regions of every caption, as in training, at once or one after the other.
        """
        if self.validation is None or not len(self.validation.table):
            return {}
        sums, counts, right = defaultdict[str, float](float), Counter[str](), Counter[str]()
        passes = (True,) if self.match_hidden else (False, True) if self.mismatch else (False,)
        with torch.inference_mode():
            begins = range(0, len(self.validation.table), self.batch_size)
            for begin in progress(begins, "evaluation", total=len(begins), unit="batch", delay=1.0):
                rows = np.arange(begin, min(begin + self.batch_size, len(self.validation.table)))
                for asked in passes:
                    arrays = self._collate(
                        self.validation, rows, rows, VALIDATION_EPOCH, np.full(len(rows), asked)
                    )
                    batch = to_device(arrays, device)
                    output = _forward(model, batch)
                    counts.update({name: int(count) for name, count in self.targets(arrays, 0).items()})
                    for name, loss in self._losses(output, batch).items():
                        sums[name] += float(loss)
                    told = [
                        ("mlm", output.mlm_logits, batch["text_labels"]),
                        ("object", output.object_logits, batch["object_labels"]),
                        ("attribute", output.attribute_logits, batch["attribute_labels"]),
                        ("itm", output.itm_logits, batch["match_labels"]),
                    ]
                    if len(arrays["text_labels"]):
                        unseen = {**batch, "region_mask": torch.zeros_like(batch["region_mask"])}
                        told.append((WITHOUT_IMAGE, _forward(model, unseen).mlm_logits, batch["text_labels"]))
                    for name, logits, labels in told:
                        right[name] += int((logits.argmax(dim=-1) == labels).sum())
        losses = {name: value / counts[name] for name, value in sums.items() if counts[name]}
        check_finite(model, np.array([list(losses.values())]))
        total = sum(losses.values())
        values = {"val_loss": total, **{f"val_{name}_loss": value for name, value in losses.items()}}
        counts[WITHOUT_IMAGE] = counts["mlm"]
        values |= {
            f"val_{name}_accuracy": 100 * hits / counts[name] for name, hits in right.items() if counts[name]
        }
        return {**values, "score": -total}

    def in_words(self, values: Mapping[str, float]) -> str:
        told = [f"loss {values['val_loss']:.4g}"]
        if (words := values.get("val_mlm_accuracy")) is not None:
            blind = values[f"val_{WITHOUT_IMAGE}_accuracy"]
            told.append(f"masked words {words:.1f} % ({blind:.1f} % without image)")
        names = (("object", "masked objects"), ("attribute", "masked attributes"), ("itm", "matching"))
        for name, what in names:
            if (value := values.get(f"val_{name}_accuracy")) is not None:
                told.append(f"{what} {value:.1f} %")
        return ", ".join(told)


_PLACES = ("text_places", "region_places", "visible_regions")


def _forward(model: Any, batch: Batch) -> Any:
    return model(**model_inputs(batch), **{name: batch[name] for name in _PLACES})


def _repeated(
    sizes: Sequence[int], weights: Sequence[float] | None
) -> tuple[list[tuple[NDArray[np.int64], int]], NDArray[np.int64]]:
    """Groups of samples of datasets of some sizes, each with how many of them an epoch shows by its weight.

    And the row of each sample; the first so many samples are the rows themselves.
    """
    whole = np.arange(sum(sizes))
    parts: list[tuple[NDArray[np.int64], int]] = []
    rows = [whole]
    count = len(whole)
    datasets = np.split(whole, np.cumsum(sizes)[:-1])
    for own, size, weight in zip(datasets, sizes, weights or [1.0] * len(sizes), strict=True):
        keys, rest = own, float(weight)
        while rest > 0:
            parts.append((keys, round(min(rest, 1.0) * size)))
            rest -= 1
            if rest > 0:
                keys = count + np.arange(size)
                rows.append(own)
                count += size
    return parts or [(whole[:0], 0)], np.concatenate(rows)
