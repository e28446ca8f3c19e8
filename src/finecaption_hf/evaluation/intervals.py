"""95 % intervals, resampled by image: captions of one image are not independent of each other.

All statistics here are functions of sums over images (a mean is a sum and a count, BLEU is sums of n-gram counts), so a
resample is a matrix of how often each image is drawn, and both models of a comparison are judged on the same draws.

Dimension letters: S segments (captions), I images, K summed quantities of a statistic, n resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Statistic:
    """A number that follows from sums over segments.

    Attributes:
        sums (`np.ndarray` of shape `(S, K)`): what each segment adds.
        of_sums: sums `(..., K)` -> the number `(...)`.
    """

    sums: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def mean(cls, values: Sequence[float]) -> "Statistic":
        """The mean over segments."""
        array = np.asarray(values, dtype=np.float64)
        return cls(np.stack([array, np.ones_like(array)], axis=1), lambda sums: sums[..., 0] / sums[..., 1])

    def value(self) -> float:
        return float(self.of_sums(self.sums.sum(axis=0)))

    def of(self, chosen: Sequence[int] | np.ndarray) -> "Statistic":
        """The same of some segments."""
        return Statistic(self.sums[chosen], self.of_sums)


@dataclass(frozen=True)
class Interval:
    """A number and the bounds of its interval.

    Attributes:
        value: of all segments.
        low, high: percentiles of the resamples; `None` where there is one image only.
        images, segments: that it is about.
    """

    value: float
    low: float | None
    high: float | None
    images: int
    segments: int

    def to_json(self) -> dict[str, Any]:
        bounds = None if self.low is None or self.high is None else [round(self.low, 4), round(self.high, 4)]
        return {
            "value": round(self.value, 4),
            "interval_95": bounds,
            "images": self.images,
            "segments": self.segments,
        }


def interval(statistic: Statistic, images: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The percentile bootstrap interval of a statistic.

    Args:
        statistic: of S segments.
        images: for each segment its image.
        seed: of the draws.
        resamples: how many.

    Raises:
        ValueError: If there is no segment, or not one image per segment.
    """
    return intervals([statistic], images, seed=seed, resamples=resamples)[0]


def intervals(
    statistics: Sequence[Statistic], images: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval]:
    """`interval` of several statistics of the same segments, on the same draws."""
    drawn = _resampled(statistics, images, seed, resamples)
    count = len(set(images))
    return [
        _interval(statistic.value(), of_resamples, count, len(images))
        for statistic, of_resamples in zip(statistics, drawn)
    ]


def differences(
    statistics: Sequence[tuple[Statistic, Statistic]],
    images: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Interval]:
    """Paired differences, first minus second, with their intervals: both are computed on the same draws of images.

    Args:
        statistics: pairs of the same statistic of two models, segment by segment about the same branches.
        images, seed, resamples: as for `interval`.
    """
    flat = [statistic for pair in statistics for statistic in pair]
    drawn = _resampled(flat, images, seed, resamples)
    count = len(set(images))
    found = []
    for number, (first, second) in enumerate(statistics):
        apart = drawn[2 * number] - drawn[2 * number + 1]
        found.append(_interval(first.value() - second.value(), apart, count, len(images)))
    return found


def _interval(value: float, of_resamples: np.ndarray, images: int, segments: int) -> Interval:
    if images < 2:
        return Interval(value, None, None, images, segments)
    low, high = np.quantile(of_resamples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), images, segments)


def _resampled(statistics: Sequence[Statistic], images: Sequence[str], seed: int, resamples: int) -> list[np.ndarray]:
    """Each statistic of every resample `(n,)`."""
    if not images or any(len(statistic.sums) != len(images) for statistic in statistics):
        raise ValueError(
            f"{len(images)} images arrived for statistics of {[len(statistic.sums) for statistic in statistics]} "
            "segments. Give the image of each segment, and at least one."
        )
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}. Draw at least one.")
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    owners = np.array([numbers[image] for image in images])
    by_image = []
    for statistic in statistics:
        sums = np.zeros((len(numbers), statistic.sums.shape[1]))
        np.add.at(sums, owners, statistic.sums)
        by_image.append(sums)
    generator = np.random.default_rng(seed)
    found: list[list[np.ndarray]] = [[] for _ in statistics]
    at_once = max(1, _CELLS_AT_ONCE // len(numbers))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        draws = generator.integers(len(numbers), size=(count, len(numbers)))
        draws += np.arange(count)[:, None] * len(numbers)
        weights = np.bincount(draws.ravel(), minlength=count * len(numbers)).reshape(count, -1).astype(np.float64)
        for values, statistic, sums in zip(found, statistics, by_image):
            values.append(statistic.of_sums(weights @ sums))
    return [np.concatenate(values) for values in found]
