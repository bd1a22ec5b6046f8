"""Blocks cut out of a net, executed one after another, answer as the net."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from qnas.latency.cut import structure

CASES = [(name, [2, 4]) for name in ("mbv2", "basq-mbv2", "resnet20", "resnet50", "module:tests.own_networks:make")]
CASES += [("mbv3", [2, 4]), ("mbv3", [4, 8])]


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    taken = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, taken), strict=True))


def through_blocks(models, images):
    """Return the logits, each block fed with what others made."""
    values, left = {"images": images}, dict(models)
    while left:
        ready = [n for n, m in left.items() if all(v.name in values for v in m.model.graph.input)]
        assert ready, f"blocks {sorted(left)} wait for tensors that no block gives"
        for name in ready:
            for output, value in run(left.pop(name).model, values).items():
                values[output] = value
                values[output.removesuffix(".result") + ".last"] = value  # channels-last, as it was given
    return values["logits"]


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_blocks_of_a_net_answer_as_the_net(make_nets, name, bits):
    nets = make_nets(name, w_bits=bits, a_bits=bits, granularity="layer")
    space = nets.space
    for sample in (space.highest(), space.lowest()):
        size = space.resolution(sample)
        images = np.random.default_rng(0).standard_normal((2, 1, size, size)).astype(np.float32)
        want = run(nets.build(sample).model, {"images": images})["logits"]
        found = through_blocks(nets.blocks(sample), images)
        np.testing.assert_array_equal(found, want)


def test_every_operator_is_in_one_block(make_nets):
    nets = make_nets("mbv3")
    sample = nets.space.highest()
    whole = [
        n.op_type for n in nets.build(sample).model.graph.node if n.op_type not in ("DequantizeLinear", "Transpose")
    ]
    parts = [
        node.op_type
        for block in nets.blocks(sample).values()
        for node in block.model.graph.node
        if node.op_type not in ("DequantizeLinear", "Transpose")
    ]
    assert sorted(parts) == sorted(whole)


def test_blocks_of_equal_shape_share_a_structure_and_others_do_not(make_nets):
    nets = make_nets("mbv3", options={"depths": [3], "se": False, "act": "relu"})
    found = nets.blocks(nets.space.highest())
    assert found["stage1.block2"].structure == found["stage1.block3"].structure
    others = [block.structure for name, block in found.items() if name != "stage1.block3"]
    assert len(set(others)) >= len(others) - 1  # stage 2 has the same pair
    assert found["stage1.block1"].structure != found["stage1.block2"].structure
    assert structure(found["stem"].model) == found["stem"].structure


def test_codes_of_fewer_bits_are_cut_where_their_site_is(make_nets):
    space = make_nets("mbv3", w_bits=[4], a_bits=[4, 8], granularity="layer").space
    nets = make_nets("mbv3", w_bits=[4], a_bits=[4, 8], granularity="layer")
    label = next(knob.label for knob in space.knobs if knob.label == "stage1.block1.project.a_bits")
    models = [nets.blocks({**space.highest(), label: bits}) for bits in (4, 8)]
    changed = [name for name in models[0] if models[0][name].structure != models[1][name].structure]
    assert changed == ["stage1.block1"]
