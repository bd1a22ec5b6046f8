"""DoReFa as Any-Precision has it, against its formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnas.errors import PluginError
from qnas.nn.grid import CodebookGrid
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.dorefa import DoReFa

BITS = (2, 3, 4, 8)


def weights(seed=0):
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_those_of_the_formula(bits):
    quantizer, w, ctx = DoReFa(QuantizerSite("s", "weight", BITS, 8, True)), weights(), SiteContext(bits, 8)
    v, n = w.numpy(), 2**bits - 1
    squashed = np.tanh(v) / np.abs(np.tanh(v)).max()
    want = (2 * np.rint((squashed / 2 + 0.5) * n) / n - 1) * np.abs(v).mean()
    np.testing.assert_allclose(quantizer(quantizer.prepare(w, ctx), ctx).numpy(), want, atol=1e-6)
    grid = quantizer.export(ctx)
    assert isinstance(grid, CodebookGrid)
    assert 0.0 not in grid.table
    np.testing.assert_allclose(grid.quantize(quantizer.prepare(w, ctx)).numpy(), want, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_of_weights_is_that_of_tanh_and_its_scale(bits):
    quantizer, ctx = DoReFa(QuantizerSite("s", "weight", BITS, 8, True)), SiteContext(bits, 8)
    w = weights().requires_grad_()
    grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    quantizer(quantizer.prepare(w, ctx), ctx).backward(grad)
    other = weights().requires_grad_()
    squashed = torch.tanh(other)
    (squashed / squashed.abs().max() * other.detach().abs().mean()).backward(grad)
    torch.testing.assert_close(w.grad, other.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("bits", BITS)
def test_activations_are_cut_at_one(bits):
    quantizer, n = DoReFa(QuantizerSite("s", "activation", BITS, 8, signed=False)), 2**bits - 1
    x = torch.linspace(-0.5, 1.5, 398, dtype=torch.float64).requires_grad_()
    out = quantizer(x, SiteContext(bits, 8))
    np.testing.assert_allclose(out.detach().numpy(), np.rint(np.clip(x.detach().numpy(), 0, 1) * n) / n, atol=1e-6)
    out.sum().backward()
    inside = (x.detach() >= 0) & (x.detach() <= 1)
    assert torch.equal(x.grad, inside.double())


def test_what_has_8_bits_everywhere_follows_its_range():
    quantizer = DoReFa(QuantizerSite("stem", "weight", (8,), 8, True, fixed=True))
    w = weights().float()
    quantizer.start(w, SiteContext(8, 8))
    assert quantizer.prepare(w, SiteContext(8, 8)) is w
    assert (quantizer(w, SiteContext(8, 8)) - w).abs().max() < 0.02


def test_folded_weights_are_refused():
    quantizer = DoReFa(QuantizerSite("s", "weight", BITS, 8, True))
    with pytest.raises(PluginError, match="--folding none"):
        quantizer.prepare(weights(), SiteContext(4, 8, gamma=torch.ones(8), mean=torch.zeros(8), sigma=torch.ones(8)))


def test_subnets_are_what_the_supernet_computes(make_family, make_supernet):
    from tests.conftest import random_images

    space = make_family("resnet20", elastic=False)
    supernet = make_supernet(space, weight=DoReFa, act=DoReFa)
    supernet.eval()
    images = random_images(8, 16)
    sample = space.lowest()
    subnet = supernet.extract(sample).eval()
    supernet.activate(sample)
    with torch.no_grad():
        torch.testing.assert_close(subnet(images), supernet(images), rtol=1e-4, atol=1e-5)
