"""Bit-widths as users say them."""

from __future__ import annotations

import pytest

from qnas.bits import set_bits
from qnas.errors import ConfigError


@pytest.fixture(scope="module")
def space(make_family):
    return make_family("resnet20", w_bits=(2, 4, 8), a_bits=(2, 4, 8), elastic=False)


def roles(space, role):
    return [knob.label for knob in space.knobs if knob.role == role]


def test_one_number_is_for_all(space):
    sample = set_bits(space, space.highest(), "4", "2")
    assert {sample[label] for label in roles(space, "w_bits")} == {4}
    assert {sample[label] for label in roles(space, "a_bits")} == {2}
    space.validate(sample)


def test_what_is_not_said_stays(space):
    sample = set_bits(space, space.lowest(), None, "8")
    assert {sample[label] for label in roles(space, "w_bits")} == {2}


def test_a_list_goes_by_the_order_of_the_layers(space):
    labels = roles(space, "w_bits")
    wanted = [(2, 4, 8)[i % 3] for i in range(len(labels))]
    sample = set_bits(space, space.highest(), ",".join(map(str, wanted)))
    assert [sample[label] for label in labels] == wanted


def test_patterns_name_layers_and_the_last_one_wins(space):
    sample = set_bits(space, space.highest(), layers=["stage3.*=2/4", "stage3.block1.*=8", "stage1.*=/2"])
    for label in roles(space, "w_bits"):
        wanted = 8 if not label.startswith("stage3") or label.startswith("stage3.block1") else 2
        assert sample[label] == wanted
    for label in roles(space, "a_bits"):
        assert sample[label] == {"stage1": 2, "stage3": 4}.get(label[:6], 8)


def test_the_whole_network_has_a_name(make_family):
    space = make_family("resnet20", granularity="network", elastic=False)
    assert set_bits(space, space.highest(), layers=["network=2/4"])["w_bits"] == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("5",), "trained for 2, 4, 8"),
        (("2,4",), "takes one number, or 18"),
        ((None, "x"), "--a-bits cannot set"),
        ((None, None, ["stage9.*=2"]), "matches nothing"),
        ((None, None, ["stage1.*"]), "PATTERN=W/A"),
        ((None, None, ["stage1.*=2/4/8"]), "PATTERN=W/A"),
        ((None, None, ["stage1.*=3"]), "trained for 2, 4, 8"),
    ],
)
def test_mistakes_are_named(space, given, said):
    with pytest.raises(ConfigError, match=said):
        set_bits(space, space.highest(), *given)
