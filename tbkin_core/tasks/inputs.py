"""What models read: texts and regions of N samples, batch by batch, and one pass over all of them.

Letters: B batch, N samples, T text tokens, K regions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.errors import DataError
from tbkin_core.evaluation.attribution import AttentionMeter
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, RegionBatch
from tbkin_core.features.vectors import Vectors, moved
from tbkin_core.support.console import progress
from tbkin_core.support.workers import made_ahead
from tbkin_core.texts.table import TextTable, encode_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Batch = dict[str, Any]

MODEL_INPUTS = (
    "input_ids", "attention_mask", "region_features", "region_geometry", "region_mask", "pair_mask",
)  # fmt: skip


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """Arrays and stored vectors to tensors on the device; other values as they are."""

    def tensor(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, Vectors):
            return value.to(device)
        return moved(value, device) if isinstance(value, Tensor) else value

    return {name: tensor(value) for name, value in batch.items()}


def model_inputs(batch: Batch) -> Batch:
    """The part of a batch that a model's forward pass takes."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def text_notes(name: str, table: TextTable, max_tokens: int) -> list[str]:
    """What a model that reads at most `max_tokens` of a text misses of some texts, one line each."""
    unknown = int(table.unknown.sum())
    lines = [f"{name}: {table.cut} texts were cut to {max_tokens} tokens"] if table.cut else []
    return [*lines, f"{name}: {unknown} texts hold no known word"] if unknown else lines


@dataclass(frozen=True, slots=True)
class InputSource:
    """What texts and image ids become model inputs with."""

    store: FeatureStore
    tokenizer: Tokenizer
    max_text_tokens: int  # longer texts are cut
    max_regions: int  # per image

    def inputs(self, texts: Sequence[str], image_ids: Sequence[ImageId], blind: bool = False) -> Inputs:
        """Tokenise N texts and look their images up; every image must be in the store."""
        rows = np.array([self.store.row(image_id) for image_id in image_ids], np.int64)
        table = encode_texts(self.tokenizer, texts, self.max_text_tokens)
        return Inputs(table, rows, self.store, self.max_regions, blind)


@dataclass(slots=True)
class Inputs:
    """N tokenised texts of one split beside the rows of their images in the feature store."""

    table: TextTable
    rows: NDArray[np.int64]  # (N,) row of each text's image in `store`
    store: FeatureStore
    max_regions: int  # per image
    blind: bool = False  # give the model no region at all

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
        texts = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.blind:
            shape = (len(indices), 1)
            features: Any = np.zeros((*shape, self.store.feature_size), np.float32)
            geometry, mask = np.zeros((*shape, 5), np.float32), np.zeros(shape, np.bool_)
        else:
            regions = regions or self.regions(indices)
            features, geometry, mask = regions.features, regions.geometry, regions.mask
        return {**texts, "region_features": features, "region_geometry": geometry, "region_mask": mask}

    def part(self, rows: NDArray) -> Inputs:
        """Those of some samples."""
        return replace(self, table=self.table.part(rows), rows=self.rows[rows])

    def fingerprint(self) -> int:
        """A number that changes with the texts, their order, and their images."""
        value = zlib.crc32(self.table.ids.tobytes())
        value = zlib.crc32(self.table.offsets.tobytes(), value)
        return zlib.crc32(repr([self.store.image_ids[row] for row in self.rows[:1000]]).encode(), value)


def evaluation_order(inputs: Inputs, batch_size: int) -> list[NDArray[np.int64]]:
    """All samples in batches of similar length."""
    order = np.argsort(inputs.lengths(), kind="stable")
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]


def run_batches(
    model: Any, inputs: Inputs, device: torch.device, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """The model's output for all samples, batch by batch, with the samples' positions.

    Raises:
        DataError: At the end at the latest: features are damaged.
    """

    def fetched(indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], Batch]:
        return indices, to_device(inputs.batch(indices), device)

    # On a CPU a thread beside the model would take from it what it brings.
    threads = 2 if device.type == "cuda" else 0
    with closing(made_ahead(fetched, evaluation_order(inputs, batch_size), threads)) as batches:
        for indices, batch in progress(
            batches, "evaluation", len(inputs), "sample", lambda it: len(it[0]), delay=1.0
        ):
            with torch.inference_mode():
                output = model(**batch)
            yield indices, output
    inputs.store.settle()


def accuracy_and_kept(model: Any, accuracy: Callable[[Any], float], inputs: Inputs) -> dict[str, float]:
    """What `accuracy` finds in one pass over the inputs, and what share of attention a selection keeps."""
    if not model.tbkin.selection.threshold:
        return {"accuracy": accuracy(model)}
    meter = AttentionMeter(model, len(inputs))
    return {"accuracy": accuracy(meter), **meter.shares()}


def check_finite(model: Any, *values: NDArray) -> None:
    """DataError where what a model answers to some of N inputs, (N, ...) values each, is not finite."""
    broken = sum(~np.isfinite(found.reshape(len(found), -1)).all(axis=1) for found in values)
    if count := np.count_nonzero(broken):
        raise DataError(
            f"{model.config.name_or_path or 'the model'}: its answers to {count} of {len(values[0])} inputs"
            " are not finite (NaN)",
            hint="region features or weights are damaged: make them anew, or train with a lower"
            " --learning-rate",
        )
