"""Loss-aware post-training quantization: ranges that make the smallest loss, found layer by layer, then together.

Nahshan et al., "Loss Aware Post-Training Quantization", Machine Learning 2021, https://arxiv.org/abs/1911.07190.
MultiQuant starts its quantizers with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.quantizer import Quantizer, SiteContext
from qnas.nn.supernet import Supernet
from qnas.protocols import BatchLoss
from qnas.space import BIT_ROLES
from qnas_plugins.calibrators.ranges import RangeCalibrator, Ranges, Seen, norm_ranges, set_ranges

Vector = np.ndarray[Any, np.dtype[np.float64]]
REACH = 1.0  # ranges are refined between 1/2 and 2 times their start: |log2| at most this


class LossAwareRange:
    """Three steps for each bit-width, all of them with the largest subnet and every layer at this bit-width.

    1. For some norms p, each layer's range of the smallest ``sum |Q(v) - v|^p`` (layer-wise: Sec. 4.1).
    2. A parabola through the loss over p; the layers take the ranges of its minimum (Sec. 4.2), or of the best p tried.
    3. Powell's method moves all ranges together, each by a factor from 1/2 to 2, to a smaller loss (Sec. 4.3).

    The ranges of the other bit-widths, such as those of the first and the last layer, are meanwhile those of step 1 for
    the first norm, or final: lower bit-widths come first.

    Args:
        norms: p of step 1, ascending.
        rounds: of Powell's method: each moves every range once. 0 leaves step 3 out.
        line: evaluations of the loss a range and round at most.
    """

    name = "lapq"

    def __init__(self, *, norms: Sequence[float] = (2.0, 2.5, 3.0, 3.5, 4.0), rounds: int = 1, line: int = 8) -> None:
        if not norms or list(norms) != sorted(set(norms)) or norms[0] <= 0 or rounds < 0 or line < 1:
            raise ConfigError(
                "Calibrator lapq: norms must be positive numbers, ascending, rounds at least 0 and line at least 1; "
                f"given: norms={list(norms)}, rounds={rounds}, line={line}. Correct [train.calibrator_options]."
            )
        self.norms = tuple(float(p) for p in norms)
        self.rounds = rounds
        self.line = line

    @torch.no_grad()
    def start(self, supernet: Supernet, batches: Sequence[Tensor], roles: Sequence[str], loss: BatchLoss) -> None:
        """Set the ranges of the active subnet's quantizers; see :class:`qnas.protocols.RangeCalibrator`."""
        sample = supernet.sample
        contexts, seen = RangeCalibrator.look(supernet, batches, roles)
        every = sorted({bits for quantizer in seen for bits in quantizer.site.bits})  # a step that all share: the last
        layerwise = {
            bits: {q: _layerwise(q, contexts[q], bits, seen[q], self.norms) for q in seen if bits in q.site.bits}
            for bits in every
        }
        for bits, found in layerwise.items():
            for quantizer, ranges in found.items():
                set_ranges(quantizer, bits, ranges[0])
        for bits, found in layerwise.items():
            supernet.activate(_uniform(supernet, bits))
            at = {layer.name: {"weight": layer.w_bits, "activation": layer.a_bits} for layer in supernet.layers}
            there = {q: r for q, r in found.items() if at.get(q.site.name, {}).get(q.site.role) == bits}
            if there:
                self._together(_Joint(supernet, batches, loss, bits, contexts, seen), there)
            supernet.activate(sample)

    def _together(self, joint: _Joint, found: Mapping[Quantizer, list[Ranges]]) -> None:
        """Steps 2 and 3."""
        losses = [joint.loss({q: ranges[i] for q, ranges in found.items()}) for i in range(len(self.norms))]
        best = int(np.argmin(losses))
        ranges, least = {q: each[best] for q, each in found.items()}, losses[best]
        vertex = parabola_minimum(self.norms, losses)
        if vertex is not None:
            between = {q: joint.layerwise(q, vertex) for q in found}
            reached = joint.loss(between)
            if reached < least:
                ranges, least = between, reached
        factors = np.ones(len(ranges))
        if self.rounds:
            factors = refine(lambda f: joint.loss(_scaled(ranges, f)), len(ranges), self.rounds, self.line, least)
        joint.set(_scaled(ranges, factors))


class _Joint:
    """The loss of the active subnet as a function of the ranges at one bit-width."""

    def __init__(
        self,
        supernet: Supernet,
        batches: Sequence[Tensor],
        loss: BatchLoss,
        bits: int,
        contexts: Mapping[Quantizer, SiteContext],
        seen: Mapping[Quantizer, Seen],
    ) -> None:
        self.supernet = supernet
        self.batches = batches
        self.loss_of = loss
        self.bits = bits
        self.contexts = contexts
        self.seen = seen

    def set(self, ranges: Mapping[Quantizer, Ranges]) -> None:
        for quantizer, found in ranges.items():
            set_ranges(quantizer, self.bits, found)

    def loss(self, ranges: Mapping[Quantizer, Ranges]) -> float:
        """Return the mean loss over the batches; infinite where it is not finite."""
        self.set(ranges)
        total = sum(float(self.loss_of(i, self.supernet(images))) for i, images in enumerate(self.batches))
        return total / len(self.batches) if np.isfinite(total) else float("inf")

    def layerwise(self, quantizer: Quantizer, norm: float) -> Ranges:
        return _layerwise(quantizer, self.contexts[quantizer], self.bits, self.seen[quantizer], [norm])[0]


def _layerwise(quantizer: Quantizer, ctx: SiteContext, bits: int, seen: Seen, norms: Sequence[float]) -> list[Ranges]:
    return norm_ranges(quantizer, SiteContext(bits, ctx.channels, ctx.values, kernel=ctx.kernel), seen, norms)


def _uniform(supernet: Supernet, bits: int) -> dict[str, Any]:
    """Return the active sample with every bit-width at ``bits``, or at the highest where that is no choice."""
    knobs = {knob.label: knob for knob in supernet.space.knobs if knob.role in BIT_ROLES}
    return {
        **supernet.sample,
        **{label: bits if bits in knob.choices else knob.choices[-1] for label, knob in knobs.items()},
    }


def _scaled(ranges: Mapping[Quantizer, Ranges], factors: Vector) -> dict[Quantizer, Ranges]:
    return {q: (low * float(f), high * float(f)) for (q, (low, high)), f in zip(ranges.items(), factors, strict=True)}


def parabola_minimum(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return where the least-squares parabola has its minimum, if that lies between the first and the last ``x``."""
    if len(x) < 3 or not np.all(np.isfinite(y)):
        return None
    curvature, slope, _ = np.polyfit(x, y, 2)
    if curvature <= 0:
        return None
    vertex = float(-slope / (2 * curvature))
    return vertex if x[0] < vertex < x[-1] else None


def refine(function: Callable[[Vector], float], n: int, rounds: int, line: int, start: float) -> Vector:
    """Return ``n`` factors from 1/2 to 2 of the smallest value found by Powell's method from all ones.

    Args:
        function: of ``[n]`` factors.
        rounds: iterations, each along every direction.
        line: evaluations a direction on average.
        start: the value at all ones.
    """
    best, least = np.ones(n), start

    def tried(logarithms: Vector) -> float:
        nonlocal best, least
        factors = np.exp2(logarithms)
        value = function(factors)
        if value < least:
            best, least = factors, value
        return value

    options = {"maxiter": rounds, "maxfev": max(2, rounds * n * line), "xtol": 0.1, "ftol": 1e-4}
    minimize(tried, np.zeros(n), method="Powell", bounds=[(-REACH, REACH)] * n, options=options)
    return best
