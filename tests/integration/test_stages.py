"""Every stage of a run's training searched, judged, exported and trained alone."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qnas.alone import AloneSettings
from qnas.choice import Choice, find, front
from qnas.cli import cli
from qnas.config import load_config
from qnas.errors import ConfigError, ExportError, StoreError
from qnas.exports import list_exports
from qnas.plugins import load_registry
from qnas.run import Run

STAGES = [
    {"name": "float", "epochs": 1, "lr": 6e-3, "quantize": False},
    {"name": "weights", "epochs": 1, "lr": 6e-3, "roles": ["weight"]},
    {"name": "4-bit", "epochs": 1, "lr": 3e-3, "w_bits": [4], "a_bits": [4]},
    {"name": "3-bit", "epochs": 1, "lr": 3e-3, "w_bits": [3], "a_bits": [3], "inherit": True},
]
CONFIG = {
    "space": {"options": {"kernels": [3], "expansions": [3], "depths": [1, 2], "se": False, "act": "relu"}},
    "quantization": {"w_bits": [3, 4], "a_bits": [3, 4], "granularity": "network"},
    "train": {"num_subnets": 2, "stages": STAGES},
    "evaluation": {"calibration_images": 64, "calibration_batch": 32},
    "search": {"evaluations": 3, "strategy": "random", "stages": ["float", "4-bit", "3-bit"]},
    "data": {"search_fraction": 0.3, "test_fraction": 0.3},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A run that was trained, and searched after three of its stages."""
    path = tmp_path_factory.mktemp("stages") / "run"
    with Run.create(path, load_config(CONFIG), load_registry()) as run:
        run.train()
        for stage in run.stages.searched():
            run.search(stage=stage)
    return path


