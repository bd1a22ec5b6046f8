"""``qnas rank``: does the supernet rank subnets as training each alone does?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import PROCESSES, alone_options, config_options, output_options


@click.command("rank")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--configs", default=20, show_default=True, help="Random subnets to compare.")
@alone_options
@config_options(PROCESSES, any_setting=False)
@output_options
def command(quiet: bool, as_json: bool, configs: int, **params: Any) -> None:
    """Kendall's tau between the supernet of RUN and subnets trained alone, with its 95% interval.

    The supernet's accuracy is that of the search split, the other that of the test split. Stopped, the same command
    goes on. Several processes (--devices) train one subnet each.

    \b
    Examples:
      qnas rank runs/a
      qnas rank runs/a --configs 40 --devices 4
      qnas rank runs/a --from supernet --budget 0.5
    """
    from qnas.cli import console
    from qnas.cli.resolve import alone_settings
    from qnas.cli.session import open_session, placement_of

    if configs < 2:
        raise click.BadParameter("a ranking needs at least 2 subnets", param_hint="--configs")
    with open_session(params, quiet=quiet or as_json, together=True, placement=placement_of(params)) as session:
        result = session.run.rank(configs, alone_settings(session.run.config, params))
        if session.leads:
            console.print_json(result) if as_json else console.print_rank(result)
