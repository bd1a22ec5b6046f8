"""What a search for low latency uses: a table to estimate and to draw by, and measurements to decide by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qnas.constraints import Constraint
from qnas.errors import ConfigError
from qnas.latency import LATENCY
from qnas.latency.measured import LatencyMeter
from qnas.latency.shapes import Bits
from qnas.latency.table import LatencyCost, LatencyTable
from qnas.layers import LayerSpec
from qnas.space import Value


class SearchLatency:
    """The latency of one search.

    Args:
        mode: ``measured`` or ``table``: what a trial's latency is.
        meter: measures.
        table: estimates; ``None`` where the run has none, or none that passed its check.
        force: the table is used though its check failed.
    """

    def __init__(self, mode: str, meter: LatencyMeter, table: LatencyTable | None, *, force: bool = False) -> None:
        self.mode = mode
        self.meter = meter
        self.table = table if table is not None and (table.passed or force) else None
        self.cost = None if self.table is None else LatencyCost(self.table, self.bits)

    @property
    def bits(self) -> Bits:
        """Bit-widths as the device sees them."""
        return self.meter.bits

    @property
    def measures(self) -> bool:
        """Whether every trial is measured."""
        return self.mode == "measured"

    @property
    def costs(self) -> dict[str, LatencyCost]:
        """The estimate, by the name of the metric; empty without a table."""
        return {} if self.cost is None else {LATENCY: self.cost}

    def estimate(self) -> LatencyCost:
        """Return the estimate.

        Raises:
            ConfigError: there is no table that passed its check.
        """
        if self.cost is None:
            raise ConfigError(
                "A search on predictions (search.predictor) needs a table of latencies that passed its check, since "
                "predicted subnets are not measured. Give one by --latency-table, or search without a predictor."
            )
        return self.cost

    def guides(self, constraints: Sequence[Constraint]) -> list[Constraint]:
        """Return the constraints that draws are to meet; see :func:`guides`."""
        return list(constraints) if self.table is None else guides(constraints, self.table, self.mode)

    def measure(self, samples: Sequence[Mapping[str, Value]]) -> list[float]:
        """Return measured latencies, in milliseconds."""
        return [latency.ms for latency in self.meter.measure(samples)]

    def identity(self) -> dict[str, Any]:
        """Return what names the search, JSON-safe."""
        timed = self.meter.timed
        return {
            "mode": self.mode,
            "device": timed.name,
            **timed.settings.to_json(),
            "table": None if self.table is None else self.table.digest(),
        }

    def to_json(self, subnets: Sequence[Sequence[LayerSpec]]) -> dict[str, Any]:
        """Return what ``front.json`` says of latency, given the layers of the front's subnets."""
        header, table = self.meter.header, self.table
        lacking = self.bits.lacking(layer for layers in subnets for layer in layers)
        return {
            "mode": self.mode,
            **{name: header[name] for name in ("device", "version", "machine", "threads", "batch", "rounds")},
            "native_bits": header["native_bits"],
            "as_native": lacking,
            "reference": self.meter.reference().to_json(),
            "table": None if table is None else {"fit": table.fit, "check": table.check},
        }


def guides(constraints: Sequence[Constraint], table: LatencyTable, mode: str) -> list[Constraint]:
    """Return the constraints that draws are to meet where a table tells the latency.

    Where trials are measured, a limit on the latency is loosened by the table's mean error, so that what the table
    overrates a little is measured too.
    """
    if mode != "measured" or table.check is None:
        return list(constraints)
    margin = float(table.check["mean_relative_error"])
    return [
        replace(c, limit=c.limit * (1 + margin if c.sense == "<=" else 1 - margin)) if c.name == LATENCY else c
        for c in constraints
    ]
