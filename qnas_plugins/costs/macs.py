"""Multiply-accumulate operations."""

from __future__ import annotations

from typing import Any


class Macs:
    """Multiply-accumulate operations of convolutions and linear layers for one image."""

    direction = "min"
    unit = "MACs"

    def layer_cost(self, layer: Any) -> Any:
        """Return ``O * I / groups * K^2 * H * W``."""
        return layer.macs


MACS = Macs()
