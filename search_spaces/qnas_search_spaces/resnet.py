"""Residual networks, as published or with elastic depth, widths, bottleneck expansion and resolution.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385: ResNet-20 for
CIFAR (Sec. 4.2, shortcuts without parameters), ResNet-18 and ResNet-50 for ImageNet (Table 1, stride in the 3x3
convolution as in torchvision). The elastic choices of ResNet-50 are those of Once-for-All's (Cai et al., ICLR 2020,
https://arxiv.org/abs/1908.09791), but for its elastic stem. A narrower stage is a prefix of its channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from qnas.errors import ConfigError
from qnas.space import Knob, QuantScheme, SearchSpace, Site
from qnas_search_spaces.outline import Block, Outline, Size
from qnas_search_spaces.sizes import (
    choices,
    image_sizes,
    is_small,
    make_divisible,
    published_only,
    stage_widths,
    whole_numbers,
    width_multiplier,
)

if TYPE_CHECKING:
    from torch import nn

    from qnas.nn.supernet import BuildContext, Supernet


@dataclass(frozen=True)
class Stage:
    """A stage: width of its output, blocks, stride of the first one."""

    width: int
    blocks: int
    stride: int


@dataclass(frozen=True)
class Shape:
    """All sizes of one network that are not searched.

    Attributes:
        stem: width of the first convolution.
        stem_kernel, stem_stride: of the first convolution.
        pool: whether max pooling 3x3 with stride 2 follows it.
        stages: in order.
        shortcut: where a block changes the tensor's shape: ``conv`` or ``pad``.
        expansion: hidden channels of a bottleneck as a share of its output; 0 for basic blocks.
        classifier: its name in torchvision's layout.
    """

    stem: int
    stem_kernel: int
    stem_stride: int
    pool: bool
    stages: tuple[Stage, ...]
    shortcut: str
    expansion: float = 0.0
    classifier: str = "fc"

    def small(self) -> Shape:
        """Return the form for CIFAR's images: a 3x3 stem that keeps the size, no pooling."""
        return replace(self, stem_kernel=3, stem_stride=1, pool=False)

    def scaled(self, width: float) -> Shape:
        """Return the shape with every width multiplied."""
        stages = tuple(replace(stage, width=make_divisible(stage.width * width)) for stage in self.stages)
        return replace(self, stem=make_divisible(self.stem * width), stages=stages)


RESNET20 = Shape(16, 3, 1, False, (Stage(16, 3, 1), Stage(32, 3, 2), Stage(64, 3, 2)), "pad", classifier="linear")
RESNET18 = Shape(64, 7, 2, True, (Stage(64, 2, 1), Stage(128, 2, 2), Stage(256, 2, 2), Stage(512, 2, 2)), "conv")
RESNET50 = Shape(
    64, 7, 2, True, (Stage(256, 3, 1), Stage(512, 4, 2), Stage(1024, 6, 2), Stage(2048, 3, 2)), "conv", 0.25
)


