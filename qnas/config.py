"""The configuration of a run: defaults, recipe, TOML file and flags, validated once.

Only commands that run something load this module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qnas.errors import ConfigError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


MODULE_SPACE = "module"  # the space that traces a network: `module:PACKAGE.MODULE:FACTORY`
ONE_THREAD_IMAGE = 32  # pixels; up to here a second thread gains nothing and makes results depend on their number


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Which images, and how they are split."""

    name: str = "digits"
    image_size: int | None = Field(default=None, ge=8, le=1024, description="pixels; the data set's own by default")
    search_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    test_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    options: dict[str, Any] = {}


class SpaceConfig(_Section):
    """Which search space; its options are those of the space's constructor."""

    name: str = "mbv3"
    options: dict[str, Any] = {}


class QuantizationConfig(_Section):
    """Quantizers, and the bit-widths to search."""

    weight_quantizer: str = "lsq"
    act_quantizer: str = "lsq"
    w_bits: tuple[int, ...] = (2, 3, 4)
    a_bits: tuple[int, ...] = (2, 3, 4)
    granularity: Literal["network", "stage", "block", "layer"] = "stage"
    folding: Literal["none", "moving", "batch"] = "none"
    quantize: Literal["full", "conv-only"] = Field(
        default="full", description="every operator, or convolutions alone: the rest, batch normalisation too, in float"
    )
    bn: Literal["shared", "w_bits", "a_bits"] = Field(
        default="shared", description="batch normalisation of a layer: one, or one for each of its bit-widths"
    )
    weight_options: dict[str, Any] = {}
    act_options: dict[str, Any] = {}


