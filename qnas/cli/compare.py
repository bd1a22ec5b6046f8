"""``qnas compare``: several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from qnas.cli.options import output_options


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("--cost", default="bitops", show_default=True, help="Metric of the budgets, such as size_bytes.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=click.FloatRange(min=0),
    help="Compare within this cost; may be repeated.",
)
@click.option(
    "--out", default=Path("compare"), show_default=True, type=click.Path(path_type=Path), help="Folder to write to."
)
@output_options
def command(
    runs: tuple[Path, ...], cost: str, budgets: tuple[float, ...], out: Path, quiet: bool, as_json: bool
) -> None:
    """Fronts, hypervolumes and accuracy at equal cost of several RUNs, and which differences are significant.

    Writes compare.html, compare.png and compare.json. The runs are only read, even while they go on. Each stands for
    the nets that it trained again ([retrain]), or for the last searches of all stages that it searches, or for its last
    finished search; RUN/searches/NAME names one search. Runs that differ in nothing but the seed are averaged.

    \b
    Examples:
      qnas compare runs/a runs/b
      qnas compare runs/a runs/b runs/c --cost size_bytes --out results/size
      qnas compare runs/oqat runs/nas-then-quantize runs/search-then-retrain-4
      qnas compare runs/a/searches/01-evolution runs/a/searches/02-random --budget 5e6
    """
    from qnas.cli import console
    from qnas.compare import compare_runs

    found = compare_runs(runs, out, cost, budgets)
    if as_json:
        console.print_json(found)
        return
    if not quiet:
        console.print_comparison(found)
    click.echo(f"Comparison: {out / 'compare.html'}")
