"""MultiQuant's quantizer against an independent float64 reference of Eq. 2, gradients included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.lsq import derived_zero_point
from qnas_plugins.quantizers.multiquant import MultiQuant

BITS = tuple(range(2, 9))


def reference(v: np.ndarray, s: float, z: int, bits: int, grad: np.ndarray):
    """Eq. 2 value by value, with the gradients to v, s and z that its straight-through rounding has."""
    levels = 2**bits - 1
    out, grad_v, grad_s, grad_z = np.empty_like(v), np.zeros_like(v), 0.0, 0.0
    for i, value in np.ndenumerate(v):
        code = min(max(float(np.rint(value / s)) + z, 0), levels)
        out[i] = (code - z) * s
        if -z < value / s < levels - z:
            grad_v[i] = grad[i]
            grad_s += grad[i] * (float(np.rint(value / s)) - value / s)
        else:
            grad_s += grad[i] * (code - z)
            grad_z += grad[i] * -s
    return out, grad_v, grad_s, grad_z


def started(role: str, zero_point: str = "learned") -> tuple[MultiQuant, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    quantizer = MultiQuant(QuantizerSite("s", role, BITS, 6, signed=True), zero_point=zero_point)
    x = torch.randn(6, 6, 3, 3, generator=generator, dtype=torch.float64) + 0.4
    quantizer.start(x, SiteContext(4, 6))
    return quantizer, x


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("role", ["weight", "activation"])
def test_values_and_gradients_equal_equation_2(role, bits):
    quantizer, x = started(role)
    quantizer.set_range(bits, 0.6 * x.min().float(), 0.6 * x.max().float())  # values are clipped at both ends
    grad = np.random.default_rng(1).normal(size=x.shape)
    v, ctx = x.clone().requires_grad_(), SiteContext(bits, 6)
    grid = quantizer.export(ctx)
    out = quantizer(v, ctx)
    out.backward(torch.tensor(grad))
    step, z = float(quantizer.step(ctx)), int(grid.zero_point)
    want, want_v, want_s, want_z = reference(x.numpy(), step, z, bits, grad)
    assert 0 < z < 2**bits - 1
    assert (want_v == 0).any()
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-12)
    np.testing.assert_array_equal(v.grad.numpy(), want_v)
    count = x.numel() if role == "weight" else x[0].numel()
    g = 1 / math.sqrt(count * (2**bits - 1 - z))
    assert quantizer.log_steps[str(bits)].grad.item() == pytest.approx(want_s * step * g, rel=1e-5)
    levels = 2**bits - 1  # the parameter is z over the levels
    assert quantizer.zero_shares[str(bits)].grad.item() == pytest.approx(want_z * levels * g, rel=1e-5)
    for other in BITS:  # what is not active keeps no gradient
        if other != bits:
            assert quantizer.log_steps[str(other)].grad is None
            assert quantizer.zero_shares[str(other)].grad is None


@pytest.mark.parametrize("zero_point", ["derived", "learned"])
@pytest.mark.parametrize("role", ["weight", "activation"])
def test_zero_is_exact_and_the_grid_is_what_forward_rounds_to(role, zero_point):
    quantizer, x = started(role, zero_point)
    for bits in BITS:
        grid = quantizer.export(SiteContext(bits, 6))
        assert (grid.qmin, grid.qmax) == (0, 2**bits - 1)
        assert grid.decode(torch.tensor(grid.zero_point)).item() == 0.0
        assert quantizer(torch.zeros(1, 6), SiteContext(bits, 6)).abs().max() == 0
        v = x.float()
        assert torch.equal(grid.quantize(v), quantizer(v, SiteContext(bits, 6)).detach())


def test_derived_zero_point_is_that_of_the_equation():
    for bits in BITS:
        for low, high in ((-1.0, 3.0), (-3.0, 1.0), (0.0, 2.0), (-2.0, 0.0), (-1.0, 1.0)):
            step = (high - low) / (2**bits - 1)
            want = min(max(round(-low / step), 0), 2**bits - 1)
            assert derived_zero_point(torch.tensor(low), torch.tensor(high), bits) == want
    assert derived_zero_point(torch.tensor(0.0), torch.tensor(0.0), 4) == 0


def test_both_signs_stay_representable_when_the_step_shrinks():
    quantizer, x = started("weight", "derived")
    quantizer.log_steps["2"].data -= 1.5
    values = quantizer(x.float(), SiteContext(2, 6))
    assert values.min() < 0 < values.max()


def test_a_step_of_adam_moves_a_learned_zero_point_to_where_values_are():
    site = QuantizerSite("s", "activation", (4,), 1, signed=True)
    quantizer = MultiQuant(site, zero_point="learned")
    quantizer.set_range(4, torch.tensor(-1.0), torch.tensor(1.0))
    x = torch.linspace(-0.2, 1.8, 400)[:, None]  # most of it above the range
    optimizer = torch.optim.Adam(quantizer.zero_shares.parameters(), lr=0.01)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = ((quantizer(x, SiteContext(4, 1)) - x) ** 2).mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 10
    assert -quantizer.range(4)[0] < 8


def test_unsigned_activations_have_no_zero_point_to_learn():
    quantizer = MultiQuant(QuantizerSite("s", "activation", (2, 8), 4, signed=False), zero_point="learned")
    quantizer.start(torch.rand(5, 4), SiteContext(8, 4))
    assert quantizer.range(2) == (0, 3)
    assert not list(quantizer.zero_shares)


def test_an_unknown_kind_of_zero_point_is_refused():
    with pytest.raises(ConfigError, match="derived, learned"):
        MultiQuant(QuantizerSite("s", "weight", (2,), 4, signed=True), zero_point="free")
