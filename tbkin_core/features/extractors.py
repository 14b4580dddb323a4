"""What turns pictures into regions: boxes from one place, vectors from the same or another.

Boxes come from a detection model, the dataset's annotations or the built-in proposals; vectors from the
detector, the built-in descriptors or a backbone. A `PictureExtractor` works on one picture at a time, on
processors; a `BatchExtractor` runs models on batches, one copy a device.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import xywh_to_xyxy
from tbkin_core.datasets import Dataset
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.builtin import BuiltinExtractor
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import feature_kind
from tbkin_core.names.vocabulary import visual_genome_names
from tbkin_core.support.devices import resolve_devices, torch_device
from tbkin_core.support.ranks import world_size

logger = logging.getLogger("tbkin")

DEFAULT_DETECTOR = "PekingU/rtdetr_v2_r50vd"
MAX_SIDE = 1024  # pixels; larger images are reduced while they are decoded
MAX_OBJECT_NAMES = 1600  # of annotations; the sizes of the classic vocabularies
MAX_ATTRIBUTE_NAMES = 400
BEYOND = 1.05  # of the picture's sides; annotators' boxes end a pixel or two outside
SAME_SHAPE = 0.02  # relative difference of aspect ratios up to which a picture was merely scaled


class PictureExtractor(Protocol):
    """Works on one picture at a time; can be sent to another process."""

    def settings(self) -> dict[str, Any]:
        """What the store records, so that a new image can be treated alike."""

    def extract(
        self, image_id: ImageId, image: NDArray[np.uint8], original_width: int, original_height: int
    ) -> RegionFeatures:
        """The regions of an RGB picture (H, W, 3) of a file of the size given."""


class BatchExtractor(Protocol):
    """Prepares pictures one at a time, in any thread, and takes them in batches, in one."""

    def settings(self) -> dict[str, Any]:
        """What the store records, so that a new image can be treated alike."""

    def prepare(self, image_id: ImageId, image: NDArray[np.uint8], width: int, height: int) -> Any:
        """An RGB picture (H, W, 3) of a file of `width` x `height` pixels, ready for `extract`."""

    def extract(self, pictures: Sequence[Any]) -> list[RegionFeatures]:
        """The regions of each."""


# ---- boxes from elsewhere -----------------------------------------------------------------------


class BuiltinRegions:
    """The built-in extractor, as `PictureExtractor` wants it."""

    def __init__(self, max_regions: int) -> None:
        self._builtin = BuiltinExtractor(max_regions=max_regions)

    def settings(self) -> dict[str, Any]:
        return {
            "feature_size": self._builtin.feature_size,
            "object_names": self._builtin.object_names,
            "attribute_names": self._builtin.attribute_names,
            **self._builtin.settings(),
        }

    def extract(
        self, image_id: ImageId, image: NDArray[np.uint8], original_width: int, original_height: int
    ) -> RegionFeatures:
        return self._builtin.extract(image_id, image, original_width, original_height)


@dataclass(frozen=True, slots=True)
class KnownBoxes:
    """The annotated boxes of an image.

    Attributes:
        boxes: (K, 4) xyxy.
        objects, attributes: (K,) numbers of the names, -1 for none.
        size: Width and height of the picture that they were drawn on; None where nobody says.
    """

    boxes: NDArray[np.float32]
    objects: NDArray[np.int32]
    attributes: NDArray[np.int32]
    size: tuple[int, int] | None


class AnnotatedRegions:
    """Regions are the boxes that people drew (COCO instances, Visual Genome objects), largest first.

    Names are those of the labels in Visual Genome's words, the commonest first and at most as many as the
    usual vocabularies have. Where nobody annotated attributes, these are the built-in extractor's colours.

    Args:
        dataset: Opened dataset.
        max_regions: Of more boxes the largest are taken.
        describe: Whether the built-in descriptors are the vectors; else there are none.

    Attributes:
        unboxed: Images of the dataset on disk that have no box.
    """

    def __init__(self, dataset: Dataset, max_regions: int, describe: bool = True) -> None:
        self._builtin = BuiltinExtractor() if describe else None
        self._max_regions = max_regions
        found = dataset.boxes()
        if not found:
            raise ConfigError(
                f"{dataset.root}: no annotated boxes (COCO instances_*.json, Visual Genome objects)",
                hint="use --extractor builtin, or a detection model",
            )
        objects, attributes = visual_genome_names("objects"), visual_genome_names("attributes")
        labels = Counter(box.label for boxes in found.values() for box in boxes)
        traits = Counter(trait for boxes in found.values() for box in boxes for trait in box.attributes)
        self.object_names, object_of = _numbered(labels, objects.match(labels), MAX_OBJECT_NAMES)
        self.attribute_names, attribute_of = _numbered(traits, attributes.match(traits), MAX_ATTRIBUTE_NAMES)
        self._known: dict[ImageId, KnownBoxes] = {}
        for image_id, boxes in found.items():
            record = dataset.image(image_id)
            # Of an object's attributes the commonest: a region has room for one.
            told = [
                min((attribute_of[name] for name in box.attributes if name in attribute_of), default=-1)
                for box in boxes
            ]
            self._known[image_id] = KnownBoxes(
                xywh_to_xyxy([box.xywh for box in boxes]),
                np.array([object_of.get(box.label, -1) for box in boxes], np.int32),
                np.array(told, np.int32),
                (record.width, record.height) if record.width and record.height else None,
            )
        self.unboxed = [
            record.image_id
            for record in dataset.images()
            if record.path is not None and record.image_id not in self._known
        ]

    def __contains__(self, image_id: ImageId) -> bool:
        return image_id in self._known

    def settings(self) -> dict[str, Any]:
        described: dict[str, Any] = {"feature_size": 0, "attribute_names": []}
        if self._builtin is not None:
            described = {
                "descriptors": self._builtin.settings(),
                "feature_size": self._builtin.feature_size,
                "attribute_names": self._builtin.attribute_names,
            }
        if self.attribute_names:
            described["attribute_names"] = self.attribute_names
        return {
            "extractor": "annotations",
            "object_names": self.object_names,
            "max_regions": self._max_regions,
            **described,
        }

    def extract(
        self, image_id: ImageId, image: NDArray[np.uint8], original_width: int, original_height: int
    ) -> RegionFeatures:
        known = self._known[image_id]
        boxes, rows = self._within(image_id, known, original_width, original_height)
        objects, told = known.objects[rows], known.attributes[rows]
        labels: dict[str, Any] = {
            "object_ids": objects,
            "object_scores": (objects >= 0).astype(np.float32),
        }
        if self.attribute_names:
            labels |= {"attribute_ids": told, "attribute_scores": (told >= 0).astype(np.float32)}
        if self._builtin is None:
            none = np.zeros((len(boxes), 0), np.float32)
            return RegionFeatures(image_id, none, boxes, original_width, original_height, **labels)
        regions = self._builtin.describe(image_id, image, original_width, original_height, boxes)
        return replace(regions, **labels)

    def _within(
        self, image_id: ImageId, known: KnownBoxes, width: int, height: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The boxes cut to the picture, largest first, and their places; scaled where the picture was."""
        boxes = known.boxes
        if known.size is not None and known.size != (width, height):
            across, down = width / known.size[0], height / known.size[1]
            if abs(across / down - 1) > SAME_SHAPE:
                raise DataError(
                    f"image {image_id!r}: its boxes were drawn on {known.size[0]} x {known.size[1]} pixels,"
                    f" the file has {width} x {height}"
                )
            boxes = boxes * np.array([across, down] * 2, np.float32)
        elif known.size is None and (boxes[:, 2:] > BEYOND * np.array([width, height])).any():
            raise DataError(
                f"image {image_id!r}: boxes reach far beyond its {width} x {height} pixels, and nothing tells"
                " the size that they were drawn on (for Visual Genome image_data.json does)"
            )
        boxes = np.clip(np.nan_to_num(boxes), 0, np.array([width, height] * 2, np.float32))
        sides = boxes[:, 2:] - boxes[:, :2]
        rows = np.flatnonzero((sides > 0).all(axis=1))
        if not len(rows):
            raise DataError(f"image {image_id!r}: no annotated box lies within the picture")
        rows = rows[np.argsort(-sides[rows].prod(axis=1), kind="stable")][: self._max_regions]
        return boxes[rows], rows


