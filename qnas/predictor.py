"""Accuracy predictors of a run: subnets judged to learn from, what was learned, how well it orders subnets left out.

Everything of one training stage lies in ``predictors/STAGE/``: ``samples.json`` (the subnets and their scores),
``predictor.safetensors`` and ``predictor.json`` (what was fitted, and its score). Scores are of the search split, whose
images no training sees; the test split is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qnas.components import make
from qnas.config import PredictorConfig, RunConfig
from qnas.errors import ConfigError, StoreError
from qnas.files import write_atomically, write_json
from qnas.protocols import Predictor
from qnas.rng import generator, integer_seed
from qnas.space import Indices, Sample, SearchSpace
from qnas.statistics import kendall, unpack_correct

if TYPE_CHECKING:
    from qnas.evaluate import Evaluator
    from qnas.plugins import Registry
    from qnas.run import Run

FOLDER = "predictors"
SAMPLES = "samples.json"
WEIGHTS = "predictor.safetensors"
SCORE = "predictor.json"
CHUNK = 100  # subnets that a sampler draws at once: more samples go on from fewer
FEWEST = 10  # judged subnets that a predictor is fitted to
HALVINGS = 20  # of the search split's images, for the noise ceiling
SPEED_SAMPLES = 20_000
_PATIENCE = 20  # chunks in a row without a new subnet, after which the space counts as exhausted

Array = np.ndarray[Any, Any]
Json = dict[str, Any]


def draw_samples(registry: Registry, space: SearchSpace, settings: PredictorConfig, seed: int) -> list[Sample]:
    """Return up to ``settings.samples`` different subnets; fewer are the beginning of more."""
    sampler = make(
        registry.load("sampler", settings.sampler),
        f"sampler {settings.sampler!r}",
        "predictor.sampler_options",
        settings.sampler_options,
    )
    found: dict[str, Sample] = {}
    chunk = in_vain = 0
    while len(found) < settings.samples and in_vain < _PATIENCE:
        before = len(found)
        for sample in sampler.draw(space, generator(seed, "predictor", chunk), CHUNK):
            found.setdefault(space.key(sample), space.canonical(sample))
        in_vain = in_vain + 1 if len(found) == before else 0
        chunk += 1
    return list(found.values())[: settings.samples]


def check_predictor(registry: Registry, config: RunConfig) -> None:
    """Raise ``ConfigError`` or ``PluginError`` for what would stop a search on predictions later."""
    settings = settings_of(config, config.search.predictor)
    predictor, options = f"predictor {settings.name!r}", settings.options
    make(registry.load("predictor", settings.name), predictor, "predictor.options", options, seed=0)
    sampler, section = f"sampler {settings.sampler!r}", "predictor.sampler_options"
    make(registry.load("sampler", settings.sampler), sampler, section, settings.sampler_options)


@dataclass(frozen=True)
class Judged:
    """Subnets and what the search split says of them.

    Attributes:
        samples: ``n`` of them.
        scores: ``[n]``, the task's metric.
        correct: ``[n, images]`` booleans.
        identity: names the weights, the images and the subnets.
    """

    samples: Sequence[Sample]
    scores: Array
    correct: Array
    identity: str


class StagePredictor:
    """The predictor of one stage's subnets.

    Args:
        run: open, its processes joined.
        settings: which samples, and which predictor with which options.
        stage: name of the training stage; the last one by default.
    """

    def __init__(self, run: Run, settings: PredictorConfig, stage: str | None = None) -> None:
        self.run = run
        self.settings = settings
        self.stage = stage or run.stages.all()[-1].name
        self.folder: Path = run.store.path / FOLDER / self.stage

    @property
    def evaluator(self) -> Evaluator:
        """What judges the stage's subnets."""
        return self.run.stages.evaluator(self.stage)

    @property
    def space(self) -> SearchSpace:
        """The stage's subnets."""
        return self.evaluator.supernet.space

    # --- samples -----------------------------------------------------------------------------------------------

    def build(self) -> Json:
        """Judge the subnets to learn from, those that were judged before not again, and write ``samples.json``.

        Raises:
            ConfigError: the space has too few subnets.
        """
        from qnas.search import measure

        run, seed = self.run, self.run.config.seed
        samples = draw_samples(run.registry, self.space, self.settings, seed)
        if len(samples) < FEWEST:
            raise ConfigError(
                f"A predictor learns from {FEWEST} subnets or more; sampler {self.settings.sampler!r} found "
                f"{len(samples)} different ones in space {self.space.name!r}. Raise --samples, or search without a "
                "predictor."
            )
        metric = self.evaluator.task.metric
        at_once = max(run.processes.size, 1)
        run.recorder.record("samples", {"stage": self.stage, "of": len(samples)})
        found: list[Json] = []
        for start in range(0, len(samples), at_once):
            part = samples[start : start + at_once]
            metrics = measure(run.store, self.evaluator, run.processes, part, "search")
            for sample, measured in zip(part, metrics, strict=True):
                found.append({"key": self.space.key(sample), "sample": sample, metric: measured[metric]})
                run.recorder.record("sample", {"number": len(found), "of": len(samples), metric: measured[metric]})
        value = {
            "stage": self.stage,
            "sampler": self.settings.sampler,
            "sampler_options": self.settings.sampler_options,
            "seed": seed,
            "metric": metric,
            "split": "search",
            "num_images": len(self.evaluator.data.search),
            "supernet": self.evaluator.digest(),
            "subnets": found,
        }
        write_json(self.folder / SAMPLES, value)
        return value

    def judged(self) -> Judged:
        """Return the subnets that were built.

        Raises:
            StoreError: there are none, or they were judged with other weights.
        """
        value = self.run.store.read_json(self.folder / SAMPLES)
        again = f"`qnas predictor build {self.run.store.path} --stage {self.stage}`"
        if value is None:
            raise StoreError(
                f"Stage {self.stage!r} of {self.run.store.path} has no judged subnets to fit. Run {again}."
            )
        if value["supernet"] != self.evaluator.digest():
            raise StoreError(
                f"{self.folder / SAMPLES} was judged with other weights than the stage has now. Run {again}."
            )
        samples = [entry["sample"] for entry in value["subnets"]]
        correct = []
        for sample in samples:
            stored = self.run.store.cached(self.evaluator.cache_key(sample, "search"))
            if stored is None:
                raise StoreError(f"{self.folder / SAMPLES} names a subnet that was not judged like this. Run {again}.")
            if not stored[1]:
                raise StoreError(
                    f"Task {self.run.config.task!r} does not tell which images are answered right, so a predictor's "
                    "score has no measure of the noise in accuracies. Search without a predictor."
                )
            correct.append(unpack_correct(stored[1], value["num_images"]))
        scores = np.array([entry[value["metric"]] for entry in value["subnets"]])
        identity = json.dumps([value["supernet"], self.run.data.digest, [e["key"] for e in value["subnets"]]])
        return Judged(samples, scores, np.array(correct), hashlib.sha256(identity.encode()).hexdigest())

    # --- fitting -----------------------------------------------------------------------------------------------

    def make(self) -> Predictor:
        """Return a predictor that has learned nothing yet."""
        predictor: Predictor = make(
            self.run.registry.load("predictor", self.settings.name),
            f"predictor {self.settings.name!r}",
            "predictor.options",
            self.settings.options,
            seed=integer_seed(self.run.config.seed, "predictor"),
        )
        return predictor

    def fit(self) -> Json:
        """Fit to all judged subnets but those held out, score on these, and write both files.

        Returns:
            What ``predictor.json`` holds.
        """
        from safetensors.numpy import save_file

        judged = self.judged()
        settings, seed = self.settings, self.run.config.seed
        order = generator(seed, "holdout").permutation(len(judged.samples))
        held = order[: max(2, round(settings.holdout * len(order)))]
        learned = order[len(held) :]
        encoded = self.space.encode(self.space.indices(judged.samples))
        predictor = self.make()
        predictor.fit(encoded[learned], judged.scores[learned])
        state = {name: np.ascontiguousarray(array) for name, array in predictor.state_dict().items()}
        value = {
            "name": settings.name,
            "options": settings.options,
            "holdout": settings.holdout,
            "seed": seed,
            "samples": judged.identity,
            "stage": self.stage,
            "fitted": len(learned),
            "held_out": len(held),
            "score": score(predictor.predict(encoded[held]), judged.scores[held], judged.correct[held], seed),
        }
        write_atomically(self.folder / WEIGHTS, lambda partial: save_file(state, partial))
        write_json(self.folder / SCORE, value)
        return value

    def score(self) -> Json:
        """Return what ``predictor.json`` holds, fitted before.

        Raises:
            StoreError: nothing was fitted.
        """
        value: Json | None = self.run.store.read_json(self.folder / SCORE)
        if value is None or not (self.folder / WEIGHTS).is_file():
            raise StoreError(
                f"Stage {self.stage!r} of {self.run.store.path} has no fitted predictor. "
                f"Run `qnas predictor fit {self.run.store.path} --stage {self.stage}`."
            )
        return value

    def load(self) -> Predictor:
        """Return the fitted predictor."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        stored = self.score()
        fitted = self.settings.model_copy(update={"name": stored["name"], "options": stored["options"]})
        predictor = StagePredictor(self.run, fitted, self.stage).make()
        try:
            predictor.load_state_dict(load_file(self.folder / WEIGHTS))
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise StoreError(
                f"The predictor {self.folder / WEIGHTS} cannot be read: {error}. "
                f"Run `qnas predictor fit {self.run.store.path} --stage {self.stage}`."
            ) from error
        return predictor

    def speed(self) -> float:
        """Return how many encoded samples a second the fitted predictor scores on this machine, the best of five."""
        encoded = self.space.encode(self.space.draw(generator(self.run.config.seed, "speed"), SPEED_SAMPLES))
        predictor, least = self.load(), float("inf")
        for _ in range(5):
            start = time.perf_counter()
            predictor.predict(encoded)
            least = min(least, time.perf_counter() - start)
        return SPEED_SAMPLES / least

    def ready(self) -> Json:
        """Return the score of the fitted predictor of this name; build and fit what is not there yet.

        Samples that were judged, and a fit to all of them, are taken as they are, whatever settings made them: those of
        ``qnas predictor`` win over the run's.
        """
        if not (self.folder / SAMPLES).is_file():
            self.build()
        judged = self.judged()
        stored: Json = self.run.store.read_json(self.folder / SCORE, {})
        same = stored.get("name") == self.settings.name and stored.get("samples") == judged.identity
        return stored if same and (self.folder / WEIGHTS).is_file() else self.fit()


def settings_of(config: RunConfig, name: str | None = None) -> PredictorConfig:
    """Return the settings of a predictor, by default the configured one; another has its own defaults as options."""
    settings = config.predictor
    other = name is not None and name != settings.name
    return settings.model_copy(update={"name": name, "options": {}}) if other else settings


def score(predicted: Array, measured: Array, correct: Array, seed: int) -> Json:
    """Return how predictions agree with measurements, and how far measurements agree with themselves.

    Args:
        predicted, measured: ``[n]``.
        correct: ``[n, images]``: which images each subnet answers right.
        seed: of the halvings.

    Returns:
        ``kendall_tau`` with its 95% interval, ``pearson``, ``rmse``; ``ceiling``: both statistics between the scores on
        two halves of the images, the mean over 20 random halvings. A predictor cannot be expected above what one half
        says of the other by much: measurements on all images are less noisy than on a half.
    """
    tau = kendall(predicted.tolist(), measured.tolist())
    taus, pearsons = [], []
    for i in range(HALVINGS):
        order = generator(seed, "halves", i).permutation(correct.shape[1])
        half = len(order) // 2
        first, second = correct[:, order[:half]].mean(1), correct[:, order[half:]].mean(1)
        taus.append(kendall(first.tolist(), second.tolist()).value)
        pearsons.append(pearson(first, second))
    return {
        "kendall_tau": {"value": tau.value, "low": tau.low, "high": tau.high},
        "pearson": pearson(predicted, measured),
        "rmse": float(np.sqrt(np.mean((predicted - measured) ** 2))),
        "ceiling": {"kendall_tau": float(np.mean(taus)), "pearson": float(np.mean(pearsons))},
    }


def pearson(x: Array, y: Array) -> float:
    """Return Pearson's correlation; 0 where one side does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def predict(predictor: Predictor, space: SearchSpace, indices: Indices) -> Array:
    """Return the predicted metric of samples, ``[n]``; ``indices``: ``[n, num_knobs]``."""
    return predictor.predict(space.encode(indices))
