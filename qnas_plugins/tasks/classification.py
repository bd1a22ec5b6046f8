"""Image classification: cross-entropy and top-1 accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Classification:
    """One label an image."""

    metric = "accuracy"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, ``[]``; ``logits`` ``[N, classes]``, ``labels`` ``[N]``."""
        return F.cross_entropy(logits.float(), labels)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return whether the largest output is the label's, ``[N]``."""
        return outputs.argmax(1) == labels
