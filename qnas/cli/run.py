"""``qnas run``: train, search, train points again, export, verify, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnas.cli.options import MODEL, PROCESSES, SEARCHING, TRAINING, config_options, output_options, start_options
from qnas.retrained import ALONE

if TYPE_CHECKING:
    from qnas.run import Run


@click.command("run")
@start_options
@config_options(MODEL, TRAINING, SEARCHING, PROCESSES)
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Train a supernet, search it, export and verify the chosen subnet, write the report.

    With [retrain] in the TOML file or the recipe, points of the searched fronts are trained again by themselves, and
    these nets are exported instead.

    \b
    Examples:
      qnas run
      qnas run --space mbv3 --quantizer lsq --strategy evolution --seed 1
      qnas run --w-bits 2,3,4 --a-bits 2,3,4 --bits-granularity stage --evaluations 200
      qnas run --no-se --act relu --objective accuracy --objective size_bytes
      qnas run --constraint "bitops<=1e7" --out runs/tiny
      qnas run --objective accuracy --objective latency_ms --constraint "latency_ms<=0.3"
      qnas run --config-file my.toml --set train.warmup=0.2
      qnas run --space module:mynet:make --space-option width=32
      qnas run --recipe nas-then-quantize
      qnas run --kfold 10
      qnas run --supervision teacher --supervision-option teacher=runs/big
      qnas run --devices 2 --device cuda --precision bf16-mixed
      qnas run --resume runs/tiny
    """
    from qnas.cli.session import open_session

    with open_session(params, quiet=quiet or as_json, together=True) as session:
        run = session.run
        session.say(f"Run directory: {run.store.path}")
        run.profile()  # first: a space whose latencies cannot be told is found before hours of training
        run.train()
        again = run.config.retrain.points != "none"
        results = []
        for stage in run.stages.searched():
            front = run.search(stage=stage)
            if session.leads:
                results.append({"front": front, **({} if again else _deployed(run, front))})
        nets = run.retrain()
        if not session.leads:
            return
        nets = [_deployed_net(run, net) for net in nets]
        run.report()
        _print_result(run.store.path, results, nets, run.timings(), as_json)
        if not all(result["verify"]["passed"] for result in [*results, *nets] if "verify" in result):
            raise click.exceptions.Exit(1)


def _deployed(run: Run, front: dict[str, Any]) -> dict[str, Any]:
    """Export and verify the chosen subnet of a search; a stage without quantizers has nothing to deploy.

    A quantizer whose weights no integer kernel can multiply is told, and ends nothing.
    """
    from qnas.choice import find
    from qnas.errors import ExportError

    choice = find(run, None, search=front["search"])
    if "float" in run.stages.evaluator(choice.stage).supernet.mode:
        return {}
    try:
        exported = run.export(choice.sample, choice.stage)
    except ExportError as error:  # what was searched is no less true, and the report is still to come
        click.echo(f"Not exported: {error}", err=True)
        return {"export_error": str(error)}
    return {"export": exported, "verify": run.verify(choice.sample, choice.stage)}


def _deployed_net(run: Run, net: dict[str, Any]) -> dict[str, Any]:
    """Export and verify a net that was trained again; return its result with both, without the answers' bits."""
    stage = f"{ALONE}/{net['id']}"
    exported, verified = run.export(net["sample"], stage), run.verify(net["sample"], stage)
    return {**{k: v for k, v in net.items() if k != "correct"}, "export": exported, "verify": verified}


def _print_result(
    path: Path,
    results: list[dict[str, Any]],
    nets: list[dict[str, Any]],
    timings: dict[str, float],
    as_json: bool,
) -> None:
    from qnas.cli import console

    if as_json:
        found: dict[str, Any] = results[0] if len(results) == 1 else {"stages": results}
        if nets:
            found = {**found, "retrained": nets}
        console.print_json({"run": str(path), "timings": timings, **found})
        return
    for result in results:
        console.print_front(result["front"])
    if nets:
        console.print_retrained(nets)
    for result in [*results, *nets]:
        if "verify" in result:
            console.print_verification(result["verify"])
            click.echo(f"Model:  {path / result['export']['onnx']}")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())
    click.echo(f"Report: {path / 'report.html'}")
    click.echo(f"Time:   {spent}")
