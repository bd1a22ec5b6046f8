"""Batch normalisation that stands alone: before a quantizer, or after a sum, where no convolution can absorb it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qnas.layers import LayerSpec
from qnas.nn.active import ActiveSubnet
from qnas.nn.batchnorm import EPS, ElasticBatchNorm, bank_keys, bank_of
from qnas.nn.subnet import SubnetNorm

if TYPE_CHECKING:
    from qnas.space import Knob


class ElasticNorm(nn.Module):
    """Batch normalisation of a prefix of the channels, with a bank for each combination of some knobs' choices.

    Deployed it is a factor and an offset for each channel, in float (:class:`qnas.nn.subnet.ChannelAffine`).

    Args:
        name: of the operation.
        channels: the largest number.
        layer: site whose description gives the active channels, and says whether there is anything to normalise.
        output: whether these are its output channels, not its input channels.
        bank_knobs: any knobs of the space.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        layer: str,
        *,
        output: bool = False,
        bank_knobs: Sequence[Knob] = (),
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.name = name
        self.layer = layer
        self.output = output
        self.bank_knobs = tuple(bank_knobs)
        self.bn = ElasticBatchNorm(channels, bank_keys(bank_knobs), eps)
        self.spec: LayerSpec | None = None

    def activate(self, active: ActiveSubnet) -> None:
        """Take up the active subnet's channels and bank."""
        self.spec = active.layers.get(self.layer)
        if self.spec is not None and self.bank_knobs:
            self.bn.select(bank_of(self.bank_knobs, active.sample))

    @property
    def active(self) -> bool:
        """Whether the active subnet has it."""
        return self.spec is not None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, H, W]`` normalised."""
        y: Tensor = self.bn(x)
        return y

    @torch.no_grad()
    def extract(self) -> SubnetNorm:
        """Return the static twin for the active subnet."""
        assert self.spec is not None, f"{self.name} is not active"
        channels = self.spec.out_channels if self.output else self.spec.in_channels
        return SubnetNorm(self.name, self.bn.extract(channels))
