"""MobileNetV3 with elastic kernel size, expansion, depth and resolution.

Howard et al., "Searching for MobileNetV3", ICCV 2019, https://arxiv.org/abs/1905.02244; the space is that of
Once-for-All (Cai et al., ICLR 2020, https://arxiv.org/abs/1908.09791), which OQAT (Shen et al., ICCV 2021) searches
at low bit-widths: kernel 3/5/7, expansion 3/4/6, depth 2/3/4 a stage, resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qnas.errors import ConfigError
from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.space import Condition, Knob, QuantScheme, SearchSpace, Site, Value

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext, Supernet

ACTS = ("auto", "relu", "h-swish")
SIZES = ("auto", "small", "large")
SMALLEST_IMAGE, LARGEST_IMAGE = 8, 1024  # pixels
LARGEST_SMALL_IMAGE = 64  # pixels; from here up the large shape is chosen


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


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never more than 10% down (MobileNetV2's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


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
        if size not in SIZES or act not in ACTS:
            raise ConfigError(
                f"Space mbv3: size must be one of {', '.join(SIZES)} and act one of {', '.join(ACTS)}; given: "
                f"size {size!r}, act {act!r}. Change [space] or its flags."
            )
        small = size == "small" or (size == "auto" and image_size <= LARGEST_SMALL_IMAGE)
        self.shape = SMALL if small else LARGE
        self.se = se
        self.act = act
        self.image_channels = image_channels
        self.kernels = _choices("kernels", kernels, lambda k: k % 2 == 1 and k >= 1)
        self.expansions = _choices("expansions", expansions, lambda e: e >= 1)
        self.depths = _choices(
            "depths", ((1, 2, 3) if small else (2, 3, 4)) if depths is None else depths, lambda d: d >= 1
        )
        self.resolutions = _choices(
            "resolutions",
            default_resolutions(image_size, small) if resolutions is None else resolutions,
            lambda r: SMALLEST_IMAGE <= r <= LARGEST_IMAGE,
        )
        architecture, sites = self._describe(scheme, num_classes)
        super().__init__("mbv3", architecture, sites, scheme, image_size=self.resolutions[-1], num_classes=num_classes)

    # --- description -------------------------------------------------------------------------------------------

    def _act(self, stage: Stage) -> str:
        return stage.act if self.act == "auto" else self.act

    @property
    def _head_act(self) -> str:
        return "h-swish" if self.act == "auto" else self.act

    def _describe(self, scheme: QuantScheme, num_classes: int) -> tuple[list[Knob], list[Site]]:
        shape, edge = self.shape, scheme.edge_bits
        knobs = [Knob("resolution", self.resolutions)]
        sites: list[Site] = []
        relu = self._head_act == "relu"

        def fixed(name: str, spec: LayerSpec, reduction: int, w_bits: int | None, a_bits: int | None) -> Site:
            def describe(sample: Mapping[str, Value]) -> LayerSpec:
                return _resized(spec, sample, reduction)

            return Site(name, ("resolution",), describe, w_bits=w_bits, a_bits=a_bits)

        def grid(name: str, channels: int, reduction: int) -> Site:
            return fixed(name, LayerSpec(name, "quantize", channels, channels), reduction, edge, edge)

        sites.append(fixed("stem", LayerSpec("stem", "conv", self.image_channels, shape.stem, 3, 2), 2, edge, edge))
        sites.append(grid("stem.out", shape.stem, 2))
        if not relu:
            sites.append(grid("stem.act", shape.stem, 2))
        reduction = 2 * shape.first_stride
        sites += self._first_block(reduction, edge)
        width = shape.first_width
        for number, stage in enumerate(shape.stages, 1):
            reduction *= stage.stride
            name = f"stage{number}"
            knobs.append(Knob(f"{name}.depth", self.depths))
            for block in range(1, self.depths[-1] + 1):
                stride = stage.stride if block == 1 else 1
                knobs += self._block_knobs(name, block)
                sites += self._block_sites(stage, name, block, width, stride, reduction, edge)
                width = stage.width
        sites.append(
            fixed("head", LayerSpec("head", "conv", width, shape.head), reduction, None, None),
        )
        if not relu:
            sites.append(grid("head.out", shape.head, reduction))
        sites.append(grid("pool", shape.head, reduction))
        sites.append(fixed("features", LayerSpec("features", "conv", shape.head, shape.features), 0, None, None))
        if not relu:
            sites.append(grid("features.out", shape.features, 0))
        classifier = LayerSpec("classifier", "linear", shape.features, num_classes)
        sites.append(fixed("classifier", classifier, 0, edge, edge))
        sites.append(grid("classifier.out", num_classes, 0))
        return knobs, sites

    def _first_block(self, reduction: int, edge: int) -> list[Site]:
        """The block without expansion: depthwise 3x3 on the stem's output, then a linear 1x1."""
        shape = self.shape

        def site(name: str, spec: LayerSpec, bits: int | None) -> Site:
            def describe(sample: Mapping[str, Value]) -> LayerSpec:
                return _resized(spec, sample, reduction)

            return Site(name, ("resolution",), describe, None, "first", bits, bits)

        c, out = shape.stem, shape.first_width
        depthwise = LayerSpec("first.depthwise", "conv", c, c, 3, shape.first_stride, c)
        sites = [site("first.depthwise", depthwise, None)]
        sites += [
            site("first.project", LayerSpec("first.project", "conv", c, out), None),
            site("first.project.out", LayerSpec("first.project.out", "quantize", out, out), edge),
        ]
        if shape.first_stride == 1 and c == out:
            sites.append(site("first.add", LayerSpec("first.add", "quantize", out, out), edge))
        return sites

    def _block_knobs(self, stage: str, block: int) -> list[Knob]:
        active = self._active(stage, block)
        name = f"{stage}.block{block}"
        return [
            Knob(f"{name}.kernel", self.kernels, active_if=active),
            Knob(f"{name}.expansion", self.expansions, active_if=active),
        ]

    def _active(self, stage: str, block: int) -> tuple[Condition, ...]:
        deep = tuple(d for d in self.depths if d >= block)
        return () if deep == self.depths else (Condition(f"{stage}.depth", deep),)

    def _block_sites(
        self, stage: Stage, stage_name: str, block: int, width: int, stride: int, reduction: int, edge: int
    ) -> list[Site]:
        """Sites of one elastic block, in the order of the data's way."""
        name = f"{stage_name}.block{block}"
        active = self._active(stage_name, block)
        relu, se = self._act(stage) == "relu", stage.se and self.se
        depth, expansion, kernel = f"{stage_name}.depth", f"{name}.expansion", f"{name}.kernel"
        sites: list[Site] = []

        def add(suffix: str, kind: str, labels: tuple[str, ...], bits: int | None, at: int, shape_of) -> None:  # type: ignore[no-untyped-def]
            site_name = f"{name}.{suffix}"

            def describe(sample: Mapping[str, Value]) -> LayerSpec | None:
                if int(sample[depth]) < block:
                    return None
                c_in, c_out, k, s, groups = shape_of(sample)
                return _resized(LayerSpec(site_name, kind, c_in, c_out, k, s, groups), sample, at)

            depends = ("resolution", depth, *labels)
            sites.append(Site(site_name, depends, describe, stage_name, name, bits, bits, active))

        def hidden(sample: Mapping[str, Value]) -> int:
            return make_divisible(width * int(sample[expansion]))

        before = reduction // stride
        out = stage.width
        add("expand", "conv", (expansion,), None, before, lambda s: (width, hidden(s), 1, 1, 1))
        if not relu:
            add("expand.out", "quantize", (expansion,), edge, before, lambda s: (hidden(s), hidden(s), 1, 1, 1))
        add(
            "depthwise",
            "conv",
            (expansion, kernel),
            None,
            reduction,
            lambda s: (hidden(s), hidden(s), int(s[kernel]), stride, hidden(s)),
        )
        if se or not relu:
            add("depthwise.out", "quantize", (expansion,), edge, reduction, lambda s: (hidden(s), hidden(s), 1, 1, 1))
        if se:
            squeeze = lambda s: make_divisible(hidden(s) // 4)  # noqa: E731
            add("se.reduce", "conv", (expansion,), FLOAT_BITS, 0, lambda s: (hidden(s), squeeze(s), 1, 1, 1))
            add("se.expand", "conv", (expansion,), FLOAT_BITS, 0, lambda s: (squeeze(s), hidden(s), 1, 1, 1))
        add("project", "conv", (expansion,), None, reduction, lambda s: (hidden(s), out, 1, 1, 1))
        add("project.out", "quantize", (), edge, reduction, lambda s: (out, out, 1, 1, 1))
        if stride == 1 and width == out:
            add("add", "quantize", (), edge, reduction, lambda s: (out, out, 1, 1, 1))
        return sites

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


def default_resolutions(image_size: int, small: bool) -> tuple[int, ...]:
    """Return OQAT's resolutions (128 to 224 by 4) for large images, three quarters and all of a small one."""
    if not small:
        return tuple(range(128, image_size + 1, 4)) if image_size >= 128 else (image_size,)
    lower = image_size * 3 // 4 // 4 * 4
    return (lower, image_size) if lower >= 8 else (image_size,)


def _choices(name: str, values: Sequence[int] | int, valid: Callable[[int], bool]) -> tuple[int, ...]:
    values = (values,) if type(values) is int else values
    sizes = isinstance(values, (list, tuple)) and all(type(v) is int for v in values)
    if not sizes or not values or list(values) != sorted(set(values)) or not all(valid(v) for v in values):
        shown = list(values) if isinstance(values, tuple) else values
        raise ConfigError(
            f"Space mbv3: {name} must be different, ascending and possible sizes; given: {shown!r}. "
            "For example kernels = [3, 5, 7], expansions = [3, 4, 6], depths = [2, 3, 4], resolutions = [128, 160]."
        )
    return tuple(values)


def _resized(spec: LayerSpec, sample: Mapping[str, Value], reduction: int) -> LayerSpec:
    """Set the output size: the image's, halved (rounding up) as often as the strides say; 1 after pooling."""
    size = 1 if reduction == 0 else -(-int(sample["resolution"]) // reduction)
    return LayerSpec(spec.name, spec.kind, spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride,
                     spec.groups, size)  # fmt: skip
