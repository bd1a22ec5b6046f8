"""Exported features: one output a stride, and ONNX Runtime answers as the subnet's own."""

from __future__ import annotations

import json

import onnx
import pytest
import torch

from qnas.deploy import check_features, export_features, round_biases
from qnas.errors import ExportError
from qnas.evaluate import Evaluator, EvaluatorSettings
from qnas.exports import Exports
from qnas.nn.batchnorm import recalibrate
from qnas.nn.features import backbone, feature_subnet, find_taps
from qnas.nn.flexconn import FoldChannels
from qnas.nn.subnet import SubnetNorm
from qnas.store import CONFIG, RunDirectory
from tests.conftest import TINY, random_images

STRIDES = (2, 4, 8, 16)


@pytest.fixture(scope="module")
def device(registry):
    return registry.load("device", "onnxruntime")(threads=1)


@pytest.mark.parametrize("name", ["mbv3", *TINY])
def test_the_features_of_every_space_run_on_integers(make_space, make_family, make_supernet, device, tmp_path, name):
    options = {"se": False, "act": "relu"} if name == "mbv3" else {}
    space = make_space(granularity="layer", **options) if name == "mbv3" else make_family(name, **options)
    net = make_supernet(space)
    net.activate(space.highest())
    taps = find_taps(net, STRIDES)
    features = backbone(net, taps).describe(16)
    subnet = net.extract(space.highest())
    recalibrate(subnet, [random_images(64, 16, seed=1)])
    subnet = feature_subnet(round_biases(subnet.fold()), taps)
    path = tmp_path / "features.onnx"
    summary, outputs = export_features(subnet, features, path, metadata={"qnas.config": "key"})
    norms = {m.name for m in subnet.modules() if isinstance(m, SubnetNorm)}  # of the blocks for few bits alone
    assert {island.name for island in summary.islands} == norms
    assert bool(norms) == name.startswith("basq-")
    model = onnx.load(path)
    shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim][1:] for o in model.graph.output}
    assert shapes == {f"stride{f.stride}": [f.channels, f.size, f.size] for f in features}
    assert [o["name"] for o in outputs] == list(shapes)
    assert not {n.op_type for n in model.graph.node} & {"GlobalAveragePool", "Gemm"}
    executed = device.operators(str(path))
    summed = sum(isinstance(m, FoldChannels) for m in subnet.modules())
    assert executed["QLinearConv"] == summed + sum(1 for _ in subnet.subnet_layers())
    assert "Conv" not in executed
    num_images, checks = check_features(subnet, path, device, [random_images(40, 16, seed=2)] * 2, 64)
    assert num_images == 64
    for output in outputs:
        check = checks[output["name"]]
        assert check.passed
        assert check.identical > 0.99
        grid = output["grid"]
        with torch.no_grad():
            value = dict(zip(shapes, subnet(random_images(8, 16)), strict=True))[output["name"]]
        codes = value / grid["scale"] + grid["zero_point"]
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        assert codes.min() > grid["low"] - 0.1
        assert codes.max() < grid["high"] + 0.1


def test_a_model_of_other_weights_does_not_pass(make_family, make_supernet, device, tmp_path):
    subnets = []
    for seed in (0, 1):
        net = make_supernet(make_family("resnet20"), seed=seed)
        net.activate(net.space.highest())
        taps = find_taps(net)
        features = backbone(net, taps).describe(16)
        subnets.append(feature_subnet(net.extract(net.space.highest()), taps).fold())
    export_features(subnets[0], features, tmp_path / "f.onnx", metadata={})
    _, checks = check_features(subnets[1], tmp_path / "f.onnx", device, [random_images(16, 16)], 16)
    assert not any(check.passed for check in checks.values())


@pytest.fixture
def exports(tmp_path, make_space, make_supernet, tiny_data, registry, device):
    def build(mode="quantize"):
        space = make_space(num_classes=2, depths=(1,), kernels=(3,), se=False, act="relu")
        evaluator = Evaluator(
            make_supernet(space, mode=mode).eval(),
            tiny_data,
            registry.load("task", "classification")(),
            [registry.load("calibrator", "bn")()],
            {},
            EvaluatorSettings(calibration_images=60, calibration_batch=30),
        )
        (tmp_path / CONFIG).touch()
        return Exports(RunDirectory(tmp_path, read_only=True), evaluator, device, "onnxruntime")

    return build


def test_a_run_writes_features_beside_its_models(exports, tmp_path):
    made = exports()
    sample = made.evaluator.supernet.space.lowest()
    value = made.export_features(sample)
    folder = tmp_path / "exports" / value["key"]
    assert json.loads((folder / "features.json").read_text()) == value
    assert tmp_path / value["onnx"] == folder / "features.onnx"
    assert [(o["stride"], o["size"]) for o in value["outputs"]] == [(4, 3), (8, 2)]  # of 12 pixels, the lowest
    assert value["resolution"] == 12
    assert value["input"]["input.zero_point"] == "100"
    assert set(value["checks"]) == {"stride4", "stride8"}
    assert value["passed"]
    assert value["num_images"] == 60


def test_a_float_stage_has_no_integer_features(exports):
    made = exports("float")
    with pytest.raises(ExportError, match="does not quantize both weights and activations"):
        made.export_features(made.evaluator.supernet.space.lowest())
