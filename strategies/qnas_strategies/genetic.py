"""The genetic search of MultiQuant for mixed precision under average bit-widths.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.3: a first
population that meets the targets, drawn by Monte Carlo sampling; the best of all generations are kept as elitists, from
which mutation and crossover make the next population, 50 and 50 of 100, for 500 generations (Sec. 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qnas.errors import ConfigError
from qnas.pareto import best_first
from qnas.protocols import SearchProblem, State, Trial
from qnas.space import Indices
from qnas_strategies.breeding import TRIES, Generations, cross, mutate

LITTER = 20  # children of one kind, of which the first that meets the constraints is taken


class Genetic(Generations):
    """Breeds each generation from the elitists, the best of all subnets judged so far.

    Targets are constraints on costs, such as ``avg_w_bits<=3`` and ``avg_a_bits<=3``. The first population meets them:
    uniform subnets where these are common, else drawn from marginals conditioned on the targets
    (:mod:`qnas.monte_carlo`). Of ``LITTER`` children the first that meets them is taken, and one is repaired only if
    none does. That is the difference to ``evolution``, whose children are repaired at once, which pulls them towards
    one known subnet, and whose first generation holds the largest and the smallest subnet. With several objectives the
    best are those of the first fronts, the lonelier ones first. No subnet is asked twice.

    Args:
        problem: space, objectives, feasible samples.
        population: subnets judged in each generation.
        mutants: how many of them are mutants; the others are crossings of two elitists.
        elites: subnets kept from all generations; the paper gives no number.
        mutation_probability: for each knob of a mutant; the paper gives none, Once-for-All's is 0.1.
    """

    def __init__(
        self,
        problem: SearchProblem,
        *,
        population: int = 100,
        mutants: int | None = None,
        elites: int | None = None,
        mutation_probability: float = 0.1,
    ) -> None:
        super().__init__(problem, population, "genetic")
        self.num_mutants = population // 2 if mutants is None else mutants
        self.num_elites = max(1, population // 4) if elites is None else elites
        self.mutation_probability = mutation_probability
        if (
            population < 2
            or not 0 <= self.num_mutants <= population
            or self.num_elites < 1
            or not 0 <= mutation_probability <= 1
        ):
            raise ConfigError(
                "Strategy genetic: population is at least 2, mutants from 0 to the population, elites at least 1 and "
                f"mutation_probability from 0 to 1; given: population={population}, mutants={self.num_mutants}, "
                f"elites={self.num_elites}, mutation_probability={mutation_probability}. Change [search.options]."
            )
        self._elites: list[Trial] = []
        self._told: list[Trial] = []  # of the generation under way

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add judged subnets to the generation under way."""
        self._told.extend(trials)

    def _begin_generation(self) -> None:
        if len(self._told) >= self.population:
            self._elites = best_first([*self._elites, *self._told], self.problem.objectives)[: self.num_elites]
            self._told, self._asked = [], 0

    def _row(self, rng: np.random.Generator, attempt: int) -> Indices:
        if not self._elites or attempt >= TRIES // 2:
            return self.problem.draw(rng, 1)[0]
        return self._feasible(self._litter(rng), rng)

    def _litter(self, rng: np.random.Generator) -> Indices:
        """Return ``[LITTER, num_knobs]`` children: mutants first in each generation, then crossings."""
        elites = self.problem.space.indices([trial.sample for trial in self._elites])
        pairs = rng.integers(len(elites), size=(LITTER, 2))
        if self._asked < self.num_mutants:
            space, probability = self.problem.space, self.mutation_probability
            return np.stack([mutate(space, elites[a], rng, probability) for a, _ in pairs])
        return np.stack([cross(elites[a], elites[b], rng) for a, b in pairs])

    def _feasible(self, rows: Indices, rng: np.random.Generator) -> Indices:
        """Return the first row that meets the constraints, which repair leaves as it is; else the first, repaired."""
        repaired = self.problem.repair(rows, rng)
        kept = (repaired == rows).all(1)
        return repaired[int(kept.argmax())]

    def state_dict(self) -> State:
        """Return the elitists, the generation under way, counters and the keys asked."""
        return {
            "elites": [trial.to_state() for trial in self._elites],
            "told": [trial.to_state() for trial in self._told],
            "asked": self._asked,
            "bred": self._bred,
            "seen": list(self._seen),
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        self._elites, self._told = ([Trial.of_state(t) for t in state[name]] for name in ("elites", "told"))
        self._asked = int(state["asked"])
        self._bred = int(state["bred"])
        self._seen = list(state["seen"])
