"""Which knobs good subnets prefer at each training stage, and so at each bit-width. No torch before it judges.

The third contribution of OQAT (Shen et al., "Once Quantization-Aware Training", ICCV 2021,
https://arxiv.org/abs/2010.04354): the quantization-friendly pattern under different bit-widths. There the subnets of a
search's front are looked at; here random subnets are compared at equal cost (:mod:`qnas.effects`), so that every
statement has an interval and the search's own taste plays no part. The same architectures are judged at every stage,
on the search split: what differs between stages is then not which subnets were drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qnas.effects import (
    GOOD,
    MIN_SUBNETS,
    RESAMPLES,
    Judged,
    Preference,
    differences,
    excludes_zero,
    is_mirror,
    preferences,
)
from qnas.errors import ConfigError, unknown_name
from qnas.files import write_json
from qnas.rng import generator
from qnas.space import BIT_ROLES, Sample, SearchSpace
from qnas.statistics import CONFIDENCE, Interval

if TYPE_CHECKING:
    from qnas.run import Run

FILE = "insights.json"
_CHUNK = 64  # architectures drawn at once, whatever their number, so that more go on from fewer
_PATIENCE = 1000  # draws in a row without a new subnet, after which there are taken to be no more
Json = dict[str, Any]


@dataclass(frozen=True)
class InsightSettings:
    """What is compared.

    Attributes:
        num_configs: subnets a stage; all there are where a space has fewer.
        cost: at which subnets are compared.
        stages: of training, by name; empty for all that are finished.
    """

    num_configs: int = 50
    cost: str = "bitops"
    stages: tuple[str, ...] = ()


# --- which subnets -----------------------------------------------------------------------------------------------


def draw_architectures(space: SearchSpace, n: int, seed: int) -> list[Sample]:
    """Return up to ``n`` subnets that differ in more than their bit-widths, each knob drawn uniformly.

    Their bit-widths are the lowest; :func:`dress` gives them those of a stage. More go on from fewer.
    """
    low = space.restrict(w_bits=space.scheme.w_bits[:1], a_bits=space.scheme.a_bits[:1])
    rng = generator(seed, "insights")
    found: dict[str, Sample] = {}
    in_vain = 0
    while len(found) < n and in_vain < _PATIENCE:
        for row in low.draw(rng, _CHUNK):
            sample = low.canonical(low.sample(row))
            in_vain = 0 if low.key(sample) not in found else in_vain + 1
            found.setdefault(low.key(sample), sample)
    return list(found.values())[:n]


def dress(view: SearchSpace, architecture: Mapping[str, Any], position: int, seed: int) -> Sample:
    """Return an architecture with bit-widths of a stage.

    Args:
        view: of the space at that stage. Where it leaves a choice of bit-widths, they are drawn; by the same numbers
            at every stage, so that an architecture's low and high bits stay in the same places.
        architecture: a value for every knob; those that the view does not offer are drawn, too.
        position: of the architecture among all.
        seed: of the draws.
    """
    numbers = generator(seed, "insights bits", position).random(len(view.knobs))
    sample = {}
    for knob, draw in zip(view.knobs, numbers, strict=True):
        given = architecture[knob.label]
        keep = knob.role not in BIT_ROLES and given in knob.choices
        sample[knob.label] = given if keep else knob.choices[int(draw * len(knob.choices))]
    return view.canonical(sample)


def stage_samples(view: SearchSpace, architectures: Sequence[Sample], n: int, seed: int) -> dict[int, Sample]:
    """Return up to ``n`` different subnets of a stage by position; equal positions are equal architectures.

    Where there are fewer architectures than ``n`` but bit-widths to choose, they go round with other bit-widths.
    """
    free = any(len(knob.choices) > 1 for knob in view.knobs if knob.role in BIT_ROLES)
    found: dict[str, int] = {}
    samples: dict[int, Sample] = {}
    position = in_vain = 0
    while len(samples) < n and in_vain < _PATIENCE and (free or position < len(architectures)):
        sample = dress(view, architectures[position % len(architectures)], position, seed)
        key = view.key(sample)
        in_vain = in_vain + 1 if key in found else 0
        if found.setdefault(key, position) == position:
            samples[position] = sample
        position += 1
    return samples


# --- judging -----------------------------------------------------------------------------------------------------


def choose_stages(run: Run, settings: InsightSettings) -> list[str]:
    """Return the stages to judge, in the order of training.

    Raises:
        ConfigError: one that is none, or none is finished.
    """
    finished = run.stages.finished()
    for name in settings.stages:
        if name not in finished:
            raise ConfigError(
                unknown_name("The finished training stage", name, finished, f"Run: {run.store.path}. Correct --stage.")
            )
    if not finished:
        raise ConfigError(
            f"No training stage in {run.store.path} is finished. Go on with `qnas train --resume {run.store.path}`."
        )
    return [name for name in finished if not settings.stages or name in settings.stages]


def insights(run: Run, settings: InsightSettings) -> Json:
    """Judge random subnets at every stage, tell what the good ones prefer, and write ``insights.json``; resumable.

    Returns:
        What the file holds.

    Raises:
        ConfigError: an unknown stage or cost, or too few subnets.
    """
    from qnas.components import task_metric

    names = choose_stages(run, settings)
    check_cost(run, settings.cost)
    seed = run.config.seed
    architectures = draw_architectures(run.space, settings.num_configs, seed)
    stages, judged = [], []
    for number in range(len(names)):
        entry, positions, subnets = _stage(run, settings, architectures, number, names)
        stages.append(entry)
        judged.append((positions, subnets))
    value = {
        "metric": task_metric(run.registry, run.config),
        "cost": settings.cost,
        "num_configs": settings.num_configs,
        "split": "search",
        "num_images": len(run.data.search),
        "seed": seed,
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "good": GOOD,
        "stages": stages,
        "difference": difference(stages, judged, seed),
    }
    write_json(run.store.path / FILE, value)
    return value


def help_insights(run: Run, settings: InsightSettings) -> None:
    """Do a follower's share of :func:`insights`."""

    names = choose_stages(run, settings)
    check_cost(run, settings.cost)
    for name in names:
        run.processes.serve(run.stages.evaluator(name).judge)


