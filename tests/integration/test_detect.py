"""Detectors on one tiny run: trained, judged, stopped and resumed; and the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qnas.choice import Choice, find
from qnas.config import load_config
from qnas.detect import DetectSettings, build_detector, list_detectors
from qnas.errors import ConfigError, DataError
from qnas.evaluate import Evaluator
from qnas.nn.elastic import ElasticConv
from qnas.run import Run
from qnas.space import QuantScheme

SPACE = {"se": False, "act": "relu", "depths": (1,), "kernels": (3,), "expansions": (3,), "resolutions": (12, 16)}
SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": SPACE},
    "quantization": {"w_bits": (4, 8), "a_bits": (4, 8), "granularity": "network"},
    "train": {"float_epochs": 1, "epochs": 1, "batch_size": 256, "num_subnets": 2},
    "search": {"evaluations": 2, "options": {"population": 2}},
}
FEW = {"train": 48, "search": 10, "test": 10}
QUICK = DetectSettings(
    data_options=FEW, image_size=32, epochs=2, batch_size=24, task_options={"width": 8, "depth": 1, "octaves": 1}
)
COMMAND = (
    *("--config", "smallest", "--epochs", "2", "--batch-size", "24", "--image-size", "32", "--width", "8"),
    *("--task-option", "depth=1", "--task-option", "octaves=1", "--json"),
    *(text for name, value in FEW.items() for text in ("--data-option", f"{name}={value}")),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, registry):
    path = tmp_path_factory.mktemp("detect") / "run"
    with Run.create(path, load_config(SETTINGS), registry) as run:
        run.train()
    return path


@pytest.fixture
def path(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def run(path, registry):
    with Run.open(path, registry) as run:
        yield run


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_detector_is_judged_as_its_result_says(run, monkeypatch):
    measured = []
    measure = Evaluator.measure

    def watched(self, subnet, split):
        measured.append((self, subnet))
        return measure(self, subnet, split)

    monkeypatch.setattr(Evaluator, "measure", watched)
    choice = find(run, "smallest")
    result = run.detect(choice, QUICK)
    assert list_detectors(run.store.path) == [result]
    assert run.detect(choice, QUICK) == result  # stored; nothing is trained again
    assert len(measured) == 2
    assert (result["key"], result["stage"]) == (run.stages.space().key(choice.sample), "quantized")
    assert [(f["stride"], f["size"]) for f in result["features"]] == [(4, 8), (8, 4)]
    assert set(result["metrics"]["test"]) == {"mAP", "mAP50", "mAP75"}  # no costs, which are of other images
    assert result["num_images"] == {"search": 10, "test": 10}
    assert len(result["losses"]) == 2
    assert result["losses"][1] < result["losses"][0]
    assert result["data_options"] == {
        **FEW, "source": "digits", "source_options": {}, "split_seed": 0, "search_fraction": 0.2, "test_fraction": 0.2,
    }  # fmt: skip
    evaluator, subnet = measured[0]
    assert evaluator.data.pixels == run.data.pixels  # the integer backbone's own input grid
    layers = list(subnet.subnet_layers())
    assert all(layer.bn is None and layer.codes is not None for layer in layers)
    outputs = evaluator.outputs(subnet, "test")
    assert evaluator.task.score(outputs, evaluator.data.test.labels) == result["metrics"]["test"]


def test_no_scene_of_the_test_split_holds_an_image_that_the_backbone_was_trained_on(run, monkeypatch):
    from qnas_plugins.datasets import scenes

    used = {}
    load = scenes._load

    def watched(split, numbers, largest):
        used[len(used)] = split.images[torch.from_numpy(numbers)]
        return load(split, numbers, largest)

    monkeypatch.setattr(scenes, "_load", watched)
    data = build_detector(run, find(run, "smallest"), QUICK.resolved(run)).data
    assert len(data.test) == 10
    own = {name: {image.numpy().tobytes() for image in digits(run, name)} for name in ("train", "search", "test")}
    for name, images in zip(("train", "search", "test"), used.values(), strict=True):
        assert {image.numpy().tobytes() for image in images} <= own[name]
    assert not own["train"] & own["test"]


def digits(run, name):
    """Return the images of the run's split before they were resized."""
    from qnas.data import prepare

    images = run.registry.load("dataset", "digits")().load()
    return prepare(images, image_size=8, seed=0, fractions=(0.2, 0.2)).split(name).images


def test_the_backbone_starts_from_the_stages_weights_with_its_quantizers(run):
    choice = find(run, "largest")
    net = build_detector(run, choice, QUICK.resolved(run)).net
    supernet = run.stages.supernet()
    own = {m.name: m for m in supernet.modules() if isinstance(m, ElasticConv)}
    layers = [m for m in net.modules() if isinstance(m, ElasticConv)]
    assert layers
    for layer in layers:
        assert torch.equal(layer.weight, own[layer.name].weight)
        for name, value in layer.weight_quantizer.state_dict().items():
            assert torch.equal(value, own[layer.name].weight_quantizer.state_dict()[name])
    assert net.quantized_roles == ("weight", "activation")
    assert build_detector(run, choice, QUICK.resolved(run)).net.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("settings", [{"quantize": False}, {}], ids=["--float", "float stage"])
def test_a_float_backbone(run, settings):
    stage = "quantized" if settings else "float"
    choice = find(run, "smallest", stage=stage)
    changed = DetectSettings(**{**vars(QUICK), "epochs": 1, **settings})
    detector = build_detector(run, choice, changed.resolved(run))
    assert detector.net.quantized_roles == ()
    result = run.detect(choice, changed)
    assert result["stage"] == stage
    subnet = detector.net.eval().extract(detector.net.space.highest())
    assert all(layer.codes is None for layer in subnet.subnet_layers())


