"""Which subnets are judged at each stage, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.effects import Judged, questions
from qnas.insights import difference, draw_architectures, dress, stage_entry, stage_samples
from qnas.insights_said import by_choice, difference_said, effect_said, sentence
from qnas.space import BIT_ROLES, QuantScheme
from qnas.testing.parts import ToySpace


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(w_bits=(2, 3, 4), a_bits=(2, 3, 4), granularity="layer")


def architecture(space, sample):
    return tuple(sample[knob.label] for knob in space.knobs if knob.role not in BIT_ROLES)


def views(space):
    four, two = (space.restrict(w_bits=[b], a_bits=[b]) for b in (4, 2))
    return {"float": space.floating(*BIT_ROLES), "4-bit": four, "mixed": space.restrict(w_bits=[2, 3]), "2-bit": two}


def test_the_same_architectures_at_every_stage_with_its_own_bits(space):
    drawn = draw_architectures(space, 30, 0)
    assert len({architecture(space, s) for s in drawn}) == 30
    for view in views(space).values():
        samples = stage_samples(view, drawn, 30, 0)
        assert list(samples) == list(range(30))
        for position, sample in samples.items():
            assert sample == view.canonical(sample)  # every value is one of the view's
            assert architecture(space, sample) == architecture(space, drawn[position])


def test_bits_that_a_stage_leaves_open_are_drawn_uniformly_and_alike(space):
    drawn = draw_architectures(space, 300, 1)
    mixed, full = (stage_samples(v, drawn, 300, 1) for v in (space.restrict(w_bits=[2, 4]), space))
    counts = {bits: sum(s["stage1.block1.expand.w_bits"] == bits for s in full.values()) for bits in (2, 3, 4)}
    assert max(abs(count - 100) for count in counts.values()) < 5 * 10
    extremes = [p for p in full if full[p]["stage1.block1.expand.w_bits"] != 3]
    same = [full[p]["stage1.block1.expand.w_bits"] == mixed[p]["stage1.block1.expand.w_bits"] for p in extremes]
    assert all(same)


def test_more_go_on_from_fewer(space):
    assert draw_architectures(space, 90, 3)[:20] == draw_architectures(space, 20, 3)
    assert draw_architectures(space, 20, 3) != draw_architectures(space, 20, 4)
    more, fewer = (stage_samples(space, draw_architectures(space, n, 3), n, 3) for n in (90, 20))
    assert {p: more[p] for p in fewer} == fewer


def test_a_small_space_is_judged_whole():
    space = ToySpace(QuantScheme((4,), (4,)))  # without the middle layer, or with one of three kernels
    drawn = draw_architectures(space, 50, 0)
    assert len(drawn) == 4
    assert len(stage_samples(space, drawn, 50, 0)) == 4


def test_one_architecture_goes_round_with_other_bits(make_family):
    space = make_family("resnet20", elastic=False)
    drawn = draw_architectures(space, 30, 0)
    assert len(drawn) == 1
    samples = stage_samples(space, drawn, 30, 0)
    assert len({space.key(s) for s in samples.values()}) == 30
    assert len(stage_samples(space.restrict(w_bits=[2], a_bits=[2]), drawn, 30, 0)) == 1


def test_dressing_is_a_function_of_seed_and_position(space):
    drawn = draw_architectures(space, 1, 0)[0]
    assert dress(space, drawn, 0, 0) == dress(space, drawn, 0, 0)
    assert dress(space, drawn, 0, 0) != dress(space, drawn, 1, 0)
    assert dress(space, drawn, 0, 0) != dress(space, drawn, 0, 1)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(make_space):
    """Float likes kernels of 7, two bits like resolution and kernels of 3."""
    space = make_space(w_bits=(2, 4), a_bits=(2, 4))
    rng = np.random.default_rng(0)
    drawn = draw_architectures(space, 60, 0)
    found = []
    for view, liked in ((space.floating(*BIT_ROLES), 7), (space.restrict(w_bits=[2], a_bits=[2]), 3)):
        samples = list(stage_samples(view, drawn, 60, 0).values())
        indices = view.indices(samples)
        own = [i for i, knob in enumerate(view.knobs) if knob.label.endswith("kernel")]
        there = view.active(indices)[:, own]
        has = there & (indices[:, own] == view.knobs[own[0]].choices.index(liked))
        scores = 0.5 + 0.1 * has.sum(1) / there.sum(1) + 0.003 * rng.standard_normal(60)
        if liked == 3:
            scores += 0.05 * indices[:, view.position["resolution"]]
        found.append((samples, Judged(view, indices, scores, 1e6 * (1 + rng.random(60)))))
    return found


@pytest.fixture(scope="module")
def stages(judged):
    return [stage_entry(name, j, s, 0) for name, (s, j) in zip(("float", "2-bit"), judged, strict=True)]


def test_an_entry_holds_what_was_judged(stages, judged):
    float_stage, low = stages
    assert float_stage["bits"] == {"w_bits": [32], "a_bits": [32]}
    assert low["bits"] == {"w_bits": [2], "a_bits": [2]}
    assert [s["score"] for s in low["subnets"]] == judged[1][1].scores.tolist()
    assert [s["sample"] for s in low["subnets"]] == judged[1][0]
    asked = questions(judged[1][1].space)
    assert len(low["preferences"]) == len(asked)
    mirrors = sum(p["mirror"] for p in low["preferences"])
    assert mirrors >= 3  # resolution, depth of both stages
    assert low["num_tested"] == len(asked) - mirrors
    assert low["expected_by_chance"] == pytest.approx(0.05 * low["num_tested"], abs=0.01)
    assert low["num_resolved"] == sum(p["resolved"] and not p["mirror"] for p in low["preferences"])


def test_sentences_name_what_was_planted(stages):
    assert "float: at equal BitOPs, good subnets prefer kernel 7 (+" in sentence(stages[0], "BitOPs")
    said = sentence(stages[1], "BitOPs")
    assert "resolution 16 (+5." in said or "resolution 16 (+4." in said
    assert "kernel 3" in said
    assert "avoid resolution" not in said, "the other one of two choices says nothing new"
    assert f"{stages[1]['num_resolved']} of {stages[1]['num_tested']} are resolved" in said


def test_nothing_resolved_is_said_so_and_chance_is_named(stages):
    nothing = {**stages[0], "num_resolved": 0, "num_subnets": 50}
    assert sentence(nothing, "c") == "float: nothing is resolved with 50 subnets; try --configs 200."
    few = {**stages[0], "num_resolved": 1, "expected_by_chance": 1.4}
    assert "so these may be chance" in sentence(few, "c")
    assert "so these may be chance" not in sentence({**few, "num_resolved": 5}, "c")


def test_the_difference_is_of_the_fewest_bits_to_the_most(stages, judged):
    positions = list(range(60))
    pairs = [(positions, j) for _, j in judged]
    found = difference(stages, pairs, 0)
    assert (found["low"], found["high"], found["num_subnets"]) == ("2-bit", "float", 60)
    entries = {(e["kind"], e["choice"]): e for e in found["entries"]}
    assert entries["kernel", 7]["difference"]["high"] < 0
    assert entries["kernel", 3]["difference"]["low"] > 0
    assert "kernel 7 (-" in difference_said(found)
    assert difference(stages[::-1], pairs[::-1], 0) == found
    assert difference(stages[:1], pairs[:1], 0) is None
    assert difference(stages, [pairs[0], (list(range(100, 160)), judged[1][1])], 0) is None
    shared = difference(stages, [pairs[0], ([*range(40), *range(100, 120)], judged[1][1])], 0)
    assert shared["num_subnets"] == 40


def test_preferences_of_several_stages_side_by_side(stages):
    rows = by_choice(stages)
    assert list(rows) == ["resolution", "depth", "kernel", "expansion"]
    assert list(rows["kernel"])[:4] == [("network", 3), ("network", 5), ("network", 7), ("stage1", 3)]
    assert [p["choice"] for p in rows["kernel"]["network", 7]] == [7, 7]
    without = {**stages[1], "preferences": [p for p in stages[1]["preferences"] if p["choice"] != 7]}
    assert by_choice([stages[0], without])["kernel"]["network", 7][1] is None
    assert effect_said(None) == "-"
    assert effect_said({"effect": {"value": 0.012, "low": 0.004, "high": 0.02}}) == "+1.2 ± 0.8"
