"""A backbone: the features of a net at each stride, for heads that look at maps instead of one pooled vector.

Of a chain of blocks, as the built-in spaces are, the last value at each stride is taken; a head convolution (1x1, right
before pooling), pooling and classifier are left out. Of a user's graph, which names no blocks, it is the last map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qnas.errors import ConfigError
from qnas.nn.activation import ActivationSite, GlobalPool, HardSwish
from qnas.nn.elastic import ElasticConv
from qnas.nn.graph import Flatten, Graph, Wire, twin
from qnas.nn.lowbit import LowBitUnit
from qnas.nn.norm import ElasticNorm
from qnas.nn.subnet import Subnet, SubnetLayer
from qnas.nn.supernet import Supernet

STRIDES = (4, 8, 16, 32)
PROBE = 64  # pixels of the image that tells the stride of each value


@dataclass(frozen=True)
class Feature:
    """One map of a backbone: ``[N, channels, size, size]``, ``stride`` pixels of the image to one of the map."""

    stride: int
    channels: int
    size: int


@dataclass(frozen=True)
class Tap:
    """Where a backbone gives a feature.

    Attributes:
        stride: of the image to the map.
        value: position: 0 is the image, ``i + 1`` the output of part ``i``.
        reader: the part that puts this value on a grid, at its first layer's input, and takes it from there; ``None``
            where it is on one already.
        shared: whether all take the value from that grid, so that the static twin puts it there once. Where tensors
            between layers stay in float it is the reader's convolution's alone.
    """

    stride: int
    value: int
    reader: int | None = None
    shared: bool = True


class Features(nn.Module):
    """The parts of a net as far as its coarsest feature; elastic, or the static twin of such a backbone.

    Args:
        wires: parts in the order of the data's way, with the positions of their inputs (see :class:`Wire`).
        taps: fine to coarse.
    """

    def __init__(self, wires: Sequence[Wire], taps: Sequence[Tap]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(wire.part for wire in wires)
        self.inputs = tuple(wire.inputs for wire in wires)
        self.taps = tuple(taps)
        last = {i: number for number, inputs in enumerate(self.inputs) for i in inputs}
        self._done = tuple(tuple(i for i, at in last.items() if at == number) for number in range(len(wires)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a map ``[N, C, H, W]`` for each tap, of normalised images ``[N, C, S, S]``."""
        values: dict[int, Tensor] = {0: images}
        maps: dict[Tap, Tensor] = {}
        for number, (part, inputs) in enumerate(zip(self.parts, self.inputs, strict=True)):
            values[number + 1] = part(*(values[i] for i in inputs))
            for tap in self.taps:
                if tap.value == number + 1:
                    maps[tap] = self._tapped(values[tap.value], tap)
                    if self._static(tap):  # one quantizer to two readers: else the graph would need the accumulator
                        values[tap.value] = maps[tap]
            for i in self._done[number]:
                del values[i]
        return tuple(maps[tap] for tap in self.taps)

    def _static(self, tap: Tap) -> bool:
        # In training the reader rounds the value itself: rounded twice, a clipped one would lose its gradient.
        return tap.shared and tap.reader is not None and isinstance(_first_layer(self.parts[tap.reader]), SubnetLayer)

    def _tapped(self, value: Tensor, tap: Tap) -> Tensor:
        if tap.reader is None:
            return value
        site = _first_layer(self.parts[tap.reader]).input
        tapped: Tensor = value if site is None else site(value)
        return tapped

    def extract(self) -> Features:
        """Return the static twin for the active subnet."""
        return Features([Wire(twin(part), i) for part, i in zip(self.parts, self.inputs, strict=True)], self.taps)

    @torch.no_grad()
    def describe(self, image_size: int) -> tuple[Feature, ...]:
        """Return stride, channels and size of each map for images of this size."""
        with _judging(self):
            maps = self(_probe(self.parts, image_size))
        return tuple(Feature(tap.stride, x.shape[1], x.shape[-1]) for tap, x in zip(self.taps, maps, strict=True))


class FloatHead(nn.Module):
    """What a task puts on a backbone's features. It stays in float, in training and when deployed.

    ``forward`` takes a tuple of features, fine to coarse, and returns outputs ``[N, ...]``.
    """

    def extract(self) -> FloatHead:
        """Return a copy that is not trained any more."""
        return copy.deepcopy(self).eval().requires_grad_(False)


@torch.no_grad()
def find_taps(supernet: Supernet, strides: Sequence[int] = STRIDES) -> tuple[Tap, ...]:
    """Return where the active subnet gives its features.

    Args:
        supernet: activated, its quantizers started or off; unchanged afterwards.
        strides: that are wanted; those that the subnet does not have are left out.

    Raises:
        ConfigError: it has none of them.
    """
    wires = _wires(_parts(supernet))
    found: dict[int, int] = {}
    with _judging(supernet):
        for value, size in _sizes(wires):
            found[round(PROBE / size)] = value
    shared = not supernet.space.scheme.conv_only
    values = [(stride, found[stride]) for stride in strides if stride in found]
    taps = tuple(Tap(stride, value, _reader(wires, value), shared) for stride, value in values)
    if not taps:
        raise ConfigError(
            f"Space {supernet.space.name!r} has no features at strides {', '.join(map(str, strides))}: its maps are at "
            f"{', '.join(map(str, sorted(found))) or 'none'}. Take a space that reduces its images further."
        )
    return taps


