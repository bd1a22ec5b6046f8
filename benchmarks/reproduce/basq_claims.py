"""What ``basq.py`` asks of its trained supernets, and the summary over seeds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import shared

from qnas.rank import draw_distinct
from qnas.run import Run
from qnas.space import Sample
from qnas_plugins.quantizers.basq import BASQ

Json = dict[str, Any]


def sizes(quick: bool) -> Mapping[str, int]:
    """Return how many configurations the parts take."""
    return {"spread": 4, "random": 2} if quick else {"spread": 100, "random": 20}


def applies(part: str, run: Run) -> bool:
    """Tell whether a part can be asked of a run: branches are searched where there are several."""
    several = any(len(knob.choices) > 1 for knob in run.space.knobs if knob.role == "quantizer")
    if part == "clips":
        return run.config.quantization.act_quantizer == "basq"
    return several or part != "spread"


def clips(run: Run, quick: bool) -> Json:
    """Return the clip values of each branch at the end of training, over the sites that have branches."""
    found: dict[str, list[float]] = {}
    for quantizer in run.stages.evaluator().supernet.quantizers():
        if isinstance(quantizer, BASQ) and quantizer.plain is None:
            for branch, decay in enumerate(quantizer.decays):
                alpha = float(quantizer.alphas[f"2_{branch}"].detach())
                found.setdefault(f"{branch}: {decay:g}", []).append(alpha)
    return {"alphas": found}


def spread(run: Run, quick: bool) -> Json:
    """Return the accuracies of random configurations on the search split (Figure 4).

    ``moving``: with the statistics that batch normalisations have after training; ``calibrated``: with their own.
    """
    evaluator = run.stages.evaluator()
    moving = copy.copy(evaluator)
    moving.calibrators = ()
    samples = draw_distinct(evaluator.supernet.space, sizes(quick)["spread"], run.config.seed)
    metric = evaluator.task.metric
    return {
        name: [judge.evaluate(sample, "search").metrics[metric] for sample in samples]
        for name, judge in (("moving", moving), ("calibrated", evaluator))
    }


def searched(run: Run, quick: bool) -> Json:
    """Return test accuracies: of the net that the search chose, and of random ones; and what the folds say.

    Where there is nothing to choose, the search judges the one net.
    """
    front = next(iter(run.fronts()), None) or run.search()
    metric = front["metric"]
    chosen = next(point for point in front["points"] if point["key"] == front["chosen"])
    space = run.stages.space()
    random = _tests(run, draw_distinct(space, min(sizes(quick)["random"], space.num_samples), run.config.seed + 1))
    return {
        "chosen": {"search": chosen["metrics"][metric], "test": chosen["test"][metric]},
        "random": random,
        "evaluations": front["evaluations"],
    }


def _tests(run: Run, samples: list[Sample]) -> list[float]:
    evaluator = run.stages.evaluator()
    return [evaluator.evaluate(sample, "test").metrics[evaluator.task.metric] for sample in samples]


def finetuned(run: Run, quick: bool) -> Json:
    """Return the test accuracy of the chosen net before and after its batch normalisations and clips were finetuned."""
    if not run.fronts():
        run.search()
    (result,) = run.retrain()
    before = run.fronts()[0]
    chosen = next(point for point in before["points"] if point["key"] == before["chosen"])
    metric = before["metric"]
    after = run.evaluate(result["sample"], "test", f"alone/{result['id']}").metrics[metric]
    return {"before": chosen["test"][metric], "after": after}


# --- over seeds -------------------------------------------------------------------------------------------------------


def summary(seeds: Mapping[str, Any]) -> Json:
    """Return what the tables show, over the seeds that have it."""
    names = dict.fromkeys(name for seed in seeds.values() for name in seed["arms"])
    found: Json = {}
    for name in names:
        entries = [seed["arms"][name] for seed in seeds.values() if name in seed["arms"]]
        found[name] = {"loss": shared.interval([entry["history"][-1]["losses"][0] for entry in entries])}
        for part, means in (
            ("clips", _clips_means),
            ("spread", _spread_means),
            ("search", _search_means),
            ("finetune", _finetune_means),
        ):
            values = [means(entry[part]) for entry in entries if part in entry]
            if values:
                found[name][part] = {key: shared.interval([value[key] for value in values]) for key in values[0]}
    return found


def _clips_means(entry: Json) -> Json:
    return {name: float(np.mean(values)) for name, values in entry["alphas"].items()}


def _spread_means(entry: Json) -> Json:
    found = {}
    for kind in ("moving", "calibrated"):
        values = np.array(entry[kind])
        found |= {f"{kind}, least": float(values.min()), f"{kind}, mean": float(values.mean())}
        found |= {f"{kind}, most": float(values.max()), f"{kind}, deviation": float(values.std(ddof=1))}
    return found


def _search_means(entry: Json) -> Json:
    chosen, random = entry["chosen"], float(np.mean(entry["random"]))
    return {
        "chosen, search": chosen["search"],
        "chosen, test": chosen["test"],
        "random, test": random,
        "gain": chosen["test"] - random,
    }


def _finetune_means(entry: Json) -> Json:
    return {**entry, "gain": entry["after"] - entry["before"]}
