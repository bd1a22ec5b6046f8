"""Quantization to the range that was seen: no parameter is learned.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
https://arxiv.org/abs/1712.05877: Sec. 2.1 (affine grid with an exact zero), Sec. 3.1 (moving averages of activations'
ranges). Range calibrators set tighter ranges; then nothing moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qnas.errors import ConfigError, PluginError
from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext

SMALLEST_STEP = 1e-8  # so that a tensor of zeros leaves a finite grid


class MinMax(Quantizer):
    """A grid from the smallest to the largest value.

    The range is a moving average over the training steps of the tensor, or of each output channel of weights. Each
    bit-width has its own; all start from data alike, unless one is inherited. A calibrator's range stays as it is. The
    gradient passes inside the grid's range and is 0 outside (straight-through).

    Args:
        site: where it works.
        asymmetric: ``scale = (max - min) / (2^b - 1)`` and a zero point, for values of both signs; else the zero point
            is fixed and the larger of both sides decides.
        per_channel: a range for each output channel; of weights alone.
        momentum: of the moving averages.
    """

    def __init__(
        self, site: QuantizerSite, *, asymmetric: bool = False, per_channel: bool = False, momentum: float = 0.1
    ) -> None:
        super().__init__(site)
        if not 0 < momentum <= 1:
            raise ConfigError(f"minmax: momentum must be over 0 and at most 1; given: {momentum}. Change it.")
        if per_channel and site.role != "weight":
            raise PluginError(
                "minmax: one range a channel is for weights only, since no integer kernel can run it for activations. "
                "Set per_channel in [quantization.weight_options]."
            )
        self.per_channel = per_channel
        self.asymmetric = asymmetric and site.signed
        self.momentum = momentum
        self.absorbs_relu = not site.signed
        shape = (site.channels,) if per_channel else ()
        for bits in site.bits:
            self.register_buffer(f"low_{bits}", torch.zeros(shape))
            self.register_buffer(f"high_{bits}", torch.zeros(shape))
            self.register_buffer(f"given_{bits}", torch.tensor(False))

    @classmethod
    def has_weight_zero_points(cls, **options: Any) -> bool:
        """Tell whether weights are asymmetric."""
        return bool(options.get("asymmetric", False))

    def _extremes(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and largest values, 0 included: ``[]`` or, a channel, ``[C]``."""
        flat = v.flatten(1) if self.per_channel else v.flatten()
        low, high = flat.aminmax(dim=-1)
        return low.clamp(max=0), high.clamp(min=0)

    @torch.no_grad()
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Take the range of ``x`` for every bit-width."""
        low, high = self._extremes(x.float())
        for bits in self.site.bits:
            self._store(bits, low, high)
            self.get_buffer(f"given_{bits}").fill_(False)

    def _store(self, bits: int, low: Tensor, high: Tensor) -> None:
        for name, value in ((f"low_{bits}", low), (f"high_{bits}", high)):
            target = self.get_buffer(name)
            (target[: len(value)] if self.per_channel else target).copy_(value)

    @torch.no_grad()
    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Take a calibrator's range for one bit-width, and keep it."""
        self._store(bits, low, high)
        self.get_buffer(f"given_{bits}").fill_(True)

    @torch.no_grad()
    def inherit(self, high: int, low: int) -> None:
        """Carry ``high`` bits to ``low``: ``s' = 2^d s``, ``z' = floor(z / 2^d)``, d the difference (OQAT).

        The range of ``low`` becomes that of this grid: the same range on fewer levels would break OQAT's bound on how
        far outputs move, ``(2^d - 1) s``. Unless a calibrator gave that of ``high``, it follows the data from here.
        """
        d = high - low
        grid = self.export(SiteContext(high, self.site.channels))
        step, zero_point = grid.scale * 2**d, grid.zero_point // 2**d
        first, last = grid.qmin // 2**d, (grid.qmax + 1) // 2**d - 1
        self._store(low, (first - zero_point) * step, (last - zero_point) * step)
        self.get_buffer(f"given_{low}").copy_(self.get_buffer(f"given_{high}"))

    @torch.no_grad()
    def _follow(self, v: Tensor) -> None:
        """Move the ranges that no calibrator gave towards that of ``v``."""
        low, high = self._extremes(v)
        if self.site.role == "activation":
            low, high = self.ranks.minimum(low), self.ranks.maximum(high)
        for bits in self.site.bits:
            if not self.get_buffer(f"given_{bits}"):
                was_low, was_high = self._range(bits, len(v))
                self._store(bits, was_low.lerp(low, self.momentum), was_high.lerp(high, self.momentum))

    def _range(self, bits: int, channels: int) -> tuple[Tensor, Tensor]:
        low, high = self.get_buffer(f"low_{bits}"), self.get_buffer(f"high_{bits}")
        return (low[:channels], high[:channels]) if self.per_channel else (low, high)

    def _grid(self, ctx: SiteContext, low: Tensor, high: Tensor) -> AffineGrid:
        """Return the grid of a range, ``[]`` or ``[C]`` each (Jacob et al., Sec. 2.1)."""
        axis, levels = (0 if self.per_channel else None), 2**ctx.bits - 1
        if self.asymmetric:
            step = ((high - low) / levels).clamp(min=SMALLEST_STEP)
            zero_point = (-low / step).round().clamp(0, levels).to(torch.int64)
            return AffineGrid(step, zero_point if self.per_channel else int(zero_point), 0, levels, axis)
        if not self.site.signed:
            return AffineGrid((high / levels).clamp(min=SMALLEST_STEP), 0, 0, levels, axis)
        qn, qp = -(2 ** (ctx.bits - 1)), 2 ** (ctx.bits - 1) - 1
        step = torch.maximum(high / qp, low / qn).clamp(min=SMALLEST_STEP)
        if self.site.role == "weight":
            return AffineGrid(step, 0, qn, qp, axis)
        return AffineGrid(step, -qn, 0, levels, axis)  # codes of activations are unsigned

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` rounded to the grid; in training it moves the range first."""
        v = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.training:
            self._follow(v.detach())
        out: Tensor = _StraightThrough.apply(v, self.export(ctx))  # type: ignore[no-untyped-call]
        return out if out.dtype == x.dtype else out.to(x.dtype)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid of the active bit-width."""
        return self._grid(ctx, *self._range(ctx.bits, ctx.channels))


class _StraightThrough(torch.autograd.Function):
    """Rounds to a grid; the gradient is that of clipping to its range."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, grid: AffineGrid) -> Tensor:
        scale, zero_point = grid.broadcast_scale(v.ndim), grid.broadcast_zero_point(v.ndim)
        ctx.save_for_backward((v >= (grid.qmin - zero_point) * scale) & (v <= (grid.qmax - zero_point) * scale))
        return grid.quantize(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None
