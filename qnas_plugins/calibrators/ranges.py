"""Calibrators of ranges: minmax, percentile, mse and entropy. They look at the float network, and train nothing.

Each watches what arrives at the quantizers, then gives each of them a range for each of its bit-widths. Weights are
looked at as they are, one range a tensor or a channel, as their quantizer wants it; activations through a histogram.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.quantizer import Quantizer, SiteContext
from qnas.nn.supernet import Supernet
from qnas.protocols import BatchLoss

BINS = 2048
FRACTIONS = 100  # of the whole range, that mse and lapq try

Ranges = tuple[Tensor, Tensor]
"""Low and high ends, ``[R]`` each, ``low <= 0 <= high``."""


@dataclass
class Seen:
    """What arrived at one quantizer, in ``R`` rows: output channels of weights, or 1.

    Attributes:
        points: ``[R, n]`` values.
        counts: ``[R, n]``: how often each was seen.
        low, high: ``[R]`` extremes, 0 included.
    """

    points: Tensor
    counts: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of_weights(weight: Tensor, per_channel: bool) -> Seen:
        """Return the values of weights ``[O, I, K, K]``."""
        points = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        return Seen(points, torch.ones_like(points), points.amin(1).clamp(max=0), points.amax(1).clamp(min=0))

    @staticmethod
    def empty(low: Tensor, high: Tensor) -> Seen:
        """Return a histogram of nothing between two extremes, ``[]`` each; a point is the middle of a bin."""
        low, high = low.reshape(1).clamp(max=0), high.reshape(1).clamp(min=0)
        places = (torch.arange(BINS, device=low.device) + 0.5) / BINS
        return Seen(low + (high - low) * places[None], torch.zeros(1, BINS, device=low.device), low, high)

    def count(self, values: Tensor) -> None:
        """Add values of any shape to a histogram."""
        low, high = float(self.low), float(self.high)
        if high > low:
            self.counts += torch.histc(values.float(), BINS, low, high)


class RangeCalibrator(ABC):
    """What the four share; each says how the values seen become a range."""

    name = ""

    def start(self, supernet: Supernet, batches: Sequence[Tensor], roles: Sequence[str], loss: BatchLoss) -> None:
        """Set the ranges of the active subnet's quantizers; see :class:`qnas.protocols.RangeCalibrator`."""
        contexts, seen = self.look(supernet, batches, roles)
        for quantizer, values in seen.items():
            ctx = contexts[quantizer]
            for bits in quantizer.site.bits:
                found = self.find(quantizer, SiteContext(bits, ctx.channels, ctx.values, kernel=ctx.kernel), values)
                set_ranges(quantizer, bits, found)

    @staticmethod
    def look(
        supernet: Supernet, batches: Sequence[Tensor], roles: Sequence[str]
    ) -> tuple[dict[Quantizer, SiteContext], dict[Quantizer, Seen]]:
        """Return what arrives at the active subnet's quantizers while nothing is rounded."""
        contexts: dict[Quantizer, SiteContext] = {}
        seen: dict[Quantizer, Seen] = {}
        extremes: dict[Quantizer, tuple[Tensor, Tensor]] = {}

        def look(quantizer: Quantizer, ctx: SiteContext, values: Tensor) -> None:
            contexts[quantizer] = ctx
            if quantizer.site.role == "weight":
                if quantizer not in seen:
                    seen[quantizer] = Seen.of_weights(values, quantizer.per_channel)
                return
            low, high = values.float().aminmax()
            if quantizer in extremes:
                low, high = torch.minimum(low, extremes[quantizer][0]), torch.maximum(high, extremes[quantizer][1])
            extremes[quantizer] = low, high

        def count(quantizer: Quantizer, ctx: SiteContext, values: Tensor) -> None:
            if quantizer.site.role == "activation":
                seen[quantizer].count(values)

        _watch(supernet, batches, roles, look)
        if extremes:
            seen.update({quantizer: Seen.empty(*ends) for quantizer, ends in extremes.items()})
            _watch(supernet, batches, roles, count)  # with the roles of before: what is float stays float
        return contexts, seen

    @abstractmethod
    def find(self, quantizer: Quantizer, ctx: SiteContext, seen: Seen) -> Ranges:
        """Return the ranges for one bit-width."""


@torch.no_grad()
def _watch(
    supernet: Supernet,
    batches: Sequence[Tensor],
    roles: Sequence[str],
    observe: Callable[[Quantizer, SiteContext, Tensor], None],
) -> None:
    with supernet.observing(observe, roles):
        for images in batches:
            supernet(images)


def set_ranges(quantizer: Quantizer, bits: int, ranges: Ranges) -> None:
    """Give a quantizer its range of one bit-width, in the shape that it wants."""
    low, high = ranges
    quantizer.set_range(bits, *((low, high) if quantizer.per_channel else (low[0], high[0])))


class MinMaxRange(RangeCalibrator):
    """From the smallest to the largest value: nothing is clipped."""

    name = "minmax"

    def find(self, quantizer: Quantizer, ctx: SiteContext, seen: Seen) -> Ranges:
        """Return the extremes."""
        return seen.low, seen.high


