"""Costs against numbers counted by hand, and against what the extracted network really computes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from qnas.costs import CostTable, cost_of, sample_costs
from qnas.layers import FLOAT_BITS
from qnas.nn.activation import FloatSqueezeExcite
from qnas.nn.subnet import SubnetLayer
from qnas.rng import generator

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
    return {name: registry.load("cost", name) for name in ("macs", "bitops", "size_bytes")}


@pytest.fixture(scope="module")
def plain(make_space):
    return make_space(w_bits=(3,), a_bits=(4,), se=False, act="relu", resolutions=(16,))


def test_smallest_subnet_by_hand(plain, models):
    costs = sample_costs(plain, models, plain.lowest())
    assert costs["macs"] == 174_624 == sum(w * p for w, p, _ in SMALLEST.values())
    edge_macs = 9_216 + 1_280
    assert costs["bitops"] == edge_macs * 64 + (174_624 - edge_macs) * 12
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
    assert models["size_bytes"].layer_cost(layers["stage2.block1.se.reduce"]) == 72 * 24 * 4 + 24 * 4


def test_size_of_odd_bit_counts_rounds_up_to_bytes(models):
    from qnas.layers import LayerSpec

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


def test_described_macs_are_those_that_the_network_computes(make_space, make_supernet):
    """Counts multiplications from the shapes that really pass; the stage order and strides included."""
    space = make_space(resolutions=(12, 16), depths=(1, 2, 3))
    supernet = make_supernet(space)
    for row in space.draw(generator(1, "macs"), 8):
        sample = space.sample(row)
        subnet = supernet.extract(sample).eval()
        counted = []

        def count(module, inputs, output, counted=counted):
            if isinstance(module, SubnetLayer):
                pixels = output.numel() // output.shape[0] // output.shape[1]
                counted.append(module.weight.numel() * pixels)
            else:
                counted.append(module.w1.numel() + module.w2.numel())

        hooks = [
            m.register_forward_hook(count) for m in subnet.modules() if isinstance(m, (SubnetLayer, FloatSqueezeExcite))
        ]
        with torch.no_grad():
            subnet(torch.zeros(1, 1, subnet.resolution, subnet.resolution))
        assert sum(counted) == sum(layer.macs for layer in space.layers(sample))
        for hook in hooks:
            hook.remove()


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
        assert (table.costs(more)["bitops"] >= costs["bitops"]).all()
        if knob.role == "w_bits":
            assert (table.costs(more)["size_bytes"] >= costs["size_bytes"]).all()
        np.testing.assert_array_equal(table.costs(more)["macs"], costs["macs"])


def test_ten_thousand_samples_a_second(make_space, models):
    table = CostTable(make_space(granularity="layer", size="large", depths=(2, 3, 4)), models)
    rows = table.space.draw(generator(3, "rate"), 20_000)
    start = time.perf_counter()
    table.costs(rows)
    assert len(rows) / (time.perf_counter() - start) > 10_000
