"""The contracts between the parts, in the order in which data flows through them.

A plugin needs no base class but ``qnas.nn.quantizer.Quantizer`` and ``qnas.space.SearchSpace``: any object of these
shapes will do. ``qnas.testing`` holds a test suite for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from qnas.data import Data, ImageSet
    from qnas.nn.features import FloatHead
    from qnas.nn.ranks import Ranks
    from qnas.nn.subnet import Subnet
    from qnas.nn.supernet import Supernet
    from qnas.plugins import Registry
    from qnas.space import Indices, Sample, SearchSpace

State = dict[str, Any]
"""JSON-safe: numbers, strings, booleans, lists and dicts of them. Never a pickled object."""


@runtime_checkable
class Dataset(Protocol):
    """Loads images and targets; called once a run, with the options of ``[data.options]`` as keywords."""

    def load(self, **options: Any) -> ImageSet:
        """Return all images with their targets, decoded or streamed, and what is known of them.

        Targets are classes ``[N]``, or of any other shape ``[N, ...]`` for tasks that take them.

        A ``load`` that has a parameter ``image_size`` is given the user's (``int``, or ``None``); one that streams must
        have it, since streamed images have the size to train at. One that composes its images of another data set's
        has ``source``, ``source_options``, ``split_seed``, ``search_fraction`` and ``test_fraction``: a detector gives
        it what its backbone's run was made with, so that no image changes its split.
        """


@runtime_checkable
class Sampler(Protocol):
    """Draws subnets: a step's for training, a population for a search or a predictor. Stateless."""

    def draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Sample]:
        """Return ``n`` samples; the order may carry meaning (sandwich: largest first, smallest last)."""


@runtime_checkable
class Supervision(Protocol):
    """What the subnets of a training step should answer. One object a run; its state is checkpointed.

    The constructor takes the :class:`Task`, whose loss serves for hard labels, and the options of
    ``[train.supervision_options]`` as keywords.
    """

    def begin_stage(self, quantized: bool, epoch: int) -> None:
        """Start a stage of training, or go on with one of which ``epoch`` epochs are done (0: it begins).

        ``quantized``: whether any quantizer is on in it.
        """

    def begin_step(self, images: Tensor, labels: Tensor) -> None:
        """Start a step. ``images``: ``[N, C, S, S]`` normalised, as a teacher needs them; ``labels``: ``[N]``."""

    def loss(self, position: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the step's subnet number ``position`` (in the sampler's order), ``[]``."""

    def end_epoch(self, ranks: Ranks) -> None:
        """Finish an epoch, before its checkpoint. Every process calls it; ``ranks`` reduces over them."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state to checkpoint; empty for a stateless supervision."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a checkpointed state."""


@dataclass(frozen=True)
class TrainingContext:
    """What a supervision that looks beyond its step is told before training.

    Attributes:
        data: of the run that trains.
        device: on which this process trains.
        registry: of the plugins.
        recorded: what :meth:`PreparedSupervision.begin_training` returned when the run was made; empty for a new run.
    """

    data: Data
    device: torch.device
    registry: Registry
    recorded: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class PreparedSupervision(Supervision, Protocol):
    """A supervision that learns from something outside its run, such as another trained net."""

    def begin_training(self, context: TrainingContext) -> State:
        """Find what it needs, once in each process before training, and when a run is made, to check it.

        Returns:
            What names it, JSON-safe, with a digest of its contents: kept in the run's ``supervision.json``. A run that
            goes on must find the same.

        Raises:
            QnasError: it is missing, or does not fit the run.
        """


@runtime_checkable
class Calibrator(Protocol):
    """Adjusts a subnet before it is judged, without gradients and without touching the supernet.

    ``name`` and ``settings`` are part of the evaluator's cache key. Its other moment, the start of a training stage, is
    that of a :class:`RangeCalibrator`; a component may serve both.
    """

    name: str
    settings: Mapping[str, Any]

    def calibrate(self, subnet: Subnet, batches: Iterable[Tensor]) -> None:
        """Adjust the subnet's own state. ``batches``: ``[N, C, H, W]`` training images, normalised."""


