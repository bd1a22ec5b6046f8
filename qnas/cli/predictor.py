"""``qnas predictor build|fit|score``: a predictor of accuracy, for searches on predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnas.cli.options import PROCESSES, config_options, output_options

if TYPE_CHECKING:
    from qnas.cli.session import Session
    from qnas.predictor import StagePredictor


@click.group("predictor")
def command() -> None:
    """Learn to predict accuracy from a subnet's sample, for searches by `qnas search RUN --predictor NAME`.

    \b
    Examples:
      qnas predictor build runs/a --samples 1000 --sampler monte-carlo
      qnas predictor fit runs/a
      qnas predictor score runs/a
      qnas search runs/a --predictor mlp --evaluations 20000 --measured 30
    """


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("run", type=click.Path(path_type=Path)),
        click.option("--stage", metavar="NAME", help="Training stage; the last one by default."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any setting in [predictor]."),
        output_options,
    ):
        function = option(function)
    return function


@contextmanager
def _opened(
    params: dict[str, Any], flags: dict[str, Any], *, quiet: bool, together: bool
) -> Iterator[tuple[Session, StagePredictor]]:
    """Open the run, and its predictor with the flags' settings."""
    from qnas.cli.session import open_session, placement_of
    from qnas.config import load_config, nested, parse_setting
    from qnas.errors import ConfigError, unknown_name

    changes = {name: value for name, value in flags.items() if value is not None}
    for text in params["settings"]:
        name, value = parse_setting(text)
        changes[name.removeprefix("predictor.")] = value
    stage = params["stage"]
    with open_session(params, quiet=quiet, together=together, placement=placement_of(params)) as session:
        run = session.run
        if stage is not None and stage not in run.stages.finished():
            raise ConfigError(
                unknown_name("The finished training stage", stage, run.stages.finished(), "Correct --stage.")
            )
        stored = run.config.model_dump(mode="json", exclude_none=True)
        for own, options in (("name", "options"), ("sampler", "sampler_options")):
            if changes.get(own, stored["predictor"][own]) != stored["predictor"][own]:
                stored["predictor"][options] = {}
        config = load_config(stored, nested({f"predictor.{name}": value for name, value in changes.items()}))
        from qnas.predictor import StagePredictor

        yield session, StagePredictor(run, config.predictor, stage)


@command.command("build")
@_common
@click.option("--samples", type=click.IntRange(min=10), help="Subnets to judge; more go on from fewer.")
@click.option("--sampler", help="Draws them, such as monte-carlo, which balances average bit-widths.")
@config_options(PROCESSES, any_setting=False)
def build(quiet: bool, as_json: bool, samples: int | None, sampler: str | None, **params: Any) -> None:
    """Judge subnets of RUN on the search split, for a predictor to learn from.

    Subnets that were judged before are not judged again; stopped, the same command goes on.
    """
    from qnas.cli import console

    flags = {"samples": samples, "sampler": sampler}
    with _opened(params, flags, quiet=quiet or as_json, together=True) as (session, predictor):
        if not session.leads:
            session.run.processes.serve(predictor.evaluator.judge)
            return
        with session.run.processes.leading(), session.run.phase("predictor"):
            value = predictor.build()
        if as_json:
            console.print_json(value)
            return
        scores = [subnet[value["metric"]] for subnet in value["subnets"]]
        click.echo(
            f"Judged: {len(scores)} subnets of stage {value['stage']} on {value['num_images']} images, "
            f"{value['metric']} {min(scores):.2%} to {max(scores):.2%}"
        )
        session.say(f"Next: qnas predictor fit {params['run']}")


@command.command("fit")
@_common
@click.option("--predictor", help="Name of the predictor.")
def fit(quiet: bool, as_json: bool, predictor: str | None, **params: Any) -> None:
    """Fit a predictor to the subnets that `qnas predictor build` judged, and score it on those held out."""
    from qnas.cli import console

    with _opened(params, {"name": predictor}, quiet=quiet or as_json, together=False) as (session, found):
        value = found.fit()
        if as_json:
            console.print_json(value)
            return
        console.print_predictor(value)
        session.say(f"Next: qnas search {params['run']} --predictor {value['name']}")


@command.command("score")
@_common
def score(quiet: bool, as_json: bool, **params: Any) -> None:
    """Say how well the fitted predictor orders subnets that it was not fitted to, and how fast it is."""
    from qnas.cli import console

    with _opened(params, {}, quiet=quiet or as_json, together=False) as (_, found):
        value = {**found.score(), "samples_per_second": round(found.speed())}
        if as_json:
            console.print_json(value)
            return
        console.print_predictor(value)
        click.echo(f"  speed        {value['samples_per_second']:,} encoded samples a second")
