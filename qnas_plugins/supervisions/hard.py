"""Hard labels for every subnet."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


class HardLabel:
    """Cross-entropy against the labels. Stateless."""

    def begin_step(self, labels: Tensor) -> None:
        """Nothing to prepare."""

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, ``[]``; ``logits`` ``[N, classes]``, ``labels`` ``[N]``."""
        return F.cross_entropy(logits.float(), labels)

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""
