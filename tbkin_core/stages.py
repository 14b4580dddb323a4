"""Six functions, one a subcommand: settings in, result out. This is the public Python API.

from tbkin_core.config import FinetuneConfig
from tbkin_core.stages import finetune
result = finetune(FinetuneConfig(task="vqa", data=Path("coco")))
result.values["test"]
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.config import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    FinetuneConfig,
    PretrainConfig,
    ThresholdSweepConfig,
    TrainingConfig,
    VisualizeConfig,
    parse_thresholds,
)
from tbkin_core.errors import CheckpointError, ConfigError, DataError
from tbkin_core.runs import (
    ROOT,
    find_checkpoint,
    find_data,
    finish_run,
    finished_runs,
    forget_if_empty,
    open_data,
    open_run,
)
from tbkin_core.runtime import (
    atomic_path,
    launch,
    make_directory,
    rank,
    read_json,
    resolve_devices,
    write_json,
)
from tbkin_core.shards import MANIFEST

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from tbkin_core.datasets import Dataset
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.tasks import RecSplit, VqaSplit

logger = logging.getLogger("tbkin")


@dataclass(slots=True)
class Table:
    """A table of the result: cells are text already."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(slots=True)
class StageResult:
    """What a stage made.

    Attributes:
        out: Directory or file of the results.
        values: Plain values, as printed by --json.
        tables: What a person wants to see.
        problems: What was skipped or is worth knowing, one line each.
        files: Files to open.
    """

    out: Path
    values: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


# ---- extract-features ---------------------------------------------------------------------------


def extract_features(config: ExtractFeaturesConfig) -> StageResult:
    """Extract or import region features of every image of a dataset into its feature store.

    Raises:
        TbkinError: As `tbkin_core.features.extract.extract_dataset`.
    """
    from tbkin_core.features.extract import extract_dataset

    dataset = open_data(config.data)
    out = config.out or config.data / "features"
    extraction = extract_dataset(
        dataset, out, config.extractor, config.max_regions, config.workers, config.overwrite
    )
    store = extraction.store
    problems = [*extraction.problems, *dataset.problems]
    values = {
        "out": str(out),
        "extractor": store.extractor,
        "images": len(store),
        "made": extraction.made,
        "present": extraction.present,
        "skipped": len(extraction.problems),
        "feature_size": store.feature_size,
        "problems": problems,
    }
    table = Table(
        f"Features in {out}",
        ["extractor", "images", "made now", "skipped", "feature size"],
        [
            [
                store.extractor,
                str(len(store)),
                str(extraction.made),
                str(len(extraction.problems)),
                str(store.feature_size),
            ]
        ],
    )
    return StageResult(out, values, [table], problems)


# ---- build-graphs -------------------------------------------------------------------------------


def build_graphs(config: BuildGraphsConfig) -> StageResult:
    """Build the unified scene graphs of a dataset's captions.

    Raises:
        TbkinError: As `tbkin_core.graphs.build.build_dataset`.
    """
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.graphs.build import build_dataset, export_jsonl
    from tbkin_core.graphs.parser import CaptionParser

    dataset = open_data(config.data)
    out = config.out or config.data / "graphs"
    place = config.features or config.data / "features"
    features = FeatureStore(place) if config.features or (place / MANIFEST).exists() else None
    problems: list[str] = []
    if features is None:
        problems.append(
            f"no features at {place}: regions are the annotated boxes; for pretraining run"
            f" `tbkin extract-features {config.data}` first"
        )
    parser = CaptionParser(config.parser)
    build = build_dataset(
        dataset, out, features, parser, config.min_similarity, config.label_iou, config.overwrite
    )
    if features is not None and not features.object_names and not dataset.boxes():
        problems.append(
            "the regions have no labels (features without object names, no annotated boxes):"
            " there are no cross-modal edges"
        )
    files = []
    if config.export is not None:
        export_jsonl(build.store, config.export)
        files.append(config.export)
    summary = build.summary
    problems += dataset.problems
    share = 100 * summary["anchored"] / max(summary["captions"], 1)
    values = {"out": str(out), "made": build.made, "present": build.present, **summary, "problems": problems}
    tables = [
        Table(
            f"Graphs in {out}",
            ["captions", "made now", "objects each", "attributes each", "relations each", "with an anchor"],
            [
                [
                    str(summary["captions"]),
                    str(build.made),
                    *(
                        f"{summary[f'{name}_per_caption']:.2f}"
                        for name in ("objects", "attributes", "relations")
                    ),
                    f"{share:.0f} %",
                ]
            ],
        ),
        Table(
            "Most frequent",
            ["objects", "attributes", "relations"],
            [
                [f"{name} ({count})" for name, count in row]
                for row in _transposed(
                    [summary["most_common"][name] for name in ("objects", "attributes", "relations")]
                )
            ],
        ),
    ]
    return StageResult(out, values, tables, problems, files)


def _transposed(columns: Sequence[Sequence[tuple[str, int]]]) -> list[list[tuple[str, int]]]:
    height = min((len(column) for column in columns), default=0)
    return [[column[row] for column in columns] for row in range(height)]


# ---- pretrain -----------------------------------------------------------------------------------


