"""K-fold selection: the cut, what a fold's search is told, that nothing is judged twice, stopping, refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas import kfold_said
from qnas.config import load_config
from qnas.constraints import parse_constraint
from qnas.errors import ConfigError
from qnas.evaluate import Evaluation
from qnas.kfold import FoldSearch, check_kfold, folds_of, kfold
from qnas.search import Search, SearchSettings
from qnas.statistics import mean_interval
from qnas.store import CONFIG, RunDirectory
from qnas.testing.parts import ToyTask
from tests.problems import Grid

SPACE = Grid(numbers=2, size=3, words=("a",))
IMAGES, K, SEED = 60, 5, 7
LABELS = torch.arange(IMAGES) % 4
FOLDS = folds_of(LABELS, K, SEED)
SPECIAL = SPACE.canonical({"k0": 2, "k1": 2, "word": "a"})  # right on all of fold 0, and on nothing else
STEADY = SPACE.canonical({"k0": 0, "k1": 1, "word": "a"})  # right on every other fold but for one image each


class StopError(Exception):
    """The process ends here."""


class Judge:
    """An evaluator that answers as planted, and counts."""

    def __init__(self, dies_at=None):
        self.supernet = SimpleNamespace(space=SPACE)
        self.task, self.costs = ToyTask(), {}
        self.settings = SimpleNamespace(stage="quantized")
        self.data = SimpleNamespace(search=_Split())
        self.judged, self.dies_at = [], dies_at

    def digest(self):
        return "0" * 8

    def cache_key(self, sample, split):
        return f"{split}-{SPACE.key(sample)}"

    def answers(self, sample):
        if sample == SPECIAL:
            return FOLDS == 0
        if sample == STEADY:
            answers = FOLDS != 0
            answers[[np.flatnonzero(fold == FOLDS)[0] for fold in range(1, K)]] = False
            return answers
        return np.random.default_rng(int(SPACE.key(sample), 16)).random(IMAGES) < 0.3

    def judge(self, item):
        sample, split = item
        if len(self.judged) == self.dies_at:
            raise StopError
        self.judged.append(SPACE.key(sample))
        answers = self.answers(sample)
        assert split == "search"
        return Evaluation({"accuracy": float(answers.mean())}, answers, IMAGES)


class _Split:
    labels = LABELS

    def __len__(self):
        return IMAGES


@pytest.fixture
def open_store(tmp_path):
    def make(name="run"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / CONFIG).write_text("")
        return RunDirectory(tmp_path / name)

    return make


@pytest.fixture
def strategy(registry):
    def make(problem, name="random", **options):
        return registry.load("strategy", name)(problem, **options)

    return make


def searched(store, judge, strategy, evaluations=9, constraints=()):
    wanted = SearchSettings("random", {}, evaluations, ("accuracy",), constraints, SEED)
    search = Search(store, judge, wanted, strategy)
    search.run()
    return search


# --- the cut -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), data=st.data(), seed=st.integers(0, 9))
def test_folds_partition_the_split_evenly_class_by_class(labels, data, seed):
    k = data.draw(st.integers(2, len(labels)))
    folds = folds_of(torch.tensor(labels), k, seed)
    assert np.array_equal(folds, folds_of(torch.tensor(labels), k, seed))
    assert set(folds) == set(range(k))  # every image is in one fold, and no fold is empty
    for chosen in (np.ones(len(labels), dtype=bool), *(np.array(labels) == c for c in set(labels))):
        sizes = np.bincount(folds[chosen], minlength=k)
        assert sizes.max() - sizes.min() <= 1


def test_another_seed_is_another_cut_and_targets_that_are_no_classes_are_cut_too():
    assert not np.array_equal(FOLDS, folds_of(LABELS, K, SEED + 1))
    boxes = folds_of(torch.zeros(10, 3, 5), 3, 0)
    assert sorted(np.bincount(boxes)) == [3, 3, 4]


# --- what is selected --------------------------------------------------------------------------------------------


def test_each_fold_selects_by_its_own_images_and_is_tested_on_all_others(open_store, strategy):
    with open_store() as store:
        judge = Judge()
        search = searched(store, judge, strategy)
        found = kfold(search, strategy, K)
        assert found["folds"][0]["key"] == SPACE.key(SPECIAL)  # which all of the split would never choose
        assert (found["folds"][0]["own"], found["folds"][0]["others"]) == (1.0, 0.0)
        whole = {SPACE.key(t.sample): t.metrics["accuracy"] for t in search.trials}
        assert max(whole, key=whole.get) == SPACE.key(STEADY)
        for fold in range(1, K):
            entry, size = found["folds"][fold], int((fold == FOLDS).sum())
            assert (entry["key"], entry["images"]) == (SPACE.key(STEADY), size)
            assert entry["own"] == pytest.approx(1 - 1 / size)
            others = judge.answers(STEADY)[fold != FOLDS]
            assert entry["others"] == pytest.approx(others.mean())
        others, own = ([entry[name] for entry in found["folds"]] for name in ("others", "own"))
        mean, interval = found["summary"]["mean"], mean_interval(others)
        assert (mean["value"], mean["low"], mean["high"]) == (interval.value, interval.low, interval.high)
        assert mean["std"] == pytest.approx(np.std(others, ddof=1))
        assert found["summary"]["optimism"]["value"] == pytest.approx(np.mean(own) - np.mean(others))
        stored = json.loads((store.search_directory(search.name) / f"kfold-{K}.json").read_text())
        assert stored == found
        assert kfold_said.read_kfolds(store.path) == [found]
        first, second = kfold_said.sentences(found)
        assert f"12 of the {IMAGES} images of the search split has accuracy {mean['value']:.2%}" in first
        assert "not held out" in second


def test_a_strategy_is_told_the_score_on_its_fold_alone(open_store, strategy):
    told = []

    def watching(problem):
        inner = strategy(problem)
        tell = inner.tell
        inner.tell = lambda trials: (told.append((problem.seed, *trials)), tell(trials))
        return inner

    with open_store() as store:
        judge = Judge()
        search = searched(store, judge, strategy, constraints=("accuracy>=0.5",))
        fold = FoldSearch(search, watching, FOLDS == 0, seed=5)
        assert fold.run().key == SPACE.key(SPECIAL)
    assert len(told) == 9
    for seed, trial in told:
        assert seed == 5
        assert trial.metrics["accuracy"] == judge.answers(trial.sample)[FOLDS == 0].mean()
        limit = parse_constraint("accuracy>=0.5", ["accuracy"])
        assert trial.violation == limit.violation(trial.metrics["accuracy"])


def test_nothing_is_judged_twice(open_store, strategy):
    with open_store() as store:
        judge = Judge()
        search = searched(store, judge, strategy, evaluations=4)
        kfold(search, strategy, K)
        assert len(judge.judged) == len(set(judge.judged)) <= 9
        assert len(store.trials()) == 4  # the folds' trials are not the search's
        assert store.searches() == [search.name]
        again = kfold(search, None, K)  # finished: nothing is searched
        assert again["summary"]
        kfold(search, strategy, 3)
        assert len(judge.judged) == len(set(judge.judged))
        assert [found["k"] for found in kfold_said.read_kfolds(store.path)] == [3, K]


def test_stopped_at_any_judgement_it_goes_on_to_the_same_bytes(open_store, strategy):
    def evolution(problem):
        return strategy(problem, "evolution", population=3)

    with open_store("whole") as store:
        judge = Judge()
        search = searched(store, judge, evolution, evaluations=5)
        begun = len(judge.judged)
        kfold(search, evolution, K)
        whole = (store.search_directory(search.name) / f"kfold-{K}.json").read_bytes(), store.canonical_dump()
        total = len(judge.judged)
    assert total > begun + 1
    for dies_at in range(begun, total):
        name = f"torn{dies_at}"
        with open_store(name) as store, pytest.raises(StopError):
            kfold(searched(store, Judge(dies_at), evolution, evaluations=5), evolution, K)
        with open_store(name) as store:
            judge = Judge()
            search = searched(store, judge, evolution, evaluations=5)
            assert not kfold_said.read_kfolds(store.path)
            kfold(search, evolution, K)
            torn = (store.search_directory(search.name) / f"kfold-{K}.json").read_bytes(), store.canonical_dump()
            assert len(judge.judged) == total - dies_at
        assert torn == whole


def test_a_fold_whose_nets_miss_the_constraints_chooses_none(open_store, strategy):
    with open_store() as store:
        found = kfold(searched(store, Judge(), strategy, constraints=("accuracy>=0.95",)), strategy, K)
    assert [entry["key"] for entry in found["folds"]] == [SPACE.key(SPECIAL), None, None, None, None]
    assert found["summary"]["folds"] == 1
    assert found["summary"]["mean"] == {"value": 0.0, "low": None, "high": None, "std": None}
    assert "4 of 5 folds hold no net that meets the constraints" in kfold_said.sentences(found)[0]


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kfold": 1},
            "search.kfold is 1, but the search split of data set 'halves' has 60 images, which make 2 to 60",
        ),
        ({"kfold": 61}, "search.kfold is 61"),
        ({"kfold": 5, "predictor": "mlp"}, "predictor 'mlp' learns from scores on all of the search split"),
    ],
)
def test_what_cannot_be_is_refused(tiny_data, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_kfold(load_config({"search": changes}), tiny_data, ToyTask())


def test_a_task_without_answers_image_by_image_is_refused(tiny_data):
    with pytest.raises(ConfigError, match="does not say of each image whether it is answered right"):
        check_kfold(load_config({"search": {"kfold": 5}}), tiny_data, SimpleNamespace(metric="ap"))
    check_kfold(load_config({}), tiny_data, SimpleNamespace(metric="ap"))
    check_kfold(load_config({"search": {"kfold": 60}}), tiny_data, ToyTask())
