"""Search problems whose answers are known, to test strategies with."""

from __future__ import annotations

import numpy as np

from qnas.protocols import Objective, SearchProblem, Trial
from qnas.space import Knob, QuantScheme, SearchSpace

OBJECTIVES = (Objective("accuracy", "max"), Objective("cost", "min"))


class Grid(SearchSpace):
    """Knobs without a network: ``numbers`` of them with choices 0 to ``size`` - 1, and one of words."""

    def __init__(self, numbers=6, size=5, words=("a", "b")):
        knobs = [Knob(f"k{i}", tuple(range(size))) for i in range(numbers)]
        super().__init__("grid", [*knobs, Knob("word", words)], [], QuantScheme(), image_size=8, num_classes=2)
        self.numbers, self.size = numbers, size

    def build(self, context):
        raise NotImplementedError


def problem(space=None, seed=0, objectives=OBJECTIVES, repair=lambda rows, rng: rows):
    space = space or Grid()
    return SearchProblem(space, objectives, space.draw, repair, seed)


def judge(space, sample, limit=None):
    """Two objectives at odds: the half of the knobs that helps costs, the other half only costs.

    Args:
        limit: of the cost; what exceeds it is the violation.
    """
    values = np.array([sample[f"k{i}"] for i in range(space.numbers)]) / (space.size - 1)
    useful = values[: space.numbers // 2]
    accuracy, cost = float(1 - np.mean((1 - useful) ** 2)), float(values.mean())
    metrics = {"accuracy": accuracy * (0.9 if sample["word"] == "b" else 1.0), "cost": cost}
    return Trial(space.key(sample), sample, metrics, 0.0 if limit is None else max(0.0, cost - limit))


def drive(strategy, space, n, ask=1, limit=None):
    """Let a strategy ask up to ``n`` subnets, ``ask`` at once; return the trials."""
    trials = []
    while len(trials) < n:
        samples = strategy.ask(min(ask, n - len(trials)))
        if not samples:
            break
        judged = [judge(space, sample, limit) for sample in samples]
        strategy.tell(judged)
        trials += judged
    return trials
