"""Six functions, one a subcommand: settings in, result out. This is the public Python API::

from pathlib import Path
from tbkin_core.config import FinetuneConfig
from tbkin_core.stages import finetune

result = finetune(FinetuneConfig(task="vqa", data=Path("coco")))
result.values["accuracy"]["val"]
"""

from __future__ import annotations

import csv
import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.config import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    FinetuneConfig,
    PretrainConfig,
    ThresholdSweepConfig,
    VisualizeConfig,
    dump_config,
    parse_thresholds,
)
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.runs import (
    ROOT,
    Run,
    find_checkpoint,
    find_data,
    forget_if_empty,
    open_run,
)
from tbkin_core.runtime import (
    Devices,
    atomic_path,
    join_ranks,
    launch,
    make_directory,
    progress,
    rank,
    read_json,
    resolve_devices,
    wait_for_ranks,
    write_json,
    write_text,
)
from tbkin_core.shards import MANIFEST
from tbkin_core.training_runs import (
    check_feature_kind,
    check_features,
    check_predicted_splits,
    feature_place,
    finetune_run,
    initial_source,
    pretrain_run,
    question_only_rows,
    settings_of,
    task_splits,
    with_answers,
    write_predictions,
)

if TYPE_CHECKING:
    import numpy as np


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

    dataset = open_dataset(config.data)
    out = config.out or config.data / "features"
    _check_out(out, config.data)
    extraction = extract_dataset(
        dataset,
        out,
        config.extractor,
        config.max_regions,
        config.workers,
        config.overwrite,
        config.devices,
        config.batch_size,
        config.backbone,
        config.backbone_side,
    )
    write_text(out / "config.yaml", dump_config(config))
    problems = [*extraction.problems, *dataset.problems]
    if extraction.missing:
        problems.append(
            f"{extraction.missing} shards of other ranks are missing: the rank that ends last completes the"
            " store; what a rank has left out, the same command makes when it is run again"
        )
        share = Table(
            f"Share of the features in {out}",
            ["made now", "skipped", "shards of others missing"],
            [[str(extraction.made), str(extraction.skipped), str(extraction.missing)]],
        )
        values: dict[str, Any] = {"out": str(out), "made": extraction.made, "present": extraction.present}
        values |= {"skipped": extraction.skipped, "missing": extraction.missing, "problems": problems}
        return StageResult(out, values, [share], problems)
    store = extraction.store
    values = {
        "out": str(out),
        "extractor": store.extractor,
        "images": len(store),
        "made": extraction.made,
        "present": extraction.present,
        "skipped": extraction.skipped,
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
                str(extraction.skipped),
                str(store.feature_size),
            ]
        ],
    )
    return StageResult(out, values, [table], problems)


def _check_out(out: Path, data: Path) -> None:
    """A store in the dataset's own directory would hide the dataset."""
    if os.path.realpath(out) == os.path.realpath(data):
        raise ConfigError(f"out: {out} is the dataset itself", hint=f"name a directory in it: {out / 'made'}")


# ---- build-graphs -------------------------------------------------------------------------------


