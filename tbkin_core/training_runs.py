"""What a pretraining or a fine-tuning run does, from its settings to its checkpoint and its report.

Each process of a run calls `pretrain_run` or `finetune_run`; rank 0 writes the results into `run.json`.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.errors import CheckpointError, ConfigError, DataError
from tbkin_core.runs import finish_run, finished_runs
from tbkin_core.settings import FinetuneConfig, PretrainConfig, TrainingConfig, dump_config
from tbkin_core.support.devices import resolve_devices
from tbkin_core.support.files import read_json, write_json, write_text
from tbkin_core.support.ranks import rank
from tbkin_core.support.shards import MANIFEST

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from tbkin_core.datasets import Dataset
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.pretraining import CaptionTable
    from tbkin_core.tasks import VqaSplit

logger = logging.getLogger("tbkin")

OPEN_ANSWERS = 100
"""From so many answers up, the questions alone are worth some epochs of their own; of few, the model would
learn habits from them that it is slow to lose (on pictures of one shape, 75 % where 99 % are to be had)."""

CPU_MINUTES = 10.0
"""How long fine-tuning on a CPU takes at most where neither epochs nor minutes are asked for."""

# ---- pretraining --------------------------------------------------------------------------------


def pretrain_run(config: PretrainConfig, out: Path) -> None:
    """Pretrain as the settings say and leave the best checkpoint in `out`.

    Raises:
        TbkinError: Features or graphs do not fit each other or the initial weights; training failed.
    """
    import torch

    from tbkin_core.features.store import FeatureStore, feature_kind
    from tbkin_core.graphs.store import GraphStore
    from tbkin_core.modeling import TbkinForPreTraining
    from tbkin_core.modeling.checkpoint import save_model
    from tbkin_core.pretraining import PretrainTask, caption_texts, load_captions
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
        if training and feature_kind(training[0][1].settings) != feature_kind(features.settings):
            raise DataError(
                f"{place}: features of another kind than {training[0][1].path}; they are not mixed",
                hint="extract the features of all datasets with the same extractor",
            )
        splits = {split for _, metadata in graphs.shards for split in metadata["splits"]}
        spare = sorted(split for split in splits if not split.startswith("test"))
        trained = (
            ["train"] if "train" in splits else [s for s in spare if s not in ("val", "minival")] or spare
        )
        if not trained:
            raise DataError(
                f"{graph_place}: only test splits ({', '.join(sorted(splits))}); nothing to train on"
            )
        dataset = open_dataset(data)
        everything = load_captions(graphs, trained, features)
        everything, left_out = _without_evaluated(everything, dataset)
        if left_out:
            problems.append(
                f"{data}: {left_out} captions left out, their images are in a val or test split of referring"
                " expressions"
            )
        if not len(everything):
            raise DataError(
                f"{graph_place}: no caption is left to train on",
                hint="all of its images are in val or test splits of referring expressions",
            )
        held = load_captions(graphs, ["val"], features) if "train" in splits and "val" in splits else None
        if held is None or not len(held):
            everything, held = _split_captions(everything, config.seed)
        training.append((everything, features))
        if len(held):
            validation.append((held, features))
        texts += caption_texts(graphs, trained)
        texts += _training_texts(dataset)
    count = sum(len(table) for table, _ in training)
    weights, init_config, tokenizer, source = _initial(config, texts, training[0][1], [])
    settings = _resolved(config, count, init_config, training[0][1])
    _keep_settings(settings, source, out)
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
        weights=config.weights or None,
    )
    torch.manual_seed(config.seed)
    model_config = _model_config(settings, init_config, tokenizer, training[0][1])
    parts = [(store, [store.row(image_id) for image_id in table.image_ids]) for table, store in training]
    model = _initialised(TbkinForPreTraining, model_config, weights, source, parts)
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


def _without_evaluated(table: CaptionTable, dataset: Dataset) -> tuple[CaptionTable, int]:
    """Captions without those of images that referring expressions are evaluated on, and how many those are.

    RefCOCO's val and test images are in COCO's train2014; as UNITER and ROSITA do, none is pretrained on.
    """
    import numpy as np

    from tbkin_core.pretraining import select_captions

    # Where expressions are divided by object, an image may be in all splits.
    names = [name for name in dataset.expression_sets() if not dataset.is_split_by_object(name)]
    evaluated = {
        item.image_id
        for name in names
        for split in dataset.expression_splits(name)
        if split != "train"
        for item in dataset.expressions(split, name)
    }
    keep = np.array([image_id not in evaluated for image_id in table.image_ids], np.bool_)
    return (select_captions(table, keep), int((~keep).sum())) if not keep.all() else (table, 0)


def _split_captions(table: Any, seed: int) -> tuple[Any, Any]:
    """Hold 5 % of the images out where the data has no val split; none where there is one image."""
    from tbkin_core.pretraining import CaptionTable, select_captions
    from tbkin_core.tasks import hold_out

    if len(set(table.image_ids)) < 2:
        return table, CaptionTable()
    held = hold_out(table.image_ids, 0.05, seed)
    return select_captions(table, ~held), select_captions(table, held)


# ---- fine-tuning --------------------------------------------------------------------------------


def finetune_run(config: FinetuneConfig, out: Path) -> None:
    """Fine-tune as the settings say, leave the best checkpoint in `out`, and report on its splits.

    Raises:
        TbkinError: Data, features and initial weights do not fit each other; training failed.
    """
    import numpy as np
    import torch

    from tbkin_core.evaluation.intervals import too_few_images
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.modeling import TbkinForRec, TbkinForVqa
    from tbkin_core.modeling.checkpoint import load_model, save_model
    from tbkin_core.reports import report_rec, report_vqa
    from tbkin_core.support.devices import torch_device
    from tbkin_core.tasks import (
        RecTask,
        VqaTask,
        answer_vocabulary,
        build_rec_split,
        build_vqa_split,
        load_answers,
        without_known_answer,
    )
    from tbkin_core.training import train

    assert config.data is not None
    devices = resolve_devices(config.devices)
    dataset = open_dataset(config.data)
    store = FeatureStore(feature_place(config.features, config.data))
    problems: list[str] = []
    splits = task_splits(dataset, config, problems)
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
    answers: list[str] = []
    if is_vqa:
        answers, minimum = (
            (load_answers(config.answers), 0)
            if config.answers is not None
            else answer_vocabulary(in_store, config.min_answer_count)
        )
    texts = [item.question if is_vqa else item.text for item in in_store]
    weights, init_config, tokenizer, source = _initial(config, texts, store, texts)
    if source == "none" and not config.blind:
        problems.append(
            f"weights begin at random, so all is learnt from these {len(in_store)} samples; `tbkin pretrain"
            f" {config.data}`, a model fine-tuned for the other task or --init bert-base-uncased give a start"
        )
    settings = _resolved(config, len(in_store), init_config, store, len(answers))
    _keep_settings(settings, source, out)
    common = (store, tokenizer, settings.max_text_tokens, settings.max_regions)
    batch_size = settings.batch_size or 1
    if is_vqa:
        vqa = {
            name: build_vqa_split(items, *common, blind=config.blind)
            for name, items in splits.items()
            if items
        }
        epochs = settings.epochs or 0
        # A softmax is the right model where one answer is right, and needs no other loss after it.
        certain = all(len(scores) == 1 for scores in vqa["train"].scores)
        kl_epochs = config.kl_epochs if config.kl_epochs is not None else epochs if certain else epochs // 3
        task: Any = VqaTask(
            vqa["train"],
            with_answers(vqa.get("val")),
            answers,
            kl_epochs,
            batch_size,
            config.seed,
            settings.image_dropout,
            settings.blind_epochs,
        )
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
    values: dict[str, Any] = {}
    if is_vqa:
        values["without_known_answer"] = {}
        for name, questions in vqa.items():
            count, total = without_known_answer(questions, answers), len(questions.questions)
            if count:
                values["without_known_answer"][name] = count
                effect = "skipped" if name == "train" else "never answered rightly"
                problems.append(
                    f"{name}: {count} of {total} questions ({count / total:.1%}) have no answer among the"
                    f" {len(answers)} that are learnt; {effect}"
                )
    elif task.skipped:
        problems.append(
            f"train: {task.skipped} of {len(rec['train'].expressions)} samples skipped, no region is near"
            " their target"
        )
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
    model = _initialised(
        TbkinForVqa if is_vqa else TbkinForRec, model_config, weights, source, [(store, train_inputs.rows)]
    )
    _announce(
        f"fine-tuning {config.task}", settings, model, len(task.lengths()), f"samples, weights from {source}"
    )
    fingerprint = f"{train_inputs.fingerprint()}-{task.fingerprint()}"

    def keep(best: PreTrainedModel) -> None:
        if is_vqa and not config.blind:
            best.config.use_regions = not task.ignores_image
        save_model(best, tokenizer, out)
        best.config.use_regions = not config.blind

    result = train(
        task,
        model,
        settings,
        out,
        devices,
        keep,
        fingerprint,
        patience=config.patience,
        fit_minutes=config.epochs is None,
        on_step=_growing_threshold(model, config.threshold_epochs),
    )
    if rank() != 0:
        return
    best, _ = load_model(out, config.task)
    device = torch_device(devices)
    best.to(device)  # type: ignore[arg-type]
    report: list[dict[str, Any]] = []
    for name in (name for name in splits if name != "train" and splits[name]):
        if is_vqa:
            split = with_answers(vqa[name])
            if not vqa[name].questions:
                continue  # told above: none of its images has features
            if split is None:
                problems.append(f"{name}: has no answers, so it is not evaluated")
                continue
            values |= report_vqa(report, name, split, task, best, device, in_store, config, out)
        else:
            report_rec(report, name, rec[name], task, best, device, config, out)
        problems += too_few_images(name, [item.image_id for item in splits[name] if item.image_id in store])
    shown = {entry["split"]: entry["accuracy"] for entry in report if entry["order"] == 3}
    if not best.config.use_regions and not config.blind:
        problems.append("on validation the regions brought nothing: the model that is kept ignores the image")
    unknown = int(np.sum(train_inputs.table.unknown))
    if unknown:
        problems.append(f"train: {unknown} texts hold no known word")
    finish_run(
        out,
        {
            "task": config.task,
            "data": str(config.data),
            "content": samples_content(splits),
            "samples": len(task.lengths()),
            "parameters": best.num_parameters(),
            "initialised_from": source,
            # Without this, the same command given again would go on.
            "minutes_chosen": config.max_minutes is None and settings.max_minutes is not None,
            **_summary(result),
            "accuracy": shown,
            "report": report,
            **values,
            "problems": [*problems, *_cut_short(result, settings), *dataset.problems],
        },
    )


def _growing_threshold(model: Any, epochs: float) -> Callable[[float | None], None]:
    """Sets the τ of a model before each step: it grows to its full value over the first epochs."""
    full = model.tbkin.selection

    def set_threshold(passed: float | None) -> None:
        share = 1.0 if passed is None or not epochs else min(passed / epochs, 1.0)
        model.tbkin.selection = replace(full, threshold=full.threshold * share)

    return set_threshold


def check_predicted_splits(dataset: Dataset, config: FinetuneConfig) -> None:
    """ConfigError where `config.predict` names a split that the dataset does not have."""
    if not config.predict:
        return
    if config.task == "vqa":
        names = dataset.question_splits()
    else:
        names = dataset.expression_splits(expression_set(dataset, config))
    unknown = [name for name in config.predict if normalise_split(name) not in names]
    if unknown:
        raise ConfigError(
            f"predict: {config.data} has no split {unknown[0]!r}", hint=f"it has {', '.join(names)}"
        )


def write_predictions(config: FinetuneConfig, run: Path, name: str, problems: list[str]) -> Path:
    """Write what a finished run answers to a split, for an evaluation server; the file's path.

    VQA: `[{"question_id", "answer"}]`, every question of the split. REC: `[{"sent_id", "ref_id", "image_id",
    "box"}]` with the box as (x1, y1, x2, y2) pixels.

    Raises:
        TbkinError: As `finetune_run`; no image of the split has features.
    """
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.modeling.checkpoint import load_model
    from tbkin_core.support.devices import torch_device
    from tbkin_core.tasks import RecTask, VqaTask, build_rec_split, build_vqa_split

    assert config.data is not None
    split = normalise_split(name)
    dataset = open_dataset(config.data)
    store = FeatureStore(feature_place(config.features, config.data))
    model, tokenizer = load_model(run, config.task)
    check_features(model, store, run)
    device = torch_device(resolve_devices(config.devices))
    model.to(device)
    common = (store, tokenizer, model.config.max_text_tokens, model.config.max_regions)
    batch_size = config.batch_size or 64
    found: list[dict[str, Any]]
    if config.task == "vqa":
        questions = dataset.questions(split)
        vqa = build_vqa_split(questions, *common, blind=not model.config.use_regions)
        answers = [model.config.id2label[number] for number in range(model.config.num_answers)]
        known: dict[Any, str] = {}
        if vqa.questions:
            given, _ = VqaTask(None, None, answers, 0, batch_size).predict(model, vqa.inputs, device)
            known = {item.question_id: answer for item, answer in zip(vqa.questions, given, strict=True)}
        # Servers want all questions answered; the first answer is the commonest in training.
        found = [
            {"question_id": item.question_id, "answer": known.get(item.question_id, answers[0])}
            for item in questions
        ]
        lacking, rest = len(questions) - len(known), f"are answered {answers[0]!r}"
    else:
        expressions = dataset.expressions(split, expression_set(dataset, config))
        rec = build_rec_split(expressions, *common)
        found = []
        if rec.expressions:
            boxes, _, _ = RecTask(None, None, batch_size).predict(model, rec.inputs, device)
            found = [
                {
                    "sent_id": item.sent_id,
                    "ref_id": item.ref_id,
                    "image_id": item.image_id,
                    "box": [round(float(side), 2) for side in box],
                }
                for item, box in zip(rec.expressions, boxes, strict=True)
            ]
        lacking, rest = len(expressions) - len(found), "are left out"
    total = len(found) + (lacking if config.task == "rec" else 0)
    if lacking == total:
        raise DataError(
            f"predict: {store.path} has features of no image of {split}",
            hint=f"run `tbkin extract-features {config.data}` with these images in place",
        )
    if lacking:
        problems.append(f"predictions of {split}: {lacking} of {total} have no features, they {rest}")
    path = run / f"predictions-{split}.json"
    write_json(path, found, indent=None)
    return path


def with_answers(split: VqaSplit | None) -> VqaSplit | None:
    """The split, or None where it is empty or none of its questions has answers."""
    return split if split is not None and len(split.questions) and split.has_answers else None


def task_splits(dataset: Dataset, config: FinetuneConfig, problems: list[str]) -> dict[str, list[Any]]:
    """Samples by split: "train", "val", then the test splits.

    Without a val split, images of train are held out; without a train split, val is divided by image. A test
    split is never trained on, nor is an image of the validation split: where val is trained on beside
    minival, which is a part of it, that part is left out.

    Raises:
        ConfigError: No such set of expressions or split, or a test split to train on.
        DataError: There is nothing to train on; an image of the validation split is in the training data.
    """
    from tbkin_core.tasks import hold_out

    by_object = False
    if config.task == "vqa":
        names = dataset.question_splits()
        if not names:
            raise DataError(
                f"{dataset.root}: no VQA questions (found: {', '.join(dataset.layouts)})",
                hint="expected files such as v2_OpenEnded_mscoco_train2014_questions.json",
            )
        found: dict[str, list[Any]] = {name: list(dataset.questions(name)) for name in names}
        for name, items in found.items():
            answered = [item for item in items if item.answers]
            if answered and len(answered) < len(items):
                lacking = len(items) - len(answered)
                problems.append(f"{name}: {lacking} of {len(items)} questions have no answers (left out)")
                found[name] = answered
    else:
        chosen = expression_set(dataset, config)
        others = [name for name in dataset.expression_sets() if name != chosen]
        if config.dataset is None and others:
            problems.append(f"{chosen} is used; choose another with --dataset ({', '.join(others)})")
        found = {name: list(dataset.expressions(name, chosen)) for name in dataset.expression_splits(chosen)}
        by_object = dataset.is_split_by_object(chosen)
    found = {name: items for name, items in found.items() if items}
    tests = [name for name in found if name.startswith("test")]
    spare = [name for name in found if name not in tests]
    if config.task == "vqa":
        silent = [name for name in spare if not any(item.answers for item in found[name])]
        spare = [name for name in spare if name not in silent]
        problems += [f"{name}: none of its questions has answers (not used)" for name in silent]
    trained = _trained_splits(found, spare, config, dataset)
    validation = next((name for name in ("val", "minival") if name in spare and name not in trained), None)
    if config.train_split is None and trained[0] not in _TRAINED:
        validation = None
        problems.append(f"no train split: {trained[0]} is trained on")
    held = found[validation] if validation else []
    held_images = {item.image_id for item in held}
    train_items, left_out, shared = [], 0, set()
    for name in trained:
        of_split = found[name]
        kept = [item for item in of_split if item.image_id not in held_images]
        if validation in _PARTS.get(name, ()):
            left_out += len(of_split) - len(kept)
        elif not by_object and len(kept) < len(of_split):
            shared |= {item.image_id for item in of_split} & held_images
        train_items += of_split if by_object else kept
    label = "+".join(trained)
    if shared:
        some = ", ".join(map(str, sorted(shared, key=str)[:3]))
        raise DataError(
            f"{dataset.root}: {len(shared)} images of {validation} are in {label} too (such as {some});"
            " what is trained on cannot be validated on",
            hint=f"take their samples out of one of the two files, or take the files of {validation} away:"
            f" images of {trained[0]} are then held out",
        )
    if not train_items:
        raise DataError(
            f"{dataset.root}: all samples of {label} are of images of {validation}; none is left to train on",
            hint="name other splits with --train-split",
        )
    if left_out:
        problems.append(f"{left_out} samples of {label} are left out: their images are in {validation}")
    if by_object and held:
        count = len({item.image_id for item in train_items} & held_images)
        problems.append(
            f"{expression_set(dataset, config)} is split by object: {count} of {len(held_images)} images of"
            f" {validation} are trained on with other objects, so results do not compare with those of splits"
            " by image"
        )
    if not held:
        mask = hold_out(
            [item.image_id for item in train_items], 0.1 if "train" in trained else 0.25, config.seed
        )
        held = [item for item, out in zip(train_items, mask, strict=True) if out]
        train_items = [item for item, out in zip(train_items, mask, strict=True) if not out]
        problems.append(f"{len(held)} samples of {label} are held out by image for validation")
    elif validation != "val" and held:
        problems.append(f"{validation} is the validation split")
    for name in () if by_object else tests:
        count = len({item.image_id for item in train_items} & {item.image_id for item in found[name]})
        if count:
            problems.append(f"{name}: {count} of its images are trained on; it tells little of new images")
    return {"train": train_items, "val": held, **{name: found[name] for name in tests}}


def samples_content(splits: Mapping[str, Sequence[Any]]) -> int:
    """A number that changes with the samples, their order, their images and their answers."""
    value = 0
    for name, items in splits.items():
        value = zlib.crc32(name.encode(), value)
        for item in items:
            value = zlib.crc32(repr(item).encode("utf-8", errors="replace"), value)
    return value


# Splits that are there to be trained on, and the splits that lie within others by the names of the field.
_TRAINED = ("train", "trainval", "all")
_PARTS = {"val": ("minival",), "trainval": ("val", "minival")}


def expression_set(dataset: Dataset, config: FinetuneConfig) -> str:
    """The set of referring expressions that the settings name, or the first; errors as `task_splits`."""
    sets = dataset.expression_sets()
    if not sets:
        raise DataError(
            f"{dataset.root}: no referring expressions (found: {', '.join(dataset.layouts)})",
            hint="expected refs(unc).p or refs(umd).p beside instances.json",
        )
    try:
        return dataset.expression_set(config.dataset or sets[0])
    except DataError as error:
        known = ", ".join(dataset.expression_sets(every_version=True))
        raise ConfigError(f"dataset: expected one of {known}, got {config.dataset!r}") from error


def _trained_splits(
    found: Mapping[str, Any], spare: Sequence[str], config: FinetuneConfig, dataset: Dataset
) -> list[str]:
    """Names of the splits to train on: those asked for, else train, else the first that is no test split."""
    if not spare:
        others = [name for name in found if not name.startswith("test")]
        if others:
            reason = f"no question of {' or '.join(others)} has answers, so there is nothing to train on"
        elif found:
            reason = f"only test splits ({', '.join(found)}), which are never trained on"
        else:
            reason = f"no usable {'question' if config.task == 'vqa' else 'expression'}"
        raise DataError(
            "; ".join([f"{dataset.root}: {reason}", *dataset.problems[:3]]),
            hint="are the annotation files of the training split there, and named so?",
        )
    if config.train_split is None:
        return [next((name for name in _TRAINED if name in spare), spare[0])]
    asked = list(dict.fromkeys(normalise_split(part) for part in config.train_split.split("+")))
    for name in asked:
        if name.startswith("test"):
            raise ConfigError(f"train_split: {name!r} is a test split, which is never trained on")
        if name not in spare:
            raise ConfigError(
                f"train_split: {dataset.root} has no split {name!r} to train on",
                hint=f"it has {', '.join(spare)}",
            )
    return asked


# ---- both ---------------------------------------------------------------------------------------


def feature_place(features: Path | None, data: Path) -> Path:
    """The feature store of a dataset; DataError where there is none."""
    place = features or data / "features"
    if not (place / MANIFEST).exists():
        raise DataError(f"{place}: holds no features", hint=f"make them with `tbkin extract-features {data}`")
    return place


def check_features(model: PreTrainedModel, store: FeatureStore, checkpoint: Path) -> None:
    """DataError where features are of another kind than those a checkpoint was trained on."""
    check_feature_kind(model.config.extractor or {}, store, str(checkpoint))


def check_feature_kind(trained_on: Mapping[str, Any], store: FeatureStore, checkpoint: str) -> None:
    """The same, from the checkpoint's note of its features."""
    from tbkin_core.features.store import feature_kind

    expected, found = feature_kind(trained_on), feature_kind(store.settings)
    if expected and expected != found:
        changed = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise DataError(
            f"{store.path}: features of kind {found['extractor']!r}, size {found['feature_size']};"
            f" {checkpoint} was trained on {expected.get('extractor')!r}, size"
            f" {expected.get('feature_size')} (other: {', '.join(changed)})",
            hint="use the features the checkpoint was trained on, or fine-tune on these",
        )


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that made a checkpoint; empty where it was made elsewhere."""
    return read_json(checkpoint / "run.json")["settings"] if (checkpoint / "run.json").exists() else {}


def _training_texts(dataset: Dataset) -> list[str]:
    """Questions and expressions of the training split: pretraining should know their words too."""
    texts = (
        [item.question for item in dataset.questions("train")] if "train" in dataset.question_splits() else []
    )
    for name in dataset.expression_sets():
        if "train" in dataset.expression_splits(name):
            texts += [item.text for item in dataset.expressions("train", name)]
    return texts


def _on_cuda(config: TrainingConfig) -> bool:
    import torch

    return torch.cuda.is_available() and not config.devices.startswith("cpu")


def most_minutes(config: FinetuneConfig) -> float | None:
    """How long fine-tuning takes at most: as asked for, else what a CPU gets where no epochs are; or None."""
    if config.max_minutes is None and config.epochs is None and not _on_cuda(config):
        return CPU_MINUTES
    return config.max_minutes


def _resolved(
    config: Any,
    samples: int,
    init: dict[str, Any] | None,
    store: FeatureStore,
    answers: int = OPEN_ANSWERS,
) -> Any:
    """Fill in what was left to tbkin: a function of the data's size, the initial weights and the settings."""
    pretraining = isinstance(config, PretrainConfig)
    cuda = _on_cuda(config)
    size, minutes = config.size, config.max_minutes
    if init is not None:
        size = _size_of(init)
        if config.size not in ("auto", size):
            raise ConfigError(
                f"size: {config.size!r} was asked for, the initial weights are {init['hidden_size']} wide",
                hint="leave --size away, or use --init none",
            )
    elif size == "auto" and not cuda and not pretraining:
        # In the minutes that people wait for a CPU, more passes teach a small model more than a larger one.
        size = "tiny" if samples < 30_000 or (minutes or 0) < 60 else "small"
    elif size == "auto":
        size = "tiny" if samples < 30_000 else "small" if samples < 300_000 or not cuda else "base"
    rate = {"tiny": 1e-3, "small": 4e-4, "base": 1e-4 if pretraining else 5e-5}[size]
    batch = (
        64 if samples < (30_000 if cuda or pretraining else 100_000) else 128 if samples < 300_000 else 256
    )
    # Small data is passed over more often: about as many samples are seen in all. On a processor the time
    # ends most runs: what a small model learns late (that "no" turns an answer round) needs it.
    seen = 60_000 if pretraining else 120_000 if cuda else 1_000_000
    if not pretraining:
        minutes = most_minutes(config)
    epochs = min(max(round(seen / max(samples, 1)), 4), 40 if pretraining else 60)
    if config.epochs is not None:
        epochs = config.epochs
    chosen: dict[str, Any] = {}
    if isinstance(config, FinetuneConfig):
        # Learning without the image delays learning with it; of many questions fewer suffice for the first.
        hidden = (0.2 if samples < 10_000 else 0.1) if config.image_dropout is None else config.image_dropout
        early = config.blind_epochs
        if early is None:
            early = epochs // 8 if init is None and hidden and answers >= OPEN_ANSWERS else 0
        without = config.blind or config.task == "rec"
        chosen = {
            "image_dropout": 0.0 if without else hidden,
            "blind_epochs": 0 if without else early,
        }
    return replace(
        config,
        size=size,
        epochs=epochs,
        batch_size=config.batch_size or min(batch, max(samples // 4, 1)),
        learning_rate=config.learning_rate or rate,
        max_regions=config.max_regions or int(store.settings.get("max_regions", 36)),
        dropout=config.dropout if config.dropout is not None else 0.0 if size == "tiny" else 0.1,
        max_minutes=minutes,
        **chosen,
    )


def _keep_settings(settings: TrainingConfig, source: str, out: Path) -> None:
    """Write what was chosen into config.yaml; run.json keeps what was asked for."""
    if rank() == 0:
        write_text(out / "config.yaml", dump_config(replace(settings, init=source)))


def _size_of(values: dict[str, Any]) -> str:
    """The size whose training settings suit a model of this width."""
    width = int(values["hidden_size"])
    return "tiny" if width <= 128 else "small" if width <= 384 else "base"


def initial_source(config: TrainingConfig, store: FeatureStore) -> str:
    """What a run begins from: a path or hub id, or "none"; "auto" is resolved."""
    if config.init != "auto":
        return config.init
    if isinstance(config, FinetuneConfig) and not config.blind:
        return _matching_checkpoint(store, config.task, config.size) or "none"
    return "none"


def _initial(
    config: TrainingConfig, texts: Sequence[str], store: FeatureStore, new_texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any] | None, Tokenizer, str]:
    """Weights to begin from, their configuration, the tokenizer, and where they came from."""
    from tbkin_core.modeling.checkpoint import load_init
    from tbkin_core.texts.tokenizer import build_tokenizer, extend_tokenizer, load_tokenizer

    source = initial_source(config, store)
    if source == "none":
        return {}, None, build_tokenizer(texts), "none"
    weights, values = load_init(source)
    tokenizer = load_tokenizer(source)
    if values.get("data_vocabulary"):
        tokenizer, added = extend_tokenizer(tokenizer, new_texts)
        if added:
            logger.info("%d words of the training texts were added to the vocabulary", added)
    return weights, values, tokenizer, source


def _matching_checkpoint(store: FeatureStore, task: str, size: str) -> str | None:
    """What fine-tuning begins from: the latest model of this size made from features of this kind.

    For VQA a REC model comes before a pretrained one: it has learnt to find what words name, which few
    questions teach.
    """
    from tbkin_core.features.store import feature_kind

    runs = [path for path, _ in finished_runs("pretrain")]
    if task == "vqa":
        runs = [
            path for path, content in finished_runs("finetune") if content["settings"].get("task") == "rec"
        ] + runs
    for path in runs:
        try:
            values = json.loads((path / "config.json").read_text(encoding="utf-8"))
            extractor = values.get("extractor") or {}
            fits = size == "auto" or _size_of(values) == size
        except (OSError, ValueError, KeyError):
            continue
        if fits and feature_kind(extractor) == feature_kind(store.settings):
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
        max_regions=config.max_regions or store.settings.get("max_regions", 36),
        max_text_tokens=config.max_text_tokens,
        data_vocabulary=init is None or bool(init.get("data_vocabulary")),
    )


