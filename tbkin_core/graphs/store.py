"""The graph store: text scene graphs and cross-modal edges of a corpus, as arrays that training maps.

A shard holds captions by their position in the corpus, see `ShardArrays`; beside the shards lie the priors
of the corpus.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.errors import DataError
from tbkin_core.graphs.arrays import GraphImage, ShardArrays
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, region_edges
from tbkin_core.support.shards import (
    MANIFEST,
    StoreKind,
    StoreWriter,
    own_shards,
    ragged_offsets,
    read_shard,
    read_store,
    shard_name,
    write_shard,
)

GRAPHS = StoreKind("graphs", array="text", command="tbkin build-graphs DATA")
PRIORS = "priors.json"
_FILES = frozenset({MANIFEST, PRIORS, "config.yaml"})
_NO_REGIONS = GraphImage("", np.zeros((0, 4), np.float32), ())


def in_graph_store(path: Path, store: Path) -> bool:
    """Whether a path is a graph store's directory or has the name of one of its own files."""
    whole, place = os.path.realpath(path), os.path.realpath(store)
    folder, name = os.path.split(whole)
    return whole == place or (folder == place and (name in _FILES or name.startswith("shard-")))


class GraphStore:
    """Reads a graph store; needs no spaCy.

    Attributes:
        settings: What made the graphs.
        summary: Counts over the corpus.
        shards: The arrays of each shard, mapped into memory.

    Raises:
        DataError: No store there, a damaged shard, another format version, or it is not finished.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        manifest, shards = read_store(self.path, GRAPHS, verify=True)
        if not manifest.complete:
            raise DataError(
                f"{path}: building these graphs was interrupted",
                hint=f"run `{GRAPHS.command}` again: it goes on",
            )
        self.settings = manifest.settings
        self.summary = manifest.extra
        self.shards = [
            ShardArrays.from_file(self.path / name, arrays, metadata)
            for name, (arrays, metadata) in zip(manifest.shards, shards, strict=True)
        ]
        self._starts = ragged_offsets([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[UnifiedGraph]:
        return (self[row] for row in range(len(self)))

    def splits(self) -> set[str]:
        """The splits that captions are of."""
        return {split for shard in self.shards for split in shard.splits}

    def priors(self) -> Priors:
        """The corpus priors written beside the graphs; a DataError where these are damaged."""
        expected, summary = self.summary.get("checksum"), self.summary.get("summary")
        if expected is not None and expected != _checksum(self.path / PRIORS, summary):
            raise DataError(
                f"{self.path / PRIORS}: is not what was written",
                hint=f"run `{GRAPHS.command}` again: it counts them anew",
            )
        return Priors.load(self.path / PRIORS)

    def __getitem__(self, row: int) -> UnifiedGraph:
        """The unified graph of one caption."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard, place = self.shards[number], row - int(self._starts[number])
        image = int(shard.image[place])
        regions = shard.image_regions(image) if image >= 0 else _NO_REGIONS
        edges = slice(*shard.cross_offsets[place : place + 2])
        return UnifiedGraph(
            text_id=shard.text_ids[place],
            image_id=regions.image_id if image >= 0 else None,
            text=shard.caption(place),
            graph=shard.text_graph(place),
            boxes=regions.boxes,
            labels=regions.labels,
            image_edges=region_edges(regions.boxes),
            region_attributes=regions.attributes,
            region_relations=regions.relations,
            cross=CrossEdges(shard.cross_object[edges], shard.cross_region[edges], shard.cross_weight[edges]),
        )


# ---- writing ------------------------------------------------------------------------------------


def write_graph_shard(store: Path, number: int, shard: ShardArrays, fingerprint: str) -> None:
    """Write a shard of a store that a `GraphStoreWriter` has begun; any process may.

    The `fingerprint` is of all that the shard is made from.
    """
    arrays, metadata = shard.to_file()
    write_shard(store / shard_name(number), arrays, {**metadata, "fingerprint": fingerprint})


class GraphStoreWriter:
    """A graph store that is being built: shards 0 to `count` - 1, by position in the corpus.

    A shard on disk that carries the right fingerprint is finished, whoever wrote it and when.

    Args:
        path: Directory of the store.
        settings: What makes the graphs.
        count: Shards of the finished store.

    Attributes:
        settings: Those given, as JSON gives them back.

    Raises:
        DataError: As for `StoreWriter`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], count: int) -> None:
        self._writer = StoreWriter(path, GRAPHS, settings)
        self._count = count
        self.path, self.settings = path, self._writer.settings

    def has(self, number: int, fingerprint: str) -> bool:
        """Whether a shard is there, whole, and made from what the fingerprint says."""
        path = self.path / shard_name(number)
        try:
            if not path.exists() or read_shard(path)[1].get("fingerprint") != fingerprint:
                return False
            read_shard(path, verify=True)
            return True
        except DataError:
            return False

    def begin(self) -> None:
        """Call before shards are written: readers learn that the store is unfinished."""
        self._writer.list_shards([])

    def shards(self) -> Iterator[ShardArrays]:
        """All shards of the finished store, one at a time."""
        for number in range(self._count):
            path = self.path / shard_name(number)
            yield ShardArrays.from_file(path, *read_shard(path))

    def summary(self) -> dict[str, Any] | None:
        """What `finish` was given; None unless the store is complete, with these shards and those priors."""
        manifest = self._writer.manifest
        whole = [shard_name(number) for number in range(self._count)]
        if manifest is None or not manifest.complete or manifest.shards != whole:
            return None
        summary: dict[str, Any] | None = manifest.extra.get("summary")
        same = "checksum" in manifest.extra and manifest.extra["checksum"] == _checksum(
            self.path / PRIORS, summary
        )
        return summary if same else None

    def finish(self, summary: dict[str, Any], priors: Priors) -> None:
        """Mark the store complete; shards beyond its own, of a larger corpus, go."""
        priors.save(self.path / PRIORS)
        self._writer.list_shards(
            range(self._count),
            complete=True,
            summary=summary,
            checksum=_checksum(self.path / PRIORS, summary),
        )
        for number, path in own_shards(self.path).items():
            if number >= self._count:
                path.unlink(missing_ok=True)


def _checksum(priors: Path, summary: Any) -> int | None:
    """Of what is counted over all shards; None where the file of priors cannot be read."""
    try:
        counted = priors.read_bytes() if priors.is_file() else None  # a pipe would be waited for
    except OSError:
        counted = None
    if counted is None:
        return None
    return zlib.crc32(counted, zlib.crc32(json.dumps(summary, sort_keys=True).encode()))
