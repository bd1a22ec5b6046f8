"""Initial weights from a file: a network in torchvision's layout, or a supernet that was trained here.

The file's network is the largest kernel, width and depth that it has room for: a smaller kernel lies in the centre of
an elastic one with zeros around it, so that it is every choice of kernel at the start; fewer channels are a prefix.
Whatever the file does not hold keeps its random start. Quantizers keep theirs too, since they start from data.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qnas.errors import ConfigError
from qnas.nn.elastic import ElasticConv
from qnas.nn.supernet import Supernet

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".th")
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the weights
OWN = "model.parts."  # what the weights of a checkpoint of this project begin with
NAMED = 3  # names in a message
_QUANTIZER = re.compile(r"\.(weight_)?quantizer\.")


@dataclass(frozen=True)
class InitReport:
    """What came of a file of initial weights.

    Attributes:
        path: of the file.
        tensors: of weights and statistics that it holds.
        loaded: how many of them the supernet took.
        unused: names of those that have no counterpart in the supernet.
        unfit: those whose counterpart is of another shape, with both shapes.
        kept: names of the supernet's tensors that kept their random start.
        prefixes: names of those that the file's fill only a prefix of, since the supernet has more channels.
    """

    path: str
    tensors: int
    loaded: int
    unused: tuple[str, ...]
    unfit: tuple[str, ...]
    kept: tuple[str, ...]
    prefixes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line."""
        parts = [f"{self.loaded} of {self.tensors} tensors of {self.path} loaded"]
        for found, what in ((self.unfit, "of another shape"), (self.unused, "unused")):
            if found:
                parts.append(f"{len(found)} {what} ({_some(found)})")
        if self.kept:
            parts.append(f"{len(self.kept)} of the supernet keep their random start ({_some(self.kept)})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the summary as JSON."""
        return {**asdict(self), "summary": self.summary()}

    @property
    def whole(self) -> bool:
        """Whether the file's network is the supernet's largest: every channel from the file, and all of the file."""
        return not (self.kept or self.unused or self.unfit or self.prefixes)


@dataclass(frozen=True)
class _Target:
    """A tensor of the supernet: its layer's readable name, and where it is to come from.

    Attributes:
        label: for reports.
        source: name in the file.
        classes: whether its first dimension counts the classes, so that none may be missing.
        resizable: whether a smaller tensor may fill a part of it.
    """

    label: str
    source: str
    classes: bool = False
    resizable: bool = True


def load_initial_weights(supernet: Supernet, path: Path) -> InitReport:
    """Load what fits of a file into a supernet, in place.

    Args:
        supernet: fresh; every batch normalisation bank gets a copy of the file's parameters and statistics.
        path: a ``.safetensors`` file, or a ``.pth``, ``.pt`` or ``.th`` one that holds tensors alone.

    Raises:
        ConfigError: the file is missing, damaged, holds code, or less than half of its tensors fit.
    """
    tensors = read_tensors(path)
    own = any(name.startswith(OWN) for name in tensors)
    targets = _own_targets(supernet, tensors, path) if own else _torchvision_targets(supernet, path)
    if own:
        tensors = {n: t for n, t in tensors.items() if n.startswith("model.") and not _QUANTIZER.search(n)}
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    taken: set[str] = set()
    kept, unfit, prefixes = [], {}, []
    for name, target in targets.items():
        source = tensors.get(target.source)
        if source is not None and _fit(state[name], source, target):
            taken.add(target.source)
            if source.shape[:2] != state[name].shape[:2]:
                prefixes.append(target.label)
            continue
        kept.append(target.label)
        if source is not None:
            unfit[target.source] = f"{target.source} {list(source.shape)} for {list(state[name].shape)}"
    known = {target.source for target in targets.values()}
    unused = [name for name in tensors if name not in known]
    if 2 * len(taken) < len(tensors) or not taken:
        wanted = [(target, state[name]) for name, target in targets.items()]
        raise _misfit(supernet.space.name, path, tensors, taken, wanted)
    _check_finite(path, {name: tensors[name] for name in taken})
    supernet.load_state_dict(state)
    left = (tuple(unused), tuple(unfit.values()), tuple(kept), tuple(prefixes))
    return InitReport(str(path), len(tensors), len(taken), *left)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        ConfigError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    return digest.hexdigest()


# --- reading -----------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without a leading ``module.`` and counters of batches; runs no code.

    Raises:
        ConfigError: it is missing, damaged, of another kind, or holds anything but tensors.
    """
    if path.is_dir():
        raise _unreadable(path, "it is a folder (a run's weights are in stages/NN-name/checkpoint.safetensors)")
    if not path.is_file():
        raise _unreadable(path, "there is no such file")
    if path.suffix not in (SAFETENSORS, *PICKLES):
        raise ConfigError(
            f"The initial weights {path} are in no format known by its ending {path.suffix!r}; allowed: {SAFETENSORS}, "
            f"{', '.join(PICKLES)}. Rename or convert the file that --init names."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            found: Any = (
                load_file(path)
                if path.suffix == SAFETENSORS
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"The initial weights {path} hold Python objects besides tensors, or are damaged. Such objects are not "
            "loaded, since they could run code. Save the weights alone, by torch.save(model.state_dict(), ...) or as "
            "safetensors, and give that file to --init."
        ) from error
    except Exception as error:  # readers of damaged files raise whatever the damage leads to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _unreadable(path, f"it is damaged or no file of tensors ({reason})") from error
    return _unwrapped(found, path)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    items = found.items() if isinstance(found, Mapping) else ()
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in items
        if isinstance(value, Tensor) and not str(name).endswith("num_batches_tracked")
    }
    if not tensors:
        raise ConfigError(
            f"The initial weights {path} hold no tensors by name: found {type(found).__name__}. Give --init a "
            "state_dict, by itself or under the key 'state_dict' or 'model'."
        )
    return tensors


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The initial weights {path} cannot be read: {why}. Give --init a .safetensors or .pth file of weights."
    )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"The initial weights {path} are not finite: {name} holds NaN or infinity. Give --init another file."
            )


# --- what goes where ---------------------------------------------------------------------------------------------


def _torchvision_targets(supernet: Supernet, path: Path) -> dict[str, _Target]:
    """Return where each tensor of the supernet's layers is to come from, by its name in the supernet."""
    space = supernet.space
    names = space.torchvision_names()
    if not names:
        raise ConfigError(
            f"Space {space.name!r} has no layout of torchvision, so the weights in {path} cannot be told apart. Give "
            "--init a checkpoint of this space (stages/.../checkpoint.safetensors of a run), or leave it out."
        )
    targets = {}
    for prefix, layer in supernet.named_modules():
        if not isinstance(layer, ElasticConv):
            continue
        fields = {"weight": "weight"} | ({} if layer.bias is None else {"bias": "bias"})
        for ours, theirs in fields.items():
            source = f"{names[layer.name]}.{theirs}" if layer.name in names else ""
            targets[f"{prefix}.{ours}"] = _Target(f"{layer.name}.{theirs}", source, layer.linear)
        if layer.bn is None:
            continue
        module = names.get(f"{layer.name}.bn")
        for i in range(len(layer.bn.banks)):
            banks = {
                f"weights.{i}": "weight",
                f"biases.{i}": "bias",
                f"mean{i}": "running_mean",
                f"var{i}": "running_var",
            }
            for ours, theirs in banks.items():
                source = "" if module is None else f"{module}.{theirs}"
                targets[f"{prefix}.bn.{ours}"] = _Target(f"{layer.name}.bn.{theirs}", source)
    return targets


def _own_targets(supernet: Supernet, tensors: Mapping[str, Tensor], path: Path) -> dict[str, _Target]:
    """Return the same for a checkpoint of this project, whose names are the supernet's own.

    The names count the network's parts, so they mean the same only in a network of the same parts.
    """
    classes = {f"{n}.{f}" for n, m in supernet.named_modules() if isinstance(m, ElasticConv) and m.linear
               for f in ("weight", "bias")}  # fmt: skip
    ours = [name for name in supernet.state_dict() if not _QUANTIZER.search(name)]
    theirs = {n.removeprefix("model.") for n in tensors if n.startswith("model.") and not _QUANTIZER.search(n)}
    odd = sorted({name for name in theirs.symmetric_difference(ours) if ".transforms." not in name})
    if odd:
        raise ConfigError(
            f"The checkpoint {path} is of another network than space {supernet.space.name!r} with these options: only "
            f"one of the two has {_some(odd)}. Give the space and the options of the run that it is from (its "
            "config.toml), depths above all; kernels, expansions, widths, bit-widths and classes may differ."
        )
    return {
        name: _Target(name, f"model.{name}", name in classes, resizable=".transforms." not in name) for name in ours
    }


def _fit(target: Tensor, source: Tensor, how: _Target) -> bool:
    """Copy ``source`` into (a part of) ``target``; return whether it has room and may be smaller."""
    if source.ndim == 2 and target.ndim == 4:
        source = source[:, :, None, None]
    if not source.is_floating_point() or source.ndim != target.ndim:
        return False
    if source.shape == target.shape:
        target.copy_(source)
        return True
    smaller = all(n <= room for n, room in zip(source.shape, target.shape, strict=True))
    if not smaller or not how.resizable or (how.classes and len(source) != len(target)):
        return False
    part = target[tuple(slice(n) for n in source.shape[:2])]
    if source.ndim == 4:
        margin = (target.shape[-1] - source.shape[-1]) // 2
        part.zero_()
        part = part[:, :, margin : margin + source.shape[2], margin : margin + source.shape[3]]
    part.copy_(source)
    return True


def _misfit(
    space: str, path: Path, tensors: Mapping[str, Tensor], taken: set[str], wanted: Iterable[tuple[_Target, Tensor]]
) -> ConfigError:
    holds = _some(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in taken)
    wants = _some(f"{t.source} {list(ours.shape)}" for t, ours in wanted if t.source and t.source not in taken)
    return ConfigError(
        f"The initial weights {path} are not of space {space!r} with these options: {len(taken)} of {len(tensors)} "
        f"tensors fit. The file has {holds} besides; the space wants {wants or 'nothing else'}. Choose the space, "
        "size, width and depths that the file is of (--space, --space-option), or another file."
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (", ..." if len(listed) > NAMED else "")
