"""Fine-tuning tasks: visual question answering and referring expression comprehension.

A task turns records and a feature store into batches, losses, predictions and metrics; `train` in
`tbkin_core.training` drives it. Letters: B batch, T text tokens, K regions.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.boxes import box_iou_paired, xywh_to_xyxy
from tbkin_core.datasets.records import Expression, Question
from tbkin_core.errors import DataError
from tbkin_core.evaluation.attribution import AttentionMeter
from tbkin_core.evaluation.vqa import answer_accuracy, normalize_answer, soft_scores, vqa_accuracy
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, RegionBatch
from tbkin_core.modeling.losses import answer_loss, box_loss, region_score_loss
from tbkin_core.support.randomness import mix, uniform
from tbkin_core.texts.table import TextTable, encode_texts
from tbkin_core.training import Batch, to_device

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Box refinements are learnt in units of these (Girshick 2015, Fast R-CNN).
BOX_SCALE = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
NEAR_IOU = 0.5
# Name of a stream of random numbers, see `uniform`.
_HIDDEN_IMAGES = 11


@dataclass(slots=True)
class Inputs:
    """Texts of one split beside the rows of their images in the feature store.

    Attributes:
        table: N tokenised texts.
        rows: (N,) row of each text's image in `store`.
        store: Region features.
        max_regions: Regions an image at most.
        blind: Give the model no region at all.
    """

    table: TextTable
    rows: NDArray[np.int64]
    store: FeatureStore
    max_regions: int
    blind: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> NDArray[np.int64]:
        """(N,) word pieces and regions of each sample together."""
        regions = 1 if self.blind else np.minimum(self.store.region_counts(self.rows), self.max_regions)
        return self.table.lengths + regions

    def regions(self, indices: NDArray) -> RegionBatch:
        """Regions of some samples."""
        return self.store.gather(self.rows[indices], self.max_regions)

    def batch(self, indices: NDArray, regions: RegionBatch | None = None) -> Batch:
        """The model's inputs for some samples, as arrays."""
        input_ids, attention_mask, _ = self.table.padded(indices)
        if self.blind:
            shape = (len(indices), 1)
            return {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "region_features": np.zeros((*shape, self.store.feature_size), np.float32),
                "region_geometry": np.zeros((*shape, 5), np.float32),
                "region_mask": np.zeros(shape, np.bool_),
            }
        regions = regions or self.regions(indices)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "region_features": regions.features,
            "region_geometry": regions.geometry,
            "region_mask": regions.mask,
        }

    def fingerprint(self) -> int:
        """A number that changes with the texts, their order, and their images."""
        value = zlib.crc32(self.table.ids.tobytes())
        value = zlib.crc32(self.table.offsets.tobytes(), value)
        return zlib.crc32(repr([self.store.image_ids[row] for row in self.rows[:1000]]).encode(), value)


def model_inputs(batch: Batch) -> Batch:
    """The part of a batch that a model's forward pass takes."""
    names = ("input_ids", "attention_mask", "region_features", "region_geometry", "region_mask", "pair_mask")
    return {name: batch[name] for name in names if name in batch}


def listed(what: str, items: Sequence[Any], shown: int = 4) -> str:
    """ "image ids 3, 7, 12, 40 and 28 more": for messages."""
    rest = f" and {len(items) - shown} more" if len(items) > shown else ""
    return f"{what} {', '.join(map(str, items[:shown]))}{rest}"


def with_features(image_ids: Sequence[ImageId], store: FeatureStore) -> NDArray[np.int64]:
    """Positions of the records whose image has features."""
    return np.array([index for index, image_id in enumerate(image_ids) if image_id in store], np.int64)


def build_inputs(
    texts: Sequence[str],
    image_ids: Sequence[ImageId],
    store: FeatureStore,
    tokenizer: Tokenizer,
    max_text_tokens: int,
    max_regions: int,
    blind: bool = False,
) -> Inputs:
    """Tokenise texts and look their images up; every image must be in the store."""
    rows = np.array([store.row(image_id) for image_id in image_ids], np.int64)
    return Inputs(encode_texts(tokenizer, texts, max_text_tokens), rows, store, max_regions, blind)


