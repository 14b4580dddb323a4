"""Texts and images that a retrieval model compares: by its towers, and pair by pair.

Letters: N texts, M images, P pairs, S shortlist, K regions, D width of the encoder, E of the towers' vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.errors import DataError
from tbkin_core.evaluation.ranking import Shortlist, nearest
from tbkin_core.features.store import FeatureStore
from tbkin_core.support.console import progress
from tbkin_core.support.shards import TOWERS, read_shard, write_shard
from tbkin_core.tasks.inputs import Inputs, to_device

if TYPE_CHECKING:
    from tbkin_core.texts.table import TextTable

logger = logging.getLogger("tbkin")

SHORTLIST = 50
"""So many of what the towers bring are ranked by the encoder."""

MANY_PAIRS = 20_000
"""From so many on it is shown how far they are."""


class PairEncoder:
    """Texts and images of a split, each encoded once for the towers, and matched pair by pair.

    Attributes:
        texts, images: (N, E) and (M, E) vectors of the towers.
        scale: What their products are multiplied by.

    Args:
        rows: (M,) images, as rows of the inputs' store.
        batch_size: Texts, images or pairs at once.
    """

    def __init__(
        self, model: Any, inputs: Inputs, rows: NDArray[np.int64], device: torch.device, batch_size: int
    ) -> None:
        self.model, self.table, self.device, self.batch_size = model, inputs.table, device, batch_size
        self.texts = embed_texts(model, inputs.table, device, batch_size)
        batches = list(embed_images(model, inputs.store, rows, device, batch_size))
        found, regions, masks = zip(*batches, strict=True)
        self.scale = model.scale.item()
        self.images = torch.cat(found).cpu().numpy()
        width = max(mask.shape[1] for mask in masks)
        self._regions = torch.cat([_widened(part, width) for part in regions])
        self._masks = torch.cat([_widened(mask, width) for mask in masks])

    def logits(self, texts: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float32]:
        """(P,) by how much P texts belong to P images rather than not, by their numbers."""
        found = np.zeros(len(texts), np.float32)
        order = np.argsort(self.table.lengths[texts], kind="stable")
        begins = range(0, len(order), self.batch_size)
        for begin in progress(begins, "ranking", total=len(begins)) if len(order) > MANY_PAIRS else begins:
            pairs = order[begin : begin + self.batch_size]
            input_ids, mask, _ = self.table.padded(texts[pairs])
            given = to_device({"input_ids": input_ids, "attention_mask": mask}, self.device)
            place = torch.from_numpy(images[pairs]).to(self.device)
            with torch.inference_mode():
                output = self.model(**given, regions=self._regions[place], region_mask=self._masks[place])
            logits = output.itm_logits.float()
            found[pairs] = (logits[:, 1] - logits[:, 0]).cpu().numpy()
        return found


def embed_texts(model: Any, table: TextTable, device: torch.device, batch_size: int) -> NDArray[np.float32]:
    """(N, E) vectors of the towers for the texts of a table."""
    order = np.argsort(table.lengths, kind="stable")
    found = np.zeros((len(table), model.config.tower_width), np.float32)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        input_ids, mask, _ = table.padded(rows)
        given = to_device({"input_ids": input_ids, "attention_mask": mask}, device)
        with torch.inference_mode():
            found[rows] = model.embed_texts(**given).cpu().numpy()
    return found


def _widened(part: Tensor, width: int) -> Tensor:
    """(B, K, ...) with K filled up with zeros."""
    missing = width - part.shape[1]
    if not missing:
        return part
    return torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], dim=1)


def embed_images(
    model: Any, store: FeatureStore, rows: NDArray[np.int64], device: torch.device, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For images, batch by batch: vectors (B, E) of the tower, what the encoder reads (B, K, D), mask (B, K).

    Args:
        rows: (M,) of the store.
    """
    names = ("features", "geometry", "mask")
    for begin in range(0, len(rows), batch_size):
        batch = store.gather(rows[begin : begin + batch_size], model.config.max_regions)
        given = to_device({name: getattr(batch, name) for name in names}, device)
        with torch.inference_mode():
            vectors, regions = model.tbkin.embed_regions(given["features"], given["geometry"])
            found = model.image_vectors(vectors, regions, given["geometry"], given["mask"])
        yield found, regions, given["mask"]
    store.settle()


def tower_vectors(
    model: Any, weights: int | None, store: FeatureStore, device: torch.device, batch_size: int = 64
) -> NDArray[np.float32]:
    """(M, E) vectors of all images of a store by a model's tower, kept in the store for the next time.

    Images that have come since are added. Where the store cannot be written to, they are made each time.

    Args:
        weights: A number that changes with the model's weights and settings; None keeps nothing.

    Raises:
        DataError: Features are damaged.
    """
    file = store.path / TOWERS
    known = _kept_vectors(file, weights, store, model.config.tower_width)
    rows = np.arange(len(known), len(store))
    if not len(rows):
        return known.astype(np.float32)
    batches = embed_images(model, store, rows, device, batch_size)
    shown = progress(batches, "towers", total=-(-len(rows) // batch_size))
    made = np.concatenate([known, *(found.half().cpu().numpy() for found, _, _ in shown)])
    if weights is not None:
        about = {"weights": weights, "content": store.content(store.image_ids)}
        try:
            write_shard(file, {"vectors": made}, about)
        except DataError as error:
            logger.warning("%s: the vectors of the towers are not kept", error.message)
    return made.astype(np.float32)


def _kept_vectors(file: Path, weights: int | None, store: FeatureStore, width: int) -> NDArray[np.float16]:
    """What a file holds of a model's vectors for the first images of a store; of another model, nothing."""
    none = np.zeros((0, width), np.float16)
    if weights is None or not file.exists():
        return none
    try:
        arrays, made_from = read_shard(file, verify=True)
    except DataError:
        return none
    vectors = arrays.get("vectors", none)
    fits = vectors.ndim == 2 and vectors.shape[1] == width and len(vectors) <= len(store)
    if not fits or made_from.get("weights") != weights:
        return none
    same = made_from.get("content") == store.content(store.image_ids[: len(vectors)])
    return np.asarray(vectors, np.float16) if same else none


def search_images(
    model: Any,
    inputs: Inputs,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    device: torch.device,
    wanted: int = SHORTLIST,
) -> Shortlist:
    """The images that the first text of some inputs fits best.

    Args:
        wanted: So many images at least are ranked.
        rows: (M,) images, of the inputs' store.
        vectors: (M, E) of these, as `tower_vectors` gives them.
    """
    text = embed_texts(model, inputs.table.part(np.array([0])), device, 1)
    places, similar = nearest(text, vectors, max(wanted, SHORTLIST))
    pairs = PairEncoder(model, inputs, rows[places[0]], device, SHORTLIST)
    order = np.arange(places.shape[1])
    logits = pairs.logits(np.zeros_like(order), order)[None]
    return Shortlist(places, pairs.scale * similar, logits).ordered(model.config.match_weight)
