"""KURE: the kurtosis against scipy's, its penalty's gradient, and what it does to weights."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kurtosis as reference

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers.robustquant import RobustQuant, kurtosis

CTX = SiteContext(8, 8)


def weights(seed=0):
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_kurtosis_is_scipys():
    for values in (weights(), weights() ** 3, torch.rand(5000, generator=torch.Generator().manual_seed(1))):
        want = reference(values.double().flatten().numpy(), fisher=False)
        assert float(kurtosis(values)) == pytest.approx(want, rel=1e-4)


def test_the_penalty_is_the_squared_distance_and_has_its_gradient():
    quantizer = RobustQuant(QuantizerSite("s", "weight", (2, 8), 8, True), penalty=0.3)
    w = weights().requires_grad_()
    quantizer.start(w.detach(), CTX)
    quantizer.train()
    quantizer(w, CTX)
    penalty = quantizer.penalty(CTX)
    assert penalty.item() == pytest.approx(0.3 * (kurtosis(w).item() - 1.8) ** 2)
    penalty.backward()
    v = w.detach().double().requires_grad_()
    d = v - v.mean()
    (0.3 * ((d**4).mean() / (d**2).mean() ** 2 - 1.8) ** 2).backward()
    torch.testing.assert_close(w.grad.double(), v.grad, rtol=1e-3, atol=1e-7)
    assert quantizer.penalty(CTX) is None  # once a step


def test_weights_become_uniform():
    quantizer = RobustQuant(QuantizerSite("s", "weight", (8,), 8, True), penalty=1.0)
    w = weights().requires_grad_()
    quantizer.start(w.detach(), CTX)
    optimizer = torch.optim.Adam([w], lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        quantizer(w, CTX)
        quantizer.penalty(CTX).backward()
        optimizer.step()
    assert kurtosis(w).item() == pytest.approx(1.8, abs=0.05)


def test_activations_and_evaluation_have_no_penalty():
    for role, training in (("activation", True), ("weight", False)):
        quantizer = RobustQuant(QuantizerSite("s", role, (8,), 4, True)).train(training)
        quantizer.start(weights(), CTX)
        quantizer(weights().requires_grad_(), CTX)
        assert quantizer.penalty(CTX) is None


def test_the_penalty_is_part_of_a_supernets_loss(make_family, make_supernet):
    from tests.conftest import random_images

    space = make_family("resnet20", elastic=False)
    supernet = make_supernet(space, weight=RobustQuant, act=RobustQuant)
    supernet.train()
    supernet.activate(space.highest())
    supernet(random_images(4, 16))
    penalty = supernet.penalty()
    assert penalty is not None
    assert penalty.item() > 0


@pytest.mark.parametrize("options", [{"kurtosis": 0.5}, {"penalty": -1.0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match="robustquant"):
        RobustQuant(QuantizerSite("s", "weight", (8,), 4, True), **options)
