"""After the search: the points of its fronts trained again, each by itself, to be deployed in the supernet's place.

So the ways that OQAT (Shen et al., ICCV 2021, Fig. 2) is compared with end: a float search whose net is then quantized,
and a quantized search whose net is trained again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qnas import components
from qnas.alone import AloneSettings, alone_directory, train_alone
from qnas.config import RunConfig
from qnas.costs import usual
from qnas.errors import ConfigError, StoreError
from qnas.files import write_json
from qnas.hypervolume import objective_box
from qnas.nn.quantizer import ROLES
from qnas.nn.supernet import Supernet, tuned_parameters
from qnas.retrained import FILE, read_retrained
from qnas.search import named_objectives
from qnas.space import BIT_ROLES, Sample, SearchSpace
from qnas.statistics import paired, unpack_correct
from qnas.train import ALL

if TYPE_CHECKING:
    from qnas.plugins import Registry
    from qnas.run import Run


@dataclass(frozen=True)
class Job:
    """One net to train.

    Attributes:
        search: whose front it is from.
        searched_key: of the point there.
        bits: of all its layers; ``None`` for the point's own.
        sample: what is trained.
        settings: how.
    """

    search: str
    searched_key: str
    bits: int | None
    sample: Sample
    settings: AloneSettings


def settings_of(config: RunConfig, stage: str) -> AloneSettings:
    """Return how points that were searched after a stage are trained again."""
    asked = config.retrain
    settings = AloneSettings(asked.start, config.seed, stage=stage)
    own = asked.stages or (settings.stages(config) if asked.bits else ())
    return AloneSettings(asked.start, config.seed, stage=stage, own=own)


def check_retrain(config: RunConfig, registry: Registry) -> None:
    """Refuse what could not be trained after the search.

    Raises:
        ConfigError: bit-widths that the run lacks, a float point without any, or stages that do not fit.
    """
    if config.retrain.points == "none":
        return
    _check_bits(config)
    _check_own_stages(config)
    stages = {stage.name: stage for stage in components.make_stages(config)}
    for name in config.search.stages or [list(stages)[-1]]:
        if not config.retrain.bits and len(stages[name].quantized_roles) < len(ROLES):
            raise ConfigError(
                f"Stage {name!r} is searched in float, so its subnets have no bit-widths of their own to be trained "
                "again at. Give retrain.bits, such as [4, 3, 2], or search a quantized stage."
            )
        trained = settings_of(config, name).stages(config)
        last = trained[-1]
        if not last.quantize or set(last.roles) != set(ROLES):
            raise ConfigError(
                f"A point of stage {name!r} would be trained again without quantizers for both weights and "
                f"activations, by stage {last.name!r}. List [[retrain.stages]], the last one quantized."
            )
        _check_finetuning(config)
        changed = config.train.model_copy(update={"stages": trained})
        components.range_calibrators(registry, config.model_copy(update={"train": changed}))


def _check_bits(config: RunConfig) -> None:
    bits, quantization = config.retrain.bits, config.quantization
    allowed = sorted(set(quantization.w_bits) & set(quantization.a_bits))
    if len(set(bits)) != len(bits) or not set(bits) <= set(allowed):
        raise ConfigError(
            f"retrain.bits must be different bit-widths that weights and activations of the run both have; given: "
            f"{list(bits)}, allowed: {allowed}. Correct it, or --w-bits and --a-bits."
        )


def _check_own_stages(config: RunConfig) -> None:
    stages = config.retrain.stages
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names):
        raise ConfigError(f"retrain.stages must have different names; given: {', '.join(names)}. Rename one.")
    for stage in stages:
        if stage.w_bits or stage.a_bits or stage.inherit:
            raise ConfigError(
                f"Stage {stage.name!r} of retrain.stages cannot have w_bits, a_bits or inherit: one net is trained, at "
                "its own bit-widths throughout. Leave them out; retrain.bits chooses the bit-widths."
            )


def _check_finetuning(config: RunConfig) -> None:
    """Raise ``ConfigError`` where norms would be finetuned in a net that nothing trained."""
    stages = config.retrain.stages
    if config.retrain.start == "scratch" and stages and stages[0].parameters != ALL:
        raise ConfigError(
            f"Stage {stages[0].name!r} of retrain.stages trains parameters = {stages[0].parameters!r} alone, but "
            "retrain.start is 'scratch', so the weights would stay random. Give start = 'supernet', or a stage before."
        )


def check_tuned(config: RunConfig, supernet: Supernet) -> None:
    """Refuse finetuning that a network's parts do not allow.

    Raises:
        ConfigError: there is nothing to finetune, or a quantizer's range follows batches, as calibrated statistics do.
    """
    if config.retrain.points == "none":
        return
    for stage in config.retrain.stages:
        if stage.parameters == ALL:
            continue
        if not tuned_parameters(supernet, stage.parameters):
            raise ConfigError(
                f"Stage {stage.name!r} of retrain.stages trains parameters = {stage.parameters!r}, but space "
                f"{config.space.name!r} has no batch normalisation, and its quantizers have no clip values. Leave "
                "parameters out."
            )
        following = [quantizer for quantizer in supernet.quantizers() if quantizer.follows_batches]
        if following:
            raise ConfigError(
                f"Stage {stage.name!r} of retrain.stages trains parameters = {stage.parameters!r}, after which nothing "
                f"is calibrated, but quantizer {config.quantization.act_quantizer!r} takes its ranges from "
                "calibration. Leave parameters out, or choose another --act-quantizer."
            )


def retrain(run: Run) -> list[dict[str, Any]]:
    """Train the points that the configuration asks for; go on where it was stopped. Every process takes part.

    The processes share each batch, as when the supernet is trained.

    Returns:
        The results, in the order of the fronts; see :func:`qnas.retrained.read_retrained`.

    Raises:
        StoreError: a search is not finished.
    """
    if run.config.retrain.points == "none":
        return []
    jobs: list[Job] = run.processes.share(_jobs(run) if run.processes.leader else None)
    nets, results = [], []
    for number, job in enumerate(jobs, start=1):
        key = job.settings.space(run).key(job.sample)
        run.recorder.record("alone", {"number": number, "total": len(jobs), "keys": [key]})
        result = train_alone(run, job.sample, job.settings, run.processes)
        net = {"search": job.search, "searched_key": job.searched_key, "bits": job.bits, "id": result["id"]}
        if run.processes.leader and job.bits is None:
            net["before"] = _before(run, job, result)
        nets.append(net)
        results.append({**result, **net})
    if run.processes.leader:
        value = {"points": run.config.retrain.points, "nets": nets, "hypervolume": _box(run)}
        write_json(run.store.path / FILE, value)
    return results


def _before(run: Run, job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the point was judged with the supernet's weights, and what training changed on the test split.

    Selection saw the search split alone; the test split is only reported.
    """
    front = next(front for front in run.fronts() if front["search"] == job.search)
    point = next(point for point in front["points"] if point["key"] == job.searched_key)
    metric = front["metric"]
    score, after = point["test"][metric], result["metrics"]["test"][metric]
    value: dict[str, Any] = {
        "metrics": {"search": point["metrics"][metric], "test": score},
        "standard_error": {"search": point["standard_error"], "test": point["test"]["standard_error"]},
        "difference": {"value": after - score},
    }
    stored = [e for e in run.store.evaluations(point["key"], "test") if e[0][metric] == score and e[2]]
    if stored and result["correct"]["test"]:
        _, images, packed = stored[-1]
        answers = (unpack_correct(bits, images) for bits in (bytes.fromhex(result["correct"]["test"]), packed))
        found = paired(*answers)
        value["difference"] = {**asdict(found.difference), "p_value": found.p_value}
    return value


