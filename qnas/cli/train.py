"""``qnas train``: the supernet alone."""

from __future__ import annotations

from typing import Any

import click

from qnas.cli.options import MODEL, PROCESSES, SEARCHING, TRAINING, config_options, output_options, start_options


@click.command("train")
@start_options
@config_options(MODEL, TRAINING, SEARCHING, PROCESSES)
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Train the supernet of a new run, or go on with one; `qnas search` follows.

    \b
    Examples:
      qnas train --out runs/a --epochs 20
      qnas train --devices 2
      torchrun --nproc-per-node 2 -m qnas train --devices 2 --out runs/b
      qnas train --resume runs/a
    """
    from qnas.cli import console
    from qnas.cli.session import open_session

    with open_session(params, quiet=quiet or as_json, together=True) as session:
        progress = session.run.train()
        if not session.leads:
            return
        path = session.run.store.path
        if as_json:
            console.print_json({"run": str(path), "history": progress.history})
            return
        click.echo(f"Trained: {path}")
        if progress.history:  # else no stage had an epoch: quantizers were started, nothing more
            last = progress.history[-1]
            click.echo(f"Last epoch ({last['stage']}): {console.losses(last['losses'])}")
        click.echo(f"Next: qnas search {path}")
