"""`tbkin pretrain`: structural knowledge masking over the captions and features of one or more datasets."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, feature_kind, with_known_weights
from tbkin_core.graphs.store import GraphStore
from tbkin_core.modeling import TbkinForPreTraining
from tbkin_core.modeling.checkpoint import save_model
from tbkin_core.results import PretrainResult
from tbkin_core.runs import FINISHED_BEFORE, ROOT, check_inputs, finish_run, note_inputs, train_together
from tbkin_core.settings import PretrainConfig, dump_config
from tbkin_core.support.devices import resolve_devices
from tbkin_core.support.files import real_path, write_text
from tbkin_core.support.ranks import rank
from tbkin_core.support.shards import MANIFEST
from tbkin_core.tasks.captions import CaptionTable, caption_texts, load_captions, select_captions
from tbkin_core.tasks.inputs import text_notes
from tbkin_core.tasks.pretraining import PretrainObjective
from tbkin_core.training.initialise import build_model
from tbkin_core.training.plan import plan_pretraining
from tbkin_core.training.run import draw_training_curves, train
from tbkin_core.training.splits import EvaluatedImages, hold_out
from tbkin_core.training.start import feature_place, initial_source, starting_point, weights_content


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain on one or more datasets with features and graphs.

    Raises:
        TbkinError: Features or graphs are missing or do not fit each other; training failed.
    """
    if not config.data:
        raise ConfigError(
            "data: name at least one dataset directory", hint="for example `tbkin pretrain coco/`"
        )
    resolve_devices(config.devices)
    places: dict[Path, Path] = {}
    for data, features, graphs in _sources(config):
        if (same := places.setdefault(real_path(data), data)) is not data:
            raise ConfigError(f"data: {data} is {same} again", hint="name each dataset once; --weights mixes")
        open_dataset(data)
        feature_place(features, data)
        if not (graphs / MANIFEST).exists():
            raise DataError(f"{graphs}: holds no graphs", hint=f"make them with `tbkin build-graphs {data}`")
    # Named now, so that the same command begins anew where word vectors have been installed since.
    config = replace(config, init=initial_source(config))
    with contextlib.ExitStack() as stack:  # keeps other processes out until all is written
        out, results = train_together(config, "pretrain", ROOT / "pretrain", pretrain_run, stack)
        if FINISHED_BEFORE in results["problems"]:
            check_inputs(out, _made_from(config, _all_captions(config)[0]))
        files = draw_training_curves(config, out, f"Pretraining: {out}")
        return PretrainResult(out=out, results=results, problems=results["problems"], files=files)


def _sources(config: PretrainConfig) -> Iterable[tuple[Path, Path, Path]]:
    """Datasets, each with its feature store and its graph store."""
    features = config.features or [data / "features" for data in config.data]
    graphs = config.graphs or [data / "graphs" for data in config.data]
    return zip(config.data, features, graphs, strict=True)


@dataclass(slots=True)
class _Captions:
    """What one dataset gives to pretraining: captions, and texts whose words the tokenizer should know."""

    data: Path
    features: FeatureStore
    training: CaptionTable
    validation: CaptionTable
    texts: list[str]
    notes: list[str]


# ---- one process of a run -----------------------------------------------------------------------


def pretrain_run(config: PretrainConfig, out: Path) -> None:
    """Pretrain as the settings say and leave the best checkpoint in `out`.

    Each process of a run calls this; rank 0 writes the results into `run.json`.

    Raises:
        TbkinError: Features or graphs do not fit each other or the initial weights; training failed.
    """
    parts, notes = _all_captions(config)
    count = sum(len(part.training) for part in parts)
    note_inputs(out, _made_from(config, parts), config.resume)
    start = starting_point(initial_source(config), [text for part in parts for text in part.texts])
    plan = plan_pretraining(config, count, start, [part.features for part in parts])
    if rank() == 0:
        write_text(out / "config.yaml", dump_config(plan.settings(config, start.source)))
    objective = PretrainObjective(
        [(part.training, part.features) for part in parts],
        [(part.validation, part.features) for part in parts if len(part.validation)],
        start.tokenizer,
        config.masking,
        seed=config.seed,
        mismatch=config.mismatch,
        match_hidden=config.match_hidden,
        ot_weight=config.ot_weight,
        max_text_tokens=plan.max_text_tokens,
        max_regions=plan.max_regions,
        batch_size=plan.batch_size,
        weights=config.weights or None,
        kernels=plan.kernels,
        tells_words=plan.direct_width > 0,
    )
    rows = [
        (part.features, np.array([part.features.row(image_id) for image_id in part.training.image_ids]))
        for part in parts
    ]
    width = plan.direct_width
    values = {"aligned_matching": True, "direct_width": width, "direct_attends": width > 0}
    model = build_model(TbkinForPreTraining, plan, start, rows, **values)
    for name, side in (("train", objective.train), ("val", objective.validation)):
        notes += text_notes(name, side.table, plan.max_text_tokens) if side else []
    plan.announce("pretraining", f"{count} captions, weights from {start.source}", model.num_parameters())
    devices = resolve_devices(config.devices)
    result = train(objective, model, plan, out, devices, lambda best: save_model(best, start.tokenizer, out))
    if rank() == 0:
        results = {
            "captions": count,
            "parameters": model.num_parameters(),
            **start.recorded(),
            **result.summary(),
            "validation": result.validation(),
            "problems": [*notes, *result.notes(plan)],
        }
        finish_run(out, results)


