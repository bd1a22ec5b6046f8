"""What would stop a run later, found before anything is trained or searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qnas import components
from qnas.config import RunConfig
from qnas.constraints import FeasibleSet, parse_constraint
from qnas.costs import Cost, CostTable
from qnas.errors import ConstraintError, PluginError
from qnas.initial import load_initial_weights
from qnas.kfold import check_kfold
from qnas.latency import LATENCY
from qnas.latency.of_run import check_latency
from qnas.nn.supernet import Supernet
from qnas.processes import resolve_device
from qnas.protocols import SearchProblem, State
from qnas.search import named_objectives
from qnas.space import SearchSpace

if TYPE_CHECKING:
    from qnas.run import Run


def check_run(run: Run) -> State:
    """Resolve every name and option that a run will need, and the constraints.

    Returns:
        What names anything outside the run that its supervision learns from.

    Raises:
        QnasError: whatever would stop the run later.
    """
    from qnas.retrain import check_retrain, check_tuned

    config, registry = run.config, run.registry
    for kind, name in (("sampler", config.train.sampler), ("device", config.deploy_device)):
        registry.load(kind, name)
    task = components.make_task(registry, config)
    components.check_folding(registry, config)
    components.subnet_calibrators(registry, config)
    components.range_calibrators(registry, config)
    stages = {stage.name: stage.searched(run.space) for stage in components.make_stages(config)}
    for name in config.search.stages or [list(stages)[-1]]:
        check_search(run, config, stages[name])
    check_retrain(config, registry)
    supernet = components.build_supernet(registry, config, run.space, run.data)
    _check_ranges(config, supernet)
    check_tuned(config, supernet)
    if config.train.init is not None:
        load_initial_weights(supernet, Path(config.train.init))
    device = torch.device(resolve_device(config.device, missing="cpu"))
    return components.make_supervision(registry, config, task, run.data, device)[1]


def _check_ranges(config: RunConfig, supernet: Supernet) -> None:
    """Raise ``PluginError`` where a stage's calibrator meets a quantizer that takes no range."""
    for stage in components.make_stages(config):
        for quantizer in supernet.quantizers() if stage.calibrator else ():
            if quantizer.site.role in stage.quantized_roles and not quantizer.takes_ranges:
                raise PluginError(
                    f"Stage {stage.name!r} sets ranges by calibrator {stage.calibrator!r}, but quantizer "
                    f"{type(quantizer).__name__} at {quantizer.site.name!r} takes none. Leave the calibrator out, "
                    "or choose another quantizer."
                )


def check_search(run: Run, config: RunConfig, space: SearchSpace) -> None:
    """Check objectives, constraints and strategy of a configuration without a supernet.

    Args:
        run: whose data and registry are used.
        config: names them.
        space: that is searched, of one stage.

    Raises:
        QnasError: whatever would stop the search later.
    """
    registry = run.registry
    costs = components.cost_models(registry)
    metric = components.task_metric(registry, config)
    objectives = named_objectives(config.search.objectives, metric, costs)
    constraints = [parse_constraint(text, [metric, *costs, LATENCY]) for text in config.search.constraints]
    for constraint in constraints:
        if constraint.name == metric and constraint.violation(float(constraint.sense == ">=")) > 0:
            raise ConstraintError(
                f"No subnet meets {constraint}: {metric} is a fraction from 0 to 1. For example {metric}>=0.9."
            )
    check_kfold(config, run.data, components.make_task(registry, config))
    if config.search.predictor is not None:
        from qnas.predictor import check_predictor

        check_predictor(registry, config)
    estimate, constraints = check_latency(run, config, constraints)
    known: dict[str, Cost] = {**costs, **estimate}
    feasible = FeasibleSet(CostTable(space, known), constraints, config.seed)
    problem = SearchProblem(space, objectives, feasible.draw, feasible.repair, config.seed)
    components.strategy_maker(registry, config.search.strategy, config.search.options)(problem)
