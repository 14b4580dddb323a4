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
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tbkin_core.datasets import Dataset
from tbkin_core.datasets.formats.made import EXPRESSION_SET
from tbkin_core.datasets.records import Caption
from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.features.store import FeatureStore, with_known_weights
from tbkin_core.graphs.arrays import ShardCaptions, image_counts, pack_shard, shard_counts
from tbkin_core.graphs.joining import DatasetRegions, PairWeights, ragged_cross_edges
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.store import GRAPHS, GraphStore, GraphStoreWriter, write_graph_shard
from tbkin_core.names.similarity import Similarity, make_similarity
from tbkin_core.parsing.text_graph import TextGraph
from tbkin_core.support.console import progress
from tbkin_core.support.shards import MANIFEST, Manifest, share_of_store, store_place_held
from tbkin_core.support.workers import WorkerPool, processors

logger = logging.getLogger("tbkin")

SHARD_CAPTIONS = 2048
WORKERS_FROM = 2000  # captions; for fewer, other processes take longer to start than to work
REMEMBERED_GRAPHS = 32_768  # of texts that occur again; about 2 KB each


class Parser(Protocol):
    """What makes text scene graphs; `CaptionParser` is one."""

    name: str
    version: str

    def parse(self, texts: Iterable[str]) -> Iterator[TextGraph]:
        """One graph per text, in order; a text's graph depends on nothing but the text."""


@dataclass(frozen=True)
class Recipe:
    """How graphs are made.

    Parser and similarity are made once per process, by what must survive pickling where there are workers.
    """

    make_parser: Callable[[], Parser]
    make_similarity: Callable[[], Similarity] = make_similarity
    min_similarity: float = 0.5  # least weight of a cross-modal edge
    label_iou: float = 0.5  # overlap from which an unlabelled region takes an annotated box's label
    # Whether parser or similarity compute with torch. spaCy imports it wherever it is installed; without it
    # a worker starts in half the time and takes 180 MB less.
    needs_torch: bool = True


@dataclass
class Build:
    """What a build made."""

    path: Path  # directory of the store
    made: int  # captions of this process's share that were built now
    present: int  # those that were built before
    summary: dict[str, Any] | None  # counts over the whole store; None while shards are missing
    missing: int = 0  # shards that other ranks have yet to write

    @cached_property
    def store(self) -> GraphStore:
        """The finished store; a DataError while shards are missing."""
        return GraphStore(self.path)


def texts_of(dataset: Dataset) -> tuple[Sequence[Caption], str]:
    """The texts to parse and what they are: captions, else referring expressions, else questions.

    Expressions that were made of boxes come last: they say no more than these.
    """
    captions = dataset.captions()
    if captions:
        return captions, "captions"
    sets = dataset.expression_sets()
    expressions = _expressions(dataset, [name for name in sets if name != EXPRESSION_SET])
    if expressions:
        return expressions, "expressions"
    questions = [
        Caption(item.question_id, item.image_id, item.question, item.split) for item in dataset.questions()
    ]
    if questions:
        return questions, "questions"
    expressions = _expressions(dataset, sets)
    if expressions:
        return expressions, "expressions"
    raise DataError(
        f"{dataset.path}: no captions, expressions or questions to build graphs from"
        f" (found: {', '.join(dataset.layouts)}){dataset.unread()}",
        hint="add COCO captions_*.json, or a JSONL file with lines such as"
        ' {"image": "dog.jpg", "text": "a dog on a sofa"}',
    )


def _expressions(dataset: Dataset, sets: Sequence[str]) -> list[Caption]:
    return [
        Caption(f"{name}:{item.sent_id}", item.image_id, item.text, item.split)
        for name in sets
        for item in dataset.expressions(name=name)
    ]


