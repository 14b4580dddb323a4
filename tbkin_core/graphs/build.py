"""Builds the unified scene graphs of a dataset: parse, join with regions, count priors, write.

The corpus is cut into shards by position. A shard is the unit of work: one process parses its captions,
joins them with the regions and writes the file, so that the store is the same bytes whatever the number of
processes and machines, and however often the build was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import logging
import multiprocessing
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import pairwise_iou, xywh_to_xyxy
from tbkin_core.datasets import Dataset
from tbkin_core.datasets.formats.own import is_graph_export
from tbkin_core.datasets.records import BoxAnnotation, Caption, GoldGraph
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.store import (
    PRIORS,
    GraphImage,
    GraphShard,
    GraphStore,
    RaggedEdges,
    image_counts,
    pack_shard,
    shard_counts,
)
from tbkin_core.names.lexicon import lemmatize_predicate
from tbkin_core.names.similarity import Similarity, make_similarity
from tbkin_core.parsing.text_graph import TextGraph
from tbkin_core.support.console import progress
from tbkin_core.support.files import atomic_path, check_file_place
from tbkin_core.support.ranks import share_of_run
from tbkin_core.support.shards import (
    SharedStoreWriter,
    ragged_gather,
    ragged_offsets,
    read_shard,
    replaced_store,
    shard_name,
    write_shard,
)
from tbkin_core.support.workers import one_thread_a_process, processors, serve_parent

logger = logging.getLogger("tbkin")

SHARD_CAPTIONS = 2048
WORKERS_FROM = 2000  # captions; for fewer, other processes take longer to start than to work
REMEMBERED_GRAPHS = 32_768  # of texts that occur again; about 2 KB each
REMEMBERED_PAIRS = 4_000_000  # of names and labels compared; 12 bytes each


class Parser(Protocol):
    """What makes text scene graphs; `CaptionParser` is one."""

    name: str
    version: str

    def parse(self, texts: Iterable[str]) -> Iterator[TextGraph]:
        """One graph a text, in order; a text's graph depends on nothing but the text."""


@dataclass
class Build:
    """What a build made, and the counts for its summary.

    Attributes:
        path: Directory of the store.
        made, present: Captions of this process's share that were built now, and before.
        summary: Counts over the whole store; None while shards of other ranks are missing.
        missing: Shards that other ranks have yet to write.
    """

    path: Path
    made: int
    present: int
    summary: dict[str, Any] | None
    missing: int = 0

    @cached_property
    def store(self) -> GraphStore:
        """The finished store; a DataError while shards are missing."""
        return GraphStore(self.path)


def texts_of(dataset: Dataset) -> tuple[Sequence[Caption], str]:
    """The texts to parse and what they are: captions, else referring expressions, else questions."""
    captions = dataset.captions()
    if captions:
        return captions, "captions"
    expressions = [
        Caption(f"{name}:{item.sent_id}", item.image_id, item.text, item.split)
        for name in dataset.expression_sets()
        for item in dataset.expressions(name=name)
    ]
    if expressions:
        return expressions, "expressions"
    questions = [
        Caption(item.question_id, item.image_id, item.question, item.split) for item in dataset.questions()
    ]
    if questions:
        return questions, "questions"
    raise DataError(
        f"{dataset.root}: no captions, expressions or questions to build graphs from"
        f" (found: {', '.join(dataset.layouts)})",
        hint="add COCO captions_*.json, or a JSONL file with lines such as"
        ' {"image": "dog.jpg", "text": "a dog on a sofa"}',
    )


