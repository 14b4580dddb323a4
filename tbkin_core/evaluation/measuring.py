"""Measures fine-tuned models on one split under one selection after another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tbkin_core.evaluation.attribution import AttentionMeter
from tbkin_core.evaluation.sweep import Measurement, Samples
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling.checkpoint import load_model
from tbkin_core.selection import Selection
from tbkin_core.tasks.base import FinetuneTask, InputSource, evaluation_order, to_device
from tbkin_core.training.start import check_feature_kind

DENSE = ("dense", 0.0)


def modified(path: Path) -> float:
    """When a file was written last; 0 where there is none."""
    return path.stat().st_mtime if path.exists() else 0.0


class Evaluation:
    """Evaluates models on one split: `use` chooses the model, calling it measures a selection.

    Args:
        items: By seed: samples that can be scored, all with features.
        store: Their features.
        batch_size: Samples at once.
    """

    def __init__(
        self,
        task: FinetuneTask,
        items: Mapping[int, list[Any]],
        store: FeatureStore,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.task, self.items, self.store = task, items, store
        self.device, self.batch_size = device, batch_size
        self.samples: dict[int, Samples] = {}
        for seed, found in items.items():
            kinds = [task.kind(item) for item in found]
            named = [kind or "other" for kind in kinds] if any(kinds) else []
            self.samples[seed] = Samples([item.image_id for item in found], named)

    def use(self, checkpoint: Path, seed: int) -> None:
        """Evaluate a checkpoint from now on, on the samples of a seed; a TbkinError where it does not fit."""
        model, tokenizer = load_model(checkpoint, self.task.name)
        check_feature_kind(model.config.extractor, self.store, checkpoint)
        self.use_model(model, tokenizer, seed, modified(checkpoint / "model.safetensors"))

    def use_model(self, model: Any, tokenizer: Any, seed: int, trained: float = 0.0) -> None:
        """The same for a model in memory."""
        self.model, self.seed, self.trained = model.to(self.device), seed, trained
        source = InputSource(self.store, tokenizer, model.config.max_text_tokens, model.config.max_regions)
        self.split = self.task.build_split(self.items[seed], source, blind=not model.config.use_regions)
        # The first batch pays for memory that the others find ready: it counts for no selection's speed.
        batches = evaluation_order(self.split.inputs, self.batch_size)
        first = batches[len(self.split) // self.batch_size // 2]
        with torch.inference_mode():
            self.model(**to_device(self.split.inputs.batch(first), self.device))

    def __call__(self, selection: Selection) -> Measurement:
        """Scores, sparsity and time of the model under a selection."""
        self.model.tbkin.selection = selection
        inputs = self.split.inputs
        meter = AttentionMeter(self.model, -(-len(inputs) // self.batch_size))
        started = time.perf_counter()
        predictions = self.task.predict(meter, inputs, self.device, self.batch_size)
        seconds = time.perf_counter() - started
        scores = self.task.scores(self.split, predictions)
        name = DENSE[0] if selection.threshold == 0 else selection.rule
        rounded = [round(float(score), 6) for score in scores]
        found = rounded, meter.kept(), meter.entropy(), seconds
        return Measurement(name, float(selection.threshold), self.seed, *found, self.trained)
