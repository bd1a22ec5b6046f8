"""How likely a random sample's cost falls into a window: exactly, by convolution, where knobs add up. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from qnas.costs import CostTable
from qnas.errors import ConfigError

Array = np.ndarray[Any, Any]

CELLS = 2**20  # of a distribution that is finer than that


@dataclass(frozen=True)
class Window:
    """Costs from ``low`` to ``high``, both included."""

    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def around(cls, target: float, tolerance: float) -> Window:
        """Return what is at most ``tolerance`` from ``target``."""
        return cls(target - tolerance, target + tolerance)

    def holds(self, costs: Array) -> Array:
        """Return ``[n]`` booleans: which costs lie in the window."""
        return (costs >= self.low) & (costs <= self.high)

    def distance(self, costs: Array) -> Array:
        """Return ``[n]`` how far costs lie outside, 0 inside."""
        return np.maximum(np.maximum(self.low - costs, costs - self.high), 0.0)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"


def distribution(
    table: CostTable, name: str, marginals: Sequence[Array] | None = None, cells: int = CELLS
) -> tuple[Array, Array]:
    """Return the costs that samples of independent knobs can have, ascending, and the probability of each.

    The convolution of the knobs' terms, on the lattice of their greatest common divisor. Where that has more than
    ``cells`` points, every term is rounded to a multiple of a coarser step, so that no sample's cost is off by more
    than half a step for each knob: with 38 knobs and the default, less than 0.002% of the costs' range.

    Args:
        table: of the space; the cost must be a sum of one term a knob, such as an average bit-width where there is no
            architecture to choose.
        name: of the cost.
        marginals: for each knob ``[num_choices]`` probabilities; uniform by default.
        cells: most points.

    Raises:
        ConfigError: knobs change the cost together.
    """
    found = table.terms(name)
    if found is None:
        raise ConfigError(
            f"The distribution of {name} in space {table.space.name!r} is not known in closed form: knobs change it "
            "together, as architecture does. Fix the architecture (--space-option elastic=false), or count draws."
        )
    terms, divisor = found
    lowest = sum(int(term.min()) for term in terms)
    steps = [term - term.min() for term in terms]
    unit = reduce(math.gcd, (int(step) for term in steps for step in term), 0) or 1
    unit *= max(1, math.ceil(sum(int(term.max()) for term in steps) / unit / cells))
    chances = np.ones(1)
    for i, term in enumerate(steps):
        shifts = (term + unit // 2) // unit
        weights = np.full(len(term), 1 / len(term)) if marginals is None else np.asarray(marginals[i], dtype=np.float64)
        longer = np.zeros(len(chances) + int(shifts.max()))
        for shift, weight in zip(shifts.tolist(), weights.tolist(), strict=True):
            longer[shift : shift + len(chances)] += weight * chances
        chances = longer
    return (lowest + unit * np.arange(len(chances))) / divisor, chances


def probability(table: CostTable, windows: Mapping[str, Window], marginals: Sequence[Array] | None = None) -> float:
    """Return the chance that a sample of independent knobs meets every window.

    Args:
        table: of the space.
        windows: by cost; no knob may change more than one of the costs, as with averages of weights' and of
            activations' bits.
        marginals: for each knob ``[num_choices]`` probabilities; uniform by default.

    Raises:
        ConfigError: a cost's distribution is not known in closed form, or costs depend on one another.
    """
    seen: set[int] = set()
    chance = 1.0
    for name, window in windows.items():
        knobs = set(table.depends_on(name))
        if seen & knobs:
            both = table.space.knobs[min(seen & knobs)].label
            raise ConfigError(
                f"The costs {', '.join(windows)} depend on one another in space {table.space.name!r}: knob {both!r} "
                "changes more than one of them. Ask for one at a time, or count draws."
            )
        seen |= knobs
        costs, chances = distribution(table, name, marginals)
        chance *= float(chances[window.holds(costs)].sum())
    return chance


def expected_draws(table: CostTable, windows: Mapping[str, Window], marginals: Sequence[Array] | None = None) -> float:
    """Return the mean number of draws until one meets every window: 1 / :func:`probability`; infinite if none can."""
    chance = probability(table, windows, marginals)
    return 1 / chance if chance > 0 else math.inf
