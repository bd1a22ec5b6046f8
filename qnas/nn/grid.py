"""Quantization grids: all that deployment needs to know of a quantizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AffineGrid:
    """Uniform levels ``scale * (code - zero_point)`` for integer codes in ``[qmin, qmax]``.

    Attributes:
        scale: ``[]``, or ``[C]`` with ``axis``; positive.
        zero_point: the code of the value 0, in ``[qmin, qmax]``; ``[C]`` integers with ``axis``, where they differ.
        qmin, qmax: the range of codes.
        axis: the dimension along which ``scale`` varies; ``None`` for one scale a tensor.
    """

    scale: Tensor
    zero_point: int | Tensor
    qmin: int
    qmax: int
    axis: int | None = None

    def __post_init__(self) -> None:
        lowest, highest = self.zero_points
        if not self.qmin <= lowest <= highest <= self.qmax:
            raise ValueError(f"zero_point {self.zero_point} is outside [{self.qmin}, {self.qmax}]")
        if isinstance(self.zero_point, Tensor) and (self.axis is None or self.zero_point.shape != self.scale.shape):
            raise ValueError("a grid with a zero point a channel has an axis, and as many scales")
        if (self.axis is None) != (self.scale.ndim == 0):
            raise ValueError("a grid has a scale of shape [] without an axis, or [C] with one")

    @property
    def bits(self) -> int:
        """Number of bits that the codes need."""
        return (self.qmax - self.qmin).bit_length()

    @property
    def zero_points(self) -> tuple[int, int]:
        """The smallest and the largest zero point."""
        if isinstance(self.zero_point, Tensor):
            return int(self.zero_point.min()), int(self.zero_point.max())
        return self.zero_point, self.zero_point

    def _broadcast(self, values: Tensor, ndim: int) -> Tensor:
        return values.reshape([-1 if d == self.axis else 1 for d in range(ndim)])

    def broadcast_scale(self, ndim: int) -> Tensor:
        """Return the scale in a shape that broadcasts against a tensor of ``ndim`` dimensions."""
        return self.scale if self.axis is None else self._broadcast(self.scale, ndim)

    def broadcast_zero_point(self, ndim: int) -> int | Tensor:
        """Return the zero point as a number, or in a shape that broadcasts likewise."""
        zero_point = self.zero_point
        return self._broadcast(zero_point, ndim) if isinstance(zero_point, Tensor) else zero_point

    def to(self, device: torch.device) -> AffineGrid:
        """Return the grid with its tensors on a device."""
        zero_point = self.zero_point.to(device) if isinstance(self.zero_point, Tensor) else self.zero_point
        return replace(self, scale=self.scale.to(device), zero_point=zero_point)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of ``x`` (int16, the shape of ``x``), rounding half to even and saturating."""
        codes = (x / self.broadcast_scale(x.ndim)).round_().add_(self.broadcast_zero_point(x.ndim))
        return codes.clamp_(self.qmin, self.qmax).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of codes, in the scale's dtype."""
        return (codes - self.broadcast_zero_point(codes.ndim)).to(self.scale.dtype) * self.broadcast_scale(codes.ndim)

    def quantize(self, x: Tensor) -> Tensor:
        """Return ``decode(encode(x))`` without the integers in between."""
        scale = self.broadcast_scale(x.ndim)
        zero_point = self.broadcast_zero_point(x.ndim)
        low, high = self.qmin - zero_point, self.qmax - zero_point
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CodebookGrid:
    """Non-uniform levels: code ``i`` stands for ``table[i]``.

    Attributes:
        table: ``[2 ** bits]`` at most, ascending.
    """

    table: Tensor

    @property
    def bits(self) -> int:
        """Number of bits that the codes need."""
        return max(1, (len(self.table) - 1).bit_length())

    def to(self, device: torch.device) -> CodebookGrid:
        """Return the grid with its table on a device."""
        return CodebookGrid(self.table.to(device))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of the nearest levels (int16, the shape of ``x``); a tie goes to the lower level."""
        table = self.table.to(x.device)
        return torch.bucketize(x.contiguous(), (table[1:] + table[:-1]) / 2).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of codes."""
        return self.table.to(codes.device)[codes.long()]

    def quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level of each value."""
        return self.decode(self.encode(x))


Grid = AffineGrid | CodebookGrid

FRACTIONS = 64  # of the scale that clips nothing, from which the search for the best one starts
REFINEMENTS = 20


@torch.no_grad()
def least_squares_scale(values: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the scale whose grid ``[qmin, qmax]`` around 0 makes the smallest squared error.

    ``sum (s round(clip(v / s, qmin, qmax)) - v)^2`` has a minimum for every assignment of values to codes ``q``:
    ``s = <v, q> / <q, q>``. From the best of 64 fractions of the scale that clips nothing, and of as many around that,
    assigning and solving take turns; each lowers the error, so what is returned is no worse than any of these.

    Args:
        values: any shape.
        qmin, qmax: ``qmin <= 0 <= qmax``.

    Returns:
        ``[]``, in the dtype of ``values``; 0 where all values are 0 or out of reach of the codes' signs.
    """
    v = values.detach().flatten().double()
    whole = torch.maximum(v.max() / qmax if qmax else v.new_zeros(()), v.min() / qmin if qmin else v.new_zeros(()))
    if float(whole) <= 0:
        return values.new_zeros(())

    def error(scale: Tensor) -> Tensor:
        return ((v / scale).round().clamp(qmin, qmax) * scale - v).square().sum()

    best = min(range(FRACTIONS, 0, -1), key=lambda i: float(error(whole * i / FRACTIONS)))
    around = [whole * (best + 2 * j / FRACTIONS) / FRACTIONS for j in range(-FRACTIONS // 2, FRACTIONS // 2 + 1)]
    scale = min((near for near in around if float(near) > 0), key=lambda near: float(error(near)))
    for _ in range(REFINEMENTS):
        codes = (v / scale).round().clamp(qmin, qmax)
        better = torch.dot(v, codes) / torch.dot(codes, codes)
        if float(better) <= 0 or float(better) == float(scale):
            break
        scale = better
    return scale.to(values.dtype)