def build_graphs(config: BuildGraphsConfig) -> StageResult:
    """Build the unified scene graphs of a dataset's captions.

    Raises:
        TbkinError: As `tbkin_core.graphs.build.build_dataset`.
    """
    from tbkin_core.datasets.layout import named_like_annotations
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.graphs.build import build_dataset, check_export_place, export_jsonl
    from tbkin_core.graphs.networkx_export import check_networkx_place, export_networkx
    from tbkin_core.graphs.parser import CaptionParser
    from tbkin_core.graphs.similarity import make_similarity

    dataset = open_dataset(config.data)
    out = config.out or config.data / "graphs"
    _check_out(out, config.data)
    # Before the work, not after it.
    exports = {"export": config.export, "networkx": config.networkx}
    for setting, path in exports.items():
        if path is not None and dataset.root in path.absolute().parents and named_like_annotations(path):
            raise ConfigError(
                f"{setting}: {path} would be read as an annotation file of the dataset",
                hint="name it graphs.jsonl or graphs.graphml, or put it elsewhere",
            )
    if config.export is not None and config.networkx is not None:
        one, other = os.path.realpath(config.export), os.path.realpath(config.networkx)
        if one == other or os.path.dirname(one) == other:  # noqa: PTH120
            raise ConfigError(
                f"networkx: {config.networkx} is also where --export goes", hint="name two places"
            )
    if config.export is not None:
        check_export_place(config.export, out)
    if config.networkx is not None:
        check_networkx_place(config.networkx, out)
    place = config.features or config.data / "features"
    features = FeatureStore(place) if config.features or (place / MANIFEST).exists() else None
    problems: list[str] = []
    if features is None:
        command = f"`tbkin extract-features {config.data}`"
        if dataset.boxes():
            problems.append(
                f"no features at {place}: regions are the annotated boxes; for pretraining run"
                f" {command} first"
            )
        elif dataset.bottom_up_files() or dataset.feature_tables():
            problems.append(
                f"the features that lie in {config.data} are not imported yet: these graphs have no regions;"
                f" run {command}, then this command with --overwrite"
            )
        else:
            problems.append(
                f"no features at {place} and no annotated boxes: these graphs have no regions; for some run"
                f" {command}, then this command with --overwrite"
            )
    elif not features.complete:
        problems.append(
            f"{place}: extracting these features was interrupted; captions of images that it lacks have no"
            f" regions: run `tbkin extract-features {config.data}` again, then this command with --overwrite"
        )
    build = build_dataset(
        dataset,
        out,
        features,
        partial(CaptionParser, config.parser),
        config.min_similarity,
        config.label_iou,
        config.overwrite,
        config.workers,
        partial(make_similarity, config.similarity, config.similarity_model),
        needs_torch=config.parser != "builtin" or config.similarity == "encoder",
    )
    if features is not None and not features.object_names and not dataset.boxes():
        problems.append(
            "the regions have no labels (features without object names, no annotated boxes):"
            " there are no cross-modal edges"
        )
    problems += dataset.problems
    values: dict[str, Any] = {"out": str(out), "made": build.made, "present": build.present}
    write_text(out / "config.yaml", dump_config(config))
    summary = build.summary
    if summary is None:
        problems.append(
            f"{build.missing} shards of other ranks are missing: the rank that ends last completes the store;"
            " what a rank has left out, the same command builds when it is run again"
        )
        share = Table(
            f"Share of the graphs in {out}",
            ["made now", "present", "shards of others missing"],
            [[str(build.made), str(build.present), str(build.missing)]],
        )
        return StageResult(out, {**values, "missing": build.missing, "problems": problems}, [share], problems)
    files = []
    if config.export is not None:
        export_jsonl(build.store, config.export)
        files.append(config.export)
    if config.networkx is not None:
        export_networkx(progress(build.store, "networkx", total=len(build.store)), config.networkx)
        files.append(config.networkx)
    anchored = 100 * summary["anchored"] / max(summary["captions"], 1)
    values = {**values, **summary, "problems": problems}
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
                    f"{anchored:.0f} %",
                ]
            ],
        ),
        Table(
            "Most frequent",
            ["objects", "attributes", "relations"],
            _ranking([summary["most_common"][name] for name in ("objects", "attributes", "relations")]),
        ),
    ]
    return StageResult(out, values, tables, problems, files)


def _ranking(columns: Sequence[Sequence[Sequence[Any]]]) -> list[list[str]]:
    """(name, count) entries as rows of cells; a short column ends in empty ones."""
    cells = [[f"{name} ({count})" for name, count in column] for column in columns]
    return [list(row) for row in itertools.zip_longest(*cells, fillvalue="")]


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
        open_dataset(data)
        feature_place(config.features[number] if config.features else None, data)
        graphs = config.graphs[number] if config.graphs else data / "graphs"
        if not (graphs / MANIFEST).exists():
            raise DataError(f"{graphs}: holds no graphs", hint=f"make them with `tbkin build-graphs {data}`")
    run = _open_run_together(config, "pretrain", ROOT / "pretrain", devices)
    if run.results is None:
        with forget_if_empty(run.path):
            launch(pretrain_run, devices, config, run.path)
            wait_for_ranks()
    results = read_json(run.path / "run.json")["results"]
    if run.results is not None:
        results["problems"].insert(0, "this run had finished already; --overwrite trains it again")
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


# ---- finetune -----------------------------------------------------------------------------------


