"""Checkpoints of training: one safetensors file, written atomically. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qnas.errors import StoreError
from qnas.files import write_atomically
from qnas.nn.quantizer import Quantizer
from qnas.nn.supernet import Supernet
from qnas.train import Progress, Trainer

_META = "qnas"  # one key: the order of several is not fixed in the file


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write weights, optimizer state while a stage is under way, supervision state and progress."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in trainer.supernet.state_dict().items():
        tensors[f"model.{name}"] = tensor.detach().cpu().contiguous()
    if trainer.optimizer is not None:
        for number, state in trainer.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{number}.{name}"] = value.detach().cpu().contiguous()
    for name, tensor in trainer.supervision.state_dict().items():
        tensors[f"supervision.{name}"] = tensor.detach().cpu().contiguous()
    meta = {"progress": asdict(trainer.progress), "optimizer": trainer.optimizer is not None}
    metadata = {_META: json.dumps(meta, sort_keys=True)}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata))


def read_progress(path: Path) -> Progress:
    """Return only where training stood."""
    return _progress(_read(path, tensors=False)[1], path)


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer where a checkpoint was written."""
    tensors, meta = _read(path)
    _load_weights(trainer.supernet, tensors, path)
    trainer.progress = _progress(meta, path)
    trainer.supervision.load_state_dict(_part(tensors, "supervision."))
    trainer.optimizer = None
    if meta["optimizer"]:
        trainer.optimizer = trainer.make_optimizer()
        parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, _, field = name.partition(".")
            like = parameters[int(number)]
            if tensor.shape == like.shape:  # the fused optimizer wants moments in the parameter's memory layout
                tensor = torch.empty_like(like).copy_(tensor)
            state.setdefault(int(number), {})[field] = tensor
        whole = trainer.optimizer.state_dict()
        trainer.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def load_weights(supernet: Supernet, path: Path) -> None:
    """Load only the supernet's weights from a checkpoint."""
    _load_weights(supernet, _read(path)[0], path)


def _progress(meta: dict[str, Any], path: Path) -> Progress:
    try:
        return Progress(**meta["progress"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"The checkpoint {path} says nothing usable of its progress: {error}. Delete it.") from error


def _load_weights(supernet: Supernet, tensors: dict[str, Tensor], path: Path) -> None:
    """Load all weights; only quantizers that can inherit may lack the state of bit-widths, which came later."""
    growing = tuple(
        f"{name}."
        for name, module in supernet.named_modules()
        if isinstance(module, Quantizer) and type(module).inherit is not Quantizer.inherit
    )
    try:
        found = supernet.load_state_dict(_part(tensors, "model."), strict=False)
        wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if not name.startswith(growing))]
        reason = f"only one of the two has {wrong[0]}." if wrong else ""
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
    if reason:
        raise StoreError(
            f"The checkpoint {path} does not fit the space and quantizers of {path.parents[2] / 'config.toml'}: "
            f"{reason} Restore the configuration it was trained with."
        )
    supernet.unset = frozenset(found.missing_keys)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_META])
            names = file.keys() if tensors else ()
            found = {name: torch.clone(file.get_tensor(name)) for name in names}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(
            f"The checkpoint {path} cannot be read: {error}. "
            "Delete it; `qnas run --resume` goes on from the one before."
        ) from error
    return found, meta
