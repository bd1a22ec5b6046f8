"""``qnas plugins``: what is installed."""

from __future__ import annotations

import click

from qnas.hookspecs import KINDS


@click.command("plugins")
@click.option("--kind", metavar="KIND", help=f"Only this kind: {', '.join(KINDS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(kind: str | None, as_json: bool) -> None:
    """List installed components: kind, name, owner, summary.

    \b
    Examples:
      qnas plugins
      qnas plugins --kind quantizer
      qnas plugins --json
    """
    import json

    from qnas.plugins import load_registry

    registry = load_registry()
    found = registry.components(kind)
    if as_json:
        rows = [{"kind": c.spec.kind, "name": c.spec.name, "owner": c.owner, "summary": c.spec.summary} for c in found]
        aside = [{"owner": b.owner, "reason": b.reason} for b in registry.broken]
        click.echo(json.dumps({"components": rows, "set_aside": aside}, indent=2))
        return
    widths = [max((len(text) for text in column), default=0) for column in zip(*_cells(found), strict=True)]
    for row in _cells(found):
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for group in registry.duplicates():
        if kind in (None, group[0].spec.kind):
            owners = " and ".join(c.owner for c in group)
            click.echo(f"Ambiguous: {group[0].spec.kind} {group[0].spec.name!r} is registered by {owners}.", err=True)
    for broken in registry.broken:
        click.echo(f"Set aside: plugin {broken.owner}: {broken.reason}", err=True)


def _cells(found) -> list[tuple[str, str, str, str]]:  # type: ignore[no-untyped-def]
    return [(c.spec.kind, c.spec.name, c.owner, c.spec.summary) for c in found]
