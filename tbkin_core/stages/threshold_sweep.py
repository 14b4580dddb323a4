"""`tbkin threshold-sweep`: accuracy, sparsity and speed of a task under one threshold after another.

A sweep evaluates one checkpoint under each threshold, or, with `refit`, trains a model for each and evaluates
that. What is measured is kept in `sweep.json` after every threshold; the rows are worked out from it.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.errors import CheckpointError, ConfigError, DataError
from tbkin_core.evaluation.attribution import recorded_samples
from tbkin_core.evaluation.intervals import too_few_images
from tbkin_core.evaluation.sweep import (
    DENSE,
    Evaluation,
    Keeper,
    Measurement,
    Samples,
    conclude,
    modified,
    read_measurements,
    summarise,
    trained_at,
)
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling.checkpoint import load_model_config, task_of
from tbkin_core.results import SweepResult
from tbkin_core.runs import (
    ROOT,
    SWEEP_FILE,
    changed_inputs,
    find_checkpoint,
    finished_runs,
    is_of_run,
    kept_contents,
    rank_zero_first,
    run_settings,
    settings_of,
)
from tbkin_core.selection import Selection, require_library, run_name_part
from tbkin_core.settings import FinetuneConfig, ThresholdSweepConfig, dump_config, load_config
from tbkin_core.stages.finetune import finetune, inputs_of
from tbkin_core.stages.sweep_files import TABLE, draw_sweep, is_sweep_file, write_table
from tbkin_core.support.console import progress, said_once
from tbkin_core.support.devices import join_ranks, resolve_devices, torch_device
from tbkin_core.support.files import (
    file_content,
    other_entries,
    read_json,
    real_path,
    write_json,
    write_text,
)
from tbkin_core.support.places import Content, free_place, open_place, put_in_place
from tbkin_core.support.ranks import rank
from tbkin_core.tasks.base import FinetuneTask, finetune_task
from tbkin_core.tasks.inputs import text_notes
from tbkin_core.training.plan import most_minutes
from tbkin_core.training.splits import (
    changed_since,
    evaluated_samples,
    features_content,
    find_data,
    samples_content,
    task_splits,
)
from tbkin_core.training.start import feature_place, initial_source, weights_file

logger = logging.getLogger("tbkin")

_Splits = Mapping[str, Sequence[Any]]  # samples by split


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a sweep measures."""

    task: FinetuneTask  # the task
    # The model to evaluate, or with `refit` the one whose settings the runs have; None without.
    checkpoint: Path | None
    base: FinetuneConfig  # settings of the model or of every run
    # data, dataset, store: where the samples are
    data: Path
    dataset: Dataset
    store: FeatureStore
    divided: bool  # whether samples are divided as for training; else a split is taken whole
    notes: list[str]  # what is worth knowing, one line each


def threshold_sweep(config: ThresholdSweepConfig) -> SweepResult:
    """Evaluate a fine-tuned checkpoint at every threshold, or fine-tune one for each.

    Goes on from what is measured already, and writes table and figures.

    Raises:
        TbkinError: No checkpoint of the task, other features than it was trained on, a split without answers,
            bad thresholds, a place that holds something else or may not be written to; with `refit`, as
            `finetune`.
    """
    wanted = list(dict.fromkeys([DENSE, *(key for key in config.wanted() if key[1] != 0)]))
    for rule, _ in wanted:
        require_library(rule)
    split = normalise_split(config.split or "val")
    devices = resolve_devices(config.devices)
    subject = _refit_subject(config) if config.refit else _checkpoint_subject(config)
    items, splits, notes = _samples(config, subject, split)
    identity = _identity(config, subject, split, next(iter(splits.values())))
    _check_regions(config.region_counts()[-1], subject, items)
    evaluate = Evaluation(subject.task, items, subject.store, torch_device(devices), config.batch_size)
    name = f"{config.task}-refit"
    if subject.checkpoint is not None and not config.refit:
        name = subject.checkpoint.name
        # Before a place is taken: a checkpoint that does not fit its features leaves no trace.
        evaluate.use(subject.checkpoint, subject.base.seed)
    join_ranks(devices)
    with contextlib.ExitStack() as stack:
        with rank_zero_first():
            default = ROOT / "threshold-sweep" / f"{name}-{split}"
            out, work, done = _open_sweep(config, default, identity, evaluate.samples, stack)
        keep = Keeper(work / SWEEP_FILE, identity, done)
        if config.refit:
            with keep.forgotten_if_empty(), said_once():
                notes += _sweep_refit(config, subject, wanted, splits, evaluate, keep, split)
        else:
            notes += _text_notes(evaluate, split)
            keys = [(*key, count) for count in config.region_counts() for key in wanted]
            _sweep_checkpoint(keys, subject.base.seed, evaluate, keep)
        result = _finish(config, subject, wanted, evaluate.samples, keep, split, notes)
        if work != out and rank() == 0:
            put_in_place(out, is_of_sweep)
        return replace(result, out=out, files=[out / file.name for file in result.files])


