"""Runs an extractor over a dataset and fills the feature store; broken images are named and skipped."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tbkin_core.datasets import Dataset
from tbkin_core.datasets.records import ImageRecord
from tbkin_core.errors import DataError, TbkinError
from tbkin_core.features.extractors.base import Extractor, Job, Request, run_batches
from tbkin_core.features.extractors.opening import OpenExtractor, open_extractor
from tbkin_core.features.pictures import is_turned
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FEATURES, FeatureStore
from tbkin_core.features.writing import FeatureStoreWriter
from tbkin_core.support.console import progress
from tbkin_core.support.interruption import held_back
from tbkin_core.support.shards import Manifest, share_of_store, store_place_held
from tbkin_core.support.workers import WorkerPool, processors

logger = logging.getLogger("tbkin")


def _settings_there(out: Path) -> dict[str, Any] | None:
    """Settings of the store in a directory; None where there is none, or what is there is damaged."""
    try:
        return Manifest.read(out).settings
    except DataError:
        return None  # the writer says what is wrong with it


@dataclass
class Extraction:
    """What an extraction did."""

    path: Path  # directory of the store
    made: int = 0  # images added now
    present: int = 0  # images that were there already
    skipped: int = 0  # images left out
    # One line for each of them, or for all that were left out for one reason.
    problems: list[str] = field(default_factory=list)
    missing: int = 0  # shards that other processes of this run have yet to write

    @cached_property
    def store(self) -> FeatureStore:
        """The finished store."""
        return FeatureStore(self.path)


_Made = Generator[tuple[Job, "RegionFeatures | str"], None, None]


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
    stack: contextlib.ExitStack | None = None,
    images: Sequence[ImageRecord] | None = None,
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
        max_regions, devices, backbone, backbone_side, images: As for `Request`.
        workers: Processes (where a model works: threads that read images); None takes the number of
            processors, 0 works in this process.
        overwrite: Replace a store that is there, when the new one is whole.
        batch_size: Images that a model sees together.
        stack: As for `store_place_held`.

    Raises:
        DataError: Nothing to extract from, no image could be read, or the disk refuses.
        ConfigError: "import" without files to import, "annotations" without boxes, a model of the wrong kind,
            the environment gives no proper share of the run, or `overwrite` in a shared run.
        MissingDependencyError: A model cannot be loaded.
    """
    rank, world = share_of_store(out, overwrite)
    request = Request(
        dataset=dataset,
        max_regions=max_regions,
        devices=devices,
        backbone=backbone,
        backbone_side=backbone_side,
        begun=None if overwrite else _settings_there(out),
        images=images,
    )
    opened = open_extractor(extractor, request)
    settings = opened.settings()
    with store_place_held(out, FEATURES, settings, overwrite, world == 1, stack) as place:
        writer = FeatureStoreWriter(place, settings)
        share = _Share(
            writer, opened, rank, world, has_boxes=bool(dataset.boxes() or dataset.expression_sets())
        )
        if writer.done:
            logger.info("%d images are in %s already", len(writer.done), out)
        if world > 1:
            logger.info("rank %d of %d", rank, world)
        files = opened.files
        total = sum(image_id not in writer.done for image_id, _ in files) // world if files else None
        count = max(min(processors() if workers is None else workers, total or 0), 1)
        if isinstance(opened.extractor, Extractor):
            results: _Made = _run(opened.extractor, share.jobs(), count)
        else:
            results = run_batches(opened.extractor, share.jobs(), count, batch_size)
        with _kept(writer), contextlib.closing(results):
            extraction = share.fill(progress(results, "regions", total=total, unit="img"))
        if not extraction.missing and not writer.done:
            writer.remove()  # it tells of failures alone
            raise _none_read(dataset, extraction)
        if not extraction.missing:
            writer.finish()
        extraction.path = out
        return extraction


def _none_read(dataset: Dataset, extraction: Extraction) -> DataError:
    shown = f"; the first: {extraction.problems[0]}" if extraction.problems else ""
    return DataError(
        f"{dataset.path}: none of {extraction.skipped} images could be read{shown}",
        hint="take the files from where they came from again",
    )


@contextlib.contextmanager
def _kept(writer: FeatureStoreWriter) -> Iterator[None]:
    """Whatever ends the block, what is collected of a shard is kept: it may have taken minutes."""
    try:
        yield
    except BaseException:
        with held_back(), contextlib.suppress(TbkinError):
            if kept := writer.keep():
                logger.info("%d images are kept in %s", kept, writer.path)
        raise


