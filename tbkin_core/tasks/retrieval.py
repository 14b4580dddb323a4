"""Retrieval: the image that a caption is of among many, and the captions of an image.

Two towers bring a shortlist, the encoder over text and image together ranks it. Letters: B batch, N texts,
M images, S shortlist, T text tokens, K regions, D width of the encoder, E of the towers' vectors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.datasets.records import Caption
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.evaluation.linear import mean_vectors
from tbkin_core.evaluation.linear_towers import LinearTowers, fit_linear_towers
from tbkin_core.evaluation.ranking import (
    Relevance,
    Shortlist,
    chances,
    median_by_chance,
    nearest,
    recalls,
)
from tbkin_core.modeling import TbkinForRetrieval
from tbkin_core.modeling.losses import contrastive_loss, matching_loss
from tbkin_core.support.ranks import world_size
from tbkin_core.support.shards import ragged_offsets
from tbkin_core.tasks.base import (
    OWN_ROW,
    FinetuneObjective,
    FinetuneTask,
    Head,
    LearningPlan,
    ReportRow,
    SampleSet,
    Shown,
    Split,
    SplitReport,
    listed,
)
from tbkin_core.tasks.inputs import Batch, Inputs, check_finite, model_inputs
from tbkin_core.tasks.pairs import SHORTLIST, PairEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tbkin_core.datasets import Dataset
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.settings import FinetuneConfig

CAPTIONS, IMAGES = 5, 5000
"""The usual protocol: five captions an image, the images of Karpathy's test split of COCO at most."""

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Of a match beside the similarity of the towers: what is best on validation is kept with the weights."""

MATCHED = 3
"""Of every so many images one is matched in an epoch, by text and image together."""

VALIDATION_IMAGES, VALIDATION_SHORTLIST = 250, 10
"""What is ranked after every epoch."""

TO_IMAGE, TO_TEXT = "text to image", "image to text"


@dataclass(frozen=True, slots=True)
class Rankings:
    """How a model ranks the M images of a split for its N texts, and the texts for the images."""

    image_rows: NDArray[np.int64]  # (M,) of the feature store
    image_of: NDArray[np.int64]  # (N,) place of each text's image among the M
    texts: NDArray[np.float32]  # (N, E) of the towers
    images: NDArray[np.float32]  # (M, E)
    by_text: Shortlist  # of images
    by_image: Shortlist  # of texts

    def ordered(self, weight: float) -> Rankings:
        """The same where the encoder has another weight beside the towers."""
        by_text, by_image = self.by_text.ordered(weight), self.by_image.ordered(weight)
        return replace(self, by_text=by_text, by_image=by_image)


class RetrievalTask(FinetuneTask[Caption]):
    """Retrieval, both ways."""

    name = "retrieval"
    head = TbkinForRetrieval
    metric = "R@1"
    unit = "caption"
    label = "captions"
    of_captions = True

    def __init__(self, shortlist: int = SHORTLIST) -> None:
        self.shortlist = shortlist
        self._fitted: tuple[Split[Caption], LinearTowers | None] | None = None

    def found_in(self, dataset: Dataset) -> bool:
        return any(item.image_id is not None for item in dataset.captions(whole=True))

    def split_names(self, dataset: Dataset, subset: str | None) -> list[str]:
        return list(dict.fromkeys(item.split for item in _captions(dataset, subset)))

    def split_samples(self, dataset: Dataset, split: str, subset: str | None) -> list[Caption]:
        return [item for item in _captions(dataset, subset) if item.split == split]

    def samples(self, dataset: Dataset, subset: str | None) -> SampleSet[Caption]:
        splits: dict[str, list[Caption]] = {}
        for item in _captions(dataset, subset):
            splits.setdefault(item.split, []).append(item)
        alone = sum(item.image_id is None for item in dataset.captions(whole=True))
        notes = [f"{alone} captions are of no image (left out)"] if alone else []
        return SampleSet(splits, notes=notes)

    def text(self, sample: Caption) -> str:
        return sample.text

    def evaluated(self, samples: Sequence[Caption]) -> list[Caption]:
        taken: dict[Any, int] = {}
        kept = []
        for item in samples:
            if item.image_id not in taken and len(taken) == IMAGES:
                continue
            taken[item.image_id] = count = taken.get(item.image_id, 0) + 1
            if count <= CAPTIONS:
                kept.append(item)
        return kept

    def build_head(self, training: Sequence[Caption], config: FinetuneConfig) -> Head:
        return Head()

    def targets(self, samples: Sequence[Caption], store: FeatureStore) -> Relevance:
        """Which captions are true of which images, numbered as `Rankings` numbers them."""
        rows = np.array([store.row(item.image_id) for item in samples], np.int64)  # type: ignore[arg-type]
        return Relevance.of([item.text for item in samples], np.unique(rows, return_inverse=True)[1])

    def objective(
        self, splits: Mapping[str, Split], head: Head, config: FinetuneConfig, plan: LearningPlan
    ) -> RetrievalObjective:
        validation = splits.get("val") or None
        sample = validation and self._sample(validation)
        objective = RetrievalObjective(splits["train"], sample, plan.batch_size)
        if not plan.epochs:
            objective.match_weight = 0.0  # nothing tells whether the encoder is right
        if (at_once := min(plan.micro_batch_size, plan.batch_size // world_size())) < plan.batch_size:
            objective.notes.append(
                f"a text is told from the {at_once} images that a device takes at once, not from all"
                f" {plan.batch_size} of a batch: less is learnt than where it takes all"
            )
        for name, split in splits.items():
            if shared := split.targets.shared:
                objective.notes.append(
                    f"{name}: {shared} of {len(split)} captions are said of several images: each is right"
                )
        return objective

    def begin(
        self, model: Any, training: Split[Caption], tokenizer: Tokenizer, known: Mapping[str, Tensor]
    ) -> str:
        if any(name.startswith("image_tower.") for name in known):
            return ""
        linear = self._linear(training)
        if linear is None:
            return ""
        embeddings = model.tbkin.region_embeddings
        mean, scale = (part.numpy() for part in (embeddings.feature_mean, embeddings.feature_scale))
        width = min(model.config.tower_width, len(linear.correlation))
        given = linear.as_layers(tokenizer.get_vocab(), mean, scale, width)
        model.begin(*(torch.from_numpy(part) for part in given))
        return f"the towers begin as linear ones, fitted to {linear.values['captions']:,} captions"

    def _linear(self, training: Split[Caption]) -> LinearTowers | None:
        """The linear towers of a training split, fitted once."""
        if self._fitted is None or self._fitted[0] is not training:
            towers = fit_linear_towers([item.text for item in training.samples], training.inputs)
            self._fitted = (training, towers)
        return self._fitted[1]

    def _sample(self, split: Split[Caption]) -> Split[Caption]:
        """The captions of as many images as are ranked after every epoch."""
        images = np.unique(split.inputs.rows)
        count = min(len(images), VALIDATION_IMAGES)
        chosen = images[np.linspace(0, len(images) - 1, count).astype(np.int64)]
        rows = np.flatnonzero(np.isin(split.inputs.rows, chosen))
        samples = [split.samples[row] for row in rows]
        return Split(samples, split.inputs.part(rows), self.targets(samples, split.inputs.store))

    def predict(self, model: Any, inputs: Inputs, device: torch.device, batch_size: int) -> Rankings:
        rows, image_of = np.unique(inputs.rows, return_inverse=True)
        encoder = PairEncoder(model, inputs, rows, device, batch_size)
        texts, images = encoder.texts, encoder.images
        check_finite(model, texts)
        check_finite(model, images)
        by_text = nearest(texts, images, self.shortlist)
        by_image = nearest(images, texts, self.shortlist)
        places = [
            (np.repeat(np.arange(len(texts)), by_text[0].shape[1]), by_text[0].ravel()),
            (by_image[0].ravel(), np.repeat(np.arange(len(images)), by_image[0].shape[1])),
        ]
        pairs = np.concatenate([text * len(images) + image for text, image in places])
        distinct, where = np.unique(pairs, return_inverse=True)
        logits = encoder.logits(distinct // len(images), distinct % len(images))[where]
        check_finite(model, logits)
        lists = [
            Shortlist(found, encoder.scale * similar, part.reshape(found.shape))
            for (found, similar), part in zip(
                (by_text, by_image), np.split(logits, [by_text[0].size]), strict=True
            )
        ]
        rankings = Rankings(rows, image_of, texts, images, *lists)
        return rankings.ordered(model.config.match_weight)

    def scores(self, split: Split, predictions: Rankings) -> NDArray[np.float64]:
        """(N,) for each caption the mean of whether its image comes first, and one of its image's captions.

        Over all captions that is the mean of R@1 both ways, where images have equally many.
        """
        to_image, to_text = self._ranks(split, predictions)
        return ((to_image == 1).astype(np.float64) + (to_text == 1)[predictions.image_of]) / 2

    def _ranks(
        self, split: Split, predictions: Rankings, towers: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) rank of the image of each text, and (M,) of the best text of each image."""
        lists = () if towers else (predictions.by_text, predictions.by_image)
        found: tuple[NDArray[np.int64], NDArray[np.int64]]
        found = split.targets.ranks(predictions.texts, predictions.images, *lists)
        return found

    def report(
        self, split: Split, predictions: Rankings, training: Sequence[Caption], blind: bool, hidden: Any
    ) -> SplitReport:
        found, true = predictions, split.targets
        to_image, to_text = self._ranks(split, found)
        ids = split.inputs.store.image_ids
        results = [
            {
                "image_id": item.image_id,
                "text": item.text,
                "type": "",
                "found": ids[found.image_rows[places[0]]],
                "probability": round(float(certainty[0]), 4),
                "rank": int(rank),
                "score": float(rank == 1),
            }
            for item, places, certainty, rank in zip(
                split.samples, found.by_text.places, found.by_text.probability, to_image, strict=True
            )
        ]
        images = [ids[row] for row in found.image_rows]
        counts = np.bincount(true.texts), np.bincount(true.images)
        alone = self._ranks(split, found, towers=True)
        rows = []
        for way, right, answers, of_towers, own, asked in (
            (TO_TEXT, counts[1], len(split), alone[1], to_text, images),
            (TO_IMAGE, counts[0], len(images), alone[0], to_image, split.image_ids),
        ):
            by_chance = chances(right, answers), median_by_chance(right, answers)
            rows += [
                _row("random", 0, way, *by_chance, asked),
                _row("towers alone", 2, way, *_found(of_towers), asked),
                _row("this model", OWN_ROW, way, *_found(own), asked),
            ]
        return SplitReport(results, rows)

    def baselines(self, training: Split, model: Any, blind: bool) -> LinearBaselines | None:
        towers = self._linear(training)
        return None if towers is None else LinearBaselines(towers)

    def prediction_rows(
        self, model: Any, samples: Sequence[Caption], split: Split, predictions: Rankings
    ) -> tuple[list[dict[str, Any]], str]:
        found, ids = predictions, split.inputs.store.image_ids
        images = np.array([ids[row] for row in found.image_rows], dtype=object)
        texts = np.array([item.text_id for item in split.samples], dtype=object)
        rows: list[dict[str, Any]] = [
            {"text_id": item.text_id, "image_id": item.image_id, "images": images[places].tolist()}
            for item, places in zip(split.samples, found.by_text.places, strict=True)
        ]
        rows += [
            {"image_id": image, "texts": texts[places].tolist()}
            for image, places in zip(images, found.by_image.places, strict=True)
        ]
        return rows, "are left out"

    def shown(self, model: Any, output: Any, boxes: NDArray, size: tuple[int, int], top: int) -> Shown:
        share = float(output.itm_logits[0].float().softmax(dim=-1)[1])
        answers = [("belong together", share), ("do not belong together", 1 - share)]
        return Shown(sorted(answers, key=lambda answer: -answer[1])[:top])


