"""Any-Precision's draws and what its subnets learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnas_plugins.samplers.every_bits import EveryBits
from qnas_plugins.supervisions.recursive import RecursiveDistillation
from qnas_plugins.tasks.classification import Classification


def bits_of(space, samples):
    knobs = {k.label: k.role for k in space.knobs if k.role in ("w_bits", "a_bits")}
    return [
        {role: {s[label] for label, r in knobs.items() if r == role} for role in ("w_bits", "a_bits")} for s in samples
    ]


@pytest.mark.parametrize("granularity", ["network", "layer"])
def test_every_bit_width_comes_once_the_highest_first(make_space, granularity):
    space = make_space(w_bits=(2, 3, 5, 8), a_bits=(2, 3, 5, 8), granularity=granularity)
    samples = EveryBits().draw(space, np.random.default_rng(0), 4)
    assert bits_of(space, samples) == [{"w_bits": {b}, "a_bits": {b}} for b in (8, 5, 3, 2)]
    assert all(s["resolution"] == space.highest()["resolution"] for s in samples)


def test_fewer_keep_the_ends_and_more_come_again(make_space):
    space = make_space(w_bits=(2, 3, 5, 8), a_bits=(2, 3, 5, 8))
    for n in (1, 2, 3, 6):
        found = [s["w_bits"] for s in EveryBits().draw(space, np.random.default_rng(n), n)]
        assert len(found) == n
        assert found[0] == 8
        assert n == 1 or found[-1] == 2
        assert found == sorted(found, reverse=True)


def test_what_lacks_a_bit_width_has_the_nearest_lower_one(make_space):
    space = make_space(w_bits=(2, 4), a_bits=(4, 8))
    found = [(s["w_bits"], s["a_bits"]) for s in EveryBits().draw(space, np.random.default_rng(0), 3)]
    assert found == [(4, 8), (4, 4), (2, 4)]


def test_each_subnet_learns_from_the_one_before():
    supervision = RecursiveDistillation(Classification())
    logits = [torch.randn(5, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    labels = torch.tensor([0, 1, 2, 0, 1])
    supervision.begin_step(torch.zeros(5, 1, 2, 2), labels)
    losses = [float(supervision.loss(i, x.float(), labels)) for i, x in enumerate(logits)]
    log = [np.log(np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True)) for x in logits]
    assert losses[0] == pytest.approx(-log[0][np.arange(5), labels.numpy()].mean(), rel=1e-5)
    for i in (1, 2):
        assert losses[i] == pytest.approx(-(np.exp(log[i - 1]) * log[i]).sum(1).mean(), rel=1e-5)


def test_teachers_learn_nothing_from_their_pupils():
    supervision = RecursiveDistillation(Classification())
    labels = torch.tensor([0, 1])
    first, second = (torch.randn(2, 2).requires_grad_() for _ in range(2))
    supervision.begin_step(torch.zeros(2, 1, 2, 2), labels)
    supervision.loss(0, first, labels)
    supervision.loss(1, second, labels).backward()
    assert first.grad is None
