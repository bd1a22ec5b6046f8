"""Sites where activations are put on a grid, and the float operations between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.errors import ExportError
from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.nn.active import ActiveSubnet
from qnas.nn.grid import AffineGrid, CodebookGrid, Grid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext

if TYPE_CHECKING:
    from qnas.space import Value

MODES = ("float", "start", "observe", "quantize")


Observe = Callable[[Quantizer, SiteContext, Tensor], None]
"""Is shown what arrives at a quantizer, which leaves it in float meanwhile."""


class ActivationSite(nn.Module):
    """An activation function (none or ReLU) followed by a quantizer.

    Args:
        name: the site whose layer description gives the bit-width (``a_bits``).
        quantizer: quantizes the tensor.
        relu: whether a ReLU comes first. It is left out where the quantizer cuts at zero anyway.
        passthrough_bits: the tensor arrives on a grid of so many bits; a site that wants no fewer passes it on as it
            is, so that the integer graph needs no operator there.
        upper: where the ReLU is cut off, as 6 for ReLU6; the grid that is extracted ends there.
        output_bits: the tensor is what the layer ``name`` puts out, before its batch normalisation, at so many bits;
            otherwise it is what the layer takes in, at the bits of its description, where 32 leave it in float.
    """

    def __init__(
        self,
        name: str,
        quantizer: Quantizer,
        *,
        relu: bool = False,
        passthrough_bits: int | None = None,
        upper: float | None = None,
        output_bits: int | None = None,
    ) -> None:
        super().__init__()
        if upper is not None and (not relu or passthrough_bits is not None):
            raise ValueError(f"site {name}: only a ReLU in front of a quantizer can be cut off")
        self.name = name
        self.quantizer = quantizer
        self.relu = relu
        self.upper = upper
        self.passthrough_bits = passthrough_bits
        self.output_bits = output_bits
        self.mode = "float"
        self.observe: Observe | None = None
        self.spec: LayerSpec | None = None
        self.values: Mapping[str, Value] = {}

    def activate(self, active: ActiveSubnet) -> None:
        """Take up the active subnet's description of this site."""
        self.spec = active.layers.get(self.name)
        self.values = active.values.get(self.name, {})

    @property
    def active(self) -> bool:
        """Whether the active subnet has this site."""
        return self.spec is not None

    def _context(self, channels: int) -> SiteContext:
        assert self.spec is not None, f"site {self.name} is not active"
        return SiteContext(self.output_bits or self.spec.a_bits, channels, self.values)

    @property
    def _channels(self) -> int:
        assert self.spec is not None, f"site {self.name} is not active"
        return self.spec.in_channels if self.output_bits is None else self.spec.out_channels

    @property
    def _in_float(self) -> bool:
        if self.mode == "float":
            return True
        assert self.spec is not None, f"site {self.name} is not active"
        return self.output_bits is None and self.spec.a_bits == FLOAT_BITS

    @property
    def _passes(self) -> bool:
        assert self.spec is not None, f"site {self.name} is not active"
        return self.passthrough_bits is not None and self.spec.a_bits >= self.passthrough_bits

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``[N, C, ...]``, or only apply the activation function in float mode."""
        if self.upper is not None:
            x = x.clamp(max=self.upper)
        if self._in_float or (self._passes and self.mode == "quantize"):
            return F.relu(x) if self.relu else x
        ctx = self._context(x.shape[1])
        if self.mode == "observe":
            x = F.relu(x) if self.relu else x
            if self.observe is not None:
                self.observe(self.quantizer, ctx, x.detach())
            return x
        if self.mode == "start":
            x = F.relu(x) if self.relu else x
            self.quantizer.start(x, ctx)
            if self._passes:
                return x
        elif self.relu and not self.quantizer.absorbs_relu:
            x = F.relu(x)
        quantized: Tensor = self.quantizer(x, ctx)
        return quantized

    def penalty(self) -> Tensor | None:
        """Return the quantizer's term of the loss; ``None`` where it is not at work in the active subnet."""
        if self.spec is None or self.mode != "quantize" or self._in_float or self._passes:
            return None
        return self.quantizer.penalty(self._context(self._channels))

    def extract(self) -> GridQuantize | nn.Module | None:
        """Return the static twin for the active subnet; ``None`` where the tensor passes as it is."""
        if self._in_float or self._passes:
            if self.upper is not None:
                return nn.Hardtanh(0.0, self.upper)
            return nn.ReLU() if self.relu else None
        ctx = self._context(self._channels)
        name = self.name if self.output_bits is None else f"{self.name}.raw"
        if self.quantizer.follows_batches:
            return BatchGridQuantize(name, self.quantizer, ctx, relu=self.relu, upper=self.upper)
        return GridQuantize(name, cut(self.quantizer.export(ctx), self.upper), relu=self.relu)


