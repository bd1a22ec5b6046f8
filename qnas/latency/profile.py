"""Makes a table of block latencies: every block of a space once, then whole subnets to fit and to check it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qnas.blocks import blocks_of
from qnas.environment import processor
from qnas.errors import ConfigError, StoreError
from qnas.latency.cut import BlockModel
from qnas.latency.nets import LatencyNets
from qnas.latency.shapes import Bits, block_key, block_shapes, cover, num_choices, subnet_key
from qnas.latency.table import Json, LatencyTable, check_line, fit_line
from qnas.latency.timing import Latency, TimingSettings, check_device, time_models, time_reference
from qnas.protocols import Device
from qnas.recorder import NullRecorder, Recorder
from qnas.rng import generator
from qnas.space import Sample, SearchSpace

PIECE = 24  # models that are timed together, and lost at most when the process is killed
WHOLE_PIECE = 12  # the same of whole subnets
FITTED, CHECKED = 16, 24  # whole subnets
FEWEST = 6  # subnets; of a space with fewer, all are fitted to, and timed once more for the check
MOST_SHAPES = 8000  # of blocks
MOST_CHOICES = 2_000_000  # that make them
DRAWS = 4000  # random subnets from which distinct ones are taken
OVERHEAD = "overhead"  # the model that computes nothing: what every start of a model takes


@dataclass(frozen=True)
class TimedDevice:
    """A device with its name and how it is timed."""

    name: str
    device: Device
    settings: TimingSettings

    def header(self, nets: LatencyNets) -> Json:
        """Return what a table or a measurement of these nets is named by."""
        return {
            "device": self.name,
            "version": self.device.version,
            "machine": processor(),
            **self.settings.to_json(),
            "native_bits": list(self.device.native_bits),
            "space": nets.identity(),
        }


def check_size(space: SearchSpace, bits: Bits) -> None:
    """Raise ``ConfigError`` where a space has more blocks than can be timed one by one."""
    choices = num_choices(space, bits)
    if choices <= MOST_CHOICES:
        shapes = {name: len(own) for name, own in block_shapes(space, bits).items()}
        if sum(shapes.values()) <= MOST_SHAPES:
            return
        most = max(shapes, key=lambda name: shapes[name])
        found, worst = f"{sum(shapes.values()):,} blocks", f"block {most!r} alone has {shapes[most]:,}"
    else:
        found, worst = f"{choices:,} combinations of choices", "too many to list"
    raise ConfigError(
        f"Space {space.name!r} has {found} to time ({worst}); at most {MOST_SHAPES:,} are. Give it fewer choices "
        "(--space-option resolutions=128,160 for example), coarser bit-widths, or search on measurements "
        "(--latency measured)."
    )


class Profiler:
    """Fills a table in; what is in it already is not measured again.

    Args:
        nets: of the space.
        timed: the device.
        table: empty, or unfinished of the same header.
        save: called after every piece.
        recorder: receives ``measuring`` and ``measured`` events.
    """

    def __init__(
        self,
        nets: LatencyNets,
        timed: TimedDevice,
        table: LatencyTable,
        save: Callable[[LatencyTable], None],
        recorder: Recorder | None = None,
    ) -> None:
        check_device(timed.device, timed.name)
        self.nets = nets
        self.timed = timed
        self.table = table
        self.save = save
        self.recorder = recorder or NullRecorder()
        self.bits = Bits.of(nets.space, timed.device.native_bits)

    def run(self) -> LatencyTable:
        """Measure what is left, fit and check; return the table.

        Raises:
            ConfigError: the space has too many blocks.
            ExportError: its subnets have no integer counterpart.
        """
        if self.table.finished:
            return self.table
        check_size(self.nets.space, self.bits)
        with tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            self._reference()
            self._blocks()
            fitted, checked, unseen = self._whole()
            self._judge(fitted, checked, unseen)
        self.save(self.table)
        return self.table

    # --- pieces ------------------------------------------------------------------------------------------------

    def _write(self, name: str, model: Any) -> str:
        path = self.folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return str(path)

    def _reference(self) -> None:
        """Write the largest subnet, and measure its own latency unless that is known."""
        space = self.nets.space
        self.reference = self._write("reference", self.nets.build(space.highest()).model)
        if self.table.reference is None:
            latency = time_reference(self.timed.device, self.reference, self.timed.settings)
            self.table.reference = {"key": subnet_key(space, space.highest(), self.bits), **latency.to_json()}
            self.save(self.table)
        found = self.table.reference
        self.baseline = Latency(found["ms"], found["low"], found["high"])

    def _time(self, paths: Sequence[str]) -> list[Latency]:
        timed = self.timed
        return time_models(timed.device, self.reference, paths, timed.settings, self.baseline)

    # --- blocks ------------------------------------------------------------------------------------------------

    def _blocks(self) -> None:
        """Measure every shape of every block that is not known."""
        space, table = self.nets.space, self.table
        if OVERHEAD not in table.models:
            found = self._time([self._write(OVERHEAD, idle_model())])[0]
            table.models[OVERHEAD] = found.to_json()
        samples = cover(space, block_shapes(space, self.bits))
        self.recorder.record("measuring", {"name": "blocks", "total": len(samples)})
        waiting: dict[str, BlockModel] = {}
        done = 0
        for sample in samples:
            keys = {b.name: block_key(b.name, b.layers(space, sample), self.bits) for b in blocks_of(space)}
            keys = {name: key for name, key in keys.items() if key}
            done += 1
            if all(table.known(name, key) for name, key in keys.items()):
                continue
            models = self.nets.blocks(sample)
            for name, key in keys.items():
                model = models.get(name)
                table.blocks.setdefault(name, {}).setdefault(key, "" if model is None else model.structure)
                if model is not None and table.blocks[name][key] not in table.models:
                    waiting.setdefault(table.blocks[name][key], model)
            while len(waiting) >= PIECE:
                self._measure_blocks(waiting)
            self.recorder.record("measured", {"new": done})
            done = 0
        while waiting:
            self._measure_blocks(waiting)
        self.recorder.record("measured", {"new": done})
        self.save(table)

    def _measure_blocks(self, waiting: dict[str, BlockModel]) -> None:
        """Time the first piece of those that wait, less what starting a model takes, and store it."""
        piece = [waiting.pop(structure) for structure in list(waiting)[:PIECE]]
        paths = [self._write(str(i), found.model) for i, found in enumerate(piece)]
        idle = self.table.models[OVERHEAD]["ms"]
        for found, latency in zip(piece, self._time(paths), strict=True):
            less = [max(value - idle, 0.0) for value in (latency.ms, latency.low, latency.high)]
            self.table.models[found.structure] = Latency(*less).to_json()
        self.save(self.table)

    # --- whole subnets -----------------------------------------------------------------------------------------

    def _whole(self) -> tuple[list[Json], list[Json], bool]:
        """Measure whole subnets; return those to fit to, those to check on, and whether the latter are others."""
        samples = distinct_subnets(self.nets.space, self.bits, FITTED + CHECKED)
        few = len(samples) < FEWEST
        wanted = samples + samples if few else samples
        self.recorder.record("measuring", {"name": "subnets", "total": len(wanted)})
        known = len(self.table.subnets)
        self.recorder.record("measured", {"new": known})
        for start in range(known, len(wanted), WHOLE_PIECE):
            piece = wanted[start : start + WHOLE_PIECE]
            paths = [self._write(f"subnet{i}", self.nets.build(sample).model) for i, sample in enumerate(piece)]
            for sample, latency in zip(piece, self._time(paths), strict=True):
                key = subnet_key(self.nets.space, sample, self.bits)
                self.table.subnets.append({"key": key, "sample": sample, **latency.to_json()})
            self.save(self.table)
            self.recorder.record("measured", {"new": len(piece)})
        found = self.table.subnets
        at = len(samples) if few else max(2, len(samples) * FITTED // (FITTED + CHECKED))
        return found[:at], found[at:], not few

    def _judge(self, fitted: Sequence[Json], checked: Sequence[Json], unseen: bool) -> None:
        """Fit the line on some subnets and check it on the others."""
        intercept, slope = fit_line([self._sum(s) for s in fitted], [s["ms"] for s in fitted])
        self.table.fit = {"intercept_ms": round(intercept, 9), "slope": round(slope, 9), "subnets": len(fitted)}
        predicted = [intercept + slope * self._sum(subnet) for subnet in checked]
        self.table.check = check_line(predicted, [subnet["ms"] for subnet in checked], unseen=unseen)

    def _sum(self, subnet: Json) -> float:
        space, total = self.nets.space, 0.0
        for block in blocks_of(space):
            key = block_key(block.name, block.layers(space, subnet["sample"]), self.bits)
            total += self.table.block_ms(block.name, key) if key else 0.0
        return total


def distinct_subnets(space: SearchSpace, bits: Bits, n: int) -> list[Sample]:
    """Return at most ``n`` random subnets that differ in latency's eyes; the smallest and the largest come first."""
    rows = space.draw(generator(0, "latency subnets"), DRAWS)
    found: dict[str, Sample] = {}
    for sample in (space.lowest(), space.highest(), *map(space.sample, rows)):
        found.setdefault(subnet_key(space, sample, bits), sample)
        if len(found) == n:
            break
    return list(found.values())


def idle_model() -> Any:
    """Return a model that moves one number."""
    from onnx import TensorProto, helper

    from qnas.deploy.graph import IR_VERSION, OPSET

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], OVERHEAD, [ends[0]], [ends[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model


def open_table(path: Path, header: Json) -> LatencyTable:
    """Return the table to go on with in a file, or an empty one where there is no file.

    Raises:
        StoreError: the file is a table of something else.
    """
    if not path.exists():
        return LatencyTable(header)
    table = LatencyTable.read(path)
    if table.header != header:
        changed = next(name for name in header if table.header.get(name) != header[name])
        raise StoreError(
            f"{path} is a table of latencies with {changed} = {table.header.get(changed)!r}; given now: "
            f"{header[changed]!r}. Choose another --out, or remove the file."
        )
    return table
