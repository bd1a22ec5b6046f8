"""Blocks for few bits: every layer has a skip in high precision, and a batch normalisation in front of its quantizer.

Kim et al., "BASQ: Branch-wise Activation-clipping Search Quantization for Sub-4-bit Neural Networks", ECCV 2022,
Sec. 5.1, with FracBNN's block beside it (Zhang et al., FPGA 2021, https://arxiv.org/abs/2012.12206) and the
pre-activation block (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016,
https://arxiv.org/abs/1603.05027). Each is elastic, and extracts its static twin; docs/low_bit_blocks.md draws them.

What passes between blocks has been normalised last, so it can be negative. Quantizers see it cut at zero unless they
are asked for signed codes, as in paper and code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from qnas.nn.elastic import ElasticConv
from qnas.nn.flexconn import Flexconn
from qnas.nn.graph import Graph, Sum, Wire
from qnas.nn.residual import SHORTCUTS, ElasticPad

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext

KINDS = ("new", "fracbnn")


class _Block(Graph):
    """A graph that is in the subnet where one of its convolutions is."""

    def __init__(self, wires: Sequence[Wire], output: int, layer: ElasticConv) -> None:
        super().__init__(wires, output)
        self._layer = [layer]  # in a list: it stands in the graph already

    @property
    def layer(self) -> ElasticConv:
        """The convolution that tells whether the block is there; a unit's only one."""
        return self._layer[0]

    @property
    def active(self) -> bool:
        """Whether the active subnet has this block."""
        return self.layer.active


class LowBitUnit(_Block):
    """``BN_last(relu(BN(conv(Q(BN_pre(x))))) + flexconn(x))``: what the blocks for few bits are made of.

    Deployed with everything quantized, every tensor between two operators is on a grid of ``edge_bits``; the batch
    normalisations that stand alone are float operators. With convolutions alone in integers the same parts are in
    float but for the convolutions.

    Args:
        context: makes the parts.
        name: of the convolution's site, and prefix of ``out``, ``skip`` (where the skip computes anything), ``add`` and
            ``norm``.
        in_channels, out_channels: the largest numbers.
        block: ``new``, or ``fracbnn``, which has no ``BN_pre``.
        skip: whether there is one.
        nonnegative: the unit's input cannot be negative.
        signed: the convolution's input keeps what is negative, and its codes have a sign.
        **layer: ``kernels``, ``stride`` and ``depthwise`` of the convolution.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        block: str = "new",
        skip: bool = True,
        nonnegative: bool = False,
        signed: bool = False,
        **layer: Any,
    ) -> None:
        if block not in KINDS:
            raise ValueError(f"block must be one of {KINDS}, not {block!r}")
        new = block == "new"
        wires = [Wire(context.norm(f"{name}.pre", in_channels, name), (0,))] if new else []
        conv = context.conv(
            name,
            in_channels,
            out_channels,
            input_relu=not signed,
            signed_input=signed,
            passthrough_bits=None if new else context.edge_bits,
            output=True,
            output_relu=True,
            **layer,
        )
        wires.append(Wire(conv, (len(wires),)))
        if skip:
            rectified = len(wires)
            wires.append(Wire(_flexconn(context, conv, min(in_channels, out_channels), signed=not nonnegative), (0,)))
            wires.append(Wire(Sum(), (rectified, rectified + 1)))
            wires.append(Wire(context.site(f"{name}.add", out_channels, signed=not nonnegative), (len(wires),)))
        wires.append(Wire(context.norm(f"{name}.last", out_channels, name, output=True), (len(wires),)))
        wires.append(Wire(context.site(f"{name}.norm", out_channels, signed=True), (len(wires),)))
        super().__init__(wires, len(wires), conv)


def _flexconn(context: BuildContext, conv: ElasticConv, channels: int, *, signed: bool) -> Flexconn:
    name = f"{conv.name}.skip"
    described = name in {site.name for site in context.space.sites}  # where the skip of some subnet computes
    site = context.site(name, channels, signed=signed) if described else None
    return Flexconn(conv.name, conv.name, conv.stride, site)


class LowBitInvertedResidual(_Block):
    """MobileNetV2's block of three units: expand 1x1, depthwise KxK, project 1x1, and ``x`` added at the end.

    Args:
        context: makes the parts.
        name: prefix of the units ``expand``, ``depthwise`` and ``project``, and of the site ``add``.
        in_channels, hidden, out_channels: the largest numbers; ``hidden`` is that of the depthwise convolution.
        kernels: of the depthwise convolution.
        stride: of the depthwise convolution.
        expand: whether there is an expanding unit.
        flexconn: units that have a skip.
        nonnegative: the block's input cannot be negative.
        **unit: ``block`` and ``signed`` of :class:`LowBitUnit`.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        kernels: Sequence[int],
        stride: int,
        expand: bool = True,
        flexconn: Sequence[str] = ("expand", "depthwise", "project"),
        nonnegative: bool = False,
        **unit: Any,
    ) -> None:
        def add(part: str, before: int, after: int, **layer: Any) -> LowBitUnit:
            first = not units
            units.append(
                LowBitUnit(
                    context, f"{name}.{part}", before, after, skip=part in flexconn,
                    nonnegative=nonnegative and first, **layer, **unit,
                )
            )  # fmt: skip
            return units[-1]

        units: list[LowBitUnit] = []
        if expand:
            add("expand", in_channels, hidden)
        depthwise = add("depthwise", hidden, hidden, kernels=kernels, stride=stride, depthwise=True)
        add("project", hidden, out_channels)
        wires = [Wire(part, (i,)) for i, part in enumerate(units)]
        if stride == 1 and in_channels == out_channels:
            wires.append(Wire(Sum(), (len(wires), 0)))
            wires.append(Wire(context.site(f"{name}.add", out_channels, signed=True), (len(wires),)))
        super().__init__(wires, len(wires), depthwise.layer)


