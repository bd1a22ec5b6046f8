"""MobileNets and ResNets of blocks for few bits, as published or with the elastic choices of their families.

Kim et al., "BASQ: Branch-wise Activation-clipping Search Quantization for Sub-4-bit Neural Networks", ECCV 2022, Sec. 5
and Tables 4 and 5. The networks' sizes are those of :mod:`qnas_search_spaces.mbv2`, ``mbv1`` and ``resnet``; their
blocks, and where paper and code are silent, are in docs/low_bit_blocks.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from qnas.space import QuantScheme
from qnas_search_spaces.lowbit import (
    BLOCKS,
    FLEXCONN,
    RESIDUAL_BLOCKS,
    block_kind,
    check_widths,
    describe_unit,
    flexconn_kinds,
    role_of,
)
from qnas_search_spaces.mbv1 import MobileNetV1Space
from qnas_search_spaces.mbv2 import MobileNetV2Space
from qnas_search_spaces.outline import Block, Outline, Size
from qnas_search_spaces.resnet import ResNet18Space, ResNet20Space, ResNetSpace
from qnas_search_spaces.sizes import make_divisible

if TYPE_CHECKING:
    from torch import nn

    from qnas.nn.supernet import BuildContext

V2_UNITS = {"expand": "expansion", "depthwise": "static", "project": "reduction"}


class BasqMobileNetV2Space(MobileNetV2Space):
    """The space ``basq-mbv2``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: as of ``mbv2``.
        elastic: whether there is an architecture to search, as that of ``mbv2``.
        width, kernels, expansions, depths, resolutions: as of ``mbv2``.
        block: ``new``, or ``fracbnn``, which has no batch normalisation in front of its quantizers.
        flexconn: layers that have a skip: ``expansion`` (expanding 1x1 and head), ``static`` (depthwise),
            ``reduction`` (projecting 1x1).
        signed: convolutions take what is negative too.
    """

    label: ClassVar[str] = "basq-mbv2"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        size: str = "auto",
        elastic: bool = False,
        width: float = 1.0,
        kernels: Sequence[int] | int | None = None,
        expansions: Sequence[int] | int | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
        block: str = "new",
        flexconn: Sequence[str] | str = FLEXCONN,
        signed: bool = False,
    ) -> None:
        self.unit = {"block": block_kind(self.label, block, BLOCKS), "signed": signed}
        self.flexconn = flexconn_kinds(self.label, flexconn)
        super().__init__(
            scheme,
            image_size=image_size,
            num_classes=num_classes,
            image_channels=image_channels,
            size=size,
            elastic=elastic,
            width=width,
            kernels=kernels,
            expansions=expansions,
            depths=depths,
            resolutions=resolutions,
        )

    @property
    def _skips(self) -> tuple[str, ...]:
        return tuple(unit for unit, kind in V2_UNITS.items() if kind in self.flexconn)

    def _describe_first(self, outline: Outline, at: int) -> None:
        self._describe_units(outline, Block("first"), self.stem, None, self.first, 3, 1, at)

    def _describe_block(self, outline: Outline, block: Block, width: int, out: int, stride: int, at: int) -> None:
        kernel, expansion = f"{block.name}.kernel", f"{block.name}.expansion"
        outline.knob(kernel, self.kernels, block.active_if)
        outline.knob(expansion, self.expansions, block.active_if)
        hidden = Size((expansion,), lambda sample: make_divisible(width * int(sample[expansion])))
        self._describe_units(outline, block, width, hidden, out, Size.knob(kernel), stride, at)

    def _describe_units(
        self,
        outline: Outline,
        block: Block,
        width: int,
        hidden: Size | None,
        out: int,
        kernel: int | Size,
        stride: int,
        at: int,
    ) -> None:
        """Add the sites of :class:`qnas.nn.lowbit.LowBitInvertedResidual`; without an expanding unit for ``None``."""
        name, skips, kind = block.name, self._skips, str(self.unit["block"])
        if hidden is not None:
            describe_unit(
                outline, f"{name}.expand", width, hidden, at // stride, block=block, kind=kind, skip="expand" in skips
            )
        inner = Size.fixed(width) if hidden is None else hidden
        depthwise = f"{name}.depthwise"
        describe_unit(
            outline, depthwise, inner, inner, at, block=block, kind=kind, skip="depthwise" in skips, kernel=kernel,
            stride=stride, depthwise=True, branch=depthwise,
        )  # fmt: skip
        describe_unit(outline, f"{name}.project", inner, out, at, block=block, kind=kind, skip="project" in skips)
        if stride == 1 and width == out:
            outline.grid(f"{name}.add", out, at, block)

    def _describe_head(self, outline: Outline, width: int, at: int) -> None:
        skip, kind = "expansion" in self.flexconn, str(self.unit["block"])
        describe_unit(outline, "head", width, self.head, at, block=Block("head"), kind=kind, skip=skip)

    def torchvision_names(self) -> Mapping[str, str]:
        """Return nothing: torchvision has no network of these blocks."""
        return {}

    def _build_first(self, context: BuildContext) -> nn.Module:
        from qnas.nn.lowbit import LowBitInvertedResidual

        return LowBitInvertedResidual(
            context, "first", self.stem, self.stem, self.first, kernels=(3,), stride=1, expand=False,
            flexconn=self._skips, nonnegative=True, **self.unit,
        )  # fmt: skip

    def _build_block(self, context: BuildContext, name: str, width: int, out: int, stride: int) -> nn.Module:
        from qnas.nn.lowbit import LowBitInvertedResidual

        return LowBitInvertedResidual(
            context, name, width, self._hidden(width), out, kernels=self.kernels, stride=stride, flexconn=self._skips,
            **self.unit,
        )  # fmt: skip

    def _build_end(self, context: BuildContext, width: int) -> list[nn.Module]:
        from qnas.nn.activation import GlobalPool
        from qnas.nn.lowbit import LowBitUnit

        return [
            LowBitUnit(context, "head", width, self.head, skip="expansion" in self.flexconn, **self.unit),
            GlobalPool(),  # of what was normalised last, which is on a grid
            context.conv("classifier", self.head, self.num_classes, linear=True, output=True, signed_input=True),
        ]


class BasqMobileNetV1Space(MobileNetV1Space):
    """The space ``basq-mbv1``.

    Branches are offered at the inputs of depthwise convolutions, as in MobileNetV2: the paper does not say where they
    are in MobileNetV1.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: as of ``mbv1``.
        elastic: whether there is an architecture to search, as that of ``mbv1``.
        width, kernels, widths, depths, resolutions: as of ``mbv1``.
        block: ``new``, or ``fracbnn``, which has no batch normalisation in front of its quantizers.
        flexconn: layers that have a skip: ``static`` (depthwise, and 1x1 between equal widths), ``expansion`` and
            ``reduction`` (1x1 between others, by their largest widths).
        signed: convolutions take what is negative too.
    """

    label: ClassVar[str] = "basq-mbv1"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        size: str = "auto",
        elastic: bool = False,
        width: float = 1.0,
        kernels: Sequence[int] | int | None = None,
        widths: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
        block: str = "new",
        flexconn: Sequence[str] | str = FLEXCONN,
        signed: bool = False,
    ) -> None:
        self.unit = {"block": block_kind(self.label, block, BLOCKS), "signed": signed}
        self.flexconn = flexconn_kinds(self.label, flexconn)
        super().__init__(
            scheme,
            image_size=image_size,
            num_classes=num_classes,
            image_channels=image_channels,
            size=size,
            elastic=elastic,
            width=width,
            kernels=kernels,
            widths=widths,
            depths=depths,
            resolutions=resolutions,
        )

    def _check_widths(self, given: Sequence[float] | float | None) -> None:
        if "expansion" in self.flexconn:
            check_widths(self.label, given, [(self.stem,), *self.widths])

    def _skips(self, width: int, out: int) -> tuple[str, ...]:
        kinds = {"depthwise": "static", "pointwise": role_of(width, out)}
        return tuple(unit for unit, kind in kinds.items() if kind in self.flexconn)

    def _describe_stem(self, outline: Outline, at: int) -> None:
        super()._describe_stem(outline, at)
        outline.grid("stem.out", self.stem, at)

    def _describe_block(self, outline: Outline, block: Block, width: Size, out: Size, stride: int, at: int) -> None:
        skips = self._skips(*(max(outline.values(size))[0] for size in (width, out)))
        depthwise, kind = f"{block.name}.depthwise", str(self.unit["block"])
        describe_unit(
            outline, depthwise, width, width, at, block=block, kind=kind, skip="depthwise" in skips,
            kernel=Size.knob(f"{block.name}.kernel"), stride=stride, depthwise=True, branch=depthwise,
        )  # fmt: skip
        describe_unit(
            outline, f"{block.name}.pointwise", width, out, at, block=block, kind=kind, skip="pointwise" in skips
        )

    def _describe_pool(self, outline: Outline, width: Size, at: int) -> None:
        """Add nothing: what is pooled was normalised last, and is on a grid."""

    def torchvision_names(self) -> Mapping[str, str]:
        """Return nothing: there is no network of these blocks elsewhere."""
        return {}

    def _build_stem(self, context: BuildContext) -> nn.Module:
        return context.conv(
            "stem", self.image_channels, self.stem, kernels=(3,), stride=self.stem_stride, image=True, output=True,
            output_relu=True,
        )  # fmt: skip

    def _build_block(self, context: BuildContext, name: str, width: int, out: int, stride: int) -> nn.Module:
        from qnas.nn.lowbit import LowBitSeparable

        return LowBitSeparable(
            context, name, width, out, kernels=self.kernels, stride=stride, flexconn=self._skips(width, out),
            nonnegative=name == "stage1.block1", **self.unit,
        )  # fmt: skip

    def _build_end(self, context: BuildContext, width: int) -> list[nn.Module]:
        from qnas.nn.activation import GlobalPool

        return [
            GlobalPool(),
            context.conv("classifier", width, self.num_classes, linear=True, output=True, signed_input=True),
        ]


class _LowBitResNet(ResNetSpace):
    """What the residual spaces share; a block's convolutions have one branch name, its own."""

    unit: dict[str, Any]

    def _take(self, block: str, signed: bool) -> None:
        self.unit = {"block": block_kind(self.label, block, RESIDUAL_BLOCKS), "signed": signed}

    @property
    def _preactivation(self) -> bool:
        return bool(self.unit["block"] == "preactivation")

    def _check_widths(self, given: Sequence[float] | float | None, channels: list[tuple[int, ...]]) -> None:
        if self._preactivation:  # whose shortcuts are the family's
            super()._check_widths(given, channels)
        else:
            check_widths(self.label, given, channels)

    def _describe_block(
        self, outline: Outline, block: Block, width: Size, out: Size, stride: int, at: int, shortcut: str
    ) -> None:
        name, kind = block.name, str(self.unit["block"])
        if self._preactivation:
            outline.layer(
                f"{name}.conv1", width, out, at, kernel=3, stride=stride, block=block, branch=name,
                float_norms=("input",),
            )  # fmt: skip
            outline.layer(f"{name}.conv2", out, out, at, kernel=3, block=block, branch=name, norm=False)
            outline.grid(f"{name}.conv2.out", out, at, block)
            self._describe_sum(outline, block, width, out, stride, at, shortcut)
            return
        describe_unit(
            outline, f"{name}.conv1", width, out, at, block=block, kind=kind, kernel=3, stride=stride, branch=name
        )
        describe_unit(outline, f"{name}.conv2", out, out, at, block=block, kind=kind, kernel=3, branch=name)

    def _describe_pool(self, outline: Outline, width: Size, at: int) -> None:
        if self._preactivation:  # the last sum is normalised once more
            outline.grid("pool", width, at, float_norms=("input",))

    def torchvision_names(self) -> Mapping[str, str]:
        """Return nothing: torchvision has no network of these blocks."""
        return {}

    def _build_block(
        self, context: BuildContext, stage: int, position: int, width: int, out: int, stride: int
    ) -> nn.Module:
        from qnas.nn.lowbit import LowBitBasicBlock, PreactivationBlock

        name, first = f"stage{stage}.block{position}", stage == position == 1
        if self._preactivation:
            return PreactivationBlock(
                context, name, width, out, stride=stride, shortcut=self._shortcut(stage, position), nonnegative=first,
                signed=self.unit["signed"],
            )  # fmt: skip
        return LowBitBasicBlock(context, name, width, out, stride=stride, nonnegative=first, **self.unit)

    def _build_end(self, context: BuildContext, width: int) -> list[nn.Module]:
        from qnas.nn.activation import GlobalPool

        last = []
        if self._preactivation:
            norm = context.norm("classifier.pre", width, "classifier")
            last = [norm, context.site("pool", width, signed=False, relu=True)]
        signed = not self._preactivation
        return [
            *last,
            GlobalPool(),
            context.conv("classifier", width, self.num_classes, linear=True, output=True, signed_input=signed),
        ]


