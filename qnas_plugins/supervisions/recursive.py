"""Recursive in-place distillation: each subnet of a step learns from the one before.

Yu et al., "Any-Precision Deep Neural Networks", AAAI 2021, https://arxiv.org/abs/1911.07346, Sec. 3.3, Algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qnas_plugins.supervisions.inplace import InplaceDistillation


class RecursiveDistillation(InplaceDistillation):
    """The first subnet learns the labels, each other the (detached) softmax of the one before it."""

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the task's loss (first) or cross-entropy with the softmax of the subnet before, ``[]``.

        Args:
            position: in the order of the sampler, which puts the higher bit-widths first.
            logits: ``[N, classes]``.
            labels: ``[N]``.
        """
        loss = super().loss(position, logits, labels)
        self._teacher = torch.softmax(logits.detach().float(), dim=1)
        return loss
