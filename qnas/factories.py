"""What a user names as PACKAGE.MODULE:FACTORY: found, imported, and its faults told in one sentence. No torch.

Naming it is permission to run it, so only what is importable anyway is imported: installed packages, and modules in the
current directory, which come last, so that none can pass for an installed one. A run directory, which may come from
somebody else, names a factory in its ``config.toml`` but cannot bring its code: see :func:`find_factory`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qnas.errors import ConfigError, unknown_name

FORM = "--space module:PACKAGE.MODULE:FACTORY, such as module:mynet:make for the function `make` in ./mynet.py"


@contextmanager
def current_directory_importable() -> Iterator[None]:
    """Let modules in the current directory be imported, after all others."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def find_factory(source: str, run_directory: Path | None = None) -> Callable[..., Any]:
    """Import and return what ``PACKAGE.MODULE:FACTORY`` names.

    Args:
        source: of the factory; dots in its second part name attributes of attributes.
        run_directory: of the run that asks for it: code inside this folder is refused.

    Raises:
        ConfigError: it has another form, cannot be found or imported, or is nothing that can be called.
    """
    module_name, colon, attribute = source.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"The space 'module:{source}' does not name a network. Give {FORM}.")
    with current_directory_importable():
        importlib.invalidate_caches()  # the file may be younger than what the interpreter has seen of its folder
        _refuse_inside(module_name, run_directory)
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # a user's module may fail in any way
            raise _not_imported(source, module_name, error) from error
    where = getattr(found, "__file__", None) or "built in"
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            shown = public if len(public) <= 20 else [n for n in public if n.lower()[:3] == name.lower()[:3]]
            message = unknown_name("The factory", name, shown, f"It is looked for in {module_name} ({where}).")
            raise ConfigError(f"{message} Correct --space module:{source}.")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(
            f"{source} is {type(found).__name__}, nothing that can be called. Name a function or class that makes the "
            f"network: {FORM}."
        )
    factory: Callable[..., Any] = found
    return factory


def _refuse_inside(module_name: str, run_directory: Path | None) -> None:
    """Refuse a module whose top-level package lies in a run directory, before any of it is run."""
    if run_directory is None:
        return
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    inside = run_directory.resolve()
    for place in filter(None, [spec.origin, *(spec.submodule_search_locations or ())]):
        if Path(place).resolve().is_relative_to(inside):
            raise ConfigError(
                f"The run in {run_directory} wants to import {top!r} from {place}, inside the run directory itself. "
                "Code is not taken from there, since a run may come from somebody else. Install the package, or give "
                "the command in the folder that the network's file is in."
            )


def _not_imported(source: str, module_name: str, error: BaseException) -> ConfigError:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (module_name == missing or module_name.startswith(f"{missing}.")):
        ending = " Leave out '.py'." if module_name.endswith(".py") else ""
        return ConfigError(
            f"There is no module {missing!r}, which --space module:{source} names: it is neither installed nor in the "
            f"current directory {os.getcwd()}.{ending} Install it, change to the folder of its file, or correct the "
            "name."
        )
    return ConfigError(
        f"The module {module_name!r} of --space module:{source} cannot be imported: {told(error)}. Repair it."
    )


def told(error: BaseException, own: str | None = None) -> str:
    """Return an error in one line: its type, its message, and the line of the user's code that it comes from.

    Args:
        error: with its traceback.
        own: a folder whose code is not the user's, besides this package, Python's library and torch.
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    places = [f for f in traceback.extract_tb(error.__traceback__) if is_users_code(f.filename, own)]
    return f"{text} ({places[-1].filename}, line {places[-1].lineno})" if places else text


def is_users_code(filename: str, own: str | None = None) -> bool:
    """Tell whether a source file is neither part of Python, nor of torch, nor of this package, nor in ``own``."""
    torch = getattr(sys.modules.get("torch"), "__file__", None)
    packages = [__file__, *([torch] if torch else [])]
    folders = [*(os.path.dirname(os.path.abspath(file)) for file in packages), *([own] if own else [])]
    if filename.startswith("<") or any(filename.startswith(folder + os.sep) for folder in folders):
        return False
    library = os.path.dirname(os.__file__) + os.sep
    return not filename.startswith(library) or "site-packages" in filename or "dist-packages" in filename
