"""A split's metrics from all of its outputs; which images were answered right, where a task can tell."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qnas.errors import PluginError
from qnas.statistics import standard_error


def score_split(task: Any, outputs: Tensor, targets: Tensor) -> tuple[dict[str, float], Tensor | None]:
    """Return the task's metrics over a whole split, and the correctness of each image.

    A task that has no method ``score`` is scored by the share of its correct images.

    Args:
        task: a :class:`qnas.protocols.Task`.
        outputs: ``[N, ...]`` of all images of the split, in order.
        targets: ``[N, ...]``.

    Returns:
        Metrics by name, ``task.metric`` among them; and ``[N]`` booleans, or ``None`` where the task cannot tell.

    Raises:
        PluginError: the task can do neither, or leaves its own metric out.
    """
    correct: Tensor | None = task.correct(outputs, targets) if tells_correct(task) else None
    if hasattr(task, "score"):
        metrics = {name: float(value) for name, value in task.score(outputs, targets).items()}
    elif correct is not None:
        metrics = {task.metric: float(correct.double().mean())}
    else:
        metrics = {}
    if task.metric not in metrics:
        raise PluginError(
            f"Task {type(task).__name__} gives no {task.metric!r}, its metric. Its score(outputs, targets) must return "
            "it by that name."
        )
    return metrics, correct


def tells_correct(task: Any) -> bool:
    """Tell whether a task says of each image whether it was answered right."""
    return hasattr(task, "correct")


def score_error(task: Any, score: float, num_images: int) -> float | None:
    """Return the standard error of a score; ``None`` where it is no share of images, so that no formula gives it."""
    return standard_error(score, num_images) if tells_correct(task) else None
