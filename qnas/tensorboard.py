"""Events of a run for TensorBoard; needs the package ``tensorboard`` (``pip install qnas[tensorboard]``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qnas.errors import ConfigError

FOLDER = "tensorboard"


def load_writer() -> Any:
    """Return the class that writes events.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the package tensorboard, which is not installed. "
            "Install it (pip install tensorboard), or leave the flag out."
        ) from error
    return SummaryWriter


class TensorBoardRecorder:
    """Writes losses, gradient norms, quantizers' steps and clip ratios, batch deviations and trials.

    Args:
        run: the run's directory; events go to its folder ``tensorboard``.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, run: Path) -> None:
        self._writer = load_writer()(str(run / FOLDER))
        self._step = 0

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Write what the event holds."""
        if event == "step":
            self._step = values["number"]
            for i, loss in enumerate(values["losses"]):
                self._add(f"loss/subnet {i}", loss)
            for name in ("gradient_norm", "clip_ratio", "lr"):
                self._add(f"train/{name}", values[name])
        elif event == "inside":
            for i, subnet in enumerate(values["subnets"]):
                for group in ("steps", "clip_ratios", "bn_std"):
                    for site, value in subnet[group].items():
                        self._add(f"{group}/{site}/subnet {i}", value)
            for site, value in values["gradient_norms"].items():
                self._add(f"gradient_norms/{site}", value)
        elif event == "trial":
            for name, value in values["metrics"].items():
                self._writer.add_scalar(f"search/{name}", value, values["number"])
        elif event == "phase" and values["state"] != "start":
            self._writer.flush()

    def _add(self, name: str, value: float) -> None:
        self._writer.add_scalar(name, value, self._step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
