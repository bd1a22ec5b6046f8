"""What goes with a good score at equal cost: against planted effects and an independent least squares."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.costs import CostTable
from qnas.effects import (
    GOOD,
    MIN_EACH,
    NETWORK,
    Judged,
    Question,
    bootstrap_interval,
    cost_basis,
    differences,
    effects,
    good_weights,
    is_mirror,
    preferences,
    questions,
    resample_weights,
    residuals,
    shares,
)
from qnas.space import Condition, Knob, QuantScheme
from qnas.testing.parts import ToySpace, toy_space

FEW = 300  # resamples where many sets are simulated


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(w_bits=(4,), a_bits=(4,), depths=(1, 2, 3))


@pytest.fixture(scope="module")
def bitops(space, registry):
    return CostTable(space, {"bitops": registry.load("cost", "bitops")})


def column(asked, kind, choice, place=NETWORK):
    return next(i for i, q in enumerate(asked) if (q.kind, q.choice, q.place) == (kind, choice, place))


def draw(space, bitops, n, seed):
    rng = np.random.default_rng(seed)
    indices = space.draw(rng, n)
    return rng, indices, bitops.costs(indices)["bitops"].astype(float)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_kinds_places_and_choices(space):
    asked = questions(space)
    assert {(q.kind, q.choice) for q in asked if q.place == NETWORK} == {
        *(("resolution", r) for r in space.resolutions),
        *(("depth", d) for d in (1, 2, 3)),
        *(("kernel", k) for k in (3, 5, 7)),
        *(("expansion", e) for e in (3, 4, 6)),
    }
    assert {q.place for q in asked if q.kind == "kernel"} == {NETWORK, "stage1", "stage2"}
    assert {q.place for q in asked if q.kind == "resolution"} == {NETWORK}, "one knob is not asked about twice"
    assert all(space.knobs[i].label.startswith(f"{q.place}.") for q in asked if q.place != NETWORK for i in q.knobs)


def test_bit_widths_are_kinds_like_any_other(make_space):
    asked = questions(make_space(w_bits=(2, 4), a_bits=(2, 3, 4), granularity="stage"))
    assert {q.choice for q in asked if q.kind == "w_bits"} == {2, 4}
    assert {"stage1", "stage2"} < {q.place for q in asked if q.kind == "a_bits"}


def test_only_knobs_that_may_have_a_choice_count_for_it():
    space = ToySpace(QuantScheme((4,), (4,)))
    space.knobs = (Knob("stage1.width", (8, 16)), Knob("stage2.width", (16, 32)), Knob("stage3.width", (16,)))
    found = {q.choice: q.knobs for q in questions(space) if q.place == NETWORK}
    assert found == {8: (0,), 16: (0, 1), 32: (1,)}
    assert shares(space, np.array([[1, 1, 0], [1, 0, 0]]), [Question("width", NETWORK, 16, (0, 1))]).tolist() == [
        [0.5],
        [1.0],
    ]


def test_knobs_that_are_switched_off_do_not_count():
    space = toy_space()
    asked = questions(space)
    kernel = column(asked, "kernel", 3)
    rows = space.indices([{**space.lowest(), "depth": d, "kernel": k} for d, k in ((1, 3), (1, 5), (0, 3), (0, 1))])
    assert shares(space, rows, asked)[:, kernel].tolist() == pytest.approx([1, 0, np.nan, np.nan], nan_ok=True)


def test_shares_are_counted_as_by_hand(space, bitops):
    _, indices, _ = draw(space, bitops, 30, 0)
    asked = questions(space)
    for question, values in zip(asked, shares(space, indices, asked).T, strict=True):
        for row, value in zip(indices, values, strict=True):
            sample = space.sample(row)
            own = [space.knobs[i].label for i in question.knobs if space.is_active(space.knobs[i].label, sample)]
            expected = np.mean([sample[label] == question.choice for label in own]) if own else np.nan
            assert value == pytest.approx(expected, nan_ok=True)


def test_the_second_of_two_choices_is_a_mirror(space):
    asked = questions(space)
    mirrors = {(q.kind, q.choice) for i, q in enumerate(asked) if is_mirror(asked, i)}
    assert mirrors == {("resolution", space.resolutions[1])}
    assert len(space.resolutions) == 2


# --- the statistics --------------------------------------------------------------------------------------------------


def test_effects_are_those_of_a_least_squares_with_the_cost(space, bitops):
    rng, indices, costs = draw(space, bitops, 60, 1)
    share = shares(space, indices, questions(space))
    share[:7, 2] = np.nan  # subnets without the knob
    scores = rng.random(60)
    weights = np.vstack([np.ones(60), resample_weights(60, 0, 3)])
    found = effects(cost_basis(costs), scores, share, weights)
    for b, w in enumerate(weights):
        for m in range(share.shape[1]):
            known = np.repeat(np.flatnonzero(~np.isnan(share[:, m])), w[~np.isnan(share[:, m])].astype(int))
            logs = np.log(costs[known])
            x = np.column_stack([np.ones(len(known)), logs, logs**2, share[known, m]])
            assert found[b, m] == pytest.approx(np.linalg.lstsq(x, scores[known], rcond=None)[0][3], rel=1e-6)


def test_a_choice_that_says_nothing_of_the_cost_is_a_difference_of_means():
    costs = np.repeat([1e6, 2e6, 4e6, 8e6], 6)
    share = np.tile([0.0, 1.0, 1.0, 0.0, 1.0, 0.0], 4)[:, None]
    scores = np.random.default_rng(0).random(24)
    once = np.ones((1, 24))
    left = residuals(cost_basis(costs), scores, once)[0]
    means = [left[share[:, 0] == value].mean() for value in (1, 0)]
    assert effects(cost_basis(costs), scores, share, once)[0, 0] == pytest.approx(means[0] - means[1])


def test_the_cost_takes_nothing_of_what_a_choice_does():
    """Comparing residuals of a fit without the share would give the cost a part of what the choice does."""
    rng = np.random.default_rng(0)
    share = rng.integers(0, 2, 80).astype(float)[:, None]
    logs = share[:, 0] + rng.standard_normal(80)
    basis, once = cost_basis(1e6 * np.exp(logs)), np.ones((1, 80))
    scores = 0.3 + 0.1 * logs - 0.03 * logs**2 + 0.05 * share[:, 0]
    assert effects(basis, scores, share, once)[0, 0] == pytest.approx(0.05)
    left = residuals(basis, scores, once)[0]
    assert left[share[:, 0] == 1].mean() - left[share[:, 0] == 0].mean() < 0.045


def test_a_choice_that_the_cost_tells_already_has_no_effect():
    costs = np.array([1e6, 2e6] * 10)
    share = np.array([0.0, 1.0] * 10)[:, None]
    assert np.isnan(effects(cost_basis(costs), np.arange(20.0), share, np.ones((1, 20)))).all()
    assert cost_basis(np.full(9, 5.0)).shape == (9, 1)
    assert cost_basis(costs).shape == (20, 2)


def test_the_best_quarter_is_taken_by_weight():
    residual = np.array([[0.3, 0.1, 0.2, -0.5, 0.0, -0.1, 0.05, -0.2]])
    assert GOOD == 0.25
    assert good_weights(residual, np.ones((1, 8))).tolist() == [[1, 0, 1, 0, 0, 0, 0, 0]]
    weights = np.array([[1.0, 0, 3, 1, 1, 1, 1, 0]])
    assert good_weights(residual, weights).tolist() == [[1, 0, 1, 0, 0, 0, 0, 0]]


def test_shares_among_the_good_and_among_all(space, bitops):
    rng, indices, costs = draw(space, bitops, 41, 3)
    scores = rng.random(41)
    fit = preferences(Judged(space, indices, scores, costs), 0)
    best = np.argsort(-np.array(fit.residuals))[:11]  # a quarter, rounded up
    share = shares(space, indices, [p.question for p in fit.preferences])
    for i, found in enumerate(fit.preferences):
        assert found.good_share == pytest.approx(np.nanmean(share[best, i]))
        assert found.all_share == pytest.approx(np.nanmean(share[:, i]))
        assert found.gain.value == pytest.approx(found.good_share - found.all_share)
    logs = np.log(costs)
    fitted = np.polyval(np.polyfit(logs, scores, 2), logs)
    assert np.array(fit.residuals) == pytest.approx(scores - fitted, abs=1e-8)
    assert fit.r2 == pytest.approx(np.corrcoef(fitted, scores)[0, 1] ** 2)


# --- how sure --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(space, bitops):
    """200 sets of 50 subnets: the planted effect's intervals; of every second one, those where nothing is planted."""
    asked = questions(space)
    at = column(asked, "kernel", 5)
    planted, nothing = [], []
    for seed in range(200):
        rng, indices, costs = draw(space, bitops, 50, 100 + seed)
        share, logs = shares(space, indices, asked), np.log(costs / 1e6)
        by_cost = 0.5 + 0.1 * logs - 0.02 * logs**2 + 0.01 * rng.standard_normal(50)
        basis, weights = cost_basis(costs), np.vstack([np.ones(50), resample_weights(50, seed, FEW)])
        sets = [(by_cost + 0.06 * share[:, at], planted, [at])]
        if seed % 2:
            sets.append((by_cost, nothing, list(range(len(asked)))))
        for scores, to, columns in sets:
            found = effects(basis, scores, share[:, columns], weights)
            to.append([bootstrap_interval(float(c[0]), c[1:], 50, 4) for c in found.T])
    return planted, nothing


