"""Initial weights: the file's network is what the supernet computes, and what cannot be is refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qnas.config import load_config
from qnas.errors import ConfigError, StoreError
from qnas.initial import file_digest, load_initial_weights, read_tensors
from qnas.nn.elastic import ElasticConv
from qnas.plugins import load_registry
from qnas.run import Run
from tests import reference_networks as reference
from tests.conftest import random_images

# A quarter and an eighth of the published widths: plain network, its width, the space's multiplier.
NETWORKS = {
    "mbv2": (reference.mobilenet_v2, 0.25, 0.25),
    "mbv1": (reference.MobileNetV1, 8, 0.25),
    "resnet18": (reference.resnet18, 16, 0.25),
    "resnet50": (reference.resnet50, 8, 0.125),
    "resnet20": (reference.resnet20, 16, 1.0),
}
LOGITS = 7


@pytest.fixture
def fresh(registry, make_supernet):
    """Returns a supernet in float and evaluation mode."""

    def make(name, *, image_size=16, num_classes=LOGITS, image_channels=3, **options):
        from qnas.space import QuantScheme

        space = registry.load("space", name)(
            QuantScheme((4,), (4,)), image_size=image_size, num_classes=num_classes, image_channels=image_channels,
            **options,
        )  # fmt: skip
        return make_supernet(space, mode="float", seed=5).eval()

    return make


def saved(network, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    else:
        torch.save(network.state_dict(), path)
    return path


def answers(supernet, images, **changes):
    supernet.activate({**supernet.space.highest(), **changes})
    with torch.no_grad():
        return supernet(images)


def same(found, want):
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert want.std() > 0.01  # there is something to compare


# --- the file's network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"), [(n, f) for n in NETWORKS for f in ("small", "large") if (n, f) != ("resnet20", "large")]
)
def test_the_published_network_answers_as_plain_pytorch_does(fresh, tmp_path, name, form):
    """Float, evaluation mode, running statistics; every convolution, stride, shortcut and statistic in its place."""
    make, width, multiplier = NETWORKS[name]
    network = reference.randomised(make(LOGITS, width=width, small=form == "small"))
    path = saved(network, tmp_path / ("file.safetensors" if form == "small" else "file.pth"))
    supernet = fresh(name, elastic=False, width=multiplier, **({} if name == "resnet20" else {"size": form}))
    report = load_initial_weights(supernet, path)
    assert (report.kept, report.unused, report.unfit) == ((), (), ())
    assert report.loaded == report.tensors == len(read_tensors(path))
    images = random_images(4, 16, channels=3, seed=1)
    with torch.no_grad():
        same(answers(supernet, images), network(images))
        subnet = supernet.extract(supernet.space.highest()).eval()
        same(subnet(images), network(images))
        same(subnet.fold()(images), network(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_at_the_start_every_kernel_is_the_files(fresh, tmp_path, name):
    """Of the elastic space, the sample that stands for the published network computes it, with any kernel size."""
    make, width, multiplier = NETWORKS[name]
    network = reference.randomised(make(LOGITS, width=width, small=True))
    elastic = fresh(name, width=multiplier)
    load_initial_weights(elastic, saved(network, tmp_path / "file.pt"))
    published = fresh(name, elastic=False, width=multiplier).space.highest()
    published = {k: v for k, v in published.items() if k in elastic.space.position}
    images = random_images(4, 16, channels=3, seed=1)
    with torch.no_grad():
        want = network(images)
    kernels = [k.label for k in elastic.space.knobs if k.label.endswith(".kernel")]
    for kernel in (3, 5, 7) if kernels else (3,):
        same(answers(elastic, images, **{**published, **dict.fromkeys(kernels, kernel)}), want)


def test_narrow_files_are_prefixes_and_the_rest_stays_random(fresh, tmp_path):
    network = reference.randomised(reference.resnet18(LOGITS, small=True, width=8))
    supernet = fresh("resnet18", width=0.25)
    before = {n: t.clone() for n, t in supernet.state_dict().items()}
    report = load_initial_weights(supernet, saved(network, tmp_path / "file.pth"))
    assert report.loaded == report.tensors
    narrow = {k.label: k.choices[0] for k in supernet.space.knobs if k.label.endswith(".width")}
    images = random_images(4, 16, channels=3, seed=1)
    with torch.no_grad():
        same(answers(supernet, images, **narrow), network(images))
    layer = next(m for m in supernet.modules() if getattr(m, "name", "") == "stage2.block1.conv1")
    name = next(n for n, p in supernet.named_parameters() if p is layer.weight)
    assert torch.equal(layer.weight[16:], before[name][16:])
    assert torch.equal(layer.weight[:, 8:], before[name][:, 8:])


def test_every_bank_gets_a_copy(fresh, tmp_path, registry, make_supernet):
    from qnas.nn.supernet import BuildContext

    plain = BuildContext.conv

    class Banked(registry.load("space", "resnet20")):
        def build(self, context):
            context.conv = lambda name, *sizes, **options: plain(
                context, name, *sizes, **options, bank=None if options.get("linear") else "stage1.depth"
            )
            return super().build(context)

    from qnas.space import QuantScheme

    space = Banked(QuantScheme(), image_size=16, num_classes=LOGITS)
    supernet = make_supernet(space, mode="float").eval()
    network = reference.randomised(reference.resnet20(LOGITS))
    load_initial_weights(supernet, saved(network, tmp_path / "file.th"))
    norm = next(m for m in supernet.modules() if isinstance(m, ElasticConv)).bn
    assert len(norm.banks) == 3
    for i in range(3):
        assert torch.equal(norm.weights[i], network.bn1.weight)
        assert torch.equal(norm.biases[i], network.bn1.bias)
        assert torch.equal(getattr(norm, f"mean{i}"), network.bn1.running_mean)
        assert torch.equal(getattr(norm, f"var{i}"), network.bn1.running_var)


def test_other_classes_image_channels_and_depths_are_reported(fresh, tmp_path):
    network = reference.randomised(reference.mobilenet_v2(10, small=True, width=0.25))
    supernet = fresh("mbv2", width=0.25, image_channels=1, depths=(2, 4))
    classifier = next(m for m in supernet.modules() if getattr(m, "name", "") == "classifier" and hasattr(m, "weight"))
    start = classifier.weight.clone()
    report = load_initial_weights(supernet, saved(network, tmp_path / "file.pth"))
    assert torch.equal(classifier.weight, start)
    assert set(report.unfit) == {
        "classifier.1.weight [10, 320] for [7, 320, 1, 1]",
        "classifier.1.bias [10] for [7]",
        "features.0.0.weight [8, 3, 3, 3] for [8, 1, 3, 3]",
    }
    kept = {label.rpartition(".")[0].removesuffix(".bn") for label in report.kept}
    assert {"stem", "classifier", "stage1.block3.expand", "stage5.block4.project"} <= kept  # blocks beyond the file's
    assert not any(label.startswith(("stage1.block2", "stage3.block4", "head")) for label in kept)
    assert report.unused == ()
    assert "3 of another shape (features.0.0.weight [8, 3, 3, 3] for" in report.summary()
    assert "keep their random start (" in report.summary()
    assert "\n" not in report.summary()
    shallow = load_initial_weights(fresh("mbv2", width=0.25, depths=(1, 2)), tmp_path / "file.pth")
    assert any(name.startswith("features.6.") for name in shallow.unused)  # the third block of stage 2
    assert json.loads(json.dumps(shallow.to_json()))["loaded"] == shallow.loaded


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_wrapped_state_dicts_and_parallel_prefixes(fresh, tmp_path, wrap):
    network = reference.randomised(reference.resnet20(LOGITS))
    state = {f"module.{name}": tensor.half() for name, tensor in network.state_dict().items()}
    torch.save({wrap: state, "epoch": 3, "best": 0.9}, tmp_path / "file.th")
    report = load_initial_weights(fresh("resnet20"), tmp_path / "file.th")
    assert report.loaded == report.tensors


# --- checkpoints of this project ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The checkpoint of a run that was trained to its end."""
    config = {
        "space": {"name": "mbv3", "options": {"depths": 1, "kernels": [3, 5], "expansions": [2, 3]}},
        "quantization": {"w_bits": [4], "a_bits": [4]},
        "train": {"float_epochs": 0, "epochs": 1, "batch_size": 512, "num_subnets": 2},
        "threads": 1,
    }
    with Run.create(tmp_path_factory.mktemp("teacher") / "run", load_config(config), load_registry()) as run:
        run.train()
        return run.stages.latest_checkpoint()