class ResNetSpace(SearchSpace):
    """What the three spaces share.

    A knob ``stage1.width`` counts the channels between the stage's blocks: those that the share of its largest width
    rounds to. Without bottlenecks the first convolution has the first stage's width, since nothing changes it between.

    Args:
        name: of the space.
        shape: of the network, scaled.
        scheme: bit-widths and their granularity.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        widths: channels of each stage, ascending.
        depths: blocks of each stage, ascending.
        expansions: of bottlenecks, ascending; empty for basic blocks.
        resolutions: in pixels, ascending.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        scheme: QuantScheme,
        num_classes: int,
        image_channels: int,
        *,
        widths: list[tuple[int, ...]],
        depths: list[tuple[int, ...]],
        expansions: tuple[float, ...],
        resolutions: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self.image_channels = image_channels
        self.widths = widths
        self.depths = depths
        self.expansions = expansions
        knobs, sites = self._describe(resolutions, scheme.edge_bits, num_classes)
        super().__init__(name, knobs, sites, scheme, image_size=resolutions[-1], num_classes=num_classes)

    def _check_widths(self, given: Sequence[float] | float | None, channels: list[tuple[int, ...]]) -> None:
        """Raise ``ConfigError`` where skips cannot lead from one stage to the next."""

    def _shortcut(self, stage: int, position: int) -> str:
        """Return the kind of shortcut of a block; both numbers from 1."""
        if position > 1 or (stage == 1 and not self.shape.expansion):
            return "identity"
        return self.shape.shortcut

    def _describe(self, resolutions: tuple[int, ...], edge: int, num_classes: int) -> tuple[list[Knob], list[Site]]:
        shape, outline = self.shape, Outline(resolutions, edge)
        width = Size.fixed(shape.stem) if shape.expansion else Size.knob("stage1.width")
        at = shape.stem_stride
        outline.layer("stem", self.image_channels, width, at, kernel=shape.stem_kernel, stride=at, bits=edge)
        outline.grid("stem.out", width, at)
        at *= 2 if shape.pool else 1
        for number, (stage, widths, depths) in enumerate(zip(shape.stages, self.widths, self.depths, strict=True), 1):
            name = f"stage{number}"
            at *= stage.stride
            outline.knob(f"{name}.width", widths)
            outline.knob(f"{name}.depth", depths)
            out = Size.knob(f"{name}.width")
            for position in range(1, depths[-1] + 1):
                block = Block.of_stage(name, position, depths)
                stride = stage.stride if position == 1 else 1
                self._describe_block(outline, block, width, out, stride, at, self._shortcut(number, position))
                width = out
        self._describe_pool(outline, width, at)
        outline.layer("classifier", width, num_classes, 0, kind="linear", bits=edge)
        outline.grid("classifier.out", num_classes, 0)
        return outline.knobs, outline.sites

    def _describe_pool(self, outline: Outline, width: Size, at: int) -> None:
        """Add what stands between the last block and pooling: nothing, its sum is on a grid."""

    def _describe_block(
        self, outline: Outline, block: Block, width: Size, out: Size, stride: int, at: int, shortcut: str
    ) -> None:
        """Add the sites of :class:`qnas.nn.residual.BasicBlock` or ``Bottleneck``."""
        name = block.name
        if self.shape.expansion:
            label = f"{name}.expansion"
            outline.knob(label, self.expansions, block.active_if)
            hidden = Size((*out.labels, label), lambda sample: make_divisible(out.of(sample) * float(sample[label])))
            outline.layer(f"{name}.conv1", width, hidden, at // stride, block=block, branch=name)
            outline.layer(f"{name}.conv2", hidden, hidden, at, kernel=3, stride=stride, block=block, branch=name)
            outline.layer(f"{name}.conv3", hidden, out, at, block=block, branch=name)
            outline.grid(f"{name}.conv3.out", out, at, block)
        else:
            outline.layer(f"{name}.conv1", width, out, at, kernel=3, stride=stride, block=block, branch=name)
            outline.layer(f"{name}.conv2", out, out, at, kernel=3, block=block, branch=name)
            outline.grid(f"{name}.conv2.out", out, at, block)
        self._describe_sum(outline, block, width, out, stride, at, shortcut)

    def _describe_sum(
        self, outline: Outline, block: Block, width: Size, out: Size, stride: int, at: int, shortcut: str
    ) -> None:
        """Add the sites of a block's shortcut and sum."""
        name = block.name
        if shortcut == "conv":
            outline.layer(f"{name}.downsample", width, out, at, stride=stride, block=block, branch=name)
            outline.grid(f"{name}.downsample.out", out, at, block)
        outline.grid(f"{name}.add", out, at, block)

    def torchvision_names(self) -> Mapping[str, str]:
        """Return the modules of torchvision's network by layer.

        torchvision has no ResNet-20; its names are those of https://github.com/akamaster/pytorch_resnet_cifar10, which
        has torchvision's but for the classifier.
        """
        names = {"stem": "conv1", "stem.bn": "bn1", "classifier": self.shape.classifier}
        convolutions = 3 if self.shape.expansion else 2
        for stage, depths in enumerate(self.depths, 1):
            for block in range(1, depths[-1] + 1):
                ours, theirs = f"stage{stage}.block{block}", f"layer{stage}.{block - 1}"
                for i in range(1, convolutions + 1):
                    names |= {f"{ours}.conv{i}": f"{theirs}.conv{i}", f"{ours}.conv{i}.bn": f"{theirs}.bn{i}"}
                if self._shortcut(stage, block) == "conv":
                    names[f"{ours}.downsample"] = f"{theirs}.downsample.0"
                    names[f"{ours}.downsample.bn"] = f"{theirs}.downsample.1"
        return names

    def build(self, context: BuildContext) -> Supernet:
        """Build the supernet: stem, stages, pooling, classifier."""
        from torch import nn

        from qnas.nn.supernet import Supernet

        shape = self.shape
        width = shape.stem if shape.expansion else self.widths[0][-1]
        stem = context.conv(
            "stem", self.image_channels, width, kernels=(shape.stem_kernel,), stride=shape.stem_stride, image=True,
            output=True, output_relu=True,
        )  # fmt: skip
        parts: list[nn.Module] = [stem, *([nn.MaxPool2d(3, 2, 1)] if shape.pool else [])]
        for number, (stage, widths, depths) in enumerate(zip(shape.stages, self.widths, self.depths, strict=True), 1):
            for position in range(1, depths[-1] + 1):
                stride = stage.stride if position == 1 else 1
                parts.append(self._build_block(context, number, position, width, widths[-1], stride))
                width = widths[-1]
        return Supernet(self, [*parts, *self._build_end(context, width)])

    def _build_end(self, context: BuildContext, width: int) -> list[nn.Module]:
        """Return what follows the last block."""
        from qnas.nn.activation import GlobalPool

        return [
            GlobalPool(),  # of the last sum, which is on a grid
            context.conv("classifier", width, self.num_classes, linear=True, output=True),
        ]

    def _build_block(
        self, context: BuildContext, stage: int, position: int, width: int, out: int, stride: int
    ) -> nn.Module:
        from qnas.nn.residual import BasicBlock, Bottleneck

        name, shortcut = f"stage{stage}.block{position}", self._shortcut(stage, position)
        if not self.shape.expansion:
            return BasicBlock(context, name, width, out, stride=stride, shortcut=shortcut)
        hidden = make_divisible(out * self.expansions[-1])
        return Bottleneck(context, name, width, hidden, out, stride=stride, shortcut=shortcut)


