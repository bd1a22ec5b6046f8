"""``qnas insights``: what good subnets prefer at each training stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import PROCESSES, config_options, output_options


@click.command("insights")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--configs", default=50, show_default=True, help="Random subnets to judge at each stage.")
@click.option("--cost", default="bitops", show_default=True, help="At which subnets are compared.")
@click.option("--stage", "stages", multiple=True, metavar="NAME", help="Training stage; repeat for several. All.")
@config_options(PROCESSES, any_setting=False)
@output_options
def command(
    quiet: bool, as_json: bool, configs: int, cost: str, stages: tuple[str, ...], run: Path, **params: Any
) -> None:
    """Which kernel sizes, widths, depths, ... good subnets of RUN prefer at each training stage (each bit-width).

    Random subnets, the same architectures at every stage, are judged on the search split. Their scores are compared at
    equal cost; effects are in percentage points from no knob with a choice to all of them, with 95% intervals. Writes
    RUN/insights.json, which the report shows. Stopped, the same command goes on; more --configs judge only new ones.

    \b
    Examples:
      qnas insights runs/a
      qnas insights runs/a --configs 200 --devices 4
      qnas insights runs/a --stage float --stage quantized --cost size_bytes
    """
    from qnas.cli import console
    from qnas.cli.session import open_session, placement_of
    from qnas.effects import MIN_SUBNETS
    from qnas.insights import InsightSettings

    if configs < MIN_SUBNETS:
        raise click.BadParameter(f"what is preferred takes {MIN_SUBNETS} or more subnets", param_hint="--configs")
    params = {**params, "run": run}
    with open_session(params, quiet=quiet or as_json, together=True, placement=placement_of(params)) as session:
        result = session.run.insights(InsightSettings(configs, cost, stages))
        if not session.leads:
            return
        if as_json:
            console.print_json(result)
            return
        console.print_insights(result)
        session.say(f"Insights: {run / 'insights.json'}; `qnas report {run}` draws them.")
