"""`tbkin finetune`: a model fine-tuned for a task, its best checkpoint by validation, and what it is worth.

The task (`tbkin_core.tasks`) owns its samples, head, loss, predictions and rows; this module names none.
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

from transformers import PreTrainedModel

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.evaluation.card import write_card
from tbkin_core.evaluation.report import question_only_entries, report_splits
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling.acceleration import accelerate
from tbkin_core.modeling.checkpoint import load_model, save_model
from tbkin_core.results import FinetuneResult, ReportEntry
from tbkin_core.runs import (
    FINISHED_BEFORE,
    ROOT,
    check_inputs,
    datasets_of,
    finish_run,
    note_inputs,
    train_together,
)
from tbkin_core.selection import TRANSFORMS, require_library, run_name_part
from tbkin_core.settings import FinetuneConfig, dump_config
from tbkin_core.shipped import shipped_model
from tbkin_core.support.console import shortened
from tbkin_core.support.devices import resolve_devices, torch_device
from tbkin_core.support.files import file_content, real_path, write_json, write_text
from tbkin_core.support.ranks import rank
from tbkin_core.tasks.base import FinetuneObjective, FinetuneTask, Head, Split, finetune_task
from tbkin_core.tasks.inputs import InputSource, text_notes
from tbkin_core.training.initialise import build_model
from tbkin_core.training.plan import FinetunePlan, plan_finetuning
from tbkin_core.training.run import TrainingResult, draw_training_curves, growing_threshold, train
from tbkin_core.training.splits import (
    TaskSplits,
    evaluated_samples,
    features_content,
    find_data,
    samples_content,
    task_splits,
)
from tbkin_core.training.start import (
    Start,
    check_feature_kind,
    feature_place,
    initial_source,
    starting_point,
    weights_content,
)

logger = logging.getLogger("tbkin")


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune on a task, keep the best checkpoint by validation, and report on the test splits.

    Raises:
        TbkinError: Data, features or initial weights are missing or do not fit; training failed.
    """
    require_library(config.selection)
    task = finetune_task(config.task)
    data = config.data or find_data(task)
    resolve_devices(config.devices)
    dataset = open_dataset(data)
    predicted = [_checked_split(task, dataset, config, split) for split in config.predict]
    # Named now, so that the same command begins anew where a newer model to begin from has been made.
    store = FeatureStore(feature_place(config.features, data))
    config = replace(config, data=data, init=initial_source(config, store))
    if shipped_model(config.init) is not None and config.out == Path(config.init):
        raise ConfigError(
            f"out: {config.out} is the name of the model that this begins from",
            hint="choose another --out DIR",
        )
    with contextlib.ExitStack() as stack:  # keeps other processes out until all is written
        default = ROOT / "finetune" / run_name(config)
        out, results = train_together(config, "finetune", default, finetune_run, stack)
        problems: list[str] = results["problems"]
        if FINISHED_BEFORE in problems:
            # What it found is not about other inputs.
            splits = task_splits(task, dataset, config.dataset, config.train_split, config.seed)
            check_inputs(out, inputs_of(config, task, splits.samples, store))
        entries = [ReportEntry.read(entry) for entry in results["report"]]
        if task.question_only and not config.blind:
            beside = question_only_entries(results)
            entries += beside or []
            if beside is None:
                subset = f" --dataset {config.dataset}" if config.dataset else ""
                problems.append(
                    "no question-only model to compare with: train one with"
                    f" `tbkin finetune --task {task.name} --data {data}{subset} --blind`"
                )
        files = []
        for split in predicted if rank() == 0 else ():
            file, notes = write_predictions(config, out, split)
            files.append(file)
            problems += notes
        # Of a run that an earlier version made there are none.
        answered = sorted(out.glob("results-*.json"), key=lambda file: (file.stem != "results-val", file))
        return FinetuneResult(
            out=out,
            results=results,
            metric=task.metric,
            report=entries,
            predictions=files,
            answered=answered,
            problems=problems,
            files=[*files, *draw_training_curves(config, out, f"Fine-tuning for {task.name}: {out}")],
            hints=[f"tbkin visualize --from {answered[0]} --wrong --limit 20"] if answered else [],
        )


