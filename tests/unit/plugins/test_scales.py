"""Scales of a subnet's own folded weights: predicted, and fitted."""

from __future__ import annotations

import pytest
import torch

from qnas.nn.batchnorm import recalibrate
from qnas.nn.folding import folding_policy
from qnas_plugins.calibrators.scales import ScalePredictorCalibrator, ScaleRefitCalibrator
from qnas_plugins.quantizers.lsq import LSQ
from qnas_plugins.quantizers.scale_predictor import ScalePredictor
from tests.conftest import random_images


@pytest.fixture(params=["batch", "moving"])
def supernet(request, make_space, make_supernet):
    space = make_space(w_bits=(4, 8), a_bits=(8,), se=False, act="relu")
    return make_supernet(space, folding=folding_policy(request.param), weight=ScalePredictor)


def calibrated(supernet, sample=None):
    subnet = supernet.extract(sample or supernet.space.lowest())
    recalibrate(subnet, [random_images(32, subnet.resolution, seed=seed) for seed in range(2)])
    return subnet


def folding_layers(subnet):
    return [layer for layer in subnet.subnet_layers() if layer.folds]


def test_scales_are_predicted_from_the_calibrated_statistics(supernet):
    subnet = calibrated(supernet)
    ScalePredictorCalibrator().calibrate(subnet, [])
    layers = folding_layers(subnet)
    assert layers
    want = []
    for layer in layers:
        sigma = torch.sqrt(layer.bn.running_var + layer.bn.eps)
        quantizer = next(q for q in supernet.quantizers() if q.site.name == layer.spec.name and q.site.role == "weight")
        theta = quantizer.log_thetas.detach()[: layer.spec.out_channels].exp()
        gamma = layer.bn.weight.detach().abs()  # between 0.5 and 1.5: far above the floor
        n = layer.spec.out_channels
        start = quantizer.start_scale * quantizer.sigma[:n] / quantizer.gamma[:n]
        ratio = 1.0 if layer.spec.w_bits == 8 else quantizer.log_ratios["4"].detach().exp()
        want.append(float((start * theta * gamma / sigma).mean() * ratio))
    subnet.fold()
    found = [float(layer.grid.scale) for layer in layers]
    assert found == pytest.approx(want, rel=1e-5)


def test_without_the_calibrator_all_subnets_share_the_scale_of_the_supernet(supernet):
    subnet = calibrated(supernet)
    shared = []
    for layer in folding_layers(subnet):
        norm = next(m for m in supernet.modules() if getattr(m, "name", "") == layer.spec.name and hasattr(m, "bn")).bn
        _, var = norm.running(layer.spec.out_channels)
        quantizer = next(q for q in supernet.quantizers() if q.site.name == layer.spec.name and q.site.role == "weight")
        ctx = layer._folded_context(var * 0, torch.sqrt(var + norm.eps))
        shared.append(float(quantizer.export(ctx).scale))
    layers = folding_layers(subnet)
    predicted = calibrated(supernet)
    ScalePredictorCalibrator().calibrate(predicted, [])
    own = folding_layers(predicted)
    subnet.fold()
    predicted.fold()
    assert [float(layer.grid.scale) for layer in layers] == pytest.approx(shared, rel=1e-6)
    assert [float(layer.grid.scale) for layer in own] != pytest.approx(shared, rel=1e-2)


def test_fitted_scales_have_the_least_error_of_all_three(supernet):
    errors = {}
    for name, calibrators in (
        ("shared", []),
        ("predicted", [ScalePredictorCalibrator()]),
        ("fitted", [ScaleRefitCalibrator()]),
        ("predicted, then fitted", [ScalePredictorCalibrator(), ScaleRefitCalibrator()]),
    ):
        subnet = calibrated(supernet)
        layers = folding_layers(subnet)
        wanted = [layer.folded_weight() for layer in layers]
        for calibrator in calibrators:
            calibrator.calibrate(subnet, [])
        subnet.fold()
        errors[name] = [float((a.weight - b).square().sum()) for a, b in zip(layers, wanted, strict=True)]
    assert all(
        f <= min(s, p) * 1.001 for f, s, p in zip(*(errors[n] for n in ("fitted", "shared", "predicted")), strict=True)
    )
    assert errors["fitted"] == pytest.approx(errors["predicted, then fitted"], rel=1e-6)


def test_a_scale_that_is_learned_stays_as_it_is(make_space, make_supernet):
    space = make_space(w_bits=(4,), a_bits=(8,), se=False, act="relu")
    supernet = make_supernet(space, folding=folding_policy("batch"), weight=LSQ)
    plain, predicted = calibrated(supernet), calibrated(supernet)
    ScalePredictorCalibrator().calibrate(predicted, [])
    plain.fold()
    predicted.fold()
    for a, b in zip(plain.subnet_layers(), predicted.subnet_layers(), strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=0)


def test_weights_that_are_quantized_before_folding_are_left_alone(make_space, make_supernet):
    supernet = make_supernet(make_space(w_bits=(4,), a_bits=(8,)))
    subnet = calibrated(supernet)
    before = [layer.weight.clone() for layer in subnet.subnet_layers()]
    for calibrator in (ScalePredictorCalibrator(), ScaleRefitCalibrator()):
        calibrator.calibrate(subnet, [])
    for layer, weight in zip(subnet.subnet_layers(), before, strict=True):
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0)
