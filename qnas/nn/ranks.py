"""What the parts of a supernet ask of the other processes of a training step."""

from __future__ import annotations

from torch import Tensor


class Ranks:
    """Reductions over the processes that share a step's batch. This one is alone, so every reduction is the identity.

    ``qnas.processes`` has the form for several processes. Reductions are collective: every process must call them in
    the same order.

    Attributes:
        size: number of processes.
    """

    size: int = 1

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over the processes, the shape of ``x``; differentiable."""
        return x

    def minimum(self, x: Tensor) -> Tensor:
        """Return the smallest value over the processes, element by element; without gradient."""
        return x

    def maximum(self, x: Tensor) -> Tensor:
        """Return the largest value over the processes, element by element; without gradient."""
        return x
