"""Supervisions against plain float64 formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qnas.errors import ConfigError
from qnas.nn.ranks import Ranks
from qnas.testing.parts import ToyTask
from qnas_plugins.supervisions.adaptive import AdaptiveLabel
from qnas_plugins.supervisions.smoothing import LabelSmoothing

CLASSES = 5


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def outputs(seed, n=16, passes=4):
    """Return logits ``[passes, N, classes]`` and labels ``[N]`` of a step, of which class 4 is never answered."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(passes, n, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, n)
    labels[0] = 4
    logits[:, :, 4] = -20.0
    return logits, labels


def step(supervision, logits, labels):
    """Let a supervision go through a step; return its losses."""
    y = torch.from_numpy(labels)
    supervision.begin_step(torch.zeros(len(labels), 1, 2, 2), y)
    return [supervision.loss(i, torch.from_numpy(z), y).item() for i, z in enumerate(logits)]


def reference_labels(steps):
    """Return Eq. 3, written out image by image: ``[classes, classes]``."""
    sums = np.zeros((CLASSES, CLASSES))
    for logits, labels in steps:
        p = np.array([softmax(z.astype(np.float64)) for z in logits])
        for i, y in enumerate(labels):
            if any(z[i].argmax() == y for z in logits):
                sums[y] += p[:, i].sum(0) / len(logits)
    return np.array([row / row.sum() if row.sum() else np.eye(CLASSES)[y] for y, row in enumerate(sums)])


def reference_loss(z, labels, adaptive, zeta):
    """Return Eq. 4, the mean over the images."""
    target = (1 - zeta) * np.eye(CLASSES)[labels] + zeta * adaptive[labels]
    return float(-(target * np.log(softmax(z.astype(np.float64)))).sum(1).mean())


def test_the_adaptive_label_is_equation_3_and_its_loss_equation_4():
    supervision = AdaptiveLabel(ToyTask(), zeta=0.3)
    adaptive = np.eye(CLASSES)  # the first epoch learns hard labels
    for epoch in range(3):
        steps = [outputs([epoch, i], passes=passes) for i, passes in enumerate((4, 4, 3))]
        for logits, labels in steps:
            expected = [reference_loss(z, labels, adaptive, 0.3) for z in logits]
            np.testing.assert_allclose(step(supervision, logits, labels), expected, rtol=1e-5)
        supervision.end_epoch(Ranks())
        adaptive = reference_labels(steps)
        np.testing.assert_allclose(supervision.labels.numpy(), adaptive, rtol=1e-6)
        np.testing.assert_allclose(supervision.labels.sum(1).numpy(), 1.0)
        assert (supervision.labels[4] == torch.eye(CLASSES)[4]).all()  # nobody was right: the one-hot label


def test_the_gradient_is_that_of_cross_entropy_with_the_mixed_label():
    supervision = AdaptiveLabel(ToyTask(), zeta=0.5)
    step(supervision, *outputs(0))
    supervision.end_epoch(Ranks())
    logits, labels = outputs(1)
    leaf = torch.from_numpy(logits[0]).requires_grad_()
    y = torch.from_numpy(labels)
    supervision.begin_step(torch.zeros(len(labels), 1, 2, 2), y)
    supervision.loss(0, leaf, y).backward()
    target = 0.5 * np.eye(CLASSES)[labels] + 0.5 * supervision.labels.numpy()[labels]
    np.testing.assert_allclose(leaf.grad.numpy(), (softmax(logits[0]) - target) / len(labels), atol=1e-7)


def test_an_image_counts_once_any_subnet_is_right_and_then_with_all_of_them():
    right, wrong = np.array([[9.0, 0, 0, 0, 0]]), np.array([[0.0, 9, 0, 0, 0]])
    supervision = AdaptiveLabel(ToyTask())
    step(supervision, np.stack([wrong, right]).astype(np.float32), np.array([0]))
    supervision.end_epoch(Ranks())
    mean = (softmax(right)[0] + softmax(wrong)[0]) / 2
    np.testing.assert_allclose(supervision.labels[0].numpy(), mean, rtol=1e-6)
    supervision = AdaptiveLabel(ToyTask())
    step(supervision, np.stack([wrong, wrong]).astype(np.float32), np.array([0]))
    supervision.end_epoch(Ranks())
    assert (supervision.labels == torch.eye(CLASSES)).all()


