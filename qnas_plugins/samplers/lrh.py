"""Lowest-random-highest bit-width co-training.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.2: a step adds
the gradients of the net at the highest bit-widths, at random ones layer by layer, and at the lowest, before the weights
move once.
"""

from __future__ import annotations

import numpy as np

from qnas.space import BIT_ROLES, Sample, SearchSpace


class LowestRandomHighest:
    """Draws the highest bit-widths first, random ones, and the lowest last.

    First and last have the largest architecture, since the paper's network has one architecture; random ones have a
    random one, where the space leaves a choice (``sandwich`` is the rule for spaces elastic in architecture). The
    highest comes first, so that it can teach the others; the gradients add up in any order.
    """

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return ``n`` samples: highest, ``n - 2`` (the paper's M) uniform ones, lowest; for 1, the highest."""
        highest = space.highest()
        if n == 1:
            return [highest]
        middle = [space.sample(row) for row in space.draw(rng, n - 2)]
        lowest = {k.label: k.choices[0] if k.role in BIT_ROLES else highest[k.label] for k in space.knobs}
        return [highest, *middle, lowest]
