"""How much of the objectives' space a front dominates, as a share of a box that is stated with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qnas.costs import Cost, sample_costs
from qnas.protocols import Objective
from qnas.space import SearchSpace

Values = Mapping[str, float]


@dataclass(frozen=True)
class Box:
    """Between the reference point, the worst corner, and the ideal point, by objective."""

    reference: dict[str, float]
    ideal: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return both points."""
        return asdict(self)


def objective_box(
    space: SearchSpace,
    costs: Mapping[str, Cost],
    metric: str,
    objectives: Sequence[Objective],
    measured: Values | None = None,
) -> Box:
    """Return the box that every search of a space shares, whatever it finds.

    The reference point is an accuracy of 0 at the cost of the largest subnet (all knobs at their last choices); the
    ideal point an accuracy of 1 for nothing. A cost of which more is better goes from 0 to that of the largest subnet.
    ``measured``: costs of the largest subnet that are measured.
    """
    largest = {**sample_costs(space, costs, space.highest()), **(measured or {})}
    reference, ideal = {}, {}
    for objective in objectives:
        top = 1.0 if objective.name == metric else float(largest[objective.name])
        worst, best = (0.0, top) if objective.direction == "max" else (top, 0.0)
        reference[objective.name], ideal[objective.name] = worst, best
    return Box(reference, ideal)


def hypervolume(points: Sequence[Values], objectives: Sequence[Objective], reference: Values, ideal: Values) -> float:
    """Return the share of the box that is dominated, from 0 to 1 (Zitzler and Thiele 1999, normalised).

    Args:
        points: values by objective's name; those beyond the box count as on its side.
        objectives: one or more.
        reference: the box's worst corner.
        ideal: its best corner.
    """
    from pymoo.indicators.hv import HV

    if not points:
        return 0.0
    rows = np.array([[_lost(p[o.name], reference[o.name], ideal[o.name]) for o in objectives] for p in points])
    return float(HV(ref_point=np.ones(len(objectives)))(rows))


def _lost(value: float, worst: float, best: float) -> float:
    """Return where a value lies between the best (0) and the worst (1)."""
    if worst == best:
        return 0.0
    return min(max((value - best) / (worst - best), 0.0), 1.0)
