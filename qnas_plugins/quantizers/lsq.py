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
from qnas_plugins.quantizers import lsq_kernel

SMALLEST_STEP = 1e-8
"""Floor of every step, so that a tensor of zeros leaves a finite grid."""

NEGATIVE = ("signed", "zero-point")
SHARING = ("bits", "conv", "kernel")


def lsq_fake_quantize(v: Tensor, step: Tensor, qn: int, qp: int, grad_scale: float, *, compile: bool = False) -> Tensor:
    """Round ``v`` to the nearest multiple of ``step`` between ``qn * step`` and ``qp * step`` (LSQ, Eq. 1-3).

    Forward: ``round(clip(v / s, qn, qp)) * s``. Gradient to ``v``: 1 where ``qn < v / s < qp``, else 0 (Eq. 5).
    Gradient to ``s`` (Eq. 3): ``round(v / s) - v / s`` inside, ``qn`` or ``qp`` outside, summed, times
    ``grad_scale``. Both masks test ``v / s``, not its rounded value.

    Args:
        v: any shape.
        step: ``[]``, or broadcastable against ``v``; positive, of the dtype of ``v``.
        qn, qp: ``qn <= 0 <= qp``.
        grad_scale: LSQ's g, ``1 / sqrt(N * qp)``.
        compile: whether the compiled kernel may be used where there is one.

    Returns:
        The shape of ``v``.
    """
    scale = number(step.detach())
    factor = grad_scale / scale
    kernels = lsq_kernel.load() if compile else None
    return _LSQFunction.apply(v, step, scale, qn, qp, factor, kernels)  # type: ignore[no-any-return, no-untyped-call]


def lsq_with_log_step(
    v: Tensor, log_step: Tensor, step: float | Tensor, qn: int, qp: int, grad_scale: float, *, compile: bool
) -> Tensor:
    """Round as :func:`lsq_fake_quantize`; the gradient to the step goes to a parameter, of which it is an exponential.

    Args:
        v: any shape.
        log_step: the parameter; ``d step / d log_step = step``.
        step: ``[]`` or a number, or broadcastable against ``v``, without a gradient.
        qn, qp, grad_scale, compile: as there.
    """
    kernels = lsq_kernel.load() if compile else None
    out: Tensor = _LSQFunction.apply(v, log_step, step, qn, qp, grad_scale, kernels)  # type: ignore[no-untyped-call]
    return out


def learned_zero_point(
    out: Tensor, v: Tensor, share: Tensor, step: float | Tensor, qn: int, qp: int, grad_scale: float
) -> Tensor:
    """Return ``out`` with the gradient of a zero point that is learned as a share of the levels (MultiQuant, Eq. 2).

    0 for values inside the range, ``-step`` for values that are clipped, summed, times ``grad_scale``; rounding is
    straight-through.

    Args:
        out: ``v`` on the grid ``[qn, qp]``.
        v: any shape.
        share: ``[]``, the parameter: the zero point over the number of levels less 1.
        step: ``[]`` or a number.
    """
    if not torch.is_grad_enabled():
        return out
    x = v.detach()
    clipped = ((x <= qn * step) | (x >= qp * step)).to(out.dtype) * step
    return out - clipped * ((share - share.detach()) * ((qp - qn) * grad_scale))  # 0, with the gradient of g z


