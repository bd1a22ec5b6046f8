"""Intervals and tests for what runs report. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


def standard_error(accuracy: float, n: int) -> float:
    """Return the standard error of an accuracy over ``n`` images (Agresti-Coull: not 0 at 100%)."""
    p = (accuracy * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


def unpack_correct(packed: bytes, n: int) -> np.ndarray[Any, Any]:
    """Return ``[n]`` booleans, which images were answered right, from stored bits."""
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=n).astype(bool)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean over seeds and its interval by Student's t; the ends are not finite for fewer than two values."""
    from scipy.stats import t

    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def kendall(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Return Kendall's tau-b of two rankings of the same subnets, with an interval.

    The interval is the asymptotic one that does not assume independence: Hollander, Wolfe and Chicken, "Nonparametric
    Statistical Methods", 3rd ed., Eq. 8.37-8.40, from the concordances of each subnet with the others. Near a perfect
    order its estimate of the spread vanishes; beyond 0.8 the interval therefore covers that of Bonett and Wright too
    (Psychometrika 65, 2000: 0.437 / (n - 4) on Fisher's scale). For 4 subnets and fewer it is [-1, 1].

    Raises:
        ValueError: other than two sequences of one length, at least 2.
    """
    from scipy.stats import kendalltau, norm

    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(a)
    if a.shape != b.shape or a.ndim != 1 or n < 2:
        raise ValueError(f"two sequences of one length, at least 2, are needed; given: {a.shape} and {b.shape}")
    tau = float(kendalltau(a, b).statistic)
    if math.isnan(tau):  # all values of one side are equal: no order to agree with
        return Interval(0.0, -1.0, 1.0)
    if n <= 4:
        return Interval(tau, -1.0, 1.0)
    concordance = np.sign(a[:, None] - a[None]) * np.sign(b[:, None] - b[None])
    of_each = concordance.sum(1)
    spread = 2 * (n - 2) / (n * (n - 1) ** 2) * float(((of_each - of_each.mean()) ** 2).sum()) + 1 - tau**2
    z, pairs = float(norm.ppf((1 + CONFIDENCE) / 2)), n * (n - 1) / 2
    half = z * math.sqrt(spread / pairs)
    low, high = max(-1.0, tau - half), min(1.0, tau + half)
    if abs(tau) > 0.8:
        fisher = math.atanh(math.copysign(min(abs(tau), 1 - 1 / pairs), tau))  # half a pair is left in doubt
        half = z * math.sqrt(0.437 / (n - 4))
        low, high = min(low, math.tanh(fisher - half)), max(high, math.tanh(fisher + half))
    return Interval(tau, low, high)


@dataclass(frozen=True)
class PairedTest:
    """Two subnets on the same images.

    Attributes:
        difference: accuracy of the first minus that of the second, with its interval.
        only_first, only_second: images that one of them alone answers right.
        p_value: of no difference, two-sided (McNemar's exact test).
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at the level of the intervals."""
        return self.p_value < 1 - CONFIDENCE


def paired(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> PairedTest:
    """Compare which images two subnets answer right (McNemar, Psychometrika 1947; exact binomial form).

    Args:
        first, second: ``[n]`` booleans each, of the same images in the same order.

    Raises:
        ValueError: the lengths differ, or there are no images.
    """
    from scipy.stats import binomtest, norm

    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"the same images are needed; given: {first.shape} and {second.shape}")
    n, b, c = len(first), int((first & ~second).sum()), int((~first & second).sum())
    difference = (b - c) / n
    # Agresti and Min, Statistics in Medicine 2005: half an image is added to each cell, so that no error is 0.
    b2, c2, n2 = b + 0.5, c + 0.5, n + 2
    centre = (b2 - c2) / n2
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(b2 + c2 - (b2 - c2) ** 2 / n2) / n2
    p_value = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    return PairedTest(Interval(difference, max(-1.0, centre - half), min(1.0, centre + half)), b, c, p_value)


def unpaired(first: float, n_first: int, second: float, n_second: int) -> Interval:
    """Return the difference of two accuracies on different images, with its interval.

    Agresti and Caffo, The American Statistician 2000: one right and one wrong image are added to each side.

    Args:
        first, second: accuracies as fractions.
        n_first, n_second: images that each was measured on.
    """
    from scipy.stats import norm

    sides = [((p * n + 1) / (n + 2), n + 2) for p, n in ((first, n_first), (second, n_second))]
    centre = sides[0][0] - sides[1][0]
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(sum(p * (1 - p) / n for p, n in sides))
    return Interval(first - second, max(-1.0, centre - half), min(1.0, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, Scandinavian Journal of Statistics 1979), in the order given.

    Declaring those below 0.05 significant keeps the chance of one or more false ones below 5% over all of them.
    """
    m = len(p_values)
    corrected = [0.0] * m
    largest = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