def check_cost(run: Run, cost: str) -> None:
    """Raise ``ConfigError`` unless the cost is registered."""
    known = [component.spec.name for component in run.registry.components("cost")]
    if cost not in known:
        raise ConfigError(unknown_name("The cost", cost, known, "Correct --cost."))


def _stage(
    run: Run, settings: InsightSettings, architectures: Sequence[Sample], number: int, names: Sequence[str]
) -> tuple[Json, list[int], Judged]:
    """Judge one stage; return its entry in the file, and what :func:`difference` needs."""
    from qnas.search import measure

    evaluator = run.stages.evaluator(names[number])
    view, metric = evaluator.supernet.space, evaluator.task.metric
    chosen = stage_samples(view, architectures, settings.num_configs, run.config.seed)
    samples = list(chosen.values())
    if len(samples) < MIN_SUBNETS:
        raise ConfigError(
            f"Space {view.name!r} has {len(samples)} different subnets at stage {names[number]!r}; what good ones "
            f"prefer takes {MIN_SUBNETS} or more to tell. Search a larger space."
        )
    where = {"stage": names[number], "stages": len(names), "number": number + 1, "total": len(samples)}
    run.recorder.record("insights", where)
    metrics = []
    with run.processes.leading():
        for start in range(0, len(samples), run.processes.size):  # a round at a time: no more is lost when stopped
            part = samples[start : start + run.processes.size]
            metrics += measure(run.store, evaluator, run.processes, part, "search", (settings.cost,))
            run.recorder.record("insight", {"done": len(metrics), "new": len(part), **where})
    scores, costs = (np.array([m[name] for m in metrics], dtype=np.float64) for name in (metric, settings.cost))
    if costs.min() <= 0:
        raise ConfigError(
            f"{settings.cost} is {costs.min():g} for subnet {view.key(samples[int(costs.argmin())])}; subnets are "
            "compared by the logarithm of a cost. Choose another --cost."
        )
    judged = Judged(view, view.indices(samples), scores, costs)
    return stage_entry(names[number], judged, samples, run.config.seed), list(chosen), judged


