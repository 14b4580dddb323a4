"""Which samples are trained on, which validate, which test; and the dataset they come from."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore
from tbkin_core.runs import finished_runs, kept_contents, settings_of
from tbkin_core.support.randomness import mix
from tbkin_core.support.shards import MANIFEST
from tbkin_core.tasks.base import FinetuneTask, SampleSet
from tbkin_core.tasks.table import TASKS

logger = logging.getLogger("tbkin")

# Splits that are there to be trained on, and the splits that lie within others by the names of the field.
_TRAINED = ("train", "trainval", "all")
_PARTS = {"val": ("minival",), "trainval": ("val", "minival")}


@dataclass(frozen=True, slots=True)
class TaskSplits:
    """Samples by split, "train", "val", then the test splits; and what is worth knowing, one line each."""

    samples: dict[str, list[Any]]
    notes: list[str]
    held_out: bool  # whether "val" is a part of the training split that nobody else holds out

    @property
    def evaluated(self) -> list[str]:
        """Names of the splits that are not trained on and not empty."""
        return [name for name, items in self.samples.items() if name != "train" and items]


def task_splits(
    task: FinetuneTask, dataset: Dataset, subset: str | None, train_split: str | None, seed: int
) -> TaskSplits:
    """The samples of a dataset, divided.

    Without a val split, images of train are held out; without a train split, val is divided by image. A test
    split is never trained on, nor is an image of the validation split: where val is trained on beside
    minival, which is a part of it, that part is left out.

    Args:
        subset: The set of samples, where the dataset has several.
        train_split: Split to train on, or several, as "train+val"; None takes train.
        seed: Decides which images are held out.

    Raises:
        ConfigError: No such set or split, or a test split to train on.
        DataError: There is nothing to train on; an image of the validation split is in the training data.
    """
    found = task.samples(dataset, subset)
    notes = list(found.notes)
    trained = _trained_splits(task, found, dataset, train_split)
    spare = found.trainable
    validation = next((name for name in ("val", "minival") if name in spare and name not in trained), None)
    if train_split is None and trained[0] not in _TRAINED:
        validation = None
        notes.append(f"no train split: {trained[0]} is trained on")
    held = found.splits[validation] if validation else []
    label = "+".join(trained)
    train, left_out = _without_validation(task, found, trained, validation, dataset)
    if left_out:
        notes.append(f"{left_out} samples of {label} are left out: their images are in {validation}")
    if found.split_by_object and held:
        images = _images(held)
        notes.append(
            f"{found.name} is split by object: {len(_images(train) & images)} of {len(images)} images of"
            f" {validation} are trained on with other objects, so results do not compare with those of splits"
            " by image"
        )
    elif held and (shared := _images(train) & _images(held)):
        notes.append(
            f"split by {task.unit}: {len(shared)} of {len(_images(held))} images of {validation} are trained"
            f" on with other {task.unit}s, so results do not compare with those of splits by image"
        )
    if held_out := not held:
        share = 0.1 if "train" in trained else 0.25
        try:
            mask = hold_out([item.image_id for item in train], share, seed)
        except DataError as error:
            raise DataError(f"{dataset.path}: {error.message}{dataset.unread()}", hint=error.hint) from error
        held = [item for item, out in zip(train, mask, strict=True) if out]
        train = [item for item, out in zip(train, mask, strict=True) if not out]
        notes.append(f"{len(held)} samples of {label} are held out by image for validation")
    elif validation != "val":
        notes.append(f"{validation} is the validation split")
    for name in () if found.split_by_object else found.tests:
        if count := len(_images(train) & _images(found.splits[name])):
            notes.append(f"{name}: {count} of its images are trained on; it tells little of new images")
    used = (*trained, validation, *_PARTS.get(validation or "", ()))
    if train_split is None and (unused := [name for name in spare if name not in used]):
        counts = ", ".join(f"{name} ({len(found.splits[name])})" for name in unused)
        notes.append(f"neither trained on nor evaluated: {counts}; --train-split names what is trained on")
    tests = {name: found.splits[name] for name in found.tests}
    return TaskSplits({"train": train, "val": held, **tests}, notes, held_out)


def _without_validation(
    task: FinetuneTask, found: SampleSet, trained: Sequence[str], validation: str | None, dataset: Dataset
) -> tuple[list[Any], int]:
    """The training samples, none of an image of the validation split unless that is split by object.

    Of questions an image may be in both, if none is asked about it in both: some sets are split so on purpose
    (VQA-RAD). And how many samples were left out because the validation split is a part of theirs.
    """
    held_images = _images(found.splits[validation]) if validation else set()
    together = found.split_by_object
    if task.asks and validation and not any(validation in _PARTS.get(name, ()) for name in trained):
        held = {_asked(task, item) for item in found.splits[validation]}
        twice = [item for name in trained for item in found.splits[name] if _asked(task, item) in held]
        if twice:
            example = f"{task.text(twice[0])!r} about image {twice[0].image_id}"
            raise DataError(
                f"{dataset.path}: {len(twice)} questions of {'+'.join(trained)} are in {validation} too,"
                f" about the same images (such as {example}); what is trained on cannot be validated on",
                hint="take them out of one of the two files, or take the files of"
                f" {validation} away: images of {trained[0]} are then held out",
            )
        together = True
    train: list[Any] = []
    left_out, shared = 0, set()
    for name in trained:
        of_split = found.splits[name]
        kept = [item for item in of_split if item.image_id not in held_images]
        if validation in _PARTS.get(name, ()):
            left_out += len(of_split) - len(kept)
        elif not together and len(kept) < len(of_split):
            shared |= _images(of_split) & held_images
        train += of_split if together else kept
    label = "+".join(trained)
    if shared:
        some = ", ".join(map(str, sorted(shared, key=str)[:3]))
        raise DataError(
            f"{dataset.path}: {len(shared)} images of {validation} are in {label} too (such as {some});"
            " what is trained on cannot be validated on",
            hint=f"take their samples out of one of the two files, or take the files of {validation} away:"
            f" images of {trained[0]} are then held out",
        )
    if not train:
        raise DataError(
            f"{dataset.path}: all samples of {label} are of images of {validation}; none is left to train on",
            hint="name other splits with --train-split",
        )
    return train, left_out


def _asked(task: FinetuneTask, sample: Any) -> tuple[ImageId, str]:
    """A question about an image; spelling does not make it another."""
    return sample.image_id, " ".join(task.text(sample).split()).casefold()


def _images(samples: Sequence[Any]) -> set[ImageId]:
    return {item.image_id for item in samples}


def _trained_splits(
    task: FinetuneTask, found: SampleSet, dataset: Dataset, train_split: str | None
) -> list[str]:
    """Names of the splits to train on: those asked for, else train, else the first that is no test split."""
    spare = found.trainable
    if not spare:
        if found.unlabelled:
            names = " or ".join(found.unlabelled)
            reason = f"no {task.unit} of {names} has {task.label}, so there is nothing to train on"
        elif found.splits:
            reason = f"only test splits ({', '.join(found.splits)}), which are never trained on"
        else:
            reason = f"no usable {task.unit}"
        raise DataError(
            f"{dataset.path}: {reason}{dataset.unread()}",
            hint="are the annotation files of the training split there, and named so?",
        )
    if train_split is None:
        return [next((name for name in _TRAINED if name in spare), spare[0])]
    asked = list(dict.fromkeys(normalise_split(part) for part in train_split.split("+")))
    for name in asked:
        if name.startswith("test"):
            raise ConfigError(f"train_split: {name!r} is a test split, which is never trained on")
        if name not in spare:
            raise ConfigError(
                f"train_split: {dataset.path} has no split {name!r} to train on",
                hint=f"it has {', '.join(spare)}",
            )
    return asked


def hold_out(image_ids: Sequence[ImageId], share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for the samples of the images that are held out; by image, at least one of two or more.

    An image's place depends on its id and the seed alone, so that more data moves no image.
    """
    # A checksum alone keeps the order of ids from seed to seed, and takes images at even distances.
    keys = {image_id: mix(seed, zlib.crc32(str(image_id).encode())) for image_id in image_ids}
    if len(keys) < 2:
        raise DataError(
            "validation: there is no val split, and one image alone cannot be divided",
            hint="add samples of other images, or a val split",
        )
    count = min(max(round(share * len(keys)), 1), len(keys) - 1)
    held = set(sorted(keys, key=lambda image_id: (keys[image_id], str(image_id)))[:count])
    return np.array([image_id in held for image_id in image_ids], np.bool_)


