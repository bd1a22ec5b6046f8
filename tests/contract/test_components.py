"""Every registered component keeps its kind's contract."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

from qnas import testing
from qnas.hookspecs import KINDS
from qnas.plugins import load_registry
from tests.own_networks import make
from tests.reference_networks import resnet20

REGISTRY = load_registry()


SLOW = {"optuna:gp"}  # a quick check of these is in tests/unit


def of(kind):
    return [
        pytest.param(c, id=c.spec.name, marks=[pytest.mark.slow] if c.spec.name in SLOW else [])
        for c in REGISTRY.components(kind)
    ]


def test_every_kind_has_a_component_and_a_check():
    for kind in KINDS:
        assert REGISTRY.components(kind), f"no {kind} is registered"
        assert hasattr(testing, f"check_{kind}")


@pytest.mark.parametrize("component", of("quantizer"))
def test_quantizer(component):
    testing.check_quantizer(component.load())


@pytest.mark.parametrize("component", of("space"))
def test_space(component):
    cls = component.load()
    options = {"width": 0.25} if "width" in inspect.signature(cls).parameters else {}  # small, where it can be
    if component.spec.name == "module":
        options = {"source": "tests.own_networks:make", "factory": make}
    testing.check_space(lambda scheme: cls(scheme, image_size=16, num_classes=10, image_channels=1, **options))


@pytest.mark.parametrize("component", of("sampler"))
def test_sampler(component):
    testing.check_sampler(component.load())


@pytest.mark.parametrize("component", of("supervision"))
def test_supervision(component, tmp_path):
    cls = component.load()
    if component.spec.name == "teacher":
        torch.save(resnet20(3, width=8, channels=1).state_dict(), tmp_path / "net.pth")
        network = {"space": "resnet20", "space_options": {"width": 0.5}, "mean": (0.5,), "std": (0.25,)}
        cls = partial(cls, teacher=str(tmp_path / "net.pth"), **network)
    testing.check_supervision(cls)


@pytest.mark.parametrize("component", of("calibrator"))
def test_calibrator(component):
    testing.check_calibrator(component.load())


@pytest.mark.parametrize("component", of("strategy"))
def test_strategy(component):
    testing.check_strategy(component.load())


@pytest.mark.parametrize("component", of("predictor"))
def test_predictor(component):
    testing.check_predictor(component.load())


@pytest.mark.parametrize("component", of("cost"))
def test_cost(component):
    testing.check_cost(component.load())


@pytest.mark.parametrize("component", of("dataset"))
def test_dataset(component, tmp_path, make_folder):
    options = {"files": {"path": str(make_folder(tmp_path / "pets"))}}
    testing.check_dataset(component.load()(), **options.get(component.spec.name, {}))


def test_a_streamed_dataset(tmp_path, make_folder):
    path = str(make_folder(tmp_path / "pets"))
    testing.check_dataset(REGISTRY.load("dataset", "files")(), path=path, memory="no", workers=0)


@pytest.mark.parametrize("component", of("task"))
def test_task(component):
    boxes = torch.tensor([[[0, 2, 3, 14, 15], [2, 16, 16, 30, 31]], [[-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]]])
    targets = boxes.float().repeat(2, 1, 1) if component.spec.name == "detection" else None
    testing.check_task(component.load(), targets=targets)


NEEDS = {"openvino": "openvino"}  # the package that a device drives, where it is an extra


@pytest.mark.parametrize("component", of("device"))
def test_device(component):
    if component.spec.name in NEEDS:
        pytest.importorskip(NEEDS[component.spec.name])
    testing.check_device(component.load())


@pytest.mark.parametrize("component", of("recipe"))
def test_recipe(component):
    testing.check_recipe(component.load())


def test_the_toy_parts_keep_the_contracts_too():
    testing.check_space(lambda scheme: testing.toy_space())
    testing.check_quantizer(testing.parts.RoundingQuantizer)
    testing.check_quantizer(testing.parts.RangeQuantizer)


def test_a_contract_that_is_broken_is_noticed():
    class Forgetful(REGISTRY.load("strategy", "random")):
        def load_state_dict(self, state):
            pass

    with pytest.raises(AssertionError, match="resumed strategy"):
        testing.check_strategy(Forgetful)

    class Coarse(REGISTRY.load("quantizer", "lsq")):
        def forward(self, x, ctx):
            return x

    with pytest.raises(AssertionError, match="exported grid"):
        testing.check_quantizer(Coarse)


def test_state_that_depends_on_the_other_bit_widths_is_noticed():
    class Stacked(REGISTRY.load("quantizer", "lsq")):
        def __init__(self, site):
            super().__init__(site)
            self.register_buffer("seen", torch.zeros(len(site.bits)))

    class Idle(REGISTRY.load("quantizer", "lsq")):
        def inherit(self, high, low):
            pass

    with pytest.raises(AssertionError, match="seen must keep its shape"):
        testing.check_quantizer(Stacked)
    with pytest.raises(AssertionError, match="must set what 3 bits need"):
        testing.check_quantizer(Idle)
