"""What ``quantnas.py`` asks of its trained supernets, and the summary over seeds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import shared
import torch
from torch import Tensor, nn

from qnas.config import load_config
from qnas.data import TrainBatches, resize
from qnas.evaluate import Evaluator
from qnas.nn.elastic import ElasticConv
from qnas.nn.grid import AffineGrid
from qnas.nn.subnet import Subnet, SubnetLayer
from qnas.nn.supernet import Supernet
from qnas.rank import draw_distinct
from qnas.run import Run
from qnas.space import Sample
from qnas.statistics import kendall
from qnas_plugins.calibrators.scales import ScalePredictorCalibrator, ScaleRefitCalibrator
from qnas_plugins.quantizers.lsq import LSQ

Json = dict[str, Any]
Array = np.ndarray[Any, Any]
TUNING_LR = 1e-2  # of the scales alone, Adam on their logarithms


def sizes(quick: bool) -> Mapping[str, int]:
    """Return how many subnets, images and steps the parts take."""
    if quick:
        return {"similar": 4, "ranks": 4, "tuned": 2, "tuning steps": 4, "front": 6}
    return {"similar": 50, "ranks": 60, "tuned": 10, "tuning steps": 100, "front": 60}


# --- statistics of subnets (Fig. 4, 5) -------------------------------------------------------------------------------


def statistics(run: Run, quick: bool) -> Json:
    """Return how alike the standard deviations of batch normalisations are, after the run's last stage.

    For each layer: ``subnets`` between pairs of calibrated random subnets (Fig. 4); of the supernet's ``moving``
    statistics, and of one training ``batch`` of the active subnet, with those of the calibrated subnet (Fig. 5).
    Cosines, and beside them the error relative to the subnet's vector, since vectors of positive numbers have cosines
    near 1 whatever they are.
    """
    evaluator = run.stages.evaluator()
    supernet = evaluator.supernet
    samples = draw_distinct(supernet.space, sizes(quick)["similar"], run.config.seed)
    batches = TrainBatches(run.data.train, run.data.pixels, run.data.augmentation, 64, run.config.seed).epoch(10**6)
    moving, batch, own = [], [], []
    for sample, (images, _) in zip(samples, batches):  # noqa: B905 - as many batches as subnets are taken
        moving.append(_supernet_deviations(supernet, sample))
        batch.append(_batch_deviations(supernet, sample, resize(images, supernet.space.resolution(sample))))
        own.append(_subnet_deviations(_calibrated(evaluator, sample)))
    layers = list(dict.fromkeys(name for found in own for name in found))
    found: Json = {"stage": evaluator.settings.stage, "layers": {}}
    for name in layers:
        have = [i for i, values in enumerate(own) if name in values]
        pairs = [(own[i][name], own[j][name]) for i in have for j in have if i < j]
        found["layers"][name] = {
            "subnets": _alike(pairs),
            "moving": _alike([(moving[i][name], own[i][name]) for i in have]),
            "batch": _alike([(batch[i][name], own[i][name]) for i in have]),
        }
    return found


def _alike(pairs: Sequence[tuple[Array, Array]]) -> Json:
    cosines, errors = [], []
    for a, b in pairs:
        n = min(len(a), len(b))  # narrower layers have a prefix of the channels
        x, y = a[:n], b[:n]
        cosines.append(float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))))
        errors.append(float(np.linalg.norm(x - y) / np.linalg.norm(y)))
    if not pairs:
        return {}
    return {"cosine": float(np.mean(cosines)), "least cosine": min(cosines), "error": float(np.mean(errors))}


def _elastic(supernet: Supernet) -> Iterator[ElasticConv]:
    for module in supernet.modules():
        if isinstance(module, ElasticConv) and module.bn is not None and module.active:
            yield module


def _supernet_deviations(supernet: Supernet, sample: Sample) -> dict[str, Array]:
    supernet.activate(sample)
    found = {}
    for layer in _elastic(supernet):
        assert layer.spec is not None
        assert layer.bn is not None
        _, var = layer.bn.running(layer.spec.out_channels)
        found[layer.name] = torch.sqrt(var + layer.bn.eps).numpy().copy()
    return found


def _batch_deviations(supernet: Supernet, sample: Sample, images: Tensor) -> dict[str, Array]:
    """Return the deviations of one batch in training mode: what the batch statistics would move by, undone."""
    supernet.activate(sample)
    found = {}
    layers = list(_elastic(supernet))
    with torch.no_grad(), supernet.keeping_statistics():
        for layer in layers:
            assert layer.bn is not None
            for i in range(len(layer.bn.banks)):
                layer.bn.get_buffer(f"var{i}").zero_()
        supernet.train()
        supernet(images)
        supernet.eval()
        for layer in layers:
            assert layer.spec is not None
            assert layer.bn is not None
            _, var = layer.bn.running(layer.spec.out_channels)  # 0.1 of the batch's, from 0
            found[layer.name] = torch.sqrt(var * 10 + layer.bn.eps).numpy().copy()
    return found


def _calibrated(evaluator: Evaluator, sample: Sample) -> Subnet:
    """Return a subnet with its own statistics, not folded, its scales as they come."""
    subnet = evaluator.supernet.extract(sample)
    subnet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    evaluator.calibrators[0].calibrate(subnet, evaluator.calibration_images(subnet.resolution))
    return subnet


def _subnet_deviations(subnet: Subnet) -> dict[str, Array]:
    found = {}
    for layer in subnet.subnet_layers():
        if layer.bn is not None and layer.bn.running_var is not None:
            found[layer.spec.name] = torch.sqrt(layer.bn.running_var + layer.bn.eps).numpy().copy()
    return found


# --- scales of subnets (Sec. 3.2, Fig. 10) ----------------------------------------------------------------------------


def _folding(subnet: Subnet) -> list[SubnetLayer]:
    return [layer for layer in subnet.subnet_layers() if layer.folds]


def _scales(subnet: Subnet, *calibrators: Any) -> dict[str, float]:
    """Return the scale of each layer that folds, after these calibrators; the subnet stays unfolded."""
    for calibrator in calibrators:
        calibrator.calibrate(subnet, [])
    found = {}
    for layer in _folding(subnet):
        grid = layer.folded_grid()
        assert isinstance(grid, AffineGrid)
        found[layer.spec.name] = float(grid.scale)
    return found


def scales(run: Run, quick: bool) -> Json:
    """Return how far the best scales of subnets are apart, and how near the arm's scales are to fine-tuned ones.

    ``spread``: for each layer the largest over the smallest least-squares scale among random subnets. ``errors``: of a
    few subnets, relative to scales that LSQ trains on training images while weights and statistics stand still (Sec.
    5.3.3). Where the loss hardly depends on a scale it stays where it starts, so they start from the ``given`` ones and
    from the ``fitted`` ones: the given scales against both, and ``between`` the two trained ones.
    """
    evaluator = run.stages.evaluator()
    wanted = sizes(quick)
    samples = draw_distinct(evaluator.supernet.space, wanted["similar"], run.config.seed)
    fitted = [_scales(_calibrated(evaluator, sample), ScaleRefitCalibrator()) for sample in samples]
    spread = {}
    for name in dict.fromkeys(name for found in fitted for name in found):
        values = [found[name] for found in fitted if name in found]
        spread[name] = max(values) / min(values)
    errors: dict[str, list[float]] = {"from given": [], "from fitted": [], "between": []}
    accuracies: Json = {"given": [], "fitted": [], "tuned": []}
    for sample in samples[: wanted["tuned"]]:
        subnet = _calibrated(evaluator, sample)
        given = _scales(subnet, ScalePredictorCalibrator())
        best = _scales(_calibrated(evaluator, sample), ScaleRefitCalibrator())
        tuned, other = (
            _tuned(run, evaluator, sample, subnet, start, wanted["tuning steps"]) for start in (given, best)
        )
        for name, found, true in (
            ("from given", given, tuned),
            ("from fitted", given, other),
            ("between", tuned, other),
        ):
            errors[name].append(float(np.mean([abs(found[k] - true[k]) / true[k] for k in true])))
        for name, found in (("given", given), ("fitted", best), ("tuned", tuned)):
            accuracies[name].append(_accuracy(evaluator, sample, found))
    return {"spread": spread, "errors": errors, "accuracies": accuracies}


def _accuracy(evaluator: Evaluator, sample: Sample, found: Mapping[str, float]) -> float:
    """Return a subnet's accuracy on the search split with given scales."""
    from qnas.deploy.rounding import round_biases

    subnet = _calibrated(evaluator, sample)
    for layer in _folding(subnet):
        layer.set_scale(torch.tensor(found[layer.spec.name]))
    return float(evaluator.measure(round_biases(subnet.fold()), "search").metrics[evaluator.task.metric])


