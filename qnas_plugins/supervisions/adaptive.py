"""The online adaptive label: classes get the label that the nets of all bit-widths gave them in the epoch before.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.2, Eq. 3 and 4.
Hard labels make the loss at 2 bits so much larger than that at 8 that the weights follow the low bit-widths.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.ranks import Ranks
from qnas.protocols import Task


class AdaptiveLabel:
    """Every subnet learns ``(1 - zeta) q + zeta A[y]``: q the one-hot label of class y, A of the epoch before (Eq. 4).

    While an epoch runs, an image that any of the step's subnets classifies right adds the mean of all their softmax
    outputs to its class's row (Eq. 3, written for one random subnet: with M of them the sum is divided by M + 2). At
    the end of the epoch each row is divided by its sum; several processes add their rows before. The first epoch
    of each stage, and a class without a right answer, have the one-hot label, and so has a stage in which nothing is
    quantized.

    Where Eq. 3 and its text disagree about columns and rows: ``A[y]`` is the label of class y, and sums to 1.

    Args:
        task: of classification; its own loss is not used.
        zeta: weight of the adaptive label; the paper takes 0.5.
    """

    def __init__(self, task: Task, *, zeta: float = 0.5) -> None:
        if not 0 <= zeta <= 1:
            raise ConfigError(
                f"adaptive-label: zeta must be from 0 to 1; given: {zeta}. Correct [train.supervision_options]."
            )
        self.zeta = zeta
        self.labels: Tensor | None = None  # [classes, classes], float64: A of the epoch before
        self._sums: Tensor | None = None  # the same of this epoch, before it is divided
        self._step: _Step | None = None
        self._adapts = True

    def begin_stage(self, quantized: bool, epoch: int) -> None:
        """Forget the labels of the stage before; where nothing is quantized, all learn hard labels."""
        self._adapts = quantized
        if epoch == 0:
            self.labels = None
        self._sums, self._step = None, None

    def begin_step(self, images: Tensor, labels: Tensor) -> None:
        """Count the step before, and forget its outputs."""
        self._count()
        self._step = _Step(labels)

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy with the mixed label, ``[]``; ``logits`` ``[N, classes]``, ``labels`` ``[N]``."""
        assert self._step is not None, "begin_step comes first"
        logits = logits.float()
        if self._adapts:
            self._step.add(logits.detach())
        target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        if self.labels is not None:
            adaptive = self.labels.to(logits.device, logits.dtype)[labels]
            target = (1 - self.zeta) * target + self.zeta * adaptive
        return F.cross_entropy(logits, target)

    def end_epoch(self, ranks: Ranks) -> None:
        """Make the label of the next epoch from what was counted in this one."""
        self._count()
        self._step = None
        if self._sums is None:
            return
        sums = ranks.mean(self._sums)  # the mean has the proportions of the sum
        total = sums.sum(1, keepdim=True)
        hard = torch.eye(len(sums), dtype=sums.dtype, device=sums.device)
        self.labels = torch.where(total > 0, sums / total.clamp(min=torch.finfo(sums.dtype).tiny), hard)
        self._sums = None

    def _count(self) -> None:
        """Add the last step's outputs to the rows of its labels (Eq. 3)."""
        if self._step is None or self._step.sum is None:
            return
        step, outputs = self._step, self._step.sum
        assert step.hit is not None
        if self._sums is None:
            classes = outputs.shape[1]
            self._sums = torch.zeros(classes, classes, dtype=torch.float64, device=outputs.device)
        self._sums.index_add_(0, step.labels[step.hit], (outputs / step.passes)[step.hit])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the label that this epoch learns; between epochs nothing else is left."""
        return {} if self.labels is None else {"labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a label."""
        self.labels = state["labels"].clone() if "labels" in state else None
        self._sums, self._step = None, None


class _Step:
    """What the subnets of one step have answered so far.

    Attributes:
        sum: ``[N, classes]`` of their softmax outputs, float64.
        hit: ``[N]``: whether any of them is right.
        passes: their number.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.sum: Tensor | None = None
        self.hit: Tensor | None = None
        self.passes = 0

    def add(self, logits: Tensor) -> None:
        """Add one subnet's outputs, ``[N, classes]``."""
        outputs = torch.softmax(logits.double(), 1)
        right = logits.argmax(1) == self.labels
        self.sum = outputs if self.sum is None else self.sum + outputs
        self.hit = right if self.hit is None else self.hit | right
        self.passes += 1