def inputs_of(
    config: FinetuneConfig, task: FinetuneTask, samples: Mapping[str, Sequence[Any]], store: FeatureStore
) -> dict[str, int | None]:
    """What a run's results follow from beside its settings, see `note_inputs`; `samples` by split."""
    made_from: dict[str, int | None] = {
        name: samples_content({name: items}) for name, items in samples.items()
    }
    made_from |= features_content(task, samples, store)
    if config.answers is not None:
        made_from[f"the answers in {config.answers}"] = file_content(config.answers)
    return made_from | {f"the weights of {config.init}": weights_content(config.init)}


def run_name(config: FinetuneConfig) -> str:
    """The name of a run's directory, from the settings that people tell runs apart by."""
    rule = run_name_part(config.selection, config.threshold) if config.threshold else ""
    # One part of a path, whatever it is called.
    dataset = re.sub(r"[^\w+. -]", "_", config.dataset or "").strip(". ")[:60]
    return "-".join(filter(None, (config.task, dataset, "blind" * config.blind, rule)))


def _opened(config: FinetuneConfig) -> tuple[FinetuneTask, Path, Dataset, FeatureStore]:
    """The task, and the data that it is learnt from."""
    task = finetune_task(config.task)
    data = config.data or find_data(task)
    return task, data, open_dataset(data), FeatureStore(feature_place(config.features, data))


# ---- one process of a run -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Prepared:
    """All that training and its report need."""

    task: FinetuneTask
    data: Path
    dataset: Dataset
    store: FeatureStore
    splits: TaskSplits
    head: Head
    start: Start
    plan: FinetunePlan
    parts: Mapping[str, Split]
    objective: FinetuneObjective
    made_from: dict[str, int | None]  # see `note_inputs`
    notes: list[str]


def finetune_run(config: FinetuneConfig, out: Path) -> None:
    """Fine-tune as the settings say, leave the best checkpoint in `out`, and report.

    Each process of a run calls this; rank 0 writes the results into `run.json`.

    Raises:
        TbkinError: Data, features and initial weights do not fit each other; training failed.
    """
    ready = _prepare(config, out)
    objective, start = ready.objective, ready.start
    rows = [(ready.store, ready.parts["train"].inputs.rows)]
    values = {**config.selection_values(), **ready.head.values, **ready.plan.head_values()}
    model = build_model(ready.task.head, ready.plan, start, rows, **values)
    known = ready.task.begin(model, ready.parts["train"], start.tokenizer, start.weights)
    for note in filter(None, (ready.head.note, known)):
        logger.info("%s", note)
    samples = f"{len(objective.lengths())} {objective.unit}s, weights from {start.source}"
    ready.plan.announce(f"fine-tuning {config.task}", samples, model.num_parameters())

    def keep(best: PreTrainedModel) -> None:
        found = objective.kept_values()
        before = {name: getattr(best.config, name) for name in found}
        best.config.update(found)
        try:
            save_model(best, start.tokenizer, out)
        finally:
            best.config.update(before)  # training goes on as it was

    grow = growing_threshold(model, config.threshold_epochs)
    if config.threshold and config.threshold_epochs is None and config.selection not in TRANSFORMS:
        logger.info(
            "dense for seven tenths of the training, then the threshold grows; as published it is there from"
            " the first step, with --threshold-epochs 0"
        )
    result = train(objective, model, ready.plan, out, resolve_devices(config.devices), keep, grow)
    if rank() == 0:
        _report(config, out, ready, result)


