"""Read-only events of a run: progress bars, histories and figures hang on these, and nothing flows back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Recorder(Protocol):
    """Receives events. It must not change what it is given, nor raise."""

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Take note of one event.

        Events and their values:

        - ``init``: what came of the initial weights: summary, and the fields of ``qnas.initial.InitReport``.
        - ``stage``: name, epochs, steps.
        - ``step``: stage, epoch and number (both counted over all stages), step (in the epoch), losses (one a subnet,
          in the sampler's order), gradient_norm, clip_ratio (of the gradients), lr.
        - ``inside``: stage, epoch, number, step; ``subnets``: for each its key, and what
          :meth:`qnas.probe.Probe.watching` finds; ``gradient_norms`` by layer. After every ``record_every`` steps, and
          at the end of each epoch.
        - ``epoch``: what the history keeps of an epoch.
        - ``search``: name, evaluations.
        - ``trial``: number, key, metrics, cached.
        - ``alone``: number, total, keys: which subnets are trained by themselves next.
        - ``phase``: name (train, search, alone, rank, export, verify, report), state (start, end, stopped), seconds.
        """


class NullRecorder:
    """Forgets everything."""

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Do nothing."""


class Recorders:
    """Passes each event on to several recorders."""

    def __init__(self, *recorders: Recorder) -> None:
        self.recorders = recorders

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Pass the event on."""
        for recorder in self.recorders:
            recorder.record(event, values)
