"""Shapes of blocks, what of bits counts in them, and samples that hold all of them."""

from __future__ import annotations

import pytest

from qnas.blocks import blocks_of
from qnas.latency.shapes import Bits, block_key, block_shapes, cover, num_choices, subnet_key
from qnas.layers import LayerSpec
from qnas.rng import generator

NATIVE = Bits((8,), 4)


@pytest.mark.parametrize("name", ["mbv2", "mbv3", "resnet50"])
def test_the_cover_holds_every_shape_that_a_subnet_can_have(make_nets, name):
    space = make_nets(name).space
    bits = Bits.of(space, (8,))
    shapes = block_shapes(space, bits)
    samples = cover(space, shapes)
    for sample in samples:
        space.validate(sample)
    assert len(samples) <= 2 * max(map(len, shapes.values()))
    held = {(b.name, block_key(b.name, b.layers(space, s), bits)) for s in samples for b in blocks_of(space)}
    for row in space.draw(generator(0, "shapes"), 200):
        for block in blocks_of(space):
            layers = block.layers(space, space.sample(row))
            assert not layers or (block.name, block_key(block.name, layers, bits)) in held
    assert {(name, key) for name, own in shapes.items() for key in own} <= held


def test_a_shape_of_hand_counted_choices(make_nets):
    space = make_nets("mbv3").space  # kernels 3, 5; expansions 3, 4; depths 1, 2; resolutions 12, 16
    shapes = block_shapes(space, Bits.of(space, (8,)))
    assert len(shapes["stage1.block1"]) == 2 * 2 * 2
    assert len(shapes["stage1.block2"]) == 2 * 2 * 2
    assert len(shapes["stem"]) == 2
    assert len(shapes["classifier"]) == 1
    assert num_choices(space, Bits.of(space, (8,))) < 200


def test_bits_count_only_as_far_as_the_device_tells_them_apart():
    layer = LayerSpec("b.x", "conv", 3, 8, 3, out_size=4, w_bits=2, a_bits=4)
    assert block_key("b", [layer], NATIVE) == "x conv 3>8 @4 k3 s1 g1 w8 a<8"
    assert NATIVE.seen("w_bits", 2) == NATIVE.seen("w_bits", 8) == 8
    assert NATIVE.seen("a_bits", 2) == NATIVE.seen("a_bits", 7) != NATIVE.seen("a_bits", 8)
    both = Bits((4, 8), 8)
    assert len({both.seen("a_bits", bits) for bits in (3, 4, 7, 8)}) == 4
    assert both.seen("w_bits", 3) == 4


def test_a_net_in_float_counts_as_the_integer_net_that_it_becomes(make_nets):
    space = make_nets("mbv3").space
    view = space.floating("w_bits", "a_bits")
    for name in ("highest", "lowest"):
        sample, floating = getattr(space, name)(), getattr(view, name)()
        assert subnet_key(space, sample, Bits.of(space, (8,))) == subnet_key(view, floating, Bits.of(space, (8,)))
    assert subnet_key(space, space.lowest(), NATIVE) != subnet_key(space, space.highest(), NATIVE)


def test_bits_without_kernels_are_named():
    layers = [
        LayerSpec("a", "conv", 3, 8, w_bits=2, a_bits=8),
        LayerSpec("b", "conv", 8, 8, w_bits=8, a_bits=4),
        LayerSpec("c", "quantize", 8, 8, w_bits=3, a_bits=3),
        LayerSpec("d", "linear", 8, 8),
    ]
    assert NATIVE.lacking(layers) == [2, 4]
