"""Predictors and searches on predictions, on one tiny run: stored, resumable, honest about what is measured."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from qnas.config import PredictorConfig, load_config
from qnas.errors import ConfigError, QnasError, StoreError
from qnas.evaluate import Evaluator
from qnas.predictor import StagePredictor, draw_samples, score
from qnas.run import Run

SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"name": "resnet20", "options": {"elastic": False, "width": 0.25}},
    "quantization": {
        "weight_quantizer": "multiquant",
        "act_quantizer": "multiquant",
        "w_bits": (2, 4, 8),
        "a_bits": (2, 4, 8),
        "granularity": "layer",
    },
    "train": {"sampler": "lrh", "supervision": "adaptive-label", "float_epochs": 1, "epochs": 1, "batch_size": 128},
    "predictor": {"samples": 24, "sampler": "monte-carlo", "options": {"epochs": 30, "layers": 3}},
    "search": {"strategy": "genetic", "options": {"population": 20, "mutants": 10}, "predictor": "mlp"},
}
ON_PREDICTIONS = {"evaluations": 90, "measured": 4, "objectives": ("accuracy", "bitops")}


def config(**search):
    if "strategy" in search:
        return load_config({**SETTINGS, "search": {"predictor": "mlp", **ON_PREDICTIONS, **search}})
    return load_config(SETTINGS, {"search": {**ON_PREDICTIONS, **search}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, registry):
    path = tmp_path_factory.mktemp("predictor") / "run"
    with Run.create(path, config(), registry) as run:
        run.train()
    return path


@pytest.fixture(scope="module")
def searched(trained, registry):
    path = shutil.copytree(trained, trained.parent / "searched")
    with Run.open(path, registry) as run:
        return path, run.search(), run.store.canonical_dump()


@pytest.fixture
def judged(monkeypatch):
    """What is judged from here on: subnet and split."""
    seen = []
    judge = Evaluator.judge

    def watched(self, item):
        seen.append((self.supernet.space.key(item[0]), item[1]))
        return judge(self, item)

    monkeypatch.setattr(Evaluator, "judge", watched)
    return seen


def test_the_front_is_measured_and_says_what_was_predicted(searched, registry):
    path, front, _ = searched
    used = front["predictor"]
    assert used["evaluations"] == 90
    assert used["fitted"] + used["held_out"] == 24
    assert len(used["predicted"]) == front["evaluations"] == 4
    with Run.open(path, registry) as run:
        assert [t.key for _, _, t in run.store.trials()] == list(used["predicted"])
        for point in front["points"]:
            for split, metrics in (("search", point["metrics"]), ("test", point["test"])):
                assert run.evaluate(point["sample"], split).metrics["accuracy"] == metrics["accuracy"]
            assert used["predicted"][point["key"]] != point["metrics"]["accuracy"]


def test_targets_are_of_the_search_split_alone(trained, registry, judged, tmp_path):
    path = shutil.copytree(trained, tmp_path / "run")
    with Run.open(path, registry) as run:
        run.predictor().ready()
        value = json.loads((path / "predictors" / "quantized" / "samples.json").read_text())
    assert {split for _, split in judged} == {"search"}
    assert [key for key, _ in judged] == [subnet["key"] for subnet in value["subnets"]]
    assert len({key for key, _ in judged}) == 24


def test_nothing_is_judged_or_fitted_twice(searched, registry, judged):
    path, front, dump = searched
    weights = path / "predictors" / "quantized" / "predictor.safetensors"
    before = weights.stat().st_mtime_ns
    with Run.open(path, registry) as run:
        assert run.search() == front
        assert run.store.canonical_dump() == dump
    assert not judged
    assert weights.stat().st_mtime_ns == before


def test_more_samples_go_on_from_fewer(trained, registry, judged, tmp_path):
    path = shutil.copytree(trained, tmp_path / "run")
    with Run.open(path, registry) as run:
        few = StagePredictor(run, PredictorConfig(samples=12)).build()["subnets"]
        more = StagePredictor(run, PredictorConfig(samples=16)).build()["subnets"]
    assert more[:12] == few
    assert len(judged) == 16


class Stopped(Exception):  # noqa: N818
    pass


class StopAfter:
    """A recorder that ends the process's work at an event."""

    def __init__(self, event, count):
        self.event, self.left = event, count

    def record(self, event, values):
        if event == self.event:
            self.left -= 1
            if not self.left:
                raise Stopped


