"""Nets of small spaces for timing."""

from __future__ import annotations

import pytest

from qnas import components
from qnas.config import load_config
from qnas.latency.nets import LatencyNets, random_images
from qnas.latency.profile import TimedDevice
from qnas.latency.timing import TimingSettings
from tests.fake_device import FakeDevice

TINY_OPTIONS = {
    "mbv3": {"depths": [1, 2], "kernels": [3, 5], "expansions": [3, 4]},
    "mbv2": {"width": 0.25, "depths": [1, 2]},
    "basq-mbv2": {"width": 0.25, "elastic": True, "depths": [1, 2]},
    "resnet20": {"width": 0.5},
    "resnet50": {"width": 0.0625},
    "module:tests.own_networks:make": {},
}


@pytest.fixture(scope="session")
def make_nets(registry):
    """Returns the nets of a small space, made once; keywords are settings of quantization."""
    made = {}

    def make(name="mbv3", *, channels=1, options=None, **quantization):
        key = (name, channels, str(options), str(quantization))
        if key not in made:
            settings = {"w_bits": [2, 4], "a_bits": [2, 4], **quantization}
            space = {"name": name, "options": {**TINY_OPTIONS.get(name, {}), **(options or {})}}
            config = load_config({"space": space, "data": {"image_size": 16}, "quantization": settings})
            data = random_images(16, 10, channels)
            made[key] = LatencyNets(registry, config, components.build_space(registry, config, data), data)
        return made[key]

    return make


@pytest.fixture
def timed():
    """Returns a fake device."""
    return lambda **settings: TimedDevice("fake", FakeDevice(), TimingSettings(**{"rounds": 5, **settings}))
