"""Timing on a device whose latencies are known."""

from __future__ import annotations

import math

import pytest

from qnas.errors import PluginError
from qnas.latency import timing
from qnas.latency.profile import idle_model
from qnas.latency.timing import Latency, TimingSettings, check_device, time_models, time_reference
from tests.fake_device import START, FakeDevice

SETTINGS = TimingSettings(rounds=20)
IDLE = START  # seconds of the model that computes nothing


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "idle.onnx"
    path.write_bytes(idle_model().SerializeToString())
    return str(path)


def test_a_reference_has_its_own_latency(model):
    found = time_reference(FakeDevice(), model, SETTINGS)
    assert found.ms == pytest.approx(1e3 * IDLE)
    assert found.low == pytest.approx(found.high)


@pytest.mark.parametrize("slowed", [lambda n: 1 + n / 50_000, lambda n: 1 + 0.5 * math.sin(n / 20_000)])
def test_drift_of_the_machine_cancels(model, slowed):
    device = FakeDevice(slowed)
    found = time_models(device, model, [model, model], SETTINGS, Latency(7.0, 6.0, 8.0))
    for latency in found:
        assert latency.ms == pytest.approx(7.0, rel=0.05)  # in units of the reference's own latency
        assert latency.low <= latency.ms <= latency.high


def test_threads_and_batch_reach_the_device(model):
    quick = time_reference(FakeDevice(), model, TimingSettings(threads=2, batch=1, rounds=5))
    slow = time_reference(FakeDevice(), model, TimingSettings(threads=1, batch=3, rounds=5))
    assert slow.ms == pytest.approx(6 * quick.ms)


def test_there_are_more_rounds_where_most_are_disturbed(model, monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 0.0)  # one inference a round
    warm = timing.WARM_UP

    def busy_at_first(number):
        return 1.0 if number in (warm, warm + 1) or number > warm + 20 else 3.0

    device = FakeDevice(busy_at_first)
    found = time_reference(device, model, TimingSettings(rounds=20))  # two quiet inferences of the first 60
    assert found.ms == pytest.approx(1e3 * IDLE)
    calm = FakeDevice()
    time_reference(calm, model, TimingSettings(rounds=20))
    assert calm.number == warm + 20 * timing.BASELINE_ROUNDS
    always = FakeDevice(lambda number: 1.0 if number == warm else 3.0)
    time_reference(always, model, TimingSettings(rounds=20))
    assert always.number == warm + 20 * timing.BASELINE_ROUNDS * timing.MOST_TURNS


def test_a_short_model_is_repeated_and_its_fastest_inference_counts(model):
    device = FakeDevice(lambda number: 1.0 if number % 10 == 0 else 5.0)
    assert time_reference(device, model, SETTINGS).ms == pytest.approx(1e3 * IDLE)


def test_a_device_that_cannot_be_timed_is_refused():
    class Old:
        version = "0"

    with pytest.raises(
        PluginError, match=r"'old' cannot measure latency: it has no prepare, clock, native_bits .* Choose"
    ):
        check_device(Old(), "old")
    check_device(FakeDevice(), "fake")
