"""What a configuration leaves to the machine: filled in once, recorded, and kept when a run goes on."""

from __future__ import annotations

import torch

from qnas.config import RunConfig, default_threads
from qnas.errors import ConfigError
from qnas.plugins import Registry
from qnas.processes import resolve_device


def resolve_machine(config: RunConfig, registry: Registry, image_size: int) -> RunConfig:
    """Return the configuration with image size, device, threads and compiled kernels filled in.

    Args:
        image_size: of the loaded data, in pixels.

    Raises:
        ConfigError: this machine lacks a device, or the compiler, that is asked for.
    """
    device = resolve_device(config.device)
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(
            f"devices is {config.devices}, but this machine has {torch.cuda.device_count()} GPU(s). Lower --devices."
        )
    changes = {
        "device": device,
        "data": config.data.model_copy(update={"image_size": config.data.image_size or image_size}),
        "threads": config.threads or default_threads(image_size, config.devices),
        "compile": _can_compile(config, registry) if config.compile is None else config.compile,
    }
    config = config.model_copy(update=changes)
    check_compiler(config, registry)
    return config


def check_compiler(config: RunConfig, registry: Registry) -> None:
    """Raise ``ConfigError`` where compiled kernels are asked for and cannot be built."""
    if config.compile and not _can_compile(config, registry):
        raise ConfigError(
            f"compile is true, but quantizers {', '.join(_quantizers(config))} have no compiled kernel that works on "
            "this machine. Install a C compiler (cc), or set compile to false (about a third slower, and the last bits "
            "of results differ)."
        )


def _quantizers(config: RunConfig) -> list[str]:
    return sorted({config.quantization.weight_quantizer, config.quantization.act_quantizer})


def _can_compile(config: RunConfig, registry: Registry) -> bool:
    return any(registry.load("quantizer", name).can_compile() for name in _quantizers(config))