def evaluation_order(inputs: Inputs, batch_size: int) -> list[NDArray[np.int64]]:
    """All samples in batches of similar length."""
    order = np.argsort(inputs.lengths(), kind="stable")
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]


# ---- VQA ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class VqaSplit:
    """Questions of one split with features, and the score that each answer would get.

    Attributes:
        questions: N questions.
        inputs: Their model inputs.
        scores: One dict of normalised answer to soft score a question; empty without answers.
    """

    questions: list[Question]
    inputs: Inputs
    scores: list[dict[str, float]]

    @property
    def has_answers(self) -> bool:
        return any(self.scores)


def answer_vocabulary(questions: Sequence[Question], minimum: int | None) -> tuple[list[str], int]:
    """The answers to learn: the most common one of each question, counted over the training questions.

    Args:
        questions: Training questions.
        minimum: Answers that lead at least so many questions; None takes 9, as for VQA 2.0, from 50,000
            questions up, and fewer for smaller data.

    Returns:
        Answers by falling count, and the minimum used.
    """
    if minimum is None:
        minimum = 9 if len(questions) >= 50_000 else 3 if len(questions) >= 10_000 else 1
    counts: Counter[str] = Counter()
    for question in questions:
        if question.answers:
            given = Counter(normalize_answer(answer) for answer in question.answers)
            scores = soft_scores(question.answers)
            if not scores:  # articles and marks alone, of which normalisation leaves nothing
                continue
            # Keys of the scores: the official metric compares unanimous answers as they were written.
            leading = max(scores, key=lambda answer: (scores[answer], given[normalize_answer(answer)]))
            counts[leading] += 1
    answers = [answer for answer, count in counts.items() if count >= minimum and answer]
    if not answers:
        raise DataError(
            "finetune: no answer is left to learn",
            hint="lower --min-answer-count, or check the annotation files",
        )
    return sorted(answers, key=lambda answer: (-counts[answer], answer)), minimum


