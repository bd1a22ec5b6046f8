"""Average bit-widths against averages taken by hand, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.averages import AverageBits
from qnas.costs import CostTable, cost_of, sample_costs
from qnas.layers import LayerSpec
from qnas.rng import generator
from qnas.testing import toy_space
from qnas_plugins.costs import averages

ROLES = ("w_bits", "a_bits")
WEIGHTS = {
    "layers": lambda layer: 1,
    "parameters": lambda layer: layer.out_channels * layer.in_channels // layer.groups * layer.kernel_size**2,
    "macs": lambda layer: layer.num_weights * layer.out_size**2,
    "features": lambda layer: layer.in_channels * (layer.out_size * layer.stride) ** 2,
}


def models():
    return {f"{role} {weighting}": AverageBits(role, weighting) for role in ROLES for weighting in WEIGHTS}


@pytest.mark.parametrize("granularity", ["network", "block", "layer"])
@pytest.mark.parametrize("name", ["mbv2", "resnet20", "resnet50"])
def test_averages_of_the_layers_that_are_searched(make_family, name, granularity):
    space = make_family(name, granularity=granularity, w_bits=(2, 3, 8), a_bits=(4, 6))
    rows = space.draw(generator(0, "averages"), 12)
    many = CostTable(space, models()).costs(rows)
    fixed = {site.name for site in space.sites if site.w_bits is not None}
    for i, row in enumerate(rows):
        sample = space.sample(row)
        layers = [layer for layer in space.layers(sample) if layer.kind != "quantize" and layer.name not in fixed]
        assert not any(layer.name in ("stem", "classifier") for layer in layers)
        for role in ROLES:
            for weighting, weight in WEIGHTS.items():
                total = sum(weight(layer) for layer in layers)
                want = sum(weight(layer) * getattr(layer, role) for layer in layers) / total
                assert many[f"{role} {weighting}"][i] == want  # to the last bit
        assert {name: values[i] for name, values in many.items()} == sample_costs(space, models(), sample)


def test_a_subnet_without_searched_layers_has_the_average_0():
    space = toy_space()
    sample = {**space.highest(), "depth": 0}
    assert all(cost_of(space.layers(sample), model) == 0 for model in models().values())
    found = CostTable(space, models()).costs(space.indices([sample, space.highest()]))
    for values in found.values():
        np.testing.assert_array_equal(values, [0, 4])


def test_features_are_those_that_come_in():
    layer = LayerSpec("x", "conv", 16, 32, 3, 2, out_size=14, w_bits=3, a_bits=5)
    assert averages.A_BITS_FEATURES.layer_weight(layer) == 16 * 28 * 28
    assert averages.A_BITS_FEATURES.layer_cost(layer) == 16 * 28 * 28 * 5
    assert averages.W_BITS.layer_weight(LayerSpec("x", "quantize", 16, 16)) == 0
