"""The graph store: text scene graphs and cross-modal edges of a corpus, as arrays that training maps.

One row a caption. Ragged parts (objects, attributes, relations, edges) lie end to end with an array of
offsets each; names are numbers into a table that each shard carries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.text_graph import TextAttribute, TextGraph, TextObject, TextRelation
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, region_edges
from tbkin_core.shards import StoreReader, StoreWriter, ragged_offsets

COMMAND = "tbkin build-graphs DATA"
PRIORS = "priors.json"


@dataclass(frozen=True, slots=True)
class GraphRecord:
    """What is stored of one caption; `image` numbers the shard's images, -1 without one."""

    text_id: int | str
    text: str
    split: str
    image: int
    graph: TextGraph
    cross: CrossEdges


@dataclass(frozen=True, slots=True)
class GraphImage:
    """What is stored of one image: its regions as the edges number them."""

    image_id: ImageId
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]


class GraphStoreWriter:
    """Writes shards of captions with their images; goes on with an unfinished store."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._writer = StoreWriter(path, "graphs", settings)
        self.path = path
        self.done: set[int | str] = {
            text_id for metadata in self._writer.metadata for text_id in metadata["text_ids"]
        }

    def add(self, records: Sequence[GraphRecord], images: Sequence[GraphImage]) -> None:
        """Write one shard."""
        names: dict[str, int] = {}

        def number(name: str) -> int:
            return names.setdefault(name, len(names))

        graphs = [record.graph for record in records]
        objects = [item for graph in graphs for item in graph.objects]
        attributes = [item for graph in graphs for item in graph.attributes]
        relations = [item for graph in graphs for item in graph.relations]
        text, text_offsets = _pack([record.text for record in records])
        tokens, token_offsets = _pack(
            ["\0".join(token.replace("\0", "\ufffd") for token in graph.tokens) for graph in graphs]
        )
        arrays: dict[str, NDArray] = {
            "text": text,
            "text_offsets": text_offsets,
            "tokens": tokens,
            "token_offsets": token_offsets,
            "image": _ints([record.image for record in records]),
            "object_offsets": ragged_offsets([len(graph.objects) for graph in graphs]),
            "object_head": _ints([item.head for item in objects]),
            "object_span": _ints([item.span for item in objects]).reshape(-1, 2),
            "object_name": _ints([number(item.name) for item in objects]),
            "attribute_offsets": ragged_offsets([len(graph.attributes) for graph in graphs]),
            "attribute_object": _ints([item.object for item in attributes]),
            "attribute_name": _ints([number(item.name) for item in attributes]),
            "attribute_token_offsets": ragged_offsets([len(item.tokens) for item in attributes]),
            "attribute_tokens": _ints([token for item in attributes for token in item.tokens]),
            "relation_offsets": ragged_offsets([len(graph.relations) for graph in graphs]),
            "relation_subject": _ints([item.subject for item in relations]),
            "relation_object": _ints([item.object for item in relations]),
            "relation_name": _ints([number(item.predicate) for item in relations]),
            "relation_token_offsets": ragged_offsets([len(item.tokens) for item in relations]),
            "relation_tokens": _ints([token for item in relations for token in item.tokens]),
            "cross_offsets": ragged_offsets([len(record.cross.object) for record in records]),
            "cross_object": _joined([record.cross.object for record in records], np.int32),
            "cross_region": _joined([record.cross.region for record in records], np.int32),
            "cross_weight": _joined([record.cross.weight for record in records], np.float32),
            "region_offsets": ragged_offsets([len(image.boxes) for image in images]),
            "region_boxes": _joined(
                [np.asarray(image.boxes).reshape(-1, 4) for image in images], np.float32, 4
            ),
            "region_label": _ints([number(label) for image in images for label in image.labels]),
        }
        self._writer.add(
            arrays,
            {
                "text_ids": [record.text_id for record in records],
                "splits": [record.split for record in records],
                "image_ids": [image.image_id for image in images],
                "names": list(names),
            },
        )
        self.done.update(record.text_id for record in records)

    def finish(self, priors: Priors, **extra: Any) -> None:
        """Write the priors and mark the store complete."""
        priors.save(self.path / PRIORS)
        self._writer.finish(**extra)


class GraphStore:
    """Reads a graph store; needs no spaCy.

    Raises:
        DataError: No store there, a damaged shard, another format version, or it is not finished.
    """

    def __init__(self, path: Path | str, allow_unfinished: bool = False) -> None:
        self._reader = StoreReader(Path(path), "graphs", COMMAND)
        self.path = Path(path)
        if not (self._reader.complete or allow_unfinished):
            raise DataError(
                f"{path}: building these graphs was interrupted", hint=f"run `{COMMAND}` again: it goes on"
            )
        self.settings = self._reader.settings
        self.summary: dict[str, Any] = self._reader.extra
        self.shards = self._reader.shards
        self._starts = ragged_offsets([len(metadata["text_ids"]) for _, metadata in self.shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[UnifiedGraph]:
        return (self[row] for row in range(len(self)))

    def priors(self) -> Priors:
        """The corpus priors written beside the graphs."""
        return Priors.load(self.path / PRIORS)

    def __getitem__(self, row: int) -> UnifiedGraph:
        """The unified graph of one caption."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        arrays, metadata = self.shards[shard]
        place = row - int(self._starts[shard])
        image = int(arrays["image"][place])
        boxes, labels = self._regions(arrays, metadata, image)
        begin, end = arrays["cross_offsets"][place : place + 2]
        return UnifiedGraph(
            text_id=metadata["text_ids"][place],
            image_id=None if image < 0 else metadata["image_ids"][image],
            text=_unpack(arrays["text"], arrays["text_offsets"], place),
            graph=text_graph(arrays, metadata, place),
            boxes=boxes,
            labels=labels,
            image_edges=region_edges(boxes),
            cross=CrossEdges(
                arrays["cross_object"][begin:end],
                arrays["cross_region"][begin:end],
                arrays["cross_weight"][begin:end],
            ),
        )

    @staticmethod
    def _regions(
        arrays: dict[str, NDArray], metadata: dict[str, Any], image: int
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        if image < 0:
            return np.zeros((0, 4), np.float32), ()
        begin, end = arrays["region_offsets"][image : image + 2]
        names = metadata["names"]
        return arrays["region_boxes"][begin:end], tuple(
            names[label] for label in arrays["region_label"][begin:end]
        )


def text_graph(arrays: Mapping[str, NDArray], metadata: Mapping[str, Any], place: int) -> TextGraph:
    """The text scene graph of one caption of a shard."""
    names = metadata["names"]
    objects = range(*arrays["object_offsets"][place : place + 2])
    attributes = range(*arrays["attribute_offsets"][place : place + 2])
    relations = range(*arrays["relation_offsets"][place : place + 2])
    return TextGraph(
        tokens=tokens_of(arrays, place),
        objects=tuple(
            TextObject(
                int(arrays["object_head"][item]),
                (int(arrays["object_span"][item, 0]), int(arrays["object_span"][item, 1])),
                names[arrays["object_name"][item]],
            )
            for item in objects
        ),
        attributes=tuple(
            TextAttribute(
                int(arrays["attribute_object"][item]),
                names[arrays["attribute_name"][item]],
                tuple(
                    int(token)
                    for token in arrays["attribute_tokens"][
                        slice(*arrays["attribute_token_offsets"][item : item + 2])
                    ]
                ),
            )
            for item in attributes
        ),
        relations=tuple(
            TextRelation(
                int(arrays["relation_subject"][item]),
                names[arrays["relation_name"][item]],
                int(arrays["relation_object"][item]),
                tuple(
                    int(token)
                    for token in arrays["relation_tokens"][
                        slice(*arrays["relation_token_offsets"][item : item + 2])
                    ]
                ),
            )
            for item in relations
        ),
    )


def tokens_of(arrays: Mapping[str, NDArray], place: int) -> tuple[str, ...]:
    """The tokens of one caption of a shard."""
    joined = _unpack(arrays["tokens"], arrays["token_offsets"], place)
    return tuple(joined.split("\0")) if joined else ()


def text_of(arrays: Mapping[str, NDArray], place: int) -> str:
    """The caption itself."""
    return _unpack(arrays["text"], arrays["text_offsets"], place)


def _ints(values: Sequence[Any]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def _joined(parts: Sequence[NDArray], dtype: type, columns: int | None = None) -> NDArray:
    if not parts:
        return np.zeros((0, columns) if columns else 0, dtype)
    return np.concatenate(parts).astype(dtype)


def _pack(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # Lone surrogates cannot be written as UTF-8; they become question marks.
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), ragged_offsets([len(part) for part in encoded])


def _unpack(data: NDArray, offsets: NDArray, place: int) -> str:
    return data[offsets[place] : offsets[place + 1]].tobytes().decode("utf-8")