def _samples(
    config: ThresholdSweepConfig, subject: _Subject, split: str
) -> tuple[dict[int, list[Any]], dict[int, _Splits], list[str]]:
    """The samples of the split that can be scored; each seed of a refit may hold other ones out.

    Returns:
        By seed: the samples, and all that the results follow from, by split; and notes.
    """
    base, dataset, task = subject.base, subject.dataset, subject.task
    seeds = [config.seed + number for number in range(config.seeds)] if config.refit else [base.seed]
    notes = list(subject.notes)
    items: dict[int, list[Any]] = {}
    used: dict[int, _Splits] = {}
    for seed in seeds:
        if subject.divided:
            divided = task_splits(task, dataset, base.dataset, base.train_split, seed)
            splits, names = divided.samples, list(divided.samples)
            notes += divided.notes
        else:
            names = task.split_names(dataset, base.dataset)
            splits = {split: task.split_samples(dataset, split, base.dataset)} if split in names else {}
        names = [name for name in names if name != "train"]
        if split not in names:
            raise ConfigError(
                f"split: expected one of {', '.join(names)}, got {split!r}", hint="name one of these"
            )
        items[seed], skipped = _evaluable(splits[split], subject, split)
        used[seed] = splits if config.refit else {split: items[seed]}
        if changed := _changed(subject, split, splits) if subject.divided and not config.refit else []:
            verb = "has" if changed == [split] else "have"
            notes.append(
                f"{' and '.join(changed)} {verb} changed since {subject.checkpoint} was made: its run says"
                " other numbers"
            )
        notes += [*skipped, *too_few_images(split, [item.image_id for item in items[seed]])]
    if base.blind and not config.refit:
        notes.append(f"{subject.checkpoint} sees no image: only attention from text to text is thresholded")
    return items, used, list(dict.fromkeys(notes))


def _identity(config: ThresholdSweepConfig, subject: _Subject, split: str, splits: _Splits) -> dict[str, Any]:
    """What tells one sweep from another, in its sweep.json."""
    base, checkpoint = subject.base, None if config.refit else subject.checkpoint
    return {
        "refit": config.refit,
        "checkpoint": checkpoint and str(checkpoint),
        "trained": checkpoint and trained_at(checkpoint),
        "settings": run_settings(replace(base, seed=0)) if config.refit else None,
        "init": modified(weights_file(base.init)) if config.refit else None,
        "answers": file_content(base.answers) if config.refit and base.answers else None,
        "data": str(subject.data),
        "dataset": base.dataset,
        "features": subject.store.fingerprint(),
        "vectors": subject.store.content(subject.store.image_ids),
        "split": split,
        "content": samples_content(splits),
    }


# ---- where to begin -----------------------------------------------------------------------------


def _checkpoint_subject(config: ThresholdSweepConfig) -> _Subject:
    """The checkpoint to evaluate, on its own data unless other data is asked for."""
    task = finetune_task(config.task)
    checkpoint = config.checkpoint or find_checkpoint([config.task])
    _check_task(checkpoint, task_of(checkpoint), config.task)
    trained = settings_of(checkpoint, "finetune")
    data = config.data or (Path(trained["data"]) if trained.get("data") else find_data(task))
    own_features = trained.get("features") if config.data is None else None
    features = config.features or (Path(own_features) if own_features else None)
    dataset = open_dataset(data)
    own = bool(trained.get("data")) and real_path(data) == real_path(Path(trained["data"]))
    # The same samples at another place are own data too.
    own = own or (bool(kept_contents(checkpoint)) and not changed_since(checkpoint, task, dataset))
    split = normalise_split(config.split or "val")
    parts = [] if own else [normalise_split(part) for part in (trained.get("train_split") or "").split("+")]
    divided, notes = own, []
    if split in parts:
        divided = set(parts) <= set(task.split_names(dataset, config.dataset))
        how = "divided as they were for that" if divided else "taken whole: some of it may be trained on"
        notes.append(f"{checkpoint} was trained on {trained['train_split']} of other data than {data}: {how}")
    base = FinetuneConfig(
        task=config.task,
        data=data,
        features=features,
        dataset=config.dataset or (trained.get("dataset") if own else None),
        train_split=trained.get("train_split"),
        blind=not load_model_config(checkpoint).use_regions,
        seed=int(trained.get("seed", 0)),
    )
    store = FeatureStore(feature_place(features, data))
    return _Subject(task, checkpoint, base, data, dataset, store, divided, notes)


