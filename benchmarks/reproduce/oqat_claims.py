"""What is measured on the supernets of ``oqat.py``, and what it says of OQAT's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas.alone import AloneSettings
from qnas.config import load_config
from qnas.costs import cost_of
from qnas.rank import draw_distinct
from qnas.run import Run
from qnas.search import measure
from qnas.space import Sample, SearchSpace
from qnas.statistics import Interval, kendall, mean_interval, unpack_correct
from qnas_plugins.costs.bitops import BITOPS

BITS = (4, 3, 2)
CONFIGS = 50
EVALUATIONS = 40  # of the search at 2 bits
NEIGHBOURS = 3  # random nets at each budget
WIDTH = 0.1  # they cost up to so much less than the budget
Json = dict[str, Any]


def _answers(run: Run, stage: str, samples: Sequence[Sample], split: str) -> np.ndarray[Any, Any]:
    """Return ``[n, images]``: which images of a split each subnet answers right, from the store where it was judged."""
    evaluator = run.stages.evaluator(stage)
    found = measure(run.store, evaluator, run.processes, samples, split)
    rows = []
    for sample in samples:
        stored = run.store.cached(evaluator.cache_key(sample, split))
        assert stored is not None
        rows.append(unpack_correct(stored[1], len(run.data.split(split))))
    assert len(found) == len(rows)
    return np.array(rows)


def _at(space: SearchSpace, sample: Mapping[str, Any]) -> Sample:
    """Return the same architecture with the bits of another space."""
    return {**sample, **{knob.label: knob.choices[0] for knob in space.knobs if knob.role in ("w_bits", "a_bits")}}


# --- ranking -----------------------------------------------------------------------------------------------------


def ranks(plain: Run, run: Run, quick: bool) -> Json:
    """Judge the same architectures in float and at 4, 3 and 2 bits, on images of the search split.

    Returns:
        ``tau`` by bits: agreement of the ranking in float with that at these bits, on the same images. These images'
        chance is in both rankings, and a part of the agreement. So ``halves`` by bits are of one half of the images
        against the other half, the mean of both ways: ``tau``; its ``ceiling``, the geometric mean of what float and
        these bits reach with themselves; and ``correlation``, that of the accuracies without the images' noise
        (Spearman's correction for attenuation, on sin(pi tau / 2)). ``regret`` by bits: how much accuracy at these bits
        is lost where the best architecture within a budget is chosen by float accuracy instead (chosen on one half of
        the images, compared on the other, both ways, mean over budgets).
    """
    space = plain.stages.space()
    samples = draw_distinct(space, 6 if quick else CONFIGS, 0)
    answers = {"float": _answers(plain, "float", samples, "search")}
    for bits in BITS:
        view = run.stages.space(f"{bits}-bit")
        answers[f"{bits}-bit"] = _answers(run, f"{bits}-bit", [_at(view, s) for s in samples], "search")
    costs = [sum(layer.macs for layer in space.layers(sample)) for sample in samples]
    scores = {name: rows.mean(1) for name, rows in answers.items()}
    return {
        "num_configs": len(samples),
        "num_images": int(answers["float"].shape[1]),
        "scores": {name: values.tolist() for name, values in scores.items()},
        "macs": costs,
        "tau": {name: vars(kendall(scores["float"], scores[name])) for name in scores if name != "float"},
        "tau_by_macs": {name: kendall(costs, scores[name]).value for name in scores},
        "halves": {name: _apart(answers["float"], rows) for name, rows in answers.items() if name != "float"},
        "regret": {name: _regret(answers["float"], rows, costs) for name, rows in answers.items() if name != "float"},
    }


def _halves(answers: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the accuracies by even and by odd images."""
    return answers[:, ::2].mean(1), answers[:, 1::2].mean(1)


def _apart(plain: np.ndarray[Any, Any], own: np.ndarray[Any, Any]) -> Json:
    """Return how two rankings agree, each on the half of the images that the other is not on."""
    first, second = _halves(plain), _halves(own)
    cross = float(np.mean([kendall(first[0], second[1]).value, kendall(first[1], second[0]).value]))
    with_self = [kendall(*halves).value for halves in (first, second)]
    r, limits = (np.sin(np.pi / 2 * np.asarray(tau)) for tau in (cross, with_self))
    known = bool((limits > 0).all())
    ceiling = float(np.sqrt(np.prod(with_self))) if known else 0.0
    return {"tau": cross, "ceiling": ceiling, "correlation": float(r / np.sqrt(limits.prod())) if known else None}


def _regret(plain: np.ndarray[Any, Any], own: np.ndarray[Any, Any], costs: Sequence[int]) -> float:
    budgets = np.quantile(costs, [0.25, 0.5, 0.75, 1.0])
    lost = []
    for select, report in ((0, 1), (1, 0)):
        by_float, by_own = _halves(plain)[select], _halves(own)[select]
        truth = _halves(own)[report]
        for budget in budgets:
            within = np.flatnonzero(np.asarray(costs) <= budget)
            lost.append(truth[within[np.argmax(by_own[within])]] - truth[within[np.argmax(by_float[within])]])
    return float(np.mean(lost))


# --- search ------------------------------------------------------------------------------------------------------


def uniform_net(space: SearchSpace, kernel: int, expansion: int, depth: int) -> Sample:
    """Return the net with the same kernel, expansion and depth everywhere, at the largest resolution."""
    wanted = {"kernel": kernel, "expansion": expansion, "depth": depth}
    sample = space.highest()
    for knob in space.knobs:
        value = wanted.get(knob.label.rpartition(".")[2])
        if value in knob.choices:
            sample[knob.label] = value
    return space.canonical(sample)


FIXED = {  # between the cheapest and the dearest; (3, 6, 1) is closest to MobileNetV2's own kernel and expansion
    "kernel 3, expansion 3, depth 2": (3, 3, 2),
    "kernel 3, expansion 6, depth 1": (3, 6, 1),
    "kernel 5, expansion 6, depth 1": (5, 6, 1),
}


def searched(run: Run, quick: bool) -> Json:
    """Search at 2 bits; compare what is found with fixed and with random nets of equal BitOPs, on the test split.

    At each fixed net's BitOPs: the point of the front with the best accuracy on the search split that costs no more;
    and random nets that cost as much as it or up to 10% less, whose mean stands for choosing blindly.
    """
    stage, space = "2-bit", run.stages.space("2-bit")
    changes = {"strategy": "evolution", "evaluations": 8 if quick else EVALUATIONS, "options": {"population": 20}}
    config = run.config.model_dump(mode="json", exclude_none=True)
    front = run.search(load_config(config, {"search": {**changes, "objectives": ["accuracy", "bitops"]}}), stage)
    evaluator = run.stages.evaluator(stage)
    budgets = {}
    for number, (name, shape) in enumerate(list(FIXED.items())[: 1 if quick else None]):
        fixed = uniform_net(space, *shape)
        budget = cost_of(space.layers(fixed), BITOPS)
        within = [p for p in front["points"] if p["metrics"]["bitops"] <= budget]
        if not within:
            continue
        found = max(within, key=lambda p: p["metrics"]["accuracy"])
        random = neighbours(space, budget, 2 if quick else NEIGHBOURS, number)
        tests = [m["accuracy"] for m in measure(run.store, evaluator, run.processes, [fixed, *random], "test")]
        budgets[name] = {
            "bitops": budget,
            "searched": found["test"]["accuracy"],
            "searched_bitops": found["metrics"]["bitops"],
            "sample": found["sample"],
            "fixed": tests[0],
            "random": tests[1:],
        }
    return {"evaluations": front["evaluations"], "num_images": front["num_images"], "budgets": budgets}


def neighbours(space: SearchSpace, budget: int, n: int, seed: int) -> list[Sample]:
    """Return random architectures that cost as much as the budget, or up to 10% less."""
    from qnas.rng import generator

    found: dict[str, Sample] = {}
    rng = generator(seed, "neighbours")
    for _ in range(100):
        for row in space.draw(rng, 256):
            sample = space.canonical(space.sample(row))
            if (1 - WIDTH) * budget <= cost_of(space.layers(sample), BITOPS) <= budget:
                found[space.key(sample)] = sample
            if len(found) == n:
                return list(found.values())
    return list(found.values())


# --- training again ----------------------------------------------------------------------------------------------


def retrained(run: Run, search: Mapping[str, Any], quick: bool) -> Json:
    """Train the subnet that the search found at the middle budget again, alone, at 2 bits; test accuracies.

    ``supernet``: its weights as they are in the supernet. ``finetuned``: from these, through the 2-bit stage again.
    ``float``: from the float supernet's weights, as many epochs as the supernet had at all bits, all at 2 bits.
    """
    budgets = list(search["budgets"].values())
    if not budgets:
        return {}
    sample = budgets[len(budgets) // 2]["sample"]
    found: Json = {"supernet": run.evaluate(sample, "test", "2-bit").metrics["accuracy"], "passes": {"supernet": 0.0}}
    for name, start in (("finetuned", "supernet"), ("float", "scratch")):
        result = run.train_alone(sample, AloneSettings(start=start, seed=run.config.seed, stage="2-bit"))  # type: ignore[arg-type]
        found[name] = result["metrics"]["test"]["accuracy"]
        found["passes"][name] = result["image_passes"]
    space = run.stages.space("2-bit")
    macs = [sum(layer.macs for layer in space.layers(s)) for s in (sample, space.highest())]
    return {**found, "relative_macs": macs[0] / macs[1]}


# --- over seeds --------------------------------------------------------------------------------------------------


def summary(seeds: Mapping[str, Any]) -> Json:
    """Return differences and correlations over seeds with their intervals, and whether they are resolved."""
    found: Json = {"arms": {}, "tau": {}, "regret": {}, "searched": {}, "retrained": {}}
    for first, second in (("inherit", "direct"), ("restart", "direct"), ("inherit", "restart")):
        for what in ("largest", "smallest", "random"):
            values = [s["arms"][first][what] - s["arms"][second][what] for s in seeds.values()]
            found["arms"][f"{first} - {second}, {what}"] = _over(values)
    ranked = [s["ranks"] for s in seeds.values() if "ranks" in s]
    for bits in (f"{b}-bit" for b in BITS if ranked):
        found["tau"][bits] = _over([r["tau"][bits]["value"] for r in ranked])
        for name in ("tau", "ceiling", "correlation"):
            known = [r["halves"][bits][name] for r in ranked if r["halves"][bits][name] is not None]
            found["tau"][bits][f"halves_{name}"] = _over(known) if known else None
        found["regret"][bits] = _over([r["regret"][bits] for r in ranked])
    budgets = [s["searched"]["budgets"] for s in seeds.values() if "searched" in s]
    for name in FIXED:
        own = [b[name] for b in budgets if name in b]
        if own:
            found["searched"][name] = {
                "searched - fixed": _over([b["searched"] - b["fixed"] for b in own]),
                "searched - random": _over([b["searched"] - float(np.mean(b["random"])) for b in own if b["random"]]),
            }
    again = [s["retrained"] for s in seeds.values() if s.get("retrained")]
    if again:
        for name in ("finetuned", "float"):
            found["retrained"][f"{name} - supernet"] = _over([r[name] - r["supernet"] for r in again])
    found["scenarios"] = scenarios(seeds)
    return found


def _over(values: Sequence[float]) -> Json:
    interval: Interval = mean_interval(values)
    several = len(values) > 1
    resolved = several and (interval.low > 0 or interval.high < 0)
    ends = {"low": interval.low, "high": interval.high} if several else {}
    return {"values": list(values), "mean": interval.value, "resolved": bool(resolved), **ends}


def scenarios(seeds: Mapping[str, Any]) -> Json:
    """Return MAC-weighted image passes of each recipe for N deployment scenarios, from those measured; means of seeds.

    Retraining one net takes what ``float`` of :func:`retrained` took: 7 epochs of a net of the middle budget, from the
    float supernet's weights (from new ones it takes more).
    """
    again = [s["retrained"]["passes"]["float"] for s in seeds.values() if s.get("retrained")]
    if not again:
        return {}
    plain = float(np.mean([s["float_passes"] for s in seeds.values()]))
    joint = float(np.mean([s["passes"]["2-bit"] for s in seeds.values()]))
    at_four = float(np.mean([s["passes"]["4-bit"] for s in seeds.values()]))
    retrain = float(np.mean(again))
    recipes = {
        "OQAT": lambda n: plain + joint,
        "NAS, then quantize": lambda n: plain + n * retrain,
        "quantization-aware search, then retrain": lambda n: plain + n * (at_four + retrain),
    }
    return {
        "passes": {"float": plain, "4, 3 and 2 bits": joint, "4 bits": at_four, "retraining": retrain},
        "by": {name: {str(n): rule(n) for n in (1, 3, 10, 40)} for name, rule in recipes.items()},
    }