class EvaluatedImages:
    """Images that models are evaluated on, in any of some datasets: none is pretrained on.

    RefCOCO's val and test images are in COCO's train2014, and half of Visual Genome's are COCO's; as UNITER
    and ROSITA do, they are left out. An image of another dataset is known by COCO's id.

    Args:
        data: Datasets that are pretrained on.
        others: Further ones, of which nothing is trained on here.

    Attributes:
        places: Directories of the datasets that evaluate on any image.
        notes: What is worth knowing, one line each.
    """

    def __init__(self, data: Sequence[Dataset], others: Sequence[Dataset] = ()) -> None:
        self.places: list[Path] = []
        self.notes: list[str] = []
        self._images: dict[Path, set[ImageId]] = {}
        self._coco_ids: set[int] = set()
        nameless: list[str] = []
        in_coco = False
        for dataset in (*data, *others):
            if dataset.root in self._images:
                continue
            images = _evaluated_images(dataset, dataset in data)
            self._images[dataset.root] = images
            ids = {record.coco_id for record in dataset.images() if record.image_id in images}
            self._coco_ids |= {number for number in ids if number is not None}
            if images:
                self.places.append(dataset.path)
            if images and None in ids:
                nameless.append(f"{dataset.path} ({len(images)} images)")
            in_coco |= any(record.coco_id is not None for record in dataset.images())
        if nameless and in_coco and len(self._images) > 1:
            self.notes.append(
                f"COCO's id of some images that are evaluated on is not known: {', '.join(nameless)};"
                " captions of the same pictures in other datasets are not left out"
            )

    def among(self, dataset: Dataset, image_ids: Sequence[ImageId]) -> NDArray[np.bool_]:
        """(N,) which images of a dataset are evaluated on, there or in another one."""
        images = self._images.get(dataset.root, set()) | {
            record.image_id for record in dataset.images() if record.coco_id in self._coco_ids
        }
        return np.array([image_id in images for image_id in image_ids], np.bool_)


