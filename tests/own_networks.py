"""Networks as their authors write them, who know nothing of this project; for images of 16 pixels and one channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10


class BasicBlock(nn.Module):
    """A residual block in torchvision's manner: one ReLU module for both places, addition in place."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += identity
        return self.relu(y)


class SmallResNet(nn.Module):
    def __init__(self, width=8, num_classes=CLASSES):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.avgpool(self.layers(self.pool(self.stem(x))))
        return self.fc(torch.flatten(x, 1))


class LeNet(nn.Module):
    """No padding, biases, no batch normalisation, several linear layers, a ReLU behind pooling."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 2 * 2, 32)
        self.fc2 = nn.Linear(32, CLASSES)
        self.dropout = dropout

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.fc1(x)), self.dropout, self.training)
        return self.fc2(x)


class Gate(nn.Module):
    """Squeeze-excite of linear layers."""

    def __init__(self, channels):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 4)
        self.expand = nn.Linear(channels // 4, channels)

    def forward(self, x):
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return x * gate.view(x.size(0), -1, 1, 1)


class Mobile(nn.Module):
    """An even kernel, ReLU6, a depthwise layer with a bias before its normalisation, gates, swishes of all kinds."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 4, 2, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width, eps=1e-3)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.depthwise_bn = nn.BatchNorm2d(width)
        self.gate = Gate(width)
        self.project = nn.Conv2d(width, width, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(width, affine=False)
        self.grouped = nn.Conv2d(width, 2 * width, 3, 2, padding=1, groups=4)
        self.swish = nn.SiLU()
        self.head = nn.Conv2d(2 * width, CLASSES, 1)

    def forward(self, x):
        x = F.relu6(self.stem_bn(self.stem(x)))
        y = self.depthwise_bn(self.depthwise(x))
        y = self.gate(y * F.relu6(y + 3.0) / 6.0)
        x = x + self.project_bn(self.project(y))
        x = self.swish(self.grouped(F.hardswish(x)))
        return self.head(x).mean([2, 3])


class Dense(nn.Module):
    """Normalisation and ReLU in front of convolutions, concatenations, average pooling, a split and a shuffle."""

    def __init__(self, growth=8):
        super().__init__()
        self.stem = nn.Conv2d(1, 2 * growth, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d((2 + i) * growth) for i in range(2))
        self.convs = nn.ModuleList(nn.Conv2d((2 + i) * growth, growth, 3, 1, 1, bias=False) for i in range(2))
        self.mix = nn.Conv2d(2 * growth, 2 * growth, 1, bias=False)
        self.mix_bn = nn.BatchNorm2d(2 * growth)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(4 * growth, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, torch.relu(self.mix_bn(self.mix(right)))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = F.adaptive_avg_pool2d(self.pool(x), 1)
        return self.fc(x.flatten(1))


NETWORKS = {"resnet": SmallResNet, "lenet": LeNet, "mobile": Mobile, "dense": Dense}


def lively(network):
    """Give batch normalisations parameters and statistics as training leaves them, with factors of any sign."""
    rng = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=rng) * 0.2)
            module.running_var.copy_(torch.rand(n, generator=rng) + 0.5)
            if module.affine:
                module.weight.data.copy_((torch.rand(n, generator=rng) + 0.5) * (1 - 2 * (torch.arange(n) % 3 == 0)))
                module.bias.data.copy_(torch.randn(n, generator=rng) * 0.3)
    return network


def make(kind="resnet", **options):
    """What a user's factory looks like."""
    return lively(NETWORKS[kind](**options))


# --- what cannot become a space ----------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 4, 3), Decides())

    def forward(self, x):
        return self.inner(x)


class Decides(nn.Module):
    def forward(self, x):
        if x.mean() > 0:  # data-dependent
            return x
        return -x


class Body(nn.Module):
    """A convolution and whatever ``then`` does with it."""

    def __init__(self, conv=None, then=None):
        super().__init__()
        self.conv = conv or nn.Conv2d(1, 4, 3, padding=1)
        self.then = then or nn.Identity()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.then(self.conv(x))
        return self.fc(x.mean((2, 3)))


class Tanh(nn.Module):
    def forward(self, x):
        return torch.tanh(x)  # unsupported function


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.shared(self.shared(x))  # shared weights


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale  # parameter by itself


REFUSED = {
    "tanh": (lambda: Body(then=Tanh()), "tanh", "unsupported function"),
    "shared": (lambda: Body(then=Twice()), "second use of layer 'then.shared'", "shared weights"),
    "parameter": (lambda: Body(then=Scaled()), "the network's tensor 'then.scale'", "parameter by itself"),
    "gelu": (lambda: Body(then=nn.GELU()), "module GELU", "x = self.then(self.conv(x))"),
    "dilation": (lambda: Body(nn.Conv2d(1, 4, 3, padding=2, dilation=2)), "dilation", "x = self.then(self.conv(x))"),
    "mode": (lambda: Body(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")), "reflect", "x = self.then("),
    "oblong": (lambda: Body(nn.Conv2d(1, 4, (3, 1), padding=(1, 0))), "kernel of (3, 1)", "x = self.then("),
    "ceil": (lambda: Body(then=nn.MaxPool2d(3, 2, ceil_mode=True)), "rounds its size up", "x = self.then("),
    "groupnorm": (lambda: Body(then=nn.GroupNorm(2, 4)), "module GroupNorm", "x = self.then("),
}
"""Factory, what the message says of the operation, what the line that it names holds."""
