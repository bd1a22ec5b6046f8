"""What every command that works on a run shares: the registry, progress, and the open run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qnas.run import Run


@dataclass
class Session:
    """An open run and whether to talk about it."""

    run: Run
    quiet: bool

    def say(self, text: str) -> None:
        """Print a remark to standard error."""
        if not self.quiet:
            click.echo(text, err=True)


@contextmanager
def open_session(params: Mapping[str, Any], *, quiet: bool) -> Iterator[Session]:
    """Make a run of the flags, or open the one that ``resume`` (or ``run``) names."""
    from qnas.cli import console
    from qnas.cli.options import default_directory, refuse_changes, resolve_config
    from qnas.plugins import load_registry
    from qnas.run import Run

    registry = load_registry()
    for broken in registry.broken:
        click.echo(f"Warning: plugin {broken.owner} is set aside: {broken.reason}", err=True)
    recorder = console.make_recorder(quiet)
    path: Path | None = params.get("resume") or params.get("run")
    if path is not None:
        run = Run.open(path, registry, recorder)
        if params.get("resume"):
            try:
                refuse_changes(registry, run.config, params, path)
            except BaseException:
                run.close()
                raise
    else:
        config = resolve_config(registry, params)
        out = params.get("out") or default_directory(config)
        run = Run.create(out, config, registry, recorder, shlex.join(["qnas", *sys.argv[1:]]))
    try:
        yield Session(run, quiet)
    except KeyboardInterrupt:
        click.echo(f"Stopped. `qnas run --resume {run.store.path}` goes on where it was.", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        if isinstance(recorder, console.ProgressRecorder):
            recorder.close()
        run.close()
