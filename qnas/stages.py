"""The supernet as it was after each stage of a run's training, and what judges its subnets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qnas import components
from qnas.alone_nets import find_net
from qnas.checkpoint import load_weights, read_progress
from qnas.errors import StoreError, unknown_name
from qnas.evaluate import Evaluator, SizedBatches
from qnas.nn.supernet import Supernet
from qnas.retrained import is_alone
from qnas.space import SearchSpace
from qnas.train import Progress, Stage, set_stage_mode

if TYPE_CHECKING:
    from qnas.run import Run


class TrainedStages:
    """The stages of a run: their checkpoints, and an evaluator for each that is finished.

    A net that was trained by itself is asked for like a stage, by ``alone/FOLDER``: :meth:`space`, :meth:`supernet` and
    :meth:`evaluator` then speak of this net with its own weights.

    Args:
        run: whose configuration, data and registry are used; nothing is read before it is asked for.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._evaluators: dict[str, Evaluator] = {}
        self._sized: SizedBatches = {}

    def all(self) -> tuple[Stage, ...]:
        """Return every stage, in order."""
        return components.make_stages(self.run.config)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint file of every stage, whether it exists or not."""
        return [self.run.store.stage_checkpoint(i, stage.name) for i, stage in enumerate(self.all())]

    def latest_checkpoint(self) -> Path | None:
        """Return the checkpoint of the furthest stage, or ``None``."""
        found = [path for path in self.checkpoints() if path.is_file()]
        return found[-1] if found else None

    def progress(self) -> Progress:
        """Return where training stands."""
        latest = self.latest_checkpoint()
        return Progress() if latest is None else read_progress(latest)

    def finished(self) -> list[str]:
        """Return the names of the stages that are trained to their end."""
        return [stage.name for stage in self.all()[: self.progress().stage]]

    def checkpoint(self, name: str | None = None) -> Path:
        """Return the checkpoint after a stage, by default after the last one of all, or that of ``alone/FOLDER``.

        Raises:
            StoreError: there is no such stage, or it is not trained to its end.
        """
        if name is not None and is_alone(name):
            return find_net(self.run, name).checkpoint(self.run)
        number = self.number(name)
        if self.progress().stage <= number:
            which = "" if name is None else f" of stage {name!r}"
            raise StoreError(
                f"The supernet in {self.run.store.path} is not trained to the end{which}. "
                f"Go on with `qnas train --resume {self.run.store.path}`."
            )
        return self.checkpoints()[number]

    def number(self, name: str | None) -> int:
        """Return the position of a stage; ``None`` is the last one.

        Raises:
            StoreError: there is none of this name.
        """
        names = [stage.name for stage in self.all()]
        if name is None:
            return len(names) - 1
        if name not in names:
            raise StoreError(unknown_name(f"Stage of {self.run.store.path}:", name, names, "Correct --stage."))
        return names.index(name)

    def check(self, name: str) -> None:
        """Raise ``StoreError`` where there is neither a stage nor a net trained by itself of this name."""
        if is_alone(name):
            find_net(self.run, name)
        else:
            self.number(name)

    def space(self, name: str | None = None) -> SearchSpace:
        """Return the space of a stage's subnets, by default the last one's (see ``Stage.searched``)."""
        if name is not None and is_alone(name):
            return find_net(self.run, name).space(self.run)
        return self.all()[self.number(name)].searched(self.run.space)

    def supernet(self, name: str | None = None) -> Supernet:
        """Return the supernet after a stage, with the stage's own space."""
        if name is not None and is_alone(name):
            return find_net(self.run, name).supernet(self.run)
        run, number = self.run, self.number(name)
        path = self.checkpoint(name)
        supernet = components.build_supernet(run.registry, run.config, run.space, run.data)
        load_weights(supernet, path)
        set_stage_mode(supernet, self.all()[number])
        supernet.space = self.space(name)
        supernet.eval()
        return supernet

    def evaluator(self, name: str | None = None) -> Evaluator:
        """Return the evaluator of a stage's subnets, made once; all share the batches of images."""
        stage = name if name is not None and is_alone(name) else self.all()[self.number(name)].name
        if stage not in self._evaluators:
            run = self.run
            if is_alone(stage):  # of many such nets only the last is held in memory
                self._evaluators = {name: kept for name, kept in self._evaluators.items() if not is_alone(name)}
            self._evaluators[stage] = components.build_evaluator(
                run.registry,
                find_net(run, stage).settings.judging(run) if is_alone(stage) else run.config,
                self.supernet(stage),
                run.data,
                stage,
                run.processes.device,
                sized=self._sized,
            )
        return self._evaluators[stage]

    def searched(self) -> Sequence[str]:
        """Return the stages that the configuration asks to search."""
        return self.run.config.search.stages or (self.all()[-1].name,)
