"""OQAT's operations: BitOPs on the scale of MACs."""

from __future__ import annotations

from typing import Any

from qnas.layers import FLOAT_BITS

BITOPS_A_FLOP = 64  # 8 * 8: a layer at 8 bits counts its MACs


class OqatFlops:
    """What OQAT's released code (``profile_quant``) prints as FLOPs: BitOPs / 64, and MACs of layers in float.

    It differs from BitOPs, which take a layer in float for 32 * 32 bit operations a MAC: here it costs as much as one
    at 8 bits. So the first convolution and the classifier, float in OQAT's code and 8 bits here, cost the same in
    both. Each layer is rounded to a whole number, halves upwards.
    """

    direction = "min"
    unit = "FLOPs (BitOPs / 64)"

    def layer_cost(self, layer: Any) -> Any:
        """Return one layer's ``MACs * weight bits * activation bits / 64``, or its MACs if its weights are float."""
        low = (layer.macs * layer.w_bits * layer.a_bits + BITOPS_A_FLOP // 2) // BITOPS_A_FLOP
        quantized = (layer.w_bits < FLOAT_BITS) * 1
        return quantized * low + (1 - quantized) * layer.macs


OQAT_FLOPS = OqatFlops()