class BasqResNet20Space(_LowBitResNet, ResNet20Space):
    """The space ``basq-resnet20``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        elastic: whether there is an architecture to search, as that of ``resnet20``.
        width, widths, depths, resolutions: as of ``resnet20``.
        block: ``new``; ``fracbnn``, which has no batch normalisation in front of its quantizers; or ``preactivation``,
            with the family's shortcuts.
        signed: convolutions take what is negative too.
    """

    label: ClassVar[str] = "basq-resnet20"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        elastic: bool = False,
        width: float = 1.0,
        widths: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
        block: str = "new",
        signed: bool = False,
    ) -> None:
        self._take(block, signed)
        super().__init__(
            scheme,
            image_size=image_size,
            num_classes=num_classes,
            image_channels=image_channels,
            elastic=elastic,
            width=width,
            widths=widths,
            depths=depths,
            resolutions=resolutions,
        )


class BasqResNet18Space(_LowBitResNet, ResNet18Space):
    """The space ``basq-resnet18``.

    Args:
        scheme: bit-widths and their granularity.
        image_size: the largest resolution, in pixels.
        num_classes: outputs of the classifier.
        image_channels: channels of the images.
        size: as of ``resnet18``.
        elastic: whether there is an architecture to search, as that of ``resnet18``.
        width, widths, depths, resolutions: as of ``resnet18``.
        block: ``new``; ``fracbnn``, which has no batch normalisation in front of its quantizers; or ``preactivation``,
            with the family's shortcuts.
        signed: convolutions take what is negative too.
    """

    label: ClassVar[str] = "basq-resnet18"

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        size: str = "auto",
        elastic: bool = False,
        width: float = 1.0,
        widths: Sequence[float] | float | None = None,
        depths: Sequence[int] | int | None = None,
        resolutions: Sequence[int] | int | None = None,
        block: str = "new",
        signed: bool = False,
    ) -> None:
        self._take(block, signed)
        super().__init__(
            scheme,
            image_size=image_size,
            num_classes=num_classes,
            image_channels=image_channels,
            size=size,
            elastic=elastic,
            width=width,
            widths=widths,
            depths=depths,
            resolutions=resolutions,
        )