def choose_workers(workers: int | None, captions: int) -> int:
    """Worker processes for so many captions: as given, else one a processor where that pays; 0 is none."""
    available = processors()  # asked also where it does not matter: a faulty environment is told of at once
    if workers is None:
        workers = available if captions > WORKERS_FROM else 0
    workers = min(workers, -(-captions // SHARD_CAPTIONS))
    return workers if workers > 1 else 0


def build_dataset(
    dataset: Dataset,
    out: Path,
    features: FeatureStore | None,
    make_parser: Callable[[], Parser],
    min_similarity: float = 0.5,
    label_iou: float = 0.5,
    overwrite: bool = False,
    workers: int | None = 0,
    make_similarity: Callable[[], Similarity] = make_similarity,
    needs_torch: bool = True,
) -> Build:
    """Build the graph store of a dataset, going on with an unfinished one.

    Several processes or machines may run this at once on one `out`, each with its own RANK and WORLD_SIZE
    (`share_of_run`): of the shards, numbered by position in the corpus, rank r builds r, r + world, ...
    Whichever finishes last counts the priors and completes the store. What a rank that died has left out,
    any later run builds, with any number of ranks.

    Args:
        dataset: Opened dataset.
        out: Directory of the store.
        features: Feature store whose regions the graphs join; None takes the annotated boxes.
        make_parser: Makes the caption parser; called once a process, so it must survive pickling where
            there are workers.
        min_similarity: Cross-modal edges are kept from this weight up.
        label_iou: Unlabelled regions take the label of an annotated box that they overlap this much.
        overwrite: Remove a store that is there.
        workers: Processes beside this one; 0 and 1 work in this process, None chooses.
        make_similarity: Makes what compares names with labels; as `make_parser`.
        needs_torch: Whether parser or similarity compute with torch. spaCy imports it wherever it is
            installed; without it a worker starts in half the time and takes 180 MB less.

    Raises:
        DataError: No texts, a store of other settings at `out`, or the disk refuses.
        ConfigError: The environment gives no proper share, or `overwrite` in a shared run.
    """
    rank, world = share_of_run()
    if overwrite and world > 1:
        raise ConfigError(
            f"overwrite: {world} processes share this run, and one might remove what another has made",
            hint=f"remove {out} first, or choose another place with --out DIR",
        )
    texts, kind = texts_of(dataset)
    count = -(-len(texts) // SHARD_CAPTIONS)
    recipe = _Recipe(out, make_parser, make_similarity, min_similarity, needs_torch)
    processes = choose_workers(workers, len(texts) // world)
    with (
        contextlib.ExitStack() as stack,
        _InThisProcess(recipe) if not processes else _InWorkers(recipe, processes) as builder,
    ):
        settings = {
            "texts": kind,
            **builder.describe(),
            "min_similarity": min_similarity,
            "label_iou": label_iou,
            "regions": "annotations" if features is None else "features",
            "features": None if features is None else features.settings,
            "annotated_relations": dataset.has_gold_graphs,
        }
        if overwrite:  # not before all that may be wrong with the settings has been
            stack.enter_context(replaced_store(out, "graphs"))
        writer = SharedStoreWriter(out, "graphs", settings, count)
        regions = _Regions(dataset, features, label_iou)
        corpus = _Corpus(texts, json.dumps(writer.settings, sort_keys=True), regions)
        own = range(rank, count, world)
        todo = [number for number in own if not writer.has(number, corpus.fingerprint(number))]
        made = sum(len(corpus.part(number)) for number in todo)
        present = sum(len(corpus.part(number)) for number in own) - made
        if world > 1:
            logger.info("rank %d of %d: %d of %d shards", rank, world, len(own), count)
        if present:
            logger.info("%d %s are in the store already", present, kind)
        if todo:
            logger.info("%d %s, parser %s, %d worker processes", made, kind, settings["parser"], processes)
            writer.begin(todo, alone=world == 1)
            corpus.find_repeated()
            for _ in progress(builder.run(corpus.jobs(todo)), "graphs", total=len(todo), unit="shard"):
                pass
    done = set(own)
    missing = sum(
        not writer.has(number, corpus.fingerprint(number)) for number in range(count) if number not in done
    )
    if missing:
        return Build(out, made, present, None, missing)
    found = {} if todo or writer.extra is None else writer.extra
    if "checksum" in found and found["checksum"] == _result_checksum(found.get("summary"), out / PRIORS):
        return Build(out, made, present, found["summary"])
    priors, summary = _count(out, count)
    priors.save(out / PRIORS)
    writer.finish(summary=summary, checksum=_result_checksum(summary, out / PRIORS))
    return Build(out, made, present, summary)


def _result_checksum(summary: Any, priors: Path) -> int | None:
    """Of what is counted over all shards; None where the file of priors cannot be read."""
    try:
        return zlib.crc32(priors.read_bytes(), zlib.crc32(json.dumps(summary, sort_keys=True).encode()))
    except OSError:
        return None


def check_export_place(path: Path, store: Path | None = None) -> None:
    """Refuse to export where something else would be lost, as `tbkin_core.runtime.check_file_place`."""
    check_file_place(path, "export", lambda start: is_graph_export(start.decode("latin-1")), store)


def export_jsonl(store: GraphStore, path: Path) -> None:
    """Write every unified graph as a line of JSON, atomically.

    Raises:
        ConfigError, DataError: As `check_export_place`; DataError also where the disk is full.
    """
    check_export_place(path)
    # Lone surrogates (file names that are no UTF-8) become JSON's own escapes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for graph in progress(store, "export", total=len(store), unit="graph"):
            file.write(json.dumps(graph.to_dict(), ensure_ascii=False) + "\n")


def _count(out: Path, shards: int) -> tuple[Priors, dict[str, Any]]:
    """Priors and summary of all shards, one after the other."""
    splits: set[str] = set()
    for number in range(shards):
        splits.update(read_shard(out / shard_name(number))[1]["splits"])
    priors = Priors()
    counted: set[ImageId] = set()
    common: dict[str, Counter[str]] = {"objects": Counter(), "attributes": Counter(), "relations": Counter()}
    captions, anchored, with_regions = 0, 0, 0
    for number in range(shards):
        arrays, metadata = read_shard(out / shard_name(number))
        names = [sys.intern(name) for name in metadata["names"]]
        regions = np.append(np.diff(arrays["region_offsets"]), 0)  # the last one serves image -1
        captions += len(metadata["splits"])
        anchored += int((np.diff(arrays["cross_offsets"]) > 0).sum())
        with_regions += int((regions[arrays["image"]] > 0).sum())
        # What is learnt from val or test captions would leak into masking.
        learnt = np.array(["train" not in splits or split == "train" for split in metadata["splits"]], bool)
        priors.merge(shard_counts(arrays, names, learnt))
        # An image's captions may lie in two shards; it counts where the first of them does.
        seen = sorted(set(arrays["image"][learnt].tolist()) - {-1})
        new = [image for image in seen if metadata["image_ids"][image] not in counted]
        counted.update(metadata["image_ids"][image] for image in new)
        priors.merge(image_counts(arrays, names, new))
        for kind, column in (("objects", "object"), ("attributes", "attribute"), ("relations", "relation")):
            totals = np.bincount(arrays[f"{column}_name"], minlength=len(names))
            common[kind].update({names[place]: int(totals[place]) for place in np.flatnonzero(totals)})
    summary = {
        "captions": captions,
        "captions_with_regions": with_regions,
        "anchored": anchored,
        **{f"{name}_per_caption": counts.total() / max(captions, 1) for name, counts in common.items()},
        "most_common": {
            name: [
                list(entry)
                for entry in heapq.nsmallest(10, counts.items(), key=lambda item: (-item[1], item[0]))
            ]
            for name, counts in common.items()
        },
    }
    return priors, summary


# ---- the corpus as jobs -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """All that the process which builds a shard needs; `repeated` says which texts occur elsewhere too."""

    number: int
    fingerprint: str
    text_ids: list[int | str]
    texts: list[str]
    splits: list[str]
    image: list[int]
    images: list[GraphImage]
    repeated: list[bool]


class _Corpus:
    """The texts, cut into shards by position, with the regions of their images."""

    def __init__(self, texts: Sequence[Caption], settings: str, regions: _Regions) -> None:
        self._texts = texts
        self._settings = settings
        self._regions = regions
        self._repeated: NDArray[np.int64] = np.zeros(0, np.int64)
        self._fingerprints: dict[int, str] = {}

    def part(self, number: int) -> Sequence[Caption]:
        return self._texts[number * SHARD_CAPTIONS : (number + 1) * SHARD_CAPTIONS]

    def fingerprint(self, number: int) -> str:
        """Digest of the settings, of a shard's records and of the regions that they are joined with."""
        if number not in self._fingerprints:
            self._fingerprints[number] = self._digest(number)
        return self._fingerprints[number]

    def _digest(self, number: int) -> str:
        part = self.part(number)
        rows = [(text.text_id, text.image_id, text.text, text.split) for text in part]
        digest = hashlib.blake2b(self._settings.encode(), digest_size=16)
        digest.update(repr(rows).encode("utf-8", "backslashreplace"))
        for image_id in dict.fromkeys(text.image_id for text in part if text.image_id is not None):
            image = self._regions[image_id]
            digest.update(np.ascontiguousarray(image.boxes).data)
            described = (image.labels, image.attributes, image.relations, image.annotated)
            digest.update(repr(described).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def find_repeated(self) -> None:
        """Learn which texts occur more than once; only those are worth remembering."""
        hashes = np.fromiter((hash(text.text) for text in self._texts), np.int64, len(self._texts))
        hashes.sort()
        self._repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def jobs(self, numbers: Iterable[int]) -> Iterator[_Job]:
        for number in numbers:
            part = self.part(number)
            places: dict[ImageId, int] = {}
            images: list[GraphImage] = []
            for text in part:
                if text.image_id is not None and text.image_id not in places:
                    places[text.image_id] = len(images)
                    images.append(self._regions[text.image_id])
            hashes = np.fromiter((hash(text.text) for text in part), np.int64, len(part))
            yield _Job(
                number,
                self.fingerprint(number),
                [text.text_id for text in part],
                [text.text for text in part],
                [text.split for text in part],
                [-1 if text.image_id is None else places[text.image_id] for text in part],
                images,
                np.isin(hashes, self._repeated).tolist(),
            )


# ---- building one shard -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How shards are built, and where they go."""

    out: Path
    make_parser: Callable[[], Parser]
    make_similarity: Callable[[], Similarity]
    min_similarity: float
    needs_torch: bool = True


class _ShardBuilder:
    """Builds and writes shards; one a process."""

    def __init__(self, recipe: _Recipe) -> None:
        self._out = recipe.out
        self._parser = recipe.make_parser()
        self._similarity = recipe.make_similarity()
        self._weights = PairWeights(self._similarity, recipe.min_similarity)
        self._known: dict[str, TextGraph] = {}
        # A transformer's numbers depend in their last digits on what it is given along with a text, so the
        # graph of a text could depend on the shards that this process has built before.
        names = getattr(getattr(self._parser, "_nlp", None), "pipe_names", ())
        self._remember = not any("transformer" in name for name in names)

    def describe(self) -> dict[str, str]:
        return {
            "parser": self._parser.name,
            "parser_version": self._parser.version,
            "similarity": self._similarity.name,
        }

    def build(self, job: _Job) -> int:
        """Write the shard; returns its number of captions."""
        graphs = self._graphs(job.texts, job.repeated)
        cross = cross_edges(graphs, job.image, job.images, self._weights)
        arrays, metadata = pack_shard(
            GraphShard(job.text_ids, job.texts, job.splits, job.image, graphs, cross, job.images)
        )
        write_shard(self._out / shard_name(job.number), arrays, {**metadata, "fingerprint": job.fingerprint})
        return len(graphs)

    def _graphs(self, texts: Sequence[str], repeated: Sequence[bool]) -> list[TextGraph]:
        found: dict[str, TextGraph] = {}
        for text, again in zip(texts, repeated, strict=True):
            if again and text not in found:
                graph = self._known.pop(text, None)
                if graph is not None:
                    found[text] = self._known[text] = graph  # now the one used last
        fresh = [text for text in dict.fromkeys(texts) if text not in found]
        found.update(zip(fresh, self._parser.parse(fresh), strict=True))
        if self._remember:
            for text, again in zip(texts, repeated, strict=True):
                if again:
                    self._known[text] = found[text]
            while len(self._known) > REMEMBERED_GRAPHS:
                del self._known[next(iter(self._known))]
        return [found[text] for text in texts]


class PairWeights:
    """Weights of (name, label) pairs, each compared once while memory allows.

    Args:
        similarity: What compares them.
        minimum: Lower weights count as 0.
    """

    def __init__(self, similarity: Similarity, minimum: float) -> None:
        self._similarity = similarity
        self._minimum = minimum
        self._forget()

    def _forget(self) -> None:
        self._names: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._keys: NDArray[np.int64] = np.zeros(0, np.int64)  # sorted
        self._values: NDArray[np.float32] = np.zeros(0, np.float32)

    def __call__(
        self, names: Sequence[str], labels: Sequence[str], rows: NDArray, columns: NDArray
    ) -> NDArray[np.float32]:
        """(P,) weights of the pairs (names[rows], labels[columns]); 0 below the minimum and for "" names."""
        if len(self._keys) > REMEMBERED_PAIRS:
            self._forget()
        own_names, name_places = _distinct(names)
        own_labels, label_places = _distinct(labels)
        name_ids = np.array([self._names.setdefault(name, len(self._names)) for name in own_names], np.int64)
        label_ids = np.array(
            [self._labels.setdefault(label, len(self._labels)) for label in own_labels], np.int64
        )
        keys = (name_ids[name_places] << 32)[rows] | label_ids[label_places][columns]
        wanted = np.unique(keys)
        unknown = wanted[~np.isin(wanted, self._keys, assume_unique=True)]
        if len(unknown):
            name_of = dict(zip(name_ids.tolist(), own_names, strict=True))
            label_of = dict(zip(label_ids.tolist(), own_labels, strict=True))
            self._similarity.prepare({*own_names, *own_labels})
            values = np.zeros(len(unknown), np.float32)
            bounds = np.flatnonzero(np.diff(unknown >> 32, prepend=-1))
            for begin, end in zip(bounds, [*bounds[1:], len(unknown)], strict=True):
                name = name_of[int(unknown[begin] >> 32)]
                others = [label_of[key] for key in (unknown[begin:end] & 0xFFFFFFFF).tolist()]
                if name:
                    known = np.array([label != "" for label in others])
                    values[begin:end] = np.where(known, self._similarity.matrix([name], others)[0], 0)
            values[values < self._minimum] = 0
            keys_all = np.concatenate([self._keys, unknown])
            order = np.argsort(keys_all, kind="stable")
            self._keys, self._values = keys_all[order], np.concatenate([self._values, values])[order]
        return self._values[np.searchsorted(self._keys, keys)]


def _distinct(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names, and for each name its place among them."""
    table: dict[str, int] = {}
    places = np.array([table.setdefault(name, len(table)) for name in names], np.int64)
    return list(table), places


def cross_edges(
    graphs: Sequence[TextGraph], image: Sequence[int], images: Sequence[GraphImage], weights: PairWeights
) -> RaggedEdges:
    """Edges of weight > 0 between the text objects of N captions and the regions of their images.

    Args:
        graphs: N text scene graphs.
        image: N numbers into `images`, -1 without one.
        images: Regions with labels, "" unknown.
        weights: Weights of names and labels.

    Returns:
        Edges in the order of caption, object, region.
    """
    object_counts = np.array([len(graph.objects) for graph in graphs], np.int64)
    first_object = ragged_offsets(object_counts)
    caption = np.repeat(np.arange(len(graphs)), object_counts)
    image_of = np.array(image, np.int64)[caption] if len(graphs) else np.zeros(0, np.int64)
    placed = np.flatnonzero(image_of >= 0)  # objects whose caption has an image
    region_offsets = ragged_offsets([len(item.labels) for item in images])
    label, row, region = ragged_gather(region_offsets, image_of[placed])
    names = [item.name for graph in graphs for item in graph.objects]
    labels = [name for item in images for name in item.labels]
    weight = weights(names, labels, placed[row], label)
    kept = np.flatnonzero(weight > 0)
    item = placed[row[kept]]
    return RaggedEdges(
        ragged_offsets(np.bincount(caption[item], minlength=len(graphs))),
        (item - first_object[caption[item]]).astype(np.int32),
        region[kept].astype(np.int32),
        weight[kept],
    )


# ---- in this process or in others ---------------------------------------------------------------


class _InThisProcess:
    """Builds shards here, one after the other."""

    def __init__(self, recipe: _Recipe) -> None:
        self._builder = _ShardBuilder(recipe)

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return self._builder.describe()

    def run(self, jobs: Iterable[_Job]) -> Iterator[int]:
        return map(self._builder.build, jobs)


@dataclass
class _InWorkers:
    """Builds shards in processes of their own; what waits for them is bounded."""

    recipe: _Recipe
    count: int
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> _InWorkers:
        self._stack.enter_context(one_thread_a_process())
        self._executor = ProcessPoolExecutor(
            self.count, multiprocessing.get_context("spawn"), _start_worker, (self.recipe,)
        )
        # All start now, while this process reads on.
        self._described = [self._executor.submit(_worker_describe) for _ in range(self.count)]
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        self._stack.close()

    def describe(self) -> dict[str, str]:
        with _broken_pool():
            return self._described[0].result()

    def run(self, jobs: Iterable[_Job]) -> Iterator[int]:
        pending: set[Future[int]] = set()
        with _broken_pool():
            for job in jobs:
                pending.add(self._executor.submit(_worker_build, job))
                if len(pending) >= 2 * self.count:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)


@contextlib.contextmanager
def _broken_pool() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "build-graphs: a worker process has ended unexpectedly, perhaps for want of memory",
            hint="run the same command again, it goes on; --workers 0 needs no other processes",
        ) from error


_builder: _ShardBuilder | TbkinError | None = None


def _start_worker(recipe: _Recipe) -> None:
    global _builder
    serve_parent()
    if not recipe.needs_torch:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        _builder = _ShardBuilder(recipe)
    except TbkinError as error:
        # Raised here it would only break the pool; the first job hands it over.
        _builder = error


def _worker() -> _ShardBuilder:
    if isinstance(_builder, TbkinError):
        raise _builder
    assert _builder is not None
    return _builder


def _worker_describe() -> dict[str, str]:
    return _worker().describe()


def _worker_build(job: _Job) -> int:
    return _worker().build(job)


# ---- regions ------------------------------------------------------------------------------------


class _Regions:
    """Boxes and labels of an image, from a feature store or from annotations."""

    def __init__(self, dataset: Dataset, features: FeatureStore | None, label_iou: float) -> None:
        self._features = features
        self._label_iou = label_iou
        named = features is not None and bool(features.object_names)
        # A detector's own labels need no annotated boxes.
        self._annotated: dict[ImageId, list[BoxAnnotation]] = {} if named else dataset.boxes()
        self._graphs = dataset.gold_graphs()

    def __getitem__(self, image_id: ImageId) -> GraphImage:
        regions = self._labelled(image_id)
        graph = self._graphs.get(image_id)
        return regions if graph is None else with_annotations(regions, graph, self._label_iou)

    def _labelled(self, image_id: ImageId) -> GraphImage:
        annotated = self._annotated.get(image_id, [])
        corners = xywh_to_xyxy([box.xywh for box in annotated])
        if self._features is None:
            return GraphImage(image_id, corners, tuple(box.label for box in annotated))
        if image_id not in self._features:
            return GraphImage(image_id, np.zeros((0, 4), np.float32), ())
        regions = self._features[image_id]
        if self._features.object_names:
            names = self._features.object_names
            labels = tuple(names[number] if 0 <= number < len(names) else "" for number in regions.object_ids)
        else:
            labels = borrowed_labels(
                regions.boxes, corners, [box.label for box in annotated], self._label_iou
            )
        return GraphImage(image_id, regions.boxes, labels)


def borrowed_labels(
    boxes: NDArray, annotated: NDArray, labels: Sequence[str], minimum: float
) -> tuple[str, ...]:
    """Label of the annotated box that each region overlaps best, "" below `minimum` IoU."""
    if not len(labels) or not len(boxes):
        return ("",) * len(boxes)
    iou = pairwise_iou(boxes, annotated)
    best = iou.argmax(axis=1)
    return tuple(labels[index] if iou[row, index] >= minimum else "" for row, index in enumerate(best))


def with_annotations(image: GraphImage, graph: GoldGraph, minimum: float) -> GraphImage:
    """Regions with the attributes and relations that people annotated.

    Each annotated object is the region that it overlaps best, from `minimum` IoU up; of equal ones that with
    its name. Predicates become lower case and lemmas ("is parked ON" is "park on").
    """
    if not len(image.boxes) or not graph.objects:
        return image
    corners = xywh_to_xyxy([item.xywh for item in graph.objects])
    iou = pairwise_iou(corners, image.boxes)
    same = np.array([item.name for item in graph.objects])[:, None] == np.array(image.labels)[None]
    best = (iou + 1e-3 * same).argmax(axis=1)
    overlap = iou[np.arange(len(best)), best]
    region = np.where(overlap >= minimum, best, -1).tolist()
    attributes = {
        (region[row], attribute.lower()): None
        for row, item in enumerate(graph.objects)
        for attribute in item.attributes
        if region[row] >= 0 and attribute
    }
    relations = {
        (region[item.subject], predicate, region[item.object]): None
        for item in graph.relations
        if region[item.subject] >= 0
        and region[item.object] >= 0
        and region[item.subject] != region[item.object]
        and (predicate := lemmatize_predicate(item.predicate))
    }
    return replace(
        image,
        attributes=tuple(attributes),
        relations=tuple(relations),
        annotated=tuple(sorted({place for place in region if place >= 0})),
    )
