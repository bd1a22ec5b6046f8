"""The evaluator: a function of the subnet and the named ingredients, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qnas.costs import sample_costs
from qnas.evaluate import Evaluator, EvaluatorSettings
from qnas.statistics import unpack_correct

SETTINGS = EvaluatorSettings(calibration_images=60, calibration_batch=30, batch_size=25, stage="quantized")


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(num_classes=2, resolutions=(12, 16))


@pytest.fixture
def make_evaluator(space, make_supernet, tiny_data, registry):
    def make(calibrators=None, seed=0, mode="quantize", data=tiny_data, **changes) -> Evaluator:
        costs = {name: registry.load("cost", name) for name in ("macs", "bitops", "size_bytes")}
        bn = registry.load("calibrator", "bn")()
        return Evaluator(
            make_supernet(space, seed=seed, mode=mode).eval(),
            data,
            registry.load("task", "classification")(),
            [bn] if calibrators is None else calibrators,
            costs,
            replace(SETTINGS, **changes),
        )

    return make


def samples(space, n=3):
    rows = space.draw(np.random.default_rng(0), n)
    return [space.highest(), space.lowest(), *(space.sample(row) for row in rows)]


def test_the_same_sample_is_judged_the_same_twice(make_evaluator, space):
    evaluator = make_evaluator()
    first = [evaluator.evaluate(sample) for sample in samples(space)]
    torch.manual_seed(5)
    again = [evaluator.evaluate(sample) for sample in reversed(samples(space))][::-1]
    fresh = [make_evaluator().evaluate(sample) for sample in samples(space)]
    for one, two, three in zip(first, again, fresh, strict=True):
        assert one.metrics == two.metrics == three.metrics
        np.testing.assert_array_equal(one.correct, two.correct)
        np.testing.assert_array_equal(one.correct, three.correct)


def test_samples_of_one_subnet_are_judged_the_same(make_evaluator, space):
    evaluator = make_evaluator()
    shallow = {**space.highest(), "stage1.depth": 1}
    hidden = {**shallow, "stage1.block2.kernel": 3}
    assert space.key(shallow) == space.key(hidden)
    assert evaluator.cache_key(shallow, "search") == evaluator.cache_key(hidden, "search")
    assert torch.equal(
        evaluator.outputs(evaluator.subnet(shallow), "search"), evaluator.outputs(evaluator.subnet(hidden), "search")
    )


def test_correctness_bits_agree_with_accuracy_and_costs_with_the_space(make_evaluator, space, tiny_data):
    evaluator = make_evaluator()
    for split in ("search", "test"):
        for sample in samples(space):
            found = evaluator.evaluate(sample, split)
            assert len(found.correct) == len(tiny_data.split(split))
            assert found.metrics["accuracy"] == found.correct.mean()
            np.testing.assert_array_equal(unpack_correct(found.packed(), len(found.correct)), found.correct)
            costs = {name: value for name, value in found.metrics.items() if name != "accuracy"}
            assert costs == sample_costs(space, evaluator.costs, sample)


def test_evaluating_leaves_the_supernet_as_it_was(make_evaluator, space):
    evaluator = make_evaluator()
    supernet = evaluator.supernet
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    digest = evaluator.digest()
    for sample in samples(space):
        evaluator.evaluate(sample)
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in supernet.parameters())
    assert supernet.mode == "quantize"
    evaluator._digest = None
    assert evaluator.digest() == digest


def test_changing_a_subnet_leaves_the_supernet_as_it_was(make_evaluator, space):
    evaluator = make_evaluator()
    before = {name: tensor.clone() for name, tensor in evaluator.supernet.state_dict().items()}
    subnet = evaluator.subnet(space.highest())
    with torch.no_grad():
        for tensor in [*subnet.parameters(), *subnet.buffers()]:
            tensor.zero_()
    assert all(torch.equal(t, before[name]) for name, t in evaluator.supernet.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_the_batch_size_does_not_change_the_answers(make_evaluator, space, batch_size):
    for sample in samples(space, 1):
        usual = make_evaluator().evaluate(sample)
        other = make_evaluator(batch_size=batch_size).evaluate(sample)
        np.testing.assert_array_equal(usual.correct, other.correct)
        assert usual.metrics == other.metrics


class Nudge:
    """A calibrator with a setting."""

    name = "nudge"

    def __init__(self, amount):
        self.settings = {"amount": amount}

    def calibrate(self, subnet, batches):
        pass


def test_the_cache_key_has_every_ingredient(make_evaluator, space):
    evaluator = make_evaluator()
    base = evaluator.cache_key(space.highest(), "search")
    assert make_evaluator().cache_key(space.highest(), "search") == base

    moved = make_evaluator()
    with torch.no_grad():
        next(iter(moved.supernet.parameters())).view(-1)[0] += 2.0**-20
    statistics = make_evaluator()
    buffer = next(b for n, b in statistics.supernet.named_buffers() if b.is_floating_point() and b.numel() > 1)
    buffer.view(-1)[0] += 1.0
    quantizer = make_evaluator()
    with torch.no_grad():
        next(quantizer.supernet.quantizers()[0].parameters()).add_(1.0)
    keys = {
        "sample": evaluator.cache_key({**space.highest(), "w_bits": 2}, "search"),
        "split": evaluator.cache_key(space.highest(), "test"),
        **{
            name: changed.cache_key(space.highest(), "search")
            for name, changed in {
                "weights": moved,
                "statistics": statistics,
                "quantizers": quantizer,
                "mode": make_evaluator(mode="float"),
                "stage": make_evaluator(stage="float"),
                "no calibrator": make_evaluator([]),
                "calibrator 1": make_evaluator([Nudge(1)]),
                "calibrator 2": make_evaluator([Nudge(2)]),
                "calibration images": make_evaluator(calibration_images=61),
                "calibration batch": make_evaluator(calibration_batch=31),
                "precision": make_evaluator(precision="float16"),
                "seed": Evaluator(
                    evaluator.supernet, evaluator.data, evaluator.task, evaluator.calibrators, evaluator.costs,
                    replace(SETTINGS, seed=1),
                ),
            }.items()
        },
    }  # fmt: skip
    assert base not in keys.values()
    assert len(set(keys.values())) == len(keys)


def test_the_cache_key_has_no_more_than_that(make_evaluator, space):
    base = make_evaluator().cache_key(space.highest(), "search")
    assert make_evaluator(batch_size=1).cache_key(space.highest(), "search") == base
    evaluator = make_evaluator()
    evaluator.evaluate(space.lowest(), "test")
    assert evaluator.cache_key(space.highest(), "search") == base


def test_the_order_of_calibrators_is_part_of_the_key(make_evaluator, space):
    keys = {
        make_evaluator(list(c)).cache_key(space.lowest(), "search")
        for c in ([Nudge(1), Nudge(2)], [Nudge(2), Nudge(1)])
    }
    assert len(keys) == 2


def test_calibration_sees_whole_batches_of_training_images_at_the_subnets_size(make_evaluator, space, tiny_data):
    seen = []

    class Watch(Nudge):
        def calibrate(self, subnet, batches):
            seen.extend(batches)

    evaluator = make_evaluator([Watch(0)], calibration_images=70, calibration_batch=30)
    evaluator.subnet(space.lowest())
    assert [tuple(b.shape) for b in seen] == [(30, 1, 12, 12), (30, 1, 12, 12)]
    evaluator.subnet(space.highest())
    known = {image.contiguous().numpy().tobytes() for image in tiny_data.pixels.normalise(tiny_data.train.images)}
    assert {image.contiguous().numpy().tobytes() for batch in seen[2:] for image in batch} <= known
