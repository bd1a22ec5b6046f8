"""``qnas detect``: a detector on a trained subnet's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import PROCESSES, config_options, output_options, stage_option


@click.command("detect")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--config", metavar="KEY", help="Key of a trial, largest or smallest; the chosen one by default.")
@stage_option
@click.option("--float", "in_float", is_flag=True, help="Switch the backbone's quantizers off.")
@click.option("--epochs", default=20, show_default=True, help="Of backbone and head together.")
@click.option("--lr", default=2e-3, show_default=True, help="Peak learning rate.")
@click.option("--batch-size", default=32, show_default=True, help="Images a step.")
@click.option("--width", type=int, help="Channels of pyramid and head; the task's own by default (32).")
@click.option("--seed", type=int, help="Of the head's weights and the batches; the run's by default.")
@click.option("--data", default="scenes", show_default=True, help="Data set with targets for the task.")
@click.option(
    "--data-option",
    "data_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the data set, such as train=5000; scenes are composed of the run's own images by default.",
)
@click.option("--image-size", type=int, help="Pixels; the data set's own by default.")
@click.option("--task", default="detection", show_default=True, help="A task that works on features.")
@click.option(
    "--task-option", "task_options", multiple=True, metavar="NAME=VALUE", help="Option of the task, such as depth=4."
)
@config_options(PROCESSES, any_setting=False)
@output_options
def command(
    quiet: bool,
    as_json: bool,
    config: str | None,
    stage: str | None,
    in_float: bool,
    width: int | None,
    data_options: tuple[str, ...],
    task_options: tuple[str, ...],
    **params: Any,
) -> None:
    """Train a detector on the features of one subnet of RUN, and report its average precision.

    The backbone starts from the weights that the subnet has after its stage, with its quantizers at work, and is judged
    as it would be deployed: folded, on integers. Feature pyramid and head are in float. Stopped, the same command goes
    on; finished, it prints the stored result. Needs `pip install 'qnas[detection]'`.

    \b
    Examples:
      qnas detect runs/a
      qnas detect runs/a --config largest --float
      qnas detect runs/a --config 3f2a --epochs 40 --width 64 --seed 1
      qnas detect runs/a --stage alone/3f2a... --image-size 128 --data-option train=5000
    """
    from qnas.choice import find
    from qnas.cli import console
    from qnas.cli.session import open_session, placement_of
    from qnas.config import parse_setting
    from qnas.detect import DetectSettings

    options = dict(parse_setting(text) for text in task_options)
    settings = DetectSettings(
        quantize=not in_float,
        task=params["task"],
        task_options=options if width is None else {**options, "width": width},
        data=params["data"],
        data_options=dict(parse_setting(text) for text in data_options),
        image_size=params["image_size"],
        epochs=params["epochs"],
        lr=params["lr"],
        batch_size=params["batch_size"],
        seed=params["seed"],
    )
    with open_session(params, quiet=quiet or as_json, together=True, placement=placement_of(params)) as session:
        run = session.run
        choice = run.processes.share(find(run, config, stage=stage) if session.leads else None)
        result = run.detect(choice, settings)
        if not session.leads:
            return
        if as_json:
            console.print_json(result)
        else:
            console.print_detector(result)