@dataclass(frozen=True, slots=True)
class LinearBaselines:
    """Rows of the linear towers."""

    towers: LinearTowers

    @property
    def values(self) -> dict[str, Any]:
        return {"linear": self.towers.values}

    @property
    def notes(self) -> list[str]:
        return []

    def rows(self, split: Split) -> list[ReportRow]:
        images = np.unique(split.inputs.rows)
        texts = self.towers.texts([item.text for item in split.samples])
        vectors = self.towers.vectors(mean_vectors(split.inputs, images))
        to_image, to_text = split.targets.ranks(texts, vectors)
        ids = [split.inputs.store.image_ids[row] for row in images]
        return [
            _row("linear towers", 1, TO_TEXT, *_found(to_text), ids),
            _row("linear towers", 1, TO_IMAGE, *_found(to_image), split.image_ids),
        ]


def _found(rank: NDArray[np.int64]) -> tuple[dict[str, NDArray[np.float64]], float]:
    return recalls(rank), float(np.median(rank))


def _row(
    model: str, order: int, way: str, found: Mapping[str, NDArray], median: float, images: Sequence[Any]
) -> ReportRow:
    """A row of a report: recalls (Q,) of the queries one way, their median rank, and their images."""
    first, *rest = found
    also = {name: found[name] for name in rest}
    return ReportRow(model, found[first], order, way, images, also, {"median": median})


