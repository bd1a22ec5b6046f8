"""A scale of the folded weights that is predicted from the batch normalisation of each subnet.

Gao et al., "QuantNAS: Quantization-aware Neural Architecture Search For Efficient Deployment On Mobile Device", CVPR
Workshops 2024, Sec. 4.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qnas.nn.grid import AffineGrid, least_squares_scale
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext
from qnas_plugins.quantizers import lsq_kernel
from qnas_plugins.quantizers.lsq import SMALLEST_STEP, lsq_fake_quantize

SMALLEST_SHARE = 0.05  # of the median |gamma|, below which no |gamma| counts
SMALLEST_GAMMA = 1e-6


def robust_gamma(gamma: Tensor) -> Tensor:
    """Return ``max(|gamma|, 0.05 median |gamma|)``, above zero: ``[C]`` of ``[C]``.

    Eq. 6 holds for one gamma that all channels share. One that is tiny or negative says nothing of the range of the
    weights of a tensor, but would throw ``theta / gamma`` of Eq. 8 to any size and sign.
    """
    size = gamma.abs()
    return torch.maximum(size, SMALLEST_SHARE * size.median()).clamp(min=SMALLEST_GAMMA)


class ScalePredictor(Quantizer):
    """Symmetric weights, one scale a tensor, ``s = mean over the active channels i of theta_i gamma_i / sigma_i``.

    Eq. 7 writes a sum over ``theta_i / sigma_i``, the text of Sec. 4.2 a mean of coefficients, and Eq. 8 starts
    ``theta_i`` at ``s_init sigma_i / gamma_i``: these agree as the mean above, which is ``s_init`` at the start and
    does not grow with the number of channels. gamma is merged into theta once a subnet is extracted.

    Departs from Eq. 7 and 8 where they are fragile: :func:`robust_gamma` stands for gamma; what is learned is
    ``t_i = theta_i c(gamma0_i) / (s_init sigma0_i)``, as its logarithm, so that the scale stays positive; sigma and
    gamma get no gradient by way of the scale; the gradient of ``t_i``, a mean's, is taken times the number of
    channels, so that the learning rate means the same at every width; LSQ's ``g`` (Esser et al. 2020, Sec. 2.2).

    theta belongs to the layer: all kernels and widths share it, and all bit-widths, each of which has one learned ratio
    to the scale of the largest. Where nothing is folded into the weights (a classifier), gamma and sigma are 1.
    """

    roles = frozenset({"weight"})
    calibrators = ("scale-predictor",)
    needs_folding = True

    @classmethod
    def can_compile(cls) -> bool:
        """Tell whether this machine has a working C compiler."""
        return lsq_kernel.load() is not None

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.log_thetas = nn.Parameter(torch.zeros(site.channels))  # log t, 0 at the start
        self.register_buffer("sigma", torch.ones(site.channels))  # sigma0 and c(gamma0), of the start
        self.register_buffer("gamma", torch.ones(site.channels))
        self.register_buffer("start_scale", torch.ones(()))  # s_init at the largest bit-width
        self.log_ratios = nn.ParameterDict({str(b): nn.Parameter(torch.zeros(())) for b in site.bits[:-1]})

    @staticmethod
    def _range(bits: int) -> tuple[int, int]:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    @torch.no_grad()
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Set theta by Eq. 8; ``s_init`` minimises the squared error of the folded weights ``x`` on the grid."""
        v = x.float()
        scales = {b: least_squares_scale(v, *self._range(b)).clamp(min=SMALLEST_STEP) for b in self.site.bits}
        largest = scales[self.site.bits[-1]]
        self.get_buffer("start_scale").copy_(largest)
        for name, ratio in self.log_ratios.items():
            ratio.copy_((scales[int(name)] / largest).log())
        self.log_thetas.zero_()
        for name, value in (("sigma", ctx.sigma), ("gamma", None if ctx.gamma is None else robust_gamma(ctx.gamma))):
            self.get_buffer(name).fill_(1.0)
            if value is not None:
                self.get_buffer(name)[: ctx.channels].copy_(value)

    def coefficients(self, ctx: SiteContext) -> Tensor:
        """Return what ``t_i`` is multiplied by, ``s_init sigma0_i / c(gamma0_i) * c(gamma_i) / sigma_i``: ``[C]``."""
        n = ctx.channels
        found = self.get_buffer("start_scale") * self.get_buffer("sigma")[:n] / self.get_buffer("gamma")[:n]
        if ctx.gamma is not None:
            found = found * robust_gamma(ctx.gamma.detach())
        if ctx.sigma is not None:
            found = found / ctx.sigma.detach()
        return found

    def scale(self, ctx: SiteContext) -> Tensor:
        """Return the predicted scale, ``[]``, differentiable in theta and in the bit-width's ratio."""
        theta = self.log_thetas[: ctx.channels].exp()
        mean = (self.coefficients(ctx) * theta).mean()
        boosted = mean * len(theta)  # the gradient of each theta, not a mean's
        scale = mean.detach() + (boosted - boosted.detach())
        scale = scale.clamp(min=SMALLEST_STEP)
        ratio = self._log_ratio(ctx.bits)
        return scale if ratio is None else scale * ratio.exp()

    def _log_ratio(self, bits: int) -> Tensor | None:
        """Return the logarithm of a bit-width's scale over that of the largest, which has none."""
        return None if bits == self.site.bits[-1] else self.log_ratios[str(bits)]

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return weights ``[O, I, K, K]``, folded where ``ctx`` has statistics, on the predicted grid."""
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        qn, qp = self._range(ctx.bits)
        scale = self.scale(ctx).to(v.dtype)
        g = 1.0 / math.sqrt(v.numel() * qp)
        out = lsq_fake_quantize(v, scale, qn, qp, g, compile=self.site.compile)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid that is predicted from the statistics in ``ctx``."""
        return AffineGrid(self.scale(ctx).detach(), 0, *self._range(ctx.bits))

    @torch.no_grad()
    def inherit(self, high: int, low: int) -> None:
        """Carry ``high`` bits to ``low``: ``s' = 2^d s``, d the difference (OQAT)."""
        above = self._log_ratio(high)
        ratio = self.log_ratios[str(low)]
        ratio.fill_((high - low) * math.log(2.0)).add_(torch.zeros_like(ratio) if above is None else above)