def test_a_planted_effect_is_found_and_its_interval_covers_it(simulated):
    found = [row[0] for row in simulated[0]]
    assert np.mean([i.value for i in found]) == pytest.approx(0.06, abs=0.002)
    assert np.mean([i.low <= 0.06 <= i.high for i in found]) == pytest.approx(0.95, abs=0.04)
    assert np.mean([i.low > 0 for i in found]) > 0.95


def test_where_nothing_is_planted_one_in_twenty_is_resolved(simulated):
    resolved = [i.low > 0 or i.high < 0 for row in simulated[1] for i in row if i is not None]
    assert len(resolved) > 2500
    assert 0.03 < np.mean(resolved) < 0.065


def test_an_interval_needs_subnets_on_both_sides(space, bitops):
    rng, indices, costs = draw(space, bitops, 40, 5)
    resolution = next(i for i, knob in enumerate(space.knobs) if knob.label == "resolution")
    indices[:, resolution] = 0
    for extra, known in ((MIN_EACH - 1, False), (MIN_EACH, True)):
        indices[:extra, resolution] = 1
        costs = CostTable(space, {"c": bitops.models["bitops"]}).costs(indices)["c"].astype(float)
        fit = preferences(Judged(space, indices, rng.random(40), costs), 0)
        found = [p for p in fit.preferences if p.question.kind == "resolution"]
        assert [p.effect is not None for p in found] == [known, known]
        assert sorted(p.num_with for p in found) == [extra, 40 - extra]


