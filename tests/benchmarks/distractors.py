"""What a model loses where images have more regions than it was trained on, dense and under thresholds.

    python tests/benchmarks/distractors.py CHECKPOINT DATA [--features DATA/features] [--split val]
        [--more 0,36,108] [--selection dense,relative=0.3,sparsemax,entmax15]

Each image gets so many regions beside its own, the same for every selection: regions of other images of the
store with their boxes ("others"), or vectors whose every number is that of some region, each of another one,
in boxes anywhere ("noise"). Of VQA and retrieval: what is right does not change with them as far as noise
goes, and regions of other images may show what is asked for. Prints the task's accuracy in percent with its
95 % interval (bootstrap over images). Proposals of the same image are had from `tbkin extract-features
--max-regions 144`, with "max_regions" in a copy of the checkpoint's config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from tbkin_core.datasets import open_dataset
from tbkin_core.evaluation.intervals import bootstrap_interval
from tbkin_core.features.store import LABELS, FeatureStore, RegionBatch, batch_geometry
from tbkin_core.features.vectors import Vectors, VectorTable
from tbkin_core.modeling.checkpoint import load_model, task_of
from tbkin_core.selection import Selection
from tbkin_core.tasks.base import finetune_task
from tbkin_core.tasks.inputs import Inputs, InputSource

Mixed = Callable[[RegionBatch, NDArray[np.int64], int], RegionBatch]
"""Regions of (B,) images of a store with so many further ones."""


def _joined(
    own: RegionBatch, features: Vectors, boxes: NDArray[np.float32], mask: NDArray[np.bool_]
) -> RegionBatch:
    """Own regions with others (B, N), whose boxes are shares of the image; `features` are of both."""
    pixels = boxes * np.tile(own.sizes, 2)[:, None]
    labels = {
        name: np.concatenate([getattr(own, name), np.full(mask.shape, default, kind)], axis=1)
        for name, (default, _, kind) in LABELS.items()
    }
    both = np.concatenate([own.boxes, pixels.astype(np.float32)], axis=1)
    return replace(
        own,
        features=features,
        boxes=both,
        geometry=batch_geometry(both, own.sizes),
        mask=np.concatenate([own.mask, mask], axis=1),
        **labels,
    )


def others(store: FeatureStore, most: int) -> Mixed:
    """Regions of other images of a store, `most` of each."""

    def mixed(own: RegionBatch, rows: NDArray[np.int64], count: int) -> RegionBatch:
        generator = np.random.default_rng(0)
        vectors, boxes, masks = [own.features.rows], [], []
        while count > 0:
            taken = min(count, most)
            other = (rows + generator.integers(1, len(store), len(rows))) % len(store)
            found = store.gather(other, taken)
            vectors.append(found.features.rows)
            boxes.append(found.geometry[..., :4])
            masks.append(found.mask)
            count -= taken
        features = Vectors(own.features.table, np.concatenate(vectors, axis=1))
        return _joined(own, features, np.concatenate(boxes, axis=1), np.concatenate(masks, axis=1))

    return mixed


def noise(store: FeatureStore) -> Mixed:
    """Vectors that are no region's, though each of their numbers is."""
    generator = np.random.default_rng(1)
    rows = np.arange(min(len(store), 500))
    batch = store.gather(rows)
    known = np.asarray(batch.features[batch.mask], np.float16)
    made = np.stack([generator.permutation(column) for column in known.T], axis=1)

    def mixed(own: RegionBatch, rows: NDArray[np.int64], count: int) -> RegionBatch:
        draw = np.random.default_rng(0)
        shape = len(rows), count
        # The vectors of this batch, then the noise.
        table = VectorTable([np.asarray(own.features, np.float16).reshape(-1, made.shape[1]), made])
        first = own.mask.size
        places = np.where(own.mask, np.arange(first).reshape(own.mask.shape), -1)
        places = np.concatenate([places, first + draw.integers(0, len(made), shape)], axis=1)
        corners = np.sort(draw.random((*shape, 2, 2)), axis=2).reshape(*shape, 4)  # x1, y1, x2, y2
        return _joined(own, Vectors(table, places), corners.astype(np.float32), np.ones(shape, np.bool_))

    return mixed


class MixedInputs(Inputs):
    """Inputs whose images have further regions."""

    mixed: Mixed
    count: int

    def regions(self, indices: NDArray) -> RegionBatch:
        rows = self.rows[indices]
        own = self.store.gather(rows, self.max_regions)
        return self.mixed(own, rows, self.count) if self.count else own


def selection_of(text: str) -> Selection:
    """ "dense", "relative=0.3" or "sparsemax"."""
    rule, _, threshold = text.partition("=")
    return Selection() if rule == "dense" else Selection(rule, float(threshold or 1))


def main(
    checkpoint: Annotated[Path, typer.Argument()],
    data: Annotated[Path, typer.Argument()],
    features: Annotated[Path | None, typer.Option()] = None,
    split: Annotated[str, typer.Option()] = "val",
    more: Annotated[str, typer.Option(help="Numbers of further regions.")] = "0,36,108",
    selection: Annotated[str, typer.Option()] = "dense,relative=0.3,sparsemax,entmax15",
) -> None:
    task = finetune_task(task_of(checkpoint))
    model, tokenizer = load_model(checkpoint, task.name)
    model.eval()
    store = FeatureStore(features or data / "features")
    samples = task.split_samples(open_dataset(data), split, None)
    samples = task.evaluated(task.usable([item for item in samples if task.labelled(item)], store))
    most = model.config.max_regions
    source = InputSource(store, tokenizer, model.config.max_text_tokens, most)
    built = task.build_split(samples, source, False)
    given = built.inputs
    inputs = MixedInputs(given.table, given.rows, given.store, given.max_regions, given.blind)
    images = [item.image_id for item in samples]
    for name, mixed in (("others", others(store, most)), ("noise", noise(store))):
        for count in map(int, more.split(",")):
            object.__setattr__(inputs, "mixed", mixed)
            object.__setattr__(inputs, "count", count)
            for text in selection.split(","):
                model.tbkin.selection = selection_of(text)
                scores = 100 * task.scores(built, task.predict(model, inputs, torch.device("cpu"), 64))
                low, high = bootstrap_interval(scores, images)
                print(f"{count} {name}, {text}: {scores.mean():.1f} ({low:.1f} to {high:.1f})", flush=True)


if __name__ == "__main__":
    typer.run(main)
