"""Pools of random samples, spread over the levels of costs and weighted so that they count as uniform ones. No torch.

A pool is drawn from a mixture of exponentially tilted distributions, one for each of several levels of the costs; each
has independent knobs, ``p(k) ~ exp(tilt * effect(k))``, with every choice's effect on the mean cost. A sample counts
with the weight ``uniform / mixture`` (the balance heuristic of Veach and Guibas, "Optimally Combining Sampling
Techniques for Monte Carlo Rendering", SIGGRAPH 1995), so that weighted shares estimate those of uniform samples, at low
and high levels as well as in the middle, where uniform samples are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas.costs import CostTable
from qnas.distribution import Window
from qnas.protocols import AverageCost
from qnas.space import Indices

Array = np.ndarray[Any, Any]
Windows = Mapping[str, Window]

LADDERS = {1: 32, 2: 12}  # levels of each cost by the number of costs; more costs share LEVELS
LEVELS = 256
STEEPEST = 1e5  # of a tilt, in units of one over the range of the cost
PILOT = 4096  # samples that tell which knobs are active together
CHUNK = 8192  # samples at once


class Pool:
    """Random samples of a space, spread over the levels of some costs, with the weights that make them uniform.

    Args:
        table: of the space.
        names: the costs whose levels are spread.
        rng: of the samples.
        size: about how many samples.
        centres: ``[levels, costs]``, each from 0 (the lowest that the cost's effects add up to) to 1; a ladder from 0
            to 1 by default.

    Attributes:
        rows: ``[n, num_knobs]``.
        costs: by name ``[n]``.
        log_weights: ``[n]``, of uniform over drawn.
    """

    def __init__(
        self, table: CostTable, names: Sequence[str], rng: np.random.Generator, size: int, centres: Array | None = None
    ) -> None:
        self.table = table
        self.names = tuple(names)
        sizes = np.array([len(knob.choices) for knob in table.space.knobs])
        self._allowed = np.arange(sizes.max()) < sizes[:, None]
        self._effects = np.stack([self._padded(table.effects(name)) for name in self.names])
        low = np.where(self._allowed, self._effects, np.inf).min(2)
        self._effects -= np.where(self._allowed, low[:, :, None], 0.0)
        spans = self._effects.max(2).sum(1)
        self._effects = np.where(self._allowed, self._effects / np.where(spans > 0, spans, 1.0)[:, None, None], 0.0)
        self._activity = self._find_activity(rng)
        self._log_ratios_seen, self._counts = np.empty((0, *self._allowed.shape)), np.empty(0)
        self.rows = np.empty((0, len(sizes)), dtype=np.int64)
        self.costs: dict[str, Array] = {name: np.empty(0) for name in self.names}
        self.add(self._ladder(rng) if centres is None else centres, rng, size)

    def _padded(self, effects: Sequence[Array]) -> Array:
        padded = np.zeros(self._allowed.shape)
        for row, values in zip(padded, effects, strict=True):
            row[: len(values)] = values
        return padded

    def _ladder(self, rng: np.random.Generator) -> Array:
        """Return levels at even distances: a grid for one or two costs, a Latin hypercube for more."""
        if len(self.names) in LADDERS:
            steps = (np.arange(LADDERS[len(self.names)]) + 0.5) / LADDERS[len(self.names)]
            return np.array(list(itertools.product(steps, repeat=len(self.names))))
        order = rng.permuted(np.tile(np.arange(LEVELS), (len(self.names), 1)), axis=1)
        return (order.T + 0.5) / LEVELS

    # --- drawing -----------------------------------------------------------------------------------------------

    def add(self, centres: Array, rng: np.random.Generator, size: int) -> None:
        """Draw about ``size`` more samples, equally many at each of the levels ``[levels, costs]``."""
        log_ratios = self._log_ratios(np.stack([self._tilt(c, part) for c, part in enumerate(centres.T)], axis=1))
        uniform = np.where(self._allowed, 1 / self._allowed.sum(1, keepdims=True), 0.0)
        summed = cumulative(np.where(self._allowed, np.exp(log_ratios) * uniform, 0.0))
        each = -(-size // len(centres))
        levels = np.repeat(np.arange(len(centres)), each)
        rows = np.concatenate([pick(summed, levels[i : i + CHUNK], rng) for i in range(0, len(levels), CHUNK)])
        space = self.table.space
        rows = np.where(space.active(rows), rows, space.draw(rng, len(rows)))  # what changes nothing stays uniform
        self._log_ratios_seen = np.concatenate([self._log_ratios_seen, log_ratios])
        self._counts = np.concatenate([self._counts, np.full(len(centres), float(each))])
        self.rows, found = np.concatenate([self.rows, rows]), self.table.costs(rows, self.names)
        self.costs = {name: np.concatenate([self.costs[name], found[name]]) for name in self.names}
        self.log_weights = np.concatenate(
            [self._weigh(self.rows[i : i + CHUNK]) for i in range(0, len(self.rows), CHUNK)]
        )

    def _log_ratios(self, tilts: Array) -> Array:
        """Return ``[levels, num_knobs, most choices]``: logarithms of each level's probabilities over uniform ones."""
        logits = np.einsum("jc,clk->jlk", tilts, self._effects)
        found = logits - self._log_mean(logits)[:, :, None]
        if self._activity is None:
            return np.asarray(found)
        # An average over few layers strays further than one over many: given a rare average, an architecture is likely
        # in so far as few of its knobs have to leave the uniform distribution (the exponent of large deviations).
        chances = np.where(self._allowed, np.exp(found), 0.0) / self._allowed.sum(1)[:, None]
        divergence = (chances * np.where(self._allowed, found, 0.0)).sum(2)
        logits = logits - np.einsum("akl,jl->jak", self._activity, divergence)
        return np.asarray(logits - self._log_mean(logits)[:, :, None])

    def _log_mean(self, logits: Array) -> Array:
        """Return the logarithm of the mean of ``exp(logits)`` over each knob's choices, ``[levels, num_knobs]``."""
        masked = np.where(self._allowed, logits, -np.inf)
        top = masked.max(2)
        return np.asarray(np.log(np.exp(masked - top[:, :, None]).sum(2) / self._allowed.sum(1)) + top)

    def _find_activity(self, rng: np.random.Generator) -> Array | None:
        """Return ``[num_knobs, most choices, num_knobs]``: by how much a choice makes another knob count more often.

        Only for averages, and where knobs switch others off; else ``None``.
        """
        space = self.table.space
        switches = {condition.label for knob in space.knobs for condition in knob.active_if}
        if not switches or not all(isinstance(self.table.models[name], AverageCost) for name in self.names):
            return None
        rows = space.draw(rng, PILOT)
        active = space.active(rows).astype(np.float64)
        found = np.zeros((*self._allowed.shape, len(self._allowed)))
        for label in switches:
            knob = space.position[label]
            for choice in range(len(space.knobs[knob].choices)):
                found[knob, choice] = active[rows[:, knob] == choice].mean(0) - active.mean(0)
        return found

    def _weigh(self, rows: Indices) -> Array:
        """Return the logarithm of each sample's uniform probability over that of the mixture, ``[n]``."""
        hot = (rows[:, :, None] == np.arange(self._allowed.shape[1])) & self.table.space.active(rows)[:, :, None]
        flat = np.where(self._allowed, self._log_ratios_seen, 0.0).reshape(len(self._log_ratios_seen), -1)
        densities = hot.reshape(len(rows), -1).astype(np.float64) @ flat.T + np.log(self._counts / self._counts.sum())
        top = densities.max(1)
        return np.asarray(-(np.log(np.exp(densities - top[:, None]).sum(1)) + top))

    def scores(self, numbers: Array) -> Array:
        """Return the level of some samples, ``[n, costs]``, from 0 to 1 as centres are."""
        rows = self.rows[numbers]
        return np.asarray(self._effects[:, np.arange(rows.shape[1]), rows].sum(2).T)

    def _tilt(self, cost: int, centres: Array) -> Array:
        """Return for each centre the tilt whose mean score it is, by bisection; the mean grows with the tilt."""
        centres, where = np.unique(centres, return_inverse=True)
        effects = self._effects[cost]
        low, high = np.full(len(centres), -STEEPEST), np.full(len(centres), STEEPEST)
        for _ in range(60):
            middle = (low + high) / 2
            logits = middle[:, None, None] * effects
            weights = np.where(self._allowed, np.exp(logits - logits.max(2, keepdims=True)), 0.0)
            below = ((weights * effects).sum(2) / weights.sum(2)).sum(1) < centres
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(np.where(effects.any(), (low + high) / 2, 0.0)[where])

    # --- reading -----------------------------------------------------------------------------------------------

    def inside(self, windows: Windows) -> Array:
        """Return the numbers of the samples that meet the windows of the pool's costs."""
        held = np.ones(len(self.rows), dtype=bool)
        for name in self.names:
            held &= windows[name].holds(self.costs[name])
        return np.flatnonzero(held)

    def weights(self, numbers: Array) -> Array:
        """Return weights of some samples, ``[n]``, cut at ``sqrt(n)`` times their mean.

        So no single sample can stand for all where a mixture fits badly (Ionides, "Truncated Importance Sampling",
        Journal of Computational and Graphical Statistics 17(2), 2008); the cut vanishes as samples grow in number.
        """
        logs = self.log_weights[numbers]
        weights = np.asarray(np.exp(logs - logs.max(initial=-np.inf)))
        return np.minimum(weights, np.sqrt(len(weights)) * weights.mean()) if len(weights) else weights

    def marginals(self, numbers: Array) -> Array:
        """Return each choice's weighted share among some samples, ``[num_knobs, most choices]`` (Eq. 6)."""
        knobs, most = self._allowed.shape
        cells = self.rows[numbers] + most * np.arange(knobs)
        weights = np.repeat(self.weights(numbers), knobs)
        counted = np.bincount(cells.reshape(-1), weights, knobs * most).reshape(knobs, most)
        return np.asarray(counted / counted.sum(1, keepdims=True))

    def distance(self, windows: Windows) -> Array:
        """Return ``[n]`` how far samples are from the windows, in units of each cost's spread in the pool."""
        spreads = {name: float(np.ptp(costs)) or 1.0 for name, costs in self.costs.items()}
        return np.asarray(sum(windows[name].distance(self.costs[name]) / spreads[name] for name in self.names))


def cumulative(probabilities: Array) -> Array:
    """Return cumulative probabilities over the last axis, such that no draw falls behind the last possible choice."""
    summed = np.cumsum(probabilities, axis=-1)
    return np.asarray(np.where(summed >= summed[..., -1:], np.inf, summed))


def pick(summed: Array, kinds: Array, rng: np.random.Generator) -> Indices:
    """Draw a sample for each kind ``[n]``; ``summed``: cumulative probabilities ``[kinds, num_knobs, choices]``."""
    points = rng.random((len(kinds), summed.shape[1]))
    rows: Indices = (points[:, :, None] >= summed[kinds]).sum(2)
    return rows