BatchLoss = Callable[[int, "Tensor"], "Tensor"]
"""The loss of one of several batches, by its number, given the outputs."""


@runtime_checkable
class RangeCalibrator(Protocol):
    """Finds the ranges of quantizers from data at the start of a training stage, without gradients."""

    name: str

    def start(self, supernet: Supernet, batches: Sequence[Tensor], roles: Sequence[str], loss: BatchLoss) -> None:
        """Set the ranges of every quantizer of these roles that the active subnet uses, at all its bit-widths.

        Args:
            supernet: active, in training mode, its quantizers of these roles on; ``supernet.observing`` shows what
                arrives at each quantizer.
            batches: ``[N, C, R, R]`` training images each, normalised, at the active subnet's resolution.
            roles: ``weight``, ``activation`` or both.
            loss: the task's loss of outputs ``[N, classes]`` of the batch at a position in ``batches``.
        """


@runtime_checkable
class CostModel(Protocol):
    """A cost that is a sum over layers.

    With ``on_request = True`` it is computed and shown only where an objective, a constraint or a command names it;
    without this attribute always.
    """

    direction: str  # "min" or "max"
    unit: str

    def layer_cost(self, layer: Any) -> Any:
        """Return one layer's cost.

        ``layer`` is a :class:`~qnas.layers.LayerSpec` or a :class:`~qnas.costs.LayerColumns` with the same attributes
        as arrays ``[n]``: use integer arithmetic only, no branches on numbers.
        """


@runtime_checkable
class AverageCost(CostModel, Protocol):
    """A cost that is an average over layers: the sum of ``layer_cost`` over the sum of ``layer_weight``.

    Both are whole numbers, so that the average is one division of exact sums; 0 where the weights sum to 0.
    """

    def layer_weight(self, layer: Any) -> Any:
        """Return one layer's weight, 0 for a layer that does not count; ``layer`` as for ``layer_cost``."""


@runtime_checkable
class BlockCost(Protocol):
    """A cost that is a sum over blocks of layers, such as a latency that is looked up by the block's shape.

    Whole numbers are summed, so that it does not depend on the order: the cost is ``offset`` and the sum of
    ``block_cost`` over the blocks of a subnet (:func:`qnas.blocks.blocks_of`), divided by ``divisor``.
    """

    direction: str  # "min" or "max"
    unit: str
    offset: int
    divisor: int

    def block_cost(self, block: str, layers: Sequence[Any]) -> int:
        """Return the cost of one block, given its :class:`~qnas.layers.LayerSpec` in order; never of an empty one."""

    def bits_seen(self, role: str, bits: int) -> int:
        """Return the bit-width that stands for all those that cost the same; ``role``: ``w_bits`` or ``a_bits``."""


@dataclass(frozen=True)
class Objective:
    """A named metric and whether less (``min``) or more (``max``) of it is better."""

    name: str
    direction: str


@dataclass
class Trial:
    """One judged subnet.

    Attributes:
        metrics: by name; accuracy as a fraction.
        violation: how far the constraints are missed, 0 where they are met (relative, summed).
    """

    key: str
    sample: Sample
    metrics: dict[str, float]
    violation: float = 0.0
    extra: State = field(default_factory=dict)

    def to_state(self) -> State:
        """Return it JSON-safe, as states keep it; ``extra`` is left out."""
        return {"key": self.key, "sample": self.sample, "metrics": self.metrics, "violation": self.violation}

    @classmethod
    def of_state(cls, state: State) -> Trial:
        """Return what :meth:`to_state` gave."""
        return cls(state["key"], dict(state["sample"]), dict(state["metrics"]), float(state["violation"]))