def mbv3(registry, make_supernet, **options):
    from qnas.space import QuantScheme

    given = {"image_size": 16, "num_classes": 10, "image_channels": 1, "depths": 1, **options}
    return make_supernet(registry.load("space", "mbv3")(QuantScheme((2, 8), (2, 8)), **given), seed=7)


def test_a_checkpoint_of_this_project_starts_a_supernet_of_other_bits(registry, make_supernet, teacher):
    checkpoint = {n.removeprefix("model."): t for n, t in read_tensors(teacher).items() if n.startswith("model.")}
    supernet = mbv3(registry, make_supernet, kernels=(3, 5, 7), expansions=(2, 3, 4))
    before = {n: t.clone() for n, t in supernet.state_dict().items()}
    report = load_initial_weights(supernet, teacher)
    assert report.unfit == ()
    loaded = 0
    for name, tensor in supernet.state_dict().items():
        if "quantizer" in name:  # start from data, not from a file: the image's grid among them
            assert torch.equal(tensor, before[name])
        elif name in checkpoint and tensor.shape == checkpoint[name].shape:
            assert torch.equal(tensor, checkpoint[name]), name
            loaded += 1
    assert 0 < loaded < report.loaded
    layer = next(m for m in supernet.modules() if getattr(m, "name", "") == "stage1.block1.depthwise")
    name = next(n for n, p in supernet.named_parameters() if p is layer.weight)
    theirs = checkpoint[name]
    assert torch.equal(layer.weight[: len(theirs), :, 1:-1, 1:-1], theirs)
    assert layer.weight[: len(theirs), :, 0].abs().sum() == 0
    assert torch.equal(layer.weight[len(theirs) :], before[name][len(theirs) :])


