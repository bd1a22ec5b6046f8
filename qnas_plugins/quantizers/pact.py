"""Activations with a learned clip value, whose growth an L2 decay holds back.

Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018,
https://arxiv.org/abs/1805.06085; Kim et al., "BASQ: Branch-wise Activation-clipping Search Quantization for Sub-4-bit
Neural Networks", ECCV 2022, Eq. 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qnas.errors import ConfigError
from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext
from qnas_plugins.quantizers import lsq_kernel
from qnas_plugins.quantizers.lsq import LSQ, number, sum_product

CLIP_START = 6.0
FLOOR = 0.01


def clip_fake_quantize(
    v: Tensor, clip: Tensor, bound: float | Tensor, step: float | Tensor, qn: int, qp: int, *, compile: bool = False
) -> Tensor:
    """Cut ``v`` at the clip value and round it to equal steps up to there (PACT; BASQ, Eq. 1).

    Forward: ``round(clip(v / s, qn, qp)) s``. Gradient to ``v``: 1 where ``low < v < bound``, else 0. Gradient to the
    clip value: the sum over all ``v >= bound``, unscaled; where the range is symmetric, less that over all
    ``v <= -bound``. Rounding is straight-through.

    Args:
        v: any shape.
        clip: ``[]``, the parameter.
        bound: its value, positive, a number or ``[]`` without a gradient: that of ``clip`` or of its floor.
        step: ``bound / qp``, likewise.
        qn, qp: ``0`` or ``-qp``, and the number of steps up to ``bound``.
        compile: whether the compiled kernel may be used where there is one.

    Returns:
        The shape of ``v``.
    """
    kernels = lsq_kernel.load() if compile else None
    return _ClipFunction.apply(v, clip, bound, step, qn, qp, kernels)  # type: ignore[no-any-return, no-untyped-call]


class _ClipFunction(torch.autograd.Function):
    """Outside the bounds the answer is ``bound``, 0 or ``-bound``: the clip value's gradient is a sum of ``g q``."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, clip: Tensor, bound: float | Tensor, step: float | Tensor, qn: int, qp: int, kernels: Any
    ) -> Tensor:
        if kernels is None or not isinstance(step, float) or not lsq_kernel.serves(v):
            kernels = None
            q = torch.div(v, step).round_().clamp_(qn, qp).mul_(step)
        else:
            q = lsq_kernel.forward(kernels, v, step, qn, qp)
        ctx.save_for_backward(v, q)
        ctx.constants = (bound, qn, clip.shape, kernels)
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        v, q = ctx.saved_tensors
        bound, qn, shape, kernels = ctx.constants
        low = -bound if qn else 0.0
        if grad.stride() != v.stride():
            grad = torch.empty_like(v).copy_(grad)
        if kernels is not None:
            grad_v, total = lsq_kernel.backward(kernels, grad, v, q, low, bound, inside=False)
            return grad_v, grad_v.new_full(shape, total / bound), None, None, None, None, None
        if isinstance(bound, float):
            grad_v = torch.ops.aten.hardtanh_backward(grad, v, low, bound)  # strict at both bounds, as Eq. 1
        else:
            grad_v = grad * ((v > low) & (v < bound))
        if not ctx.needs_input_grad[1]:
            return grad_v, None, None, None, None, None, None
        total = sum_product(grad - grad_v, q, bound) / bound
        found = grad_v.new_full(shape, total) if isinstance(total, float) else total.reshape(shape)
        return grad_v, found, None, None, None, None, None


