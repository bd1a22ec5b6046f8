"""OQAT's rule of inheritance and its bound, for every affine quantizer that inherits."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext
from qnas.plugins import load_registry

REGISTRY = load_registry()
BITS = tuple(range(2, 9))
CHANNELS = 4
OPTIONS = {  # of each role: what changes the grid or what bit-widths share
    "lsq": {
        "weight": [{}, {"per_channel": True}, {"sharing": "conv"}, {"sharing": "kernel"}, {"narrow_range": True}],
        "activation": [{}, {"negative": "zero-point"}, {"sharing": "conv", "negative": "zero-point"}],
    },
    "minmax": {
        "weight": [{}, {"per_channel": True}, {"asymmetric": True}, {"asymmetric": True, "per_channel": True}],
        "activation": [{}, {"asymmetric": True}],
    },
    "robustquant": {"weight": [{}], "activation": [{}]},
    "pact": {"activation": [{}]},
    "basq": {"activation": [{}, {"lambdas": [0.1]}]},
    "lsq+": {"weight": [{}], "activation": [{}]},
    "scale-predictor": {"weight": [{}]},
    "multiquant": {
        "weight": [{}, {"zero_point": "learned"}],
        "activation": [{}, {"zero_point": "learned"}],
    },
}


def cases():
    for name, roles in OPTIONS.items():
        for role, every in roles.items():
            for options in every:
                for signed in (True, False) if role == "activation" else (True,):
                    label = "-".join([name, role, "signed" if signed else "unsigned", *map(str, options.values())])
                    yield pytest.param(name, role, signed, options, id=label)


def test_every_quantizer_that_inherits_is_tried():
    inheriting = {
        component.spec.name
        for component in REGISTRY.components("quantizer")
        if component.load().inherit is not Quantizer.inherit
    }
    assert inheriting == set(OPTIONS)


@pytest.mark.parametrize("low_end", [-2.0, -0.9, -0.05])
@pytest.mark.parametrize(("name", "role", "signed", "options"), list(cases()))
def test_inheritance_stays_within_its_bound(name, role, signed, options, low_end):
    """|Q_low(v) - Q_high(v)| <= (2^d - 1) s for every v, clipped ones included: s' = 2^d s, z' = floor(z / 2^d)."""
    kernels = (3, 5) if role == "weight" else ()
    quantizer = REGISTRY.load("quantizer", name)(
        QuantizerSite("s", role, BITS, CHANNELS, signed, kernels=kernels), **options
    )
    quantizer.eval()
    x = torch.linspace(low_end if signed else 0.0, 3.0, 401).repeat(CHANNELS, 1)  # 401 weights a channel
    x = x * torch.tensor([[1.0], [0.7], [1.3], [0.1]]) if role == "weight" else x.T
    v = torch.linspace(-9, 9, 7001).repeat(CHANNELS, 1)
    v = v if role == "weight" else v.T
    for high, low in combinations(reversed(BITS), 2):
        d = high - low
        quantizer.start(x, SiteContext(high, CHANNELS, kernel=3))
        quantizer.inherit(high, low)
        source, target = (quantizer.export(SiteContext(bits, CHANNELS, kernel=3)) for bits in (high, low))
        assert isinstance(source, AffineGrid)
        assert isinstance(target, AffineGrid)
        assert target.bits == low
        torch.testing.assert_close(target.scale, source.scale * 2**d, rtol=1e-5, atol=0)
        zero_points = (torch.as_tensor(grid.zero_point) for grid in (source, target))
        assert torch.equal(next(zero_points) // 2**d, next(zero_points))
        moved = (target.quantize(v) - source.quantize(v)).abs()
        assert (moved <= (2**d - 1) * source.broadcast_scale(v.ndim) * (1 + 1e-4)).all()
