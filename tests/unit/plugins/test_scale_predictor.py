"""The scale predictor against an independent float64 reference of QuantNAS, Eq. 6 to 8, gradients included."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.scale_predictor import ScalePredictor, robust_gamma

CHANNELS = 12
RANGES = {2: (-2, 1), 4: (-8, 7), 8: (-128, 127)}


def predictor(bits=(8,), channels=CHANNELS) -> ScalePredictor:
    return ScalePredictor(QuantizerSite("layer", "weight", bits, channels, signed=True)).double()


def statistics(rng: np.random.Generator, channels=CHANNELS) -> dict[str, torch.Tensor]:
    gamma = torch.tensor(rng.uniform(0.5, 1.5, channels) * rng.choice([-1.0, 1.0], channels))
    return {"gamma": gamma, "sigma": torch.tensor(rng.uniform(0.3, 3.0, channels))}


def weights(rng: np.random.Generator, channels=CHANNELS) -> torch.Tensor:
    return torch.tensor(rng.normal(size=(channels, 3, 3, 3)))


def folded(weight: torch.Tensor, found: dict[str, torch.Tensor]) -> torch.Tensor:
    return weight * (found["gamma"] / found["sigma"]).reshape(-1, 1, 1, 1)


def robust(gamma: np.ndarray) -> np.ndarray:
    """c(gamma), written again: the median of an even number is the lower of the two in the middle."""
    size = np.abs(gamma)
    return np.maximum(np.maximum(size, 0.05 * np.sort(size)[(len(size) - 1) // 2]), 1e-6)


def best_scale(values: np.ndarray, qn: int, qp: int) -> float:
    """The scale of the least squared error by brute force over a fine grid of scales."""
    whole = max(values.max() / qp, values.min() / qn)
    scales = whole * np.linspace(0.005, 1.0, 4000)
    errors = [np.square(np.clip(np.rint(values / s), qn, qp) * s - values).sum() for s in scales]
    return float(scales[int(np.argmin(errors))])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_starts_at_the_scale_of_the_least_squared_error(bits):
    rng = np.random.default_rng(bits)
    found = statistics(rng)
    v = folded(weights(rng), found)
    quantizer, ctx = predictor((bits,)), SiteContext(bits, CHANNELS, **found)
    quantizer.start(v, ctx)
    scale = quantizer.export(ctx).scale.item()
    qn, qp = RANGES[bits]
    want = best_scale(v.numpy().ravel(), qn, qp)

    def error(s: float) -> float:
        values = v.numpy()
        return float(np.square(np.clip(np.rint(values / s), qn, qp) * s - values).sum())

    assert error(scale) <= error(want) * 1.001
    assert scale == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_scale_and_gradients_equal_the_formulas(bits):
    """s = mean of theta_i c(gamma_i) / sigma_i with theta_i = s_init t_i sigma0_i / c(gamma0_i); LSQ's Eq. 3 for ds."""
    rng = np.random.default_rng(1)
    start = statistics(rng)
    quantizer = predictor((4, 8))
    quantizer.start(folded(weights(rng), start), SiteContext(8, CHANNELS, **start))
    with torch.no_grad():
        quantizer.log_thetas.copy_(torch.tensor(rng.normal(0, 0.2, CHANNELS)))
    n = 7  # active channels
    now = {name: value[:n] for name, value in statistics(rng).items()}
    ctx = SiteContext(bits, n, **now)
    x = folded(weights(rng)[:n], now).requires_grad_()
    out = quantizer(x, ctx)
    grad = rng.normal(size=x.shape)
    out.backward(torch.tensor(grad))

    t = np.exp(quantizer.log_thetas.detach().numpy()[:n])
    s_init = float(quantizer.start_scale)
    c0 = robust(start["gamma"].numpy())[:n]
    theta = s_init * t * start["sigma"].numpy()[:n] / c0
    f = theta * robust(now["gamma"].numpy()) / now["sigma"].numpy()
    ratio = math.exp(quantizer.log_ratios["4"].item()) if bits == 4 else 1.0
    s = float(f.mean()) * ratio
    qn, qp = RANGES[bits]
    v = x.detach().numpy()
    inside = (v / s > qn) & (v / s < qp)
    q = np.clip(np.rint(v / s), qn, qp)
    np.testing.assert_allclose(out.detach().numpy(), q * s, rtol=1e-12)
    np.testing.assert_array_equal(x.grad.numpy(), np.where(inside, grad, 0.0))
    grad_s = float((grad * np.where(inside, q - v / s, q)).sum()) / math.sqrt(v.size * qp)
    # The mean's gradient to t_i is f_i / (m t_i); times m, and by the chain rule of the logarithm times t_i.
    np.testing.assert_allclose(quantizer.log_thetas.grad[:n].numpy(), grad_s * ratio * f, rtol=1e-9)
    assert not quantizer.log_thetas.grad[n:].any(), "channels that are not active take no part"
    if bits == 4:
        np.testing.assert_allclose(float(quantizer.log_ratios["4"].grad), grad_s * s, rtol=1e-9)
    else:
        assert quantizer.log_ratios["4"].grad is None


