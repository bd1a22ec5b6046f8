"""Tables of block latencies: the file that ``qnas profile`` writes, what it is checked for, and the cost it makes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas.errors import ConfigError, StoreError
from qnas.files import write_json
from qnas.latency.shapes import Bits, block_key
from qnas.layers import LayerSpec

FORMAT = 1
MIN_SPEARMAN = 0.97
MAX_ERROR = 0.05  # mean, relative
PICOSECONDS = 10**9  # in a millisecond: costs are whole numbers

Json = dict[str, Any]
_KEYS = ("header", "reference", "models", "blocks", "subnets", "fit", "check")


class LatencyTable:
    """Latencies of blocks on one device, filled in piece by piece.

    Attributes:
        header: what it was measured on and of: device, version, machine, threads, batch, rounds, native_bits, space.
        reference: the space's largest subnet, by whose side everything is timed: its key and its latency.
        models: latencies by the structure of a block's model; a piece of network that occurs twice is timed once.
        blocks: the structure of each block's shape, by block and :func:`~qnas.latency.shapes.block_key`; "" where the
            block computes nothing.
        subnets: whole nets, with their samples and measured latencies.
        fit: intercept and slope from the sum of a subnet's blocks to its latency; ``None`` before it is known.
        check: how well that holds for subnets that were not fitted to; ``None`` while the table is unfinished.
    """

    def __init__(self, header: Json) -> None:
        self.header = header
        self.reference: Json | None = None
        self.models: dict[str, Json] = {}
        self.blocks: dict[str, dict[str, str]] = {}
        self.subnets: list[Json] = []
        self.fit: Json | None = None
        self.check: Json | None = None

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Return the table in a file.

        Raises:
            StoreError: there is none, or the file is something else.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StoreError(
                f"The table of latencies {path} cannot be read: {error.strerror}. Check the path, or make it by "
                f"`qnas profile --out {path}`."
            ) from error
        except ValueError as error:
            raise StoreError(f"{path} is no valid JSON: {error}. Make the table anew by `qnas profile`.") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT or not set(_KEYS) <= value.keys():
            raise StoreError(
                f"{path} is no table of latencies of format {FORMAT}. Give a file that `qnas profile` wrote."
            )
        table = cls(value["header"])
        for name in _KEYS[1:]:
            setattr(table, name, value[name])
        return table

    def to_json(self) -> Json:
        """Return everything."""
        return {"format": FORMAT, **{name: getattr(self, name) for name in _KEYS}}

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_json(path, self.to_json())

    def digest(self) -> str:
        """Return the digest of what costs depend on (hexadecimal)."""
        parts = [self.header, self.models, self.blocks, self.fit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """Whether everything is measured, the check too."""
        return self.check is not None

    @property
    def passed(self) -> bool:
        """Whether the check held."""
        return self.check is not None and bool(self.check["passed"])

    @property
    def native_bits(self) -> tuple[int, ...]:
        """Bit-widths that the device has kernels for."""
        return tuple(self.header["native_bits"])

    def known(self, block: str, key: str) -> bool:
        """Tell whether a block's shape is measured."""
        model = self.blocks.get(block, {}).get(key)
        return model is not None and (not model or model in self.models)

    def block_ms(self, block: str, key: str) -> float:
        """Return the latency of a block by itself, in milliseconds.

        Raises:
            ConfigError: the table does not know this shape.
        """
        if not self.known(block, key):
            raise ConfigError(
                f"The table of latencies of space {self.header['space']['name']!r} has no entry for block {block!r} "
                f"with {key}. Make a table of this space by `qnas profile` with the run's own options."
            )
        model = self.blocks[block][key]
        return float(self.models[model]["ms"]) if model else 0.0

    def refuse_other(self, wanted: Json, where: str, *, force: bool) -> None:
        """Raise ``ConfigError`` where the table is unfinished, of something else, or its check failed.

        Args:
            wanted: the header that it should have; the version of the runtime may differ.
            where: the table's file.
            force: take it though the check failed, or another machine measured it.
        """
        if not self.finished:
            raise ConfigError(
                f"The table of latencies {where} is unfinished. Give `qnas profile` with the same --out again, which "
                "goes on with it."
            )
        for name, value in _flat(wanted).items():
            given = _flat(self.header).get(name)
            if name == "version" or given == value or (name == "machine" and force):
                continue
            raise ConfigError(
                f"The table of latencies {where} was measured with {name} = {given!r}, but {value!r} is asked for. "
                "Make a table for this by `qnas profile`, or correct the settings of the run."
                + (" --force takes it all the same." if name == "machine" else "")
            )
        if not self.passed and not force:
            raise ConfigError(f"The table of latencies {where} {self.failure()}")

    def failure(self) -> str:
        """Return what is wrong with a table whose check failed, and what to do, to follow its name."""
        assert self.check is not None
        spearman = self.check["spearman"]
        order = "" if spearman is None else f"Spearman correlation {spearman:.3f} (at least {MIN_SPEARMAN}), "
        return (
            f"failed its check on {self.check['subnets']} subnets: {order}mean relative error "
            f"{self.check['mean_relative_error']:.1%} (at most {MAX_ERROR:.0%}). Profile again with more --rounds on a "
            "quiet machine, search on measurements (--latency measured), or take it as it is by --force."
        )


