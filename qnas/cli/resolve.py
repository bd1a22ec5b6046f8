"""From flags, recipe and TOML file to the configuration of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qnas.cli.options import FLAGS, LISTS

if TYPE_CHECKING:
    from qnas.alone import AloneSettings
    from qnas.config import RunConfig
    from qnas.data import Data
    from qnas.plugins import Registry

FILES = "files"  # the data set that a path stands for
IDLE_WITH_STAGES = ("train.epochs", "train.float_epochs", "train.lr", "train.calibrator")


def flag_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the given flags stand for, by path; those not given are left out.

    Raises:
        ConfigError: ``--set`` and a flag give one setting two values.
    """
    from qnas.config import parse_setting
    from qnas.errors import ConfigError

    found: dict[str, Any] = {}
    for name, (paths, _, _, _) in FLAGS.items():
        value = params.get(name)
        if value is None or value == ():
            continue
        for path in paths:
            found[path] = list(value) if isinstance(value, tuple) else value
    for name, (prefix, _, _, _) in LISTS.items():
        for text in params.get(name) or ():
            path, value = parse_setting(text)
            found[prefix + path] = value
    flags = dict(found)
    for text in params.get("settings") or ():  # of several, the last one holds
        path, value = parse_setting(text)
        if path in flags and flags[path] != value:
            raise ConfigError(
                f"--set gives {path} the value {value!r}, and another flag {flags[path]!r}. Leave one of them out."
            )
        found[path] = value
    for flag in ("weight_quantizer", "act_quantizer"):  # the narrower flag wins over --quantizer
        if params.get(flag) is not None:
            found[f"quantization.{flag}"] = params[flag]
    if isinstance(found.get("latency.table"), str):
        found["latency.table"] = str(_absolute(found["latency.table"]))
    return found


def data_settings(registry: Registry, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags' settings with ``--data``, a name or a path, as the settings that it stands for.

    The name of a data set wins; ``./NAME`` is always the path.

    Raises:
        ConfigError: it is neither.
    """
    from qnas.errors import ConfigError, unknown_name

    found = dict(settings)
    given = found.get("data.name")
    if not isinstance(given, str) or given in registry.names("dataset"):
        return found
    path = _absolute(given)
    if not path.exists():
        raise ConfigError(
            unknown_name(
                "The data set", given, registry.names("dataset"), f"There is no file or folder {path}, either."
            )
            + " Give the name of a data set, or the path of your images."
        )
    return {"data.options.path": str(path), **found, "data.name": FILES}


def _absolute(path: str) -> Path:
    """Return a path that still holds when the run goes on from another folder."""
    return Path(os.path.abspath(Path(path).expanduser()))


def resolve_config(registry: Registry, params: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a new run: defaults, then recipe, then TOML file, then flags."""
    return resolve_start(registry, params)[0]


def resolve_start(registry: Registry, params: Mapping[str, Any]) -> tuple[RunConfig, Data | None]:
    """Return the configuration of a new run and, where its choice needed them, the images.

    The table ``large`` of a recipe or a TOML file is put over the rest of it for images above 64 pixels.
    """
    from qnas.config import load_config, nested, read_settings
    from qnas.space import LARGEST_SMALL_IMAGE

    paths = [Path(str(registry.load("recipe", params["recipe"])))] if params.get("recipe") else []
    paths += [Path(params["config_file"])] if params.get("config_file") else []
    files = [read_settings(path) for path in paths]
    flags = data_settings(registry, flag_settings(params))
    config = _with_absolute_path(load_config(*(settings for settings, _ in files), nested(flags)))
    data = None
    if any(large for _, large in files):
        size = config.data.image_size
        if size is None:
            from qnas.components import load_data

            data = load_data(registry, config)
            size = data.image_size
        if size > LARGEST_SMALL_IMAGE:
            layers = (layer for file in files for layer in file)
            config = _with_absolute_path(load_config(*layers, nested(flags)))
    _refuse_idle_flags(config, flags)
    return config, data


def _refuse_idle_flags(config: RunConfig, flags: Mapping[str, Any]) -> None:
    """Refuse flags that say how the float and the quantized stage are, where the run has stages of its own."""
    from qnas.errors import ConfigError

    if not config.train.stages:
        return
    for name in IDLE_WITH_STAGES:
        if name in flags:
            listed = ", ".join(f"{stage.name} ({stage.epochs} epochs)" for stage in config.train.stages)
            raise ConfigError(
                f"{name} would change nothing, since the recipe or the TOML file lists the stages of training: "
                f"{listed}. Change them in a TOML file (--config-file), as [[train.stages]]."
            )


def _with_absolute_path(config: RunConfig) -> RunConfig:
    if config.latency.table is not None:
        table = str(_absolute(config.latency.table))
        config = config.model_copy(update={"latency": config.latency.model_copy(update={"table": table})})
    path = config.data.options.get("path")
    if config.data.name != FILES or not isinstance(path, str) or not path:
        return config
    options = {**config.data.options, "path": str(_absolute(path))}
    return config.model_copy(update={"data": config.data.model_copy(update={"options": options})})


def refuse_changes(registry: Registry, stored: RunConfig, params: Mapping[str, Any], path: Path) -> None:
    """Refuse flags that differ from the configuration of the run that is to go on.

    Raises:
        ConfigError: names the setting and both values.
    """
    from qnas.config import flat
    from qnas.errors import ConfigError

    if params.get("out"):
        raise ConfigError(
            f"--resume goes on in {path} itself; --out {params['out']} cannot be given besides. Leave one of them out."
        )
    if params.get("recipe") or params.get("config_file"):
        raise ConfigError(
            f"--resume goes on with the configuration in {path}; --recipe and --config-file cannot change it. "
            "Leave them out, or start a new run."
        )
    old = flat(stored.model_dump(mode="json", exclude_none=True))
    for name, value in data_settings(registry, flag_settings(params)).items():
        if old.get(name) != value:
            searching = name.startswith(("search.", "latency."))
            other = f"use `qnas search {path}` with it" if searching else "start a new run with another --out"
            raise ConfigError(
                f"--resume cannot change {name}: the run in {path} has {old.get(name)!r}, given is {value!r}. "
                f"Leave the flag out, or {other}."
            )


def default_directory(config: RunConfig) -> Path:
    """Return the next free ``runs/NNN-space-quantizer-strategy``."""
    quantization = config.quantization
    quantizers = dict.fromkeys([quantization.weight_quantizer, quantization.act_quantizer])
    name = "-".join([config.space.name, *quantizers, config.search.strategy]).replace(":", "-")
    root = Path("runs")
    taken = [int(p.name[:3]) for p in root.glob("[0-9][0-9][0-9]-*")] if root.is_dir() else []
    return root / f"{max(taken, default=0) + 1:03d}-{name}"


def alone_settings(config: RunConfig, params: Mapping[str, Any]) -> AloneSettings:
    """Return what the flags of :func:`qnas.cli.options.alone_options` say."""
    from qnas.alone import AloneSettings
    from qnas.errors import ConfigError, unknown_name

    budget, lr, seed = params["budget"], params["lr"], params["seed"]
    if budget <= 0 or (lr is not None and lr <= 0):
        raise ConfigError(f"--budget and --lr must be over 0; given: budget {budget}, lr {lr}. Correct them.")
    names = [stage.name for stage in config.train.all_stages()]
    stage = params.get("stage") or names[-1]
    if stage not in names:
        raise ConfigError(unknown_name("The stage", stage, names, "Correct --stage."))
    return AloneSettings(params["start"], config.seed if seed is None else seed, budget, lr, stage)
