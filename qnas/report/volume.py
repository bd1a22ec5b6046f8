"""Hypervolumes of several searches or runs in one box, so that they can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qnas.protocols import Objective
from qnas.report.data import Json, number

Values = Mapping[str, float]


@dataclass(frozen=True)
class Box:
    """Where a hypervolume is measured: from the worst values that count, ``reference``, to the best, ``ideal``."""

    reference: dict[str, float]
    ideal: dict[str, float]
    source: str


def objectives_of(front: Json) -> list[Objective]:
    """Return the objectives of a front."""
    return [Objective(str(o["name"]), str(o["direction"])) for o in front.get("objectives") or []]


def complete(values: Iterable[Mapping[str, object]], objectives: Sequence[Objective]) -> list[Values]:
    """Return the objectives' values of those entries that have all of them."""
    found: list[Values] = []
    for entry in values:
        numbers = {o.name: number(entry, o.name) for o in objectives}
        if all(value is not None for value in numbers.values()):
            found.append({name: float(value) for name, value in numbers.items() if value is not None})
    return found


def common_box(fronts: Iterable[Json], values: Sequence[Values], objectives: Sequence[Objective]) -> Box | None:
    """Return one box for several fronts: the loosest reference and the best ideal that are recorded with them.

    Where not all fronts have one, the worst and best of ``values`` stand in.

    Returns:
        ``None`` where the box would have no volume.
    """
    recorded = [front.get("hypervolume") or {} for front in fronts]
    names = {o.name for o in objectives}
    if recorded and all(
        names <= set(r.get("reference") or {}) and names <= set(r.get("ideal") or {}) for r in recorded
    ):
        references, ideals = ([r[part] for r in recorded] for part in ("reference", "ideal"))
        source = "the loosest reference and the best ideal that the searches recorded"
    else:
        references = ideals = list(values)
        source = "the worst and the best values found, since not every search recorded its own"
    if not references:
        return None
    worst = {o.name: (max if o.direction == "min" else min)(r[o.name] for r in references) for o in objectives}
    best = {o.name: (min if o.direction == "min" else max)(r[o.name] for r in ideals) for o in objectives}
    return None if any(worst[name] == best[name] for name in names) else Box(worst, best, source)


def volume(values: Iterable[Mapping[str, object]], objectives: Sequence[Objective], box: Box | None) -> float | None:
    """Return the share of the box that the values dominate; ``None`` without a box."""
    from qnas.hypervolume import hypervolume

    if box is None:
        return None
    return float(hypervolume(complete(values, objectives), objectives, box.reference, box.ideal))
