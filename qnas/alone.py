"""Subnets trained by themselves: the ground truth for what a supernet says of them.

A result is kept in ``alone/KEY-START-ID/`` of the run: checkpoints while it trains, then ``result.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from qnas import components
from qnas.checkpoint import load_checkpoint, load_weights, save_checkpoint
from qnas.config import RunConfig, StageConfig
from qnas.errors import ConfigError
from qnas.files import write_json
from qnas.nn.elastic import ElasticConv
from qnas.nn.supernet import Supernet, take_statistics
from qnas.processes import Processes
from qnas.records import keep_records
from qnas.retrained import ALONE, RESULT
from qnas.rng import integer_seed
from qnas.scoring import score_error
from qnas.space import Sample, SearchSpace
from qnas.train import ALL, BIT_KNOBS, Progress, Stage, Trainer, set_stage_mode

if TYPE_CHECKING:
    import numpy as np

    from qnas.run import Run

Start = Literal["scratch", "supernet"]
STARTS: tuple[Start, ...] = ("scratch", "supernet")
FOLDER = ALONE
BN = "bn"  # the calibrator of running statistics


@dataclass(frozen=True)
class AloneSettings:
    """How a subnet is trained by itself.

    Attributes:
        start: as the supernet began, from new weights (or the run's initial ones: ``train.init``, or what the space
            brings) through all stages (``scratch``), or from the supernet's weights through the last stage again
            (``supernet``; ranges that this stage trains are not calibrated anew). All stages use the subnet's own
            bit-widths.
        stage: the last stage, whose supernet is meant; ``None`` for the last one of all.
        seed: of weights and batches; splits and calibration images stay the run's.
        budget: epochs of each stage, as a multiple of the supernet's. An epoch shows each image once.
        lr: peak learning rate; ``None`` for each stage's own.
        own: stages to train through instead of the supernet's; the last one says what is quantized. Their subnet may
            have any bit-widths of the run, also where the supernet's stage is a float one.
    """

    start: Start = "scratch"
    seed: int = 0
    budget: float = 1.0
    lr: float | None = None
    stage: str | None = None
    own: tuple[StageConfig, ...] = ()

    def stages(self, config: RunConfig) -> tuple[StageConfig, ...]:
        """Return the stages to train.

        Raises:
            ConfigError: from scratch, none of them trains anything.
        """
        stages = self.own or self.earlier(config)
        if self.start == "scratch" and not any(stage.epochs for stage in stages):
            raise ConfigError(
                "No stage of this run trains (all epochs are 0), so a subnet cannot be trained from scratch as the "
                "supernet was. Start from its weights: --from supernet (retrain.start)."
            )
        again = self.start == "supernet" and not self.own
        return tuple(self._stage(stage) for stage in (stages[-1:] if again else stages))

    def named(self, config: RunConfig) -> AloneSettings:
        """Return these settings with the stage by its name, so that they stay the same when a run gets more stages."""
        return replace(self, stage=self.stage or config.train.all_stages()[-1].name)

    def earlier(self, config: RunConfig) -> tuple[StageConfig, ...]:
        """Return the run's stages as far as the one that is meant."""
        stages = config.train.all_stages()
        names = [stage.name for stage in stages]
        return stages if self.stage is None else stages[: names.index(self.stage) + 1]

    def _stage(self, stage: StageConfig) -> StageConfig:
        changed: dict[str, Any] = {"w_bits": (), "a_bits": (), "inherit": False}
        changed["epochs"] = math.ceil(round(self.budget * stage.epochs, 6))  # 1.1 * 50 is a little over 55
        if self.lr is not None:
            changed["lr"] = self.lr
        if self.start == "supernet" and stage.epochs and not self.own:
            changed["calibrator"] = None
        return stage.model_copy(update=changed)

    def space(self, run: Run) -> SearchSpace:
        """Return the space that holds the subnet: that of the searched stage, or what its own stages quantize."""
        if not self.own:
            return run.stages.space(self.stage)
        return Stage(**self.stages(run.config)[-1].model_dump()).searched(run.space)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON; what names a training, so a field that came later is left out where empty."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "own"}
        own = [stage.model_dump(mode="json") for stage in self.own]
        for stage in own:
            if stage["parameters"] == ALL:
                del stage["parameters"]
        return {**values, "own": own} if own else values

    def judging(self, run: Run) -> RunConfig:
        """Return the run's configuration with the calibrators that judge the net.

        What was finetuned belongs to the running statistics that it was finetuned with, so these stay.
        """
        config = run.config
        if self.stages(config)[-1].parameters == ALL:
            return config
        kept = tuple(name for name in components.calibrator_names(run.registry, config) if name != BN)
        return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"calibrators": kept})})


