"""Integers of a deployed layer: code grids of activations, and weights and biases as codes with a scale a channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qnas.errors import ExportError
from qnas.nn.grid import AffineGrid, CodebookGrid, Grid
from qnas.nn.subnet import SubnetLayer

ACCUMULATOR = 2**31 - 1
HEADROOM_BITS = 7  # |code| <= 64: even two products with uint8 activations fit in the int16 of some x86 kernels
SMALLEST_STEP = 1e-30  # of input scale times weight scale, so that float32 keeps it normal


@dataclass(frozen=True)
class CodeGrid:
    """A grid of activations whose codes are uint8: ``scale * (code - zero_point)``, ``low <= code <= high``.

    Attributes:
        scale: exactly a float32.
    """

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def reach(self) -> int:
        """The largest distance of a code from the zero point."""
        return max(self.zero_point - self.low, self.high - self.zero_point)

    def rectified(self) -> CodeGrid:
        """Return the part of the grid that a ReLU leaves over."""
        return replace(self, low=max(self.low, self.zero_point))


def code_grid(grid: Grid, name: str) -> CodeGrid:
    """Return an activation grid as uint8 codes; signed codes are shifted, which changes no value.

    Raises:
        ExportError: the levels are not uniform, or more than 256.
    """
    if isinstance(grid, CodebookGrid):
        raise ExportError(
            f"Activations at {name!r} are on a table of levels, which no integer kernel can multiply. "
            "Use a quantizer with uniform levels for activations."
        )
    if grid.axis is not None or grid.qmax - grid.qmin > 255:
        raise ExportError(
            f"Activations at {name!r} need one scale a tensor and at most 256 codes; given: scale of shape "
            f"{list(grid.scale.shape)}, codes {grid.qmin} to {grid.qmax}. Use 8 bits or fewer."
        )
    shift = 0 if grid.qmin >= 0 and grid.qmax <= 255 else -grid.qmin
    scale = float(grid.scale.detach().to(torch.float32))
    return CodeGrid(scale, int(grid.zero_point) + shift, grid.qmin + shift, grid.qmax + shift)


@dataclass(frozen=True)
class IntegerLayer:
    """A layer's weights and biases.

    ``weight = codes * scales`` and ``bias = bias_codes * input scale * |scales| / 2 ** shift``.

    Attributes:
        bits: of the codes, in two's complement; of ``codes + zero_points``, unsigned, where the grid is asymmetric.
        codes: ``[O, I, K, K]`` int16; 0 means 0.
        zero_points: ``[O]`` int16 of an asymmetric grid, whose codes count from 0; ``None`` for a symmetric one.
        scales: ``[O]`` float32; negative where batch normalisation's factor is, never 0.
        bias_codes: ``[O]`` int32.
        shift: 5 for codes of 2 bits, 3 for 4, 0 from 7 bits up; see :meth:`int8`.
        rescaled: ``[O]`` booleans: channels whose trained scale was too small to count the bias with.
    """

    bits: int
    codes: Tensor
    zero_points: Tensor | None
    scales: Tensor
    bias_codes: Tensor
    shift: int
    rescaled: Tensor

    def bias(self, input_grid: CodeGrid) -> Tensor:
        """Return the values of the bias codes, ``[O]`` float32."""
        steps = input_grid.scale * self.scales.double().abs() / 2**self.shift
        bias: Tensor = self.bias_codes.double() * steps
        return bias.to(torch.float32)

    def int8(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return codes, zero points ``[O]`` (int8), scales (float32), bias codes (int32) for integer kernels; exact.

        Kernels count the bias in steps of input scale times weight scale. At few bits that step is large: rounding
        to it cost 2-bit nets 3 points of accuracy. So codes are multiplied by ``2 ** shift``, for which int8 has
        room, and scales divided by it, which leaves every weight as it is to the last bit.

        A channel with a negative scale has its codes negated, unless one of them is -128, which has no opposite:
        there scale and bias codes become negative instead, which ONNX allows and ONNX Runtime computes exactly.

        Zero points are 0, unless codes of an asymmetric grid lie so far from 0 that int8 cannot hold them.
        """
        keep = self.scales < 0
        codes, scales, zero_points = self.codes, self.scales, torch.zeros(len(self.codes), dtype=torch.int16)
        if self.zero_points is not None and (int(codes.min()) < -128 or int(codes.max()) > 127):
            zero_points = self.zero_points - 128
            codes = codes + _a_channel(zero_points, codes)
        else:
            flip = keep & (codes.flatten(1).amin(1) > -128)
            keep = keep & ~flip
            codes = torch.where(_a_channel(flip, codes), -codes, codes) * 2**self.shift
            scales = torch.where(flip, -scales, scales) / 2**self.shift
        bias_codes = torch.where(keep, -self.bias_codes, self.bias_codes)
        return codes.to(torch.int8), zero_points.to(torch.int8), scales, bias_codes


