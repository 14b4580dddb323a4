"""Speed of pretraining: a sample's masks and collation, and a step beside peers, as ratios in one run.

    OMP_NUM_THREADS=2 python tests/benchmarks/training_speed.py COCO_STYLE_DIR --reference ROSITA_CHECKOUT

builds graphs over the captions of DIR with drawn regions (36 of 2048 numbers), then prints one JSON object a
line: milliseconds a pretraining sample on one core (masks, collation, and its region vectors read), in the
order of training; then for each model the median seconds of a forward and of a forward and backward pass over
the same captions, its samples per second and, on CUDA, its share of the device's peak of matrix products as
measured here; then the ratios to the peers. The peers are transformers' VisualBERT of the same size and,
where a checkout of
github.com/MILVLG/rosita is named, the reference; both get their texts as they take them: padded to the
longest of a batch in random order, the reference's to 20. All models take turns, so that noise meets them
alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_speed import (
    ATTRIBUTES,
    FEATURES,
    OBJECTS,
    REGIONS,
    TOKENS,
    VOCABULARY,
    drawn_features,
    matrix_peak,
    operations,
    pretraining_heads,
    synchronise,
    visualbert,
    visualbert_loss,
)
from torch import Tensor

from tbkin_core.datasets import open_dataset
from tbkin_core.graphs.build import Recipe, build_dataset
from tbkin_core.modeling import Selection, TbkinConfig, TbkinForPreTraining
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.tasks.captions import caption_texts, load_captions
from tbkin_core.tasks.inputs import to_device
from tbkin_core.tasks.masking import MaskingConfig
from tbkin_core.tasks.pretraining import PretrainObjective
from tbkin_core.texts.tokenizer import build_tokenizer
from tbkin_core.training.loop import epoch_order

CPU = torch.device("cpu")


def make_task(directory: Path, place: Path, batch: int) -> PretrainObjective:
    """The pretraining task over the captions of a directory."""
    dataset = open_dataset(directory)
    image_ids = list(dict.fromkeys(c.image_id for c in dataset.captions() if c.image_id is not None))
    features = drawn_features(place / "features", image_ids)
    graphs = build_dataset(dataset, place / "graphs", features, Recipe(CaptionParser)).store
    splits = sorted(graphs.splits())
    table = load_captions(graphs, None, features)
    return PretrainObjective(
        [(table, features)],
        [],
        build_tokenizer(caption_texts(graphs, splits)),
        MaskingConfig(),
        seed=0,
        mismatch=0.5,
        ot_weight=0.1,
        max_text_tokens=TOKENS,
        max_regions=REGIONS,
        batch_size=batch,
    )


def measure_data(task: PretrainObjective, batch: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of processor time a sample, in training order."""
    orders = epoch_order(task.lengths(), batch, 0, 0)
    for rows in orders[:2]:
        to_device(task.collate(rows, 0), CPU)
    rounds = []
    for epoch in range(repeat):
        start, samples = time.process_time(), 0
        for rows in orders:
            to_device(task.collate(rows, epoch), CPU)
            samples += len(rows)
        rounds.append(1000 * (time.process_time() - start) / samples)
    return {"samples": len(task.lengths()), "ms_a_sample": round(statistics.median(rounds), 4)}


# ---- models -------------------------------------------------------------------------------------


Step = Callable[[bool], None]


@contextlib.contextmanager
def _mode(device: torch.device, precision: torch.dtype | None, backward: bool) -> Iterator[None]:
    autocast = torch.autocast(device.type, dtype=precision, enabled=precision is not None)
    with autocast, torch.set_grad_enabled(backward):
        yield


def our_steps(
    task: PretrainObjective, model: Any, threshold: float, precision: torch.dtype | None, batches: list[Any]
) -> Step:
    """One pass of our model over the next batch, losses of the real task included."""
    device = next(model.parameters()).device
    turn = iter(range(10**9))

    def step(backward: bool) -> None:
        model.tbkin.selection = Selection("relative", threshold)
        arrays = batches[next(turn) % len(batches)]
        with _mode(device, precision, backward):
            losses = task.losses(model, arrays, 0)
        if backward:
            torch.stack(list(losses.values())).sum().backward()
            model.zero_grad(set_to_none=True)

    return step


