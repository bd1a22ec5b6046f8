"""Evolutionary search as Once-for-All does it, for one objective or several.

Cai et al., "Once-for-All", ICLR 2020, https://arxiv.org/abs/1908.09791, after Real et al., "Regularized Evolution for
Image Classifier Architecture Search", AAAI 2019; OQAT, QuantNAS and BASQ search with it. Their numbers are in the
recipes; the defaults here suit a search of some dozens of evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qnas.errors import ConfigError
from qnas.pareto import best_first
from qnas.protocols import SearchProblem, State, Trial
from qnas.space import Indices
from qnas_strategies.breeding import TRIES, Generations, cross, mutate


class Evolution(Generations):
    """Keeps the best of each generation as parents and fills the next with their mutants and crossings.

    With several objectives the best are those of the first fronts, the lonelier ones first. Children that violate a
    constraint on costs are repaired, not drawn again and again. No subnet is asked twice.

    Args:
        problem: space, objectives, feasible samples.
        population: subnets judged in each generation; the parents stay besides.
        parents: their number, as a share of the population.
        mutation_share: share of the children of parents that are mutants; the others are crossings.
        random_share: share of each generation that has no parents but is drawn anew, as in BASQ's code.
        mutation_probability: for each knob of a mutant.
        extremes: whether the first generation holds the largest and the smallest subnet.
    """

    def __init__(
        self,
        problem: SearchProblem,
        *,
        population: int = 16,
        parents: float = 0.25,
        mutation_share: float = 0.5,
        random_share: float = 0.0,
        mutation_probability: float = 0.1,
        extremes: bool = True,
    ) -> None:
        shares = {
            "parents": parents,
            "mutation_share": mutation_share,
            "random_share": random_share,
            "mutation_probability": mutation_probability,
        }
        wrong = [f"{name}={value}" for name, value in shares.items() if not 0 <= value <= 1]
        if population < 2 or wrong:
            raise ConfigError(
                f"Strategy evolution: population must be at least 2 and shares from 0 to 1; given: "
                f"{', '.join(wrong) or f'population={population}'}. Change [search.options]."
            )
        super().__init__(problem, population, "evolution")
        self.num_parents = max(1, round(parents * population))
        self._bred_children = population - round(random_share * population)
        self._mutants = round(mutation_share * self._bred_children)
        self.mutation_probability = mutation_probability
        self.extremes = extremes
        self._generation: list[Trial] = []  # parents, then the children told so far
        self._told = 0
        self._first = True

    def _begin_generation(self) -> None:
        if self._told >= self.population:
            self._generation = best_first(self._generation, self.problem.objectives)[: self.num_parents]
            self._first = False
            self._asked = self._told = 0

    def _row(self, rng: np.random.Generator, attempt: int) -> Indices:
        return self.problem.repair(self._child(rng, attempt)[None], rng)[0]

    def _child(self, rng: np.random.Generator, attempt: int) -> Indices:
        """Return one child's positions ``[num_knobs]``; after many failures a random one."""
        space = self.problem.space
        if self._first and self.extremes and self._asked < 2 and attempt == 0:
            return space.indices([space.highest() if self._asked == 0 else space.lowest()])[0]
        if self._first or attempt >= TRIES // 2 or self._asked >= self._bred_children:
            return self.problem.draw(rng, 1)[0]
        parents = space.indices([trial.sample for trial in self._generation[: self.num_parents]])
        if self._asked < self._mutants:
            return mutate(space, parents[rng.integers(len(parents))], rng, self.mutation_probability)
        return cross(*parents[rng.integers(len(parents), size=2)], rng)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add judged children to the generation under way."""
        self._generation.extend(trials)
        self._told += len(trials)

    def state_dict(self) -> State:
        """Return the generation, the counters and the keys asked."""
        return {
            "bred": self._bred,
            "asked": self._asked,
            "told": self._told,
            "first": self._first,
            "seen": list(self._seen),
            "generation": [trial.to_state() for trial in self._generation],
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        self._bred = int(state["bred"])
        self._asked = int(state["asked"])
        self._told = int(state["told"])
        self._first = bool(state["first"])
        self._seen = list(state["seen"])
        self._generation = [Trial.of_state(trial) for trial in state["generation"]]