def _made_from(config: PretrainConfig, parts: Sequence[_Captions]) -> dict[str, int | None]:
    """What a run's results follow from beside its settings, see `note_inputs`."""
    made_from: dict[str, int | None] = {f"the weights of {config.init}": weights_content(config.init)}
    for part in parts:
        captions = (part.training.content(), part.validation.content(), part.texts)
        made_from[f"captions of {part.data}"] = zlib.crc32(repr(captions).encode("utf-8", errors="replace"))
        images = (*part.training.image_ids, *part.validation.image_ids)
        made_from[f"features of {part.data}"] = part.features.content(images)
    return made_from


def _all_captions(config: PretrainConfig) -> tuple[list[_Captions], list[str]]:
    """The captions of each dataset, and notes; DataError where features of different kinds would be mixed."""
    opened = {data: open_dataset(data) for data in config.data}
    evaluated = EvaluatedImages(list(opened.values()), [open_dataset(place) for place in config.evaluated_on])
    parts: list[_Captions] = []
    for data, features, graphs in _sources(config):
        parts.append(_captions(opened[data], features, graphs, config.seed, evaluated))
        first, last = parts[0].features, parts[-1].features
        if feature_kind(first.settings) != feature_kind(last.settings):
            raise DataError(
                f"{last.path}: features of another kind than {first.path}; they are not mixed",
                hint="extract the features of all datasets with the same extractor",
            )
    return parts, [*evaluated.notes, *(note for part in parts for note in part.notes)]


def _captions(
    dataset: Dataset, feature_dir: Path, graph_dir: Path, seed: int, evaluated: EvaluatedImages
) -> _Captions:
    """The captions of a dataset, those of train apart from those of val; test splits are left alone."""
    features, graphs = FeatureStore(feature_dir), GraphStore(graph_dir)
    built_over = graphs.settings["features"]
    if built_over is None or with_known_weights(built_over) != with_known_weights(features.settings):
        raise DataError(
            f"{graph_dir}: was built over other regions than those of {feature_dir}",
            hint=f"run `tbkin build-graphs {dataset.path} --overwrite`",
        )
    if (image_id := _of_other_regions(graphs, features)) is not None:
        features[image_id]  # raises where it is these that are damaged
        raise DataError(
            f"{graph_dir}: was built over other regions than those of {feature_dir}: those of image"
            f" {image_id} have changed since",
            hint=f"run `tbkin build-graphs {dataset.path} --overwrite`",
        )
    splits = graphs.splits()
    spare = sorted(split for split in splits if not split.startswith("test"))
    trained = ["train"] if "train" in splits else [s for s in spare if s not in ("val", "minival")] or spare
    if not trained:
        raise DataError(f"{graph_dir}: only test splits ({', '.join(sorted(splits))}); nothing to train on")
    training = load_captions(graphs, trained, features)
    written = caption_texts(graphs, trained)
    notes = []
    if lacking := len(written) - len(training):
        notes.append(
            f"{dataset.path}: {lacking} of {len(written)} captions of {'+'.join(trained)} left out, they have"
            " no image or none with features"
        )
    if not len(training):
        raise DataError(
            f"{feature_dir}: holds features of no image of the captions in {graph_dir}",
            hint=f"run `tbkin extract-features {dataset.path}` with the pictures in place",
        )
    spare_rows = ~evaluated.among(dataset, training.image_ids)
    left_out = int((~spare_rows).sum())
    training = select_captions(training, spare_rows) if left_out else training
    if left_out:
        notes.append(
            f"{dataset.path}: {left_out} captions left out, their images are in a val or test split of"
            f" referring expressions or questions ({', '.join(map(str, evaluated.places))})"
        )
    if not len(training):
        raise DataError(
            f"{graph_dir}: no caption is left to train on",
            hint="all of its images are in val or test splits of referring expressions or questions",
        )
    validation = CaptionTable()
    if "train" in splits and "val" in splits:
        validation = load_captions(graphs, ["val"], features)
    if not len(validation):
        training, validation = _split_captions(training, seed)
    texts = [*written, *_training_texts(dataset)]
    return _Captions(dataset.path, features, training, validation, texts, notes)


def _of_other_regions(graphs: GraphStore, features: FeatureStore) -> ImageId | None:
    """An image whose regions in the graphs have other boxes than its features; None where all agree.

    Images without regions in the graphs have no edges that could be wrong.
    """
    for shard in graphs.shards:
        for image_id, begin, end in zip(
            shard.image_ids, shard.region_offsets[:-1], shard.region_offsets[1:], strict=True
        ):
            own = shard.region_boxes[begin:end]
            if len(own) and image_id in features and not np.array_equal(features.boxes_of(image_id), own):
                return image_id
    return None


def _split_captions(table: CaptionTable, seed: int) -> tuple[CaptionTable, CaptionTable]:
    """Hold 5 % of the images out where the data has no val split; none where there is one image."""
    if len(set(table.image_ids)) < 2:
        return table, CaptionTable()
    held = hold_out(table.image_ids, 0.05, seed)
    return select_captions(table, ~held), select_captions(table, held)


def _training_texts(dataset: Dataset) -> Sequence[str]:
    """Questions and expressions of the training split: pretraining should know their words too."""
    texts = (
        [item.question for item in dataset.questions("train")] if "train" in dataset.question_splits() else []
    )
    for name in dataset.expression_sets():
        if "train" in dataset.expression_splits(name):
            texts += [item.text for item in dataset.expressions("train", name)]
    return texts
