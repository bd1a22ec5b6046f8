"""In-place distillation: the step's first (largest) subnet teaches the others.

Yu and Huang, "Universally Slimmable Networks", ICCV 2019, Sec. 3.3, https://arxiv.org/abs/1903.05134.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from qnas.nn.ranks import Ranks
from qnas.protocols import Task


class InplaceDistillation:
    """The first subnet of a step learns the labels; the others learn its (detached) softmax. Stateless over steps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._teacher: Tensor | None = None

    def begin_stage(self, quantized: bool, epoch: int) -> None:
        """Nothing to prepare."""

    def begin_step(self, images: Tensor, labels: Tensor) -> None:
        """Forget the last step's teacher."""
        self._teacher = None

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the task's loss against the labels (first) or cross-entropy with the teacher's softmax, ``[]``.

        Args:
            position: in the order of the sampler.
            logits: ``[N, classes]``.
            labels: ``[N]``.
        """
        logits = logits.float()
        if position == 0:
            self._teacher = torch.softmax(logits.detach(), dim=1)
            return self.task.loss(logits, labels)
        assert self._teacher is not None, "the first subnet of a step must come first"
        return F.cross_entropy(logits, self._teacher)

    def end_epoch(self, ranks: Ranks) -> None:
        """Nothing to carry over."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""
