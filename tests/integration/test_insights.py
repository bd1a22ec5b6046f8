"""``qnas insights`` on one tiny run of three stages: judged once, the same bytes again, and shown by the report."""

from __future__ import annotations

import json
import shutil

import pytest

from qnas.config import load_config
from qnas.errors import ConfigError
from qnas.evaluate import Evaluator
from qnas.insights import FILE, InsightSettings
from qnas.run import Run

STAGES = (
    {"name": "float", "epochs": 1, "lr": 6e-3, "quantize": False},
    {"name": "4-bit", "epochs": 1, "lr": 6e-3, "w_bits": (4,), "a_bits": (4,)},
    {"name": "2-bit", "epochs": 1, "lr": 3e-3, "w_bits": (2,), "a_bits": (2,), "inherit": True},
)
SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": {"se": False, "act": "relu", "depths": (1, 2), "kernels": (3, 5), "expansions": (3, 4)}},
    "quantization": {"w_bits": (2, 4), "a_bits": (2, 4), "granularity": "network"},
    "train": {"stages": STAGES, "batch_size": 256, "num_subnets": 3},
}
N = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory, registry):
    path = tmp_path_factory.mktemp("insights") / "run"
    with Run.create(path, load_config(SETTINGS), registry) as run:
        run.train()
    return path


@pytest.fixture(scope="module")
def told(trained, registry):
    """The run after its insights, and what they are."""
    path = shutil.copytree(trained, trained.parent / "told")
    with Run.open(path, registry) as run:
        return path, run.insights(InsightSettings(N))


@pytest.fixture
def judged(monkeypatch):
    """What is judged from here on: subnet and split."""
    seen = []
    judge = Evaluator.judge

    def watched(self, item):
        seen.append((self.settings.stage, self.supernet.space.key(item[0]), item[1]))
        return judge(self, item)

    monkeypatch.setattr(Evaluator, "judge", watched)
    return seen


def test_every_stage_judges_the_same_architectures_with_its_bits(told, registry):
    path, found = told
    assert [stage["name"] for stage in found["stages"]] == ["float", "4-bit", "2-bit"]
    assert [stage["bits"]["w_bits"] for stage in found["stages"]] == [[32], [4], [2]]
    bare = [
        [{k: v for k, v in s["sample"].items() if "bits" not in k} for s in stage["subnets"]]
        for stage in found["stages"]
    ]
    assert bare[0] == bare[1] == bare[2]
    costs = [[s["cost"] for s in stage["subnets"]] for stage in found["stages"]]
    assert all(a > b > c for a, b, c in zip(*costs, strict=True))
    with Run.open(path, registry) as run:
        last = found["stages"][2]["subnets"][0]
        assert run.evaluate(last["sample"], "search").metrics["accuracy"] == last["score"]
    assert found["difference"]["low"] == "2-bit"
    assert found["difference"]["high"] == "float"
    assert json.loads((path / FILE).read_text()) == found


def test_again_judges_nothing_and_writes_the_same_bytes_and_more_judge_only_the_new(told, registry, judged):
    path, found = told
    before = (path / FILE).read_bytes()
    with Run.open(path, registry) as run:
        assert run.insights(InsightSettings(N)) == found
        assert judged == []
        assert (path / FILE).read_bytes() == before
        run.insights(InsightSettings(N + 2, "macs", ("2-bit",)))
        assert [(stage, split) for stage, _, split in judged] == [("2-bit", "search")] * 2
        assert not run.store.trials()  # they are no search's trials
        run.insights(InsightSettings(N))
    assert (path / FILE).read_bytes() == before


def test_stopped_it_goes_on_to_the_same_bytes(trained, told, tmp_path, registry, monkeypatch, judged):
    path = shutil.copytree(trained, tmp_path / "run")
    judge = Evaluator.judge

    def stop(self, item):
        if len(judged) == N + 5:
            raise KeyboardInterrupt
        return judge(self, item)

    with Run.open(path, registry) as run, monkeypatch.context() as patch:
        patch.setattr(Evaluator, "judge", stop)
        with pytest.raises(KeyboardInterrupt):
            run.insights(InsightSettings(N))
    assert not (path / FILE).exists()
    with Run.open(path, registry) as run:
        run.insights(InsightSettings(N))
    assert len(judged) == 3 * N, "what was judged before is not judged again"
    assert (path / FILE).read_bytes() == (told[0] / FILE).read_bytes()


def test_the_command_prints_tables_sentences_and_json(qnas, told):
    path, found = told
    shown = qnas("insights", path, "--configs", N)
    assert shown.code == 0
    for words in ("kernel", "expansion", "resolution", "depth", "float", "4-bit", "2-bit", "2-bit against float"):
        assert words in shown.out
    assert "[ " in shown.err
    assert "insights: stage 4-bit, 12 subnets" in shown.err
    assert "judges" not in qnas("insights", path, "--configs", N, "-q").err
    printed = qnas("insights", path, "--configs", N, "--json")
    assert json.loads(printed.out) == found
    assert printed.err == ""


def test_the_report_shows_them(qnas, told):
    path, _ = told
    assert qnas("report", path).code == 0
    page = (path / "report.html").read_text()
    assert 'id="insight-0-chart"' in page
    assert "kernel, by part of the network" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", "4bit"), "The finished training stage '4bit' does not exist. Did you mean '4-bit'?"),
        (("--cost", "bitop"), "The cost 'bitop' does not exist. Did you mean 'bitops'?"),
        (("--configs", "9"), "takes 10 or more subnets"),
    ],
)
def test_mistakes_are_named(qnas, told, arguments, message):
    answer = qnas("insights", told[0], *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_a_run_before_its_first_stage_says_how_to_go_on(tmp_path, registry):
    message = r"No training stage in .* is finished\. Go on with `qnas train --resume"
    with (
        Run.create(tmp_path / "run", load_config(SETTINGS), registry) as run,
        pytest.raises(ConfigError, match=message),
    ):
        run.insights(InsightSettings())


def test_a_space_of_too_few_subnets_is_named(tmp_path, registry):
    options = {**SETTINGS["space"]["options"], "depths": (1,), "kernels": (3,), "resolutions": (16,)}
    settings = {**SETTINGS, "space": {"options": options}, "train": {**SETTINGS["train"], "stages": STAGES[:1]}}
    with Run.create(tmp_path / "run", load_config(settings), registry) as run:
        run.train()
        with pytest.raises(ConfigError, match=r"has 4 different subnets at stage 'float'; .* takes 10 or more"):
            run.insights(InsightSettings())