def _a_channel(values: Tensor, codes: Tensor) -> Tensor:
    """Return ``[O]`` values in a shape that broadcasts against codes ``[O, ...]``."""
    return values.reshape(-1, *[1] * (codes.ndim - 1))


def weight_codes(layer: SubnetLayer) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """Return the integers of a layer's weights.

    Returns:
        ``codes`` ``[O, I, K, K]`` (0 means 0), ``zero_points`` ``[O]`` and the bits as in :class:`IntegerLayer`, and
        ``scales`` ``[O]`` with their sign.

    Raises:
        ExportError: the weights are on a table of levels, or need more bits than int8 has.
    """
    name, grid = layer.spec.name, layer.grid
    if not isinstance(grid, AffineGrid):
        raise ExportError(
            f"The weights of {name!r} are on a table of levels, which no integer kernel can multiply. "
            "Use a quantizer with uniform levels for weights."
        )
    assert layer.codes is not None
    low, high = grid.qmin, grid.qmax
    smallest, largest = grid.zero_points
    zero_points = None
    if low == 0:
        zero_points = torch.as_tensor(grid.zero_point, dtype=torch.int16).expand(len(layer.weight)).clone()
        bits = high.bit_length()
    else:
        bits = max(smallest - low - 1, high - smallest).bit_length() + 1
    if bits > 8 or (low != 0 and smallest != largest):
        raise ExportError(
            f"The weights of {name!r} have codes {low} to {high} with zero points {smallest} to {largest}, but int8 "
            "holds 256 codes around one zero point. Quantize weights to codes from 0, or around 0."
        )
    scales = layer.weight_scales().detach().to(torch.float32)
    codes = (layer.codes - grid.broadcast_zero_point(layer.codes.ndim)).to(torch.int16)
    return codes, zero_points, scales.expand(len(layer.weight)).clone(), bits


def integer_layer(layer: SubnetLayer, input_grid: CodeGrid) -> IntegerLayer:
    """Return a folded layer's integers.

    A channel whose scale is so small (or 0) that its bias would not fit beside the accumulated products in int32
    keeps its bias, and gets the smallest scale with which it does fit; its codes are rounded to that scale. The
    output changes by at most ``num_weights_a_channel * input_grid.reach / 2`` steps of that scale: for 1,000
    weights less than 1e-4 of the bias at 8 bits, 2e-3 at 2 bits.

    Raises:
        ExportError: as :func:`weight_codes`; or an int32 accumulator could overflow.
    """
    codes, zero_points, scales, bits = weight_codes(layer)
    # A code of an asymmetric grid may lie twice as far from 0.
    shift = max(0, HEADROOM_BITS - bits - int(zero_points is not None))
    bias = torch.zeros(len(codes)) if layer.bias is None else layer.bias.detach()
    bias, fine = bias.double(), scales.double()
    products = codes.double().flatten(1).abs().sum(1) * input_grid.reach * 2**shift
    if float(products.max()) > ACCUMULATOR // 2:
        raise ExportError(
            f"Layer {layer.spec.name!r} can overflow an int32 accumulator: it sums {codes[0].numel()} products. "
            "Use fewer input channels."
        )
    smallest = bias.abs() * 2**shift / (input_grid.scale * (ACCUMULATOR - 1 - products))
    smallest = smallest.clamp(min=SMALLEST_STEP / input_grid.scale)
    rescaled = fine.abs() < smallest
    sign = torch.where(fine < 0, -1.0, 1.0).double()
    used = torch.where(rescaled, sign * smallest * (1 + 1e-6), fine).to(torch.float32)
    ratio = (fine / used.double()).reshape(-1, *[1] * (codes.ndim - 1))
    changed = (codes.double() * ratio).round().to(torch.int16)
    codes = torch.where(rescaled.reshape(ratio.shape), changed, codes)
    steps = input_grid.scale * used.double().abs() / 2**shift
    return IntegerLayer(bits, codes, zero_points, used, (bias / steps).round().to(torch.int32), shift, rescaled)
