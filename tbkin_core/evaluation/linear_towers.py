"""A floor for retrieval: canonical correlation between a caption's words and the mean vector of its image.

Of all pairs of linear maps to E numbers it takes those under which a caption and its image correlate most
(Hotelling 1936; as "CCA" the usual baseline of the task: Hodosh et al., JAIR 2013; Klein et al., CVPR 2015).
Numbers count by a power of their correlation (Gong et al., IJCV 2014). How much is added to the diagonals,
and which power, is chosen on a part of the training images. Letters: N captions, V words, I images,
D components.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.evaluation.linear import SeenImages, bags, common_words, drawn_order, mean_vectors
from tbkin_core.evaluation.ranking import Relevance

if TYPE_CHECKING:
    from tbkin_core.tasks.inputs import Inputs

logger = logging.getLogger("tbkin")

RIDGES = (0.01, 0.1, 1.0)
"""Added to the variances of words and of components, as a share of their mean."""
POWERS = (1.0, 2.0, 4.0)
MOST_CAPTIONS = 150_000
_HELD_OUT, _MOST_HELD = 0.2, 1000  # of the images, for choosing


@dataclass(frozen=True, slots=True)
class LinearTowers:
    """Both maps, fitted by `fit_linear_towers`."""

    words: dict[str, int]  # word to its column
    weight: NDArray[np.float32]  # (V,) of a word: rare ones say more
    mean: NDArray[np.float32]  # (V,) of the weighted words of a caption
    images: SeenImages
    text_map: NDArray[np.float32]  # (V, E)
    image_map: NDArray[np.float32]  # (D, E)
    correlation: NDArray[np.float32]  # (E,) falling, in [0, 1]
    power: float
    values: dict[str, Any]  # what was chosen

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, E) vectors of length 1."""
        found = bags(texts, self.words).multiply(self.weight).tocsr() @ self.text_map
        return self._unit(found - self.mean @ self.text_map)

    def vectors(self, means: NDArray[np.float32]) -> NDArray[np.float32]:
        """(I, E) vectors of length 1 of the mean vectors (I, F) of images."""
        return self._unit(self.images.components(means) @ self.image_map)

    def as_layers(
        self, vocabulary: Mapping[str, int], mean: NDArray[np.float32], scale: NDArray[np.float32], width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The maps for word pieces and standardised region vectors, so large that vectors are about √E long.

        Args:
            vocabulary: Number of each word piece; a word that is several pieces is left out.
            mean, scale: (F,) by which region vectors are standardised.
            width: E, the strongest correlations.

        Returns:
            (V, E) and (E,) for texts, (F, E) and (E,) for images.
        """
        counts = (self.correlation**self.power)[:width]
        text_map, image_map = self.text_map[:, :width] * counts, self.image_map[:, :width] * counts
        # The components of the training images have a variance of about 1 along each correlation.
        size = np.float32(np.sqrt(width) / np.linalg.norm(counts))
        words = np.zeros((len(vocabulary), width), np.float32)
        for word, column in self.words.items():
            if word in vocabulary:
                words[vocabulary[word]] = size * self.weight[column] * text_map[column]
        images = size * (self.images.turn @ image_map)
        bias = (mean - self.images.mean) @ images
        return words, -size * (self.mean @ text_map), (images / scale[:, None]).astype(np.float32), bias

    def _unit(self, found: NDArray) -> NDArray[np.float32]:
        found = found * self.correlation**self.power
        length = np.linalg.norm(found, axis=1, keepdims=True)
        return (found / np.maximum(length, 1e-12)).astype(np.float32)


def fit_linear_towers(texts: Sequence[str], inputs: Inputs) -> LinearTowers | None:
    """Fit to N captions and their images; None where there are too few images to choose on.

    The same captions in another order give the same maps. Of more captions than `MOST_CAPTIONS` those of some
    images are taken.
    """
    started = time.monotonic()
    order = drawn_order(range(len(texts)), texts, inputs)[:MOST_CAPTIONS]
    texts = [texts[row] for row in order]
    rows, image = np.unique(inputs.rows[order], return_inverse=True)
    drawn = list(dict.fromkeys(image.tolist()))
    held = drawn[-min(max(1, round(_HELD_OUT * len(drawn))), _MOST_HELD) :]
    if len(drawn) < 10:
        return None
    means = mean_vectors(inputs, rows)
    judged = np.isin(image, held)
    best, most = (RIDGES[0], POWERS[0]), -1.0
    learnt = [text for text, out in zip(texts, judged, strict=True) if not out]
    fit = _moments(learnt, means, image[~judged])
    for ridge in RIDGES:
        fitted = fit(ridge)
        for power in POWERS:
            recall = _recall(replace(fitted, power=power), texts, means, image, judged)
            if recall > most:
                most, best = recall, (ridge, power)
    ridge, power = best
    found = replace(_moments(texts, means, image)(ridge), power=power)
    values = {"captions": len(texts), "images": len(rows), "words": len(found.words)}
    text = "linear towers to compare with: %d captions, %d words, %.0f s"
    logger.info(text, len(texts), len(found.words), time.monotonic() - started)
    return replace(found, values={**values, "ridge": ridge, "power": power})


def _moments(
    texts: Sequence[str], means: NDArray[np.float32], image: NDArray[np.int64]
) -> Callable[[float], LinearTowers]:
    """Of some captions and their images (N,), rows of mean vectors (I, F), the maps for each ridge."""
    from scipy.linalg import cholesky, solve_triangular, svd

    words = common_words(texts)
    bag = bags(texts, words)
    often = np.asarray(bag.sum(axis=0)).ravel()
    weight = np.log(len(texts) / np.maximum(often, 1)).astype(np.float32) + 0.1
    bag = bag.multiply(weight).tocsr()
    used, place = np.unique(image, return_inverse=True)
    seen = SeenImages.of(means[used])
    components = seen.components(means[used]).astype(np.float64)[place]  # (N, D)
    components_mean = components.mean(axis=0)
    mean = np.asarray(bag.mean(axis=0), np.float64).ravel()
    count = len(texts)

    words_covariance = (bag.T @ bag).toarray() / count - np.outer(mean, mean)
    images_covariance = components.T @ components / count - np.outer(components_mean, components_mean)
    across = bag.T @ components / count - np.outer(mean, components_mean)  # (V, D)

    def factor(covariance: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        size = len(covariance)
        added = ridge * np.trace(covariance) / size + 1e-9
        return cholesky(covariance + added * np.eye(size), lower=True)

    def fit(ridge: float) -> LinearTowers:
        of_words, of_images = factor(words_covariance, ridge), factor(images_covariance, ridge)
        both = solve_triangular(of_words, across, lower=True)
        both = solve_triangular(of_images, both.T, lower=True).T
        left, correlation, right = svd(both, full_matrices=False)
        text_map = solve_triangular(of_words.T, left, lower=False)
        image_map = solve_triangular(of_images.T, right.T, lower=False)
        return LinearTowers(
            words,
            weight,
            mean.astype(np.float32),
            seen,
            text_map.astype(np.float32),
            image_map.astype(np.float32),
            correlation.astype(np.float32),
            power=1.0,
            values={},
        )

    return fit


def _recall(
    towers: LinearTowers,
    texts: Sequence[str],
    means: NDArray[np.float32],
    image: NDArray[np.int64],
    judged: NDArray[np.bool_],
) -> float:
    """Mean of R@1 both ways among the captions that are judged by."""
    own = [text for text, out in zip(texts, judged, strict=True) if out]
    used, place = np.unique(image[judged], return_inverse=True)
    ways = Relevance.of(own, place).ranks(towers.texts(own), towers.vectors(means[used]))
    return float(np.mean([np.mean(rank == 1) for rank in ways]))
