"""What a report is made of, and the few facts about a run that its pages, charts and figures share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qnas.retrained import is_alone

Json = dict[str, Any]

DEFAULT_SCORE = "accuracy"
LABELS = {
    "accuracy": "accuracy",
    "bitops": "BitOPs",
    "oqat_flops": "OQAT FLOPs",
    "macs": "MACs",
    "size_bytes": "size",
    "num_weights": "weights",
    "latency_ms": "latency",
    "table_latency_ms": "latency by table",
}


@dataclass(frozen=True)
class ReportData:
    """A run as plain, JSON-safe values; every part but the configuration may be empty in an unfinished run.

    Attributes:
        config: the resolved configuration.
        environment: versions and hardware, by name; may be nested.
        command: how the run was started: words of one command, or text that is shown as it is.
        history: an entry an epoch: ``stage``, ``epoch``, ``losses`` (largest subnet, random ones, smallest subnet),
            ``lr``, ``gradient_norm``, ``image_passes``.
        trials: an entry an evaluation: ``number``, ``search``, ``key``, ``sample``, ``metrics``, ``violation``.
        front: of one search: ``search``, ``strategy``, ``seed``, ``objectives``, ``constraints``, ``split``,
            ``evaluations``, ``num_images``, ``chosen`` and ``points``; a point has ``key``, ``sample``, ``metrics`` and
            ``standard_error`` on the search split, ``test`` (the same on the test split) and ``layers``.
        exports: an entry an exported subnet: ``key``, ``onnx``, ``packed``, their sizes, ``operators``,
            ``float_islands`` and ``verify``.
        timings: seconds by phase.
        name: of the run.
        fronts: of every finished search, oldest first; ``front`` is the last of them.
        ties: p-values of the points of the front; see :func:`qnas.report.answers.ties`.
        gap: mean fall of the score from the search to the test split, as ``value``, ``low``, ``high``.
        alone: results of subnets that were trained by themselves.
        retrained: those of them that are searched points trained again, with ``search``, ``searched_key``, ``bits``.
        ranks: comparisons of the supernet's ranking with training alone.
        inside: looks inside the supernet while it trained, one subnet each: ``stage``, ``number``, ``key``, ``steps``,
            ``clip_ratios``, ``bn_std``, ``gradient_norms``.
        insights: what good subnets prefer at each training stage; see :func:`qnas.insights.insights`.
        kfolds: of every search that was made on folds, too; see :func:`qnas.kfold.kfold`.
    """

    config: Json
    environment: Json = field(default_factory=dict)
    command: list[str] | str = ""
    history: list[Json] = field(default_factory=list)
    trials: list[Json] = field(default_factory=list)
    front: Json = field(default_factory=dict)
    exports: list[Json] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    name: str = "run"
    fronts: list[Json] = field(default_factory=list)
    ties: dict[str, Json] = field(default_factory=dict)
    gap: Json = field(default_factory=dict)
    alone: list[Json] = field(default_factory=list)
    retrained: list[Json] = field(default_factory=list)
    ranks: list[Json] = field(default_factory=list)
    inside: list[Json] = field(default_factory=list)
    insights: Json = field(default_factory=dict)
    kfolds: list[Json] = field(default_factory=list)

    @property
    def points(self) -> list[Json]:
        """Return the points of the front, by falling score."""
        sign = -1.0 if self._maximised(self.score) else 1.0
        points = self.front.get("points") or []
        return sorted(points, key=lambda point: (sign * _or_inf(number(point["metrics"], self.score)), point["key"]))

    @property
    def chosen(self) -> Json | None:
        """Return the chosen point of the front, if there is one."""
        return next((point for point in self.points if point["key"] == self.front.get("chosen")), None)

    @property
    def objectives(self) -> list[Json]:
        """Return name and direction of each objective; a guess from the trials where there is no front yet."""
        if self.front.get("objectives"):
            return list(self.front["objectives"])
        names = self.metrics_seen()
        score = DEFAULT_SCORE if DEFAULT_SCORE in names or not names else names[0]
        costs = sorted((name for name in names if name != score), key=lambda name: name != "bitops")
        return [{"name": score, "direction": "max"}] + [{"name": name, "direction": "min"} for name in costs[:1]]

    @property
    def score(self) -> str:
        """Return the name of the task's metric: the first objective to maximise."""
        return next((str(o["name"]) for o in self.objectives if o["direction"] == "max"), DEFAULT_SCORE)

    def metrics(self) -> list[str]:
        """Return all metrics, the objectives first."""
        return list(dict.fromkeys([str(o["name"]) for o in self.objectives] + self.metrics_seen()))

    def metrics_seen(self) -> list[str]:
        """Return the metrics of the trials and of the front, in the order they are met."""
        entries = [*self.trials, *(self.front.get("points") or [])]
        return list(dict.fromkeys(str(name) for entry in entries for name in entry["metrics"]))

    def export_of(self, key: str) -> Json | None:
        """Return the export of a subnet of the supernet, if there is one."""
        own = (e for e in self.exports if e["key"] == key and not is_alone(e.get("stage")))
        return next(own, None)

    def _maximised(self, name: str) -> bool:
        return any(o["name"] == name and o["direction"] == "max" for o in self.objectives)


def number(values: Mapping[str, Any] | None, name: str) -> float | None:
    """Return a finite number from a mapping, or None where it is missing, not finite or not a number."""
    value = (values or {}).get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def layer_bitops(layer: Mapping[str, Any]) -> int:
    """Return the bit operations of one layer: MACs times both bit-widths."""
    return int(layer.get("macs", 0)) * int(layer.get("w_bits", 32)) * int(layer.get("a_bits", 32))


def json_safe(value: Any) -> Any:
    """Return a value that JSON can hold: what is not finite becomes None, what is not JSON its text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [json_safe(item) for item in value]
    return str(value)


def toml_safe(value: Any) -> Any:
    """Return a value that TOML can hold: like :func:`json_safe`, but None is left out, since TOML has no null."""
    if isinstance(value, Mapping):
        return {str(key): toml_safe(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [toml_safe(item) for item in value if item is not None]
    return value if isinstance(value, (bool, int, float, str)) else str(value)
