"""Every bit-width in turn, in all layers at once.

Yu et al., "Any-Precision Deep Neural Networks", AAAI 2021, https://arxiv.org/abs/1911.07346, Algorithm 1: a step adds
the gradients of all bit-widths, from the highest to the lowest.
"""

from __future__ import annotations

import numpy as np

from qnas.space import BIT_ROLES, Sample, SearchSpace, Value


class EveryBits:
    """Draws subnets with one bit-width for weights and activations, the highest first.

    With as many subnets a step as there are bit-widths each comes once; with fewer, the highest, the lowest and random
    ones between; with more, random ones again. Where weights or activations cannot have a bit-width, they have the
    nearest lower one, or their lowest. All have the largest architecture.
    """

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return ``n`` samples, bit-widths descending."""
        every = sorted({int(c) for knob in space.knobs if knob.role in BIT_ROLES for c in knob.choices}, reverse=True)
        if n == 1 or len(every) < 2:
            return [_uniform(space, bits) for bits in (every or [0])[:1] * n]
        between = every[1:-1]
        most = min(n - 2, len(between))
        chosen = [between[i] for i in rng.permutation(len(between))[:most]]
        again = [every[int(i)] for i in rng.integers(len(every), size=n - 2 - most)]
        return [_uniform(space, bits) for bits in sorted([every[0], every[-1], *chosen, *again], reverse=True)]


def _uniform(space: SearchSpace, bits: int) -> Sample:
    """Return the largest architecture with one bit-width."""
    sample: Sample = {}
    for knob in space.knobs:
        sample[knob.label] = _nearest(knob.choices, bits) if knob.role in BIT_ROLES else knob.choices[-1]
    return sample


def _nearest(choices: tuple[Value, ...], bits: int) -> Value:
    lower = [choice for choice in choices if int(choice) <= bits]
    return lower[-1] if lower else choices[0]
