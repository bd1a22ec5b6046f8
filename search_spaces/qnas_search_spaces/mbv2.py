"""MobileNetV2, as published or with elastic kernel size, expansion, depth and resolution.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
https://arxiv.org/abs/1801.04381. The elastic choices are those of Once-for-All's MobileNetV2 (Cai et al., ICLR 2020,
https://arxiv.org/abs/1908.09791), which OQAT searches too: kernel 3/5/7, expansion 3/4/6, depth 2/3/4 a stage.

Departs from the paper: ReLU for ReLU6, since the clipping of the quantizer that follows takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qnas.layers import FLOAT_BITS
from qnas.space import Knob, QuantScheme, SearchSpace, Site
from qnas_search_spaces.outline import Block, Outline, Size
from qnas_search_spaces.sizes import (
    image_sizes,
    is_small,
    kernel_sizes,
    make_divisible,
    published_only,
    whole_numbers,
    width_multiplier,
)

if TYPE_CHECKING:
    from torch import nn

    from qnas.nn.supernet import BuildContext, Supernet


@dataclass(frozen=True)
class Stage:
    """A stage of Table 2 with expansion 6: output width, blocks, stride of the first one."""

    width: int
    blocks: int
    stride: int


STEM, FIRST, HEAD = 32, 16, 1280
EXPANSION = 6
STAGES = (Stage(24, 2, 2), Stage(32, 3, 2), Stage(64, 4, 2), Stage(96, 3, 1), Stage(160, 3, 2), Stage(320, 1, 1))
# For CIFAR's images stem and first stage keep the size: https://github.com/kuangliu/pytorch-cifar
SMALL_STAGES = (Stage(24, 2, 1), *STAGES[1:])


class MobileNetV2Space(SearchSpace):
    """The space ``mbv2``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: ``large`` (the ImageNet network), ``small`` (its stem and first stage keep the size of the image), or
            ``auto``: by ``image_size``.
        elastic: whether there is an architecture to search; else the published network alone, with its bit-widths.
        width: multiplies every width; the head's only from 1 up in the large form, as published.
        kernels, expansions, depths, resolutions: choices, ascending; ``None`` takes 3/5/7, 3/4/6, 2/3/4 and the
            default of the size. The last stage has one block.
    """

    label: ClassVar[str] = "mbv2"

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
        expansions: Sequence[int] | int | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
    ) -> None:
        small = is_small(self.label, size, image_size)
        width = width_multiplier(self.label, width)
        if not elastic:
            published_only(self.label, kernels=kernels, expansions=expansions, depths=depths, resolutions=resolutions)
        self.image_channels = image_channels
        self.stem_stride = 1 if small else 2
        self.stem, self.first = make_divisible(STEM * width), make_divisible(FIRST * width)
        self.head = make_divisible(HEAD * (width if small else max(width, 1.0)))
        self.stages = tuple(
            Stage(make_divisible(s.width * width), s.blocks, s.stride) for s in (SMALL_STAGES if small else STAGES)
        )
        self.kernels = kernel_sizes(self.label, kernels, (3, 5, 7) if elastic else (3,))
        self.expansions = whole_numbers(self.label, "expansions", expansions, (3, 4, 6) if elastic else (EXPANSION,))
        given = whole_numbers(self.label, "depths", depths, (2, 3, 4))
        self.depths = tuple((s.blocks,) if not elastic or s is self.stages[-1] else given for s in self.stages)
        resolutions = image_sizes(self.label, resolutions, image_size=image_size, small=small, elastic=elastic)
        knobs, sites = self._describe(resolutions, scheme.edge_bits, num_classes)
        super().__init__(self.label, knobs, sites, scheme, image_size=resolutions[-1], num_classes=num_classes)

    def _describe(self, resolutions: tuple[int, ...], edge: int, num_classes: int) -> tuple[list[Knob], list[Site]]:
        outline, at = Outline(resolutions, edge), self.stem_stride
        outline.layer("stem", self.image_channels, self.stem, at, kernel=3, stride=self.stem_stride, bits=edge)
        outline.grid("stem.out", self.stem, at)
        self._describe_first(outline, at)
        width = self.first
        for number, (stage, depths) in enumerate(zip(self.stages, self.depths, strict=True), 1):
            name = f"stage{number}"
            at *= stage.stride
            outline.knob(f"{name}.depth", depths)
            for position in range(1, depths[-1] + 1):
                block = Block.of_stage(name, position, depths)
                stride = stage.stride if position == 1 else 1
                self._describe_block(outline, block, width, stage.width, stride, at)
                width = stage.width
        self._describe_head(outline, width, at)
        outline.layer("classifier", self.head, num_classes, 0, kind="linear", bits=edge)
        outline.grid("classifier.out", num_classes, 0)
        return outline.knobs, outline.sites

    def _describe_first(self, outline: Outline, at: int) -> None:
        """Add the sites of the block without an expanding convolution."""
        describe_inverted_residual(
            outline, Block("first"), self.stem, Size.fixed(self.stem), self.first, 3, 1, at, expand=False
        )

    def _describe_block(self, outline: Outline, block: Block, width: int, out: int, stride: int, at: int) -> None:
        """Add the knobs and sites of an elastic block."""
        describe_elastic_block(outline, block, width, out, self.kernels, self.expansions, stride, at)

    def _describe_head(self, outline: Outline, width: int, at: int) -> None:
        """Add the sites of the last convolution, up to the grid of what is pooled."""
        outline.layer("head", width, self.head, at)
        outline.grid("pool", self.head, at)

    def torchvision_names(self) -> Mapping[str, str]:
        """Return the modules of torchvision's ``mobilenet_v2`` by layer."""
        names = {"stem": "features.0.0", "stem.bn": "features.0.1", "classifier": "classifier.1"}
        names |= _block_names("first", "features.1.conv", expand=False)
        number = 2
        for stage, (published, depths) in enumerate(zip(self.stages, self.depths, strict=True), 1):
            for block in range(1, min(published.blocks, depths[-1]) + 1):
                names |= _block_names(f"stage{stage}.block{block}", f"features.{number + block - 1}.conv")
            number += published.blocks
        return names | {"head": f"features.{number}.0", "head.bn": f"features.{number}.1"}

    def build(self, context: BuildContext) -> Supernet:
        """Build the supernet: stem, first block, stages, head, pooling, classifier."""
        from qnas.nn.supernet import Supernet

        stem = context.conv(
            "stem", self.image_channels, self.stem, kernels=(3,), stride=self.stem_stride, image=True, output=True,
            output_relu=True,
        )  # fmt: skip
        parts: list[nn.Module] = [stem, self._build_first(context)]
        width = self.first
        for number, (stage, depths) in enumerate(zip(self.stages, self.depths, strict=True), 1):
            for position in range(1, depths[-1] + 1):
                stride = stage.stride if position == 1 else 1
                parts.append(self._build_block(context, f"stage{number}.block{position}", width, stage.width, stride))
                width = stage.width
        return Supernet(self, [*parts, *self._build_end(context, width)])

    def _build_first(self, context: BuildContext) -> nn.Module:
        from qnas.nn.blocks import InvertedResidual

        return InvertedResidual(
            context, "first", self.stem, self.stem, self.first, kernels=(3,), stride=1, act="relu", se_hidden=0,
            expand=False, signed_input=False,
        )  # fmt: skip

    def _build_block(self, context: BuildContext, name: str, width: int, out: int, stride: int) -> nn.Module:
        from qnas.nn.blocks import InvertedResidual

        return InvertedResidual(
            context, name, width, self._hidden(width), out, kernels=self.kernels, stride=stride, act="relu",
            se_hidden=0,
        )  # fmt: skip

    def _build_end(self, context: BuildContext, width: int) -> list[nn.Module]:
        """Return the last convolution and what follows it."""
        from qnas.nn.activation import GlobalPool

        return [
            context.conv("head", width, self.head, signed_input=True, passthrough_bits=context.edge_bits),
            context.site("pool", self.head, signed=False, relu=True),
            GlobalPool(),
            context.conv("classifier", self.head, self.num_classes, linear=True, output=True),
        ]

    def _hidden(self, width: int) -> int:
        """Return the most channels that an expanding convolution makes of ``width``."""
        return make_divisible(width * self.expansions[-1])