class _Share:
    """This process's share of what a store lacks: the jobs, and the store filled with their results.

    Args:
        writer: Of the store.
        opened: The extractor with its images.
        rank, world: Which of how many processes this one is; the first alone notes what all of them see.
        has_boxes: Whether the dataset has boxes that were drawn on its pictures.
    """

    def __init__(
        self, writer: FeatureStoreWriter, opened: OpenExtractor, rank: int, world: int, has_boxes: bool
    ) -> None:
        self._writer, self._opened, self._has_boxes = writer, opened, has_boxes
        self._rank, self._world = rank, world
        self._extraction = Extraction(writer.path)
        if opened.omitted and rank == 0:
            count = self._extraction.skipped = len(opened.omitted)
            some = ", ".join([*map(str, opened.omitted[:5]), *(["..."] if count > 5 else [])])
            self._extraction.problems.append(f"{count} images {opened.omitted_because}: {some} (skipped)")
        self._known, self._failed = frozenset(writer.done), frozenset(writer.failed)
        self._numbers: set[int] = set()  # shards of all ranks

    def jobs(self) -> Iterator[Job]:
        """The images to make, in the order of their shards; those that failed before come last."""
        for item in self._opened.sources():
            if isinstance(item, str):
                self._extraction.problems += [item] if self._rank == 0 else []
                continue
            image_id, source = item
            if image_id in self._known:
                self._extraction.present += 1
                made_of = self._writer.files.get(image_id, "")
                if made_of and isinstance(source, Path) and source.name != made_of and self._rank == 0:
                    self._extraction.problems.append(
                        f"image {image_id!r}: its features were made of {made_of}, the file of this id is"
                        f" now {source.name}; --overwrite makes all features anew"
                    )
            elif image_id not in self._failed:
                number = self._writer.place()
                self._numbers.add(number)
                if self._is_own(number):
                    yield Job(image_id, source, number)
        if self._failed and self._rank == 0:
            for item in self._opened.sources():
                if not isinstance(item, str) and item[0] in self._failed:
                    yield Job(*item, None)

    def _is_own(self, number: int) -> bool:
        return number % self._world == self._rank

    def fill(self, results: Iterable[tuple[Job, RegionFeatures | str]]) -> Extraction:
        """Write the results of the jobs to the store, in their order; a text says why there is none."""
        writer, extraction, retrying = self._writer, self._extraction, False
        cut: dict[bool, list[int]] = {True: [], False: []}
        guessed: list[str] = []
        turned: list[str] = []
        noted: dict[str, list[str]] = {}
        for job, result in results:
            if job.number is None and not retrying:
                retrying = True
                writer.turn(self._is_own)
            problem = result if isinstance(result, str) else self._added(result, job)
            if not problem:
                extraction.made += 1
                if isinstance(result, RegionFeatures):
                    cut[bool(len(result.object_scores))] += [result.left_out] if result.left_out else []
                    guessed += [str(job.image_id)] if result.size_guessed else []
                    for note in result.notes:
                        noted.setdefault(note, []).append(str(job.image_id))
                if self._has_boxes and isinstance(job.source, Path) and is_turned(job.source):
                    turned.append(job.source.name)
                continue
            extraction.problems.append(problem)
            extraction.skipped += 1
            if job.number is not None:
                writer.skip(job.image_id, job.number)
        writer.turn(self._is_own)
        if turned:
            extraction.problems.append(
                f"{len(turned)} pictures, such as {turned[0]}, are turned by their EXIF tag: boxes are taken"
                " to be drawn on them as they are shown; remove the tag where they were drawn on the pixels"
                " as these lie"
            )
        if guessed:
            extraction.problems.append(
                f"{len(guessed)} images, such as {guessed[0]}: nothing tells their width and height, which"
                " are taken to be where the last box ends; put their pictures, or VinVL's hw.tsv, beside them"
            )
        extraction.problems += [f"{len(ids)} images, such as {ids[0]}: {note}" for note, ids in noted.items()]
        for scored, counts in cut.items():
            if counts:
                which = "those of the highest confidence" if scored else "the first (there is no confidence)"
                extraction.problems.append(
                    f"{len(counts)} images have more regions than --max-regions: {which} are kept,"
                    f" {sum(counts)} are left out"
                )
        extraction.missing = writer.missing(self._numbers)
        return extraction

    def _added(self, regions: RegionFeatures, job: Job) -> str:
        """Add an image to the store; what is wrong with it, "" if nothing is."""
        try:
            self._writer.add(regions, job.number, job.source.name if isinstance(job.source, Path) else "")
        except DataError as error:
            if regions.image_id in self._writer.done:  # then the disk refuses
                raise
            return error.message
        return ""


def _run(extractor: Extractor, jobs: Iterator[Job], count: int) -> _Made:
    with WorkerPool(partial(_given, extractor), count, "extract-features") as pool:
        yield from pool.map(_extract_or_reason, jobs, ahead=8)


def _given(extractor: Extractor) -> Extractor:
    """What a process works with: the extractor itself, sent to it once and not with every image."""
    return extractor


def _extract_or_reason(extractor: Extractor, job: Job) -> RegionFeatures | str:
    try:
        return extractor.regions(job.image_id, job.source)
    except TbkinError as error:
        return error.message