def _flat(header: Mapping[str, Any], prefix: str = "") -> Json:
    found: Json = {}
    for name, value in header.items():
        if isinstance(value, Mapping) and name != "options":
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class LatencyCost:
    """The cost that a table makes: ``intercept + slope * sum over blocks``; see :class:`qnas.protocols.BlockCost`.

    Args:
        table: with its fit.
        bits: of the space that is searched.
    """

    direction = "min"
    unit = "ms"
    on_request = True
    divisor = PICOSECONDS

    def __init__(self, table: LatencyTable, bits: Bits) -> None:
        assert table.fit is not None
        self.table = table
        self.bits = bits
        self.slope = float(table.fit["slope"])
        self.offset = round(float(table.fit["intercept_ms"]) * PICOSECONDS)

    def block_cost(self, block: str, layers: Sequence[LayerSpec]) -> int:
        """Return the calibrated latency of a block, in picoseconds."""
        return round(self.slope * self.table.block_ms(block, block_key(block, layers, self.bits)) * PICOSECONDS)

    def bits_seen(self, role: str, bits: int) -> int:
        """Return the bit-width that stands for all those that run alike."""
        return self.bits.seen(role, bits)


def fit_line(sums: Sequence[float], latencies: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope of the line with the least squared relative error; slope over 0.

    Where the sums do not differ, or the line would not rise, it goes through 0.
    """
    import numpy as np

    x, y = np.asarray(sums, dtype=float), np.asarray(latencies, dtype=float)
    if np.ptp(x) > 1e-9 * max(float(x.max()), 1e-9):
        rows = np.stack([1 / y, x / y], axis=1)
        (intercept, slope), *_ = np.linalg.lstsq(rows, np.ones(len(x)), rcond=None)
        if slope > 0:
            return float(intercept), float(slope)
    total = float(x.sum())
    return (0.0, float(y.sum()) / total) if total > 0 else (float(y.mean()), 1.0)


def check_line(predicted: Sequence[float], measured: Sequence[float], *, unseen: bool) -> Json:
    """Return how well predictions agree with measurements, and whether that is good enough.

    Args:
        predicted, measured: latencies of the same subnets.
        unseen: whether the fit left these subnets out.
    """
    from scipy.stats import spearmanr

    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    error = math.fsum(errors) / len(errors)
    order = None
    if len(set(predicted)) > 1 and len(set(measured)) > 1:
        order = round(float(spearmanr(predicted, measured).statistic), 6)
    return {
        "subnets": len(errors),
        "unseen": unseen,
        "spearman": order,
        "mean_relative_error": round(error, 6),
        "largest_relative_error": round(max(errors), 6),
        "passed": error <= MAX_ERROR and (order is None or order >= MIN_SPEARMAN),
    }
