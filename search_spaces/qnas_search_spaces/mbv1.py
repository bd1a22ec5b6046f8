"""MobileNetV1, as published or with elastic kernel size, widths, depth and resolution.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861. A stage's width is a prefix of its channels, as in slimmable networks (Yu et al.,
ICLR 2019, https://arxiv.org/abs/1812.08928); BASQ searches the published network's bit-widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qnas.space import Knob, QuantScheme, SearchSpace, Site
from qnas_search_spaces.outline import Block, Outline, Size
from qnas_search_spaces.sizes import (
    image_sizes,
    is_small,
    kernel_sizes,
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
    """The blocks of Table 1 that have one output width: the width, their number, stride of the first one."""

    width: int
    blocks: int
    stride: int


STEM = 32
STAGES = (Stage(64, 1, 1), Stage(128, 2, 2), Stage(256, 2, 2), Stage(512, 6, 2), Stage(1024, 2, 2))
DEEP = 4  # the stage whose depth is elastic


class MobileNetV1Space(SearchSpace):
    """The space ``mbv1``.

    A knob ``stage1.width`` counts channels: those that the share of the stage's largest width rounds to.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: ``large`` (the ImageNet network), ``small`` (its stem keeps the size of the image, as for CIFAR in
            https://github.com/kuangliu/pytorch-cifar), or ``auto``: by ``image_size``.
        elastic: whether there is an architecture to search; else the published network alone, with its bit-widths.
        width: multiplies every width (the paper's alpha).
        kernels, widths, depths, resolutions: choices, ascending; ``None`` takes 3/5/7, the shares 0.5/0.75/1, 2/4/6
            blocks of 512 channels (the published network has 6), and the default of the size.
    """

    label: ClassVar[str] = "mbv1"

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
        kernels: Sequence[int] | int | None = None,
        widths: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
    ) -> None:
        small = is_small(self.label, size, image_size)
        width = width_multiplier(self.label, width)
        if not elastic:
            published_only(self.label, kernels=kernels, widths=widths, depths=depths, resolutions=resolutions)
        self.image_channels = image_channels
        self.stem_stride = 1 if small else 2
        self.stem = make_divisible(STEM * width)
        self.kernels = kernel_sizes(self.label, kernels, (3, 5, 7) if elastic else (3,))
        largest = [make_divisible(stage.width * width) for stage in STAGES]
        self.widths = stage_widths(self.label, widths, (0.5, 0.75, 1.0) if elastic else (1.0,), largest)
        self._check_widths(widths)
        deep = whole_numbers(self.label, "depths", depths, (2, 4, 6) if elastic else (STAGES[DEEP - 1].blocks,))
        self.depths = [deep if number == DEEP else (stage.blocks,) for number, stage in enumerate(STAGES, 1)]
        resolutions = image_sizes(self.label, resolutions, image_size=image_size, small=small, elastic=elastic)
        knobs, sites = self._describe(resolutions, scheme.edge_bits, num_classes)
        super().__init__(self.label, knobs, sites, scheme, image_size=resolutions[-1], num_classes=num_classes)

    def _check_widths(self, given: Sequence[float] | float | None) -> None:
        """Raise ``ConfigError`` where skips cannot lead from one stage to the next."""

    def _describe(self, resolutions: tuple[int, ...], edge: int, num_classes: int) -> tuple[list[Knob], list[Site]]:
        outline, at = Outline(resolutions, edge), self.stem_stride
        self._describe_stem(outline, at)
        width = Size.fixed(self.stem)
        for number, (stage, widths, depths) in enumerate(zip(STAGES, self.widths, self.depths, strict=True), 1):
            name = f"stage{number}"
            at *= stage.stride
            outline.knob(f"{name}.width", widths)
            if number == DEEP:
                outline.knob(f"{name}.depth", depths)
            out = Size.knob(f"{name}.width")
            for position in range(1, depths[-1] + 1):
                block = Block.of_stage(name, position, depths)
                outline.knob(f"{block.name}.kernel", self.kernels, block.active_if)
                self._describe_block(outline, block, width, out, stage.stride if position == 1 else 1, at)
                width = out
        self._describe_pool(outline, width, at)
        outline.layer("classifier", width, num_classes, 0, kind="linear", bits=edge)
        outline.grid("classifier.out", num_classes, 0)
        return outline.knobs, outline.sites

    def _describe_stem(self, outline: Outline, at: int) -> None:
        """Add the sites of the first convolution, which is all of ``at`` by now."""
        outline.layer("stem", self.image_channels, self.stem, at, kernel=3, stride=at, bits=outline.edge_bits)

    def _describe_block(self, outline: Outline, block: Block, width: Size, out: Size, stride: int, at: int) -> None:
        """Add the sites of a block."""
        outline.layer(
            f"{block.name}.depthwise", width, width, at, kernel=Size.knob(f"{block.name}.kernel"), stride=stride,
            depthwise=True, block=block, branch=f"{block.name}.depthwise",
        )  # fmt: skip
        outline.layer(f"{block.name}.pointwise", width, out, at, block=block)

    def _describe_pool(self, outline: Outline, width: Size, at: int) -> None:
        """Add the grid of what is pooled."""
        outline.grid("pool", width, at)

    def torchvision_names(self) -> Mapping[str, str]:
        """Return the modules by layer. torchvision has no MobileNetV1: these are https://github.com/marvis/pytorch-mobilenet's."""
        names = {"stem": "model.0.0", "stem.bn": "model.0.1", "classifier": "fc"}
        first = 1
        for number, (stage, depths) in enumerate(zip(STAGES, self.depths, strict=True), 1):
            for block in range(1, min(stage.blocks, depths[-1]) + 1):
                ours, theirs = f"stage{number}.block{block}", f"model.{first + block - 1}"
                names |= {f"{ours}.depthwise": f"{theirs}.0", f"{ours}.depthwise.bn": f"{theirs}.1"}
                names |= {f"{ours}.pointwise": f"{theirs}.3", f"{ours}.pointwise.bn": f"{theirs}.4"}
            first += stage.blocks
        return names

    def build(self, context: BuildContext) -> Supernet:
        """Build the supernet: stem, stages, pooling, classifier."""
        from qnas.nn.supernet import Supernet

        width = self.stem
        parts = [self._build_stem(context)]
        for number, (stage, widths, depths) in enumerate(zip(STAGES, self.widths, self.depths, strict=True), 1):
            for position in range(1, depths[-1] + 1):
                name, stride = f"stage{number}.block{position}", stage.stride if position == 1 else 1
                parts.append(self._build_block(context, name, width, widths[-1], stride))
                width = widths[-1]
        return Supernet(self, [*parts, *self._build_end(context, width)])

    def _build_stem(self, context: BuildContext) -> nn.Module:
        return context.conv("stem", self.image_channels, self.stem, kernels=(3,), stride=self.stem_stride, image=True)

    def _build_block(self, context: BuildContext, name: str, width: int, out: int, stride: int) -> nn.Module:
        from qnas.nn.blocks import DepthwiseSeparable

        return DepthwiseSeparable(context, name, width, out, kernels=self.kernels, stride=stride)

    def _build_end(self, context: BuildContext, width: int) -> list[nn.Module]:
        """Return what follows the last block."""
        from qnas.nn.activation import GlobalPool

        return [
            context.site("pool", width, signed=False, relu=True),
            GlobalPool(),
            context.conv("classifier", width, self.num_classes, linear=True, output=True),
        ]
