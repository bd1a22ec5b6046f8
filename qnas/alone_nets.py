"""Nets that were trained by themselves, with their own weights, where a stage of the supernet could be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qnas import components
from qnas.alone import AloneSettings, stage_checkpoints
from qnas.checkpoint import load_weights
from qnas.config import StageConfig
from qnas.errors import StoreError
from qnas.nn.supernet import Supernet
from qnas.retrained import RESULT, alone_folder
from qnas.space import Sample, SearchSpace
from qnas.train import Stage, set_stage_mode

if TYPE_CHECKING:
    from qnas.run import Run


@dataclass(frozen=True)
class AloneNet:
    """One net that was trained by itself, to its end.

    Attributes:
        stage: under which it is found, ``alone/FOLDER``.
        sample: what it is.
        settings: how it was trained.
    """

    stage: str
    sample: Sample
    settings: AloneSettings

    def space(self, run: Run) -> SearchSpace:
        """Return the space with nothing but this net."""
        return self.settings.space(run).pin(self.sample)

    def checkpoint(self, run: Run) -> Path:
        """Return the file of its weights."""
        names = [stage.name for stage in self.settings.stages(run.config)]
        return stage_checkpoints(run.store.path / self.stage, names)[-1]

    def supernet(self, run: Run) -> Supernet:
        """Return the net, as a supernet with one subnet."""
        stages = self.settings.stages(run.config)
        supernet = components.build_supernet(run.registry, run.config, run.space, run.data)
        load_weights(supernet, self.checkpoint(run))
        set_stage_mode(supernet, Stage(**stages[-1].model_dump()))
        supernet.space = self.space(run)
        supernet.eval()
        return supernet


def find_net(run: Run, stage: str) -> AloneNet:
    """Return the net that ``alone/FOLDER`` names.

    Raises:
        StoreError: there is none, or it is not trained to its end.
    """
    folder = alone_folder(run.store.path, stage)
    result = run.store.read_json(folder / RESULT)
    if result is None:
        state = "is not trained to its end" if folder.is_dir() else "does not exist"
        raise StoreError(
            f"{folder} {state}. Train it by `qnas train-alone {run.store.path}`, or by `qnas run --resume "
            f"{run.store.path}` where the run trains its points again ([retrain])."
        )
    try:
        return AloneNet(stage, dict(result["sample"]), _settings(result))
    except (KeyError, TypeError, ValidationError) as error:
        raise StoreError(
            f"{folder / RESULT} does not say how its net was trained: {error}. Delete it; the same command makes it "
            "anew."
        ) from error


def _settings(result: dict[str, Any]) -> AloneSettings:
    own = tuple(StageConfig.model_validate_json(json.dumps(stage)) for stage in result.get("own", ()))
    return AloneSettings(result["start"], result["seed"], result["budget"], result["lr"], result["stage"], own)