def choose_workers(workers: int | None, captions: int) -> int:
    """Worker processes for so many captions: as given, else one per processor where that pays; 0 is none."""
    available = processors()  # asked for in any case: a faulty environment is reported at once
    if workers is None:
        workers = available if captions > WORKERS_FROM else 0
    workers = min(workers, -(-captions // SHARD_CAPTIONS))
    return workers if workers > 1 else 0


def build_dataset(
    dataset: Dataset,
    out: Path,
    features: FeatureStore | None,
    recipe: Recipe,
    workers: int | None = 0,
    overwrite: bool = False,
    stack: contextlib.ExitStack | None = None,
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
        recipe: How graphs are made.
        workers: Processes beside this one; 0 and 1 work in this process, None chooses.
        overwrite: Replace a store that is there, when the new one is whole.
        stack: As for `store_place_held`.

    Raises:
        DataError: No texts, a store of other settings at `out`, or the disk refuses.
        ConfigError: The environment gives no proper share, or `overwrite` in a shared run.
    """
    rank, world = share_of_store(out, overwrite)
    texts, kind = texts_of(dataset)
    processes = choose_workers(workers, len(texts) // world)
    make = _builder_without_torch if processes and not recipe.needs_torch else _ShardBuilder
    with (
        contextlib.ExitStack() as held,
        WorkerPool(partial(make, recipe), processes, "build-graphs") as pool,
    ):
        settings = {
            "texts": kind,
            **pool.ask(_ShardBuilder.describe),
            "min_similarity": recipe.min_similarity,
            "label_iou": recipe.label_iou,
            "regions": "annotations" if features is None else "features",
            "features": None if features is None else _spelt_as_there(out, features.settings),
            "annotated_relations": dataset.has_gold_graphs,
        }
        # Not before all that may be wrong with the settings has been.
        place = held.enter_context(store_place_held(out, GRAPHS, settings, overwrite, world == 1, stack))
        count = -(-len(texts) // SHARD_CAPTIONS)
        writer = GraphStoreWriter(place, settings, count)
        corpus = _Corpus(texts, writer.settings, DatasetRegions(dataset, features, recipe.label_iou))
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
            writer.begin()
            corpus.find_repeated()
            results = pool.map(partial(_ShardBuilder.build, place=place), corpus.jobs(todo), ahead=2)
            for _ in progress(results, "graphs", total=len(todo), unit="shard"):
                pass
        others = set(range(count)) - set(own)
        missing = sum(not writer.has(number, corpus.fingerprint(number)) for number in others)
        return Build(out, made, present, None if missing else _finished(writer), missing)


def _finished(writer: GraphStoreWriter) -> dict[str, Any]:
    """The summary of a store all of whose shards are there; it is complete from now on."""
    summary = writer.summary()
    if summary is None:
        priors, summary = _count(writer)
        writer.finish(summary, priors)
    return summary


def _count(writer: GraphStoreWriter) -> tuple[Priors, dict[str, Any]]:
    """Priors and summary of all shards, one after the other."""
    splits = {split for shard in writer.shards() for split in shard.splits}
    priors = Priors()
    counted: set[ImageId] = set()
    common: dict[str, Counter[str]] = {"objects": Counter(), "attributes": Counter(), "relations": Counter()}
    captions, anchored, with_regions = 0, 0, 0
    for shard in writer.shards():
        regions = np.append(np.diff(shard.region_offsets), 0)  # the last one serves image -1
        captions += len(shard)
        anchored += int((np.diff(shard.cross_offsets) > 0).sum())
        with_regions += int((regions[shard.image] > 0).sum())
        # What is learnt from val or test captions would leak into masking.
        learnt = np.array(["train" not in splits or split == "train" for split in shard.splits], bool)
        priors.merge(shard_counts(shard, learnt))
        # An image's captions may lie in two shards; it counts where the first of them does.
        seen = sorted(set(shard.image[learnt].tolist()) - {-1})
        new = [image for image in seen if shard.image_ids[image] not in counted]
        counted.update(shard.image_ids[image] for image in new)
        priors.merge(image_counts(shard, new))
        numbers = (shard.object_name, shard.attribute_name, shard.relation_name)
        for counter, column in zip(common.values(), numbers, strict=True):
            totals = np.bincount(column, minlength=len(shard.names))
            counter.update({shard.names[place]: int(totals[place]) for place in np.flatnonzero(totals)})
    summary = {
        "captions": captions,
        "captions_with_regions": with_regions,
        "anchored": anchored,
        **{f"{name}_per_caption": counts.total() / max(captions, 1) for name, counts in common.items()},
        "most_common": {name: _most_common(counts) for name, counts in common.items()},
    }
    return priors, summary


def _most_common(counts: Counter[str]) -> list[list[Any]]:
    """The ten largest; of equal ones, those first in the alphabet."""
    return [
        list(entry) for entry in heapq.nsmallest(10, counts.items(), key=lambda item: (-item[1], item[0]))
    ]


# ---- the corpus as jobs -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """All that the process which builds a shard needs."""

    number: int
    fingerprint: str  # of all that it is made from
    captions: ShardCaptions
    repeated: list[bool]  # which of the texts occur elsewhere too


class _Corpus:
    """The texts, cut into shards by position, with the regions of their images."""

    def __init__(self, texts: Sequence[Caption], settings: dict[str, Any], regions: DatasetRegions) -> None:
        self._texts = texts
        self._settings = json.dumps(settings, sort_keys=True)
        self._regions = regions
        self._repeated: NDArray[np.int64] = np.zeros(0, np.int64)
        self._fingerprints: dict[int, str] = {}

    def part(self, number: int) -> Sequence[Caption]:
        """The texts of a shard."""
        return self._texts[number * SHARD_CAPTIONS : (number + 1) * SHARD_CAPTIONS]

    def fingerprint(self, number: int) -> str:
        """Digest of the settings, of a shard's records and of the regions that they are joined with."""
        if number in self._fingerprints:
            return self._fingerprints[number]
        part = self.part(number)
        rows = [(text.text_id, text.image_id, text.text, text.split) for text in part]
        digest = hashlib.blake2b(self._settings.encode(), digest_size=16)
        digest.update(repr(rows).encode("utf-8", "backslashreplace"))
        for image_id in dict.fromkeys(text.image_id for text in part if text.image_id is not None):
            image = self._regions[image_id]
            digest.update(np.ascontiguousarray(image.boxes).data)
            described = (image.labels, image.attributes, image.relations, image.annotated)
            digest.update(repr(described).encode("utf-8", "backslashreplace"))
        return self._fingerprints.setdefault(number, digest.hexdigest())

    def find_repeated(self) -> None:
        """Learn which texts occur more than once; only those are worth remembering."""
        hashes = np.sort(_hashes(self._texts))
        self._repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def jobs(self, numbers: Iterable[int]) -> Iterator[_Job]:
        """What it takes to build some shards."""
        for number in numbers:
            part = self.part(number)
            image_ids = dict.fromkeys(text.image_id for text in part if text.image_id is not None)
            places = {image_id: place for place, image_id in enumerate(image_ids)}
            captions = ShardCaptions(
                [text.text_id for text in part],
                [text.text for text in part],
                [text.split for text in part],
                [-1 if text.image_id is None else places[text.image_id] for text in part],
                [self._regions[image_id] for image_id in image_ids],
            )
            repeated = np.isin(_hashes(part), self._repeated).tolist()
            yield _Job(number, self.fingerprint(number), captions, repeated)


def _hashes(texts: Sequence[Caption]) -> NDArray[np.int64]:
    return np.fromiter((hash(text.text) for text in texts), np.int64, len(texts))


# ---- building one shard -------------------------------------------------------------------------


class _ShardBuilder:
    """Builds and writes shards; one per process."""

    def __init__(self, recipe: Recipe) -> None:
        self._parser = recipe.make_parser()
        self._similarity = recipe.make_similarity()
        self._weights = PairWeights(self._similarity, recipe.min_similarity)
        self._known: dict[str, TextGraph] = {}
        # A transformer's numbers depend in their last digits on what it is given along with a text, so the
        # graph of a text could depend on the shards that this process has built before.
        names = getattr(getattr(self._parser, "_nlp", None), "pipe_names", ())
        self._remember = not any("transformer" in name for name in names)

    def describe(self) -> dict[str, str]:
        """What makes the graphs, as the settings of a store say it."""
        return {
            "parser": self._parser.name,
            "parser_version": self._parser.version,
            "similarity": self._similarity.name,
        }

    def build(self, job: _Job, place: Path) -> None:
        """Write the shard to the store at a place."""
        captions = job.captions
        graphs = self._graphs(captions.texts, job.repeated)
        cross = ragged_cross_edges(graphs, captions.image, captions.images, self._weights)
        write_graph_shard(place, job.number, pack_shard(captions, graphs, cross), job.fingerprint)

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


def _builder_without_torch(recipe: Recipe) -> _ShardBuilder:
    """A builder in a process of its own, where spaCy is kept from importing torch."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    return _ShardBuilder(recipe)


def _spelt_as_there(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of features as the graphs at `out` note them, where these mean the same."""
    there: Any = None
    with contextlib.suppress(DataError):  # whoever opens it says what is wrong
        there = Manifest.read(out).settings.get("features") if (out / MANIFEST).exists() else None
    same = isinstance(there, dict) and with_known_weights(there) == with_known_weights(settings)
    return there if same else settings
