"""A network of one's own: nothing in it knows of qnas. Any torch.nn.Module that torch.fx can trace will do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Two convolutions side by side, concatenated, and a shortcut past them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine = self._layer(channels, channels // 2, 1)
        self.coarse = self._layer(channels, channels // 2, 3)

    @staticmethod
    def _layer(channels: int, out: int, kernel: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU6()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, H, W]`` of the same."""
        return x + torch.cat([self.fine(x), self.coarse(x)], 1)


class DigitNet(nn.Module):
    """A small network for images of one channel."""

    def __init__(self, width: int = 16, blocks: int = 2, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Branches(width) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, num_classes]`` scores of ``[N, 1, H, W]`` images."""
        return self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
