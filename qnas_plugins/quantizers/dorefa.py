"""DoReFa quantization in the form of Any-Precision: no parameter, no range to learn.

Zhou et al., "DoReFa-Net", 2016, https://arxiv.org/abs/1606.06160, Eq. 5, 8, 9, 11; Yu et al., "Any-Precision Deep
Neural Networks", AAAI 2021, https://arxiv.org/abs/1911.07346, whose code scales the weights by their mean magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qnas.errors import ExportError, PluginError
from qnas.nn.grid import AffineGrid, CodebookGrid, Grid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext
from qnas_plugins.quantizers.minmax import MinMax


class DoReFa(Quantizer):
    """Weights ``E (2 round((w' / 2 + 1 / 2) n) / n - 1)``, activations ``round(clip(x, 0, 1) n) / n``, ``n = 2^b - 1``.

    There ``w' = tanh(w) / max |tanh(w)|`` and ``E = mean |w|``, of all active weights, E without a gradient. Rounding
    is straight-through. The ``2^b`` levels of weights are symmetric about 0 and leave 0 out, so they have no integer
    zero point: their grid is a table, which no integer kernel multiplies, so such a net is judged but not exported.
    Activations that can be negative are cut at -1 and 1. What has fixed bits (first and last layer, sums) DoReFa leaves
    in float; here its grid follows the range that is seen (``minmax``).

    Args:
        site: where it works.
    """

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.edge = MinMax(site) if site.fixed else None
        self.absorbs_relu = not site.signed
        self._reach: Tensor | None = None  # E of the weights that were prepared last

    def prepare(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``E w'``: its largest magnitude is E."""
        if self.edge is not None:
            return x
        if ctx.gamma is not None:
            raise PluginError(
                f"Quantizer dorefa at {self.site.name!r} rounds weights before batch normalisation is folded into "
                "them. Use --folding none with it."
            )
        squashed = torch.tanh(x.float())
        prepared = squashed / squashed.abs().max().clamp(min=1e-12) * x.detach().float().abs().mean()
        self._reach = prepared.detach().abs().max()
        return prepared.to(x.dtype)

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Start what follows its range; there is nothing else to set."""
        if self.edge is not None:
            self.edge.start(x, ctx)
        elif self.site.role == "weight":
            self._reach = x.detach().float().abs().max()

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x``, weights as :meth:`prepare` returns them, on the grid."""
        if self.edge is not None:
            self.edge.ranks = self.ranks
            out: Tensor = self.edge(x, ctx)
            return out
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.site.role == "weight":
            self._reach = v.detach().abs().max()
        else:
            v = v.clamp(-1.0 if self.site.signed else 0.0, 1.0)
        rounded = self.export(ctx).quantize(v.detach())
        return (v + (rounded - v).detach()).to(x.dtype)

    def export(self, ctx: SiteContext) -> Grid:
        """Return the grid; of weights, of those that were prepared or rounded last.

        Raises:
            ExportError: no weights were.
        """
        if self.edge is not None:
            return self.edge.export(ctx)
        levels = 2**ctx.bits - 1
        if self.site.role == "weight":
            if self._reach is None:
                raise ExportError(
                    f"Quantizer dorefa at {self.site.name!r} has seen no weights yet. Prepare them first."
                )
            codes = torch.arange(2**ctx.bits, device=self._reach.device, dtype=self._reach.dtype)
            return CodebookGrid((2 * codes / levels - 1) * self._reach)
        if not self.site.signed:
            return AffineGrid(torch.tensor(1.0 / levels), 0, 0, levels)
        zero_point = 2 ** (ctx.bits - 1)
        return AffineGrid(torch.tensor(1.0 / zero_point), zero_point, 0, levels)

    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Take a calibrator's range where the grid follows one; elsewhere ranges are fixed."""
        if self.edge is not None:
            self.edge.set_range(bits, low, high)
        else:
            super().set_range(bits, low, high)

    @property
    def takes_ranges(self) -> bool:
        """Whether the grid follows a range."""
        return self.edge is not None
