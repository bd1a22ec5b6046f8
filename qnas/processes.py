"""The processes of a run: which one this is, its device, and what the processes say to one another.

Several processes are started and connected by Lightning Fabric, on torch.distributed. Every process draws the same
subnets and works on its shard of each batch; gradients are added up locally and averaged once, explicitly, before the
step (DDP's reducer expects one backward pass a step, a sandwich has several). The first process, the *leader*, owns the
run directory and the strategy; the others, its *followers*, hand their results to it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from qnas.errors import ConfigError, ProcessError, QnasError
from qnas.nn.ranks import Ranks

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = timedelta(days=1)  # followers wait while the leader exports, or another process judges a large subnet
FABRIC_PRECISION = {"float32": "32-true", "bf16-mixed": "bf16-mixed"}


class Processes:
    """This process alone; the base of :class:`FabricProcesses`.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: ``float32`` or ``bf16-mixed``, of forward passes in training.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: on which this process trains and judges.
        ranks: reductions for the parts of a supernet.
    """

    rank: int = 0
    size: int = 1

    def __init__(self, device: str | torch.device = "cpu", precision: str = "float32") -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.ranks = Ranks()

    def alone(self) -> Processes:
        """Return this process by itself, on its device."""
        return Processes(self.device, self.precision)

    @property
    def leader(self) -> bool:
        """Whether this process owns the run directory."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of mixed precision for forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes; a parameter without gradient keeps none."""

    def share(self, value: Any) -> Any:
        """Return the leader's value in every process."""
        return value

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return ``function`` of each item, in order; items are shared out over processes that :meth:`serve`."""
        return [function(item) for item in items]

    def serve(self, function: Callable[[Any], Any]) -> None:
        """Work on what the leader's :meth:`map` hands out, until the leader leaves :meth:`leading`."""

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Let the followers serve for as long as the block lasts; for the leader."""
        yield

    def close(self) -> None:
        """Part from the other processes."""


class FabricProcesses(Processes):
    """One of several processes, which Lightning Fabric starts, or finds started by torchrun.

    Args:
        device: ``cpu`` or ``cuda``.
        devices: processes on each machine, one a device.
        num_nodes: machines.
        precision: ``float32`` or ``bf16-mixed``.

    Raises:
        ConfigError: the machine does not have what is asked for.
    """

    def __init__(self, device: str, devices: int, num_nodes: int, precision: str) -> None:
        super().__init__(device, precision)
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        _quiet_fabric()
        try:
            self.fabric = Fabric(
                accelerator=device,
                devices=devices,
                num_nodes=num_nodes,
                precision=FABRIC_PRECISION[precision],  # type: ignore[arg-type]
                strategy=DDPStrategy(timeout=TIMEOUT),
            )
            self.fabric.launch()
        except (RuntimeError, ValueError) as error:  # Fabric's own errors are of these kinds
            raise ConfigError(
                f"{devices} process(es) on {device}, {num_nodes} machine(s), cannot be started: {error}. "
                "Check --devices, --num-nodes and --device."
            ) from error
        self.rank, self.size = self.fabric.global_rank, self.fabric.world_size
        self.device = self.fabric.device
        if self.size > 1:
            self.ranks = _DistributedRanks(self.size)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average all gradients in one reduction; every process has gradients for the same parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        with _peers():
            torch.distributed.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.reshape(gradient.shape))

    def share(self, value: Any) -> Any:
        """Broadcast the leader's value. Pickled, but only among the processes of this run."""
        if self.size == 1:
            return value
        box = [value]
        with _peers():
            torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Hand out ``size`` items at a time; the leader works, too."""
        results: list[R] = []
        for start in range(0, len(items), self.size):
            results += self._round(function, items[start : start + self.size])
        return results

    def _round(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Work on this process's item of a round and collect all results."""
        if self.size == 1:
            return [function(item) for item in items]
        if self.leader:
            self.share(items)
        mine: tuple[str, Any] = ("none", None)
        if self.rank < len(items):
            try:
                mine = ("result", function(items[self.rank]))
            except QnasError as error:
                mine = ("error", error)
        gathered: list[Any] = [None] * self.size
        with _peers():
            torch.distributed.all_gather_object(gathered, mine)
        for kind, value in gathered:
            if kind == "error" and self.leader:
                raise value
        return [value for kind, value in gathered if kind == "result"]

    def serve(self, function: Callable[[Any], Any]) -> None:
        """Work until the leader ends."""
        if self.size == 1 or self.leader:
            return
        while (items := self.share(None)) is not None:
            self._round(function, items)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """End the followers' serving when the block is left, by an error too."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(ProcessError):  # it is the first error that counts
                self.share(None)
            raise
        self.share(None)

    def close(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Mean(torch.autograd.Function):
    """Mean over the processes; its gradient is the mean of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x, torch.distributed.ReduceOp.SUM) / torch.distributed.get_world_size()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _reduced(grads[0], torch.distributed.ReduceOp.SUM) / torch.distributed.get_world_size()