def visualbert_steps(model: Any, precision: torch.dtype | None, batches: list[dict[str, Tensor]]) -> Step:
    """VisualBERT: masked words at every position, and matching."""
    device = next(model.parameters()).device
    turn = iter(range(10**9))

    def step(backward: bool) -> None:
        batch = batches[next(turn) % len(batches)]
        with _mode(device, precision, backward):
            loss = visualbert_loss(model, batch)
        if backward:
            loss.backward()
            model.zero_grad(set_to_none=True)

    return step


def reference_steps(
    model: Any, settings: Any, precision: torch.dtype | None, batches: list[dict[str, Tensor]]
) -> Step:
    """The reference with its own losses, texts padded to 20."""
    device = next(model.parameters()).device
    turn = iter(range(10**9))

    def step(backward: bool) -> None:
        batch = batches[next(turn) % len(batches)]
        size = len(batch["input_ids"])
        every = torch.ones(size, device=device)
        text_mask, region_mask = batch["attention_mask"].float(), batch["region_mask"].float()
        with _mode(device, precision, backward):
            output = model(
                (
                    batch["input_ids"],
                    text_mask,
                    batch["region_features"],
                    region_mask,
                    batch["region_geometry"],
                )
            )
            _, text, regions, mlm, feat, obj, attr, itm, qa = output
            on_text, on_regions = batch["text_targets"].float(), batch["region_targets"].float()
            total, _ = model.loss(
                (
                    {"vocab_size": VOCABULARY, "ans_size": 3129},
                    on_text, mlm, batch["true_ids"], torch.ones_like(on_text), every,
                    on_regions, feat, obj, attr,
                    batch["true_features"], torch.ones_like(on_regions), every,
                    batch["object_ids"], batch["object_confidence"].clone(), every,
                    batch["attribute_ids"], batch["attribute_confidence"].clone(), every,
                    itm, qa, batch["matched"], every, None, None,
                ),
                (text, regions, text_mask, region_mask),
            )  # fmt: skip
        if backward:
            total.backward()
            model.zero_grad(set_to_none=True)

    return step


def peer_batches(
    task: PretrainObjective, size: int, device: torch.device, count: int, pad_to: int
) -> list[dict[str, Tensor]]:
    """Batches in random order, with labels at every position."""
    chance = np.random.default_rng(1)
    found = []
    for _ in range(count):
        rows = np.sort(chance.choice(len(task.lengths()), size, replace=False))
        arrays = task.collate(rows, 0)
        tokens = max(arrays["input_ids"].shape[1], pad_to)

        def padded(value: np.ndarray, fill: float, tokens: int = tokens) -> np.ndarray:
            return np.pad(value, ((0, 0), (0, tokens - value.shape[1])), constant_values=fill)

        true_ids, _, _ = task.train.table.padded(rows)
        regions = task.train.regions(rows, REGIONS)
        text_targets, region_targets = (
            np.isin(np.arange(shape[0] * shape[1]), arrays[places]).reshape(shape)
            for shape, places in (
                (arrays["input_ids"].shape, "text_places"),
                (arrays["region_mask"].shape, "region_places"),
            )
        )
        targets = padded(text_targets, False)
        batch = to_device(
            {
                "input_ids": padded(arrays["input_ids"], 0),
                "attention_mask": padded(arrays["attention_mask"], False),
                "region_features": arrays["region_features"],
                "region_geometry": arrays["region_geometry"],
                "region_mask": arrays["region_mask"],
                "text_targets": targets,
                "region_targets": region_targets,
                "true_ids": padded(true_ids, 0),
                "true_features": regions.features,
                "object_ids": regions.object_ids,
                "object_confidence": regions.object_scores,
                "attribute_ids": regions.attribute_ids,
                "attribute_confidence": regions.attribute_scores,
                "matched": arrays["matched"],
                # Words at masked positions; nothing to say of the regions.
                "all_labels": np.concatenate(
                    [
                        np.where(targets, padded(true_ids, 0), -100),
                        np.full((size, REGIONS), -100, np.int64),
                    ],
                    axis=1,
                ),
            },
            device,
        )
        found.append(batch)
    return found