def cut(grid: Grid, upper: float | None) -> Grid:
    """Return the part of a grid that values up to ``upper`` are rounded to: the same as cutting them off first."""
    if upper is None:
        return grid
    if isinstance(grid, CodebookGrid):
        return CodebookGrid(grid.table[: int(grid.encode(torch.tensor([upper]))) + 1])
    code = int(grid.encode(torch.tensor(upper, device=grid.scale.device)))
    return replace(grid, qmax=max(code, int(grid.zero_point)))


class FixedGrid(Quantizer):
    """Quantizes to a grid that is known beforehand, such as that of 8-bit images; nothing is learned."""

    roles = frozenset({"activation"})
    scale: Tensor

    def __init__(self, site: QuantizerSite, grid: AffineGrid) -> None:
        super().__init__(site)
        self.register_buffer("scale", grid.scale.clone())
        self.grid = grid

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Do nothing: the grid is given."""

    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Do nothing: the grid is given."""

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Round to the grid; no gradient is wanted by the images."""
        return self.export(ctx).quantize(x)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the given grid."""
        return AffineGrid(self.scale, self.grid.zero_point, self.grid.qmin, self.grid.qmax)


class Unquantized(Quantizer):
    """Stands where a site is left in float for good; nothing is ever put on a grid there."""

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Do nothing."""

    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Do nothing."""

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x``."""
        return x

    def export(self, ctx: SiteContext) -> Grid:
        """Refuse: there is no grid."""
        raise ExportError(f"Site {self.site.name!r} is left in float: it has no grid. Quantize it, or leave it out.")


class GridQuantize(nn.Module):
    """The static twin of an activation site: a grid, with no parameters left to train.

    Args:
        name: the site's; that of the layer whose input it is, ``layer.out`` for an output.
        grid: per tensor.
        relu: whether a ReLU comes first.
    """

    def __init__(self, name: str, grid: Grid, *, relu: bool) -> None:
        super().__init__()
        self.name = name
        self.relu = relu
        self.set_grid(grid)

    def set_grid(self, grid: Grid) -> None:
        """Take up a grid.

        Raises:
            ExportError: it is none a tensor.
        """
        self.grid = grid
        if isinstance(grid, AffineGrid):
            if grid.axis is not None:
                raise ExportError(
                    "An activation grid with one scale a channel cannot be executed by integer kernels. "
                    "Quantize activations per tensor."
                )
            zero_point = int(grid.zero_point)
            self.scale = float(grid.scale)
            self.low = float(grid.qmin - zero_point)
            self.high = float(grid.qmax - zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x`` to the grid, after a ReLU if there is one."""
        if not isinstance(self.grid, AffineGrid):
            return self.grid.quantize(F.relu(x) if self.relu else x)
        if self.relu and self.low < 0:
            x = F.relu(x)
        return torch.div(x, self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)