def load_answers(path: Path) -> list[str]:
    """A JSON list of answers, such as the 3,129 of VQA 2.0, without empty ones and repeats."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})", hint="name a JSON file"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error})", hint="expected a list of answers") from error
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        content = content[0]  # [answer to number, number to answer], as OpenVQA and ROSITA write it
    if isinstance(content, dict):
        content = list(content)
    if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
        raise DataError(f"{path}: is no list of answers", hint='expected JSON such as ["yes", "no", "2"]')
    answers = list(dict.fromkeys(answer for answer in content if answer.strip()))
    if not answers:
        raise DataError(f"{path}: holds no answers", hint='expected JSON such as ["yes", "no", "2"]')
    return answers


class VqaTask:
    """Visual question answering over a closed set of answers.

    Args:
        train, validation: Splits; None where the task only predicts.
        answers: What can be answered, in the order of the model's outputs.
        kl_epochs: Epochs with the KL loss before the BCE loss.
        batch_size: Samples at once in evaluation.
        seed: Decides with the epoch which images are hidden.
        image_dropout: Share of the questions of an epoch that are learnt without any region. The model then
            also answers from the question alone, and is measured both ways: `ignores_image` says whether the
            last evaluation was better without.
        blind_epochs: Epochs, the first ones, that learn from the questions alone.

    Raises:
        DataError: No training question has one of the answers.
    """

    name = "vqa"

    def __init__(
        self,
        train: VqaSplit | None,
        validation: VqaSplit | None,
        answers: Sequence[str],
        kl_epochs: int,
        batch_size: int,
        seed: int = 0,
        image_dropout: float = 0.0,
        blind_epochs: int = 0,
    ) -> None:
        self.seed = seed
        self.blind_epochs = blind_epochs
        self.metric = "best_accuracy" if image_dropout else "accuracy"
        self.ignores_image = False
        self.image_dropout = image_dropout
        self.validation = validation
        self.answers = list(answers)
        self.kl_epochs = kl_epochs
        self.batch_size = batch_size
        ids = {answer: number for number, answer in enumerate(self.answers)}
        self.train = train
        self.skipped = 0
        if train is not None:
            self._targets = [
                [(ids[answer], score) for answer, score in scores.items() if answer in ids and score > 0]
                for scores in train.scores
            ]
            # A question none of whose answers can be given would only teach the model to be unsure.
            self.rows = np.array([row for row, targets in enumerate(self._targets) if targets], np.int64)
            self.skipped = len(self._targets) - len(self.rows)
            if not len(self.rows):
                raise DataError(
                    f"finetune: none of the {len(self.answers)} answers to learn, such as"
                    f" {self.answers[0]!r}, is given to any of the {len(self._targets)} training questions",
                    hint="--answers takes them as the metric compares them: in lower case, without articles"
                    " and punctuation; leave it away for the answers of the data",
                )

    def fingerprint(self) -> int:
        """A number that changes with the answers to learn and with the targets."""
        return zlib.crc32(repr((self.answers, self._targets)).encode())

    def lengths(self) -> NDArray:
        assert self.train is not None
        return self.train.inputs.lengths()[self.rows]

    def samples(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(len(self.rows))

    def named(self, rows: NDArray) -> str:
        assert self.train is not None
        return listed("question ids", [self.train.questions[row].question_id for row in self.rows[rows]])

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        assert self.train is not None
        samples = self.rows[rows]
        targets = np.zeros((len(rows), len(self.answers)), np.float32)
        for place, sample in enumerate(samples):
            for answer, score in self._targets[sample]:
                targets[place, answer] = score
        inputs = self.train.inputs
        if epoch < self.blind_epochs:
            inputs = replace(inputs, blind=True)
        batch = inputs.batch(samples)
        batch["region_mask"] = self._shown(batch["region_mask"], samples, epoch)
        return {**batch, "targets": targets}

    def _shown(self, mask: NDArray[np.bool_], samples: NDArray, epoch: int) -> NDArray[np.bool_]:
        """(B, K) regions, without those of the images that are hidden in this epoch."""
        if not self.image_dropout:
            return mask
        hidden = uniform(mix(self.seed, epoch), _HIDDEN_IMAGES, samples, 1) < self.image_dropout  # (B, 1)
        return mask & ~hidden

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        return {"vqa": float(len(batch["targets"]))}

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits = model(**model_inputs(batch)).vqa_logits
        return {"vqa": answer_loss(logits, batch["targets"], "kl" if epoch < self.kl_epochs else "bce")}

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        if self.validation is None:
            return {}
        split = self.validation
        inputs = split.inputs

        def accuracy(model: Any, inputs: Inputs = inputs) -> float:
            predicted, _ = self.predict(model, inputs, device)
            return 100 * float(self.question_scores(split, predicted).mean())

        values = accuracy_and_kept(model, accuracy, inputs, self.batch_size)
        if self.image_dropout:
            without = accuracy(model, replace(inputs, blind=True))
            # Where the regions only mislead, the model is kept as one that answers without them.
            self.ignores_image = without > values["accuracy"]
            values |= {
                "accuracy_without_image": without,
                "best_accuracy": max(without, values["accuracy"]),
            }
        return values

    def predict(
        self, model: Any, inputs: Inputs, device: torch.device
    ) -> tuple[list[str], NDArray[np.float32]]:
        """The best answer of every sample, and its probability (N,)."""
        chosen = np.zeros(len(inputs), np.int64)
        probability = np.zeros(len(inputs), np.float32)
        for indices, output in run_batches(model, inputs, device, self.batch_size):
            best = output.vqa_logits.float().softmax(dim=-1).max(dim=-1)
            chosen[indices] = best.indices.cpu().numpy()
            probability[indices] = best.values.cpu().numpy()
        return [self.answers[answer] for answer in chosen], probability

    @staticmethod
    def question_scores(split: VqaSplit, predicted: Sequence[str]) -> NDArray[np.float64]:
        """(N,) official accuracy of a predicted answer of each question, in [0, 1]."""

        def score(question: Question, scores: dict[str, float], answer: str) -> float:
            # What normalisation leaves alone needs no normalising; the scores of the targets then suffice.
            if not scores or normalize_answer(answer) == answer:
                return scores.get(answer, 0.0)
            return answer_accuracy(answer, question.answers)

        return np.array(
            [score(*entry) for entry in zip(split.questions, split.scores, predicted, strict=True)],
            np.float64,
        )


def official_accuracy(split: VqaSplit, predicted: Sequence[str]) -> Any:
    """The official VQA accuracy of predicted answers, overall and by type."""
    questions = [
        {"question_id": item.question_id, "image_id": item.image_id, "question": item.question}
        for item in split.questions
    ]
    annotations = [
        {
            "question_id": item.question_id,
            "image_id": item.image_id,
            "question_type": item.question_type,
            "answer_type": item.answer_type,
            "answers": [{"answer": answer} for answer in item.answers],
        }
        for item in split.questions
    ]
    results = [
        {"question_id": item.question_id, "answer": answer}
        for item, answer in zip(split.questions, predicted, strict=True)
    ]
    return vqa_accuracy(questions, annotations, results)


def without_known_answer(split: VqaSplit, answers: Sequence[str]) -> int:
    """How many questions have human answers, but none of `answers` among them."""
    known = set(answers)
    return sum(
        bool(question.answers) and known.isdisjoint(scores)
        for question, scores in zip(split.questions, split.scores, strict=True)
    )


def majority_answer(questions: Sequence[Question]) -> str:
    """The most common answer of the training questions."""
    return answer_vocabulary(questions, 1)[0][0]


def build_vqa_split(
    questions: Sequence[Question],
    store: FeatureStore,
    tokenizer: Tokenizer,
    max_text_tokens: int,
    max_regions: int,
    blind: bool = False,
) -> VqaSplit:
    """Questions of a split whose image has features."""
    kept = [questions[index] for index in with_features([item.image_id for item in questions], store)]
    inputs = build_inputs(
        [item.question for item in kept],
        [item.image_id for item in kept],
        store,
        tokenizer,
        max_text_tokens,
        max_regions,
        blind,
    )
    return VqaSplit(kept, inputs, [soft_scores(item.answers) if item.answers else {} for item in kept])


# ---- REC ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class RecSplit:
    """Expressions of one split with features, and their target boxes.

    Attributes:
        expressions: N expressions.
        inputs: Their model inputs.
        targets: (N, 4) float32 xyxy pixels.
    """

    expressions: list[Expression]
    inputs: Inputs
    targets: NDArray[np.float32]


class RecTask:
    """Referring expression comprehension: choose a region, refine its box."""

    name = "rec"
    metric = "accuracy"

    def __init__(self, train: RecSplit | None, validation: RecSplit | None, batch_size: int) -> None:
        self.train = train
        self.validation = validation
        self.batch_size = batch_size
        self.skipped = 0
        if train is not None:
            # Without a region near the target there is nothing to choose.
            self.rows = np.flatnonzero(reachable(train))
            self.skipped = len(train.expressions) - len(self.rows)
            if not len(self.rows):
                raise DataError(
                    "finetune: no training expression has a region with IoU of 0.5 or more with its target",
                    hint="extract more regions (--max-regions) or use another extractor",
                )

    def fingerprint(self) -> int:
        """A number that changes with the target boxes."""
        assert self.train is not None
        return zlib.crc32(self.train.targets[self.rows].tobytes())

    def lengths(self) -> NDArray:
        assert self.train is not None
        return self.train.inputs.lengths()[self.rows]

    def samples(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(len(self.rows))

    def named(self, rows: NDArray) -> str:
        assert self.train is not None
        return listed("expressions", [self.train.expressions[row].sent_id for row in self.rows[rows]])

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        assert self.train is not None
        samples = self.rows[rows]
        regions = self.train.inputs.regions(samples)
        targets = self.train.targets[samples]
        iou = _iou_with_target(regions, targets)  # (B, K)
        near = iou >= NEAR_IOU
        weight = np.where(near, iou, 0)
        return {
            **self.train.inputs.batch(samples, regions),
            "score_targets": (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)).astype(
                np.float32
            ),
            "delta_targets": box_deltas(regions.boxes, targets[:, None, :]),
            "near": near,
        }

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        return {"score": float(len(batch["near"])), "box": float(batch["near"].sum())}

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        output = model(**model_inputs(batch))
        return {
            "score": region_score_loss(output.rec_scores, batch["score_targets"], batch["region_mask"]),
            "box": box_loss(output.rec_deltas, batch["delta_targets"], batch["near"]),
        }

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        if self.validation is None:
            return {}
        split = self.validation

        def accuracy(model: Any) -> float:
            boxes, _, _ = self.predict(model, split.inputs, device)
            return 100 * float(self.hits(split, boxes).mean())

        return accuracy_and_kept(model, accuracy, split.inputs, self.batch_size)

    def predict(
        self, model: Any, inputs: Inputs, device: torch.device
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Refined boxes (N, 4) xyxy pixels, chosen regions (N,), their probabilities (N,)."""
        boxes = np.zeros((len(inputs), 4), np.float32)
        chosen = np.zeros(len(inputs), np.int64)
        probability = np.zeros(len(inputs), np.float32)
        for indices, output in run_batches(model, inputs, device, self.batch_size):
            regions = inputs.regions(indices)
            best = output.rec_scores.float().softmax(dim=-1).max(dim=-1)
            place = best.indices.cpu().numpy()
            order = np.arange(len(indices))
            deltas = output.rec_deltas.float().cpu().numpy()[order, place]
            chosen[indices], probability[indices] = place, best.values.cpu().numpy()
            boxes[indices] = apply_deltas(regions.boxes[order, place], deltas, regions.sizes)
        return boxes, chosen, probability

    @staticmethod
    def hits(split: RecSplit, boxes: NDArray) -> NDArray[np.bool_]:
        """(N,) True where the predicted box has IoU above 0.5 with the target."""
        return box_iou_paired(boxes, split.targets) > 0.5


