"""A feature pyramid and RetinaNet's head on it, in float.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; Lin et al., "Focal Loss for Dense Object
Detection", ICCV 2017, https://arxiv.org/abs/1708.02002.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.nn.features import Feature, FloatHead

PRIOR = 0.01  # of an object at an anchor, before training (Sec. 4.1: Initialization)


def pyramid_levels(features: Sequence[Feature], extra: int) -> list[tuple[int, int]]:
    """Return stride and size of each level: the backbone's, and ``extra`` coarser ones that convolutions add."""
    levels = [(feature.stride, feature.size) for feature in features]
    for _ in range(extra):
        stride, size = levels[-1]
        levels.append((2 * stride, -(-size // 2)))
    return levels


class RetinaNetHead(FloatHead):
    """Lateral and top-down paths, then two small stacks of convolutions that all levels share.

    Args:
        features: of the backbone, fine to coarse.
        extra: coarser levels to add.
        num_anchors: at each position.
        num_classes: of objects.
        width: channels of the pyramid and the stacks (256 in the paper).
        depth: 3x3 convolutions of a stack (4 in the paper).
    """

    def __init__(
        self, features: Sequence[Feature], *, extra: int, num_anchors: int, num_classes: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.lateral = nn.ModuleList(nn.Conv2d(feature.channels, width, 1) for feature in features)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in features)
        inputs = [features[-1].channels, *[width] * extra][:extra]
        self.coarser = nn.ModuleList(nn.Conv2d(channels, width, 3, stride=2, padding=1) for channels in inputs)
        self.classes = _stack(width, depth, num_anchors * num_classes)
        self.boxes = _stack(width, depth, num_anchors * 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Departs from Sec. 4.1, whose deviation of 0.01 suits 256 channels and long training.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for stack in (self.classes, self.boxes):
            nn.init.normal_(stack[-1].weight, 0.0, 0.01)
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return ``[N, A, num_classes + 4]``: logits of each class, offsets from the anchor."""
        answers = []
        for level in self.pyramid(features):
            parts = [_by_anchor(self.classes(level), self.num_classes), _by_anchor(self.boxes(level), 4)]
            answers.append(torch.cat(parts, -1))
        return torch.cat(answers, 1)

    def pyramid(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the maps ``[N, width, H, W]`` of all levels, fine to coarse."""
        laterals = [layer(x) for layer, x in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], laterals[i].shape[-2:], mode="nearest")
        levels = [layer(x) for layer, x in zip(self.smooth, laterals, strict=True)]
        x = features[-1]
        for i, layer in enumerate(self.coarser):
            x = layer(F.relu(x) if i else x)
            levels.append(x)
        return levels


def _stack(width: int, depth: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """Return ``[N, H * W * anchors, values]`` of ``[N, anchors * values, H, W]``."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)
