"""Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, Sec. 7."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.ranks import Ranks
from qnas.protocols import Task


class LabelSmoothing:
    """Every subnet learns ``(1 - smoothing) q + smoothing / classes``, q the one-hot label. Stateless.

    Args:
        task: of classification; its own loss is not used.
        smoothing: from 0 (hard labels) to below 1.
    """

    def __init__(self, task: Task, *, smoothing: float = 0.1) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigError(
                f"label-smoothing: smoothing must be from 0 to below 1; given: {smoothing}. Correct "
                "[train.supervision_options]."
            )
        self.smoothing = smoothing

    def begin_stage(self, quantized: bool, epoch: int) -> None:
        """Nothing to prepare."""

    def begin_step(self, images: Tensor, labels: Tensor) -> None:
        """Nothing to prepare."""

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy with smoothed labels, ``[]``; ``logits`` ``[N, classes]``, ``labels`` ``[N]``."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)

    def end_epoch(self, ranks: Ranks) -> None:
        """Nothing to carry over."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""
