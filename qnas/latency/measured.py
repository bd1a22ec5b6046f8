"""Measured latencies of a run's subnets: each once, side by side with the largest subnet, then from the store."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from qnas.latency.nets import LatencyNets
from qnas.latency.profile import WHOLE_PIECE, TimedDevice
from qnas.latency.shapes import Bits, subnet_key
from qnas.latency.timing import Latency, check_device, time_models, time_reference
from qnas.recorder import NullRecorder, Recorder
from qnas.space import Value
from qnas.store import RunDirectory

REFERENCE = "reference"


class LatencyMeter:
    """Measures subnets on a device, in this process and one piece at a time.

    Args:
        store: of the run; what was measured is kept there, so that a run that goes on finds the same numbers.
        nets: makes the models.
        timed: the device.
        recorder: receives ``measuring`` and ``measured`` events where several are measured.
    """

    def __init__(
        self, store: RunDirectory, nets: LatencyNets, timed: TimedDevice, recorder: Recorder | None = None
    ) -> None:
        check_device(timed.device, timed.name)
        self.store = store
        self.nets = nets
        self.timed = timed
        self.recorder = recorder or NullRecorder()
        self.bits = Bits.of(nets.space, timed.device.native_bits)
        self.header = timed.header(nets)

    def key(self, subnet: str) -> str:
        """Return the name of a measurement of a subnet, given its :func:`~qnas.latency.shapes.subnet_key`."""
        text = json.dumps([self.header, subnet], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def reference(self) -> Latency:
        """Return the latency of the space's largest subnet, measured by itself once."""
        found = self.store.latency(self.key(REFERENCE))
        if found is None:
            with tempfile.TemporaryDirectory() as folder:
                latency = time_reference(self.timed.device, self._reference(folder), self.timed.settings)
            self.store.put_latency(self.key(REFERENCE), latency.to_json())
            found = latency.to_json()
        return Latency(**found)

    def measure(self, samples: Sequence[Mapping[str, Value]]) -> list[Latency]:
        """Return the latencies of subnets; those that no subnet of the same shapes has yet are measured together.

        Raises:
            ExportError: one of them has no integer counterpart.
        """
        keys = [self.key(subnet_key(self.nets.space, self.nets.quantized(sample), self.bits)) for sample in samples]
        new = {key: s for key, s in zip(keys, samples, strict=True) if self.store.latency(key) is None}
        if len(new) > 1:
            self.recorder.record("measuring", {"name": "front", "total": len(new)})
        for start in range(0, len(new), WHOLE_PIECE):
            piece = dict(list(new.items())[start : start + WHOLE_PIECE])
            self._measure(piece)
            if len(new) > 1:
                self.recorder.record("measured", {"new": len(piece)})
        found = [self.store.latency(key) for key in keys]
        return [Latency(**value) for value in found if value is not None]

    def _reference(self, folder: str) -> str:
        path = Path(folder) / "reference.onnx"
        path.write_bytes(self._largest)
        return str(path)

    @cached_property
    def _largest(self) -> bytes:
        """The model of the space's largest subnet, beside which all others are timed."""
        model: bytes = self.nets.build(self.nets.space.highest()).model.SerializeToString()
        return model

    def _measure(self, piece: Mapping[str, Mapping[str, Value]]) -> None:
        """Measure subnets that are not stored and store all of them at once."""
        baseline = self.reference()
        with tempfile.TemporaryDirectory() as folder:
            reference, paths = self._reference(folder), []
            for number, sample in enumerate(piece.values()):
                path = Path(folder) / f"{number}.onnx"
                path.write_bytes(self.nets.build(sample).model.SerializeToString())
                paths.append(str(path))
            found = time_models(self.timed.device, reference, paths, self.timed.settings, baseline)
        with self.store.transaction():
            for key, latency in zip(piece, found, strict=True):
                self.store.put_latency(key, latency.to_json())