def list_retrained(run: Run) -> list[dict[str, Any]]:
    """Return the results of a finished :func:`retrain`; none before that."""
    return list(read_retrained(run.store.path).get("nets", []))


def _jobs(run: Run) -> list[Job]:
    """Return what is to be trained, each net once."""
    found: dict[str, Job] = {}
    for stage in run.stages.searched():
        settings, front = settings_of(run.config, stage), _front(run, stage)
        space = settings.space(run)
        for point in front["points"]:
            if run.config.retrain.points == "chosen" and point["key"] != front["chosen"]:
                continue
            for bits in run.config.retrain.bits or (None,):
                sample = space.canonical(point["sample"] if bits is None else at_bits(space, point["sample"], bits))
                job = Job(front["search"], point["key"], bits, sample, settings)
                found.setdefault(alone_directory(run.store.path, space.key(sample), settings).name, job)
    return list(found.values())


def _front(run: Run, stage: str) -> dict[str, Any]:
    """Return the front of the search of a stage that the configuration asks for, whatever was searched besides."""
    search = run.config.search
    names = ("strategy", "options", "evaluations", "objectives", "constraints")
    wanted = json.loads(json.dumps({**{name: getattr(search, name) for name in names}, "seed": run.config.seed}))
    front: dict[str, Any]
    for front in reversed(run.fronts()):
        begun_with = run.store.search_settings(front["search"])
        if front["stage"] == stage and wanted == {name: begun_with.get(name) for name in wanted}:
            return front
    raise StoreError(
        f"{run.store.path} has no finished search of stage {stage!r} whose points could be trained again. Run "
        f"`qnas run --resume {run.store.path}`, which searches it first."
    )


def at_bits(space: SearchSpace, sample: Mapping[str, Any], bits: int) -> Sample:
    """Return a sample with one bit-width on all of its bit knobs."""
    roles = {knob.label: knob.role for knob in space.knobs}
    return {label: bits if roles[label] in BIT_ROLES else value for label, value in sample.items()}


def _box(run: Run) -> dict[str, Any]:
    """Return the box of hypervolumes in all metrics, so that any comparison finds its own there."""
    costs = usual(components.cost_models(run.registry), components.asked_metrics(run.registry, run.config))
    metric = components.task_metric(run.registry, run.config)
    return objective_box(run.space, costs, metric, named_objectives([metric, *costs], metric, costs)).to_json()
