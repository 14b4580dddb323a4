"""The graph store: text scene graphs and cross-modal edges of a corpus, as arrays that training maps.

One row a caption. Ragged parts (objects, attributes, relations, edges) lie end to end with an array of
offsets each; names are numbers into a table that each shard carries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.graphs.priors import Priors
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, region_edges
from tbkin_core.names.lexicon import lemmatize_name
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation
from tbkin_core.support.shards import StoreReader, ragged_offsets

COMMAND = "tbkin build-graphs DATA"
PRIORS = "priors.json"


@dataclass(frozen=True, slots=True)
class GraphImage:
    """What is stored of one image: its regions as the edges number them.

    Attributes:
        boxes: (K, 4) xyxy pixels.
        labels: K names, "" unknown.
        attributes: (region, attribute) as people annotated them.
        relations: (subject, predicate, object) between regions, as people annotated them.
        annotated: The regions that are an object of that annotation.
    """

    image_id: ImageId
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    attributes: tuple[tuple[int, str], ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    annotated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RaggedEdges:
    """Cross-modal edges of N captions end to end.

    Attributes:
        offsets: (N+1,) int64.
        object: (E,) int32 object number within its caption.
        region: (E,) int32 region number within the caption's image.
        weight: (E,) float32.
    """

    offsets: NDArray[np.int64]
    object: NDArray[np.int32]
    region: NDArray[np.int32]
    weight: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GraphShard:
    """N captions with their graphs, and their images.

    Attributes:
        text_ids, texts, splits: N each.
        image: N numbers into `images`, -1 without one.
        graphs: N text scene graphs.
        cross: Their cross-modal edges.
        images: Each image once.
    """

    text_ids: Sequence[int | str]
    texts: Sequence[str]
    splits: Sequence[str]
    image: Sequence[int]
    graphs: Sequence[TextGraph]
    cross: RaggedEdges
    images: Sequence[GraphImage]


def pack_shard(shard: GraphShard) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The arrays and the metadata of a shard, as they are written."""
    names: dict[str, int] = {}
    graphs, images = shard.graphs, shard.images
    objects = [item for graph in graphs for item in graph.objects]
    attributes = [item for graph in graphs for item in graph.attributes]
    relations = [item for graph in graphs for item in graph.relations]
    text, text_offsets = _pack(shard.texts)
    tokens, token_offsets = _pack([_join_tokens(graph.tokens) for graph in graphs])
    arrays: dict[str, NDArray] = {
        "text": text,
        "text_offsets": text_offsets,
        "tokens": tokens,
        "token_offsets": token_offsets,
        "image": _ints(shard.image),
        "object_offsets": ragged_offsets([len(graph.objects) for graph in graphs]),
        "object_head": _ints([item.head for item in objects]),
        "object_span": _ints([end for item in objects for end in item.span]).reshape(-1, 2),
        "object_name": _ints(_numbers(names, (item.name for item in objects))),
        "attribute_offsets": ragged_offsets([len(graph.attributes) for graph in graphs]),
        "attribute_object": _ints([item.object for item in attributes]),
        "attribute_name": _ints(_numbers(names, (item.name for item in attributes))),
        "attribute_token_offsets": ragged_offsets([len(item.tokens) for item in attributes]),
        "attribute_tokens": _ints([token for item in attributes for token in item.tokens]),
        "relation_offsets": ragged_offsets([len(graph.relations) for graph in graphs]),
        "relation_subject": _ints([item.subject for item in relations]),
        "relation_object": _ints([item.object for item in relations]),
        "relation_name": _ints(_numbers(names, (item.predicate for item in relations))),
        "relation_token_offsets": ragged_offsets([len(item.tokens) for item in relations]),
        "relation_tokens": _ints([token for item in relations for token in item.tokens]),
        "cross_offsets": shard.cross.offsets,
        "cross_object": shard.cross.object,
        "cross_region": shard.cross.region,
        "cross_weight": shard.cross.weight,
        "region_offsets": ragged_offsets([len(image.boxes) for image in images]),
        "region_boxes": _joined([np.asarray(image.boxes).reshape(-1, 4) for image in images], np.float32, 4),
        "region_label": _ints(_numbers(names, (label for image in images for label in image.labels))),
    }
    if any(image.annotated for image in images):
        described = [item for image in images for item in image.attributes]
        related = [item for image in images for item in image.relations]
        arrays |= {
            "region_annotated_offsets": ragged_offsets([len(image.annotated) for image in images]),
            "region_annotated": _ints([region for image in images for region in image.annotated]),
            "region_attribute_offsets": ragged_offsets([len(image.attributes) for image in images]),
            "region_attribute_region": _ints([region for region, _ in described]),
            "region_attribute_name": _ints(_numbers(names, (name for _, name in described))),
            "region_relation_offsets": ragged_offsets([len(image.relations) for image in images]),
            "region_relation_subject": _ints([subject for subject, _, _ in related]),
            "region_relation_object": _ints([other for _, _, other in related]),
            "region_relation_name": _ints(_numbers(names, (name for _, name, _ in related))),
        }
    return arrays, {
        "text_ids": list(shard.text_ids),
        "splits": list(shard.splits),
        "image_ids": [image.image_id for image in images],
        "names": list(names),
    }


