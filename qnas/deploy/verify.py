"""Checks on the test split that an exported model answers as its subnet does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qnas.deploy.trace import trace
from qnas.errors import DataError
from qnas.nn.subnet import Subnet
from qnas.protocols import Device, Task
from qnas.scoring import score_split

GROUP_VALUES = 2**28  # of images that are in memory at a time: 1 GiB


@dataclass(frozen=True)
class VerifyLimits:
    """How far an exported model may be from its subnet.

    With biases rounded (``qnas.deploy.rounding``) the outputs are the same, but where a value lies on a tie of the
    rounding and float32, or a runtime's integer addition, falls to the other side. Such a flip is one code; below 8
    bits later layers amplify it, most of all in a net that is hardly trained, so one image may be many steps away while
    all others are equal. The limit is therefore on a share of the images.

    Attributes:
        accuracy_points: difference of the task's metric, in percentage points; never less than one image's worth.
        agreement: least share of predictions that are the same.
        steps: largest difference of an output, in steps of its grid ...
        images: ... that this share of images must keep.
    """

    accuracy_points: float = 0.5
    agreement: float = 0.99
    steps: int = 3
    images: float = 0.99


@dataclass(frozen=True)
class VerifyReport:
    """What was compared.

    Attributes:
        num_images: of the split.
        subnet_accuracy, device_accuracy: the task's metric, as fractions.
        accuracy_points: their absolute difference, in percentage points.
        agreement: share of predictions (positions of the largest of the last dimension) that are the same.
        output_step: scale of the outputs' grid; ``None`` where they are in float.
        identical: share of images with equal outputs (to half a step; to the last bit for float outputs).
        within_steps: share of images within ``limits.steps``; ``None`` for float outputs.
        largest_steps, largest_difference: over all outputs, in steps and as a value.
        limits: that were applied.
        failures: one sentence for each limit that was missed.
    """

    num_images: int
    subnet_accuracy: float
    device_accuracy: float
    accuracy_points: float
    agreement: float
    output_step: float | None
    identical: float
    within_steps: float | None
    largest_steps: int | None
    largest_difference: float
    limits: VerifyLimits = field(default_factory=VerifyLimits)
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the fields and ``passed`` as JSON."""
        return asdict(self) | {"failures": list(self.failures), "passed": self.passed}


def verify(
    subnet: Subnet,
    model_path: str | Path,
    device: Device,
    batches: Iterable[Tensor],
    labels: Tensor,
    *,
    task: Task,
    limits: VerifyLimits | None = None,
) -> VerifyReport:
    """Run an exported model on a device over a whole split, and compare it with its fake-quantized subnet.

    Args:
        subnet: folded; the one that was exported.
        model_path: of the exported model.
        device: executes it.
        batches: ``[N, C, R, R]`` normalised images of the split, in order.
        labels: ``[N, ...]``, the targets of all of them.
        task: gives the metric.
        limits: the defaults unless given.

    Raises:
        DataError: there are no images, or not as many as labels.
    """
    limits = limits or VerifyLimits()
    expected, found = _outputs(subnet, str(model_path), device, batches)
    if len(expected) != len(labels) or not len(labels):
        raise DataError(
            f"Verification was given {len(expected)} images and {len(labels)} labels. Give the whole split."
        )
    accuracies = [score_split(task, outputs, labels)[0][task.metric] for outputs in (expected, found)]
    step = _output_step(subnet)
    difference = (found - expected).abs().flatten(1).amax(1)
    steps = None if step is None else (difference / step).round()
    report = VerifyReport(
        num_images=len(labels),
        subnet_accuracy=accuracies[0],
        device_accuracy=accuracies[1],
        accuracy_points=abs(accuracies[0] - accuracies[1]) * 100,
        agreement=float((expected.argmax(-1) == found.argmax(-1)).double().mean()),
        output_step=step,
        identical=float(((difference if steps is None else steps) == 0).double().mean()),
        within_steps=None if steps is None else float((steps <= limits.steps).double().mean()),
        largest_steps=None if steps is None else int(steps.nan_to_num(2**31, 2**31).max()),
        largest_difference=float(difference.max()),
        limits=limits,
    )
    return VerifyReport(**{**vars(report), "failures": tuple(_failures(report))})


def _outputs(subnet: Subnet, path: str, device: Device, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the outputs of the subnet and of the device, ``[N, ...]`` float32 each."""
    answers, device_answers = [], []
    for group in _groups(batches):
        with torch.inference_mode():
            answers += [subnet(batch) for batch in group]
        images = torch.cat(group).contiguous(memory_format=torch.contiguous_format).cpu().numpy()
        device_answers.append(torch.from_numpy(device.run(path, images, len(group[0])).copy()).float())
    if not answers:
        raise DataError("Verification was given no images.")
    expected, found = torch.cat(answers).float(), torch.cat(device_answers)
    if found.shape != expected.shape:
        raise DataError(
            f"The exported model answers in the shape {list(found.shape)}, its subnet in {list(expected.shape)}. "
            "They are not of one another; export the subnet again."
        )
    return expected, found


def _groups(batches: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield as many batches at a time as may be in memory, so that a run of the device starts seldom."""
    group: list[Tensor] = []
    for batch in batches:
        group.append(batch)
        if sum(part.numel() for part in group) >= GROUP_VALUES:
            yield group
            group = []
    if group:
        yield group


def _output_step(subnet: Subnet) -> float | None:
    steps = trace(subnet)
    grid = steps.grids[steps.output]
    return None if grid is None else grid.scale


def _failures(report: VerifyReport) -> list[str]:
    """Return a sentence for each limit that the report misses; NaN misses every limit."""
    limits, failures = report.limits, []
    points = max(limits.accuracy_points, 100 / report.num_images + 1e-9)
    if not report.accuracy_points <= points:
        failures.append(f"The accuracies differ by {report.accuracy_points:.2f} points; allowed: {points:.2f}.")
    if not report.agreement >= limits.agreement:
        failures.append(
            f"{report.agreement:.2%} of the predictions are the same; at least {limits.agreement:.2%} must be."
        )
    if report.within_steps is not None and not report.within_steps >= limits.images:
        failures.append(
            f"{report.within_steps:.2%} of the images are within {limits.steps} output steps; at least "
            f"{limits.images:.2%} must be (largest difference: {report.largest_steps} steps). A net that is hardly "
            "trained amplifies single flips of rounding: train longer, or leave out float operations "
            "(--no-se --act relu)."
        )
    return failures