def _prepare(config: FinetuneConfig, out: Path) -> _Prepared:
    """Read the data, choose weights and plan, and make the inputs; nothing is trained yet."""
    task, data, dataset, store = _opened(config)
    splits = task_splits(task, dataset, config.dataset, config.train_split, config.seed)
    notes = [*splits.notes, *_without_features(task, splits, store, data)]
    training = task.usable(splits.samples["train"], store)
    head = task.build_head(training, config)
    texts = [task.text(item) for item in training]
    config = replace(config, init=initial_source(config, store))
    made_from = inputs_of(config, task, splits.samples, store)
    note_inputs(out, made_from, config.resume)
    start = starting_point(config.init, texts, texts)
    if start.weights_are_random and not config.blind:
        but = "" if start.words is None else " but for those of words"
        notes.append(
            f"weights begin at random{but}: all is learnt from these {len(training)} {task.unit}s; `tbkin"
            f" pretrain {data}`, a model fine-tuned for another task or --init bert-base-uncased give a"
            " start"
        )
    if shipped_model(start.source) is not None:
        notes.append(
            f"weights begin as {start.source}, which comes with tbkin and learnt from training photos of"
            " Flickr8k (where val has some of these, it flatters); --init words begins without"
        )
    if task.of_captions and splits.held_out and _learnt_from(start.source, data):
        notes.append(
            f"val flatters: it is held out of captions that {start.source} has learnt from; make a val split"
            ' (captions.jsonl with "split") and pretrain again, or take --init none'
        )
    plan = plan_finetuning(config, len(training), start, store, task, head)
    if rank() == 0:
        write_text(out / "config.yaml", dump_config(plan.settings(config, start.source)))
    if (width := (start.values or {}).get("direct_width")) and plan.direct_width not in (0, width):
        notes.append(
            f"what {start.source} knows past its encoder is {width} wide and not taken: direct_width is"
            f" {plan.direct_width}"
        )
    source = InputSource(store, start.tokenizer, plan.max_text_tokens, plan.max_regions)
    parts = {}
    for name, items in splits.samples.items():
        if not items:
            continue
        found = training
        if name != "train":
            found, fewer = evaluated_samples(task, name, task.usable(items, store))
            notes += fewer
        parts[name] = task.build_split(found, source, config.blind)
    objective = task.objective(parts, head, config, plan)
    notes += objective.notes
    for name, part in parts.items():
        notes += text_notes(name, part.inputs.table, plan.max_text_tokens)
    notes += _same_pictures(parts, store)
    learnt = (head, start, plan, parts, objective)
    return _Prepared(task, data, dataset, store, splits, *learnt, made_from, notes)


def _learnt_from(source: str, data: Path) -> bool:
    """Whether initial weights are of a run that learnt from a dataset."""
    return any(real_path(place) == real_path(data) for place in datasets_of(Path(source)))


def _same_pictures(parts: Mapping[str, Split], store: FeatureStore) -> list[str]:
    """Notes on pictures that are trained on under one name and evaluated under another."""
    trained = dict.fromkeys(parts["train"].image_ids)
    others = {
        name: [image_id for image_id in dict.fromkeys(part.image_ids) if image_id not in trained]
        for name, part in parts.items()
    }
    found = store.same_pictures(dict.fromkeys(chain.from_iterable(others.values())), trained)
    notes = []
    for name, images in others.items():
        if same := [image_id for image_id in images if image_id in found]:
            notes.append(
                f"{name}: {len(same)} of {len(images)} images are pictures that are trained on under other"
                f" names (such as {same[0]}, which is {found[same[0]]} too), so results tell less of new"
                " images"
            )
    return notes


def _report(config: FinetuneConfig, out: Path, ready: _Prepared, result: TrainingResult) -> None:
    """Evaluate the checkpoint that was kept, and finish the run."""
    task, plan = ready.task, ready.plan
    best, _ = load_model(out, task.name)
    accelerate(best, torch_device(resolve_devices(config.devices)))
    splits = {name: ready.parts[name] for name in ready.splits.evaluated}
    report = report_splits(task, best, splits, ready.parts["train"], config, plan, out)
    # What the result is worth comes first, then how it was trained, then what was left out of the data.
    blind = "on validation the regions brought nothing: the model that is kept ignores the image"
    notes = [blind] if not best.config.use_regions and not config.blind else []
    notes += [*report.notes, *result.notes(plan), *ready.notes, *ready.dataset.problems]
    results = {
        "task": task.name,
        "data": str(ready.data),
        "content": samples_content(ready.splits.samples),
        "contents": {name: ready.made_from[name] for name in ready.splits.samples},
        "training_samples": len(ready.objective.lengths()),
        "parameters": best.num_parameters(),
        **ready.start.recorded(),
        # Without this, the same command given again would go on.
        "minutes_chosen": plan.chosen("max_minutes"),
        **result.summary(),
        "accuracy": report.accuracy,
        "report": [entry.values() for entry in report.entries],
        **ready.objective.values,
        **report.values,
        "problems": notes,
    }
    write_card(out, results, config)
    finish_run(out, results)