def _numbered(
    counts: Mapping[str, int], matched: Sequence[str], most: int
) -> tuple[list[str], dict[str, int]]:
    """The commonest names in their order, and the number of each label as it is written in the data."""
    together: Counter[str] = Counter()
    for label, name in zip(counts, matched, strict=True):
        if name:
            together[name] += counts[label]
    names = sorted(together, key=lambda name: (-together[name], name))[:most]
    number = {name: place for place, name in enumerate(names)}
    return names, {label: number[name] for label, name in zip(counts, matched, strict=True) if name in number}


class _Described:
    """A `PictureExtractor` in the place of a detector, for a backbone to give the vectors."""

    def __init__(self, extractor: PictureExtractor) -> None:
        self._extractor = extractor

    def settings(self) -> dict[str, Any]:
        return self._extractor.settings()

    def prepare(self, image_id: ImageId, image: NDArray[np.uint8], width: int, height: int) -> RegionFeatures:
        return self._extractor.extract(image_id, image, width, height)

    def extract(self, pictures: Sequence[RegionFeatures]) -> list[RegionFeatures]:
        return list(pictures)


# ---- making them --------------------------------------------------------------------------------


def batch_extractors(
    model: str | None,
    source: PictureExtractor | None,
    backbone: str | None,
    max_regions: int,
    devices: str,
    backbone_side: int | None = None,
    revisions: tuple[str | None, str | None] = (None, None),
) -> list[BatchExtractor]:
    """A copy for each device of what runs models; one of several ranks takes its own device.

    Args:
        model: Hub id or directory of a detection model; None where `source` has the boxes.
        source: Where the boxes come from without a detector.
        backbone: Hub id or directory of a vision model for the vectors; None takes the detector's.
        max_regions: Regions an image at most.
        devices: As `tbkin_core.runtime.resolve_devices` has it.
        backbone_side: Pixels along a side of the square that the backbone sees; its own when None.
        revisions: Of the detection model and of the backbone.

    Raises:
        MissingDependencyError: A model cannot be loaded.
        ConfigError: A model is of the wrong kind.
    """
    from tbkin_core.features.backbone import Backbone, BackboneExtractor
    from tbkin_core.features.zero_shot import open_detector

    found = resolve_devices(devices)
    places = [f"cuda:{index}" if found.kind == "cuda" else "cpu" for index in found.indices]
    if world_size() > 1:
        places = [str(torch_device(found))]  # the other ranks have the others
    # However a directory was spelt, it is the same model, and a later command may run elsewhere.
    model, backbone = (
        str(Path(name).resolve()) if name and Path(name).is_dir() else name for name in (model, backbone)
    )
    # The hub is asked for a while before a missing network is believed.
    logger.info("loading %s", " and ".join(name for name in (model, backbone) if name))
    made: list[BatchExtractor] = []
    for place in places:
        boxes: BatchExtractor
        if model is not None:
            boxes = open_detector(model, max_regions, place, revisions[0])
        else:
            assert source is not None
            boxes = _Described(source)
        if backbone is not None:
            told = boxes.settings()
            # The built-in extractor knows colours alone.
            ask = not told["attribute_names"] or told["extractor"] == "builtin"
            boxes = BackboneExtractor(
                boxes, Backbone(backbone, place, backbone_side, revisions[1], attributes=ask)
            )
        made.append(boxes)
    return made