def finetune(config: FinetuneConfig) -> StageResult:
    """Fine-tune on VQA or REC, keep the best checkpoint by validation, and report on the test splits.

    Raises:
        TbkinError: Data, features or initial weights are missing or do not fit; training failed.
    """
    if config.data is None:
        config = replace(config, data=find_data(config.task))
    from tbkin_core.features.store import FeatureStore

    devices = resolve_devices(config.devices)
    assert config.data is not None
    check_predicted_splits(open_dataset(config.data), config)
    # Named now, so that the same command begins anew where a newer model to begin from has been made.
    store = FeatureStore(feature_place(config.features, config.data))
    config = replace(config, init=initial_source(config, store))
    run = _open_run_together(config, "finetune", ROOT / "finetune" / _run_name(config), devices)
    if run.results is None:
        with forget_if_empty(run.path):
            launch(finetune_run, devices, config, run.path)
            wait_for_ranks()
    results = read_json(run.path / "run.json")["results"]
    if run.results is not None:
        results["problems"].insert(0, "this run had finished already; --overwrite trains it again")
    results["report"] += question_only_rows(config, results)
    files = []
    if rank() == 0:
        files = [write_predictions(config, run.path, name, results["problems"]) for name in config.predict]
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
    values = {"out": str(run.path), **results}
    if files:
        values["predictions"] = [str(file) for file in files]
    return StageResult(run.path, values, tables, results["problems"], files)


def _open_run_together(config: Any, stage: str, default: Path, devices: Devices) -> Run:
    """`open_run`, by rank 0 first where several processes were started from outside (torchrun)."""
    join_ranks(devices)
    if rank() > 0:
        wait_for_ranks()
        config = replace(config, overwrite=False)
    run = open_run(config, stage, default)
    if rank() == 0:
        wait_for_ranks()
    wait_for_ranks()
    return run


def _run_name(config: FinetuneConfig) -> str:
    parts = [config.task]
    if config.dataset:
        parts.append(config.dataset)
    if config.blind:
        parts.append("blind")
    if config.threshold:
        parts += [config.selection, f"{config.threshold:g}"]
    return "-".join(parts)


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
    trained = settings_of(checkpoint)
    data = config.data or (Path(trained["data"]) if trained.get("data") else find_data(config.task))
    features = config.features or (
        Path(trained["features"]) if trained.get("features") and not config.data else None
    )
    dataset = open_dataset(data)
    store = FeatureStore(feature_place(features, data))
    check_features(model, store, checkpoint)
    problems: list[str] = []
    probe = FinetuneConfig(task=config.task, data=data, dataset=config.dataset or trained.get("dataset"))
    probe.seed = int(trained.get("seed", 0))
    probe.train_split = trained.get("train_split")
    splits = task_splits(dataset, probe, problems)
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
        if with_answers(vqa) is None:
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
    out = make_directory(config.out or ROOT / "threshold-sweep" / f"{checkpoint.name}-{name}")
    identity = {
        "checkpoint": str(checkpoint),
        "trained": _modified(checkpoint / "model.safetensors"),
        "data": str(data),
        "dataset": probe.dataset,
        "features": store.fingerprint(),
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
    everything = rows
    rows = [row for row in rows if (row["selection"], row["threshold"]) in wanted]
    conclusion = conclude(rows)
    plain = [{key: value for key, value in row.items() if key != "scores"} for row in rows]
    write_json(
        file,
        {
            "identity": identity,
            "conclusion": conclusion.text,
            "best": plain[rows.index(conclusion.best)],
            "rows": everything,
        },
        indent=None,
    )
    _write_csv(out / "sweep.csv", plain)
    write_text(
        out / "config.yaml", dump_config(replace(config, checkpoint=checkpoint, data=data, split=name))
    )
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
    regions, names, attributes = _regions_of(config, model.config.extractor or {}, (width, height))
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
    config: VisualizeConfig, settings: dict[str, Any], size: tuple[int, int]
) -> tuple[Any, list[str], list[str]]:
    """Regions of the image: made anew as the checkpoint's were, or taken from a store that holds it."""
    from tbkin_core.datasets.images import trailing_number
    from tbkin_core.features.extract import extract_one
    from tbkin_core.features.store import FeatureStore, feature_kind

    if settings.get("extractor") in ("builtin", "detector") and config.features is None:
        regions = extract_one(config.image, settings, config.devices)
        return regions, settings["object_names"], settings["attribute_names"]
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
        if feature_kind(store.settings) != feature_kind(settings):
            if place == config.features:
                check_feature_kind(settings, store, "the checkpoint")
            continue
        for key in (config.image.stem, config.image.name, trailing_number(config.image.stem)):
            # Another picture may have the same number; its size tells most of them apart.
            if key is not None and key in store:
                regions = store[key]
                if (regions.image_width, regions.image_height) == size:
                    return regions, store.object_names, store.attribute_names
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


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
