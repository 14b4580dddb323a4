"""Runs an extractor over a dataset and fills the feature store; broken images are named and skipped."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets import Dataset
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.extractors import (
    DEFAULT_DETECTOR,
    MAX_SIDE,
    AnnotatedRegions,
    BatchExtractor,
    BuiltinRegions,
    PictureExtractor,
    batch_extractors,
    extractor_again,
    run_batches,
)
from tbkin_core.features.imported import read_bottom_up_npz
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import FEATURES, FeatureStore, FeatureStoreWriter
from tbkin_core.features.tables import feature_rows
from tbkin_core.settings import EXTRACTORS
from tbkin_core.support.console import progress
from tbkin_core.support.shards import replaced_store, share_of_store
from tbkin_core.support.workers import WorkerPool, processors

logger = logging.getLogger("tbkin")

_ROWS_LOOKED_AT = 16  # of files to import, for the size of their features


@dataclass
class Extraction:
    """What an extraction did.

    Attributes:
        path: Directory of the store.
        made: Images added now.
        present: Images that were there already.
        skipped: Images left out.
        problems: One line for each of them, or for all that were left out for one reason.
        missing: Shards that other processes of this run have yet to write.
    """

    path: Path
    made: int
    present: int
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    missing: int = 0

    @cached_property
    def store(self) -> FeatureStore:
        """The finished store."""
        return FeatureStore(self.path)


@dataclass(frozen=True, slots=True)
class _Job:
    """One image to be made.

    Attributes:
        image_id: Its key.
        source: Its file; of a feature to import, what reads it.
        number: Its shard; None for one that failed before and takes a place only where it now succeeds.
    """

    image_id: ImageId
    source: Any
    number: int | None


_Made = Iterator[tuple[_Job, "RegionFeatures | str"]]


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
    backbone: str | None = None,
    backbone_side: int | None = None,
) -> Extraction:
    """Extract or import the region features of every image of a dataset.

    The images that the store does not speak of are cut into shards by their order, see `FeatureStoreWriter`.
    Several processes or machines may run this at once on one `out`, each with its own RANK and WORLD_SIZE
    (`share_of_run`): rank r makes the shards whose number leaves r when divided by the number of ranks.
    Whichever finishes last completes the store. An image that cannot be read is named, its shard is complete
    without it, and the next run tries it again.

    Args:
        dataset: Opened dataset.
        out: Directory of the store; an unfinished store of the same settings is gone on with.
        extractor: "auto", "builtin", "annotations", "import", "detector", or the hub id or directory of a
            detection model.
        max_regions: Regions per image at most.
        workers: Processes (where a model works: threads that read images); None takes the number of
            processors, 0 works in this process.
        overwrite: Remove a store that is there.
        devices: Where models run, as `tbkin_core.runtime.resolve_devices` has it.
        batch_size: Images that a model sees together.
        backbone: Hub id or directory of a vision model whose maps give the vectors.
        backbone_side: Pixels along a side of the square that it sees; its own when None.

    Raises:
        DataError: Nothing to extract from, no image could be read, or the disk refuses.
        ConfigError: "import" without files to import, "annotations" without boxes, a model of the wrong kind,
            the environment gives no proper share of the run, or `overwrite` in a shared run.
        MissingDependencyError: A model cannot be loaded.
    """
    rank, world = share_of_store(out, overwrite)
    kind = choose_extractor(dataset, extractor)
    if extractor == "auto" and backbone is not None:
        kind = "builtin"  # what could be imported has vectors already
    problems: list[str] = []
    skipped = 0
    made_by: PictureExtractor | list[BatchExtractor] | None = None
    files: list[tuple[ImageId, Path]] = []
    if kind == "import":
        size, described = _importable(dataset)
        settings: dict[str, Any] = {
            "extractor": "import",
            "format": described,
            "feature_size": size,
            "max_regions": max_regions,
            "object_names": [],
            "attribute_names": [],
        }
    else:
        records = dataset.images()
        files = [(record.image_id, record.path) for record in records if record.path is not None]
        if not files:
            raise DataError(
                f"{dataset.root}: none of its {len(records)} images is on disk",
                hint="put the image files into the directory, or import features made elsewhere",
            )
        if kind == "detector":
            model = DEFAULT_DETECTOR if extractor == "detector" else extractor
            made_by = batch_extractors(model, None, backbone, max_regions, devices, backbone_side)
        elif kind == "annotations":
            made_by = annotated = AnnotatedRegions(dataset, max_regions, describe=backbone is None)
            if annotated.unboxed and rank == 0:
                skipped = len(annotated.unboxed)
                problems.append(
                    f"{skipped} images have no annotated boxes: {_some(annotated.unboxed)} (skipped)"
                )
            files = [file for file in files if file[0] in annotated]
        else:
            made_by = BuiltinRegions(max_regions)
        if backbone is not None and not isinstance(made_by, list):
            made_by = batch_extractors(None, made_by, backbone, max_regions, devices, backbone_side)
        settings = (made_by[0] if isinstance(made_by, list) else made_by).settings()
    with replaced_store(out, FEATURES) if overwrite else contextlib.nullcontext():
        writer = FeatureStoreWriter(out, settings, alone=world == 1)
        sources = partial(_rows_to_import, dataset) if kind == "import" else lambda _: files
        share = _Share(writer, sources, rank, world, problems, skipped)
        if writer.done:
            logger.info("%d images are in %s already", len(writer.done), out)
        if world > 1:
            logger.info("rank %d of %d", rank, world)
        total = sum(image_id not in writer.done for image_id, _ in files) // world if files else None
        count = _workers(workers, total or 0)
        if made_by is None:
            results: _Made = ((job, _import_one(job, max_regions)) for job in share.jobs())
        elif isinstance(made_by, list):
            results = run_batches(made_by, share.jobs(), count, batch_size)
        else:
            results = _run(made_by, share.jobs(), count)
        extraction = share.fill(progress(results, "regions", total=total, unit="img"))
        if not extraction.missing and not writer.done:
            for empty in out.glob("shard-*.safetensors"):
                empty.unlink()  # it tells of failures alone
            shown = f"; the first: {problems[0]}" if problems else ""
            raise DataError(f"{dataset.root}: none of {extraction.skipped} images could be read{shown}")
        if not extraction.missing:
            writer.finish()
        return extraction


class _Share:
    """This process's share of what a store lacks: the jobs, and the store filled with their results.

    Args:
        writer: Of the store.
        sources: Every image of the dataset with what it is made of, in order; notes in the list that it is
            given what is wrong with the files as a whole.
        rank, world: Which of how many processes this one is; the first alone notes what all of them see.
        problems: Notes so far, which grow.
        skipped: Images left out so far.
    """

    def __init__(
        self,
        writer: FeatureStoreWriter,
        sources: Callable[[list[str]], Iterable[tuple[ImageId, Any]]],
        rank: int,
        world: int,
        problems: list[str],
        skipped: int,
    ) -> None:
        self._writer = writer
        self._sources = sources
        self._rank, self._world = rank, world
        self._problems = problems
        self._skipped = skipped
        self._present = 0
        self._known, self._failed = frozenset(writer.done), frozenset(writer.failed)
        self._numbers: dict[int, None] = {}  # shards of all ranks

    def jobs(self) -> Iterator[_Job]:
        """The images to make, in the order of their shards; those that failed before come last."""
        for image_id, source in self._sources(self._problems if self._rank == 0 else []):
            if image_id in self._known:
                self._present += 1
                self._note_another_file(image_id, source)
            elif image_id not in self._failed:
                number = self._writer.place()
                self._numbers[number] = None
                if number % self._world == self._rank:
                    yield _Job(image_id, source, number)
        if self._failed and self._rank == 0:
            for image_id, source in self._sources([]):  # what is wrong with the files has been noted
                if image_id in self._failed:
                    yield _Job(image_id, source, None)

    def _note_another_file(self, image_id: ImageId, source: Any) -> None:
        made_of = self._writer.files.get(image_id, "")
        if made_of and isinstance(source, Path) and source.name != made_of and self._rank == 0:
            self._problems.append(
                f"image {image_id!r}: its features were made of {made_of}, the file of this id is"
                f" now {source.name}; --overwrite makes all features anew"
            )

    def fill(self, results: Iterable[tuple[_Job, RegionFeatures | str]]) -> Extraction:
        """Write the results of the jobs to the store, in their order; a text says why there is none."""
        writer, made, retrying = self._writer, 0, False
        for job, result in results:
            if job.number is None and not retrying:
                retrying = True
                writer.turn()
            problem = result if isinstance(result, str) else self._added(result, job)
            if not problem:
                made += 1
                continue
            self._problems.append(problem)
            self._skipped += 1
            if job.number is not None:
                writer.skip(job.image_id, job.number)
        writer.flush()
        missing = writer.missing(self._numbers)
        return Extraction(writer.path, made, self._present, self._skipped, self._problems, missing)

    def _added(self, regions: RegionFeatures, job: _Job) -> str:
        """Add an image to the store; what is wrong with it, "" if nothing is."""
        try:
            self._writer.add(regions, job.number, job.source.name if isinstance(job.source, Path) else "")
        except DataError as error:
            if regions.image_id in self._writer.done:  # then the disk refuses
                raise
            return error.message
        return ""


def extract_one(path: Path, settings: dict[str, Any], devices: str = "auto") -> RegionFeatures:
    """Regions of one image file, as a store's settings say they were made.

    Raises:
        ConfigError: The store's extractor cannot be run on a new image.
        MissingDependencyError: Its model cannot be loaded.
        DataError: The image cannot be read.
    """
    return regions_with(extractor_again(settings, devices), path)


def regions_with(extractor: BatchExtractor | BuiltinRegions, path: Path) -> RegionFeatures:
    """Regions of one image file; an extractor that is loaded already serves for several.

    Raises:
        DataError: The image cannot be read.
    """
    if isinstance(extractor, BuiltinRegions):
        return extractor.extract(path.stem, *load_image(path, max_side=MAX_SIDE))
    ((_, result),) = run_batches([extractor], [_Job(path.stem, path, None)])
    if isinstance(result, str):
        raise DataError(result)
    return result


def _some(image_ids: list[ImageId], count: int = 5) -> str:
    shown = ", ".join(str(image_id) for image_id in image_ids[:count])
    return shown if len(image_ids) <= count else f"{shown}, ..."


def _workers(workers: int | None, total: int) -> int:
    return max(min(processors() if workers is None else workers, total), 1)


def _importable(dataset: Dataset) -> tuple[int, str]:
    """Size of the features that most of the first rows to import have, and what kind of files they are in."""
    error: DataError | None = None
    npz = (partial(read_bottom_up_npz, path, name) for name, path in dataset.bottom_up_files().items())
    rows = (partial(row.read, 0) for path in dataset.feature_tables() for row in feature_rows(path))
    for described, readers in (("bottom-up-attention npz", npz), ("bottom-up-attention table", rows)):
        sizes: Counter[int] = Counter()
        for read in readers:
            try:
                sizes[int(read().features.shape[1])] += 1
            except DataError as found:
                error = error or found
            if sizes.total() == _ROWS_LOOKED_AT:
                break
        if sizes:
            return sizes.most_common(1)[0][0], described
    if error is None:
        raise ConfigError(
            f"{dataset.root}: no features to import (bottom-up-attention .npz, TSV or HDF5 files)",
            hint="use --extractor builtin",
        )
    raise error


def _rows_to_import(
    dataset: Dataset, problems: list[str]
) -> Iterator[tuple[ImageId, Callable[[ImageId], RegionFeatures]]]:
    """Every image of the files to import, one at a time; the first file and row of an image counts."""
    seen: set[ImageId] = set()
    for image_id, path in dataset.bottom_up_files().items():
        seen.add(image_id)
        yield image_id, partial(read_bottom_up_npz, path)
    for path in dataset.feature_tables():
        own: set[ImageId] = set()
        for row in feature_rows(path):
            key = dataset.key_of(row.name)
            if key in own:
                problems.append(f"{row.where}: is a second row of its image (skipped)")
            elif key not in seen:
                yield key, row.read
            own.add(key)
            seen.add(key)


def _run(extractor: PictureExtractor, jobs: Iterator[_Job], count: int) -> _Made:
    with WorkerPool(partial(_given, extractor), count, "extract-features") as pool:
        yield from pool.map(_extract_or_reason, jobs, ahead=8)


def _given(extractor: PictureExtractor) -> PictureExtractor:
    """What a process works with: the extractor itself, sent to it once and not with every image."""
    return extractor


def _extract_or_reason(extractor: PictureExtractor, job: _Job) -> RegionFeatures | str:
    try:
        image, width, height = load_image(job.source, max_side=MAX_SIDE)
        return extractor.extract(job.image_id, image, width, height)
    except TbkinError as error:
        return error.message


def _import_one(job: _Job, max_regions: int) -> RegionFeatures | str:
    try:
        regions = job.source(job.image_id)
    except DataError as error:
        return error.message
    size = np.array([regions.image_width, regions.image_height] * 2, np.float32)
    boxes = np.clip(np.asarray(regions.boxes, np.float32), 0, size)
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))[:max_regions]
    if not len(kept):
        return f"image {job.image_id!r}: none of its boxes lies within its {size[0]:g} x {size[1]:g} pixels"

    def chosen(values: NDArray) -> NDArray:
        return values[kept] if len(values) else values

    return RegionFeatures(
        regions.image_id,
        regions.features[kept],
        boxes[kept],
        regions.image_width,
        regions.image_height,
        chosen(regions.object_ids),
        chosen(regions.object_scores),
        chosen(regions.attribute_ids),
        chosen(regions.attribute_scores),
    )
