"""Bytes of the bit-packed model: the payload of the file that ``qnas export`` writes, as far as it is quantized."""

from __future__ import annotations

from typing import Any

from qnas.layers import BIAS_BYTES, FLOAT_BITS, GRID_BYTES, NORM_BYTES, SCALE_BYTES, ZERO_POINT_BYTES


class SizeBytes:
    """Packed weights, biases, one weight scale an output channel, and a grid for each quantized tensor.

    A layer with weights takes ``ceil(weights * bits / 8)`` bytes of codes (or float32 values), 4 for each bias and,
    if quantized, 4 for each output channel's scale (batch normalisation is folded into it) and 5 for its input's grid
    (scale and zero point); asymmetric weights take one more for each output channel. A tensor that is only put on a
    grid takes those 5, and nothing where it stays in float. A batch normalisation that stays in float takes 8 for each
    channel, and 5 for the grid in front of it where it follows its convolution.
    """

    direction = "min"
    unit = "bytes"

    def layer_cost(self, layer: Any) -> Any:
        """Return one layer's bytes."""
        grid = (layer.a_bits < FLOAT_BITS) * GRID_BYTES
        if layer.kind == "quantize":
            return grid + layer.float_norms * NORM_BYTES
        codes = -(-layer.num_weights * layer.w_bits // 8)
        quantized = (layer.w_bits < FLOAT_BITS) * 1
        a_channel = BIAS_BYTES + quantized * (SCALE_BYTES + layer.w_zero_points * ZERO_POINT_BYTES)
        raw = (layer.a_bits < FLOAT_BITS) * (layer.raw_norm * NORM_BYTES + layer.raw_grid * GRID_BYTES)
        return codes + layer.out_channels * a_channel + grid + raw + layer.float_norms * NORM_BYTES


SIZE_BYTES = SizeBytes()