def _block_names(ours: str, theirs: str, *, expand: bool = True) -> dict[str, str]:
    """Return the names of one block; torchvision's is a chain of triples (conv, BN, ReLU6), a conv and a BN."""
    layers = ("expand", "depthwise") if expand else ("depthwise",)
    names = {}
    for i, layer in enumerate(layers):
        names |= {f"{ours}.{layer}": f"{theirs}.{i}.0", f"{ours}.{layer}.bn": f"{theirs}.{i}.1"}
    last = len(layers)
    return names | {f"{ours}.project": f"{theirs}.{last}", f"{ours}.project.bn": f"{theirs}.{last + 1}"}


def describe_elastic_block(
    outline: Outline,
    block: Block,
    in_channels: int,
    out_channels: int,
    kernels: tuple[int, ...],
    expansions: tuple[int, ...],
    stride: int,
    at: int,
    *,
    relu: bool = True,
    se: bool = False,
) -> None:
    """Add the knobs ``kernel`` and ``expansion`` of a block, and its sites."""
    kernel, expansion = f"{block.name}.kernel", f"{block.name}.expansion"
    outline.knob(kernel, kernels, block.active_if)
    outline.knob(expansion, expansions, block.active_if)
    hidden = Size((expansion,), lambda sample: make_divisible(in_channels * int(sample[expansion])))
    describe_inverted_residual(
        outline, block, in_channels, hidden, out_channels, Size.knob(kernel), stride, at, relu=relu, se=se
    )


