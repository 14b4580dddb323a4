"""Retrieval metrics: where the right one comes among all that are ranked (Hodosh et al., JAIR 2013).

Letters: N texts, M images, S ranked by the dearer model (the first S of each list), E width of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

RECALLS = (1, 5, 10)

_CELLS_AT_ONCE = 1 << 24  # of the table of similarities


@dataclass(frozen=True, slots=True)
class Shortlist:
    """For each of Q queries S of what it is answered from, and what speaks for each."""

    places: NDArray[np.int64]  # (Q, S) row of each
    similar: NDArray[np.float32]  # (Q, S) by the towers
    logits: NDArray[np.float32]  # (Q, S) that the two belong together rather than not, by the encoder
    weight: float = 0.0  # of the encoder, in the order that they are in

    @property
    def probability(self) -> NDArray[np.float32]:
        """(Q, S) that they belong together, by the encoder."""
        return np.asarray(1 / (1 + np.exp(-self.logits)), np.float32)

    @property
    def scores(self) -> NDArray[np.float32]:
        """(Q, S) what they are ranked by."""
        return self.similar + np.float32(self.weight) * self.logits

    def ordered(self, weight: float) -> Shortlist:
        """The same by falling scores where the encoder has a weight."""
        order = np.argsort(-replace(self, weight=weight).scores, axis=1, kind="stable")

        def sorted_by(part: NDArray) -> NDArray:
            return np.take_along_axis(part, order, axis=1)

        return Shortlist(sorted_by(self.places), sorted_by(self.similar), sorted_by(self.logits), weight)


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which texts are true of which images: P pairs."""

    texts: NDArray[np.int64]  # (P,)
    images: NDArray[np.int64]  # (P,)
    said: NDArray[np.int64]  # (N,) one number for texts of the same words
    shared: int  # texts that are said of several images

    @classmethod
    def of(cls, texts: Sequence[str], images: NDArray[np.int64]) -> Relevance:
        """From N texts and the image (N,) of each; the same words are true of all images they are said of."""
        groups: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            groups.setdefault(" ".join(text.split()).casefold(), []).append(number)
        pairs, shared = [], 0
        said = np.zeros(len(texts), np.int64)
        for number, members in enumerate(groups.values()):
            said[members] = number
            said_of = np.unique(images[members])
            shared += len(members) if len(said_of) > 1 else 0
            pairs.append(np.stack(np.meshgrid(members, said_of), axis=-1).reshape(-1, 2))
        both = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
        return cls(both[:, 0], both[:, 1], said, shared)

    def ranks(
        self,
        texts: NDArray[np.float32],
        images: NDArray[np.float32],
        by_text: Shortlist | None = None,
        by_image: Shortlist | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) rank of the image of each text, and (M,) of the best text of each image, as `ranks` has them.

        Args:
            texts, images: (N, E) and (M, E).
            by_text, by_image: The first images of each text, and texts of each image, in their final order.
        """
        return (
            ranks(texts, images, (self.texts, self.images), by_text),
            ranks(images, texts, (self.images, self.texts), by_image),
        )


def ranks(
    queries: NDArray[np.float32],
    answers: NDArray[np.float32],
    relevant: tuple[NDArray[np.int64], NDArray[np.int64]],
    reranked: Shortlist | None = None,
) -> NDArray[np.int64]:
    """(Q,) rank, from 1, of the best right answer of each query; what scores as much counts against it.

    Args:
        queries, answers: (Q, E) and (A, E) vectors whose products rank.
        relevant: (P,) queries and (P,) answers that are right for them, one at least for each query.
        reranked: The first of each list in their final order; what is not on it keeps its place.
    """
    found = np.zeros(len(queries), np.int64)
    order = np.argsort(relevant[0], kind="stable")
    own, right = relevant[0][order], relevant[1][order]
    starts = np.searchsorted(own, np.arange(len(queries) + 1))
    for begin, end in _parts(queries, answers):
        similar = queries[begin:end] @ answers.T
        pairs = slice(starts[begin], starts[end])
        rows, columns = own[pairs] - begin, right[pairs]
        best = np.full(end - begin, -np.inf, np.float32)
        np.maximum.at(best, rows, similar[rows, columns])
        ahead = similar >= best[:, None]
        ahead[rows, columns] = False
        found[begin:end] = 1 + ahead.sum(axis=1)
    if reranked is not None:
        is_right = np.zeros_like(reranked.places, np.bool_)
        for query in range(len(queries)):
            wanted = right[starts[query] : starts[query + 1]]
            is_right[query] = np.isin(reranked.places[query], wanted)
        listed = is_right.any(axis=1)
        scores = reranked.scores
        best = np.where(is_right, scores, -np.inf).max(axis=1, initial=-np.inf)
        ahead = ((scores >= best[:, None]) & ~is_right).sum(axis=1)
        # What is on the list comes before all that is not.
        found = np.where(listed, 1 + ahead, np.maximum(found, is_right.shape[1] + 1))
    return found


def recalls(rank: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """ "R@1", "R@5" and "R@10" of (Q,) ranks, each as (Q,) 100 or 0."""
    return {f"R@{most}": np.where(rank <= most, 100.0, 0.0) for most in RECALLS}


def chances(right: NDArray[np.int64], answers: int) -> dict[str, NDArray[np.float64]]:
    """What an order by chance reaches, as `recalls`, where (Q,) so many of the answers are right."""
    found = {}
    for most in RECALLS:
        missed = np.ones(len(right))
        for place in range(min(most, answers)):
            missed *= np.maximum(answers - right - place, 0) / (answers - place)
        found[f"R@{most}"] = 100 * (1 - missed)
    return found


def median_by_chance(right: NDArray[np.int64], answers: int) -> float:
    """The rank that an order by chance reaches for half of the queries; `right` as of `chances`."""
    counts, often = np.unique(right, return_counts=True)
    missed = np.ones(len(counts))
    for place in range(answers):
        missed *= np.maximum(answers - counts - place, 0) / (answers - place)
        if np.average(1 - missed, weights=often) >= 0.5 - 1e-12:
            return float(place + 1)
    return float(answers)


def nearest(
    queries: NDArray[np.float32], answers: NDArray[np.float32], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of (Q, E) queries the `most` answers of (A, E), or all, that are most similar, best first.

    Returns:
        (Q, S) their rows, and (Q, S) the products.
    """
    most = min(most, len(answers))
    places = np.zeros((len(queries), most), np.int64)
    scores = np.zeros((len(queries), most), np.float32)
    for begin, end in _parts(queries, answers):
        similar = queries[begin:end] @ answers.T
        own = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        found = np.take_along_axis(similar, own, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        places[begin:end] = np.take_along_axis(own, order, axis=1)
        scores[begin:end] = np.take_along_axis(found, order, axis=1)
    return places, scores


def _parts(queries: NDArray, answers: NDArray) -> Iterator[tuple[int, int]]:
    """Where parts of the queries begin and end of which a table with all answers is not too large."""
    size = max(1, _CELLS_AT_ONCE // max(len(answers), 1))
    for begin in range(0, len(queries), size):
        yield begin, min(begin + size, len(queries))
