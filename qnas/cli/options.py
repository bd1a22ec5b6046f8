"""Flags and the settings that they stand for: one table, so that a TOML file can say whatever a flag can."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qnas.alone import AloneSettings
    from qnas.config import RunConfig
    from qnas.data import Data
    from qnas.plugins import Registry

F = TypeVar("F", bound=Callable[..., Any])


class IntList(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Whole numbers separated by commas, such as ``2,3,4``."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the numbers as a list, ascending."""
        if not isinstance(value, str):
            return value
        try:
            return sorted(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 2,3,4", param, ctx)


class SettingOption(click.Option):
    """A flag that stands for a setting; its help names the setting and, looked up when shown, the default."""

    def __init__(self, *args: Any, setting: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flag and its help."""
        from qnas.config import RunConfig, flat

        record = super().get_help_record(ctx)
        default = flat(RunConfig().model_dump(mode="json", exclude_none=True)).get(self.setting)
        if record is None:
            return None
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        return record[0], f"{record[1]} [{self.setting}{'' if shown in (None, '') else f' = {shown}'}]"


INT_LIST = IntList()
MODEL = "model"
TRAINING = "training"
SEARCHING = "search"
PROCESSES = "processes"

# parameter -> (settings, group, click arguments)
_FLAGS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], dict[str, Any]]] = {
    "data": (
        ("data.name",),
        MODEL,
        ("--data",),
        {
            "metavar": "NAME|PATH",
            "help": "Data set by name (`digits` is embedded); or your images: a folder of train/CLASS/*.jpg or of "
            "CLASS/*.jpg, Hugging Face parquet, or CIFAR's python batches.",
        },
    ),
    "image_size": (("data.image_size",), MODEL, ("--image-size",), {"type": int, "help": "Pixels."}),
    "space": (
        ("space.name",),
        MODEL,
        ("--space",),
        {
            "metavar": "NAME|module:SOURCE",
            "help": "Search space; module:PACKAGE.MODULE:FACTORY for a network of your own, whose layers' bits are "
            "searched.",
        },
    ),
    "se": (("space.options.se",), MODEL, ("--se/--no-se",), {"help": "Squeeze-excite, where the space has it."}),
    "act": (("space.options.act",), MODEL, ("--act",), {"help": "Activation: auto, relu or h-swish."}),
    "quantizer": (
        ("quantization.weight_quantizer", "quantization.act_quantizer"),
        MODEL,
        ("--quantizer",),
        {"help": "Quantizer of weights and activations."},
    ),
    "weight_quantizer": (("quantization.weight_quantizer",), MODEL, ("--weight-quantizer",), {"help": "Of weights."}),
    "act_quantizer": (("quantization.act_quantizer",), MODEL, ("--act-quantizer",), {"help": "Of activations."}),
    "w_bits": (("quantization.w_bits",), MODEL, ("--w-bits",), {"type": INT_LIST, "help": "Weight bits to search."}),
    "a_bits": (
        ("quantization.a_bits",),
        MODEL,
        ("--a-bits",),
        {"type": INT_LIST, "help": "Activation bits to search."},
    ),
    "granularity": (
        ("quantization.granularity",),
        MODEL,
        ("--bits-granularity",),
        {"type": click.Choice(["network", "stage", "block", "layer"]), "help": "What shares one bit-width."},
    ),
    "per_channel": (
        ("quantization.weight_options.per_channel",),
        MODEL,
        ("--per-channel/--per-tensor",),
        {"help": "One weight step an output channel, or one a tensor."},
    ),
    "step_sharing": (
        ("quantization.weight_options.sharing", "quantization.act_options.sharing"),
        MODEL,
        ("--step-sharing",),
        {
            "type": click.Choice(["bits", "conv", "kernel"]),
            "help": "What shares one step of lsq, beyond width and depth.",
        },
    ),
    "negative": (
        ("quantization.act_options.negative",),
        MODEL,
        ("--negative",),
        {"type": click.Choice(["signed", "zero-point"]), "help": "Grid of activations that can be negative."},
    ),
    "folding": (
        ("quantization.folding",),
        MODEL,
        ("--folding",),
        {"type": click.Choice(["none", "moving", "batch"]), "help": "Statistics folded into weights in training."},
    ),
    "quantize": (
        ("quantization.quantize",),
        MODEL,
        ("--quantize",),
        {
            "type": click.Choice(["full", "conv-only"]),
            "help": "Every operator, or convolutions alone: then sums, pooling, classifier and batch normalisation "
            "stay in float.",
        },
    ),
    "sampler": (("train.sampler",), TRAINING, ("--sampler",), {"help": "Draws the subnets of a step."}),
    "supervision": (("train.supervision",), TRAINING, ("--supervision",), {"help": "What subnets should answer."}),
    "calibrator": (
        ("train.calibrator",),
        TRAINING,
        ("--calibrator",),
        {"help": "Sets ranges when quantization starts, such as mse."},
    ),
    "init": (
        ("train.init",),
        TRAINING,
        ("--init",),
        {"metavar": "FILE", "help": "Weights to start from, in torchvision's layout or of another run."},
    ),
    "float_epochs": (
        ("train.float_epochs",),
        TRAINING,
        ("--float-epochs",),
        {"type": int, "help": "Before quantizing."},
    ),
    "epochs": (("train.epochs",), TRAINING, ("--epochs",), {"type": int, "help": "Quantized epochs."}),
    "batch_size": (("train.batch_size",), TRAINING, ("--batch-size",), {"type": int, "help": "Images a step."}),
    "lr": (("train.lr",), TRAINING, ("--lr",), {"type": float, "help": "Peak learning rate."}),
    "optimizer": (
        ("train.optimizer",),
        TRAINING,
        ("--optimizer",),
        {"type": click.Choice(["adamw", "adam", "sgd"]), "help": "Of all parameters; sgd wants a larger --lr."},
    ),
    "clip_norm": (("train.clip_norm",), TRAINING, ("--clip-norm",), {"type": float, "help": "Of all gradients."}),
    "seed": (("seed",), TRAINING, ("--seed",), {"type": int, "help": "Of every random draw."}),
    "threads": (
        ("threads",),
        TRAINING,
        ("--threads",),
        {"type": int, "help": "CPU threads; results depend on them. One for small images by default."},
    ),
    "device": (
        ("device",),
        PROCESSES,
        ("--device",),
        {"type": click.Choice(["auto", "cpu", "cuda"]), "help": "Where nets train and are judged."},
    ),
    "devices": (
        ("devices",),
        PROCESSES,
        ("--devices",),
        {"type": int, "help": "Processes on each machine, one a device; they share each batch."},
    ),
    "num_nodes": (
        ("num_nodes",),
        PROCESSES,
        ("--num-nodes",),
        {"type": int, "help": "Machines; start the command on each, by torchrun for example."},
    ),
    "precision": (
        ("precision",),
        TRAINING,
        ("--precision",),
        {"type": click.Choice(["float32", "bf16-mixed"]), "help": "Of training; subnets are judged in float32."},
    ),
    "strategy": (("search.strategy",), SEARCHING, ("--strategy",), {"help": "Search strategy."}),
    "evaluations": (("search.evaluations",), SEARCHING, ("--evaluations",), {"type": int, "help": "Subnets to judge."}),
    "predictor": (
        ("search.predictor",),
        SEARCHING,
        ("--predictor",),
        {"help": "Search on predictions, such as mlp's; the best subnets are judged. `none`: measure all."},
    ),
    "measured": (
        ("search.measured",),
        SEARCHING,
        ("--measured",),
        {"type": int, "help": "With a predictor: subnets judged in the end."},
    ),
    "kfold": (
        ("search.kfold",),
        SEARCHING,
        ("--kfold",),
        {"type": int, "metavar": "K", "help": "Then search K times on a K-th of the search split, tested on the rest."},
    ),
    "objective": (
        ("search.objectives",),
        SEARCHING,
        ("--objective",),
        {"multiple": True, "metavar": "METRIC", "help": "accuracy, a cost or latency_ms; repeat for several."},
    ),
    "stage": (
        ("search.stages",),
        SEARCHING,
        ("--stage",),
        {"multiple": True, "metavar": "NAME", "help": "Training stage to search; repeat for several. The last one."},
    ),
    "constraint": (
        ("search.constraints",),
        SEARCHING,
        ("--constraint",),
        {"multiple": True, "metavar": "TEXT", "help": 'Such as "bitops<=2e8"; repeat for several.'},
    ),
    "latency": (
        ("latency.mode",),
        SEARCHING,
        ("--latency",),
        {
            "type": click.Choice(["measured", "table"]),
            "help": "Where latency_ms is named: measure every subnet, or look its blocks up; a front is measured.",
        },
    ),
    "latency_table": (
        ("latency.table",),
        SEARCHING,
        ("--latency-table",),
        {"metavar": "FILE", "help": "Table that `qnas profile` wrote; by default the run makes its own."},
    ),
    "latency_threads": (
        ("latency.threads",),
        SEARCHING,
        ("--latency-threads",),
        {"type": int, "help": "Threads of the device whose latency is measured."},
    ),
    "latency_batch": (
        ("latency.batch",),
        SEARCHING,
        ("--latency-batch",),
        {"type": int, "help": "Images of one inference whose latency is measured."},
    ),
    "latency_rounds": (
        ("latency.rounds",),
        SEARCHING,
        ("--latency-rounds",),
        {"type": int, "help": "Rounds in which nets are timed beside the reference."},
    ),
    "force": (
        ("latency.force",),
        SEARCHING,
        ("--force",),
        {"is_flag": True, "flag_value": True, "help": "Take a table whose check failed, or of another machine."},
    ),
}
_LISTS = {
    "supervision_option": (
        "train.supervision_options.",
        TRAINING,
        "--supervision-option",
        "Option of the supervision, such as teacher=runs/big.",
    ),
    "space_option": ("space.options.", MODEL, "--space-option", "Option of the space, such as kernels=3,5."),
    "strategy_option": ("search.options.", SEARCHING, "--strategy-option", "Option of the strategy."),
}


def config_options(*groups: str, any_setting: bool = True) -> Callable[[F], F]:
    """Add the flags of the given groups and, unless told otherwise, ``--set`` for any setting."""

    def decorate(function: F) -> F:
        found: list[Callable[[F], F]] = []
        for name, (paths, group, flags, options) in _FLAGS.items():
            if group in groups:
                found.append(click.option(*flags, name, cls=SettingOption, setting=paths[0], default=None, **options))
        for name, (_, group, flag, text) in _LISTS.items():
            if group in groups:
                found.append(click.option(flag, name, multiple=True, metavar="NAME=VALUE", help=text))
        if any_setting:
            text = "Any setting of the TOML file."
            found.append(click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help=text))
        for option in reversed(found):
            function = option(function)
        return function

    return decorate


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
    for name, (paths, _, _, _) in _FLAGS.items():
        value = params.get(name)
        if value is None or value == ():
            continue
        for path in paths:
            found[path] = list(value) if isinstance(value, tuple) else value
    for name, (prefix, _, _, _) in _LISTS.items():
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


def output_options(function: F) -> F:
    """Add ``--quiet`` and ``--json``."""
    function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")(
        function
    )
    return click.option("-q", "--quiet", is_flag=True, help="Print no progress.")(function)


def stage_option(function: F) -> F:
    """Add ``--stage``: of the training, whose weights count."""
    text = (
        "Training stage whose weights count; by default that of the search the subnet is from, else the last. "
        "alone/FOLDER for a net that was trained by itself."
    )
    return click.option("--stage", metavar="NAME", help=text)(function)


def alone_options(function: F) -> F:
    """Add how a subnet is trained by itself."""
    for option in (
        stage_option,
        click.option("--lr", type=float, help="Peak learning rate; that of each stage by default."),
        click.option(
            "--budget", default=1.0, show_default=True, help="Epochs of each stage, as a multiple of the supernet's."
        ),
        click.option("--seed", type=int, help="Of weights and batches; the run's by default."),
        click.option(
            "--from",
            "start",
            type=click.Choice(["scratch", "supernet"]),
            default="scratch",
            show_default=True,
            help="New (or --init's) weights and all stages, or the supernet's weights and the last stage.",
        ),
    ):
        function = option(function)
    return function


def alone_settings(config: RunConfig, params: Mapping[str, Any]) -> AloneSettings:
    """Return what the flags of :func:`alone_options` say."""
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


def refuse_both(config: str | None, every: bool) -> None:
    """Raise ``UsageError`` where one subnet is named and all are wanted."""
    if config is not None and every:
        raise click.UsageError(f"--config {config} names one subnet, --all takes every one. Leave one of them out.")


def start_options(function: F) -> F:
    """Add where a run's settings and its directory come from."""
    for option in (
        click.option("--resume", type=click.Path(path_type=Path), help="Go on with the run in this folder."),
        click.option(
            "--out", type=click.Path(path_type=Path), help="Folder of a new run; a new one in runs/ by default."
        ),
        click.option("--config-file", type=click.Path(path_type=Path), help="TOML file of settings; flags win."),
        click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard into the run's folder."),
        click.option("--recipe", help="Settings to start from; see `qnas plugins --kind recipe`."),
    ):
        function = option(function)
    return function