class LearnedClip(Quantizer):
    """What :class:`PACT` and its branches share.

    Args:
        site: where it works.
        decays: lambda of each branch.
        clip_start, floor: of every alpha.
        plain: whether LSQ's grid serves here instead.
    """

    roles = frozenset({"activation"})

    def __init__(
        self, site: QuantizerSite, decays: tuple[float, ...], clip_start: float, floor: float, *, plain: bool
    ) -> None:
        super().__init__(site)
        name = type(self).__name__.lower()
        if not (0 < floor <= clip_start and math.isfinite(clip_start)):
            raise ConfigError(
                f"{name}: clip_start and floor must be positive, and clip_start no less than floor; given: "
                f"clip_start={clip_start}, floor={floor}. Change them in [quantization.act_options]."
            )
        if not all(0 <= decay < math.inf for decay in decays):
            raise ConfigError(
                f"{name}: L2 decays of clip values must be numbers from 0 up; given: {list(decays)}. Change them in "
                "[quantization.act_options], for example to 1e-3."
            )
        self.plain = LSQ(site) if plain else None
        self.decays = decays
        self.floor = floor
        self.absorbs_relu = not site.signed
        names = [] if plain else [self._name(bits, i) for bits in site.bits for i in range(len(decays))]
        self.alphas = nn.ParameterDict({name: nn.Parameter(torch.tensor(float(clip_start))) for name in names})

    @staticmethod
    def _name(bits: int, branch: int) -> str:
        return f"{bits}_{branch}"

    @classmethod
    def can_compile(cls) -> bool:
        """Tell whether this machine has a working C compiler."""
        return lsq_kernel.load() is not None

    def branch(self, ctx: SiteContext) -> int:
        """Return the number of the active branch."""
        return 0

    def _alpha(self, ctx: SiteContext) -> nn.Parameter:
        alpha: nn.Parameter = self.alphas[self._name(ctx.bits, self.branch(ctx))]  # type: ignore[assignment]
        return alpha

    def clip_value(self, ctx: SiteContext) -> Tensor:
        """Return alpha of the active bit-width and branch, no less than the floor, ``[]``, detached."""
        return self._alpha(ctx).detach().clamp(min=self.floor)

    def _range(self, bits: int) -> tuple[int, int]:
        most = 2 ** (bits - 1) - 1 if self.site.signed else 2**bits - 1
        return -most if self.site.signed else 0, most

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Start what has fixed bits; clip values start where the options say."""
        if self.plain is not None:
            self.plain.start(x, ctx)

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` on the grid."""
        if self.plain is not None:
            out: Tensor = self.plain(x, ctx)
            return out
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        (qn, qp), bound = self._range(ctx.bits), self.clip_value(ctx)
        step = number(bound / qp)  # that of the grid, to the last bit
        out = clip_fake_quantize(v, self._alpha(ctx), number(bound), step, qn, qp, compile=self.site.compile)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    def penalty(self, ctx: SiteContext) -> Tensor | None:
        """Return ``decay alpha^2 / 2`` of the active clip value, ``[]``; ``None`` at the floor, and without any decay.

        Its gradient is Eq. 2's lambda times alpha.
        """
        if self.plain is not None:
            return None
        decay, alpha = self.decays[self.branch(ctx)], self._alpha(ctx)
        if not decay or float(alpha.detach()) <= self.floor:
            return None
        return 0.5 * decay * alpha.square()

    def clips(self) -> Iterable[nn.Parameter]:
        """Return all clip values."""
        return self.alphas.values()

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid of the active bit-width and branch."""
        if self.plain is not None:
            return self.plain.export(ctx)
        qn, qp = self._range(ctx.bits)
        return AffineGrid(self.clip_value(ctx) / qp, -qn, 0, qp - qn)

    @torch.no_grad()
    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Start the clip values of one bit-width, of all branches, from a calibrator's range."""
        if self.plain is not None:
            self.plain.set_range(bits, low, high)
            return
        reach = torch.maximum(high, -low) if self.site.signed else high
        for branch in range(len(self.decays)):
            self.alphas[self._name(bits, branch)].copy_(reach.clamp(min=self.floor))

    @torch.no_grad()
    def inherit(self, high: int, low: int) -> None:
        """Carry the clip values of ``high`` bits to ``low``: the step becomes ``2^d`` times larger (OQAT)."""
        if self.plain is not None:
            self.plain.inherit(high, low)
            return
        factor = 2.0 ** (high - low) * self._range(low)[1] / self._range(high)[1]
        for branch in range(len(self.decays)):
            source = self.alphas[self._name(high, branch)].clamp(min=self.floor)
            self.alphas[self._name(low, branch)].copy_(source * factor)


class PACT(LearnedClip):
    """``round(clip(x, 0, alpha) (2^b - 1) / alpha) alpha / (2^b - 1)`` with a learned clip value alpha (Eq. 1).

    Alpha's gradient comes from what is cut alone, and lets it grow; so ``decay`` times alpha is added to the gradient
    (Eq. 2, lambda): as a term of the loss, ``decay alpha^2 / 2``, so that only what was active in a step decays, with
    any optimizer. The gradient is a plain sum, as published, not scaled as LSQ's.

    Where activations can be negative the range is ``[-alpha, alpha]`` with ``2^b - 1`` levels, 0 among them. What has
    fixed bits (images' neighbours: first and last layer, sums) has LSQ's grid.

    Args:
        site: where it works.
        decay: lambda.
        clip_start: alpha at the start.
        floor: alpha is never less; it gets its gradient there, but no decay.
    """

    def __init__(
        self, site: QuantizerSite, *, decay: float = 1e-3, clip_start: float = CLIP_START, floor: float = FLOOR
    ) -> None:
        super().__init__(site, (decay,), clip_start, floor, plain=site.fixed)