def extractor_again(settings: Mapping[str, Any], devices: str) -> BatchExtractor | BuiltinRegions:
    """The extractor that a store's settings tell of.

    Raises:
        ConfigError: It cannot be had again: its boxes were annotated, or its weights are others by now.
        MissingDependencyError: A model cannot be loaded.
    """
    kind, backbone = settings.get("extractor"), settings.get("backbone")
    if kind not in ("builtin", "detector"):
        raise ConfigError(
            f"features of kind {kind!r} cannot be made here for a new image",
            hint="give a store that holds this image with --features DIR",
        )
    most = int(settings["max_regions"])
    source = BuiltinRegions(most) if kind == "builtin" else None
    made: BatchExtractor | BuiltinRegions
    if source is not None and backbone is None:
        made = source
    else:
        made = batch_extractors(
            settings.get("model"),
            source,
            backbone,
            most,
            devices,
            settings.get("backbone_side"),
            (settings.get("revision"), settings.get("backbone_revision")),
        )[0]
    own = made.settings()
    kinds = feature_kind(own), feature_kind(settings)
    changed = sorted(key for key in {*kinds[0], *kinds[1]} if kinds[0].get(key) != kinds[1].get(key))
    weights = {"weights": settings.get("model"), "backbone_weights": backbone}
    for name in (weights[key] for key in weights if key in changed):
        raise ConfigError(
            f"{name}: its weights are not those that made the features of this checkpoint",
            hint="put the model back that was there, or extract the features and fine-tune again",
        )
    if changed:
        raise ConfigError(
            f"the checkpoint was trained on {kind} features of another version ({', '.join(changed)})",
            hint="extract the features and fine-tune again with this version of tbkin",
        )
    return made


