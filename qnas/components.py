"""From a configuration to the parts of a run: resolves names through the registry, checks roles and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from qnas.config import MODULE_SPACE, RunConfig, module_source
from qnas.constraints import parse_constraint
from qnas.data import Data, ImageSet, TrainBatches, prepare
from qnas.errors import ConfigError, PluginError, StoreError, unknown_name
from qnas.evaluate import Evaluator, EvaluatorSettings, SizedBatches
from qnas.factories import find_factory
from qnas.latency import LATENCY
from qnas.nn.folding import folding_policy
from qnas.nn.quantizer import Quantizer, QuantizerSite
from qnas.nn.supernet import BuildContext, Supernet
from qnas.plugins import Registry
from qnas.processes import Processes
from qnas.protocols import (
    Calibrator,
    CostModel,
    FeatureTask,
    PreparedSupervision,
    RangeCalibrator,
    Sampler,
    SearchProblem,
    State,
    Strategy,
    Supervision,
    Task,
    TrainingContext,
)
from qnas.rng import integer_seed
from qnas.space import Knob, QuantScheme, SearchSpace, Site
from qnas.train import Stage, Trainer, TrainSettings

FACTORY_OPTIONS = "factory"  # table of space.options: what goes to a user's factory whatever the space has
ROLE_FLAGS = {"weight": "--weight-quantizer", "activation": "--act-quantizer"}


def make(component: Any, what: str, section: str, options: Mapping[str, Any], *args: Any, **given: Any) -> Any:
    """Call a component's constructor with the user's options, checked by name first.

    Raises:
        ConfigError: an option that it does not have, or a value that it cannot take.
    """
    check_options(component, what, section, options, given)
    try:
        return component(*args, **given, **options)
    except (TypeError, ValueError) as error:
        listed = ", ".join(f"{k}={v!r}" for k, v in options.items()) or "none"
        raise ConfigError(
            f"{what} does not take the options given ({listed}): {error}. Correct [{section}]."
        ) from error


def check_options(
    component: Any, what: str, section: str, options: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Refuse options that a constructor or function does not have as keywords, beside those already given.

    Raises:
        ConfigError: names the option and those allowed, or the value and the type.
    """
    parameters = inspect.signature(component).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    allowed = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in given]
    for name in options:
        if name not in allowed and not open_ended:
            raise ConfigError(unknown_name(f"The option of {what}", name, allowed, f"Correct [{section}]."))
    _check_types(component, what, section, options)


def _check_types(component: Any, what: str, section: str, options: Mapping[str, Any]) -> None:
    """Refuse option values that are not of the type that the constructor declares."""
    try:
        hints = get_type_hints(component.__init__ if inspect.isclass(component) else component)
    except (NameError, TypeError):  # a plugin may name types that exist for the type checker alone
        return
    for name, value in options.items():
        if name not in hints:
            continue
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(
                f"The option {name!r} of {what} cannot be {value!r}: {error.errors()[0]['msg']}. Correct [{section}]."
            ) from error


def load_data(registry: Registry, config: RunConfig) -> Data:
    """Load, size and split the data set."""
    dataset = registry.load("dataset", config.data.name)()
    given: dict[str, Any] = {}
    if "image_size" in inspect.signature(dataset.load).parameters:  # it can decode to this size at once
        given["image_size"] = config.data.image_size
    check_options(dataset.load, f"data set {config.data.name!r}", "data.options", config.data.options, given)
    images: ImageSet = dataset.load(**config.data.options, **given)
    return prepare(
        images,
        image_size=config.data.image_size or images.image_size or images.images.shape[-1],
        seed=config.seed,
        fractions=(config.data.search_fraction, config.data.test_fraction),
    )


def quantizer_class(registry: Registry, name: str, role: str) -> type[Quantizer]:
    """Return a quantizer, if it can play the role.

    Raises:
        PluginError: it cannot; names the flag to use.
    """
    found: type[Quantizer] = registry.load("quantizer", name)
    if role not in found.roles:
        other = ROLE_FLAGS[next(iter(found.roles))]
        raise PluginError(
            f"Quantizer {name!r} is for {' and '.join(sorted(found.roles))}s, not for {role}s. Use {other} {name}, and "
            f"choose another for {ROLE_FLAGS[role]}."
        )
    return found


