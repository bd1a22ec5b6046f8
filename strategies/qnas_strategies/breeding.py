"""What genetic strategies share: mutation, crossover, and trials as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qnas.protocols import State, Trial
from qnas.space import Indices, SearchSpace


def mutate(space: SearchSpace, row: Indices, rng: np.random.Generator, probability: float) -> Indices:
    """Return ``[num_knobs]`` with each knob drawn anew with ``probability``, at least one."""
    change = rng.random(len(row)) < probability
    change[rng.integers(len(row))] = True
    return np.where(change, space.draw(rng, 1)[0], row)


def cross(a: Indices, b: Indices, rng: np.random.Generator) -> Indices:
    """Return ``[num_knobs]`` with each knob from either parent, equally likely (uniform crossover)."""
    return np.where(rng.random(len(a)) < 0.5, a, b)


def packed(trials: Sequence[Trial]) -> list[State]:
    """Return trials JSON-safe."""
    return [{"key": t.key, "sample": t.sample, "metrics": t.metrics, "violation": t.violation} for t in trials]


def unpacked(states: Sequence[State]) -> list[Trial]:
    """Return trials from what :func:`packed` gave."""
    return [Trial(s["key"], dict(s["sample"]), dict(s["metrics"]), float(s["violation"])) for s in states]
