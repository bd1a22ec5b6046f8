"""A run: its directory, its configuration and its steps. What the commands, and programs, call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qnas import components
from qnas.checkpoint import load_checkpoint, read_progress, save_checkpoint
from qnas.checks import check_run, check_search
from qnas.choice import Choice, find
from qnas.config import RunConfig, load_config, read_toml
from qnas.data import Data
from qnas.environment import environment
from qnas.errors import StoreError
from qnas.evaluate import Evaluation, Evaluator
from qnas.files import write_json, write_text
from qnas.initial import file_digest, load_initial_weights
from qnas.machine import check_compiler, resolve_machine
from qnas.nn.supernet import Supernet
from qnas.plugins import Registry
from qnas.processes import Processes, resolve_device
from qnas.protocols import State
from qnas.recorder import NullRecorder, Recorder
from qnas.records import keep_records
from qnas.search import Search, SearchSettings
from qnas.space import Sample, SearchSpace
from qnas.stages import TrainedStages
from qnas.store import CONFIG, RunDirectory
from qnas.train import Progress, Trainer

if TYPE_CHECKING:
    from qnas.alone import AloneSettings
    from qnas.detect import DetectSettings
    from qnas.exports import Exports
    from qnas.insights import InsightSettings
    from qnas.predictor import StagePredictor

DATA = "data.json"
INIT = "init.json"
SUPERVISION = "supervision.json"
PHASES = (
    "profile",
    "train",
    "predictor",
    "search",
    "kfold",
    "retrain",
    "export",
    "verify",
    "alone",
    "detect",
    "rank",
    "insights",
    "report",
)


class Run:
    """One run directory with everything that it needs to go on.

    Build it with :meth:`create` or :meth:`open`; in a process that only helps the one which did, with :meth:`follow`.
    """

    def __init__(
        self, store: RunDirectory, config: RunConfig, registry: Registry, recorder: Recorder | None = None
    ) -> None:
        self.store = store
        self.config = config
        self.registry = registry
        self.recorder = recorder or NullRecorder()
        self.processes = Processes(resolve_device(config.device, missing="cpu"), config.precision)
        self._set_threads()

    def _set_threads(self) -> None:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        registry: Registry,
        recorder: Recorder | None = None,
        command: str = "",
        data: Data | None = None,
    ) -> Run:
        """Check the configuration as far as possible, then make the directory; nothing is left behind on error.

        Args:
            path: of the directory.
            config: of the run.
            registry: of the plugins.
            recorder: receives events.
            command: that made the run, as text.
            data: the configuration's images, where they are loaded already.
        """
        probe = cls.__new__(cls)
        probe.config, probe.registry, probe.recorder = config, registry, recorder or NullRecorder()
        if data is not None:
            probe.__dict__["data"] = data
        config = resolve_machine(config, registry, probe.data.image_size)
        calibrators = {"calibrators": components.calibrator_names(registry, config)}
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=calibrators)})
        probe.config = config
        outside = check_run(probe)
        store = RunDirectory(path, create=True)
        write_json(path / "environment.json", environment(command))
        write_json(path / DATA, {"name": probe.data.name, "digest": probe.data.digest})
        if config.train.init is not None:
            initial = Path(config.train.init).absolute()  # the run may go on from another folder
            write_json(path / INIT, {"path": str(initial), "sha256": file_digest(initial)})
        if outside:
            write_json(path / SUPERVISION, outside)
        write_text(path / CONFIG, config.to_toml())
        run = cls(store, config, registry, recorder)
        for name in ("data", "space"):  # already built for the check
            run.__dict__[name] = probe.__dict__[name]
        return run

    @classmethod
    def open(cls, path: Path, registry: Registry, recorder: Recorder | None = None) -> Run:
        """Open an existing run directory.

        Raises:
            StoreError: it is none, or it is in use.
        """
        store = RunDirectory(path)
        try:
            config = load_config(read_toml(path / CONFIG))
            run = cls(store, config, registry, recorder)
        except BaseException:
            store.close()
            raise
        return run

    @classmethod
    def read(cls, path: Path, registry: Registry, device: torch.device) -> Run:
        """Open a run directory only to read it, whoever holds it; this process's threads stay as they are.

        Args:
            path: of the directory.
            registry: of the plugins.
            device: where its nets are calibrated and measured.
        """
        store = RunDirectory(path, read_only=True)
        config = load_config(read_toml(path / CONFIG)).model_copy(update={"threads": None})
        run = cls(store, config, registry)
        run.processes = Processes(device)
        return run

    @classmethod
    def follow(cls, path: Path, config: RunConfig, registry: Registry) -> Run:
        """Open a run directory to help the process that holds it: nothing is written, and no events are recorded."""
        return cls(RunDirectory(path, follow=True), config, registry)

    def reconfigure(self, config: RunConfig) -> None:
        """Take up a configuration that adds to this run's, and write it."""
        write_text(self.store.path / CONFIG, config.to_toml())
        self.config = config
        for name in ("space", "stages"):
            self.__dict__.pop(name, None)

    def join(self, processes: Processes) -> None:
        """Work together with other processes, which have opened the same run."""
        self.processes = processes
        self._set_threads()  # starting processes changes it

    def close(self) -> None:
        """Release the directory."""
        self.store.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- parts -------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> Data:
        """The three splits.

        Raises:
            StoreError: the images are not those that the run was made with.
        """
        data = components.load_data(self.registry, self.config)
        made_with = self.store.read_json(self.store.path / DATA) if hasattr(self, "store") else None
        if made_with is not None and made_with["digest"] != data.digest:
            raise StoreError(
                f"Data set {data.name!r} is not what the run in {self.store.path} was made with: its images, labels or "
                "their order changed. Restore them, or start a new run."
            )
        return data

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        directory = self.store.path if hasattr(self, "store") else None
        return components.build_space(self.registry, self.config, self.data, directory)

    @cached_property
    def stages(self) -> TrainedStages:
        """The stages of training, and what judges the subnets of each."""
        return TrainedStages(self)

    @property
    def evaluator(self) -> Evaluator:
        """The shared evaluator over the supernet after the last stage.

        Raises:
            StoreError: training is not finished.
        """
        return self.stages.evaluator()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and tell the recorder."""
        self.recorder.record("phase", {"name": name, "state": "start"})
        start = time.perf_counter()
        state = "stopped"
        try:
            yield
            state = "end"
        finally:
            seconds = time.perf_counter() - start
            self.store.add_seconds(name, seconds)
            self.recorder.record("phase", {"name": name, "state": state, "seconds": seconds})

    # --- training ----------------------------------------------------------------------------------------------

    def trained_checkpoint(self) -> Path:
        """Return the checkpoint after the last stage.

        Raises:
            StoreError: training is not finished.
        """
        return self.stages.checkpoint()

    def progress(self) -> Progress:
        """Return where training stands."""
        return self.stages.progress()

    def train(self) -> Progress:
        """Train what is left; every epoch ends in a checkpoint."""
        stages = self.config.train.all_stages()
        latest = self.processes.share(self.stages.latest_checkpoint())  # before the leader writes a newer one
        if latest is not None and read_progress(latest).stage >= len(stages):
            return read_progress(latest)
        check_compiler(self.config, self.registry)
        with self.phase("train"):
            supernet = components.build_supernet(self.registry, self.config, self.space, self.data)
            trainer = components.build_trainer(
                self.registry,
                self.config,
                supernet,
                self.data,
                self.recorder,
                self.processes,
                recorded=self.recorded_supervision(),
            )
            if latest is not None:
                load_checkpoint(trainer, latest)
            elif self.config.train.init is not None:
                self.load_initial(supernet)
            self.processes.share(None)  # all have read the checkpoint that the leader is about to replace
            keep_records(trainer, [path.parent for path in self.stages.checkpoints()])
            trainer.run(self._save)
            self.processes.share(None)  # the last checkpoint is there for all to read
        return trainer.progress

    def recorded_supervision(self) -> State:
        """Return what names anything outside the run that its supervision learned from when the run was made."""
        return dict(self.store.read_json(self.store.path / SUPERVISION, {}))

    def load_initial(self, supernet: Supernet) -> None:
        """Start from the file that the run was made with.

        Raises:
            StoreError: it is not there any more, or is another one.
        """
        recorded = self.store.read_json(self.store.path / INIT)
        if recorded is None:
            raise StoreError(
                f"{self.store.path} starts from {self.config.train.init}, but its {INIT} is missing, which says which "
                "file that was. Start a new run."
            )
        path = Path(recorded["path"])
        if not path.is_file() or file_digest(path) != recorded["sha256"]:
            state = "changed" if path.is_file() else "is missing"
            raise StoreError(
                f"The file of initial weights {path} {state} since the run in {self.store.path} was made, and no "
                "checkpoint stands yet. Restore it, or start a new run."
            )
        self.recorder.record("init", load_initial_weights(supernet, path).to_json())

    def _save(self, trainer: Trainer) -> None:
        """Write to the folder of the stage that the last epoch belonged to."""
        if not self.processes.leader:
            return
        progress = trainer.progress
        number = progress.stage if progress.epoch else progress.stage - 1
        save_checkpoint(trainer, self.stages.checkpoints()[number])

    # --- search ------------------------------------------------------------------------------------------------

    def search(self, config: RunConfig | None = None, stage: str | None = None) -> dict[str, Any]:
        """Search the subnets of one stage, by default the last one, with this run's settings or others.

        Returns:
            What ``front.json`` holds, with ``kfold`` where that is asked for (:func:`qnas.kfold.kfold`); nothing in a
            follower.
        """
        evaluator = self.stages.evaluator(stage)
        if not self.processes.leader:
            self.processes.serve(evaluator.judge)
            return {}
        config = config or self.config
        check_search(self, config, evaluator.supernet.space)
        with self.processes.leading():
            self.profile(config)
            search = self._make_search(config, evaluator)
            with self.phase("search"):
                search.run()
                front = search.write_front()
            if config.search.kfold:
                from qnas.kfold import kfold

                make = components.strategy_maker(self.registry, config.search.strategy, config.search.options)
                with self.phase("kfold"):
                    front["kfold"] = kfold(search, make, config.search.kfold)
            return front

    def _make_search(self, config: RunConfig, evaluator: Evaluator) -> Search:
        """Return a search, begun or to go on; with a predictor, once that is fitted."""
        from qnas.latency.of_run import search_latency
        from qnas.predicted_search import PredictedSearch

        own = config.search
        settings = SearchSettings(
            own.strategy,
            own.options,
            own.evaluations,
            own.objectives,
            own.constraints,
            self.config.seed,
            own.predictor,
            own.measured,
        )
        make = components.strategy_maker(self.registry, own.strategy, own.options)
        parts = (self.store, evaluator, settings, make, self.recorder, self.processes, search_latency(self, config))
        if own.predictor is None:
            return Search(*parts)
        stage = self.predictor(evaluator.settings.stage, own.predictor)
        with self.phase("predictor"):
            fitted = stage.ready()
        return PredictedSearch(*parts, predictor=stage.load(), fitted=fitted)

    def profile(self, config: RunConfig | None = None) -> None:
        """Make the table of latencies that searches with these settings need and the run has not; else do nothing.

        Raises:
            ConstraintError: by the table, no subnet meets the constraints.
        """
        from qnas.latency.of_run import lacks_table, make_table

        config = config or self.config
        if self.processes.leader and lacks_table(self, config):
            with self.phase("profile"):
                make_table(self, config)
            for stage in config.search.stages or [None]:
                check_search(self, config, self.stages.space(stage))

    def predictor(self, stage: str | None = None, name: str | None = None) -> StagePredictor:
        """Return the predictor of one stage's subnets, by default the last one's and the configured one."""
        from qnas.predictor import StagePredictor, settings_of

        return StagePredictor(self, settings_of(self.config, name), stage)

    def fronts(self) -> list[dict[str, Any]]:
        """Return every finished search's front, oldest first."""
        paths = sorted(
            (self.store.path / "searches").glob("*/front.json"), key=lambda path: int(path.parent.name.split("-")[0])
        )
        return [self.store.read_json(path) for path in paths]

    def retrain(self) -> list[dict[str, Any]]:
        """Train points of the searched fronts again, as the configuration asks; see :func:`qnas.retrain.retrain`."""
        from qnas.retrain import retrain

        if self.config.retrain.points == "none":
            return []
        with self.phase("retrain"):
            return retrain(self)

    def train_alone(self, sample: Sample, settings: AloneSettings) -> dict[str, Any]:
        """Train one subnet by itself; see :func:`qnas.alone.train_alone`."""
        from qnas.alone import train_alone

        with self.phase("alone"):
            return train_alone(self, sample, settings, self.processes)

    def detect(self, choice: Choice, settings: DetectSettings) -> dict[str, Any]:
        """Train a detector on a subnet's features; see :func:`qnas.detect.detect`."""
        from qnas.detect import detect

        with self.phase("detect"):
            return detect(self, choice, settings, self.processes)

    def rank(self, num_configs: int, settings: AloneSettings) -> dict[str, Any]:
        """Compare the supernet's ranking with training alone; see :func:`qnas.rank.rank` (nothing in a follower)."""
        from qnas.rank import help_rank, rank

        if not self.processes.leader:
            help_rank(self, settings)
            return {}
        with self.phase("rank"):
            return rank(self, num_configs, settings)

    def insights(self, settings: InsightSettings) -> dict[str, Any]:
        """Tell what good subnets prefer at each stage; see :func:`qnas.insights.insights` (nothing in a follower)."""
        from qnas.insights import help_insights, insights

        if not self.processes.leader:
            help_insights(self, settings)
            return {}
        with self.phase("insights"):
            return insights(self, settings)

    def evaluate(self, sample: Sample, split: str, stage: str | None = None) -> Evaluation:
        """Judge one subnet on a split, with the weights that it had after a stage, by default the last one."""
        return self.stages.evaluator(stage).evaluate(sample, split)

    def resolve(self, config: str | None, *, search: str | None = None) -> Sample:
        """Return the sample that the user means; see :func:`qnas.choice.find`."""
        return find(self, config, search=search).sample

    # --- deployment --------------------------------------------------------------------------------------------

    def exports(self, stage: str | None = None) -> Exports:
        """Return what writes and verifies exported models of one stage, by default the last one."""
        from qnas.exports import Exports

        device = self.registry.load("device", self.config.deploy_device)()
        return Exports(self.store, self.stages.evaluator(stage), device, self.config.deploy_device)

    def export(self, sample: Sample, stage: str | None = None) -> dict[str, Any]:
        """Write a subnet as integer ONNX and bit-packed; see :meth:`qnas.exports.Exports.export`."""
        with self.phase("export"):
            return self.exports(stage).export(sample)

    def export_features(self, sample: Sample, stage: str | None = None) -> dict[str, Any]:
        """Write a subnet's backbone as integer ONNX; see :meth:`qnas.exports.Exports.export_features`."""
        with self.phase("export"):
            return self.exports(stage).export_features(sample)

    def verify(self, sample: Sample, stage: str | None = None) -> dict[str, Any]:
        """Compare an exported model with its subnet; see :meth:`qnas.exports.Exports.verify`."""
        with self.phase("verify"):
            return self.exports(stage).verify(sample)

    # --- report ------------------------------------------------------------------------------------------------

    def timings(self) -> dict[str, float]:
        """Return seconds by phase, summed over interruptions."""
        found: dict[str, float] = self.store.read_json(self.store.path / "timings.json", {})
        return {name: found[name] for name in PHASES if name in found}

    def report(self) -> list[Path]:
        """Write ``report.html`` and ``front.png`` from what there is; return their paths."""
        from qnas.report import report_data, write_report

        with self.phase("report"):
            write_report(report_data(self), self.store.path)
        return [self.store.path / "report.html", self.store.path / "front.png"]
