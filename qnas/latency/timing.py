"""Timing of models on a device, side by side with a reference model so that the machine's drift cancels. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qnas.errors import PluginError
from qnas.protocols import Device
from qnas.rng import generator
from qnas.statistics import CONFIDENCE

PERCENTILE = 10  # of the rounds: what the device needs when nothing else disturbs it
WARM_UP = 3  # inferences before the first round
SHORTEST = 4e-3  # seconds that a model is timed for in a round; shorter ones are repeated, and the fastest counts
MOST_REPEATS = 200
DISTURBED = 1.05  # the 10th percentile over the fastest round: more, and other work took most of the rounds
MOST_TURNS = 4  # times as many rounds at most, until enough of them are undisturbed
FASTEST = 2.5  # the percentile where they never are
RESAMPLES = 200  # of the rounds, for the interval
BASELINE_ROUNDS = 3  # times as many rounds for the reference's own latency

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TimingSettings:
    """How latencies are measured; latencies with other settings are not compared.

    Attributes:
        threads: that the device may compute with.
        batch: images of one inference.
        rounds: in which every model is timed once.
    """

    threads: int = 1
    batch: int = 1
    rounds: int = 40

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference, with a 95% interval by resampling the rounds."""

    ms: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return the fields, rounded to nanoseconds."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def check_device(device: Device, name: str) -> None:
    """Raise ``PluginError`` where a device cannot be timed."""
    lacking = [part for part in ("prepare", "clock", "native_bits") if not hasattr(device, part)]
    if lacking:
        raise PluginError(
            f"Device {name!r} cannot measure latency: it has no {', '.join(lacking)} (see qnas.protocols.Device). "
            "Choose another device, such as onnxruntime, or add them to the plugin."
        )


def time_reference(device: Device, path: str, settings: TimingSettings) -> Latency:
    """Return the latency of a reference model by itself, from which those of all others are derived."""
    rounds = _rounds(device, [path], settings, settings.rounds * BASELINE_ROUNDS)
    level, seconds = _level(rounds), rounds[0]
    spread = np.percentile(seconds[_resamples(len(seconds))], level, axis=1)
    return _latency(float(np.percentile(seconds, level)), spread, 1e3)


def time_models(
    device: Device, reference: str, paths: Sequence[str], settings: TimingSettings, baseline: Latency
) -> list[Latency]:
    """Time models round-robin beside a reference.

    A model's latency is the 10th percentile of its rounds over that of the reference in the same rounds, times the
    reference's own latency: what slows all of them down alike changes nothing. A round's time is the fastest of as many
    inferences as fit into a few milliseconds. Where the machine is so busy that a model's 10th percentile is far above
    its fastest round, there are more rounds; where it stays so, a lower percentile of all models counts.

    Args:
        device: executes them.
        reference: path of the reference model.
        paths: of the models; all are loaded at once.
        settings: of the measurement.
        baseline: the reference's own latency.
    """
    rounds = _rounds(device, [reference, *paths], settings, settings.rounds)
    level, picks, beside = _level(rounds), _resamples(rounds.shape[1]), rounds[0]
    low_beside = np.percentile(beside[picks], level, axis=1)
    found = []
    for seconds in rounds[1:]:
        ratio = float(np.percentile(seconds, level) / np.percentile(beside, level))
        found.append(_latency(ratio, np.percentile(seconds[picks], level, axis=1) / low_beside, baseline.ms))
    return found


def _rounds(device: Device, paths: Sequence[str], settings: TimingSettings, rounds: int) -> Array:
    """Return the seconds of the fastest inference of each round, ``[models, rounds]`` or more rounds."""
    models = [device.prepare(path, settings.batch, settings.threads) for path in paths]
    clock = device.clock(settings.threads)
    repeats = [_repeats(model, clock) for model in models]
    turns: list[Array] = []
    while not turns or (len(turns) < MOST_TURNS and _disturbed(np.concatenate(turns, axis=1))):
        seconds = np.zeros((len(models), rounds))
        for number in range(rounds):
            for i, (model, times) in enumerate(zip(models, repeats, strict=True)):
                seconds[i, number] = min(_once(model, clock) for _ in range(times))
        turns.append(np.maximum(seconds, 1e-9))  # a clock's tick: a ratio of zeros says nothing
    return np.concatenate(turns, axis=1)


def _disturbed(seconds: Array) -> bool:
    """Tell whether a model's low percentile says more of other work than of the model; ``[models, rounds]``."""
    return bool((np.percentile(seconds, PERCENTILE, axis=1) > DISTURBED * seconds.min(axis=1)).any())


def _level(seconds: Array) -> float:
    return FASTEST if _disturbed(seconds) else PERCENTILE


def _once(model: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    model()
    return clock() - start


def _repeats(model: Callable[[], None], clock: Callable[[], float]) -> int:
    """Warm a model up and return how often to run it in a round."""
    shortest = min(_once(model, clock) for _ in range(WARM_UP))
    return min(MOST_REPEATS, max(1, math.ceil(SHORTEST / max(shortest, 1e-9))))


def _resamples(rounds: int) -> Array:
    return generator(0, "latency interval").integers(0, rounds, (RESAMPLES, rounds))


def _latency(value: float, spread: Array, factor: float) -> Latency:
    low, high = np.percentile(spread, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Latency(factor * value, factor * min(float(low), value), factor * max(float(high), value))
