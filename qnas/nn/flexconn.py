"""Flexconn: skip connections without parameters past layers that change the number of channels or the map's size.

Kim et al., "BASQ: Branch-wise Activation-clipping Search Quantization for Sub-4-bit Neural Networks", ECCV 2022,
Sec. 5.2. Where a layer has more output channels than input channels these are copied, where it has fewer they are
summed, and where it has a stride maps are averaged.

Departs from the released code, which copies whole tensors and so fails where the output channels are no multiple of the
input channels: here the last copy is cut off. Its average pooling drops a last row that the convolution keeps at odd
sizes; here that row is averaged by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.layers import LayerSpec
from qnas.nn.activation import ActivationSite
from qnas.nn.active import ActiveSubnet
from qnas.nn.graph import SelectChannels


def fold_channels(x: Tensor, channels: int) -> Tensor:
    """Sum channels ``j``, ``j + channels``, ``j + 2 channels`` ... (reduction Flexconn).

    Args:
        x: ``[N, C, H, W]``.
        channels: at most ``C``; where they do not divide it, the last part is filled with zeros.

    Returns:
        ``[N, channels, H, W]``.
    """
    total, *parts = torch.split(x, channels, 1)  # two to four times faster than a sum over a dimension of a view
    for part in parts:
        missing = channels - part.shape[1]
        total = total + (F.pad(part, (0, 0, 0, 0, 0, missing)) if missing else part)
    return total


def copy_channels(x: Tensor, channels: int) -> Tensor:
    """Take channel ``j`` from channel ``j mod C`` (expansion Flexconn): ``[N, channels, H, W]`` of ``[N, C, H, W]``."""
    copies, rest = divmod(channels, x.shape[1])
    return torch.cat([*[x] * copies, x[:, :rest]], 1) if rest else torch.cat([x] * copies, 1)


def average_pool(stride: int) -> nn.AvgPool2d:
    """Return what makes maps as small as a padded convolution of this stride does: ``ceil(H / stride)``."""
    return nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)


class Flexconn(nn.Module):
    """The skip past a layer, for the active numbers of channels.

    Channels are summed before maps are averaged, and copied after it: that is the same as in any other order, and the
    cheapest.

    Args:
        first, last: sites whose descriptions give the input and the output channels; the same one past one layer.
        stride: of what is skipped.
        site: puts what was computed (sums, averages) on a grid; copies stay on the grid of the input. Where the active
            subnet computes nothing, its description leaves this site out.
    """

    def __init__(self, first: str, last: str, stride: int = 1, site: ActivationSite | None = None) -> None:
        super().__init__()
        self.first = first
        self.last = last
        self.stride = stride
        self.pool = average_pool(stride) if stride > 1 else None
        self.site = site
        self.specs: tuple[LayerSpec | None, LayerSpec | None] = (None, None)

    def activate(self, active: ActiveSubnet) -> None:
        """Take up the active subnet's channels."""
        self.specs = (active.layers.get(self.first), active.layers.get(self.last))

    @property
    def active(self) -> bool:
        """Whether the active subnet has what it skips."""
        return None not in self.specs

    def _channels(self) -> tuple[int, int]:
        first, last = self.specs
        assert first is not None, f"the skip past {self.first} is not active"
        assert last is not None, f"the skip past {self.last} is not active"
        return first.in_channels, last.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, ceil(H / stride), ceil(W / stride)]`` of ``[N, I, H, W]``."""
        before, after = self._channels()
        if after < before:
            x = fold_channels(x, after)
        if self.pool is not None:
            x = self.pool(x)
        if self.site is not None and self.site.active:
            x = self.site(x)
        return copy_channels(x, after) if after > before else x

    def extract(self) -> nn.Module:
        """Return the static twin for the active channels; an empty chain where the input itself is added."""
        before, after = self._channels()
        parts: list[nn.Module | None] = [
            FoldChannels(before, after) if after < before else None,
            None if self.pool is None else average_pool(self.stride),
            self.site.extract() if self.site is not None and self.site.active else None,
            SelectChannels([j % before for j in range(after)]) if after > before else None,
        ]
        return nn.Sequential(*(part for part in parts if part is not None))


class FoldChannels(nn.Module):
    """:func:`fold_channels` from ``given`` to ``channels``, both fixed; the static twin of reduction Flexconn."""

    def __init__(self, given: int, channels: int) -> None:
        super().__init__()
        self.given = given
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, channels, H, W]`` of ``[N, C, H, W]``."""
        return fold_channels(x, self.channels)
