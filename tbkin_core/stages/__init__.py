"""Six functions, one a subcommand: settings in, result out. This is the public Python API::

from pathlib import Path
from tbkin_core.settings import FinetuneConfig
from tbkin_core.stages import finetune

result = finetune(FinetuneConfig(task="vqa", data=Path("coco")))
result.values["accuracy"]["val"]
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.results import StageResult, Table
from tbkin_core.runs import (
    ROOT,
    Run,
    find_data,
    forget_if_empty,
    open_run,
)
from tbkin_core.selection import TRANSFORMS, require_library
from tbkin_core.settings import (
    FinetuneConfig,
    PretrainConfig,
    ThresholdSweepConfig,
)
from tbkin_core.support.devices import Devices, join_ranks, launch, resolve_devices
from tbkin_core.support.files import read_json
from tbkin_core.support.ranks import rank, wait_for_ranks
from tbkin_core.support.shards import MANIFEST
from tbkin_core.training_runs import (
    check_predicted_splits,
    feature_place,
    finetune_run,
    initial_source,
    pretrain_run,
    write_predictions,
)
from tbkin_core.visualization import visualize

if TYPE_CHECKING:
    from tbkin_core.stages.build_graphs import build_graphs
    from tbkin_core.stages.extract_features import extract_features

logger = logging.getLogger("tbkin")

__all__ = [
    "build_graphs",
    "extract_features",
    "finetune",
    "pretrain",
    "threshold_sweep",
    "visualize",
]


class _Stages(ModuleType):
    """This package: it imports a stage's module when the stage is asked for, and hands out its function.

    The import system puts a module into its package under its name, which here is the function's name too;
    that name stays the function's, whether the module was imported through the package or directly.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        importlib.import_module(f"{self.__name__}.{name}")
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        is_stage = isinstance(value, ModuleType) and name in __all__
        super().__setattr__(name, getattr(value, name) if is_stage else value)


sys.modules[__name__].__class__ = _Stages


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
    require_library(config.selection)
    if config.data is None:
        config = replace(config, data=find_data(config.task))
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.reports import question_only_rows

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
    columns = ["split", "model", "accuracy", "95 % interval", "n"]
    rows = [
        [
            entry["split"],
            entry["model"],
            f"{entry['accuracy']:.2f} %",
            # Runs of an earlier version have none.
            f"{entry['accuracy_low']:.2f} to {entry['accuracy_high']:.2f}" if "accuracy_low" in entry else "",
            str(entry["n"]),
        ]
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
        parts.append(config.selection)
        if config.selection not in TRANSFORMS:
            parts.append(f"{config.threshold:g}")
    return "-".join(parts)


# ---- threshold-sweep ----------------------------------------------------------------------------


def threshold_sweep(config: ThresholdSweepConfig) -> StageResult:
    """Evaluate a fine-tuned checkpoint at every threshold, or fine-tune one for each.

    Raises:
        TbkinError: No checkpoint of the task, other features than it was trained on, or bad thresholds; with
            `refit`, as `finetune`.
    """
    from tbkin_core.evaluation.sweep import p_text, row_name
    from tbkin_core.sweep_runs import run_sweep

    sweep = run_sweep(config, finetune)
    rows, conclusion = sweep.rows, sweep.conclusion
    types = list(rows[0].get("answer_types", {})) if rows else []
    # Other data than VQA's may have many answer types; all are in the files.
    types = types if len(types) <= 4 else []
    seeds = "accuracy_by_seed" in rows[0] if rows else False
    table = Table(
        f"{sweep.metric} on {sweep.split} ({sweep.samples} samples, {sweep.images} images), {sweep.title}",
        [
            "selection",
            "accuracy",
            "95 % interval",
            *(["± seeds"] if seeds else []),
            "against dense",
            "p",
            *types,
            "kept",
            "entropy",
            "samples/s",
        ],
        [
            [
                row_name(row),
                f"{row['accuracy']:.2f}",
                f"{row['accuracy_low']:.2f} to {row['accuracy_high']:.2f}",
                *([f"{row['accuracy_spread']:.2f}"] if seeds else []),
                f"{row['difference']:+.2f}" if "difference" in row else "",
                p_text(row["p_value"]) if "p_value" in row else "",
                *(f"{row['answer_types'][name]:.2f}" for name in types),
                f"{100 * row['kept_fraction']:.1f} %",
                f"{row['entropy']:.2f}",
                f"{row['samples_per_second']:.0f}",
            ]
            for row in rows
        ],
    )
    values = {
        "out": str(sweep.out),
        **sweep.identity,
        "samples": sweep.samples,
        "rows": rows,
        "conclusion": conclusion.text,
        "differs_from_dense": conclusion.differs,
        "all_alike": conclusion.all_alike,
        "problems": sweep.problems,
    }
    return StageResult(sweep.out, values, [table], [conclusion.text, *sweep.problems], sweep.files)
