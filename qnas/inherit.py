"""Bit inheritance on a finished run: one more stage, at fewer bits, that starts from the quantizers of the last one.

Shen et al., "Once Quantization-Aware Training: High Performance Extremely Low-bit Architecture Search", ICCV 2021: a
supernet at K bits is the start of one at K' < K bits; its steps become ``s' = 2^(K - K') s``, its zero points
``floor(z / 2^(K - K'))``. What a run with these stages from the beginning would train, this trains, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qnas import components
from qnas.checkpoint import load_weights
from qnas.config import QuantizationConfig, RunConfig, StageConfig, load_config
from qnas.errors import ConfigError, PluginError
from qnas.nn.quantizer import Quantizer

if TYPE_CHECKING:
    from qnas.plugins import Registry
    from qnas.run import Run

SMALLEST_BITS = 2


@dataclass(frozen=True)
class InheritSettings:
    """What the new stage is like.

    Attributes:
        w_bits, a_bits: its bit-widths; ``None`` keeps the lowest of the last stage.
        name: of the stage; by default ``3-bit``, or ``w3a4`` where the two differ.
        epochs, lr: ``None`` takes those of the last stage. 0 epochs only carry the quantizers over.
    """

    w_bits: int | None = None
    a_bits: int | None = None
    name: str | None = None
    epochs: int | None = None
    lr: float | None = None


def inherit(run: Run, settings: InheritSettings) -> str:
    """Add the stage to a finished run and return its name; :meth:`Run.train` then trains it.

    Nothing changes where the run's last stage is already this one.

    Raises:
        StoreError: the run is not trained to its end.
        ConfigError: the bit-widths are not lower, or the name is taken.
        PluginError: a quantizer has no rule to inherit.
    """
    last = run.config.train.all_stages()[-1]
    if _is_this(last, settings):
        return last.name
    checkpoint = run.stages.checkpoint()
    config = extended(run.config, settings)
    _check_quantizers(run.registry, config.quantization)
    space = components.build_space(run.registry, config, run.data)
    for stage in components.make_stages(config):
        stage.view(space)
    load_weights(components.build_supernet(run.registry, config, space, run.data), checkpoint)  # says so if unfit
    run.reconfigure(config)
    return config.train.stages[-1].name


def extended(config: RunConfig, settings: InheritSettings) -> RunConfig:
    """Return the configuration with one more stage; the earlier ones keep the bit-widths that they had.

    Raises:
        ConfigError: the bit-widths are not lower, or the name is taken.
    """
    quantization = config.quantization
    stages = tuple(
        stage.model_copy(
            update={"w_bits": stage.w_bits or quantization.w_bits, "a_bits": stage.a_bits or quantization.a_bits}
        )
        for stage in config.train.all_stages()
    )
    last = stages[-1]
    if not last.quantize:
        raise ConfigError(
            f"The last stage, {last.name!r}, trains no quantizers, so there is nothing to inherit. Train a quantized "
            "stage first."
        )
    w_bits = _lower("--w-bits", last.w_bits, settings.w_bits)
    a_bits = _lower("--a-bits", last.a_bits, settings.a_bits)
    if w_bits == min(last.w_bits) and a_bits == min(last.a_bits):
        raise ConfigError(
            f"Stage {last.name!r} has {w_bits}-bit weights and {a_bits}-bit activations already. Give fewer by "
            "--w-bits, --a-bits or both."
        )
    name = settings.name or (f"{w_bits}-bit" if w_bits == a_bits else f"w{w_bits}a{a_bits}")
    if name in [stage.name for stage in stages]:
        raise ConfigError(f"The run has a stage {name!r} already. Choose another --name.")
    added = last.model_copy(
        update={
            "name": name,
            "epochs": last.epochs if settings.epochs is None else settings.epochs,
            "lr": last.lr if settings.lr is None else settings.lr,
            "w_bits": (w_bits,),
            "a_bits": (a_bits,),
            "inherit": True,
            "restart": False,
            "calibrator": None,
        }
    )
    searched = config.search.stages and (*config.search.stages, name)
    changes = {
        "quantization": quantization.model_copy(
            update={
                "w_bits": tuple(sorted({*quantization.w_bits, w_bits})),
                "a_bits": tuple(sorted({*quantization.a_bits, a_bits})),
            }
        ),
        "train": config.train.model_copy(update={"stages": (*stages, added)}),
        "search": config.search.model_copy(update={"stages": searched}),
    }
    return load_config(config.model_copy(update=changes).model_dump(exclude_none=True))  # checks the name, too


def _lower(flag: str, known: tuple[int, ...], wanted: int | None) -> int:
    """Return the bit-width that is wanted, which must not be over the lowest that is trained."""
    if wanted is None:
        return min(known)
    if not SMALLEST_BITS <= wanted <= min(known):
        raise ConfigError(
            f"{flag} {wanted} cannot be inherited: the last stage trains {', '.join(map(str, known))} bits, and only "
            f"fewer can follow, down to {SMALLEST_BITS}."
        )
    return wanted


def _is_this(last: StageConfig, settings: InheritSettings) -> bool:
    """Tell whether the last stage is the one that these settings would add."""
    given = {
        "w_bits": settings.w_bits and (settings.w_bits,),
        "a_bits": settings.a_bits and (settings.a_bits,),
        "name": settings.name,
        "epochs": settings.epochs,
        "lr": settings.lr,
    }
    bits = settings.w_bits is not None or settings.a_bits is not None
    return last.inherit and bits and all(v is None or getattr(last, name) == v for name, v in given.items())


def _check_quantizers(registry: Registry, quantization: QuantizationConfig) -> None:
    for name, role in ((quantization.weight_quantizer, "weight"), (quantization.act_quantizer, "activation")):
        if components.quantizer_class(registry, name, role).inherit is Quantizer.inherit:
            raise PluginError(
                f"Quantizer {name!r} declares no rule to carry what it learned to fewer bits, so nothing can be "
                "inherited. Train a new run at these bits, or one with a quantizer that has such a rule (lsq)."
            )
