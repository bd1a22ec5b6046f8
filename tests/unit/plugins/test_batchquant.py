"""BatchQuant against an independent float64 reference, gradients included; ranges of batches and of subnets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qnas.nn.batchnorm import recalibrate
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas.nn.ranks import Ranks
from qnas_plugins.quantizers.batchquant import BatchQuant
from tests.conftest import random_images


def activations(signed: bool, seed: int = 0) -> torch.Tensor:
    x = torch.tensor(np.random.default_rng(seed).normal(0.3, 1.0, (5, 4, 3, 3)))
    return x if signed else x.clamp(min=0)


def quantizer_of(signed: bool, bits=(2, 4, 8)) -> BatchQuant:
    return BatchQuant(QuantizerSite("site", "activation", bits, 6, signed)).double()


def reference(x: np.ndarray, bits: int, log_ratio: float, shift: float, signed: bool, grad: np.ndarray):
    """The quantizer written again, value by value: output and gradients to x, log ratio and shift."""
    levels = 2**bits - 1
    lows, highs = x.min((0, 2, 3)), x.max((0, 2, 3))
    low, high = (min(lows.mean(), 0.0) if signed else 0.0), max(highs.mean(), 0.0)
    s = (high - low) / levels
    zero_point = min(max(round(-low / s + (shift * levels if signed else 0.0)), 0), levels)
    step = s * math.exp(log_ratio)
    qn, qp = -zero_point, levels - zero_point
    g = 1 / math.sqrt(x[0].size * max(qp, 1))
    out, grad_x, grad_r, grad_o = np.empty_like(x), np.empty_like(x), 0.0, 0.0
    for i, value in np.ndenumerate(x):
        ratio = value / step
        q = min(max(float(np.rint(ratio)), qn), qp)
        out[i] = q * step
        inside = qn < ratio < qp
        grad_x[i] = grad[i] if inside else 0.0
        grad_r += grad[i] * (q - ratio if inside else q) * step
        grad_o += 0.0 if inside else -grad[i] * step * levels
    return out, grad_x, grad_r * g, grad_o * g


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_and_gradients_equal_the_formulas(bits, signed):
    quantizer = quantizer_of(signed)
    x = activations(signed).requires_grad_()
    quantizer.start(x.detach(), SiteContext(bits, 4))
    with torch.no_grad():
        quantizer.log_ratios[str(bits)].fill_(-0.3)  # some values are clipped
        if signed:
            quantizer.shifts[str(bits)].fill_(0.11)
    grad = np.random.default_rng(1).normal(size=x.shape)
    out = quantizer(x, SiteContext(bits, 4))
    out.backward(torch.tensor(grad))
    want, want_x, want_r, want_o = reference(x.detach().numpy(), bits, -0.3, 0.11, signed, grad)
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(x.grad.numpy(), want_x)
    np.testing.assert_allclose(quantizer.log_ratios[str(bits)].grad.item(), want_r, rtol=1e-5)
    if signed:
        np.testing.assert_allclose(quantizer.shifts[str(bits)].grad.item(), want_o, rtol=1e-5)
    others = [p for name, p in quantizer.named_parameters() if not name.endswith(f".{bits}")]
    assert all(p.grad is None for p in others), "bit-widths that are not active take no part"


def test_one_outlier_moves_the_range_by_its_share_of_the_channels():
    quantizer, x = quantizer_of(True), activations(True)
    before = quantizer.batch_range(x)
    x[0, 0, 0, 0] = 1000.0
    after = quantizer.batch_range(x)
    assert float(after[1]) == pytest.approx(float(before[1] + (1000.0 - activations(True)[:, 0].max()) / 4))
    assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-6)


def test_several_processes_share_one_range():
    whole, halves = activations(True), activations(True).split([2, 3])

    class Both(Ranks):
        """Two processes: this one's values and the other's, channel by channel."""

        def __init__(self, other: torch.Tensor) -> None:
            self.other = other

        def minimum(self, x):
            return torch.minimum(x, self.other.amin((0, 2, 3)))

        def maximum(self, x):
            return torch.maximum(x, self.other.amax((0, 2, 3)))

    want = quantizer_of(True).batch_range(whole)
    for mine, other in (halves, halves[::-1]):
        quantizer = quantizer_of(True)
        quantizer.ranks = Both(other)
        torch.testing.assert_close(quantizer.batch_range(mine), want, rtol=0, atol=0)


def test_a_subnet_is_calibrated_to_the_mean_range_of_its_own_batches(make_space, make_supernet):
    space = make_space(w_bits=(8,), a_bits=(4,), se=False, act="relu")
    supernet = make_supernet(space, act=BatchQuant).eval()
    subnet = supernet.extract(space.lowest())
    site = next(m for m in subnet.modules() if hasattr(m, "start_calibration"))
    shared = site.grid.scale.item()
    batches = [random_images(16, subnet.resolution, seed=seed) for seed in range(3)]
    seen: list[torch.Tensor] = []
    site.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    recalibrate(subnet, batches)
    quantizer = site._quantizer[0]
    mean = torch.stack([quantizer.batch_range(x) for x in seen]).mean(0)
    want = quantizer.range_grid(mean, site._ctx)
    assert site.grid.scale.item() == pytest.approx(want.scale.item(), rel=1e-6)
    assert site.grid.zero_point == want.zero_point
    assert site.grid.scale.item() != pytest.approx(shared, rel=1e-3)
    subnet.fold()
    before = site.grid
    subnet(random_images(4, subnet.resolution, seed=9) * 100)
    assert site.grid is before, "a calibrated subnet's grid stays"


def test_the_supernet_follows_its_running_range_when_it_is_judged():
    quantizer, ctx = quantizer_of(False), SiteContext(4, 4)
    quantizer.start(activations(False), ctx)
    quantizer.train()
    quantizer(3 * activations(False, 1), ctx)
    want = 0.9 * quantizer_of(False).batch_range(activations(False)) + 0.1 * quantizer_of(False).batch_range(
        3 * activations(False, 1)
    )
    assert quantizer.export(ctx).scale.item() == pytest.approx(want[1].item() / 15, rel=1e-5)