class LowBitSeparable(_Block):
    """MobileNetV1's block of two units: depthwise KxK, pointwise 1x1.

    Args:
        context: makes the parts.
        name: prefix of the units ``depthwise`` and ``pointwise``.
        in_channels, out_channels: the largest numbers.
        kernels, stride: of the depthwise convolution.
        flexconn: units that have a skip.
        nonnegative: the block's input cannot be negative.
        **unit: ``block`` and ``signed`` of :class:`LowBitUnit`.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        kernels: Sequence[int],
        stride: int,
        flexconn: Sequence[str] = ("depthwise", "pointwise"),
        nonnegative: bool = False,
        **unit: Any,
    ) -> None:
        depthwise = LowBitUnit(
            context, f"{name}.depthwise", in_channels, in_channels, kernels=kernels, stride=stride, depthwise=True,
            skip="depthwise" in flexconn, nonnegative=nonnegative, **unit,
        )  # fmt: skip
        pointwise = LowBitUnit(
            context, f"{name}.pointwise", in_channels, out_channels, skip="pointwise" in flexconn, **unit
        )
        super().__init__([Wire(depthwise, (0,)), Wire(pointwise, (1,))], 2, depthwise.layer)


class LowBitBasicBlock(_Block):
    """ResNet's basic block of two 3x3 units. Each has a skip of its own, and the block no further one.

    Args:
        context: makes the parts.
        name: prefix of the units ``conv1`` and ``conv2``.
        in_channels, out_channels: the largest numbers.
        stride: of the first unit.
        nonnegative: the block's input cannot be negative.
        **unit: ``block`` and ``signed`` of :class:`LowBitUnit`.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        nonnegative: bool = False,
        **unit: Any,
    ) -> None:
        first = LowBitUnit(
            context, f"{name}.conv1", in_channels, out_channels, kernels=(3,), stride=stride, nonnegative=nonnegative,
            **unit,
        )  # fmt: skip
        second = LowBitUnit(context, f"{name}.conv2", out_channels, out_channels, kernels=(3,), **unit)
        super().__init__([Wire(first, (0,)), Wire(second, (1,))], 2, first.layer)


class PreactivationBlock(_Block):
    """``conv2(Q(BN(conv1(Q(BN(x)))))) + shortcut(x)``, each quantizer cutting at zero: a ReLU before each convolution.

    Args:
        context: makes the parts.
        name: prefix of the sites ``conv1``, ``conv2``, ``downsample`` (for a shortcut of kind ``conv``) and ``add``.
        in_channels, out_channels: the largest numbers.
        stride: of ``conv1``.
        shortcut: ``identity``, ``conv`` (1x1) or ``pad``, as of :class:`qnas.nn.residual.ResidualBlock`.
        nonnegative: the block's input cannot be negative.
        signed: the convolutions' inputs keep what is negative, and their codes have a sign.
    """

    def __init__(
        self,
        context: BuildContext,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        shortcut: str,
        nonnegative: bool = False,
        signed: bool = False,
    ) -> None:
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {SHORTCUTS}, not {shortcut!r}")
        options: dict[str, Any] = {"kernels": (3,), "input_relu": not signed, "signed_input": signed}
        first = context.conv(f"{name}.conv1", in_channels, out_channels, stride=stride, **options)
        wires = [
            Wire(context.norm(f"{name}.conv1.pre", in_channels, f"{name}.conv1"), (0,)),
            Wire(first, (1,)),  # its batch normalisation is the one in front of the second ReLU
            Wire(context.conv(f"{name}.conv2", out_channels, out_channels, norm=False, output=True, **options), (2,)),
        ]
        past: nn.Module | None = None
        if shortcut == "conv":
            past = context.conv(
                f"{name}.downsample", in_channels, out_channels, stride=stride, signed_input=not nonnegative,
                passthrough_bits=context.edge_bits, output=True,
            )  # fmt: skip
        elif shortcut == "pad":
            past = ElasticPad(f"{name}.conv1", f"{name}.conv2", in_channels, out_channels, stride)
        if past is not None:
            wires.append(Wire(past, (0,)))
        wires.append(Wire(Sum(), (3, 0 if past is None else 4)))
        wires.append(Wire(context.site(f"{name}.add", out_channels, signed=True), (len(wires),)))
        super().__init__(wires, len(wires), first)
