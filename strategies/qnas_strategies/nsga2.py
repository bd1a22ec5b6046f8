"""NSGA-II, with the operators and the sorting of pymoo.

Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE Transactions on Evolutionary
Computation 6(2), 2002; Blank and Deb, "pymoo: Multi-Objective Optimization in Python", IEEE Access 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qnas.errors import ConfigError
from qnas.pareto import objective_values
from qnas.protocols import SearchProblem, State, Trial
from qnas.rng import generator
from qnas.space import Indices, Sample

TRIES = 50  # matings in search of children that were not asked before


class NSGA2:
    """Breeds a generation from the survivors by rank and crowding, and lets the best of both survive.

    A knob is an integer variable, the position of its value among its choices, which are ordered. Parents win binary
    tournaments (fewer violations, then rank, then crowding); children are made by simulated binary crossover and
    polynomial mutation, rounded, and repaired where they violate constraints on costs. No subnet is asked twice.

    Args:
        problem: space, objectives, feasible samples.
        population: survivors, and children of a generation.
        crossover_probability: of a pair of parents.
        crossover_eta, mutation_eta: distribution indices; small ones make far children.
        mutation_probability: of each knob; one knob a child in the mean by default.
        extremes: whether the first generation holds the largest and the smallest subnet.
    """

    def __init__(
        self,
        problem: SearchProblem,
        *,
        population: int = 16,
        crossover_probability: float = 0.9,
        crossover_eta: float = 3.0,
        mutation_eta: float = 3.0,
        mutation_probability: float | None = None,
        extremes: bool = True,
    ) -> None:
        shares = {"crossover_probability": crossover_probability, "mutation_probability": mutation_probability or 0.0}
        wrong = [f"{name}={value}" for name, value in shares.items() if not 0 <= value <= 1]
        if population < 2 or crossover_eta <= 0 or mutation_eta <= 0 or wrong:
            given = f"population={population}, crossover_eta={crossover_eta}, mutation_eta={mutation_eta}"
            raise ConfigError(
                "Strategy nsga2: population must be at least 2, the etas over 0 and probabilities from 0 to 1; given: "
                f"{', '.join(wrong) or given}. Change [search.options]."
            )
        self.problem = problem
        self.population = population
        self.extremes = extremes
        self._crossover = {"prob": crossover_probability, "eta": crossover_eta}
        self._mutation = {"prob": 1.0, "prob_var": mutation_probability, "eta": mutation_eta}  # prob: of a child
        self._generation = 0
        self._survivors: list[Trial] = []
        self._children: list[Trial] = []
        self._waiting: list[Sample] | None = None  # bred and not asked yet; None before the generation is bred
        self._asked = 0
        self._seen: list[str] = []

    def ask(self, n: int) -> list[Sample]:
        """Return at most ``n`` children of the generation under way; none when no new subnet can be bred."""
        if self._waiting is None:
            self._waiting = self._breed()
        samples, self._waiting = self._waiting[:n], self._waiting[n:]
        self._asked += len(samples)
        return samples

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add judged children; with the last of a generation, let the best survive."""
        self._children.extend(trials)
        if self._waiting == [] and len(self._children) >= self._asked:
            self._survivors = self._survive([*self._survivors, *self._children])
            self._children, self._asked, self._waiting = [], 0, None
            self._generation += 1

    # --- breeding ----------------------------------------------------------------------------------------------

    def _breed(self) -> list[Sample]:
        """Return the children of the next generation, fewer when few new subnets are left."""
        space = self.problem.space
        found: dict[str, Sample] = {}
        seen = set(self._seen)
        for attempt in range(TRIES):
            rng = generator(self.problem.seed, "nsga2", self._generation, attempt)
            late = attempt >= TRIES // 2
            rows = self._first(rng, attempt) if not self._survivors or late else self._mate(rng)
            for row in self.problem.repair(rows, rng):
                sample = space.sample(row)
                key = space.key(sample)
                if key not in seen and key not in found and len(found) < self.population:
                    found[key] = sample
            if len(found) == self.population:
                break
        self._seen.extend(found)
        return list(found.values())

    def _first(self, rng: np.random.Generator, attempt: int) -> Indices:
        space = self.problem.space
        rows = self.problem.draw(rng, self.population)
        if self.extremes and not self._survivors and attempt == 0:
            rows = np.concatenate([space.indices([space.highest(), space.lowest()]), rows])[: self.population]
        return rows

    def _mate(self, rng: np.random.Generator) -> Indices:
        """Return ``[population, num_knobs]`` positions of the survivors' children."""
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.selection.tournament import TournamentSelection

        problem, pop = self._problem(), self._evaluated(self._survivors)
        pop = self._sort(problem, pop, rng)
        pairs = -(-self.population // 2)
        options: dict[str, Any] = {"vtype": float, "repair": RoundingRepair()}
        parents = TournamentSelection(func_comp=_better).do(problem, pop, pairs, 2, random_state=rng)
        children = SBX(**self._crossover, **options).do(problem, parents, random_state=rng)
        children = PM(**self._mutation, **options).do(problem, children, random_state=rng)
        rows: Indices = children.get("X").round().astype(np.int64)[: self.population]
        return rows

    def _survive(self, trials: list[Trial]) -> list[Trial]:
        """Return the best of all trials (environmental selection of NSGA-II)."""
        rng = generator(self.problem.seed, "nsga2-survival", self._generation)
        pop = self._sort(self._problem(), self._evaluated(trials), rng, self.population)
        chosen = set(pop.get("number").tolist())
        return [trial for i, trial in enumerate(trials) if i in chosen]

    def _problem(self) -> Any:
        from pymoo.core.problem import Problem

        sizes = np.array([len(knob.choices) for knob in self.problem.space.knobs])
        return Problem(
            len(sizes), len(self.problem.objectives), n_ieq_constr=1, xl=np.zeros(len(sizes)), xu=sizes - 1.0
        )

    def _evaluated(self, trials: Sequence[Trial]) -> Any:
        from pymoo.core.population import Population

        rows = self.problem.space.indices([trial.sample for trial in trials]).astype(float)
        pop = Population.new(
            X=rows,
            F=objective_values(trials, self.problem.objectives),
            G=np.array([[trial.violation] for trial in trials]),
        )
        pop.set("number", np.arange(len(trials)))
        return pop

    def _sort(self, problem: Any, pop: Any, rng: np.random.Generator, n: int | None = None) -> Any:
        """Return the ``n`` best, all by default, with their ``rank`` and ``crowding``."""
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        pop.set("rank", np.full(len(pop), len(pop)))
        pop.set("crowding", np.zeros(len(pop)))
        return RankAndCrowding().do(problem, pop, n_survive=n, random_state=rng)

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Return survivors, the generation under way and the keys asked."""
        return {
            "generation": self._generation,
            "asked": self._asked,
            "waiting": self._waiting,
            "seen": list(self._seen),
            "survivors": [t.to_state() for t in self._survivors],
            "children": [t.to_state() for t in self._children],
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        self._generation = int(state["generation"])
        self._asked = int(state["asked"])
        self._waiting = None if state["waiting"] is None else [dict(sample) for sample in state["waiting"]]
        self._seen = list(state["seen"])
        self._survivors = [Trial.of_state(t) for t in state["survivors"]]
        self._children = [Trial.of_state(t) for t in state["children"]]


def _better(pop: Any, pairs: Any, random_state: np.random.Generator, **_: Any) -> Any:
    """Return the winners of tournaments ``[n, 2]``: by violations, rank, crowding, then chance."""
    winners = []
    for a, b in pairs:
        first, second = ((pop[i].CV[0], pop[i].get("rank"), -pop[i].get("crowding")) for i in (a, b))
        coin = random_state.random() < 0.5
        winners.append(a if first < second or (first == second and coin) else b)
    return np.array(winners)[:, None]
