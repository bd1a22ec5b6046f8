"""A part that is a directed acyclic graph of parts, and the operations without weights that graphs need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Wire:
    """A node of a graph: a part and where its inputs come from.

    Attributes:
        part: takes as many tensors as there are inputs.
        inputs: positions of values: 0 is the graph's input, ``i + 1`` the output of its node ``i``.
    """

    part: nn.Module
    inputs: tuple[int, ...]


class Graph(nn.Module):
    """Runs parts in their order, each on the values that it names; elastic, or the static twin of such a graph.

    Unlike the blocks of :mod:`qnas.nn.blocks` it prescribes no shape: sums, concatenations and branches stand
    anywhere. Whoever builds it puts on a grid whatever feeds them, once for all that take it.

    Args:
        wires: in an order in which they can be executed.
        output: position of the value that the graph answers with.
    """

    def __init__(self, wires: Sequence[Wire], output: int) -> None:
        super().__init__()
        for number, wire in enumerate(wires):
            if not wire.inputs or not all(0 <= i <= number for i in wire.inputs):
                raise ValueError(f"node {number} takes the values {wire.inputs}, but only 0 to {number} exist then")
        if not 0 <= output <= len(wires):
            raise ValueError(f"there is no value {output} among {len(wires) + 1}")
        self.parts = nn.ModuleList(wire.part for wire in wires)
        self.inputs = tuple(wire.inputs for wire in wires)
        self.output = output
        last = {i: number for number, inputs in enumerate(self.inputs) for i in inputs}
        self._done = tuple(
            tuple(i for i, at in last.items() if at == number and i != output) for number in range(len(wires))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for one input; a value is let go once nothing takes it any more."""
        values: dict[int, Tensor] = {0: x}
        for number, (part, inputs) in enumerate(zip(self.parts, self.inputs, strict=True)):
            values[number + 1] = part(*(values[i] for i in inputs))
            for i in self._done[number]:
                del values[i]
        return values[self.output]

    def extract(self) -> Graph:
        """Return the static twin for the active subnet."""
        return Graph([Wire(twin(part), i) for part, i in zip(self.parts, self.inputs, strict=True)], self.output)


def twin(part: nn.Module) -> nn.Module:
    """Return a part's static twin; an operation without weights is its own."""
    extract: Any = getattr(part, "extract", None)
    if extract is not None:
        twin: nn.Module | None = extract()
        return nn.Sequential() if twin is None else twin
    if next(part.parameters(), None) is not None:
        raise TypeError(f"{type(part).__name__} cannot be extracted: give it an extract() method")
    return copy.deepcopy(part)


class Sum(nn.Module):
    """The sum of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x + y``."""
        return x + y


class Product(nn.Module):
    """The product of two tensors, such as features and their gates."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x * y``, shapes broadcast."""
        return x * y


class Concat(nn.Module):
    """Concatenation along the channels."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return ``[N, sum of C, ...]`` of tensors ``[N, C, ...]``."""
        return torch.cat(tensors, 1)


class Flatten(nn.Module):
    """All but the first dimension as one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C * H * W]`` of ``[N, C, H, W]``, in this order whatever the memory's layout."""
        return x.flatten(1)


class Unflatten(nn.Module):
    """Features as the channels of a map of one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, 1, 1]`` of ``[N, C]``."""
        return x[:, :, None, None]


class SelectChannels(nn.Module):
    """Some of the channels, in any order: a slice, a split or a shuffle; no arithmetic.

    Args:
        channels: positions of the output's channels in the input.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.register_buffer("index", torch.tensor(self.channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, len(channels), ...]`` of ``[N, C, ...]``."""
        return x.index_select(1, self.get_buffer("index"))