def _without_features(task: FinetuneTask, splits: TaskSplits, store: FeatureStore, data: Path) -> list[str]:
    """Notes on samples without features, or with none that fit; DataError where all of training are so."""
    notes = []
    for name, items in splits.samples.items():
        without = [item.image_id for item in items if item.image_id not in store]
        lacking, named = len(without), f"such as {shortened(str(without[0]))!r}" if without else ""
        if name == "train" and lacking == len(items):
            raise DataError(
                f"{store.path}: holds features of none of the {len(items)} training samples' images, {named}",
                hint=f"compare their names with the pictures', or run `tbkin extract-features {data}`",
            )
        if lacking:
            notes.append(
                f"{name}: {lacking} of {len(items)} samples skipped, their images have no features, {named}"
            )
        reasons = ((item, task.misfit(item, store)) for item in items if item.image_id in store)
        misfits = [(item, reason) for item, reason in reasons if reason]
        if misfits:
            first = f"image {misfits[0][0].image_id}: {misfits[0][1]}"
            if name == "train" and len(misfits) + lacking == len(items):
                raise DataError(
                    f"{store.path}: its regions fit none of the {len(items)} training samples; {first}",
                    hint="use the pictures that the annotations were made on, or correct the sizes in these",
                )
            notes.append(f"{name}: {len(misfits)} of {len(items)} samples skipped, as {first}")
    return notes


# ---- predictions --------------------------------------------------------------------------------


def _checked_split(task: FinetuneTask, dataset: Dataset, config: FinetuneConfig, split: str) -> str:
    """A split's name in the words of tbkin; ConfigError where neither the dataset nor the run has it."""
    name, names = normalise_split(split), task.split_names(dataset, config.dataset)
    if name in names:
        return name
    own = task_splits(task, dataset, config.dataset, config.train_split, config.seed).samples
    if not own.get(name):
        known = dict.fromkeys([*names, *(other for other, items in own.items() if items)])
        raise ConfigError(f"predict: the data has no split {split!r}", hint=f"it has {', '.join(known)}")
    return name


def _samples_of(task: FinetuneTask, dataset: Dataset, config: FinetuneConfig, split: str) -> list[Any]:
    """All samples of a split of the dataset, or of one that the run made of it, such as what is held out."""
    if split in task.split_names(dataset, config.dataset):
        return task.split_samples(dataset, split, config.dataset)
    return task_splits(task, dataset, config.dataset, config.train_split, config.seed).samples[split]


def write_predictions(config: FinetuneConfig, out: Path, split: str) -> tuple[Path, list[str]]:
    """Write what a finished run answers to a split of the dataset or of the run, for an evaluation server.

    VQA: `[{"question_id", "answer"}]`, every question of the split. REC: `[{"sent_id", "ref_id", "image_id",
    "box"}]` with the box as (x1, y1, x2, y2) pixels.

    Returns:
        The file's path, and notes on samples without features.

    Raises:
        TbkinError: As `finetune_run`; no image of the split has features.
    """
    task, data, dataset, store = _opened(config)
    model, tokenizer = load_model(out, task.name)
    check_feature_kind(model.config.extractor, store, out)
    device = torch_device(resolve_devices(config.devices))
    accelerate(model, device)
    samples = _samples_of(task, dataset, config, split)
    source = InputSource(store, tokenizer, model.config.max_text_tokens, model.config.max_regions)
    known = task.build_split(samples, source, blind=not model.config.use_regions)
    if not len(known):
        raise DataError(
            f"predict: {store.path} has features of no image of {split}",
            hint=f"run `tbkin extract-features {data}` with these images in place",
        )
    predictions = task.predict(model, known.inputs, device, config.batch_size or 64)
    rows, rest = task.prediction_rows(model, samples, known, predictions)
    path = out / f"predictions-{split}.json"
    write_json(path, rows, indent=None)
    lacking = len(samples) - len(known)
    notes = text_notes(f"predictions of {split}", known.inputs.table, model.config.max_text_tokens)
    if lacking:
        notes.append(f"predictions of {split}: {lacking} of {len(samples)} have no features, they {rest}")
    return path, notes
