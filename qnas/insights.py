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
    NETWORK,
    RESAMPLES,
    Judged,
    Preference,
    differences,
    excludes_zero,
    in_order,
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
MOST_SAID = 3  # choices that a sentence names on each side
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
        "metric": run.registry.load("task", run.config.task)().metric,
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
            metrics += measure(run.store, evaluator, run.processes, part, "search")
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


# --- in words ----------------------------------------------------------------------------------------------------


def by_choice(stages: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, Any], list[Json | None]]]:
    """Return preferences by kind, then by place and choice: one a stage, ``None`` where a stage has no such choice."""
    known = [{(p["kind"], p["place"], p["choice"]): p for p in stage["preferences"]} for stage in stages]
    names = list(dict.fromkeys(name for found in known for name in found))
    ordered: dict[str, dict[tuple[str, Any], list[Json | None]]] = {}
    for kind in dict.fromkeys(name[0] for name in names):
        own = [name for name in names if name[0] == kind]
        choices = in_order(name[2] for name in own)
        for place in dict.fromkeys(name[1] for name in own):
            for choice in (c for c in choices if (kind, place, c) in own):
                ordered.setdefault(kind, {})[place, choice] = [found.get((kind, place, choice)) for found in known]
    return ordered


def effect_said(preference: Mapping[str, Any] | None) -> str:
    """Return an effect in percentage points, with half of its interval: ``+1.2 ± 0.8``."""
    effect = preference and preference["effect"]
    if not effect:
        return "-"
    return f"{100 * effect['value']:+.1f} ± {50 * (effect['high'] - effect['low']):.1f}"


def sentence(stage: Mapping[str, Any], cost: str) -> str:
    """Return in words what the good subnets of a stage prefer, the surest first."""
    n = stage["num_subnets"]
    if not stage["num_resolved"]:
        return f"{stage['name']}: nothing is resolved with {n} subnets; try --configs {4 * n}."
    found = _surest(stage["preferences"], "effect")
    sides = [[(named(p), p["effect"]["value"]) for p in found if s * p["effect"]["value"] > 0] for s in (1, -1)]
    parts = [f"{verb} {_listed(side)}" for verb, side in zip(("prefer", "avoid"), sides, strict=True) if side]
    return f"{stage['name']}: at equal {cost}, good subnets {'; they '.join(parts)}. {_chance(stage)}"


def difference_said(found: Mapping[str, Any]) -> str:
    """Return in words what two stages prefer differently."""
    low, high = found["low"], found["high"]
    sure = _surest(found["entries"], "difference")
    if not sure:
        return f"{low} against {high}: no difference between what they prefer is resolved."
    listed = _listed([(named(e), e["difference"]["value"]) for e in sure])
    return f"{low} against {high}, the same architectures: effects differ for {listed}. {_chance(found)}"


def _chance(found: Mapping[str, Any]) -> str:
    count, chance = found["num_resolved"], found["expected_by_chance"]
    return (
        f"{count} of {found['num_tested']} {'is' if count == 1 else 'are'} resolved; by chance alone about "
        f"{chance:.1f} would be{', so these may be chance' if count <= 2 * chance else ''}."
    )


def _surest(found: Sequence[Mapping[str, Any]], what: str) -> list[Mapping[str, Any]]:
    """Return what is resolved, the surest first; of two choices that mirror each other the one above 0."""
    kept = []
    for i, entry in enumerate(found):
        twin = (
            found[i - 1] if entry["mirror"] else found[i + 1] if i + 1 < len(found) and found[i + 1]["mirror"] else None
        )
        if entry["resolved"] and (twin is None or entry[what]["value"] > 0):
            kept.append(entry)
    return sorted(kept, key=lambda entry: _doubt(entry[what]))


def _doubt(interval: Mapping[str, float]) -> float:
    """Return the width of an interval as a multiple of its distance from 0: small where an effect is sure."""
    return (interval["high"] - interval["low"]) / abs(interval["value"])


def _listed(found: Sequence[tuple[str, float]]) -> str:
    shown = [f"{name} ({100 * value:+.1f} points)" for name, value in found[:MOST_SAID]]
    rest = len(found) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def named(found: Mapping[str, Any]) -> str:
    """Return a choice in words: ``kernel 5 in stage2``."""
    place = found.get("place", NETWORK)
    return f"{found['kind']} {found['choice']}{'' if place == NETWORK else f' in {place}'}"
