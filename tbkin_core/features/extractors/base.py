"""What an extractor is, what it is opened with, and how one that runs models works through many images.

An extractor either works on one image at a time, on processors (`PictureExtractor`), or runs models on
batches, one copy per device (`BatchExtractor`), or reads what other programs extracted (`FeatureReader`).
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tbkin_core.datasets import Dataset
from tbkin_core.datasets.records import ImageRecord
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.pictures import ImageBytes, load_image
from tbkin_core.features.regions import ImageId, Pixels, RegionFeatures
from tbkin_core.support.devices import resolve_devices, torch_device
from tbkin_core.support.ranks import world_size

logger = logging.getLogger("tbkin")

MAX_SIDE = 1024  # pixels; larger images are reduced while they are decoded


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an extractor is opened with; each one takes what concerns it."""

    dataset: Dataset | None  # whose images it works on; None where any image file may come
    max_regions: int = 36  # regions per image at most
    devices: str = "auto"  # where models run, as `tbkin_core.support.devices.resolve_devices` has it
    model: str | None = None  # hub id or directory of the detection model
    revision: str | None = None  # of the hub's detection model; the newest when None
    backbone: str | None = None  # hub id or directory of a vision model whose maps give the vectors
    backbone_side: int | None = None  # pixels along a side of the square that it sees; its own when None
    backbone_revision: str | None = None  # of the hub's backbone
    begun: Mapping[str, Any] | None = None  # settings of the store that it goes on with; None for a new one
    images: Sequence[ImageRecord] | None = None  # those to take, by keys of their own; None for the dataset's

    def needed_dataset(self) -> Dataset:
        """The dataset; ConfigError where the request is for images of none."""
        if self.dataset is None:
            raise ConfigError("this extractor works on the images of a dataset alone")
        return self.dataset

    @cached_property
    def places(self) -> list[str]:
        """The device of each copy of the models; whoever asks first says which models are loaded.

        One of several ranks takes its own device, for the other ranks have the others.
        """
        found = resolve_devices(self.devices)
        places = [f"cuda:{index}" if found.kind == "cuda" else "cpu" for index in found.indices]
        if world_size() > 1:
            places = [str(torch_device(found))]
        # The hub is asked for a while before a missing network is believed.
        logger.info("loading %s", " and ".join(name for name in (self.model, self.backbone) if name))
        return places


class Extractor(ABC):
    """Makes the regions of one source at a time.

    Attributes:
        omitted: Images of the dataset for which it has no regions.
        omitted_because: What is said of them: "have no annotated boxes".
    """

    omitted: Sequence[ImageId] = ()
    omitted_because: str = ""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the store records, so that a new image can be treated alike.

        Holds at least `extractor` (its name in the registry), `feature_size`, `object_names`,
        `attribute_names` and `max_regions`; JSON values alone.
        """

    @abstractmethod
    def regions(self, image_id: ImageId, source: Any) -> RegionFeatures:
        """The regions of one source, a file where nothing else is said.

        Raises:
            DataError: It cannot be read, or has none.
        """


class PictureExtractor(Extractor):
    """Works on one image at a time; can be sent to another process."""

    @abstractmethod
    def extract(self, image_id: ImageId, image: Pixels, width: int, height: int) -> RegionFeatures:
        """The regions of an RGB image (H, W, 3), perhaps reduced, of a file of `width` x `height` pixels."""

    def regions(self, image_id: ImageId, source: Path | ImageBytes) -> RegionFeatures:
        return self.extract(image_id, *load_image(source, max_side=MAX_SIDE))


class FeatureReader(Extractor):
    """Reads features that other programs extracted."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[ImageId, Any] | str]:
        """Every image with what `regions` reads it from; strings say what is wrong between them."""


class BatchExtractor(Protocol):
    """Prepares images one at a time, in any thread, and takes them in batches, in one thread."""

    def settings(self) -> dict[str, Any]:
        """As `Extractor.settings`."""

    def prepare(self, image_id: ImageId, image: Pixels, width: int, height: int) -> Any:
        """An RGB image (H, W, 3) of a file of `width` x `height` pixels, ready for `extract`."""

    def extract(self, pictures: Sequence[Any]) -> list[RegionFeatures]:
        """The regions of each."""


AnyExtractor = PictureExtractor | FeatureReader | Sequence[BatchExtractor]
"""An extractor that is open; of one that runs models a copy per device."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image to be made."""

    image_id: ImageId  # its key
    source: Any  # its file; of a feature to import, what reads it
    # Its shard; None for one that goes to no store, or failed before and takes a place only where it now
    # succeeds.
    number: int | None = None


def run_batches(
    extractors: Sequence[BatchExtractor], jobs: Iterable[Job], workers: int = 1, batch_size: int = 8
) -> Generator[tuple[Job, RegionFeatures | str], None, None]:
    """Each job, in their order, with its regions or why there are none.

    Threads read and prepare images while the models work on those before; batches go to the models in turn,
    each in a thread of its own, so that whoever takes the results has time to write them.

    Args:
        extractors: Copies of one extractor, one per device.
        jobs: Taken as they are needed.
        workers: Threads that read.
        batch_size: Images that a model sees together.

    Raises:
        ConfigError: A device has too little memory for a batch.
    """

    def prepared(number: int, job: Job) -> Any:
        try:
            image, width, height = load_image(job.source, max_side=MAX_SIDE)
            return extractors[number].prepare(job.image_id, image, width, height)
        except TbkinError as error:
            return error.message
        # The processors of transformers raise whatever they like on images that they were not made for.
        except Exception as error:
            return _refused(job, error)

    def extracted(number: int, batch: list[tuple[Job, Any]]) -> list[RegionFeatures | str]:
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

    def worked(number: int, batch: list[tuple[Job, Future[Any]]]) -> list[tuple[Job, Any]]:
        items = [(job, future.result()) for job, future in batch]
        found = iter(extracted(number, [item for item in items if not isinstance(item[1], str)]))
        return [(job, item if isinstance(item, str) else next(found)) for job, item in items]

    readers = ThreadPoolExecutor(max(workers, 1))
    lanes = [ThreadPoolExecutor(1) for _ in extractors]
    running: deque[Future[list[tuple[Job, Any]]]] = deque()
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


def regions_of_file(extractor: Extractor | BatchExtractor, path: Path | ImageBytes) -> RegionFeatures:
    """The regions of one image file; an extractor that is open serves for several.

    Raises:
        DataError: The image cannot be read.
        ConfigError: A device has too little memory.
    """
    if isinstance(extractor, Extractor):
        return extractor.regions(path.stem, path)
    ((_, result),) = run_batches([extractor], [Job(path.stem, path)])
    if isinstance(result, str):
        raise DataError(result)
    return result
