"""MobileNetV3 with elastic kernel size, expansion, depth and resolution.

Howard et al., "Searching for MobileNetV3", ICCV 2019, https://arxiv.org/abs/1905.02244; the space is that of
Once-for-All (Cai et al., ICLR 2020, https://arxiv.org/abs/1908.09791), which OQAT (Shen et al., ICCV 2021) searches
at low bit-widths: kernel 3/5/7, expansion 3/4/6, depth 2/3/4 a stage, resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qnas.errors import ConfigError
from qnas.space import Knob, QuantScheme, SearchSpace, Site
from qnas_search_spaces.mbv2 import describe_elastic_block, describe_inverted_residual
from qnas_search_spaces.outline import Block, Outline, Size
from qnas_search_spaces.sizes import image_sizes, is_small, kernel_sizes, make_divisible, whole_numbers

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext, Supernet

ACTS = ("auto", "relu", "h-swish")


@dataclass(frozen=True)
class Stage:
    """A stage: output width, stride of its first block, activation function, squeeze-excite."""

    width: int
    stride: int
    act: str
    se: bool


@dataclass(frozen=True)
class Shape:
    """All sizes of the family that are not searched.

    Attributes:
        stem: width of the first convolution, which has stride 2.
        first_width, first_stride: of the block without expansion that follows.
        stages: the elastic ones.
        head: width of the last convolution before pooling.
        features: width of the layer between pooling and classifier.
    """

    stem: int
    first_width: int
    first_stride: int
    stages: tuple[Stage, ...]
    head: int
    features: int


# Once-for-All's MobileNetV3 at width 1.0.
LARGE = Shape(
    16,
    16,
    1,
    (
        Stage(24, 2, "relu", False),
        Stage(40, 2, "relu", True),
        Stage(80, 2, "h-swish", False),
        Stage(112, 1, "h-swish", True),
        Stage(160, 2, "h-swish", True),
    ),
    960,
    1280,
)
# The same plan for images of 16 to 64 pixels: the stem halves them, two stages halve them again.
SMALL = Shape(
    16,
    16,
    1,
    (Stage(24, 2, "relu", False), Stage(32, 2, "h-swish", True)),
    96,
    128,
)


class MobileNetV3Space(SearchSpace):
    """The space ``mbv3``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: ``small``, ``large``, or ``auto``: by ``image_size``.
        se: whether stages that MobileNetV3 gives squeeze-excite have it.
        act: ``h-swish`` where MobileNetV3 has it (``auto``), nowhere (``relu``), or everywhere (``h-swish``).
        kernels, expansions, depths, resolutions: choices, ascending; ``None`` takes the default of the size.
    """

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        size: str = "auto",
        se: bool = True,
        act: str = "auto",
        kernels: Sequence[int] | int = (3, 5, 7),
        expansions: Sequence[int] | int = (3, 4, 6),
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
    ) -> None:
        small = is_small("mbv3", size, image_size)
        if act not in ACTS:
            raise ConfigError(
                f"Space mbv3: act must be one of {', '.join(ACTS)}; given: {act!r}. Change [space.options] or --act."
            )
        self.shape = SMALL if small else LARGE
        self.se = se
        self.act = act
        self.image_channels = image_channels
        self.kernels = kernel_sizes("mbv3", kernels, (3, 5, 7))
        self.expansions = whole_numbers("mbv3", "expansions", expansions, (3, 4, 6))
        self.depths = whole_numbers("mbv3", "depths", depths, (1, 2, 3) if small else (2, 3, 4))
        self.resolutions = image_sizes("mbv3", resolutions, image_size=image_size, small=small)
        knobs, sites = self._describe(scheme.edge_bits, num_classes)
        super().__init__("mbv3", knobs, sites, scheme, image_size=self.resolutions[-1], num_classes=num_classes)

    # --- description -------------------------------------------------------------------------------------------

    def _act(self, stage: Stage) -> str:
        return stage.act if self.act == "auto" else self.act

    @property
    def _head_act(self) -> str:
        return "h-swish" if self.act == "auto" else self.act

    def _describe(self, edge: int, num_classes: int) -> tuple[list[Knob], list[Site]]:
        shape, outline = self.shape, Outline(self.resolutions, edge)
        relu = self._head_act == "relu"
        outline.layer("stem", self.image_channels, shape.stem, 2, kernel=3, stride=2, bits=edge)
        outline.grid("stem.out", shape.stem, 2)
        if not relu:
            outline.grid("stem.act", shape.stem, 2)
        at, stride = 2 * shape.first_stride, shape.first_stride
        describe_inverted_residual(
            outline, Block("first"), shape.stem, Size.fixed(shape.stem), shape.first_width, 3, stride, at, expand=False
        )
        width = shape.first_width
        for number, stage in enumerate(shape.stages, 1):
            at *= stage.stride
            name = f"stage{number}"
            outline.knob(f"{name}.depth", self.depths)
            for position in range(1, self.depths[-1] + 1):
                describe_elastic_block(
                    outline,
                    Block.of_stage(name, position, self.depths),
                    width,
                    stage.width,
                    self.kernels,
                    self.expansions,
                    stage.stride if position == 1 else 1,
                    at,
                    relu=self._act(stage) == "relu",
                    se=stage.se and self.se,
                )
                width = stage.width
        outline.layer("head", width, shape.head, at)
        if not relu:
            outline.grid("head.out", shape.head, at)
        outline.grid("pool", shape.head, at)
        outline.layer("features", shape.head, shape.features, 0, norm=False)
        if not relu:
            outline.grid("features.out", shape.features, 0)
        outline.layer("classifier", shape.features, num_classes, 0, kind="linear", bits=edge)
        outline.grid("classifier.out", num_classes, 0)
        return outline.knobs, outline.sites

    # --- network -----------------------------------------------------------------------------------------------

    def build(self, context: BuildContext) -> Supernet:
        """Build the supernet: stem, first block, elastic stages, head, pooling, features, classifier."""
        from torch import nn

        from qnas.nn.activation import GlobalPool, HardSwish
        from qnas.nn.blocks import InvertedResidual
        from qnas.nn.supernet import Supernet

        shape = self.shape
        relu = self._head_act == "relu"
        parts: list[nn.Module] = [
            context.conv(
                "stem", self.image_channels, shape.stem, kernels=(3,), stride=2, image=True, output=True,
                output_relu=relu,
            )
        ]  # fmt: skip
        if not relu:  # the first block's skip needs its input on a grid
            parts += [HardSwish(), context.site("stem.act", shape.stem, signed=True)]
        parts.append(
            InvertedResidual(
                context,
                "first",
                shape.stem,
                shape.stem,
                shape.first_width,
                kernels=(3,),
                stride=shape.first_stride,
                act="relu",
                se_hidden=0,
                expand=False,
                signed_input=not relu,
            )
        )
        width = shape.first_width
        for number, stage in enumerate(shape.stages, 1):
            for block in range(1, self.depths[-1] + 1):
                hidden = make_divisible(width * self.expansions[-1])
                parts.append(
                    InvertedResidual(
                        context,
                        f"stage{number}.block{block}",
                        width,
                        hidden,
                        stage.width,
                        kernels=self.kernels,
                        stride=stage.stride if block == 1 else 1,
                        act=self._act(stage),
                        se_hidden=make_divisible(hidden // 4) if stage.se and self.se else 0,
                    )
                )
                width = stage.width
        parts.append(context.conv("head", width, shape.head, signed_input=True, passthrough_bits=context.edge_bits,
                                  output=not relu))  # fmt: skip
        if not relu:
            parts.append(HardSwish())
        parts += [context.site("pool", shape.head, signed=not relu, relu=relu), GlobalPool()]
        parts.append(
            context.conv("features", shape.head, shape.features, signed_input=not relu, norm=False, output=not relu)
        )
        if not relu:
            parts.append(HardSwish())
        parts.append(
            context.conv(
                "classifier", shape.features, self.num_classes, input_relu=relu, signed_input=not relu, linear=True,
                output=True,
            )
        )  # fmt: skip
        return Supernet(self, parts)
