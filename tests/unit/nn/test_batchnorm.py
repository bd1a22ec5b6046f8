"""Recalibration and banks of batch normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qnas.nn.batchnorm import ElasticBatchNorm, batch_statistics, recalibrate


def test_recalibration_averages_biased_batch_statistics():
    """Against the definition in float64: the mean over batches of the batch mean and the biased batch variance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    batches = [torch.randn(6, 2, 7, 7) * s + s for s in (1.0, 2.0, 3.0)]
    recalibrate(model, batches)
    stats = []
    for x in batches:
        y = model[0].double()(x.double())
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        z = (y - mean.reshape(1, -1, 1, 1)) / (var.reshape(1, -1, 1, 1) + 1e-5).sqrt()
        w = model[3].double()(z.relu())
        stats.append((mean, var, w.mean((0, 2, 3)), w.var((0, 2, 3), correction=0)))
    want = [torch.stack(s).mean(0) for s in zip(*stats, strict=True)]
    got = [model[1].running_mean, model[1].running_var, model[4].running_mean, model[4].running_var]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    assert not model.training


def test_each_bank_has_its_own_parameters_and_statistics():
    bn = ElasticBatchNorm(4, banks=("clip0", "clip1"))
    with torch.no_grad():
        bn.weights[1].fill_(3.0)
    x = torch.randn(8, 3, 2, 2)
    bn.train()
    first = bn(x)
    bn.select("clip1")
    second = bn(x)
    torch.testing.assert_close(second, 3 * first)
    second.sum().backward()
    assert bn.weights[0].grad is None
    assert bn.weights[1].grad is not None
    mean0, mean1 = bn.mean0.clone(), bn.mean1.clone()
    bn(x + 1)
    torch.testing.assert_close(bn.mean0, mean0)
    assert not torch.equal(bn.mean1, mean1)
    torch.testing.assert_close(bn.extract(3).weight.data, torch.full((3,), 3.0))
    with pytest.raises(KeyError, match="clip9"):
        bn.select("clip9")


def test_only_active_channels_are_updated():
    bn = ElasticBatchNorm(4).train()
    bn(torch.randn(8, 2, 3, 3) + 5)
    assert (bn.mean0[:2] > 0.2).all()
    assert (bn.mean0[2:] == 0).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_statistics_and_their_gradients_are_those_of_the_definition(channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 5, 3, 6, generator=torch.Generator().manual_seed(0)).double().contiguous(memory_format=layout)
    a, b = (x.clone(memory_format=layout).requires_grad_() for _ in range(2))
    weights = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).double()
    mean, var, count = batch_statistics(a)
    want_mean = b.mean((0, 2, 3))
    want_var = (b - want_mean.reshape(1, -1, 1, 1)).square().mean((0, 2, 3))
    torch.testing.assert_close((mean, var), (want_mean, want_var), rtol=1e-12, atol=1e-12)
    assert count == 4 * 3 * 6
    (weights[0] * mean.sin() + weights[1] * var.sqrt()).sum().backward()
    (weights[0] * want_mean.sin() + weights[1] * want_var.sqrt()).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_variances_far_from_zero_do_not_cancel():
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1000
    _, var, _ = batch_statistics(x)
    torch.testing.assert_close(var, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)
