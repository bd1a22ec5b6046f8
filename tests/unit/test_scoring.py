"""Metrics of a whole split, and what follows where a task cannot tell which images are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnas.errors import PluginError
from qnas.evaluate import Evaluator, EvaluatorSettings
from qnas.scoring import score_error, score_split
from qnas.statistics import standard_error


class Distance:
    """A regression task: no image is right or wrong."""

    metric = "nearness"

    def loss(self, outputs, targets):
        return (outputs[:, 0] - targets).square().mean()

    def score(self, outputs, targets):
        error = (outputs[:, 0] - targets).abs().mean()
        return {"nearness": 1 / (1 + error), "error": error}


class OnlyCorrect:
    metric = "share"

    def correct(self, outputs, targets):
        return outputs.argmax(1) == targets


@pytest.mark.parametrize("n", [*range(1, 40), 359, 1000, 9999])
def test_accuracy_is_the_mean_of_the_bits_to_the_last_digit(registry, n):
    rng = torch.Generator().manual_seed(n)
    outputs, labels = torch.randn(n, 3, generator=rng), torch.randint(0, 3, (n,), generator=rng)
    metrics, correct = score_split(registry.load("task", "classification")(), outputs, labels)
    assert metrics == {"accuracy": float(np.mean(outputs.argmax(1).numpy() == labels.numpy()))}
    assert torch.equal(correct, outputs.argmax(1) == labels)


def test_a_task_without_score_is_scored_by_its_correct_images():
    metrics, correct = score_split(OnlyCorrect(), torch.eye(4), torch.tensor([0, 1, 0, 0]))
    assert metrics == {"share": 0.5}
    assert correct.tolist() == [True, True, False, False]


def test_a_task_must_return_its_own_metric():
    class Forgetful(Distance):
        metric = "other"

    with pytest.raises(PluginError, match="Forgetful gives no 'other'"):
        score_split(Forgetful(), torch.zeros(2, 1), torch.zeros(2))


def test_only_shares_of_images_have_a_standard_error(registry):
    assert score_error(registry.load("task", "classification")(), 0.9, 100) == standard_error(0.9, 100)
    assert score_error(Distance(), 0.9, 100) is None


def test_an_evaluator_measures_without_knowing_which_images_are_right(make_space, make_supernet, tiny_data):
    space = make_space(num_classes=2, depths=(1,), kernels=(3,), resolutions=(16,))
    evaluator = Evaluator(
        make_supernet(space).eval(), tiny_data, Distance(), [], {}, EvaluatorSettings(calibration_images=20)
    )
    found = evaluator.evaluate(space.lowest(), "test")
    outputs = evaluator.outputs(evaluator.subnet(space.lowest()), "test")
    error = float((outputs[:, 0] - tiny_data.test.labels).abs().mean())
    assert found.metrics == {"nearness": pytest.approx(1 / (1 + error)), "error": pytest.approx(error)}
    assert (found.correct, found.packed(), found.num_images) == (None, b"", 60)