def _initialised(
    kind: Any, config: Any, weights: dict[str, Any], source: str, parts: Sequence[tuple[FeatureStore, Any]]
) -> Any:
    """A model with its initial weights; region features are standardised by those of the training images.

    `parts` are feature stores, each with the rows (N,) of its training images.
    """
    import torch

    from tbkin_core.features.store import feature_statistics
    from tbkin_core.modeling.checkpoint import apply_init

    model = kind(config)
    if "tbkin.region_embeddings.feature_projection.weight" not in weights:
        # Weights that know region features bring the statistics they were trained with.
        mean, scale = feature_statistics(parts)
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
    limit = f", at most {config.max_minutes:g} minutes" if config.max_minutes is not None else ""
    logger.info(
        "%s: %d %s; size %s (%.1f M parameters), epochs %d, batch %d, learning rate %g%s",
        what,
        samples,
        rest,
        config.size,
        model.num_parameters() / 1e6,
        config.epochs,
        config.batch_size,
        config.learning_rate,
        limit,
    )


def _summary(result: Any) -> dict[str, Any]:
    values = asdict(result)
    del values["history"]
    return {**values, "samples_per_second": result.samples / result.seconds if result.seconds else math.nan}


def _cut_short(result: Any, settings: TrainingConfig) -> list[str]:
    if result.reason == "minutes":
        return [
            f"training was stopped after {settings.max_minutes:g} minutes in epoch {result.epochs} of"
            f" {settings.epochs}; --max-minutes gives it more or less time"
        ]
    if result.reason == "patience":
        return [f"training stopped at epoch {result.epochs} of {settings.epochs}: no improvement any more"]
    return []


def _of_epoch(history: Sequence[dict[str, Any]], epoch: int) -> dict[str, float]:
    for record in history:
        if record["epoch"] == epoch:
            return {name: value for name, value in record.items() if name.startswith("val_")}
    return {}