class _LSQFunction(torch.autograd.Function):
    """LSQ in one compiled pass each way or, without a compiler, in a handful of vectorised ones.

    torch's own ``fake_quantize_per_tensor_affine`` costs 14 ns a value on CPUs and masks the rounded value.

    The gradient goes to ``parameter``, of which ``scale`` is a function: it is the sum of ``g (q - v)`` inside and
    ``g q`` outside the bounds, times ``factor``. With the step itself as parameter that is Eq. 3 for a factor of
    ``grad_scale / s``; with its logarithm, for a factor of ``grad_scale``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        parameter: Tensor,
        scale: float | Tensor,
        qn: int,
        qp: int,
        factor: float | Tensor,
        kernels: Any,
    ) -> Tensor:
        if kernels is None or not isinstance(scale, float) or not lsq_kernel.serves(v):
            kernels = None
            q = torch.div(v, scale).round_().clamp_(qn, qp).mul_(scale)
        else:
            q = lsq_kernel.forward(kernels, v, scale, qn, qp)
        ctx.save_for_backward(v, q)
        ctx.constants = (scale, qn, qp, factor, parameter.shape, kernels)
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        v, q = ctx.saved_tensors
        scale, qn, qp, factor, shape, kernels = ctx.constants
        if grad.stride() != v.stride():
            grad = torch.empty_like(v).copy_(grad)
        if kernels is not None:
            grad_v, total = lsq_kernel.backward(kernels, grad, v, q, qn * scale, qp * scale)
            return grad_v, grad_v.new_full(shape, total * factor), None, None, None, None, None
        if isinstance(scale, float):  # one pass: hardtanh's gradient is LSQ's, strict at both bounds
            grad_v = torch.ops.aten.hardtanh_backward(grad, v, qn * scale, qp * scale)
        else:
            grad_v = grad * ((v > qn * scale) & (v < qp * scale))
        if not ctx.needs_input_grad[1]:
            return grad_v, None, None, None, None, None, None
        # The differences are taken before the sums, so that nothing cancels.
        difference = q - v
        inside = sum_product(grad_v, difference, scale)
        torch.sub(grad, grad_v, out=difference)
        outside = sum_product(difference, q, scale)
        if isinstance(inside, float):  # fewer calls than on tensors of one value
            return grad_v, grad_v.new_full(shape, (inside + outside) * factor), None, None, None, None, None
        return grad_v, ((inside + outside) * factor).reshape(shape), None, None, None, None, None


def derived_zero_point(low: Tensor, high: Tensor, bits: int) -> int:
    """Return ``round(-v_min / s)`` of a range ``[v_min, v_max]`` with ``s = (v_max - v_min) / (2^b - 1)``.

    MultiQuant, Eq. 2. It depends on the proportion of the two ends alone, so a range that is clipped at both ends
    alike, and a step that is learned afterwards, keep it. Divided by a smaller step, the raw minimum would push the
    zero point to the last code, and no positive value could be represented (at 2 bits, already at 0.6 times the whole
    range).
    """
    levels = 2**bits - 1
    span = float(high) - float(low)
    return min(max(round(-float(low) * levels / span), 0), levels) if span > 0 else 0


def number(step: Tensor) -> float | Tensor:
    """Return a one-value step as a number on CPU, where that is faster and costs no synchronisation."""
    return step.item() if step.numel() == 1 and step.device.type == "cpu" else step


def sum_product(a: Tensor, b: Tensor, scale: float | Tensor) -> Any:
    """Return ``sum(a * b)`` over all dimensions along which ``scale`` does not vary; a number where it is one.

    ``a`` and ``b`` have one memory layout.
    """
    if isinstance(scale, Tensor):
        return (a * b).sum_to_size(scale.shape)
    if a.is_contiguous() or (a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last)):
        # Dense: the order of the values does not matter.
        return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,))).item()
    return (a * b).sum().item()


class LSQ(Quantizer):
    """A learned step, shared by every width and depth that is active (OQAT's shared step).

    The parameter is the logarithm of the step: the step stays positive by construction, and under Adam, which cancels
    LSQ's g, the learning rate is relative to the step (at 1e-3 on the step itself an 8-bit step wanders between 0.7
    and 4.1 times its optimum). The gradient that reaches the step is the published one.

    Weights use ``[-2^(b-1), 2^(b-1) - 1]``; activations ``[0, 2^b - 1]`` where they cannot be negative.

    Args:
        site: where it works.
        per_channel: one step for each output channel (weights only); a narrower layer uses a prefix.
        negative: activations that can be negative are ``signed`` (symmetric range), or unsigned with an integer
            ``zero-point`` that is set from data at the start.
        sharing: what shares one step beyond that. ``bits``: all kernel sizes, each bit-width has its own (MultiQuant).
            ``conv``: all kernel sizes and bit-widths, by OQAT's rule of inheritance: at ``b`` bits the step is
            ``2^(B - b)`` times that of the largest bit-width ``B``, whose step is what is kept (as ``all``), so lower
            bit-widths may come in later, and higher ones may not. ``kernel``: each kernel size of weights, and each
            bit-width, has its own.
        narrow_range: weights use ``[-(2^(b-1) - 1), 2^(b-1) - 1]``, as BASQ's code does: three levels at 2 bits.
    """

    shifts_weights = False  # whether weights have zero points, too

    def __init__(
        self,
        site: QuantizerSite,
        *,
        per_channel: bool = False,
        negative: str = "signed",
        sharing: str = "bits",
        narrow_range: bool = False,
    ) -> None:
        super().__init__(site)
        if sharing not in SHARING:
            raise ConfigError(
                f"lsq: sharing must be one of {', '.join(SHARING)}; given: {sharing!r}. Change --step-sharing."
            )
        if negative not in NEGATIVE:
            raise ConfigError(
                f"lsq: negative must be one of {', '.join(NEGATIVE)}; given: {negative!r}. Change --negative."
            )
        if per_channel and site.role != "weight":
            raise PluginError(
                "lsq: one step a channel is for weights only, since no integer kernel can run it for activations. "
                "Set per_channel in [quantization.weight_options]."
            )
        if narrow_range and site.role != "weight":
            raise PluginError(
                "lsq: a narrow range is for weights only. Set narrow_range in [quantization.weight_options]."
            )
        self.narrow_range = narrow_range
        self.per_channel = per_channel
        self.negative = negative
        self.sharing = sharing
        shape = (site.channels,) if per_channel else ()
        names = dict.fromkeys(self._name(bits, kernel) for bits in site.bits for kernel in site.kernels or (1,))
        self.log_steps = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name in names})
        for bits in site.bits if self._has_zero_point else ():
            self.register_buffer(f"zero_point_{bits}", torch.tensor(0))
        self.absorbs_relu = not site.signed
        self._ranges = {bits: self._range(bits) for bits in site.bits}  # Python's integers: forward reads no tensor

    @classmethod
    def can_compile(cls) -> bool:
        """Tell whether this machine has a working C compiler."""
        return lsq_kernel.load() is not None

    @property
    def _has_zero_point(self) -> bool:
        shifted = self.site.role == "activation" or self.shifts_weights
        return shifted and self.site.signed and self.negative == "zero-point"

    def _name(self, bits: int, kernel: int) -> str:
        """Return the name of the parameter that holds the step."""
        if self.sharing == "conv":
            return "all"
        return f"{bits}_{kernel}" if self.sharing == "kernel" and self.site.kernels else str(bits)

    def _coarser(self, bits: int) -> float:
        """Return the logarithm of the step over its parameter's: a factor of 2 a bit below the largest bit-width."""
        return (self.site.bits[-1] - bits) * math.log(2.0) if self.sharing == "conv" else 0.0

    def _store(self, bits: int, step: Tensor) -> None:
        """Set the step of one bit-width, for all kernels: ``[]``, or ``[C]`` with one step a channel."""
        for name in dict.fromkeys(self._name(bits, kernel) for kernel in self.site.kernels or (1,)):
            target = self.log_steps[name]
            (target[: len(step)] if self.per_channel else target).copy_(step.log() - self._coarser(bits))

    def _range(self, bits: int) -> tuple[int, int]:
        if not self.site.signed:
            return 0, 2**bits - 1
        if self._has_zero_point:
            zero_point = int(self.get_buffer(f"zero_point_{bits}"))
            return -zero_point, 2**bits - 1 - zero_point
        return -(2 ** (bits - 1)) + int(self.narrow_range), 2 ** (bits - 1) - 1

    def _set_zero_point(self, bits: int, zero_point: int) -> None:
        self.get_buffer(f"zero_point_{bits}").fill_(zero_point)
        self._ranges[bits] = self._range(bits)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ranges = {bits: self._range(bits) for bits in self.site.bits}

    def range(self, bits: int) -> tuple[int, int]:
        """Return Qn and Qp at a bit-width: integers with ``Qn <= 0 <= Qp``."""
        return self._ranges[bits]

    def step(self, ctx: SiteContext) -> Tensor:
        """Return the step, detached: ``[]``, or ``[channels]`` with one step a channel."""
        return self._log_step(ctx).detach().exp()

    def _log_step(self, ctx: SiteContext) -> Tensor:
        log_step: Tensor = self.log_steps[self._name(ctx.bits, ctx.kernel)]
        log_step = log_step[: ctx.channels] if self.per_channel else log_step
        coarser = self._coarser(ctx.bits)
        return log_step + coarser if coarser else log_step

    @torch.no_grad()
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Set every bit-width's step to ``2 mean|v| / sqrt(Qp)`` (LSQ, Sec. 2.1).

        A zero point divides the levels in the proportion of the smallest to the largest value, and Qp is that of the
        larger side. Where all bit-widths share a step, it is that of the active one.
        """
        v = x.float()
        mean = v.abs().flatten(1).mean(1) if self.per_channel else v.abs().mean()
        if self._has_zero_point:
            low, high = v.min().clamp(max=0), v.max().clamp(min=0)
            for bits in self.site.bits:
                self._set_zero_point(bits, derived_zero_point(low, high, bits))
        for bits in self.site.bits:
            rule = ctx.bits if self.sharing == "conv" else bits
            qn, qp = self.range(rule)
            most = max(-qn, qp) if self._has_zero_point else qp
            self._store(bits, 2.0 ** (rule - bits) * (2 * mean / math.sqrt(max(most, 1))).clamp(min=SMALLEST_STEP))

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` rounded to multiples of the step.

        LSQ's N is the number of active weights of the layer (of one channel, with one step a channel), or of active
        features of one image.
        """
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        qn, qp = self.range(ctx.bits)
        parameter, step = self._log_step(ctx), self.step(ctx)
        count = v[0].numel() if self.site.role == "activation" or self.per_channel else v.numel()
        if self.per_channel:
            step = step.to(v.dtype).reshape(-1, *[1] * (v.ndim - 1))
        factor = 1.0 / math.sqrt(count * max(qp, 1))
        out = lsq_with_log_step(v, parameter, number(step), qn, qp, factor, compile=self.site.compile)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid of the active bit-width."""
        qn, qp = self.range(ctx.bits)
        step = self.step(ctx)
        if self.site.role == "weight" and not self._has_zero_point:
            return AffineGrid(step, 0, qn, qp, 0 if self.per_channel else None)
        return AffineGrid(step, -qn, 0, qp - qn)

    @torch.no_grad()
    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Start the step of one bit-width from a calibrator's range: the smallest step that covers it."""
        if self._has_zero_point:
            levels = 2**bits - 1
            step = ((high - low) / levels).clamp(min=SMALLEST_STEP)
            self._set_zero_point(bits, derived_zero_point(low, high, bits))
        else:
            qn, qp = self.range(bits)
            step = torch.maximum(high / qp, low / qn if qn else low * 0).clamp(min=SMALLEST_STEP)
        self._store(bits, step)

    @torch.no_grad()
    def inherit(self, high: int, low: int) -> None:
        """Carry ``high`` bits to ``low``: ``s' = 2^d s``, ``z' = floor(z / 2^d)``, d the difference (OQAT)."""
        d = high - low
        if self.sharing != "conv":  # there it holds by construction
            for kernel in self.site.kernels or (1,):
                source_step = self.log_steps[self._name(high, kernel)]
                self.log_steps[self._name(low, kernel)].copy_(source_step + d * math.log(2.0))
        if self._has_zero_point:
            self._set_zero_point(low, -self.range(high)[0] // 2**d)
