"""``qnas profile``: a table of the latencies of a space's blocks on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnas.cli.options import MODEL, config_options, output_options

if TYPE_CHECKING:
    from qnas.config import RunConfig
    from qnas.data import Data
    from qnas.latency.nets import LatencyNets
    from qnas.plugins import Registry


@click.command("profile")
@click.option("--config-file", type=click.Path(path_type=Path), help="TOML file of settings; flags win.")
@click.option("--recipe", help="Settings to start from; see `qnas plugins --kind recipe`.")
@config_options(MODEL)
@click.option("--device", "runtime", metavar="NAME", help="Runtime; see `qnas plugins --kind device`. [deploy_device]")
@click.option("--classes", type=click.IntRange(2), help="Classes, with --image-size in place of a data set.")
@click.option("--channels", type=click.IntRange(1), default=3, show_default=True, help="Of the images, with --classes.")
@click.option("--threads", "latency_threads", type=click.IntRange(1), help="Of the device. [latency.threads = 1]")
@click.option("--batch", "latency_batch", type=click.IntRange(1), help="Images of one inference. [latency.batch = 1]")
@click.option("--rounds", "latency_rounds", type=click.IntRange(5), help="Of timing. [latency.rounds = 40]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the table; latency-SPACE-DEVICE.json by default. An unfinished one is gone on with.",
)
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Measure how long every block of a search space takes on a device, and write a table to search by.

    Blocks are cut out of as few subnets as hold them all, with new weights, and timed side by side with the largest
    subnet. Whole subnets then tell how blocks add up, and others check it: the table is good if it orders them with a
    Spearman correlation of 0.97 or more and errs by 5% or less. A profile that was stopped goes on.

    \b
    Examples:
      qnas profile --space mbv3
      qnas profile --space mbv2 --image-size 128 --classes 100 --device onnxruntime
      qnas profile --space resnet18 --data ~/images --threads 2 --out resnet18.json
      qnas run --objective accuracy --objective latency_ms --latency-table latency-mbv3-onnxruntime.json
    """
    from qnas.cli import console
    from qnas.cli.resolve import resolve_start
    from qnas.latency.profile import Profiler, TimedDevice, open_table
    from qnas.latency.timing import TimingSettings, check_device
    from qnas.plugins import load_registry

    registry = load_registry()
    config, data = resolve_start(registry, params)
    nets = _nets(registry, config, data, params)
    name = params["runtime"] or config.deploy_device
    device = registry.load("device", name)()
    check_device(device, name)
    own = config.latency
    settings = TimingSettings(own.threads, own.batch, own.rounds)
    timed = TimedDevice(name, device, settings)
    out = params["out"] or Path(f"latency-{config.space.name}-{name}.json".replace(":", "-").replace("/", "-"))
    table = open_table(out, timed.header(nets))
    recorder = console.make_recorder(quiet or as_json)
    try:
        Profiler(nets, timed, table, lambda found: found.write(out), recorder).run()
    except KeyboardInterrupt:
        click.echo(f"Stopped. The same command goes on with {out}.", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        if isinstance(recorder, console.ProgressRecorder):
            recorder.close()
    if as_json:
        console.print_json({"table": str(out), **table.to_json()})
    else:
        console.print_latency_table(table.to_json())
        click.echo(f"Table: {out}")
    if not table.passed:
        raise click.exceptions.Exit(1)


def _nets(registry: Registry, config: RunConfig, data: Data | None, params: dict[str, Any]) -> LatencyNets:
    """Return what makes the models: with ``--classes`` of random images, else of those of the data set."""
    import torch

    from qnas import components
    from qnas.errors import ConfigError
    from qnas.latency.nets import LatencyNets, random_images

    torch.set_num_threads(1)
    if params["classes"] is not None:
        size = config.data.image_size
        if size is None or params["data"] is not None:
            raise ConfigError(
                "--classes stands, with --image-size, for a data set that is not there; given: image size "
                f"{size}, data {params['data'] or 'none'}. Give --image-size and leave --data out, or the other way."
            )
        data = random_images(size, params["classes"], params["channels"])
    elif data is None:
        data = components.load_data(registry, config)
    return LatencyNets(registry, config, components.build_space(registry, config, data), data)
