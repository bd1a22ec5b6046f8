"""The command line. One command a file; each is imported when it is called, and heavy packages inside it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from qnas import __version__
from qnas.errors import QnasError

COMMANDS = (
    "run",
    "train",
    "search",
    "evaluate",
    "inherit",
    "train-alone",
    "rank",
    "insights",
    "predictor",
    "set-bits",
    "export",
    "detect",
    "verify",
    "profile",
    "report",
    "compare",
    "plugins",
)


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, and that turns errors into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command's module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"qnas.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Name the nearest command for a typo."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from qnas.errors import unknown_name

            raise click.UsageError(unknown_name("The command", args[0], COMMANDS, "See `qnas --help`."), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="qnas")
def cli() -> None:
    """Quantization-aware neural architecture search.

    \b
    Examples:
      qnas run                                     the whole job on embedded images
      qnas run --space mbv3 --quantizer lsq --strategy evolution
      qnas run --no-se --act relu --w-bits 2,3,4 --a-bits 3,4 --bits-granularity block
      qnas run --resume runs/001-mbv3-lsq-evolution
      qnas plugins --kind quantizer
    """


def main() -> None:
    """Run the command line; the entry point of the ``qnas`` script."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except QnasError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped before the run was open: give the same command again.", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    sys.exit(code if isinstance(code, int) else 0)
