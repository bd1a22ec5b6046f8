"""The one root of all errors that a user can cause, and their shapes."""

from __future__ import annotations

from collections.abc import Iterable


class QnasError(Exception):
    """A mistake that the user can mend; the command line prints it without a traceback and exits with 2.

    The message says what is wrong, where, what was given, what is allowed and what to do next.
    """

    exit_code = 2


class ConfigError(QnasError):
    """A flag or a line of a configuration file has a value that cannot be."""


class PluginError(QnasError):
    """A plugin is missing, broken, ambiguous, or asked to play a role that it cannot."""


class DataError(QnasError):
    """A data set is absent, too small or not what it says it is."""


class ConstraintError(QnasError):
    """No subnet of the space can meet the constraints."""


class TrainingDivergedError(QnasError):
    """A loss was not finite; the last good checkpoint is kept."""

    exit_code = 1


class StoreError(QnasError):
    """A run directory is locked, incomplete, or was made with other settings."""


class ProcessError(QnasError):
    """Another process of the run stopped; the last good checkpoint is kept."""

    exit_code = 1


class ExportError(QnasError):
    """A subnet cannot be written as an integer graph; the message says which layer and why."""


def unknown_name(what: str, given: str, allowed: Iterable[str], next_step: str) -> str:
    """Return the sentence for a name that is not among those allowed, with the nearest as a suggestion."""
    import difflib

    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} {given!r} does not exist.{hint} Allowed: {', '.join(names) or 'none'}. {next_step}"
