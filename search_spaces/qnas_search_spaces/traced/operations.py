"""What a network computes, as operations that can be quantized and exported: the language between tracing and grids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

ON_CODES = ("max-pool", "flatten", "unflatten", "select-channels")  # keep a tensor on its grid


@dataclass(frozen=True)
class Ref:
    """A value as an operation takes it.

    Attributes:
        value: 0 for the images, ``i + 1`` for what operation ``i`` gives.
        relu: after a ReLU, which the grid that the value is put on takes care of.
        upper: where that ReLU is cut off, as 6 for ReLU6.
    """

    value: int
    relu: bool = False
    upper: float | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with weights: a convolution or linear layer, with batch normalisation or not.

    Attributes:
        path: of the module in the network; of the batch normalisation, where that stands alone.
        kind: ``conv``, ``linear`` or ``norm``: a batch normalisation alone, which is a 1x1 depthwise convolution.
        norm: path of the batch normalisation; ``None`` without.
        eps: of the batch normalisation.
        bias: whether there is one that no batch normalisation takes up.
    """

    path: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    norm: str | None = None
    eps: float = 1e-5
    bias: bool = False


@dataclass(frozen=True)
class Operation:
    """One step of the network's computation.

    Attributes:
        kind: ``layer``, one of :data:`ON_CODES`, or the name of what :attr:`make` makes (``add``, ``concat``, ...).
        name: unique; a layer's is its module's path.
        inputs: that it takes.
        shape: of one image's output: ``(C, H, W)`` or ``(C,)``.
        not_negative: whether nothing in its output can be below zero.
        layer: what has weights.
        make: builds the part of the supernet that is no layer.
    """

    kind: str
    name: str
    inputs: tuple[Ref, ...]
    shape: tuple[int, ...]
    not_negative: bool = False
    layer: Layer | None = None
    make: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class Program:
    """A network's operations, those that its output depends on alone.

    Attributes:
        operations: in an order in which they can be executed.
        output: that it answers with.
        image_shape: of one image.
    """

    operations: tuple[Operation, ...]
    output: Ref
    image_shape: tuple[int, ...]

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value of one image."""
        return self.image_shape if value == 0 else self.operations[value - 1].shape

    def not_negative(self, ref: Ref) -> bool:
        """Tell whether nothing in a value, as it is taken, can be below zero."""
        return ref.relu or (ref.value > 0 and self.operations[ref.value - 1].not_negative)


def without_unused(operations: list[Operation], output: Ref, image_shape: tuple[int, ...]) -> Program:
    """Return the program without operations that its output does not depend on."""
    needed = {output.value}
    for number in range(len(operations), 0, -1):
        if number in needed:
            needed.update(ref.value for ref in operations[number - 1].inputs)
    kept = [number for number in range(1, len(operations) + 1) if number in needed]
    renumbered = {0: 0} | {old: new for new, old in enumerate(kept, 1)}

    def moved(ref: Ref) -> Ref:
        return Ref(renumbered[ref.value], ref.relu, ref.upper)

    chosen = tuple(
        Operation(op.kind, op.name, tuple(map(moved, op.inputs)), op.shape, op.not_negative, op.layer, op.make)
        for op in (operations[number - 1] for number in kept)
    )
    return Program(chosen, moved(output), image_shape)
