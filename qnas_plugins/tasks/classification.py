"""Image classification: cross-entropy and top-1 accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Classification:
    """One label an image."""

    metric = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, ``[]``; ``outputs`` ``[N, classes]``, ``targets`` ``[N]``."""
        return F.cross_entropy(outputs.float(), targets)

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return ``accuracy``, the share of correct images."""
        return {self.metric: float(self.correct(outputs, targets).double().mean())}

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return whether the largest output is the label's, ``[N]``."""
        return outputs.argmax(1) == targets
