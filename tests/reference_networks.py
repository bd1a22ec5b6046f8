"""Plain PyTorch networks with the module names of torchvision (which is not a dependency), written from the papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(i, o, 3, stride)
        self.conv2, self.bn2 = conv_bn(o, o, 3)
        self.pad = (o - i) // 2 if option == "pad" and i != o else None
        changes = stride > 1 or i != o
        self.downsample = nn.Sequential(*conv_bn(i, o, 1, stride)) if option == "conv" and changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.pad is not None:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int, stride: int, option: str) -> None:
        super().__init__()
        hidden = o // 4
        self.conv1, self.bn1 = conv_bn(i, hidden)
        self.conv2, self.bn2 = conv_bn(hidden, hidden, 3, stride)
        self.conv3, self.bn3 = conv_bn(hidden, o)
        self.downsample = nn.Sequential(*conv_bn(i, o, 1, stride)) if stride > 1 or i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(
        self, block: type, stem: int, widths: Sequence[int], blocks: Sequence[int], classes: int, *, small: bool,
        option: str = "conv", classifier: str = "fc", channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, stem, 3) if small else conv_bn(channels, stem, 7, 2)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.classifier = classifier
        width = stem
        for number, (out, n) in enumerate(zip(widths, blocks, strict=True), 1):
            layer = nn.Sequential()
            for position in range(n):
                layer.append(block(width, out, 2 if number > 1 and position == 0 else 1, option))
                width = out
            setattr(self, f"layer{number}", layer)
        self.stages = len(widths)
        setattr(self, classifier, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return getattr(self, self.classifier)(x.mean((2, 3)))


def resnet18(classes: int, *, small: bool = False, width: int = 64, **options: int) -> nn.Module:
    """``width``: of the first stage."""
    return ResNet(BasicBlock, width, [width * 2**i for i in range(4)], (2, 2, 2, 2), classes, small=small, **options)


def resnet50(classes: int, *, small: bool = False, width: int = 64, **options: int) -> nn.Module:
    widths = [4 * width * 2**i for i in range(4)]
    return ResNet(Bottleneck, width, widths, (3, 4, 6, 3), classes, small=small, **options)


def resnet20(classes: int, *, small: bool = True, width: int = 16, **options: int) -> nn.Module:
    """As https://github.com/akamaster/pytorch_resnet_cifar10 names it."""
    return ResNet(
        BasicBlock, width, (width, 2 * width, 4 * width), (3, 3, 3), classes, small=small, option="pad",
        classifier="linear", **options,
    )  # fmt: skip


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = i * expansion
        layers: list[nn.Module] = [nn.Sequential(*conv_bn(i, hidden), nn.ReLU())] if expansion > 1 else []
        layers.append(nn.Sequential(*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU()))
        self.conv = nn.Sequential(*layers, *conv_bn(hidden, o))
        self.skip = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """ReLU in place of ReLU6."""

    def __init__(self, classes: int, widths: Sequence[int], head: int, *, small: bool, channels: int = 3) -> None:
        super().__init__()
        stem, first, *rest = widths
        features: list[nn.Module] = [nn.Sequential(*conv_bn(channels, stem, 3, 1 if small else 2), nn.ReLU())]
        features.append(InvertedResidual(stem, first, 1, 1))
        width = first
        for out, n, stride in zip(rest, (2, 3, 4, 3, 3, 1), (1 if small else 2, 2, 2, 1, 2, 1), strict=True):
            for position in range(n):
                features.append(InvertedResidual(width, out, stride if position == 0 else 1, 6))
                width = out
        self.features = nn.Sequential(*features, nn.Sequential(*conv_bn(width, head), nn.ReLU()))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2(classes: int, *, small: bool = False, width: float = 1.0, channels: int = 3) -> nn.Module:
    """``width``: 1, or 0.25, where torchvision rounds to these widths (and so does the head of the small form)."""
    widths, head = {1.0: ((32, 16, 24, 32, 64, 96, 160, 320), 1280), 0.25: ((8, 8, 8, 8, 16, 24, 40, 80), 320)}[width]
    return MobileNetV2(classes, widths, head if small else 1280, small=small, channels=channels)


class MobileNetV1(nn.Module):
    """As https://github.com/marvis/pytorch-mobilenet names it."""

    def __init__(self, classes: int, *, small: bool = False, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        layers = [nn.Sequential(*conv_bn(channels, width, 3, 1 if small else 2), nn.ReLU())]
        alpha = width / 32
        rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        for published, stride in rows:
            out = int(alpha * published)
            depthwise, pointwise = conv_bn(width, width, 3, stride, width), conv_bn(width, out)
            layers.append(nn.Sequential(*depthwise, nn.ReLU(), *pointwise, nn.ReLU()))
            width = out
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model(x).mean((2, 3)))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in evaluation mode with statistics and parameters as training could leave them."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** 0.5, generator=rng)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=rng)
                module.bias.uniform_(-0.3, 0.3, generator=rng)
                module.running_mean.normal_(0, 0.3, generator=rng)
                module.running_var.uniform_(0.5, 2.0, generator=rng)
    return network.eval()
