"""Referring expression comprehension: choose a region, refine its box; right above IoU 0.5 (Yu et al. 2016).

Letters: B batch, N samples, K regions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.boxes import box_area, box_iou_paired, scale_between, turned, xywh_to_xyxy
from tbkin_core.datasets.formats.own_expressions import SHAPE
from tbkin_core.datasets.records import Expression
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, RegionBatch
from tbkin_core.modeling import TbkinForRec
from tbkin_core.modeling.losses import box_loss, region_score_loss
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
    other_sets,
)
from tbkin_core.tasks.inputs import Batch, Inputs, check_finite, model_inputs, run_batches

if TYPE_CHECKING:
    from tbkin_core.datasets import Dataset
    from tbkin_core.settings import FinetuneConfig

# Box refinements are learnt in units of these (Girshick 2015, Fast R-CNN).
BOX_SCALE = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
HIT_IOU = 0.5
"""A prediction is right above this, and a region worth learning from there up."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Refined boxes (N, 4) xyxy pixels, chosen regions (N,), and their probabilities (N,)."""

    boxes: NDArray[np.float32]
    regions: NDArray[np.int64]
    probability: NDArray[np.float32]


class RecTask(FinetuneTask[Expression]):
    """Referring expression comprehension."""

    name = "rec"
    head = TbkinForRec
    metric = "Acc@IoU>0.5"
    unit = "expression"
    label = "expressions"

    def found_in(self, dataset: Dataset) -> bool:
        return bool(dataset.expression_sets())

    def split_names(self, dataset: Dataset, subset: str | None) -> list[str]:
        return list(dataset.expression_splits(expression_set(dataset, subset)))

    def split_samples(self, dataset: Dataset, split: str, subset: str | None) -> list[Expression]:
        return list(dataset.expressions(split, expression_set(dataset, subset)))

    def samples(self, dataset: Dataset, subset: str | None) -> SampleSet[Expression]:
        chosen = expression_set(dataset, subset)
        notes = other_sets(subset, chosen, dataset.expression_sets())
        found = {name: list(dataset.expressions(name, chosen)) for name in dataset.expression_splits(chosen)}
        splits = {name: items for name, items in found.items() if items}
        return SampleSet(splits, [], chosen, dataset.is_split_by_object(chosen), notes)

    def text(self, sample: Expression) -> str:
        return sample.text

    def target_boxes(
        self, dataset: Dataset, image_id: ImageId, text: str, subset: str | None, size: tuple[int, int]
    ) -> list[tuple[float, float, float, float]]:
        sets = dataset.expression_sets()
        # Of several sets the first that has the text, as training takes the first.
        for name in [subset] if subset in sets else sets:
            found: set[tuple[float, float, float, float]] = set()
            for item in dataset.expressions(name=name):
                said = " ".join(item.text.split()).casefold() == text.casefold()
                if item.image_id == image_id and said:
                    scale = scale_between((item.width, item.height), size)
                    if scale is None:
                        return []
                    x1, y1, x2, y2 = (xywh_to_xyxy([item.target_xywh], np.float64)[0] * scale).tolist()
                    found.add((x1, y1, x2, y2))
            if found:
                return sorted(found)
        return []

    def build_head(self, training: Sequence[Expression], config: FinetuneConfig) -> Head:
        return Head()

    def misfit(self, sample: Expression, store: FeatureStore) -> str:
        drawn, shown = (sample.width, sample.height), store.size_of(sample.image_id)
        if store.scale_from(drawn, sample.image_id) is not None:
            return ""
        sizes = f"{drawn[0]} x {drawn[1]} pixels, its features are of {shown[0]} x {shown[1]}"
        return f"its boxes were drawn on {sizes}{turned(drawn, shown)}"

    def targets(self, samples: Sequence[Expression], store: FeatureStore) -> NDArray[np.float32]:
        """(N, 4) boxes, xyxy in the pixels of the features."""
        return xywh_to_xyxy([item.target_xywh for item in samples]) * _scales(samples, store)

    def objective(
        self, splits: Mapping[str, Split], head: Head, config: FinetuneConfig, plan: LearningPlan
    ) -> RecObjective:
        return RecObjective(splits["train"], splits.get("val") or None, plan.batch_size)

    def predict(self, model: Any, inputs: Inputs, device: torch.device, batch_size: int) -> Boxes:
        boxes = np.zeros((len(inputs), 4), np.float32)
        chosen, probability = np.zeros(len(inputs), np.int64), np.zeros(len(inputs), np.float32)
        for indices, output in run_batches(model, inputs, device, batch_size):
            regions = inputs.regions(indices)
            best = output.rec_scores.float().softmax(dim=-1).max(dim=-1)
            place = best.indices.cpu().numpy()
            order = np.arange(len(indices))
            deltas = output.rec_deltas.float().cpu().numpy()[order, place]
            chosen[indices], probability[indices] = place, best.values.cpu().numpy()
            boxes[indices] = apply_deltas(regions.boxes[order, place], deltas, regions.sizes)
        check_finite(model, probability, boxes)
        return Boxes(boxes, chosen, probability)

    def scores(self, split: Split, predictions: Boxes) -> NDArray[np.float64]:
        return (box_iou_paired(predictions.boxes, split.targets) > HIT_IOU).astype(np.float64)

    def report(
        self, split: Split, predictions: Boxes, training: Sequence[Expression], blind: bool, hidden: Any
    ) -> SplitReport:
        probability, scales = predictions.probability, _scales(split.samples, split.inputs.store)
        overlaps = box_iou_paired(predictions.boxes, split.targets)
        scores, reached = self.scores(split, predictions), best_region_hits(split)
        # In the pixels of the annotations, as the prediction files.
        boxes, targets = predictions.boxes / scales, split.targets / scales
        columns = (split.samples, reached, boxes, probability, targets, overlaps, scores)
        results = [
            {
                **_ids(item),
                "text": item.text,
                # What a better choice could mend, and what only other regions could.
                "type": "a region fits the target" if fits else "no region fits the target",
                "box": _rounded(box),
                "probability": round(float(certainty), 4),
                "target": _rounded(target),
                "iou": round(float(overlap), 4),
                "score": float(score),
            }
            for item, fits, box, certainty, target, overlap, score in zip(*columns, strict=True)
        ]
        rows = [
            ReportRow("random region", 100 * random_region_hits(split), 0),
            ReportRow("largest region", 100 * largest_region_hits(split), 1),
            ReportRow("this model", 100 * scores, OWN_ROW),
            ReportRow("upper bound (a region of IoU>0.5 exists)", 100 * reached, 4),
        ]
        return SplitReport(results, rows)

    def prediction_rows(
        self, model: Any, samples: Sequence[Expression], split: Split, predictions: Boxes
    ) -> tuple[list[dict[str, Any]], str]:
        # As the annotations measure: a picture may be smaller than the one that they were drawn on.
        drawn = predictions.boxes / _scales(split.samples, split.inputs.store)
        pairs = zip(split.samples, drawn, strict=True)
        return [{**_ids(item), "box": _rounded(box)} for item, box in pairs], "are left out"

    def shown(self, model: Any, output: Any, boxes: NDArray, size: tuple[int, int], top: int) -> Shown:
        best = output.rec_scores[0].float().softmax(dim=-1).topk(min(max(top, 2), len(boxes)))
        order = best.indices.tolist()
        deltas = output.rec_deltas[0, order[0]].float().cpu().numpy()[None]
        refined = apply_deltas(boxes[order[0]][None], deltas, np.array([size], np.float32))[0]
        x1, y1, x2, y2 = refined.tolist()
        answers = [
            (f"region {place}", value) for place, value in zip(order, best.values.tolist(), strict=True)
        ]
        return Shown(answers[:top], order[0], order[1] if len(order) > 1 else None, (x1, y1, x2, y2))