def build_space(registry: Registry, config: RunConfig, data: Data, run_directory: Path | None = None) -> SearchSpace:
    """Return the search space with its bit knobs and the knobs that the quantizers add.

    Args:
        run_directory: that the configuration is from: no code is imported out of it.
    """
    quantization = config.quantization
    weights = quantizer_class(registry, quantization.weight_quantizer, "weight")
    asked = [(weights, quantization.weight_options)]
    asked.append((quantizer_class(registry, quantization.act_quantizer, "activation"), quantization.act_options))

    def site_knobs(site: Site) -> Iterable[Knob]:
        found = [knob for cls, options in asked for knob in cls.knobs(site, **options)]
        return dict.fromkeys(found)  # one class in both roles adds its knobs once

    scheme = QuantScheme(
        quantization.w_bits,
        quantization.a_bits,
        quantization.granularity,
        site_knobs=site_knobs,
        conv_only=quantization.quantize == "conv-only",
        w_zero_points=weights.has_weight_zero_points(**quantization.weight_options),
    )
    source, options = module_source(config), config.space.options
    given: dict[str, Any]
    given = {"image_size": data.image_size, "num_classes": data.num_classes, "image_channels": data.channels}
    cls = registry.load("space", config.space.name if source is None else MODULE_SPACE)
    if source is not None:
        given |= {"source": source, "factory": find_factory(source, run_directory), "factory_options": {}}
        options, given["factory_options"] = _split_options(cls, options, given)
    space: SearchSpace = make(cls, f"space {config.space.name!r}", "space.options", options, scheme, **given)
    return space


