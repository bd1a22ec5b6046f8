"""A subnet's backbone as an integer graph with one output a stride, and the check that a device answers as it does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qnas.deploy.onnx_export import ExportSummary, Shapes, export_onnx
from qnas.deploy.trace import trace
from qnas.errors import DataError, ExportError
from qnas.nn.features import Feature, Features
from qnas.nn.subnet import Subnet
from qnas.protocols import Device

STEPS = 2  # by which a value may differ ...
IMAGES = 0.99  # ... in this share of the images: a flip of rounding moves later layers, as VerifyLimits says


@dataclass(frozen=True)
class FeatureCheck:
    """How far one output of an exported backbone is from the subnet's own feature.

    Attributes:
        identical: share of values that are equal (to half a step; to the last bit in float).
        within: share of images whose values are all within :data:`STEPS` steps; ``None`` in float.
        largest_steps, largest_difference: over all values.
    """

    identical: float
    within: float | None
    largest_steps: int | None
    largest_difference: float

    @property
    def passed(self) -> bool:
        """Whether enough images are near enough; features in float are not held to anything."""
        return self.within is None or self.within >= IMAGES


def output_name(feature: Feature) -> str:
    """Return the name of an exported feature: its stride."""
    return f"stride{feature.stride}"


def export_features(
    subnet: Subnet, features: Sequence[Feature], path: Path, *, metadata: Mapping[str, str]
) -> tuple[ExportSummary, list[dict[str, Any]]]:
    """Write a folded backbone (:func:`qnas.nn.features.feature_subnet`) as ONNX with an output for each feature.

    Returns:
        What was written, and what ``features.json`` says of each output: name, stride, channels, size and the grid of
        its values (``scale * (code - zero_point)``, code from ``low`` to ``high``; ``None`` in float).

    Raises:
        ExportError: a part has no integer counterpart.
    """
    shapes: Shapes = {output_name(f): ["N", f.channels, f.size, f.size] for f in features}
    summary = export_onnx(subnet, path, metadata=metadata, outputs=shapes)
    steps = trace(subnet)
    outputs = []
    for feature, value in zip(features, steps.outputs, strict=True):
        grid = steps.grids[value]
        outputs.append({"name": output_name(feature), **asdict(feature), "grid": None if grid is None else vars(grid)})
    return summary, outputs


def check_features(
    subnet: Subnet, path: Path, device: Device, batches: Iterable[Tensor], num_images: int
) -> tuple[int, dict[str, FeatureCheck]]:
    """Compare every output of an exported backbone with the subnet's own features.

    Args:
        subnet: the one that was exported.
        path: of the model.
        device: executes it.
        batches: ``[N, C, R, R]`` normalised images.
        num_images: to look at.

    Returns:
        The number of images that were looked at, and the comparison by output.

    Raises:
        DataError: there are no images.
    """
    assert isinstance(subnet.body, Features)
    images = torch.cat([batch.cpu() for batch in _first(batches, num_images)])[:num_images]
    with torch.inference_mode():
        expected = subnet.body(images)
    steps = trace(subnet)
    found = _run(path, device, images)
    checks = {}
    for value, (name, answer), own in zip(steps.outputs, found.items(), expected, strict=True):
        grid = steps.grids[value]
        checks[name] = _compare(own, answer, None if grid is None else grid.scale)
    return len(images), checks


def _first(batches: Iterable[Tensor], num_images: int) -> list[Tensor]:
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch)
        if sum(map(len, found)) >= num_images:
            break
    if not found:
        raise DataError("There are no images to compare features on. Give a split that has some.")
    return found


def _run(path: Path, device: Device, images: Tensor) -> dict[str, Tensor]:
    """Return every output of the model by name. A device answers with the first one, so each comes first once."""
    import onnx

    array = images.contiguous(memory_format=torch.contiguous_format).numpy()
    model = onnx.load(path)
    outputs = list(model.graph.output)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for output in outputs:
            del model.graph.output[:]
            model.graph.output.append(output)
            one = str(Path(folder) / f"{output.name}.onnx")
            onnx.save(model, one)
            found[output.name] = torch.from_numpy(device.run(one, array, len(array)).copy()).float()
    return found


def _compare(expected: Tensor, found: Tensor, step: float | None) -> FeatureCheck:
    if found.shape != expected.shape:
        raise ExportError(
            f"The exported features answer in the shape {list(found.shape)}, the subnet in {list(expected.shape)}. "
            "Export them again."
        )
    difference = (found - expected).abs()
    largest = float(difference.max())
    if step is None:
        return FeatureCheck(float((difference == 0).double().mean()), None, None, largest)
    steps = (difference / step).round()
    within = float((steps.flatten(1).amax(1) <= STEPS).double().mean())
    return FeatureCheck(float((steps == 0).double().mean()), within, int(steps.max()), largest)
