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
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.config import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    FinetuneConfig,
    PretrainConfig,
    ThresholdSweepConfig,
    dump_config,
    parse_thresholds,
)
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.results import StageResult, Table
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
from tbkin_core.visualization import visualize

if TYPE_CHECKING:
    import numpy as np


logger = logging.getLogger("tbkin")

__all__ = [
    "build_graphs",
    "extract_features",
    "finetune",
    "pretrain",
    "threshold_sweep",
    "visualize",
]


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
    files = _training_curves(run.path, f"Pretraining: {run.path}")
    return StageResult(run.path, {"out": str(run.path), **results}, tables, results["problems"], files)


def _training_curves(run: Path, title: str) -> list[Path]:
    """Draw what a run measured, once; nothing where it measured nothing."""
    from tbkin_core.figures.curves import training_figure

    measured, figure = run / "metrics.jsonl", run / "training.png"
    if rank() != 0 or not measured.exists() or figure.exists():
        return []
    rows = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        return []
    training_figure(figure, rows, title=title)
    return [figure]


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
    # Of a run that an earlier version made there are none.
    answered = sorted(run.path.glob("results-*.json"), key=lambda file: (file.stem != "results-val", file))
    values["results"] = [str(file) for file in answered]
    hints = [f"tbkin visualize --from {answered[0]} --wrong --limit 20" if answered else ""]
    files += _training_curves(run.path, f"Fine-tuning for {config.task}: {run.path}")
    return StageResult(run.path, values, tables, results["problems"], files, list(filter(None, hints)))


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


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
