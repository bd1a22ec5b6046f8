"""Uniform sampling: every knob of every subnet drawn by itself.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020,
https://arxiv.org/abs/1904.00420; with one subnet a step, as BASQ trains.
"""

from __future__ import annotations

import numpy as np

from qnas.space import Sample, SearchSpace


class Uniform:
    """Independent uniform subnets."""

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return ``n`` samples, each knob's choices equally likely; the order means nothing."""
        return [space.sample(row) for row in space.draw(rng, n)]
