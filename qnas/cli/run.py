"""``qnas run``: train, search, export, verify, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnas.cli.options import MODEL, PROCESSES, SEARCHING, TRAINING, config_options, output_options, start_options

if TYPE_CHECKING:
    from qnas.run import Run


@click.command("run")
@start_options
@config_options(MODEL, TRAINING, SEARCHING, PROCESSES)
@output_options
def command(quiet: bool, as_json: bool, **params: Any) -> None:
    """Train a supernet, search it, export and verify the chosen subnet, write the report.

    \b
    Examples:
      qnas run
      qnas run --space mbv3 --quantizer lsq --strategy evolution --seed 1
      qnas run --w-bits 2,3,4 --a-bits 2,3,4 --bits-granularity stage --evaluations 200
      qnas run --no-se --act relu --objective accuracy --objective size_bytes
      qnas run --constraint "bitops<=1e7" --out runs/tiny
      qnas run --config-file my.toml --set train.warmup=0.2
      qnas run --devices 2 --device cuda --precision bf16-mixed
      qnas run --resume runs/tiny
    """
    from qnas.cli.session import open_session

    with open_session(params, quiet=quiet or as_json, together=True) as session:
        run = session.run
        session.say(f"Run directory: {run.store.path}")
        run.train()
        results = []
        for stage in run.stages.searched():
            front = run.search(stage=stage)
            if session.leads:
                results.append({"front": front, **_deployed(run, front)})
        if not session.leads:
            return
        run.report()
        _print_result(run.store.path, results, run.timings(), as_json)
        if not all(result["verify"]["passed"] for result in results if "verify" in result):
            raise click.exceptions.Exit(1)


def _deployed(run: Run, front: dict[str, Any]) -> dict[str, Any]:
    """Export and verify the chosen subnet of a search; a stage without quantizers has nothing to deploy."""
    from qnas.choice import find

    choice = find(run, None, search=front["search"])
    if "float" in run.stages.evaluator(choice.stage).supernet.mode:
        return {}
    exported = run.export(choice.sample, choice.stage)
    return {"export": exported, "verify": run.verify(choice.sample, choice.stage)}


def _print_result(path: Path, results: list[dict[str, Any]], timings: dict[str, float], as_json: bool) -> None:
    from qnas.cli import console

    if as_json:
        found: dict[str, Any] = results[0] if len(results) == 1 else {"stages": results}
        console.print_json({"run": str(path), "timings": timings, **found})
        return
    for result in results:
        console.print_front(result["front"])
        if "verify" in result:
            console.print_verification(result["verify"])
            click.echo(f"Model:  {path / result['export']['onnx']}")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())
    click.echo(f"Report: {path / 'report.html'}")
    click.echo(f"Time:   {spent}")
