"""Hard labels for every subnet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qnas.nn.ranks import Ranks
from qnas.protocols import Task


class HardLabel:
    """The task's loss against the labels. Stateless."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def begin_stage(self, quantized: bool, epoch: int) -> None:
        """Nothing to prepare."""

    def begin_step(self, images: Tensor, labels: Tensor) -> None:
        """Nothing to prepare."""

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the task's loss, ``[]``; ``logits`` ``[N, classes]``, ``labels`` ``[N]``."""
        return self.task.loss(logits, labels)

    def end_epoch(self, ranks: Ranks) -> None:
        """Nothing to carry over."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""