class OnlySample:
    """Draws one sample, always."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return the sample ``n`` times."""
        return [self.sample] * n


def train_alone(run: Run, sample: Sample, settings: AloneSettings, processes: Processes) -> dict[str, Any]:
    """Train one subnet by itself with the run's data, stages and evaluator; go on where it was stopped.

    Returns:
        What ``result.json`` holds: the settings; ``metric``, the task's; ``metrics`` and ``standard_error`` by split;
        ``correct``, which images were answered right, as packed bits in hexadecimal; ``image_passes`` in units of the
        run's largest subnet, as the supernet's training counts them.

    Raises:
        ConfigError: from scratch, no stage would train anything.
        StoreError: it starts from the supernet, which is not trained to the end.
    """
    settings = settings.named(run.config)
    space = settings.space(run)
    key = space.key(sample)
    folder = alone_directory(run.store.path, key, settings)
    done = run.store.read_json(folder / RESULT)
    if done is not None:
        return dict(done)
    config = _config(run.config, settings)
    pinned = space.pin(sample)
    supernet = _supernet(run, config, pinned, settings)
    started = trained_roles(settings.earlier(run.config), pinned) if settings.start == "supernet" else ()
    trainer = components.build_trainer(
        run.registry,
        config,
        supernet,
        run.data,
        run.recorder,
        processes,
        sampler=OnlySample(pinned.highest()),
        started=started,
        recorded=run.recorded_supervision(),
        settle=lambda supernet: _settle(run, supernet, pinned.highest(), processes.device),
    )
    train_in_folder(trainer, folder, processes)
    result = {"key": key, "sample": pinned.highest(), **settings.to_json(), "id": folder.name}
    result["stages"] = [{"name": s.name, "epochs": s.epochs, "lr": s.lr} for s in trainer.stages]
    result["image_passes"] = trainer.progress.image_passes * _relative_macs(run.space, pinned)
    judging = settings.judging(run)
    result.update(_judge(run, judging, trainer, pinned.highest(), f"{FOLDER}/{folder.name}", processes.device))
    if processes.leader:
        write_json(folder / RESULT, result)
    return result


@torch.no_grad()
def _settle(run: Run, supernet: Supernet, sample: Sample, device: torch.device) -> None:
    """Give a net the statistics that the run's calibrators find for it, as when it was judged."""
    evaluator = components.build_evaluator(run.registry, run.config, supernet.cpu(), run.data, "", device)
    take_statistics(supernet, evaluator.calibrated(sample).cpu())
    supernet.to(device)


def _judge(
    run: Run, config: RunConfig, trainer: Trainer, sample: Sample, stage: str, device: torch.device
) -> dict[str, Any]:
    """Return what the run's evaluator says of the trained subnet, by split."""
    supernet = trainer.supernet.cpu().eval()
    set_stage_mode(supernet, trainer.stages[-1])
    evaluator = components.build_evaluator(run.registry, config, supernet, run.data, stage, device)
    result: dict[str, Any] = {"metric": evaluator.task.metric}
    for name in ("metrics", "standard_error", "num_images", "correct"):
        result[name] = {}
    for split in ("search", "test"):
        evaluation = evaluator.evaluate(sample, split)
        score = evaluation.metrics[evaluator.task.metric]
        result["metrics"][split] = evaluation.metrics
        result["standard_error"][split] = score_error(evaluator.task, score, evaluation.num_images)
        result["num_images"][split] = evaluation.num_images
        result["correct"][split] = evaluation.packed().hex()
    return result


