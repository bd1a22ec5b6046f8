"""Average bit-widths of weights and of activations: the targets of mixed-precision searches. No torch.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.3, searches
under averages of weights' and of activations' bits, and does not say how layers are weighted; so there is a cost for
each weighting. Only layers whose bits a sample chooses count: the first and the last layer, at fixed bits, are left
out, and so are tensors that are only put on a grid. A subnet in which no layer counts has the average 0.
"""

from __future__ import annotations

from typing import Any

WEIGHTINGS = ("layers", "parameters", "macs", "features")


class AverageBits:
    """Average bit-width over the layers whose bits are searched.

    Args:
        role: ``w_bits`` or ``a_bits``.
        weighting: ``layers`` counts every layer once, ``parameters`` its weights, ``macs`` its multiplications,
            ``features`` the numbers in its input, channels * height * width.
    """

    direction = "min"
    on_request = True

    def __init__(self, role: str, weighting: str) -> None:
        self.role = role
        self.weighting = weighting
        self.unit = f"bits, weighted by {weighting}"

    def layer_cost(self, layer: Any) -> Any:
        """Return one layer's bits times its weight."""
        return self.layer_weight(layer) * getattr(layer, self.role)

    def layer_weight(self, layer: Any) -> Any:
        """Return one layer's weight in the average, 0 where its bits are fixed or it only puts a tensor on a grid."""
        if layer.kind == "quantize":
            return 0 * layer.out_size
        chosen = 1 - getattr(layer, self.role.replace("bits", "fixed")) * 1
        if self.weighting == "layers":
            return chosen
        if self.weighting == "features":
            return chosen * layer.in_channels * layer.in_size**2
        return chosen * (layer.macs if self.weighting == "macs" else layer.num_weights)