class ResNet20Space(ResNetSpace):
    """The space ``resnet20``, for images of 32 pixels and about as many.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        elastic: whether there is an architecture to search; else the published network alone, with its bit-widths.
        width: multiplies every width.
        widths, depths, resolutions: choices, ascending; ``None`` takes the shares 0.5/0.75/1 of a stage's channels, 1
            to 3 blocks a stage, and three quarters and all of the image.
    """

    label: ClassVar[str] = "resnet20"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        elastic: bool = True,
        width: float = 1.0,
        widths: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
    ) -> None:
        name, shape = self.label, RESNET20.scaled(width_multiplier(self.label, width))
        if not elastic:
            published_only(name, widths=widths, depths=depths, resolutions=resolutions)
        channels = _widths(name, shape, widths, (0.5, 0.75, 1.0), elastic=elastic)
        self._check_widths(widths, channels)
        super().__init__(
            name,
            shape,
            scheme,
            num_classes,
            image_channels,
            widths=channels,
            depths=_depths(name, shape, depths, elastic=elastic),
            expansions=(),
            resolutions=image_sizes(name, resolutions, image_size=image_size, small=True, elastic=elastic),
        )

    def _check_widths(self, given: Sequence[float] | float | None, channels: list[tuple[int, ...]]) -> None:
        for before, after in pairwise(channels):
            if after[0] < before[-1]:
                raise ConfigError(
                    f"Space {self.label}: widths {given!r} let a stage have {after[0]} channels after one with "
                    f"{before[-1]}, and its shortcuts can add channels of zeros, but not leave channels out. Give "
                    "shares that are at most a factor of 2 apart, such as widths = [0.5, 0.75, 1.0]."
                )