class RecObjective(FinetuneObjective):
    """What a REC model learns.

    Raises:
        DataError: No training expression has a region near its target.
    """

    # The pooler takes no part in the loss.
    uses_all_weights = False

    def __init__(self, train: Split, validation: Split | None, batch_size: int) -> None:
        # Without a region near the target there is nothing to choose.
        super().__init__(RecTask(), train, validation, np.flatnonzero(reachable(train)), batch_size)
        if not len(self.rows):
            raise DataError(
                "finetune: no training expression has a region with IoU of 0.5 or more with its target",
                hint="extract more regions (--max-regions) or use another extractor",
            )
        if skipped := len(train) - len(self.rows):
            self.notes.append(
                f"train: {skipped} of {len(train)} samples skipped, no region is near their target"
            )

    def targets_checksum(self) -> int:
        return zlib.crc32(self.train.targets[self.rows].tobytes())

    def named(self, rows: NDArray) -> str:
        return listed("expressions", [self.train.samples[row].sent_id for row in self.rows[rows]])

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        samples = self.rows[rows]
        regions = self.train.inputs.regions(samples)
        targets = self.train.targets[samples]
        iou = _iou_with_target(regions, targets)  # (B, K)
        near = iou >= HIT_IOU
        weight = np.where(near, iou, 0)
        share = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        return {
            **self.train.inputs.batch(samples, regions),
            "score_targets": share.astype(np.float32),
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


def expression_set(dataset: Dataset, name: str | None) -> str:
    """The set of referring expressions of a name, or the first.

    Raises:
        ConfigError: No such set.
        DataError: There is none at all.
    """
    sets = dataset.expression_sets()
    if not sets:
        raise DataError(
            f"{dataset.path}: no referring expressions (found: {', '.join(dataset.layouts)})"
            f"{dataset.unread()}",
            hint="expected refs(unc).p, refs(umd).p or the same as JSON beside instances.json, or a file"
            f" such as expressions.jsonl with lines such as {SHAPE}",
        )
    try:
        return dataset.expression_set(name or sets[0])
    except DataError as error:
        known = ", ".join(dataset.expression_sets(every_version=True))
        raise ConfigError(f"dataset: expected one of {known}, got {name!r}") from error


def reachable(split: Split) -> NDArray[np.bool_]:
    """(N,) whether any region is near the target, so that there is one to learn to choose."""
    return _of_regions(split, lambda regions, iou: iou.max(axis=1)) >= HIT_IOU


def random_region_hits(split: Split) -> NDArray[np.float64]:
    """(N,) chance that a region drawn at random has an IoU above 0.5 with the target."""
    return _of_regions(split, lambda regions, iou: (iou > HIT_IOU).sum(axis=1) / regions.mask.sum(axis=1))


def best_region_hits(split: Split) -> NDArray[np.float64]:
    """(N,) 1 where some region has an IoU above 0.5 with the target: what choosing a region can reach."""
    return _of_regions(split, lambda regions, iou: iou.max(axis=1) > HIT_IOU)


def largest_region_hits(split: Split) -> NDArray[np.float64]:
    """(N,) 1 where the image's largest region has an IoU above 0.5 with the target."""

    def hit(regions: RegionBatch, iou: NDArray) -> NDArray:
        area = np.where(regions.mask, box_area(regions.boxes), -1)
        return np.take_along_axis(iou, area.argmax(axis=1, keepdims=True), axis=1)[:, 0] > HIT_IOU

    return _of_regions(split, hit)


def _of_regions(split: Split, value: Callable[[RegionBatch, NDArray], NDArray]) -> NDArray[np.float64]:
    """(N,) `value` of the regions of B images and of their IoU (B, K) with the targets, 0 where padded."""
    values = [np.zeros(0)]
    for begin in range(0, len(split), 512):
        indices = np.arange(begin, min(begin + 512, len(split)))
        regions = split.inputs.regions(indices)
        values.append(value(regions, _iou_with_target(regions, split.targets[indices])))
    return np.concatenate(values)


def _iou_with_target(regions: RegionBatch, targets: NDArray) -> NDArray[np.float32]:
    batch, count = regions.mask.shape
    repeated = np.repeat(targets, count, axis=0)
    iou = box_iou_paired(regions.boxes.reshape(-1, 4), repeated).reshape(batch, count)
    return np.where(regions.mask, iou, 0).astype(np.float32)


def _scales(samples: Sequence[Expression], store: FeatureStore) -> NDArray[np.float32]:
    """(N, 4) factors from the pixels of the annotations to those of the features."""
    scales = (store.scale_from((item.width, item.height), item.image_id) for item in samples)
    return np.array([np.ones(4) if scale is None else scale for scale in scales], np.float32).reshape(-1, 4)


def _ids(item: Expression) -> dict[str, Any]:
    return {"sent_id": item.sent_id, "ref_id": item.ref_id, "image_id": item.image_id}


def _rounded(box: NDArray) -> list[float]:
    return [round(float(side), 2) for side in box]


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