def _evaluated_images(dataset: Dataset, trained_on: bool) -> set[ImageId]:
    """Images of the val and test splits of referring expressions and of questions.

    Where expressions are divided by object, or questions without regard to images, an image may be in all
    splits: then it is evaluated on knowingly, and captions of it tell no answer.
    """
    found = set[ImageId]()
    for name in dataset.expression_sets():
        if dataset.is_split_by_object(name):
            continue
        spoken = {
            split: {item.image_id for item in dataset.expressions(split, name)}
            for split in dataset.expression_splits(name)
        }
        for split in _learnt_splits(list(spoken), trained_on)[:1]:
            spoken.pop(split)
        found |= set[ImageId]().union(*spoken.values())
    for name in dataset.question_sets():
        asked = {split: dataset.question_images(split, name) for split in dataset.question_splits(name)}
        trained = _learnt_splits(list(asked), trained_on)
        learnt = set[ImageId]().union(*(asked.pop(split) for split in trained))
        found |= set[ImageId]().union(*asked.values()) - learnt
    return found


def _learnt_splits(splits: Sequence[str], trained_on: bool) -> list[str]:
    """Those of a set's splits that fine-tuning learns from."""
    trained = [split for split in _TRAINED if split in splits]
    if not trained and trained_on:
        # Of one split that is no test's, fine-tuning divides the images itself.
        trained = [split for split in splits if not split.startswith("test")][:1]
    return trained