class PercentileRange(RangeCalibrator):
    """Leaves out the outermost values.

    Args:
        percentile: of the values that stay inside, in percent; what is left out is shared by both tails where there
            are two.
    """

    name = "percentile"

    def __init__(self, *, percentile: float = 99.99) -> None:
        if not 0 < percentile <= 100:
            raise ConfigError(
                f"Calibrator percentile: percentile must be over 0 and at most 100; given: {percentile}. Change it."
            )
        self.percentile = percentile

    def find(self, quantizer: Quantizer, ctx: SiteContext, seen: Seen) -> Ranges:
        """Return the values below and above which no more than the share to leave out lies."""
        points, order = seen.points.sort(1)
        counts = seen.counts.gather(1, order).double()
        total = counts.sum(1, keepdim=True).clamp(min=1)
        share = 1 - self.percentile / 100
        two = (seen.low < 0) & (seen.high > 0)
        tail = torch.where(two, share / 2, share)[:, None] * total
        up_to, from_on = counts.cumsum(1), counts.flip(1).cumsum(1).flip(1)
        last = points.shape[1] - 1
        first_kept = (up_to <= tail).sum(1, keepdim=True).clamp(max=last)
        last_kept = (last - (from_on <= tail).sum(1, keepdim=True)).clamp(min=0)
        low, high = points.gather(1, first_kept)[:, 0], points.gather(1, last_kept)[:, 0]
        whole = torch.tensor(share == 0)
        return torch.where(whole, seen.low, low).clamp(max=0), torch.where(whole, seen.high, high).clamp(min=0)


def norm_ranges(quantizer: Quantizer, ctx: SiteContext, seen: Seen, norms: Sequence[float]) -> list[Ranges]:
    """Return, for each norm, the range whose grid makes the smallest error ``sum |Q(v) - v|^p``.

    100 fractions of the whole range are tried; the grid is the quantizer's own.
    """
    rows = len(seen.low)
    best = [torch.full((rows,), float("inf"), dtype=torch.float64, device=seen.low.device) for _ in norms]
    fractions = [torch.ones(rows, device=seen.low.device) for _ in norms]
    for i in range(FRACTIONS, 0, -1):
        set_ranges(quantizer, ctx.bits, (seen.low * i / FRACTIONS, seen.high * i / FRACTIONS))
        distance = (quantizer.export(ctx).quantize(seen.points) - seen.points).abs()
        for k, p in enumerate(norms):
            error = (seen.counts * distance**p).sum(1).double()
            fractions[k] = torch.where(error < best[k], i / FRACTIONS, fractions[k])
            best[k] = torch.minimum(error, best[k])
    return [(seen.low * fraction, seen.high * fraction) for fraction in fractions]


class MseRange(RangeCalibrator):
    """The range whose grid makes the smallest squared error, among 100 fractions of the whole range."""

    name = "mse"

    def find(self, quantizer: Quantizer, ctx: SiteContext, seen: Seen) -> Ranges:
        """Return the best ranges."""
        return norm_ranges(quantizer, ctx, seen, [2])[0]


class EntropyRange(RangeCalibrator):
    """For activations, the threshold at which the quantized distribution keeps most of the information.

    Migacz, "8-bit Inference with TensorRT", GTC 2017: the histogram of magnitudes is cut at a threshold, values beyond
    it are added to the last bin; the bins are merged into as many as the grid has magnitudes and spread again over
    those that held something; the threshold with the least Kullback-Leibler divergence wins. Weights keep their whole
    range, as there.
    """

    name = "entropy"
    stride = 8  # bins between two thresholds that are tried

    def find(self, quantizer: Quantizer, ctx: SiteContext, seen: Seen) -> Ranges:
        """Return the range cut at the threshold."""
        reach = float(torch.maximum(-seen.low, seen.high).max())
        if quantizer.site.role == "weight" or reach <= 0 or not float(seen.counts.sum()):
            return seen.low, seen.high
        points, counts = seen.points[0].abs().cpu().numpy(), seen.counts[0].double().cpu().numpy()
        magnitudes, _ = np.histogram(points, BINS, (0.0, reach), weights=counts)
        levels = 2 ** (ctx.bits - 1) if float(seen.low) < 0 else 2**ctx.bits
        threshold = reach * entropy_threshold(magnitudes, levels, self.stride) / BINS
        return seen.low.clamp(min=-threshold), seen.high.clamp(max=threshold)


def entropy_threshold(counts: np.ndarray[Any, Any], levels: int, stride: int = 1) -> int:
    """Return how many bins of a histogram of magnitudes to keep (Migacz 2017).

    Args:
        counts: ``[n]``, from magnitude 0.
        levels: magnitudes that the grid can tell apart.
        stride: between two numbers that are tried.
    """
    n = len(counts)
    best, kept = float("inf"), n
    for i in range(n, min(levels, n) - 1, -stride):
        held = counts[:i] > 0
        merged_into = np.arange(i) * levels // i
        sums = np.bincount(merged_into, counts[:i], levels)
        holders = np.bincount(merged_into, held, levels)
        q = np.where(held, sums[merged_into] / np.maximum(holders[merged_into], 1), 0.0)
        p = counts[:i].astype(float)
        p[-1] += counts[i:].sum()
        p, q = p / p.sum(), q / max(q.sum(), 1e-300)
        known = p > 0
        divergence = float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))
        if divergence < best:
            best, kept = divergence, i
    return kept
