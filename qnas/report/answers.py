"""Which images the points of a front answer right, and what that says of differences between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from qnas.report.data import Json
from qnas.statistics import CONFIDENCE, Interval, paired, unpack_correct

if TYPE_CHECKING:
    from qnas.store import RunDirectory

Answers = Mapping[str, np.ndarray[Any, Any]]
"""By subnet, ``[n]`` booleans: the images of one split that it answers right."""


def stored_answers(store: RunDirectory, points: Sequence[Json], metric: str, split: str) -> Answers:
    """Return what a run stored of its front's points on a split; points without a stored measurement are left out,
    and so is everything where the task does not tell which images are right.

    A subnet may have been measured more than once, for example with other calibrators: the measurement whose accuracy
    the front reports counts.
    """
    found = {}
    for point in points:
        reported = (point["metrics"] if split == "search" else point.get("test") or {}).get(metric)
        for metrics, num_images, packed in reversed(store.evaluations(point["key"], split)):
            if packed and metrics.get(metric) == reported:
                found[point["key"]] = unpack_correct(packed, num_images)
                break
    return found


def ties(points: Sequence[Json], chosen: str | None, answers: Answers) -> dict[str, Json]:
    """Return p-values of no difference (McNemar's exact test), by subnet.

    Args:
        points: of the front, by falling score.
        chosen: the key of the chosen point.
        answers: on the search split.

    Returns:
        For each point ``chosen``, against the chosen point, and ``next``, against the next lower one; ``None`` where
        there is nothing to compare with.
    """

    def p_value(key: str, other: str | None) -> float | None:
        known = other is not None and key != other and key in answers and other in answers
        return paired(answers[key], answers[other]).p_value if known and other is not None else None

    keys = [str(point["key"]) for point in points]
    return {
        key: {"chosen": p_value(key, chosen), "next": p_value(key, following)}
        for key, following in zip(keys, [*keys[1:], None], strict=True)
    }


def tied(p_value: float | None) -> bool:
    """Tell whether a difference is within noise."""
    return p_value is not None and p_value >= 1 - CONFIDENCE


def point_gap(search: float, search_error: float, test: float, test_error: float) -> Interval:
    """Return the fall of one accuracy from the search to the test split, whose images differ, with its interval."""
    half = _quantile() * math.hypot(search_error, test_error)
    return Interval(search - test, search - test - half, search - test + half)


def mean_gap(search: Answers, test: Answers) -> Interval | None:
    """Return the mean fall of accuracy from the search to the test split over the points of a front.

    The points answer the same images, so their gaps are not independent: the interval comes from the spread over images
    of the share of points that answer an image right.
    """
    keys = [key for key in search if key in test]
    if not keys:
        return None
    shares = [np.mean([answers[key] for key in keys], axis=0) for answers in (search, test)]
    if min(map(len, shares)) < 2:
        return None
    gap = float(shares[0].mean() - shares[1].mean())
    half = _quantile() * math.sqrt(sum(float(share.var(ddof=1)) / len(share) for share in shares))
    return Interval(gap, gap - half, gap + half)


def front_noise(store: RunDirectory, front: Json, by_score: Sequence[Json]) -> tuple[dict[str, Json], Json]:
    """Return the :func:`ties` of a front and its :func:`mean_gap`, from what the run stored."""
    metric = str(front.get("metric", "accuracy"))
    search, test = (stored_answers(store, by_score, metric, split) for split in ("search", "test"))
    gap = mean_gap(search, test)
    return ties(by_score, front.get("chosen"), search), asdict(gap) if gap else {}


def _quantile() -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + CONFIDENCE) / 2))