@pytest.mark.parametrize("bits", [2, 8])
def test_equal_factors_change_nothing(bits):
    """Eq. 6: where gamma / sigma is one number k, quantizing the folded weights is folding the quantized ones."""
    rng = np.random.default_rng(2)
    w = weights(rng)
    quantizer = predictor((bits,))
    ones = {name: torch.full((CHANNELS,), value).double() for name, value in (("gamma", 0.75), ("sigma", 1.5))}
    start = SiteContext(bits, CHANNELS, **ones)
    quantizer.start(w * 0.5, start)
    unfolded = quantizer(w * 0.5, start) / 0.5
    for k in (0.03, 1.0, 7.0):
        sigma = torch.full((CHANNELS,), 0.75 / k, dtype=torch.float64)
        ctx = SiteContext(bits, CHANNELS, gamma=ones["gamma"], sigma=sigma)
        torch.testing.assert_close(quantizer(w * k, ctx) / k, unfolded, rtol=1e-9, atol=1e-12)


def test_the_scale_does_not_grow_with_the_number_of_channels():
    rng = np.random.default_rng(3)
    found = statistics(rng)
    quantizer = predictor()
    quantizer.start(folded(weights(rng), found), SiteContext(8, CHANNELS, **found))
    whole = quantizer.scale(SiteContext(8, CHANNELS, **found)).item()
    for n in range(1, CHANNELS + 1):
        narrow = {name: value[:n] for name, value in found.items()}
        # With the statistics of the start every coefficient is s_init, up to gammas below the floor.
        assert quantizer.scale(SiteContext(8, n, **narrow)).item() == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("tiny", [1e-5, -1e-5, 0.0])
def test_tiny_and_negative_gammas_cannot_blow_it_up(tiny):
    """theta_i = s_init sigma_i / gamma_i itself would multiply a change of 0.01 in a gamma of 1e-5 by 1,000."""
    rng = np.random.default_rng(4)
    found = statistics(rng)
    found["gamma"][3] = tiny
    quantizer = predictor()
    quantizer.start(folded(weights(rng), found), SiteContext(8, CHANNELS, **found))
    before = quantizer.scale(SiteContext(8, CHANNELS, **found)).item()
    for moved in (0.01, -0.02):
        after = dataclasses.replace(
            SiteContext(8, CHANNELS, **found), gamma=found["gamma"] + torch.eye(CHANNELS)[3].double() * moved
        )
        assert quantizer.scale(after).item() == pytest.approx(before, rel=0.05)
    flipped = SiteContext(8, CHANNELS, gamma=-found["gamma"], sigma=found["sigma"])
    assert quantizer.scale(flipped).item() == pytest.approx(before, rel=1e-12)


def test_all_gammas_may_be_zero():
    assert (robust_gamma(torch.zeros(5)) > 0).all()


def test_a_layer_without_batch_normalisation_has_a_plain_learned_scale():
    rng = np.random.default_rng(5)
    w, ctx = weights(rng), SiteContext(8, CHANNELS)
    quantizer = predictor()
    quantizer.start(w, ctx)
    assert quantizer.scale(ctx).item() == pytest.approx(best_scale(w.numpy().ravel(), -128, 127), rel=0.05)
    quantizer(w, ctx).square().sum().backward()
    assert quantizer.log_thetas.grad.abs().sum() > 0
