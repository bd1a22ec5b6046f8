"""From a factory and its options to a network, or to one sentence that says why there is none."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from qnas.errors import ConfigError, unknown_name
from qnas.factories import current_directory_importable, told

OWN = os.path.dirname(os.path.abspath(__file__))  # of this code, which no error of a user's network comes from


def make_network(
    factory: Callable[..., Any], source: str, options: Mapping[str, Any], own_options: Iterable[str] = ()
) -> nn.Module:
    """Call a factory with keyword options and return its network, in evaluation mode.

    Args:
        factory: that ``source`` names.
        source: ``PACKAGE.MODULE:FACTORY``, for messages.
        options: the user's, for the factory.
        own_options: names of those that the space takes itself, for messages.

    Raises:
        ConfigError: it has no such option, needs one that is not given, fails, or makes something else.
    """
    if isinstance(factory, nn.Module):
        raise ConfigError(
            f"{source} is a network ({type(factory).__name__}), where a function or class that makes one is wanted, so "
            "that every run can start from its own. Name such a function."
        )
    _check_options(factory, source, options, own_options)
    try:
        with current_directory_importable():
            network = factory(**options)
    except (Exception, SystemExit) as error:  # a user's function may fail in any way
        listed = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
        raise ConfigError(
            f"The factory {source} fails with {listed}: {told(error, OWN)}. Correct its --space-option "
            "(space.options), or repair it."
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"The factory {source} returns {type(network).__name__}, not a torch.nn.Module. Name a function or class "
            "that makes a network."
        )
    return network.eval()


def _check_options(
    factory: Callable[..., Any], source: str, options: Mapping[str, Any], own_options: Iterable[str]
) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a builtin: the call will tell
        return
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in named and not open_ended:
            allowed = [*named, *own_options]
            raise ConfigError(unknown_name(f"The option of {source}", name, allowed, "Correct [space.options]."))
    missing = [n for n, p in named.items() if p.default is p.empty and n not in options]
    if positional or missing:
        listed = ", ".join(positional or missing)
        first = (positional or missing)[0]
        remedy = "Wrap it in a function without them." if positional else f"Give --space-option {first}=VALUE."
        raise ConfigError(f"The factory {source} needs arguments that are not given: {listed}. {remedy}")
