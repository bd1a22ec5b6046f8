"""What ``multiquant.py`` asks of its trained nets, and the summary over seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from qnas.bits import set_bits
from qnas.config import load_config
from qnas.evaluate import Evaluator
from qnas.run import Run
from qnas.space import Sample, SearchSpace
from qnas.statistics import kendall, mean_interval, paired

Json = dict[str, Any]
IMAGES = 2048  # training images that gradients are taken of
TARGETS = (3, 4, 5)  # average bit-widths of weights and activations in the search for mixed precision


def at_bits(space: SearchSpace, bits: int) -> Sample:
    """Return the net with one bit-width in all layers but the first and the last."""
    return set_bits(space, space.highest(), str(bits), str(bits))


def without_recalibration(evaluator: Evaluator) -> Evaluator:
    """Return the evaluator without calibrators: batch normalisation has the running statistics of training."""
    plain = copy.copy(evaluator)
    plain.calibrators = ()
    return plain


def uniform(run: Run, only: int | None) -> Json:
    """Return test accuracies with one bit-width in all layers, with statistics recalibrated and without."""
    evaluator = run.stages.evaluator()
    plain = without_recalibration(evaluator)
    space = evaluator.supernet.space
    found: Json = {"recalibrated": {}, "running": {}}
    for bits in [only] if only else run.config.quantization.w_bits:
        sample = at_bits(space, bits)
        found["recalibrated"][str(bits)] = evaluator.evaluate(sample, "test").metrics["accuracy"]
        found["running"][str(bits)] = plain.evaluate(sample, "test").metrics["accuracy"]
    if run.stages.all()[-1].name == "ptq":
        judge = run.stages.evaluator("float")
        found["float"] = judge.evaluate(judge.supernet.space.highest(), "test").metrics["accuracy"]
    return found


def competition(run: Run) -> Json:
    """Return loss and gradient of the weights at each bit-width, at the end of the last stage.

    Under hard labels and, where the checkpoint holds them, under the online adaptive labels that the next epoch would
    learn; ``cosine`` is that of each bit-width's gradient with the sum of all.
    """
    supernet = run.stages.supernet()
    supernet.train()
    split = run.data.train.subset(IMAGES, run.config.seed, "competition")
    images, labels = run.data.pixels.normalise(split.loaded()), split.labels
    with safe_open(run.trained_checkpoint(), framework="pt") as file:
        names = file.keys()
        adaptive = file.get_tensor("supervision.labels") if "supervision.labels" in names else None
    targets = {"hard": torch.nn.functional.one_hot(labels, run.data.num_classes).float()}
    if adaptive is not None:
        targets["adaptive"] = 0.5 * targets["hard"] + 0.5 * adaptive[labels].float()
    found: Json = {"history": run.progress().history}
    for name, target in targets.items():
        gradients, at = {}, {}
        for bits in run.config.quantization.w_bits:
            loss, gradient = _gradient(supernet, at_bits(supernet.space, bits), images, target)
            gradients[bits] = gradient
            at[str(bits)] = {"loss": loss, "norm": float(gradient.norm())}
        total = torch.stack(list(gradients.values())).sum(0)
        for bits, gradient in gradients.items():
            at[str(bits)]["cosine"] = float(torch.nn.functional.cosine_similarity(gradient, total, dim=0))
        found[name] = at
    return found


def _gradient(supernet: Any, sample: Sample, images: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    weights = supernet.parameter_groups()["weights"]
    supernet.zero_grad(set_to_none=True)
    supernet.activate(sample)
    with supernet.keeping_statistics():
        loss = torch.nn.functional.cross_entropy(supernet(images), target)
        loss.backward()
    gradient = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    return float(loss.detach()), torch.cat([g.flatten() for g in gradient])


# --- mixed precision -------------------------------------------------------------------------------------------------


def mixed(run: Run, quick: bool) -> Json:
    """Return the predictor's scores, and nets of mixed precision against one bit-width at equal averages."""
    first = run.config.seed == 0  # more of one seed: 1.2 s a subnet
    samples, evaluations, measured = (24, 60, 3) if quick else (600 if first else 300, 5000, 10)
    targets = (4,) if quick else TARGETS
    found: Json = {"predictors": {}, "searched": {}}
    samplers = ("uniform", "monte-carlo") if first else ("monte-carlo",)
    for sampler in samplers:  # the last one is searched on
        settings = run.config.predictor.model_copy(
            update={"sampler": sampler, "samples": samples if sampler == "monte-carlo" or quick else samples // 3}
        )
        found["predictors"][sampler] = _predictor(run, settings)
    if len(samplers) > 1:
        found["sampling"] = _sampling(run, samples)
    for target in targets:
        config = load_config(
            run.config.model_dump(mode="json", exclude_none=True),
            {
                "search": {
                    "strategy": "genetic",
                    "options": {},
                    "objectives": ["accuracy"],
                    "constraints": [f"avg_w_bits<={target}", f"avg_a_bits<={target}"],
                    "predictor": "mlp",
                    "evaluations": evaluations,
                    "measured": measured,
                }
            },
        )
        found["searched"][str(target)] = _against_uniform(run, run.search(config), target)
    return found


def _predictor(run: Run, settings: Any) -> Json:
    from qnas.predictor import StagePredictor

    stage = StagePredictor(run, settings)
    value = stage.build()
    fitted = stage.fit()
    scores = [subnet["accuracy"] for subnet in value["subnets"]]
    return {
        "samples": len(scores),
        "lowest": min(scores),
        "highest": max(scores),
        "samples_per_second": stage.speed(),
        **{name: fitted[name] for name in ("fitted", "held_out", "score")},
    }


def _sampling(run: Run, samples: int) -> Json:
    """Return how predictors fitted to equally many samples of both samplers order the same other Monte Carlo samples.

    All, and those of the lowest and the highest third of measured accuracy, which uniform samples hardly reach.
    """
    from qnas.predictor import draw_samples

    evaluator, space = run.stages.evaluator(), run.stages.space()
    n = samples // 3
    drawn = {}
    for sampler, number in (("uniform", n), ("monte-carlo", samples)):
        settings = run.config.predictor.model_copy(update={"sampler": sampler, "samples": number})
        drawn[sampler] = draw_samples(run.registry, space, settings, run.config.seed)

    def scores(subnets: Sequence[Sample]) -> np.ndarray[Any, Any]:
        stored = (run.store.cached(evaluator.cache_key(sample, "search")) for sample in subnets)
        return np.array([entry[0]["accuracy"] for entry in stored if entry is not None])

    others = drawn["monte-carlo"][n:]
    measured, encoded = scores(others), space.encode(space.indices(others))
    order = np.argsort(measured, kind="stable")
    third = len(order) // 3
    groups = {"all": order, "lowest third": order[:third], "highest third": order[-third:]}
    found: Json = {"fitted": n, "scored": len(others)}
    for sampler in drawn:
        learned = drawn[sampler][:n]
        predictor = run.registry.load("predictor", "mlp")(seed=0)
        predictor.fit(space.encode(space.indices(learned)), scores(learned))
        predicted = predictor.predict(encoded)
        found[sampler] = {
            name: kendall(predicted[rows].tolist(), measured[rows].tolist()).value for name, rows in groups.items()
        }
    return found


def _against_uniform(run: Run, front: Mapping[str, Any], bits: int) -> Json:
    """Return the searched net's test accuracy against that of one bit-width, image by image."""
    evaluator = run.stages.evaluator()
    space = evaluator.supernet.space
    point = next(p for p in front["points"] if p["key"] == front["chosen"])
    first, second = (evaluator.evaluate(s, "test") for s in (point["sample"], at_bits(space, bits)))
    test = paired(first.correct, second.correct)
    return {
        "mixed": first.metrics,
        "uniform": second.metrics,
        "predicted": front["predictor"]["predicted"][point["key"]],
        "search": point["metrics"]["accuracy"],
        "difference": {"value": test.difference.value, "low": test.difference.low, "high": test.difference.high},
        "p_value": test.p_value,
        "w_bits": [sample_bits(point["sample"], knob) for knob in space.knobs if knob.role == "w_bits"],
        "a_bits": [sample_bits(point["sample"], knob) for knob in space.knobs if knob.role == "a_bits"],
    }


def sample_bits(sample: Mapping[str, Any], knob: Any) -> int:
    """Return the bit-width of one knob."""
    return int(sample[knob.label])


# --- over seeds ------------------------------------------------------------------------------------------------------


def summary(seeds: Mapping[str, Json]) -> Json:
    """Return means over seeds with 95% intervals, of what there are figures for."""
    return {
        "uniform": _uniform(seeds),
        "differences": _differences(seeds),
        "mixed": _mixed(seeds),
        "scenarios": _scenarios(seeds),
    }


def _over(seeds: Mapping[str, Json], get: Callable[[Json], Any]) -> Json | None:
    """Return mean and interval of a number over the seeds that have it."""
    values = []
    for seed in seeds.values():
        try:
            values.append(float(get(seed)))
        except (KeyError, TypeError):
            continue
    if not values:
        return None
    interval = mean_interval(values)
    ends = (interval.low, interval.high) if len(values) > 1 else (None, None)
    return {"value": interval.value, "low": ends[0], "high": ends[1], "seeds": len(values)}


def _arms(seeds: Mapping[str, Json]) -> list[str]:
    return list(dict.fromkeys(arm for seed in seeds.values() for arm in seed["arms"]))


def _uniform(seeds: Mapping[str, Json]) -> Json:
    found: Json = {}
    for kind in ("recalibrated", "running"):
        for arm in _arms(seeds):
            for bits in range(2, 9):
                entry = _over(seeds, lambda s, a=arm, k=kind, b=bits: s["arms"][a]["uniform"][k][str(b)])  # type: ignore[misc]
                if entry is not None:
                    found.setdefault(kind, {}).setdefault(arm, {})[str(bits)] = entry
    return found


PAIRS = (
    ("adaptive", "hard"),
    ("adaptive", "smooth"),
    ("smooth", "hard"),
    ("hard", "base"),
    ("adaptive", "base"),
    ("adaptive", "anyprecision"),
    ("adaptive", "robustquant"),
)


def _differences(seeds: Mapping[str, Json]) -> Json:
    """Return paired differences over seeds of arms at each bit-width, and of the supernets to each QAT."""
    found: Json = {}

    def add(name: str, get: Callable[[Json], Any]) -> None:
        entry = _over(seeds, get)
        if entry is not None:
            found[name] = entry

    def score(seed: Json, arm: str, bits: int) -> float:
        return float(seed["arms"][arm]["uniform"]["recalibrated"][str(bits)])

    for first, second in PAIRS:
        for bits in range(2, 9):
            add(
                f"{first} - {second} at {bits}",
                lambda s, f=first, g=second, b=bits: score(s, f, b) - score(s, g, b),  # type: ignore[misc]
            )
    for arm in ("hard", "smooth", "adaptive"):
        for bits in (2, 4, 8):
            add(
                f"{arm} - qat-{bits} at {bits}",
                lambda s, a=arm, b=bits: score(s, a, b) - score(s, f"qat-{b}", b),  # type: ignore[misc]
            )
    return found


def _mixed(seeds: Mapping[str, Json]) -> Json:
    found: Json = {}
    for sampler in ("uniform", "monte-carlo"):
        for name, get in (
            ("tau", lambda score: score["kendall_tau"]["value"]),
            ("pearson", lambda score: score["pearson"]),
            ("ceiling tau", lambda score: score["ceiling"]["kendall_tau"]),
            ("ceiling pearson", lambda score: score["ceiling"]["pearson"]),
        ):
            entry = _over(seeds, lambda s, g=get, n=sampler: g(s["mixed"]["predictors"][n]["score"]))  # type: ignore[misc]
            if entry is not None:
                found.setdefault(sampler, {})[name] = entry
    for target in TARGETS:
        entry = _over(seeds, lambda s, t=target: s["mixed"]["searched"][str(t)]["difference"]["value"])  # type: ignore[misc]
        if entry is not None:
            found.setdefault("mixed - uniform", {})[str(target)] = entry
    return found


def _scenarios(seeds: Mapping[str, Json], numbers: Sequence[int] = (1, 5, 10, 40)) -> Json:
    """Return the image passes of N scenarios: a training for each, or one supernet; the float net is in both."""
    first = next(iter(seeds.values()))["arms"]
    if not {"base", "adaptive", "qat-4"} <= set(first):
        return {}
    float_passes = first["base"]["passes"]
    qat, supernet = first["qat-4"]["passes"] - float_passes, first["adaptive"]["passes"] - float_passes
    found = {str(n): {"qat": float_passes + n * qat, "supernet": float_passes + supernet} for n in numbers}
    return {
        "float": float_passes,
        "qat": qat,
        "supernet": supernet,
        "of": found,
        "even": float(np.ceil(supernet / qat)),
    }
