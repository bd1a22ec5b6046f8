"""Several fronts as one, retrained nets as a front, and what a run's training took. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas.errors import ConfigError, StoreError
from qnas.report.answers import Answers
from qnas.report.data import Json
from qnas.report.volume import objectives_of
from qnas.statistics import unpack_correct

LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format


def joint_front(run: Path, fronts: Sequence[Json]) -> Json:
    """Return the fronts of several stages as one: the points that none of another stage dominates.

    Raises:
        ConfigError: the searches sought different things.
    """
    if len(fronts) == 1:
        return fronts[0]
    first = fronts[0]
    for other in fronts[1:]:
        for what in ("objectives", "metric"):
            if other.get(what) != first.get(what):
                raise ConfigError(
                    f"The last searches of the stages of {run}, {first['search']} and {other['search']}, differ in "
                    f"their {what}. Name the one to compare: {run}/searches/NAME."
                )
    metric = str(first.get("metric", "accuracy"))
    signs = [(o.name, 1.0 if o.direction == "min" else -1.0) for o in objectives_of(first)]
    points = _distinct([point for front in fronts for point in front["points"]], metric)
    vectors = [[sign * point["metrics"][name] for name, sign in signs] for point in points]
    kept = [p for p, v in zip(points, vectors, strict=True) if not any(_dominates(w, v) for w in vectors)]
    return {
        **first,
        "search": " + ".join(str(front["search"]) for front in fronts),
        "evaluations": sum(front.get("evaluations") or 0 for front in fronts),
        "chosen": _best(kept, metric),
        "hypervolume": _loosest([front.get("hypervolume") or {} for front in fronts], first["objectives"]),
        "points": kept,
    }


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tell whether values to minimise are nowhere worse and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _distinct(points: Sequence[Json], metric: str) -> list[Json]:
    """Return one point a key, the one that is best on the search split."""
    found: dict[str, Json] = {}
    for point in sorted(points, key=lambda point: -point["metrics"][metric]):
        found.setdefault(str(point["key"]), point)
    return list(found.values())


def _best(points: Sequence[Json], metric: str) -> str | None:
    best = min(points, key=lambda p: (-p["metrics"][metric], p["key"]), default=None)
    return None if best is None else str(best["key"])


def _loosest(boxes: Sequence[Json], objectives: Sequence[Json]) -> Json:
    """Return the box that holds several; none where one is not known."""
    if not all(box.get("reference") and box.get("ideal") for box in boxes):
        return {}
    box: Json = {"reference": {}, "ideal": {}}
    for objective in objectives:
        name, less = objective["name"], objective["direction"] == "min"
        box["reference"][name] = (max if less else min)(b["reference"][name] for b in boxes)
        box["ideal"][name] = (min if less else max)(b["ideal"][name] for b in boxes)
    return box


def front_of_nets(run: Path, found: Json, fronts: Sequence[Json]) -> Json:
    """Return nets that were trained again in the form of a front, without ``objectives``: none chose among them.

    Args:
        run: whose they are.
        found: what :func:`qnas.retrained.read_retrained` returns.
        fronts: of the searches whose points they were.

    Raises:
        StoreError: there is none.
    """
    nets = found["nets"]
    if not nets:
        raise StoreError(f"{run} trained no net again. Name one of its searches: {run}/searches/NAME.")
    metric = str(nets[0]["metric"])
    points = _distinct([_point(net) for net in nets], metric)
    return {
        "search": "nets trained again",
        "strategy": ", ".join(dict.fromkeys(str(front.get("strategy")) for front in fronts)),
        "objectives": None,
        "constraints": fronts[0].get("constraints", []) if fronts else [],
        "evaluations": sum(front.get("evaluations") or 0 for front in fronts),
        "num_images": nets[0]["num_images"],
        "metric": metric,
        "chosen": _best(points, metric),
        "hypervolume": found.get("hypervolume") or {},
        "points": points,
    }


def _point(net: Json) -> Json:
    metrics, errors = net["metrics"], net["standard_error"]
    return {
        "key": net["key"],
        "sample": net["sample"],
        "metrics": metrics["search"],
        "standard_error": errors["search"],
        "test": {**metrics["test"], "standard_error": errors["test"]},
    }


def answers_of_nets(found: Json) -> Answers:
    """Return what the nets answered on the test split; of one key, the net that :func:`front_of_nets` takes."""
    kept: dict[str, Any] = {}
    for net in sorted(found["nets"], key=lambda net: -net["metrics"]["search"][net["metric"]]):
        packed = bytes.fromhex(net["correct"]["test"])
        if not packed:  # the task does not tell which images are right
            continue
        kept.setdefault(str(net["key"]), unpack_correct(packed, net["num_images"]["test"]))
    return kept


def supernet_passes(run: Path) -> float | None:
    """Return the image passes that the supernet's training took, as its last checkpoint states; None without one."""
    paths = sorted(run.glob("stages/*/checkpoint.safetensors"), key=lambda p: int(p.parent.name.partition("-")[0] or 0))
    if not paths:
        return None
    try:
        progress = json.loads(_metadata(paths[-1])["qnas"])["progress"]
        return float(progress["image_passes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"The checkpoint {paths[-1]} does not say how long it was trained: {error!r}. Restore it, or make it anew "
            f"by `qnas run --resume {run}`."
        ) from error


def _metadata(path: Path) -> Mapping[str, Any]:
    """Return the metadata of a safetensors file: its header is JSON after its length in 8 bytes, little-endian."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        metadata: Mapping[str, Any] = json.loads(file.read(length))["__metadata__"]
    return metadata