def pretrain(config: PretrainConfig) -> StageResult:
    """Pretrain on one or more datasets with features and graphs.

    Raises:
        TbkinError: Features or graphs are missing or do not fit each other; training failed.
    """
    if not config.data:
        raise ConfigError(
            "data: name at least one dataset directory", hint="for example `tbkin pretrain coco/`"
        )
    devices = resolve_devices(config.devices)
    for number, data in enumerate(config.data):
        open_data(data)
        _feature_place(config.features[number] if config.features else None, data)
        graphs = config.graphs[number] if config.graphs else data / "graphs"
        if not (graphs / MANIFEST).exists():
            raise DataError(f"{graphs}: holds no graphs", hint=f"make them with `tbkin build-graphs {data}`")
    run = open_run(config, "pretrain", ROOT / "pretrain")
    if run.results is None:
        with forget_if_empty(run.path):
            launch(_pretrain_worker, devices, config, run.path)
    else:
        logger.info("%s: this run has finished already; --overwrite trains it again", run.path)
    results = read_json(run.path / "run.json")["results"]
    rows = [
        [
            name.removeprefix("val_").replace("_", " "),
            f"{value:.1f} %" if name.endswith("accuracy") else f"{value:.3f}",
        ]
        for name, value in results["validation"].items()
    ]
    tables = [
        Table(
            f"Pretrained model in {run.path}, best epoch {results['best_epoch']}",
            ["validation", "value"],
            rows,
        )
    ]
    return StageResult(run.path, {"out": str(run.path), **results}, tables, results["problems"])


def _pretrain_worker(config: PretrainConfig, out: Path) -> None:
    import torch

    from tbkin_core.checkpoint import save_model
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.graphs.store import GraphStore
    from tbkin_core.modeling import TbkinForPreTraining
    from tbkin_core.pretraining import CaptionTable, PretrainTask, caption_texts, load_captions
    from tbkin_core.training import train

    devices = resolve_devices(config.devices)
    problems: list[str] = []
    training: list[tuple[CaptionTable, FeatureStore]] = []
    validation: list[tuple[CaptionTable, FeatureStore]] = []
    texts: list[str] = []
    for number, data in enumerate(config.data):
        place = config.features[number] if config.features else data / "features"
        features = FeatureStore(place)
        graph_place = config.graphs[number] if config.graphs else data / "graphs"
        graphs = GraphStore(graph_place)
        if graphs.settings["features"] != features.settings:
            raise DataError(
                f"{graph_place}: was built over other regions than those of {place}",
                hint=f"run `tbkin build-graphs {data} --overwrite`",
            )
        if training and not _same_features(training[0][1], features):
            raise DataError(
                f"{place}: features of another kind than {training[0][1].path}; they are not mixed",
                hint="extract the features of all datasets with the same extractor",
            )
        splits = {split for _, metadata in graphs.shards for split in metadata["splits"]}
        trained = (
            ["train"] if "train" in splits else sorted(splits - {"val", "minival", "test"}) or sorted(splits)
        )
        everything = load_captions(graphs, trained, features)
        held = load_captions(graphs, ["val"], features) if "train" in splits and "val" in splits else None
        if held is None or not len(held):
            everything, held = _split_captions(everything, config.seed)
        training.append((everything, features))
        if len(held):
            validation.append((held, features))
        texts += caption_texts(graphs)
        texts += _training_texts(open_data(data))
    count = sum(len(table) for table, _ in training)
    settings = _resolved(config, count, pretraining=True)
    weights, init_config, tokenizer, source = _initial(settings, texts, training[0][1], [])
    task = PretrainTask(
        training,
        validation,
        tokenizer,
        config.masking,
        seed=config.seed,
        mismatch=config.mismatch,
        ot_weight=config.ot_weight,
        max_text_tokens=settings.max_text_tokens,
        max_regions=settings.max_regions,
        batch_size=settings.batch_size or 1,
    )
    torch.manual_seed(config.seed)
    model_config = _model_config(settings, init_config, tokenizer, training[0][1])
    stores = [store for _, store in training]
    model = _initialised(TbkinForPreTraining, model_config, weights, source, stores)
    if task.train.table.cut:
        problems.append(f"{task.train.table.cut} captions were cut to {settings.max_text_tokens} tokens")
    _announce("pretraining", settings, model, count, f"captions, weights from {source}")
    result = train(
        task,
        model,
        settings,
        out,
        devices,
        lambda best: save_model(best, tokenizer, out),
        f"{task.fingerprint()}",
    )
    if rank() == 0:
        finish_run(
            out,
            {
                "captions": count,
                "parameters": model.num_parameters(),
                "initialised_from": source,
                **_summary(result),
                "validation": _of_epoch(result.history, result.best_epoch),
                "problems": [*problems, *_cut_short(result, settings)],
            },
        )


def _split_captions(table: Any, seed: int) -> tuple[Any, Any]:
    """Hold 5 % of the images out where the data has no val split; none where there is one image."""
    from tbkin_core.pretraining import CaptionTable, select_captions
    from tbkin_core.tasks import hold_out

    if len(set(table.image_ids)) < 2:
        return table, CaptionTable()
    held = hold_out(table.image_ids, 0.05, seed)
    return select_captions(table, ~held), select_captions(table, held)


# ---- finetune -----------------------------------------------------------------------------------


def finetune(config: FinetuneConfig) -> StageResult:
    """Fine-tune on VQA or REC, keep the best checkpoint by validation, and report on the test splits.

    Raises:
        TbkinError: Data, features or initial weights are missing or do not fit; training failed.
    """
    if config.data is None:
        config = replace(config, data=find_data(config.task))
    devices = resolve_devices(config.devices)
    assert config.data is not None
    open_data(config.data)
    _feature_place(config.features, config.data)
    run = open_run(config, "finetune", ROOT / "finetune" / _run_name(config))
    if run.results is None:
        with forget_if_empty(run.path):
            launch(_finetune_worker, devices, config, run.path)
    else:
        logger.info("%s: this run has finished already; --overwrite trains it again", run.path)
    results = read_json(run.path / "run.json")["results"]
    results["report"] += _question_only_rows(config, results)
    columns = ["split", "model", "accuracy", "n"]
    rows = [
        [entry["split"], entry["model"], f"{entry['accuracy']:.2f} %", str(entry["n"])]
        for entry in sorted(results["report"], key=lambda entry: (entry["split"], entry["order"]))
    ]
    name = "VQA accuracy" if config.task == "vqa" else "Acc@IoU>0.5"
    tables = [Table(f"{name}, model in {run.path}", columns, rows)]
    by_type = results.get("per_question_type") or {}
    if len(by_type) > 1:
        common = sorted(by_type.items(), key=lambda entry: entry[0])[:12]
        tables.append(
            Table(
                f"{results['type_split']} by question type",
                ["type", "accuracy"],
                [[k, f"{v:.2f} %"] for k, v in common],
            )
        )
    return StageResult(run.path, {"out": str(run.path), **results}, tables, results["problems"])


