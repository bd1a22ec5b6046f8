"""Robust quantization: weights are drawn to a uniform distribution, which rounding to any grid harms least.

Shkolnik et al., "Robust Quantization: One Model to Rule Them All", NeurIPS 2020, https://arxiv.org/abs/2002.07686
(KURE).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.multiquant import MultiQuant

UNIFORM = 1.8  # kurtosis of a uniform distribution


class RobustQuant(MultiQuant):
    """MultiQuant's grids, with the penalty ``(kurtosis(w) - K)^2`` for each layer's weights (KURE, Eq. 8, 9).

    Trained at high bit-widths, the weights are then put on any grid without training. The paper divides the sum over
    layers by their number: give ``penalty`` so much less.

    Args:
        site: where it works.
        kurtosis: K; 1.8 is that of a uniform distribution.
        penalty: the weight of each layer's term in the loss.
    """

    def __init__(self, site: QuantizerSite, *, kurtosis: float = UNIFORM, penalty: float = 0.05) -> None:
        if kurtosis < 1 or penalty < 0:
            raise ConfigError(
                "robustquant: kurtosis must be at least 1 (no distribution has less) and penalty at least 0; given: "
                f"kurtosis={kurtosis}, penalty={penalty}. Change them."
            )
        super().__init__(site)
        self.kurtosis = kurtosis
        self.strength = penalty
        self._seen: Tensor | None = None

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` on the grid."""
        self._seen = x if self.training and self.site.role == "weight" and torch.is_grad_enabled() else None
        return super().forward(x, ctx)

    def penalty(self, ctx: SiteContext) -> Tensor | None:
        """Return the term of the weights that were rounded last, ``[]``; ``None`` for activations."""
        weights, self._seen = self._seen, None
        if weights is None or not self.strength:
            return None
        return self.strength * (kurtosis(weights) - self.kurtosis) ** 2


def kurtosis(x: Tensor) -> Tensor:
    """Return ``E[((x - mean) / std)^4]`` over all values, ``[]``, differentiable (KURE, Eq. 8)."""
    centred = x.float() - x.float().mean()
    square = centred**2
    return (square**2).mean() / (square.mean() ** 2).clamp(min=1e-24)