def alone_directory(run: Path, key: str, settings: AloneSettings) -> Path:
    """Return the folder of one training."""
    digest = hashlib.sha256(json.dumps(settings.to_json(), sort_keys=True).encode()).hexdigest()[:8]
    return run / FOLDER / f"{key}-{settings.start}-{digest}"


def list_alone(run: Path) -> list[dict[str, Any]]:
    """Return the results of every subnet that was trained by itself, in the order of their folders."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / FOLDER).glob(f"*/{RESULT}"))]


def _config(config: RunConfig, settings: AloneSettings) -> RunConfig:
    train = config.train.model_copy(update={"stages": settings.stages(config), "num_subnets": 1})
    return config.model_copy(update={"seed": settings.seed, "train": train})


def trained_roles(stages: Sequence[StageConfig], pinned: SearchSpace) -> Sequence[str]:
    """Return the roles whose quantizers the stages trained at all bit-widths that a subnet has.

    Args:
        stages: that the supernet went through.
        pinned: the space with nothing but the subnet.
    """
    found = []
    for role, knobs in BIT_KNOBS.items():
        trained = {
            bits
            for stage in stages
            if stage.quantize and role in stage.roles
            for bits in getattr(stage, knobs) or getattr(pinned.scheme, knobs)
        }
        wanted = {choice for knob in pinned.knobs if knob.role == knobs for choice in knob.choices}
        if trained and wanted <= trained:
            found.append(role)
    return tuple(found)


def _supernet(run: Run, config: RunConfig, pinned: SearchSpace, settings: AloneSettings) -> Supernet:
    """Return the supernet with nothing but the pinned sample left to it."""
    supernet = components.build_supernet(run.registry, config, run.space, run.data)
    supernet.space = pinned
    supernet.activate(pinned.highest())
    convolutions = [module for module in supernet.modules() if isinstance(module, ElasticConv)]
    if settings.start == "supernet":
        load_weights(supernet, run.stages.checkpoint(settings.stage))
    elif not run.space.brings_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer_seed(settings.seed, FOLDER, int(pinned.key(pinned.highest()), 16)))
            for layer in convolutions:
                if layer.spec is not None:
                    layer.initialise(layer.spec.out_channels, layer.spec.kernel_size)
    if settings.start != "supernet" and run.config.train.init is not None:
        run.load_initial(supernet)
    for layer in convolutions:  # a net by itself has no transforms of kernels: they stay at what they are
        layer.transforms.requires_grad_(False)
    return supernet


def stage_checkpoints(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the checkpoint file of every stage of one training, whether it exists or not."""
    return [folder / "stages" / f"{i:02d}-{name}" / "checkpoint.safetensors" for i, name in enumerate(names)]


def train_in_folder(trainer: Trainer, folder: Path, processes: Processes) -> None:
    """Train what is left, every epoch ending in a checkpoint in the folder; all processes call it."""
    paths = stage_checkpoints(folder, [stage.name for stage in trainer.stages])
    found = [path for path in paths if path.is_file()]
    latest = processes.share(found[-1] if found else None)
    if latest is not None:
        load_checkpoint(trainer, latest)
    processes.share(None)  # all have read the checkpoint that the leader is about to replace
    keep_records(trainer, [path.parent for path in paths])

    def save(trainer: Trainer) -> None:
        progress: Progress = trainer.progress
        if processes.leader:
            save_checkpoint(trainer, paths[progress.stage if progress.epoch else progress.stage - 1])

    trainer.run(save)
    processes.share(None)  # the last checkpoint is there for all to read


def _relative_macs(space: SearchSpace, pinned: SearchSpace) -> float:
    """Return the pinned subnet's MACs over those of the largest one."""
    own, largest = (sum(layer.macs for layer in s.layers(s.highest())) for s in (pinned, space))
    return own / largest