def backbone(net: Supernet | Subnet, taps: Sequence[Tap]) -> Features:
    """Return the features of the active subnet, or of the same subnet extracted; the parts stay the net's own.

    Args:
        net: a supernet with the subnet active that the taps are of, or that subnet.
        taps: what :func:`find_taps` said of the supernet.
    """
    wires = _wires(_parts(net))
    used = max(max(tap.value, 0 if tap.reader is None else tap.reader + 1) for tap in taps)
    return Features(wires[:used], taps)


def feature_subnet(subnet: Subnet, taps: Sequence[Tap]) -> Subnet:
    """Return a subnet that answers with its features, a tuple, instead of its outputs; layers are shared."""
    features = backbone(subnet, taps)
    built = {module.spec.name for module in features.modules() if isinstance(module, SubnetLayer)}
    layers = tuple(layer for layer in subnet.layers if layer.name in built)
    return Subnet(subnet.sample, subnet.resolution, layers, features).eval()


def _parts(net: Supernet | Subnet) -> list[nn.Module]:
    """Return the active parts, without a head convolution and what follows it; or the one graph that is all."""
    if isinstance(net, Subnet):
        assert isinstance(net.body, nn.Sequential), "a subnet's body is the chain of its supernet's active parts"
        return list(net.body)
    parts = [part for part in net.parts if getattr(part, "active", True)]
    ends = [i for i, part in enumerate(parts) if isinstance(part, GlobalPool) or getattr(part, "linear", False)]
    end = before = min(ends, default=len(parts))
    while before and isinstance(parts[before - 1], (ActivationSite, HardSwish)):
        before -= 1
    head = parts[before - 1] if before > 1 else None
    head = head.layer if isinstance(head, LowBitUnit) else head
    if isinstance(head, ElasticConv) and head.kernels == (1,) and head.stride == 1:
        end = before - 1
    return parts[:end] if len(parts) > 1 else parts


def _wires(parts: Sequence[nn.Module]) -> list[Wire]:
    if len(parts) == 1 and isinstance(parts[0], Graph):
        graph = parts[0]
        return [Wire(part, inputs) for part, inputs in zip(graph.parts, graph.inputs, strict=True)]
    return [Wire(part, (i,)) for i, part in enumerate(parts)]


def _sizes(wires: Sequence[Wire]) -> list[tuple[int, float]]:
    """Return position and size of every value that is a map of more than one pixel, in order."""
    values: dict[int, Tensor] = {0: _probe([wire.part for wire in wires], PROBE)}
    found = []
    for number, wire in enumerate(wires):
        flat = isinstance(wire.part, Flatten) or getattr(wire.part, "linear", False)
        if flat or any(i not in values for i in wire.inputs):
            continue  # weights behind it fit one image size alone
        x = values[number + 1] = wire.part(*(values[i] for i in wire.inputs))
        if x.ndim == 4 and x.shape[-1] > 1:
            found.append((number + 1, _power_of_two(x.shape[-1])))
    return found


def _power_of_two(size: int) -> float:
    """Return the size that a map has whose strides were all powers of two: unpadded convolutions cut some pixels."""
    return float(PROBE / 2 ** round(math.log2(PROBE / size)))


def _reader(wires: Sequence[Wire], value: int) -> int | None:
    """Return the part that puts a value on a grid, where it is not on one already."""
    for number, wire in enumerate(wires):
        found = (module for module in wire.part.modules() if isinstance(module, (ElasticConv, ElasticNorm)))
        if value not in wire.inputs or not isinstance(next(found, None), ElasticConv):
            continue  # what a batch normalisation takes is on a grid
        site = _first_layer(wire.part).input
        if isinstance(site, ActivationSite) and site.passthrough_bits is None:
            return number
    return None


def _first_layer(part: nn.Module) -> ElasticConv | SubnetLayer:
    return next(module for module in part.modules() if isinstance(module, (ElasticConv, SubnetLayer)))


def _probe(parts: Sequence[nn.Module] | nn.ModuleList, size: int) -> Tensor:
    first = next(m for part in parts for m in part.modules() if isinstance(m, (ElasticConv, SubnetLayer)))
    assert first.spec is not None, "the subnet must be active"
    weight = first.weight
    return torch.zeros(1, first.spec.in_channels, size, size, device=weight.device)


@contextmanager
def _judging(net: nn.Module) -> Iterator[None]:
    """Put a net in evaluation mode for as long as it is looked at, so that its statistics stay as they are."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
