"""Profiles on a device whose latencies are a formula: the table must find it again."""

from __future__ import annotations

import json

import pytest

from qnas.costs import CostTable, sample_costs
from qnas.errors import ConfigError, StoreError
from qnas.latency import profile
from qnas.latency.profile import OVERHEAD, Profiler, check_size, distinct_subnets, open_table
from qnas.latency.shapes import Bits, subnet_key
from qnas.latency.table import LatencyCost, LatencyTable
from qnas.rng import generator
from tests.fake_device import START, seconds


def profiled(nets, timed, save=lambda table: None, table=None):
    return Profiler(nets, timed, table or LatencyTable(timed.header(nets)), save).run()


@pytest.fixture(scope="module")
def tabled(make_nets):
    """A profile of mbv3 in miniature."""
    from qnas.latency.profile import TimedDevice
    from qnas.latency.timing import TimingSettings
    from tests.fake_device import FakeDevice

    nets, timed = make_nets("mbv3"), TimedDevice("fake", FakeDevice(), TimingSettings(rounds=5))
    return nets, profiled(nets, timed)


def test_the_table_tells_every_subnets_latency(tabled, tmp_path):
    nets, table = tabled
    assert table.passed
    assert table.check["spearman"] == pytest.approx(1.0)
    assert table.check["mean_relative_error"] < 1e-4
    assert table.models[OVERHEAD]["ms"] == pytest.approx(1e3 * START)
    cost = LatencyCost(table, Bits.of(nets.space, (8,)))
    rows = nets.space.draw(generator(1, "unseen"), 5)
    many = CostTable(nets.space, {"latency_ms": cost}).costs(rows)["latency_ms"]
    for row, told in zip(rows, many, strict=True):
        sample = nets.space.sample(row)
        path = tmp_path / "net.onnx"
        path.write_bytes(nets.build(sample).model.SerializeToString())
        assert told == pytest.approx(1e3 * seconds(str(path)), rel=2e-3)
        assert told == sample_costs(nets.space, {"latency_ms": cost}, sample)["latency_ms"]


def test_blocks_of_one_structure_are_measured_once(tabled):
    _, table = tabled
    shapes = [model for keys in table.blocks.values() for model in keys.values() if model]
    assert set(shapes) == table.models.keys() - {OVERHEAD}


@pytest.mark.parametrize("name", ["mbv2", "resnet20", "module:tests.own_networks:make"])
def test_every_kind_of_space(make_nets, timed, name):
    nets = make_nets(name)
    table = profiled(nets, timed())
    assert table.passed
    only = len(distinct_subnets(nets.space, Bits.of(nets.space, (8,)), 10)) < profile.FEWEST
    assert table.check["unseen"] is not only


def test_a_profile_that_was_stopped_goes_on(make_nets, timed, tabled, tmp_path, monkeypatch):
    nets, whole = tabled
    monkeypatch.setattr(profile, "PIECE", 8)
    path, device = tmp_path / "t.json", timed()

    class StoppedError(Exception):
        pass

    def save_until(pieces):
        def save(table):
            nonlocal pieces
            table.write(path)
            pieces -= 1
            if not pieces:
                raise StoppedError

        return save

    stops = 0
    for pieces in (2, 3, 4, 100):
        try:
            table = profiled(nets, device, save_until(pieces), open_table(path, device.header(nets)))
        except StoppedError:
            stops += 1
            assert not LatencyTable.read(path).finished
    assert stops == 3
    found = json.loads(path.read_text())
    assert found["blocks"] == whole.blocks
    assert found["check"] == pytest.approx(whole.check, abs=1e-5)
    prepared = len(device.device.prepared)
    assert profiled(nets, device, table=open_table(path, device.header(nets))).to_json() == table.to_json()
    assert len(device.device.prepared) == prepared  # nothing is measured twice


def test_a_file_of_another_table_is_not_gone_on_with(make_nets, timed, tmp_path):
    nets, path = make_nets("mbv3"), tmp_path / "t.json"
    LatencyTable(timed().header(nets)).write(path)
    with pytest.raises(StoreError, match="table of latencies with threads = 1; given now: 2"):
        open_table(path, timed(threads=2).header(nets))
    with pytest.raises(StoreError, match="with space ="):
        open_table(path, timed().header(make_nets("mbv2")))


def test_a_space_with_too_many_blocks_is_refused(make_nets, monkeypatch):
    space = make_nets("mbv3").space
    monkeypatch.setattr(profile, "MOST_SHAPES", 20)
    with pytest.raises(
        ConfigError, match=r"has \d+ blocks to time \(block 'stage\d.block\d' alone has 8\); at most 20"
    ):
        check_size(space, Bits.of(space, (8,)))
    monkeypatch.setattr(profile, "MOST_CHOICES", 3)
    with pytest.raises(ConfigError, match="combinations of choices to time"):
        check_size(space, Bits.of(space, (8,)))


def test_whole_subnets_differ_in_shape(make_nets):
    space = make_nets("mbv3").space
    bits = Bits.of(space, (8,))
    found = distinct_subnets(space, bits, 12)
    assert len({subnet_key(space, sample, bits) for sample in found}) == 12
    assert found[0] == space.lowest()
