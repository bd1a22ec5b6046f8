"""Tables: what they are refused for, the line through sums of blocks, and the check."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from qnas.errors import ConfigError, StoreError
from qnas.latency.shapes import Bits
from qnas.latency.table import LatencyCost, LatencyTable, check_line, fit_line
from qnas.layers import LayerSpec

HEADER = {
    **{"device": "fake", "version": "1.0", "machine": "M", "threads": 1, "batch": 1, "rounds": 40, "native_bits": [8]},
    "space": {"name": "mbv3", "options": {"se": False}, "num_classes": 10},
}
KEY = "x conv 3>8 @4 k3 s1 g1 w8 a<8"


def table(spearman=0.99, error=0.01):
    found = LatencyTable(HEADER)
    found.models = {"m": {"ms": 2.0, "low": 1.9, "high": 2.1}}
    found.blocks = {"b": {KEY: "m"}, "free": {"y": ""}}
    found.fit = {"intercept_ms": 0.25, "slope": 1.5, "subnets": 16}
    passed = (spearman is None or spearman >= 0.97) and error <= 0.05
    found.check = {
        **{"subnets": 24, "unseen": True, "spearman": spearman, "mean_relative_error": error, "passed": passed},
        "largest_relative_error": error,
    }
    return found


def test_a_file_holds_it_all(tmp_path):
    table().write(tmp_path / "t.json")
    found = LatencyTable.read(tmp_path / "t.json")
    assert found.to_json() == table().to_json()
    assert found.digest() == table().digest()
    assert found.passed
    for content, said in (("{", "no valid JSON"), ("[]", "no table of latencies"), ('{"format": 9}', "of format 1")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(StoreError, match=said):
            LatencyTable.read(tmp_path / "bad.json")
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        LatencyTable.read(tmp_path / "none.json")


def test_the_cost_is_the_calibrated_sum():
    cost = LatencyCost(table(), Bits((8,), 4))
    layer = LayerSpec("b.x", "conv", 3, 8, 3, out_size=4, w_bits=2, a_bits=4)
    assert (cost.offset + cost.block_cost("b", [layer])) / cost.divisor == 0.25 + 1.5 * 2.0
    with pytest.raises(ConfigError, match=r"no entry for block 'b' with x conv 3>8 @9"):
        cost.block_cost("b", [LayerSpec("b.x", "conv", 3, 8, 3, out_size=9, w_bits=2, a_bits=4)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "openvino"}, "measured with device = 'fake', but 'openvino' is asked for"),
        ({"threads": 2}, "threads = 1, but 2"),
        ({"batch": 8}, "batch = 1, but 8"),
        ({"space": {**HEADER["space"], "options": {"se": True}}}, r"space.options = {'se': False}, but {'se': True}"),
        ({"machine": "N"}, "machine = 'M', but 'N' .* --force"),
    ],
)
def test_a_table_of_something_else_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        table().refuse_other({**HEADER, **change}, "t.json", force=False)


def test_versions_may_differ_and_force_takes_another_machine():
    table().refuse_other({**HEADER, "version": "2.0"}, "t.json", force=False)
    table().refuse_other({**HEADER, "machine": "N"}, "t.json", force=True)
    with pytest.raises(ConfigError, match="device"):
        table().refuse_other({**HEADER, "device": "x"}, "t.json", force=True)


def test_a_failed_check_is_refused_unless_forced():
    for bad in (table(spearman=0.9), table(error=0.2)):
        with pytest.raises(ConfigError, match=r"failed its check on 24 subnets: .* --force"):
            bad.refuse_other(HEADER, "t.json", force=False)
        bad.refuse_other(HEADER, "t.json", force=True)
    unfinished = table()
    unfinished.check = None
    with pytest.raises(ConfigError, match="unfinished"):
        unfinished.refuse_other(HEADER, "t.json", force=True)


def test_the_line_is_found_and_errors_are_relative():
    sums = np.array([0.1, 1.0, 5.0, 20.0])
    assert fit_line(sums, 0.5 + 1.25 * sums) == pytest.approx((0.5, 1.25))
    noisy = 0.5 + 1.25 * sums
    noisy[3] *= 1.1
    intercept, slope = fit_line(sums, noisy)

    def loss(line):
        return (((line[0] + line[1] * sums) / noisy - 1) ** 2).sum()

    best = loss((intercept, slope))
    for di, ds in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert loss((intercept + di, slope + ds)) > best


def test_without_different_sums_the_line_goes_through_zero():
    assert fit_line([2.0, 2.0], [3.0, 5.0]) == (0.0, 2.0)
    assert fit_line([1.0, 2.0], [4.0, 1.0]) == pytest.approx((0.0, 5 / 3))  # would fall
    assert fit_line([0.0, 0.0], [3.0, 5.0]) == (4.0, 1.0)


def test_the_check_says_order_and_error():
    rng = np.random.default_rng(0)
    measured = rng.uniform(1, 2, 24)
    predicted = measured * rng.uniform(0.98, 1.02, 24)
    found = check_line(list(predicted), list(measured), unseen=True)
    assert found["spearman"] == pytest.approx(spearmanr(predicted, measured)[0], abs=1e-6)
    assert found["mean_relative_error"] == pytest.approx(np.mean(abs(predicted / measured - 1)), abs=1e-6)
    assert found["passed"]
    assert not check_line(list(1.06 * measured), list(measured), unseen=True)["passed"]  # order alone is not enough
    shuffled = list(np.roll(measured, 1))
    assert not check_line(shuffled, list(measured), unseen=True)["passed"]
    alone = check_line([1.0, 1.0], [1.0, 1.02], unseen=False)
    assert (alone["spearman"], alone["passed"]) == (None, True)
