"""Spaces small enough to look at every sample, to test estimates of distributions with."""

from __future__ import annotations

import numpy as np

from qnas.averages import AverageBits
from qnas.layers import LayerSpec
from qnas.space import Condition, Knob, QuantScheme, SearchSpace, Site

LAYERS = (("one", 8, 8, 3, 8), ("two", 8, 16, 3, 4), ("three", 16, 16, 1, 4))


class Chain(SearchSpace):
    """A stem and a head at 8 bits, and three convolutions between; of two depths, the smaller leaves the last out."""

    def __init__(self, w_bits=(2, 3, 5), a_bits=(2, 4, 6), granularity="layer", depths=(2,)):
        def middle(name, spec):
            def describe(sample):
                return None if name == "three" and sample["depth"] == 1 else spec

            there = (Condition("depth", (2,)),) if name == "three" and 1 in depths else ()
            block = "back" if name == "three" else "front"
            return Site(name, ("depth",), describe, "stage", block, active_if=there)

        sites = [
            Site("stem", (), lambda sample: LayerSpec("stem", "conv", 3, 8, 3, out_size=8), w_bits=8, a_bits=8),
            *(middle(n, LayerSpec(n, "conv", i, o, k, 2 if n == "two" else 1, out_size=s)) for n, i, o, k, s in LAYERS),
            Site("head", (), lambda sample: LayerSpec("head", "linear", 16, 3), w_bits=8, a_bits=8),
            Site("out", (), lambda sample: LayerSpec("out", "quantize", 3, 3), w_bits=8, a_bits=8),
        ]
        scheme = QuantScheme(tuple(w_bits), tuple(a_bits), granularity)
        super().__init__("chain", [Knob("depth", depths)], sites, scheme, image_size=8, num_classes=3)

    def build(self, context):
        raise NotImplementedError


def averages(weighting):
    """Return the averages of weights' and of activations' bits."""
    return {"w": AverageBits("w_bits", weighting), "a": AverageBits("a_bits", weighting)}


def every_sample(space):
    """Return all samples of a space, ``[n, num_knobs]``, in the order of ``itertools.product``."""
    sizes = [len(knob.choices) for knob in space.knobs]
    return np.indices(sizes).reshape(len(sizes), -1).T