def test_a_checkpoint_of_other_parts_is_refused(registry, make_supernet, teacher):
    with pytest.raises(ConfigError, match=r"another network than space 'mbv3'.*depths"):
        load_initial_weights(mbv3(registry, make_supernet, depths=(1, 2)), teacher)


# --- refusals ----------------------------------------------------------------------------------------------------


class Code:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = reference.resnet20(LOGITS)
    torch.save({"state_dict": Code()}, "code.pth")
    Path("plain.pt").write_bytes(pickle.dumps(Code()))
    torch.save(network, "module.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"a": 1}, "numbers.pth")
    torch.save(network.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
    Path("empty.safetensors").touch()
    Path("folder.pth").mkdir()
    Path("other.onnx").write_bytes(b"x")
    Path("garbage.pth").write_bytes(b"hello, I am no network")
    cases = [
        (Path("missing.pth"), "there is no such file"),
        (Path("folder.pth"), "it is a folder"),
        (Path("other.onnx"), "allowed: .safetensors"),
        (damaged(saved(network, Path("half.pth"))), "damaged"),
        (damaged(Path("old.pth")), "damaged"),
        (damaged(saved(network, Path("half.safetensors"))), "damaged"),
        (Path("empty.safetensors"), "damaged"),
        (Path("garbage.pth"), "damaged"),
        (Path("code.pth"), "could run code"),
        (Path("plain.pt"), "could run code"),
        (Path("module.pth"), "could run code"),
        (Path("list.pth"), "hold no tensors by name: found list"),
        (Path("numbers.pth"), "hold no tensors by name"),
    ]
    for path, message in cases:
        with pytest.raises(ConfigError, match=message) as error:
            read_tensors(path)
        assert "--init" in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert not Path("pwned").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        file_digest(Path("missing.pth"))


def test_files_of_another_network_are_refused(fresh, tmp_path):
    supernet = fresh("resnet18", width=0.25)
    before = {n: t.clone() for n, t in supernet.state_dict().items()}

    def refused(message, network, into=supernet):
        with pytest.raises(ConfigError, match=message) as error:
            load_initial_weights(into, saved(network, tmp_path / "file.pth"))
        assert "\n" not in str(error.value)

    refused(
        r"not of space 'resnet18'.*: 0 of 262 tensors fit.*features\.0\.0\.weight \[8, 3, 3, 3\].*conv1\.weight \[16",
        reference.mobilenet_v2(LOGITS, small=True, width=0.25),
    )
    refused("'mbv3' has no layout of torchvision", reference.resnet20(LOGITS), fresh("mbv3"))
    wide = reference.resnet20(LOGITS, width=32)
    refused(r"'resnet20'.*conv1\.weight \[32, 3, 3, 3\].* \[16, 3, 3, 3\]", wide, fresh("resnet20"))
    deep = fresh("resnet20", depths=1)
    refused(r"37 of 97 tensors fit.*layer1\.1\.conv1\.weight.*nothing else", reference.resnet20(LOGITS), deep)
    broken = reference.resnet18(LOGITS, small=True, width=16)
    broken.bn1.bias.data[0] = float("nan")
    refused(r"bn1\.bias holds NaN", broken)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


# --- runs --------------------------------------------------------------------------------------------------------


def config(path, **train):
    return load_config(
        {
            "space": {"name": "resnet20", "options": {"width": 0.5}},
            "quantization": {"w_bits": [4], "a_bits": [4]},
            "train": {"float_epochs": 0, "epochs": 1, "batch_size": 512, "num_subnets": 1, "init": str(path), **train},
            "threads": 1,
        }
    )


class Recording:
    def __init__(self):
        self.events = []

    def record(self, event, values):
        self.events.append((event, dict(values)))


@pytest.fixture
def weights(tmp_path):
    return saved(reference.randomised(reference.resnet20(10, width=8, channels=1)), tmp_path / "file.pth")


def test_a_run_starts_from_the_file_and_remembers_it(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Recording()
    with Run.create(tmp_path / "run", config("file.pth"), load_registry(), recorder) as run:
        assert json.loads((tmp_path / "run" / "init.json").read_text()) == {
            "path": str(weights), "sha256": file_digest(weights),
        }  # fmt: skip
        monkeypatch.chdir(Path.home())  # a relative path means the file that the run was made with
        seen = {}

        def look(self, save):
            seen.update({n: t.clone() for n, t in self.supernet.state_dict().items()})

        with monkeypatch.context() as patch:
            patch.setattr("qnas.train.Trainer.run", look)
            run.train()
        stem = torch.load(weights, weights_only=True)["conv1.weight"]
        assert torch.equal(seen["parts.0.weight"], stem)
        (event,) = [values for event, values in recorder.events if event == "init"]
        assert event["summary"] == f"97 of 97 tensors of {weights} loaded"
        run.train()
    weights.unlink()  # a checkpoint stands: the file is not needed any more
    with Run.open(tmp_path / "run", load_registry()) as run:
        assert run.train().stage == 1
        assert run.evaluator is not None


def test_a_line_of_progress_says_what_was_loaded(capsys):
    from qnas.cli.console import LineRecorder, ProgressRecorder

    for recorder in (LineRecorder(), ProgressRecorder()):
        recorder.record("init", {"summary": "97 of 97 tensors of file.pth loaded"})
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.endswith("init: 97 of 97 tensors of file.pth loaded\n")


def test_a_changed_or_missing_file_is_refused_while_it_is_needed(weights, tmp_path):
    Run.create(tmp_path / "run", config(weights), load_registry()).close()
    saved(reference.randomised(reference.resnet20(10, width=8, channels=1), seed=1), weights)
    with Run.open(tmp_path / "run", load_registry()) as run, pytest.raises(StoreError, match=r"file\.pth changed"):
        run.train()
    weights.unlink()
    with Run.open(tmp_path / "run", load_registry()) as run, pytest.raises(StoreError, match=r"file\.pth is missing"):
        run.train()
    (tmp_path / "run" / "init.json").unlink()
    with Run.open(tmp_path / "run", load_registry()) as run, pytest.raises(StoreError, match=r"init\.json is missing"):
        run.train()


def test_a_bad_file_leaves_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        Run.create(tmp_path / "run", config(tmp_path / "missing.pth"), load_registry())
    assert not (tmp_path / "run").exists()


def test_a_directory_left_by_a_process_killed_before_its_configuration_is_free(weights, tmp_path):
    Run.create(tmp_path / "run", config(weights), load_registry()).close()
    (tmp_path / "run" / "config.toml").unlink()
    with Run.create(tmp_path / "run", config(weights), load_registry()):
        assert (tmp_path / "run" / "config.toml").exists()
