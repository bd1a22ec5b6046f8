"""Blocks of mobile networks. Each is elastic, and extracts its static twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qnas.nn.activation import HardSwish, SqueezeExcite
from qnas.nn.active import ActiveSubnet
from qnas.nn.subnet import Residual

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext


class InvertedResidual(nn.Module):
    """MobileNetV2/V3's block: expand 1x1, depthwise KxK, squeeze-excite, linear 1x1, skip.

    Every convolution is an integer operator when deployed, so the tensor in front of a float operation (h-swish,
    squeeze-excite) is put on an 8-bit grid too. A ReLU costs nothing: it is part of the next layer's quantizer.

    Args:
        name: prefix of the sites ``expand``, ``depthwise``, ``se``, ``project`` and ``add``.
        expand: whether there is an expanding convolution (the first block of the network has none).
        hidden: the largest number of channels between expanding and projecting.
        act: ``relu`` or ``h-swish``.
        se_hidden: hidden channels of squeeze-excite; 0 for none.
        signed_input: whether the block's input, which arrives on an 8-bit grid, can be negative.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        kernels: Sequence[int],
        stride: int,
        act: str,
        se_hidden: int,
        expand: bool = True,
        signed_input: bool = True,
    ) -> None:
        super().__init__()
        relu = act == "relu"
        island = not relu or se_hidden > 0
        stream = context.edge_bits
        self.name = name
        self.expand = (
            context.conv(
                f"{name}.expand",
                in_channels,
                hidden,
                signed_input=signed_input,
                passthrough_bits=stream,
                output=not relu,
            )
            if expand
            else None
        )
        self.act1 = None if relu or not expand else HardSwish()
        self.depthwise = context.conv(
            f"{name}.depthwise",
            hidden,
            hidden,
            kernels=kernels,
            stride=stride,
            depthwise=True,
            input_relu=relu and expand,
            signed_input=not relu if expand else signed_input,
            passthrough_bits=None if expand else stream,
            output=island,
            output_relu=relu and island,
        )
        self.act2 = None if relu else HardSwish()
        self.se = SqueezeExcite(f"{name}.se", hidden, se_hidden) if se_hidden else None
        self.project = context.conv(
            f"{name}.project",
            hidden,
            out_channels,
            input_relu=relu and not island,
            signed_input=not relu,
            output=True,
        )
        residual = stride == 1 and in_channels == out_channels
        self.add = context.site(f"{name}.add", out_channels, signed=True) if residual else None

    def activate(self, active: ActiveSubnet) -> None:
        """Do nothing: the layers inside take up their own descriptions."""

    @property
    def active(self) -> bool:
        """Whether the active subnet has this block."""
        return self.depthwise.active

    def _chain(self) -> list[nn.Module]:
        parts = (self.expand, self.act1, self.depthwise, self.act2, self.se, self.project)
        return [part for part in parts if part is not None]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H', W']`` of ``[N, I, H, W]``."""
        y = x
        for part in self._chain():
            y = part(y)
        return y if self.add is None else self.add(y + x)

    def extract(self) -> nn.Module:
        """Return the static twin for the active subnet."""
        from qnas.nn.supernet import extract

        body = nn.Sequential(*(extract(part) for part in self._chain()))
        return body if self.add is None else Residual(body, self.add.extract())


class DepthwiseSeparable(nn.Module):
    """MobileNetV1's block: depthwise KxK, then 1x1, a ReLU after each.

    It takes and returns the tensor *before* its ReLU, which is part of the next layer's quantizer: nothing but that
    layer reads it, so it needs no grid of its own.

    Args:
        name: prefix of the sites ``depthwise`` and ``pointwise``.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        kernels: Sequence[int],
        stride: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.depthwise = context.conv(
            f"{name}.depthwise",
            in_channels,
            in_channels,
            kernels=kernels,
            stride=stride,
            depthwise=True,
            input_relu=True,
        )
        self.pointwise = context.conv(f"{name}.pointwise", in_channels, out_channels, input_relu=True)

    @property
    def active(self) -> bool:
        """Whether the active subnet has this block."""
        return self.depthwise.active

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H', W']`` of ``[N, I, H, W]``."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y

    def extract(self) -> nn.Module:
        """Return the static twin for the active subnet."""
        return nn.Sequential(self.depthwise.extract(), self.pointwise.extract())
