"""Dominance, fronts and their order. Numpy alone; every objective is minimised here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qnas.protocols import Objective, Trial

Array = np.ndarray[Any, Any]


def objective_values(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Array:
    """Return ``[n, m]`` values to minimise: objectives with direction ``max`` change sign."""
    signs = [1.0 if o.direction == "min" else -1.0 for o in objectives]
    rows = [[s * t.metrics[o.name] for s, o in zip(signs, objectives, strict=True)] for t in trials]
    return np.array(rows, dtype=np.float64).reshape(len(trials), len(objectives))


def dominates(values: Array, violations: Array) -> Array:
    """Return ``[n, n]``: whether row i dominates row j.

    A point that meets the constraints dominates one that does not; of two that do not, the nearer one dominates; of
    two that do, the one that is nowhere worse and somewhere better (Deb et al. 2002, Sec. VI).
    """
    no_worse = (values[:, None] <= values[None]).all(2)
    better = (values[:, None] < values[None]).any(2)
    both_meet = (violations[:, None] == 0) & (violations[None] == 0)
    return np.where(both_meet, no_worse & better, violations[:, None] < violations[None])


def ranks(values: Array, violations: Array) -> Array:
    """Return ``[n]`` the number of the front that each point is on, from 0 (non-dominated sorting)."""
    dominated_by = dominates(values, violations).T  # [j, i]: j is dominated by i
    rank = np.full(len(values), -1)
    left = np.ones(len(values), dtype=bool)
    level = 0
    while left.any():
        front = left & ~(dominated_by & left[None]).any(1)
        rank[front] = level
        left &= ~front
        level += 1
    return rank


def crowding(values: Array) -> Array:
    """Return ``[n]`` crowding distances of the points of one front; the ends are infinite."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0 and len(order) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def best_first(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return trials by front, then by crowding distance (wider first), then by key; in whatever order they come."""
    if not trials:
        return []
    trials = sorted(trials, key=lambda t: t.key)  # the ends among equal points must not depend on the order
    values = objective_values(trials, objectives)
    rank = ranks(values, np.array([t.violation for t in trials]))
    wide = np.zeros(len(trials))
    for level in range(int(rank.max()) + 1):
        wide[rank == level] = crowding(values[rank == level])
    order = sorted(range(len(trials)), key=lambda i: (rank[i], -wide[i], trials[i].key))
    return [trials[i] for i in order]


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the non-dominated trials that meet the constraints, one a set of equal values, ordered by value.

    Ties are broken by key, so that the front does not depend on the order of the trials.
    """
    met = sorted((t for t in trials if t.violation == 0), key=lambda t: t.key)
    values = objective_values(met, objectives)
    rows = sorted((tuple(row), i) for i, row in enumerate(values))
    kept: list[tuple[tuple[float, ...], Trial]] = []
    for row, i in rows:  # in lexicographic order a row can only be dominated by, or equal to, an earlier one
        if not any(all(a <= b for a, b in zip(other, row, strict=True)) for other, _ in kept):
            kept.append((row, met[i]))
    return [trial for _, trial in kept]