@pytest.mark.parametrize(("event", "count"), [("sample", 9), ("predicted", 2), ("trial", 2)])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(trained, searched, registry, tmp_path, event, count):
    _, front, dump = searched
    path = shutil.copytree(trained, tmp_path / "run")
    with Run.open(path, registry, StopAfter(event, count)) as run, pytest.raises(Stopped):
        run.search()
    with Run.open(path, registry) as run:
        assert run.search() == front
        assert run.store.canonical_dump() == dump
    whole = searched[0] / "predictors" / "quantized"
    for file in ("samples.json", "predictor.json", "predictor.safetensors"):
        assert (path / "predictors" / "quantized" / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("strategy", ["random", "evolution", "nsga2", "optuna:tpe"])
def test_any_strategy_searches_on_predictions(searched, registry, strategy, tmp_path):
    path = shutil.copytree(searched[0], tmp_path / "run")
    with Run.open(path, registry) as run:
        front = run.search(config(strategy=strategy, evaluations=25, measured=3))
        assert front["strategy"] == strategy
        assert front["predictor"]["evaluations"] == 25
        assert 1 <= len(front["points"]) <= 3


def test_constraints_hold_for_what_is_measured(searched, registry, tmp_path):
    path = shutil.copytree(searched[0], tmp_path / "run")
    with Run.open(path, registry) as run:
        limits = ("avg_w_bits<=4", "avg_a_bits<=4")
        front = run.search(config(constraints=limits, objectives=("accuracy",), evaluations=60))
    for point in front["points"]:
        assert point["metrics"]["avg_w_bits"] <= 4
        assert point["metrics"]["avg_a_bits"] <= 4


def test_other_weights_or_files_are_noticed(searched, registry, tmp_path):
    path = shutil.copytree(searched[0], tmp_path / "run")
    folder = path / "predictors" / "quantized"
    value = json.loads((folder / "samples.json").read_text())
    (folder / "samples.json").write_text(json.dumps({**value, "supernet": "other"}))
    with Run.open(path, registry) as run, pytest.raises(StoreError, match="other weights"):
        run.predictor().fit()
    (folder / "predictor.safetensors").write_bytes(b"broken")
    with Run.open(path, registry) as run, pytest.raises(StoreError, match="cannot be read"):
        run.predictor().load()
    shutil.rmtree(folder)
    with Run.open(path, registry) as run:
        with pytest.raises(StoreError, match="qnas predictor fit"):
            run.predictor().score()
        with pytest.raises(StoreError, match="qnas predictor build"):
            run.predictor().fit()


def test_a_space_with_too_few_subnets_is_refused(trained, registry):
    with Run.open(trained, registry) as run:
        pinned = run.space.restrict(w_bits=[4], a_bits=[4])
        assert len(draw_samples(registry, pinned, PredictorConfig(), 0)) == 1
        predictor = StagePredictor(run, PredictorConfig(samples=10))
        run.stages.evaluator().supernet.space = pinned
        with pytest.raises(ConfigError, match="10 subnets or more"):
            predictor.build()


def test_the_noise_ceiling_is_that_of_the_images():
    rng = np.random.default_rng(0)
    true = np.linspace(0.3, 0.9, 40)
    many, few = (rng.random((40, n)) < true[:, None] for n in (20000, 40))
    sharp, noisy = (score(true, c.mean(1), c, 0) for c in (many, few))
    assert sharp["ceiling"]["kendall_tau"] > 0.95 > 0.8 > noisy["ceiling"]["kendall_tau"]
    assert sharp["kendall_tau"]["value"] > noisy["kendall_tau"]["value"]
    assert sharp["rmse"] == pytest.approx(np.sqrt(np.mean((true - many.mean(1)) ** 2)))
    flat = score(np.full(40, 0.5), true, many, 0)
    assert flat["pearson"] == flat["kendall_tau"]["value"] == 0.0


def test_none_measures_every_subnet(searched, registry, tmp_path):
    path = shutil.copytree(searched[0], tmp_path / "run")
    with Run.open(path, registry) as run:
        front = run.search(config(strategy="random", predictor="none", evaluations=3))
    assert front["evaluations"] == 3
    assert "predictor" not in front


def test_the_report_says_that_predictions_led_to_the_front(searched, registry, tmp_path):
    path = shutil.copytree(searched[0], tmp_path / "run")
    with Run.open(path, registry) as run:
        run.report()
    tau = searched[1]["predictor"]["score"]["kendall_tau"]["value"]
    assert f"the best of 90 predictions by mlp (held-out Kendall tau {tau:.2f})" in (path / "report.html").read_text()


def test_a_fit_by_hand_is_searched_on(trained, registry, tmp_path):
    path = shutil.copytree(trained, tmp_path / "run")
    with Run.open(path, registry) as run:
        by_hand = run.config.predictor.model_copy(update={"options": {"width": 40, "epochs": 5}, "samples": 12})
        StagePredictor(run, by_hand).build()
        StagePredictor(run, by_hand).fit()
        used = run.search()["predictor"]
    assert used["options"] == {"width": 40, "epochs": 5}
    assert used["fitted"] + used["held_out"] == 12


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"predictor": {"options": {"layerz": 3}}}, "layers"),
        ({"predictor": {"sampler_options": {"toleranc": 1}}}, "tolerance"),
        ({"quantization": {"act_quantizer": "dorefa"}, "train": {"calibrator": "mse"}}, "takes none"),
    ],
)
def test_wrong_settings_are_said_before_anything_is_trained(registry, tmp_path, wrong, said):
    with pytest.raises(QnasError, match=said):
        Run.create(tmp_path / "run", load_config(SETTINGS, wrong), registry)
    assert not (tmp_path / "run").exists()