class StageConfig(_Section):
    """One training stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    epochs: int = Field(ge=0, description="0 only starts quantizers")
    lr: float = Field(gt=0)
    quantize: bool = True
    roles: tuple[Literal["weight", "activation"], ...] = ("weight", "activation")
    w_bits: tuple[int, ...] = ()
    a_bits: tuple[int, ...] = ()
    inherit: bool = False
    restart: bool = False
    calibrator: str | None = None
    parameters: Literal["all", "norms", "biases"] = Field(
        default="all",
        description="in [[retrain.stages]]: train norms and clips alone, or their biases and clips",
    )


class TrainConfig(_Section):
    """The supernet's training. ``stages`` replaces the float and the quantized stage that follow from the rest."""

    sampler: str = "sandwich"
    supervision: str = "inplace-distillation"
    sampler_options: dict[str, Any] = {}
    supervision_options: dict[str, Any] = {}
    num_subnets: int = Field(default=4, ge=1, description="subnets a step")
    batch_size: int = Field(default=64, ge=2)
    float_epochs: int = Field(default=6, ge=0)
    epochs: int = Field(default=14, ge=0, description="quantized epochs")
    lr: float = Field(default=6e-3, gt=0)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd, after Nesterov")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="of weights: decoupled by adamw, in the gradient by adam and sgd"
    )
    quantizer_lr: float = Field(default=1.0, gt=0, description="learning rate of quantizers, as a multiple of lr")
    clip_lr: float = Field(default=1.0, gt=0, description="that of learned clip values, as a multiple of lr")
    clip_norm: float = Field(default=10.0, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    start_images: int = Field(default=256, ge=1)
    record_every: int = Field(default=0, ge=0, description="steps between looks inside; 0: once an epoch")
    calibrator: str | None = Field(default=None, description="of ranges; by default quantizers start by their own rule")
    calibrator_options: dict[str, Any] = {}
    init: str | None = Field(default=None, description="file of weights to start from")
    stages: tuple[StageConfig, ...] = ()

    def all_stages(self) -> tuple[StageConfig, ...]:
        """Return the stages, in order."""
        if self.stages:
            return self.stages
        stages = []
        if self.float_epochs:
            stages.append(StageConfig(name="float", epochs=self.float_epochs, lr=self.lr, quantize=False))
        if self.epochs or self.calibrator:
            stages.append(
                StageConfig(name="quantized", epochs=self.epochs, lr=self.lr, quantize=True, calibrator=self.calibrator)
            )
        return tuple(stages)


class SearchConfig(_Section):
    """The search; its options are those of the strategy's constructor."""

    strategy: str = "evolution"
    evaluations: int = Field(default=60, ge=1)
    objectives: tuple[str, ...] = ("accuracy", "bitops")
    constraints: tuple[str, ...] = ()
    stages: tuple[str, ...] = Field(default=(), description="training stages to search, each by itself; the last one")
    options: dict[str, Any] = {}
    predictor: str | None = Field(default=None, description="search on predictions; `evaluations` counts them")
    measured: int = Field(default=20, ge=1, description="best predicted subnets that are judged at the end")
    kfold: int = Field(
        default=0, ge=0, description="after the search, folds that select in turn, the others test; 0: none"
    )

    @field_validator("predictor")
    @classmethod
    def _none(cls, value: str | None) -> str | None:
        """Read ``none``, since TOML and flags have no other word for it."""
        return None if value == "none" else value


class PredictorConfig(_Section):
    """What a predictor of accuracy learns from, and its options; `search.predictor` uses it."""

    name: str = "mlp"
    options: dict[str, Any] = {}
    sampler: str = "uniform"
    sampler_options: dict[str, Any] = {}
    samples: int = Field(default=500, ge=10, description="subnets to judge")
    holdout: float = Field(default=0.2, gt=0, lt=1, description="share of them that only scores the predictor")


class RetrainConfig(_Section):
    """Training points of the searched fronts again, each net by itself, before they are deployed."""

    points: Literal["none", "chosen", "front"] = "none"
    start: Literal["scratch", "supernet"] = Field(
        default="scratch", description="new weights, or those that the supernet had after the stage that was searched"
    )
    bits: tuple[int, ...] = Field(
        default=(), description="of weights and activations alike, one training each; the point's own by default"
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="to train through; by default the run's (scratch), or the searched one (supernet)"
    )


class EvaluationConfig(_Section):
    """How a subnet is judged."""

    calibrators: tuple[str, ...] | None = Field(
        default=None, description="run in this order for each subnet; by default bn, then what the quantizers ask for"
    )
    options: dict[str, dict[str, Any]] = Field(default={}, description="of calibrators, by name")
    calibration_images: int = Field(default=500, ge=2)
    calibration_batch: int = Field(default=100, ge=2)
    batch_size: int = Field(default=256, ge=1)


class LatencyConfig(_Section):
    """How the metric ``latency_ms`` is found, on ``deploy_device``; nothing is measured unless something names it."""

    mode: Literal["measured", "table"] = Field(
        default="measured", description="each subnet measured, or looked up block by block; a front is always measured"
    )
    threads: int = Field(default=1, ge=1, description="that the device computes with")
    batch: int = Field(default=1, ge=1, description="images of one inference")
    rounds: int = Field(default=40, ge=5, description="in which a net is timed beside the reference")
    table: str | None = Field(default=None, description="file of `qnas profile`; the run makes its own by default")
    force: bool = Field(default=False, description="take a table whose check failed, or of another machine")


class RunConfig(_Section):
    """Everything that decides a run's results."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | None = Field(default=None, ge=1, description="by default one for small images, else one a core")
    compile: bool | None = Field(default=None, description="compiled kernels; by default where a compiler works")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where nets train and are judged")
    devices: int = Field(default=1, ge=1, description="processes on each machine, one a device")
    num_nodes: int = Field(default=1, ge=1, description="machines")
    precision: Literal["float32", "bf16-mixed"] = Field(
        default="float32", description="of training; judging is float32"
    )
    task: str = "classification"
    deploy_device: str = "onnxruntime"
    data: DataConfig = DataConfig()
    space: SpaceConfig = SpaceConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    train: TrainConfig = TrainConfig()
    predictor: PredictorConfig = PredictorConfig()
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    latency: LatencyConfig = LatencyConfig()

    def to_toml(self) -> str:
        """Return the configuration as TOML that :func:`load_config` reads back to an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def default_threads(image_size: int, processes: int = 1) -> int:
    """Return the number of threads of one process: one for small images, else its share of the cores we may use.

    Args:
        image_size: in pixels.
        processes: on this machine.
    """
    if image_size <= ONE_THREAD_IMAGE:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def load_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge nested dictionaries, later ones first in rank, and validate the result.

    Raises:
        ConfigError: names the first wrong entry, what was given and what is allowed.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    try:
        config = RunConfig.model_validate(_tuples(merged))
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from error
    if not config.train.all_stages():
        raise ConfigError(
            "train.float_epochs and train.epochs are both 0: nothing would be trained. Give at least one epoch."
        )
    trains = any(stage.epochs for stage in config.train.all_stages())
    brings_weights = module_source(config) is not None and config.space.options.get("weights") != "fresh"
    if not trains and config.train.init is None and not brings_weights:
        raise ConfigError(
            "No stage trains (all epochs are 0), and there are no weights to start from. Give at least one epoch, or "
            "a file by --init."
        )
    for stage in config.train.stages:
        if stage.parameters != "all":
            raise ConfigError(
                f"Stage {stage.name!r} of train.stages cannot have parameters = {stage.parameters!r}: its "
                "norms are shared by all subnets, and what is finetuned belongs to one. Give it in [[retrain.stages]]."
            )
    names = [stage.name for stage in config.train.all_stages()]
    if len(set(names)) != len(names):
        raise ConfigError(f"train.stages must have different names; given: {', '.join(names)}. Rename one.")
    for name in config.search.stages:
        if name not in names:
            raise ConfigError(unknown_name("The stage", name, names, "Correct --stage (search.stages)."))
    return config


def module_source(config: RunConfig) -> str | None:
    """Return what a space ``module:PACKAGE.MODULE:FACTORY`` names, or ``None`` for any other space."""
    kind, colon, source = config.space.name.partition(":")
    return source if kind == MODULE_SPACE and colon else None


def _tuples(value: Any) -> Any:
    """Return the value with every list as a tuple, which strict validation wants."""
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def read_toml(path: Path, what: str = "configuration") -> dict[str, Any]:
    """Return a TOML file as nested dictionaries; ``what`` names it in errors.

    Raises:
        ConfigError: it is absent or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read: {error.strerror}. Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The {what} {path} is no valid TOML: {error}. Correct that line.") from error


def read_settings(path: Path, what: str = "configuration") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a TOML file's settings and its table ``large``, which is put over them for large images.

    Raises:
        ConfigError: it is absent or no TOML, or ``large`` is no table.
    """
    settings = read_toml(path, what)
    large = settings.pop("large", {})
    if not isinstance(large, dict):
        raise ConfigError(f"The {what} {path} has large = {large!r}; [large] is a table of settings. Correct it.")
    return settings, large


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the entries of ``over`` put over it, table by table."""
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    result: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{path!r} does not name a setting: {parent!r} is one value. See `qnas run --help`.")
        table[leaf] = value
    return result


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as ``{"a.b": 1}``."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{name}."))
        else:
            result[prefix + name] = value
    return result


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the path and value of ``PATH=VALUE``; the value is TOML, or plain text if it is none.

    ``1,2,3`` is read as a list.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{text!r} is not of the form NAME=VALUE. For example --set train.lr=0.01.")
    for source in (value, f"[{value}]") if "," in value else (value,):
        try:
            return path.strip(), tomllib.loads(f"value = {source}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return path.strip(), value


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model: Any = RunConfig
        for part in first["loc"][:-1]:
            field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
            model = field.annotation if field is not None else model
        names = list(getattr(model, "model_fields", {}))
        return unknown_name("The setting", path, names, "Correct the TOML file or --set.")
    reason = _plain(first["msg"])
    return f"The setting {path} cannot be {first['input']!r}: {reason}. Correct it in the TOML file or its flag."


def _plain(message: str) -> str:
    """Return pydantic's message in the words of a TOML file."""
    return message.replace("a valid tuple", "a list, such as [1, 2]")