def build_rec_split(
    expressions: Sequence[Expression],
    store: FeatureStore,
    tokenizer: Tokenizer,
    max_text_tokens: int,
    max_regions: int,
) -> RecSplit:
    """Expressions of a split whose image has features."""
    kept = [expressions[index] for index in with_features([item.image_id for item in expressions], store)]
    inputs = build_inputs(
        [item.text for item in kept],
        [item.image_id for item in kept],
        store,
        tokenizer,
        max_text_tokens,
        max_regions,
    )
    return RecSplit(kept, inputs, xywh_to_xyxy([item.target_xywh for item in kept]))


def reachable(split: RecSplit) -> NDArray[np.bool_]:
    """(N,) whether any region is near the target, so that there is one to learn to choose."""
    best = np.zeros(len(split.expressions), np.float32)
    for begin in range(0, len(best), 512):
        indices = np.arange(begin, min(begin + 512, len(best)))
        best[indices] = _iou_with_target(split.inputs.regions(indices), split.targets[indices]).max(axis=1)
    return best >= NEAR_IOU


def random_region_hits(split: RecSplit) -> NDArray[np.float64]:
    """(N,) chance that a region drawn at random has an IoU above 0.5 with the target."""
    return _of_regions(split, lambda regions, hits: hits.sum(axis=1) / regions.mask.sum(axis=1))