def _run_name(config: FinetuneConfig) -> str:
    parts = [config.task]
    if config.dataset:
        parts.append(config.dataset)
    if config.blind:
        parts.append("blind")
    if config.threshold:
        parts += [config.selection, f"{config.threshold:g}"]
    return "-".join(parts)


def _finetune_worker(config: FinetuneConfig, out: Path) -> None:
    import numpy as np
    import torch

    from tbkin_core.checkpoint import load_model, save_model
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.modeling import TbkinForRec, TbkinForVqa
    from tbkin_core.runtime import torch_device
    from tbkin_core.tasks import (
        RecTask,
        VqaTask,
        answer_vocabulary,
        build_rec_split,
        build_vqa_split,
        load_answers,
    )
    from tbkin_core.training import train

    assert config.data is not None
    devices = resolve_devices(config.devices)
    dataset = open_data(config.data)
    store = FeatureStore(_feature_place(config.features, config.data))
    problems: list[str] = []
    splits = _task_splits(dataset, config, problems)
    if not splits["train"]:
        raise DataError(
            f"{config.data}: no training {'questions' if config.task == 'vqa' else 'expressions'}"
        )
    in_store = [item for item in splits["train"] if item.image_id in store]
    if not in_store:
        raise DataError(
            f"{store.path}: holds features of none of the {len(splits['train'])} training samples' images",
            hint=f"run `tbkin extract-features {config.data}`",
        )
    for name, items in splits.items():
        lacking = sum(item.image_id not in store for item in items)
        if lacking:
            problems.append(
                f"{name}: {lacking} of {len(items)} samples skipped, their images have no features"
            )
    is_vqa = config.task == "vqa"
    settings = _resolved(config, len(in_store), pretraining=False)
    texts = [item.question if is_vqa else item.text for item in in_store]
    weights, init_config, tokenizer, source = _initial(settings, texts, store, texts)
    common = (store, tokenizer, settings.max_text_tokens, settings.max_regions)
    batch_size = settings.batch_size or 1
    if is_vqa:
        vqa = {
            name: build_vqa_split(items, *common, blind=config.blind)
            for name, items in splits.items()
            if items
        }
        answers, minimum = (
            (load_answers(config.answers), 0)
            if config.answers is not None
            else answer_vocabulary(in_store, config.min_answer_count)
        )
        epochs = settings.epochs or 0
        # A softmax is the right model where one answer is right, and needs no other loss after it.
        certain = all(len(scores) == 1 for scores in vqa["train"].scores)
        kl_epochs = config.kl_epochs if config.kl_epochs is not None else epochs if certain else epochs // 3
        task: Any = VqaTask(vqa["train"], _with_answers(vqa.get("val")), answers, kl_epochs, batch_size)
        extra: dict[str, Any] = {
            "num_answers": len(answers),
            "id2label": dict(enumerate(answers)),
            "label2id": {answer: number for number, answer in enumerate(answers)},
            "use_regions": not config.blind,
        }
        logger.info("%d answers (given to at least %d questions)", len(answers), minimum)
        train_inputs = vqa["train"].inputs
    else:
        rec = {name: build_rec_split(items, *common) for name, items in splits.items() if items}
        validation = rec.get("val")
        has_validation = validation is not None and bool(validation.expressions)
        task = RecTask(rec["train"], validation if has_validation else None, batch_size)
        extra = {}
        train_inputs = rec["train"].inputs
    if task.skipped:
        reason = "none of their answers is learnt" if is_vqa else "no region is near their target"
        problems.append(f"train: {task.skipped} samples skipped, {reason}")
    if train_inputs.table.cut:
        problems.append(
            f"train: {train_inputs.table.cut} texts were cut to {settings.max_text_tokens} tokens"
        )
    torch.manual_seed(config.seed)
    model_config = _model_config(settings, init_config, tokenizer, store)
    layers = model_config.num_hidden_layers
    outside = [layer for layer in config.threshold_layers or [] if not 0 <= layer < layers]
    if outside:
        raise ConfigError(
            f"threshold_layers: expected numbers from 0 to {layers - 1} ({layers} layers), got {outside[0]}"
        )
    for name, value in (
        ("threshold", config.threshold),
        ("selection", config.selection),
        ("threshold_layers", config.threshold_layers),
        ("threshold_scope", config.threshold_scope),
        ("straight_through", config.straight_through),
        *extra.items(),
    ):
        setattr(model_config, name, value)
    model = _initialised(TbkinForVqa if is_vqa else TbkinForRec, model_config, weights, source, [store])
    _announce(
        f"fine-tuning {config.task}", settings, model, len(task.lengths()), f"samples, weights from {source}"
    )
    fingerprint = f"{train_inputs.fingerprint()}-{len(task.lengths())}"
    result = train(
        task,
        model,
        settings,
        out,
        devices,
        lambda best: save_model(best, tokenizer, out),
        fingerprint,
        patience=config.patience,
    )
    if rank() != 0:
        return
    best, _ = load_model(out, config.task)
    device = torch_device(devices)
    best.to(device)  # type: ignore[arg-type]
    report: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    for name in (name for name in splits if name != "train" and splits[name]):
        if is_vqa:
            split = _with_answers(vqa[name])
            if split is None:
                problems.append(f"{name}: has no answers, so it is not evaluated")
                continue
            _report_vqa(report, values, name, split, task, best, device, in_store, config)
        else:
            _report_rec(report, name, rec[name], task, best, device)
    shown = {entry["split"]: entry["accuracy"] for entry in report if entry["order"] == 3}
    unknown = int(np.sum(train_inputs.table.unknown))
    if unknown:
        problems.append(f"train: {unknown} texts hold no known word")
    finish_run(
        out,
        {
            "task": config.task,
            "data": str(config.data),
            "samples": len(task.lengths()),
            "parameters": best.num_parameters(),
            "initialised_from": source,
            **_summary(result),
            "accuracy": shown,
            "report": report,
            **values,
            "problems": [*problems, *_cut_short(result, settings), *dataset.problems],
        },
    )


