"""The supervision of a trained net: its loss in float64, and what a network from a file is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnas import teachers
from qnas.data import PixelGrid, resize
from qnas.errors import ConfigError, QnasError
from qnas.initial import file_digest
from qnas.protocols import TrainingContext
from qnas.teachers import ChannelGrid, Teacher
from qnas.testing.parts import ToyTask, toy_data
from qnas_plugins.supervisions.teacher import TeacherLabel
from tests.reference_networks import resnet20

NETWORK = {"space": "resnet20", "space_options": {"width": 0.5}}


@pytest.fixture
def context(registry):
    return TrainingContext(toy_data(), torch.device("cpu"), registry)


@pytest.fixture
def network():
    torch.manual_seed(3)
    network = resnet20(3, width=8, channels=1).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def file(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


# --- the loss ----------------------------------------------------------------------------------------------------


class Fixed:
    """Answers what it is told, and counts."""

    def __init__(self, logits):
        self.logits, self.calls = logits, 0

    def __call__(self, images):
        self.calls += 1
        return self.logits


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_the_divergence_from_the_teacher_and_its_gradient_the_formulas(share):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 6, 4)) * 3
    labels = rng.integers(0, 4, 6)
    supervision = TeacherLabel(ToyTask(), teacher="x", label_share=share)
    supervision._teacher = fixed = Fixed(torch.from_numpy(teacher).float())
    supervision.begin_step(torch.zeros(6, 1, 2, 2), torch.from_numpy(labels))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (teacher, student))
    hard = np.eye(4)[labels]
    kl, ce = (p * np.log(p / q)).sum(1).mean(), -(hard * np.log(q)).sum(1).mean()
    gradient = ((1 - share) * (q - p) + share * (q - hard)) / 6  # of the mean over the images
    for position in range(3):
        logits = torch.from_numpy(student).float().requires_grad_()
        loss = supervision.loss(position, logits, torch.from_numpy(labels))
        loss.backward()
        assert loss.item() == pytest.approx((1 - share) * kl + share * ce, rel=1e-5)
        np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)
    assert fixed.calls == 1  # once a step, whatever the number of subnets


# --- what the teacher sees ---------------------------------------------------------------------------------------


class Looking(torch.nn.Module):
    def __init__(self, resolution):
        super().__init__()
        self.resolution, self.seen = resolution, None

    def forward(self, images):
        self.seen = images
        return images.mean((2, 3))


@pytest.mark.parametrize("size", [8, 6, 12])
def test_it_is_shown_the_pixels_as_its_own_run_normalises_them(size):
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    ours, theirs = PixelGrid(1 / 61.7, 113), PixelGrid(1 / 43.1, 98)
    net = Looking(size)
    logits = Teacher(net, torch.device("cpu"), ours, theirs)(ours.normalise(pixels))
    assert not logits.requires_grad
    assert torch.equal(net.seen, resize(theirs.normalise(pixels), size))  # every pixel value, to the bit
    between = ours.normalise(pixels) + 0.4 * ours.scale  # augmentation leaves values between pixels, too
    Teacher(net, torch.device("cpu"), ours, theirs)(between)
    wanted = (pixels.double() + 0.4 - 98) * theirs.scale
    torch.testing.assert_close(net.seen.double(), resize(wanted, size), rtol=1e-4, atol=1e-5)


def test_the_same_grid_changes_nothing():
    images = torch.randn(3, 1, 8, 8)
    net, grid = Looking(8), PixelGrid(1 / 61.7, 113)
    Teacher(net, torch.device("cpu"), grid, PixelGrid(1 / 61.7, 113))(images)
    assert torch.equal(net.seen, images)


def test_a_file_answers_as_its_network_does(file, network, context):
    options = {**NETWORK, "mean": (0.4,), "std": (0.2,)}
    supervision = TeacherLabel(ToyTask(), teacher=str(file), **options)
    assert supervision.begin_training(context) == {"path": str(file), "sha256": file_digest(file)}
    data = context.data
    supervision.begin_step(data.pixels.normalise(data.train.images), data.train.labels)
    with torch.no_grad():
        want = network((data.train.images.float() / 255 - 0.4) / 0.2)
    assert want.std() > 0.01
    torch.testing.assert_close(supervision._logits, want, rtol=1e-4, atol=1e-4)


def test_the_normalisation_of_a_file_is_imagenets_by_default():
    found = teachers._normalisation(3, None, None)
    assert found == ChannelGrid((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert teachers._normalisation(1, (0.5,), (0.25,)).normalise(torch.tensor(255.0).reshape(1, 1, 1, 1)).item() == 2.0


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no teacher. Give --supervision-option teacher=PATH"),
        ({"teacher": "gone"}, "gone does not exist. Give the directory of a finished run"),
        ({"teacher": "FILE"}, "nothing says which network's. Give its space"),
        ({"teacher": ".", "mean": (0.5,)}, "mean cannot be given where the teacher is a run"),
        ({"teacher": "FILE", "config": "largest", **NETWORK}, "config cannot be given where the teacher is a file"),
        ({"teacher": "FILE", **NETWORK}, r"mean and std must be 1 number\(s\) each"),
        ({"teacher": "FILE", "mean": (0.5,), "std": (0.0,), **NETWORK}, "std over 0"),
        (
            {"teacher": "FILE", "mean": (0.5,), "std": (0.2,), "space": "resnet18"},
            "of space 'resnet18' .*37 of the supernet",
        ),
        (
            {"teacher": "FILE", "mean": (0.5,), "std": (0.2,), "space": "resnet20", "space_options": {"width": 1.0}},
            r"teacher's weights .* are not all of the largest network of space 'resnet20' with 3 classes",
        ),
        ({"teacher": ".", "label_share": 1.5}, "label_share must be from 0 to 1; given: 1.5"),
        ({"teacher": "."}, "is no run directory"),
        ({"teacher": "broken.pth", **NETWORK, "mean": (0.5,), "std": (0.2,)}, "The teacher's weights .*broken.pth"),
    ],
)
def test_mistakes_are_said_in_a_sentence(file, context, monkeypatch, options, message):
    monkeypatch.chdir(file.parent)
    (file.parent / "broken.pth").write_bytes(b"nothing")
    given = {name: str(file) if value == "FILE" else value for name, value in options.items()}
    with pytest.raises(QnasError, match=message):
        TeacherLabel(ToyTask(), **given).begin_training(context)


def test_another_number_of_classes_is_refused(tmp_path, context):
    torch.save(resnet20(5, width=8, channels=1).state_dict(), tmp_path / "five.pth")
    options = {**NETWORK, "mean": (0.5,), "std": (0.2,)}
    with pytest.raises(ConfigError, match="with 3 classes"):
        TeacherLabel(ToyTask(), teacher=str(tmp_path / "five.pth"), **options).begin_training(context)