def test_settings_name_the_folder(run):
    from qnas.detect import detector_directory

    settings = QUICK.resolved(run)
    others = [{"seed": 5}, {"lr": 1e-3}, {"quantize": False}, {"task_options": {}}, {"image_size": 40}]
    names = [settings, *(DetectSettings(**{**vars(settings), **change}) for change in others)]
    folders = {detector_directory(run.store.path, "key", "quantized", s) for s in names}
    folders.add(detector_directory(run.store.path, "key", "float", settings))
    assert len(folders) == len(others) + 2


def test_what_cannot_be_is_refused(run):
    choice = find(run, "smallest")
    with pytest.raises(ConfigError, match=r"epochs cannot be 0; give 1 or more"):
        DetectSettings(epochs=0)
    with pytest.raises(ConfigError, match=r"lr must be over 0"):
        DetectSettings(lr=0.0)
    with pytest.raises(ConfigError, match=r"Task 'classification' has no head.*--task detection"):
        run.detect(choice, DetectSettings(**{**vars(QUICK), "task": "classification"}))
    with pytest.raises(ConfigError, match=r"option of task 'detection' 'widht' does not exist. Did you mean 'width'"):
        run.detect(choice, DetectSettings(**{**vars(QUICK), "task_options": {"widht": 8}}))
    with pytest.raises(DataError, match=r"Task detection takes targets .*gives \[\d+\]. Take --data scenes"):
        run.detect(choice, DetectSettings(data="digits"))
    with pytest.raises(ConfigError, match=r"no features at strides 16"):
        run.detect(choice, DetectSettings(**{**vars(QUICK), "strides": (16,)}))


def test_images_of_other_channels_are_refused(run, tmp_path, make_folder):
    path = str(make_folder(tmp_path / "pets", each=20))
    options = {**FEW, "source": "files", "source_options": {"path": path}}
    with pytest.raises(DataError, match=r"images of 3 channels, but the subnets of .* take 1"):
        run.detect(find(run, "smallest"), DetectSettings(**{**vars(QUICK), "data_options": options}))


def test_no_run_can_be_made_of_a_task_on_features(registry, tmp_path):
    with pytest.raises(ConfigError, match="Task 'detection' works on the features of a trained net"):
        Run.create(tmp_path / "run", load_config({**SETTINGS, "task": "detection"}), registry)
    assert not (tmp_path / "run").exists()


def test_the_command_tells_what_it_found(qnas, path):
    shown = qnas("detect", path, *COMMAND)
    assert shown.code == 0
    value = json.loads(shown.out)
    assert value["task_options"] == {"depth": 1, "octaves": 1, "width": 8}
    again = qnas("detect", path, *COMMAND[: COMMAND.index("--json")], *COMMAND[COMMAND.index("--json") + 1 :])
    assert f"Detector {value['id']} on scenes" in again.out
    assert f"mAP {value['metrics']['test']['mAP']:.2%}" in again.out
    refused = qnas("detect", path, "--config", "smallest", "--epochs", "0")
    assert refused.code == 2
    assert "epochs cannot be 0" in refused.err


def test_killed_and_resumed_it_leaves_the_same_bytes(path, tmp_path):
    whole = shutil.copytree(path, tmp_path / "whole")
    code = "from qnas.cli import main; main()"
    fault = (
        "import os, signal, itertools; from qnas import checkpoint; replace, calls = os.replace, itertools.count(1)\n"
        "def put(a, b):\n"
        "    replace(a, b)\n"
        "    if 'checkpoint' in str(b) and next(calls) == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = put\n"
    )

    def call(folder, program):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, "-c", program, "detect", str(folder), *COMMAND]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)

    assert call(whole, code).returncode == 0
    assert call(path, fault + code).returncode == -signal.SIGKILL
    assert list_detectors(path) == []
    assert len(list(path.glob("detectors/*/stages/*/checkpoint.safetensors"))) == 1
    resumed = call(path, code)
    assert resumed.returncode == 0, resumed.stderr
    assert files(path / "detectors") == files(whole / "detectors")


def test_a_net_trained_by_itself_is_a_backbone_too(run):
    from qnas.alone import AloneSettings

    choice = find(run, "smallest")
    net = run.train_alone(choice.sample, AloneSettings())
    found = find(run, None, stage=f"alone/{net['id']}")
    assert found == Choice(net["sample"], f"alone/{net['id']}")
    detector = build_detector(run, found, QUICK.resolved(run))
    own = run.stages.supernet(found.stage)
    first, other = (next(m for m in n.modules() if isinstance(m, ElasticConv)) for n in (detector.net, own))
    assert torch.equal(first.weight, other.weight)


def test_images_of_a_space_without_a_resolution_knob_may_have_any_size(make_family):
    space = make_family("resnet20", resolutions=(16,))
    assert isinstance(space.scheme, QuantScheme)
    assert space.sized(48).resolution(space.highest()) == 48
    assert space.resolution(space.highest()) == 16
    assert space.sized(48).key(space.highest()) == space.key(space.highest())


def test_the_exported_features_of_a_run(qnas, path):
    shown = qnas("export", path, "--config", "largest", "--features", "--json")
    assert shown.code == 0
    (value,) = json.loads(shown.out)
    assert value["passed"]
    assert (Path(path) / value["onnx"]).is_file()
    told = qnas("export", path, "--config", "largest", "--features")
    assert "stride4" in told.out
    assert "passed on onnxruntime" in told.out