def evaluated_samples(task: FinetuneTask, split: str, samples: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Those of a split's samples that an evaluation is of, and a note where they are fewer."""
    kept = task.evaluated(samples)
    if len(kept) == len(samples):
        return kept, []
    counts = (len({item.image_id for item in part}) for part in (kept, samples))
    images = "{:,} of its {:,} images".format(*counts)
    return kept, [
        f"{split}: evaluated on {len(kept):,} of its {len(samples):,} {task.unit}s, of {images}, as is usual"
    ]


def samples_content(splits: Mapping[str, Sequence[Any]]) -> int:
    """A number that changes with the samples, their order, their images and their answers."""
    value = 0
    for name, items in splits.items():
        value = zlib.crc32(name.encode(), value)
        for item in items:
            value = zlib.crc32(repr(item).encode("utf-8", errors="replace"), value)
    return value


def features_content(
    task: FinetuneTask, splits: Mapping[str, Sequence[Any]], store: FeatureStore
) -> dict[str, int]:
    """For "features of SPLIT" a number that changes with what a store has of the images that count there."""
    return {
        f"features of {name}": store.content(item.image_id for item in items if task.labelled(item))
        for name, items in splits.items()
    }


def changed_splits(kept: Mapping[str, int] | None, samples: Mapping[str, Sequence[Any]]) -> list[str]:
    """Splits whose samples are no longer those of which a run kept the `samples_content`; new ones aside."""
    now = {name: samples_content({name: samples.get(name, ())}) for name in kept or ()}
    return [name for name, number in now.items() if number != (kept or {})[name]]


def changed_since(run: Path, task: FinetuneTask, dataset: Dataset, split: str | None = None) -> list[str]:
    """Splits, or one of them, whose samples are no longer those that a finished run speaks of."""
    kept = {name: number for name, number in kept_contents(run).items() if split in (None, name)}
    if not kept:  # of a run that an earlier version made
        return []
    settings = settings_of(run)
    subset = settings.get("dataset")
    try:
        # A split that was not divided is quickly compared, without the others.
        if split in task.split_names(dataset, subset):
            whole = {split: task.split_samples(dataset, split, subset)}
            if not changed_splits(kept, whole):
                return []
        divided = task_splits(task, dataset, subset, settings.get("train_split"), settings.get("seed", 0))
    except TbkinError:  # the samples are gone, or cannot be trained on any more
        return list(kept)
    return changed_splits(kept, divided.samples)


def find_data(task: FinetuneTask) -> Path:
    """The dataset directory that a fine-tuning task without --data takes.

    Looked for: data of earlier runs, the working directory, and the directories in it; those with features
    come first.

    Raises:
        ConfigError: None, or several that are as good.
    """
    candidates: list[Path] = []
    for _, content in (*finished_runs("finetune"), *finished_runs("pretrain")):
        data = content["settings"].get("data")
        candidates += [Path(entry) for entry in (data if isinstance(data, list) else [data]) if entry]
    candidates += [Path(), *sorted(path for path in Path().iterdir() if path.is_dir())]
    usable: dict[Path, Path] = {}
    for path in candidates:
        if not path.is_dir() or path.resolve() in usable or path.name in ("runs", ".venv"):
            continue
        try:
            if task.found_in(open_dataset(path)):
                usable[path.resolve()] = path
        except TbkinError:
            continue
    places = list(usable.values())
    ready = [path for path in places if (path / "features" / MANIFEST).exists()] or places
    # The working directory holds what the directories in it hold.
    ready = [path for path in ready if path != Path()] or ready
    if not ready:
        raise ConfigError(
            f"data: no directory with {TASKS[task.name].samples} found here", hint="name one with --data DIR"
        )
    if len(ready) > 1:
        raise ConfigError(
            f"data: several directories hold {TASKS[task.name].samples}: {', '.join(map(str, ready))}",
            hint="choose one with --data DIR",
        )
    logger.info("data: %s", ready[0])
    return ready[0]