def _refit_subject(config: ThresholdSweepConfig) -> _Subject:
    """The settings of every run: those of the checkpoint, or the defaults where there is none."""
    task = finetune_task(config.task)
    notes = []
    checkpoint = config.checkpoint
    if checkpoint is None:
        try:
            checkpoint = find_checkpoint([config.task], shipped=False)
        except CheckpointError:
            notes.append(f"no checkpoint for {config.task} here: the runs have the default settings")
    if checkpoint is None:
        base = FinetuneConfig(task=config.task)
    else:
        stored = settings_of(checkpoint, "finetune")
        if not stored:
            raise CheckpointError(
                f"{checkpoint}: holds no run.json, so the settings it was trained with are not known",
                hint="name the directory of a `tbkin finetune` run, or sweep it without --refit",
            )
        _check_task(checkpoint, stored.get("task", "no task"), config.task)
        base = load_config(FinetuneConfig, None, stored)
        notes.append(f"every run has the settings of {checkpoint}")
    given = {
        name: getattr(config, name)
        for name in ("data", "features", "dataset", "epochs", "max_minutes", "init")
        if getattr(config, name) is not None
    }
    if config.data is not None:
        given.setdefault("features", None)
    base = replace(base, **given, devices=config.devices)
    data = base.data or find_data(task)
    store = FeatureStore(feature_place(base.features, data))
    # Named now: every run begins from the same weights, whatever is trained meanwhile.
    base = replace(base, data=data, init=initial_source(base, store))
    return _Subject(task, checkpoint, base, data, open_dataset(data), store, True, notes)


def _check_regions(most: int, subject: _Subject, items: Mapping[int, Sequence[Any]]) -> None:
    """ConfigError where no image of the samples has so many regions, or the model looks at none."""
    if most and subject.base.blind:
        raise ConfigError("regions: this model sees no image", hint="omit --regions")
    store, samples = subject.store, chain.from_iterable(items.values())
    if most > (found := int(store.region_counts([store.row(it.image_id) for it in samples]).max())):
        raise ConfigError(
            f"regions: {most} are asked for, no image in {store.path} has more than {found}",
            hint=f"`tbkin extract-features DATA --max-regions {most} --out DIR`, then --features DIR",
        )


def _changed(subject: _Subject, split: str, splits: Mapping[str, Sequence[Any]]) -> list[str]:
    """The samples of a split, and their features, where they are not those that the checkpoint's run saw."""
    now = {split: samples_content({split: splits.get(split, ())})}
    now |= features_content(subject.task, {split: splits.get(split, ())}, subject.store)
    return [name for name in changed_inputs(subject.checkpoint or Path(), now) if name in now]


def _check_task(checkpoint: Path, found: str, task: str) -> None:
    if found != task:
        raise CheckpointError(
            f"{checkpoint}: is a checkpoint for {found}, expected {task}",
            hint=f"make one with `tbkin finetune --task {task}`",
        )


def _evaluable(items: Sequence[Any], subject: _Subject, split: str) -> tuple[list[Any], list[str]]:
    """The samples that can be scored and have features, and notes on the others."""
    labelled = [item for item in items if subject.task.labelled(item)]
    if not labelled:
        raise DataError(
            f"{subject.dataset.path}: split {split} has no {subject.task.label} to evaluate against",
            hint="choose --split val",
        )
    usable = subject.task.usable(labelled, subject.store)
    if not usable:
        raise DataError(
            f"{subject.store.path}: holds features of no image of split {split}",
            hint=f"run `tbkin extract-features {subject.dataset.path}` with these images in place",
        )
    found, notes = evaluated_samples(subject.task, split, usable)
    if lacking := len(labelled) - len(usable):
        what = f"{lacking} of {len(labelled)} samples skipped, their images have no features that fit"
        notes.append(f"{split}: {what}")
    return found, notes


