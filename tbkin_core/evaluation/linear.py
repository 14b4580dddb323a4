"""A floor for answers to questions: logistic regression over a question's words, and the image's mean vector.

Of all W and b it takes those with the least mean cross-entropy of softmax(xW + b), plus decay / 2 · ‖W‖²
(L-BFGS; Liu and Nocedal 1989). x says which of the commonest words a question holds; with the image the mean
of its regions' vectors stands beside them, standardised, as its principal components. The weight decay, and
how much the image counts, are chosen on a part of the training images, never on those of another split.
Letters: N questions, V words, I images, F numbers a region, D components, C answers.
"""

from __future__ import annotations

import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.support.randomness import mix, uniform

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from tbkin_core.tasks.inputs import Inputs

logger = logging.getLogger("tbkin")

MOST_ANSWERS = 1000
MOST_WORDS = 2000
MOST_SCORES = 16_000_000
"""Questions times answers that are learnt from: about a minute of one core."""
MOST_COMPONENTS = 256
DECAYS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
SCALES = (0.1, 0.3, 1.0, 3.0)
"""Of the image beside the words: the length of its mean vector, at which a rare word has a length of 1."""
_HELD_OUT = 0.2  # of the images, for choosing
_STEPS, _LAST_STEPS = 25, 50
_AT_ONCE = 4096  # questions
_IMAGES_AT_ONCE = 256
# Name of a stream of random numbers, see `uniform`.
_IMAGE_ORDER = 21

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Examples:
    """N questions as a linear model sees them."""

    words: csr_matrix  # (N, V) 1 where a question holds a word
    vectors: NDArray[np.float32]  # (I, D), D = 0 without images
    image: NDArray[np.int64]  # (N,) row of each question's image in `vectors`

    def __len__(self) -> int:
        return len(self.image)

    def part(self, chosen: NDArray) -> Examples:
        """Some of the questions."""
        return Examples(self.words[chosen], self.vectors, self.image[chosen])

    def scores(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C) under weights (V + D + 1, C): of words, of components, and last b."""
        words = self.words.shape[1]
        scores = self.words @ weights[:words]
        scores += weights[-1]
        if self.vectors.shape[1]:
            scores += (self.vectors @ weights[words:-1])[self.image]
        return scores


def fit_linear(
    examples: Examples, labels: NDArray[np.int64], start: NDArray[np.float64], decay: float, steps: int
) -> NDArray[np.float64]:
    """Weights (V + D + 1, C) after so many steps of L-BFGS, or fewer where there is nothing more to gain.

    Args:
        labels: (N,) the right answers.
        start: (V + D + 1, C) where the search begins.
    """
    # scipy.optimize takes a while to load, and most commands need none of it.
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix

    rows, count = np.arange(len(labels)), len(labels)
    used, place = np.unique(examples.image, return_inverse=True)
    examples = Examples(examples.words, examples.vectors[used], place)
    by_word = examples.words.T.tocsr()  # (V, N)
    by_image = csr_matrix((np.ones(count, np.float32), (place, rows)), (len(used), count))
    words, components = by_word.shape[0], examples.vectors.shape[1]

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(start.shape)
        shares = examples.scores(weights.astype(np.float32))
        shares -= shares.max(axis=1, keepdims=True)
        right = shares[rows, labels]
        np.exp(shares, out=shares)
        total = shares.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - right, dtype=np.float64))
        shares /= total
        shares[rows, labels] -= 1
        gradient = np.empty_like(weights)
        gradient[:words] = by_word @ shares
        if components:
            gradient[words:-1] = examples.vectors.T @ (by_image @ shares)
        gradient[-1] = shares.sum(axis=0, dtype=np.float64)
        gradient /= count
        gradient[:-1] += decay * weights[:-1]
        return loss + decay / 2 * float(np.sum(weights[:-1] ** 2)), gradient.ravel()

    options = {"maxiter": steps, "maxcor": 5, "ftol": 1e-7, "gtol": 1e-6}
    found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)


@dataclass(frozen=True, slots=True)
class SeenImages:
    """How the mean vectors of images become D numbers each."""

    mean: NDArray[np.float32]  # (F,)
    turn: NDArray[np.float32]  # (F, D) standardises and turns to the principal components

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> SeenImages:
        """From the mean vectors (I, F) of the training images; D is `MOST_COMPONENTS` at most."""
        mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
        varies = deviation > 1e-4 * deviation.max(initial=0.0)
        # All numbers together weigh what one word does.
        scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0) / np.sqrt(max(vectors.shape[1], 1))
        turn = np.diag(scale)
        if len(scale) > MOST_COMPONENTS:
            from scipy.linalg import eigh

            standard = ((vectors - mean) * scale).astype(np.float64)
            place = (len(scale) - MOST_COMPONENTS, len(scale) - 1)
            turn = scale[:, None] * eigh(standard.T @ standard, subset_by_index=place)[1]
        return cls(mean.astype(np.float32), turn.astype(np.float32))

    def components(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(I, F) mean vectors as (I, D)."""
        return np.matmul(vectors - self.mean, self.turn, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class LinearModels:
    """The models without and with the image, fitted by `fit_linear_models`."""

    answers: list[str]
    words: dict[str, int]  # word to its column
    alone: NDArray[np.float32]  # (V + 1, C)
    seeing: NDArray[np.float32] | None = None  # (V + D + 1, C), the scale in it; None without images
    images: SeenImages | None = None
    values: dict[str, Any] = field(default_factory=dict)  # what was chosen
    notes: list[str] = field(default_factory=list)

    def predict(self, texts: Sequence[str], inputs: Inputs, with_image: bool) -> list[str]:
        """The best answer to each of N questions."""
        rows, place = np.unique(inputs.rows, return_inverse=True)
        vectors, weights = np.zeros((len(rows), 0), np.float32), self.alone
        if with_image and self.seeing is not None and self.images is not None:
            vectors, weights = self.images.components(mean_vectors(inputs, rows)), self.seeing
        found: list[str] = []
        for begin in range(0, len(texts), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            own, image = np.unique(place[part], return_inverse=True)
            scores = Examples(bags(texts[part], self.words), vectors[own], image).scores(weights)
            found += [self.answers[number] for number in scores.argmax(axis=1)]
        return found


def fit_linear_models(
    texts: Sequence[str], labels: Sequence[str | None], inputs: Inputs, blind: bool
) -> LinearModels | None:
    """Both models, or with `blind` the one without the image; None where there is nothing to tell apart.

    The same questions in another order give the same models. Of many questions those of some images are
    taken, and of many answers the commonest: see `MOST_SCORES`.

    Args:
        texts: N training questions.
        labels: The answer to each; None where it has none that a model could give.
        inputs: Of the same questions.
    """
    started = time.monotonic()
    counts = Counter(label for label in labels if label is not None)
    answers = sorted(counts, key=lambda answer: (-counts[answer], answer))[:MOST_ANSWERS]
    numbers = {answer: number for number, answer in enumerate(answers)}
    known = [row for row, label in enumerate(labels) if label in numbers]
    rows = drawn_order(known, list(zip(texts, (label or "" for label in labels), strict=True)), inputs)
    rows = _whole_images(rows, inputs, MOST_SCORES // max(len(answers), 1))
    images, image = np.unique(inputs.rows[rows], return_inverse=True)
    if len(answers) < 2 or len(images) < 2:
        return None
    targets = np.array([numbers[labels[row] or ""] for row in rows])
    texts = [texts[row] for row in rows]
    words = common_words(texts)
    drawn = list(dict.fromkeys(image.tolist()))
    held = np.isin(image, drawn[-max(1, round(_HELD_OUT * len(drawn))) :])

    bare = Examples(bags(texts, words), np.zeros((len(images), 0), np.float32), image)
    start = np.zeros((len(words) + 1, len(answers)))
    best, alone = _best_of([(bare, decay) for decay in DECAYS], targets, held, start)
    values: dict[str, Any] = {"questions": len(rows), "answers": len(answers), "words": len(words)}
    values["weight_decay"] = decay = DECAYS[best]
    models = LinearModels(answers, words, alone.astype(np.float32), values=values)
    if not blind:
        vectors = mean_vectors(inputs, images)
        seen = SeenImages.of(vectors)
        candidates = [
            (Examples(bare.words, scale * seen.components(vectors), image), decay) for scale in SCALES
        ]
        nothing = np.zeros((seen.turn.shape[1], len(answers)))
        start = np.concatenate([alone[:-1], nothing, alone[-1:]])
        best, weights = _best_of(candidates, targets, held, start)
        values["image_scale"] = SCALES[best]
        seen = replace(seen, turn=SCALES[best] * seen.turn)
        models = replace(models, seeing=weights.astype(np.float32), images=seen)
    left = len(labels) - len(rows)
    asked = f"{len(rows)} questions, {len(answers)} answers, {len(words)} words"
    logger.info("linear models to compare with: %s, %.0f s", asked, time.monotonic() - started)
    if len(answers) * len(labels) > MOST_SCORES or len(counts) > MOST_ANSWERS:
        note = f"the linear models are fitted to {asked}; {left} training questions are left out"
        models.notes.append(note)
    return models


def _best_of(
    candidates: Sequence[tuple[Examples, float]],
    labels: NDArray[np.int64],
    held: NDArray[np.bool_],
    start: NDArray[np.float64],
) -> tuple[int, NDArray[np.float64]]:
    """Which examples and decay answer most of the held-out questions, the first if several do; its weights.

    Args:
        candidates: Each is fitted from where the one before ended, if that was of the same examples; the best
            at last to all questions.
        held: (N,) which questions are held out.
        start: Where each search begins otherwise.
    """
    learnt, judged = np.flatnonzero(~held), np.flatnonzero(held)
    weights, most, best = start, -1.0, (0, start)
    for number, (examples, decay) in enumerate(candidates):
        if number and examples is not candidates[number - 1][0]:
            weights = start
        weights = fit_linear(examples.part(learnt), labels[learnt], weights, decay, _STEPS)
        chosen = examples.part(judged).scores(weights.astype(np.float32)).argmax(axis=1)
        if (right := float(np.mean(chosen == labels[judged]))) > most:
            most, best = right, (number, weights)
    number, weights = best
    examples, decay = candidates[number]
    return number, fit_linear(examples, labels, weights, decay, _LAST_STEPS)


def drawn_order(rows: Sequence[int], content: Sequence[Any], inputs: Inputs) -> NDArray[np.int64]:
    """Some samples image by image, the images in an order that depends on their ids alone.

    `content` decides among the samples of an image.
    """
    names = {row: str(inputs.store.image_ids[row]) for row in set(inputs.rows.tolist())}
    keys = np.array([zlib.crc32(name.encode("utf-8", "replace")) for name in names.values()], np.uint64)
    draws = dict(zip(names, uniform(mix(0), _IMAGE_ORDER, keys, 1)[:, 0].tolist(), strict=True))

    def place(row: int) -> tuple[float, str, Any]:
        image = int(inputs.rows[row])
        return draws[image], names[image], content[row]

    return np.array(sorted(rows, key=place), np.int64)


def _whole_images(rows: NDArray[np.int64], inputs: Inputs, most: int) -> NDArray[np.int64]:
    """The first questions, so many at most, without those of an image that would be cut."""
    if len(rows) <= most:
        return rows
    image = inputs.rows[rows]
    return rows[:most][image[:most] != image[most]]


def _words_of(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def common_words(texts: Sequence[str]) -> dict[str, int]:
    """The commonest words with their columns."""
    counts = Counter(word for text in texts for word in _words_of(text))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    return {word: column for column, word in enumerate(common)}


def bags(texts: Sequence[str], words: Mapping[str, int]) -> csr_matrix:
    """(N, V) 1 where a text holds a word."""
    from scipy.sparse import csr_matrix

    columns = [sorted(words[word] for word in _words_of(text) if word in words) for text in texts]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.array([column for own in columns for column in own], np.int64)
    return csr_matrix((np.ones(len(flat), np.float32), flat, ends), (len(texts), len(words)))


def mean_vectors(inputs: Inputs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(I, F) mean vector of the regions that a model sees of each image, by (I,) rows of the store.

    Regions count by their area: they crowd about small things, and the mean over the image says more of it.

    Raises:
        DataError: Features are damaged.
    """
    means = np.zeros((len(rows), inputs.store.feature_size), np.float32)
    for begin in range(0, len(rows), _IMAGES_AT_ONCE):
        regions = inputs.store.gather(rows[begin : begin + _IMAGES_AT_ONCE], inputs.max_regions)
        share = regions.mask * regions.geometry[..., 4]
        share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-6)
        vectors = np.asarray(regions.features, np.float32)
        means[begin : begin + _IMAGES_AT_ONCE] = (share[:, None] @ vectors)[:, 0]
    inputs.store.settle()
    return means