class ResNet18Space(ResNetSpace):
    """The space ``resnet18``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: ``large`` (the ImageNet network), ``small`` (3x3 stem that keeps the size of the image, no max pooling),
            or ``auto``: by ``image_size``.
        elastic: whether there is an architecture to search; else the published network alone, with its bit-widths.
        width: multiplies every width.
        widths, depths, resolutions: choices, ascending; ``None`` takes the shares 0.5/0.75/1 of a stage's channels, 1
            or 2 blocks a stage, and the default of the size.
    """

    label: ClassVar[str] = "resnet18"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        size: str = "auto",
        elastic: bool = True,
        width: float = 1.0,
        widths: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
    ) -> None:
        name, small = self.label, is_small(self.label, size, image_size)
        shape = (RESNET18.small() if small else RESNET18).scaled(width_multiplier(name, width))
        if not elastic:
            published_only(name, widths=widths, depths=depths, resolutions=resolutions)
        channels = _widths(name, shape, widths, (0.5, 0.75, 1.0), elastic=elastic)
        self._check_widths(widths, channels)
        super().__init__(
            name,
            shape,
            scheme,
            num_classes,
            image_channels,
            widths=channels,
            depths=_depths(name, shape, depths, elastic=elastic),
            expansions=(),
            resolutions=image_sizes(name, resolutions, image_size=image_size, small=small, elastic=elastic),
        )


class ResNet50Space(ResNetSpace):
    """The space ``resnet50``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: ``large`` (the ImageNet network), ``small`` (3x3 stem that keeps the size of the image, no max pooling),
            or ``auto``: by ``image_size``.
        elastic: whether there is an architecture to search; else the published network alone, with its bit-widths.
        width: multiplies every width.
        widths, expansions, depths, resolutions: choices, ascending; ``None`` takes Once-for-All's: the shares
            0.65/0.8/1 of a stage's output channels, bottlenecks of 0.2/0.25/0.35 of them (0.25 is published), up to two
            blocks fewer than published; and the default of the size. ``depths`` beyond a stage's blocks mean all of
            them.
    """

    label: ClassVar[str] = "resnet50"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        size: str = "auto",
        elastic: bool = True,
        width: float = 1.0,
        widths: Sequence[float] | float | None = None,
        expansions: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
    ) -> None:
        name, small = self.label, is_small(self.label, size, image_size)
        shape = (RESNET50.small() if small else RESNET50).scaled(width_multiplier(name, width))
        if not elastic:
            published_only(name, widths=widths, expansions=expansions, depths=depths, resolutions=resolutions)
        default = (0.2, 0.25, 0.35) if elastic else (shape.expansion,)
        super().__init__(
            name,
            shape,
            scheme,
            num_classes,
            image_channels,
            widths=_widths(name, shape, widths, (0.65, 0.8, 1.0), elastic=elastic),
            depths=_depths(name, shape, depths, elastic=elastic, fewer=2),
            expansions=choices(name, "expansions", expansions, default, lambda e: 0 < e <= 1),
            resolutions=image_sizes(name, resolutions, image_size=image_size, small=small, elastic=elastic),
        )


def _widths(
    name: str, shape: Shape, given: Sequence[float] | float | None, default: tuple[float, ...], *, elastic: bool
) -> list[tuple[int, ...]]:
    return stage_widths(name, given, default if elastic else (1.0,), [stage.width for stage in shape.stages])


def _depths(
    name: str, shape: Shape, given: Sequence[int] | int | None, *, elastic: bool, fewer: int | None = None
) -> list[tuple[int, ...]]:
    """Return the depths of each stage; by default from 1, or ``fewer`` than published, to all blocks."""
    blocks = [stage.blocks for stage in shape.stages]
    if not elastic:
        return [(n,) for n in blocks]
    if given is None:
        return [tuple(range(1 if fewer is None else max(1, n - fewer), n + 1)) for n in blocks]
    most = max(blocks)
    values = whole_numbers(name, "depths", given, range(1, most + 1), lambda d: 1 <= d <= most)
    return [tuple(sorted({min(d, n) for d in values})) for n in blocks]
