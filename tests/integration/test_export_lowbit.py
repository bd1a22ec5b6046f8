"""Nets of blocks for few bits, from supernet to integer graph: what stays in float is said, all else is integer."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from qnas.costs import sample_costs
from qnas.deploy.onnx_export import export_onnx
from qnas.deploy.pack import read_packed, write_packed
from qnas.deploy.rounding import round_biases
from qnas.deploy.trace import trace
from qnas.nn.batchnorm import recalibrate
from qnas.nn.flexconn import FoldChannels
from qnas.nn.graph import SelectChannels
from qnas.nn.subnet import ChannelAffine, SubnetNorm
from qnas.rng import generator
from tests.conftest import random_images

SIZE = 15  # odd, and so are the maps of it
MOBILE, RESIDUAL = ("new", "fracbnn"), ("new", "fracbnn", "preactivation")
BLOCKS = [(f"basq-{name}", block) for name in ("mbv1", "mbv2") for block in MOBILE]
BLOCKS += [(f"basq-{name}", block) for name in ("resnet18", "resnet20") for block in RESIDUAL]
MOVES = {"Gather", "Pad", "Slice", "Transpose", "Flatten", "Reshape"}
INTEGER = {"QLinearConv", "QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QGemm", "Clip"}
INTEGER |= {"MaxPool", "NhwcMaxPool"}


@pytest.fixture(scope="module")
def device(registry):
    return registry.load("device", "onnxruntime")(threads=1)


@pytest.fixture
def deployed(make_family, make_supernet):
    """Returns a subnet, as it is judged and deployed, of a supernet whose batch normalisations have any sign."""

    def make(name, which="lowest", bits=2, **options):
        given = {"resolutions": (SIZE,), "image_size": SIZE, **options}
        supernet = make_supernet(make_family(name, (bits,), (bits,), **given))
        with torch.no_grad():
            for label, parameter in supernet.named_parameters():
                if ".bn.weights" in label:
                    parameter[::3] *= -1
        space = supernet.space
        drawn = space.sample(space.draw(generator(3, "export"), 1)[0])
        subnet = supernet.extract(drawn if which == "drawn" else space.lowest())
        recalibrate(subnet, [random_images(64, subnet.resolution, seed=1)])
        return round_biases(subnet.fold())

    return make


def answers(subnet, path, device):
    images = random_images(64, subnet.resolution, seed=2)
    with torch.inference_mode():
        expected = subnet(images)
    return expected, torch.from_numpy(device.run(path, images.contiguous().numpy(), 64))


def check_integer(subnet, path, device):
    """Assert that all but the batch normalisations that stand alone runs on integers, and answers as the subnet."""
    summary = export_onnx(subnet, path, metadata={})
    norms = {m.name for m in subnet.modules() if isinstance(m, SubnetNorm)}
    assert {island.name for island in summary.islands} == norms
    executed = Counter(device.operators(summary.path))
    kinds = Counter(step.kind for step in trace(subnet).steps)
    assert set(executed) <= INTEGER | MOVES | {"BatchNormalization", "QuantizeLinear", "DequantizeLinear"}
    assert executed["BatchNormalization"] == len(norms)
    assert executed["QLinearConv"] == kinds["conv"] + kinds["fold-channels"]
    assert executed["QLinearAveragePool"] == kinds["avg-pool"]
    assert executed["QLinearGlobalAveragePool"] == 1
    assert executed["QLinearAdd"] >= kinds["add"]  # and where codes change their grid
    assert executed["DequantizeLinear"] <= len(norms) + 1

    expected, found = answers(subnet, summary.path, device)
    steps = ((found - expected).abs().amax(1) / subnet.body[-1].output.scale).round()
    assert (steps <= 3).float().mean() >= 0.9  # a flip of rounding is amplified by a net that was not trained
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9
    return kinds


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_fully_quantized_only_batch_normalisations_stay_in_float(deployed, device, tmp_path, name, block):
    kinds = check_integer(deployed(name, block=block), tmp_path / "m.onnx", device)
    if block != "preactivation":
        assert kinds["avg-pool"] == {"basq-mbv2": 3, "basq-mbv1": 4, "basq-resnet18": 3, "basq-resnet20": 2}[name]
        assert kinds["select-channels"] > 0
        assert bool(kinds["fold-channels"]) == (name == "basq-mbv2")


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_with_convolutions_alone_all_else_is_in_float(deployed, device, tmp_path, name, block):
    subnet = deployed(name, block=block, conv_only=True)
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    executed = Counter(device.operators(summary.path))
    layers = [layer for layer in subnet.subnet_layers() if layer.spec.kind == "conv"]
    assert executed["QLinearConv"] == len(layers)
    assert not any(operator.startswith("QLinear") for operator in set(executed) - {"QLinearConv"})
    stays = {step.name for step in trace(subnet).steps if step.kind not in ("quantize", "conv")}
    assert {island.name for island in summary.islands} == stays
    expected, found = answers(subnet, summary.path, device)
    near = (found - expected).abs().amax(1) <= 1e-3 * expected.abs().max()
    assert near.float().mean() >= 0.9


@pytest.mark.parametrize("kinds", [[], ["expansion"], ["static", "reduction"]])
def test_only_the_skips_that_are_asked_for_are_there(deployed, device, tmp_path, kinds):
    subnet = deployed("basq-mbv2", flexconn=kinds)
    check_integer(subnet, tmp_path / "m.onnx", device)
    parts = Counter(type(m) for m in subnet.modules())
    assert bool(parts[SelectChannels]) == ("expansion" in kinds)
    assert bool(parts[nn.AvgPool2d]) == ("static" in kinds)
    assert bool(parts[FoldChannels]) == ("reduction" in kinds)


@pytest.mark.parametrize("name", ["basq-mbv1", "basq-mbv2"])
def test_an_elastic_sample_at_three_bits_with_signed_codes(deployed, device, tmp_path, name):
    check_integer(deployed(name, "drawn", bits=3, signed=True), tmp_path / "m.onnx", device)


def test_at_eight_bits_a_relu_on_codes_takes_the_place_of_the_quantizer(deployed, device, tmp_path):
    kinds = check_integer(deployed("basq-resnet20", bits=8, block="fracbnn"), tmp_path / "m.onnx", device)
    assert kinds["relu"] == 6  # in front of the two convolutions of each of three blocks


@pytest.mark.parametrize("conv_only", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("basq-mbv2", {}),
        ("basq-mbv1", {"block": "fracbnn"}),
        ("basq-resnet20", {}),
        ("basq-resnet18", {"block": "preactivation"}),
        ("mbv2", {}),
    ],
)
def test_a_packed_file_holds_all_that_the_net_computes_with(
    deployed, registry, make_family, tmp_path, name, options, conv_only
):
    subnet = deployed(name, conv_only=conv_only, **options)
    payload = write_packed(subnet, tmp_path / "m.safetensors", {})
    stored = read_packed(tmp_path / "m.safetensors")["layers"]
    layers = list(subnet.subnet_layers())
    for layer in layers:
        entry = stored.pop(layer.spec.name)
        if layer.grid is None:
            assert torch.equal(entry["weight"], layer.weight)
            continue
        values = entry["codes"] * entry["scales"].reshape(-1, 1, 1, 1)
        torch.testing.assert_close(values, layer.weight, rtol=1e-6, atol=0)
        if layer.bias is not None:
            steps = float(entry["grid_scale"]) * entry["scales"].abs() / 2 ** entry["bias_shift"]
            torch.testing.assert_close(entry["bias"] * steps, layer.bias, rtol=1e-6, atol=0)
    affines = [module for module in subnet.modules() if isinstance(module, ChannelAffine)]
    for affine in affines:
        entry = stored.pop(affine.name)
        assert torch.equal(entry["factor"], affine.factor)
        assert torch.equal(entry["offset"], affine.offset)
    assert all(entry["kind"] == "quantize" for entry in stored.values())
    raws = [layer.raw for layer in layers if layer.raw is not None]
    assert bool(raws) == conv_only
    for raw in raws:
        assert float(stored[raw.name]["grid_scale"]) == raw.scale

    space = make_family(name, (2,), (2,), conv_only=conv_only, resolutions=(SIZE,), image_size=SIZE, **options)
    cost = sample_costs(space, {"size": registry.load("cost", "size_bytes")}, subnet.sample)["size"]
    assert payload == cost
