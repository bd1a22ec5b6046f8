"""A user's network from its module to a verified integer graph: in this process, and through the commands."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qnas.alone import AloneSettings, _supernet
from qnas.costs import sample_costs
from qnas.deploy.onnx_export import export_onnx
from qnas.deploy.pack import read_packed, write_packed
from qnas.deploy.rounding import round_biases
from qnas.deploy.trace import trace
from qnas.nn.batchnorm import recalibrate
from qnas.plugins import load_registry
from qnas.rng import integer_seed
from qnas.run import Run
from qnas.space import QuantScheme
from tests import own_networks
from tests.conftest import random_images
from tests.own_networks import CLASSES, NETWORKS, make

SIZE = 16
INTEGER = {
    "QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool", "QGemm", "MaxPool",
    "NhwcMaxPool",
}  # fmt: skip
ON_CODES = {"Clip", "Flatten", "Reshape", "Gather", "Unsqueeze", "Transpose"}
ISLANDS = {"resnet": {}, "lenet": {}, "dense": {}, "mobile": {"h-swish": 2, "silu": 1}}
TINY = (
    *("--image-size", str(SIZE), "--float-epochs", "1", "--epochs", "1", "--batch-size", "128", "--threads", "1"),
    *("--evaluations", "4", "--strategy-option", "population=4", "--set", "train.num_subnets=2"),
    *("--supervision", "hard", "--device", "cpu"),
)


@pytest.fixture(scope="module")
def device(registry):
    return registry.load("device", "onnxruntime")(threads=1)


@pytest.fixture(scope="module")
def deployed(registry, make_supernet):
    """Returns a space and its highest subnet, as it is judged and deployed."""

    def build(name, bits=(8,), mode="quantize"):
        space = registry.load("space", "module")(
            QuantScheme(bits, bits, "layer"), image_size=SIZE, num_classes=CLASSES, image_channels=1,
            source="tests.own_networks:make", factory=make, factory_options={"kind": name},
        )  # fmt: skip
        subnet = make_supernet(space, mode=mode).extract(space.highest())
        recalibrate(subnet, [random_images(64, SIZE, seed=1)])
        return space, round_biases(subnet.fold())

    return build


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_what_can_be_is_an_integer_operator(deployed, device, registry, tmp_path, name, bits):
    space, subnet = deployed(name, (bits,))
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    islands = Counter(island.reason.split(" has")[0] for island in summary.islands)
    assert islands == ISLANDS[name]
    executed = Counter(device.operators(summary.path))
    kinds = Counter(layer.spec.kind for layer in subnet.subnet_layers())
    assert (executed["QLinearConv"], executed["QGemm"]) == (kinds["conv"], kinds["linear"])
    if not islands:
        assert executed.pop("QuantizeLinear") == executed.pop("DequantizeLinear") == 1
        assert set(executed) <= INTEGER | ON_CODES

    images = random_images(64, SIZE, seed=2)
    with torch.inference_mode():
        expected = subnet(images)
    found = torch.from_numpy(device.run(summary.path, images.contiguous().numpy(), 64))
    steps = trace(subnet)
    difference = ((found - expected).abs().amax(1) / steps.grids[steps.output].scale).round()
    # Runtimes round a few sums to the neighbouring code, which a net that was not trained amplifies.
    assert (difference <= 3).float().mean() >= 0.9
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9

    payload = write_packed(subnet, tmp_path / "m.safetensors", {})
    assert payload == sample_costs(space, {"size": registry.load("cost", "size_bytes")}, subnet.sample)["size"]
    packed = read_packed(tmp_path / "m.safetensors")["layers"]
    assert set(packed) == {spec.name for spec in subnet.layers}
    paddings = {layer.spec.name: layer.padding for layer in subnet.subnet_layers()}
    for site, entry in packed.items():
        if entry["kind"] == "conv":
            assert entry.get("padding", entry["shape"][-1] // 2) == paddings[site]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_in_float_the_graph_answers_as_the_subnet(deployed, device, tmp_path, name):
    _, subnet = deployed(name, mode="float")
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert "QuantizeLinear" not in summary.operators
    images = random_images(16, SIZE, seed=2)
    with torch.inference_mode():
        expected = subnet(images)
    found = torch.from_numpy(device.run(summary.path, images.contiguous().numpy(), 16))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a user's file, which no other test's module is named after."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(own_networks.__file__, folder / "users_networks.py")
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


@pytest.mark.parametrize(("kind", "option"), [("resnet", "num_classes=10"), ("lenet", "dropout=0.1")])
def test_run_search_export_and_verify(qnas, here, kind, option):
    ran = qnas("run", "--space", "module:users_networks:make", "--space-option", f"kind={kind}",
               "--space-option", option, *TINY, "--out", kind, "--quiet", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["verify"]["passed"]
    assert result["export"]["float_islands"] == []
    again = qnas("search", kind, "--strategy", "random", "--evaluations", "3", "--quiet", "--json")
    assert again.code == 0, again.err
    for command in ("export", "verify"):
        assert qnas(command, kind, "--config", result["export"]["key"], "--quiet").code == 0
    resumed = qnas("run", "--resume", kind, "--quiet", "--json")
    assert resumed.code == 0, resumed.err
    assert (here / kind / "report.html").is_file()


def test_more_stages_can_be_inherited_and_subnets_trained_alone(qnas, here):
    ran = qnas("train", "--space", "module:users_networks:make", "--w-bits", "4", "--a-bits", "4", *TINY[:-6],
               "--set", "train.num_subnets=2", "--device", "cpu", "--out", "few", "--quiet")  # fmt: skip
    assert ran.code == 0, ran.err
    lower = qnas("inherit", "few", "--w-bits", "3", "--a-bits", "3", "--epochs", "1", "--quiet")
    assert lower.code == 0, lower.err
    alone = qnas("train-alone", "few", "--config", "largest", "--budget", "0.5", "--quiet")
    assert alone.code == 0, alone.err
    with Run.open(here / "few", load_registry()) as run:
        space = run.space.pin(run.space.highest())
        started = _supernet(run, run.config, space, AloneSettings(seed=5)).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(0, "weights"))
        network = make()
    assert any(torch.equal(network.stem[0].weight, tensor) for tensor in started.values())


def test_post_training_quantization_starts_from_the_networks_weights(qnas, here):
    ran = qnas("train", "--space", "module:users_networks:make", "--space-option", "kind=dense", "--recipe", "ptq",
               "--float-epochs", "0", "--image-size", SIZE, "--device", "cpu", "--seed", 7, "--out", "ptq",
               "--quiet")  # fmt: skip
    assert ran.code == 0, ran.err
    (checkpoint,) = (here / "ptq" / "stages").glob("*/checkpoint.safetensors")
    kept = load_file(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(7, "weights"))
        network = make("dense")
    weights = [tensor for name, tensor in kept.items() if tensor.shape == network.mix.weight.shape]
    assert any(torch.equal(tensor, network.mix.weight) for tensor in weights)
    statistics = [tensor for name, tensor in kept.items() if name.endswith("bn.mean0")]
    assert any(torch.equal(tensor, network.mix_bn.running_mean) for tensor in statistics)
    refused = qnas("train", "--space", "module:users_networks:make", "--space-option", "weights=fresh", "--recipe",
                   "ptq", "--float-epochs", "0", "--out", "none")  # fmt: skip
    assert refused.code == 2
    assert "no weights to start from" in refused.err


def test_a_network_of_another_package(qnas, here):
    pytest.importorskip("pytorchcv", reason="pytorchcv is not installed: pip install --no-deps pytorchcv")
    options = ("channels=[[8],[12],[16]]", "init_block_channels=8", "bottleneck=false", "in_channels=1")
    given = [part for option in options for part in ("--space-option", option)]
    ran = qnas("run", "--space", "module:pytorchcv.models.resnet_cifar:CIFARResNet", *given, *TINY, "--image-size",
               "32", "--out", "foreign", "--quiet", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["verify"]["passed"]


ERRORS = {
    "no module": ("module:nowhere_to_be_found:make", [], r"no module 'nowhere_to_be_found'.* current directory"),
    "a file": ("module:users_networks.py:make", [], r"no module 'users_networks\.py'.*Leave out '\.py'"),
    "a path": ("module:./users_networks:make", [], r"does not name a network.*module:PACKAGE\.MODULE:FACTORY"),
    "no factory": ("module:users_networks", [], r"does not name a network"),
    "nothing": ("module", [], r"name it as --space module:PACKAGE"),
    "no attribute": ("module:users_networks:mak", [], r"factory 'mak' does not exist\. Did you mean 'make'"),
    "no callable": ("module:users_networks:CLASSES", [], r"is int, nothing that can be called"),
    "raises": ("module:users_networks:make", ["kind=x"], r"fails with kind='x': KeyError: 'x' \(.*users_networks\.py"),
    "no network": ("module:users_networks:lively", ["network=3"], r"fails with network=3: AttributeError"),
    "arguments": ("module:users_networks:lively", [], r"needs arguments that are not given: network\."),
    "branches": ("module:users_networks:Branching", [], r"users_networks\.py line \d+ \(`if x\.mean\(\) > 0:"),
    "operation": ("module:users_networks:Tanh", [], r"tanh\(\) at node 'tanh' in the network itself, .* line \d+"),
    "classes": ("module:users_networks:SmallResNet", ["num_classes=3"], r"data has 10 classes"),
    "factory": ("module:users_networks:make", ["factory=3"], r"space\.options\.factory is 3"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_are_told_in_a_sentence(qnas, here, case):
    space, options, message = ERRORS[case]
    given = [part for option in options for part in ("--space-option", option)]
    refused = qnas("run", "--space", space, *given, "--image-size", SIZE, "--out", "mistake")
    assert refused.code == 2
    assert re.search(message, refused.err), refused.err
    assert not (here / "mistake").exists()


def test_code_in_a_run_directory_is_not_imported(qnas, here, monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    sent = tmp_path / "sent"
    made = qnas("train", "--space", "module:users_networks:make", *TINY[:-6], "--set", "train.num_subnets=1", "--out",
                sent, "--quiet")  # fmt: skip
    assert made.code == 0, made.err
    (sent / "bundled_network.py").write_text(f"open({str(marker)!r}, 'w').close()\nfrom users_networks import make\n")
    config = sent / "config.toml"
    config.write_text(config.read_text().replace("users_networks", "bundled_network"))
    monkeypatch.chdir(sent)
    refused = qnas("search", sent, "--quiet")
    assert refused.code == 2
    assert "inside the run directory itself" in refused.err
    assert not marker.exists()
    monkeypatch.chdir(Path(tmp_path.anchor))
    absent = qnas("search", sent, "--quiet")
    assert absent.code == 2
    assert "no module 'bundled_network'" in absent.err
