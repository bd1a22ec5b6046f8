"""Blocks of residual networks. Each is elastic, and extracts its static twin.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385. The ReLU follows
the addition, so what passes between blocks is on an unsigned grid, and that grid's quantizer is the ReLU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from qnas.layers import LayerSpec
from qnas.nn.active import ActiveSubnet
from qnas.nn.elastic import ElasticConv
from qnas.nn.subnet import PaddedShortcut, Residual, pad_shortcut

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext

SHORTCUTS = ("identity", "conv", "pad")


class ElasticPad(nn.Module):
    """The shortcut without parameters (He et al., Sec. 3.3, option A): subsampled, the other channels are zero.

    The zeros lie on both sides, as many in front as the largest widths have there; where active widths leave room for
    fewer, those behind go first. So one channel is added to the same channel in all subnets that have room for it.

    Args:
        first, last: sites of the block's first and last convolution, whose descriptions give the active channels.
        in_channels, out_channels: the largest numbers.
        stride: of the subsampling.
    """

    def __init__(self, first: str, last: str, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = first
        self.last = last
        self.front = (out_channels - in_channels) // 2
        self.stride = stride
        self.specs: tuple[LayerSpec | None, LayerSpec | None] = (None, None)

    def activate(self, active: ActiveSubnet) -> None:
        """Take up the active subnet's channels."""
        self.specs = (active.layers.get(self.first), active.layers.get(self.last))

    def _zeros(self) -> tuple[int, int]:
        first, last = self.specs
        assert first is not None, f"the shortcut past {self.first} is not active"
        assert last is not None, f"the shortcut past {self.last} is not active"
        missing = last.out_channels - first.in_channels
        front = min(self.front, missing)
        return front, missing - front

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H', W']`` of ``[N, I, H, W]``."""
        return pad_shortcut(x, self.stride, *self._zeros())

    def extract(self) -> PaddedShortcut:
        """Return the static twin for the active channels."""
        return PaddedShortcut(self.stride, *self._zeros())


class ResidualBlock(nn.Module):
    """``relu(convolutions(x) + shortcut(x))``; both summands and the sum are on 8-bit grids.

    Args:
        context: makes the parts.
        name: prefix of the sites ``downsample`` (for a shortcut of kind ``conv``) and ``add``.
        layers: the convolutions in order, named ``name.conv1`` and so on; the last one's output is on a grid.
        stride: of the whole block.
        shortcut: ``identity``, ``conv`` (1x1, option B) or ``pad`` (option A).
    """

    def __init__(
        self, context: BuildContext, name: str, layers: list[ElasticConv], *, stride: int, shortcut: str
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {SHORTCUTS}, not {shortcut!r}")
        self.name = name
        self.layers = nn.ModuleList(layers)
        first, last = layers[0], layers[-1]
        in_channels, out_channels = first.weight.shape[1], last.weight.shape[0]
        self.downsample: nn.Module | None = None
        if shortcut == "conv":
            self.downsample = context.conv(
                f"{name}.downsample",
                in_channels,
                out_channels,
                stride=stride,
                passthrough_bits=context.edge_bits,
                output=True,
            )
        elif shortcut == "pad":
            self.downsample = ElasticPad(first.name, last.name, in_channels, out_channels, stride)
        self.add = context.site(f"{name}.add", out_channels, signed=False, relu=True)

    @property
    def active(self) -> bool:
        """Whether the active subnet has this block."""
        return self.add.active

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H', W']`` of ``[N, I, H, W]``, which is on a grid and not negative."""
        y = x
        for layer in self.layers:
            y = layer(y)
        out: Tensor = self.add(y + (x if self.downsample is None else self.downsample(x)))
        return out

    def extract(self) -> Residual:
        """Return the static twin for the active subnet."""
        from qnas.nn.supernet import extract

        body = nn.Sequential(*(extract(layer) for layer in self.layers))
        return Residual(body, self.add.extract(), None if self.downsample is None else extract(self.downsample))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and ResNet-20.

    Args:
        context: makes the parts.
        name: prefix of the sites ``conv1``, ``conv2`` and those of :class:`ResidualBlock`.
        in_channels, out_channels: the largest numbers.
        stride: of ``conv1``.
        shortcut: as of :class:`ResidualBlock`.
    """

    def __init__(
        self, context: BuildContext, name: str, in_channels: int, out_channels: int, *, stride: int, shortcut: str
    ) -> None:
        conv1 = context.conv(
            f"{name}.conv1", in_channels, out_channels, kernels=(3,), stride=stride, passthrough_bits=context.edge_bits
        )
        conv2 = context.conv(f"{name}.conv2", out_channels, out_channels, kernels=(3,), input_relu=True, output=True)
        super().__init__(context, name, [conv1, conv2], stride=stride, shortcut=shortcut)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: the block of ResNet-50.

    The stride is in the 3x3 convolution, as in torchvision ("ResNet v1.5"); the paper has it in the first one.

    Args:
        context: makes the parts.
        name: prefix of the sites ``conv1``, ``conv2``, ``conv3`` and those of :class:`ResidualBlock`.
        in_channels, hidden, out_channels: the largest numbers; ``hidden`` is that between the 1x1 convolutions.
        stride: of ``conv2``.
        shortcut: as of :class:`ResidualBlock`.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        stride: int,
        shortcut: str,
    ) -> None:
        conv1 = context.conv(f"{name}.conv1", in_channels, hidden, passthrough_bits=context.edge_bits)
        conv2 = context.conv(f"{name}.conv2", hidden, hidden, kernels=(3,), stride=stride, input_relu=True)
        conv3 = context.conv(f"{name}.conv3", hidden, out_channels, input_relu=True, output=True)
        super().__init__(context, name, [conv1, conv2, conv3], stride=stride, shortcut=shortcut)
