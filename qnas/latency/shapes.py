"""What of a block its latency hangs on: the shapes of its layers, and bit-widths as far as the device has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qnas.blocks import BlockChoices, blocks_of
from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.space import Sample, SearchSpace, Value

CHUNK = 16  # of a digest, in hexadecimal digits


@dataclass(frozen=True)
class Bits:
    """Bit-widths as a device sees them.

    Weights of fewer bits than a kernel has are its codes like any other. Activations of fewer bits are too, but their
    codes must be cut off at the narrower grid's ends, which is an operator more (7 to 14% of a MobileNet's latency in
    ONNX Runtime); so a tensor is told apart by whether it is cut.

    Attributes:
        native: bit-widths that the device has kernels for, ascending.
        widest: of the space's activations; what a net in float is taken for, as its integer form will have it.
    """

    native: tuple[int, ...]
    widest: int

    @classmethod
    def of(cls, space: SearchSpace, native: Sequence[int]) -> Bits:
        """Return the bits of a space on a device."""
        return cls(tuple(native), max(space.scheme.a_bits))

    def seen(self, role: str, bits: int) -> int:
        """Return the bit-width that stands for all those that run alike; see :class:`qnas.protocols.BlockCost`."""
        if bits >= FLOAT_BITS:
            return bits
        kernel = next((n for n in self.native if n >= bits), self.native[-1])
        return kernel if role == "w_bits" or bits >= kernel else kernel - 1

    def layer(self, layer: LayerSpec) -> tuple[int, int]:
        """Return what is seen of a layer's bits; a tensor in float counts as it will be on integers."""
        fixed = self.native[-1] if layer.a_fixed else self.widest
        a_bits = fixed if layer.a_bits >= FLOAT_BITS else layer.a_bits
        w_bits = self.native[-1] if layer.w_bits >= FLOAT_BITS else layer.w_bits
        return self.seen("w_bits", w_bits), self.seen("a_bits", a_bits)

    def lacking(self, layers: Iterable[LayerSpec]) -> list[int]:
        """Return the bit-widths of layers that the device has no kernels for, ascending."""
        used = {bits for layer in layers if layer.kind != "quantize" for bits in (layer.w_bits, layer.a_bits)}
        return sorted(bits for bits in used if bits < FLOAT_BITS and bits not in self.native)


def block_key(block: str, layers: Sequence[LayerSpec], bits: Bits) -> str:
    """Return the shape of a block as text, such as ``expand conv 16>48 k1 s1 g1 @16 w8 a<8 | ...``."""
    return " | ".join(_layer_key(layer.name.removeprefix(block).strip("."), layer, bits) for layer in layers)


def _layer_key(name: str, layer: LayerSpec, bits: Bits) -> str:
    w_bits, a_bits = bits.layer(layer)
    cut = f"a{a_bits}" if a_bits in bits.native else f"a<{a_bits + 1}"
    shape = f"{layer.kind} {layer.in_channels}>{layer.out_channels} @{layer.out_size}"
    if layer.kind == "quantize":
        return f"{name} {shape} {cut}".strip()
    return f"{name} {shape} k{layer.kernel_size} s{layer.stride} g{layer.groups} w{w_bits} {cut}".strip()


def subnet_key(space: SearchSpace, sample: Mapping[str, Value], bits: Bits) -> str:
    """Return the short name that all subnets with the same blocks share (hexadecimal)."""
    found = [[block.name, block_key(block.name, block.layers(space, sample), bits)] for block in blocks_of(space)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:CHUNK]


def block_shapes(space: SearchSpace, bits: Bits) -> dict[str, dict[str, list[Sample]]]:
    """Return every distinct shape of every block, with the choices that make it; blocks that are left out have none.

    Returns:
        By block's name and :func:`block_key`, the choices (of those knobs that matter) that lead to it.
    """
    found: dict[str, dict[str, list[Sample]]] = {}
    for block in blocks_of(space):
        own = found.setdefault(block.name, {})
        for chosen, layers in BlockChoices(space, block, bits.seen).each():
            if layers:
                own.setdefault(block_key(block.name, layers, bits), []).append(chosen)
    return found


def num_choices(space: SearchSpace, bits: Bits) -> int:
    """Return how many combinations of choices :func:`block_shapes` would go through."""
    return sum(BlockChoices(space, block, bits.seen).num_choices for block in blocks_of(space))


def cover(space: SearchSpace, shapes: Mapping[str, Mapping[str, Sequence[Sample]]]) -> list[Sample]:
    """Return few samples in which every shape of every block occurs, found greedily.

    Each sample takes from every block the first shape that no sample has yet and that agrees with what is chosen so
    far, the block with the most shapes left first; knobs that nothing decides are at their last choice.
    """
    left = {block: {key: list(choices) for key, choices in own.items()} for block, own in shapes.items()}
    samples = []
    while any(left.values()):
        chosen: Sample = {}
        for block in sorted((name for name in left if left[name]), key=lambda name: -len(left[name])):
            found = _first_that_agrees(left[block], chosen)
            if found is not None:
                key, choices = found
                chosen.update(choices)
                del left[block][key]
        samples.append({**space.highest(), **chosen})
    return samples


def _first_that_agrees(keys: Mapping[str, Sequence[Sample]], chosen: Sample) -> tuple[str, Sample] | None:
    for key, ways in keys.items():
        for choices in ways:
            if all(chosen.get(label, value) == value for label, value in choices.items()):
                return key, choices
    return None
