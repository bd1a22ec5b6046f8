"""Monte Carlo sampling of MultiQuant: subnets with wanted average bit-widths.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.3: the data set
of an accuracy predictor, and the first population of a search, are drawn from the distribution of bit-widths given the
average (Eq. 5 and 6; :mod:`qnas.monte_carlo`), since uniform subnets leave low and high averages out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qnas.averages import WEIGHTINGS, AverageBits
from qnas.costs import CostTable
from qnas.distribution import Window
from qnas.errors import ConfigError, ConstraintError
from qnas.monte_carlo import POOL, TRIES, MonteCarlo
from qnas.space import BIT_ROLES, Sample, SearchSpace

STEPS = 4  # spread targets lie on a lattice of so many steps a tolerance, so that many share their marginals


class MonteCarloSampler:
    """Draws subnets whose average bit-widths are given targets, or lie evenly over all that the space can reach.

    Spread targets (the default) are one for each subnet, from the lowest to the highest average at even distances, in
    random order, those of weights and those of activations by themselves; where no subnet is within the tolerance, the
    nearest average that there is takes the target's place. So a predictor's data set is balanced over averages.
    Architecture, where the space leaves a choice, follows from both averages together.

    Args:
        w_target, a_target: average bits of weights and of activations; ``spread``, or ``any`` to leave them uniform.
        weighting: of layers in the averages: ``layers``, ``parameters``, ``macs`` or ``features`` (of their inputs).
        tolerance: how far an average may be from its target, in bits.
        pool: random samples from which conditional marginals are counted, for each average.
        tries: draws of one subnet before its target is given up with an error.
        seed: of the pool. Subnets are a function of the generator that they are drawn with, and of this.
    """

    def __init__(
        self,
        *,
        w_target: float | str = "spread",
        a_target: float | str = "spread",
        weighting: str = "layers",
        tolerance: float = 0.25,
        pool: int = POOL,
        tries: int = TRIES,
        seed: int = 0,
    ) -> None:
        self.targets = dict(zip(BIT_ROLES, (w_target, a_target), strict=True))
        words = [target for target in self.targets.values() if isinstance(target, str)]
        numbers = [target for target in self.targets.values() if not isinstance(target, str)]
        wrong = not set(words) <= {"spread", "any"} or not all(0 < n < math.inf for n in numbers)
        if wrong or weighting not in WEIGHTINGS or not 0 < tolerance < math.inf or pool < 1 or tries < 1:
            raise ConfigError(
                "Sampler monte-carlo: w_target and a_target are bits over 0, 'spread' or 'any', weighting is one of "
                f"{', '.join(WEIGHTINGS)}, tolerance over 0, pool and tries at least 1; given: {w_target!r}, "
                f"{a_target!r}, {weighting!r}, {tolerance}, {pool}, {tries}. Change [train.sampler_options]."
            )
        self.weighting = weighting
        self.tolerance = tolerance
        self.pool = pool
        self.tries = tries
        self.seed = seed
        self._made: tuple[SearchSpace, MonteCarlo] | None = None  # of the last space: a stage draws from one alone

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return ``n`` samples within the tolerance of their targets; the order means nothing.

        Raises:
            ConstraintError: nothing meets a target.
        """
        source = self._source(space)
        windows = {role: self._windows(source, role, rng, n) for role in source.names}
        targets = [dict(zip(windows, row, strict=True)) for row in zip(*windows.values(), strict=True)] or [{}] * n
        drawn = source.draw(rng, targets, self.tries)
        if not drawn.met.all():
            first = targets[int(np.argmin(drawn.met))]
            raise ConstraintError(
                f"Sampler monte-carlo: none of {self.tries:,} draws from space {space.name!r} had averages by "
                f"{self.weighting} of {', '.join(f'{role} {window}' for role, window in first.items())}. Choose other "
                "targets, a larger tolerance or more tries in [train.sampler_options]."
            )
        return [space.sample(row) for row in drawn.rows]

    def _source(self, space: SearchSpace) -> MonteCarlo:
        if self._made is None or self._made[0] is not space:
            models = {role: AverageBits(role, self.weighting) for role in BIT_ROLES if self.targets[role] != "any"}
            table = CostTable(space, models)
            searched = {
                role for role in models if table.depends_on(role) or isinstance(self.targets[role], float | int)
            }
            names = [role for role in models if role in searched]
            self._made = space, MonteCarlo(table, names, seed=self.seed, size=self.pool)
        return self._made[1]

    def _windows(self, source: MonteCarlo, role: str, rng: np.random.Generator, n: int) -> list[Window]:
        """Return the window of each of ``n`` samples."""
        target = self.targets[role]
        if not isinstance(target, str):
            return [Window.around(float(target), self.tolerance)] * n
        seen = np.unique(source.pool((role,)).costs[role])
        low, high = source.reach(role)
        seen = np.unique(np.append(seen[seen > 0], [high, low or high]))  # 0 is no average, but that no layer counts
        step = self.tolerance / STEPS
        spread = seen[0] + (rng.permutation(n) + rng.random(n)) / n * (seen[-1] - seen[0])
        spread = np.minimum(seen[0] + np.round((spread - seen[0]) / step) * step, seen[-1])
        return [self._near(seen, value) for value in spread.tolist()]

    def _near(self, seen: np.ndarray[Any, Any], target: float) -> Window:
        nearest = float(seen[np.abs(seen - target).argmin()])
        return Window.around(target if abs(nearest - target) <= self.tolerance else nearest, self.tolerance)