class _DistributedRanks(Ranks):
    """Reductions over the default process group."""

    def __init__(self, size: int) -> None:
        self.size = size

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over the processes."""
        mean: Tensor = _Mean.apply(x)  # type: ignore[no-untyped-call]
        return mean

    def minimum(self, x: Tensor) -> Tensor:
        """Return the smallest values over the processes."""
        return _reduced(x.detach(), torch.distributed.ReduceOp.MIN)

    def maximum(self, x: Tensor) -> Tensor:
        """Return the largest values over the processes."""
        return _reduced(x.detach(), torch.distributed.ReduceOp.MAX)


def _reduced(x: Tensor, op: Any) -> Tensor:
    result = x.clone(memory_format=torch.contiguous_format)
    with _peers():
        torch.distributed.all_reduce(result, op=op)
    return result


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Turn what torch.distributed says of a lost process into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"Another process of this run stopped ({str(error).partition('. ')[0]}). Look for its message; "
            "`qnas run --resume RUN` goes on from the last checkpoint."
        ) from error


def _quiet_fabric() -> None:
    """Keep Fabric's notes on available hardware, and each process's greeting, out of the terminal."""
    import logging
    import warnings

    for name in ("lightning_fabric", "lightning.fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")


def under_torchrun() -> bool:
    """Tell whether torchrun (torch.distributed.run) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def check_torchrun(devices: int, num_nodes: int) -> None:
    """Raise ``ConfigError`` where torchrun started another number of processes than the configuration asks for."""
    total = devices * num_nodes
    started = int(os.environ["WORLD_SIZE"]) if under_torchrun() else total
    if started != total:
        raise ConfigError(
            f"torchrun started {started} processes, but --devices {devices} and --num-nodes {num_nodes} ask for "
            f"{total}. Give its --nproc-per-node and --nnodes the same numbers."
        )


def is_follower() -> bool:
    """Tell, before the processes are connected, whether this one was started as a follower."""
    names = ("RANK",) if under_torchrun() else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return any(int(os.environ.get(name, 0)) > 0 for name in names)


def connect(*, device: str, devices: int, num_nodes: int, precision: str) -> Processes:
    """Start the processes that are asked for and return this one's view of them.

    Raises:
        ConfigError: they cannot be started.
    """
    if devices < 1 or num_nodes < 1:
        raise ConfigError(
            f"devices and num_nodes must be at least 1; given: {devices} and {num_nodes}. "
            "Correct --devices and --num-nodes."
        )
    check_torchrun(devices, num_nodes)
    if devices * num_nodes == 1 and not under_torchrun():
        return Processes(device, precision)
    return FabricProcesses(device, devices, num_nodes, precision)


def resolve_device(name: str, *, missing: str = "") -> str:
    """Return ``cuda`` or ``cpu``; ``auto`` takes a GPU where there is one.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``.
        missing: what to return for ``cuda`` where there is none, instead of an error.

    Raises:
        ConfigError: ``cuda`` where there is none.
    """
    if name == "cpu" or torch.cuda.is_available():
        return "cpu" if name == "cpu" else "cuda"
    if name == "cuda" and not missing:
        raise ConfigError(
            "device is 'cuda', but PyTorch finds no CUDA device on this machine. Use --device cpu, or install a CUDA "
            "build of PyTorch and a driver."
        )
    return missing if name == "cuda" else "cpu"