# ---- running them -------------------------------------------------------------------------------


class Job(Protocol):
    """One image to be made."""

    @property
    def image_id(self) -> ImageId:
        """Its key."""

    @property
    def source(self) -> Path:
        """Its file."""


AnyJob = TypeVar("AnyJob", bound=Job)


def run_batches(
    extractors: Sequence[BatchExtractor], jobs: Iterable[AnyJob], workers: int = 1, batch_size: int = 8
) -> Iterator[tuple[AnyJob, RegionFeatures | str]]:
    """Each job, in their order, with its regions or why there are none.

    Threads read and prepare images while the models work on those before; batches go to the models in turn,
    each in a thread of its own, so that whoever takes the results has time to write them.

    Args:
        extractors: Copies of one extractor, one a device.
        jobs: Taken as they are needed.
        workers: Threads that read.
        batch_size: Images that a model sees together.

    Raises:
        ConfigError: A device has too little memory for a batch.
    """

    def prepared(number: int, job: AnyJob) -> Any:
        try:
            image, width, height = load_image(job.source, max_side=MAX_SIDE)
            return extractors[number].prepare(job.image_id, image, width, height)
        except TbkinError as error:
            return error.message
        # The processors of transformers raise whatever they like on images that they were not made for.
        except Exception as error:
            return _refused(job, error)

    def extracted(number: int, batch: list[tuple[AnyJob, Any]]) -> list[RegionFeatures | str]:
        if not batch:
            return []
        try:
            return list(extractors[number].extract([picture for _, picture in batch]))
        except TbkinError:
            raise
        except Exception as error:  # of the model's code
            if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported for its name alone
                raise ConfigError(
                    f"the device has too little memory for {len(batch)} images at once",
                    hint="run the same command again with a smaller --batch-size; it goes on",
                ) from error
            if len(batch) == 1:
                return [_refused(batch[0][0], error)]
            return [extracted(number, [item])[0] for item in batch]  # one image must not cost the others

    def worked(number: int, batch: list[tuple[AnyJob, Future[Any]]]) -> list[tuple[AnyJob, Any]]:
        items = [(job, future.result()) for job, future in batch]
        found = iter(extracted(number, [item for item in items if not isinstance(item[1], str)]))
        return [(job, item if isinstance(item, str) else next(found)) for job, item in items]

    readers = ThreadPoolExecutor(max(workers, 1))
    lanes = [ThreadPoolExecutor(1) for _ in extractors]
    running: deque[Future[list[tuple[AnyJob, Any]]]] = deque()
    turns, source = itertools.cycle(range(len(extractors))), iter(jobs)
    try:
        while True:
            # For each model a batch in work, one behind it, and one that is being read.
            while len(running) < 3 * len(lanes) and (batch := list(itertools.islice(source, batch_size))):
                number = next(turns)
                reading = [(job, readers.submit(prepared, number, job)) for job in batch]
                running.append(lanes[number].submit(worked, number, reading))
            if not running:
                return
            yield from running.popleft().result()
    finally:
        for pool in (readers, *lanes):
            pool.shutdown(wait=False, cancel_futures=True)


def _refused(job: Job, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{job.source}: the model cannot take this image ({type(error).__name__}: {reason})"
