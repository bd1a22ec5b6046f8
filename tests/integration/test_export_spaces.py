"""Every family from supernet to integer graph, in miniature: integers alone, and the runtime answers as the subnet."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from qnas.costs import sample_costs
from qnas.deploy.onnx_export import export_onnx
from qnas.deploy.pack import read_packed, write_packed
from qnas.deploy.rounding import round_biases
from qnas.nn.batchnorm import recalibrate
from qnas.nn.subnet import PaddedShortcut
from qnas.rng import generator
from tests.conftest import TINY, random_images

INTEGER = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Clip", "MaxPool", "NhwcMaxPool"}
ON_CODES = {"Slice", "Pad", "Transpose", "Flatten", "Reshape"}
FAMILIES = [name for name in sorted(TINY) if not name.startswith("basq-")]  # those have test_export_lowbit.py
CASES = [(name, "small") for name in FAMILIES] + [("mbv2", "large"), ("resnet18", "large"), ("resnet50", "large")]


@pytest.fixture(scope="module")
def device(registry):
    return registry.load("device", "onnxruntime")(threads=1)


@pytest.fixture(scope="module")
def deployed(make_family, make_supernet):
    """Returns a subnet, as it is judged and deployed, of a supernet whose batch normalisations have any sign."""
    supernets = {}

    def make(name, size, bits, which, mode="quantize"):
        if (name, size, bits, mode) not in supernets:
            options = {} if name == "resnet20" else {"size": size}
            supernet = make_supernet(make_family(name, (bits,), (bits,), **options), mode=mode)
            with torch.no_grad():
                for label, parameter in supernet.named_parameters():
                    if ".bn.weights" in label:
                        parameter[::3] *= -1
            supernets[name, size, bits, mode] = supernet
        supernet = supernets[name, size, bits, mode]
        space = supernet.space
        sample = {"highest": space.highest(), "lowest": space.lowest()}.get(which)
        subnet = supernet.extract(sample or space.sample(space.draw(generator(3, "export"), 1)[0]))
        recalibrate(subnet, [random_images(64, subnet.resolution, seed=1)])
        return space, round_biases(subnet.fold())

    return make


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("which", ["highest", "lowest", "random"])
@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_operator_is_an_integer_one(deployed, device, registry, tmp_path, name, size, bits, which):
    space, subnet = deployed(name, size, bits, which)
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert summary.islands == ()
    executed = Counter(device.operators(summary.path))
    assert executed.pop("QuantizeLinear") == executed.pop("DequantizeLinear") == 1
    assert set(executed) <= INTEGER | ON_CODES
    kinds = Counter(layer.spec.kind for layer in subnet.subnet_layers())
    assert (executed["QLinearConv"], executed["QGemm"]) == (kinds["conv"], 1)
    pads = [m for m in subnet.modules() if isinstance(m, PaddedShortcut)]
    assert executed["Slice"] == len(pads) == (2 if name == "resnet20" else 0)
    assert executed["MaxPool"] + executed["NhwcMaxPool"] == sum(isinstance(m, nn.MaxPool2d) for m in subnet.modules())

    images = random_images(64, subnet.resolution, seed=2)
    with torch.inference_mode():
        expected = subnet(images)
    found = torch.from_numpy(device.run(summary.path, images.contiguous().numpy(), 64))
    steps = ((found - expected).abs().amax(1) / subnet.body[-1].output.scale).round()
    # Runtimes round a few sums to the neighbouring code, which a net that was not trained amplifies.
    assert (steps <= 3).float().mean() >= 0.9
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9

    payload = write_packed(subnet, tmp_path / "m.safetensors", {})
    cost = sample_costs(space, {"size": registry.load("cost", "size_bytes")}, subnet.sample)["size"]
    assert payload == cost
    assert set(read_packed(tmp_path / "m.safetensors")["layers"]) == {spec.name for spec in subnet.layers}


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_in_float_the_graph_answers_as_the_subnet(deployed, device, tmp_path, name):
    _, subnet = deployed(name, "large", 8, "random", mode="float")
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert "QuantizeLinear" not in summary.operators
    images = random_images(16, subnet.resolution, seed=2)
    with torch.inference_mode():
        expected = subnet(images)
    found = torch.from_numpy(device.run(summary.path, images.contiguous().numpy(), 16))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
