"""What a threshold sweep does, from its settings to its table and figures.

A sweep evaluates one checkpoint under each threshold, or, with `refit`, trains a model for each and evaluates
that. What is measured is kept in `sweep.json` after every threshold; the rows are worked out from it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.layout import normalise_split
from tbkin_core.errors import CheckpointError, ConfigError, DataError, TbkinError
from tbkin_core.evaluation.attribution import AttentionMeter
from tbkin_core.evaluation.intervals import too_few_images
from tbkin_core.evaluation.sweep import (
    Measurement,
    Samples,
    SweepConclusion,
    conclude,
    summarise,
)
from tbkin_core.features.store import FeatureStore
from tbkin_core.runs import (
    NO_RESULT,
    ROOT,
    RUN_FILE,
    SWEEP_FILE,
    find_checkpoint,
    find_data,
    finished_runs,
)
from tbkin_core.selection import TRANSFORMS, Selection, require_library
from tbkin_core.settings import FinetuneConfig, ThresholdSweepConfig, config_values, dump_config, load_config
from tbkin_core.support.devices import join_ranks, resolve_devices, torch_device
from tbkin_core.support.files import atomic_path, make_directory, read_json, write_json, write_text
from tbkin_core.support.ranks import rank, wait_for_ranks
from tbkin_core.support.shards import MANIFEST
from tbkin_core.training_runs import (
    check_features,
    expression_set,
    feature_place,
    initial_source,
    most_minutes,
    samples_content,
    settings_of,
    task_splits,
)

logger = logging.getLogger("tbkin")

Train = Callable[[FinetuneConfig], Any]
DENSE = ("dense", 0.0)


@dataclass(slots=True)
class Sweep:
    """A finished sweep; `rows` as `summarise` makes them."""

    out: Path
    rows: list[dict[str, Any]]
    conclusion: SweepConclusion
    identity: dict[str, Any]
    split: str
    samples: int
    images: int
    title: str
    metric: str
    problems: list[str]
    files: list[Path]


def run_sweep(config: ThresholdSweepConfig, train: Train) -> Sweep:
    """Measure every selection, going on from what is measured already, and write table and figures.

    Args:
        config: Settings.
        train: Fine-tunes, as `tbkin_core.stages.finetune`; for `refit`.

    Raises:
        TbkinError: No checkpoint of the task, other features than it was trained on, a split without answers,
            a place that holds something else or may not be written to.
    """
    wanted = list(dict.fromkeys([DENSE, *(key for key in config.wanted() if key[1] != 0)]))
    for rule, _ in wanted:
        require_library(rule)
    split = normalise_split(config.split or "val")
    devices = resolve_devices(config.devices)
    problems: list[str] = []
    if config.refit:
        checkpoint, base, store, dataset = _refit_source(config, problems)
        seeds, own = [config.seed + number for number in range(config.seeds)], True
    else:
        checkpoint, base, store, dataset, own = _checkpoint_source(config)
        seeds = [base.seed]
    assert base.data is not None
    items, contents = {}, {}
    for seed in seeds:
        seeded = replace(base, seed=seed)
        splits = task_splits(dataset, seeded, problems) if own else _whole_split(dataset, base, split)
        if split not in splits or split == "train":
            known = ", ".join(name for name in splits if name != "train")
            raise ConfigError(f"split: expected one of {known}, got {split!r}")
        items[seed] = _evaluable(splits[split], dataset, base, split, store, problems)
        contents[seed] = samples_content(splits if config.refit else {split: items[seed]})
        problems += too_few_images(split, [item.image_id for item in items[seed]])
    problems = list(dict.fromkeys(problems))
    identity = {
        "refit": config.refit,
        "checkpoint": None if config.refit else str(checkpoint),
        "trained": None
        if config.refit or checkpoint is None
        else _modified(checkpoint / "model.safetensors"),
        "settings": _settings(replace(base, seed=0)) if config.refit else None,
        "init": _modified(Path(base.init) / "model.safetensors") if config.refit else None,
        "data": str(base.data),
        "dataset": base.dataset,
        "features": store.fingerprint(),
        "split": split,
        "content": contents[seeds[0]],
    }
    name = f"{base.task}-refit" if config.refit or checkpoint is None else checkpoint.name
    evaluate = Evaluation(config, items, store)
    if checkpoint is not None and not config.refit:
        # Before a place is taken: a checkpoint that does not fit its features leaves no trace.
        evaluate.use(checkpoint, seeds[0])
    join_ranks(devices)
    if rank() > 0:
        wait_for_ranks()
    out, done = _place(config, ROOT / "threshold-sweep" / f"{name}-{split}", identity)
    if rank() == 0:
        wait_for_ranks()
    wait_for_ranks()
    keep = _Keeper(out / SWEEP_FILE, identity, done)
    if config.refit:
        with keep.forgotten_if_empty():
            _sweep_refit(base, wanted, contents, store, train, evaluate, keep, config.overwrite)
    else:
        if base.blind:
            problems.append(f"{checkpoint} sees no image: only attention from text to text is thresholded")
        _sweep_checkpoint(wanted, seeds[0], evaluate, keep)
    return _finish(config, out, wanted, evaluate.samples, keep, split, checkpoint, base, problems)


# ---- where to begin -----------------------------------------------------------------------------


def _checkpoint_source(
    config: ThresholdSweepConfig,
) -> tuple[Path, FinetuneConfig, FeatureStore, Dataset, bool]:
    """The checkpoint to evaluate, its data unless other is asked for, and whether it was trained on that."""
    from tbkin_core.modeling.checkpoint import load_model_config, task_of

    checkpoint = config.checkpoint or find_checkpoint([config.task])
    found = task_of(checkpoint)
    if found != config.task:
        raise CheckpointError(
            f"{checkpoint}: is a checkpoint for {found}, expected {config.task}",
            hint=f"make one with `tbkin finetune --task {config.task}`",
        )
    trained = settings_of(checkpoint)
    data = config.data or (Path(trained["data"]) if trained.get("data") else find_data(config.task))
    features = config.features or (
        Path(trained["features"]) if trained.get("features") and not config.data else None
    )
    own = bool(trained.get("data")) and data.resolve() == Path(trained["data"]).resolve()
    base = FinetuneConfig(
        task=config.task,
        data=data,
        features=features,
        dataset=config.dataset or trained.get("dataset") if own else config.dataset,
        train_split=trained.get("train_split"),
        blind=not load_model_config(checkpoint).use_regions,
        seed=int(trained.get("seed", 0)),
    )
    dataset = open_dataset(data)
    return checkpoint, base, FeatureStore(feature_place(features, data)), dataset, own


def _refit_source(
    config: ThresholdSweepConfig, problems: list[str]
) -> tuple[Path | None, FinetuneConfig, FeatureStore, Dataset]:
    """The settings of every run: those of the checkpoint, or the defaults where there is none."""
    checkpoint = config.checkpoint
    if checkpoint is None:
        try:
            checkpoint = find_checkpoint([config.task])
        except CheckpointError:
            problems.append(f"no checkpoint for {config.task} here: the runs have the default settings")
    if checkpoint is None:
        base = FinetuneConfig(task=config.task)
    else:
        if not (checkpoint / RUN_FILE).is_file():
            raise CheckpointError(
                f"{checkpoint}: holds no {RUN_FILE}, so the settings it was trained with are not known",
                hint="name the directory of a `tbkin finetune` run, or sweep it without --refit",
            )
        stored = settings_of(checkpoint)
        if stored.get("task") != config.task:
            raise CheckpointError(
                f"{checkpoint}: is a checkpoint for {stored.get('task', 'no task')}, expected {config.task}",
                hint=f"make one with `tbkin finetune --task {config.task}`",
            )
        base = load_config(FinetuneConfig, None, stored)
        problems.append(f"every run has the settings of {checkpoint}")
    given = {
        name: getattr(config, name)
        for name in ("data", "features", "dataset", "epochs", "max_minutes", "init")
        if getattr(config, name) is not None
    }
    if config.data is not None:
        given.setdefault("features", None)
    base = replace(base, **given, devices=config.devices)
    if base.data is None:
        base = replace(base, data=find_data(config.task))
    assert base.data is not None
    dataset = open_dataset(base.data)
    store = FeatureStore(feature_place(base.features, base.data))
    # Named now: every run begins from the same weights, whatever is trained meanwhile.
    return checkpoint, replace(base, init=initial_source(base, store)), store, dataset


def _whole_split(dataset: Dataset, base: FinetuneConfig, split: str) -> dict[str, list[Any]]:
    """A split of data that the model has never seen, beside the names of the others."""
    if base.task == "vqa":
        return {
            name: list(dataset.questions(name)) if name == split else [] for name in dataset.question_splits()
        }
    chosen = expression_set(dataset, base)
    return {
        name: list(dataset.expressions(name, chosen)) if name == split else []
        for name in dataset.expression_splits(chosen)
    }


def _evaluable(
    items: list[Any],
    dataset: Dataset,
    base: FinetuneConfig,
    split: str,
    store: FeatureStore,
    problems: list[str],
) -> list[Any]:
    """The samples to evaluate: those with answers and features; before anything is trained or loaded."""
    if base.task == "vqa":
        items = [item for item in items if item.answers]
    if not items:
        what = "answers" if base.task == "vqa" else "expressions"
        raise DataError(
            f"{dataset.root}: split {split} has no {what} to evaluate against", hint="choose --split val"
        )
    found = [item for item in items if item.image_id in store]
    if not found:
        raise DataError(
            f"{store.path}: holds features of no image of split {split}",
            hint=f"run `tbkin extract-features {dataset.root}` with these images in place",
        )
    if len(found) < len(items):
        problems.append(
            f"{split}: {len(items) - len(found)} of {len(items)} samples skipped, their images have no"
            " features"
        )
    return found


def _settings(config: FinetuneConfig) -> dict[str, Any]:
    """What a run computes from."""
    return {name: value for name, value in config_values(config).items() if name not in NO_RESULT}


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _place(
    config: ThresholdSweepConfig, default: Path, identity: dict[str, Any]
) -> tuple[Path, list[Measurement]]:
    """The directory of a sweep, and what is measured in it already; what is no such sweep is left alone.

    Raises:
        DataError: --out holds something else, or cannot be written to.
    """
    number = 1
    while True:
        path = config.out or (default if number == 1 else default.with_name(f"{default.name}-{number}"))
        file = path / SWEEP_FILE
        if not file.exists():
            if not path.is_dir() or not any(path.iterdir()):
                return make_directory(path), []
            changed = None
        else:
            content = read_json(file)
            kept = content.get("identity") if isinstance(content, dict) else None
            kept = kept if isinstance(kept, dict) and "measurements" in content else {}
            changed = sorted(key for key in {*kept, *identity} if kept.get(key) != identity.get(key))
            if config.overwrite and (not changed or config.out is not None):
                if rank() == 0:
                    shutil.rmtree(path / "refit", ignore_errors=True)
                return make_directory(path), []
            if not changed:
                return make_directory(path), [Measurement(**entry) for entry in content["measurements"]]
        if config.out is not None:
            raise DataError(
                f"{path}: holds something else than a sweep"
                if changed is None
                else f"{path}: holds a sweep of something else ({', '.join(changed)})",
                hint="choose another place with --out DIR"
                if changed is None
                else "use --overwrite to replace it, or another --out DIR",
            )
        number += 1


# ---- measuring ----------------------------------------------------------------------------------


class _Keeper:
    """What is measured, on disk after every threshold."""

    def __init__(self, file: Path, identity: dict[str, Any], done: Sequence[Measurement]) -> None:
        self.file, self.identity = file, identity
        self.found = {(*entry.key, entry.seed): entry for entry in done}
        if done:
            logger.info("measured already: %d", len(done))
        elif rank() == 0:
            self.write({})

    @contextlib.contextmanager
    def forgotten_if_empty(self) -> Iterator[None]:
        """Where the first thing fails, leave no directory that stands in the way of another try."""
        try:
            yield
        except TbkinError:
            if not self.found and rank() == 0:
                self.file.unlink(missing_ok=True)
                for place in (self.file.parent / "refit", self.file.parent):
                    if place.is_dir() and not any(place.iterdir()):
                        place.rmdir()
            raise

    def add(self, entry: Measurement) -> None:
        self.found[(*entry.key, entry.seed)] = entry
        self.write({})

    def write(self, results: dict[str, Any]) -> None:
        measurements = [asdict(entry) for entry in self.found.values()]
        content = {"identity": self.identity, **results, "measurements": measurements}
        write_json(self.file, content, indent=None)


class Evaluation:
    """Evaluates models on one split: `use` chooses the model, calling it measures a selection.

    Args:
        config: Task, batch size and device.
        items: By seed: questions with answers, or expressions; all with features.
        store: Their features.
    """

    def __init__(
        self, config: ThresholdSweepConfig, items: dict[int, list[Any]], store: FeatureStore
    ) -> None:
        self.config, self.items, self.store = config, items, store
        self.device = torch_device(resolve_devices(config.devices))
        self.samples: dict[int, Samples] = {}
        for seed, found in items.items():
            types = [item.answer_type or "other" for item in found] if config.task == "vqa" else []
            known = any(item.answer_type for item in found) if types else False
            self.samples[seed] = Samples([item.image_id for item in found], types if known else [])

    def use(self, checkpoint: Path, seed: int) -> None:
        """Evaluate a checkpoint from now on, on the samples of a seed; a TbkinError where it does not fit."""
        from tbkin_core.modeling.checkpoint import load_model

        model, tokenizer = load_model(checkpoint, self.config.task)
        check_features(model, self.store, checkpoint)
        self.use_model(model, tokenizer, seed, _modified(checkpoint / "model.safetensors"))

    def use_model(self, model: Any, tokenizer: Any, seed: int, trained: float = 0.0) -> None:
        """The same for a model in memory."""
        import torch

        from tbkin_core.tasks import (
            RecTask,
            VqaTask,
            build_rec_split,
            build_vqa_split,
            evaluation_order,
        )
        from tbkin_core.training import to_device

        self.model, self.seed, self.trained = model.to(self.device), seed, trained
        limits = (self.store, tokenizer, model.config.max_text_tokens, model.config.max_regions)
        size = self.config.batch_size
        if self.config.task == "vqa":
            self.split: Any = build_vqa_split(self.items[seed], *limits, blind=not model.config.use_regions)
            self.task: Any = VqaTask(None, None, list(model.config.answers()), 0, size)
        else:
            self.split = build_rec_split(self.items[seed], *limits)
            self.task = RecTask(None, None, size)
        # The first batch pays for memory that the others find ready: it counts for no selection's speed.
        first = evaluation_order(self.split.inputs, size)[len(self.split.inputs) // size // 2]
        with torch.inference_mode():
            self.model(**to_device(self.split.inputs.batch(first), self.device))

    def __call__(self, selection: Selection) -> Measurement:
        """Scores, sparsity and time of the model under a selection."""
        self.model.tbkin.selection = selection
        inputs = self.split.inputs
        meter = AttentionMeter(self.model, -(-len(inputs) // self.config.batch_size))
        started = time.perf_counter()
        answers = self.task.predict(meter, inputs, self.device)[0]
        seconds = time.perf_counter() - started
        if self.config.task == "vqa":
            scores = self.task.question_scores(self.split, answers)
        else:
            scores = self.task.hits(self.split, answers)
        dense = selection.threshold == 0
        return Measurement(
            DENSE[0] if dense else selection.rule,
            float(selection.threshold),
            self.seed,
            [round(float(score), 6) for score in scores],
            meter.kept(),
            meter.entropy(),
            seconds,
            self.trained,
        )


def _sweep_checkpoint(
    wanted: Sequence[tuple[str, float]], seed: int, evaluate: Evaluation, keep: _Keeper
) -> None:
    missing = [key for key in wanted if (*key, seed) not in keep.found] if rank() == 0 else []
    base = evaluate.model.config.attention_selection()
    for rule, threshold in missing:
        dense = threshold == 0
        keep.add(evaluate(replace(base, rule="relative" if dense else rule, threshold=threshold)))


def _sweep_refit(
    base: FinetuneConfig,
    wanted: Sequence[tuple[str, float]],
    contents: Mapping[int, int],
    store: FeatureStore,
    train: Train,
    evaluate: Evaluation,
    keep: _Keeper,
    overwrite: bool,
) -> None:
    """Train and measure each cell of the sweep; `contents` are the seeds, each with its `samples_content`."""
    cells = [(seed, rule, threshold) for seed in contents for rule, threshold in wanted]
    minutes = most_minutes(base)
    limit = f", each of at most {minutes:g} minutes" if minutes is not None else ""
    logger.info("%d models to train%s", len(cells), limit)
    for number, (seed, rule, threshold) in enumerate(cells, 1):
        cell = _cell(base, rule, threshold, seed, keep.file.parent)
        name = cell.out.name if cell.out else ""
        source = None if overwrite else _finished_elsewhere(cell, store, contents[seed])
        if source is None:
            logger.info("%d of %d: %s", number, len(cells), name)
            # A run that is finished is not trained again, one that was interrupted goes on.
            source = train(replace(cell, overwrite=overwrite)).out
        else:
            logger.info("%d of %d: %s is trained already, %s", number, len(cells), name, source)
        known = keep.found.get((rule, threshold, seed))
        # With more --max-minutes a run may have trained on since.
        if rank() == 0 and (known is None or known.trained != _modified(source / "model.safetensors")):
            evaluate.use(source, seed)
            keep.add(evaluate(evaluate.model.config.attention_selection()))


def _cell(base: FinetuneConfig, rule: str, threshold: float, seed: int, out: Path) -> FinetuneConfig:
    """The settings of one run of a sweep."""
    if threshold == 0:
        # As a plain dense run has them, so that one that is there already is known by its settings.
        plain = FinetuneConfig(task=base.task)
        chosen: dict[str, Any] = {
            name: getattr(plain, name)
            for name in ("selection", "threshold", "threshold_layers", "threshold_scope", "straight_through")
        }
        name = DENSE[0]
    else:
        chosen = {"selection": rule, "threshold": threshold}
        name = rule if rule in TRANSFORMS else f"{rule}-{threshold:g}"
    place = out / "refit" / f"{name}-seed-{seed}"
    return replace(base, **chosen, seed=seed, out=place, predict=[], overwrite=False)


def _finished_elsewhere(cell: FinetuneConfig, store: FeatureStore, content: int) -> Path | None:
    """A finished run of the same settings whose data, features and initial weights are those of today."""
    inputs = max(_modified(store.path / MANIFEST), _modified(Path(cell.init) / "model.safetensors"))
    for path, run in finished_runs("finetune"):
        results = run["results"]
        # What a run learns in its minutes depends on what else the machine does: that is trained again.
        whole = results.get("reason") != "minutes" and results.get("content") == content
        if whole and run["settings"] == _settings(cell) and inputs <= run["started"]:
            return path
    return None


# ---- results ------------------------------------------------------------------------------------


def _finish(
    config: ThresholdSweepConfig,
    out: Path,
    wanted: Sequence[tuple[str, float]],
    samples: dict[int, Samples],
    keep: _Keeper,
    split: str,
    checkpoint: Path | None,
    base: FinetuneConfig,
    problems: list[str],
) -> Sweep:
    from tbkin_core.figures.sweep import sparsity_figure, sweep_figure

    images = {str(image) for entry in samples.values() for image in entry.images}
    metric = "VQA accuracy (%)" if config.task == "vqa" else "Acc@IoU>0.5 (%)"
    count = len(next(iter(samples.values())).images)
    title = "fine-tuned for each" if config.refit else str(checkpoint)
    rows: list[dict[str, Any]] = []
    if rank() > 0:
        nothing = SweepConclusion({}, False, False, "")
        return Sweep(out, rows, nothing, keep.identity, split, count, len(images), title, metric, [], [])
    rows = summarise(list(keep.found.values()), samples, wanted, config.seed)
    conclusion = conclude(rows, config.refit)
    if conclusion.all_alike:
        logger.warning(conclusion.text)
    keep.write({"conclusion": conclusion.text, "best": conclusion.best, "rows": rows})
    _write_csv(out / "sweep.csv", rows)
    used = replace(config, checkpoint=checkpoint, split=split, data=base.data, features=base.features)
    write_text(out / "config.yaml", dump_config(replace(used, dataset=base.dataset)))
    headline = f"{config.task} on {split}, {'fine-tuned for each threshold' if config.refit else checkpoint}"
    if len(samples) > 1:
        headline += f", {len(samples)} seeds"
    sweep_figure(out / "sweep.png", rows, title=headline, accuracy_name=metric)
    sparsity_figure(out / "sparsity.png", rows, title=headline)
    files = [out / name for name in ("sweep.png", "sparsity.png", "sweep.csv", SWEEP_FILE)]
    return Sweep(
        out, rows, conclusion, keep.identity, split, count, len(images), title, metric, problems, files
    )


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows with one number a cell: "accuracy.yes/no", "kept.text-to-image.layer 0"."""
    flat = []
    for row in rows:
        values: dict[str, Any] = {}
        for name, value in row.items():
            if name == "answer_types":
                values |= {f"accuracy.{kind}": number for kind, number in value.items()}
            elif name == "kept":
                for direction, shares in value.items():
                    values |= {f"kept.{direction}.layer {layer}": x for layer, x in enumerate(shares)}
            elif isinstance(value, list):
                values[name] = json.dumps(value)
            else:
                values[name] = value
        flat.append(values)
    names = list(dict.fromkeys(name for row in flat for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(flat)
