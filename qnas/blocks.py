"""Blocks: the groups of sites of which a space's subnets are made, each with its layers for every choice. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qnas.layers import LayerSpec
from qnas.space import BIT_ROLES, SearchSpace, Site, Value

Layers = tuple[LayerSpec, ...]
BitsSeen = Callable[[str, int], int]
"""Role and bit-width -> the bit-width that stands for all those that are not told apart."""


@dataclass(frozen=True)
class Block:
    """Sites that the space groups (``Site.block``), or one that stands alone, in the order of the data's way.

    Attributes:
        name: of the group, or of the site.
    """

    name: str
    sites: tuple[Site, ...]

    def layers(self, space: SearchSpace, sample: Mapping[str, Value]) -> Layers:
        """Return the layers that the sample makes of it; none where it leaves the block out."""
        return tuple(layer for site in self.sites if (layer := space.layer(site, sample)) is not None)


def blocks_of(space: SearchSpace) -> tuple[Block, ...]:
    """Return the blocks of a space, in the order in which their first sites come."""
    found: dict[str, list[Site]] = {}
    for site in space.sites:
        found.setdefault(site.block or site.name, []).append(site)
    return tuple(Block(name, tuple(sites)) for name, sites in found.items())


@dataclass(frozen=True)
class Axis:
    """One knob that changes a block.

    Attributes:
        position: of the knob in the space.
        values: one choice for each class of choices that are not told apart.
        classes: ``[num_choices]``, each choice's place in ``values``.
    """

    position: int
    values: tuple[Value, ...]
    classes: tuple[int, ...]


class BlockChoices:
    """Every form that a block takes in its space.

    Args:
        space: the block's.
        block: one of :func:`blocks_of`.
        bits_seen: which bit-widths are told apart.

    Attributes:
        axes: the knobs that change the block, by position, ascending; those that make no difference are left out.
    """

    def __init__(self, space: SearchSpace, block: Block, bits_seen: BitsSeen) -> None:
        self.space = space
        self.block = block
        self.bits_seen = bits_seen
        labels = {label for site in block.sites for label in site.depends_on}
        found = [_whole(space, space.position[label]) for label in labels]
        for position, role in self._bit_knobs().items():
            axis = _seen(space, position, role, bits_seen)
            if len(axis.values) > 1:
                found.append(axis)
        self.axes = tuple(sorted(found, key=lambda axis: axis.position))

    def _bit_knobs(self) -> dict[int, str]:
        pairs = (zip(self.space.bit_labels(site.name), BIT_ROLES, strict=True) for site in self.block.sites)
        return {self.space.position[label]: role for pair in pairs for label, role in pair if label is not None}

    @property
    def num_choices(self) -> int:
        """Number of combinations of choices, those that make the same block counted apart."""
        return math.prod(len(axis.values) for axis in self.axes)

    def each(self) -> Iterator[tuple[dict[str, Value], Layers]]:
        """Yield every combination of choices with the layers that it makes, the last knob changing fastest."""
        knobs = [self.space.knobs[axis.position].label for axis in self.axes]
        sample = self.space.lowest()
        for values in itertools.product(*(axis.values for axis in self.axes)):
            chosen = dict(zip(knobs, values, strict=True))
            yield chosen, self.block.layers(self.space, {**sample, **chosen})

    def spread(self, costs: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return one number for each of :meth:`each` as an array with a dimension for each of ``axes``.

        Its sizes are the numbers of choices of the knobs, equal where choices are not told apart.
        """
        found = np.array(costs, dtype=np.int64).reshape([len(axis.values) for axis in self.axes])
        for dimension, axis in enumerate(self.axes):
            found = np.take(found, axis.classes, axis=dimension)
        return found


def bare(layer: LayerSpec, bits_seen: BitsSeen) -> LayerSpec:
    """Return a layer with nothing of its bits but what is seen of them."""
    w_bits, a_bits = (bits_seen(role, bits) for role, bits in zip(BIT_ROLES, (layer.w_bits, layer.a_bits), strict=True))
    return replace(layer, w_bits=w_bits, a_bits=a_bits, w_zero_points=False, w_fixed=False, a_fixed=False)


def _whole(space: SearchSpace, position: int) -> Axis:
    choices = space.knobs[position].choices
    return Axis(position, choices, tuple(range(len(choices))))


def _seen(space: SearchSpace, position: int, role: str, bits_seen: BitsSeen) -> Axis:
    choices = space.knobs[position].choices
    kinds = [bits_seen(role, int(bits)) for bits in choices]
    first = list(dict.fromkeys(kinds))
    return Axis(position, tuple(choices[kinds.index(kind)] for kind in first), tuple(first.index(k) for k in kinds))