def describe_inverted_residual(
    outline: Outline,
    block: Block,
    in_channels: int,
    hidden: Size,
    out_channels: int,
    kernel: int | Size,
    stride: int,
    at: int,
    *,
    expand: bool = True,
    relu: bool = True,
    se: bool = False,
) -> None:
    """Add the sites of :class:`qnas.nn.blocks.InvertedResidual`, in the order of the data's way.

    Args:
        at: by how much the image is larger than the block's output.
        expand: whether there is an expanding convolution.
        relu: else h-swish, which wants its input on a grid.
        se: whether there is squeeze-excite, of a quarter of the hidden channels.
    """
    name, before = block.name, at // stride
    if expand:
        outline.layer(f"{name}.expand", in_channels, hidden, before, block=block)
        if not relu:
            outline.grid(f"{name}.expand.out", hidden, before, block)
    outline.layer(
        f"{name}.depthwise", hidden, hidden, at, kernel=kernel, stride=stride, depthwise=True, block=block,
        branch=f"{name}.depthwise",
    )  # fmt: skip
    if se or not relu:
        outline.grid(f"{name}.depthwise.out", hidden, at, block)
    if se:
        squeezed = Size(hidden.labels, lambda sample: make_divisible(hidden.of(sample) // 4))
        outline.layer(f"{name}.se.reduce", hidden, squeezed, 0, bits=FLOAT_BITS, block=block)
        outline.layer(f"{name}.se.expand", squeezed, hidden, 0, bits=FLOAT_BITS, block=block)
    outline.layer(f"{name}.project", hidden, out_channels, at, block=block)
    outline.grid(f"{name}.project.out", out_channels, at, block)
    if stride == 1 and in_channels == out_channels:
        outline.grid(f"{name}.add", out_channels, at, block)