def _with_answers(split: VqaSplit | None) -> VqaSplit | None:
    return split if split is not None and len(split.questions) and split.has_answers else None


def _report_vqa(
    report: list[dict[str, Any]],
    values: dict[str, Any],
    name: str,
    split: VqaSplit,
    task: Any,
    model: PreTrainedModel,
    device: Any,
    training: Sequence[Any],
    config: FinetuneConfig,
) -> None:
    from tbkin_core.tasks import majority_answer, official_accuracy

    count = len(split.questions)
    predicted, _ = task.predict(model, split.inputs, device)
    accuracy = official_accuracy(split, predicted)
    majority = official_accuracy(split, [majority_answer(training)] * count)
    label = "this model, without the image" if config.blind else "this model"
    report += [
        {"split": name, "model": "majority answer", "accuracy": majority.overall, "n": count, "order": 0},
        {"split": name, "model": label, "accuracy": accuracy.overall, "n": count, "order": 3},
    ]
    # Test comes last among the splits, and is the one to show by type.
    values["per_question_type"] = accuracy.per_question_type
    values["per_answer_type"] = accuracy.per_answer_type
    values["type_split"] = name


def _report_rec(
    report: list[dict[str, Any]], name: str, split: RecSplit, task: Any, model: PreTrainedModel, device: Any
) -> None:
    from tbkin_core.evaluation.rec import rec_accuracy
    from tbkin_core.tasks import random_region_accuracy, reachable

    count = len(split.expressions)
    if not count:
        return
    boxes, _, _ = task.predict(model, split.inputs, device)
    accuracy = rec_accuracy(boxes, [item.target_xywh for item in split.expressions])
    report += [
        {
            "split": name,
            "model": "random region",
            "accuracy": random_region_accuracy(split),
            "n": count,
            "order": 0,
        },
        {"split": name, "model": "this model", "accuracy": accuracy, "n": count, "order": 3},
        {
            "split": name,
            "model": "upper bound (a region of IoU>0.5 exists)",
            "accuracy": 100 * float(reachable(split).mean()),
            "n": count,
            "order": 4,
        },
    ]