def _captions(dataset: Dataset, subset: str | None) -> list[Caption]:
    """All captions of images, phrases of parts of images aside.

    Raises:
        ConfigError: A set of them is named.
        DataError: There is none.
    """
    if subset is not None:
        raise ConfigError(f"dataset: captions are one set, got {subset!r}", hint="omit --dataset")
    captions = dataset.captions(whole=True)
    found = [item for item in captions if item.image_id is not None]
    if not found:
        alone = f"; {len(captions)} captions are of no image that is named" if captions else ""
        raise DataError(
            f"{dataset.path}: no captions of images (found: {', '.join(dataset.layouts)}){alone}"
            f"{dataset.unread()}",
            hint="expected captions of COCO, Flickr or Karpathy, or captions.jsonl with lines such as"
            ' {"image": "dog.jpg", "caption": "a dog jumps"}',
        )
    return found


class RetrievalObjective(FinetuneObjective):
    """What a retrieval model learns: towers by contrast, the encoder by matching what they find hard.

    A sample is an image with five of its captions at most, others in every epoch.

    Raises:
        DataError: There is only one image to learn from.
    """

    compares_samples = True

    def __init__(
        self,
        train: Split[Caption],
        validation: Split[Caption] | None,
        batch_size: int,
    ) -> None:
        images, image_of = np.unique(train.inputs.rows, return_inverse=True)
        order = np.argsort(image_of, kind="stable")
        self._texts, self._offsets = order, ragged_offsets(np.bincount(image_of, minlength=len(images)))
        task = RetrievalTask(VALIDATION_SHORTLIST)
        super().__init__(task, train, validation, order[self._offsets[:-1]], batch_size)
        self.unit = "image"
        self.match_weight = 1.0
        if len(images) < 2:
            raise DataError(
                "finetune: all training captions are of one image, so there is nothing to tell it from",
                hint="add captions of other images",
            )

    def targets_checksum(self) -> int:
        # In earlier versions words did not weigh about alike in a match: a run of these does not go on.
        value = zlib.crc32(b"even words")
        return zlib.crc32(self._texts.tobytes(), zlib.crc32(self._offsets.tobytes(), value))

    def accuracy(self, model: Any, inputs: Inputs, device: torch.device) -> float:
        """In percent, where the encoder has the weight that is best on these samples."""
        found = self.task.predict(model, inputs, device, self.batch_size)
        reached = {
            weight: 100 * float(self.task.scores(self.validation, found.ordered(weight)).mean())
            for weight in WEIGHTS
        }
        self.match_weight = max(reached, key=reached.__getitem__)
        return reached[self.match_weight]

    def kept_values(self) -> dict[str, Any]:
        return {"match_weight": self.match_weight}

    def named(self, rows: NDArray) -> str:
        return listed("images", [self.train.samples[row].image_id for row in self.rows[rows]])

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        texts, own = [], []
        for place, row in enumerate(rows):
            captions = self._texts[self._offsets[row] : self._offsets[row + 1]]
            # In turn, so that each is learnt as often as the others.
            first = epoch * CAPTIONS if len(captions) > CAPTIONS else epoch
            count = min(len(captions), CAPTIONS)
            texts.append(captions[(first + np.arange(count)) % len(captions)])
            own.append(np.full(count, place))
        starts = ragged_offsets([len(part) for part in texts])[:-1]
        samples, of_image = np.concatenate(texts), np.concatenate(own)
        said = self.train.targets.said[samples]
        positives = np.zeros((len(samples), len(rows)), np.bool_)
        alike, pair = np.nonzero(said[:, None] == said[None, :])
        positives[alike, of_image[pair]] = True
        input_ids, mask, _ = self.train.inputs.table.padded(samples)
        regions = self.train.inputs.regions(self.rows[rows])
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "region_features": regions.features,
            "region_geometry": regions.geometry,
            "region_mask": regions.mask,
            "own": of_image,
            "positives": positives,
            # Of others in the next epoch: a match costs as much as three texts and an image alone.
            "chosen": starts[epoch % MATCHED :: MATCHED] if len(rows) > MATCHED else starts,
        }

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        return {"contrast": 2.0 * len(batch["own"]), "match": 3.0 * len(batch["chosen"])}

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        positives, chosen = batch["positives"], batch["chosen"]
        output = model(**model_inputs(batch), positives=positives, own=batch["own"], chosen=chosen)
        return {
            "contrast": contrastive_loss(output.similarities, positives, batch["own"]),
            "match": matching_loss(output.itm_logits, output.matched),
        }
