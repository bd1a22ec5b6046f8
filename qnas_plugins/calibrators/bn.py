"""Recalibration of batch normalisation, without which a subnet answers near chance (OFA, OQAT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from qnas.nn.batchnorm import recalibrate
from qnas.nn.subnet import Subnet


class BatchNormCalibrator:
    """Sets every batch normalisation's statistics to those of the subnet on training images."""

    name = "bn"
    settings: Mapping[str, Any] = {}

    def calibrate(self, subnet: Subnet, batches: Iterable[Tensor]) -> None:
        """Run the batches through the subnet; ``[N, C, R, R]`` each, normalised, of one size."""
        recalibrate(subnet, batches)