def test_processes_add_their_rows():
    """Two processes with halves of each batch make the label of one with all of it."""
    logits, labels = outputs(3)
    whole = AdaptiveLabel(ToyTask())
    step(whole, logits, labels)
    whole.end_epoch(Ranks())
    halves = [AdaptiveLabel(ToyTask()) for _ in range(2)]
    for half, part in zip(halves, (slice(0, 8), slice(8, 16)), strict=True):
        step(half, logits[:, part], labels[part])
        half._count()
        half._step = None
    sums = [half._sums for half in halves]

    class Two(Ranks):
        size = 2

        def mean(self, x):
            return (sums[0] + sums[1]) / 2

    for half in halves:
        half.end_epoch(Two())
        torch.testing.assert_close(half.labels, whole.labels)


def test_a_checkpoint_between_epochs_holds_all_of_it():
    one, other = AdaptiveLabel(ToyTask()), AdaptiveLabel(ToyTask())
    step(one, *outputs(0))
    one.end_epoch(Ranks())
    other.load_state_dict(one.state_dict())
    for supervision in (one, other):
        step(supervision, *outputs(1))
        supervision.end_epoch(Ranks())
    assert torch.equal(one.labels, other.labels)
    fresh = AdaptiveLabel(ToyTask())
    assert fresh.state_dict() == {}
    fresh.load_state_dict({})
    assert fresh.labels is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing(smoothing):
    logits, labels = outputs(0)
    target = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    expected = [float(-(target * np.log(softmax(z.astype(np.float64)))).sum(1).mean()) for z in logits]
    np.testing.assert_allclose(
        step(LabelSmoothing(ToyTask(), smoothing=smoothing), logits, labels), expected, rtol=1e-5
    )


@pytest.mark.parametrize(("make", "value"), [(AdaptiveLabel, 1.5), (AdaptiveLabel, -0.1), (LabelSmoothing, 1.0)])
def test_weights_out_of_range_are_refused(make, value):
    name = "zeta" if make is AdaptiveLabel else "smoothing"
    with pytest.raises(ConfigError, match=f"{name} must be .*; given: {value}"):
        make(ToyTask(), **{name: value})


def test_zeta_0_is_the_hard_label():
    logits, labels = outputs(2)
    supervision = AdaptiveLabel(ToyTask(), zeta=0.0)
    step(supervision, *outputs(1))
    supervision.end_epoch(Ranks())
    expected = [-math.log(softmax(z.astype(np.float64))[np.arange(16), labels].prod()) / 16 for z in logits[:1]]
    np.testing.assert_allclose(step(supervision, logits[:1], labels), expected, rtol=1e-5)


def test_adaptive_labels_begin_anew_with_each_stage_and_rest_while_nothing_is_quantized():
    supervision = AdaptiveLabel(ToyTask())
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    hard = torch.nn.functional.cross_entropy(logits, labels)

    def epoch():
        supervision.begin_step(torch.zeros(2, 1, 2, 2), labels)
        loss = supervision.loss(0, logits, labels)
        supervision.end_epoch(Ranks())
        return loss

    supervision.begin_stage(False, 0)
    assert [epoch(), epoch()] == [hard, hard]
    assert supervision.state_dict() == {}
    supervision.begin_stage(True, 0)
    assert epoch() == hard
    assert epoch() != hard
    state = supervision.state_dict()
    supervision.begin_stage(True, 2)  # goes on
    assert torch.equal(supervision.state_dict()["labels"], state["labels"])
    supervision.begin_stage(True, 0)
    assert epoch() == hard
