"""Looks inside the supernet while it trained, sorted by quantity and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qnas.report.data import Json, number

QUANTITIES = {
    "clip_ratios.weight": "clip ratio of weights",
    "clip_ratios.activation": "clip ratio of activations",
    "steps.weight": "step size of weights",
    "steps.activation": "step size of activations",
    "bn_std": "standard deviation before batch normalisation",
    "gradient_norms": "gradient norm of weights",
}
"""What a look inside holds, as the page names it."""


def quantities(looks: Sequence[Json]) -> dict[str, Json]:
    """Return, for each of :data:`QUANTITIES` that was recorded, ``layers`` and their ``values`` by look."""
    found = {}
    for name in QUANTITIES:
        part, _, role = name.partition(".")
        rows = [_of_role(look.get(part) or {}, role) for look in looks]
        layers = list(dict.fromkeys(layer for row in rows for layer in row))
        if layers:
            found[name] = {"layers": layers, "values": [[number(row, layer) for row in rows] for layer in layers]}
    return found


def _of_role(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Return values by layer from values by ``site.role``."""
    if not role:
        return dict(values)
    return {name[: -len(role) - 1]: value for name, value in values.items() if name.endswith(f".{role}")}
