"""Detectors: a trained subnet's features, a task's head on them, trained together and judged with an integer backbone.

A result is kept in ``detectors/KEY-ID/`` of the run: checkpoints while it trains, then ``result.json``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qnas import components
from qnas.alone import OnlySample, train_in_folder
from qnas.choice import Choice
from qnas.config import DataConfig, RunConfig, StageConfig
from qnas.data import Data
from qnas.errors import ConfigError, DataError
from qnas.files import write_json
from qnas.nn.elastic import ElasticConv
from qnas.nn.features import STRIDES, Feature, backbone, find_taps
from qnas.nn.quantizer import ROLES
from qnas.nn.supernet import Supernet
from qnas.processes import Processes
from qnas.protocols import FeatureTask
from qnas.retrained import RESULT
from qnas.rng import integer_seed
from qnas.train import Trainer, set_stage_mode

if TYPE_CHECKING:
    from qnas.run import Run

FOLDER = "detectors"
STAGE = "detector"
SPLITS = ("search", "test")


@dataclass(frozen=True)
class DetectSettings:
    """How a detector is trained.

    Attributes:
        quantize: leave the backbone's quantizers at work; else it is trained and judged in float.
        task, task_options: registered name and options of what works on features.
        data, data_options: registered name and options of images with targets that the task takes.
        image_size: in pixels; the data set's own by default.
        strides: of the backbone's features.
        epochs, lr, batch_size, weight_decay: of the training, by the run's optimizer.
        seed: of the head's weights and the batches; ``None`` for the run's.
    """

    quantize: bool = True
    task: str = "detection"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "scenes"
    data_options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    strides: tuple[int, ...] = STRIDES
    epochs: int = 20
    lr: float = 2e-3
    batch_size: int = 32
    weight_decay: float = 1e-4
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("image_size", 16)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"A detector's {name} cannot be {value}; give {least} or more.")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"A detector's lr must be over 0 and its weight_decay 0 or more; given: {self.lr}, {self.weight_decay}."
            )

    def resolved(self, run: Run) -> DetectSettings:
        """Return these settings with the run's seed and data filled in, so that they say all that decides a result."""
        config = run.config
        takes = inspect.signature(run.registry.load("dataset", self.data)().load).parameters
        own = {
            "source": config.data.name,
            "source_options": dict(config.data.options),
            "split_seed": config.seed,
            "search_fraction": config.data.search_fraction,
            "test_fraction": config.data.test_fraction,
        }
        given = {**own, **self.data_options}
        if given["source"] != own["source"] and "source_options" not in self.data_options:
            given["source_options"] = {}
        options = {name: value for name, value in given.items() if name in takes or name in self.data_options}
        return replace(self, data_options=options, seed=config.seed if self.seed is None else self.seed)


@dataclass(frozen=True)
class Detector:
    """What is trained: a supernet of one subnet whose parts are the backbone and the head.

    Attributes:
        net: in the mode that it trains in.
        data: of the detector, on the pixel grid of the backbone's run.
        task: with the head's loss and metrics.
        features: that the head works on.
    """

    net: Supernet
    data: Data
    task: FeatureTask
    features: tuple[Feature, ...]


def detect(run: Run, choice: Choice, settings: DetectSettings, processes: Processes) -> dict[str, Any]:
    """Train and judge a detector on the features of one trained subnet; go on where it was stopped.

    Returns:
        What ``result.json`` holds: the settings; ``features``; ``metrics`` and ``num_images`` by split, measured with
        the backbone folded and its biases rounded as it would be deployed, the head in float; ``losses`` by epoch.

    Raises:
        ConfigError: the task has no head, or the subnet no features.
        DataError: the images do not fit the backbone.
        StoreError: the stage is not trained to its end.
    """
    settings = settings.resolved(run)
    key = run.stages.space(choice.stage).key(choice.sample)
    folder = detector_directory(run.store.path, key, choice.stage, settings)
    done = run.store.read_json(folder / RESULT)
    if done is not None:
        return dict(done)
    detector = build_detector(run, choice, settings)
    config = _config(run.config, settings, detector.net.quantized_roles)
    trainer = components.build_trainer(
        run.registry,
        config,
        detector.net,
        detector.data,
        run.recorder,
        processes,
        sampler=OnlySample(detector.net.space.highest()),
        started=ROLES,
        task=detector.task,
    )
    train_in_folder(trainer, folder, processes)
    result = {"key": key, "stage": choice.stage, "sample": dict(choice.sample), "id": folder.name, **asdict(settings)}
    result["features"] = [asdict(feature) for feature in detector.features]
    result["class_names"] = list(detector.data.class_names)
    result["losses"] = [entry["losses"][0] for entry in trainer.progress.history]
    result.update(_judge(run, trainer, detector, config, processes.device))
    result = dict(json.loads(json.dumps(result)))  # as it is read again
    if processes.leader:
        write_json(folder / RESULT, result)
    return result