@dataclass(frozen=True)
class SearchProblem:
    """What a strategy sees: the space, what to optimise, and samples that meet the constraints on costs.

    Attributes:
        draw: returns ``[n, num_knobs]`` feasible samples.
        repair: returns the given samples, made feasible.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    draw: Callable[[np.random.Generator, int], Indices]
    repair: Callable[[Indices, np.random.Generator], Indices]
    seed: int


@runtime_checkable
class Strategy(Protocol):
    """Decides which subnets to judge next. Its state is JSON; random draws are functions of (seed, count)."""

    def ask(self, n: int) -> list[Sample]:
        """Return at most ``n`` samples to judge, at least one unless the search is finished."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn results, in the order in which the samples were asked."""

    def state_dict(self) -> State:
        """Return everything needed to go on, JSON-safe."""

    def load_state_dict(self, state: State) -> None:
        """Take up a state; from here on the strategy asks as if it had never stopped."""


@runtime_checkable
class Predictor(Protocol):
    """Predicts a metric from encoded samples (``SearchSpace.encode``).

    The constructor takes ``seed``, of every random draw, and the options of ``[predictor.options]`` as keywords.
    """

    def fit(self, encoded: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        """Learn from ``[n, d]`` encodings and ``[n]`` targets."""

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return ``[n]`` predictions."""

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what was learned, as arrays by name; with the options it is all that prediction needs."""

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take up what was learned."""


@runtime_checkable
class Task(Protocol):
    """Loss and metrics of a model family. What targets and outputs are, ``[N, ...]`` each, is between it and its data.

    A task whose metric is a share of images also has ``correct(outputs, targets)``, which says of each whether the
    answer counts as right, ``[N]`` booleans: the evidence for differences between subnets, kept with every measurement.
    Where it has ``correct``, it may leave ``score`` out.

    Attributes:
        metric: name of the number that subnets are chosen by: from 0 to 1, more is better.
    """

    metric: str

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss of a batch, ``[]``. ``targets``: ``[N]`` classes, or whatever the data gives."""

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return metrics over all images of a split by name, ``metric`` among them; on the CPU, without gradients."""


@runtime_checkable
class FeatureTask(Task, Protocol):
    """A task whose outputs come from a head on a backbone's features, as in detection.

    The constructor takes the keywords ``features``, a tuple of :class:`qnas.nn.features.Feature`, fine to coarse;
    ``image_size`` in pixels; ``num_classes``; and the user's options.
    """

    def check_targets(self, targets: Tensor) -> None:
        """Raise ``DataError`` where a data set's targets ``[N, ...]`` are not what this task takes."""

    def head(self) -> FloatHead:
        """Return a new head with random weights: from a tuple of ``[N, C, H, W]`` features to outputs ``[N, ...]``."""


@runtime_checkable
class Device(Protocol):
    """A runtime that executes an exported model."""

    @property
    def version(self) -> str:
        """The runtime's version."""

    @property
    def native_bits(self) -> tuple[int, ...]:
        """Bit-widths of weights and activations that it has kernels for, ascending; fewer bits run as one of these."""

    def run(self, model_path: str, images: np.ndarray[Any, Any], batch_size: int) -> np.ndarray[Any, Any]:
        """Return the model's outputs for ``[N, C, H, W]`` float32 images."""

    def operators(self, model_path: str) -> dict[str, int]:
        """Return how often each operator stands in the graph that the runtime really executes."""

    def prepare(self, model_path: str, batch: int, threads: int) -> Callable[[], None]:
        """Load a model and return what executes it once, on random input made here, and returns when it is done.

        Args:
            model_path: inputs are uint8 or float32; a dimension without a size is the number of images.
            batch: images at once.
            threads: that the runtime may compute with.
        """

    def clock(self, threads: int) -> Callable[[], float]:
        """Return the clock, in seconds, that tells how long an inference takes.

        ``time.thread_time`` where the runtime computes in the calling thread alone: time in which the machine did
        something else does not count then. Else ``time.perf_counter``.
        """
