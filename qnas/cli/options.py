"""Flags and the settings that they stand for: one table, so that a TOML file can say whatever a flag can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

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
FLAGS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], dict[str, Any]]] = {
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
LISTS = {
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
        for name, (paths, group, flags, options) in FLAGS.items():
            if group in groups:
                found.append(click.option(*flags, name, cls=SettingOption, setting=paths[0], default=None, **options))
        for name, (_, group, flag, text) in LISTS.items():
            if group in groups:
                found.append(click.option(flag, name, multiple=True, metavar="NAME=VALUE", help=text))
        if any_setting:
            text = "Any setting of the TOML file."
            found.append(click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help=text))
        for option in reversed(found):
            function = option(function)
        return function

    return decorate


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
