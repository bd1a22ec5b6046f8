"""Activations whose range is that of the batch, scaled and shifted by what is learned.

Bai et al., "BatchQuant: Quantized-for-all Architecture Search with Robust Quantizer", NeurIPS 2021,
https://arxiv.org/abs/2105.08952; what the text leaves open is as in its code, https://github.com/apple/ml-batchquant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext
from qnas_plugins.quantizers import lsq_kernel
from qnas_plugins.quantizers.lsq import SMALLEST_STEP, learned_zero_point, lsq_with_log_step

MOMENTUM = 0.1  # of the running range, that of batch normalisation


class BatchQuant(Quantizer):
    """A step ``s r`` and zero point ``round(z + o)``: ``s`` and ``z`` follow the batch, ``r`` and ``o`` are learned.

    The range of a batch is the mean over its active channels of each channel's smallest and largest value, 0 included:
    one outlier moves it little. ``s = (high - low) / (2^b - 1)``, ``z = -low / s``; each bit-width has its own ``r``
    (as its logarithm, so it stays positive) and ``o`` (as a share of the levels), which start at 1 and 0. Their
    gradients are LSQ's, those of ``o`` as of a learned zero point; none goes through the range. As with batch
    normalisation, a subnet has its own range once it is calibrated: the mean over the calibration batches.

    Departs from the code: the zero point is rounded after ``o`` is added, since a real one cannot be padded with and
    has no integer kernel; activations that cannot be negative have none; gradients are scaled by LSQ's ``g``.

    Args:
        site: where it works.
    """

    roles = frozenset({"activation"})

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.absorbs_relu = not site.signed
        self.log_ratios = nn.ParameterDict({str(bits): nn.Parameter(torch.zeros(())) for bits in site.bits})
        shifted = site.bits if site.signed else ()
        self.shifts = nn.ParameterDict({str(bits): nn.Parameter(torch.zeros(())) for bits in shifted})
        self.register_buffer("running", torch.tensor([0.0, 1.0]))

    @classmethod
    def can_compile(cls) -> bool:
        """Tell whether this machine has a working C compiler."""
        return lsq_kernel.load() is not None

    def batch_range(self, x: Tensor) -> Tensor:
        """Return the means over channels of each channel's smallest and largest value, 0 included: ``[2]``.

        Args:
            x: ``[N, C, ...]``, this process's share of the batch.
        """
        v = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
        others = [d for d in range(v.ndim) if d != 1]
        low, high = self.ranks.minimum(v.amin(others)), self.ranks.maximum(v.amax(others))
        if not self.site.signed:  # a ReLU comes first, or is left to this quantizer
            low, high = torch.zeros_like(low), high.clamp(min=0)
        return torch.stack([low.mean().clamp(max=0), high.mean().clamp(min=0)])

    @torch.no_grad()
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Take the range of ``x``, and forget what was learned."""
        self.get_buffer("running").copy_(self.batch_range(x))
        for parameter in self.parameters():
            parameter.zero_()

    def _numbers(self, extremes: Tensor, bits: int) -> tuple[float, int]:
        """Return step and zero point at a bit-width, for a range ``[2]``."""
        levels = 2**bits - 1
        low, high = extremes.tolist()
        step = max((high - low) / levels, SMALLEST_STEP)
        shift = self.shifts[str(bits)].item() * levels if self.site.signed else 0.0
        zero_point = min(max(round(-low / step + shift), 0), levels)
        return step * math.exp(self.log_ratios[str(bits)].item()), zero_point

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` on the grid of its batch's range in training, of the running range otherwise."""
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.training:
            extremes = self.batch_range(v)
            self.get_buffer("running").lerp_(extremes, MOMENTUM)
        else:
            extremes = self.get_buffer("running")
        step, zero_point = self._numbers(extremes, ctx.bits)
        levels = 2**ctx.bits - 1
        qn, qp = -zero_point, levels - zero_point
        g = 1.0 / math.sqrt(v[0].numel() * max(qp, 1))
        out = lsq_with_log_step(v, self.log_ratios[str(ctx.bits)], step, qn, qp, g, compile=self.site.compile)
        if self.site.signed:
            out = learned_zero_point(out, v, self.shifts[str(ctx.bits)], step, qn, qp, g)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    def range_grid(self, extremes: Tensor, ctx: SiteContext) -> AffineGrid:
        """Return the grid for a range ``[2]``."""
        step, zero_point = self._numbers(extremes, ctx.bits)
        return AffineGrid(torch.tensor(step, dtype=extremes.dtype), zero_point, 0, 2**ctx.bits - 1)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid of the running range, which all subnets share."""
        return self.range_grid(self.get_buffer("running"), ctx)
