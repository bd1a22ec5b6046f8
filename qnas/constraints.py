"""Constraints by name, and populations that meet them. A constraint that nothing meets is an error, not a loop."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qnas.costs import CostTable
from qnas.distribution import Window
from qnas.errors import ConfigError, ConstraintError, unknown_name
from qnas.monte_carlo import MonteCarlo
from qnas.rng import generator
from qnas.space import Indices

_PATTERN = re.compile(r"^\s*([A-Za-z_]\w*)\s*(<=|>=)\s*([-+0-9.eE_]+)\s*$")
PROBES = 2000  # random samples from which the search for a feasible one starts
DESCENTS = 40  # of the probes that come nearest
ATTEMPTS = 20  # rounds of rejection before samples are drawn from conditional marginals instead
REPAIRED = 4096  # stages of repairs that are judged at once
MONTE_CARLO_POOL = 8000  # samples of a pool for each cost; less than for many targets, since there is one
MONTE_CARLO_TRIES = 200  # draws of those for one sample before it is repaired instead


@dataclass(frozen=True)
class Constraint:
    """``name <= limit`` or ``name >= limit``."""

    name: str
    sense: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.sense}{self.limit:g}"

    def violation(self, value: Any) -> Any:
        """Return how far ``value`` (a number or an array) misses the limit, relative to it; 0 where it is met."""
        excess = value - self.limit if self.sense == "<=" else self.limit - value
        return np.maximum(excess, 0) / (abs(self.limit) or 1.0)


def parse_constraint(text: str, metrics: Sequence[str]) -> Constraint:
    """Return the constraint that ``text`` says, for example ``bitops<=2e8``.

    Raises:
        ConfigError: it is malformed, or names no metric.
    """
    match = _PATTERN.match(text)
    try:
        limit = float(match[3]) if match else float("nan")
    except ValueError:
        limit = float("nan")
    if match is None or not np.isfinite(limit):
        raise ConfigError(
            f"The constraint {text!r} is not of the form NAME<=NUMBER or NAME>=NUMBER. "
            f'For example --constraint "bitops<=2e8"; names: {", ".join(metrics)}.'
        )
    if match[1] not in metrics:
        raise ConfigError(unknown_name("The constraint's metric", match[1], metrics, f"Correct {text!r}."))
    return Constraint(match[1], match[2], limit)


def plain_number(value: float) -> str:
    """Return a whole number in full, ``1,234,567``, any other with three decimals, ``3.421``."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.3f}"


def total_violation(constraints: Sequence[Constraint], metrics: Mapping[str, float]) -> float:
    """Return the sum of all violations, 0 where every constraint is met."""
    return float(sum(c.violation(metrics[c.name]) for c in constraints))