def _question_only_rows(config: FinetuneConfig, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the latest question-only model trained on the same data, to stand beside this one."""
    if config.task != "vqa" or config.blind:
        return []
    for _, content in finished_runs("finetune"):
        settings = content["settings"]
        if settings.get("blind") and settings.get("data") == str(config.data):
            return [
                {**entry, "model": "question only", "order": 2}
                for entry in content["results"]["report"]
                if entry["order"] == 3
            ]
    results["problems"].append("no question-only model to compare with; train one with --blind")
    return []


def _task_splits(dataset: Dataset, config: FinetuneConfig, problems: list[str]) -> dict[str, list[Any]]:
    """Samples by split: "train", "val", then the test splits.

    Without a val split, images of train are held out; without a train split, val is divided by image. A test
    split is never trained on.
    """
    from tbkin_core.tasks import hold_out

    if config.task == "vqa":
        names = dataset.question_splits()
        if not names:
            raise DataError(
                f"{dataset.root}: no VQA questions (found: {', '.join(dataset.layouts)})",
                hint="expected files such as v2_OpenEnded_mscoco_train2014_questions.json",
            )
        found: dict[str, list[Any]] = {name: list(dataset.questions(name)) for name in names}
        found = {name: items for name, items in found.items() if items}
        if "train" in found:
            found["train"] = [item for item in found["train"] if item.answers]
    else:
        sets = dataset.expression_sets()
        if not sets:
            raise DataError(
                f"{dataset.root}: no referring expressions (found: {', '.join(dataset.layouts)})",
                hint="expected refs(unc).p or refs(umd).p beside instances.json",
            )
        chosen = config.dataset or sets[0]
        if chosen not in sets:
            raise ConfigError(f"dataset: expected one of {', '.join(sets)}, got {chosen!r}")
        if config.dataset is None and len(sets) > 1:
            problems.append(f"{chosen} is used; choose another with --dataset ({', '.join(sets)})")
        found = {name: list(dataset.expressions(name, chosen)) for name in dataset.expression_splits(chosen)}
    tests = [name for name in found if name.startswith("test")]
    spare = [name for name in found if name not in tests]
    validation = next((name for name in ("val", "minival") if name in found), None)
    trained: str | None = next((name for name in ("train", "all") if name in found), None)
    if trained is None:
        trained, validation = (spare[0] if spare else None), None
        if trained is None:
            raise DataError(f"{dataset.root}: only test splits ({', '.join(tests)}); nothing to train on")
        problems.append(f"no train split: {trained} is divided by image into training and validation")
    train_items, held = found[trained], found[validation] if validation else []
    if not held:
        mask = hold_out(
            [item.image_id for item in train_items], 0.1 if trained == "train" else 0.25, config.seed
        )
        held = [item for item, out in zip(train_items, mask, strict=True) if out]
        train_items = [item for item, out in zip(train_items, mask, strict=True) if not out]
        problems.append(f"no val split: {len(held)} samples of {trained} are held out by image")
    else:
        shared = {item.image_id for item in train_items} & {item.image_id for item in held}
        if shared and config.task == "vqa":
            problems.append(f"{len(shared)} images are in both {trained} and {validation}")
    return {"train": train_items, "val": held, **{name: found[name] for name in tests}}


# ---- threshold-sweep ----------------------------------------------------------------------------


def threshold_sweep(config: ThresholdSweepConfig) -> StageResult:
    """Evaluate a fine-tuned checkpoint at every threshold; the model and the features load once.

    Raises:
        TbkinError: No checkpoint of the task, other features than it was trained on, or bad thresholds.
    """
    import numpy as np

    from tbkin_core.checkpoint import load_model
    from tbkin_core.evaluation.sweep import conclude, measure_attention, sweep_rows
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.figures.sweep import sweep_figure
    from tbkin_core.runtime import torch_device
    from tbkin_core.selection import Selection
    from tbkin_core.tasks import RecTask, VqaTask, build_rec_split, build_vqa_split, evaluation_order
    from tbkin_core.training import to_device

    checkpoint = config.checkpoint or find_checkpoint([config.task])
    model, tokenizer = load_model(checkpoint, config.task)
    trained = _settings_of(checkpoint)
    data = config.data or (Path(trained["data"]) if trained.get("data") else find_data(config.task))
    features = config.features or (
        Path(trained["features"]) if trained.get("features") and not config.data else None
    )
    dataset = open_data(data)
    store = FeatureStore(_feature_place(features, data))
    _check_features(model, store, checkpoint)
    problems: list[str] = []
    probe = FinetuneConfig(task=config.task, data=data, dataset=config.dataset or trained.get("dataset"))
    probe.seed = int(trained.get("seed", 0))
    splits = _task_splits(dataset, probe, problems)
    name = config.split or "val"
    if name not in splits or name == "train":
        known = ", ".join(split for split in splits if split != "train")
        raise ConfigError(f"split: expected one of {known}, got {name!r}")
    device = torch_device(resolve_devices(config.devices))
    model.to(device)  # type: ignore[arg-type]
    limits = (store, tokenizer, model.config.max_text_tokens, model.config.max_regions)
    if config.task == "vqa":
        answers = list(model.config.answers())
        vqa = build_vqa_split(splits[name], *limits, blind=not model.config.use_regions)
        if _with_answers(vqa) is None:
            raise DataError(
                f"{data}: split {name} has no answers to evaluate against", hint="choose --split val"
            )
        task: Any = VqaTask(None, None, answers, 0, config.batch_size)
        inputs, groups = vqa.inputs, [item.image_id for item in vqa.questions]
    else:
        rec = build_rec_split(splits[name], *limits)
        if not rec.expressions:
            raise DataError(f"{data}: no expression of split {name} has features")
        task = RecTask(None, None, config.batch_size)
        inputs, groups = rec.inputs, [item.image_id for item in rec.expressions]

    def evaluate(selection: Selection) -> np.ndarray:
        model.tbkin.selection = selection
        if config.task == "vqa":
            return task.question_scores(vqa, task.predict(model, inputs, device)[0])
        return task.hits(rec, task.predict(model, inputs, device)[0]).astype(np.float64)

    order = evaluation_order(inputs, config.batch_size)
    # A few batches spread over all lengths measure sparsity well enough; attention maps are large.
    chosen = order[:: max(len(order) // 4, 1)][:4]
    batches = [to_device(inputs.batch(indices), device) for indices in chosen]

    def measure(selection: Selection) -> tuple[float, float]:
        model.tbkin.selection = selection
        return measure_attention(model, batches)

    base = model.config.attention_selection()
    selections = [
        replace(base, rule=rule, threshold=threshold)
        for rule in config.selection
        for threshold in parse_thresholds(config.thresholds)
    ]
    out = make_directory(config.out or ROOT / "threshold-sweep" / checkpoint.name)
    identity = {
        "checkpoint": str(checkpoint),
        "trained": _modified(checkpoint / "model.safetensors"),
        "data": str(data),
        "split": name,
        "samples": len(groups),
        "seed": config.seed,
    }
    file = out / "sweep.json"
    done = []
    if file.exists() and not config.overwrite:
        content = read_json(file)
        if content.get("identity") == identity:
            done = content["rows"]
        else:
            problems.append(f"{file}: was of another checkpoint or split and is replaced")

    def keep(rows: list[dict[str, Any]]) -> None:
        write_json(file, {"identity": identity, "rows": rows}, indent=None)

    if len(done):
        logger.info("%d thresholds are evaluated already", len(done))
    # The first evaluation pays for memory and caches that the others find ready.
    evaluate(selections[0])
    rows = sweep_rows(evaluate, measure, selections, groups, config.seed, done, keep)
    wanted = {("dense" if entry.threshold == 0 else entry.rule, entry.threshold) for entry in selections} | {
        ("dense", 0.0)
    }
    rows = [row for row in rows if (row["selection"], row["threshold"]) in wanted]
    conclusion = conclude(rows)
    plain = [{key: value for key, value in row.items() if key != "scores"} for row in rows]
    write_json(
        file,
        {
            "identity": identity,
            "conclusion": conclusion.text,
            "best": plain[rows.index(conclusion.best)],
            "rows": rows,
        },
        indent=None,
    )
    _write_csv(out / "sweep.csv", plain)
    metric = "VQA accuracy (%)" if config.task == "vqa" else "Acc@IoU>0.5 (%)"
    sweep_figure(out / "sweep.png", rows, title=f"{checkpoint.name} on {name}", accuracy_name=metric)
    table = Table(
        f"{metric} on {name} ({len(groups)} samples, {len(set(groups))} images), {checkpoint}",
        ["selection", "τ", "accuracy", "95 % interval", "against dense", "p", "kept", "entropy", "samples/s"],
        [
            [
                row["selection"],
                f"{row['threshold']:g}",
                f"{row['accuracy']:.2f}",
                f"{row['accuracy_low']:.2f} to {row['accuracy_high']:.2f}",
                f"{row['difference']:+.2f}" if "difference" in row else "",
                f"{row['p_value']:.3f}" if "p_value" in row else "",
                f"{100 * row['kept_fraction']:.1f} %",
                f"{row['entropy']:.2f}",
                f"{row['samples_per_second']:.0f}",
            ]
            for row in rows
        ],
    )
    values = {
        "out": str(out),
        **identity,
        "rows": plain,
        "conclusion": conclusion.text,
        "differs_from_dense": conclusion.differs,
        "problems": problems,
    }
    files = [out / "sweep.png", out / "sweep.csv", file]
    return StageResult(out, values, [table], [conclusion.text, *problems], files)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


# ---- visualize ----------------------------------------------------------------------------------


def visualize(config: VisualizeConfig) -> StageResult:
    """Answer one question about one image, or find one expression in it, and draw what was attended to.

    Raises:
        TbkinError: The image cannot be read, there is no checkpoint, or its features cannot be made.
    """
    import numpy as np
    import torch

    from tbkin_core.batches import encode_texts
    from tbkin_core.checkpoint import load_model, task_of
    from tbkin_core.features.images import load_image
    from tbkin_core.features.store import batch_of_one
    from tbkin_core.figures.attention import answer_figure
    from tbkin_core.runtime import torch_device
    from tbkin_core.selection import Selection
    from tbkin_core.training import to_device
    from tbkin_core.views import attention_views, is_question, predictions

    # Of a VQA and a REC model, a question goes to the first and an expression to the second.
    wanted = "vqa" if is_question(config.question) else "rec"
    checkpoint = config.checkpoint or find_checkpoint(["vqa", "rec", "pretrain"], prefer=wanted)
    task = task_of(checkpoint)
    # The image first: reading it is quick, and it is what people mistype.
    picture, width, height = load_image(config.image, max_side=1600)
    question = " ".join(config.question.split())
    model, tokenizer = load_model(checkpoint, task)
    problems: list[str] = []
    regions, names, attributes = _regions_of(config, model.config.extractor or {}, problems)
    limit = model.config.max_regions
    batch = batch_of_one(regions)
    table = encode_texts(tokenizer, [question], model.config.max_text_tokens)
    if table.unknown[0]:
        raise DataError(
            f"question: none of its words is known to {checkpoint}: {_shortened(question)!r}",
            hint="the model knows the words it was trained on; ask in its language, in other words",
        )
    if table.cut:
        problems.append(f"the question was cut to {model.config.max_text_tokens} tokens")
    pieces = [tokenizer.id_to_token(int(number)) or "[UNK]" for number in table.ids]
    input_ids, attention_mask, word_ids = table.padded(np.array([0]))
    inputs = to_device(
        {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "region_features": batch.features[:, :limit],
            "region_geometry": batch.geometry[:, :limit],
            "region_mask": batch.mask[:, :limit],
        },
        torch_device(resolve_devices(config.devices)),
    )
    model.to(inputs["input_ids"].device)  # type: ignore[arg-type]
    own = model.config.attention_selection()
    rule = config.selection or own.rule
    threshold = config.threshold
    if threshold is None:
        threshold = own.threshold if own.threshold and rule == own.rule else 4 if rule == "topk" else 0.3
    selection = Selection(rule, threshold, own.layers, own.scope)
    boxes = np.asarray(regions.boxes[:limit], np.float32)
    results = []
    with torch.inference_mode():
        for chosen_selection in (Selection(rule, 0.0), selection):
            model.tbkin.selection = chosen_selection
            output = model(**inputs, output_attentions=True)
            prediction = predictions(task, model.config, output, boxes, (width, height), config.top)
            view, kept = attention_views(task, output, inputs, word_ids[0], prediction.chosen)
            results.append((prediction, view, kept))
    (dense, dense_view, _), (sparse, sparse_view, kept) = results
    words = _words(pieces, word_ids[0])
    labels = [
        _label(number, names, regions.object_ids) or _label(number, attributes, regions.attribute_ids)
        for number in range(len(boxes))
    ]
    scale = picture.shape[1] / width

    def scaled(box: Any) -> Any:
        return None if box is None else np.asarray(box) * scale

    out = config.out or ROOT / "visualize"
    chosen_here = config.threshold is not None or config.selection is not None
    parts = [config.image.stem, _slug(question), *([f"{rule}-{threshold:g}"] if chosen_here else [])]
    file = make_directory(out) / f"{'-'.join(parts)}.png"
    answer_figure(
        file,
        image=picture,
        boxes=boxes * scale,
        region_labels=labels,
        words=words,
        dense=dense_view,
        thresholded=sparse_view,
        threshold=threshold,
        selection=rule,
        answers_dense=dense.answers,
        answers_thresholded=sparse.answers,
        chosen=sparse.chosen,
        runner_up=sparse.runner_up,
        chosen_dense=dense.chosen,
        runner_up_dense=dense.runner_up,
        predicted_box=scaled(sparse.box),
        predicted_box_dense=scaled(dense.box),
        kept_fraction=kept,
        title=question,
    )
    # The checkpoint answers as it was trained: with its own threshold, dense where that is 0.
    shown = sparse if own.threshold else dense
    values = {
        "figure": str(file),
        "checkpoint": str(checkpoint),
        "task": task,
        "image": str(config.image),
        "question": question,
        "answers": [{"answer": name, "probability": value} for name, value in shown.answers],
        "answers_dense": [{"answer": name, "probability": value} for name, value in dense.answers],
        "answers_thresholded": [{"answer": name, "probability": value} for name, value in sparse.answers],
        "box": None if shown.box is None else [round(float(side), 1) for side in shown.box],
        "threshold": threshold,
        "selection": rule,
        "kept_fraction": kept,
        "problems": problems,
    }
    heading = {"vqa": "answer", "rec": "region", "pretrain": "image and text"}[task]
    tables = [
        Table(
            f"{_shortened(question)}  ({checkpoint})",
            [heading, "dense", f"{rule} τ = {threshold:g}"],
            _answer_rows(dense.answers, sparse.answers),
        )
    ]
    if shown.box is not None:
        tables.append(
            Table(
                "box (x1, y1, x2, y2) in pixels",
                ["x1", "y1", "x2", "y2"],
                [[f"{side:.0f}" for side in shown.box]],
            )
        )
    return StageResult(file, values, tables, problems, [file])


def _answer_rows(dense: Sequence[tuple[str, float]], sparse: Sequence[tuple[str, float]]) -> list[list[str]]:
    sides = (dict(dense), dict(sparse))
    names = list(dict.fromkeys(name for name, _ in [*dense, *sparse]))
    return [
        [name, *(f"{100 * side[name]:.1f} %" if name in side else "" for side in sides)] for name in names
    ]


def _regions_of(
    config: VisualizeConfig, settings: dict[str, Any], problems: list[str]
) -> tuple[Any, list[str], list[str]]:
    """Regions of the image: made anew as the checkpoint's were, or taken from a store that holds it."""
    from tbkin_core.datasets.images import trailing_number
    from tbkin_core.features.extract import extract_one
    from tbkin_core.features.store import FeatureStore

    if settings.get("extractor") == "builtin" and config.features is None:
        return extract_one(config.image, settings), settings["object_names"], settings["attribute_names"]
    places = (
        [config.features]
        if config.features
        else [
            parent / "features"
            for parent in config.image.resolve().parents[:4]
            if (parent / "features" / MANIFEST).exists()
        ]
    )
    if settings.get("store"):
        places.append(Path(settings["store"]))
    for place in places:
        if not (place / MANIFEST).exists() and place != config.features:
            continue
        store = FeatureStore(place)
        if store.feature_size != settings.get("feature_size"):
            continue
        for key in (config.image.stem, config.image.name, trailing_number(config.image.stem)):
            if key is not None and key in store:
                return store[key], store.object_names, store.attribute_names
    if config.features and settings.get("extractor") == "builtin":
        raise ConfigError(
            f"{config.features}: holds no image {config.image.stem!r}",
            hint="leave --features away: this checkpoint's features are made anew for any image",
        )
    raise ConfigError(
        f"{config.image}: the checkpoint was trained on features of kind {settings.get('extractor')!r},"
        " and no feature store that holds this image was found",
        hint="name one with --features DIR, or use a checkpoint trained on --extractor builtin features",
    )


def _words(pieces: Sequence[str], word_ids: Any) -> list[str]:
    """Word pieces joined to words, without the special tokens."""
    words: dict[int, str] = {}
    for piece, word in zip(pieces, word_ids, strict=True):
        if word >= 0:
            words[int(word)] = words.get(int(word), "") + piece.removeprefix("##")
    return [words[number] for number in sorted(words)]


def _label(number: int, names: Sequence[str], ids: Any) -> str:
    return names[int(ids[number])] if number < len(ids) and 0 <= ids[number] < len(names) else ""


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "question"


# ---- shared by the training stages --------------------------------------------------------------


def _feature_place(features: Path | None, data: Path) -> Path:
    place = features or data / "features"
    if not (place / MANIFEST).exists():
        raise DataError(f"{place}: holds no features", hint=f"make them with `tbkin extract-features {data}`")
    return place


def _same_features(first: FeatureStore, second: FeatureStore) -> bool:
    def kind(store: FeatureStore) -> dict[str, Any]:
        return {name: value for name, value in store.settings.items() if name != "max_regions"}

    return kind(first) == kind(second)


def _check_features(model: PreTrainedModel, store: FeatureStore, checkpoint: Path) -> None:
    expected = {k: v for k, v in (model.config.extractor or {}).items() if k not in ("store", "max_regions")}
    found = {name: value for name, value in store.settings.items() if name != "max_regions"}
    if expected and expected != found:
        raise DataError(
            f"{store.path}: features of kind {found['extractor']!r}, size {found['feature_size']};"
            f" {checkpoint} was trained on {expected.get('extractor')!r}, size"
            f" {expected.get('feature_size')}",
            hint="use the features the checkpoint was trained on, or fine-tune on these",
        )


def _settings_of(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "run.json")["settings"] if (checkpoint / "run.json").exists() else {}


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _training_texts(dataset: Dataset) -> list[str]:
    """Questions and expressions of the training split: pretraining should know their words too."""
    texts = (
        [item.question for item in dataset.questions("train")] if "train" in dataset.question_splits() else []
    )
    for name in dataset.expression_sets():
        if "train" in dataset.expression_splits(name):
            texts += [item.text for item in dataset.expressions("train", name)]
    return texts


def _resolved(config: Any, samples: int, pretraining: bool) -> Any:
    """Fill in what was left to tbkin, from the amount of data; a function of it and the settings alone."""
    import torch

    cuda = torch.cuda.is_available() and not config.devices.startswith("cpu")
    size = config.size
    if size == "auto":
        size = "tiny" if samples < 30_000 else "small" if samples < 300_000 or not cuda else "base"
    rate = {"tiny": 1e-3, "small": 4e-4, "base": 1e-4 if pretraining else 5e-5}[size]
    batch = 64 if samples < 30_000 else 128 if samples < 300_000 else 256
    # Small data is passed over more often: about as many samples are seen in all.
    epochs = min(max(round((60_000 if pretraining else 120_000) / max(samples, 1)), 4), 40)
    return replace(
        config,
        size=size,
        epochs=epochs if config.epochs is None else config.epochs,
        batch_size=config.batch_size or min(batch, max(samples // 4, 1)),
        learning_rate=config.learning_rate or rate,
        dropout=config.dropout if config.dropout is not None else 0.0 if size == "tiny" else 0.1,
    )


def _initial(
    config: TrainingConfig, texts: Sequence[str], store: FeatureStore, new_texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any] | None, Tokenizer, str]:
    """Weights to begin from, their configuration, the tokenizer, and where they came from."""
    from tbkin_core.batches import build_tokenizer, extend_tokenizer, load_tokenizer
    from tbkin_core.checkpoint import load_init

    source = config.init
    if source == "auto":
        source = "none"
        if isinstance(config, FinetuneConfig) and not config.blind:
            source = _matching_pretrained(store, config.size) or "none"
    if source == "none":
        return {}, None, build_tokenizer(texts), "none"
    weights, values = load_init(source)
    tokenizer = load_tokenizer(source)
    if values.get("data_vocabulary"):
        tokenizer, added = extend_tokenizer(tokenizer, new_texts)
        if added:
            logger.info("%d words of the training texts were added to the vocabulary", added)
    return weights, values, tokenizer, source


def _matching_pretrained(store: FeatureStore, size: str) -> str | None:
    """The latest pretrained checkpoint made from features of this kind."""
    for path, _ in finished_runs("pretrain"):
        try:
            extractor = json.loads((path / "config.json").read_text(encoding="utf-8")).get("extractor") or {}
        except (OSError, ValueError):
            continue
        kind = {name: value for name, value in extractor.items() if name not in ("store", "max_regions")}
        if kind == {name: value for name, value in store.settings.items() if name != "max_regions"}:
            return str(path)
    return None


def _model_config(
    config: TrainingConfig, init: dict[str, Any] | None, tokenizer: Tokenizer, store: FeatureStore
) -> Any:
    from tbkin_core.modeling import TbkinConfig
    from tbkin_core.modeling.configuration import SIZES

    shape: dict[str, Any] = dict(SIZES[config.size])
    longest = 512
    if init is not None:
        shape = {name: init[name] for name in shape}
        longest = init.get("max_position_embeddings", longest)
    elif config.max_text_tokens <= 128:
        longest = 128
    if config.max_text_tokens > longest:
        raise ConfigError(f"max_text_tokens: expected at most {longest}, got {config.max_text_tokens}")
    return TbkinConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **shape,
        hidden_dropout_prob=config.dropout or 0.0,
        attention_probs_dropout_prob=config.dropout or 0.0,
        max_position_embeddings=longest,
        # 0.02 suits a width of 768; narrower layers need larger weights for the same signal.
        initializer_range=0.02 * math.sqrt(768 / shape["hidden_size"]),
        region_feature_size=store.feature_size,
        num_object_classes=len(store.object_names) or 1600,
        num_attribute_classes=len(store.attribute_names) or 400,
        extractor={**store.settings, "store": str(store.path.resolve())},
        max_regions=config.max_regions,
        max_text_tokens=config.max_text_tokens,
        data_vocabulary=init is None or bool(init.get("data_vocabulary")),
    )


def _initialised(
    kind: Any, config: Any, weights: dict[str, Any], source: str, stores: Sequence[FeatureStore]
) -> Any:
    """A model with its initial weights; region features are standardised by those of `stores`."""
    import torch

    from tbkin_core.checkpoint import apply_init
    from tbkin_core.features.store import feature_statistics

    model = kind(config)
    if "tbkin.region_embeddings.feature_projection.weight" not in weights:
        # Weights that know region features bring the statistics they were trained with.
        mean, scale = feature_statistics(stores)
        model.tbkin.region_embeddings.feature_mean.copy_(torch.from_numpy(mean))
        model.tbkin.region_embeddings.feature_scale.copy_(torch.from_numpy(scale))
    if weights:
        if weights.get("tbkin.region_embeddings.feature_projection.weight") is not None:
            expected = weights["tbkin.region_embeddings.feature_projection.weight"].shape[1]
            if expected != config.region_feature_size:
                raise CheckpointError(
                    f"init {source}: was trained on region features of size {expected}, these have"
                    f" {config.region_feature_size}",
                    hint="use features of the same extractor, or --init none",
                )
        apply_init(model, weights, source)
    return model


def _announce(what: str, config: TrainingConfig, model: Any, samples: int, rest: str) -> None:
    if rank() > 0:
        return
    logger.info(
        "%s: %d %s; size %s (%.1f M parameters), epochs %d, batch %d, learning rate %g",
        what,
        samples,
        rest,
        config.size,
        model.num_parameters() / 1e6,
        config.epochs,
        config.batch_size,
        config.learning_rate,
    )


def _summary(result: Any) -> dict[str, Any]:
    values = asdict(result)
    del values["history"]
    return {**values, "samples_per_second": result.samples / result.seconds if result.seconds else math.nan}


def _cut_short(result: Any, settings: TrainingConfig) -> list[str]:
    if result.reason == "minutes":
        return [f"training was stopped by --max-minutes in epoch {result.epochs} of {settings.epochs}"]
    if result.reason == "patience":
        return [f"training stopped at epoch {result.epochs} of {settings.epochs}: no improvement any more"]
    return []


def _of_epoch(history: Sequence[dict[str, Any]], epoch: int) -> dict[str, float]:
    for record in history:
        if record["epoch"] == epoch:
            return {name: value for name, value in record.items() if name.startswith("val_")}
    return {}
