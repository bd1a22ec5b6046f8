"""LSQ with a learned offset for activations, and starts of its own.

Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization", CVPR
Workshops 2020, https://arxiv.org/abs/2004.09576.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.lsq import LSQ, SMALLEST_STEP

STARTS = 1 << 16  # values of an activation that its start looks at, evenly spread
SHARES = 16  # of the range's two ends that are tried


class LSQPlus(LSQ):
    """``(round(clip((x - beta) / s, 0, 2^b - 1))) s + beta`` for activations that can be negative (Eq. 1, 2).

    Both are learned: ``d/ds`` is that of LSQ with x shifted by beta, ``d/dbeta`` is 0 inside the range and 1 for what
    is clipped (Eq. 4, 5), both times LSQ's g. Weights are symmetric, without an offset (the paper's configuration 4).

    Departs from the paper: in the forward pass the offset is rounded to a whole number of steps (straight-through),
    since a real one maps zero to no code: padding would be inexact, and no integer kernel could run it. Activations
    that cannot be negative have no offset, for the same reason.

    Args:
        site: where it works.
    """

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.shifted = site.role == "activation" and site.signed
        bits = [str(b) for b in site.bits] if self.shifted else []
        # In units of the step at the start, so that Adam's rate means the same everywhere.
        self.offsets = nn.ParameterDict({b: nn.Parameter(torch.zeros(())) for b in bits})
        for b in bits:
            self.register_buffer(f"unit_{b}", torch.ones(()))

    def _offset(self, bits: int) -> Tensor:
        """Return beta, ``[]``, differentiable."""
        return self.offsets[str(bits)] * self.get_buffer(f"unit_{bits}")

    def range(self, bits: int) -> tuple[int, int]:
        """Return the smallest and largest code around 0."""
        if not self.shifted:
            return super().range(bits)
        step = float(self.log_steps[str(bits)].detach().exp())
        zero_point = min(max(round(-float(self._offset(bits).detach()) / step), 0), 2**bits - 1)
        return -zero_point, 2**bits - 1 - zero_point

    @torch.no_grad()
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Set every bit-width: weights by mean and deviation (Sec. 3.3), activations by the least squared error."""
        v = x.float()
        if self.site.role == "weight":
            mean, deviation = v.mean(), v.std(correction=0)
            reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
            for bits in self.site.bits:
                self._store(bits, (reach / 2 ** (bits - 1)).clamp(min=SMALLEST_STEP))
            return
        flat = v.flatten()
        flat = flat[:: max(1, len(flat) // STARTS)]
        for bits in self.site.bits:
            low, high = best_range(flat, 2**bits - 1, shifted=self.shifted)
            self._take(bits, low, high)

    def _take(self, bits: int, low: Tensor, high: Tensor) -> None:
        step = ((high - low) / (2**bits - 1)).clamp(min=SMALLEST_STEP)
        self._store(bits, step)
        if self.shifted:
            self.get_buffer(f"unit_{bits}").copy_(step)
            self.offsets[str(bits)].copy_(low / step)

    @torch.no_grad()
    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Start one bit-width from a calibrator's range."""
        if self.shifted:
            self._take(bits, low, high)
        else:
            super().set_range(bits, low, high)

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` on the grid."""
        out = super().forward(x, ctx)
        if not self.shifted or not torch.is_grad_enabled():
            return out
        v, step, beta = x.detach().to(out.dtype), self.log_steps[str(ctx.bits)].exp(), self._offset(ctx.bits)
        qn, qp = self.range(ctx.bits)
        at = float(step.detach())
        clipped = ((v <= qn * at) | (v >= qp * at)).to(out.dtype)
        g = 1.0 / math.sqrt(x[0].numel() * max(qp, 1))  # as of the step
        # LSQ's step has the codes -z and 2^b - 1 - z outside; with an offset of its own they are 0 and 2^b - 1.
        moved = (beta - beta.detach()) * g - (step - step.detach()) * (qn * g)
        return out + clipped * moved  # 0, with the gradients

    @torch.no_grad()
    def inherit(self, high: int, low: int) -> None:
        """Carry ``high`` bits to ``low``: ``s' = 2^d s``, ``z' = floor(z / 2^d)`` (OQAT)."""
        super().inherit(high, low)
        if self.shifted:
            step = self.log_steps[str(low)].exp()
            self.get_buffer(f"unit_{low}").copy_(step)
            self.offsets[str(low)].fill_(float(-(-self.range(high)[0] // 2 ** (high - low))))


def best_range(values: Tensor, levels: int, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return the range ``[low, high]``, 0 in it, whose grid of ``levels`` steps makes the least squared error.

    Among shares of the smallest and the largest value, each 1/16 to 16/16 (LSQ+, Sec. 3.3: scale and offset that
    minimise ``||x_hat - x||^2``); the offset is a whole number of steps.

    Args:
        values: ``[n]``.
        levels: ``2^b - 1``.
        shifted: whether ``low`` may be below 0.
    """
    least, most = values.min().clamp(max=0), values.max().clamp(min=0)
    lows = [least * i / SHARES for i in range(SHARES, 0, -1)] if shifted and float(least) < 0 else [least * 0]
    best = (math.inf, least, most)
    for low in lows:
        for i in range(SHARES, 0, -1):
            high = most * i / SHARES
            step = (high - low) / levels
            if float(step) <= 0:
                continue
            zero_point = (-low / step).round().clamp(0, levels)
            found = ((values / step).round() + zero_point).clamp(0, levels).sub(zero_point).mul(step)
            error = float((found - values).square().sum())
            if error < best[0]:
                best = (error, low, high)
    return best[1], best[2]
