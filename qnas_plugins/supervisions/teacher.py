"""A teacher that is not trained: every subnet learns its softmax.

Liu et al., "ReActNet", ECCV 2020, Sec. 4.3; Kim et al., "BASQ", ECCV 2022, Sec. 6, train by it
under a ResNet-50.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.ranks import Ranks
from qnas.protocols import State, Task, TrainingContext
from qnas.teachers import Teacher, check_path, teacher_of_file, teacher_of_run


class TeacherLabel:
    """Every subnet learns ``KL(softmax(teacher) || softmax(student))``, averaged over the images. Stateless.

    The teacher answers once a step, whatever the number of subnets.

    Args:
        task: whose loss against the labels may be mixed in.
        teacher: the directory of a finished run, or a file of weights in torchvision's layout.
        config: of a run: its subnet, as users name one; by default the chosen point of its last search or, without
            one, its largest subnet.
        stage: of a run: the stage whose weights count, or ``alone/FOLDER`` for a net that was trained by itself.
        space: of a file: the search space whose network it holds.
        space_options: of that space.
        image_size: of a file: pixels at which the network takes images; the run's own by default.
        mean, std: of a file: normalisation of each channel, as fractions of 255; ImageNet's by default.
        label_share: share of the task's loss against the labels, from 0 to 1.
    """

    def __init__(
        self,
        task: Task,
        *,
        teacher: str = "",
        config: str | None = None,
        stage: str | None = None,
        space: str | None = None,
        space_options: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        label_share: float = 0.0,
    ) -> None:
        if not 0 <= label_share <= 1:
            raise ConfigError(
                f"teacher: label_share must be from 0 to 1; given: {label_share}. Correct [train.supervision_options]."
            )
        of_file = {"space_options": space_options, "image_size": image_size, "mean": mean, "std": std}
        of_run = {"config": config, "stage": stage}
        odd = [name for name, value in (of_file if space is None else of_run).items() if value is not None]
        if odd:
            kind = "a run, for a file of weights give space, too" if space is None else "a file of weights"
            raise ConfigError(
                f"teacher: {', '.join(odd)} cannot be given where the teacher is {kind}. Correct "
                "[train.supervision_options]."
            )
        self.task = task
        self.label_share = label_share
        self._path = teacher
        self._named = of_run
        self._space = space
        self._file = {**of_file, "space_options": dict(space_options or {})}
        self._teacher: Teacher | None = None
        self._logits: Tensor | None = None

    def begin_training(self, context: TrainingContext) -> State:
        """Find and check the teacher; return what names it and its weights.

        Raises:
            QnasError: it is missing, unfinished, of other classes, or does not fit its space.
        """
        if not self._path:
            raise ConfigError(
                "Supervision 'teacher' has no teacher. Give --supervision-option teacher=PATH: the directory of a "
                "finished run, or a file of weights with its space."
            )
        path = Path(str(context.recorded.get("path", self._path))).expanduser()
        check_path(path)
        if self._space is None:
            if path.is_file():
                raise ConfigError(
                    f"The teacher {path} is a file, and nothing says which network's. Give its space, such as "
                    "--supervision-option space=resnet50, or the directory of a run."
                )
            self._teacher, named = teacher_of_run(path, context=context, **self._named)
        else:
            options = {name: value for name, value in self._file.items() if name != "space_options"}
            self._teacher, named = teacher_of_file(path, self._space, self._file["space_options"], context, **options)
        return named

    def begin_stage(self, quantized: bool, epoch: int) -> None:
        """Nothing to prepare."""

    def begin_step(self, images: Tensor, labels: Tensor) -> None:
        """Ask the teacher about ``[N, C, S, S]`` normalised images."""
        assert self._teacher is not None, "begin_training comes first"
        self._logits = self._teacher(images)

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence from the teacher, with its share of the task's loss, ``[]``.

        Args:
            position: in the order of the sampler; all learn the same.
            logits: ``[N, classes]``.
            labels: ``[N]``.
        """
        assert self._logits is not None, "begin_step comes first"
        logits = logits.float()
        wanted = F.log_softmax(self._logits, dim=1)
        loss = F.kl_div(F.log_softmax(logits, dim=1), wanted, reduction="batchmean", log_target=True)
        if not self.label_share:
            return loss
        return (1 - self.label_share) * loss + self.label_share * self.task.loss(logits, labels)

    def end_epoch(self, ranks: Ranks) -> None:
        """Nothing to carry over."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state: what the teacher is, the run records once."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""