def mean_operations(batches: list[Any], config: TbkinConfig) -> float:
    """Mean operations of a forward and backward pass over a batch, real tokens alone."""
    totals = []
    for batch in batches:
        lengths = batch["attention_mask"].sum(axis=1) + batch["region_mask"].sum(axis=1)
        heads = pretraining_heads(config, len(batch["text_labels"]), len(batch["feature_labels"]))
        totals.append(operations(config, lengths.tolist(), float(batch["region_mask"].sum()), heads))
    return statistics.mean(totals)


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--reference", type=Path, help="checkout of github.com/MILVLG/rosita")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data-only", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(
        json.dumps({"load": os.getloadavg(), "threads": torch.get_num_threads(), "torch": torch.__version__})
    )
    with tempfile.TemporaryDirectory() as name:
        task = make_task(arguments.directory, Path(name), arguments.batch)
        print(json.dumps(measure_data(task, arguments.batch, arguments.repeat)), flush=True)
        if arguments.data_only:
            return
        sizes: dict[str, Any] = dict(SIZES[arguments.size])
        config = TbkinConfig(
            vocab_size=VOCABULARY,
            **sizes,
            region_feature_size=FEATURES,
            num_object_classes=OBJECTS,
            num_attribute_classes=ATTRIBUTES,
        )
        torch.manual_seed(0)
        model = TbkinForPreTraining(config).train().to(device)
        order = epoch_order(task.lengths(), arguments.batch, 0, 0)
        whole = [rows for rows in order if len(rows) == arguments.batch]
        batches = [task.collate(rows, 0) for rows in whole[: 2 * arguments.repeat + 2]]
        there = [to_device(batch, device) for batch in batches]
        steps: dict[str, Step] = {}
        for precision, label in ((None, "fp32"), (torch.bfloat16, "bf16")):
            steps[f"tbkin {label}"] = our_steps(task, model, 0.0, precision, there)
            steps[f"tbkin τ=0.3 {label}"] = our_steps(task, model, 0.3, precision, there)
        peer = visualbert(sizes).to(device)
        make = partial(peer_batches, task, arguments.batch, device, arguments.repeat + 1)
        random_order = make(0)
        steps["visualbert fp32"] = visualbert_steps(peer, None, random_order)
        steps["visualbert bf16"] = visualbert_steps(peer, torch.bfloat16, random_order)
        if arguments.reference:
            sys.path.insert(0, str(arguments.reference / "rosita"))
            from reference_parity import reference_model, reference_settings

            settings = reference_settings()
            reference = reference_model("pretraining").train().to(device)
            steps["reference fp32"] = reference_steps(reference, settings, None, make(TOKENS))
        seconds: dict[str, dict[str, list[float]]] = {name: {"forward": [], "step": []} for name in steps}
        for turn in range(arguments.repeat + 1):
            for name, step in steps.items():
                for kind in ("forward", "step"):
                    synchronise(device)
                    start = time.perf_counter()
                    step(kind == "step")
                    synchronise(device)
                    if turn:  # the first is for warming up
                        seconds[name][kind].append(time.perf_counter() - start)
        medians = {
            name: {kind: statistics.median(values) for kind, values in found.items()}
            for name, found in seconds.items()
        }
        work = mean_operations(batches, config)
        for name, found in medians.items():
            row: dict[str, Any] = {
                "model": name,
                **{f"{kind}_seconds": round(value, 4) for kind, value in found.items()},
                "samples_a_second": round(arguments.batch / found["step"], 1),
            }
            if device.type == "cuda" and name.startswith("tbkin"):
                peak = matrix_peak(device, torch.bfloat16 if "bf16" in name else None)
                row["share_of_matrix_peak"] = round(work / found["step"] / peak, 3)
            print(json.dumps(row), flush=True)
        ratios = {
            f"{name} over {other}": round(medians[other]["step"] / medians[name]["step"], 2)
            for name in medians
            for other in medians
            if name.startswith("tbkin") and not other.startswith("tbkin") and "τ" not in name
        }
        for label in ("fp32", "bf16"):
            ratios[f"τ=0.3 to dense, {label}"] = round(
                medians[f"tbkin τ=0.3 {label}"]["step"] / medians[f"tbkin {label}"]["step"], 3
            )
        print(json.dumps({"ratios": ratios}, ensure_ascii=False))


if __name__ == "__main__":
    main()