def _open_sweep(
    config: ThresholdSweepConfig,
    default: Path,
    identity: dict[str, Any],
    samples: Mapping[int, Samples],
    stack: contextlib.ExitStack,
) -> tuple[Path, Path, list[Measurement]]:
    """The directory of a sweep, where to make it, and what is measured already; others are left alone.

    A sweep that replaces another is made beside it (`tbkin_core.support.places`), and gone on with there.

    Args:
        samples: By seed, what is measured on.
        stack: Keeps other processes out of the directory for as long as it is open.

    Raises:
        DataError: --out holds something else or a damaged file, another process is at work there, or it
            cannot be written to.
    """

    def look(place: Path) -> Content:
        return _sweep_at(place, identity, samples)[0]

    path = config.out or free_place(default, look)
    overwrite = config.overwrite and rank() == 0
    work = open_place(path, look, is_of_sweep, overwrite, stack, follows=rank() > 0)
    content, what, done = _sweep_at(work, identity, samples)
    if content in (Content.OTHER, Content.FOREIGN):
        other = content is Content.OTHER
        hint = "use --overwrite to replace it, or another --out DIR"
        raise DataError(
            f"{path}: holds {what}", hint=hint if other else "choose another place with --out DIR"
        )
    if content is Content.NOTHING and rank() == 0:
        # By this the other ranks, which follow, know where it is made.
        write_json(work / SWEEP_FILE, {"identity": identity, "measurements": []}, indent=None)
    return path, work, done


def _sweep_at(
    path: Path, identity: dict[str, Any], samples: Mapping[int, Samples]
) -> tuple[Content, str, list[Measurement]]:
    """What a directory holds, what of that is in the way, in words, and what is measured there."""
    file = path / SWEEP_FILE
    if not file.exists():
        some = other_entries(path)[:3]
        foreign = f"something else than a sweep ({', '.join(some)})"
        return (Content.FOREIGN, foreign, []) if some else (Content.NOTHING, "", [])
    content = read_json(file, hint="choose another place with --out DIR")
    kept = content.get("identity") if isinstance(content, dict) else None
    if not (isinstance(kept, dict) and "split" in kept and isinstance(content.get("measurements"), list)):
        return Content.FOREIGN, f"something else than a sweep ({SWEEP_FILE} is not of tbkin)", []
    changed = sorted(key for key in kept if key not in identity or kept[key] != identity[key])
    if changed:
        return Content.OTHER, f"a sweep of something else ({', '.join(changed)})", []
    found = read_measurements(file, content["measurements"], samples)
    # What attention kept is of other samples where an earlier version measured it.
    return Content.BEGUN, "", [entry for entry in found if entry.recorded]


def is_of_sweep(directory: Path, name: str) -> bool:
    """Whether tbkin writes what has a name in a sweep's directory; one that ends in "/" is of a directory."""
    if cell := re.fullmatch("(refit/[^/]+/)(.*)", name):
        return not cell[2] or is_of_run(directory / cell[1], cell[2])
    return name in (SWEEP_FILE, "config.yaml", "refit/") or is_sweep_file(name)


# ---- measuring ----------------------------------------------------------------------------------


def _sweep_checkpoint(
    keys: Sequence[tuple[str, float, int]], seed: int, evaluate: Evaluation, keep: Keeper
) -> None:
    missing = [key for key in keys if (*key, seed) not in keep.found] if rank() == 0 else []
    base = evaluate.model.config.attention_selection()
    for rule, threshold, count in progress(missing, "thresholds", total=len(missing), delay=1.0):
        dense = threshold == 0
        keep.add(evaluate(replace(base, rule="relative" if dense else rule, threshold=threshold), count))


def _sweep_refit(
    config: ThresholdSweepConfig,
    subject: _Subject,
    wanted: Sequence[tuple[str, float]],
    splits: Mapping[int, _Splits],
    evaluate: Evaluation,
    keep: Keeper,
    split: str,
) -> list[str]:
    """Train and measure each cell of the sweep, with the splits of its seed; notes on what was measured."""
    notes: list[str] = []
    inputs = {seed: inputs_of(subject.base, subject.task, splits[seed], subject.store) for seed in splits}
    cells = [(seed, rule, threshold) for seed in splits for rule, threshold in wanted]
    minutes = most_minutes(subject.base)
    limit = "" if minutes is None else f", each of at most {minutes:g} minutes"
    logger.info("%d models to train%s", len(cells), limit)
    for number, (seed, rule, threshold) in enumerate(cells, 1):
        name = f"{run_name_part(rule, threshold) if threshold else DENSE[0]}-seed-{seed}"
        cell = _cell(subject.base, rule, threshold, seed, keep.file.parent / "refit" / name)
        source = None if config.overwrite else _finished_elsewhere(cell, inputs[seed])
        if source is None:
            logger.info("%d of %d: %s", number, len(cells), name)
            # A run that is finished is not trained again, one that was interrupted goes on.
            source = finetune(cell).out
        else:
            logger.info("%d of %d: %s is trained already, %s", number, len(cells), name, source)
        written = modified(source / "model.safetensors")
        known = {count: keep.found.get((rule, threshold, count, seed)) for count in config.region_counts()}
        # With more --max-minutes a run may have trained on since.
        stale = [count for count, entry in known.items() if entry is None or entry.trained != written]
        if rank() == 0 and (stale or threshold == 0):
            evaluate.use(source, seed)
            notes += _text_notes(evaluate, split)
        for count in stale if rank() == 0 else ():
            keep.add(evaluate(evaluate.model.config.attention_selection(), count))
    return list(dict.fromkeys(notes))


