"""Bit operations: MACs weighted by the bit-widths of both factors."""

from __future__ import annotations

from typing import Any


class BitOps:
    """Sum over layers of MACs * weight bits * activation bits; a layer left in float counts 32 * 32."""

    direction = "min"
    unit = "BitOPs"

    def layer_cost(self, layer: Any) -> Any:
        """Return one layer's BitOPs."""
        return layer.macs * layer.w_bits * layer.a_bits


BITOPS = BitOps()
