"""What every command that works on a run shares: the registry, progress, and the open run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qnas.config import RunConfig
    from qnas.plugins import Registry
    from qnas.processes import Processes
    from qnas.run import Run

PLACEMENT = ("device", "devices", "num_nodes")


@dataclass
class Session:
    """An open run and whether to talk about it."""

    run: Run
    quiet: bool

    @property
    def leads(self) -> bool:
        """Whether this process should print, export and report."""
        return self.run.processes.leader

    def say(self, text: str) -> None:
        """Print a remark to standard error."""
        if not self.quiet:
            click.echo(text, err=True)


def placement_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that say where a command works, which may differ from where the run was trained."""
    return {name: params[name] for name in PLACEMENT if params.get(name) is not None}


@contextmanager
def open_session(
    params: Mapping[str, Any],
    *,
    quiet: bool,
    together: bool = False,
    placement: Mapping[str, Any] | None = None,
    prepare: Callable[[Run], object] | None = None,
) -> Iterator[Session]:
    """Make a run of the flags, or open the one that ``resume`` (or ``run``) names.

    Args:
        params: of the command.
        quiet: show no progress.
        together: start the processes that the configuration asks for. The command's body then runs in each of them:
            only the leader holds the directory, records, and should print.
        placement: device, devices and num_nodes to use instead of the configuration's.
        prepare: what the leader does to the run before the others are told of it.
    """
    from qnas.cli import console
    from qnas.plugins import load_registry
    from qnas.processes import is_follower

    registry = load_registry()
    if together and is_follower():
        with _follow(registry, params, placement or {}) as run:
            yield Session(run, quiet=True)
        return
    for broken in registry.broken:
        click.echo(f"Warning: plugin {broken.owner} is set aside: {broken.reason}", err=True)
    if params.get("tensorboard"):
        from qnas.tensorboard import load_writer

        load_writer()  # what is missing is said before a directory is made
    recorder = console.make_recorder(quiet)
    run = _open(registry, params, recorder, together=together)
    board = None
    try:
        if params.get("tensorboard"):
            from qnas.recorder import Recorders
            from qnas.tensorboard import TensorBoardRecorder

            board = TensorBoardRecorder(run.store.path)
            run.recorder = Recorders(run.recorder, board)
        if prepare is not None:
            prepare(run)
        if together:
            run.join(_connect(run.config, placement or {}))
            run.processes.share((run.store.path.absolute(), run.config))
        yield Session(run, quiet)
    except KeyboardInterrupt:
        again = "Give the same command again to go on." if params.get("run") else ""
        click.echo(f"Stopped. {again or f'`qnas run --resume {run.store.path}` goes on where it was.'}", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        if isinstance(recorder, console.ProgressRecorder):
            recorder.close()
        if board is not None:
            board.close()
        run.close()
        run.processes.close()


def _open(registry: Registry, params: Mapping[str, Any], recorder: Any, *, together: bool) -> Run:
    from qnas.cli.resolve import default_directory, refuse_changes, resolve_start
    from qnas.processes import check_torchrun
    from qnas.run import Run

    path: Path | None = params.get("resume") or params.get("run")
    if path is None:
        config, data = resolve_start(registry, params)
        if together:
            check_torchrun(config.devices, config.num_nodes)  # before a directory is made
        out = params.get("out") or default_directory(config)
        return Run.create(out, config, registry, recorder, shlex.join(["qnas", *sys.argv[1:]]), data)
    run = Run.open(path, registry, recorder)
    if params.get("resume"):
        try:
            refuse_changes(registry, run.config, params, path)
        except BaseException:
            run.close()
            raise
    return run


def _connect(config: RunConfig, placement: Mapping[str, Any]) -> Processes:
    from qnas.processes import connect, resolve_device

    where = {name: getattr(config, name) for name in PLACEMENT} | dict(placement)
    where["device"] = resolve_device(where["device"])
    return connect(**where, precision=config.precision)


@contextmanager
def _follow(registry: Registry, params: Mapping[str, Any], placement: Mapping[str, Any]) -> Iterator[Run]:
    """Open the leader's run in another process. What goes wrong once they are connected, the leader says."""
    from qnas.cli.resolve import resolve_config
    from qnas.config import load_config, read_toml
    from qnas.errors import QnasError
    from qnas.run import Run
    from qnas.store import CONFIG

    path: Path | None = params.get("resume") or params.get("run")
    config = resolve_config(registry, params) if path is None else load_config(read_toml(path / CONFIG))
    processes = _connect(config, placement)  # whoever fails here first ends the others, so each says why
    try:
        path, config = processes.share(None)
        run = Run.follow(path, config, registry)
        run.join(processes)
        with run:
            yield run
        processes.close()
    except (QnasError, KeyboardInterrupt):
        raise click.exceptions.Exit(1) from None
