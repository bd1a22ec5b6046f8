"""The latency of a run's searches: its device, its table (given, or made once), and what measures its subnets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qnas import components
from qnas.config import RunConfig
from qnas.constraints import Constraint
from qnas.errors import ConfigError, StoreError
from qnas.files import write_bytes
from qnas.latency import LATENCY
from qnas.latency.measured import LatencyMeter
from qnas.latency.nets import LatencyNets
from qnas.latency.profile import Profiler, TimedDevice, check_size, open_table
from qnas.latency.searching import SearchLatency, guides
from qnas.latency.shapes import Bits
from qnas.latency.table import LatencyCost, LatencyTable
from qnas.latency.timing import TimingSettings, check_device

if TYPE_CHECKING:
    from qnas.run import Run

FOLDER = "latency"


def asks_latency(run: Run, config: RunConfig) -> bool:
    """Tell whether objectives or constraints of a search name the latency."""
    return LATENCY in components.asked_metrics(run.registry, config)


def needs_table(run: Run, config: RunConfig) -> bool:
    """Tell whether a search estimates latencies, or draws subnets by them."""
    if not asks_latency(run, config):
        return False
    limited = any(re.match(rf"\s*{LATENCY}\b", text) for text in config.search.constraints)
    own = config.latency
    return own.mode == "table" or own.table is not None or limited or config.search.predictor is not None


def timed_device(run: Run, config: RunConfig) -> TimedDevice:
    """Return the run's device with the search's settings.

    Raises:
        PluginError: there is no such device, or it cannot be timed.
    """
    own, name = config.latency, run.config.deploy_device
    device = run.registry.load("device", name)()
    check_device(device, name)
    return TimedDevice(name, device, TimingSettings(own.threads, own.batch, own.rounds))


def latency_nets(run: Run) -> LatencyNets:
    """Return what makes the models of a run's subnets."""
    return LatencyNets(run.registry, run.config, run.space, run.data)


def check_latency(
    run: Run, config: RunConfig, constraints: Sequence[Constraint]
) -> tuple[dict[str, LatencyCost], list[Constraint]]:
    """Check what a search needs of latency, without measuring.

    Returns:
        The estimate where there is a table already, else nothing, and the constraints that draws will have to meet.

    Raises:
        QnasError: the device cannot be timed, a given table is of something else or failed its check, or the run would
            have to make a table of a space that is too large for one.
    """
    if not asks_latency(run, config):
        return {}, list(constraints)
    own, timed = config.latency, timed_device(run, config)
    if not needs_table(run, config):
        return {}, list(constraints)
    path, bits = _given(run, config), Bits.of(run.space, timed.device.native_bits)
    if path is None:
        path = table_path(run, config) if hasattr(run, "store") else None
        if path is None or not path.is_file():
            if own.mode == "table" or config.search.predictor is not None:
                check_size(run.space, bits)
            return {}, list(constraints)
    table = LatencyTable.read(path)
    if own.mode == "table" or own.table is not None:
        table.refuse_other(timed.header(latency_nets(run)), str(path), force=own.force)
    elif not table.passed and not own.force:
        return {}, list(constraints)
    return {LATENCY: LatencyCost(table, bits)}, guides(constraints, table, own.mode)


def lacks_table(run: Run, config: RunConfig) -> bool:
    """Tell whether a search needs a table that is still to be made or copied."""
    if not needs_table(run, config):
        return False
    path = table_path(run, config)
    return not path.is_file() or not LatencyTable.read(path).finished


def table_path(run: Run, config: RunConfig) -> Path:
    """Return where a run keeps the table of a search: its own by what it is of, a given one by where it was."""
    own = config.latency
    if own.table is not None:
        name = f"given-{hashlib.sha256(own.table.encode()).hexdigest()[:8]}"
    else:
        name = f"{run.config.deploy_device.replace(':', '-')}-{own.threads}-{own.batch}-{own.rounds}"
    return run.store.path / FOLDER / f"{name}.json"


def _given(run: Run, config: RunConfig) -> Path | None:
    """Return the given table's file: the run's copy once there is one, which must be the same.

    Raises:
        StoreError: the file changed since.
    """
    if config.latency.table is None:
        return None
    path = Path(config.latency.table)
    copy = table_path(run, config) if hasattr(run, "store") else None
    if copy is None or not copy.is_file():
        return path
    if path.is_file() and path.read_bytes() != copy.read_bytes():
        raise StoreError(
            f"The table of latencies {path} changed since {run.store.path} used it; the run's copy is {copy}. Give "
            "that by --latency-table, or the new table under another name."
        )
    return copy


def make_table(run: Run, config: RunConfig) -> LatencyTable | None:
    """Return the table of a search, copied or measured into the run's folder; ``None`` for one that is too large.

    Raises:
        ConfigError: its check failed, and the search has nothing else.
    """
    path, given = table_path(run, config), _given(run, config)
    if given is not None:
        LatencyTable.read(given)
        write_bytes(path, given.read_bytes())
        return LatencyTable.read(path)
    timed, nets = timed_device(run, config), latency_nets(run)
    if not _fits(run, timed) and config.latency.mode == "measured":
        return None
    table = open_table(path, timed.header(nets))
    return Profiler(nets, timed, table, lambda found: found.write(path), run.recorder).run()


def _fits(run: Run, timed: TimedDevice) -> bool:
    try:
        check_size(run.space, Bits.of(run.space, timed.device.native_bits))
    except ConfigError:
        return False
    return True


def search_latency(run: Run, config: RunConfig) -> SearchLatency | None:
    """Return the latency of a search, ``None`` where nothing names it.

    Raises:
        ConfigError: trials are to be told a table's latencies, and its check failed.
    """
    if not asks_latency(run, config):
        return None
    timed, nets, own = timed_device(run, config), latency_nets(run), config.latency
    table: Any = None
    if needs_table(run, config):
        path = table_path(run, config)
        table = LatencyTable.read(path) if path.is_file() else None
        if table is not None and (own.mode == "table" or own.table is not None):
            table.refuse_other(timed.header(nets), str(path), force=own.force)
    return SearchLatency(own.mode, LatencyMeter(run.store, nets, timed, run.recorder), table, force=own.force)
