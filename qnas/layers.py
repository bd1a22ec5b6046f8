"""What a cost model sees of a layer. No torch, no numpy."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BITS = 32  # the bit-width that stands for "left in float"
BIAS_BYTES = 4  # an int32 code, or a float32 value in a float layer
SCALE_BYTES = 4  # float32
ZERO_POINT_BYTES = 1
GRID_BYTES = SCALE_BYTES + ZERO_POINT_BYTES
NORM_BYTES = 8  # a channel of batch normalisation in float: a factor and an offset


@dataclass(frozen=True)
class LayerSpec:
    """One layer of one subnet, as costs, reports and the supernet's activation see it.

    Attributes:
        name: the site's name, for example ``stage1.block2.depthwise``.
        kind: ``conv``, ``linear``, or ``quantize`` (a tensor that is only put on a grid, such as a sum).
        in_channels, out_channels: active channels; a depthwise convolution has ``groups == in_channels``.
        kernel_size, stride: of a square kernel; 1 for the other kinds.
        out_size: height and width of the (square) output, in pixels.
        w_bits: bit-width of the weights; :data:`FLOAT_BITS` where they stay in float.
        a_bits: bit-width of the input activations (of the tensor itself for ``quantize``), likewise.
        w_zero_points: whether the weights' grid is asymmetric: a zero point for each output channel is stored.
        w_fixed, a_fixed: whether the space fixes these bits (first and last layer, grids), so that no sample chooses
            them. Averages of bit-widths leave such layers out.
        normalised: whether a batch normalisation of its own follows.
        float_norms: channels of the batch normalisations that stand alone around it and stay in float when deployed.
        raw_norm: channels of its own one where that stays in float, too, since convolutions alone are quantized;
            ``raw_grid`` says whether its output is on a grid in between.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    out_size: int = 1
    w_bits: int = FLOAT_BITS
    a_bits: int = FLOAT_BITS
    w_zero_points: bool = False
    w_fixed: bool = False
    a_fixed: bool = False
    normalised: bool = True
    float_norms: int = 0
    raw_norm: int = 0
    raw_grid: bool = False

    @property
    def num_weights(self) -> int:
        """Number of active weights, without biases."""
        if self.kind == "quantize":
            return 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel_size**2

    @property
    def in_size(self) -> int:
        """Height and width of the (square) input, in pixels: what a stride that divides it makes ``out_size`` of."""
        return self.out_size * self.stride

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return self.num_weights * self.out_size**2
