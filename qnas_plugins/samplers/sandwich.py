"""The sandwich rule: largest, random ones, smallest.

Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019,
https://arxiv.org/abs/1903.05134. Used by OFA's successors, OQAT and QuantNAS.
"""

from __future__ import annotations

import numpy as np

from qnas.space import Sample, SearchSpace


class Sandwich:
    """Draws the largest subnet at the highest bits first and the smallest at the lowest bits last."""

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return ``n`` samples: the largest, ``n - 2`` uniform ones, the smallest; for 1, the largest."""
        if n == 1:
            return [space.highest()]
        middle = [space.sample(row) for row in space.draw(rng, n - 2)]
        return [space.highest(), *middle, space.lowest()]
