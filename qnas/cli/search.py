"""``qnas search``: search a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import PROCESSES, SEARCHING, config_options, output_options


@click.command("search")
@click.argument("run", type=click.Path(path_type=Path))
@config_options(SEARCHING, PROCESSES)
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Search the trained supernet in RUN, as it was after one stage of its training or several.

    A search with the settings of an earlier one goes on with it; other settings begin a new one beside it. Judged
    subnets are never judged again. What is found does not depend on the number of processes that judge.

    \b
    Examples:
      qnas search runs/a
      qnas search runs/a --strategy random --evaluations 100
      qnas search runs/a --stage 4-bit --stage 3-bit
      qnas search runs/a --objective accuracy --constraint "size_bytes<=60000"
      qnas search runs/a --objective accuracy --objective latency_ms --latency table
      qnas search runs/a --kfold 10
    """
    from qnas.cli import console
    from qnas.cli.resolve import flag_settings
    from qnas.cli.session import PLACEMENT, open_session, placement_of
    from qnas.config import load_config, nested
    from qnas.errors import ConfigError

    changes = {name: value for name, value in flag_settings(params).items() if name not in PLACEMENT}
    with open_session(params, quiet=quiet or as_json, together=True, placement=placement_of(params)) as session:
        for name in changes:
            if not name.startswith(("search.", "latency.")):
                raise ConfigError(
                    f"`qnas search` cannot change {name}: the supernet in {session.run.store.path} is trained with it. "
                    "Only search.* and latency.* can be set; start a new run for the rest."
                )
        if "search.strategy" in changes and not any(name.startswith("search.options.") for name in changes):
            changes["search.options"] = {}
        stored = session.run.config.model_dump(mode="json", exclude_none=True)
        if "search.options" in changes:
            stored["search"]["options"] = {}
        config = load_config(stored, nested(changes))
        fronts = [session.run.search(config, stage) for stage in config.search.stages or [None]]
        if not session.leads:
            return
        if as_json:
            console.print_json(fronts if len(fronts) > 1 else fronts[0])
            return
        for front in fronts:
            console.print_front(front)
