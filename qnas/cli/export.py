"""``qnas export``: a subnet as integer ONNX and as a bit-packed file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import output_options, refuse_both, stage_option


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--config", metavar="KEY", help="Key of a trial, largest or smallest; the chosen one by default.")
@click.option("--all", "whole_front", is_flag=True, help="Every point of the last search's front.")
@click.option("--features", is_flag=True, help="The backbone alone, for a detector: one output a stride.")
@stage_option
@output_options
def command(
    quiet: bool,
    as_json: bool,
    config: str | None,
    stage: str | None,
    whole_front: bool,
    features: bool,
    **params: Any,
) -> None:
    """Write subnets of RUN as QDQ ONNX (int8 weights, int32 biases, exactly the trained scales) and bit-packed.

    With --features, write features.onnx and features.json instead: the last map at each stride (4, 8, 16, 32), without
    classifier and pooling, compared on the device with the subnet's own.

    \b
    Examples:
      qnas export runs/a
      qnas export runs/a --config 3f2a
      qnas export runs/a --all
      qnas export runs/a --stage 3-bit
      qnas export runs/a --features
    """
    from qnas.choice import find, front
    from qnas.cli import console
    from qnas.cli.session import open_session

    refuse_both(config, whole_front)
    with open_session(params, quiet=quiet or as_json) as session:
        run = session.run
        choices = front(run, stage) if whole_front else [find(run, config, stage=stage)]
        write = run.export_features if features else run.export
        results = [write(choice.sample, choice.stage) for choice in choices]
        if as_json:
            console.print_json(results)
            return
        for result in results:
            (console.print_features if features else console.print_export)(run.store.path, result)
