"""Bootstrap intervals that respect groups: questions about one image are not independent (Efron 1979)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tbkin_core.errors import ConfigError, DataError

# Below so many groups, resampling them tells little of others.
_FEW_GROUPS = 10
# Numbers drawn at a time: bounds the memory to some 30 MB whatever the size of the data.
_DRAWS_AT_ONCE = 1 << 21


class PairedDifference(NamedTuple):
    """Mean of a minus mean of b, its interval, and the two-sided p-value of there being no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean, resampling whole groups with replacement.

    Args:
        values: (N,) one number an item, such as the accuracy of a question.
        groups: (N,) group of each item, such as its image id; None: each item is its own.
        runs: (N,) training run that each item's value comes from. From two runs on, the interval also
            covers training again: the spread of the runs' means joins in, with Student's tails for so few.
        confidence: Coverage aimed at, in (0, 1).
        samples: Number of resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        (low, high) in the unit of `values`; both the mean where there is only one group.

    Raises:
        DataError: `values` is empty or not finite, or `groups` has another length.
        ConfigError: `confidence` or `samples` is out of range.
    """
    checked = _values(values, "values")
    means = _resampled_means(checked[:, None], groups, confidence, samples, seed)[:, 0]
    low, high = _quantiles(means + _noise_of_runs(checked, runs, samples, seed), confidence)
    return low, high


def paired_difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    groups: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two means over the same items (two models on the same questions), by resampling groups.

    The p-value is the share of resamples in which the difference strays from the observed one at least as far
    as the observed one lies from 0; it is never below 1 / (samples + 1), nor below 2 / 2^G with G groups, the
    chance that G differences have one sign by luck: few groups stray little, and prove nothing by that.

    Arguments and errors are those of `bootstrap_interval`; both values of an item come from runs of the same
    name, and a DataError is also raised where they are not equally many.
    """
    first, second = _values(values_a, "values_a"), _values(values_b, "values_b")
    if len(first) != len(second):
        raise DataError(f"paired values must be equally many, got {len(first)} and {len(second)}")
    both = np.stack([first, second], axis=1)  # (N, 2)
    means = _resampled_means(both, groups, confidence, samples, seed)  # (S, 2)
    differences = means[:, 0] - means[:, 1] + _noise_of_runs(first - second, runs, samples, seed)
    difference = float(first.mean() - second.mean())
    low, high = _quantiles(differences, confidence)
    # Rounding must not decide whether two equal distances count as equal.
    tolerance = 1e-9 * max(1.0, float(np.abs(both).max()))
    extreme = int(np.count_nonzero(np.abs(differences - difference) >= abs(difference) - tolerance))
    by_luck = 2.0 ** (1 - (len(first) if groups is None else len(np.unique(np.asarray(groups)))))
    return PairedDifference(difference, low, high, max((1 + extreme) / (samples + 1), by_luck))


def too_few_images(split: str, images: Iterable[object]) -> list[str]:
    """A note for people where a split has so few images that intervals over them are too narrow."""
    count = len({str(image) for image in images})
    if count >= _FEW_GROUPS:
        return []
    return [f"{split}: only {count} image{'s' if count > 1 else ''}; intervals over so few tell little"]


def _values(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name} must be (N,) with N of 1 or more, got {array.shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(array))} of {array.size} are not finite")
    return array


def _noise_of_runs(
    values: NDArray[np.float64], runs: ArrayLike | None, samples: int, seed: int
) -> NDArray[np.float64]:
    """(samples,) by how much the mean of so many runs strays; 0 of a single run, which cannot say."""
    if runs is None:
        return np.zeros(samples)
    names = np.asarray(runs)
    if names.shape != values.shape:
        raise DataError(f"runs must be {values.shape} like the values, got {names.shape}")
    _, member = np.unique(names, return_inverse=True)
    means = np.bincount(member, values) / np.bincount(member)
    if len(means) < 2:
        return np.zeros(samples)
    draws = np.random.default_rng((seed, 1)).standard_t(len(means) - 1, samples)
    return draws * means.std(ddof=1) / np.sqrt(len(means))


def _quantiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(
    values: NDArray[np.float64], groups: ArrayLike | None, confidence: float, samples: int, seed: int
) -> NDArray[np.float64]:
    """(N, C) values -> (samples, C) means over groups drawn with replacement."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    if samples < 1:
        raise ConfigError(f"samples must be 1 or more, got {samples}")
    if groups is None:
        sums, sizes = values, np.ones(len(values))
    else:
        names = np.asarray(groups)
        if names.shape != (len(values),):
            raise DataError(f"groups must be ({len(values)},) like the values, got {names.shape}")
        _, member = np.unique(names, return_inverse=True)
        sizes = np.bincount(member).astype(np.float64)  # (G,)
        sums = np.stack([np.bincount(member, column) for column in values.T], axis=1)  # (G, C)
    if len(sizes) == 1:
        return np.repeat(sums / sizes[:, None], samples, axis=0)
    # scipy.stats takes a second to load, and most of this package's users need no interval.
    from scipy.stats import bootstrap

    def means(*drawn: NDArray, axis: int) -> NDArray[np.float64]:
        *columns, total = (part.sum(axis=axis) for part in drawn)
        return np.stack([column / total for column in columns])

    found = bootstrap(
        (*sums.T, sizes),
        means,
        n_resamples=samples,
        batch=max(1, _DRAWS_AT_ONCE // len(sizes)),
        vectorized=True,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return found.bootstrap_distribution.T
