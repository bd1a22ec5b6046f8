"""config -> metrics, the same for every strategy: extract, calibrate, fold, measure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qnas.costs import sample_costs, usual
from qnas.data import Data, Split, batches
from qnas.deploy.rounding import round_biases
from qnas.nn.subnet import Subnet
from qnas.nn.supernet import Supernet
from qnas.protocols import Calibrator, CostModel, Task
from qnas.scoring import score_split
from qnas.space import Value

MEASUREMENT = 1  # raised whenever judging changes what it measures
SizedBatches = dict[tuple[str, int], list[Tensor]]
"""Batches that were made, by split and resolution."""


@dataclass(frozen=True)
class EvaluatorSettings:
    """What besides the subnet decides a measurement.

    Attributes:
        calibration_images: from the training split.
        calibration_batch: images a batch; statistics are averaged over batches.
        batch_size: of the measurement; changes nothing but speed.
        precision: of the computation.
        stage: the training stage whose weights are judged.
        scheme: quantizers, their options and folding, as text.
    """

    calibration_images: int = 500
    calibration_batch: int = 100
    batch_size: int = 256
    precision: str = "float32"
    stage: str = ""
    seed: int = 0
    scheme: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One subnet on one split.

    Attributes:
        metrics: the task's metrics as fractions, and every cost.
        correct: ``[N]`` booleans: which images were answered right; ``None`` where the task cannot tell.
        num_images: that were measured on.
    """

    metrics: dict[str, float]
    correct: np.ndarray[Any, np.dtype[np.bool_]] | None
    num_images: int

    def packed(self) -> bytes:
        """Return the correctness of each image as bits; nothing where it is not known."""
        return b"" if self.correct is None else np.packbits(self.correct).tobytes()


class Evaluator:
    """Judges subnets of one trained supernet, which it never changes.

    Args:
        supernet: in ``quantize`` mode (or ``float``).
        data: splits and pixel grid.
        task: what counts as a good answer.
        calibrators: run in order for each subnet.
        costs: cost models by name.
        settings: see there.
        device: where subnets are calibrated and measured; the supernet and extraction stay on the CPU.
        sized: batches that evaluators of the same data, settings and device share.
        asked: names of costs that are computed only on request, to be computed for every subnet.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: Data,
        task: Task,
        calibrators: Sequence[Calibrator],
        costs: Mapping[str, CostModel],
        settings: EvaluatorSettings,
        device: torch.device | None = None,
        sized: SizedBatches | None = None,
        asked: Iterable[str] = (),
    ) -> None:
        self.supernet = supernet
        self.device = device or torch.device("cpu")
        self.data = data
        self.task = task
        self.calibrators = tuple(calibrators)
        self.costs = dict(costs)
        self.usual = usual(costs, asked)
        self.settings = settings
        self._calibration = data.train.subset(settings.calibration_images, settings.seed, "calibration")
        self._sized: SizedBatches = {} if sized is None else sized
        self._digest: str | None = None

    def digest(self) -> str:
        """Return the digest of the supernet's weights and mode, without those that no training has set yet."""
        if self._digest is None:
            digest = hashlib.sha256(self.supernet.mode.encode())
            for name, tensor in sorted(self.supernet.state_dict().items()):
                if name in self.supernet.unset:
                    continue
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self._digest = digest.hexdigest()
        return self._digest

    def cache_key(self, sample: Mapping[str, Value], split: str) -> str:
        """Return the name of a measurement: equal names, equal results."""
        settings = self.settings
        parts = {
            "measurement": MEASUREMENT,
            "task": type(self.task).__qualname__,
            "data": self.data.digest,
            "scheme": settings.scheme,
            "config": self.supernet.space.key(sample),
            "supernet": self.digest(),
            "stage": settings.stage,
            "calibrators": [[c.name, dict(c.settings)] for c in self.calibrators],
            "calibration": [settings.calibration_images, settings.calibration_batch, settings.seed],
            "split": split,
            "precision": settings.precision,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def subnet(self, sample: Mapping[str, Value]) -> Subnet:
        """Return the subnet as it is judged and deployed: extracted, calibrated, folded."""
        return round_biases(self.calibrated(sample).cpu().fold())

    def calibrated(self, sample: Mapping[str, Value]) -> Subnet:
        """Return the subnet before it is folded: extracted and calibrated, on the device."""
        subnet = self.supernet.extract(sample)
        subnet.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for calibrator in self.calibrators:
            calibrator.calibrate(subnet, self.calibration_images(subnet.resolution))
        return subnet

    def calibration_images(self, size: int) -> Iterable[Tensor]:
        """Return the normalised batches that calibrators look at, at one resolution."""
        return self._batches("calibration", self._calibration, size)

    def _batches(self, name: str, split: Split, size: int) -> Iterable[Tensor]:
        """Return a split's batches at one resolution, made once; a streamed split is decoded each time."""
        key = (name, size)
        if key not in self._sized:
            calibration = name == "calibration"
            step = self.settings.calibration_batch if calibration else self.settings.batch_size
            made = batches(split, self.data.pixels, size, step, whole=calibration, device=self.device)
            if split.streamed and not calibration:  # would not fit into memory
                return made
            self._sized[key] = list(made)
        return self._sized[key]

    def evaluate(self, sample: Mapping[str, Value], split: str = "search") -> Evaluation:
        """Judge one subnet on a split (``search`` for selection, ``test`` for reports only)."""
        return self.measure(self.subnet(sample), split)

    def judge(self, item: tuple[Mapping[str, Value], str]) -> Evaluation:
        """Judge ``(sample, split)``; the form in which processes share out the work."""
        return self.evaluate(*item)

    def measure(self, subnet: Subnet, split: str) -> Evaluation:
        """Measure a folded subnet on a split."""
        part = self.data.split(split)
        outputs = self.outputs(subnet, split)
        metrics, correct = score_split(self.task, outputs, part.labels)
        metrics.update(sample_costs(self.supernet.space, self.usual, subnet.sample))
        return Evaluation(metrics, None if correct is None else correct.numpy(), len(part))

    def outputs(self, subnet: Subnet, split: str) -> Tensor:
        """Return a folded subnet's outputs on a split, ``[N, ...]`` on the CPU."""
        subnet.to(self.device)
        with torch.inference_mode():
            outputs = torch.cat([subnet(batch) for batch in self.images(split, subnet.resolution)]).cpu()
        subnet.cpu()
        return outputs

    def images(self, split: str, size: int) -> Iterable[Tensor]:
        """Return a split's normalised batches at one resolution, in order, to go through once."""
        return self._batches(split, self.data.split(split), size)
