"""``qnas report``: the page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import output_options


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Write report.html (one file, opens offline) and front.png of RUN; an unfinished run gives what there is.

    \b
    Examples:
      qnas report runs/a
    """
    from qnas.cli import console
    from qnas.cli.session import open_session

    with open_session(params, quiet=quiet or as_json) as session:
        paths = session.run.report()
        if as_json:
            console.print_json([str(path) for path in paths])
            return
        for path in paths:
            click.echo(f"Report: {path}")
