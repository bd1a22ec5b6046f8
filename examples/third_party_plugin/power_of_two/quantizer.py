"""Power-of-two steps: rescaling between layers is a shift on hardware that has no multiplier to spare."""

from __future__ import annotations

import torch
from torch import Tensor

from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext


class PowerOfTwo(Quantizer):
    """The power of two nearest to ``2 mean|v| / sqrt(largest code)``, from data at the start; nothing is learned."""

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.register_buffer("mean", torch.ones(()))

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Remember the mean magnitude."""
        self.mean.copy_(x.abs().mean().clamp(min=1e-6))

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid for the active bit-width."""
        low = -(2 ** (ctx.bits - 1)) if self.site.signed else 0
        high = low + 2**ctx.bits - 1
        step = torch.exp2(torch.log2(2 * self.mean / high**0.5).round())
        offset = -low if self.site.role == "activation" else 0  # activation codes are unsigned
        return AffineGrid(step, offset, low + offset, high + offset)

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Round to the grid; the gradient passes straight through, but not beyond the grid's ends."""
        grid = self.export(ctx)
        low, high = grid.decode(torch.tensor([grid.qmin, grid.qmax])).tolist()
        inside = x.float().clamp(low, high)
        return (inside + (grid.quantize(x.float()) - inside).detach()).to(x.dtype)