def shard_counts(arrays: Mapping[str, NDArray], names: Sequence[str], keep: NDArray[np.bool_]) -> Priors:
    """Objects, attributes and relations of the captions of a shard where (N,) `keep` is True, counted."""
    base = len(names)
    counts = Priors()

    def per_item(kind: str) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which items count, and where the objects of each one's caption begin."""
        lengths = np.diff(arrays[f"{kind}_offsets"])
        return np.repeat(keep, lengths), np.repeat(arrays["object_offsets"][:-1], lengths)

    object_name = arrays["object_name"].astype(np.int64)
    chosen, _ = per_item("object")
    for name, count in _tally(object_name[chosen]):
        counts.objects[names[name]] += count
    chosen, first = per_item("attribute")
    holder = object_name[first + arrays["attribute_object"]]
    for key, count in _tally((holder * base + arrays["attribute_name"])[chosen]):
        counts.attributes[names[key // base], names[key % base]] += count
    chosen, first = per_item("relation")
    subject = object_name[first + arrays["relation_subject"]]
    other = object_name[first + arrays["relation_object"]]
    for key, count in _tally(((subject * base + arrays["relation_name"]) * base + other)[chosen]):
        pair, last = divmod(key, base)
        counts.relations[names[pair // base], names[pair % base], names[last]] += count
    return counts


def image_counts(arrays: Mapping[str, NDArray], names: Sequence[str], images: Sequence[int]) -> Priors:
    """Annotated objects, attributes and relations of some images of a shard, counted; none where none are.

    Names become singular, as those of text objects are; what has no name does not count.
    """
    counts = Priors()
    if "region_annotated" not in arrays:
        return counts

    def part(kind: str, image: int) -> slice:
        return slice(*arrays[f"region_{kind}_offsets"][image : image + 2])

    for image in images:
        labels = arrays["region_label"][slice(*arrays["region_offsets"][image : image + 2])].tolist()
        label = {
            region: lemmatize_name(names[labels[region]])
            for region in arrays["region_annotated"][part("annotated", image)].tolist()
        }
        counts.objects.update(name for name in label.values() if name)
        attribute, relation = part("attribute", image), part("relation", image)
        for region, name in zip(
            arrays["region_attribute_region"][attribute].tolist(),
            arrays["region_attribute_name"][attribute].tolist(),
            strict=True,
        ):
            if label[region]:
                counts.attributes[label[region], names[name]] += 1
        for subject, name, other in zip(
            arrays["region_relation_subject"][relation].tolist(),
            arrays["region_relation_name"][relation].tolist(),
            arrays["region_relation_object"][relation].tolist(),
            strict=True,
        ):
            if label[subject] and label[other]:
                counts.relations[label[subject], names[name], label[other]] += 1
    return counts


def _tally(values: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    distinct, counts = np.unique(values, return_counts=True)
    return zip(distinct.tolist(), counts.tolist(), strict=True)


class GraphStore:
    """Reads a graph store; needs no spaCy.

    Raises:
        DataError: No store there, a damaged shard, another format version, or it is not finished.
    """

    def __init__(self, path: Path | str) -> None:
        self._reader = StoreReader(Path(path), "graphs", COMMAND, verify=True)
        self.path = Path(path)
        if not self._reader.complete:
            raise DataError(
                f"{path}: building these graphs was interrupted", hint=f"run `{COMMAND}` again: it goes on"
            )
        self.settings = self._reader.settings
        self.summary: dict[str, Any] = self._reader.extra
        self.shards = self._reader.shards
        for _, metadata in self.shards:
            # A million captions share a handful of splits.
            metadata["splits"] = [sys.intern(split) for split in metadata["splits"]]
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
            region_attributes=self._annotated(arrays, metadata, image, "attribute", ("region", "name")),
            region_relations=self._annotated(
                arrays, metadata, image, "relation", ("subject", "name", "object")
            ),
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

    @staticmethod
    def _annotated(
        arrays: dict[str, NDArray], metadata: dict[str, Any], image: int, kind: str, columns: Sequence[str]
    ) -> tuple[tuple[Any, ...], ...]:
        """Annotated attributes or relations of an image's regions, names spelt out."""
        if image < 0 or f"region_{kind}_offsets" not in arrays:
            return ()
        part = slice(*arrays[f"region_{kind}_offsets"][image : image + 2])
        values: list[list[Any]] = [arrays[f"region_{kind}_{column}"][part].tolist() for column in columns]
        place = columns.index("name")
        values[place] = [metadata["names"][name] for name in values[place]]
        return tuple(zip(*values, strict=True))


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


def _join_tokens(tokens: Sequence[str]) -> str:
    joined = "\0".join(tokens)
    if joined.count("\0") >= max(len(tokens), 1):
        joined = "\0".join(token.replace("\0", "\ufffd") for token in tokens)
    return joined


def _numbers(table: dict[str, int], names: Iterable[str]) -> list[int]:
    """Place of each name in the table, which grows by the new ones."""
    return [table.setdefault(name, len(table)) for name in names]


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