def qnas(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def bits(sample):
    return sample["w_bits"], sample["a_bits"]


def test_each_search_is_of_its_stage(path):
    with Run.open(path, load_registry()) as run:
        fronts = run.fronts()
        assert [f["stage"] for f in fronts] == ["float", "4-bit", "3-bit"]
        assert [{bits(p["sample"]) for p in f["points"]} for f in fronts] == [{(32, 32)}, {(4, 4)}, {(3, 3)}]
        for found in fronts:
            for point in found["points"]:
                evaluator = run.stages.evaluator(found["stage"])
                assert evaluator.evaluate(point["sample"]).metrics == point["metrics"]
        plain = fronts[0]["points"][0]
        assert plain["metrics"]["bitops"] == 32 * 32 * plain["metrics"]["macs"]
        assert run.stages.finished() == ["float", "weights", "4-bit", "3-bit"]


def test_weights_alone_are_judged_with_float_activations(path):
    with Run.open(path, load_registry()) as run:
        space = run.stages.space("weights")
        assert bits(space.lowest()) == (3, 32)
        evaluator = run.stages.evaluator("weights")
        layers = evaluator.subnet(space.highest()).layers
        assert {layer.a_bits for layer in layers} == {32}
        assert evaluator.evaluate(space.lowest()).metrics["accuracy"] > 0


def test_the_same_search_of_another_stage_is_another_search(path):
    with Run.open(path, load_registry()) as run:
        dump = run.store.canonical_dump()
        assert run.search(stage="4-bit")["search"] == "02-random"
        assert run.store.canonical_dump() == dump


def test_a_key_finds_its_stage(path):
    with Run.open(path, load_registry()) as run:
        for found in run.fronts():
            choice = find(run, found["chosen"])
            assert (choice.stage, run.stages.space(choice.stage).key(choice.sample)) == (
                found["stage"],
                found["chosen"],
            )
            assert {c.stage for c in front(run, found["stage"])} == {found["stage"]}
        assert find(run, None).stage == "3-bit"
        assert find(run, None, stage="4-bit").stage == "4-bit"
        assert bits(find(run, "largest").sample) == (3, 3)
        assert bits(find(run, "largest", stage="float").sample) == (32, 32)
        key = run.fronts()[1]["chosen"]
        with pytest.raises(StoreError, match="no trial's key"):
            find(run, key, stage="3-bit")
        with pytest.raises(StoreError, match=r"no finished search of stage 'weights'.*--stage weights"):
            find(run, None, stage="weights")
        with pytest.raises(StoreError, match=r"'5-bit' does not exist.*Allowed: 3-bit, 4-bit, float, weights"):
            find(run, None, stage="5-bit")


def test_a_subnet_that_two_stages_judged_must_be_named_with_one(path, monkeypatch):
    with Run.open(path, load_registry()) as run:
        key = run.fronts()[1]["chosen"]
        trials = [(s, n, t) for s, n, t in run.store.trials() if t.key == key]
        monkeypatch.setattr(type(run.store), "trials", lambda self: [*trials, ("03-random", 9, trials[0][2])])
        with pytest.raises(StoreError, match=r"after more than one stage.*Name one by --stage: 4-bit, 3-bit"):
            find(run, key)
        assert find(run, key, stage="3-bit") == Choice(trials[0][2].sample, "3-bit")


def test_every_quantized_stage_deploys(path):
    for stage in ("4-bit", "3-bit"):
        exported = qnas("export", path, "--stage", stage, "--json", "-q")
        assert exported.exit_code == 0, exported.output
        (value,) = json.loads(exported.stdout)
        assert value["stage"] == stage
        verified = qnas("verify", path, "--stage", stage, "--json", "-q")
        assert verified.exit_code == 0, verified.output
    assert qnas("verify", path, "--all", "-q").exit_code == 0
    with Run.open(path, load_registry()) as run:
        assert sorted(e["stage"] for e in list_exports(run.store)) == ["3-bit", "4-bit"]
        exported = {e["key"] for e in list_exports(run.store)}
        space = run.stages.space("3-bit")
        other = next(s for s in (space.lowest(), space.highest()) if space.key(s) not in exported)
        with pytest.raises(StoreError, match=r"no exported model of subnet .* after stage '3-bit'"):
            run.verify(other, "3-bit")
        with pytest.raises(ExportError, match="does not quantize both"):
            run.export(run.stages.space("weights").lowest(), "weights")


def test_commands_take_a_stage(path):
    judged = qnas("evaluate", path, "--stage", "float", "--config", "largest", "--json", "-q")
    assert judged.exit_code == 0, judged.output
    value = json.loads(judged.stdout)
    assert (value["stage"], bits(value["sample"])) == ("float", (32, 32))
    several = qnas("search", path, "--stage", "4-bit", "--stage", "3-bit", "--json", "-q")
    assert [f["stage"] for f in json.loads(several.stdout)] == ["4-bit", "3-bit"]
    wrong = qnas("search", path, "--stage", "4bit")
    assert isinstance(wrong.exception, ConfigError)
    assert "Did you mean '4-bit'" in str(wrong.exception)
    refused = qnas("train-alone", path, "--stage", "nine", "--config", "largest")
    assert isinstance(refused.exception, StoreError)


def test_a_subnet_is_trained_alone_as_far_as_its_stage(path):
    with Run.open(path, load_registry()) as run:
        sample = run.stages.space("4-bit").lowest()
        scratch = run.train_alone(sample, AloneSettings(stage="4-bit"))
        assert [s["name"] for s in scratch["stages"]] == ["float", "weights", "4-bit"]
        again = run.train_alone(sample, AloneSettings(start="supernet", stage="4-bit"))
        assert [s["name"] for s in again["stages"]] == ["4-bit"]
        plain = run.train_alone(run.stages.space("float").lowest(), AloneSettings(stage="float"))
        assert plain["metrics"]["test"]["bitops"] == 1024 * plain["metrics"]["test"]["macs"]
        named = run.train_alone(run.stages.space().lowest(), AloneSettings())
        assert named["id"] == run.train_alone(run.stages.space().lowest(), AloneSettings(stage="3-bit"))["id"]


def test_an_unfinished_stage_is_said_to_be_so(tmp_path):
    with Run.create(tmp_path / "run", load_config(CONFIG), load_registry()) as run:
        assert run.stages.finished() == []
        with pytest.raises(StoreError, match="not trained to the end of stage 'float'"):
            run.stages.evaluator("float")
        with pytest.raises(StoreError, match="not trained to the end\\. "):
            run.stages.checkpoint()


def test_configurations_name_stages_that_are_there():
    with pytest.raises(ConfigError, match=r"The stage 'float2' does not exist. Did you mean 'float'"):
        load_config(CONFIG, {"search": {"stages": ["float2"]}})


def test_stopped_after_any_epoch_it_goes_on_to_the_same_bytes(path, tmp_path):
    with Run.open(path, load_registry()) as run:
        whole = [file.read_bytes() for file in run.stages.checkpoints()]
    target = tmp_path / "run"
    Run.create(target, load_config(CONFIG), load_registry()).close()
    for _ in STAGES:  # stopped after the one epoch of each stage
        with Run.open(target, load_registry()) as run:
            save = run._save

            def stop(trainer, save=save):
                save(trainer)
                raise KeyboardInterrupt

            run._save = stop
            with pytest.raises(KeyboardInterrupt):
                run.train()
    with Run.open(target, load_registry()) as run:
        assert run.stages.finished() == [stage["name"] for stage in STAGES]
        assert [file.read_bytes() for file in run.stages.checkpoints()] == whole
