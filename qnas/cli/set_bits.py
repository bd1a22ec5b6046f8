"""``qnas set-bits``: any bit-widths from one trained supernet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import output_options, stage_option


@click.command("set-bits")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--w-bits", metavar="N[,N...]", help="Of all weights; or one number a knob, in the order of the layers.")
@click.option("--a-bits", metavar="N[,N...]", help="Of all activations, likewise.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="PATTERN=W/A",
    help="Of some layers, such as 'stage3.*=2/4' or 'stage1.*=/8' (activations alone); repeat, the last one wins.",
)
@click.option("--config", help="Whose architecture and other bits: a trial's key, largest or smallest.  [largest]")
@click.option("--export/--no-export", default=True, help="Write and verify the ONNX model.  [export]")
@stage_option
@output_options
def command(
    quiet: bool,
    as_json: bool,
    run: Path,
    w_bits: str | None,
    a_bits: str | None,
    layers: tuple[str, ...],
    config: str | None,
    export: bool,
    stage: str | None,
) -> None:
    """Set the bit-widths of RUN's network, evaluate it and export it; nothing is trained.

    Every bit-width that the run was trained for goes into every layer. What the flags leave out keeps the bits of
    --config. First and last layer stay at theirs.

    \b
    Examples:
      qnas set-bits runs/a --w-bits 4 --a-bits 4
      qnas set-bits runs/a --w-bits 3 --a-bits 8 --layer "stage3.*=2/8"
      qnas set-bits runs/a --config 3f2a --a-bits 8 --no-export
    """
    from qnas.bits import set_bits
    from qnas.choice import find
    from qnas.cli import console
    from qnas.cli.session import open_session
    from qnas.search import measure

    with open_session({"run": run}, quiet=quiet or as_json) as session:
        opened = session.run
        choice = find(opened, config or "largest", stage=stage)
        evaluator = opened.stages.evaluator(choice.stage)
        space = evaluator.supernet.space
        sample = set_bits(space, choice.sample, w_bits, a_bits, layers)
        metrics = {
            split: measure(opened.store, evaluator, opened.processes, [sample], split)[0]
            for split in ("search", "test")
        }
        result: dict[str, Any] = {
            "key": space.key(sample),
            "sample": sample,
            "stage": choice.stage,
            "metric": evaluator.task.metric,
            "num_images": {split: len(opened.data.split(split)) for split in ("search", "test")},
            "metrics": metrics,
        }
        if export:
            result |= {"export": opened.export(sample, choice.stage), "verify": opened.verify(sample, choice.stage)}
        if as_json:
            console.print_json(result)
        else:
            console.print_bits(run, result, space.layers(sample))
        if export and not result["verify"]["passed"]:
            raise click.exceptions.Exit(1)