def build_detector(run: Run, choice: Choice, settings: DetectSettings) -> Detector:
    """Return a detector before it is trained: the subnet's trained backbone, and a new head.

    Args:
        run: that holds the subnet.
        choice: the subnet, and the stage or net whose weights count.
        settings: resolved.

    Raises:
        ConfigError: the task has no head, or the subnet no features.
        DataError: the images do not fit the backbone.
    """
    data = _load_data(run, settings)
    size = data.image_size
    supernet = run.stages.supernet(choice.stage)
    if not settings.quantize:
        supernet.set_mode("float")
    roles = supernet.quantized_roles
    supernet.space = supernet.space.pin(choice.sample).sized(size)
    supernet.activate(supernet.space.highest())
    body = backbone(supernet, find_taps(supernet, settings.strides))
    features = body.describe(size)
    task = components.make_feature_task(
        run.registry,
        settings.task,
        settings.task_options,
        features=features,
        image_size=size,
        num_classes=data.num_classes,
    )
    task.check_targets(data.train.labels)
    with torch.random.fork_rng(devices=[]):
        assert settings.seed is not None
        torch.manual_seed(integer_seed(settings.seed, FOLDER))
        head = task.head()
    net = Supernet(supernet.space, [body, head])
    net.set_mode("float")
    net.set_mode("quantize", roles)
    net.activate(net.space.highest())
    for module in net.modules():  # as of a net trained by itself, transforms of kernels stay at what they are
        if isinstance(module, ElasticConv):
            module.transforms.requires_grad_(False)
    return Detector(net.to(memory_format=torch.channels_last), data, task, features)  # type: ignore[call-overload]


def _load_data(run: Run, settings: DetectSettings) -> Data:
    """Return the detector's images, normalised as the backbone's were: its integer input is on that grid."""
    options = dict(settings.data_options)
    config = run.config.model_copy(
        update={"data": DataConfig(name=settings.data, image_size=settings.image_size, options=options)}
    )
    data = components.load_data(run.registry, config)
    if data.channels != run.data.channels:
        raise DataError(
            f"Data set {data.name!r} has images of {data.channels} channels, but the subnets of {run.store.path} take "
            f"{run.data.channels}. Compose it of images like theirs (--data-option source=...)."
        )
    return replace(data, pixels=run.data.pixels)


def _config(config: RunConfig, settings: DetectSettings, roles: tuple[str, ...]) -> RunConfig:
    """Return the run's configuration with one stage, the detector's."""
    stage = StageConfig(name=STAGE, epochs=settings.epochs, lr=settings.lr, quantize=bool(roles))
    changes = {
        "stages": (stage.model_copy(update={"roles": roles}) if roles else stage,),
        "num_subnets": 1,
        "batch_size": settings.batch_size,
        "weight_decay": settings.weight_decay,
        "supervision": "hard",
        "supervision_options": {},
    }
    return config.model_copy(update={"seed": settings.seed, "train": config.train.model_copy(update=changes)})


def _judge(run: Run, trainer: Trainer, detector: Detector, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Return the task's metrics by split."""
    net = trainer.supernet.cpu().eval()
    set_stage_mode(net, trainer.stages[-1])
    evaluator = components.build_evaluator(run.registry, config, net, detector.data, STAGE, device, task=detector.task)
    subnet = evaluator.subnet(net.space.highest())
    found = {split: evaluator.measure(subnet, split) for split in SPLITS}
    return {
        "metric": detector.task.metric,
        "metrics": {split: evaluation.metrics for split, evaluation in found.items()},
        "num_images": {split: evaluation.num_images for split, evaluation in found.items()},
    }


def detector_directory(run: Path, key: str, stage: str, settings: DetectSettings) -> Path:
    """Return the folder of one detector."""
    named = json.dumps([stage, asdict(settings)], sort_keys=True)
    return run / FOLDER / f"{key}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"


def list_detectors(run: Path) -> list[dict[str, Any]]:
    """Return the results of all detectors of a run, in the order of their folders."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / FOLDER).glob(f"*/{RESULT}"))]
