"""``qnas train-alone``: the ground truth for one subnet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import PROCESSES, alone_options, config_options, output_options


@click.command("train-alone")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--config", metavar="KEY", help="Key of a trial, largest or smallest; the chosen one by default.")
@alone_options
@config_options(PROCESSES, any_setting=False)
@output_options
def command(quiet: bool, as_json: bool, config: str | None, **params: Any) -> None:
    """Train one subnet of RUN by itself: same data, stages and evaluator, its own bit-widths throughout.

    Stopped, the same command goes on; finished, it prints the stored result.

    \b
    Examples:
      qnas train-alone runs/a
      qnas train-alone runs/a --config 3f2a --seed 1 --budget 2
      qnas train-alone runs/a --config largest --from supernet --lr 0.001
    """
    from qnas.choice import find
    from qnas.cli import console
    from qnas.cli.resolve import alone_settings
    from qnas.cli.session import open_session, placement_of

    with open_session(params, quiet=quiet or as_json, together=True, placement=placement_of(params)) as session:
        run = session.run
        choice = run.processes.share(find(run, config, stage=params["stage"]) if session.leads else None)
        result = run.train_alone(choice.sample, alone_settings(run.config, {**params, "stage": choice.stage}))
        if not session.leads:
            return
        if as_json:
            console.print_json(result)
            return
        click.echo(f"{result['key']} trained alone from {result['start']}, seed {result['seed']}:")
        for split in ("search", "test"):
            score, error = result["metrics"][split][result["metric"]], result["standard_error"][split]
            click.echo(f"  {split:6} {console.scored(score, error)} ({result['num_images'][split]} images)")
        click.echo(f"  {result['image_passes']:,.0f} image passes, in units of the largest subnet")
