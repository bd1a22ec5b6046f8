"""Intervals and tests against scipy, enumeration and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import t

from qnas.statistics import kendall, mean_interval, paired, standard_error


def test_standard_error_is_never_zero():
    assert 0 < standard_error(1.0, 360) < 0.01
    assert standard_error(0.5, 10_000) == pytest.approx(0.005, rel=0.01)


def test_the_mean_over_seeds_has_students_interval():
    found = mean_interval([0.9, 0.92, 0.97])
    half = t.ppf(0.975, 2) * np.std([0.9, 0.92, 0.97], ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(0.93)
    assert (found.low, found.high) == (pytest.approx(0.93 - half), pytest.approx(0.93 + half))
    assert math.isinf(mean_interval([0.9]).high)


def tau_b(x, y):
    """By enumeration of all pairs."""
    pairs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in combinations(range(len(x)), 2)]
    total = sum(a * b for a, b in pairs)
    return total / math.sqrt(sum(a != 0 for a, _ in pairs) * sum(b != 0 for _, b in pairs))


@pytest.mark.parametrize("seed", range(5))
def test_kendalls_tau_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, 12).astype(float)
    y = x + rng.integers(0, 6, 12)
    found = kendall(x, y)
    assert found.value == pytest.approx(tau_b(x, y))
    assert found.low <= found.value <= found.high


def test_the_interval_of_tau_covers_as_often_as_it_says():
    """Bivariate normal pairs: tau = 2 / pi * asin(rho)."""
    rng = np.random.default_rng(0)
    rho = 0.7
    truth = 2 / math.pi * math.asin(rho)
    hits = 0
    for _ in range(400):
        x = rng.standard_normal(30)
        y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(30)
        found = kendall(x, y)
        hits += found.low <= truth <= found.high
    assert 0.90 < hits / 400 < 0.98


def test_a_perfect_order_is_not_certain():
    few, many = kendall(range(6), range(6)), kendall(range(40), range(40))
    assert (few.value, few.high, many.value, many.high) == pytest.approx((1.0,) * 4)
    assert -1.0 < few.low < 0.7
    assert 0.95 < many.low < 1.0
    turned = kendall(range(6), range(6)[::-1])
    assert (turned.low, turned.high) == pytest.approx((-1.0, -few.low))


def test_a_ranking_without_order_says_nothing():
    found = kendall([1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)
    assert (kendall([1, 2], [3, 4]).low, kendall([1, 2], [3, 4]).high) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="one length"):
        kendall([1.0, 2.0], [1.0])


def test_mcnemars_test_is_the_binomial_one():
    first = np.array([True] * 80 + [False] * 20)
    second = first.copy()
    second[:9], second[80] = False, True  # 9 that the first alone has, 1 that the second alone has
    found = paired(first, second)
    assert (found.only_first, found.only_second) == (9, 1)
    exact = 2 * sum(math.comb(10, k) for k in (0, 1)) / 2**10
    assert found.p_value == pytest.approx(exact)
    assert found.significant
    assert found.difference.value == pytest.approx(0.08)
    assert 0 < found.difference.low < 0.08 < found.difference.high
    mirrored = paired(second, first)
    assert mirrored.p_value == pytest.approx(exact)
    assert mirrored.difference.low == pytest.approx(-found.difference.high)


def test_equal_subnets_do_not_differ():
    same = np.array([True, False] * 50)
    found = paired(same, same)
    assert found.p_value == 1.0
    assert found.difference.low < 0 < found.difference.high
    with pytest.raises(ValueError, match="same images"):
        paired(same, same[:10])


def test_the_interval_of_a_difference_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        shared = rng.random(200) < 0.3  # images on which both answer alike
        u, v = rng.random(200), rng.random(200)
        first, second = u < 0.8, np.where(shared, u, v) < 0.75
        found = paired(first, second)
        hits += found.difference.low <= 0.05 <= found.difference.high
    assert 0.92 < hits / 400 < 0.98