class FeasibleSet:
    """The samples of a space that meet the constraints on costs.

    Args:
        table: of the space's costs.
        constraints: on costs; those on measured metrics are not known before a subnet is judged.
        seed: of the search for a feasible sample, and of pools.

    Raises:
        ConstraintError: nothing meets them; the message says how close the space comes.
    """

    def __init__(self, table: CostTable, constraints: Sequence[Constraint], seed: int) -> None:
        self.table = table
        self.constraints = [c for c in constraints if c.name in table.models]
        self.space = table.space
        self._seed = seed
        self._monte_carlo: MonteCarlo | None = None  # made where uniform samples are too rare
        self._anchor = self._find_anchor(seed)

    def violation(self, indices: Indices) -> np.ndarray[Any, Any]:
        """Return ``[n]`` total violations."""
        total = np.zeros(len(indices))
        if self.constraints:
            costs = self.table.costs(indices, sorted({c.name for c in self.constraints}))
            for constraint in self.constraints:
                total += constraint.violation(costs[constraint.name])
        return total

    def draw(self, rng: np.random.Generator, n: int) -> Indices:
        """Return ``n`` feasible samples, ``[n, num_knobs]``: uniform ones as far as these are not too rare.

        Where they are, the others are drawn knob by knob from conditional marginals (:mod:`qnas.monte_carlo`), and
        repaired only where that fails too.
        """
        found = np.empty((0, len(self.space.knobs)), dtype=np.int64)
        for _ in range(ATTEMPTS):
            drawn = self.space.draw(rng, 2 * n)
            found = np.concatenate([found, drawn[self.violation(drawn) == 0]])
            if len(found) >= n:
                return found[:n]
        found = np.concatenate([found, self._draw_rare(rng, n - len(found))])
        return np.concatenate([found, self.repair(self.space.draw(rng, n - len(found)), rng)])

    def _draw_rare(self, rng: np.random.Generator, n: int) -> Indices:
        """Return at most ``n`` feasible samples from marginals that are conditioned on the constraints."""
        windows = self.windows()
        if self._monte_carlo is None:
            self._monte_carlo = MonteCarlo(self.table, sorted(windows), seed=self._seed, size=MONTE_CARLO_POOL)
        try:
            drawn = self._monte_carlo.draw(rng, [windows] * n, MONTE_CARLO_TRIES)
        except ConstraintError:  # its pool holds no feasible sample, though there is one: the anchor
            return np.empty((0, len(self.space.knobs)), dtype=np.int64)
        return drawn.rows[drawn.met]

    def windows(self) -> dict[str, Window]:
        """Return what the constraints leave of each cost, by name."""
        found: dict[str, Window] = {}
        for constraint in self.constraints:
            window, limit = found.get(constraint.name, Window()), constraint.limit
            upper = constraint.sense == "<="
            low, high = (-np.inf, limit) if upper else (limit, np.inf)
            found[constraint.name] = Window(max(window.low, low), min(window.high, high))
        return found

    def repair(self, indices: Indices, rng: np.random.Generator) -> Indices:
        """Return the samples made feasible: knobs of a feasible sample are taken over, one by one, until they are."""
        rows = indices.copy()
        wrong = np.flatnonzero(self.violation(rows) > 0)
        knobs = rows.shape[1]
        orders = rng.permuted(np.tile(np.arange(knobs), (len(wrong), 1)), axis=1)
        at_once = max(1, REPAIRED // knobs)
        for start in range(0, len(wrong), at_once):
            part = wrong[start : start + at_once]
            turns = np.argsort(orders[start : start + at_once], axis=1)  # when each knob is taken over
            taken = turns[:, None, :] <= np.arange(knobs)[None, :, None]
            steps = np.where(taken, self._anchor, rows[part][:, None, :])  # all stages of the repair, judged in one go
            met = (self.violation(steps.reshape(-1, knobs)) == 0).reshape(len(part), knobs)
            first = np.where(met.any(1), met.argmax(1), knobs - 1)
            rows[part] = steps[np.arange(len(part)), first]
        return rows

    def _find_anchor(self, seed: int) -> Indices:
        rng = generator(seed, "feasible")
        sizes = np.array([len(knob.choices) for knob in self.space.knobs])
        start = np.concatenate([np.zeros((1, len(sizes)), np.int64), (sizes - 1)[None], self.space.draw(rng, PROBES)])
        violations = self.violation(start)
        best, least = start[0], np.inf
        for row in start[np.argsort(violations, kind="stable")[:DESCENTS]]:
            descended, violation = self._descend(row.copy(), sizes)
            if violation < least:
                best, least = descended, violation
            if least == 0:
                return np.asarray(best)
        raise self._refusal(best)

    def _descend(self, row: Indices, sizes: Indices) -> tuple[Indices, float]:
        """Lower the violation one knob at a time, until no knob helps."""
        least = float(self.violation(row[None])[0])
        while least > 0:
            rows = [row]
            for column, size in enumerate(sizes):
                for value in range(size):
                    changed = row.copy()
                    changed[column] = value
                    rows.append(changed)
            candidates = np.stack(rows)
            violations = self.violation(candidates)
            choice = int(np.argmin(violations))
            if violations[choice] >= least:
                break
            row, least = candidates[choice], float(violations[choice])
        return row, least

    def _refusal(self, nearest: Indices) -> ConstraintError:
        costs = self.table.costs(nearest[None], sorted({c.name for c in self.constraints}))
        wanted = ", ".join(str(c) for c in self.constraints)
        reached = ", ".join(f"{name}={plain_number(value[0])}" for name, value in costs.items())
        # One limit on a cost that grows with every knob is decided by descent; a window between two is only searched.
        said = "No subnet" if len(self.constraints) == 1 else f"None of {PROBES + DESCENTS} probed and improved subnets"
        return ConstraintError(
            f"{said} of space {self.space.name!r} meets {wanted}. The closest one has {reached}. "
            "Loosen the constraint, or widen the space (--w-bits, --a-bits, --space-option)."
        )
