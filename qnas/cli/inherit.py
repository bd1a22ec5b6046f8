"""``qnas inherit``: a finished run, at fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import PROCESSES, config_options, output_options


@click.command("inherit")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--w-bits", type=int, help="Bits of weights; those of the last stage by default.")
@click.option("--a-bits", type=int, help="Bits of activations; those of the last stage by default.")
@click.option("--epochs", type=click.IntRange(min=0), help="Of the new stage; 0 only carries the quantizers over.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate of the new stage.")
@click.option("--name", help="Of the new stage; such as 3-bit by default.")
@config_options(PROCESSES, any_setting=False)
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Train the supernet of RUN on at fewer bits, from the weights and quantizers that it has (OQAT).

    Steps become s' = 2^d s, zero points floor(z / 2^d), for d bits fewer. RUN gets one more stage; those before keep
    their checkpoints, searches and exports. Epochs and learning rate are those of the last stage by default. Stopped,
    the same command goes on.

    \b
    Examples:
      qnas inherit runs/a --w-bits 3 --a-bits 3
      qnas inherit runs/a --w-bits 2 --a-bits 2 --epochs 10 --lr 0.001
      qnas search runs/a --stage 3-bit
    """
    from qnas.cli import console
    from qnas.cli.session import open_session, placement_of
    from qnas.inherit import InheritSettings, inherit

    names = ("w_bits", "a_bits", "name", "epochs", "lr")
    settings = InheritSettings(**{name: params.pop(name) for name in names})
    path, placement = params["run"], placement_of(params)
    with open_session(
        params,
        quiet=quiet or as_json,
        together=True,
        placement=placement,
        prepare=lambda run: inherit(run, settings),
    ) as session:
        progress = session.run.train()
        if not session.leads:
            return
        stage = session.run.config.train.all_stages()[-1]
        if as_json:
            console.print_json({"run": str(path), "stage": stage.name, "history": progress.history})
            return
        click.echo(f"Stage {stage.name} of {path}: {stage.epochs} epochs, inherited from the stage before.")
        if stage.epochs:
            click.echo(f"Last epoch: {console.losses(progress.history[-1]['losses'])}")
        click.echo(f"Next: qnas search {path} --stage {stage.name}")
