"""One supernet training loop with three seams: sampler, supervision, stages. No callbacks, one recorder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.data import TrainBatches, resize
from qnas.errors import TrainingDivergedError
from qnas.nn.quantizer import ROLES
from qnas.nn.ranks import Ranks
from qnas.nn.supernet import Supernet, tuned_parameters
from qnas.probe import Probe
from qnas.processes import Processes
from qnas.protocols import RangeCalibrator, Sampler, Supervision
from qnas.recorder import NullRecorder, Recorder
from qnas.rng import generator
from qnas.space import Sample, SearchSpace

ALL = "all"  # what of a net a stage trains: everything
BIT_KNOBS = {"weight": "w_bits", "activation": "a_bits"}  # the role of knobs that set a quantizer's bits
CALIBRATION_BATCH = 128  # images that a calibrator of ranges sees at once


@dataclass(frozen=True)
class Stage:
    """A part of training with its own length, learning rate and mode.

    Attributes:
        name: unique in a run, for example ``float``.
        epochs: passes over the training split.
        lr: peak learning rate of the cosine schedule.
        quantize: whether quantizers are on; they start from data at the start of the first such stage.
        roles: which quantizers ``quantize`` speaks of: ``weight``, ``activation`` or both.
        w_bits, a_bits: bit-widths that the stage's subnets are drawn from; empty for all of the space.
        inherit: start bit-widths that no earlier stage trained from the lowest one of the stage before (OQAT).
        restart: start the quantizers from data anew, though an earlier stage trained them.
        calibrator: name of what sets ranges at the stage's start; ``None`` for each quantizer's own rule.
        parameters: what is trained: ``all``; ``norms``, gamma and beta of batch normalisation and the quantizers' clip
            values; ``biases``, beta and clip values. All else is frozen; the rate then falls from the start.
    """

    name: str
    epochs: int
    lr: float
    quantize: bool
    roles: tuple[str, ...] = ROLES
    w_bits: tuple[int, ...] = ()
    a_bits: tuple[int, ...] = ()
    inherit: bool = False
    restart: bool = False
    calibrator: str | None = None
    parameters: Literal["all", "norms", "biases"] = "all"

    @property
    def finetunes(self) -> bool:
        """Whether most of the net is frozen, so that its running statistics are those that it is judged with."""
        return self.parameters != ALL

    @property
    def quantized_roles(self) -> tuple[str, ...]:
        """Roles whose quantizers are on."""
        return self.roles if self.quantize else ()

    def view(self, space: SearchSpace) -> SearchSpace:
        """Return the space that the stage trains: with its bit-widths."""
        kept = {"w_bits": self.w_bits, "a_bits": self.a_bits}
        return space.restrict(**{role: bits for role, bits in kept.items() if bits})

    def searched(self, space: SearchSpace) -> SearchSpace:
        """Return the space that its subnets are searched in: that of :meth:`view`, float where nothing quantizes."""
        off = [role for role in ROLES if role not in self.quantized_roles]
        return self.view(space).floating(*(BIT_KNOBS[role] for role in off)) if off else self.view(space)


@dataclass(frozen=True)
class TrainSettings:
    """How every stage trains.

    Attributes:
        num_subnets: subnets a step, drawn by the sampler.
        optimizer: ``adamw``, ``adam``, or ``sgd`` with Nesterov's momentum.
        momentum: of ``sgd``; 0 for none.
        weight_decay: of weights; norms and quantizers have none. Decoupled by ``adamw``, in the gradient by
            ``adam`` and ``sgd``.
        quantizer_lr: learning rate of quantizers, as a multiple of the stage's.
        clip_lr: that of their clip values (``Quantizer.clips``), likewise.
        clip_norm: largest norm of all gradients of a step.
        warmup: share of a stage's steps in which the rate rises linearly.
        start_images: training images from which quantizers start.
        record_every: steps between two looks inside the net; 0 for the last step of each epoch alone.
    """

    num_subnets: int = 4
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    quantizer_lr: float = 1.0
    clip_lr: float = 1.0
    clip_norm: float = 10.0
    warmup: float = 0.1
    start_images: int = 256
    record_every: int = 0
    seed: int = 0


@dataclass
class Progress:
    """Where training stands; JSON-safe, kept in every checkpoint.

    Attributes:
        stage: number of the stage under way, from 0.
        epoch: finished epochs of it.
        image_passes: images times MACs of each subnet that saw them, in units of the largest subnet's MACs.
        history: one entry a finished epoch: stage, epoch, loss of each subnet, lr, gradient_norm, image_passes.
    """

    stage: int = 0
    epoch: int = 0
    image_passes: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a supernet stage by stage; can stop after any epoch and go on to the same bits.

    Args:
        supernet: in channels-last layout.
        batches: of the training split.
        sampler, supervision: the seams.
        stages: in order.
        settings: of every stage.
        recorder: receives ``stage``, ``step`` and ``epoch`` events.
        processes: those that share each batch; ``batches`` gives this one's shard. All draw the same subnets.
        calibrators: of ranges, by the names that stages use.
        loss: of outputs and labels, that calibrators may look at.
        started: roles whose quantizers are not to be started from data, since their weights were loaded.
        settle: puts batch normalisation's running statistics where a stage that finetunes is to start from.
    """

    def __init__(
        self,
        supernet: Supernet,
        batches: TrainBatches,
        sampler: Sampler,
        supervision: Supervision,
        stages: tuple[Stage, ...],
        settings: TrainSettings,
        recorder: Recorder | None = None,
        processes: Processes | None = None,
        *,
        calibrators: Mapping[str, RangeCalibrator] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        started: Sequence[str] = (),
        settle: Callable[[Supernet], None] | None = None,
    ) -> None:
        self.supernet = supernet
        self.settle = settle
        self._trainable = {id(p) for p in supernet.parameters() if p.requires_grad}
        self.processes = processes or Processes()
        self.calibrators = dict(calibrators or {})
        self.loss = loss
        self.started = tuple(started)
        self.batches = batches
        self.sampler = sampler
        self.supervision = supervision
        self.stages = stages
        self.settings = settings
        self.recorder = recorder or NullRecorder()
        self.progress = Progress()
        self.view = supernet.space
        self.num_subnets = settings.num_subnets  # a step of the stage under way
        self.optimizer: torch.optim.Optimizer | None = None
        self.probe = Probe(supernet)
        self._largest_macs = sum(layer.macs for layer in supernet.space.layers(supernet.space.highest()))

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.progress.stage >= len(self.stages)

    def run(self, save: Callable[[Trainer], None]) -> None:
        """Train what is left; ``save`` is called after every epoch.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite; the last save holds.
        """
        while not self.finished:
            self._enter_stage()
            stage = self.stages[self.progress.stage]
            while self.progress.epoch < stage.epochs:
                self._epoch(stage)
                self.progress.epoch += 1
                if self.progress.epoch < stage.epochs:
                    save(self)
            self.progress.stage += 1
            self.progress.epoch = 0
            self.optimizer = None
            save(self)

    # --- stages ------------------------------------------------------------------------------------------------

    def _enter_stage(self) -> None:
        stage = self.stages[self.progress.stage]
        self.recorder.record("stage", {"name": stage.name, "epochs": stage.epochs, "steps": self.batches.steps})
        self.view = stage.view(self.supernet.space)
        alike = all(len(knob.choices) == 1 for knob in stage.searched(self.supernet.space).knobs)
        self.num_subnets = 1 if alike else self.settings.num_subnets  # where all compute the same, one is enough
        earlier = self.stages[: self.progress.stage]
        known = {*self.started, *(role for s in earlier for role in s.quantized_roles)}
        new = [role for role in stage.quantized_roles if stage.restart or role not in known]
        if self.progress.epoch == 0:
            self.supernet.connect(Ranks())  # every process starts from the same images, so each has the whole batch
            set_stage_mode(self.supernet, stage)
            with self.supernet.keeping_statistics():
                if new:
                    self._start_quantizers(new)
                if stage.calibrator:
                    self._calibrate(stage)
            if stage.inherit and earlier:
                self._inherit(earlier, stage)
            if stage.finetunes and self.settle is not None:
                set_stage_mode(self.supernet, stage)
                self.settle(self.supernet)
        self._freeze(stage)
        self.supervision.begin_stage(bool(stage.quantized_roles), self.progress.epoch)
        self.supernet.connect(self.processes.ranks)
        set_stage_mode(self.supernet, stage)
        self.supernet.train()
        if self.optimizer is None:
            self.optimizer = self.make_optimizer()

    @torch.no_grad()
    def _start_quantizers(self, roles: Sequence[str]) -> None:
        """Let the quantizers of these roles start from what passes through the stage's largest subnet.

        Where quantizers have choices of their own (branches), each choice once, the last ones last.
        """
        images = self.batches.start_images(self.settings.start_images, self.settings.seed)
        highest = self.view.highest()
        own = [knob for knob in self.view.knobs if knob.role == "quantizer"]
        self.supernet.train()
        for i in range(max((len(knob.choices) for knob in own), default=1) - 1, -1, -1):
            self.supernet.activate({**highest, **{k.label: k.choices[max(0, len(k.choices) - 1 - i)] for k in own}})
            self.supernet.set_mode("start", roles)
            self.supernet(images)

    @torch.no_grad()
    def _calibrate(self, stage: Stage) -> None:
        """Let the stage's calibrator set the ranges of the quantizers in its largest subnet."""
        assert stage.calibrator is not None
        self.supernet.train()
        self.supernet.activate(self.view.highest())
        images = self.batches.start_images(self.settings.start_images, self.settings.seed)
        images = resize(images, self.view.resolution(self.supernet.sample))
        labels = self.batches.start_labels(self.settings.start_images, self.settings.seed)
        batches, answers = torch.split(images, CALIBRATION_BATCH), torch.split(labels, CALIBRATION_BATCH)

        def loss(number: int, outputs: Tensor) -> Tensor:
            return self.loss(outputs.float(), answers[number])

        self.calibrators[stage.calibrator].start(self.supernet, batches, stage.quantized_roles, loss)

    def _inherit(self, earlier: Sequence[Stage], stage: Stage) -> None:
        """Start the stage's new bit-widths from the lowest of the stage before; what was trained stays."""
        before = earlier[-1]
        scheme = self.supernet.space.scheme
        for quantizer in self.supernet.quantizers():
            role = BIT_KNOBS[quantizer.site.role]
            known = getattr(before, role) or getattr(scheme, role)
            quantized = (s for s in earlier if quantizer.site.role in s.quantized_roles)
            trained = {bits for s in quantized for bits in getattr(s, role) or getattr(scheme, role)}
            for bits in getattr(stage, role) or getattr(scheme, role):
                if bits < min(known) and bits not in trained and {bits, min(known)} <= set(quantizer.site.bits):
                    quantizer.inherit(min(known), bits)

    def _freeze(self, stage: Stage) -> None:
        """Ask for gradients of what the stage trains alone."""
        tuned = {id(p) for p in tuned_parameters(self.supernet, stage.parameters)} if stage.finetunes else None
        for parameter in self.supernet.parameters():
            wanted = id(parameter) in self._trainable and (tuned is None or id(parameter) in tuned)
            parameter.requires_grad_(wanted)
            parameter.grad = None

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimizer over the weights, norms and quantizers that the stage trains; the weights decay."""
        stage, s = self.stages[self.progress.stage], self.settings
        parameters = self.supernet.parameter_groups()
        if stage.finetunes:
            tuned = {id(p) for p in tuned_parameters(self.supernet, stage.parameters)}
            parameters = {name: [p for p in group if id(p) in tuned] for name, group in parameters.items()}
        groups = [
            {"params": parameters["weights"], "weight_decay": s.weight_decay, "factor": 1.0},
            {"params": parameters["norms"], "weight_decay": 0.0, "factor": 1.0},
            {"params": parameters["quantizers"], "weight_decay": 0.0, "factor": s.quantizer_lr},
            {"params": parameters["clips"], "weight_decay": 0.0, "factor": s.clip_lr},
        ]
        groups = [group for group in groups if group["params"]] if stage.finetunes else groups
        lr = stage.lr
        if s.optimizer == "sgd":  # not the fused one: it wants all of a group to have momentum, or none
            return torch.optim.SGD(groups, lr=lr, momentum=s.momentum, nesterov=s.momentum > 0, foreach=True)
        kind = torch.optim.Adam if s.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=lr, fused=True)

    def _lr(self, stage: Stage, step: int) -> float:
        """Cosine from ``stage.lr`` to 0, after a linear warm-up where all is trained."""
        total = stage.epochs * self.batches.steps
        warm = 0 if stage.finetunes else max(1, round(self.settings.warmup * total))
        if step < warm:
            return stage.lr * (step + 1) / warm
        return stage.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    # --- steps -------------------------------------------------------------------------------------------------

    def _epoch(self, stage: Stage) -> None:
        number = sum(s.epochs for s in self.stages[: self.progress.stage]) + self.progress.epoch
        totals = [0.0] * self.num_subnets
        norms = 0.0
        lr = 0.0
        for step, (images, labels) in enumerate(self.batches.epoch(number)):
            lr = self._lr(stage, self.progress.epoch * self.batches.steps + step)
            losses, norm = self.step(images, labels, number, step, lr)
            totals = [total + loss for total, loss in zip(totals, losses, strict=True)]
            norms += norm
        self.supervision.end_epoch(self.processes.ranks)
        steps = self.batches.steps
        entry = {
            "stage": stage.name,
            "epoch": self.progress.epoch,
            "losses": [total / steps for total in totals],
            "lr": lr,
            "gradient_norm": norms / steps,
            "image_passes": self.progress.image_passes,
        }
        self.progress.history.append(entry)
        self.recorder.record("epoch", entry)

    def step(self, images: Tensor, labels: Tensor, epoch: int, step: int, lr: float) -> tuple[list[float], float]:
        """Train one step: the gradients of all its subnets add up, then the optimizer moves once.

        Args:
            images: ``[N, C, S, S]``, this process's shard of the batch.
            labels: ``[N]``.
            epoch, step: name the step's random draws.
            lr: learning rate of the weights.

        Returns:
            The loss of each subnet, and the norm of the gradients before clipping.
        """
        assert self.optimizer is not None
        space, settings = self.supernet.space, self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        samples = self.sampler.draw(self.view, generator(settings.seed, "sampler", epoch, step), self.num_subnets)
        self.supervision.begin_step(images, labels)
        subnets = [{"key": space.key(sample)} for sample in samples] if self._looks_inside(step) else []
        sized = {images.shape[-1]: images}
        found: list[Tensor] = []
        for position, sample in enumerate(samples):
            size = space.resolution(sample)
            if size not in sized:
                sized[size] = resize(images, size).contiguous(memory_format=torch.channels_last)
            self.supernet.activate(sample)
            inside = self.probe.watching(subnets[position]) if subnets else nullcontext()
            with inside, self.processes.autocast():
                logits = self.supernet(sized[size])
            loss = self.supervision.loss(position, logits.float(), labels)
            penalty = self.supernet.penalty()
            (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
            found.append(loss.detach())
            macs = sum(layer.macs for layer in self.supernet.layers)
            self.progress.image_passes += len(images) * self.processes.size * macs / self._largest_macs
        losses: list[float] = self.processes.ranks.mean(
            torch.stack(found)
        ).tolist()  # at once: each read waits for a GPU
        for value, sample in zip(losses, samples, strict=True):
            self._check(value, "loss", sample, step)
        self.processes.average_gradients(self.supernet.parameters())
        gradient_norms = self.probe.gradient_norms() if subnets else {}
        norm = float(nn.utils.clip_grad_norm_(self.supernet.parameters(), settings.clip_norm))
        self._check(norm, "gradient norm", samples[0], step)
        self.optimizer.step()
        where = {
            "stage": self.stages[self.progress.stage].name,
            "epoch": epoch,
            "number": epoch * self.batches.steps + step + 1,
            "step": step,
        }
        if subnets:
            self.recorder.record("inside", {**where, "subnets": subnets, "gradient_norms": gradient_norms})
        values = {
            **where,
            "losses": losses,
            "gradient_norm": norm,
            "clip_ratio": min(1.0, settings.clip_norm / norm) if norm > 0 else 1.0,
            "lr": lr,
        }
        self.recorder.record("step", values)
        return losses, norm

    def _looks_inside(self, step: int) -> bool:
        every = self.settings.record_every
        last = step == self.batches.steps - 1
        return self.processes.leader and (last or (every > 0 and (step + 1) % every == 0))

    def _check(self, value: float, what: str, sample: Sample, step: int) -> None:
        if math.isfinite(value):
            return
        stage = self.stages[min(self.progress.stage, len(self.stages) - 1)].name
        number = self.progress.epoch + 1  # as progress is shown: within the stage, from 1
        kept = "The last good checkpoint is kept." if self.progress.history else "No checkpoint was written yet."
        raise TrainingDivergedError(
            f"Training diverged: the {what} is {value} in stage {stage!r}, epoch {number}, step {step + 1}, for subnet "
            f"{self.supernet.space.key(sample)} ({_short(sample)}). {kept} "
            "Lower the learning rate (--lr) or the gradient clipping (--clip-norm), and start a new run."
        )


def set_stage_mode(supernet: Supernet, stage: Stage) -> None:
    """Switch each role's quantizers on or off, as the stage says."""
    for role in ROLES:
        supernet.set_mode("quantize" if role in stage.quantized_roles else "float", [role])


def _short(sample: Sample) -> str:
    """Name the first few knobs of a sample."""
    shown = list(sample.items())[:4]
    return ", ".join(f"{k}={v}" for k, v in shown) + (", ..." if len(sample) > len(shown) else "")
