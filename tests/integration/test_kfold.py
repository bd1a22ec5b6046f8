"""``--kfold`` on a run: beside its search, in the terminal and the report, with several objectives and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qnas.config import load_config
from qnas.evaluate import Evaluator
from qnas.kfold import folds_of
from qnas.run import Run
from qnas.statistics import unpack_correct

TINY = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": {"se": False, "act": "relu", "kernels": [3, 5], "expansions": [3], "depths": [1]}},
    "quantization": {"w_bits": [2, 4], "a_bits": [2, 4], "granularity": "stage"},
    "train": {"num_subnets": 2, "batch_size": 256, "float_epochs": 1, "epochs": 1, "lr": 0.01},
    "evaluation": {"calibration_images": 64, "calibration_batch": 32},
    "search": {"evaluations": 4, "strategy": "evolution", "options": {"population": 3}},
    "data": {"search_fraction": 0.3, "test_fraction": 0.3},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, registry):
    path = tmp_path_factory.mktemp("trained") / "run"
    with Run.create(path, load_config(TINY), registry) as run:
        run.train()
        run.search()
    return path


def test_a_finished_run_is_searched_on_folds_and_says_so(trained, qnas, registry, monkeypatch):
    judged, evaluate = [], Evaluator.evaluate
    monkeypatch.setattr(
        Evaluator,
        "evaluate",
        lambda self, sample, split="search": (
            judged.append((split, self.supernet.space.key(sample))) or evaluate(self, sample, split)
        ),
    )
    assert qnas("search", trained, "--kfold", 1).code == 2
    front = json.loads(qnas("search", trained, "--kfold", 3, "--json").out)
    found = front["kfold"]
    assert len(judged) == len(set(judged))  # what the search had judged before is not among them
    assert {split for split, _ in judged} == {"search"}  # nothing but the front's points is measured on the test split
    stored = json.loads((trained / "searches" / front["search"] / "kfold-3.json").read_text())
    assert found == stored
    with Run.open(trained, registry) as run:
        folds = folds_of(run.data.search.labels, 3, run.config.seed)
        known = {trial.key for _, _, trial in run.store.trials()}
        assert not known & {key for _, key in judged}
        assert len(run.store.trials()) == 4
        for number, fold in enumerate(found["folds"]):
            assert fold["evaluations"] == 4
            packed = run.store.cached(run.evaluator.cache_key(fold["sample"], "search"))[1]
            answers = unpack_correct(packed, len(folds))
            assert fold["own"] == answers[folds == number].mean()
            assert fold["others"] == answers[folds != number].mean()
            assert fold["costs"]["bitops"] > 0
        run.report()
    shown = qnas("search", trained, "--kfold", 3).out
    assert "3-fold selection: a net chosen on" in " ".join(shown.split())
    page = (trained / "report.html").read_text()
    assert f"3-fold selection of {front['search']}" in page
    assert "are not held out" in page
    assert page.count(found["folds"][0]["key"]) > 0
    assert "kfold" not in json.loads(qnas("search", trained, "--json").out)  # nor is it asked for any more


@pytest.mark.slow
def test_two_processes_find_what_one_finds(trained, tmp_path, registry):
    import shutil

    texts = []
    for devices in (1, 2):
        path = shutil.copytree(trained, tmp_path / str(devices))
        for file in path.glob("searches/*/kfold-*.json"):
            file.unlink()
        command = [sys.executable, "-m", "qnas", "search", str(path), "--kfold", "4", "--devices", str(devices), "-q"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=True)
        texts.append(next(path.glob("searches/*/kfold-4.json")).read_bytes())
    assert texts[0] == texts[1]