def best_region_hits(split: RecSplit) -> NDArray[np.float64]:
    """(N,) 1 where some region has an IoU above 0.5 with the target: what choosing a region can reach."""
    return _of_regions(split, lambda regions, hits: hits.max(axis=1))


def largest_region_hits(split: RecSplit) -> NDArray[np.float64]:
    """(N,) 1 where the image's largest region has an IoU above 0.5 with the target."""

    def share(regions: RegionBatch, hits: NDArray) -> NDArray:
        sides = regions.boxes[..., 2:] - regions.boxes[..., :2]  # (B, K, 2)
        largest = np.where(regions.mask, sides.prod(axis=-1), -1).argmax(axis=1)
        return hits[np.arange(len(hits)), largest]

    return _of_regions(split, share)


def _of_regions(split: RecSplit, share: Callable[[RegionBatch, NDArray], NDArray]) -> NDArray[np.float64]:
    """(N,) `share` of the regions (B, K) and of whether each has an IoU above 0.5."""
    shares = []
    for begin in range(0, len(split.expressions), 512):
        indices = np.arange(begin, min(begin + 512, len(split.expressions)))
        regions = split.inputs.regions(indices)
        hits = (_iou_with_target(regions, split.targets[indices]) > 0.5) & regions.mask
        shares.append(share(regions, hits))
    return np.concatenate(shares).astype(np.float64) if shares else np.zeros(0)


