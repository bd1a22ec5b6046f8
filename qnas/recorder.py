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
        - ``step``: stage, epoch, step, losses (one a subnet, in the sampler's order), gradient_norm, clip_ratio, lr.
        - ``epoch``: what the history keeps of an epoch.
        - ``search``: name, evaluations.
        - ``trial``: number, key, metrics, cached.
        - ``phase``: name (train, search, export, verify, report), state (start, end, stopped), seconds.
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
