"""LSQ+ against an independent float64 reference of its formulas, gradients included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.lsq_plus import LSQPlus, best_range


def reference(v: np.ndarray, s: float, zero_point: int, levels: int, grad: np.ndarray):
    """Bhalgat et al., Eq. 1, 2 (values), 4 (d/ds), 5 (d/dbeta), value by value, with beta = -zero_point s."""
    out, grad_v, grad_s, grad_beta = np.empty_like(v), np.empty_like(v), 0.0, 0.0
    beta = -zero_point * s
    for i, x in np.ndenumerate(v):
        ratio = (x - beta) / s
        code = float(np.rint(min(max(ratio, 0), levels)))
        out[i] = code * s + beta
        inside = 0 < ratio < levels
        grad_v[i] = grad[i] if inside else 0.0
        if inside:
            grad_s += grad[i] * (np.rint(ratio) - ratio)
        else:
            grad_s += grad[i] * (0.0 if ratio <= 0 else levels)
            grad_beta += grad[i]
    return out, grad_v, grad_s, grad_beta


def activation(bits: tuple[int, ...] = (2, 4, 8), *, signed: bool = True) -> LSQPlus:
    return LSQPlus(QuantizerSite("s", "activation", bits, 4, signed)).double()


@pytest.mark.parametrize(("bits", "zero_point"), [(2, 1), (4, 5), (4, 0), (8, 100)])
def test_values_and_gradients_equal_the_published_formulas(bits, zero_point):
    s, levels = 0.25, 2**bits - 1
    rng = np.random.default_rng(0)
    around = [b + d for b in (-zero_point, levels - zero_point) for d in (-3.0, -0.6, -0.3, 0.0, 0.3, 0.6, 3.0)]
    v = np.array([*around, *(np.linspace(-zero_point, levels - zero_point, 15) + 0.21)])[None] * s
    grad = rng.normal(size=v.shape)
    quantizer = activation()
    with torch.no_grad():
        quantizer.log_steps[str(bits)].fill_(math.log(s))
        quantizer.get_buffer(f"unit_{bits}").fill_(0.5)  # the step may have moved since the start
        quantizer.offsets[str(bits)].fill_(-zero_point * s / 0.5 + 0.1 * s)  # rounded to whole steps
    x = torch.tensor(v, requires_grad=True)
    ctx = SiteContext(bits, 4)
    out = quantizer(x, ctx)
    out.backward(torch.tensor(grad))
    want, want_v, want_s, want_beta = reference(v, s, zero_point, levels, grad)
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(x.grad.numpy(), want_v)
    g = 1 / math.sqrt(v.shape[1] * (levels - zero_point))
    np.testing.assert_allclose(quantizer.log_steps[str(bits)].grad.item(), want_s * g * s, rtol=1e-9)
    np.testing.assert_allclose(quantizer.offsets[str(bits)].grad.item(), want_beta * g * 0.5, rtol=1e-9)
    grid = quantizer.export(ctx)
    assert grid.zero_point == zero_point
    torch.testing.assert_close(grid.quantize(x.detach()), out.detach())


def test_weights_start_at_three_deviations():
    w = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.02
    quantizer = LSQPlus(QuantizerSite("w", "weight", (2, 4), 8, True))
    quantizer.start(w, SiteContext(4, 8))
    mean, deviation = w.double().mean().item(), w.double().std(correction=0).item()
    for bits in (2, 4):
        want = max(abs(mean - 3 * deviation), abs(mean + 3 * deviation)) / 2 ** (bits - 1)
        assert quantizer.step(SiteContext(bits, 8)).item() == pytest.approx(want, rel=1e-5)
    assert quantizer.export(SiteContext(4, 8)).zero_points == (0, 0)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("levels", [3, 15])
def test_activations_start_at_the_least_squared_error(levels, shifted):
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 1.0, 4000) - (0.7 if shifted else 0.0)
    tensor = torch.tensor(values)
    low, high = best_range(tensor, levels, shifted=shifted)

    def error(a: float, b: float) -> float:
        step = (b - a) / levels
        zero = min(max(np.rint(-a / step), 0), levels)
        return float((((np.clip(np.rint(values / step) + zero, 0, levels) - zero) * step - values) ** 2).sum())

    least, most = (min(values.min(), 0.0) if shifted else 0.0), values.max()
    lows = [least * i / 16 for i in range(1, 17)] if shifted else [0.0]
    want = min(error(a, most * i / 16) for a in lows for i in range(1, 17))
    assert error(float(low), float(high)) == pytest.approx(want, rel=1e-9)
    assert want < 0.7 * error(least, most) or levels == 15


def test_what_cannot_be_negative_has_no_offset():
    quantizer = activation(signed=False)
    assert not list(quantizer.offsets)
    assert quantizer.range(4) == (0, 15)
    assert quantizer.absorbs_relu