class BatchGridQuantize(GridQuantize):
    """A grid that follows the batches while a subnet is calibrated, and is theirs on average afterwards.

    In training mode it answers as the supernet does in training; until it is calibrated, it has the supernet's grid.

    Args:
        name, relu: as for :class:`GridQuantize`.
        quantizer: says what the range of a batch is, and the grid of a range.
        ctx: of the active subnet.
        upper: where values are cut off; ``None`` for nowhere.
    """

    def __init__(
        self, name: str, quantizer: Quantizer, ctx: SiteContext, *, relu: bool, upper: float | None = None
    ) -> None:
        super().__init__(name, cut(quantizer.export(ctx), upper), relu=relu)
        self.upper = upper
        self._ctx = ctx
        self._quantizer = [quantizer]  # in a list: not a submodule, it stays the supernet's
        self._ranges: list[Tensor] = []

    def start_calibration(self) -> None:
        """Forget the ranges of batches that were seen, and follow those that come."""
        self._ranges = []
        self.train()

    def finish_calibration(self) -> None:
        """Take up the grid of the mean range, if any batch was seen."""
        if self._ranges:
            mean = torch.stack(self._ranges).mean(0)
            self.set_grid(cut(self._quantizer[0].range_grid(mean, self._ctx), self.upper))
        self._ranges = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x`` to the grid, in training mode to that of its own range, which is kept for the mean."""
        if self.training:
            quantizer = self._quantizer[0]
            x = F.relu(x) if self.relu else x
            found = quantizer.batch_range(x if self.upper is None else x.clamp(max=self.upper)).cpu()
            self._ranges.append(found)
            self.set_grid(cut(quantizer.range_grid(found, self._ctx), self.upper))
        return super().forward(x)


class HardSwish(nn.Module):
    """``x * relu6(x + 3) / 6`` (MobileNetV3, Sec. 5.2); a float operation in deployed graphs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return h-swish of ``x``, the same shape."""
        return F.hardswish(x)


class GlobalPool(nn.Module):
    """Mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, 1, 1]`` of ``[N, C, H, W]``."""
        return x.mean((2, 3), keepdim=True)


class SqueezeExcite(nn.Module):
    """Channel attention of MobileNetV3 over a prefix of the channels, in float: its cost is tiny, its range is not.

    Args:
        name: sites ``name.reduce`` and ``name.expand`` give the active channels.
        channels, hidden: the largest numbers.
    """

    def __init__(self, name: str, channels: int, hidden: int) -> None:
        super().__init__()
        self.name = name
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.spec: LayerSpec | None = None

    def activate(self, active: ActiveSubnet) -> None:
        """Take up the active subnet's channels."""
        self.spec = active.layers.get(f"{self.name}.reduce")

    def _active(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        assert self.spec is not None, f"{self.name} is not active"
        c, h = self.spec.in_channels, self.spec.out_channels
        assert self.reduce.bias is not None
        assert self.expand.bias is not None
        return self.reduce.weight[:h, :c], self.reduce.bias[:h], self.expand.weight[:c, :h], self.expand.bias[:c]

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``[N, C, H, W]`` by a factor in [0, 1]."""
        w1, b1, w2, b2 = self._active()
        return squeeze_excite(x, w1, b1, w2, b2)

    def extract(self) -> FloatSqueezeExcite:
        """Return the static twin for the active channels."""
        return FloatSqueezeExcite(self.name, *self._active())


class FloatSqueezeExcite(nn.Module):
    """The static twin of :class:`SqueezeExcite`; ``name`` is the prefix of its two sites."""

    def __init__(self, name: str, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> None:
        super().__init__()
        self.name = name
        for part, value in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
            assert value is not None
            self.register_buffer(part, value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``[N, C, H, W]`` by a factor in [0, 1]."""
        return squeeze_excite(x, self.w1, self.b1, self.w2, self.b2)  # type: ignore[arg-type]


def squeeze_excite(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """Return ``x * hardsigmoid(W2 relu(W1 mean(x)))``.

    Args:
        x: ``[N, C, H, W]``.
        w1, b1: ``[H, C, 1, 1]`` and ``[H]``.
        w2, b2: ``[C, H, 1, 1]`` and ``[C]``.
    """
    pooled = x.mean((2, 3), keepdim=True)
    return x * F.hardsigmoid(F.conv2d(F.relu(F.conv2d(pooled, w1, b1)), w2, b2))
