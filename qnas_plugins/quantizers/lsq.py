"""Learned step size quantization.

Esser et al., "Learned Step Size Quantization", ICLR 2020, https://arxiv.org/abs/1902.08153. All four papers that this
framework reproduces build on it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qnas.errors import ConfigError, PluginError
from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext

SMALLEST_STEP = 1e-8
"""Floor of every step, so that a tensor of zeros leaves a finite grid."""

NEGATIVE = ("signed", "zero-point")


def lsq_fake_quantize(v: Tensor, step: Tensor, qn: int, qp: int, grad_scale: float) -> Tensor:
    """Round ``v`` to the nearest multiple of ``step`` between ``qn * step`` and ``qp * step`` (LSQ, Eq. 1-3).

    Forward: ``round(clip(v / s, qn, qp)) * s``. Gradient to ``v``: 1 where ``qn < v / s < qp``, else 0 (Eq. 5).
    Gradient to ``s`` (Eq. 3): ``round(v / s) - v / s`` inside, ``qn`` or ``qp`` outside, summed, times
    ``grad_scale``. Both masks test ``v / s``, not its rounded value.

    Args:
        v: any shape.
        step: ``[]``, or broadcastable against ``v``; positive, of the dtype of ``v``.
        qn, qp: ``qn <= 0 <= qp``.
        grad_scale: LSQ's g, ``1 / sqrt(N * qp)``.

    Returns:
        The shape of ``v``.
    """
    return _LSQFunction.apply(v, step, qn, qp, grad_scale)  # type: ignore[no-any-return, no-untyped-call]


class _LSQFunction(torch.autograd.Function):
    """A handful of vectorised passes: 0.3 ns a value forward, 0.7 backward on one AVX2 core.

    torch's own ``fake_quantize_per_tensor_affine`` costs 14 ns a value on CPUs and masks the rounded value.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, step: Tensor, qn: int, qp: int, grad_scale: float) -> Tensor:
        scale = _as_scalar(step)
        q = torch.div(v, scale).round_().clamp_(qn, qp).mul_(scale)
        ctx.save_for_backward(v, q, step)
        ctx.bounds = (qn, qp, grad_scale)
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        v, q, step = ctx.saved_tensors
        qn, qp, grad_scale = ctx.bounds
        scale = _as_scalar(step)
        if isinstance(scale, float):  # one pass: hardtanh's gradient is LSQ's, strict at both bounds
            grad_v = torch.ops.aten.hardtanh_backward(grad, v, qn * scale, qp * scale)
        else:
            grad_v = grad * ((v > qn * scale) & (v < qp * scale))
        if not ctx.needs_input_grad[1]:
            return grad_v, None, None, None, None
        # Inside: g (q - v) / s = g (round(v/s) - v/s). Outside grad_v is 0 and q / s is the bound. The differences
        # are taken before the sums, so that nothing cancels.
        inside = _sum_product(grad_v, q - v, step)
        outside = _sum_product(grad - grad_v, q, step)
        grad_step = (inside + outside) / step * grad_scale
        return grad_v, grad_step, None, None, None


def _as_scalar(step: Tensor) -> float | Tensor:
    """Return a one-value step as a number on CPU, where that is faster and costs no synchronisation."""
    return step.item() if step.numel() == 1 and step.device.type == "cpu" else step


