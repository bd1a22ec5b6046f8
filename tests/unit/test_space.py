"""Knobs, samples, keys, encodings and layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tomli_w
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.costs import CostTable, cost_of, sample_costs
from qnas.errors import ConfigError
from qnas.plugins import load_registry
from qnas.rng import generator
from qnas.space import Condition, Knob, QuantScheme


@pytest.fixture(scope="module", params=["network", "stage", "block", "layer"])
def space(request, make_space):
    return make_space(granularity=request.param)


def draws(space, n, seed=0):
    return space.draw(generator(seed, "test"), n)


def test_equal_subnets_share_a_key_and_different_ones_do_not(space):
    sample = space.highest()
    sample["stage1.depth"] = 1
    other = {**sample, "stage1.block2.kernel": 3}
    assert space.key(sample) == space.key(other)  # block 2 is not there
    assert space.key(sample) != space.key({**sample, "stage1.block1.kernel": 3})
    assert space.layers(sample) == space.layers(other)


def test_keys_tell_subnets_apart_exactly_as_layers_do(space):
    by_key = {}
    for row in draws(space, 200):
        sample = space.sample(row)
        layers = space.layers(sample)
        assert by_key.setdefault(space.key(sample), layers) == layers


def test_canonical_is_idempotent_and_keeps_the_key(space):
    for row in draws(space, 50):
        sample = space.sample(row)
        canonical = space.canonical(sample)
        assert space.canonical(canonical) == canonical
        assert space.key(canonical) == space.key(sample)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_samples_survive_toml_json_and_positions(make_space, seed):
    space = make_space(granularity="layer")
    row = draws(space, 1, seed)
    sample = space.sample(row[0])
    assert tomllib.loads(tomli_w.dumps(sample)) == sample
    assert json.loads(json.dumps(sample)) == sample
    np.testing.assert_array_equal(space.indices([sample]), row)


def test_labels_are_as_nni_wants_them(space):
    for knob in space.knobs:
        assert "/" not in knob.label
    assert set(space.highest()) == {knob.label for knob in space.knobs}


def test_encoding_masks_inactive_knobs(space):
    rows = draws(space, 100)
    encoded = space.encode(rows)
    active = space.active(rows)
    np.testing.assert_array_equal(encoded.sum(1), active.sum(1))
    for row, mask in zip(rows, active, strict=True):
        sample = space.sample(row)
        assert [space.is_active(k.label, sample) for k in space.knobs] == mask.tolist()


def test_equal_subnets_have_equal_encodings(space):
    rows = draws(space, 100)
    canonical = space.indices([space.canonical(space.sample(row)) for row in rows])
    np.testing.assert_array_equal(space.encode(rows), space.encode(canonical))


def test_bits_follow_the_granularity(make_space):
    counts = {g: sum(k.role == "w_bits" for k in make_space(granularity=g).knobs) for g in
              ("network", "stage", "block", "layer")}  # fmt: skip
    assert counts["network"] == 1
    # first block, two stages, head and features stand by themselves where nothing groups them
    assert counts["stage"] < counts["block"] < counts["layer"]
    space = make_space(granularity="layer")
    layers = {layer.name: layer for layer in space.layers({**space.lowest(), "stage1.block1.project.w_bits": 4})}
    assert layers["stage1.block1.project"].w_bits == 4
    assert layers["stage1.block1.expand"].w_bits == 2


def test_first_and_last_layer_stay_at_8_bits(space):
    for layer in space.layers(space.lowest()):
        if layer.name in ("stem", "classifier"):
            assert (layer.w_bits, layer.a_bits) == (8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage1.depth": 9}, "cannot be 9; allowed"),
        ({"stage1.dept": 1}, "Did you mean 'stage1.depth'"),
    ],
)
def test_wrong_samples_are_refused(space, change, message):
    with pytest.raises(ConfigError, match=message):
        space.key({**space.lowest(), **change})


def test_a_sample_that_lacks_a_knob_is_refused(space):
    sample = space.lowest()
    del sample["resolution"]
    with pytest.raises(ConfigError, match="lacks knob 'resolution'"):
        space.validate(sample)


def test_wrong_knobs_and_schemes_are_refused(make_space):
    with pytest.raises(ConfigError, match="hold '/'"):
        Knob("a/b", (1,))
    with pytest.raises(ConfigError, match="different choices"):
        Knob("a", (1, 1))
    for bits in ((), (1, 2), (4, 2), (9,)):
        with pytest.raises(ConfigError, match="from 2 to 8"):
            QuantScheme(w_bits=bits)
    with pytest.raises(ConfigError, match="bits_granularity"):
        QuantScheme(granularity="filter")
    with pytest.raises(ConfigError, match="kernels"):
        make_space(kernels=(5, 3))


def test_a_quantizers_knobs_belong_to_their_site(make_space):
    def site_knobs(site):
        if site.name.endswith("depthwise"):
            yield Knob(f"{site.name}.toy.branch", ("a", "b"), "quantizer")

    space = make_space(site_knobs=site_knobs)
    sample = {**space.highest(), "stage1.block2.depthwise.toy.branch": "a"}
    assert space.site_values("stage1.block2.depthwise", sample) == {"stage1.block2.depthwise.toy.branch": "a"}
    assert space.key(sample) != space.key(space.highest())
    shallow = {**sample, "stage1.depth": 1}
    assert not space.is_active("stage1.block2.depthwise.toy.branch", shallow)
    with pytest.raises(ConfigError, match="must be labelled"):
        make_space(site_knobs=lambda site: [Knob("branch", (1, 2))])


def test_conditions_must_name_an_earlier_knob(make_space):
    def site_knobs(site):
        yield Knob(f"{site.name}.toy.x", (1, 2), "quantizer", (Condition(f"{site.name}.toy.y", (1,)),))

    with pytest.raises(ConfigError, match="earlier knob"):
        make_space(site_knobs=site_knobs)


# --- views of the stages of training -----------------------------------------------------------------------------


def test_a_key_stays_the_same_when_a_space_gets_more_bit_widths(make_space):
    for granularity in ("network", "stage", "block", "layer"):
        few = make_space(granularity=granularity, w_bits=(4,), a_bits=(4,))
        more = make_space(granularity=granularity, w_bits=(2, 3, 4), a_bits=(3, 4))
        view = more.restrict(w_bits=[4], a_bits=[4])
        for row in draws(few, 50):
            sample = few.sample(row)
            assert few.key(sample) == more.key(sample) == view.key(sample)


def test_a_float_view_costs_what_a_float_net_costs(space):
    view = space.floating("w_bits", "a_bits")
    models = load_registry()
    for row in draws(view, 20):
        sample = view.sample(row)
        layers = view.layers(sample)
        assert {layer.w_bits for layer in layers if layer.macs} == {32}
        costs = sample_costs(view, {n: models.load("cost", n) for n in ("bitops", "macs", "size_bytes")}, sample)
        assert costs["bitops"] == 32 * 32 * costs["macs"]
        assert costs["size_bytes"] == sum(
            4 * (layer.num_weights + layer.out_channels) for layer in layers if layer.macs
        )
        table = CostTable(view, {"bitops": models.load("cost", "bitops")})
        assert table.costs(view.indices([sample]))["bitops"][0] == costs["bitops"]
        assert space.key(space.canonical(sample | bits_of(space))) != view.key(sample)
    half = space.floating("a_bits")
    assert {layer.a_bits for layer in half.layers(half.highest())} == {32}
    assert max(layer.w_bits for layer in half.layers(half.highest()) if "se" not in layer.name) == 8
    size = models.load("cost", "size_bytes")
    whole = cost_of(space.layers(space.highest()), size)
    grids = sum(layer.a_bits < 32 for layer in space.layers(space.highest()))
    assert whole - cost_of(half.layers(half.highest()), size) == 5 * grids  # float activations have no grids


def bits_of(space):
    return {knob.label: knob.choices[0] for knob in space.knobs if knob.role in ("w_bits", "a_bits")}
