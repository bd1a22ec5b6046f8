"""Costs against numbers counted by hand, and against what the extracted network really computes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from qnas.costs import CostTable, cost_of, sample_costs
from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.nn.activation import FloatSqueezeExcite
from qnas.nn.subnet import SubnetLayer
from qnas.rng import generator
from tests.conftest import TINY

# mbv3 small, 16 pixels, no squeeze-excite, ReLU, depth 1, kernel 3, expansion 3, by hand:
# name: (weights, output pixels, output channels)
SMALLEST = {
    "stem": (1 * 16 * 9, 8 * 8, 16),
    "first.depthwise": (16 * 9, 64, 16),
    "first.project": (16 * 16, 64, 16),
    "stage1.block1.expand": (16 * 48, 64, 48),
    "stage1.block1.depthwise": (48 * 9, 16, 48),
    "stage1.block1.project": (48 * 24, 16, 24),
    "stage2.block1.expand": (24 * 72, 16, 72),
    "stage2.block1.depthwise": (72 * 9, 4, 72),
    "stage2.block1.project": (72 * 32, 4, 32),
    "head": (32 * 96, 4, 96),
    "features": (96 * 128, 1, 128),
    "classifier": (128 * 10, 1, 10),
}
EDGE = ("stem", "classifier")
# Tensors that are only put on a grid: stem.out, first.project.out, first.add, 2 x project.out, pool, classifier.out.
GRIDS = 7


@pytest.fixture(scope="module")
def models(registry):
    return {name: registry.load("cost", name) for name in ("macs", "bitops", "oqat_flops", "size_bytes")}


@pytest.fixture(scope="module")
def plain(make_space):
    return make_space(w_bits=(3,), a_bits=(4,), se=False, act="relu", resolutions=(16,))


def test_smallest_subnet_by_hand(plain, models):
    costs = sample_costs(plain, models, plain.lowest())
    assert costs["macs"] == 174_624 == sum(w * p for w, p, _ in SMALLEST.values())
    edge_macs = 9_216 + 1_280
    assert costs["bitops"] == edge_macs * 64 + (174_624 - edge_macs) * 12
    exact = [w * p * (1.0 if name in EDGE else 3 * 4 / 64) for name, (w, p, _) in SMALLEST.items()]  # 8 * 8 / 64 = 1
    assert costs["oqat_flops"] == sum(math.floor(flops + 0.5) for flops in exact) == 41_270
    size = 0
    for name, (weights, _, out) in SMALLEST.items():
        bits = 8 if name in EDGE else 3
        size += -(-weights * bits // 8) + 4 * out + 4 * out + 5
    assert costs["size_bytes"] == size + 5 * GRIDS


def test_squeeze_excite_counts_in_float(make_space, models):
    with_se = make_space(w_bits=(3,), a_bits=(4,), act="relu", resolutions=(16,))
    layers = {layer.name: layer for layer in with_se.layers(with_se.lowest())}
    # stage 2: 72 channels squeezed to make_divisible(18) = 24, on one pixel
    assert layers["stage2.block1.se.reduce"].macs == 72 * 24 == layers["stage2.block1.se.expand"].macs
    assert layers["stage2.block1.se.reduce"].w_bits == FLOAT_BITS
    assert models["bitops"].layer_cost(layers["stage2.block1.se.reduce"]) == 72 * 24 * 32 * 32
    assert models["oqat_flops"].layer_cost(layers["stage2.block1.se.reduce"]) == 72 * 24
    assert models["size_bytes"].layer_cost(layers["stage2.block1.se.reduce"]) == 72 * 24 * 4 + 24 * 4


def test_a_network_in_float_has_no_grids_and_counts_its_macs(plain, models):
    layers = [replace(layer, w_bits=FLOAT_BITS, a_bits=FLOAT_BITS) for layer in plain.layers(plain.lowest())]
    assert sum(layer.kind == "quantize" for layer in layers) == GRIDS
    assert cost_of(layers, models["oqat_flops"]) == cost_of(layers, models["macs"]) == 174_624
    assert cost_of(layers, models["bitops"]) == 174_624 * 32 * 32
    assert cost_of(layers, models["size_bytes"]) == sum(4 * weights + 4 * out for weights, _, out in SMALLEST.values())


@pytest.mark.parametrize(("w_bits", "a_bits"), [(2, 2), (2, 3), (3, 4), (4, 4), (5, 7), (8, 8), (2, 32), (32, 32)])
def test_oqat_flops_of_one_layer_in_float64(models, w_bits, a_bits):
    for out in (1, 3, 40, 1280):
        layer = LayerSpec("x", "conv", 5, out, 3, out_size=7, w_bits=w_bits, a_bits=a_bits)
        macs = 5 * out * 9 * 49.0
        want = macs if w_bits == FLOAT_BITS else np.floor(macs / 64 * w_bits * a_bits + 0.5)
        assert models["oqat_flops"].layer_cost(layer) == want
    pixel = LayerSpec("x", "conv", 8, 1, w_bits=2, a_bits=2)
    assert models["oqat_flops"].layer_cost(pixel) == 1  # 8 * 4 / 64 = 0.5
    assert models["oqat_flops"].layer_cost(replace(pixel, kind="quantize")) == 0


def test_size_of_odd_bit_counts_rounds_up_to_bytes(models):
    layer = LayerSpec("x", "conv", 3, 1, 1, w_bits=3, a_bits=4)  # 9 bits of weights
    assert models["size_bytes"].layer_cost(layer) == 2 + 4 + 4 + 5


@pytest.mark.parametrize("granularity", ["network", "layer"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_vectorised_costs_equal_those_of_single_samples(make_space, models, granularity, size):
    space = make_space(granularity=granularity, size=size, depths=(1, 2, 3), resolutions=(12, 16))
    table = CostTable(space, models)
    rows = space.draw(generator(0, "costs"), 60)
    many = table.costs(rows)
    for i, row in enumerate(rows):
        layers = space.layers(space.sample(row))
        assert {name: int(many[name][i]) for name in models} == {n: cost_of(layers, m) for n, m in models.items()}


def computed_macs(subnet) -> int:
    """Count multiplications from the shapes that really pass; the stage order and strides included."""
    counted = []

    def count(module, inputs, output):
        if isinstance(module, SubnetLayer):
            pixels = output.numel() // output.shape[0] // output.shape[1]
            counted.append(module.weight.numel() * pixels)
        else:
            counted.append(module.w1.numel() + module.w2.numel())

    for module in subnet.modules():
        if isinstance(module, (SubnetLayer, FloatSqueezeExcite)):
            module.register_forward_hook(count)
    channels = next(subnet.subnet_layers()).spec.in_channels
    with torch.no_grad():
        subnet(torch.zeros(1, channels, subnet.resolution, subnet.resolution))
    return sum(counted)


def test_described_macs_are_those_that_the_network_computes(make_space, make_supernet):
    space = make_space(resolutions=(12, 16), depths=(1, 2, 3))
    supernet = make_supernet(space)
    for row in space.draw(generator(1, "macs"), 8):
        sample = space.sample(row)
        macs = sum(layer.macs for layer in space.layers(sample))
        assert computed_macs(supernet.extract(sample).eval()) == macs


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_so_are_those_of_the_other_families(make_family, make_supernet, name, size):
    options = {} if name.endswith("resnet20") else {"size": size}
    space = make_family(name, resolutions=(17, 32, 41), image_size=41, **options)  # odd sizes round up
    supernet = make_supernet(space)
    for sample in (space.lowest(), *map(space.sample, space.draw(generator(1, "macs"), 4))):
        macs = sum(layer.macs for layer in space.layers(sample))
        assert computed_macs(supernet.extract(sample).eval()) == macs


@pytest.mark.parametrize("granularity", ["network", "stage", "block", "layer"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_vectorised_costs_of_every_family(make_family, models, name, granularity):
    space = make_family(name, granularity=granularity, w_bits=(2, 3, 8))
    rows = space.draw(generator(0, "costs"), 40)
    many = CostTable(space, models).costs(rows)
    for i, row in enumerate(rows):
        assert {cost: int(many[cost][i]) for cost in models} == sample_costs(space, models, space.sample(row))


def test_bitops_grow_with_bits(make_space, models):
    space = make_space(w_bits=(2, 3, 4), a_bits=(2, 4), granularity="layer")
    table = CostTable(space, models)
    rows = space.draw(generator(2, "grow"), 50)
    costs = table.costs(rows)
    for column, knob in enumerate(space.knobs):
        if knob.role not in ("w_bits", "a_bits"):
            continue
        more = rows.copy()
        more[:, column] = len(knob.choices) - 1
        for name in ("bitops", "oqat_flops"):
            assert (table.costs(more)[name] >= costs[name]).all()
        if knob.role == "w_bits":
            assert (table.costs(more)["size_bytes"] >= costs["size_bytes"]).all()
        np.testing.assert_array_equal(table.costs(more)["macs"], costs["macs"])