def _tuned(
    run: Run, evaluator: Evaluator, sample: Sample, subnet: Subnet, start: Mapping[str, float], steps: int
) -> dict[str, float]:
    """Return the scales after LSQ alone is trained, from given ones; weights, statistics and the rest stand still."""
    supernet = copy.deepcopy(evaluator.supernet)
    supernet.activate(sample)
    own = {layer.spec.name: layer for layer in subnet.subnet_layers()}
    trained: dict[str, nn.Parameter] = {}
    with torch.no_grad():
        for layer in _elastic(supernet):
            norm, twin = layer.bn, own[layer.name]
            assert norm is not None
            assert twin.bn is not None
            mean, var = norm.running(twin.spec.out_channels)
            mean.copy_(twin.bn.running_mean)  # type: ignore[arg-type]
            var.copy_(twin.bn.running_var)  # type: ignore[arg-type]
            lsq = LSQ(layer.weight_quantizer.site)
            parameter = lsq.log_steps[str(twin.spec.w_bits)]
            parameter.fill_(float(np.log(start[layer.name])))
            trained[layer.name] = parameter
            layer.weight_quantizer = lsq
    supernet.eval().requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained.values(), lr=TUNING_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = _training(run, steps)
    for images, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(supernet(resize(images, supernet.space.resolution(sample))), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {name: float(parameter.detach().exp()) for name, parameter in trained.items()}


def _training(run: Run, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    batches = TrainBatches(run.data.train, run.data.pixels, run.data.augmentation, 64, run.config.seed)
    done, epoch = 0, 2 * 10**6
    while done < steps:
        for pair in batches.epoch(epoch):
            if done == steps:
                return
            yield pair
            done += 1
        epoch += 1


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranks(run: Run, quick: bool) -> Json:
    """Return how random subnets rank with the scales that the arm gives and shared ones, against what is best for each.

    Accuracies on the search split. ``shared`` scales are those of the supernet's statistics, which for LSQ are the
    given ones. The best are ``fitted`` by least squares, or ``tuned``: trained from the given ones, weights and
    statistics standing still.
    """
    evaluator = run.stages.evaluator()
    samples = draw_distinct(evaluator.supernet.space, sizes(quick)["ranks"], run.config.seed)
    bn = evaluator.calibrators[0]
    arms = {"given": [bn, ScalePredictorCalibrator()], "shared": [bn], "fitted": [bn, ScaleRefitCalibrator()]}
    found: Json = {"accuracies": {}, "tau": {}}
    metric = evaluator.task.metric
    for name, calibrators in arms.items():
        judge = copy.copy(evaluator)
        judge.calibrators = tuple(calibrators)
        found["accuracies"][name] = [judge.evaluate(sample, "search").metrics[metric] for sample in samples]
    tuned = []
    for sample in samples:
        subnet = _calibrated(evaluator, sample)
        start = _scales(subnet, ScalePredictorCalibrator())
        trained = _tuned(run, evaluator, sample, subnet, start, sizes(quick)["tuning steps"])
        tuned.append(_accuracy(evaluator, sample, trained))
    found["accuracies"]["tuned"] = tuned
    for name in ("given", "shared"):
        for best in ("fitted", "tuned"):
            tau = kendall(found["accuracies"][name], found["accuracies"][best])
            found["tau"][f"{name}, {best}"] = {"value": tau.value, "low": tau.low, "high": tau.high}
    return found


# --- fronts -----------------------------------------------------------------------------------------------------------


def front(run: Run, quick: bool) -> Json:
    """Return the front of accuracy and latency, measured on this machine, after a search with evolution."""
    config = load_config(
        run.config.model_dump(mode="json", exclude_none=True),
        {
            "search": {
                "strategy": "evolution",
                "objectives": ["accuracy", "latency_ms"],
                "evaluations": sizes(quick)["front"],
                "options": {"mutation_probability": 0.2, "mutation_share": 0.75, "population": 5 if quick else 15},
            }
        },
    )
    value = run.search(config)
    points = [
        {"key": p["key"], "accuracy": p["metrics"]["accuracy"], "test": p["test"]["accuracy"],
         "latency_ms": p["metrics"]["latency_ms"]}
        for p in value["points"]
    ]  # fmt: skip
    return {"points": points, "hypervolume": value["hypervolume"], "latency": value.get("latency")}


# --- over seeds -------------------------------------------------------------------------------------------------------


def summary(seeds: Mapping[str, Any]) -> Json:
    """Return what the tables show, over the seeds that have it."""
    arms = {name: [seed["arms"][name] for seed in seeds.values() if name in seed["arms"]] for name in _names(seeds)}
    found: Json = {"training": {}, "statistics": {}, "scales": {}, "ranks": {}, "fronts": {}}
    for name, entries in arms.items():
        last = [e["history"][-1]["losses"] for e in entries if e["history"]]
        found["training"][name] = {
            "largest": shared.interval([losses[0] for losses in last]),
            "smallest": shared.interval([losses[-1] for losses in last]),
            "diverged": sum(bool(e["diverged"]) for e in entries),
        }
        for part, values in (
            ("statistics", [_statistics_means(e["statistics"]) for e in entries if "statistics" in e]),
            ("scales", [_scales_means(e["scales"]) for e in entries if "scales" in e]),
            ("ranks", [_ranks_means(e["ranks"]) for e in entries if "ranks" in e]),
            ("fronts", [_front_means(e["front"]) for e in entries if "front" in e]),
        ):
            if values:
                found[part][name] = {key: shared.interval([value[key] for value in values]) for key in values[0]}
    found["differences"] = _differences(seeds)
    return found


PAIRS = (("moving-8", "shared-8"), ("predicted-8", "shared-8"), ("predicted-4", "shared-4"))


def _differences(seeds: Mapping[str, Any]) -> Json:
    """Return, seed by seed, how arms differ: loss of the largest subnet, mean accuracy of the random ones, tau."""
    found = {}
    for one, other in PAIRS:
        both = [seed["arms"] for seed in seeds.values() if {one, other} <= set(seed["arms"])]
        both = [arms for arms in both if "ranks" in arms[one] and "ranks" in arms[other]]
        if not both:
            continue
        numbers = [(_compared(arms[one]), _compared(arms[other])) for arms in both]
        found[f"{one} - {other}"] = {
            key: shared.interval([a[key] - b[key] for a, b in numbers]) for key in ("loss", "accuracy", "tau")
        }
    return found


def _compared(entry: Json) -> Json:
    means = _ranks_means(entry["ranks"])
    loss = entry["history"][-1]["losses"][0]
    return {"loss": loss, "accuracy": means["accuracy, given"], "tau": means["tau, given, tuned"]}


def _names(seeds: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for seed in seeds.values() for name in seed["arms"]))


def _statistics_means(entry: Json) -> Json:
    found = {}
    for kind in ("subnets", "moving", "batch"):
        layers = [layer[kind] for layer in entry["layers"].values() if layer[kind]]
        for number in ("cosine", "error"):
            found[f"{kind} {number}"] = float(np.mean([layer[number] for layer in layers]))
        found[f"{kind} least cosine"] = min(layer["least cosine"] for layer in layers)
    return found


def _scales_means(entry: Json) -> Json:
    spread = list(entry["spread"].values())
    found = {"median spread": float(np.median(spread)), "largest spread": max(spread)}
    for name, values in entry["errors"].items():
        found[f"error, {name}"] = float(np.mean(values))
    for name, values in entry["accuracies"].items():
        found[f"accuracy, {name}"] = float(np.mean(values))
    return found


def _ranks_means(entry: Json) -> Json:
    found = {f"accuracy, {name}": float(np.mean(values)) for name, values in entry["accuracies"].items()}
    return found | {f"tau, {name}": tau["value"] for name, tau in entry["tau"].items()}


def _front_means(entry: Json) -> Json:
    return {"hypervolume, search": entry["hypervolume"]["search"], "hypervolume, test": entry["hypervolume"]["test"]}