def _text_notes(evaluate: Evaluation, split: str) -> list[str]:
    """What the model that is evaluated misses of the texts."""
    return text_notes(split, evaluate.split.inputs.table, evaluate.model.config.max_text_tokens)


def _cell(base: FinetuneConfig, rule: str, threshold: float, seed: int, out: Path) -> FinetuneConfig:
    """The settings of one run of a sweep."""
    chosen: dict[str, Any] = {"selection": rule, "threshold": threshold}
    if threshold == 0:
        # As a plain dense run has them, so that one that is there already is known by its settings.
        chosen = FinetuneConfig(task=base.task).selection_values()
    return replace(base, **chosen, seed=seed, out=out, predict=[], overwrite=False)


def _finished_elsewhere(cell: FinetuneConfig, inputs: Mapping[str, int | None]) -> Path | None:
    """A finished run of the same settings whose data, features and initial weights are those of today."""
    for path, run in finished_runs("finetune"):
        # What a run learns in its minutes depends on what else the machine does: that is trained again.
        whole = run["results"].get("reason") != "minutes" and run.get("made_from") == inputs
        if whole and run["settings"] == run_settings(cell):
            return path
    return None


# ---- results ------------------------------------------------------------------------------------


def _finish(
    config: ThresholdSweepConfig,
    subject: _Subject,
    wanted: Sequence[tuple[str, float]],
    samples: dict[int, Samples],
    keep: Keeper,
    split: str,
    notes: list[str],
) -> SweepResult:
    """Work the rows out, and write table and figures; other ranks than 0 have none."""
    out, checkpoint, base = keep.file.parent, subject.checkpoint, subject.base
    result = SweepResult(
        out=out,
        identity=keep.identity,
        split=split,
        metric=f"{subject.task.metric} (%)",
        title="fine-tuned for each" if config.refit else str(checkpoint),
        samples=len(next(iter(samples.values())).images),
        samples_by_seed=[len(entry.images) for entry in samples.values()],
        images=len({str(image) for entry in samples.values() for image in entry.images}),
        recorded=int(recorded_samples(len(next(iter(samples.values())).images)).sum()),
    )
    if rank() > 0:
        return result
    rows = summarise(list(keep.found.values()), samples, wanted, config.seed, config.region_counts())
    if where := _where(config, subject):
        rows = [{**row, "where": where if row["threshold"] else ""} for row in rows]
    conclusion = conclude(rows, config.refit)
    if conclusion.all_alike:
        logger.warning(conclusion.text)
    keep.write({"conclusion": conclusion.text, "best": conclusion.best, "rows": rows})
    write_table(out / TABLE, rows)
    used = replace(config, checkpoint=checkpoint, split=split, data=subject.data, features=base.features)
    write_text(out / "config.yaml", dump_config(replace(used, dataset=base.dataset)))
    headline = f"{config.task} on {split}, {'fine-tuned for each threshold' if config.refit else checkpoint}"
    headline += f"; selects {where}" if where else ""
    if len(samples) > 1:
        headline += f", {len(samples)} seeds"
    figures = draw_sweep(config, out, rows, headline, result.metric)
    files = [out / name for name in (*figures, TABLE, SWEEP_FILE)]
    if where:
        notes = [
            f"thresholds select {where}: elsewhere all attention is kept",
            *notes,
        ]
    if result.recorded < result.samples:
        notes = [*notes, f"kept and entropy are of {result.recorded} of the {result.samples} samples"]
    return replace(result, rows=rows, conclusion=conclusion, problems=notes, files=files)


def _where(config: ThresholdSweepConfig, subject: _Subject) -> str:
    """Where the thresholds select, in words; "" for everywhere."""
    if config.refit or subject.checkpoint is None:
        layers, scope = subject.base.threshold_layers, subject.base.threshold_scope
        return Selection(layers=None if layers is None else tuple(layers), scope=scope).where
    return load_model_config(subject.checkpoint).attention_selection().where