def _iou_with_target(regions: RegionBatch, targets: NDArray) -> NDArray[np.float32]:
    batch, count = regions.mask.shape
    repeated = np.repeat(targets, count, axis=0)
    iou = box_iou_paired(regions.boxes.reshape(-1, 4), repeated).reshape(batch, count)
    return np.where(regions.mask, iou, 0).astype(np.float32)


def box_deltas(boxes: NDArray, targets: NDArray) -> NDArray[np.float32]:
    """Refinements (..., 4) that turn xyxy `boxes` into `targets`: (dx, dy, dw, dh) / `BOX_SCALE`."""
    size = np.maximum(boxes[..., 2:] - boxes[..., :2], 1.0)
    target_size = np.maximum(targets[..., 2:] - targets[..., :2], 1.0)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    target_centre = (targets[..., :2] + targets[..., 2:]) / 2
    deltas = np.concatenate([(target_centre - centre) / size, np.log(target_size / size)], axis=-1)
    return (deltas / BOX_SCALE).astype(np.float32)


def apply_deltas(boxes: NDArray, deltas: NDArray, sizes: NDArray) -> NDArray[np.float32]:
    """Refine (N, 4) xyxy boxes by (N, 4) deltas and keep them inside images of (N, 2) width, height."""
    deltas = deltas * BOX_SCALE
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    size = size * np.exp(np.clip(deltas[:, 2:], -2, 2))
    refined = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return np.clip(refined, 0, np.concatenate([sizes, sizes], axis=1)).astype(np.float32)


# ---- both ---------------------------------------------------------------------------------------


def run_batches(
    model: Any, inputs: Inputs, device: torch.device, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """The model's output for all samples, batch by batch, with the samples' positions."""
    with torch.inference_mode():
        for indices in evaluation_order(inputs, batch_size):
            batch = to_device(inputs.batch(indices), device)
            yield indices, model(**batch)


def accuracy_and_kept(
    model: Any, accuracy: Callable[[Any], float], inputs: Inputs, batch_size: int
) -> dict[str, float]:
    """Accuracy, and the shares of attention that the model's selection keeps, measured on the way.

    Args:
        model: In evaluation mode.
        accuracy: Of a model, by one pass over `inputs`.
        inputs: What it is measured on.
        batch_size: Of that pass.

    Returns:
        "accuracy"; where the selection drops anything also `AttentionMeter.shares`.
    """
    if not model.tbkin.selection.threshold:
        return {"accuracy": accuracy(model)}
    meter = AttentionMeter(model, -(-len(inputs) // batch_size))
    return {"accuracy": accuracy(meter), **meter.shares()}


def hold_out(image_ids: Sequence[ImageId], share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for the samples of the images that are held out; by image, at least one of two or more.

    An image's place depends on its id and the seed alone, so that more data moves no image.
    """
    # A checksum alone keeps the order of ids from seed to seed, and takes images at even distances.
    keys = {image_id: mix(seed, zlib.crc32(str(image_id).encode())) for image_id in image_ids}
    if len(keys) < 2:
        raise DataError(
            "validation: there is no val split, and one image alone cannot be divided",
            hint="add samples of other images, or a val split",
        )
    count = min(max(round(share * len(keys)), 1), len(keys) - 1)
    held = set(sorted(keys, key=lambda image_id: (keys[image_id], str(image_id)))[:count])
    return np.array([image_id in held for image_id in image_ids], np.bool_)
