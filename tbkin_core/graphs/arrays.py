"""One shard of the graph store: text scene graphs, regions and cross-modal edges of captions, as arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.features.regions import ImageId
from tbkin_core.graphs.priors import Priors
from tbkin_core.names.lexicon import lemmatize_name
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation
from tbkin_core.support.shards import ragged_offsets


@dataclass(frozen=True, slots=True)
class GraphImage:
    """What is stored of one image: its regions as the edges number them."""

    image_id: ImageId
    boxes: NDArray[np.float32]  # (K, 4) xyxy pixels
    labels: tuple[str, ...]  # K names, "" unknown
    attributes: tuple[tuple[int, str], ...] = ()  # (region, attribute) as people annotated them
    relations: tuple[tuple[int, str, int], ...] = ()  # between regions, likewise
    annotated: tuple[int, ...] = ()  # the regions that are an object of that annotation


@dataclass(frozen=True, slots=True)
class RaggedEdges:
    """Cross-modal edges of N captions end to end."""

    offsets: NDArray[np.int64]  # (N+1,) int64
    object: NDArray[np.int32]  # (E,) int32 object number within its caption
    region: NDArray[np.int32]  # (E,) int32 region number within the caption's image
    weight: NDArray[np.float32]  # (E,) float32


@dataclass(frozen=True, slots=True)
class ShardCaptions:
    """N captions and their images."""

    text_ids: list[int | str]  # N, as are texts and splits
    texts: list[str]
    splits: list[str]
    image: list[int]  # N numbers into `images`, -1 without one
    images: list[GraphImage]  # each image once


@dataclass(frozen=True, slots=True)
class RegionAnnotations:
    """What people annotated about the regions of the I images of a shard, see `ShardArrays`."""

    annotated_offsets: NDArray[np.int64]  # (I+1,)
    annotated: NDArray[np.int32]  # regions that are an object of the annotation
    attribute_offsets: NDArray[np.int64]  # (I+1,)
    attribute_region: NDArray[np.int32]
    attribute_name: NDArray[np.int32]
    relation_offsets: NDArray[np.int64]  # (I+1,)
    relation_subject: NDArray[np.int32]  # region
    relation_object: NDArray[np.int32]  # region
    relation_name: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ShardArrays:
    """The graphs of N captions and the regions of their I images, as they lie on disk.

    Ragged parts lie end to end: those of caption (image, attribute, relation) i are the ones from
    `..._offsets[i]` to `..._offsets[i + 1]`. There are O objects, A attributes, R relations, E cross-modal
    edges and K regions in all. Numbers of tokens and objects count within the caption, those of regions
    within the image; `..._name` and `region_label` are numbers into `names`.
    """

    text_ids: list[int | str]  # N
    splits: list[str]  # N
    image_ids: list[ImageId]  # I
    names: list[str]  # "" is the label of an unknown region
    text: NDArray[np.uint8]  # UTF-8 of the captions
    text_offsets: NDArray[np.int64]  # (N+1,)
    tokens: NDArray[np.uint8]  # UTF-8 of their tokens, a zero byte between two
    token_offsets: NDArray[np.int64]  # (N+1,)
    image: NDArray[np.int32]  # (N,) into image_ids, -1 without an image
    object_offsets: NDArray[np.int64]  # (N+1,)
    object_head: NDArray[np.int32]  # (O,) token
    object_span: NDArray[np.int32]  # (O, 2) first token, and the one after the last
    object_name: NDArray[np.int32]  # (O,)
    attribute_offsets: NDArray[np.int64]  # (N+1,)
    attribute_object: NDArray[np.int32]  # (A,) object
    attribute_name: NDArray[np.int32]  # (A,)
    attribute_token_offsets: NDArray[np.int64]  # (A+1,)
    attribute_tokens: NDArray[np.int32]  # tokens
    relation_offsets: NDArray[np.int64]  # (N+1,)
    relation_subject: NDArray[np.int32]  # (R,) object
    relation_object: NDArray[np.int32]  # (R,) object
    relation_name: NDArray[np.int32]  # (R,)
    relation_token_offsets: NDArray[np.int64]  # (R+1,)
    relation_tokens: NDArray[np.int32]  # tokens
    cross_offsets: NDArray[np.int64]  # (N+1,)
    cross_object: NDArray[np.int32]  # (E,) object
    cross_region: NDArray[np.int32]  # (E,) region
    cross_weight: NDArray[np.float32]  # (E,) in [0, 1]
    region_offsets: NDArray[np.int64]  # (I+1,)
    region_boxes: NDArray[np.float32]  # (K, 4) xyxy pixels
    region_label: NDArray[np.int32]  # (K,)
    annotations: RegionAnnotations | None = None  # where people annotated any of the regions

    def __len__(self) -> int:
        return len(self.text_ids)

    def to_file(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Arrays and metadata, as `write_shard` takes them."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.annotations is not None:
            arrays |= {f"region_{name}": getattr(self.annotations, name) for name in _ANNOTATION_ARRAYS}
        return arrays, {name: getattr(self, name) for name in _LISTS}

    @classmethod
    def from_file(cls, path: Path, arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> ShardArrays:
        """What `read_shard` found at `path`.

        Raises:
            DataError: It is no shard of graphs.
        """
        # Plain arrays: every slice of a memmap pays for being one.
        plain = {name: np.asarray(array) for name, array in arrays.items()}
        try:
            annotations = None
            if "region_annotated" in plain:
                annotations = RegionAnnotations(*(plain[f"region_{name}"] for name in _ANNOTATION_ARRAYS))
            content: dict[str, Any] = {name: plain[name] for name in _ARRAYS}
            content |= {name: metadata[name] for name in _LISTS}
            # A million captions share a handful of splits, and shards share most names.
            content |= {name: [sys.intern(text) for text in metadata[name]] for name in ("splits", "names")}
            shard = cls(**content, annotations=annotations)
            shard._check()
            return shard
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: is no shard of graphs ({error})",
                hint="remove this file and run `tbkin build-graphs DATA` again: it makes what is missing",
            ) from error

    def _check(self) -> None:
        """A ValueError where parts do not fit each other, so that nobody who reads them has to ask."""
        if len(self.splits) != len(self.text_ids):
            raise ValueError("splits")
        for name in ("text_ids", "image_ids"):
            if not all(type(one) in (int, str) for one in getattr(self, name)):
                raise ValueError(name)
        _check_parts(self, _PARTS)
        captions = np.diff(self.object_offsets)
        _check_range("image", self.image, -1, len(self.image_ids))
        if len(self.image) != len(captions):
            raise ValueError("image")
        images = np.append(np.diff(self.region_offsets), 0)  # the last one serves image -1
        zeros = np.concatenate([[0], np.cumsum(self.tokens == 0)])[self.token_offsets]
        words = np.diff(zeros) + (np.diff(self.token_offsets) > 0)
        for part in ("object", "attribute", "relation", "cross"):
            within = np.repeat(np.arange(len(captions)), np.diff(getattr(self, f"{part}_offsets")))
            of_caption: dict[str, Any] = {"object": captions[within], "subject": captions[within]}
            of_caption |= {"region": images[self.image[within]], "head": words[within]}
            of_caption |= {"span": words[within][:, None] + 1, "name": len(self.names)}
            for what, limit in of_caption.items():
                if (values := getattr(self, f"{part}_{what}", None)) is not None:
                    _check_range(f"{part}_{what}", values, 0, limit)
            if (tokens := getattr(self, f"{part}_tokens", None)) is not None:
                each = np.diff(getattr(self, f"{part}_token_offsets"))
                _check_range(f"{part}_tokens", tokens, 0, np.repeat(words[within], each))
        _check_range("region_label", self.region_label, 0, len(self.names))
        if not (np.isfinite(self.cross_weight).all() and np.isfinite(self.region_boxes).all()):
            raise ValueError("numbers that are not finite")
        if (known := self.annotations) is not None:
            _check_parts(known, _ANNOTATED_PARTS, len(self.image_ids))
            for part, columns in (
                ("annotated", ("annotated",)),
                ("attribute", ("attribute_region",)),
                ("relation", ("relation_subject", "relation_object")),
            ):
                regions = np.repeat(images[:-1], np.diff(getattr(known, f"{part}_offsets")))
                for column in columns:
                    _check_range(column, getattr(known, column), 0, regions)
            for column in ("attribute_name", "relation_name"):
                _check_range(column, getattr(known, column), 0, len(self.names))

    def caption(self, row: int) -> str:
        """The text of a caption."""
        return _unpack(self.text, self.text_offsets, row)

    def caption_tokens(self, row: int) -> tuple[str, ...]:
        """The tokens of a caption."""
        joined = _unpack(self.tokens, self.token_offsets, row)
        return tuple(joined.split("\0")) if joined else ()

    def text_graph(self, row: int) -> TextGraph:
        """The text scene graph of a caption."""
        objects = range(*self.object_offsets[row : row + 2])
        attributes = range(*self.attribute_offsets[row : row + 2])
        relations = range(*self.relation_offsets[row : row + 2])
        return TextGraph(
            tokens=self.caption_tokens(row),
            objects=tuple(
                TextObject(
                    int(self.object_head[item]),
                    (int(self.object_span[item, 0]), int(self.object_span[item, 1])),
                    self.names[self.object_name[item]],
                )
                for item in objects
            ),
            attributes=tuple(
                TextAttribute(
                    int(self.attribute_object[item]),
                    self.names[self.attribute_name[item]],
                    tuple(self.attribute_tokens[_part(self.attribute_token_offsets, item)].tolist()),
                )
                for item in attributes
            ),
            relations=tuple(
                TextRelation(
                    int(self.relation_subject[item]),
                    self.names[self.relation_name[item]],
                    int(self.relation_object[item]),
                    tuple(self.relation_tokens[_part(self.relation_token_offsets, item)].tolist()),
                )
                for item in relations
            ),
        )

    def image_regions(self, image: int) -> GraphImage:
        """What is stored of one of the images."""
        regions = _part(self.region_offsets, image)
        labels = tuple(self.names[label] for label in self.region_label[regions])
        found = GraphImage(self.image_ids[image], self.region_boxes[regions], labels)
        known = self.annotations
        if known is None:
            return found
        described, related = _part(known.attribute_offsets, image), _part(known.relation_offsets, image)
        attributes = [self.names[name] for name in known.attribute_name[described]]
        predicates = [self.names[name] for name in known.relation_name[related]]
        subjects, objects = known.relation_subject[related].tolist(), known.relation_object[related].tolist()
        return replace(
            found,
            attributes=tuple(zip(known.attribute_region[described].tolist(), attributes, strict=True)),
            relations=tuple(zip(subjects, predicates, objects, strict=True)),
            annotated=tuple(known.annotated[_part(known.annotated_offsets, image)].tolist()),
        )


def _check_parts(
    owner: Any, parts: Mapping[str, tuple[str, tuple[str, ...]]], images: int | None = None
) -> None:
    """A ValueError where offsets do not cut arrays into parts, or these are of other types or shapes."""
    for name, (rows, columns) in parts.items():
        offsets = getattr(owner, name)
        count = images if images is not None else len(getattr(owner, rows))
        if offsets.dtype != np.int64 or offsets.shape != (count + 1,) or offsets[0] != 0:
            raise ValueError(name)
        for column in columns:
            values = getattr(owner, column)
            shape = (int(offsets[-1]), *_WIDE.get(column, ()))
            if values.dtype != _TYPES.get(column, np.int32) or values.shape != shape:
                raise ValueError(column)
        if (np.diff(offsets) < 0).any():
            raise ValueError(name)


def _check_range(name: str, values: NDArray, low: int, limit: Any) -> None:
    if values.dtype != np.int32 or (values < low).any() or (values >= limit).any():
        raise ValueError(name)


# Of each offsets: what has as many rows, and what they cut.
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text_offsets": ("text_ids", ("text",)),
    "token_offsets": ("text_ids", ("tokens",)),
    "object_offsets": ("text_ids", ("object_head", "object_span", "object_name")),
    "attribute_offsets": ("text_ids", ("attribute_object", "attribute_name")),
    "attribute_token_offsets": ("attribute_object", ("attribute_tokens",)),
    "relation_offsets": ("text_ids", ("relation_subject", "relation_object", "relation_name")),
    "relation_token_offsets": ("relation_subject", ("relation_tokens",)),
    "cross_offsets": ("text_ids", ("cross_object", "cross_region", "cross_weight")),
    "region_offsets": ("image_ids", ("region_boxes", "region_label")),
}
_ANNOTATED_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "annotated_offsets": ("", ("annotated",)),
    "attribute_offsets": ("", ("attribute_region", "attribute_name")),
    "relation_offsets": ("", ("relation_subject", "relation_object", "relation_name")),
}
_TYPES = {"text": np.uint8, "tokens": np.uint8, "cross_weight": np.float32, "region_boxes": np.float32}
_WIDE = {"object_span": (2,), "region_boxes": (4,)}
_LISTS = ("text_ids", "splits", "image_ids", "names")
_ARRAYS = tuple(field.name for field in fields(ShardArrays) if field.name not in (*_LISTS, "annotations"))
_ANNOTATION_ARRAYS = tuple(field.name for field in fields(RegionAnnotations))


def pack_shard(captions: ShardCaptions, graphs: Sequence[TextGraph], cross: RaggedEdges) -> ShardArrays:
    """Captions and their images, with their text graphs and cross-modal edges, as arrays."""
    names: dict[str, int] = {}
    images = captions.images
    objects = [item for graph in graphs for item in graph.objects]
    attributes = [item for graph in graphs for item in graph.attributes]
    relations = [item for graph in graphs for item in graph.relations]
    text, text_offsets = _pack(captions.texts)
    tokens, token_offsets = _pack([_join_tokens(graph.tokens) for graph in graphs])
    return ShardArrays(
        text_ids=captions.text_ids,
        splits=captions.splits,
        image_ids=[image.image_id for image in images],
        text=text,
        text_offsets=text_offsets,
        tokens=tokens,
        token_offsets=token_offsets,
        image=_ints(captions.image),
        object_offsets=ragged_offsets([len(graph.objects) for graph in graphs]),
        object_head=_ints([item.head for item in objects]),
        object_span=_ints([end for item in objects for end in item.span]).reshape(-1, 2),
        object_name=_ints(number_names(names, (item.name for item in objects))),
        attribute_offsets=ragged_offsets([len(graph.attributes) for graph in graphs]),
        attribute_object=_ints([item.object for item in attributes]),
        attribute_name=_ints(number_names(names, (item.name for item in attributes))),
        attribute_token_offsets=ragged_offsets([len(item.tokens) for item in attributes]),
        attribute_tokens=_ints([token for item in attributes for token in item.tokens]),
        relation_offsets=ragged_offsets([len(graph.relations) for graph in graphs]),
        relation_subject=_ints([item.subject for item in relations]),
        relation_object=_ints([item.object for item in relations]),
        relation_name=_ints(number_names(names, (item.predicate for item in relations))),
        relation_token_offsets=ragged_offsets([len(item.tokens) for item in relations]),
        relation_tokens=_ints([token for item in relations for token in item.tokens]),
        cross_offsets=cross.offsets,
        cross_object=cross.object,
        cross_region=cross.region,
        cross_weight=cross.weight,
        region_offsets=ragged_offsets([len(image.boxes) for image in images]),
        region_boxes=np.concatenate([np.zeros((0, 4)), *(one.boxes for one in images)]).astype(np.float32),
        region_label=_ints(number_names(names, (label for image in images for label in image.labels))),
        annotations=_pack_annotations(images, names),
        names=list(names),  # last: what comes before fills the table
    )


def _pack_annotations(images: Sequence[GraphImage], names: dict[str, int]) -> RegionAnnotations | None:
    if not any(image.annotated for image in images):
        return None
    described = [item for image in images for item in image.attributes]
    related = [item for image in images for item in image.relations]
    return RegionAnnotations(
        annotated_offsets=ragged_offsets([len(image.annotated) for image in images]),
        annotated=_ints([region for image in images for region in image.annotated]),
        attribute_offsets=ragged_offsets([len(image.attributes) for image in images]),
        attribute_region=_ints([region for region, _ in described]),
        attribute_name=_ints(number_names(names, (name for _, name in described))),
        relation_offsets=ragged_offsets([len(image.relations) for image in images]),
        relation_subject=_ints([subject for subject, _, _ in related]),
        relation_object=_ints([other for _, _, other in related]),
        relation_name=_ints(number_names(names, (name for _, name, _ in related))),
    )


def shard_counts(shard: ShardArrays, keep: NDArray[np.bool_]) -> Priors:
    """Objects, attributes and relations of the captions of a shard where (N,) `keep` is True, counted."""
    names, base = shard.names, len(shard.names)
    counts = Priors()

    def per_item(offsets: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which items count, and where the objects of each one's caption begin."""
        lengths = np.diff(offsets)
        return np.repeat(keep, lengths), np.repeat(shard.object_offsets[:-1], lengths)

    object_name = shard.object_name.astype(np.int64)
    chosen, _ = per_item(shard.object_offsets)
    for name, count in _tally(object_name[chosen]):
        counts.objects[names[name]] += count
    chosen, first = per_item(shard.attribute_offsets)
    holder = object_name[first + shard.attribute_object]
    for key, count in _tally((holder * base + shard.attribute_name)[chosen]):
        counts.attributes[names[key // base], names[key % base]] += count
    chosen, first = per_item(shard.relation_offsets)
    subject = object_name[first + shard.relation_subject]
    other = object_name[first + shard.relation_object]
    for key, count in _tally(((subject * base + shard.relation_name) * base + other)[chosen]):
        pair, last = divmod(key, base)
        counts.relations[names[pair // base], names[pair % base], names[last]] += count
    return counts


def image_counts(shard: ShardArrays, images: Sequence[int]) -> Priors:
    """Annotated objects, attributes and relations of some images of a shard, counted; none where none are.

    Names become singular, as those of text objects are; what has no name does not count.
    """
    counts = Priors()
    for image in map(shard.image_regions, images):
        name_of = {region: lemmatize_name(image.labels[region]) for region in image.annotated}
        counts.objects.update(name for name in name_of.values() if name)
        counts.attributes.update(
            (name_of[region], attribute) for region, attribute in image.attributes if name_of[region]
        )
        counts.relations.update(
            (name_of[subject], predicate, name_of[other])
            for subject, predicate, other in image.relations
            if name_of[subject] and name_of[other]
        )
    return counts


def _tally(values: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    distinct, counts = np.unique(values, return_counts=True)
    return zip(distinct.tolist(), counts.tolist(), strict=True)


def _join_tokens(tokens: Sequence[str]) -> str:
    joined = "\0".join(tokens)
    if joined.count("\0") >= max(len(tokens), 1):
        joined = "\0".join(token.replace("\0", "\ufffd") for token in tokens)
    return joined


def number_names(table: dict[str, int], names: Iterable[str]) -> list[int]:
    """Place of each name in the table, which grows by the new ones."""
    return [table.setdefault(name, len(table)) for name in names]


def _ints(values: Sequence[Any]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def _pack(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # Lone surrogates cannot be written as UTF-8; they become question marks.
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), ragged_offsets([len(part) for part in encoded])


def _part(offsets: NDArray, row: int) -> slice:
    """Where the parts of a ragged row lie."""
    return slice(*offsets[row : row + 2])


def _unpack(data: NDArray, offsets: NDArray, place: int) -> str:
    return data[offsets[place] : offsets[place + 1]].tobytes().decode("utf-8", errors="replace")