def _sum_product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Return ``sum(a * b)`` over all dimensions along which ``like`` does not vary, in the shape of ``like``."""
    if like.numel() > 1:
        return (a * b).sum_to_size(like.shape)
    if a.is_contiguous():
        total = torch.dot(a.reshape(-1), b.reshape(-1))
    elif a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last):
        total = torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    else:
        total = (a * b).sum()
    return total.reshape(like.shape)


class LSQ(Quantizer):
    """One learned step a site and bit-width, shared by every kernel, width and depth that is active.

    The parameter is the logarithm of the step: the step stays positive by construction, and under Adam, which cancels
    LSQ's g, the learning rate is relative to the step (at 1e-3 on the step itself an 8-bit step wanders between 0.7
    and 4.1 times its optimum). The gradient that reaches the step is the published one.

    Weights use ``[-2^(b-1), 2^(b-1) - 1]``; activations ``[0, 2^b - 1]`` where they cannot be negative.

    Args:
        site: where it works.
        per_channel: one step for each output channel (weights only); a narrower layer uses a prefix.
        negative: activations that can be negative are ``signed`` (symmetric range), or unsigned with an integer
            ``zero-point`` that is set from data at the start.
    """

    def __init__(self, site: QuantizerSite, *, per_channel: bool = False, negative: str = "signed") -> None:
        super().__init__(site)
        if negative not in NEGATIVE:
            raise ConfigError(
                f"lsq: negative must be one of {', '.join(NEGATIVE)}; given: {negative!r}. Change --negative."
            )
        if per_channel and site.role != "weight":
            raise PluginError(
                "lsq: one step a channel is for weights only, since no integer kernel can run it for activations. "
                "Set per_channel in [quantization.weight_options]."
            )
        self.per_channel = per_channel
        self.negative = negative
        shape = (site.channels,) if per_channel else ()
        self.log_steps = nn.ParameterDict({str(b): nn.Parameter(torch.zeros(shape)) for b in site.bits})
        self.register_buffer("zero_points", torch.zeros(len(site.bits), dtype=torch.int64))
        self.absorbs_relu = not site.signed
        self._ranges = [self._range(i) for i in range(len(site.bits))]

    def _range(self, position: int) -> tuple[int, int]:
        bits = self.site.bits[position]
        if not self.site.signed:
            return 0, 2**bits - 1
        if self.site.role == "activation" and self.negative == "zero-point":
            zero_point = int(self.zero_points[position])
            return -zero_point, 2**bits - 1 - zero_point
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ranges = [self._range(i) for i in range(len(self.site.bits))]

    def range(self, bits: int) -> tuple[int, int]:
        """Return Qn and Qp at a bit-width: integers with ``Qn <= 0 <= Qp``."""
        return self._ranges[self.site.bits.index(bits)]

    def step(self, ctx: SiteContext) -> Tensor:
        """Return the step: ``[]``, or ``[channels]`` with one step a channel."""
        step = self.log_steps[str(ctx.bits)].float().exp()
        return step[: ctx.channels] if self.per_channel else step

    @torch.no_grad()
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Set every bit-width's step to ``2 mean|v| / sqrt(Qp)`` (LSQ, Sec. 2.1), and zero points from the range."""
        v = x.float()
        if self.per_channel:
            mean = v.abs().flatten(1).mean(1)
        else:
            mean = v.abs().mean()
        for position, bits in enumerate(self.site.bits):
            if self.site.signed and self.site.role == "activation" and self.negative == "zero-point":
                low, high = min(v.min().item(), 0.0), max(v.max().item(), 0.0)
                levels = 2**bits - 1
                self.zero_points[position] = round(-low / (high - low) * levels) if high > low else 0
                self._ranges[position] = self._range(position)
            _, qp = self._ranges[position]
            step = (2 * mean / math.sqrt(max(qp, 1))).clamp(min=SMALLEST_STEP)
            target = self.log_steps[str(bits)]
            (target[: len(step)] if self.per_channel else target).copy_(step.log())

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` rounded to multiples of the step.

        LSQ's N is the number of active weights of the layer (of one channel, with one step a channel), or of active
        features of one image.
        """
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        qn, qp = self.range(ctx.bits)
        step = self.step(ctx).to(v.dtype)
        if self.site.role == "weight":
            count = v[0].numel() if self.per_channel else v.numel()
        else:
            count = v[0].numel()
        if self.per_channel:
            step = step.reshape(-1, *[1] * (v.ndim - 1))
        return lsq_fake_quantize(v, step, qn, qp, 1.0 / math.sqrt(count * max(qp, 1))).to(x.dtype)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid of the active bit-width."""
        qn, qp = self.range(ctx.bits)
        step = self.step(ctx).detach().clone()
        if self.site.role == "weight":
            return AffineGrid(step, 0, qn, qp, 0 if self.per_channel else None)
        return AffineGrid(step, -qn, 0, qp - qn)

    @torch.no_grad()
    def inherit(self, high: int, low: int) -> None:
        """Carry ``high`` bits to ``low``: ``s' = 2^d s``, ``z' = floor(z / 2^d)``, d the difference (OQAT)."""
        d = high - low
        self.log_steps[str(low)].copy_(self.log_steps[str(high)] + d * math.log(2.0))
        source, target = self.site.bits.index(high), self.site.bits.index(low)
        self.zero_points[target] = self.zero_points[source] // 2**d
        self._ranges[target] = self._range(target)
