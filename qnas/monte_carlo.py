"""Samples that meet targets on costs, drawn knob by knob from conditional marginals estimated in a pool. No torch.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.3: uniform
samples concentrate in the middle of the average bit-widths, so a low or a high average takes very many draws. Instead
the bits of each layer are drawn by themselves from ``pi(b_l = k | average = target)`` (Eq. 5), which is counted in a
pool of random samples (Eq. 6).

Departs from the paper, whose pool is uniform and lacks just the averages that are rare: a pool here is spread over all
levels of the cost and weighted (:mod:`qnas.pool`), so that the same marginals are estimated everywhere. Where a target
still holds too few samples, a pool of its own is drawn about it, whose levels move to the mean of the nearest samples,
as in the cross-entropy method (Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization",
1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qnas.costs import CostTable
from qnas.distribution import Window
from qnas.errors import ConstraintError
from qnas.pool import CHUNK, Array, Pool, Windows, cumulative, pick
from qnas.rng import generator
from qnas.space import Indices

POOL = 20_000  # samples of a pool, for each cost
FEW = 30  # samples in a target's window, below which it gets a pool of its own
OWN = 4_000  # samples of each round of such a pool
ROUNDS = 6
NEAREST = 200  # samples from whose mean the next round's level is taken
TRIES = 2000  # draws for one sample


@dataclass(frozen=True)
class Drawn:
    """Samples, one for each target.

    Attributes:
        rows: ``[n, num_knobs]``.
        met: ``[n]`` whether the target is met; where not, the row means nothing.
        draws: ``[n]`` how many draws it took, or were given up after.
    """

    rows: Indices
    met: Array
    draws: Array


class MonteCarlo:
    """Draws samples that meet windows of costs, from conditional marginals (Eq. 5).

    Each knob is conditioned on the costs that depend on it: the bits of weights on the average of weights' bits, those
    of activations on theirs, and architecture, which changes both, on both together. What is drawn knob by knob only
    tends to meet the windows, so what does not is drawn again.

    Args:
        table: of the space.
        names: the costs that targets are about.
        seed: of the pools, which depend on nothing else: what is drawn is a function of targets and generator alone.
        size: samples of each pool, for each cost that it is about.
    """

    def __init__(self, table: CostTable, names: Sequence[str], *, seed: int = 0, size: int = POOL) -> None:
        self.table = table
        self.names = tuple(names)
        self.seed = seed
        self.size = size
        groups: dict[tuple[str, ...], list[int]] = {}
        known = {name: set(table.depends_on(name)) for name in self.names}
        for knob in range(len(table.space.knobs)):
            groups.setdefault(tuple(name for name in self.names if knob in known[name]), []).append(knob)
        self._groups = {costs: np.array(knobs) for costs, knobs in groups.items()}
        self._pools: dict[tuple[str, ...], Pool] = {}
        self._found: dict[tuple[tuple[str, ...], tuple[Window, ...]], Array] = {}
        self._most = max(len(knob.choices) for knob in table.space.knobs)

    def pool(self, names: tuple[str, ...]) -> Pool:
        """Return the pool that is spread over the levels of some costs, drawn once."""
        if names not in self._pools:
            size = self.size * len(names)  # what is conditioned on several costs is met more rarely
            self._pools[names] = Pool(self.table, names, generator(self.seed, "monte-carlo"), size)
        return self._pools[names]

    def marginals(self, windows: Windows) -> Array:
        """Return each knob's probabilities, ``[num_knobs, most choices]``, 0 where a knob has fewer.

        Raises:
            ConstraintError: no sample meets the windows.
        """
        found = np.zeros((len(self.table.space.knobs), self._most))
        for names, knobs in self._groups.items():
            found[knobs] = self._conditional(names, windows)[knobs]
        return found

    def _conditional(self, names: tuple[str, ...], windows: Windows) -> Array:
        key = (names, tuple(windows[name] for name in names))
        if key not in self._found:
            self._found[key] = self._counted(names, windows) if names else self._uniform()
        return self._found[key]

    def _uniform(self) -> Array:
        sizes = np.array([len(knob.choices) for knob in self.table.space.knobs])
        return np.asarray((np.arange(self._most) < sizes[:, None]) / sizes[:, None])

    def _counted(self, names: tuple[str, ...], windows: Windows) -> Array:
        pool = self.pool(names)
        numbers = pool.inside(windows)
        if len(numbers) < FEW:
            self._check_reach(pool, windows)
            pool = self._own_pool(pool, windows)
            numbers = pool.inside(windows)
        if not len(numbers):
            raise self._refusal(pool, windows)
        return pool.marginals(numbers)

    def _own_pool(self, pool: Pool, windows: Windows) -> Pool:
        """Return a pool about the windows, whose levels go to where the nearest samples are."""
        rng = generator(self.seed, "monte-carlo-own")
        own: Pool | None = None
        for _ in range(ROUNDS):
            seen = own or pool
            nearest = np.argsort(seen.distance(windows), kind="stable")[:NEAREST]
            centre = seen.scores(nearest).mean(0)[None]
            if own is None:
                own = Pool(self.table, pool.names, rng, OWN, centre)
            else:
                own.add(centre, rng, OWN)
            if len(own.inside(windows)) >= FEW:
                break
        assert own is not None
        return own if len(own.inside(windows)) or not len(pool.inside(windows)) else pool

    def reach(self, name: str) -> tuple[float, float]:
        """Return the lowest and the highest of a cost that the pool and the ends of its effects hold."""
        effects = self.table.effects(name)
        ends = np.array([[int(e.argmin()) for e in effects], [int(e.argmax()) for e in effects]])
        seen = np.concatenate([self.table.costs(ends, [name])[name], self.pool((name,)).costs[name]])
        return float(seen.min()), float(seen.max())

    def _check_reach(self, pool: Pool, windows: Windows) -> None:
        for name in pool.names:
            low, high = self.reach(name)
            if windows[name].low > high or windows[name].high < low:
                raise ConstraintError(
                    f"No sample of space {self.table.space.name!r} has {name} {windows[name]}: it goes from {low:g} to "
                    f"{high:g}. Choose a target between them, or widen the space (--w-bits, --a-bits)."
                )

    def _refusal(self, pool: Pool, windows: Windows) -> ConstraintError:
        nearest = int(np.argmin(pool.distance(windows)))
        wanted = ", ".join(f"{name} {windows[name]}" for name in pool.names)
        reached = ", ".join(f"{name}={pool.costs[name][nearest]:g}" for name in pool.names)
        return ConstraintError(
            f"None of {len(pool.rows):,} samples of space {self.table.space.name!r}, drawn towards {wanted}, is there; "
            f"the closest has {reached}. Choose another target, or a larger tolerance."
        )

    def draw(self, rng: np.random.Generator, targets: Sequence[Windows], tries: int = TRIES) -> Drawn:
        """Draw one sample for each target.

        Args:
            rng: of the samples.
            targets: windows by the names of the costs.
            tries: after so many draws a target is given up.

        Raises:
            ConstraintError: no sample meets a target.
        """
        keys = [tuple(target[name] for name in self.names) for target in targets]
        kinds = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        tables = [self.marginals(dict(zip(self.names, key, strict=True))) for key in kinds]
        kind = np.array([kinds[key] for key in keys], dtype=np.int64)
        bounds = np.array([[(window.low, window.high) for window in key] for key in kinds], dtype=np.float64)
        rows = np.zeros((len(targets), len(self.table.space.knobs)), dtype=np.int64)
        met, draws = np.zeros(len(targets), dtype=bool), np.zeros(len(targets), dtype=np.int64)
        summed = cumulative(np.array(tables).reshape(-1, *rows.shape[1:], self._most))
        while len(left := np.flatnonzero(~met & (draws < tries))):
            left = left[:CHUNK]
            each = max(1, min(64, CHUNK // len(left), tries - int(draws[left].max())))
            owner = np.repeat(left, each)
            drawn = pick(summed, kind[owner], rng)
            good = self._inside(drawn, bounds[kind[owner]]).reshape(len(left), each)
            first, hit = good.argmax(1), good.any(1)
            draws[left] += np.where(hit, first + 1, each)
            met[left] = hit
            rows[left[hit]] = drawn.reshape(len(left), each, -1)[hit, first[hit]]
        return Drawn(rows, met, draws)

    def _inside(self, rows: Indices, bounds: Array) -> Array:
        """Return ``[n]`` whether samples meet their own bounds ``[n, costs, 2]``."""
        costs = self.table.costs(rows, self.names)
        held = np.ones(len(rows), dtype=bool)
        for i, name in enumerate(self.names):
            held &= (costs[name] >= bounds[:, i, 0]) & (costs[name] <= bounds[:, i, 1])
        return held
