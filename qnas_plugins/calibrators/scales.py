"""Scales of each subnet's own folded weights, found after its batch normalisation is calibrated.

Both matter where batch normalisation is folded into the weights before they are quantized (``--folding batch`` or
``moving``): the calibrated statistics change the folded weights, so a scale that all subnets share does not fit
(QuantNAS, Sec. 3.2). Name them behind ``bn``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from qnas.nn.subnet import Subnet


class ScalePredictorCalibrator:
    """Predicts each layer's scale from the subnet's calibrated statistics (QuantNAS, Sec. 4.2); costs nothing.

    Without it the quantizer ``scale-predictor`` predicts from the statistics of the supernet, one scale for all.
    """

    name = "scale-predictor"
    settings: Mapping[str, Any] = {}

    def calibrate(self, subnet: Subnet, batches: Iterable[Tensor]) -> None:
        """Take the grids that the quantizers give for the subnet's statistics; no image is looked at."""
        for layer in subnet.subnet_layers():
            layer.predict_scale()


class ScaleRefitCalibrator:
    """Fits each layer's scale to the subnet's own folded weights, by least squares, whatever the quantizer learned."""

    name = "scale-refit"
    settings: Mapping[str, Any] = {}

    def calibrate(self, subnet: Subnet, batches: Iterable[Tensor]) -> None:
        """Replace the scales; no image is looked at."""
        for layer in subnet.subnet_layers():
            layer.refit_scale()
