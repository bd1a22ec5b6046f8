"""``qnas evaluate``: judge one subnet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import output_options, stage_option


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--config", metavar="KEY", help="Key of a trial, largest or smallest; the chosen one by default.")
@stage_option
@click.option(
    "--sample",
    "sample_file",
    type=click.Path(path_type=Path),
    help="TOML file of every knob's value instead, as `sample` in --json.",
)
@click.option("--split", type=click.Choice(["search", "test"]), default="search", show_default=True)
@output_options
def command(
    quiet: bool,
    as_json: bool,
    config: str | None,
    stage: str | None,
    sample_file: Path | None,
    split: str,
    **params: Any,
) -> None:
    """Judge one subnet of RUN.

    Choose among subnets on the search split; look at the test split only to report.

    \b
    Examples:
      qnas evaluate runs/a --config largest
      qnas evaluate runs/a --config 3f2a --split test
      qnas evaluate runs/a --stage 4-bit --config largest
      qnas evaluate runs/a --sample mine.toml
    """
    from qnas.choice import Choice, find
    from qnas.cli import console
    from qnas.cli.session import open_session
    from qnas.config import read_toml
    from qnas.constraints import plain_number
    from qnas.scoring import score_error

    with open_session(params, quiet=quiet or as_json) as session:
        run = session.run
        if sample_file is None:
            choice = find(run, config, stage=stage)
        else:
            choice = Choice(read_toml(sample_file, "sample"), stage or run.stages.all()[-1].name)
        sample, evaluator = choice.sample, run.stages.evaluator(choice.stage)
        evaluator.supernet.space.validate(sample)
        evaluation = evaluator.evaluate(sample, split)
        metric = evaluator.task.metric
        error = score_error(evaluator.task, evaluation.metrics[metric], evaluation.num_images)
        key = evaluator.supernet.space.key(sample)
        if as_json:
            value = {"key": key, "stage": choice.stage, "split": split, "sample": sample, "metrics": evaluation.metrics}
            console.print_json({**value, "standard_error": error, "num_images": evaluation.num_images})
            return
        click.echo(f"{key} on {evaluation.num_images} images of the {split} split, after stage {choice.stage}:")
        for name, number in evaluation.metrics.items():
            shown = console.scored(number, error) if name == metric else plain_number(number)
            click.echo(f"  {name:12} {shown}")
