"""What is left to the machine is filled in once, and what it lacks is refused."""

from __future__ import annotations

import pytest
import torch

from qnas.config import load_config
from qnas.errors import ConfigError
from qnas.machine import check_compiler, resolve_machine


@pytest.fixture
def compiles(registry, monkeypatch):
    """Sets whether LSQ's kernel can be built here."""
    return lambda can: monkeypatch.setattr(registry.load("quantizer", "lsq"), "can_compile", lambda: can)


def config(**changes):
    return load_config({"device": "cpu", **changes})


@pytest.mark.parametrize("can", [True, False])
def test_what_is_open_is_filled_in(registry, compiles, can):
    compiles(can)
    found = resolve_machine(config(device="auto"), registry, 16)
    assert (found.data.image_size, found.threads, found.compile) == (16, 1, can)
    assert found.device in ("cpu", "cuda")
    assert resolve_machine(found, registry, 999) == found  # nothing is left open the second time


def test_what_is_given_stays(registry, compiles):
    compiles(True)
    given = config(threads=3, compile=False, data={"image_size": 24})
    assert resolve_machine(given, registry, 16) == given


def test_large_images_take_the_cores_that_each_process_may_use(registry, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert resolve_machine(config(), registry, 224).threads == 8
    assert resolve_machine(config(devices=3), registry, 224).threads == 2


def test_a_compiler_that_is_asked_for_and_missing_is_refused(registry, compiles):
    compiles(False)
    asked = config(compile=True)
    for check in (lambda: check_compiler(asked, registry), lambda: resolve_machine(asked, registry, 16)):
        with pytest.raises(ConfigError, match=r"quantizers lsq have no compiled kernel.*set compile to false"):
            check()
    check_compiler(config(compile=False), registry)
    compiles(True)
    check_compiler(asked, registry)


def test_a_quantizer_without_a_kernel_is_named(registry):
    asked = config(compile=True, quantization={"weight_quantizer": "minmax", "act_quantizer": "minmax"})
    with pytest.raises(ConfigError, match="quantizers minmax have no compiled kernel"):
        check_compiler(asked, registry)


def test_more_gpus_than_there_are_are_refused(registry, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"devices is 3, but this machine has 2 GPU\(s\). Lower --devices"):
        resolve_machine(config(device="cuda", devices=3), registry, 16)
    assert resolve_machine(config(device="cuda", devices=2, compile=False), registry, 16).devices == 2