def test_the_same_seed_gives_the_same_numbers(space, bitops):
    rng, indices, costs = draw(space, bitops, 30, 6)
    judged = Judged(space, indices, rng.random(30), costs)
    assert preferences(judged, 4) == preferences(judged, 4)
    assert preferences(judged, 4) != preferences(judged, 5)


def test_equal_scores_resolve_nothing(space, bitops):
    _, indices, costs = draw(space, bitops, 30, 7)
    fit = preferences(Judged(space, indices, np.full(30, 0.5), costs), 0)
    assert fit.r2 == 0
    assert not any(p.resolved for p in fit.preferences)


# --- between stages --------------------------------------------------------------------------------------------------


def test_a_paired_difference_is_found_through_noise_that_both_stages_share(space, bitops):
    asked = questions(space)
    at = column(asked, "kernel", 5)
    rng, indices, costs = draw(space, bitops, 60, 8)
    share = shares(space, indices, asked)
    common = 0.5 + 0.05 * rng.standard_normal(60)
    noise = 0.002 * rng.standard_normal((2, 60))
    low = Judged(space, indices, common + 0.03 * share[:, at] + noise[0], costs)
    high = Judged(space, indices, common + noise[1], 64 * costs)
    found = {(q.kind, q.choice): interval for q, interval in differences(low, high, 0)}
    assert found["kernel", 5].value == pytest.approx(0.03, abs=0.006)
    assert found["kernel", 5].low > 0.02
    alone = next(p for p in preferences(low, 0).preferences if p.question == asked[at])
    assert alone.effect.high - alone.effect.low > 3 * (found["kernel", 5].high - found["kernel", 5].low)
    assert set(found) == {(q.kind, q.choice) for q in asked if q.place == NETWORK}


def test_a_difference_of_a_stage_to_itself_is_nothing(space, bitops):
    rng, indices, costs = draw(space, bitops, 30, 9)
    judged = Judged(space, indices, rng.random(30), costs)
    assert all(i is not None and (i.low, i.value, i.high) == (0, 0, 0) for _, i in differences(judged, judged, 0))


def test_choices_of_one_stage_alone_are_left_out(make_space):
    full = make_space(w_bits=(2, 4), a_bits=(2, 4), granularity="network")
    floating = full.floating("w_bits", "a_bits")
    rng = np.random.default_rng(0)
    sides = [Judged(s, s.draw(rng, 30), rng.random(30), rng.random(30) + 1) for s in (full, floating)]
    assert {q.kind for q, _ in differences(*sides, 0)} == {"resolution", "depth", "kernel", "expansion"}


def test_conditions_are_respected_in_nested_places():
    there = (Condition("stage1.depth", (2,)),)
    space = ToySpace(QuantScheme((4,), (4,)))
    space.knobs = (Knob("stage1.depth", (1, 2)), Knob("stage1.block2.kernel", (3, 5), active_if=there))
    space.position = {knob.label: i for i, knob in enumerate(space.knobs)}
    asked = questions(space)
    values = shares(space, np.array([[0, 1], [1, 1], [1, 0]]), asked)[:, column(asked, "kernel", 5)]
    assert values.tolist() == pytest.approx([np.nan, 1, 0], nan_ok=True)