# --- results -----------------------------------------------------------------------------------------------------


def stage_entry(name: str, judged: Judged, samples: Sequence[Sample], seed: int) -> Json:
    """Return what the file holds of one stage."""
    fit = preferences(judged, seed)
    tested = sum(p.effect is not None and not p.mirror for p in fit.preferences)
    rows = zip(samples, judged.scores.tolist(), judged.costs.tolist(), fit.residuals, strict=True)
    return {
        "name": name,
        "bits": {role: stage_bits(judged.space, role) for role in BIT_ROLES},
        "num_subnets": len(samples),
        "r2": fit.r2,
        "num_tested": tested,
        "num_resolved": sum(p.resolved and not p.mirror for p in fit.preferences),
        "expected_by_chance": round((1 - CONFIDENCE) * tested, 2),
        "preferences": [_preference(p) for p in fit.preferences],
        "subnets": [
            {"key": judged.space.key(sample), "sample": sample, "score": score, "cost": cost, "residual": residual}
            for sample, score, cost, residual in rows
        ],
    }


def stage_bits(view: SearchSpace, role: str) -> list[int]:
    """Return the bit-widths that a stage's subnets have, ascending; 32 stands for float."""
    return sorted({int(choice) for knob in view.knobs if knob.role == role for choice in knob.choices})


def _preference(found: Preference) -> Json:
    question = found.question
    return {
        "kind": question.kind,
        "place": question.place,
        "choice": question.choice,
        "num_subnets": found.num_subnets,
        "num_with": found.num_with,
        "effect": _interval(found.effect),
        "resolved": found.resolved,
        "mirror": found.mirror,
        "gain": _interval(found.gain),
        "good_share": found.good_share,
        "all_share": found.all_share,
    }


def _interval(interval: Interval | None) -> Json | None:
    return None if interval is None else asdict(interval)


def difference(stages: Sequence[Json], judged: Sequence[tuple[Sequence[int], Judged]], seed: int) -> Json | None:
    """Return how effects at the stage of the fewest bits differ from those at the stage of the most; paired.

    Args:
        stages: entries of the file, in the order of training.
        judged: of each, the positions of its architectures, and its subnets.
        seed: of the resamples.

    Returns:
        ``None`` for one stage, or where the two share too few architectures.
    """
    bits = [float(np.mean([b for role in BIT_ROLES for b in stage["bits"][role]] or [0])) for stage in stages]
    low, high = len(bits) - 1 - int(np.argmin(bits[::-1])), int(np.argmax(bits))
    shared = sorted(set(judged[low][0]) & set(judged[high][0]))
    if low == high or len(shared) < MIN_SUBNETS:
        return None
    sides = [_part(*judged[i], shared) for i in (low, high)]
    answers = differences(sides[0], sides[1], seed)
    asked = [question for question, _ in answers]
    found = [
        {
            "kind": q.kind,
            "choice": q.choice,
            "difference": _interval(d),
            "resolved": excludes_zero(d),
            "mirror": is_mirror(asked, i),
        }
        for i, (q, d) in enumerate(answers)
    ]
    tested = sum(entry["difference"] is not None and not entry["mirror"] for entry in found)
    return {
        "low": stages[low]["name"],
        "high": stages[high]["name"],
        "num_subnets": len(shared),
        "num_tested": tested,
        "num_resolved": sum(entry["resolved"] and not entry["mirror"] for entry in found),
        "expected_by_chance": round((1 - CONFIDENCE) * tested, 2),
        "entries": found,
    }


def _part(positions: Sequence[int], judged: Judged, kept: Sequence[int]) -> Judged:
    rows = [positions.index(position) for position in kept]
    return Judged(judged.space, judged.indices[rows], judged.scores[rows], judged.costs[rows])


def read_insights(run: Path) -> Json:
    """Return what was found last; empty before that."""
    path = run / FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
