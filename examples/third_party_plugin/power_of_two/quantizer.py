"""Power-of-two steps: rescaling between layers is a shift on hardware that has no multiplier to spare."""

from __future__ import annotations

import torch
from torch import Tensor

from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext


class PowerOfTwo(Quantizer):
    """The smallest power-of-two step whose grid covers the largest value seen at the start; nothing is learned."""

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.register_buffer("largest", torch.ones(()))

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Remember the largest magnitude."""
        self.largest.copy_(x.abs().amax().clamp(min=1e-6))

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid for the active bit-width."""
        low = -(2 ** (ctx.bits - 1)) if self.site.signed else 0
        high = low + 2**ctx.bits - 1
        step = torch.exp2(torch.ceil(torch.log2(self.largest / high)))
        offset = -low if self.site.role == "activation" else 0  # activation codes are unsigned
        return AffineGrid(step, offset, low + offset, high + offset)

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Round to the grid, with a straight-through gradient."""
        return x + (self.export(ctx).quantize(x.float()).to(x.dtype) - x).detach()
