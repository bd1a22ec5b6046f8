"""Exported subnets of a run: written, verified, listed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qnas.deploy import check_features, export_features, export_onnx, verify, write_packed
from qnas.deploy.onnx_export import input_recipe
from qnas.deploy.trace import trace
from qnas.errors import ExportError, StoreError
from qnas.evaluate import Evaluator
from qnas.files import write_json
from qnas.nn.features import backbone, feature_subnet, find_taps
from qnas.protocols import Device
from qnas.retrained import alone_folder, is_alone
from qnas.space import Sample
from qnas.store import RunDirectory

FEATURES = "features.json"
CHECKED_IMAGES = 256  # of the test split, on which exported features are compared


class Exports:
    """The folder ``exports`` of a run; of a subnet it holds the model that was exported last, beside those trained by
    themselves.

    Args:
        store: of the run.
        evaluator: makes subnets ready and knows the images.
        device: executes exported models.
        device_name: under which it is registered.
    """

    def __init__(self, store: RunDirectory, evaluator: Evaluator, device: Device, device_name: str) -> None:
        self.store = store
        self.evaluator = evaluator
        self.device = device
        self.device_name = device_name

    def export(self, sample: Sample) -> dict[str, Any]:
        """Write a subnet as integer ONNX and bit-packed; return what ``export.json`` holds.

        Raises:
            ExportError: a part of it has no integer counterpart.
        """
        stage = self.evaluator.settings.stage
        self._check_quantized()
        key = self.evaluator.supernet.space.key(sample)
        folder = self._folder(key)
        (folder / "verify.json").unlink(missing_ok=True)  # it speaks of the model that is replaced now
        subnet = self.evaluator.subnet(sample)
        names = {"qnas.config": key, "qnas.sample": json.dumps(sample, sort_keys=True)}
        names["qnas.classes"] = json.dumps(self.evaluator.data.class_names)
        summary = export_onnx(subnet, folder / "model.onnx", metadata=names)
        packed = folder / "packed.safetensors"
        packed_bytes = write_packed(subnet, packed, metadata=names)
        value = {
            "key": key,
            "stage": stage,
            "sample": sample,
            "onnx": str(Path("exports") / folder.name / "model.onnx"),
            "onnx_bytes": summary.size_bytes,
            "packed": str(Path("exports") / folder.name / packed.name),
            "packed_bytes": packed_bytes,
            "operators": self.device.operators(str(folder / "model.onnx")),
            "device": self.device_name,
            "float_islands": [asdict(island) for island in summary.islands],
        }
        write_json(folder / "export.json", value)
        return value

    def export_features(self, sample: Sample) -> dict[str, Any]:
        """Write the features of a subnet as integer ONNX, one output a stride, and compare them on the device.

        Returns:
            What ``features.json`` holds: ``outputs``, fine to coarse, with stride, channels, size and grid; ``input``,
            how images become inputs; ``checks`` by output, on ``num_images`` images of the test split; ``passed``.

        Raises:
            ConfigError: the subnet has no features at the usual strides.
            ExportError: a part of it has no integer counterpart.
        """
        evaluator = self.evaluator
        self._check_quantized()
        key, supernet = evaluator.supernet.space.key(sample), evaluator.supernet
        whole = evaluator.subnet(sample)  # leaves the sample active
        taps = find_taps(supernet)
        features = backbone(supernet, taps).describe(whole.resolution)
        subnet = feature_subnet(whole, taps)
        folder = self._folder(key)
        names = {"qnas.config": key, "qnas.sample": json.dumps(sample, sort_keys=True)}
        summary, outputs = export_features(subnet, features, folder / "features.onnx", metadata=names)
        images = evaluator.images("test", subnet.resolution)
        num_images, checks = check_features(subnet, folder / "features.onnx", self.device, images, CHECKED_IMAGES)
        value = {
            "key": key,
            "stage": evaluator.settings.stage,
            "sample": sample,
            "onnx": str(Path("exports") / folder.name / "features.onnx"),
            "onnx_bytes": summary.size_bytes,
            "resolution": subnet.resolution,
            "input": input_recipe(trace(subnet), subnet.resolution),
            "outputs": outputs,
            "float_islands": [asdict(island) for island in summary.islands],
            "device": self.device_name,
            "version": self.device.version,
            "num_images": num_images,
            "checks": {name: asdict(check) for name, check in checks.items()},
            "passed": all(check.passed for check in checks.values()),
        }
        write_json(folder / FEATURES, value)
        return value

    def _check_quantized(self) -> None:
        """Raise ``ExportError`` where the stage leaves weights or activations in float."""
        if "float" in self.evaluator.supernet.mode:
            raise ExportError(
                f"Stage {self.evaluator.settings.stage!r} of {self.store.path} does not quantize both weights and "
                "activations, so its subnets do not run on integers. Export a subnet of a quantized stage (--stage)."
            )

    def _folder(self, key: str) -> Path:
        """Return the folder of a subnet; a net that was trained by itself has its own, beside the supernet's subnet."""
        stage = self.evaluator.settings.stage
        return self.store.export_directory(alone_folder(self.store.path, stage).name if is_alone(stage) else key)

    def verify(self, sample: Sample) -> dict[str, Any]:
        """Compare an exported model with its subnet over the whole test split; return what ``verify.json`` holds.

        Raises:
            StoreError: the subnet was not exported.
        """
        evaluator = self.evaluator
        key = evaluator.supernet.space.key(sample)
        folder = self._folder(key)
        exported = self.store.read_json(folder / "export.json", {})
        if exported.get("stage") != evaluator.settings.stage or not (folder / "model.onnx").is_file():
            stage = evaluator.settings.stage
            of, flag = (
                (f", trained as {stage}", f"--stage {stage}")
                if is_alone(stage)
                else (f" after stage {stage!r}", f"--config {key}")
            )
            raise StoreError(
                f"{self.store.path} holds no exported model of subnet {key}{of}. "
                f"Run `qnas export {self.store.path} {flag}` first."
            )
        subnet = evaluator.subnet(sample)
        report = verify(
            subnet,
            folder / "model.onnx",
            self.device,
            (images.cpu() for images in evaluator.images("test", subnet.resolution)),
            evaluator.data.test.labels,
            task=evaluator.task,
        )
        value = {"key": key, "device": self.device_name, "version": self.device.version, **report.to_json()}
        write_json(folder / "verify.json", value)
        return value


def list_exports(store: RunDirectory) -> list[dict[str, Any]]:
    """Return what is known of every exported subnet, verification included, in the order of their keys."""
    found = []
    for path in sorted((store.path / "exports").glob("*/export.json")):
        verified = store.read_json(path.with_name("verify.json"))
        found.append({**store.read_json(path), "verify": verified})
    return found