def _split_options(cls: Any, options: Mapping[str, Any], given: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a space that calls a user's factory, and those of the factory.

    The factory's are all that the space does not have, and those in the table ``factory``, where names of the space's
    own options can stand too.

    Raises:
        ConfigError: ``factory`` is no table.
    """
    names = {n for n, p in inspect.signature(cls).parameters.items() if p.kind is p.KEYWORD_ONLY} - set(given)
    table = options.get(FACTORY_OPTIONS, {})
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"space.options.{FACTORY_OPTIONS} is {table!r}, not a table of options. Write --space-option "
            f"{FACTORY_OPTIONS}.NAME=VALUE."
        )
    own = {name: value for name, value in options.items() if name in names}
    theirs = {name: value for name, value in options.items() if name not in names and name != FACTORY_OPTIONS}
    return own, {**theirs, **table}


def build_supernet(registry: Registry, config: RunConfig, space: SearchSpace, data: Data) -> Supernet:
    """Return the supernet with weights drawn from the seed."""
    quantization = config.quantization

    def maker(name: str, role: str, options: Mapping[str, Any], section: str) -> Callable[[QuantizerSite], Quantizer]:
        cls = quantizer_class(registry, name, role)

        def build(site: QuantizerSite) -> Quantizer:
            quantizer: Quantizer = make(cls, f"quantizer {name!r}", section, options, site)
            return quantizer

        return build

    context = BuildContext(
        space,
        maker(quantization.weight_quantizer, "weight", quantization.weight_options, "quantization.weight_options"),
        maker(quantization.act_quantizer, "activation", quantization.act_options, "quantization.act_options"),
        data.pixels.affine(),
        folding_policy(quantization.folding),
        bool(config.compile),
        None if quantization.bn == "shared" else quantization.bn,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(config.seed, "weights"))
        supernet = space.build(context)
    return supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def make_task(registry: Registry, config: RunConfig) -> Task:
    """Return the configured task.

    Raises:
        ConfigError: its outputs come from a head of its own, which a search space does not have.
    """
    cls = registry.load("task", config.task)
    if hasattr(cls, "head"):
        raise ConfigError(
            f"Task {config.task!r} works on the features of a trained net, so no run can be made with it. Leave task "
            "out, and give the finished run to `qnas detect RUN`."
        )
    task: Task = cls()
    return task


def task_metric(registry: Registry, config: RunConfig) -> str:
    """Return the name of the configured task's metric."""
    return make_task(registry, config).metric


def make_feature_task(registry: Registry, name: str, options: Mapping[str, Any], **given: Any) -> FeatureTask:
    """Return a task that works on features; ``given`` are ``features``, ``image_size`` and ``num_classes``.

    Raises:
        ConfigError: the task works on a classifier's outputs, or does not take the options.
    """
    cls = registry.load("task", name)
    if not hasattr(cls, "head"):
        raise ConfigError(f"Task {name!r} has no head for a backbone's features. Give --task detection.")
    task: FeatureTask = make(cls, f"task {name!r}", "--task-option", options, **given)
    return task


def make_stages(config: RunConfig) -> tuple[Stage, ...]:
    """Return the training stages."""
    return tuple(Stage(**stage.model_dump()) for stage in config.train.all_stages())


def make_supervision(
    registry: Registry,
    config: RunConfig,
    task: Task,
    data: Data,
    device: torch.device,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[Supervision, State]:
    """Return the configured supervision, ready to train, and what names anything that it needs outside the run.

    Args:
        recorded: the same of when the run was made; ``None`` where nothing is recorded yet.

    Raises:
        StoreError: what it needs is not what the run was made with.
    """
    name = config.train.supervision
    supervision: Supervision = make(
        registry.load("supervision", name),
        f"supervision {name!r}",
        "train.supervision_options",
        config.train.supervision_options,
        task,
    )
    if not isinstance(supervision, PreparedSupervision):
        return supervision, {}
    found = supervision.begin_training(TrainingContext(data, device, registry, dict(recorded or {})))
    if recorded is not None and found != recorded:
        changed = next(n for n in (*found, *recorded) if found.get(n) != recorded.get(n))
        raise StoreError(
            f"What supervision {name!r} learns from ({found.get('path', name)}) changed since the run was made: "
            f"{changed} was {recorded.get(changed)!r}, now {found.get(changed)!r}. Restore it, or start a new run."
        )
    return supervision, found


def build_trainer(
    registry: Registry,
    config: RunConfig,
    supernet: Supernet,
    data: Data,
    recorder: Any,
    processes: Processes,
    *,
    sampler: Sampler | None = None,
    started: Sequence[str] = (),
    task: Task | None = None,
    recorded: Mapping[str, Any] | None = None,
    settle: Callable[[Supernet], None] | None = None,
) -> Trainer:
    """Return a trainer at its start, on the device of the processes.

    Args:
        sampler, task: instead of the configuration's.
        started, settle: see :class:`qnas.train.Trainer`.
        recorded: see :func:`make_supervision`.
    """
    train = config.train
    task = task or make_task(registry, config)
    return Trainer(
        supernet.to(processes.device),
        TrainBatches(
            data.train,
            data.pixels,
            data.augmentation,
            train.batch_size,
            config.seed,
            device=processes.device,
            rank=processes.rank,
            ranks=processes.size,
        ),
        sampler
        or make(
            registry.load("sampler", train.sampler),
            f"sampler {train.sampler!r}",
            "train.sampler_options",
            train.sampler_options,
        ),
        make_supervision(registry, config, task, data, processes.device, recorded)[0],
        make_stages(config),
        TrainSettings(
            num_subnets=train.num_subnets,
            optimizer=train.optimizer,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            quantizer_lr=train.quantizer_lr,
            clip_lr=train.clip_lr,
            clip_norm=train.clip_norm,
            warmup=train.warmup,
            start_images=train.start_images,
            record_every=train.record_every,
            seed=config.seed,
        ),
        recorder,
        processes,
        calibrators=range_calibrators(registry, config),
        loss=task.loss,
        started=started,
        settle=settle,
    )


def range_calibrators(registry: Registry, config: RunConfig) -> dict[str, RangeCalibrator]:
    """Return the calibrators of ranges that the stages name.

    Raises:
        PluginError: one of them calibrates subnets instead.
    """
    found = {}
    for name in dict.fromkeys(stage.calibrator for stage in config.train.all_stages() if stage.calibrator):
        options = config.train.calibrator_options
        found[name] = _calibrator(registry, name, "start", "train.calibrator_options", options)
    return found


def subnet_calibrators(registry: Registry, config: RunConfig) -> list[Calibrator]:
    """Return the calibrators that adjust a subnet before it is judged.

    Raises:
        PluginError: one of them calibrates ranges at a stage's start instead.
    """
    options = config.evaluation.options
    return [
        _calibrator(registry, name, "calibrate", f"evaluation.options.{name}", options.get(name, {}))
        for name in calibrator_names(registry, config)
    ]


def calibrator_names(registry: Registry, config: RunConfig) -> tuple[str, ...]:
    """Return the names of what adjusts each subnet: the user's, or bn and what the quantizers ask for."""
    if config.evaluation.calibrators is not None:
        return config.evaluation.calibrators
    quantization = config.quantization
    roles = (("weight", quantization.weight_quantizer), ("activation", quantization.act_quantizer))
    asked = [name for role, quantizer in roles for name in quantizer_class(registry, quantizer, role).calibrators]
    return tuple(dict.fromkeys(["bn", *asked]))


def check_folding(registry: Registry, config: RunConfig) -> None:
    """Raise ``PluginError`` where the weight quantizer speaks of folded weights, and nothing is folded."""
    name, folding = config.quantization.weight_quantizer, config.quantization.folding
    if folding == "none" and quantizer_class(registry, name, "weight").needs_folding:
        raise PluginError(
            f"Quantizer {name!r} follows the batch normalisation that is folded into the weights, but folding is "
            "'none'. Use --folding batch (or moving), or another --weight-quantizer."
        )
    if folding != "none" and config.quantization.quantize == "conv-only":
        raise ConfigError(
            f"folding is {folding!r}, but with convolutions alone quantized batch normalisation stays in float. "
            "Use --folding none, or --quantize full."
        )


def _calibrator(registry: Registry, name: str, method: str, section: str, options: Mapping[str, Any]) -> Any:
    found = make(registry.load("calibrator", name), f"calibrator {name!r}", section, options)
    if not hasattr(found, method):
        use = {"start": "evaluation.calibrators", "calibrate": "--calibrator"}[method]
        when = {"start": "subnets before they are judged", "calibrate": "ranges at the start of a stage"}[method]
        raise PluginError(f"Calibrator {name!r} adjusts {when}. Name it in {use} instead.")
    return found


def cost_models(registry: Registry) -> dict[str, CostModel]:
    """Return every registered cost model; a broken one is left out unless its name is asked for."""
    models = {}
    for component in registry.components("cost"):
        models[component.spec.name] = registry.find("cost", component.spec.name).load()
    return models


def build_evaluator(
    registry: Registry,
    config: RunConfig,
    supernet: Supernet,
    data: Data,
    stage: str,
    device: torch.device,
    *,
    sized: SizedBatches | None = None,
    task: Task | None = None,
) -> Evaluator:
    """Return the evaluator that every strategy and command shares; for ``sized`` see there.

    Args:
        task: instead of the configuration's; then no costs are computed.
    """
    evaluation, costs = config.evaluation, cost_models(registry) if task is None else {}
    return Evaluator(
        supernet,
        data,
        task or make_task(registry, config),
        subnet_calibrators(registry, config),
        costs,
        EvaluatorSettings(
            calibration_images=evaluation.calibration_images,
            calibration_batch=evaluation.calibration_batch,
            batch_size=evaluation.batch_size,
            precision=f"float32 on {device.type}",
            stage=stage,
            seed=config.seed,
            scheme=config.quantization.model_dump_json(exclude={"w_bits", "a_bits"}),  # those are in the sample
        ),
        device,
        sized,
        asked_metrics(registry, config) if task is None else (),
    )


def asked_metrics(registry: Registry, config: RunConfig) -> list[str]:
    """Return the metrics that the configuration's objectives and constraints name."""
    names = [task_metric(registry, config), *cost_models(registry), LATENCY]
    return [*config.search.objectives, *(parse_constraint(text, names).name for text in config.search.constraints)]


def strategy_maker(registry: Registry, name: str, options: Mapping[str, Any]) -> Callable[[SearchProblem], Strategy]:
    """Return what makes the strategy for a problem."""
    cls = registry.load("strategy", name)

    def build(problem: SearchProblem) -> Strategy:
        strategy: Strategy = make(cls, f"strategy {name!r}", "search.options", options, problem)
        return strategy

    return build
