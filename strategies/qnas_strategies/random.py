"""Random search: the baseline that every strategy has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from qnas.protocols import SearchProblem, State, Trial
from qnas.rng import generator
from qnas.space import Sample

TRIES = 200  # draws in search of a subnet that was not asked before


class RandomSearch:
    """Asks for uniform feasible samples, no subnet twice; finished when it finds no new one."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        self._draws = 0
        self._seen: list[str] = []

    def ask(self, n: int) -> list[Sample]:
        """Return ``n`` new samples, fewer when the space is exhausted."""
        seen = set(self._seen)
        samples: list[Sample] = []
        misses = 0
        while len(samples) < n and misses < TRIES:
            rng = generator(self.problem.seed, "random-search", self._draws)
            self._draws += 1
            sample = self.problem.space.sample(self.problem.draw(rng, 1)[0])
            key = self.problem.space.key(sample)
            if key in seen:
                misses += 1
                continue
            misses = 0
            seen.add(key)
            self._seen.append(key)
            samples.append(sample)
        return samples

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn nothing."""

    def state_dict(self) -> State:
        """Return the number of draws and the keys asked."""
        return {"draws": self._draws, "seen": list(self._seen)}

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        self._draws = int(state["draws"])
        self._seen = list(state["seen"])
