"""``qnas verify``: does the exported model answer as promised?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import output_options, refuse_both, stage_option
from qnas.errors import QnasError


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--config", metavar="KEY", help="Key of an exported subnet; the chosen one by default.")
@click.option("--all", "exported", is_flag=True, help="Every exported subnet.")
@stage_option
@output_options
def command(quiet: bool, as_json: bool, config: str | None, stage: str | None, exported: bool, **params: Any) -> None:
    """Run the exported model over the whole test split and compare it with the fake-quantized subnet.

    Exit code 1 when they drift apart.

    \b
    Examples:
      qnas verify runs/a
      qnas verify runs/a --all
    """
    from qnas.choice import exported as every_export
    from qnas.choice import find
    from qnas.cli import console
    from qnas.cli.session import open_session

    refuse_both(config, exported)
    with open_session(params, quiet=quiet or as_json) as session:
        run = session.run
        choices = every_export(run) if exported else [find(run, config, stage=stage)]
        results = []
        broken = []
        for choice in choices:
            try:
                results.append(run.verify(choice.sample, choice.stage))
            except QnasError as error:
                if not exported:
                    raise
                broken.append(error)  # the others are still worth a look
        for one in broken:
            click.echo(f"Error: {one}", err=True)
        if as_json:
            console.print_json(results)
        else:
            for result in results:
                console.print_verification(result)
        if broken or not all(result["passed"] for result in results):
            raise click.exceptions.Exit(1)
