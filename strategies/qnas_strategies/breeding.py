"""What genetic strategies share: generations, mutation and crossover."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from qnas.protocols import SearchProblem
from qnas.rng import generator
from qnas.space import Indices, Sample, SearchSpace

TRIES = 200  # subnets bred in search of one that was not asked before


def mutate(space: SearchSpace, row: Indices, rng: np.random.Generator, probability: float) -> Indices:
    """Return ``[num_knobs]`` with each knob drawn anew with ``probability``, at least one."""
    change = rng.random(len(row)) < probability
    change[rng.integers(len(row))] = True
    return np.where(change, space.draw(rng, 1)[0], row)


def cross(a: Indices, b: Indices, rng: np.random.Generator) -> Indices:
    """Return ``[num_knobs]`` with each knob from either parent, equally likely (uniform crossover)."""
    return np.where(rng.random(len(a)) < 0.5, a, b)


class Generations(ABC):
    """What strategies share that fill one generation after another and ask no subnet twice.

    Args:
        problem: space, objectives, feasible samples.
        population: subnets asked in each generation.
        purpose: names the random draws.
    """

    def __init__(self, problem: SearchProblem, population: int, purpose: str) -> None:
        self.problem = problem
        self.population = population
        self._purpose = purpose
        self._bred = 0
        self._asked = 0  # of the generation under way
        self._seen: list[str] = []

    @abstractmethod
    def _begin_generation(self) -> None:
        """Make the next generation the one under way, where that one is told completely."""

    @abstractmethod
    def _row(self, rng: np.random.Generator, attempt: int) -> Indices:
        """Return ``[num_knobs]``: a feasible subnet, whether it was asked before or not."""

    def ask(self, n: int) -> list[Sample]:
        """Return at most ``n`` subnets of the generation under way; none when no new subnet can be bred."""
        self._begin_generation()
        samples: list[Sample] = []
        seen = set(self._seen)
        while len(samples) < n and self._asked < self.population:
            sample = self._new(seen)
            if sample is None:
                break
            samples.append(sample)
            self._asked += 1
        return samples

    def _new(self, seen: set[str]) -> Sample | None:
        space = self.problem.space
        for attempt in range(TRIES):
            rng = generator(self.problem.seed, self._purpose, self._bred)
            self._bred += 1
            sample = space.sample(self._row(rng, attempt))
            key = space.key(sample)
            if key not in seen:
                seen.add(key)
                self._seen.append(key)
                return sample
        return None
