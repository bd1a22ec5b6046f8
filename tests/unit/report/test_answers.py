"""Ties and gaps from the images that subnets answer right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from qnas.protocols import Trial
from qnas.report.answers import front_noise, mean_gap, point_gap, stored_answers, tied, ties
from qnas.store import RunDirectory


def bits(*parts: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(n, bool(value)) for value, n in parts])


def test_ties_are_those_of_mcnemars_exact_test() -> None:
    points = [{"key": key} for key in "abc"]
    answers = {"a": bits((1, 90), (0, 10)), "b": bits((1, 87), (0, 12), (1, 1)), "c": bits((1, 60), (0, 40))}
    found = ties(points, "a", answers)
    assert found["a"] == {"chosen": None, "next": pytest.approx(binomtest(3, 4).pvalue)}
    assert found["b"]["chosen"] == found["a"]["next"]
    assert found["b"]["next"] == pytest.approx(binomtest(28, 28).pvalue)
    assert found["c"] == {"chosen": pytest.approx(binomtest(30, 30).pvalue), "next": None}
    assert [tied(found[key]["chosen"]) for key in "abc"] == [False, True, False]


def test_points_without_answers_are_not_compared() -> None:
    assert ties([{"key": "a"}, {"key": "b"}], "a", {"a": bits((1, 5))}) == {
        "a": {"chosen": None, "next": None},
        "b": {"chosen": None, "next": None},
    }


def test_the_gap_of_one_point() -> None:
    gap = point_gap(0.9, 0.03, 0.8, 0.04)
    assert (gap.value, gap.high - gap.value) == (pytest.approx(0.1), pytest.approx(1.959964 * 0.05))


def test_the_mean_gap_does_not_count_an_image_twice() -> None:
    """Two subnets with the same answers know no more than one."""
    rng = np.random.default_rng(0)
    search, test = rng.random(300) < 0.9, rng.random(200) < 0.8
    one, two = (mean_gap(dict.fromkeys(keys, search), dict.fromkeys(keys, test)) for keys in ("a", "ab"))
    assert one == two
    spread = np.sqrt(search.var(ddof=1) / 300 + test.var(ddof=1) / 200)
    assert one.high - one.value == pytest.approx(1.959964 * spread)
    assert mean_gap({"a": search}, {"b": test}) is None


def test_the_interval_of_the_mean_gap_holds_what_it_promises() -> None:
    """Three subnets whose answers hang together, no true gap: about 95 of 100 intervals hold zero."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        splits = []
        for _ in ("search", "test"):
            hardness = rng.random(250)
            splits.append({key: hardness + 0.2 * rng.standard_normal(250) < 0.7 for key in "abc"})
        gap = mean_gap(*splits)
        held += gap.low <= 0 <= gap.high
    assert 0.92 < held / 400 < 0.98


def test_the_measurement_that_the_front_reports_is_the_one_that_counts(tmp_path) -> None:
    (tmp_path / "config.toml").write_text("")
    with RunDirectory(tmp_path) as store:
        name, _ = store.open_search("random", {})
        for cache_key, answers in (("1", bits((1, 3), (0, 5))), ("2", bits((1, 4), (0, 4)))):
            metrics = {"accuracy": float(answers.mean())}
            for split in ("search", "test"):
                packed = np.packbits(answers).tobytes()
                store.put_evaluation(cache_key + split, "k", split, metrics, 8, packed)
        store.put_trial(name, 0, Trial("k", {}, {"accuracy": 0.375}), "1search", {})
        point = {"key": "k", "metrics": {"accuracy": 0.375}, "test": {"accuracy": 0.5}}
        assert stored_answers(store, [point], "accuracy", "search")["k"].sum() == 3
        assert stored_answers(store, [point], "accuracy", "test")["k"].sum() == 4
        assert stored_answers(store, [point | {"metrics": {"accuracy": 0.1}}], "accuracy", "search") == {}
        ties_found, gap = front_noise(store, {"metric": "accuracy", "chosen": "k"}, [point])
        assert ties_found == {"k": {"chosen": None, "next": None}}
        assert gap["value"] == pytest.approx(-0.125)
