"""``qnas run``: train, search, export, verify, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qnas.cli.options import MODEL, PROCESSES, SEARCHING, TRAINING, config_options, output_options, start_options


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
        front = run.search()
        if not session.leads:
            return
        sample = run.resolve(None, search=front["search"])
        exported = run.export(sample)
        report = run.verify(sample)
        run.report()
        _print_result(run.store.path, front, exported, report, run.timings(), as_json)
        if not report["passed"]:
            raise click.exceptions.Exit(1)


def _print_result(
    path: Path, front: dict[str, Any], exported: dict[str, Any], verified: dict[str, Any], timings: dict[str, float],
    as_json: bool,
) -> None:  # fmt: skip
    from qnas.cli import console

    if as_json:
        value = {"run": str(path), "front": front, "export": exported, "verify": verified, "timings": timings}
        console.print_json(value)
        return
    console.print_front(front)
    console.print_verification(verified)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())
    click.echo(f"Model:  {path / exported['onnx']}")
    click.echo(f"Report: {path / 'report.html'}")
    click.echo(f"Time:   {spent}")
