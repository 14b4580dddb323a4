"""Runs an extractor over a dataset and fills the feature store; broken images are named and skipped."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tbkin_core.datasets import Dataset
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.extractors.base import Extractor, run_batches
from tbkin_core.features.extractors.opening import open_extractor
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import FeatureStore, FeatureStoreWriter
from tbkin_core.support.console import progress
from tbkin_core.support.ranks import share_of_run
from tbkin_core.support.shards import replaced_store
from tbkin_core.support.workers import one_thread_a_process, processors, serve_parent

logger = logging.getLogger("tbkin")

Result = TypeVar("Result")


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
        extractor: One of `tbkin_core.features.extractors.EXTRACTOR_NAMES`, or the hub id or directory of a
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
    rank, world = share_of_run()
    if overwrite and world > 1:
        raise ConfigError(
            f"overwrite: {world} processes share this run, and one might remove what another has made",
            hint=f"remove {out} first, or choose another place with --out DIR",
        )
    opened = open_extractor(dataset, extractor, max_regions, devices, backbone, backbone_side)
    problems: list[str] = []
    skipped = 0
    if opened.omitted and rank == 0:
        skipped = len(opened.omitted)
        problems.append(f"{skipped} images {opened.omitted_because}: {_some(opened.omitted)} (skipped)")
    with replaced_store(out, "features") if overwrite else contextlib.nullcontext():
        writer = FeatureStoreWriter(out, opened.settings(), alone=world == 1)
        known, failed = frozenset(writer.done), frozenset(writer.failed)
        numbers: dict[int, None] = {}
        present = 0

        def jobs() -> Iterator[_Job]:
            nonlocal present
            for item in opened.sources():
                if isinstance(item, str):
                    if rank == 0:
                        problems.append(item)
                    continue
                image_id, source = item
                if image_id in known:
                    present += 1
                    made_of = writer.files.get(image_id, "")
                    if made_of and isinstance(source, Path) and source.name != made_of and rank == 0:
                        problems.append(
                            f"image {image_id!r}: its features were made of {made_of}, the file of this id is"
                            f" {source.name} by now; --overwrite makes all anew"
                        )
                elif image_id not in failed:
                    number = writer.place()
                    numbers[number] = None
                    if number % world == rank:
                        yield _Job(image_id, source, number)
            if failed and rank == 0:
                for item in opened.sources():  # what is wrong with the files was said before
                    if not isinstance(item, str) and item[0] in failed:
                        yield _Job(*item, None)

        made = 0
        if known:
            logger.info("%d images are in %s already", len(known), out)
        if world > 1:
            logger.info("rank %d of %d", rank, world)
        total = sum(image_id not in known for image_id, _ in opened.files) // world if opened.files else None
        if isinstance(opened.extractor, Extractor):
            results: _Made = _run(opened.extractor, jobs(), total or 0, workers)
        else:
            results = run_batches(opened.extractor, jobs(), _workers(workers, total or 0), batch_size)
        again = False
        for job, result in progress(results, "regions", total=total, unit="img"):
            if job.number is None and not again:
                again = True
                writer.turn()
            problem = result if isinstance(result, str) else _added(writer, result, job)
            if not problem:
                made += 1
                continue
            problems.append(problem)
            skipped += 1
            if rank:
                logger.warning("%s", problem)  # the first rank alone reports at the end
            if job.number is not None:
                writer.skip(job.image_id, job.number)
        writer.flush()
        missing = writer.missing(numbers)
        if missing:
            return Extraction(out, made, present, skipped, problems, missing)
        if not writer.done:
            for empty in out.glob("shard-*.safetensors"):
                empty.unlink()  # it tells of failures alone
            shown = f"; the first: {problems[0]}" if problems else ""
            raise DataError(f"{dataset.root}: none of {skipped} images could be read{shown}")
        writer.finish()
        return Extraction(out, made, present, skipped, problems)


def _added(writer: FeatureStoreWriter, regions: RegionFeatures, job: _Job) -> str:
    """Add an image to the store; what is wrong with it, "" if nothing is."""
    try:
        writer.add(regions, job.number, job.source.name if isinstance(job.source, Path) else "")
    except DataError as error:
        if regions.image_id in writer.done:  # then the disk refuses
            raise
        return error.message
    return ""


def _some(image_ids: Sequence[ImageId], count: int = 5) -> str:
    shown = ", ".join(str(image_id) for image_id in image_ids[:count])
    return shown if len(image_ids) <= count else f"{shown}, ..."


def _workers(workers: int | None, total: int) -> int:
    return max(min(processors() if workers is None else workers, total), 1)


def _in_order(
    pool: Executor, work: Callable[[_Job], Result], jobs: Iterator[_Job], ahead: int
) -> Iterator[tuple[_Job, Result]]:
    """Every job with its result, in the order of the jobs, of which at most `ahead` are under way."""
    waiting: deque[tuple[_Job, Future[Result]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(work, job)))
        if len(waiting) >= ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


def _run(extractor: Extractor, jobs: Iterator[_Job], total: int, workers: int | None) -> _Made:
    count = _workers(workers, total)
    if count > 1:
        yield from _run_workers(extractor, jobs, count)
        return
    for job in jobs:
        yield job, _extract_or_reason(extractor, job)


def _run_workers(extractor: Extractor, jobs: Iterator[_Job], count: int) -> _Made:
    executor = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(extractor,),
    )
    try:
        # In order, so that the store does not depend on which worker is faster.
        with one_thread_a_process():
            yield from _in_order(executor, _worker_extract, jobs, 8 * count)
    except BrokenProcessPool as error:
        raise DataError(
            "extract-features: a worker process has ended unexpectedly, perhaps for want of memory",
            hint="run the same command again, it goes on; --workers 0 needs no other processes",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_extractor: Extractor | None = None


def _start_worker(extractor: Extractor) -> None:
    global _extractor
    serve_parent()
    _extractor = extractor


def _worker_extract(job: _Job) -> RegionFeatures | str:
    assert _extractor is not None
    return _extract_or_reason(_extractor, job)


def _extract_or_reason(extractor: Extractor, job: _Job) -> RegionFeatures | str:
    try:
        return extractor.regions(job.image_id, job.source)
    except TbkinError as error:
        return error.message
