"""Multi-bit quantization: a learned step and an integer zero point for each layer and bit-width, weights included.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.lsq import LSQ, learned_zero_point

ZERO_POINTS = ("derived", "learned")


class MultiQuant(LSQ):
    """``Q(v) = (clip(round(v / s) + z, 0, 2^b - 1) - z) s``, one ``s`` and ``z`` a tensor and bit-width (Eq. 2).

    Zero is represented without error. Steps are learned as in LSQ. A ``derived`` zero point is that of the range from
    which the step starts, ``round(-v_min / s)``: of the data's, or of a calibrator's (the recipe's is ``lapq``), and
    stays; see :func:`qnas_plugins.quantizers.lsq.derived_zero_point`. Eq. 1 lists zero points among what is learned: a
    ``learned`` one is a real number, rounded in the forward pass, with the gradient of Eq. 2 (rounding
    straight-through): 0 for values inside the range, ``-s`` for values that are clipped, summed, times LSQ's g.

    Args:
        site: where it works.
        zero_point: ``derived`` or ``learned``.
    """

    shifts_weights = True

    def __init__(self, site: QuantizerSite, *, zero_point: str = "derived") -> None:
        if zero_point not in ZERO_POINTS:
            raise ConfigError(
                f"multiquant: zero_point must be one of {', '.join(ZERO_POINTS)}; given: {zero_point!r}. Change it."
            )
        super().__init__(site, negative="zero-point")
        self.learned = zero_point == "learned" and self._has_zero_point
        # As a share of the levels, so that a learning rate means the same at every bit-width.
        self.zero_shares = nn.ParameterDict(
            {str(bits): nn.Parameter(torch.zeros(())) for bits in site.bits if self.learned}
        )

    @classmethod
    def has_weight_zero_points(cls, **options: Any) -> bool:
        """Tell that weights have zero points."""
        return True

    def range(self, bits: int) -> tuple[int, int]:
        """Return ``-z`` and ``2^b - 1 - z``."""
        if self.learned:
            levels = 2**bits - 1
            zero_point = min(max(round(float(self.zero_shares[str(bits)].detach()) * levels), 0), levels)
            return -zero_point, levels - zero_point
        return super().range(bits)

    def _set_zero_point(self, bits: int, zero_point: int) -> None:
        super()._set_zero_point(bits, zero_point)
        if self.learned:
            self.zero_shares[str(bits)].fill_(zero_point / (2**bits - 1))

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` on the grid."""
        out = super().forward(x, ctx)
        if not self.learned:
            return out
        qn, qp = self.range(ctx.bits)
        count = x[0].numel() if self.site.role == "activation" else x.numel()
        g = 1.0 / math.sqrt(count * max(qp, 1))
        step = self.step(ctx).to(out.dtype)
        return learned_zero_point(out, x.to(out.dtype), self.zero_shares[str(ctx.bits)], step, qn, qp, g)
