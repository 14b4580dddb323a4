"""Runs an extractor over a dataset and fills the feature store; broken images are named and skipped."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.datasets import Dataset
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.builtin import BuiltinExtractor
from tbkin_core.features.images import load_image
from tbkin_core.features.imported import read_bottom_up_npz
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import FeatureStore, FeatureStoreWriter
from tbkin_core.features.tables import feature_rows
from tbkin_core.runtime import one_thread_a_process, progress, resolve_devices, torch_device
from tbkin_core.shards import clear_store

if TYPE_CHECKING:
    from tbkin_core.features.detector import DetectorExtractor, Picture

logger = logging.getLogger("tbkin")

EXTRACTORS = ("auto", "builtin", "import")
_MAX_SIDE = 1024  # pixels; larger images are reduced while they are decoded


@dataclass(slots=True)
class Extraction:
    """What an extraction did.

    Attributes:
        store: The finished store.
        made: Images added now.
        present: Images that were there already.
        problems: One line for each image skipped.
    """

    store: FeatureStore
    made: int
    present: int
    problems: list[str] = field(default_factory=list)


def choose_extractor(dataset: Dataset, extractor: str) -> str:
    """Resolve "auto": import where the dataset holds bottom-up-attention files, else builtin."""
    if extractor == "auto":
        return "import" if dataset.bottom_up_files() or dataset.feature_tables() else "builtin"
    return extractor if extractor in EXTRACTORS else "detector"


def extract_dataset(
    dataset: Dataset,
    out: Path,
    extractor: str = "auto",
    max_regions: int = 36,
    workers: int | None = None,
    overwrite: bool = False,
    devices: str = "auto",
    batch_size: int = 8,
) -> Extraction:
    """Extract or import the region features of every image of a dataset.

    Args:
        dataset: Opened dataset.
        out: Directory of the store; an unfinished store of the same settings is gone on with.
        extractor: "auto", "builtin", "import", or the hub id or directory of a detection model.
        max_regions: Regions an image at most.
        workers: Processes (of a detector: threads that read images); None takes the number of processors, 0
            works in this process.
        overwrite: Remove a store that is there.
        devices: Where a detector runs, as `tbkin_core.runtime.resolve_devices` has it.
        batch_size: Images that a detector sees together.

    Raises:
        DataError: Nothing to extract from, no image could be read, or the disk refuses.
        ConfigError: "import" without files to import, or a model that is no detector.
        MissingDependencyError: The detection model cannot be loaded.
    """
    kind = choose_extractor(dataset, extractor)
    detector: DetectorExtractor | None = None
    if kind == "import":
        first, described = _first_readable(dataset)
        settings: dict[str, Any] = {
            "extractor": "import",
            "format": described,
            "feature_size": int(first.features.shape[1]),
            "max_regions": max_regions,
            "object_names": [],
            "attribute_names": [],
        }
    else:
        records = dataset.images()
        sources: list[tuple[ImageId, Path]] = [
            (record.image_id, record.path) for record in records if record.path is not None
        ]
        if not sources:
            raise DataError(
                f"{dataset.root}: none of its {len(records)} images is on disk",
                hint="put the image files into the directory, or import features made elsewhere",
            )
        if kind == "detector":
            detector = _make_detector(extractor, max_regions, devices)
            settings = detector.settings()
        else:
            settings = builtin_settings(BuiltinExtractor(max_regions=max_regions))
    problems = []
    if overwrite:
        clear_store(out)
    with FeatureStoreWriter(out, settings) as writer:
        results: Iterable[RegionFeatures | str]
        if kind == "import":
            present = len(writer.done)
            total = len(dataset.bottom_up_files()) - present if not dataset.feature_tables() else None
            results = _import_all(dataset, max_regions, frozenset(writer.done))
        else:
            todo = [(image_id, path) for image_id, path in sources if image_id not in writer.done]
            present, total = len(sources) - len(todo), len(todo)
            results = (
                _run(todo, max_regions, workers)
                if detector is None
                else _run_detector(detector, todo, workers, batch_size)
            )
        made = 0
        if present:
            logger.info("%d images are in %s already", present, out)
        for result in progress(results, "regions", total=total, unit="img"):
            if isinstance(result, str):
                problems.append(result)
                continue
            try:
                writer.add(result)
                made += 1
            except DataError as error:
                if result.image_id in writer.done:
                    raise
                problems.append(error.message)
        if not writer.done:
            shown = f"; the first: {problems[0]}" if problems else ""
            raise DataError(f"{dataset.root}: none of {len(problems)} images could be read{shown}")
    return Extraction(FeatureStore(out), made, present, problems)


def builtin_settings(extractor: BuiltinExtractor) -> dict[str, Any]:
    """What the store records of the built-in extractor."""
    return {
        "extractor": "builtin",
        "feature_size": extractor.feature_size,
        "object_names": list(extractor.object_names),
        "attribute_names": list(extractor.attribute_names),
        "max_regions": extractor.max_regions,
        **extractor.settings(),
    }


def extract_one(path: Path, settings: dict[str, Any], devices: str = "auto") -> RegionFeatures:
    """Regions of one image file, as a store's settings say they were made.

    Raises:
        ConfigError: The store's extractor cannot be run on a new image.
        DataError: The image cannot be read.
    """
    if settings.get("extractor") == "detector":
        return _detect_one(path, settings, devices)
    if settings.get("extractor") != "builtin":
        raise ConfigError(
            f"{path}: features of kind {settings.get('extractor')!r} cannot be made here for a new image",
            hint="give a store that holds this image with --features DIR",
        )
    extractor = BuiltinExtractor(max_regions=int(settings["max_regions"]))
    own = builtin_settings(extractor)
    # A checkpoint also records where the features that it was trained on lay.
    made = {key: value for key, value in settings.items() if key != "store"}
    if own != made:
        changed = sorted(key for key in {*own, *made} if own.get(key) != made.get(key))
        raise ConfigError(
            f"the checkpoint was trained on built-in features of another version ({', '.join(changed)})",
            hint="extract the features and fine-tune again with this version of tbkin",
        )
    image, width, height = load_image(path, max_side=_MAX_SIDE)
    return extractor.extract(path.stem, image, width, height)


def _make_detector(model: str, max_regions: int, devices: str) -> DetectorExtractor:
    from tbkin_core.features.detector import DetectorExtractor

    return DetectorExtractor(model, max_regions, torch_device(resolve_devices(devices)))


def _detect_one(path: Path, settings: dict[str, Any], devices: str) -> RegionFeatures:
    detector = _make_detector(settings["model"], int(settings["max_regions"]), devices)
    own = detector.settings()
    if own["weights"] != settings["weights"]:
        raise ConfigError(
            f"{settings['model']}: its weights are not those that made the features of this checkpoint",
            hint="put the model back that was there, or extract the features and fine-tune again",
        )
    image, width, height = load_image(path, max_side=_MAX_SIDE)
    return detector.extract([detector.prepare(path.stem, image, width, height)])[0]


def _run_detector(
    detector: DetectorExtractor, todo: list[tuple[ImageId, Path]], workers: int | None, batch_size: int
) -> Iterator[RegionFeatures | str]:
    """Threads read and prepare images while the model works on those before."""
    count = max(min(os.cpu_count() or 1 if workers is None else workers, len(todo)), 1)

    def prepared(source: tuple[ImageId, Path]) -> Picture | str:
        try:
            return detector.prepare(source[0], *load_image(source[1], max_side=_MAX_SIDE))
        except TbkinError as error:
            return error.message

    with ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[Picture | str]] = deque()
        sources = iter(todo)
        try:
            while True:
                for source in itertools.islice(sources, 3 * batch_size - len(waiting)):
                    waiting.append(pool.submit(prepared, source))
                if not waiting:
                    return
                batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
                pictures = [item for item in batch if not isinstance(item, str)]
                found = iter(detector.extract(pictures))
                for item in batch:
                    yield item if isinstance(item, str) else next(found)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _first_readable(dataset: Dataset) -> tuple[RegionFeatures, str]:
    """An image of the files to import, and what kind of files they are."""
    error: DataError | None = None
    files = dataset.bottom_up_files()
    for image_id, path in files.items():
        try:
            return read_bottom_up_npz(path, image_id), "bottom-up-attention npz"
        except DataError as found:
            error = error or found
    for path in dataset.feature_tables():
        for row in feature_rows(path):
            try:
                return row.read(0), "bottom-up-attention table"
            except DataError as found:
                error = error or found
    if error is None:
        raise ConfigError(
            f"{dataset.root}: no features to import (bottom-up-attention .npz, TSV or HDF5 files)",
            hint="use --extractor builtin",
        )
    raise error


def _import_all(
    dataset: Dataset, max_regions: int, done: frozenset[ImageId]
) -> Iterator[RegionFeatures | str]:
    """Every image of the files to import that is not in `done`, one at a time; its first row counts."""
    seen = set(done)
    for image_id, path in dataset.bottom_up_files().items():
        if image_id not in done:
            seen.add(image_id)
            yield _import_one(partial(read_bottom_up_npz, path), image_id, max_regions)
    for path in dataset.feature_tables():
        own: set[ImageId] = set()
        for row in feature_rows(path):
            key = dataset.key_of(row.name)
            if key in own:
                yield f"{row.where}: is a second row of its image (skipped)"
            elif key not in seen:
                yield _import_one(row.read, key, max_regions)
            own.add(key)
            seen.add(key)


def _run(
    todo: list[tuple[ImageId, Path]], max_regions: int, workers: int | None
) -> Iterable[RegionFeatures | str]:
    count = min(os.cpu_count() or 1 if workers is None else workers, len(todo))
    if count <= 1:
        extractor = BuiltinExtractor(max_regions=max_regions)
        return (_extract_or_reason(extractor, image_id, path) for image_id, path in todo)
    return _run_workers(todo, max_regions, count)


def _run_workers(
    todo: list[tuple[ImageId, Path]], max_regions: int, count: int
) -> Iterator[RegionFeatures | str]:
    executor = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(max_regions,),
    )
    try:
        # In order, so that the store does not depend on which worker is faster.
        with one_thread_a_process():
            results = executor.map(_worker_extract, todo, chunksize=4)
        yield from results
    except BrokenProcessPool as error:
        raise DataError(
            "extract-features: a worker process has ended unexpectedly, perhaps for want of memory",
            hint="run the same command again, it goes on; --workers 0 needs no other processes",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_extractor: BuiltinExtractor | None = None


def _start_worker(max_regions: int) -> None:
    global _extractor
    # Ctrl-C reaches every process of the terminal; the main one decides what is kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _extractor = BuiltinExtractor(max_regions=max_regions)


def _worker_extract(source: tuple[ImageId, Path]) -> RegionFeatures | str:
    assert _extractor is not None
    return _extract_or_reason(_extractor, *source)


def _extract_or_reason(extractor: BuiltinExtractor, image_id: ImageId, path: Path) -> RegionFeatures | str:
    try:
        image, width, height = load_image(path, max_side=_MAX_SIDE)
        return extractor.extract(image_id, image, width, height)
    except TbkinError as error:
        return error.message


def _import_one(
    read: Callable[[ImageId], RegionFeatures], image_id: ImageId, max_regions: int
) -> RegionFeatures | str:
    try:
        regions = read(image_id)
    except DataError as error:
        return error.message
    return RegionFeatures(
        regions.image_id,
        regions.features[:max_regions],
        regions.boxes[:max_regions],
        regions.image_width,
        regions.image_height,
        regions.object_ids[:max_regions],
        regions.object_scores[:max_regions],
        regions.attribute_ids[:max_regions],
        regions.attribute_scores[:max_regions],
    )
